"""PCK: the share of joints within a fraction of a body length of their label."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmpe_jax.skeleton import Skeleton


def correct_joints(
    predicted: Float[Array, "k 2"],
    truth: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    length: Float[Array, ""],
    *,
    threshold: float = 0.2,
) -> Bool[Array, "k"]:
    """Which labelled joints lie within ``threshold`` times ``length`` of their label; the limit itself counts.

    A joint that is not labelled, or predicted as NaN, is not correct; nothing is where ``length`` is not positive.
    """
    distance = jnp.linalg.norm(predicted - truth, axis=-1)
    return labelled & (distance <= threshold * length) & (length > 0)


def torso_length(points: Float[Array, "k 2"], labelled: Bool[Array, "k"], skeleton: Skeleton) -> Float[Array, ""]:
    """Distance from the left shoulder to the right hip, LSP's torso; zero where one of them is not labelled."""
    shoulder, hip = skeleton.joints.index("left_shoulder"), skeleton.joints.index("right_hip")
    difference = jnp.where(labelled[shoulder] & labelled[hip], points[shoulder] - points[hip], 0.0)
    return jnp.linalg.norm(difference)


def pck(correct: Bool[Array, "n k"], labelled: Bool[Array, "n k"]) -> tuple[Float[Array, ""], Float[Array, "k"]]:
    """Share of correct joints over n people: over all labelled joints together, and for each joint.

    A joint that nobody has labelled gets NaN, and so does the total where nothing is labelled.
    """
    counts, hits = labelled.sum(0), (correct & labelled).sum(0)
    total = jnp.where(counts.sum() > 0, hits.sum() / jnp.maximum(counts.sum(), 1), jnp.nan)
    return total, jnp.where(counts > 0, hits / jnp.maximum(counts, 1), jnp.nan)
