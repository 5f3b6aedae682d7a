"""PCP: the share of body parts whose sticks are found, strict or relaxed; and its form for We Are Family (WAF).

A stick is two end points, ``(2, 2)``; a stickman is s sticks. ``sticks_of`` makes them from joints, ``correct_sticks``
judges one person, ``pcp`` counts over people. WAF's people are stickmen already, some of whose sticks are hidden, and
a picture has many people: ``match_stickmen``, ``correct_stickman`` and ``stickman_scores`` follow its evaluation.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rmpe_jax.metrics.pck import pck
from rmpe_jax.skeleton import Skeleton


def _sides(name: str) -> tuple[str, str]:
    return f"left_{name}", f"right_{name}"


def _limb(name: str, upper: str, lower: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    ends = zip(_sides(name), _sides(upper), _sides(lower), strict=True)
    return {stick: ((a,), (b,)) for stick, a, b in ends}


_ARMS = {**_limb("upper_arm", "shoulder", "elbow"), **_limb("lower_arm", "elbow", "wrist")}
_LEGS = {**_limb("upper_leg", "hip", "knee"), **_limb("lower_leg", "knee", "ankle")}
_HEAD = {"head": (("head_top",), ("neck",))}
#: LSP's ten sticks, each end the mean of the joints it names. Torso and head as in deepcut's evaluation of LSP.
LSP_STICKS = {"torso": (_sides("shoulder"), _sides("hip")), **_ARMS, **_LEGS, **_HEAD}
#: WAF's six sticks in the order of its label file; the sides are the person's.
WAF_STICKS = {"torso": (("thorax",), ("pelvis",)), **_ARMS, **_HEAD}
_LIMB_COLUMNS = {
    **{"UArm": _sides("upper_arm"), "LArm": _sides("lower_arm")},
    **{"ULeg": _sides("upper_leg"), "LLeg": _sides("lower_leg")},
}
#: Columns of DeepPose's table on LSP (table 1) for ``table_row``; its average takes the limbs only.
PCP_COLUMNS = {**_LIMB_COLUMNS, "Ave.": tuple(name for names in _LIMB_COLUMNS.values() for name in names)}


def sticks_of(
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    skeleton: Skeleton,
    *,
    sticks: Mapping[str, Sequence[Sequence[str]]] = LSP_STICKS,
) -> tuple[Float[Array, "s 2 2"], Bool[Array, "s"]]:
    """The sticks of one person, and which of them have all their joints labelled.

    Args:
        points: joints in the skeleton's order, any frame.
        labelled: which of them carry a label.
        skeleton: names the joints.
        sticks: stick name -> the joints of either end.

    Raises:
        ValueError: the skeleton lacks a joint.
    """
    missing = {joint for ends in sticks.values() for end in ends for joint in end} - set(skeleton.joints)
    if missing:
        raise ValueError(f"expected a skeleton with {sorted(missing)}, got {skeleton.name}")
    # share[s, e, k]: how much joint k gives to end e of stick s.
    share = np.zeros((len(sticks), 2, skeleton.size), np.float32)
    for stick, ends in enumerate(sticks.values()):
        for end, joints in enumerate(ends):
            for joint in joints:
                share[stick, end, skeleton.joints.index(joint)] = 1 / len(joints)
    used = share > 0
    ends = (share[..., None] * jnp.where(used[..., None], points[None, None], 0.0)).sum(2)
    return ends, (labelled[None, None] | ~used).all((1, 2))


def correct_sticks(
    predicted: Float[Array, "s 2 2"],
    truth: Float[Array, "s 2 2"],
    labelled: Bool[Array, "s"],
    *,
    criterion: str = "strict",
    threshold: float = 0.5,
) -> Bool[Array, "s"]:
    """Which labelled sticks are found: their ends lie within ``threshold`` true stick lengths of the true ends.

    A stick with an end predicted as NaN, or of true length zero, is never found; the limit itself counts.

    Args:
        predicted: sticks, any frame.
        truth: labels, the same frame, ends in the same order.
        labelled: which sticks count.
        criterion: "strict" holds for both ends, "relaxed" for the mean of the two errors.
        threshold: multiple of the true length.

    Raises:
        ValueError: another criterion.

    Reference: strict: Pishchulin et al. (CVPR 2012), LSP's usual rule; relaxed: Ferrari et al. (CVPR 2008) as in the
    code of Buffy, Pascal and WAF, and DeepPose.
    """
    if criterion not in ("strict", "relaxed"):
        raise ValueError(f"expected criterion 'strict' or 'relaxed', got {criterion!r}")
    error = jnp.linalg.norm(predicted - truth, axis=-1)
    error = error.max(-1) if criterion == "strict" else error.mean(-1)
    length = jnp.linalg.norm(truth[:, 0] - truth[:, 1], axis=-1)
    return labelled & (error <= threshold * length) & (length > 0)


def pcp(
    correct: Bool[Array, "n s"], labelled: Bool[Array, "n s"], *, weight: Float[Array, "n"] | None = None
) -> tuple[Float[Array, ""], Float[Array, "s"]]:
    """Share of found sticks over n people: over all labelled sticks together, and for each stick.

    A stick that nobody has labelled gets NaN. ``table_row`` with ``PCP_COLUMNS`` gives DeepPose's columns.

    Args:
        correct: which sticks are found.
        labelled: which sticks count.
        weight: how often each person counts, a ratio of sums; once by default.
    """
    return pck(correct, labelled, weight=weight)


def match_stickmen(
    overlap: Float[Array, "d g"], predicted: Bool[Array, "d"], truth: Bool[Array, "g"]
) -> Int[Array, "g"]:
    """For each true person of one picture the first prediction whose window overlaps theirs, or -1.

    Args:
        overlap: intersection over union of the upper-body windows, predictions x people (``box_iou``).
        predicted: which predictions are valid.
        truth: which people are valid.

    Reference: README of the stickmen data sets (Eichner and Ferrari), "detection rate": above 0.5. Their code refuses
    predictions whose own windows overlap by more; here the first stands.
    """
    near = (overlap > 0.5) & predicted[:, None] & truth[None]
    return jnp.where(near.any(0), near.argmax(0), -1)


def correct_stickman(
    predicted: Float[Array, "s 2 2"],
    predicted_visible: Bool[Array, "s"],
    truth: Float[Array, "s 2 2"],
    truth_visible: Bool[Array, "s"],
) -> tuple[Bool[Array, "s"], Bool[Array, "s"]]:
    """WAF's judgement of one matched person: which sticks are right, and which are rightly called visible or hidden.

    A stick is right if it is visible in both and found by the relaxed criterion, or hidden in both. The ends of a
    stick have no order: the prediction is turned round if its first end lies nearer to the second true end.

    Reference: ``DirectEvalStickman`` of the stickmen data sets; differs from it in that an error is a distance, where
    that code holds its parts along and across the stick to the limit, each by itself.
    """
    to_first, to_second = (jnp.linalg.norm(predicted[:, 0] - truth[:, end], axis=-1) for end in (0, 1))
    turned = jnp.where((to_second < to_first)[:, None, None], predicted[:, ::-1], predicted)
    found = correct_sticks(turned, truth, truth_visible & predicted_visible, criterion="relaxed")
    return found | (~predicted_visible & ~truth_visible), predicted_visible == truth_visible


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StickmanScores:
    """WAF's older figures, in [0, 1]; NaN where nobody was detected (or nobody is there)."""

    detection_rate: Float[Array, "*batch"]  # share of the true people with a prediction
    pcp: Float[Array, "*batch s"]  # share of right sticks, for each stick, over the detected people
    mpcp: Float[Array, "*batch"]  # over all sticks together
    aop: Float[Array, "*batch"]  # accuracy of occlusion prediction: share of sticks rightly called visible or hidden


def stickman_scores(
    correct: Bool[Array, "n s"],
    occlusion: Bool[Array, "n s"],
    detected: Bool[Array, "n"],
    *,
    weight: Float[Array, "n"] | None = None,
) -> StickmanScores:
    """PCP, mPCP and AOP over n true people; hidden sticks count like visible ones.

    Verified (README and code of the stickmen data sets): windows, relaxed criterion, hidden sticks, PCP over detected
    people only; times the detection rate it is the PCP over everybody. Assumed: that mPCP is the mean over the six
    sticks of the detected people, and AOP the share of their sticks with the right flag; the code that the papers ran
    (WAF's version of ``BatchEval``) was not found.

    Args:
        correct: from ``correct_stickman``, whatever for people that are not detected.
        occlusion: likewise.
        detected: which people have a prediction.
        weight: how often each person counts, 0 for padding; once by default.

    Reference: Eichner and Ferrari (ECCV 2010); Chen and Yuille (CVPR 2015).
    """
    counted = jnp.broadcast_to(detected[:, None], correct.shape)
    mpcp, each = pck(correct, counted, weight=weight)
    aop, _ = pck(occlusion, counted, weight=weight)
    rate, _ = pck(detected[:, None], jnp.ones_like(detected)[:, None], weight=weight)
    return StickmanScores(detection_rate=rate, pcp=each, mpcp=mpcp, aop=aop)
