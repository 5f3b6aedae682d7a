"""Scenes: parts of pictures with the people in them, what a person detector is trained on.

A scene is a square that is cut out of a picture: the whole picture, and where everybody is labelled also the
surroundings of each person who is small in it. Whether everybody is labelled decides what may be held against a
detector: in a set that labels one person of each picture, what it finds elsewhere may be right.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.config import SET_FOLDERS, DataConfig
from rmpe_jax.data.files import DataError, PictureFile
from rmpe_jax.data.people import LabelledPicture, Picture, outside, usable_rows
from rmpe_jax.data.pipeline import cut_square, no_training_data
from rmpe_jax.data.sets import read_data
from rmpe_jax.data.synthetic import read_synthetic
from rmpe_jax.records import SceneBatch

#: The data sets that give everybody a box around the whole person; others label joints, and not everybody.
COMPLETE = ("coco", "crowdpose", "synthetic")
# The surroundings of a person: a square of so many times the longer side of the box; and the longest side, over that of
# the picture, of a box that gets one.
_SURROUNDINGS, _SMALL = 3.0, 0.5
# Room for the people of a scene.
_CAPACITY = 24
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Scene:
    """A part of a picture and everybody who is labelled in it."""

    picture: Picture
    boxes: np.ndarray  # (p, 4) x0 y0 x1 y1, pixels of the picture
    crowd: np.ndarray  # (p,) bool: the box holds a crowd, or no whole person
    complete: bool  # everybody in the picture is labelled
    around: int | None = None  # the square surrounds this person; None for the whole picture


@dataclasses.dataclass(frozen=True)
class SceneCanvases:
    """n scenes on square canvases of side c, with room for p people; NumPy arrays. The fields are ``SceneBatch``'s."""

    canvas: np.ndarray  # (n, c, c, 3) uint8 RGB; beyond the picture its outermost pixels go on
    extent: np.ndarray  # (n, 4) float32
    boxes: np.ndarray  # (n, p, 4) float32
    person: np.ndarray  # (n, p) bool
    ignored: np.ndarray  # (n, p) bool
    complete: np.ndarray  # (n,) bool
    valid: np.ndarray  # (n,) bool

    def __len__(self) -> int:
        return len(self.canvas)


def training_scenes(config: DataConfig) -> list[Scene]:
    """The scenes that ``config`` names for training; one that is repeated is the same object again.

    Raises:
        DataError: no data set is named, or one cannot be read.
    """
    scenes: list[Scene] = []
    for name in SET_FOLDERS:
        folder = getattr(config, name)
        if folder:
            split, repeat = (config.coco_split, config.coco_repeat) if name == "coco" else ("train", 1)
            scenes += scenes_in(read_data(name, folder, split), complete=name in COMPLETE) * repeat
    if config.synthetic:
        scenes += scenes_in(read_synthetic("train", pictures=config.synthetic), complete=True)
    if not scenes:
        raise no_training_data()
    if config.negatives:
        scenes += scenes_without_people(config.negatives) * config.negatives_repeat
    return scenes


def scenes_in(pictures: Sequence[LabelledPicture], *, complete: bool) -> list[Scene]:
    """The scenes of labelled pictures.

    Args:
        pictures: those in which nobody is labelled count only where everybody is.
        complete: everybody is labelled.
    """
    scenes = []
    for record in pictures:
        rows = usable_rows(record, min_joints=0)
        crowd = np.ones(len(record), bool)
        crowd[rows] = False
        if complete or len(rows):
            whole = Scene(record.picture, record.boxes, crowd, complete)
            scenes.append(whole)
            if complete:
                scenes += [dataclasses.replace(whole, around=int(row)) for row in rows]
    return scenes


def scenes_without_people(folder: str | Path) -> list[Scene]:
    """The pictures of a folder as scenes in which nobody is.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data.negatives: {folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not files:
        raise DataError(f"data.negatives: {folder}: has no pictures ({', '.join(_PICTURES)})")
    return [Scene(PictureFile(path), np.zeros((0, 4)), np.zeros(0, bool), complete=True) for path in files]


@dataclasses.dataclass(frozen=True)
class SceneCutting:
    """Scenes on canvases, four to an example: see ``pipeline.Cutting``."""

    config: DataConfig
    together: int = 4

    @property
    def side(self) -> int:
        """Of a canvas, pixels."""
        return self.config.canvas

    def empty(self, count: int) -> SceneCanvases:
        """Room for ``count`` scenes, none of them valid."""
        people = (count, _CAPACITY)
        return SceneCanvases(
            np.zeros((count, self.side, self.side, 3), np.uint8),
            np.zeros((count, 4), np.float32),
            np.zeros((*people, 4), np.float32),
            np.zeros(people, bool),
            np.zeros(people, bool),
            np.zeros(count, bool),
            np.zeros(count, bool),
        )

    def cut(self, image: np.ndarray, item: Scene) -> tuple[SceneCanvases, str | None]:
        """The canvas of one scene, or why it cannot be used."""
        height, width = image.shape[:2]
        result = self.empty(1)
        misplaced = (outside(box, (height, width)) for box in item.boxes[~item.crowd])
        said = next((said for said in misplaced if said), None)
        if said:
            return result, f"a box, {said}"
        centre, side = np.array([width - 1, height - 1]) / 2, max(height, width)
        if item.around is not None:
            low, high = item.boxes[item.around].reshape(2, 2)
            length = (high - low).max()
            if length < _SMALL * side:
                centre, side = (low + high) / 2, int(np.ceil(_SURROUNDINGS * length).clip(min(64, side), side))
        result.canvas[0], to_canvas = cut_square(image, centre, side, self.side, edge=True)
        extent = to_canvas(np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]]))
        result.extent[0] = extent.clip(-0.5, self.side - 0.5).reshape(4)
        boxes = to_canvas(item.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        # Of more people than there is room for, the largest are kept, and nothing is said of others.
        order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).max(1, initial=0), kind="stable")[:_CAPACITY]
        kept = slice(len(order))
        result.boxes[0, kept], result.person[0, kept] = boxes[order], ~item.crowd[order]
        result.ignored[0, kept] = item.crowd[order]
        result.complete[0], result.valid[0] = item.complete and len(boxes) <= _CAPACITY, True
        return result, None

    def batch(self, rows: dict[str, Any], index: Any) -> SceneBatch:
        """Canvases as a batch, ``together`` for each of ``index``."""
        grouped = {name: array.reshape(-1, self.together, *array.shape[1:]) for name, array in rows.items()}
        return SceneBatch(**grouped, index=index)
