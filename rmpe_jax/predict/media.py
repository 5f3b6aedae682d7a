"""Pictures in, poses and drawn pictures out: each picture by itself, so that a broken one costs only its own result."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.data.images import PictureError, read_image, write_image
from rmpe_jax.draw import draw_poses
from rmpe_jax.predict.detectors import BoxesFile
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.predict.formats import coco_results, write_json
from rmpe_jax.records import Boxes, Poses


@dataclasses.dataclass(frozen=True)
class Report:
    """What a call of ``predict_pictures`` did."""

    json_path: Path
    pictures: int  # how many were read and written
    poses: int
    problems: list[str]  # one line each; empty if everything went well


def predict_pictures(
    estimator: Estimator, pictures: Sequence[Path], out: Path, *, boxes: BoxesFile | None = None
) -> Report:
    """Writes ``out/poses.json`` (COCO keypoint results) and ``out/NAME_poses.jpg`` for each picture.

    ``image_id`` is the number that the boxes file gives a picture, or else the number its file name spells, if all
    names spell different ones, or else its place in the call, from 1.

    Args:
        estimator: ready to use.
        pictures: files.
        out: folder, made if it is missing.
        boxes: people's boxes; the estimator's detector where None.

    Returns:
        Counts, and a line for each picture or box that could not be used. What was done before an interruption is
        written.
    """
    results: list[dict[str, Any]] = []
    problems = list(boxes.problems) if boxes else []
    if boxes and not any(boxes.of_picture(path) for path in pictures):
        problems.append(f"{boxes.path}: has no boxes for any of the pictures given")
    done = 0
    json_path = out / "poses.json"
    numbers, targets = _image_ids(pictures, boxes), _drawn_paths(pictures, out)
    try:
        for path, number, target in zip(pictures, numbers, targets, strict=True):
            try:
                found = _predict_picture(estimator, path, target, boxes)
            except PictureError as error:
                problems.append(str(error))
                continue
            results += coco_results(found, estimator.skeleton, image_id=number, file_name=path.name)
            done += 1
    finally:
        write_json(json_path, results)
    return Report(json_path, done, len(results), problems)


def _predict_picture(estimator: Estimator, path: Path, target: Path, boxes: BoxesFile | None) -> Poses:
    image = read_image(path)
    found = estimator(image, boxes.of_picture(path) or Boxes.from_arrays([]) if boxes else None)
    points, score, drawn_boxes = (np.asarray(array) for array in (found.points, found.score, found.boxes))
    write_image(target, draw_poses(image, points, score, estimator.skeleton, boxes=drawn_boxes))
    return found


def _image_ids(pictures: Sequence[Path], boxes: BoxesFile | None) -> list[int]:
    spelled = [int(path.stem) if path.stem.isdecimal() else None for path in pictures]
    use_names = None not in spelled and len(set(spelled)) == len(spelled)
    ids = []
    for place, (path, name) in enumerate(zip(pictures, spelled, strict=True), 1):
        known = boxes.image_id(path) if boxes else None
        ids.append(known if known is not None else name if use_names and name is not None else place)
    return ids


def _drawn_paths(pictures: Sequence[Path], out: Path) -> Iterator[Path]:
    taken: set[str] = set()
    for path in pictures:
        names = itertools.chain([path.stem], (f"{path.stem}_{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield out / f"{name}_poses.jpg"
