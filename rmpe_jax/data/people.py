"""The records that every data set yields: a picture with all the people labelled in it, and one person cut out of it.

Coordinates are (x, y) in pixels of the upright picture, pixel centres at integers.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from rmpe_jax.skeleton import Skeleton, convert_points


@runtime_checkable
class Picture(Protocol):
    """Where the pixels of a record are: in a file or an archive (``files``), in a prepared set, or to be drawn."""

    @property
    def name(self) -> str:
        """The name of the original file, without folders."""
        ...

    def read(self) -> np.ndarray:
        """Decodes to uint8 RGB, (height, width, 3); raises PictureError that names the picture."""
        ...

    def read_bytes(self) -> bytes:
        """The encoded file; raises PictureError that names the picture."""
        ...


@dataclasses.dataclass(frozen=True)
class LabelledPicture:
    """One picture and its p people, each with k joints in the data set's own skeleton; NumPy arrays, float64.

    What a set does not give is filled in by ``label``: an area from the box, NaN for heads, centres and scales.
    """

    picture: Picture
    image_id: int
    boxes: np.ndarray  # (p, 4) x0 y0 x1 y1
    points: np.ndarray  # (p, k, 2) x y; (0, 0) where not labelled
    visibility: np.ndarray  # (p, k) uint8: 0 not labelled, 1 labelled but hidden, 2 labelled and visible
    area: np.ndarray  # (p,) of the person's outline, square pixels
    crowd: np.ndarray  # (p,) bool: the box holds a crowd, not one person
    heads: np.ndarray  # (p, 4) x0 y0 x1 y1 of the head; NaN where the set has none
    centres: np.ndarray  # (p, 2) MPII's rough position; NaN elsewhere
    scale: np.ndarray  # (p,) MPII's person height over 200 pixels; NaN elsewhere
    group: np.ndarray  # (p,) int32: number of the group within the picture (MPII, WAF), -1 for none
    single: np.ndarray  # (p,) bool: stands apart from all others (MPII's single-person subset)
    crowd_index: float = float("nan")  # CrowdPose's measure of overlap, in [0, 1]

    def __len__(self) -> int:
        return len(self.boxes)


#: The fields that hold one entry for each person, and what an entry looks like.
PERSON_FIELDS: dict[str, tuple[type[np.generic], tuple[int | None, ...]]] = {
    "boxes": (np.float64, (4,)),
    "points": (np.float64, (None, 2)),
    "visibility": (np.uint8, (None,)),
    "area": (np.float64, ()),
    "crowd": (np.bool_, ()),
    "heads": (np.float64, (4,)),
    "centres": (np.float64, (2,)),
    "scale": (np.float64, ()),
    "group": (np.int32, ()),
    "single": (np.bool_, ()),
}


def label(
    picture: Picture, image_id: int, people: Sequence[dict[str, Any]], joints: int, **more: Any
) -> LabelledPicture:
    """Builds a record from one dictionary per person, filling in what a set does not give.

    Args:
        picture: where the pixels are.
        image_id: the set's number of the picture.
        people: each with ``points`` (k, 2) and ``visibility`` (k,), and any other of ``PERSON_FIELDS`` in the singular
            or as it is called there. Without ``boxes`` it is the one around the labelled joints and the head, 10 %
            larger: the joints alone miss the outer half of head, hands and feet, a detector's box does not.
        joints: k.
        more: ``crowd_index``.

    Raises:
        ValueError: naming the person, counted from 1, and the field.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in PERSON_FIELDS}
    for number, person in enumerate(people, 1):
        try:
            for name, value in _complete(person, joints).items():
                columns[name].append(value)
        except ValueError as error:
            raise ValueError(f"person {number}: {error}") from None
    arrays = {}
    for name, (kind, shape) in PERSON_FIELDS.items():
        full = tuple(joints if size is None else size for size in shape)
        arrays[name] = np.array(columns[name], kind).reshape(-1, *full)
    return LabelledPicture(picture, image_id, **arrays, **more)


_LIMB_THICKNESS = 0.1
_DEFAULTS = {
    "crowd": False,
    "heads": [np.nan] * 4,
    "centres": [np.nan] * 2,
    "scale": np.nan,
    "group": -1,
    "single": True,
}


def _complete(person: dict[str, Any], joints: int) -> dict[str, np.ndarray]:
    unknown = set(person) - set(PERSON_FIELDS)
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]}")
    filled = {**_DEFAULTS, **person}
    visibility = np.asarray(filled["visibility"])
    if visibility.shape != (joints,):
        raise ValueError(f"expected {joints} joints, got {visibility.size}")
    points = np.where((visibility > 0)[:, None], np.asarray(filled["points"], np.float64), 0)
    filled |= {"points": points, "visibility": visibility}
    if "boxes" not in filled:
        filled["boxes"] = _box_around(points[visibility > 0], np.asarray(filled["heads"], np.float64))
    box = np.asarray(filled["boxes"], np.float64)
    if "area" not in filled:
        filled["area"] = (box[2:] - box[:2]).prod()
    for name in ("points", "boxes", "area"):
        if not np.isfinite(filled[name]).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    if (box[2:] < box[:2]).any():
        raise ValueError(f"the box {box.tolist()} is inverted")
    return {name: np.asarray(filled[name]) for name in PERSON_FIELDS}


def _box_around(points: np.ndarray, head: np.ndarray) -> np.ndarray:
    inside = np.concatenate([points, head.reshape(2, 2)]) if np.isfinite(head).all() else points
    if not len(inside):
        return np.zeros(4)
    low, high = inside.min(0), inside.max(0)
    margin = (high - low) * (_LIMB_THICKNESS / 2)
    return np.concatenate([low - margin, high + margin])


def outside(box: np.ndarray, size: tuple[int, int]) -> str | None:
    """Says so where a box shares no pixel with a picture of (height, width).

    On the host, since the loader's worker processes stay clear of JAX; on the device it is ``boxes_on_picture``.
    """
    (x0, y0, x1, y1), (height, width) = (round(float(value), 1) for value in box), size
    if x1 > -0.5 and y1 > -0.5 and x0 < width - 0.5 and y0 < height - 0.5:
        return None
    return f"{[x0, y0, x1, y1]}, lies outside the picture of {width} x {height} pixels"


def misplaced_box(record: LabelledPicture, size: tuple[int, int]) -> str | None:
    """Names the first labelled person whose box lies outside the picture of (height, width); None where all are in."""
    for number, box in enumerate(record.boxes, 1):
        said = outside(box, size)
        if said and record.visibility[number - 1].any():
            return f"{record.picture}: the box of person {number}, {said}"
    return None


@dataclasses.dataclass(frozen=True)
class Person:
    """One labelled person, in the skeleton of the data set (or the one asked for)."""

    picture: Picture
    image_id: int
    box: np.ndarray  # (4,) x0 y0 x1 y1, pixels of the picture
    points: np.ndarray  # (k, 2) x y, pixels of the picture
    labelled: np.ndarray  # (k,) bool: the data set gives this joint
    area: float  # of the person's outline in square pixels, for OKS; of the box where the set gives none


def usable_rows(record: LabelledPicture, *, min_joints: int = 1) -> np.ndarray:
    """Rows of the people with at least ``min_joints`` labelled joints and a box of two pixels a side; no crowds."""
    sides = (record.boxes[:, 2:] - record.boxes[:, :2]).min(1, initial=np.inf)
    return np.flatnonzero(~record.crowd & ((record.visibility > 0).sum(1) >= min_joints) & (sides >= 2))


def people_in(pictures: Iterable[LabelledPicture], *, min_joints: int = 1) -> list[Person]:
    """Everybody in some pictures with at least ``min_joints`` labelled joints and a box of two pixels a side.

    Crowds are left out.
    """
    found = []
    for record in pictures:
        labelled = record.visibility > 0
        for row in usable_rows(record, min_joints=min_joints):
            box, points = record.boxes[row].astype(np.float32), record.points[row].astype(np.float32)
            found.append(Person(record.picture, record.image_id, box, points, labelled[row], float(record.area[row])))
    return found


def in_skeleton(people: Sequence[Person], source: Skeleton, target: Skeleton) -> list[Person]:
    """The same people with their joints in the order of another skeleton; what ``source`` lacks is not labelled."""
    if not people:
        return []
    points, labelled = np.stack([person.points for person in people]), np.stack([p.labelled for p in people])
    points, labelled = convert_points(jnp.asarray(points), jnp.asarray(labelled), source, target)
    rows = zip(people, np.asarray(points), np.asarray(labelled), strict=True)
    return [dataclasses.replace(person, points=there, labelled=given) for person, there, given in rows]
