"""Anybody's human detector as an ONNX file, run by ONNX Runtime: ``detect(image) -> Boxes``.

Files are told apart by their inputs and outputs, or by a layout that is named:

* ``yolox``: one output (1, n, 5 + classes), not decoded: offsets and logarithms of sides on grids of stride 8, 16 and
  32; BGR from 0 to 255.
* ``yolo``: one output (1, 4 + classes, n) of centres, sides and scores of classes, as YOLOv8 and later write it.
* ``end2end``: one output (1, n, 6) of corners, score and class, after an NMS of its own, as YOLOv10 writes it.
* ``detr``: labels, boxes (corners in the picture) and scores, with the picture's size as a second input, as RT-DETR and
  D-FINE are exported.
* ``boxes``: boxes (corners, pixels of the input), labels and scores, as torchvision's SSD and Faster R-CNN.
* ``tensorflow``: detection_boxes (y0 x0 y1 x1 over the sides), detection_classes and detection_scores, of an SSD of
  TensorFlow; takes uint8, channels last.

Boxes of such files have their edges between pixels: 0 is the picture's left edge, which is -0.5 here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from rmpe_jax.errors import MissingExtraError
from rmpe_jax.predict.detectors import THRESHOLD, DetectorError, best_boxes
from rmpe_jax.records import Boxes

# Of files that leave the size of their input open.
_SIDE = 640
# Raw boxes of the same person: those that overlap more are one.
_OVERLAP = 0.7
_GREY = 114
#: The number of the class person where a file does not say: COCO's first of 80, or of 91 with a background.
PERSON = {"yolox": 0, "yolo": 0, "end2end": 0, "detr": 0, "boxes": 1, "tensorflow": 1}
LAYOUTS = tuple(PERSON)

#: Corners (n, 4) in the file's own frame, scores (n,), classes (n,).
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class OnnxDetector:
    """A detector read from a file; called with a picture it gives the people's boxes, best first."""

    def __init__(
        self,
        path: str | Path,
        *,
        layout: str | None = None,
        person: int | None = None,
        threshold: float = THRESHOLD,
        capacity: int = 100,
    ):
        """Reads the file.

        Args:
            path: of the ONNX file.
            layout: one of ``LAYOUTS``; by default told from the inputs and outputs.
            person: number of the class person; by default that of COCO in the layout.
            threshold: boxes of a lower score are left out.
            capacity: most boxes of a picture; the best are kept.

        Raises:
            DetectorError: the file is missing, no ONNX, or its outputs are not known; the message shows them.
            MissingExtraError: onnxruntime is not installed.
        """
        self.path, self._threshold, self.capacity = Path(path), threshold, capacity
        if layout is not None and layout not in LAYOUTS:
            raise DetectorError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
        self._session = _session(self.path)
        self.layout = layout or self._recognised()
        self._person = PERSON[self.layout] if person is None else person
        (self._input, *others), self._outputs = self._session.get_inputs(), self._session.get_outputs()
        self._size_input = others[0] if others else None

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Boxes:
        """People's boxes.

        Args:
            image: uint8 RGB.

        Raises:
            DetectorError: the file does not run on the picture, or gives other outputs than its layout has.
        """
        size = self._input_size()
        seen, scale, offset = _PREPARED[self.layout](image, size)
        values = self._run(seen, image)
        try:
            corners, score, kind = _READ[self.layout](values, size)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise DetectorError(f"{self.path}: its outputs are not those of {self.layout} ({error}); {self}") from None
        if self.layout == "detr":
            scale, offset = np.ones(2), np.zeros(2)  # boxes are in the picture already
        corners = ((corners.reshape(-1, 2, 2) - offset) / scale - 0.5).reshape(-1, 4)
        # Raw outputs hold each person many times.
        overlap = _OVERLAP if self.layout in ("yolox", "yolo") else None
        settings = {"person": self._person, "threshold": self._threshold, "capacity": self.capacity}
        return best_boxes(corners, score, kind, image.shape[:2], overlap=overlap, **settings)

    def __str__(self) -> str:
        """The signature: inputs and outputs with their types and shapes."""

        def each(values: Any) -> str:
            return ", ".join(f"{value.name} {value.type} {value.shape}" for value in values)

        return f"inputs: {each(self._session.get_inputs())}; outputs: {each(self._session.get_outputs())}"

    def _input_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that the file takes."""
        shape = list(self._input.shape)
        sides = shape[1:3] if self.layout == "tensorflow" else shape[-2:]
        height, width = (side if isinstance(side, int) and side > 0 else _SIDE for side in sides)
        return height, width

    def _run(self, seen: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
        seen = seen if len(self._input.shape) == 4 else seen[0]
        given: dict[str, np.ndarray] = {self._input.name: seen.astype(_dtype(self._input.type))}
        if self._size_input is not None:
            height, width = image.shape[:2]
            given[self._size_input.name] = np.array([[width, height]], _dtype(self._size_input.type))
        try:
            values = self._session.run(None, given)
        except Exception as error:  # ONNX Runtime's own, of many kinds
            raise DetectorError(f"{self.path}: does not run: {str(error).splitlines()[0]}; {self}") from None
        return {output.name: np.asarray(value) for output, value in zip(self._outputs, values, strict=True)}

    def _recognised(self) -> str:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names, shape = {output.name for output in outputs}, list(outputs[0].shape)
        if {"detection_boxes", "detection_scores", "detection_classes"} <= names:
            return "tensorflow"
        if {"labels", "boxes", "scores"} <= names:
            return "detr" if len(inputs) > 1 else "boxes"
        if len(outputs) == 1 and len(shape) == 3:
            if shape[2] == 6:
                return "end2end"
            if isinstance(shape[1], int) and isinstance(shape[2], int):
                return "yolo" if shape[1] < shape[2] else "yolox"
        known = ", ".join(LAYOUTS)
        raise DetectorError(f"{self.path}: not one of the known layouts ({known}): name one, if it is; {self}")


def _dtype(kind: str) -> Any:
    """NumPy's type for ONNX Runtime's name of one, such as tensor(float)."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "detectors", "a detector as an ONNX file") from None
    if not path.is_file():
        raise DetectorError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # ONNX Runtime's own, of many kinds
        raise DetectorError(f"{path}: not a model that ONNX Runtime reads: {str(error).splitlines()[0]}") from None


# What a file is given: the picture as (1, 3, h, w) or (1, h, w, 3), and where it lies there: pixels = scale x + offset.


def _letterboxed(
    image: np.ndarray, size: tuple[int, int], *, centred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole picture at its own aspect, the rest grey, (h, w, 3)."""
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    inner = (max(round(width * ratio), 1), max(round(height * ratio), 1))
    left, top = ((size[1] - inner[0]) // 2, (size[0] - inner[1]) // 2) if centred else (0, 0)
    canvas = np.full((*size, 3), _GREY, np.uint8)
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    return canvas, np.array(inner) / [width, height], np.array([left, top])


def _stretched(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seen = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return seen, np.array(size[::-1]) / image.shape[1::-1], np.zeros(2)


def _channels_first(picture: np.ndarray, largest: float) -> np.ndarray:
    return picture.transpose(2, 0, 1)[None].astype(np.float32) / largest


def _for_yolox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    canvas, scale, offset = _letterboxed(image, size, centred=False)
    return _channels_first(canvas[..., ::-1], 1.0), scale, offset


def _for_yolo(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    canvas, scale, offset = _letterboxed(image, size, centred=True)
    return _channels_first(canvas, 255.0), scale, offset


def _for_detr(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seen, scale, offset = _stretched(image, size)
    return _channels_first(seen, 255.0), scale, offset


def _for_tensorflow(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seen, scale, offset = _stretched(image, size)
    return seen[None], scale, offset


_PREPARED: dict[str, Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "yolox": _for_yolox,
    "yolo": _for_yolo,
    "end2end": _for_yolo,
    "detr": _for_detr,
    "boxes": _for_detr,
    "tensorflow": _for_tensorflow,
}


# What a file gives.


def _only(values: dict[str, np.ndarray]) -> Float[np.ndarray, "n m"]:
    (output,) = values.values()
    return np.asarray(output[0], np.float32)


def _corners(centre: np.ndarray, side: np.ndarray) -> np.ndarray:
    return np.concatenate([centre - side / 2, centre + side / 2], 1)


def _of_classes(scores: Float[np.ndarray, "n c"]) -> tuple[np.ndarray, Int[np.ndarray, "n"]]:
    kind = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
    return scores[np.arange(len(scores)), kind], kind


def _read_yolox(values: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    rows = _only(values)
    grids = []
    for stride in (8, 16, 32):
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
        grids.append(np.stack([x, y, np.full_like(x, stride)], -1).reshape(-1, 3))
    cell = np.concatenate(grids)
    if len(cell) != len(rows):
        raise ValueError(f"{len(rows)} rows, and {len(cell)} cells of an input of {size}")
    with np.errstate(over="ignore"):
        corners = _corners((rows[:, :2] + cell[:, :2]) * cell[:, 2:], np.exp(rows[:, 2:4]) * cell[:, 2:])
    score, kind = _of_classes(rows[:, 5:])
    return corners, score * rows[:, 4], kind


def _read_yolo(values: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    rows = _only(values).T
    return _corners(rows[:, :2], rows[:, 2:4]), *_of_classes(rows[:, 4:])


def _read_end2end(values: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    rows = _only(values)
    return rows[:, :4], rows[:, 4], rows[:, 5].round()


def _read_named(values: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    return values["boxes"].reshape(-1, 4), values["scores"].ravel(), values["labels"].ravel()


def _read_tensorflow(values: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    corners = values["detection_boxes"].reshape(-1, 4)[:, [1, 0, 3, 2]] * np.tile(size[::-1], 2)
    return corners, values["detection_scores"].ravel(), values["detection_classes"].ravel().round()


_READ: dict[str, Callable[..., Found]] = {
    "yolox": _read_yolox,
    "yolo": _read_yolo,
    "end2end": _read_end2end,
    "detr": _read_named,
    "boxes": _read_named,
    "tensorflow": _read_tensorflow,
}
