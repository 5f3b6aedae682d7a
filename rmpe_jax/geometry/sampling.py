"""Bilinear sampling of one picture along an affine map, differentiable in the picture and in the map.

Convention: pictures are (height, width, channels), points (x, y) with pixel centres at integers. A sample position
that is not finite reads zeros and has no gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from rmpe_jax.geometry.affine import compose, pixels_from_unit, transform_points, unit_from_pixels

Padding = Literal["zeros", "border"]
_PAD_MODE = {"zeros": "constant", "border": "edge"}


def pixel_grid(size: tuple[int, int]) -> Float[Array, "h w 2"]:
    """(x, y) of every pixel centre of a picture of ``size`` (height, width)."""
    y, x = jnp.meshgrid(jnp.arange(size[0], dtype=float), jnp.arange(size[1], dtype=float), indexing="ij")
    return jnp.stack([x, y], -1)


def affine_grid(
    theta: Float[Array, "2 3"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "h w 2"]:
    """Where an output of ``size`` (height, width) reads its input, in the unit frame.

    (x_s, y_s) = theta (x_t, y_t, 1): theta pulls, from target to source.

    Args:
        theta: source_from_target in the unit frame [-1, 1], (x, y) order.
        size: height and width of the output.
        align_corners: what -1 and 1 mean, see ``pixels_from_unit``.

    Reference: RMPE eq. 1; Jaderberg et al. 2015, eq. 1.
    """
    unit_from_target = unit_from_pixels(size, align_corners=align_corners)
    return transform_points(compose(theta, unit_from_target), pixel_grid(size))


def grid_sample(
    image: Num[Array, "H W c"],
    grid: Float[Array, "*n 2"],
    *,
    padding: Padding = "zeros",
    align_corners: bool = False,
) -> Float[Array, "*n c"]:
    """Samples at unit-frame positions, as made by ``affine_grid`` with the same ``align_corners``."""
    pixels = pixels_from_unit((image.shape[0], image.shape[1]), align_corners=align_corners)
    return sample_image(image, transform_points(pixels, grid), padding=padding)


def sample_image(
    image: Num[Array, "H W c"], points: Float[Array, "*n 2"], *, padding: Padding = "zeros"
) -> Float[Array, "*n c"]:
    """Bilinear samples of a picture at pixel positions.

    Args:
        image: any real dtype; integers are converted after the lookup.
        points: (x, y), pixels.
        padding: beyond the outermost pixel centres the picture fades to zero within one pixel ("zeros") or its
            outermost values go on for ever ("border").

    Returns:
        One value per point and channel, float. The gradient in the points is that of the bilinear surface: it is
        piecewise, and jumps where a coordinate is an integer.
    """
    if padding not in _PAD_MODE:
        raise ValueError(f"expected padding zeros or border, got {padding!r}")
    height, width, channels = image.shape
    # One ring of zeros (or of the border's own values) makes every 2x2 neighbourhood exist.
    image = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode=_PAD_MODE[padding])
    finite = jnp.isfinite(points).all(-1)
    points = jnp.where(finite[..., None], points, 0.0)
    low, high = (-1.0, 0.0) if padding == "zeros" else (0.0, -1.0)
    x = jnp.clip(points[..., 0], low, width + high) + 1
    y = jnp.clip(points[..., 1], low, height + high) + 1
    x0 = jnp.clip(jnp.floor(x), 0, width)
    y0 = jnp.clip(jnp.floor(y), 0, height)
    right, down = (x - x0)[..., None], (y - y0)[..., None]
    # In integers: float32 cannot count the pixels of a picture beyond 16 megapixels.
    corner = y0.astype(jnp.int32) * (width + 2) + x0.astype(jnp.int32)
    flat = image.reshape(-1, channels)

    def at(offset):
        return flat.at[corner + offset].get(mode="promise_in_bounds").astype(points.dtype)

    upper = at(0) * (1 - right) + at(1) * right
    lower = at(width + 2) * (1 - right) + at(width + 3) * right
    return jnp.where(finite[..., None], upper * (1 - down) + lower * down, 0.0)


def crop_image(
    image: Num[Array, "H W c"],
    image_from_crop: Float[Array, "2 3"],
    size: tuple[int, int],
    *,
    padding: Padding = "zeros",
    levels: int = 1,
) -> Float[Array, "h w c"]:
    """Cuts a crop of ``size`` (height, width) out of a picture along ``image_from_crop``.

    With ``levels`` > 1 a crop that shrinks the picture is read from a copy that was halved by 2x2 means, up to
    ``levels`` - 1 times, the one at which the crop shrinks least but still does not enlarge; a crop that shrinks by
    8 then reads clean means and not every eighth pixel. Zero is outside the picture; values keep the picture's range.
    """
    points = transform_points(image_from_crop, pixel_grid(size))
    if levels == 1:
        return sample_image(image, points, padding=padding)
    shrink = jnp.sqrt(jnp.abs(jnp.linalg.det(image_from_crop[:, :2])))
    level = jnp.floor(jnp.log2(jnp.clip(shrink, 1.0, 2.0 ** (levels - 1))) + 1e-3).astype(jnp.int32)
    branches = []
    for halvings in range(levels):
        branches.append(_sample_halved(image, halvings, padding))
        image = halve_image(image, padding=padding) if halvings + 1 < levels else image
    return jax.lax.switch(level, branches, points)


def _sample_halved(image: Array, halvings: int, padding: Padding):
    def sample(points):
        return sample_image(image, (points + 0.5) / 2**halvings - 0.5, padding=padding)

    return sample


def halve_image(image: Num[Array, "H W c"], *, padding: Padding = "zeros") -> Float[Array, "h w c"]:
    """Means of 2x2 pixels; an odd last row or column is averaged with zeros, or with itself ("border")."""
    height, width, channels = image.shape
    image = jnp.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode=_PAD_MODE[padding]).astype(jnp.float32)
    return image.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((1, 3))
