"""2x3 affine maps between named frames.

Convention: a map is named by its frames, ``image_from_crop`` takes crop points to the picture, and ``compose`` reads
by cancelling: ``compose(image_from_crop, crop_from_unit)`` is image_from_unit. Points are (x, y), pixel centres at
integers, sizes (height, width). The unit frame is [-1, 1] in both axes, where the STN's theta lives.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmpe_jax.geometry.boxes import extend_boxes, fit_aspect

Affine = Float[Array, "2 3"]
# Accelerators multiply matrices in bfloat16 or TF32 by default, which moves points by whole pixels.
_product = partial(jnp.matmul, precision="highest")
# Smallest |determinant| that is inverted as it is; nearer to zero it is replaced by this with its sign.
_SMALLEST_DETERMINANT = 1e-8


def identity_affine() -> Affine:
    """The map that leaves points where they are."""
    return jnp.eye(2, 3)


def compose(outer: Affine, inner: Affine) -> Affine:
    """The map that applies ``inner`` first, then ``outer``.

    c_from_a is compose of c_from_b and b_from_a.

    Example:
        >>> double, shift = jnp.array([[2.0, 0, 0], [0, 2, 0]]), jnp.array([[1.0, 0, 3], [0, 1, 4]])
        >>> compose(double, shift)[:, 2].tolist()
        [6.0, 8.0]
    """
    linear = outer[:, :2]
    return jnp.concatenate([_product(linear, inner[:, :2]), _product(linear, inner[:, 2:]) + outer[:, 2:]], 1)


def invert_affine(matrix: Affine) -> Affine:
    """The inverse map by the closed 2x2 form; applied to theta it is gamma, the SDTN.

    gamma_12 = theta_12^-1,  gamma_3 = -gamma_12 theta_3.

    A determinant smaller than 1e-8 in size is replaced by 1e-8 with its sign and counts as a constant, so the result
    and its gradient are finite (and mostly large) even for a singular map.

    Reference: RMPE eqs 3 and 4.
    """
    (a, b, x), (c, d, y) = matrix
    det = a * d - b * c
    small = jnp.abs(det) < _SMALLEST_DETERMINANT
    det = jnp.where(small, jnp.where(det < 0, -_SMALLEST_DETERMINANT, _SMALLEST_DETERMINANT), det)
    return jnp.stack([jnp.stack([d, -b, b * y - d * x]), jnp.stack([-c, a, c * x - a * y])]) / det


def transform_points(matrix: Affine, points: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """Applies ``b_from_a`` to points given in frame a.

    Example:
        >>> transform_points(jnp.array([[2.0, 0, 1], [0, 2, 0]]), jnp.array([3.0, 4.0])).tolist()
        [7.0, 8.0]
    """
    return _product(points, matrix[:, :2].T) + jnp.broadcast_to(matrix[:, 2], points.shape)


def image_from_crop(box: Float[Array, "4"], size: tuple[int, int], *, rotation: float | Array = 0.0) -> Affine:
    """The map from the pixels of a crop of ``size`` (height, width) to the picture that ``box`` lies in.

    The crop's edges fall on the box's edges; with ``rotation`` (radians, clockwise as seen on the screen, where y
    points down) the box is first turned about its centre.

    Example:
        >>> matrix = image_from_crop(jnp.array([-0.5, -0.5, 7.5, 7.5]), (8, 8))
        >>> jnp.allclose(matrix, identity_affine()).item()
        True
    """
    height, width = size
    scale = (box[2:] - box[:2]) / jnp.array([width, height])
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])]) * scale[None]
    centre_of_crop = jnp.array([(width - 1) / 2, (height - 1) / 2])
    shift = (box[:2] + box[2:]) / 2 - _product(turn, centre_of_crop)
    return jnp.concatenate([turn, shift[:, None]], 1)


def pixels_from_unit(size: tuple[int, int], *, align_corners: bool = False) -> Affine:
    """The map from the unit frame [-1, 1] to the pixels of a picture of ``size`` (height, width).

    Convention: with ``align_corners=False`` -1 and 1 are the picture's edges, at -0.5 and side - 0.5; with True they
    are the centres of the first and the last pixel, as in the Torch original.
    """
    height, width = size
    if align_corners:
        half = jnp.array([(width - 1) / 2, (height - 1) / 2])
    else:
        half = jnp.array([width / 2, height / 2])
    centre = jnp.array([(width - 1) / 2, (height - 1) / 2])
    return jnp.concatenate([jnp.diag(half), centre[:, None]], 1)


def unit_from_pixels(size: tuple[int, int], *, align_corners: bool = False) -> Affine:
    """The inverse of ``pixels_from_unit``; the one pixel of a side of 1 goes to 0, also with ``align_corners``."""
    matrix = pixels_from_unit(size, align_corners=align_corners)
    half, centre = jnp.diagonal(matrix[:, :2]), matrix[:, 2]
    inverse = jnp.where(half > 0, 1 / jnp.where(half > 0, half, 1.0), 0.0)
    return jnp.concatenate([jnp.diag(inverse), (-inverse * centre)[:, None]], 1)


def pixels_of_resized(size: tuple[int, int], resized: tuple[int, int], *, align_corners: bool = False) -> Affine:
    """The map from pixels of a picture of ``size`` to those of the same picture at ``resized``, edges on edges.

    From a 256-pixel crop to its 64-pixel heat map: x -> (x + 0.5) / 4 - 0.5; with ``align_corners`` x -> 63 x / 255,
    which is unbiased data processing (UDP): Huang et al., CVPR 2020, section 3.1.
    """
    corners = {"align_corners": align_corners}
    return compose(pixels_from_unit(resized, **corners), unit_from_pixels(size, **corners))


def image_from_person(
    box: Float[Array, "4"], size: tuple[int, int], *, extension: float, rotation: float | Array = 0.0
) -> Affine:
    """The map from a crop of ``size`` to the picture for a person's ``box``: the crop of training and of inference.

    The box is extended, its shorter side is grown to the crop's aspect, and it may be turned about its centre.

    Args:
        box: x0 y0 x1 y1, pixels of the picture, as a detector gives it.
        size: (height, width) of the crop.
        extension: fraction of the box's sides added in total, see ``extend_boxes``.
        rotation: radians.
    """
    return image_from_crop(fit_aspect(extend_boxes(box, extension), size[1] / size[0]), size, rotation=rotation)
