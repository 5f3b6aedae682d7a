"""COCO's annotations and results, as lists of dictionaries, packed into arrays over pictures and places in them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def select_records(
    annotations: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    picture_ids: Iterable[Any],
    *,
    category: int,
) -> tuple["Records", "Records"]:
    """Annotations and results of one category on some pictures, which are numbered in rising order of their ids.

    Annotations of other pictures are left out, and so is whatever has a ``category_id`` other than ``category``;
    without one it counts.

    Raises:
        ValueError: no picture; a result of another one.
    """
    place = {picture: row for row, picture in enumerate(sorted(set(picture_ids)))}
    if not place:
        raise ValueError("expected at least one picture")
    labels = Records("annotation", annotations, category, place)
    found = Records("result", results, category, place)
    if len(found.strangers):
        raise ValueError(f"result number {found.strangers[0]}: image_id: not one of the pictures")
    return labels, found


class Records:
    """Those of COCO's dictionaries that are of the category and on the pictures to evaluate."""

    def __init__(self, kind: str, records: Sequence[dict[str, Any]], category: int, place: dict[Any, int]):
        of_category = [record.get("category_id", category) == category for record in records]
        row = np.array([place.get(record.get("image_id"), -1) for record in records], int)
        chosen = np.array(of_category, bool) & (row >= 0)
        self.kind, self.pictures = kind, len(place)
        self.strangers = np.flatnonzero(np.array(of_category, bool) & (row < 0)) + 1
        self.numbers: list[int] = (np.flatnonzero(chosen) + 1).tolist()
        self.records = [records[number - 1] for number in self.numbers]
        self.row = row[chosen]

    def field(self, name: str, width: int, default: int | None = None) -> np.ndarray:
        """A field of every record: (n, width) float64."""
        try:
            values = np.array([record.get(name, default) for record in self.records], float)
            values = values.reshape(len(self.records), width)
        except (TypeError, ValueError):
            values = np.full(1, np.nan)
        if np.isfinite(values).all():
            return values
        # Something is wrong: find out what, record by record.
        numbered = zip(self.numbers, self.records, strict=True)
        return np.array([self._checked(number, record, name, width, default) for number, record in numbered])

    def _checked(self, number: int, record: dict[str, Any], name: str, width: int, default: int | None):
        try:
            values = np.array(record.get(name, default), float).reshape(-1)
        except (TypeError, ValueError):
            values = np.empty(0)
        if len(values) != width or not np.isfinite(values).all():
            got = f"{len(values)} of them" if len(values) != width and len(values) > 1 else repr(record.get(name))
            message = f"expected {width} finite number{'s' * (width > 1)}, got {got:.60}"
            raise ValueError(f"{self.kind} number {number}: {name}: {message}")
        return values

    def corners(self) -> np.ndarray:
        """``bbox`` as x0 y0 x1 y1: (n, 4)."""
        box = self.field("bbox", 4)
        return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1)

    def crowds(self) -> np.ndarray:
        """Which annotations are crowds: (n,) bool."""
        return self.field("iscrowd", 1, default=0)[:, 0] != 0

    def fullest(self) -> int:
        """How many records the fullest picture has; one at least, since an array needs a place."""
        return int(np.bincount(self.row, minlength=1).max(initial=1))

    def placed(self, fields: dict[str, np.ndarray], capacity: int | None = None) -> dict[str, Any]:
        """Fields of all records as arrays over pictures and places, zero where there is no record; ``valid`` tells.

        Args:
            fields: by name, the first axis over the records.
            capacity: places in a picture; by default as many as the fullest one needs.

        Raises:
            ValueError: a picture has more.
        """
        capacity = self.fullest() if capacity is None else capacity
        if self.fullest() > capacity:
            raise ValueError(f"expected at most {capacity} people in a picture, got {self.fullest()}")
        return self._placed(fields, np.arange(len(self.row)), capacity)

    def best_placed(self, fields: dict[str, np.ndarray], capacity: int) -> dict[str, Any]:
        """The same, the highest ``score`` first; of more than the capacity in one picture the best are kept."""
        return self._placed(fields, np.argsort(-fields["score"], kind="stable"), capacity)

    def _placed(self, fields: dict[str, np.ndarray], order: np.ndarray, capacity: int) -> dict[str, Any]:
        slot = _slots(self.row[order])
        order, slot = order[slot < capacity], slot[slot < capacity]
        fields = fields | {"valid": np.ones(len(self.row), bool)}
        shape = (self.pictures, capacity)
        placed = {name: np.zeros((*shape, *values.shape[1:]), values.dtype) for name, values in fields.items()}
        for name, values in fields.items():
            placed[name][self.row[order], slot] = values[order]
        return placed


def _slots(row: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the first, second, third record of each picture."""
    order = np.argsort(row, kind="stable")
    slot = np.empty(len(row), int)
    slot[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return slot
