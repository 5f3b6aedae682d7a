"""COCO's keypoint AP and AR as pure functions of padded arrays, with cocoeval's results.

`pack_keypoints` turns COCO's dictionaries into two records of host arrays. `match_keypoints` gives every detection to
a person at every threshold and area range; `coco_numbers` counts. Boxes share both, see ``metrics.average_precision``.
The results have the dtype of the detections: float64 under ``jax.enable_x64``, as cocoeval, or float32 in a training
step. A number that is not finite makes no match and no NaN.

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
from jaxtyping import Bool, Float

from rmpe_jax.metrics.average_precision import (
    EPSILON,
    THRESHOLDS,
    Matches,
    People,
    average_precision,
    in_ranges,
    match_detections,
    occupied,
)
from rmpe_jax.metrics.packing import Records, select_records
from rmpe_jax.skeleton import COCO_17

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # The packer makes host arrays.
    Array = jax.Array | np.ndarray

#: What the ten numbers of ``oks_ap`` are called, in COCO's order.
OKS_AP_NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")
#: cocoeval's smallest and largest area for keypoints, of all, medium and large people.
AREA_RANGES = ((0.0, 1e5**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2))
_MOST = 20


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


def match_keypoints(
    truth: TrueKeypoints,
    found: ScoredKeypoints,
    *,
    sigmas: tuple[float, ...] = COCO_17.sigmas,
    thresholds: tuple[float, ...] = THRESHOLDS,
    area_ranges: tuple[tuple[float, float], ...] = AREA_RANGES,
    most: int = _MOST,
) -> Matches:
    """Matches detections and people by OKS, as cocoeval does: see `match_detections`.

    People who count come before those who are ignored or out of the area range.

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
    truth, found = jax.tree.map(jnp.asarray, (truth, found))
    counts = (truth.valid & ~truth.ignored)[..., None] & in_ranges(truth.area, area_ranges)
    score = jnp.where(found.valid, found.score, -jnp.inf).astype(jnp.result_type(found.score, found.points))

    def similarity(chosen, best):
        block = jax.tree.map(lambda leaf: leaf[chosen], truth)
        return _oks(block, found.points[chosen[:, None], best], sigmas)

    people, alarming = People(counts, truth.crowd, truth.valid), in_ranges(found.area, area_ranges)
    return match_detections(similarity, people, score, alarming, thresholds=thresholds, most=most)


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
    area, points = truth.area.T + EPSILON, jnp.transpose(points, (2, 3, 1, 0))
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
    return lax.fori_loop(0, occupied(truth.valid).max(), one_person, start)


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
    labels, found = select_records(annotations, results, picture_ids, category=category)
    first_box = results[0].get("bbox") if results else None
    boxed = first_box is not None and len(first_box) > 0
    return _pack_truth(labels, people, joints), _pack_found(found, most, joints, boxed)


def _pack_truth(labels: Records, people: int | None, joints: int) -> TrueKeypoints:
    keypoints = labels.field("keypoints", 3 * joints).reshape(-1, joints, 3)
    crowd = labels.crowds()
    fields = {
        "points": keypoints[..., :2],
        "labelled": keypoints[..., 2] > 0,
        "area": labels.field("area", 1)[:, 0],
        "box": labels.corners(),
        "ignored": crowd | (labels.field("num_keypoints", 1)[:, 0] == 0),
        "crowd": crowd,
    }
    return TrueKeypoints(**labels.placed(fields, people))


def _pack_found(found: Records, most: int, joints: int, boxed: bool) -> ScoredKeypoints:
    score = found.field("score", 1)[:, 0]
    points = found.field("keypoints", 3 * joints).reshape(-1, joints, 3)[..., :2]
    extent = found.field("bbox", 4)[:, 2:] if boxed else points.max(1) - points.min(1)
    return ScoredKeypoints(**found.best_placed({"points": points, "score": score, "area": extent.prod(1)}, most))
