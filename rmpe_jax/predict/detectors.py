"""Human detectors behind one signature: ``detect(image) -> Boxes``, in pixels of the picture.

A file of boxes takes the place of a detector by the name of the picture instead (``BoxesFile``).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from rmpe_jax.data.files import DataError, read_json
from rmpe_jax.errors import RmpeError
from rmpe_jax.records import Boxes

Detector = Callable[[np.ndarray], Boxes]

#: Redundant by design, as in the paper's evaluation: what is false gets a pose of low score, duplicates the pose NMS.
THRESHOLD = 0.09
# Of a coordinate in a detection file, pixels: no picture has it, and float32 holds it.
_LARGEST_NUMBER = 1e9

# OpenCV's person template is 64 x 128 pixels around a person 96 pixels tall. These shares of the window are the
# median sizes of the COCO people (train2017) that a window lies on.
_PERSON_IN_WINDOW = np.array([0.63, 0.80])


# What a pose's score times that of its box of HOG's must reach: see the card of the shipped estimator.
_HOG_NEEDS = 0.3


class DetectorError(RmpeError, ValueError):
    """A detector that cannot be used; the message names it."""


def detect_with_hog(
    image: np.ndarray, *, longest_side: int = 960, hit_threshold: float = 0.0, grouping: int = 2
) -> Boxes:
    """OpenCV's HOG person detector (Dalal and Triggs 2005): needs no download, finds upright, whole people.

    It is weak by today's measure: hand over the boxes of a better detector where there is one.

    Args:
        image: uint8 RGB, (height, width, 3).
        longest_side: the picture is resized to this before the search; people shorter than about 96 pixels there are
            not found.
        hit_threshold: of the detector's linear score. Low by design: false alarms get poses of low score, and
            duplicates are the pose NMS's work.
        grouping: a box stands for more than so many windows that overlap; 0 gives every window, so that nearly all
            duplicates are left to the pose NMS.

    Returns:
        Boxes around the person inside the detector's window; score = 1 / (1 + exp(-2 (linear score - 0.5))).
    """
    height, width = image.shape[:2]
    scale = longest_side / max(height, width)
    size = (round(width * scale), round(height * scale))
    if min(size) < 1:
        return Boxes.from_arrays([])
    # A margin of a quarter window lets people at the picture's edge be found; smaller pictures than the window need it.
    margin = 32
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = cv2.copyMakeBorder(small, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    if small.shape[0] < 128 or small.shape[1] < 64:
        return Boxes.from_arrays([])
    hog = cv2.HOGDescriptor()
    hog.setSVMDetector(np.array(cv2.HOGDescriptor.getDefaultPeopleDetector()))
    windows, linear = hog.detectMultiScale(
        cv2.cvtColor(small, cv2.COLOR_RGB2BGR),
        hitThreshold=hit_threshold,
        winStride=(8, 8),
        padding=(0, 0),
        scale=1.05,
        groupThreshold=grouping,
    )
    windows = (np.asarray(windows, np.float32).reshape(-1, 4) - [margin, margin, 0, 0]) / scale
    centre, half = windows[:, :2] + windows[:, 2:] / 2, windows[:, 2:] * _PERSON_IN_WINDOW / 2
    score = 1 / (1 + np.exp(-2 * (np.asarray(linear).reshape(-1) - 0.5)))
    xyxy = np.clip(np.concatenate([centre - half, centre + half], 1), -0.5, np.tile([width, height], 2) - 0.5)
    return Boxes.from_arrays(xyxy, score)


def needed_score(detector: Detector) -> float:
    """What a pose's score times that of its box must reach, so that most of a detector's false alarms go.

    Found with the shipped estimator; 0 for a detector of which nothing is known.
    """
    return _HOG_NEEDS if detector is detect_with_hog else getattr(detector, "needed_score", 0.0)


def check_image(image: Any) -> None:
    """Raises ValueError for anything but a picture as uint8 RGB, (height, width, 3), with pixels."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        described = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a picture as uint8 RGB of shape (height, width, 3), got {described}")
    if 0 in image.shape:
        raise ValueError(f"expected a picture with pixels, got shape {image.shape}")


def every_window_of_hog(image: np.ndarray, *, longest_side: int = 960) -> Boxes:
    """Every window of ``detect_with_hog``, at a threshold that gives more people and more boxes of each.

    Redundant by design: what proposals generators learn from.

    Args:
        image: uint8 RGB, (height, width, 3).
        longest_side: see ``detect_with_hog``.
    """
    return detect_with_hog(image, longest_side=longest_side, hit_threshold=-0.4, grouping=0)


def best_boxes(
    corners: Float[np.ndarray, "n 4"],
    score: Float[np.ndarray, "n"],
    kind: np.ndarray,
    size: tuple[int, int],
    *,
    person: int,
    threshold: float,
    capacity: int,
    overlap: float | None = None,
) -> Boxes:
    """Of a detector's boxes those of people, cut at the picture's edges, best first.

    Boxes that are not finite, empty or outside the picture are left out, and so are scores that are no number.

    Args:
        corners: x0 y0 x1 y1, pixels of the picture.
        score: of each.
        kind: (n,) class of each, a whole number of any type.
        size: (height, width) of the picture.
        person: the class of people.
        threshold: boxes of a lower score are left out.
        capacity: most boxes that stay.
        overlap: intersection over union above which the lower one of two goes; None for as many as there are.
    """
    height, width = size
    corners = np.clip(corners, -0.5, np.tile([width, height], 2) - 0.5)
    usable = (kind == person) & (score >= threshold) & np.isfinite(corners).all(1)
    usable &= (corners[:, 2:] > corners[:, :2]).all(1)
    corners, score = corners[usable], np.clip(score[usable], 0, 1)
    if overlap is not None and len(score):
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        kept = np.asarray(cv2.dnn.NMSBoxes(sides.tolist(), score.tolist(), 0.0, overlap), int).ravel()
        corners, score = corners[kept], score[kept]
    order = np.argsort(-score, kind="stable")[:capacity]
    return Boxes.from_arrays(corners[order], score[order])


@dataclasses.dataclass(frozen=True)
class BoxesFile:
    """People's boxes read from a detection file in COCO's result format.

    The file is a list of ``{"image_id": ..., "category_id": 1, "bbox": [x, y, width, height], "score": ...}``; entries
    of other categories are left out. A picture is recognised by ``file_name`` where an entry has one, else by
    ``image_id``: the path as given, the file name, its stem, or the number that the stem spells.
    """

    path: Path
    entries: dict[str, list[tuple[list[float], float]]]  # box and score, by picture as the file calls it
    image_ids: dict[str, int]  # numeric ids by picture, where the file has them
    problems: list[str]  # one line per entry that was left out because it is broken

    @property
    def pictures(self) -> set[str]:
        """What the file calls its pictures."""
        return set(self.entries)

    def of_picture(self, path: Path) -> Boxes | None:
        """The boxes of a picture, None where the file does not mention it."""
        names = [name for name in self.names_of(path) if name in self.entries]
        found = [entry for name in names for entry in self.entries[name]]
        return Boxes.from_arrays([box for box, _ in found], [score for _, score in found]) if names else None

    def image_id(self, path: Path) -> int | None:
        """The number under which the file knows a picture."""
        return next((self.image_ids[name] for name in self.names_of(path) if name in self.image_ids), None)

    @staticmethod
    def names_of(path: Path) -> list[str]:
        """What a file may call a picture: its path, its name, its stem, or the number that the stem spells."""
        number = [str(int(path.stem))] if path.stem.isdecimal() else []
        return list(dict.fromkeys([str(path), path.name, path.stem, *number]))


def read_boxes(path: str | Path, *, threshold: float = 0.0) -> BoxesFile:
    """Reads a detection file; broken entries are left out and described in ``problems``.

    Args:
        path: of the file.
        threshold: boxes of a lower score are left out too.

    Raises:
        DataError: the file is missing, is malformed JSON (with the line), or is not a list of objects.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of detections, got {type(content).__name__}")
    found: dict[str, list[tuple[list[float], float]]] = {}
    image_ids: dict[str, int] = {}
    problems = []
    for number, entry in enumerate(content, 1):
        try:
            name, box, score = _read_entry(entry)
        except ValueError as error:
            problems.append(f"{path}: detection {number}: {error}")
            continue
        if entry.get("category_id", 1) == 1 and score >= threshold:
            found.setdefault(name, []).append((box, score))
            if isinstance(entry.get("image_id"), int):
                image_ids[name] = entry["image_id"]
    return BoxesFile(path, found, image_ids, problems)


def _read_entry(entry: Any) -> tuple[str, list[float], float]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {type(entry).__name__}")
    name = entry.get("file_name", entry.get("image_id"))
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError("expected image_id (a number or a name) or file_name")
    box, score = entry.get("bbox", entry.get("box")), entry.get("score", 1.0)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise ValueError(f"bbox: expected four numbers, got {box!r}")
    if not all(abs(value) <= _LARGEST_NUMBER for value in box):
        raise ValueError(f"bbox: not finite, or too large: {box}")
    x, y, width, height = (float(value) for value in box)
    if width <= 0 or height <= 0:
        raise ValueError(f"bbox: width and height must be positive: {box}")
    if not _is_number(score) or not abs(score) < math.inf:
        raise ValueError(f"score: expected a finite number, got {score!r}")
    return str(name), [x, y, x + width, y + height], float(min(max(score, 0), 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
