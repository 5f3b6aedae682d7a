"""Average precision of MPII's multi-person protocol, which WAF uses as well: matching per picture, then counting.

``match_people`` judges one picture (a group of people); ``jax.vmap`` adds the pictures. ``joint_average_precision``
counts over pictures, with a weight for each, so that bootstrap replicates repeat the counting alone:

    matches = jax.vmap(match_people)(truth, predicted)
    ap = joint_average_precision(matches)
    row = table_row(ap, LSP_14.joints, MPII_COLUMNS)

The fourteen joints are those of ``LSP_14``: MPII's without pelvis and thorax (``convert_points``). PROTOCOLS.md works
an example by hand.

Reference: Pishchulin et al., DeepCut (CVPR 2016); MPII Human Pose evaluation toolkit, ``evaluateAP``.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from rmpe_jax.metrics.pck import correct_joints
from rmpe_jax.skeleton import LSP_14

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # Labels and predictions come from files as host arrays; a record may hold those too.
    Array = jax.Array | np.ndarray

# MPII's toolkit: a joint is right within half a head size.
_THRESHOLD = 0.5

_UPPER = {
    "Head": ("neck", "head_top"),
    **{name.title(): (f"left_{name}", f"right_{name}") for name in ("shoulder", "elbow", "wrist")},
}
_LOWER = {name.title(): (f"left_{name}", f"right_{name}") for name in ("hip", "knee", "ankle")}
_UPPER_BODY = tuple(joint for joints in _UPPER.values() for joint in joints)
#: Columns of the MPII multi-person table for ``table_row``; Total is the mAP over the fourteen joints.
MPII_COLUMNS = {**_UPPER, **_LOWER, "UBody": _UPPER_BODY, "Total": LSP_14.joints}
#: Columns of the WAF table: its people are labelled from the hips up, and Total takes the eight joints of the arms and
#: the head.
WAF_COLUMNS = {**_UPPER, "Total": _UPPER_BODY}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TruePeople:
    """The labelled people of a picture at capacity g, with k joints each."""

    points: Float[Array, "*batch g k 2"]  # (x, y), pixels of the picture
    labelled: Bool[Array, "*batch g k"]  # which joints carry a label
    head_size: Float[Array, "*batch g"]  # unit of length, pixels, see ``mpii_head_size``
    valid: Bool[Array, "*batch g"]  # which of the g entries hold a person

    @classmethod
    def from_lists(
        cls, points: Sequence[Any], labelled: Sequence[Any], head_size: Sequence[Any], *, joints: int
    ) -> "TruePeople":
        """The people of i pictures as host arrays, padded to the largest picture (to one person at least).

        Args:
            points: for each picture an array (people, k, 2), or a list of people; it may be empty.
            labelled: likewise, (people, k).
            head_size: likewise, (people,).
            joints: k.

        Raises:
            ValueError: lists of other lengths, or arrays of other shapes.
        """
        valid, (padded, known, sizes) = _pad(
            (points, (joints, 2), np.float32), (labelled, (joints,), bool), (head_size, (), np.float32)
        )
        return cls(points=padded, labelled=known, head_size=sizes, valid=valid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictedPeople:
    """The predicted people of a picture at capacity d, with k joints each."""

    points: Float[Array, "*batch d k 2"]  # (x, y), pixels of the picture
    score: Float[Array, "*batch d k"]  # each joint's confidence, any scale
    present: Bool[Array, "*batch d k"]  # False: the joint is not predicted and does not count
    valid: Bool[Array, "*batch d"]  # which of the d entries hold a prediction

    @classmethod
    def from_lists(
        cls, points: Sequence[Any], score: Sequence[Any], present: Sequence[Any], *, joints: int
    ) -> "PredictedPeople":
        """The predictions of i pictures as host arrays, padded to the largest picture (to one at least).

        Args:
            points: for each picture an array (people, k, 2), or a list of people; it may be empty.
            score: likewise, (people, k).
            present: likewise, (people, k).
            joints: k.

        Raises:
            ValueError: lists of other lengths, or arrays of other shapes.
        """
        valid, (padded, scores, given) = _pad(
            (points, (joints, 2), np.float32), (score, (joints,), np.float32), (present, (joints,), bool)
        )
        return cls(points=padded, score=scores, present=given, valid=valid)


def _pad(*fields: tuple[Sequence[Any], tuple[int, ...], Any]) -> tuple[Any, list[Any]]:
    """Pads ragged fields (values by picture, shape of one person, dtype) alike; returns ``valid`` and the arrays."""
    counts = [len(people) for people in fields[0][0]]
    capacity, arrays = max([1, *counts]), []
    for values, shape, dtype in fields:
        if [len(people) for people in values] != counts:
            raise ValueError(f"expected {counts} people by picture, got {[len(people) for people in values]}")
        array = np.zeros((len(counts), capacity, *shape), dtype)
        for picture, people in enumerate(values):
            if counts[picture]:
                one = np.asarray(people, dtype)
                if one.shape[1:] != shape:
                    raise ValueError(f"expected people of shape {shape}, got {one.shape[1:]} in picture {picture}")
                array[picture, : counts[picture]] = one
        arrays.append(array)
    return np.arange(capacity) < np.array(counts, int).reshape(-1, 1), arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matches:
    """What counting needs of a picture: every predicted joint with its judgement."""

    pck: Float[Array, "*batch d g"]  # share of a person's labelled joints that a prediction gets right
    person: Int[Array, "*batch d"]  # the person a prediction is given, or -1
    score: Float[Array, "*batch d k"]
    counted: Bool[Array, "*batch d k"]  # which predicted joints count, as right or as wrong
    correct: Bool[Array, "*batch d k"]  # which of them are right
    labelled: Int[Array, "*batch k"]  # number of people with the joint labelled
    answered: Bool[Array, "*batch"]  # whether the picture has any prediction


def match_people(truth: TruePeople, predicted: PredictedPeople, *, unlabelled: str = "wrong") -> Matches:
    """Gives predictions to the people of one picture and judges their joints.

    A joint is right within half the person's head size, the limit included. Every prediction stands for the one person
    of whom it gets the largest share of labelled joints right; every person takes the best of the predictions that
    stand for them; in both the first wins a tie, and a share of zero is no match. All joints of a prediction that is
    given to nobody are wrong. A point that is NaN, and a person whose head size is not positive, is never right.

    Args:
        truth: the picture's people.
        predicted: the picture's predictions.
        unlabelled: a matched prediction's joint that its person has no label for: "wrong" as in the toolkit (and
            PoseTrack's poseval), or "ignored".

    Raises:
        ValueError: other numbers of joints, or another word for ``unlabelled``.

    Reference: MPII Human Pose evaluation toolkit, ``assignGTmulti``.
    """
    if truth.labelled.shape[-1] != predicted.present.shape[-1]:
        raise ValueError(
            f"expected as many joints as labelled, {truth.labelled.shape[-1]}, got {predicted.present.shape[-1]}"
        )
    if unlabelled not in ("wrong", "ignored"):
        raise ValueError(f"expected unlabelled 'wrong' or 'ignored', got {unlabelled!r}")
    truth, predicted = jax.tree.map(jnp.asarray, (truth, predicted))
    labelled = truth.labelled & truth.valid[:, None]
    present = predicted.present & predicted.valid[:, None]
    right = _right_joints(truth, predicted) & labelled[None] & present[:, None]
    pck = right.sum(-1) / jnp.maximum(labelled.sum(-1), 1)[None]
    person = assign_people(pck)
    matched = (person >= 0)[:, None]
    known = labelled[person] | (unlabelled == "wrong")
    return Matches(
        pck=pck,
        person=person,
        score=predicted.score,
        counted=present & (known | ~matched),
        correct=right[jnp.arange(len(person)), person] & matched,
        labelled=labelled.sum(0),
        answered=predicted.valid.any(),
    )


def _right_joints(truth: TruePeople, predicted: PredictedPeople) -> Bool[Array, "d g k"]:
    """Whether each prediction's joints are those of each person, masks aside."""

    def one(points, person, size):
        return correct_joints(points, person, jnp.ones(len(person), bool), size, threshold=_THRESHOLD)

    each_person = jax.vmap(one, (None, 0, 0))
    return jax.vmap(each_person, (0, None, None))(predicted.points, truth.points, truth.head_size)


def assign_people(pck: Float[Array, "d g"]) -> Int[Array, "d"]:
    """The person that each prediction is given by the shares it gets right, -1 for none; no person twice.

    Example:
        >>> assign_people(jnp.array([[1.0, 0.0], [0.75, 0.5], [0.0, 0.5], [0.0, 0.0]])).tolist()
        [0, -1, 1, -1]
    """
    best = pck.argmax(1)
    kept = jnp.where(jnp.arange(pck.shape[1])[None] == best[:, None], pck, 0.0)
    taken, found = kept.argmax(0), kept.max(0) > 0
    return jnp.where((taken[best] == jnp.arange(len(best))) & found[best], best, -1)


def joint_average_precision(
    matches: Matches, *, weight: Float[Array, "i"] | None = None, denominator: str = "strict"
) -> Float[Array, "k"]:
    """Average precision of each joint over i pictures, in [0, 1]; NaN where nobody has the joint labelled.

    The predicted joints of one kind are sorted by falling score; equal scores stay in the order of pictures and of
    predictions within them, and a score of NaN comes last. AP is the area under precision over recall, after each
    precision is raised to the largest at any higher recall.

    Args:
        matches: ``match_people`` of each picture, stacked.
        weight: how often each picture counts, not negative; once by default. Whole weights equal pictures repeated in
            place, but for equal scores within one picture, which repetition would interleave.
        denominator: recall counts the labelled joints of all pictures ("strict"), or only of those with predictions
            ("toolkit_parity": the toolkit meets a picture's people while it walks through the predictions).

    Raises:
        ValueError: another word for ``denominator``.

    Reference: MPII Human Pose evaluation toolkit, ``getRPC``, and Pascal VOC 2011, ``VOCap``.
    """
    if denominator not in ("strict", "toolkit_parity"):
        raise ValueError(f"expected denominator 'strict' or 'toolkit_parity', got {denominator!r}")
    pictures, people, joints = matches.score.shape
    times = jnp.ones(pictures) if weight is None else weight
    asked = times if denominator == "strict" else times * matches.answered
    labels = (matches.labelled * asked[:, None]).sum(0)
    score, counted, correct = (field.reshape(-1, joints) for field in (matches.score, matches.counted, matches.correct))
    each_joint = jax.vmap(average_precision, (1, 1, 1, None, 0))
    return each_joint(score, counted, correct, jnp.repeat(times, people), labels)


def average_precision(
    score: Float[Array, "n"],
    counted: Bool[Array, "n"],
    correct: Bool[Array, "n"],
    weight: Float[Array, "n"],
    labels: Float[Array, ""],
) -> Float[Array, ""]:
    """Area under the precision envelope of n scored answers, NaN without labels; see ``joint_average_precision``.

    Args:
        score: confidence of each answer.
        counted: which answers count.
        correct: which of them are right.
        weight: how often each counts.
        labels: number of right answers there are to find.
    """
    order = jnp.argsort(-score, stable=True)
    answers = jnp.where(counted, weight, 0.0)[order]
    hits = jnp.where(correct[order], answers, 0.0)
    answered = answers.cumsum()
    precision = jnp.where(answered > 0, hits.cumsum() / jnp.where(answered > 0, answered, 1.0), 0.0)
    area = (jax.lax.cummax(precision, reverse=True) * hits).sum()
    return jnp.where(labels > 0, area / jnp.where(labels > 0, labels, 1.0), jnp.nan)
