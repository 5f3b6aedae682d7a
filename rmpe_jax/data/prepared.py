"""Data sets as ``rmpe data prepare`` writes them: array_record files in TFDS's layout, with the labels beside them.

A folder ``DIR/BUILDER/VERSION`` holds TFDS's own files, which ``tfds.builder_from_directory`` opens; for each finished
split ``labels-SPLIT.npz``, all labels without the pictures, so that training can start without reading every record;
and ``checksums.json``, which names the finished splits and the SHA-256 of each file. TensorFlow is never needed.
"""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.data.files import DataError, read_json
from rmpe_jax.data.images import PictureError, read_image
from rmpe_jax.data.people import PERSON_FIELDS, LabelledPicture
from rmpe_jax.errors import MissingExtraError

VERSION = "1.0.0"
#: The name under which TFDS knows each set, and so the name of its folder.
BUILDERS = {
    "coco": "coco_keypoints",
    "crowdpose": "crowd_pose",
    "flic": "frames_labeled_in_cinema",
    "lsp": "leeds_sports_pose",
    "lspet": "leeds_sports_pose_extended",
    "mpii": "mpii_human_pose",
    "synthetic": "synthetic_people",
    "waf": "we_are_family",
}


def import_tfds() -> Any:
    """TensorFlow Datasets with array_record; raises MissingExtraError where they are not installed."""
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise MissingExtraError(error.name or "tensorflow-datasets", "data", "a prepared data set") from None
    return tensorflow_datasets


@dataclasses.dataclass(frozen=True)
class RecordedPicture:
    """A picture in a prepared split."""

    folder: Path
    split: str
    row: int
    name: str  # of the original file

    def __str__(self) -> str:
        return f"{self.folder}:{self.split}[{self.row}]/{self.name}"

    def read(self) -> np.ndarray:
        """Decodes to uint8 RGB, (height, width, 3); raises PictureError that names the record."""
        return read_image(self.read_bytes(), name=str(self))

    def read_bytes(self) -> bytes:
        """The encoded picture; raises PictureError that names the record."""
        source = records(self.folder, self.split)
        try:
            return source[self.row]["image"]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise PictureError(f"{self}: {error}") from None


@functools.lru_cache(maxsize=8)
def records(folder: Path, split: str) -> Any:
    """The records of a split by number, pictures not decoded."""
    tfds = import_tfds()
    try:
        builder = tfds.builder_from_directory(folder)
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:
        # Damaged files make TFDS raise almost anything (ParseError, ValueError, KeyError, ...).
        raise DataError(f"{folder}: damaged; delete it and prepare the set again: {error}") from None


def record_at(folder: Path, split: str, row: int) -> dict[str, Any]:
    """One record; raises DataError where it cannot be read."""
    try:
        return records(folder, split)[row]
    except (OSError, ValueError, RuntimeError, IndexError, KeyError) as error:
        raise DataError(f"{folder}: record {row} of {split} is damaged; delete the folder: {error}") from None


def prepared_folder(name: str, folder: str | Path) -> Path:
    """Where a set of this name lies in the folder given to ``prepare``."""
    return Path(folder) / BUILDERS[name] / VERSION


def is_prepared(name: str, folder: str | Path) -> bool:
    """Whether a folder holds this set as ``prepare`` writes it, finished or not."""
    return prepared_folder(name, folder).is_dir()


def checksums_file(place: Path) -> Path:
    """The list of finished splits and their files' checksums."""
    return place / "checksums.json"


def finished_splits(place: Path) -> dict[str, dict[str, Any]]:
    """The finished splits: each with ``pictures``, ``left_out`` and ``files`` (name to SHA-256)."""
    path = checksums_file(place)
    content = read_json(path) if path.exists() else {}
    try:
        _ = [(file["bytes"], file["sha256"]) for about in content.values() for file in about["files"].values()]
    except (AttributeError, KeyError, TypeError):
        raise DataError(f"{path}: not a list of finished splits; delete the folder and prepare the set again") from None
    return content


def read_prepared(name: str, folder: str | Path, split: str) -> list[LabelledPicture]:
    """Labels of a prepared split; pictures are read from the records when they are needed.

    Raises:
        DataError: the split is not there, was not finished, or its files are missing or of another size.
    """
    place = prepared_folder(name, folder)
    known = finished_splits(place)
    if split not in known:
        raise DataError(
            f"{place}: no finished split {split!r} (there are: {', '.join(known) or 'none'}); "
            f"`rmpe data prepare {name}` makes it, and goes on where it was interrupted"
        )
    for file, about in known[split]["files"].items():
        path = place / file
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            raise DataError(f"{path}: missing, or not of the size it was written with; prepare the set again")
    path = place / f"labels-{split}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return _unpack(place, split, dict(stored))
    except Exception as error:
        # A damaged archive makes NumPy and zipfile raise almost anything (BadZipFile, zlib.error, ValueError, ...).
        raise DataError(f"{path}: damaged: {error or type(error).__name__}") from None


def pack_labels(pictures: list[LabelledPicture], names: list[str]) -> dict[str, np.ndarray]:
    """All labels of a split as plain arrays; the people of picture i are rows first[i] to first[i + 1]."""
    packed = {name: np.concatenate([getattr(p, name) for p in pictures]) for name in PERSON_FIELDS}
    packed["first"] = np.cumsum([0, *(len(picture) for picture in pictures)])
    packed["image_id"] = np.array([picture.image_id for picture in pictures], np.int64)
    packed["crowd_index"] = np.array([picture.crowd_index for picture in pictures], np.float64)
    packed["name"] = np.array(names, dtype=np.str_)
    return packed


def _unpack(place: Path, split: str, packed: dict[str, np.ndarray]) -> list[LabelledPicture]:
    first, found = packed["first"], []
    for row, name in enumerate(packed["name"].tolist()):
        people = {field: packed[field][first[row] : first[row + 1]] for field in PERSON_FIELDS}
        picture = RecordedPicture(place, split, row, name)
        number, crowding = int(packed["image_id"][row]), float(packed["crowd_index"][row])
        found.append(LabelledPicture(picture, number, **people, crowd_index=crowding))
    return found
