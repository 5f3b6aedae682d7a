"""MPII Human Pose v1: the release's MATLAB file, or the JSON and HDF5 files in which others hand out its people.

Coordinates in all of these files count pixels from 1, as MATLAB does; here they count from 0.

Reference: Andriluka et al., CVPR 2014. The validation split is that of the hourglass authors (Newell et al., ECCV 2016)
and needs their list; the groups of people are those of the evaluation toolkit (Pishchulin et al., CVPR 2016).
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.data.files import DataError, Files, PictureFile, parse_json, parse_mat
from rmpe_jax.data.people import LabelledPicture, label
from rmpe_jax.errors import MissingExtraError
from rmpe_jax.skeleton import MPII_16

MPII_HINT = (
    "MPII is mpii_human_pose_v1_u12_1.mat (or mpii_human_pose_v1_u12_2.zip) and the folder images; "
    "train and val also need the hourglass authors' list (valid.h5, or mpii_val.json with gt_valid.mat for its head "
    "sizes), groups groups_v12.mat"
)
MPII_SPLITS = ("train", "val", "trainval", "test")
_RELEASE = "mpii_human_pose_v1_u12_1.mat"
_HDF5 = {"train": ("annot/train.h5", "train.h5"), "val": ("annot/valid.h5", "valid.h5")}
# Head boxes of the people of the validation list, in its order.
_HEADS = ("annot/gt_valid.mat", "gt_valid.mat", "mpii_gt_val.mat")
_JSON = {"train": ("annot/train.json", "mpii_train.json"), "val": ("annot/valid.json", "mpii_val.json")}


def read_mpii(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads one split of MPII, in ``MPII_16``.

    With the release's MATLAB file each picture has all of its people: head boxes, rough position and scale, which of
    them stand apart (``single``), and the groups of those that do not. The groups are the toolkit's where
    ``groups_v12.mat`` is there; otherwise those who do not stand apart make one group of their picture.

    Without it, "train" and "val" are read from the re-issues (HDF5 of the hourglass authors, or the JSON of mmpose and
    HRNet), which hold the people who stand apart; their boxes are those around the joints. Head sizes come from HDF5's
    ``normalize``, or for the JSON of "val" from ``gt_valid.mat`` (``mpii_gt_val.mat``); each becomes a square head box.

    Args:
        folder: the release's .mat and ``images``; for "train" and "val" also the hourglass authors' list.
        split: "trainval" (everybody with labels), "train" and "val" (the hourglass authors' parts of it), or "test" (no
            labels: position and scale only).

    Raises:
        DataError: naming the file and the record.
    """
    if split not in MPII_SPLITS:
        raise DataError(f"MPII has the splits {', '.join(MPII_SPLITS)}, not {split!r}")
    files = Files(folder, "mpii_human_pose_v1_u12_2.zip", "mpii_human_pose_v1.zip", hint=MPII_HINT)
    if files.find(_RELEASE) is None and any(files.find(n) for n in (*_HDF5.get(split, ()), *_JSON.get(split, ()))):
        return _reissue(files, split)
    records = _release(files, train=split != "test")
    if split in ("train", "val"):
        held_out = {name for name, *_ in _listed(files, "val")}
        records = [r for r in records if (r.picture.name in held_out) == (split == "val")]
    return records


def _release(files: Files, *, train: bool) -> list[LabelledPicture]:
    found, data = files.read(_RELEASE)
    release = parse_mat(data, found, "RELEASE")
    try:
        pictures, training, apart = release.annolist, np.atleast_1d(release.img_train), release.single_person
    except AttributeError as error:
        raise DataError(f"{found}: not MPII's release: {error}") from None
    pictures, apart = np.atleast_1d(pictures), np.atleast_1d(apart)
    if not len(pictures) == len(training) == len(apart):
        raise DataError(f"{found}: {len(pictures)} pictures, but {len(training)} in img_train, {len(apart)} apart")
    groups = _groups(files, len(pictures))
    records = []
    for index in np.flatnonzero(training == train):
        try:
            people = [_person(rectangle, train=train) for rectangle in _entries(pictures[index], "annorect")]
            single = {int(number) for number in np.atleast_1d(np.asarray(apart[index])).ravel()}
            for number, person in enumerate(people, 1):
                person["single"] = number in single
            _number_groups(people, None if groups is None else groups[index])
            people = [person for person in people if "points" in person]
            place = files.picture(f"images/{pictures[index].image.name}")
            records.append(label(place, int(index) + 1, people, MPII_16.size))
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{found}: picture number {index + 1}: {error}") from None
    return records


def _entries(structure: Any, name: str) -> list[Any]:
    """A MATLAB structure array as a list: SciPy gives one entry bare and no entries as an empty array."""
    value = getattr(structure, name, [])
    return [value] if hasattr(value, "_fieldnames") else list(np.atleast_1d(np.asarray(value, object)).ravel())


def _person(rectangle: Any, *, train: bool) -> dict[str, Any]:
    """One annorect; without ``points`` where it is neither labelled nor, in the test split, located."""
    located = all(_entries(rectangle, name) for name in ("objpos", "scale"))
    person: dict[str, Any] = {}
    if located:
        person["centres"] = np.array([float(rectangle.objpos.x), float(rectangle.objpos.y)]) - 1
        person["scale"] = float(rectangle.scale)
    points, visibility = np.zeros((16, 2)), np.zeros(16, np.uint8)
    annotated = [point for holder in _entries(rectangle, "annopoints") for point in _entries(holder, "point")]
    for point in annotated:
        if not 0 <= int(point.id) < 16:
            raise ValueError(f"joint {point.id}, expected 0 to 15")
        points[int(point.id)] = float(point.x) - 1, float(point.y) - 1
        visibility[int(point.id)] = 1 if _marked_hidden(point) else 2
    if annotated:
        head = [float(getattr(rectangle, side)) - 1 for side in ("x1", "y1", "x2", "y2")]
        return person | {"points": points, "visibility": visibility, "heads": head}
    if located and not train:
        half = 100 * person["scale"]
        box = np.concatenate([person["centres"] - half, person["centres"] + half])
        return person | {"points": points, "visibility": visibility, "boxes": box}
    return person


def _marked_hidden(point: Any) -> bool:
    """The release has numbers, characters, and for the head nothing."""
    mark: Any = getattr(point, "is_visible", 1)
    return np.size(mark) > 0 and float(mark) == 0


def _groups(files: Files, pictures: int) -> np.ndarray | None:
    if files.find("groups_v12.mat") is None:
        return None
    found, data = files.read("groups_v12.mat")
    groups = np.atleast_1d(parse_mat(data, found, "groups"))
    if len(groups) != pictures:
        raise DataError(f"{found}: groups of {len(groups)} pictures, expected {pictures}")
    return groups


def _number_groups(people: list[dict[str, Any]], groups: Any) -> None:
    """Sets ``group``; a group with somebody in it who stands apart is none, as in the toolkit."""
    for person in people:
        person["group"] = -1 if groups is not None or person["single"] else 0
    if groups is None:
        return
    members = [groups] if np.ndim(groups) == 0 or np.asarray(groups).dtype != object else list(np.ravel(groups))
    number = 0
    for group in members:
        rows = [int(n) - 1 for n in np.atleast_1d(np.asarray(group, float)).ravel()]
        if any(not 0 <= row < len(people) for row in rows):
            raise ValueError(f"group {[row + 1 for row in rows]} of people who are not there")
        if rows and not any(people[row]["single"] for row in rows):
            for row in rows:
                people[row]["group"] = number
            number += 1


def _reissue(files: Files, split: str) -> list[LabelledPicture]:
    pictures: dict[str, list[dict[str, Any]]] = {}
    for name, points, visible, centre, scale, head_size in _listed(files, split):
        person = {"points": points - 1, "visibility": 2 * visible, "centres": centre - 1, "scale": scale}
        if 0 < head_size < np.inf and visible.any():
            person["heads"] = _head_of_size(points - 1, visible, head_size)
        pictures.setdefault(name, []).append(person)
    records = []
    for number, (name, people) in enumerate(pictures.items(), 1):
        try:
            records.append(label(files.picture(f"images/{name}"), number, people, MPII_16.size))
        except ValueError as error:
            raise DataError(f"{files.folder}: {name}: {error}") from None
    return records


def _head_of_size(points: np.ndarray, labelled: np.ndarray, size: float) -> np.ndarray:
    """A square box whose 0.6 x diagonal is ``size``: around neck and head top, or around all joints without them."""
    head = np.isin(np.arange(16), (8, 9)) & labelled
    middle, half = points[head if head.any() else labelled].mean(0), size / 0.6 / np.sqrt(8)
    return np.concatenate([middle - half, middle + half])


def _listed(files: Files, split: str) -> Iterable[tuple[str, np.ndarray, np.ndarray, np.ndarray, float, float]]:
    """Name, points, labelled, centre, scale and head size (or NaN) of everybody in a re-issued list."""
    if any(files.find(name) for name in _HDF5[split]):
        return _from_hdf5(*files.read(*_HDF5[split]))
    people = _from_json(*files.read(*_JSON[split], *_HDF5[split]))
    if split != "val" or not any(files.find(name) for name in _HEADS):
        return people
    found, data = files.read(*_HEADS)
    boxes = np.asarray(parse_mat(data, found, "headboxes_src"), float)
    people = list(people)
    if boxes.shape != (2, 2, len(people)):
        raise DataError(f"{found}: head boxes of shape {boxes.shape}, expected (2, 2, {len(people)})")
    sizes = 0.6 * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    return [(*person[:5], float(size)) for person, size in zip(people, sizes, strict=True)]


def _from_hdf5(found: PictureFile, data: bytes):
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "data", f"reading {found}") from None
    try:
        with h5py.File(io.BytesIO(data)) as file:
            names = np.asarray(file["imgname"])
            shapes = {"part": (16, 2), "center": (2,), "scale": (), "normalize": ()}
            columns = {name: np.asarray(file[name], float) for name in shapes}
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{found}: damaged, or not MPII's list: {error}") from None
    for name, shape in shapes.items():
        if columns[name].shape != (len(names), *shape):
            raise DataError(f"{found}: {name} has shape {columns[name].shape}, expected {(len(names), *shape)}")
    for number, (name, points, centre, scale, size) in enumerate(zip(names, *columns.values(), strict=True), 1):
        # Names are bytes, or rows of characters as numbers; an unlabelled joint lies at or below 0.
        try:
            text = (bytes(name.astype(np.uint8)) if isinstance(name, np.ndarray) else name).decode()
        except (UnicodeDecodeError, AttributeError) as error:
            raise DataError(f"{found}: person number {number}: no picture's name: {error}") from None
        yield text.strip("\x00 "), points, (points > 0).all(-1), centre, float(scale), float(size)


def _from_json(found: PictureFile, data: bytes):
    content = parse_json(data, found)
    if not isinstance(content, list):
        raise DataError(f"{found}: expected a list of people")
    for number, person in enumerate(content, 1):
        try:
            points, visible = np.array(person["joints"], float), np.array(person["joints_vis"], float) > 0
            if points.shape != (16, 2) or visible.shape != (16,):
                raise ValueError(f"expected 16 joints, got {points.shape} and {visible.shape}")
            centre, scale = np.array(person["center"], float), float(person["scale"])
            if centre.shape != (2,):
                raise ValueError(f"expected two numbers in center, got {person['center']!r}")
            yield str(person["image"]), points, visible, centre, scale, float("nan")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{found}: person number {number}: {type(error).__name__}: {error}") from None
