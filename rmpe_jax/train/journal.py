"""What a training run writes down while it goes: lines in ``log.csv``, and the same for TensorBoard in ``events``.

Both go on after the step at which a resumed run starts: what a stopped run wrote beyond it is dropped from the lines,
and TensorBoard is told to drop it. What has been written is on disk when the call returns.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from rmpe_jax.data.pipeline import Canvases
from rmpe_jax.draw import contact_sheet, draw_poses
from rmpe_jax.files import naming, replacing
from rmpe_jax.skeleton import Skeleton

# Column of log.csv -> how it is written, and its name in TensorBoard. Nine digits tell any two float32 apart.
_COLUMNS = {
    "loss": (".9g", "train/loss"),
    "accuracy": (".6g", "train/accuracy"),
    "learning_rate": (".6g", "train/learning_rate"),
    "gradient_norm": (".6g", "train/gradient_norm"),
    "images_per_second": (".6g", "train/images_per_second"),
    "validation_pck": (".6g", "validation/pck"),
    "left_out": (".6g", "train/left_out"),
    "validation_recall": (".6g", "validation/recall"),
}
_HEADER = ["step", *_COLUMNS]


class Journal:
    """Writes the log of a run, complete after each call; used as a context manager.

    Nothing of TensorBoard's is imported or opened before the first line or picture.

    Args:
        folder: of the run; made where it is missing.
        first: steps that are done. Lines of later steps, and a half-written last one, are dropped from ``log.csv``.
    """

    def __init__(self, folder: Path, first: int):
        self._path, self._folder, self._first, self._events = folder / "log.csv", folder / "events", first, None
        lines = [_HEADER, *_lines_until(self._path, first)]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(",".join(line) + "\n" for line in lines))

    def __enter__(self) -> "Journal":
        self._exits = contextlib.ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def write(
        self,
        step: int,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        images_per_second: float | None = None,
        validation_pck: float | None = None,
        validation_recall: float | None = None,
        left_out: int | float | None = None,
        learning_rate: float | None = None,
        gradient_norm: float | None = None,
    ) -> None:
        """Adds a line; what is None stays empty in it.

        Args:
            step: steps that are done.
            loss: of the batch of the last of them.
            accuracy: share of its joints that are right.
            images_per_second: people trained on, over all devices.
            validation_pck: PCK@0.2 on the validation people.
            validation_recall: share of the validation people whom a person detector finds.
            left_out: records that could not be used so far.
            learning_rate: of the last step.
            gradient_norm: of the last step, before it is clipped.
        """
        values = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "images_per_second": images_per_second,
            "validation_pck": validation_pck,
            "validation_recall": validation_recall,
            "left_out": left_out,
        }
        given = {name: float(value) for name, value in values.items() if value is not None}
        texts = (format(given[name], _COLUMNS[name][0]) if name in given else "" for name in _COLUMNS)
        with naming(self._path), self._path.open("a") as file:
            file.write(",".join([str(step), *texts]) + "\n")
        self._add(step, [{"tag": _COLUMNS[name][1], "simple_value": value} for name, value in given.items()])

    def pictures(self, step: int, tag: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Adds a picture, RGB, to what TensorBoard shows; lossless.

        Args:
            step: steps that are done.
            tag: its name, such as ``validation/poses``.
            image: such as ``prediction_sheet`` draws.
        """
        from tensorboardX.summary import image as image_summary

        self._add(step, image_summary(tag, image, dataformats="HWC").value)

    def _add(self, step: int, values: Any) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        with naming(self._folder):
            if self._events is None:
                self._events = self._exits.enter_context(_EventFile(self._folder, self._first))
            self._events.write(step=step, summary=Summary(value=values))


class _EventFile:
    """A new file of TensorBoard's events.

    Not tensorboardX's SummaryWriter: that one hands events to a thread through a queue for which its flush does not
    wait, and names its files by the second, so that a run resumed within it would overwrite its file.
    """

    def __init__(self, folder: Path, first: int):
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        # Readers take the files of a folder in the order of their names. The writer takes s3: and gs: at the beginning
        # of one for the address of a store, so it gets the whole path.
        self._records = RecordWriter(str(folder.absolute() / f"events.out.tfevents.{time.time_ns()}"))
        self.write(file_version="brain.Event:2")
        # Of earlier files, whatever has this step or a later one is void.
        self.write(step=first + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "_EventFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._records.close()

    def write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()


def _lines_until(path: Path, first: int) -> list[list[str]]:
    """The complete lines up to a step, in the columns of today whichever a file of an earlier version has."""
    text = path.read_text(errors="replace") if path.exists() else ""
    # A killed process leaves a line without its end, and "12" may be the beginning of 1200.
    header, *lines = [line.split(",") for line in text[: text.rfind("\n") + 1].splitlines()] or [[]]
    whole = [line for line in lines if len(line) == len(header) and line[0].isdecimal() and int(line[0]) <= first]
    named = [dict(zip(header, line, strict=True)) for line in whole]
    return [[line.get(name, "") for name in _HEADER] for line in named]


def prediction_sheet(
    canvases: Canvases, predicted: Float[np.ndarray, "n k 2"], skeleton: Skeleton, *, columns: int = 4
) -> UInt8[np.ndarray, "H W 3"]:
    """People's canvases side by side, each with its predicted pose and, as green rings, the labels.

    Nothing is drawn on the canvas of somebody who is not valid.

    Args:
        canvases: n people, at least one.
        predicted: their joints, pixels of the canvas; one that is not finite is left out.
        skeleton: of both.
        columns: canvases in a row.

    Returns:
        uint8 RGB.
    """
    unlimbed = dataclasses.replace(skeleton, limbs=())
    tiles = []
    for canvas, points, pose, labelled, valid in zip(
        canvases.canvas, canvases.points, predicted, canvases.labelled, canvases.valid, strict=True
    ):
        both, score = np.stack([pose, points]), np.stack([np.ones(len(pose)), labelled / 2]) * valid
        tile = draw_poses(canvas, both[:1], score[:1], skeleton)
        # Each pose has a colour of its own, and joints of low score are rings.
        tiles.append(draw_poses(tile, both, score, unlimbed, hidden_below=0.75))
    return contact_sheet(tiles, columns=columns)
