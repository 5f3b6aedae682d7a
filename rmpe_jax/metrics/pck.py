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
    """LSP's torso: the distance from the left shoulder to the right hip, in the frame of the points.

    Where one of them is not labelled (never in LSP, often in LSPET), the other diagonal stands in; zero where neither
    is complete.
    """

    def diagonal(shoulder, hip):
        a, b = skeleton.joints.index(shoulder), skeleton.joints.index(hip)
        return jnp.linalg.norm(points[a] - points[b]), labelled[a] & labelled[b]

    length, known = diagonal("left_shoulder", "right_hip")
    other, other_known = diagonal("right_shoulder", "left_hip")
    return jnp.where(known, length, jnp.where(other_known, other, 0.0))


def pck(correct: Bool[Array, "n k"], labelled: Bool[Array, "n k"]) -> tuple[Float[Array, ""], Float[Array, "k"]]:
    """Share of correct joints over n people: over all labelled joints together, and for each joint.

    A joint that nobody has labelled gets NaN, and so does the total where nothing is labelled.
    """
    counts, hits = labelled.sum(0), (correct & labelled).sum(0)
    total = jnp.where(counts.sum() > 0, hits.sum() / jnp.maximum(counts.sum(), 1), jnp.nan)
    return total, jnp.where(counts > 0, hits / jnp.maximum(counts, 1), jnp.nan)
