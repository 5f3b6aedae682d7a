"""Pictures in, poses and drawn pictures out: each picture by itself, so that a broken one costs only its own result."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np

from rmpe_jax.data.images import PictureError, quiet_decoding, read_image, write_image
from rmpe_jax.draw import draw_poses
from rmpe_jax.files import write_json
from rmpe_jax.geometry.boxes import boxes_on_picture
from rmpe_jax.predict.detectors import BoxesFile
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.predict.formats import coco_results
from rmpe_jax.records import Boxes


@dataclasses.dataclass(frozen=True)
class Report:
    """What a call of ``predict_pictures`` did."""

    json_path: Path
    pictures: int  # how many were read and written
    poses: int
    problems: list[str]  # one line each for what failed; empty if everything went well
    notes: list[str]  # one line each for what did not fail and may surprise


def predict_pictures(
    estimator: Estimator,
    pictures: Sequence[Path],
    out: Path,
    *,
    boxes: BoxesFile | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Writes ``out/poses.json`` (COCO keypoint results) and ``out/NAME_poses.jpg`` for each picture.

    ``image_id`` is the number that the boxes file gives a picture, if it gives all of them one; or else the number its
    file name spells, if all names spell different ones; or else its place in the call, from 1.

    Args:
        estimator: ready to use.
        pictures: files.
        out: folder, made if it is missing.
        boxes: people's boxes; the estimator's detector where None.
        tell: is given each line of ``problems`` and ``notes`` as it arises.

    Returns:
        Counts, a line for each picture or box that could not be used, and a line for each picture without people.
        What was done before an interruption is written.
    """
    report = Report(out / "poses.json", 0, 0, [], [])

    def add(kind: list[str], line: str) -> None:
        kind.append(line)
        tell(line)

    for line in boxes.problems if boxes else []:
        add(report.problems, line)
    if boxes is not None:
        _compare_pictures(boxes, pictures, partial(add, report.problems), partial(add, report.notes))
    results: list[dict[str, Any]] = []
    done = 0
    numbers, targets = _image_ids(pictures, boxes), _drawn_paths(pictures, out)
    try:
        for path, number, target in zip(pictures, numbers, targets, strict=True):
            try:
                image, given = _people_of(estimator, path, boxes)
                outside = _outside(given, image) if boxes else 0
                needed = estimator.needed_score(detected=boxes is None)
                found = estimator(image, given, smallest_score=needed)
                results += coco_results(found, estimator.skeleton, image_id=number, file_name=path.name)
                if outside:
                    add(report.problems, f"{path}: {outside} of its boxes lie outside the picture or are too large")
                capacity = getattr(estimator.detector, "capacity", None)
                if boxes is None and len(given.valid) == capacity:
                    add(report.notes, f"{path}: as many people as the detector gives, the {capacity} of highest score")
                if not len(found.points):
                    add(report.notes, f"{path}: {_nobody(len(given.valid), needed, boxes)}")
                points, score, drawn = (np.asarray(array) for array in (found.points, found.score, found.boxes))
                write_image(target, draw_poses(image, points, score, estimator.skeleton, boxes=drawn))
                done += 1
            except PictureError as error:
                add(report.problems, str(error))
            except (OSError, ValueError, MemoryError, cv2.error) as error:
                add(report.problems, f"{path}: {error}")
    finally:
        write_json(report.json_path, results)
    return dataclasses.replace(report, pictures=done, poses=len(results))


def _compare_pictures(
    boxes: BoxesFile, pictures: Sequence[Path], problem: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Says where the boxes file and the pictures of the call do not meet."""
    unknown = boxes.pictures - {name for path in pictures for name in boxes.names_of(path)}
    if len(unknown) == len(boxes.pictures):
        problem(f"{boxes.path}: has no boxes for any of the pictures given")
    elif unknown:
        note(f"{boxes.path}: also has boxes for {len(unknown)} pictures that were not given, such as {min(unknown)}")


def _people_of(estimator: Estimator, path: Path, boxes: BoxesFile | None) -> tuple[np.ndarray, Boxes]:
    """The decoded picture and its people's boxes."""
    with quiet_decoding():
        image = read_image(path)
    if boxes is None:
        return image, estimator.detector(image)
    return image, boxes.of_picture(path) or Boxes.from_arrays([])


def _nobody(count: int, needed: float, boxes: BoxesFile | None) -> str:
    """Why nobody is drawn on a picture with so many boxes."""
    if count and needed:
        return f"no people found: the poses of {count} boxes have scores, times the box's, below --min-score {needed:g}"
    return "no people found" + ("" if boxes else "; --boxes takes your own")


def _outside(boxes: Boxes, image: np.ndarray) -> int:
    """How many boxes lie outside a picture."""
    inside = np.asarray(boxes_on_picture(jnp.asarray(boxes.xyxy), (image.shape[0], image.shape[1])))
    return int((~inside).sum())


def _image_ids(pictures: Sequence[Path], boxes: BoxesFile | None) -> list[int]:
    known = [boxes.image_id(path) if boxes else None for path in pictures]
    spelled = [int(path.stem) if path.stem.isdecimal() else None for path in pictures]
    for ids in (known, spelled):
        chosen = [number for number in ids if number is not None]
        if len(chosen) == len(set(ids)) == len(pictures):
            return chosen
    return list(range(1, len(pictures) + 1))


def _drawn_paths(pictures: Sequence[Path], out: Path) -> Iterator[Path]:
    """One file for each picture, each with a name of its own that is not one of the pictures."""
    taken = {path.absolute() for path in pictures}
    for path in pictures:
        names = itertools.chain([path.stem], (f"{path.stem}_{number}" for number in itertools.count(2)))
        target = next(t for t in (out / f"{name}_poses.jpg" for name in names) if t.absolute() not in taken)
        taken.add(target.absolute())
        yield target
