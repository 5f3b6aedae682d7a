"""COCO's box AP, and recall by people's height, as pure functions of padded arrays, with cocoeval's results.

`pack_boxes` turns COCO's dictionaries into two records of host arrays. `match_boxes` gives every found box to a person
at every threshold and size; `box_numbers` and `box_recalls` count, see ``metrics.average_precision``. The results have
the dtype of the found boxes: float64 under ``jax.enable_x64``, as cocoeval. A box that is not finite, or has no area,
finds nobody.

A box is worth its intersection over union with a person's; with a crowd's box its intersection over its own area.

Reference: https://cocodataset.org/#detection-eval and pycocotools' cocoeval.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from rmpe_jax.metrics.average_precision import (
    THRESHOLDS,
    Matches,
    People,
    average_precision,
    in_ranges,
    match_detections,
)
from rmpe_jax.metrics.packing import select_records

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # The packer makes host arrays.
    Array = jax.Array | np.ndarray

#: What the six numbers of ``box_ap`` are called, in COCO's order.
BOX_AP_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
#: What the four numbers of ``box_recalls`` are called.
RECALL_NAMES = ("recall50", "recall50_short", "recall50_middle", "recall50_tall")
#: cocoeval's smallest and largest area for boxes, of all, small, medium and large people.
AREA_RANGES = ((0.0, 1e5**2), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2))
#: Boxes lower than the first are short, those higher than the second tall; pixels of the picture.
HEIGHTS = (48.0, 96.0)
#: cocoeval's maxDets: so many boxes of a picture count.
MOST = 100


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrueBoxes:
    """Labelled people's boxes in i pictures, at capacity g."""

    box: Float[Array, "*batch i g 4"]  # x0 y0 x1 y1, pixels
    area: Float[Array, "*batch i g"]  # of the person's outline, square pixels: COCO's measure of size
    crowd: Bool[Array, "*batch i g"]  # holds a crowd: need not be found, may be matched more than once
    valid: Bool[Array, "*batch i g"]  # which of the g entries hold a box


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredBoxes:
    """Found boxes in i pictures, at capacity d, in any order."""

    box: Float[Array, "*batch i d 4"]  # x0 y0 x1 y1, pixels
    area: Float[Array, "*batch i d"]  # of the box, square pixels
    score: Float[Array, "*batch i d"]  # the higher, the surer; one that is not finite leaves the box out
    valid: Bool[Array, "*batch i d"]  # which of the d entries hold a box


def box_ap(truth: TrueBoxes, found: ScoredBoxes, *, weight: Float[Array, "i"] | None = None) -> Float[Array, "6"]:
    """COCO's box AP, six numbers called ``BOX_AP_NAMES``: see `match_boxes` and `box_numbers`."""
    return box_numbers(match_boxes(truth, found), weight=weight)


def box_numbers(matches: Matches, *, weight: Float[Array, "i"] | None = None) -> Float[Array, "6"]:
    """AP over all thresholds, at 0.5, at 0.75, of small, medium and large people; -1 where no person counts.

    Args:
        matches: at ``THRESHOLDS``, by area.
        weight: see `average_precision`.
    """
    half, three_quarters = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
    ap, _ = average_precision(matches, weight=weight)
    return jnp.stack([ap[0].mean(), ap[0, half], ap[0, three_quarters], *(ap[size].mean() for size in (1, 2, 3))])


def box_recalls(matches: Matches, *, weight: Float[Array, "i"] | None = None) -> Float[Array, "4"]:
    """The share of people found, called ``RECALL_NAMES``: all, short, middle and tall; -1 where there are none.

    Args:
        matches: at one threshold, by height.
        weight: see `average_precision`.
    """
    return average_precision(matches, weight=weight)[1][:, 0]


def match_boxes(
    truth: TrueBoxes,
    found: ScoredBoxes,
    *,
    thresholds: tuple[float, ...] = THRESHOLDS,
    by: Literal["area", "height"] = "area",
    most: int = MOST,
) -> Matches:
    """Matches found and labelled boxes by intersection over union, as cocoeval does: see `match_detections`.

    People of another size cost nothing, found or not, and so do found boxes of another size that found nobody.

    Args:
        truth: i pictures' people.
        found: the same pictures' found boxes.
        thresholds: of the intersection over union, rising.
        by: the sizes are COCO's ``AREA_RANGES``, or those of the boxes' height between ``HEIGHTS``.
        most: boxes of a picture that count, the best.

    Raises:
        ValueError: no pictures, or a capacity of zero.
    """
    truth, found = jax.tree.map(jnp.asarray, (truth, found))
    if by == "area":
        of_people, of_found = in_ranges(truth.area, AREA_RANGES), in_ranges(found.area, AREA_RANGES)
    else:
        of_people, of_found = _heights(truth.box), _heights(found.box)
    people = People((truth.valid & ~truth.crowd)[..., None] & of_people, truth.crowd, truth.valid)
    score = jnp.where(found.valid, found.score, -jnp.inf).astype(jnp.result_type(found.score, found.box))

    def similarity(chosen, best):
        block = jax.tree.map(lambda leaf: leaf[chosen], truth)
        picture = chosen[:, None]
        return _overlaps(block, found.box[picture, best], found.area[picture, best])

    return match_detections(similarity, people, score, of_found, thresholds=thresholds, most=most)


def _heights(box: Float[Array, "i n 4"]) -> Bool[Array, "i n 4"]:
    """Whether a box is of any height, short, middle or tall."""
    height, (low, high) = box[..., 3] - box[..., 1], HEIGHTS
    return jnp.stack([jnp.ones_like(height, bool), height < low, (height >= low) & (height <= high), height > high], -1)


def _overlaps(truth: TrueBoxes, box: Float[Array, "i d 4"], area: Float[Array, "i d"]) -> Float[Array, "g d i"]:
    """Intersection over union of everybody with every found box; with a crowd, over the found box's own area."""
    there, here = jnp.transpose(truth.box, (2, 1, 0))[:, :, None], jnp.transpose(box, (2, 1, 0))[:, None]
    sides = jnp.maximum(jnp.minimum(there[2:], here[2:]) - jnp.maximum(there[:2], here[:2]), 0)
    shared, own = sides[0] * sides[1], area.T[None]
    others = ((there[2] - there[0]) * (there[3] - there[1])) - shared
    union = jnp.where(truth.crowd.T[:, None], own, own + others)
    overlapping = truth.valid.T[:, None] & (shared > 0) & (union > 0)
    return jnp.where(overlapping, shared / jnp.where(overlapping, union, 1), 0)


def evaluate_boxes(
    annotations: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], picture_ids: Iterable[Any]
) -> dict[str, float]:
    """COCO's box AP of results on some pictures, by name, in float64: the numbers of pycocotools.

    Without results all are zero, where pycocotools refuses; -1 where no person counts. It compiles once for each number
    of pictures and each capacity for people and found boxes.

    Args:
        annotations: see `pack_boxes`.
        results: see `pack_boxes`.
        picture_ids: the pictures to evaluate.

    Raises:
        ValueError: see `pack_boxes`.

    Example:
        >>> person = {"image_id": 7, "area": 4000.0, "bbox": [0, 0, 50, 80]}
        >>> round(evaluate_boxes([person], [{"image_id": 7, "bbox": [0, 10, 50, 80], "score": 0.9}], [7])["ap"], 6)
        0.6
    """
    truth, found = pack_boxes(annotations, results, picture_ids)
    with jax.enable_x64(True):
        return dict(zip(BOX_AP_NAMES, np.asarray(_jitted(truth, found)).tolist(), strict=True))


_jitted = jax.jit(box_ap)


def pack_boxes(
    annotations: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    picture_ids: Iterable[Any],
    *,
    category: int = 1,
    people: int | None = None,
    boxes: int | None = None,
) -> tuple[TrueBoxes, ScoredBoxes]:
    """COCO's dictionaries as float64 host arrays, one row for each picture in rising order of its id.

    Annotations of other pictures are left out, and so is whatever has a ``category_id`` other than ``category``;
    without one it counts.

    Args:
        annotations: with ``image_id``, ``bbox`` (x, y, width, height), ``area`` and, for a crowd, ``iscrowd``.
        results: with ``image_id``, ``bbox`` and ``score``.
        picture_ids: the pictures to evaluate.
        category: that of persons.
        people: the capacity for people; by default as many as the fullest picture has.
        boxes: the capacity for found boxes, of more in one picture the best are kept; by default as many as the fullest
            picture has, at most ``MOST``.

    Raises:
        ValueError: naming the record, counted from 1, and the field; no picture; more people than the capacity.
    """
    labels, found = select_records(annotations, results, picture_ids, category=category)
    fields = {"box": labels.corners(), "area": labels.field("area", 1)[:, 0], "crowd": labels.crowds()}
    truth = TrueBoxes(**labels.placed(fields, people))
    area, score = found.field("bbox", 4)[:, 2:].prod(1), found.field("score", 1)[:, 0]
    capacity = min(found.fullest(), MOST) if boxes is None else boxes
    return truth, ScoredBoxes(**found.best_placed({"box": found.corners(), "area": area, "score": score}, capacity))
