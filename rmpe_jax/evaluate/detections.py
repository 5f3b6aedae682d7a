"""Human detectors measured by labelled boxes: COCO's AP, and the share of people found; PROTOCOLS.md has the rules.

OpenCV's HOG detector is measured on the same pictures beside every other one, as the figure to beat.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from rmpe_jax.data.coco import coco_annotations
from rmpe_jax.data.files import DataError
from rmpe_jax.data.people import LabelledPicture
from rmpe_jax.data.scenes import COMPLETE
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.evaluate.predictions import boxes_of_record, check_boxes, read_picture
from rmpe_jax.evaluate.protocols import agreed, coco_summary
from rmpe_jax.evaluate.results import Measured, Result, Table, make_result
from rmpe_jax.evaluate.run import PROTOCOLS
from rmpe_jax.metrics.average_precision import Matches
from rmpe_jax.metrics.box_ap import (
    BOX_AP_NAMES,
    MOST,
    RECALL_NAMES,
    box_numbers,
    box_recalls,
    match_boxes,
    pack_boxes,
)
from rmpe_jax.predict.detectors import THRESHOLD, BoxesFile, Detector, detect_with_hog
from rmpe_jax.records import Boxes

#: What a result calls OpenCV's detector.
HOG = "hog"
_AP_COLUMNS = {"ap50": "AP50", "ap": "AP", "ap75": "AP75", "ap_small": "APS", "ap_medium": "APM", "ap_large": "APL"}
_RECALL_TITLES = ("all", "lower than 48 px", "48 to 96 px", "higher than 96 px")

_match_boxes = jax.jit(match_boxes, static_argnames=("thresholds", "by"))
_box_numbers = jax.jit(box_numbers)


@dataclasses.dataclass(frozen=True)
class Detections:
    """What detectors found in the same pictures; by the name of the detector."""

    boxes: dict[str, list[Boxes]]  # of each picture; host arrays, all valid
    seconds: dict[str, list[float]]  # of each call, one for each picture that was read; none of a file of boxes
    problems: list[str]  # pictures that could not be read: nobody was found in them


def evaluate_detector(
    dataset: str,
    detector: Detector | BoxesFile,
    folder: str | Path,
    *,
    name: str = "detector",
    split: str | None = None,
    limit: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Result:
    """Measures a human detector's boxes on a data set, with bootstrap intervals over pictures.

    Everybody who is labelled with a box counts, also without joints; crowds do not. The same numbers of OpenCV's HOG
    detector stand under ``hog``, unless it is the one that is measured; None where OpenCV has it no more.

    Args:
        dataset: one of ``COMPLETE``.
        detector: from a picture, uint8 RGB, to ``Boxes``; or a file of boxes, see ``read_boxes``.
        folder: the official files, or the prepared set.
        name: what the result calls the detector.
        split: another than the one that is usually measured.
        limit: only the first pictures, for a quick look.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
        report: receives a line for each picture that cannot be read; nobody is found in it.

    Returns:
        The numbers in [0, 1] by name, with ``intervals``, ``bootstrap`` and ``tables``, see ``evaluate.results``; and
        of each detector the mean number of boxes in a picture and the median seconds.

    Raises:
        DataError: the data cannot be read, has no complete boxes, or nobody to find.
    """
    found, usual = data_set(dataset), PROTOCOLS[data_set(dataset).name][1]
    if found.name not in COMPLETE:
        known = ", ".join(COMPLETE)
        raise DataError(f"{dataset} has no boxes around whole people, which detectors are measured by; {known} have")
    split = split or usual
    pictures = read_data(dataset, folder, split)[:limit]
    if not pictures:
        raise DataError(f"{folder}: the split {split} of {dataset} has no pictures")
    _check_people(pictures)
    if isinstance(detector, BoxesFile):
        check_boxes(detector, pictures)
    detectors = _beside_hog(HOG if detector is detect_with_hog else name, detector)
    about: dict[str, Any] = {"dataset": dataset, "split": split, "protocol": "detector"}
    about |= {"detector": next(iter(detectors)), "threshold": THRESHOLD}
    if HOG not in detectors:
        about[HOG] = None
        report(f"OpenCV {cv2.__version__} has no HOG detector: nothing stands beside {name}")
    detections = detect_people(detectors, pictures)
    if len(detections.problems) == len(pictures):
        raise DataError(f"none of {len(pictures)} pictures can be read; the first: {detections.problems[0]}")
    for problem in detections.problems:
        report(problem)
    about["unreadable"] = len(detections.problems)
    names = [record.picture.name for record in pictures]
    return make_result(about, people_found(pictures, detections), names, replicates=replicates, seed=seed)


def _beside_hog(name: str, detector: Detector | BoxesFile) -> dict[str, Detector | BoxesFile]:
    """A detector by its name, and OpenCV's where that is another one and there."""
    others = {HOG: detect_with_hog} if name != HOG and hasattr(cv2, "HOGDescriptor") else {}
    return {name: detector} | others


def _check_people(pictures: Sequence[LabelledPicture]) -> int:
    """How many people there are to find; raises DataError if there are none."""
    count = sum(int((~record.crowd).sum()) for record in pictures)
    if not count:
        raise DataError("nobody to find: no labelled people in these pictures")
    return count


def detect_people(detectors: Mapping[str, Detector | BoxesFile], pictures: Sequence[LabelledPicture]) -> Detections:
    """Runs detectors over pictures, each picture being read once.

    Boxes that are not finite or have no area, and those whose score is not finite, are left out.
    """
    found = Detections({name: [] for name in detectors}, {name: [] for name in detectors}, [])
    for record in tqdm(pictures, "pictures", mininterval=1.0):
        image = read_picture(record, found.problems)
        for name, detect in detectors.items():
            if image is None:
                boxes = None
            elif isinstance(detect, BoxesFile):
                boxes = boxes_of_record(detect, record)
            else:
                start = time.perf_counter()
                boxes = jax.block_until_ready(detect(image))
                found.seconds[name].append(time.perf_counter() - start)
            found.boxes[name].append(_usable(boxes or Boxes.from_arrays([])))
    return found


def _usable(found: Boxes) -> Boxes:
    corners, score = np.asarray(found.xyxy), np.asarray(found.score)
    usable = np.asarray(found.valid) & np.isfinite(score) & np.isfinite(corners).all(1)
    usable &= (corners[:, 2:] > corners[:, :2]).all(1)
    return Boxes.from_arrays(corners[usable], score[usable])


def people_found(pictures: Sequence[LabelledPicture], detections: Detections) -> Measured:
    """COCO's box AP and the share of people found: pycocotools' AP, intervals from our own evaluator, which must agree.

    The numbers of the first detector come first, those of the others under their names.

    Raises:
        DataError: nobody to find; or our evaluator and pycocotools differ by more than 1e-6.
    """
    about: dict[str, Any] = {"people": _check_people(pictures)}
    annotations, numbers = coco_annotations(pictures), [record.image_id for record in pictures]
    results = {name: _as_results(numbers, boxes) for name, boxes in detections.boxes.items()}
    matches = {name: _matched(annotations, found, numbers) for name, found in results.items()}
    exact: dict[str, Any] = dict.fromkeys(results, {})
    differences = []
    for name, found in results.items():
        about |= _about(name, detections, found)
        if found:
            right = coco_summary(annotations, found, numbers, kind="bbox")
            with jax.enable_x64(True):
                ours = np.asarray(_box_numbers(matches[name][0])).tolist()
            exact[name], difference = agreed(ours, right)
            differences.append(difference)
    about |= {"difference_to_pycocotools": max(differences)} if differences else {}
    # Matches count pictures in the order of their numbers.
    data = tuple(matches.values()), np.argsort(np.array(numbers))

    def statistic(data: Any, weight: Float[Array, "i"]) -> dict[str, Any]:
        matches, order = data
        return _nested({name: _counted(here, weight[order]) for name, here in zip(results, matches, strict=True)})

    return Measured(statistic, data, _tables(list(results)), about, _nested(exact), x64=True)


def _about(name: str, detections: Detections, results: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean number of boxes in a picture that was read, of those given by default; median seconds but for the first."""
    prefix = "" if name == next(iter(detections.boxes)) else f"{name}_"
    seconds, read = detections.seconds[name], len(detections.boxes[name]) - len(detections.problems)
    mean = round(sum(result["score"] >= THRESHOLD for result in results) / read, 6) if read else None
    median = round(statistics.median(seconds[1:]), 6) if len(seconds) > 1 else None
    return {f"{prefix}boxes_per_picture": mean, f"{prefix}seconds_per_picture": median}


def _as_results(numbers: Sequence[int], boxes: Sequence[Boxes]) -> list[dict[str, Any]]:
    """Boxes as COCO's results."""
    results = []
    for number, here in zip(numbers, boxes, strict=True):
        corners = np.asarray(here.xyxy, np.float64)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        for box, score in zip(sides.tolist(), np.asarray(here.score, np.float64).tolist(), strict=True):
            results.append({"image_id": number, "category_id": 1, "bbox": box, "score": score})
    return results


def _matched(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], numbers: list[int]
) -> tuple[Matches, Matches, Matches]:
    """By area for AP; at 0.5 by height, of all boxes and of those that a detector gives by default."""
    truth, found = pack_boxes(annotations, results, numbers)
    sure = dataclasses.replace(found, valid=found.valid & (found.score >= THRESHOLD))
    half = {"thresholds": (0.5,), "by": "height"}
    with jax.enable_x64(True):
        return _match_boxes(truth, found), _match_boxes(truth, found, **half), _match_boxes(truth, sure, **half)


def _counted(matches: tuple[Matches, Matches, Matches], weight: Float[Array, "i"]) -> dict[str, Any]:
    """The numbers of one detector, NaN where there is nobody: COCO's evaluators say -1."""
    by_area, by_height, sure = matches

    def named(names: Sequence[str], values: Float[Array, "n"]) -> dict[str, Any]:
        return dict(zip(names, jnp.where(values < 0, jnp.nan, values), strict=True))

    ap = named(BOX_AP_NAMES, box_numbers(by_area, weight=weight))
    recalls, sure_recalls = (named(RECALL_NAMES, box_recalls(of, weight=weight)) for of in (by_height, sure))
    return {name: ap[name] for name in _AP_COLUMNS} | recalls | {"at_threshold": sure_recalls}


def _nested(of_detectors: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the first detector, with those of the others under their names."""
    first, *others = of_detectors
    return of_detectors[first] | {name: of_detectors[name] for name in others}


def _tables(detectors: Sequence[str]) -> tuple[Table, ...]:
    def rows(paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
        prefixes = ["", *(f"{name}/" for name in detectors[1:])]
        return {name: tuple(prefix + path for path in paths) for name, prefix in zip(detectors, prefixes, strict=True)}

    found, sure = "people found at IoU 0.5", [f"at_threshold/{name}" for name in RECALL_NAMES]
    return (
        Table("average precision of boxes", tuple(_AP_COLUMNS.values()), rows(tuple(_AP_COLUMNS))),
        Table(f"{found}, by the {MOST} best boxes of a picture", _RECALL_TITLES, rows(RECALL_NAMES)),
        Table(f"{found}, by boxes of a score of {THRESHOLD} or higher", _RECALL_TITLES, rows(sure)),
    )
