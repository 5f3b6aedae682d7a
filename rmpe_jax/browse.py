"""Looks at data sets: samples with their labels on one sheet, and what each set needs."""

from pathlib import Path

import cv2
import numpy as np

from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.people import LabelledPicture
from rmpe_jax.data.prepared import finished_splits, is_prepared, prepared_folder
from rmpe_jax.data.sets import DATA_SETS, data_set, read_data
from rmpe_jax.draw import caption, contact_sheet, draw_poses
from rmpe_jax.skeleton import Skeleton

_TILE = 320


def labels_sheet(
    name: str, folder: str | Path, *, split: str | None = None, count: int = 12, seed: int = 0
) -> tuple[np.ndarray, str, list[str]]:
    """Draws randomly chosen pictures of a data set with everything that is labelled in them.

    Boxes stand around people and crowds; a hidden joint is a ring. A picture that cannot be read is a grey tile that
    says why.

    Args:
        name: of the set.
        folder: its official files, or the prepared set.
        split: the first one that can be read by default.
        count: pictures on the sheet.
        seed: of the choice.

    Returns:
        uint8 RGB, a line that says what is on it, and a line for each picture that cannot be read.

    Raises:
        DataError: the set cannot be read.
    """
    split, pictures = _first_split(name, folder) if split is None else (split, read_data(name, folder, split))
    if not pictures:
        raise DataError(f"{folder}: the split {split} of {name} has no pictures")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pictures))[:count])
    skeleton = data_set(name).skeleton
    problems: list[str] = []
    sheet = contact_sheet([_tile(pictures[row], skeleton, problems) for row in chosen])
    people = sum(len(picture) for picture in pictures)
    line = f"{len(chosen)} of {len(pictures)} pictures ({people} people) of {name}, split {split}"
    return sheet, line, problems


def _first_split(name: str, folder: str | Path) -> tuple[str, list[LabelledPicture]]:
    splits = data_set(name).splits
    if is_prepared(name, folder):
        splits = tuple(finished_splits(prepared_folder(name, folder))) or splits
    first: DataError | None = None
    for split in splits:
        try:
            return split, read_data(name, folder, split)
        except DataError as error:
            first = first or error
    raise first or DataError(f"{name}: has no splits")


def _tile(record: LabelledPicture, skeleton: Skeleton, problems: list[str]) -> np.ndarray:
    try:
        image = record.picture.read()
    except PictureError as error:
        problems.append(str(error))
        return caption(np.full((_TILE, _TILE, 3), 60, np.uint8), f"cannot be read: {error}")
    scale = _TILE / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    points, boxes = ((places + 0.5) * scale - 0.5 for places in (record.points, record.boxes))
    drawn = draw_poses(small, points, record.visibility / 2, skeleton, boxes=boxes, hidden_below=0.75)
    crowds, people = record.crowd.sum(), (~record.crowd).sum()
    counted = f"{people} {'person' if people == 1 else 'people'}" + (f", {crowds} crowd" if crowds else "")
    return caption(drawn, f"{record.picture.name}: {counted}")


def sets_table() -> str:
    """All data sets, one a paragraph: name, title, joints, splits, and the official files they are read from."""
    paragraphs = []
    for found in DATA_SETS.values():
        lines = [f"{found.name}: {found.title}, {found.skeleton.size} joints ({found.skeleton.name})"]
        lines += [f"  splits: {', '.join(found.splits)}", f"  files:  {found.hint}", f"  home:   {found.home}"]
        paragraphs.append("\n".join(lines))
    return "\n".join(paragraphs)
