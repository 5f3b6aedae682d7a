"""The spatial re-mapping of RMPE: the STN takes a crop apart along theta, the SDTN puts heat maps or points back.

Convention: theta is ``crop_from_stn`` in the unit frame, (x, y) order: it pulls, so the STN's output at a point is the
crop at theta times that point. gamma = ``stn_from_crop`` is its inverse (``geometry.affine.invert_affine``); the SDTN
pulls along gamma. Both hold at every resolution. ``align_corners`` must be the same everywhere.

Reference: RMPE, Fang et al., ICCV 2017, section 3.1 and eqs 1 to 4.
"""

import jax
from jaxtyping import Array, Float, Num

from rmpe_jax.geometry.affine import compose, invert_affine, pixels_from_unit, transform_points, unit_from_pixels
from rmpe_jax.geometry.sampling import Padding, crop_image

Affine = Float[Array, "2 3"]


def stn(
    image: Num[Array, "H W c"],
    theta: Affine,
    size: tuple[int, int],
    *,
    padding: Padding = "zeros",
    align_corners: bool = False,
) -> Float[Array, "h w c"]:
    """Resamples a picture along theta: the spatial transformer without its localization network.

    Args:
        image: the crop, any value range.
        theta: crop_from_stn, unit frame.
        size: (height, width) of the result.
        padding: see ``sample_image``.
        align_corners: what -1 and 1 mean, see ``pixels_from_unit``.

    Example:
        >>> import jax.numpy as jnp
        >>> ramp = jnp.arange(16.0).reshape(4, 4, 1)
        >>> mirror = jnp.array([[-1.0, 0, 0], [0, 1, 0]])
        >>> stn(ramp, mirror, (4, 4))[0, :, 0].tolist()
        [3.0, 2.0, 1.0, 0.0]

    Reference: RMPE eq. 1; Jaderberg et al., NIPS 2015.
    """
    pixels = pixels_from_unit((image.shape[0], image.shape[1]), align_corners=align_corners)
    image_from_stn = compose(compose(pixels, theta), unit_from_pixels(size, align_corners=align_corners))
    return crop_image(image, image_from_stn, size, padding=padding)


def sdtn(
    heatmaps: Float[Array, "*s h w k"], theta: Affine, *, padding: Padding = "zeros", align_corners: bool = False
) -> Float[Array, "*s h w k"]:
    """Takes heat maps of the STN's frame back to the crop: the spatial de-transformer, for all stacks at once.

    The result at a point p of the crop is the map at gamma p. Gradients flow to the maps and, through the matrix
    inverse, to theta.

    Args:
        heatmaps: maps of the STN's output; any number of stacks in front.
        theta: what the STN sampled along; a singular one gives finite maps, see ``invert_affine``.
        padding: see ``sample_image``.
        align_corners: as in ``stn``.

    Reference: RMPE eqs 2 to 4.
    """
    gamma = invert_affine(theta)
    size = (heatmaps.shape[-3], heatmaps.shape[-2])

    def one(maps):
        return stn(maps, gamma, size, padding=padding, align_corners=align_corners)

    stacks = heatmaps.reshape(-1, *heatmaps.shape[-3:])
    return jax.vmap(one)(stacks).reshape(heatmaps.shape)


def crop_from_stn(theta: Affine, size: tuple[int, int], *, align_corners: bool = False) -> Affine:
    """Theta as a map between pixels: from the STN's output of ``size`` (height, width) to a crop of the same size.

    Composed with ``image_from_crop`` it is the one map from the STN's output to the picture, along which a single
    sample replaces two.
    """
    pixels = pixels_from_unit(size, align_corners=align_corners)
    return compose(compose(pixels, theta), unit_from_pixels(size, align_corners=align_corners))


def sdtn_points(
    points: Float[Array, "*n 2"], theta: Affine, size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*n 2"]:
    """Takes points of the STN's output back to the crop: the SDTN without resampling any map.

    Args:
        points: (x, y), pixels of the STN's output (or of its heat map).
        theta: what the STN sampled along.
        size: (height, width) of the output that the points are pixels of.
        align_corners: as in ``stn``.
    """
    return transform_points(crop_from_stn(theta, size, align_corners=align_corners), points)
