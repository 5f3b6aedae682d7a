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
    return _bilinear(image, points[..., 0], points[..., 1], padding)


def _bilinear(image: Num[Array, "H W c"], x: Float[Array, "*n"], y: Float[Array, "*n"], padding: str) -> Array:
    """``sample_image`` with the two coordinates apart: joined to points, they cost as much as the sampling itself."""
    if padding not in _PAD_MODE:
        raise ValueError(f"expected padding zeros or border, got {padding!r}")
    height, width, channels = image.shape
    finite = jnp.isfinite(x) & jnp.isfinite(y)
    x, y = jnp.where(finite, x, 0.0), jnp.where(finite, y, 0.0)
    # Beyond one pixel outside nothing changes any more.
    low, high = (-1.0, 0.0) if padding == "zeros" else (0.0, -1.0)
    x, y = jnp.clip(x, low, width + high), jnp.clip(y, low, height + high)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    right, down = (x - x0)[..., None], (y - y0)[..., None]
    # In integers: float32 cannot count the pixels of a picture beyond 16 megapixels.
    column, row, flat = x0.astype(jnp.int32), y0.astype(jnp.int32), image.reshape(-1, channels)

    def at(dx: int, dy: int) -> Array:
        # Reading a pixel of the border and dropping it costs a third of copying the picture with a ring around it.
        i, j = column + dx, row + dy
        place = jnp.clip(j, 0, height - 1) * width + jnp.clip(i, 0, width - 1)
        value = flat.at[place].get(mode="promise_in_bounds").astype(x.dtype)
        inside = (i >= 0) & (i < width) & (j >= 0) & (j < height) & finite
        return jnp.where((inside if padding == "zeros" else finite)[..., None], value, 0.0)

    upper = at(0, 0) * (1 - right) + at(1, 0) * right
    lower = at(0, 1) * (1 - right) + at(1, 1) * right
    return upper * (1 - down) + lower * down


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
    x, y = _positions(image_from_crop, size)
    if levels == 1:
        return _bilinear(image, x, y, padding)
    shrink = jnp.sqrt(jnp.abs(jnp.linalg.det(image_from_crop[:, :2])))
    level = jnp.floor(jnp.log2(jnp.clip(shrink, 1.0, 2.0 ** (levels - 1))) + 1e-3).astype(jnp.int32)
    branches = []
    for halvings in range(levels):
        branches.append(_sample_halved(image, halvings, padding))
        image = halve_image(image, padding=padding) if halvings + 1 < levels else image
    return jax.lax.switch(level, branches, x, y)


def _positions(image_from_crop: Float[Array, "2 3"], size: tuple[int, int]) -> tuple[Array, Array]:
    """X and y in the picture of every pixel of a crop."""
    columns, rows = jnp.arange(size[1], dtype=float)[None], jnp.arange(size[0], dtype=float)[:, None]
    (a, b, c), (d, e, f) = image_from_crop
    return a * columns + b * rows + c, d * columns + e * rows + f


def _sample_halved(image: Array, halvings: int, padding: Padding):
    def sample(x, y):
        return _bilinear(image, (x + 0.5) / 2**halvings - 0.5, (y + 0.5) / 2**halvings - 0.5, padding)

    return sample


def halve_image(image: Num[Array, "H W c"], *, padding: Padding = "zeros") -> Float[Array, "h w c"]:
    """Means of 2x2 pixels; an odd last row or column is averaged with zeros, or with itself ("border")."""
    height, width, channels = image.shape
    image = jnp.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode=_PAD_MODE[padding]).astype(jnp.float32)
    return image.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((1, 3))
