"""Heat maps: Gaussian targets with visibility, and points read back from maps.

Convention: maps are (height, width, joints); points are (x, y) in heat-map pixels, pixel centres at integers. To go
from crop to map use ``geometry.affine.pixels_of_resized``: at a quarter of the size, x -> (x + 0.5) / 4 - 0.5.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def encode_heatmaps(
    points: Float[Array, "k 2"], present: Bool[Array, "k"], size: tuple[int, int], *, sigma: float
) -> Float[Array, "h w k"]:
    """One Gaussian of height 1 per joint; a zero map where the joint is not present.

    exp(-((x - x_k)^2 + (y - y_k)^2) / (2 sigma^2))

    Args:
        points: joints, heat-map pixels; sub-pixel positions are kept.
        present: False gives a zero map (outside the crop, or not labelled), and so does a point that is not finite.
        size: (height, width) of the maps.
        sigma: standard deviation, heat-map pixels. Newell et al. and RMPE state 1 (their Torch helper drew 1.75).
    """
    present = present & jnp.isfinite(points).all(-1)
    points = jnp.where(present[:, None], points, 0.0)
    x = jnp.exp(-((jnp.arange(size[1])[:, None] - points[None, :, 0]) ** 2) / (2 * sigma**2))
    y = jnp.exp(-((jnp.arange(size[0])[:, None] - points[None, :, 1]) ** 2) / (2 * sigma**2))
    return y[:, None] * x[None] * present[None, None]


def points_inside(points: Float[Array, "*n 2"], size: tuple[int, int]) -> Bool[Array, "*n"]:
    """True where a point lies on a picture or map of ``size`` (height, width)."""
    limit = jnp.array([size[1], size[0]]) - 0.5
    return ((points >= -0.5) & (points < jnp.broadcast_to(limit, points.shape))).all(-1)


def decode_heatmaps(heatmaps: Float[Array, "h w k"]) -> tuple[Float[Array, "k 2"], Float[Array, "k"]]:
    """The position of each map's maximum, moved a quarter pixel towards its higher neighbour on each axis.

    On an axis where the maximum lies on the border it is not moved. Equal maxima: the first in reading order. A map
    with NaN counts those values as lowest. The score is the value of the maximum, clipped to [0, 1].

    Returns:
        Points (x, y) in heat-map pixels, and scores.

    Reference: the decoding of Newell et al. 2016, section 3.2.
    """
    height, width, joints = heatmaps.shape
    heatmaps = jnp.where(jnp.isnan(heatmaps), -jnp.inf, heatmaps)
    best, score = _maxima(heatmaps)
    x, y = best[:, 0], best[:, 1]

    def value(dx, dy):
        return heatmaps[jnp.clip(y + dy, 0, height - 1), jnp.clip(x + dx, 0, width - 1), jnp.arange(joints)]

    def quarter(position, side, ahead, behind):
        return jnp.where((position > 0) & (position < side - 1), 0.25 * jnp.sign(ahead - behind), 0.0)

    point = jnp.stack(
        [x + quarter(x, width, value(1, 0), value(-1, 0)), y + quarter(y, height, value(0, 1), value(0, -1))], -1
    )
    point = jnp.where(jnp.isnan(point), best, point)
    return point.astype(heatmaps.dtype), score


def decode_dark(heatmaps: Float[Array, "h w k"], *, blur: float = 2.0) -> tuple[Float[Array, "k 2"], Float[Array, "k"]]:
    """The position of each map's maximum, moved to the top of the parabola through the logarithm of its surroundings.

    shift = -H^-1 g, with the gradient g and the Hessian H of log(blurred map) at the maximum, by central differences.

    For a Gaussian of any width that is exact. Where the maximum lies on the border, or its surroundings are no peak, it
    stays where it is; no shift is larger than one pixel. The score is that of ``decode_heatmaps``.

    Args:
        heatmaps: of k joints; at least 3 pixels high and wide.
        blur: standard deviation of the Gaussian by which the maps are smoothed first, pixels, as a rule that of the
            targets; 0 for none.

    Returns:
        Points (x, y) in heat-map pixels, and scores.

    Reference: Zhang et al., "Distribution-Aware Coordinate Representation", CVPR 2020, eqs 6 to 10. Differs in that the
    smoothed map is not scaled back to the height of the map: its logarithm has the same derivatives.
    """
    height, width, joints = heatmaps.shape
    heatmaps = jnp.where(jnp.isnan(heatmaps), -jnp.inf, heatmaps)
    best, score = _maxima(heatmaps)
    logs = jnp.log(jnp.maximum(_smoothed(jnp.maximum(heatmaps, 0.0), blur), 1e-10))
    x, y = (jnp.clip(best[:, axis], 1, side - 2) for axis, side in ((0, width), (1, height)))

    def at(dx, dy):
        return logs[y + dy, x + dx, jnp.arange(joints)]

    gradient = jnp.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1) / 2
    xx, yy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = xx * yy - xy**2
    # A peak: the surface bends down in every direction.
    peak = (xx < 0) & (determinant > 1e-12) & (x == best[:, 0]) & (y == best[:, 1])
    divisor = jnp.where(peak, determinant, 1.0)
    shift = -jnp.stack([yy * gradient[:, 0] - xy * gradient[:, 1], xx * gradient[:, 1] - xy * gradient[:, 0]], -1)
    shift = jnp.clip(shift / divisor[:, None], -1.0, 1.0) * peak[:, None]
    return (best + shift).astype(heatmaps.dtype), score


def decode_soft_argmax(
    heatmaps: Float[Array, "h w k"], *, sharpness: float = 4.0
) -> tuple[Float[Array, "k 2"], Float[Array, "k"]]:
    """The mean position of each map, its values weighted by their power: differentiable in the maps.

    sum_p softmax_p(sharpness log map_p) p = sum_p map_p^sharpness p / sum_p map_p^sharpness

    Two peaks pull it between them, the less the larger the sharpness; a peak near the border is cut and pulled inwards.
    A map without a positive value gives its middle. The score is that of ``decode_heatmaps``.

    Args:
        heatmaps: of k joints, Gaussian bumps rather than logarithms; what is negative or NaN counts as zero.
        sharpness: a Gaussian of standard deviation s is weighted as one of s / sqrt(sharpness), which must stay above
            half a pixel or so.

    Returns:
        Points (x, y) in heat-map pixels, and scores.

    Reference: Sun et al., "Integral Human Pose Regression", ECCV 2018, eq. 2, on the logarithm of maps that are trained
    to be Gaussians.
    """
    height, width, _ = heatmaps.shape
    positive = jnp.where(heatmaps > 0, heatmaps, 0.0)
    top = positive.max((0, 1))
    share = jnp.where(top > 0, positive / jnp.where(top > 0, top, 1.0)[None, None], 1.0)
    # The power of zero has no derivative for sharpness below one.
    weight = jnp.where(share > 0, jnp.where(share > 0, share, 1.0) ** sharpness, 0.0)
    total = weight.sum((0, 1))
    x = (weight * jnp.arange(width)[None, :, None]).sum((0, 1)) / total
    y = (weight * jnp.arange(height)[:, None, None]).sum((0, 1)) / total
    return jnp.stack([x, y], -1).astype(heatmaps.dtype), jnp.clip(top, 0.0, 1.0)


def _maxima(heatmaps: Float[Array, "h w k"]) -> tuple[Int[Array, "k 2"], Float[Array, "k"]]:
    """The first of each map's largest pixels, (x, y), and its value clipped to [0, 1]."""
    flat = heatmaps.reshape(-1, heatmaps.shape[-1])
    best = flat.argmax(0)
    score = jnp.clip(flat[best, jnp.arange(flat.shape[1])], 0.0, 1.0)
    return jnp.stack([best % heatmaps.shape[1], best // heatmaps.shape[1]], -1), score


def _smoothed(heatmaps: Float[Array, "h w k"], sigma: float) -> Float[Array, "h w k"]:
    """Maps convolved with a Gaussian cut at three standard deviations; outside they are zero."""
    if sigma == 0:
        return heatmaps
    height, width, _ = heatmaps.shape

    def band(size):
        offset = jnp.arange(size)[:, None] - jnp.arange(size)[None]
        return jnp.where(jnp.abs(offset) <= 3 * sigma, jnp.exp(-(offset**2) / (2 * sigma**2)), 0.0)

    rows = jnp.einsum("ij,jwk->iwk", band(height), heatmaps, precision="highest")
    return jnp.einsum("ij,hjk->hik", band(width), rows, precision="highest")


def flip_heatmaps(heatmaps: Float[Array, "h w k"], flip_order: tuple[int, ...]) -> Float[Array, "h w k"]:
    """Mirrors maps left to right and exchanges left and right joints.

    Averaging the maps of a crop with the flipped maps of the mirrored crop is the flip test.
    """
    return heatmaps[:, ::-1, jnp.array(flip_order)]
