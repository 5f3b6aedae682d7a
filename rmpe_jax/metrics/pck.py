"""PCK: the share of joints within a fraction of a body length of their label, and its relatives PCKh, AUC and PDJ.

All of them are one rule with other lengths and thresholds: PCKh takes MPII's head size and 0.5 (or 0.1), its AUC the
mean over 0 to 0.5, PDJ the torso and a curve. ``correct_joints`` and ``correct_joints_at`` judge one person, ``pck``,
``pck_curve`` and ``pck_auc`` count over people.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rmpe_jax.skeleton import Skeleton

#: PCKh's area under the curve, as MPII's papers report it: 0 to 0.5 head sizes in steps of 0.01.
AUC_THRESHOLDS = tuple(step / 100 for step in range(51))
#: Fractions of the torso for a PDJ curve as in DeepPose's figures.
PDJ_FRACTIONS = tuple(step / 20 for step in range(1, 11))
# MPII's toolkit: the head is 0.8 x 0.75 of the labelled head box.
_HEAD_OF_BOX = 0.6


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


def correct_joints_at(
    predicted: Float[Array, "k 2"],
    truth: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    length: Float[Array, ""],
    thresholds: Sequence[float],
) -> Bool[Array, "t k"]:
    """``correct_joints`` for every one of ``thresholds``: the points of a PCKh or PDJ curve.

    Args:
        predicted: joints, any frame.
        truth: labels, the same frame.
        labelled: which joints count.
        length: head size (PCKh) or torso (PDJ), the same unit.
        thresholds: multiples of ``length``, see ``AUC_THRESHOLDS`` and ``PDJ_FRACTIONS``.
    """
    distance = jnp.linalg.norm(predicted - truth, axis=-1)
    return labelled[None] & (distance[None] <= jnp.array(thresholds)[:, None] * length) & (length > 0)


def mpii_head_size(head_box: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """MPII's unit of length: 0.6 times the diagonal of the labelled head box (x0, y0, x1, y1).

    Reference: MPII Human Pose evaluation toolkit, ``util_get_head_size``.
    """
    return _HEAD_OF_BOX * jnp.linalg.norm(head_box[..., 2:] - head_box[..., :2], axis=-1)


def torso_length(points: Float[Array, "k 2"], labelled: Bool[Array, "k"], skeleton: Skeleton) -> Float[Array, ""]:
    """LSP's torso: the distance from the left shoulder to the right hip, in the frame of the points.

    Where one of them is not labelled (never in LSP, often in LSPET), the other diagonal stands in; zero where neither
    is complete.
    """

    def diagonal(shoulder, hip):
        a, b = skeleton.joints.index(shoulder), skeleton.joints.index(hip)
        # Joints that coincide, as those of a fresh DeepPose do, have a length of zero, whose gradient would be NaN.
        square = ((points[a] - points[b]) ** 2).sum()
        length = jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))
        return length, labelled[a] & labelled[b]

    length, known = diagonal("left_shoulder", "right_hip")
    other, other_known = diagonal("right_shoulder", "left_hip")
    return jnp.where(known, length, jnp.where(other_known, other, 0.0))


def pck(
    correct: Bool[Array, "n k"], labelled: Bool[Array, "n k"], *, weight: Float[Array, "n"] | None = None
) -> tuple[Float[Array, ""], Float[Array, "k"]]:
    """Share of correct joints over n people: over all labelled joints together, and for each joint.

    A joint that nobody has labelled gets NaN, and so does the total where nothing is labelled.

    Args:
        correct: which joints are right.
        labelled: which joints count.
        weight: how often each person counts, a ratio of sums (``metrics.intervals``); once by default.
    """
    # Counting in integers stays exact for any number of people.
    times = jnp.ones(len(labelled), int) if weight is None else weight
    counts = (labelled * times[:, None]).sum(0)
    hits = ((correct & labelled) * times[:, None]).sum(0)
    return _share(hits.sum(), counts.sum()), _share(hits, counts)


def _share(hits, counts):
    return jnp.where(counts > 0, hits / jnp.where(counts > 0, counts, 1), jnp.nan)


def pck_curve(
    correct: Bool[Array, "n t k"], labelled: Bool[Array, "n k"], *, weight: Float[Array, "n"] | None = None
) -> tuple[Float[Array, "t"], Float[Array, "t k"]]:
    """``pck`` at each of t thresholds, from ``correct_joints_at`` of n people: all joints together, and each joint.

    With the torso as length this is PDJ, the percentage of detected joints (DeepPose, section 4.1).
    """
    return jax.vmap(lambda hits: pck(hits, labelled, weight=weight), in_axes=1)(correct)


def pck_auc(
    correct: Bool[Array, "n t k"], labelled: Bool[Array, "n k"], *, weight: Float[Array, "n"] | None = None
) -> tuple[Float[Array, ""], Float[Array, "k"]]:
    """Area under the PCK curve, as the mean over its thresholds: all joints together, and each joint.

    Reference: MPII's tables, with ``AUC_THRESHOLDS``; differs from the toolkit, which integrates over the same points.
    """
    total, each = pck_curve(correct, labelled, weight=weight)
    return total.mean(0), each.mean(0)


def table_row(
    values: Float[Array, "k"], names: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> dict[str, Float[Array, ""]]:
    """A row of a paper's table: for each column the mean over the joints (or sticks) that it names.

    A value that is NaN (nobody has that joint) is left out of the mean; a column of such values is NaN.

    Args:
        values: one for each joint or stick.
        names: what the values belong to, in their order.
        columns: column name -> names; ``MPII_COLUMNS``, ``WAF_COLUMNS``, ``PCP_COLUMNS``.

    Raises:
        ValueError: another number of names than values, or a column names what ``names`` lacks.

    Example:
        >>> row = table_row(jnp.array([0.5, 1.0, 0.0]), ("neck", "head_top", "hip"), {"Head": ("neck", "head_top")})
        >>> float(row["Head"])
        0.75
    """
    if len(names) != len(values):
        raise ValueError(f"expected a name for each of {len(values)} values, got {len(names)}")
    unknown = {name for members in columns.values() for name in members} - set(names)
    if unknown:
        raise ValueError(f"expected columns of {tuple(names)}, got {sorted(unknown)}")
    order = {column: np.array([names.index(name) for name in members]) for column, members in columns.items()}
    return {column: jnp.nanmean(values[indices]) for column, indices in order.items()}
