"""Bilinear sampling of one picture along an affine map, differentiable in the picture and in the map.

Convention: pictures are (height, width, channels), points (x, y) with pixel centres at integers. A sample position
that is not finite reads zeros, and no gradient flows back to it.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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
    return _interpolate(padding, image, x, y)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _interpolate(padding: str, image: Array, x: Array, y: Array) -> Array:
    (a, b, c, d), (left, right), (up, down), _ = _corners(image, x, y, padding)
    return up * (left * a + right * b) + down * (left * c + right * d)


@partial(_interpolate.defjvp, symbolic_zeros=True)
def _interpolate_jvp(padding: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """What automatic differentiation finds too, but in fewer passes over the pixels."""
    image, x, y = primals
    (a, b, c, d), (left, right), (up, down), ((to_left, to_right), (to_up, to_down)) = _corners(image, x, y, padding)
    value = _interpolate(padding, image, x, y)
    change = jnp.zeros_like(value)
    image_change, x_change, y_change = tangents
    if not isinstance(x_change, SymbolicZero):
        slope = up * (to_right * b - to_left * a) + down * (to_right * d - to_left * c)
        change += slope * x_change[..., None]
    if not isinstance(y_change, SymbolicZero):
        slope = to_down * (left * c + right * d) - to_up * (left * a + right * b)
        change += slope * y_change[..., None]
    if not isinstance(image_change, SymbolicZero):
        change += _interpolate(padding, image_change, x, y)
    return value, change


def _corners(image: Array, x: Array, y: Array, padding: str):
    """The four pixels around each position in reading order, their weights along x and along y, and those' slopes.

    What lies outside is multiplied by zero: to select the pixels instead takes twice the time on a CPU. For the same
    reason everything about a position is computed here, from the position alone.
    """
    height, width, channels = image.shape
    finite = jnp.isfinite(x) & jnp.isfinite(y)
    (column, *across), (row, *along) = _axis(x, finite, width, padding), _axis(y, finite, height, padding)
    flat = image.reshape(-1, channels)

    def at(dx: int, dy: int) -> Array:
        # Reading a pixel of the border and dropping it costs a third of copying the picture with a ring around it.
        place = jnp.clip(row + dy, 0, height - 1) * width + jnp.clip(column + dx, 0, width - 1)
        return flat.at[place].get(mode="promise_in_bounds").astype(x.dtype)

    (columns, to_columns), (rows, to_rows) = across, along
    return (at(0, 0), at(1, 0), at(0, 1), at(1, 1)), columns, rows, (to_columns, to_rows)


def _axis(position: Array, finite: Array, side: int, padding: str):
    """The pixel before each position on one axis, the weights of it and the next one, and the sizes of their slopes."""
    # Beyond one pixel outside nothing changes any more.
    low, high = (-1.0, float(side)) if padding == "zeros" else (0.0, side - 1.0)
    moves = (finite & (position >= low) & (position <= high)).astype(position.dtype)
    position = jnp.clip(jnp.where(finite, position, low), low, high)
    floor = jnp.floor(position)
    # In integers: float32 cannot count the pixels of a picture beyond 16 megapixels.
    index, after = floor.astype(jnp.int32), (position - floor)[..., None]
    if padding == "zeros":
        first, second = (((i >= 0) & (i < side)).astype(position.dtype)[..., None] for i in (index, index + 1))
    else:
        first = second = finite.astype(position.dtype)[..., None]
    return index, (first * (1 - after), second * after), (first * moves[..., None], second * moves[..., None])


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


def crop_images(
    images: Num[Array, "b H W c"],
    image_from_crop: Float[Array, "b 2 3"],
    size: tuple[int, int],
    *,
    padding: Padding = "zeros",
    levels: int = 1,
) -> Float[Array, "b h w c"]:
    """``crop_image`` of each picture, in the order that is fast: on a CPU one after the other, elsewhere all at once.

    The backward pass samples again instead of keeping what the forward pass read. On a CPU the gradient in the maps
    takes a third of the time of ``jax.vmap(crop_image)`` (benchmarks/README.md).
    """
    one = jax.checkpoint(partial(crop_image, size=size, padding=padding, levels=levels), prevent_cse=False)

    def in_turn(images, maps):
        return jax.lax.map(lambda each: one(*each), (images, maps))

    return jax.lax.platform_dependent(images, image_from_crop, cpu=in_turn, default=jax.vmap(one))


def crop_aligned(
    image: Num[Array, "H W c"],
    image_from_crop: Float[Array, "2 3"],
    size: tuple[int, int],
    *,
    padding: Padding = "zeros",
) -> Float[Array, "h w c"]:
    """``crop_image`` along a map that neither turns nor shears, by two matrix products.

    Bilinear sampling is then separable: rows times picture times columns, with one hat function for every row and
    column of the crop. There is no gather, so this suits accelerators that multiply faster than they look up, and the
    gradient in the picture is deterministic; on a CPU the gather is faster.

    The terms of the map that turn and shear are not read: their gradient is zero, where that of ``crop_image`` is not.
    Where a position falls on a pixel, the gradient is the mean of both sides; that of ``crop_image`` is the right-hand
    one.
    """
    if padding not in _PAD_MODE:
        raise ValueError(f"expected padding zeros or border, got {padding!r}")
    columns = _hats(image_from_crop[0, 0], image_from_crop[0, 2], size[1], image.shape[1], padding)
    rows = _hats(image_from_crop[1, 1], image_from_crop[1, 2], size[0], image.shape[0], padding)
    pixels = image.astype(jnp.promote_types(image.dtype, columns.dtype))
    return jnp.einsum("hH,HWc,wW->hwc", rows, pixels, columns, precision="highest")


def _hats(scale: Array, shift: Array, count: int, side: int, padding: Padding) -> Float[Array, "n N"]:
    """The weight of each of ``side`` pixels for each of ``count`` positions; none for a position that is not finite."""
    positions = scale * jnp.arange(count) + shift
    finite = jnp.isfinite(positions)
    positions = jnp.where(finite, positions, 0.0)
    if padding == "border":
        positions = jnp.clip(positions, 0.0, side - 1.0)
    weights = jnp.maximum(1 - jnp.abs(positions[:, None] - jnp.arange(side)[None]), 0.0)
    return weights * finite[:, None]


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
