"""What learning the pose NMS maximises: average precision over many pictures, of whatever poses a setting keeps.

An ``Objective`` holds, on the device, everything that does not depend on the four parameters: the poses of each picture
in the order in which they become references, and how good they are. A setting only decides which poses stay; ``judged``
tells for every pose that does which *questions* it answers rightly: one for each OKS threshold (COCO's AP), or one for
each joint (MPII's AP). Questions are bits of a word and settings the last axis, so that a word's operation answers all
questions and a row's operation does so for hundreds of settings.

Poses are eliminated, not merged, as in the paper's learning: merging would make new poses, to be judged for every
setting anew.

Reference: RMPE section 3.4 (v1: 2.4), which maximises mAP on a validation set.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, UInt

from rmpe_jax.metrics.average_precision import THRESHOLDS, hits_of_levels
from rmpe_jax.metrics.multi_person_ap import PredictedPeople, TruePeople, match_people
from rmpe_jax.metrics.oks_ap import ScoredKeypoints, TrueKeypoints, oks_matrix
from rmpe_jax.records import Poses
from rmpe_jax.skeleton import COCO_17

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # Objectives are built on the host.
    Array = jax.Array | np.ndarray

# COCO's maxDets for keypoints.
_MOST = 20
# Pictures are put together by the number of their poses, in powers of two from this on.
_SMALLEST_CAPACITY = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OksJudge:
    """COCO's matching: poses by falling score, each takes the free person of highest OKS at every threshold."""

    order: Int[Array, "*batch p"]  # the poses by falling score
    candidate: Int[Array, "*batch p c"]  # the people that a pose reaches, those who count first, then by falling OKS
    passed: UInt[Array, "*batch p c"]  # the thresholds at which it does, as bits
    counts: Bool[Array, "*batch p c"]  # False: a match with that person is left out
    crowd: Bool[Array, "*batch g"]  # may be matched more than once
    questions: int = dataclasses.field(metadata={"static": True})
    most: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PeopleJudge:
    """MPII's matching: each person takes the best of the poses that stand for them; the others are false alarms."""

    beats: Bool[Array, "*batch p p"]  # row i, column j: both stand for the same person, and i is taken before j
    right: UInt[Array, "*batch p"]  # the joints that a pose gets right if it is taken, as bits
    present: UInt[Array, "*batch p"]  # the joints that it answers for; none where it does not belong to the group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scenes:
    """Pictures of similar crowding, at capacity p."""

    poses: Poses  # (i, p), by falling rank, those that are not valid last
    judge: OksJudge | PeopleJudge


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Count:
    """How answers are counted over some of the pictures: the area under precision over recall for each question."""

    row: Int[Array, "r m"]  # the answers by falling score, for all questions (r = 1) or for each
    mask: UInt[Array, "r m"]  # all bits, or none for the padding
    # What the n-th right answer adds, times the precision there: one row for all questions, or one for each.
    worth: Float[Array, "w n"]
    asked: Bool[Array, "q"]  # questions without a right answer stay out of the mean


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is maximised; made by ``oks_objective`` or ``people_objective``."""

    name: str  # "OKS AP" or "multi-person AP"
    scenes: tuple[Scenes, ...]
    questions: int
    pictures: int
    # On the host, for every row (pose of a scene, scenes one after the other), from which ``count`` chooses.
    picture_of_row: Int[np.ndarray, "n"]
    order: Int[np.ndarray, "r m"]
    labels: Int[np.ndarray, "q i"]  # right answers that there are to find in each picture
    together: Int[np.ndarray, "i"]  # pictures (groups of people) of equal number are parts of the same one
    levels: bool  # AP at COCO's 101 recall levels; else the whole area

    @property
    def joints(self) -> int:
        """Number of joints of a pose."""
        return self.scenes[0].poses.score.shape[-1]

    def count(self, pictures: Sequence[bool] | np.ndarray | None = None, *, room: int = 0, worth: int = 0) -> Count:
        """Counting over some pictures, over all by default.

        Args:
            pictures: (i,) which of them; by default all.
            room: pad to at least so many answers, so that few shapes are compiled.
            worth: likewise for right answers.
        """
        chosen = np.ones(self.pictures, bool) if pictures is None else np.asarray(pictures, bool)
        rows = [row[chosen[self.picture_of_row[row]]] for row in self.order]
        length = max(room, 1, *(len(row) for row in rows))
        kind = word_type(self.questions)
        padded, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), kind)
        for place, row in enumerate(rows):
            padded[place, : len(row)], mask[place, : len(row)] = row, np.iinfo(kind).max
        labels = self.labels[:, chosen].sum(1)
        size = max(worth, int(labels.max(initial=0)) + 1)
        table = _worth_of_levels(int(labels[0]), size) if self.levels else _worth_of_area(labels, size)
        return Count(jnp.asarray(padded), jnp.asarray(mask), jnp.asarray(table), jnp.asarray(labels > 0))


def word_type(questions: int) -> type[np.unsignedinteger]:
    """The smallest word with a bit for each question.

    Raises:
        ValueError: more than 32 questions.
    """
    if questions > 32:
        raise ValueError(f"expected at most 32 joints or thresholds, got {questions}")
    return np.uint16 if questions <= 16 else np.uint32


def _worth_of_levels(people: int, size: int) -> Float[np.ndarray, "1 n"]:
    """COCO: the mean over 101 recall levels, each of which one right answer is the first to reach."""
    hits = hits_of_levels(people)
    worth = np.bincount(hits[hits < size], minlength=size) / 101
    return worth[None].astype(np.float32)


def _worth_of_area(labels: Int[np.ndarray, "q"], size: int) -> Float[np.ndarray, "q n"]:
    worth = 1 / np.maximum(labels, 1)
    return np.broadcast_to(worth[:, None], (len(labels), size)).astype(np.float32)


def judged(
    judge: OksJudge | PeopleJudge, stays: Bool[Array, "p s"], count: Int[Array, ""]
) -> tuple[UInt[Array, "p s"], UInt[Array, "p s"]]:
    """Which questions the poses of one picture answer rightly, and which they answer at all, for s settings.

    Args:
        judge: of one picture.
        stays: which poses each setting keeps.
        count: number of poses; the other entries are not valid.
    """
    return _judge_oks(judge, stays, count) if isinstance(judge, OksJudge) else _judge_people(judge, stays, count)


def _judge_oks(
    judge: OksJudge, stays: Bool[Array, "p s"], count: Int[Array, ""]
) -> tuple[UInt[Array, "p s"], UInt[Array, "p s"]]:
    kind, settings = judge.passed.dtype, stays.shape[1]
    everything, nothing = jnp.array((1 << judge.questions) - 1, kind), jnp.array(0, kind)

    def match(place, state):
        taken, seen, right, answered = state
        pose = judge.order[place]
        here = stays[pose] & (seen < judge.most)
        free, found, left_out = jnp.where(here, everything, nothing), *(jnp.zeros(settings, kind) for _ in range(2))
        for choice in range(judge.candidate.shape[1]):
            person = judge.candidate[pose, choice]
            hit = free & judge.passed[pose, choice] & ~taken[person]
            taken = taken.at[person].set(jnp.where(judge.crowd[person], taken[person], taken[person] | hit))
            counts = judge.counts[pose, choice]
            found, left_out = found | jnp.where(counts, hit, nothing), left_out | jnp.where(counts, nothing, hit)
            free = free & ~hit
        answers = jnp.where(here, everything & ~left_out, nothing)
        return taken, seen + here, right.at[pose].set(found), answered.at[pose].set(answers)

    none = jnp.zeros(stays.shape, kind)
    start = jnp.zeros((len(judge.crowd), settings), kind), jnp.zeros(settings, jnp.int32), none, none
    return lax.fori_loop(0, count, match, start)[2:]


def _judge_people(
    judge: PeopleJudge, stays: Bool[Array, "p s"], count: Int[Array, ""]
) -> tuple[UInt[Array, "p s"], UInt[Array, "p s"]]:
    def beat(pose, beaten):
        return beaten | (judge.beats[pose][:, None] & stays[pose][None])

    beaten = lax.fori_loop(0, count, beat, jnp.zeros(stays.shape, bool))
    nothing = jnp.zeros((), judge.right.dtype)
    right = jnp.where(stays & ~beaten, judge.right[:, None], nothing)
    return right, jnp.where(stays, judge.present[:, None], nothing)


def oks_objective(
    poses: Poses,
    truth: TrueKeypoints,
    *,
    score: Float[np.ndarray, "i p"] | None = None,
    rank: Float[np.ndarray, "i p"] | None = None,
    sigmas: tuple[float, ...] = COCO_17.sigmas,
    thresholds: tuple[float, ...] = THRESHOLDS,
    most: int = _MOST,
) -> Objective:
    """COCO's AP of keypoints over people of all sizes, as pycocotools counts it.

    Args:
        poses: found in i pictures, everything that the pose NMS is to choose from; host arrays. A joint that is not
            finite is judged as if it stood at (0, 0).
        truth: of the same pictures, see ``pack_keypoints``.
        score: by which poses are matched and AP is counted, the mean of the joints' scores by default; a pose whose
            score is not finite is left out.
        rank: order of the references of the pose NMS; the mean of the joints' scores by default.
        sigmas: of OKS, one for each joint.
        thresholds: of OKS, rising, over which AP is the mean.
        most: poses of a picture that count, the best.

    Raises:
        ValueError: other numbers of pictures or joints than in the labels.
    """
    given, scores, ranks = _on_host(poses, score, rank)
    given = dataclasses.replace(given, valid=given.valid & np.isfinite(scores))
    if truth.points.shape[::2] != given.points.shape[::2]:
        raise ValueError(
            f"expected poses of {truth.points.shape[0]} pictures with {truth.points.shape[2]} joints, got "
            f"{given.points.shape[0]} with {given.points.shape[2]}"
        )
    with jax.enable_x64(True):
        points: Any = np.where(np.isfinite(given.points).all(-1, keepdims=True), given.points, 0).astype(np.float64)
        found = ScoredKeypoints(points, scores, area=0 * scores, valid=given.valid)
        similarity = np.asarray(oks_matrix(truth, found, sigmas=sigmas))
    counts = np.asarray(truth.valid & ~truth.ignored)
    # Of equal scores the first in input order, wherever the pose stands by rank.
    place = np.argsort(np.argsort(-np.where(given.valid, scores, -np.inf), axis=1, kind="stable"), axis=1)
    scenes = []
    crowd: Any = np.asarray(truth.crowd)
    for chosen, slots in _by_crowding(given.valid, ranks):
        by_score: Any = np.argsort(_taken(place[chosen], slots), axis=1).astype(np.int32)
        candidate, passed = _candidates(_taken(similarity[chosen], slots), counts[chosen], thresholds)
        judge = OksJudge(
            order=by_score,
            candidate=candidate,
            passed=passed,
            counts=_taken(counts[chosen], candidate.reshape(len(chosen), -1)).reshape(candidate.shape),
            crowd=crowd[chosen],
            questions=len(thresholds),
            most=most,
        )
        scenes.append((chosen, slots, judge))
    labels = np.broadcast_to(counts.sum(1), (len(thresholds), len(counts)))
    return _assembled("OKS AP", given, scenes, scores[None], labels, levels=True)


def _candidates(
    similarity: Float[np.ndarray, "i p g"], counts: Bool[np.ndarray, "i g"], thresholds: tuple[float, ...]
) -> tuple[Any, Any]:
    """The people that each pose reaches at some threshold, best first, and at which thresholds, as bits.

    As in cocoeval people who count go first, and of equal ones the last.
    """
    # cocoeval lowers a threshold of 1 a little.
    limits = np.minimum(thresholds, 1 - 1e-10)
    reached = similarity >= limits[0]
    backwards = np.where(reached, similarity, -np.inf)[..., ::-1]
    last_first = np.broadcast_to(~counts[:, None, ::-1] | ~reached[..., ::-1], backwards.shape)
    order = similarity.shape[-1] - 1 - np.lexsort((-backwards, last_first), axis=-1)
    order = order[..., : max(1, int(reached.sum(-1).max(initial=0)))]
    bits = np.uint64(1) << np.arange(len(limits), dtype=np.uint64)
    passed = (np.take_along_axis(similarity, order, -1)[..., None] >= limits).astype(np.uint64) @ bits
    return order.astype(np.int32), passed.astype(word_type(len(limits)))


def people_objective(
    poses: Poses,
    truth: TruePeople,
    *,
    belongs: Bool[np.ndarray, "i p"] | None = None,
    picture: Int[np.ndarray, "i"] | None = None,
    rank: Float[np.ndarray, "i p"] | None = None,
) -> Objective:
    """MPII's (and WAF's) multi-person AP: the mean over joints of the whole area under precision over recall.

    Args:
        poses: found in the picture of each of i groups of people; host arrays. A joint that is not finite is not
            predicted.
        truth: the people of each group.
        belongs: which poses are counted for the group; by default all.
        picture: of each group; groups of the same picture are not parted by folds. By default each is of another.
        rank: order of the references of the pose NMS; the mean of the joints' scores by default.

    Raises:
        ValueError: other numbers of groups or joints than in the labels.

    Reference: see ``metrics.multi_person_ap``.
    """
    given, _, ranks = _on_host(poses, None, rank)
    if truth.labelled.shape[::2] != given.score.shape[::2]:
        raise ValueError(
            f"expected poses of {truth.labelled.shape[0]} groups with {truth.labelled.shape[2]} joints, got "
            f"{given.score.shape[0]} with {given.score.shape[2]}"
        )
    joint_score = np.where(np.isfinite(given.score), given.score, -np.inf)
    counted = given.valid if belongs is None else given.valid & belongs
    present = np.isfinite(given.points).all(-1) & np.isfinite(given.score) & counted[..., None]
    share, person, correct, labelled = (np.asarray(field) for field in _judge_alone(given, truth, present))
    ahead = (share[:, :, None] > share[:, None]) | (
        (share[:, :, None] == share[:, None]) & np.triu(np.ones(share.shape[1:] * 2, bool), 1)
    )
    beats = ahead & (person[:, :, None] == person[:, None]) & (person >= 0)[:, :, None]
    bits = np.uint64(1) << np.arange(present.shape[-1], dtype=np.uint64)
    kind = word_type(present.shape[-1])
    right, answered = ((flags.astype(np.uint64) @ bits).astype(kind) for flags in (correct, present))
    scenes = []
    for chosen, slots in _by_crowding(given.valid, ranks):
        beaten: Any = np.take_along_axis(_taken(beats[chosen], slots), slots[:, None], 2)
        scenes.append(
            (chosen, slots, PeopleJudge(beaten, _taken(right[chosen], slots), _taken(answered[chosen], slots)))
        )
    scores, labels = np.moveaxis(joint_score, -1, 0), labelled.T.astype(int)
    made = _assembled("multi-person AP", given, scenes, scores, labels, levels=False)
    return made if picture is None else dataclasses.replace(made, together=np.asarray(picture))


@jax.jit
def _judge_alone(poses: Poses, truth: TruePeople, present: Bool[Array, "i p k"]) -> tuple[Array, ...]:
    """What each pose would get if there were no other: its share of right joints, whose, which; and labelled joints."""

    def one(points, score, present, valid, people):
        alone = PredictedPeople(points[None], score[None], present[None], valid[None])
        matches = match_people(people, alone)
        return matches.pck[0].max(), matches.person[0], matches.correct[0], matches.labelled

    each = jax.vmap(jax.vmap(one, (0, 0, 0, 0, None)))
    # A joint that is not predicted must not be NaN: NaN times zero is NaN.
    points = jnp.where(present[..., None], poses.points, 0.0)
    score = jnp.where(present, poses.score, 0.0)
    share, person, correct, labelled = each(points, score, present, present.any(-1), truth)
    return share, person, correct, labelled[:, 0]


def _on_host(poses: Poses, score: Any, rank: Any) -> tuple[Any, Any, Any]:
    """Host arrays, with the mean of the joints' scores where no other score or rank is given."""
    poses = jax.tree.map(np.asarray, poses)
    if poses.valid.ndim != 2 or not poses.valid.size:
        raise ValueError(f"expected poses of several pictures, at capacity 1 at least, got {poses.valid.shape}")
    mean = np.asarray(poses.pose_score)
    score, rank = (mean if given is None else np.asarray(given) for given in (score, rank))
    return poses, score, rank


def _by_crowding(
    valid: Bool[np.ndarray, "i p"], rank: Float[np.ndarray, "i p"]
) -> list[tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n c"]]]:
    """Groups of pictures with about as many poses, and their poses by falling rank, as indices."""
    place = np.argsort(-rank, axis=1, kind="stable")  # sorting puts NaN last
    place = np.take_along_axis(place, np.argsort(~np.take_along_axis(valid, place, 1), axis=1, kind="stable"), 1)
    crowding = 2 ** np.ceil(np.log2(np.maximum(valid.sum(1), _SMALLEST_CAPACITY))).astype(int)
    crowding = np.where(valid.any(1), crowding, 0)
    groups = [np.flatnonzero(crowding == capacity) for capacity in np.unique(crowding[crowding > 0])]
    return [(chosen, place[chosen, : crowding[chosen[0]]]) for chosen in groups]


def _taken(values: Any, slots: np.ndarray) -> Any:
    """Of each picture the values at some of its slots."""
    return np.take_along_axis(values, slots.reshape(*slots.shape, *[1] * (values.ndim - 2)), 1)


def _assembled(
    name: str,
    poses: Poses,
    scenes: list[tuple[np.ndarray, np.ndarray, Any]],
    scores: Float[np.ndarray, "r i p"],
    labels: Int[np.ndarray, "q i"],
    *,
    levels: bool,
) -> Objective:
    """The scenes on the device, and the order of their answers by each of some scores."""
    if not scenes:
        raise ValueError("expected poses, got none in any picture")
    row = np.full(poses.valid.shape, -1)
    first, pictures, made = 0, [], []
    for chosen, slots, judge in scenes:
        numbers = first + np.arange(slots.size).reshape(slots.shape)
        np.put_along_axis(grid := row[chosen], slots, numbers, 1)
        row[chosen], first = grid, first + slots.size
        pictures.append(np.repeat(chosen, slots.shape[1]))
        made.append(Scenes(jax.tree.map(lambda field, c=chosen, s=slots: _taken(field[c], s), poses), judge))
    of_pose = row[poses.valid]
    order = [of_pose[np.argsort(-score[poses.valid], kind="stable")] for score in scores]
    return Objective(
        name=name,
        scenes=tuple(jax.tree.map(jnp.asarray, made)),
        questions=len(labels),
        pictures=len(poses.valid),
        picture_of_row=np.concatenate(pictures),
        order=np.array(order),
        labels=labels,
        together=np.arange(len(poses.valid)),
        levels=levels,
    )
