"""Poses to be evaluated, in the data set's skeleton: from an estimator, or from a file.

A file is a list of COCO-style results: ``image_id`` or ``file_name``, ``keypoints`` (x, y, confidence of each joint;
0, 0, 0 where there is none), ``score``, and for single-person protocols ``person``, the number of the labelled person
within the picture, from 1. The keypoints are in the order of the data set's own skeleton, or COCO's seventeen with the
others by name in ``extra_keypoints``, as ``rmpe predict`` writes them. Learning the pose NMS also reads ``box`` (or
``bbox``): x, y, width and height of the box that the pose was predicted in.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rmpe_jax.data.files import DataError, read_json
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.people import LabelledPicture, usable_rows
from rmpe_jax.files import write_json
from rmpe_jax.predict.detectors import BoxesFile
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.records import Boxes, Poses
from rmpe_jax.skeleton import COCO_17, Skeleton

# Joints that stand between two others: filled in for a network that does not predict them.
_BETWEEN = {"pelvis": ("left_hip", "right_hip"), "thorax": ("left_shoulder", "right_shoulder")}
# What is read of a file is refused beyond this: differences of larger numbers, squared, are no float32.
_LARGEST = 1e9


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One predicted pose, in the skeleton of the data set; NumPy arrays."""

    image_id: int
    person: int | None  # row of the labelled person in whose box it was predicted, None for a detected one
    points: np.ndarray  # (k, 2) x y, pixels; (0, 0) where not present
    score: np.ndarray  # (k,) confidence of each joint
    present: np.ndarray  # (k,) bool: predicted at all
    pose_score: float
    box: np.ndarray | None = None  # (4,) x0 y0 x1 y1 that it was predicted in, not extended; None where not known


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What is evaluated, and where it comes from."""

    poses: list[Prediction]
    source: str  # name of the weights, or of the file
    boxes: str  # "gt", "position", "detector", or the name of the file of boxes or predictions
    problems: list[str]  # pictures that could not be read: nobody was found in them


def predict_in_boxes(
    estimator: Estimator, pictures: Sequence[LabelledPicture], skeleton: Skeleton, *, positions: bool = False
) -> Predictions:
    """Everybody who is labelled, predicted in their own box; nobody is suppressed.

    With ``positions`` the box comes from the rough position and scale, as the hourglass authors crop MPII's people:
    1.25 x 200 scales a side, 15 scales lower; it is shrunk here by what the estimator extends it.
    """
    poses, problems = [], []
    for record in tqdm(pictures, "pictures", mininterval=1.0):
        rows = usable_rows(record)
        boxes = _boxes_of_positions(record, estimator) if positions else record.boxes
        if len(rows):
            image = read_picture(record, problems)
            if image is not None:
                found = estimator.poses_in_boxes(image, boxes[rows].astype(np.float32))
                poses += _converted(found, estimator.skeleton, skeleton, record.image_id, rows)
    return Predictions(poses, estimator.weights.experiment.name, "position" if positions else "gt", problems)


def _boxes_of_positions(record: LabelledPicture, estimator: Estimator) -> np.ndarray:
    half = 125 * record.scale / (1 + estimator.weights.experiment.data.extension)
    centre = record.centres + np.stack([0 * record.scale, 15 * record.scale], -1)
    return np.concatenate([centre - half[:, None], centre + half[:, None]], 1)


def predict_detected(
    estimator: Estimator, pictures: Sequence[LabelledPicture], skeleton: Skeleton, boxes: BoxesFile | None
) -> Predictions:
    """Everybody in the boxes of the estimator's detector, or of a file, after the pose NMS."""
    if boxes is not None:
        check_boxes(boxes, pictures)
    poses, problems = [], []
    for record in tqdm(pictures, "pictures", mininterval=1.0):
        image = read_picture(record, problems)
        if image is not None:
            given = estimator.detector(image) if boxes is None else boxes_of_record(boxes, record)
            found = estimator(image, given or Boxes.from_arrays([]))
            poses += _converted(found, estimator.skeleton, skeleton, record.image_id, None)
    source = "detector" if boxes is None else boxes.path.name
    return Predictions(poses, estimator.weights.experiment.name, source, problems)


def check_boxes(boxes: BoxesFile, pictures: Sequence[LabelledPicture]) -> None:
    """Raises DataError where a file has broken entries, or no boxes for any of the pictures."""
    if boxes.problems:
        raise DataError("; ".join(boxes.problems[:3]))
    if not any(boxes_of_record(boxes, record) for record in pictures):
        raise DataError(f"{boxes.path}: has no boxes for any of the pictures")


def boxes_of_record(boxes: BoxesFile, record: LabelledPicture) -> Boxes | None:
    """A picture's boxes, by the name of its file or by its number in the data set."""
    return boxes.of_picture(Path(record.picture.name)) or boxes.of_picture(Path(str(record.image_id)))


def read_picture(record: LabelledPicture, problems: list[str]) -> np.ndarray | None:
    """The pixels of a picture; None, and a line among the problems, where it cannot be read."""
    try:
        return record.picture.read()
    except PictureError as error:
        problems.append(str(error))
        return None


def _converted(
    poses: Poses, source: Skeleton, target: Skeleton, image_id: int, rows: np.ndarray | None
) -> list[Prediction]:
    found = []
    count = len(poses.valid) if rows is None else len(rows)
    for place in range(count):
        if poses.valid[place]:
            points, score = np.asarray(poses.points[place]), np.asarray(poses.score[place])
            mean = float(poses.pose_score[place])
            by_name = {joint: (*points[k], score[k]) for k, joint in enumerate(source.joints)}
            person = None if rows is None else int(rows[place])
            box = np.asarray(poses.boxes[place], np.float64)
            found.append(_prediction(by_name, target, image_id, person, mean, box))
    return found


def _prediction(
    by_name: dict[str, Any],
    target: Skeleton,
    image_id: int,
    person: int | None,
    score: float,
    box: np.ndarray | None,
) -> Prediction:
    for joint, ends in _BETWEEN.items():
        if joint not in by_name and all(end in by_name for end in ends):
            by_name[joint] = np.mean([by_name[end] for end in ends], 0)
    present = np.array([joint in by_name for joint in target.joints])
    values = np.array([by_name.get(joint, (0, 0, 0)) for joint in target.joints], np.float64)
    return Prediction(image_id, person, values[:, :2], values[:, 2], present, score, box)


def read_predictions(path: str | Path, pictures: Sequence[LabelledPicture], skeleton: Skeleton) -> Predictions:
    """Reads predictions from a file; those of other pictures are left out.

    Raises:
        DataError: naming the file and the record, counted from 1; or there is none for any of the pictures.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of poses")
    numbers = {record.image_id: record for record in pictures}
    names = {record.picture.name: record for record in pictures}
    poses = []
    for number, item in enumerate(content, 1):
        try:
            if not isinstance(item, dict):
                raise TypeError(f"expected an object, got {type(item).__name__}")
            record = _record_of(item, names, numbers)
            if record is not None:
                poses.append(_from_item(item, record, skeleton))
        except (KeyError, TypeError, ValueError) as error:
            said = f"no {error.args[0]}" if isinstance(error, KeyError) else error
            raise DataError(f"{path}: pose number {number}: {said}") from None
    if not poses:
        raise DataError(f"{path}: has no poses for any of the pictures")
    return Predictions(poses, path.name, path.name, [])


def _record_of(
    item: dict[str, Any], names: dict[str, LabelledPicture], numbers: dict[int, LabelledPicture]
) -> LabelledPicture | None:
    # A file name goes before the number, which may be another set's, or that of a call of `rmpe predict`.
    if "file_name" in item:
        if not isinstance(item["file_name"], str):
            raise TypeError(f"file_name: expected text, got {item['file_name']!r:.60}")
        return names.get(Path(item["file_name"]).name)
    if isinstance(item["image_id"], list | dict):
        raise TypeError(f"image_id: expected a number, got {item['image_id']!r:.60}")
    return numbers.get(item["image_id"])


def _from_item(item: dict[str, Any], record: LabelledPicture, skeleton: Skeleton) -> Prediction:
    values = _numbers(item, "keypoints").ravel()
    if len(values) % 3:
        raise ValueError(f"keypoints: expected x, y, confidence of each joint, got {len(values)} numbers")
    values = values.reshape(-1, 3)
    if len(values) == skeleton.size:
        joints = skeleton.joints
    elif len(values) == COCO_17.size:
        joints = COCO_17.joints
    else:
        raise ValueError(f"expected {skeleton.size} or {COCO_17.size} joints in keypoints, got {len(values)}")
    by_name = {joint: value for joint, value in zip(joints, values, strict=True) if value.any()}
    extra = item.get("extra_keypoints", {})
    if not isinstance(extra, dict):
        raise TypeError(f"extra_keypoints: expected an object, got {extra!r:.60}")
    for joint in extra:
        by_name[joint] = _numbers(extra, joint)
        if by_name[joint].shape != (3,):
            raise ValueError(f"extra_keypoints: expected x, y, confidence of {joint}, got {extra[joint]!r:.60}")
    if isinstance(item["score"], str | bool | list):
        raise TypeError(f"score: expected a number, got {item['score']!r:.60}")
    score, person = float(_numbers(item, "score")), item.get("person")
    if person is not None and (type(person) is not int or not 1 <= person <= len(record)):
        raise ValueError(f"person {person!r} of a picture with {len(record)}")
    row = None if person is None else person - 1
    return _prediction(by_name, skeleton, record.image_id, row, score, _box_of(item))


def _numbers(item: dict[str, Any], name: str) -> np.ndarray:
    """A field as an array; raises ValueError that names it."""
    try:
        values = np.array(item[name], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected numbers, got {item[name]!r:.60}") from None
    if not (np.abs(values) <= _LARGEST).all():
        raise ValueError(f"{name}: must be finite, and at most {_LARGEST:g} in size")
    return values


def _box_of(item: dict[str, Any]) -> np.ndarray | None:
    """The box that a pose was predicted in: ``box`` as here and in AlphaPose, else ``bbox`` as in mmpose."""
    name = "box" if "box" in item else "bbox"
    if item.get(name) is None:
        return None
    box = _numbers(item, name)
    if box.shape != (4,) or (box[2:] < 0).any():
        raise ValueError(f"{name}: expected x, y, width and height, got {item[name]!r:.60}")
    return np.concatenate([box[:2], box[:2] + box[2:]])


def write_predictions(path: str | Path, predictions: Predictions, pictures: Sequence[LabelledPicture]) -> None:
    """Writes predictions so that ``read_predictions`` reads them, complete or not at all."""
    names = {record.image_id: record.picture.name for record in pictures}
    items = [_as_result(pose) | {"file_name": names[pose.image_id]} for pose in predictions.poses]
    write_json(path, items)


def as_results(poses: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as COCO results, which its evaluators read; joints that are not present stand at (0, 0)."""
    return [_as_result(pose) for pose in poses]


def _as_result(pose: Prediction) -> dict[str, Any]:
    triplets = np.where(pose.present[:, None], np.concatenate([pose.points, pose.score[:, None]], 1), 0)
    result: dict[str, Any] = {"image_id": pose.image_id, "category_id": 1, "keypoints": triplets.ravel().tolist()}
    # COCO's evaluators take a pose's area from its box, and only without one from all joints, absent ones included.
    shown = pose.points[pose.present] if pose.present.any() else np.zeros((1, 2))
    result |= {"score": pose.pose_score, "bbox": [*shown.min(0).tolist(), *np.ptp(shown, 0).tolist()]}
    if pose.box is not None:
        result["box"] = [*pose.box[:2].tolist(), *(pose.box[2:] - pose.box[:2]).tolist()]
    return result if pose.person is None else result | {"person": pose.person + 1}
