"""COCO keypoints in COCO's own layout: ``annotations/person_keypoints_SPLIT.json`` beside the folder ``SPLIT``.

Reference: Lin et al., ECCV 2014, and https://cocodataset.org.
"""

from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.data.people import DataError, Person, Picture, read_json


def annotation_file(folder: str | Path, split: str) -> Path:
    """Path of the keypoint annotations of a split."""
    return Path(folder) / "annotations" / f"person_keypoints_{split}.json"


def read_coco(folder: str | Path, split: str, *, min_joints: int = 1) -> list[Person]:
    """Reads the people of a split, in ``COCO_17``, leaving out crowds and people with few labelled joints.

    COCO measures boxes from the edge of the first pixel and joints by pixel; both are taken as they stand, so boxes lie
    half a pixel off, alike in training and evaluation.

    Args:
        folder: holds ``annotations`` and the pictures' folder, named like the split.
        split: such as "train2017".
        min_joints: fewest labelled joints.

    Raises:
        DataError: naming the file and the record.
    """
    path = annotation_file(folder, split)
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise DataError(f"{path}: expected an object with images and annotations")
    if not isinstance(content["images"], list) or not isinstance(content["annotations"], list):
        raise DataError(f"{path}: expected images and annotations as lists")
    try:
        files = {image["id"]: Path(folder) / split / image["file_name"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an image without id and file_name: {error}") from None
    people = []
    for number, record in enumerate(content["annotations"]):
        try:
            if record.get("iscrowd", 0) or record.get("num_keypoints", 0) < min_joints:
                continue
            people.append(_person(record, files))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: annotation number {number + 1}: {type(error).__name__}: {error}") from None
    return people


def _person(record: dict[str, Any], files: dict[int, Path]) -> Person:
    joints = np.array(record["keypoints"], np.float32)
    if joints.shape != (51,):
        raise ValueError(f"expected 51 numbers in keypoints, got shape {joints.shape}")
    joints = joints.reshape(17, 3)
    if not np.isfinite(joints).all():
        raise ValueError("keypoints hold numbers that are not finite")
    if record["image_id"] not in files:
        raise ValueError(f"annotation {record.get('id')} is of picture {record['image_id']}, which is not listed")
    x, y, width, height = (float(value) for value in record["bbox"])
    box = np.array([x, y, x + width, y + height], np.float32)
    labelled = joints[:, 2] > 0
    points = np.where(labelled[:, None], joints[:, :2], 0)
    return Person(Picture(files[record["image_id"]]), record["image_id"], box, points, labelled, float(record["area"]))
