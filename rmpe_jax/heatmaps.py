"""Heat maps: Gaussian targets with visibility, and points read back from maps.

Convention: maps are (height, width, joints); points are (x, y) in heat-map pixels, pixel centres at integers. To go
from crop to map use ``geometry.affine.pixels_of_resized``: at a quarter of the size, x -> (x + 0.5) / 4 - 0.5.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
    flat = heatmaps.reshape(-1, joints)
    best = flat.argmax(0)
    joint = jnp.arange(joints)
    x, y = best % width, best // width

    def value(dx, dy):
        return heatmaps[jnp.clip(y + dy, 0, height - 1), jnp.clip(x + dx, 0, width - 1), joint]

    def quarter(position, side, ahead, behind):
        return jnp.where((position > 0) & (position < side - 1), 0.25 * jnp.sign(ahead - behind), 0.0)

    point = jnp.stack(
        [x + quarter(x, width, value(1, 0), value(-1, 0)), y + quarter(y, height, value(0, 1), value(0, -1))], -1
    )
    point = jnp.where(jnp.isnan(point), jnp.stack([x, y], -1), point)
    return point.astype(heatmaps.dtype), jnp.clip(flat[best, joint], 0.0, 1.0)


def flip_heatmaps(heatmaps: Float[Array, "h w k"], flip_order: tuple[int, ...]) -> Float[Array, "h w k"]:
    """Mirrors maps left to right and exchanges left and right joints.

    Averaging the maps of a crop with the flipped maps of the mirrored crop is the flip test.
    """
    return heatmaps[:, ::-1, jnp.array(flip_order)]
