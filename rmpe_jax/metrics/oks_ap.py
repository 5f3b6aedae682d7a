"""COCO's keypoint AP and AR as pure functions of padded arrays, with cocoeval's results.

`pack_keypoints` turns COCO's dictionaries into two records of host arrays. `match_keypoints` gives every detection to
a person at every threshold and area range; `average_precision` counts. Only the second depends on how often a picture
counts, so a bootstrap matches once and maps over weights. All functions take many pictures at once, because precision
is a property of a data set; the results have the dtype of the detections' points: float64 under ``jax.enable_x64``, as
cocoeval, or float32 in a training step. A number that is not finite makes no match and no NaN.

One category is evaluated, persons: COCO and CrowdPose have no other with keypoints. A person's id plays no part, where
cocoeval takes a match with the person of id 0 for none.

Reference: https://cocodataset.org/#keypoints-eval and pycocotools' cocoeval.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, UInt

from rmpe_jax.skeleton import COCO_17

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # The packer makes host arrays.
    Array = jax.Array | np.ndarray

#: What the ten numbers of ``oks_ap`` are called, in COCO's order.
OKS_AP_NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")
#: cocoeval's parameters for keypoints: OKS thresholds; smallest and largest area, for all, medium and large people.
THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
AREA_RANGES = ((0.0, 1e5**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2))
# cocoeval's recall levels are numpy.linspace(0, 1, 101), of which some lie above the nearest number to r / 100.
_ABOVE = np.linspace(0, 1, 101) > np.arange(101) / 100
_MOST = 20
# cocoeval adds numpy.spacing(1) to areas and to counts.
_EPSILON = 2.220446049250313e-16
# How many pictures are matched together, and how many detections counted one after the other. Small arrays stay in the
# cache, large ones take fewer steps; on two CPU cores nothing from half to twice of either is much faster.
_PICTURES = 128
_RUN = 64
# Whom a detection is matched with: nobody, one who is left out, one who counts.
_NOBODY, _LEFT_OUT, _COUNTS = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrueKeypoints:
    """Labelled people of i pictures, at capacity g, with k joints each."""

    points: Float[Array, "*batch i g k 2"]  # (x, y), pixels
    labelled: Bool[Array, "*batch i g k"]  # which joints count
    area: Float[Array, "*batch i g"]  # of the person's outline, square pixels
    box: Float[Array, "*batch i g 4"]  # x0 y0 x1 y1, pixels
    ignored: Bool[Array, "*batch i g"]  # neither to be found nor held against a detection: no joints, or a crowd
    crowd: Bool[Array, "*batch i g"]  # may be matched more than once
    valid: Bool[Array, "*batch i g"]  # which of the g entries hold a person


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredKeypoints:
    """Detected people of i pictures, at capacity d, with k joints each, in any order."""

    points: Float[Array, "*batch i d k 2"]  # (x, y), pixels
    score: Float[Array, "*batch i d"]  # the higher, the surer; one that is not finite leaves the detection out
    area: Float[Array, "*batch i d"]  # square pixels; where it is out of range, an unmatched detection is left out
    valid: Bool[Array, "*batch i d"]  # which of the d entries hold a detection


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matches:
    """What became of the n detections of all pictures, best score first, in a area ranges at t thresholds.

    What is not valid stands last, so n may be cut down to the number of valid detections.
    """

    hit: Bool[Array, "*batch n a t"]  # found a person who counts
    alarm: Bool[Array, "*batch n a t"]  # found nobody; neither hit nor alarm: left out
    picture: Int[Array, "*batch n"]  # index of the detection's picture
    people: Float[Array, "*batch a i"]  # how many people count in each picture


def oks_ap(
    truth: TrueKeypoints,
    found: ScoredKeypoints,
    *,
    sigmas: tuple[float, ...] = COCO_17.sigmas,
    weight: Float[Array, "i"] | None = None,
) -> Float[Array, "10"]:
    """COCO's ten numbers, called ``OKS_AP_NAMES``: see `match_keypoints` and `coco_numbers`."""
    return coco_numbers(match_keypoints(truth, found, sigmas=sigmas), weight=weight)


def coco_numbers(matches: Matches, *, weight: Float[Array, "i"] | None = None) -> Float[Array, "10"]:
    """AP and AR over all thresholds, at 0.5, at 0.75, of medium and of large people; -1 where no person counts.

    Args:
        matches: at ``THRESHOLDS`` and in ``AREA_RANGES``.
        weight: see `average_precision`.
    """
    half, three_quarters = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
    return jnp.concatenate(
        [
            jnp.stack([of[0].mean(), of[0, half], of[0, three_quarters], of[1].mean(), of[2].mean()])
            for of in average_precision(matches, weight=weight)
        ]
    )


def average_precision(
    matches: Matches, *, weight: Float[Array, "i"] | None = None
) -> tuple[Float[Array, "a t"], Float[Array, "a t"]]:
    """Average precision and recall in every area range at every threshold; -1 where no person counts.

    AP is the mean over 101 recall levels of the best precision at that recall or a higher one. The detections are cut
    into runs: hits and false alarms are summed up within all runs side by side, and only the run in which a level is
    reached is looked at again. For 5,000 pictures with 20 detections each, one set of weights takes about 10 ms of a
    CPU core in float64, alone or under ``vmap``, which needs a few MB for each.

    Args:
        matches: see `match_keypoints`.
        weight: how often each picture counts; once by default. A whole number equals as many copies of the picture
            side by side, where no two detections in a picture have the same score. Whole numbers are summed exactly;
            with others, rounding decides whether a recall level is just reached.

    Returns:
        AP and AR.
    """
    n, ranges, levels = matches.hit.shape
    dtype = matches.people.dtype
    weight = jnp.ones(matches.people.shape[1], dtype) if weight is None else weight.astype(dtype)
    people = (matches.people * weight[None]).sum(1)
    hit, alarm = (_in_runs(jnp.reshape(flag, (n, -1))) for flag in (matches.hit, matches.alarm))
    times = _in_runs(weight[matches.picture][:, None])
    # Hits and false alarms of each run, then before and after it.
    nothing = jnp.zeros(hit.shape[1:], dtype)
    each, _ = lax.scan(lambda counts, now: (_add(counts, now), None), (nothing, nothing), (hit, alarm, times))
    after = [jnp.cumsum(count, 1) for count in each]
    before = [jnp.pad(count, ((0, 0), (1, 0)))[:, :-1] for count in after]
    # The best precision in each run and later ones.
    best = _best_precision(before, (hit, alarm, times), jnp.zeros((1, 1), dtype))
    best_from = jnp.pad(lax.cummax(best, 1, reverse=True), ((0, 0), (0, 1)))
    # The run in which each recall level is reached; of that run only the detections count from there on.
    needed = jnp.repeat(_needed_hits(people), levels, 0)
    reached_in = jax.vmap(jnp.searchsorted)(100 * after[0], needed)
    run, row = jnp.minimum(reached_in, hit.shape[2] - 1), jnp.arange(ranges * levels)[:, None]
    again = hit[:, row, run], alarm[:, row, run], times[:, 0, run]
    precision = _best_precision([count[row, run] for count in before], again, needed)
    precision = jnp.maximum(precision, best_from[row, run + 1])
    precision = jnp.where(reached_in < hit.shape[2], precision, 0).mean(1).reshape(ranges, levels)
    people, hits = people[:, None], after[0][:, -1].reshape(ranges, levels)
    return jnp.where(people > 0, precision, -1), jnp.where(people > 0, hits / jnp.where(people > 0, people, 1), -1)


def _needed_hits(people: Float[Array, "a"]) -> Float[Array, "a 101"]:
    """A hundred times the hits that reach each recall level: exact for whole numbers, where a quotient need not be."""
    hundredfold = jnp.arange(101, dtype=people.dtype)[None] * people[:, None]
    return jnp.where(_ABOVE[None], jnp.nextafter(hundredfold, jnp.inf), hundredfold)


def hits_of_levels(people: int) -> Int[np.ndarray, "101"]:
    """How many hits reach each of cocoeval's recall levels, of so many people who count; one at least."""
    hundredths = np.arange(101) * people
    return np.maximum(hundredths // 100 + ((hundredths % 100 > 0) | _ABOVE), 1)


def _in_runs(values: Array) -> Array:
    """(n, rows) as (place in the run, rows, run), with at least one more zero at the end."""
    n, rows = values.shape
    return jnp.pad(values, ((0, _RUN - n % _RUN), (0, 0))).reshape(-1, _RUN, rows).transpose(1, 2, 0)


def _add(counts, now):
    """Hits and false alarms so far, one detection further."""
    (hits, alarms), (hit, alarm, times) = counts, now
    return hits + jnp.where(hit, times, 0), alarms + jnp.where(alarm, times, 0)


def _best_precision(before, runs, needed: Array) -> Array:
    """Best precision within runs of detections where a hundred times the hits are at least ``needed``, or zero."""

    def step(carry, now):
        counts, best = carry
        hits, alarms = _add(counts, now)
        precision = hits / (hits + alarms + _EPSILON)
        return ((hits, alarms), jnp.maximum(best, jnp.where(100 * hits >= needed, precision, 0))), None

    (_, best), _ = lax.scan(step, (tuple(before), jnp.zeros_like(before[0])), runs)
    return best


def match_keypoints(
    truth: TrueKeypoints,
    found: ScoredKeypoints,
    *,
    sigmas: tuple[float, ...] = COCO_17.sigmas,
    thresholds: tuple[float, ...] = THRESHOLDS,
    area_ranges: tuple[tuple[float, float], ...] = AREA_RANGES,
    most: int = _MOST,
) -> Matches:
    """Matches detections and people as cocoeval does.

    In the order of the scores, every detection takes the person of the highest OKS, of those that it passes the
    threshold with and that are left; people who count come before those who are ignored or out of the area range, and
    of equal people the last wins. Of equal scores the earlier detection and picture come first.

    Args:
        truth: i pictures' people.
        found: the same pictures' detections.
        sigmas: one for each joint, see ``Skeleton.sigmas``.
        thresholds: of OKS, rising.
        area_ranges: smallest and largest area that count, square pixels.
        most: detections of a picture that count, the best.

    Raises:
        ValueError: no pictures, or a capacity of zero.
    """
    if 0 in (*truth.valid.shape, *found.valid.shape):
        raise ValueError(f"expected at least one entry, got {truth.valid.shape} people, {found.valid.shape} detections")
    truth, found = jax.tree.map(jnp.asarray, (truth, found))

    def in_range(area):
        return jnp.stack([(area >= low) & (area <= high) for low, high in area_ranges], -1)

    counts = (truth.valid & ~truth.ignored)[..., None] & in_range(truth.area)
    score = jnp.where(found.valid & jnp.isfinite(found.score), found.score, -jnp.inf)
    best = jnp.argsort(-score, axis=1, stable=True)[:, :most]
    score = jnp.take_along_axis(score, best, 1)
    matched = _match_pictures(truth, found.points, best, counts, sigmas, thresholds)
    order = jnp.argsort(-score.ravel(), stable=True)
    picture, place = order // best.shape[1], order % best.shape[1]
    matched, valid = matched[picture, place], jnp.isfinite(score[picture, place])[:, None]
    alarming = valid & in_range(found.area[picture, best[picture, place]])
    return Matches(
        hit=(matched == _COUNTS) & valid[..., None],
        alarm=(matched == _NOBODY) & alarming[..., None],
        picture=picture,
        people=counts.sum(1).T.astype(found.points.dtype),
    )


def _match_pictures(truth, points, best, counts, sigmas, thresholds) -> UInt[Array, "i d a t"]:
    """Whom the best detections of each picture are matched with.

    Pictures go in blocks, those with most people first: a block goes through as many people as its first picture has,
    and pictures without people are not visited. The last block slides back to fit, so some may come twice.
    """
    people = _occupied(truth.valid)
    busiest = jnp.argsort(-people)
    size = min(_PICTURES, len(best))

    def match_block(number, matched):
        chosen = lax.dynamic_slice_in_dim(busiest, number * size, size)
        block = jax.tree.map(lambda leaf: leaf[chosen], truth)
        similarity = _oks(block, points[chosen[:, None], best[chosen]], sigmas)
        here = _assign(similarity, counts[chosen], block, thresholds)
        return lax.dynamic_update_slice_in_dim(matched, here, number * size, 0)

    blocks = ((people > 0).sum() + size - 1) // size
    start = jnp.full((*best.shape, counts.shape[2], len(thresholds)), _NOBODY, jnp.uint8)
    return lax.fori_loop(0, blocks, match_block, start)[jnp.argsort(busiest)]


def _assign(oks: Float[Array, "g d i"], counts: Bool[Array, "i g a"], truth, thresholds) -> UInt[Array, "i d a t"]:
    """Goes through the detections, best first, at all thresholds and in all area ranges side by side.

    For every detection the people are ranked once, by OKS and then by place; people who count rank above all others.
    The ranks fit into a byte, and so does the number of thresholds passed: that is what makes it fast.
    """
    people, detections, _ = oks.shape
    number = jnp.uint8 if people < 128 else jnp.uint16
    counting = jnp.array(128 if people < 128 else 2**15, number)
    place = jnp.arange(people)[:, None, None]

    def beat(other, rank):
        row = oks[other][None]
        return rank + ((row < oks) | ((row == oks) & (other <= place))).astype(number)

    rank = lax.fori_loop(0, _occupied(truth.valid).max(), beat, jnp.zeros(oks.shape, number))
    passed = jnp.zeros(oks.shape, jnp.uint8)
    for threshold in thresholds:
        # cocoeval lowers a threshold of 1 a little.
        passed += (oks >= min(threshold, 1 - 1e-10)).astype(jnp.uint8)
    level = jnp.arange(len(thresholds), dtype=jnp.uint8)[:, None]
    bonus = jnp.where(jnp.moveaxis(counts, 0, -1), counting, jnp.array(0, number))[:, :, None]
    crowd = truth.crowd.T[:, None, None]

    def match_next(left, detection):
        rank, passed = (values[:, None, None] for values in detection)
        worth = jnp.where(left & (passed > level[None, None]), rank + bonus, 0)
        best = worth.max(0)
        taken = (worth == best[None]) & (worth > 0)
        return left & (crowd | ~taken), (best > 0).astype(jnp.uint8) + (best > counting)

    left = jnp.ones((people, counts.shape[2], len(thresholds), oks.shape[2]), bool)
    _, matched = lax.scan(match_next, left, (rank.swapaxes(0, 1), passed.swapaxes(0, 1)))
    return jnp.moveaxis(matched, -1, 0)


def _occupied(valid: Bool[Array, "i g"]) -> Int[Array, "i"]:
    """How many entries of each picture there are up to the last valid one."""
    return jnp.where(valid, jnp.arange(1, valid.shape[1] + 1)[None], 0).max(1)


def oks_matrix(
    truth: TrueKeypoints, found: ScoredKeypoints, *, sigmas: tuple[float, ...] = COCO_17.sigmas
) -> Float[Array, "i d g"]:
    """OKS of every detection with every person of its picture, as in cocoeval; zero for what is not valid.

    The mean over labelled joints of exp(-e^2 / (2 area (2 sigma)^2)), where e is the distance to the joint. For a
    person without labelled joints all joints count, and e is the distance to the person's box after it has grown by
    its width and height on every side (cocoeval calls it doubled).
    """
    truth, found = jax.tree.map(jnp.asarray, (truth, found))
    similarity = jnp.transpose(_oks(truth, found.points, sigmas), (2, 1, 0))
    return jnp.where(found.valid[..., None], similarity, 0)


def _oks(truth: TrueKeypoints, points: Float[Array, "i d k 2"], sigmas) -> Float[Array, "g d i"]:
    """Person by person and joint by joint over all pictures and detections, which XLA turns into vector code."""
    some = truth.labelled.any(2)
    size = truth.box[..., 2:] - truth.box[..., :2]
    # The distance to a box without extent is that to a point.
    low, high = (
        jnp.transpose(jnp.where(some[..., None, None], truth.points, corner[:, :, None]), (1, 2, 3, 0))
        for corner in (truth.box[..., :2] - size, truth.box[..., 2:] + size)
    )
    seen = jnp.transpose((truth.labelled | ~some[..., None]) & truth.valid[..., None], (1, 2, 0))
    area, points = truth.area.T + _EPSILON, jnp.transpose(points, (2, 3, 1, 0))
    variances = (2 * np.array(sigmas)) ** 2

    def one_person(person, result):
        least, most, counted, size = (values[person] for values in (low, high, seen, area))
        total = jnp.zeros(result.shape[1:], result.dtype)
        for joint, variance in enumerate(variances.tolist()):
            below = jnp.maximum(0, least[joint][:, None] - points[joint])
            above = jnp.maximum(0, points[joint] - most[joint][:, None])
            error = ((below + above) ** 2).sum(0) / variance / size[None] / 2
            total += jnp.where(counted[joint][None] & (error >= 0), jnp.exp(-error), 0)
        return result.at[person].set(total / jnp.maximum(counted.sum(0), 1)[None])

    start = jnp.zeros((len(area), *points.shape[2:]), points.dtype)
    return lax.fori_loop(0, _occupied(truth.valid).max(), one_person, start)


def evaluate_keypoints(
    annotations: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    picture_ids: Iterable[Any],
    *,
    sigmas: tuple[float, ...] = COCO_17.sigmas,
) -> dict[str, float]:
    """COCO's ten numbers of results on some pictures, by name, in float64: those of pycocotools.

    Without results all are zero, where pycocotools refuses; -1 where no person counts. It compiles once for each number
    of pictures and each capacity for people.

    Args:
        annotations: see `pack_keypoints`.
        results: see `pack_keypoints`.
        picture_ids: the pictures to evaluate.
        sigmas: one for each joint, see ``Skeleton.sigmas``.

    Raises:
        ValueError: see `pack_keypoints`.

    Example:
        >>> pose = {"image_id": 7, "keypoints": [10, 20, 2] * 17}
        >>> person = pose | {"num_keypoints": 17, "area": 4000.0, "bbox": [0, 0, 50, 80]}
        >>> round(evaluate_keypoints([person], [pose | {"score": 0.9}], [7])["ap"], 6)
        1.0
    """
    truth, found = pack_keypoints(annotations, results, picture_ids, joints=len(sigmas))
    with jax.enable_x64(True):
        numbers = _jitted(truth, found, sigmas=tuple(sigmas))
    return dict(zip(OKS_AP_NAMES, np.asarray(numbers).tolist(), strict=True))


_jitted = jax.jit(oks_ap, static_argnames="sigmas")


def pack_keypoints(
    annotations: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    picture_ids: Iterable[Any],
    *,
    joints: int = 17,
    category: int = 1,
    most: int = _MOST,
    people: int | None = None,
) -> tuple[TrueKeypoints, ScoredKeypoints]:
    """COCO's dictionaries as float64 host arrays, one row for each picture in rising order of its id.

    The area of a detection is that of its ``bbox`` if the first result has one, else of its joints' extent, as in
    pycocotools' ``loadRes`` (but for masks, which are not read). Annotations of other pictures are left out, and so is
    whatever has a ``category_id`` other than ``category``; without one it counts.

    Args:
        annotations: with ``image_id``, ``keypoints`` (x, y, v for each joint, v > 0 where it is labelled),
            ``num_keypoints``, ``area``, ``bbox`` (x, y, width, height) and, for a crowd, ``iscrowd``.
        results: with ``image_id``, ``keypoints`` (x, y and a third number for each joint) and ``score``.
        picture_ids: the pictures to evaluate.
        joints: k.
        category: that of persons.
        most: the capacity for detections; of more in one picture the best are kept.
        people: the capacity for people; by default as many as the fullest picture has.

    Raises:
        ValueError: naming the record, counted from 1, and the field; no picture; more people than the capacity.
    """
    place = {picture: row for row, picture in enumerate(sorted(set(picture_ids)))}
    if not place:
        raise ValueError("expected at least one picture")
    labels = _Records("annotation", annotations, category, place)
    found = _Records("result", results, category, place)
    if len(found.strangers):
        raise ValueError(f"result number {found.strangers[0]}: image_id: not one of the pictures")
    first_box = results[0].get("bbox") if results else None
    boxed = first_box is not None and len(first_box) > 0
    truth = _pack_truth(labels, (len(place), people), joints)
    return truth, _pack_found(found, (len(place), most), joints, boxed)


class _Records:
    """Those of COCO's dictionaries that are of the category and on the pictures to evaluate."""

    def __init__(self, kind: str, records: Sequence[dict[str, Any]], category: int, place: dict[Any, int]):
        of_category = [record.get("category_id", category) == category for record in records]
        row = np.array([place.get(record.get("image_id"), -1) for record in records], int)
        chosen = np.array(of_category, bool) & (row >= 0)
        self.kind = kind
        self.strangers = np.flatnonzero(np.array(of_category, bool) & (row < 0)) + 1
        self.numbers: list[int] = (np.flatnonzero(chosen) + 1).tolist()
        self.records = [records[number - 1] for number in self.numbers]
        self.row = row[chosen]

    def field(self, name: str, width: int, default: int | None = None) -> np.ndarray:
        """A field of every record: (n, width) float64."""
        try:
            values = np.array([record.get(name, default) for record in self.records], float)
            values = values.reshape(len(self.records), width)
        except (TypeError, ValueError):
            values = np.full(1, np.nan)
        if np.isfinite(values).all():
            return values
        # Something is wrong: find out what, record by record.
        numbered = zip(self.numbers, self.records, strict=True)
        return np.array([self._checked(number, record, name, width, default) for number, record in numbered])

    def _checked(self, number: int, record: dict[str, Any], name: str, width: int, default: int | None):
        try:
            values = np.array(record.get(name, default), float).reshape(-1)
        except (TypeError, ValueError):
            values = np.empty(0)
        if len(values) != width or not np.isfinite(values).all():
            got = f"{len(values)} of them" if len(values) != width and len(values) > 1 else repr(record.get(name))
            message = f"expected {width} finite number{'s' * (width > 1)}, got {got:.60}"
            raise ValueError(f"{self.kind} number {number}: {name}: {message}")
        return values


def _pack_truth(labels: _Records, shape: tuple[int, int | None], joints: int) -> TrueKeypoints:
    slot = _slots(labels.row)
    fullest = int(slot.max(initial=0)) + 1
    pictures, people = shape[0], fullest if shape[1] is None else shape[1]
    if fullest > people:
        raise ValueError(f"expected at most {people} people in a picture, got {fullest}")
    keypoints = labels.field("keypoints", 3 * joints).reshape(-1, joints, 3)
    box = labels.field("bbox", 4)
    crowd = labels.field("iscrowd", 1, default=0)[:, 0] != 0
    fields = {
        "points": keypoints[..., :2],
        "labelled": keypoints[..., 2] > 0,
        "area": labels.field("area", 1)[:, 0],
        "box": np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1),
        "ignored": crowd | (labels.field("num_keypoints", 1)[:, 0] == 0),
        "crowd": crowd,
        "valid": np.ones(len(slot), bool),
    }
    return TrueKeypoints(**_placed(fields, (pictures, people), labels.row, slot))


def _pack_found(found: _Records, shape: tuple[int, int], joints: int, boxed: bool) -> ScoredKeypoints:
    score = found.field("score", 1)[:, 0]
    points = found.field("keypoints", 3 * joints).reshape(-1, joints, 3)[..., :2]
    extent = found.field("bbox", 4)[:, 2:] if boxed else points.max(1) - points.min(1)
    order = np.argsort(-score, kind="stable")
    slot = _slots(found.row[order])
    order, slot = order[slot < shape[1]], slot[slot < shape[1]]
    fields = {"points": points, "score": score, "area": extent.prod(1), "valid": np.ones(len(score), bool)}
    fields = {name: values[order] for name, values in fields.items()}
    return ScoredKeypoints(**_placed(fields, shape, found.row[order], slot))


def _slots(row: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the first, second, third record of each picture."""
    order = np.argsort(row, kind="stable")
    slot = np.empty(len(row), int)
    slot[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return slot


def _placed(fields: dict[str, np.ndarray], shape: tuple[int, int], row: np.ndarray, slot: np.ndarray) -> dict[str, Any]:
    """Every field as an array over pictures and slots, zero where there is no record."""
    placed = {name: np.zeros((*shape, *values.shape[1:]), values.dtype) for name, values in fields.items()}
    for name, values in fields.items():
        placed[name][row, slot] = values
    return placed
