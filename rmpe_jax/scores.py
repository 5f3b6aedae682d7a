"""What the scores of joints and poses mean: the one place where that is defined.

A **joint's score** is the probability that it is right: within a fifth of the torso's diagonal of where it should be,
as PCK@0.2 counts. An hourglass gives the maximum of the joint's heat map, clipped to [0, 1]; that ranks, but is no
probability, until two numbers that ``rmpe calibrate`` fits on labelled people turn it into one (``model.calibration``).
Weights without them keep the maximum. DeepPose learns the probability while it trains.

A **pose's score** is the mean of its joints' scores: the share of right joints that is to be expected. Scores are
neither sums nor products, so that they lie in [0, 1] whatever is found.

Reference: Platt, "Probabilistic Outputs for Support Vector Machines", 1999, for the two numbers; Guo et al., "On
Calibration of Modern Neural Networks", ICML 2017, for the error of a calibration.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

if TYPE_CHECKING:
    HostArray = Array
else:
    # Records may hold host arrays.
    HostArray = jax.Array | np.ndarray

#: Of scores that stay as they are.
UNCALIBRATED = (1.0, 0.0)
# Scores nearer to 0 or 1 count as this far: their log odds would be infinite.
_NEAREST = 1e-4


def log_odds(score: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(s / (1 - s)), finite also for 0 and 1."""
    inside = jnp.clip(score, _NEAREST, 1 - _NEAREST)
    return jnp.log(inside) - jnp.log1p(-inside)


def calibrated(score: Float[Array, "*n"], calibration: tuple[float, float]) -> Float[Array, "*n"]:
    """The probability of being right that belongs to a score; 0 stays 0.

    sigmoid(slope log(s / (1 - s)) + shift)

    Args:
        score: in [0, 1].
        calibration: slope and shift; ``UNCALIBRATED`` changes nothing.

    Example:
        >>> calibrated(jnp.array([0.0, 0.5, 0.8]), (1.0, 0.0)).tolist()
        [0.0, 0.5, 0.800000011920929]
        >>> calibrated(jnp.array([0.5]), (1.0, -jnp.log(3.0).item())).round(4).tolist()
        [0.25]
    """
    if calibration == UNCALIBRATED:
        return score
    slope, shift = calibration
    return jnp.where(score > 0, jax.nn.sigmoid(slope * log_odds(score) + shift), 0.0)


def pose_score(score: Float[HostArray, "*n k"]) -> Float[HostArray, "*n"]:
    """A pose's score from those of its joints: their mean."""
    return score.mean(-1)


def calibration_error(
    score: Float[Array, "n"], right: Bool[Array, "n"], *, bins: int = 10, weight: Float[Array, "n"] | None = None
) -> Float[Array, ""]:
    """How far scores are from probabilities: the mean gap between a score and the share of right ones like it.

    Scores are sorted into ``bins`` of equal width; of each the gap between mean score and share counts by its weight.

    Args:
        score: in [0, 1].
        right: what is to be told.
        bins: number of bins.
        weight: of each score; by default 1.

    Example:
        >>> calibration_error(jnp.array([0.1, 0.1, 0.9, 0.9]), jnp.array([False, False, True, False])).round(3).item()
        0.25
    """
    weight = jnp.ones_like(score) if weight is None else weight
    member = jax.nn.one_hot(jnp.clip((score * bins).astype(int), 0, bins - 1), bins) * weight[:, None]
    gaps = jnp.abs(((score - right)[:, None] * member).sum(0))
    return gaps.sum() / jnp.maximum(weight.sum(), 1e-12)
