import csv
import errno
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from rmpe_jax.data.pipeline import empty_canvases
from rmpe_jax.skeleton import LSP_14
from rmpe_jax.train.journal import Journal, prediction_sheet

COLUMNS = "step,loss,accuracy,learning_rate,gradient_norm,images_per_second,validation_pck,left_out"
COLUMNS += ",validation_recall"


def events_in(path):
    """The events of one file, with their checksums checked."""
    data, events, place = path.read_bytes(), [], 0
    while place < len(data):
        header = data[place : place + 8]
        (length,) = struct.unpack("<Q", header)
        content = data[place + 12 : place + 12 + length]
        sums = data[place + 8 : place + 12], data[place + 12 + length : place + 16 + length]
        assert sums == tuple(struct.pack("<I", masked_crc32c(part)) for part in (header, content))
        events.append(Event.FromString(content))
        place += 16 + length
    return events


def event_files(folder):
    return sorted((folder / "events").iterdir()) if (folder / "events").exists() else []


def scalars_in(path):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events_in(path)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def rows_in(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Lines


def test_a_new_log_has_its_columns_and_no_lines(tmp_path):
    with Journal(tmp_path / "new", 0):
        assert (tmp_path / "new" / "log.csv").read_text() == COLUMNS + "\n"


def test_a_line_has_what_was_given_in_its_column(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.write(50, loss=0.25, accuracy=1 / 3, images_per_second=1234.5678, left_out=2, learning_rate=1e-3)
        journal.write(50, validation_pck=0.5)
        journal.write(100, gradient_norm=float("nan"), left_out=123456)
        journal.write(150, validation_recall=0.75)
    lines = (tmp_path / "log.csv").read_text().splitlines()[1:]
    assert lines == ["50,0.25,0.333333,0.001,,1234.57,,2,", "50,,,,,,0.5,,", "100,,,,nan,,,123456,", "150,,,,,,,,0.75"]


def test_equal_losses_have_equal_texts_and_others_have_not(tmp_path):
    first = np.float32(0.1)
    losses = [first, np.nextafter(first, np.float32(1)), np.nextafter(first, np.float32(0)), np.float32(3.4e38)]
    with Journal(tmp_path, 0) as journal:
        for step, loss in enumerate(losses):
            journal.write(step, loss=float(loss))
    assert [np.float32(row["loss"]) for row in rows_in(tmp_path)] == losses


def test_a_line_is_on_disk_when_it_has_been_written(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.write(1, loss=0.5)
        assert len(rows_in(tmp_path)) == 1
        assert scalars_in(*event_files(tmp_path)) == [(1, "train/loss", 0.5)]


def test_a_resumed_log_drops_the_lines_of_later_steps(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for step in (10, 20, 30):
            journal.write(step, loss=step / 10)
            journal.write(step, validation_pck=0.5)
    with Journal(tmp_path, 20) as journal:
        assert [row["step"] for row in rows_in(tmp_path)] == ["10", "10", "20", "20"]
        journal.write(30, loss=7.0)
    assert [(row["step"], row["loss"]) for row in rows_in(tmp_path)][-1] == ("30", "7")


@pytest.mark.parametrize(
    "rest", ["12", "1", "40,0.5,0.1,,,", "40,0.5,0.1,,,,,0,", "\x00\x00", "", "word,,,,,,,,\n", "\n\n"]
)
def test_a_half_written_line_is_dropped(tmp_path, rest):
    (tmp_path / "log.csv").write_text(f"{COLUMNS}\n10,0.5,,,,,,,\n{rest}")
    with Journal(tmp_path, 40) as journal:
        journal.write(50, loss=0.25)
    assert (tmp_path / "log.csv").read_text().splitlines() == [COLUMNS, "10,0.5,,,,,,,", "50,0.25,,,,,,,"]


@pytest.mark.parametrize("content", ["", "step,lo", "\n"])
def test_a_log_without_a_whole_header_begins_anew(tmp_path, content):
    (tmp_path / "log.csv").write_text(content)
    with Journal(tmp_path, 10):
        assert (tmp_path / "log.csv").read_text() == COLUMNS + "\n"


def test_bytes_that_are_no_text_do_not_stop_a_resume(tmp_path):
    (tmp_path / "log.csv").write_bytes(f"{COLUMNS}\n10,0.5,,,,,,,\n".encode() + b"\xff\xfe\x80")
    with Journal(tmp_path, 10):
        assert [row["step"] for row in rows_in(tmp_path)] == ["10"]


def test_lines_of_a_version_with_fewer_columns_keep_their_meaning(tmp_path):
    (tmp_path / "log.csv").write_text(
        "step,loss,accuracy,images_per_second,validation_pck,left_out\n10,0.5,0.25,99,,0\n10,,,,0.125,\n"
    )
    with Journal(tmp_path, 10):
        assert (tmp_path / "log.csv").read_text().splitlines()[1:] == ["10,0.5,0.25,,,99,,0,", "10,,,,,,0.125,,"]


# TensorBoard's events


def test_what_is_logged_is_there_for_tensorboard_under_its_names(tmp_path):
    values = {
        "loss": 0.5,
        "accuracy": 0.25,
        "learning_rate": 0.125,
        "gradient_norm": 2.0,
        "images_per_second": 64.0,
        "left_out": 3,
    }
    with Journal(tmp_path, 0) as journal:
        journal.write(5, **values)
        journal.write(5, validation_pck=0.75)
        journal.write(5, validation_recall=0.625)
    found = scalars_in(*event_files(tmp_path))
    assert {step for step, *_ in found} == {5}
    assert {tag: value for _, tag, value in found} == {
        **{f"train/{name}": value for name, value in values.items()},
        "validation/pck": 0.75,
        "validation/recall": 0.625,
    }


def test_a_picture_is_there_without_loss(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with Journal(tmp_path, 0) as journal:
        journal.pictures(7, "validation/poses", image)
        (path,) = event_files(tmp_path)
        event = events_in(path)[-1]
    (value,) = event.summary.value
    assert (event.step, value.tag, value.image.height, value.image.width) == (7, "validation/poses", 20, 30)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), image)
    assert rows_in(tmp_path) == []


@pytest.mark.parametrize("first", [0, 20])
def test_a_file_of_events_voids_what_earlier_ones_say_of_later_steps(tmp_path, first):
    with Journal(tmp_path, first) as journal:
        journal.write(first + 10, loss=0.5)
    version, start, line = events_in(*event_files(tmp_path))
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, first + 1)
    assert line.step == first + 10 and line.wall_time >= version.wall_time > 0


def test_a_resumed_run_adds_a_file_and_leaves_the_earlier_ones(tmp_path):
    for first in (0, 10, 20):  # all within a second
        with Journal(tmp_path, first) as journal:
            journal.write(first + 10, loss=float(first))
    assert [scalars_in(path) for path in event_files(tmp_path)] == [
        [(first + 10, "train/loss", first)] for first in (0, 10, 20)
    ]


def test_no_file_of_events_is_opened_before_there_is_something_to_say(tmp_path):
    with Journal(tmp_path, 0):
        pass
    assert event_files(tmp_path) == []


def test_a_process_that_is_killed_loses_nothing_that_was_written(tmp_path):
    code = (
        "import os, sys, pathlib, rmpe_jax.train.journal as journal\n"
        "assert 'tensorboardX' not in sys.modules\n"
        "log = journal.Journal(pathlib.Path(sys.argv[1]), 0).__enter__()\n"
        "log.write(1, loss=0.5)\n"
        "log.write(2, loss=0.25)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], cwd=root, capture_output=True)
    assert (done.returncode, done.stderr) == (-9, b"")
    assert [row["loss"] for row in rows_in(tmp_path)] == ["0.5", "0.25"]
    assert scalars_in(*event_files(tmp_path)) == [(1, "train/loss", 0.5), (2, "train/loss", 0.25)]


# Pictures


def people(count, side=64):
    canvases = empty_canvases(count, side, 14)
    canvases.points[:] = np.random.default_rng(0).uniform(8, side - 8, canvases.points.shape)
    canvases.labelled[:] = True
    canvases.valid[:] = True
    return canvases


def test_a_sheet_shows_as_many_canvases_in_a_row_as_asked_for():
    canvases = people(5)
    assert prediction_sheet(canvases, canvases.points, LSP_14).shape == (2 * 64, 4 * 64, 3)
    assert prediction_sheet(canvases, canvases.points, LSP_14, columns=2).shape == (3 * 64, 2 * 64, 3)


def test_predictions_are_drawn_as_limbs_and_labels_as_rings():
    canvases = people(1)
    canvases.points[:] = 20
    predicted = canvases.points + 25
    sheet = prediction_sheet(canvases, predicted, LSP_14)
    red, green, _ = sheet[45, 45].astype(int)
    assert red > green  # the prediction's disc
    assert not sheet[20, 20].any()  # the hole of the labels' ring
    ring = sheet[14:27, 14:27].reshape(-1, 3).astype(int).sum(0)
    assert ring[1] > ring[0] > 0 and not sheet[30:38, 30:38].any()


def test_a_joint_without_a_label_has_no_ring_and_nothing_is_drawn_on_who_is_not_valid():
    canvases = people(2)
    canvases.canvas[:] = 9
    canvases.labelled[0] = False
    canvases.valid[1] = False
    predicted = np.full((2, 14, 2), 60, np.float32)
    sheet = prediction_sheet(canvases, predicted, LSP_14)
    assert (sheet[:50, :50] == 9).all() and (sheet[55:, 55:64] != 9).any()
    assert (sheet[:, 64:] == 9).all()


def test_a_predicted_joint_that_is_not_finite_is_left_out():
    canvases = people(1)
    predicted = np.full((1, 14, 2), np.nan, np.float32)
    canvases.labelled[:] = False
    assert not prediction_sheet(canvases, predicted, LSP_14).any()


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path, 0) as journal:
        monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
        with pytest.raises(OSError, match=r"No space left on device: '.*log.csv'"):
            journal.write(1, loss=1.0)
