"""COCO keypoints and CrowdPose: the same JSON family.

References: Lin et al., ECCV 2014, https://cocodataset.org; Li et al., CVPR 2019 (CrowdPose).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.data.files import DataError, Files, MissingFileError, PictureFile, parse_json, read_json
from rmpe_jax.data.people import LabelledPicture, label
from rmpe_jax.skeleton import COCO_17, CROWDPOSE_14, Skeleton

COCO_HINT = (
    "COCO is annotations_trainvalYEAR.zip, for tests image_info_testYEAR.zip (or the folder annotations), "
    "and SPLIT.zip (or the folder SPLIT) from https://cocodataset.org"
)
CROWDPOSE_HINT = "CrowdPose is crowdpose_SPLIT.json and images.zip (or the folder images)"
COCO_SPLITS = ("train2017", "val2017", "test2017", "test_dev2017", "train2014", "val2014", "test2014", "test2015")
CROWDPOSE_SPLITS = ("train", "val", "test", "trainval")
# CrowdPose gives no outline; its evaluation takes this share of the box, and so do rebuilt COCO labels.
_AREA_OF_BOX = 0.53


def read_coco(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads all pictures of a split, in ``COCO_17``, with crowds and people without keypoints as such.

    COCO measures boxes from the edge of the first pixel and joints by pixel; both are taken as they stand, so boxes lie
    half a pixel off, alike in training and evaluation.

    Args:
        folder: holds ``annotations/person_keypoints_SPLIT.json`` (for tests: ``image_info_SPLIT.json``) and the
            pictures' folder, named like the split; or the archives of both.
        split: such as "train2017"; one of ``COCO_SPLITS`` or any other for which the files are there.

    Raises:
        DataError: naming the file and the record.
    """
    pictures = "test2017" if split == "test_dev2017" else split
    year = split[-4:]
    archives = (f"annotations_trainval{year}.zip", f"image_info_{pictures}.zip", f"{pictures}.zip")
    files = Files(folder, *archives, hint=COCO_HINT)
    names = [f"annotations/person_keypoints_{split}.json", f"annotations/image_info_{_dashed(split)}.json"]
    return _read(files, names, pictures, COCO_17)


def read_crowdpose(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads all pictures of a split, in ``CROWDPOSE_14``, each with its crowd index.

    Args:
        folder: holds ``crowdpose_SPLIT.json`` (or ``json/crowdpose_SPLIT.json``) and ``images`` or ``images.zip``.
        split: "train", "val", "test" or "trainval".

    Raises:
        DataError: naming the file and the record.
    """
    if split not in CROWDPOSE_SPLITS:
        raise DataError(f"CrowdPose has the splits {', '.join(CROWDPOSE_SPLITS)}, not {split!r}")
    files = Files(folder, "images.zip", hint=CROWDPOSE_HINT)
    names = [f"{place}crowdpose_{split}.json" for place in ("", "json/", "annotations/")]
    return _read(files, names, "images", CROWDPOSE_14)


def _dashed(split: str) -> str:
    return split.replace("_", "-")


def _read(files: Files, names: Sequence[str], pictures: str, skeleton: Skeleton) -> list[LabelledPicture]:
    found, data = files.read(*names)
    return _records(found, parse_json(data, found), skeleton, lambda name: files.picture(f"{pictures}/{name}"))


def read_coco_annotations(path: str | Path) -> tuple[list[LabelledPicture], Skeleton]:
    """The people of an annotation file of COCO or CrowdPose alone: the pictures need not be there.

    Returns:
        A record for each picture, and their skeleton: ``CROWDPOSE_14`` where the first annotation has 14 joints, else
        ``COCO_17``.

    Raises:
        DataError: naming the file and the record.
    """
    path = Path(path)
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    first = first.get("keypoints") if isinstance(first, dict) else None
    skeleton = CROWDPOSE_14 if isinstance(first, list) and len(first) == 3 * CROWDPOSE_14.size else COCO_17
    return _records(path, content, skeleton, lambda name: PictureFile(path.parent / name)), skeleton


def _records(
    found: Any, content: Any, skeleton: Skeleton, picture_named: Callable[[str], PictureFile]
) -> list[LabelledPicture]:
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{found}: expected an object with a list of images")
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise DataError(f"{found}: expected annotations as a list")
    people: dict[int, list[dict[str, Any]]] = {}
    for number, image in enumerate(content["images"], 1):
        try:
            if image["id"] in people:
                raise ValueError(f"id {image['id']} again")
            people[int(image["id"])] = []
        except _WRONG as error:
            raise DataError(f"{found}: image number {number}: {_said(error)}") from None
    for number, record in enumerate(annotations, 1):
        try:
            if record["image_id"] not in people:
                raise ValueError(f"is of picture {record['image_id']}, which is not listed")
            if record.get("category_id", 1) == 1:
                people[record["image_id"]].append(_person(record, skeleton))
        except _WRONG as error:
            raise DataError(f"{found}: annotation number {number}: {_said(error)}") from None
    records = []
    for number, image in enumerate(content["images"], 1):
        try:
            picture = picture_named(image["file_name"])
            more = {"crowd_index": float(image["crowdIndex"])} if "crowdIndex" in image else {}
            records.append(label(picture, int(image["id"]), people[image["id"]], skeleton.size, **more))
        except MissingFileError:
            raise
        except _WRONG as error:
            raise DataError(f"{found}: image number {number}: {_said(error)}") from None
    return records


# What a record of another form makes Python raise.
_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def _said(error: Exception) -> str:
    """What is wrong with a record, in words of the file and not of Python."""
    if isinstance(error, KeyError):
        return f"no {error.args[0]}"
    return "a field of the wrong type" if isinstance(error, TypeError | AttributeError) else str(error)


def _person(record: dict[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    joints = np.array(record["keypoints"], np.float64)
    if joints.shape != (3 * skeleton.size,):
        raise ValueError(f"expected {3 * skeleton.size} numbers in keypoints, got shape {joints.shape}")
    joints = joints.reshape(-1, 3)
    if not np.isfinite(joints).all():
        raise ValueError("keypoints hold numbers that are not finite")
    x, y, width, height = (float(value) for value in record["bbox"])
    if width < 0 or height < 0:
        raise ValueError(f"bbox: width and height are {width} and {height}")
    area = float(record["area"]) if "area" in record and skeleton == COCO_17 else _AREA_OF_BOX * width * height
    if not 0 <= area < np.inf:
        raise ValueError(f"area is {area}")
    return {
        "points": joints[:, :2],
        "visibility": joints[:, 2].clip(0, 2),
        "boxes": [x, y, x + width, y + height],
        "area": area,
        "crowd": bool(record.get("iscrowd", 0)),
    }


def coco_annotations(pictures: Sequence[LabelledPicture]) -> list[dict[str, Any]]:
    """The people of some pictures as COCO annotations, numbered from 1: what its evaluators read."""
    annotations = []
    for record in pictures:
        joints = np.concatenate([record.points, record.visibility[..., None]], -1)
        for row, box in enumerate(record.boxes):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": 1,
                    "iscrowd": int(record.crowd[row]),
                    "area": float(record.area[row]),
                    "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                    "keypoints": joints[row].ravel().tolist(),
                    "num_keypoints": int((record.visibility[row] > 0).sum()),
                }
            )
    return annotations
