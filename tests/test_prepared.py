import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from checks import assert_identical
from made_data import (
    coco_annotation,
    encoded,
    picture,
    write_coco,
    write_crowdpose,
    write_flic,
    write_mpii,
)

from rmpe_jax.data import prepare, prepared, synthetic
from rmpe_jax.data.builders import BUILDER_CLASSES
from rmpe_jax.data.files import DataError, MissingFileError, PictureFile
from rmpe_jax.data.flic import read_flic
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.people import PERSON_FIELDS
from rmpe_jax.data.prepare import prepare_data
from rmpe_jax.data.prepared import BUILDERS, RecordedPicture, finished_splits, is_prepared, read_prepared
from rmpe_jax.data.sets import DATA_SETS, read_data
from rmpe_jax.errors import MissingExtraError

BOX = (10.0, 5.0, 60.0, 90.0)


@pytest.fixture(autouse=True)
def few_drawn(monkeypatch):
    monkeypatch.setattr(synthetic, "SYNTHETIC_PICTURES", {"train": 6, "val": 2})


@pytest.fixture
def small_files(monkeypatch):
    """Four pictures in a file, two in a write."""
    monkeypatch.setattr(prepare, "_PICTURES_PER_FILE", 4)
    monkeypatch.setattr(prepare, "_PICTURES_PER_WRITE", 2)


def quiet(line):
    pass


def labels_of(records):
    """Everything but the pixels, as a tree."""
    about = [(r.image_id, r.picture.name, r.crowd_index) for r in records]
    return about, [{name: getattr(r, name) for name in PERSON_FIELDS} for r in records]


def assert_equal_records(records, source):
    """Labels and encoded pictures are the same in every bit, in the same order."""
    (about, arrays), (other, others) = labels_of(records), labels_of(source)
    assert str(about) == str(other)  # NaN is NaN here
    assert_identical(arrays, others)
    for one, two in zip(records, source, strict=True):
        assert one.picture.read_bytes() == two.picture.read_bytes()
        np.testing.assert_array_equal(one.picture.read(), two.picture.read())


def coco_of(folder, pictures, **changes):
    """COCO's val2017 with one person in each picture."""
    annotations = [coco_annotation(n, n, BOX) | changes.get(f"n{n}", {}) for n in range(1, pictures + 1)]
    write_coco(folder, pictures=pictures, annotations=annotations)
    return folder


# A prepared set is its source


def source_of(name, folder):
    if name == "coco":
        annotations = [coco_annotation(1, 1, BOX), coco_annotation(2, 1, BOX, iscrowd=1), coco_annotation(3, 3, BOX)]
        write_coco(folder, annotations=annotations, pictures=5)
    elif name == "crowdpose":
        write_crowdpose(folder)
    elif name == "mpii":
        write_mpii(folder, groups=True)
    return folder


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("coco", ["val2017"]),
        ("crowdpose", ["val"]),
        ("mpii", ["trainval", "test"]),
        ("synthetic", ["train", "val"]),
    ],
)
def test_a_prepared_set_equals_its_source(tmp_path, small_files, name, splits):
    source = source_of(name, tmp_path / "source")
    place = prepare_data(name, None if name == "synthetic" else source, tmp_path / "target", report=quiet)
    assert place == tmp_path / "target" / BUILDERS[name] / "1.0.0" and list(finished_splits(place)) == splits
    for split in splits:
        records = read_prepared(name, tmp_path / "target", split)
        assert_equal_records(records, DATA_SETS[name].read(source, split))
        assert all(isinstance(record.picture, RecordedPicture) for record in records)


def test_a_set_is_read_from_its_files_or_from_what_was_prepared_of_them(tmp_path):
    source, target = coco_of(tmp_path / "source", 2), tmp_path / "target"
    assert not is_prepared("coco", source)
    assert isinstance(read_data("coco", source, "val2017")[0].picture, PictureFile)
    prepare_data("coco", source, target, report=quiet)
    assert is_prepared("coco", target) and not is_prepared("mpii", target)
    assert_equal_records(read_data("coco", target, "val2017"), read_data("coco", source, "val2017"))


def test_checksums_name_what_was_written(tmp_path, small_files):
    place = prepare_data("coco", coco_of(tmp_path, 6), tmp_path / "target", report=quiet)
    about = json.loads((place / "checksums.json").read_text())["val2017"]
    assert (about["pictures"], about["people"], about["left_out"]) == (6, 6, 0)
    assert sorted(about["files"]) == [
        "coco_keypoints-val2017.array_record-00000",
        "coco_keypoints-val2017.array_record-00001",
        "labels-val2017.npz",
    ]
    assert all(len(file["sha256"]) == 64 and file["bytes"] > 0 for file in about["files"].values())


def test_tfds_itself_opens_a_prepared_set(tmp_path, small_files):
    place = prepare_data("coco", coco_of(tmp_path, 6), tmp_path / "target", report=quiet)
    builder = prepared.import_tfds().builder_from_directory(place)
    rows = builder.as_data_source("val2017")
    assert builder.info.splits["val2017"].num_examples == len(rows) == 6
    assert rows[4]["image"].shape == (96, 160, 3) and rows[4]["name"].decode() == "000000000005.jpg"


@pytest.mark.slow
def test_preparing_and_reading_never_import_tensorflow(tmp_path):
    script = f"""
import sys
from rmpe_jax.data import synthetic
from rmpe_jax.data.prepare import prepare_data
from rmpe_jax.data.prepared import read_prepared
synthetic.SYNTHETIC_PICTURES = {{"train": 2, "val": 1}}
prepare_data("synthetic", None, {str(tmp_path)!r})
assert read_prepared("synthetic", {str(tmp_path)!r}, "train")[1].picture.read().shape == (240, 320, 3)
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)


def test_without_tfds_preparing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(MissingExtraError, match=r"needs tensorflow_datasets.*pip install 'rmpe-jax\[data\]'"):
        prepare_data("synthetic", None, tmp_path)


def test_without_array_record_reading_says_what_to_install(tmp_path, monkeypatch):
    prepare_data("synthetic", None, tmp_path, splits=("val",), report=quiet)
    records = read_prepared("synthetic", tmp_path, "val")
    prepared.records.cache_clear()
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(MissingExtraError, match=r"needs array_record.*pip install 'rmpe-jax\[data\]'"):
        records[0].picture.read()


# Splits


def test_a_second_call_verifies_and_changes_nothing(tmp_path):
    place = prepare_data("synthetic", None, tmp_path, report=quiet)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.iterdir()}
    said = []
    prepare_data("synthetic", None, tmp_path, report=said.append)
    assert said == [f"{split}: was prepared before, checksums are right" for split in ("train", "val")]
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.iterdir()} == before


def test_another_split_is_added_later(tmp_path):
    prepare_data("synthetic", None, tmp_path, splits=("val",), report=quiet)
    with pytest.raises(DataError, match=r"no finished split 'train' \(there are: val\)"):
        read_prepared("synthetic", tmp_path, "train")
    said = []
    place = prepare_data("synthetic", None, tmp_path, report=said.append)
    assert said[0].startswith("train: 6 pictures") and said[1].startswith("val: was prepared before")
    assert sorted(finished_splits(place)) == ["train", "val"]
    for split in ("train", "val"):
        assert_equal_records(read_prepared("synthetic", tmp_path, split), synthetic.read_synthetic(split))


def test_several_sets_share_one_target(tmp_path):
    prepare_data("synthetic", None, tmp_path / "target", report=quiet)
    prepare_data("coco", coco_of(tmp_path / "source", 2), tmp_path / "target", report=quiet)
    assert [len(read_data(n, tmp_path / "target", s)) for n, s in (("synthetic", "train"), ("coco", "val2017"))] == [
        6,
        2,
    ]


def test_trainval_is_prepared_only_where_train_and_val_are_not(tmp_path):
    for split in ("train", "val", "trainval"):
        write_crowdpose(tmp_path / split, split=split)
        write_crowdpose(tmp_path / "all", split=split)
    place = prepare_data("crowdpose", tmp_path / "all", tmp_path / "target", report=quiet)
    assert list(finished_splits(place)) == ["train", "val"]
    place = prepare_data("crowdpose", tmp_path / "trainval", tmp_path / "other", report=quiet)
    assert list(finished_splits(place)) == ["trainval"]


def test_a_split_that_is_asked_for_and_missing_is_named(tmp_path):
    coco_of(tmp_path / "source", 2)
    with pytest.raises(MissingFileError, match=r"has no annotations/person_keypoints_train2017\.json"):
        prepare_data("coco", tmp_path / "source", tmp_path / "target", splits=("train2017",), report=quiet)
    assert not (tmp_path / "target").exists()


def test_splits_whose_files_are_not_there_are_named_once(tmp_path):
    coco_of(tmp_path, 2)
    (tmp_path / "annotations" / "person_keypoints_train2017.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg"}]}'
    )
    said = []
    prepare_data("coco", tmp_path, tmp_path / "target", report=said.append)
    # The labels of train2017 are there, but none of its pictures.
    assert said[-1].startswith("not prepared, since their files are not there: train2017, test2017")


def test_a_source_without_any_split_is_named(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(MissingFileError, match=r"has no annotations/.*COCO is"):
        prepare_data("coco", tmp_path / "source", tmp_path / "target", report=quiet)


def test_a_set_without_a_source_says_what_its_files_are(tmp_path):
    with pytest.raises(DataError, match=r"MPII Human Pose: say where its official files are; MPII is"):
        prepare_data("mpii", None, tmp_path)
    with pytest.raises(DataError, match=r"unknown data set 'ski'; known: coco, crowdpose"):
        prepare_data("ski", tmp_path, tmp_path)


def test_an_unfinished_split_is_refused_with_what_finishes_it(tmp_path):
    (tmp_path / BUILDERS["coco"] / "1.0.0").mkdir(parents=True)
    message = r"no finished split 'val2017' \(there are: none\); `rmpe data prepare coco` makes it, and goes on"
    with pytest.raises(DataError, match=message):
        read_data("coco", tmp_path, "val2017")


# Damage


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture
def drawn(tmp_path):
    """A prepared set of six drawn pictures, and its folder."""
    place = prepare_data("synthetic", None, tmp_path, splits=("train",), report=quiet)
    prepared.records.cache_clear()
    return tmp_path, place


@pytest.mark.parametrize("name", ["labels-train.npz", "synthetic_people-train.array_record-00000"])
def test_a_changed_byte_is_found_by_preparing_again(drawn, name):
    target, place = drawn
    flip(place / name)
    with pytest.raises(DataError, match=rf"{name}: missing or changed since it was written; delete {place}"):
        prepare_data("synthetic", None, target, report=quiet)


@pytest.mark.parametrize("name", ["labels-train.npz", "synthetic_people-train.array_record-00000"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_truncated_file_is_found_by_reading(drawn, name, damage):
    target, place = drawn
    content = (place / name).read_bytes()
    (place / name).unlink() if damage == "missing" else (place / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{name}: missing, or not of the size it was written with"):
        read_prepared("synthetic", target, "train")
    with pytest.raises(DataError, match=rf"{name}: missing or changed"):
        prepare_data("synthetic", None, target, report=quiet)


@pytest.mark.parametrize("place_of_byte", [0.0, 0.1, 0.3, 0.5, 0.7, 0.999])
def test_labels_with_a_changed_byte_are_named_or_right(drawn, place_of_byte):
    target, place = drawn
    before = labels_of(read_prepared("synthetic", target, "train"))[1]
    flip(place / "labels-train.npz", place_of_byte)
    try:
        after = labels_of(read_prepared("synthetic", target, "train"))[1]
    except DataError as error:
        assert "labels-train.npz: damaged" in str(error)
    else:
        assert_identical(after, before)


@pytest.mark.parametrize("place_of_byte", [0.001, 0.02, 0.06, 0.5, 0.9999])
def test_a_record_with_a_changed_byte_is_a_picture_that_cannot_be_read_or_is_right(drawn, place_of_byte):
    target, place = drawn
    records = read_prepared("synthetic", target, "train")
    right = [record.read_bytes() for record in (synthetic.DrawnPicture(0, n) for n in range(6))]
    flip(place / "synthetic_people-train.array_record-00000", place_of_byte)
    for record, expected in zip(records, right, strict=True):
        try:
            assert record.picture.read_bytes() == expected
        except PictureError as error:
            assert str(place) in str(error)


def test_a_record_says_where_it_is_and_which_picture_it_was(drawn):
    target, place = drawn
    record = read_prepared("synthetic", target, "train")[3]
    assert str(record.picture) == f"{place}:train[3]/0-000003.png"
    with pytest.raises(PictureError, match=r"train\[99\]"):
        dataclasses.replace(record.picture, row=99).read()


def test_checksums_that_cannot_be_parsed_are_named(drawn):
    target, place = drawn
    (place / "checksums.json").write_text('{"train": ')
    with pytest.raises(DataError, match=r"checksums\.json: malformed JSON"):
        read_prepared("synthetic", target, "train")


def test_a_source_that_changed_while_it_was_written_is_noticed(tmp_path, monkeypatch):
    coco_of(tmp_path, 3)
    read, times = PictureFile.read_bytes, []

    def changing(self):
        times.append(self)
        return read(self) if len(times) <= 3 else encoded(picture())

    monkeypatch.setattr(PictureFile, "read_bytes", changing)
    with pytest.raises(DataError, match=r"record 0 of val2017 differs from its source; delete the folder"):
        prepare_data("coco", tmp_path, tmp_path / "target", workers=1, report=quiet)
    with pytest.raises(DataError, match="no finished split"):
        read_prepared("coco", tmp_path / "target", "val2017")


# Pictures that cannot be used


def test_one_unreadable_picture_in_a_hundred_is_named_and_left_out(tmp_path):
    coco_of(tmp_path, 100)
    (tmp_path / "val2017" / "000000000040.jpg").write_bytes(b"nothing")
    said = []
    place = prepare_data("coco", tmp_path, tmp_path / "target", report=said.append)
    assert len(said) == 3 and said[0].startswith("left out: ") and "000000000040.jpg" in said[0]
    assert "99 pictures, 99 people, 1 left out" in said[1]
    about = finished_splits(place)["val2017"]
    assert about["left_out"] == 1 and about["pictures"] == 99
    source = [record for record in read_data("coco", tmp_path, "val2017") if record.image_id != 40]
    assert_equal_records(read_prepared("coco", tmp_path / "target", "val2017"), source)


def test_more_unreadable_pictures_stop_it(tmp_path):
    coco_of(tmp_path, 100)
    for number in (40, 70):
        (tmp_path / "val2017" / f"{number:012}.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"val2017: 2 pictures cannot be used, such as .*000000000040\.jpg"):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)


def test_a_box_outside_its_picture_is_named_with_picture_and_person_and_left_out(tmp_path):
    outside = {"bbox": [161.0, 5.0, 20.0, 20.0]}
    coco_of(tmp_path, 3, n2=outside)
    said = []
    prepare_data("coco", tmp_path, tmp_path / "target", report=said.append)
    named = r"left out: .*000000000002\.jpg: the box of person 1, .*outside the picture of 160 x 96"
    assert re.fullmatch(named + " pixels", said[0]) and "2 pictures, 2 people, 1 left out" in said[1]
    coco_of(tmp_path, 3, n2=outside, n3=outside)
    with pytest.raises(DataError, match=r"val2017: 2 pictures cannot be used, such as .*000000000002\.jpg"):
        prepare_data("coco", tmp_path, tmp_path / "other", report=quiet)


# Interruption


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the pictures that are read while writing; reading picture ``reads.stop`` interrupts the run."""

    class Reads(list):
        stop = None
        writing = True

    found, read, finish = Reads(), PictureFile.read_bytes, prepare._finish

    def reading(one):
        if one.path.suffix == ".jpg" and found.writing:
            found.append(int(one.path.stem))
            if found[-1] == found.stop:
                raise KeyboardInterrupt
        return read(one)

    def finishing(*arguments):
        found.writing = False
        finish(*arguments)

    monkeypatch.setattr(PictureFile, "read_bytes", reading)
    monkeypatch.setattr(prepare, "_finish", finishing)
    return found


def assert_equal_sets(folder, other):
    """The same records, labels and names of files in two prepared sets."""
    assert_equal_records(read_prepared("coco", folder, "val2017"), read_prepared("coco", other, "val2017"))
    first, second = (finished_splits(prepared.prepared_folder("coco", each)) for each in (folder, other))
    assert list(first["val2017"]["files"]) == list(second["val2017"]["files"])
    assert first["val2017"]["pictures"] == second["val2017"]["pictures"]


@pytest.mark.parametrize(("at", "whole"), [(1, 0), (4, 0), (7, 4), (12, 8)])
def test_interrupted_it_goes_on_after_the_last_full_file(tmp_path, reads, small_files, at, whole):
    coco_of(tmp_path, 12)
    reads.stop = at
    with pytest.raises(KeyboardInterrupt):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    with pytest.raises(DataError, match="goes on where it was interrupted"):
        read_prepared("coco", tmp_path / "target", "val2017")
    reads.stop, said = None, []
    reads.clear()
    prepare_data("coco", tmp_path, tmp_path / "target", report=said.append)
    assert sorted(reads) == list(range(whole + 1, 13))
    assert (f"val2017: going on after {whole} pictures" in said) == (whole > 0)
    prepare_data("coco", tmp_path, tmp_path / "unbroken", report=quiet)
    assert_equal_sets(tmp_path / "target", tmp_path / "unbroken")


def test_interrupted_while_it_checks_it_writes_nothing_again(tmp_path, monkeypatch, reads, small_files):
    coco_of(tmp_path, 6)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_same", lambda record, one: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    assert sorted(reads) == list(range(1, 7))
    reads.clear()
    reads.writing = True
    prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    assert reads == []
    prepare_data("coco", tmp_path, tmp_path / "unbroken", report=quiet)
    assert_equal_sets(tmp_path / "target", tmp_path / "unbroken")


def test_a_resumed_run_tolerates_as_many_unreadable_pictures_as_an_unbroken_one(tmp_path, reads, small_files):
    coco_of(tmp_path, 200)
    for number in (3, 199):
        (tmp_path / "val2017" / f"{number:012}.jpg").write_bytes(b"nothing")
    reads.stop = 195
    with pytest.raises(KeyboardInterrupt):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    reads.stop = None
    prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    about = finished_splits(prepared.prepared_folder("coco", tmp_path / "target"))["val2017"]
    assert (about["pictures"], about["left_out"]) == (198, 2)


def test_a_resumed_run_counts_the_unreadable_pictures_before_it(tmp_path, reads, small_files):
    coco_of(tmp_path, 100)
    for number in (3, 99):
        (tmp_path / "val2017" / f"{number:012}.jpg").write_bytes(b"nothing")
    reads.stop = 95
    with pytest.raises(KeyboardInterrupt):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    reads.stop = None
    with pytest.raises(DataError, match=r"2 pictures cannot be used, such as .*000000000099\.jpg"):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)


def test_a_source_that_lacks_the_last_written_picture_is_refused(tmp_path, reads, small_files):
    coco_of(tmp_path, 12)
    reads.stop = 7
    with pytest.raises(KeyboardInterrupt):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    write_coco(tmp_path, pictures=3)
    with pytest.raises(DataError, match="holds picture 4, which the source has not; delete the folder"):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)


def test_labels_that_changed_since_the_interruption_are_noticed(tmp_path, reads, small_files):
    coco_of(tmp_path, 12)
    reads.stop = 7
    with pytest.raises(KeyboardInterrupt):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    reads.stop = None
    coco_of(tmp_path, 12, n2={"area": 5.0})
    with pytest.raises(DataError, match="record 1 of val2017 differs from its source; delete the folder"):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)


def pictures_in_full_files(target):
    """What TFDS's description counts, or its copy where a kill left a part of it."""
    (place,) = {path.parent for path in target.rglob("*dataset_info*")}
    for name in ("dataset_info.json", ".dataset_info.copy.json"):
        with contextlib.suppress(ValueError, FileNotFoundError):
            (split,) = json.loads((place / name).read_bytes())["splits"]
            return sum(map(int, split["shardLengths"]))
    return 0


@pytest.mark.slow
def test_killed_it_goes_on_and_gives_what_an_unbroken_run_gives(tmp_path, reads, small_files):
    coco_of(tmp_path, 12)
    script = f"""
import time
from rmpe_jax.data import prepare
from rmpe_jax.data.files import PictureFile
prepare._PICTURES_PER_FILE, prepare._PICTURES_PER_WRITE = 4, 2
read = PictureFile.read_bytes
def slow(picture):
    if picture.path.stem.endswith("010"):
        print("here", flush=True)
        time.sleep(60)
    return read(picture)
PictureFile.read_bytes = slow
prepare.prepare_data("coco", {str(tmp_path)!r}, {str(tmp_path / "target")!r}, workers=1)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        # The tenth is asked for when the first six have been written.
        assert process.stdout is not None
        said = next(line for line in process.stdout if not line.startswith("not prepared"))
        process.kill()
    assert said == "here\n" and process.returncode == -signal.SIGKILL
    # Of the files of four one is full, or two, as fast as they were written.
    done = pictures_in_full_files(tmp_path / "target")
    assert done in (4, 8)
    prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    assert sorted(reads) == list(range(done + 1, 13))
    prepare_data("coco", tmp_path, tmp_path / "unbroken", report=quiet)
    assert_equal_sets(tmp_path / "target", tmp_path / "unbroken")


@pytest.mark.parametrize("copied", [True, False])
def test_a_description_that_a_kill_left_half_written_is_put_right(tmp_path, reads, small_files, copied):
    coco_of(tmp_path, 12)
    reads.stop = 10
    with pytest.raises(KeyboardInterrupt):
        prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    place = prepared.prepared_folder("coco", tmp_path / "target")
    description = place / "dataset_info.json"
    description.write_bytes(description.read_bytes()[:40] if copied else b"")
    if not copied:
        (place / ".dataset_info.copy.json").unlink()
    reads.stop = None
    reads.clear()
    prepare_data("coco", tmp_path, tmp_path / "target", report=quiet)
    # Two files had been finished; without a copy nobody knows.
    assert sorted(set(reads)) == list(range(9 if copied else 1, 13))
    prepare_data("coco", tmp_path, tmp_path / "unbroken", report=quiet)
    assert_equal_sets(tmp_path / "target", tmp_path / "unbroken")
    assert not (place / ".dataset_info.copy.json").exists()


# TFDS's own way


def test_every_set_has_a_builder_of_its_name():
    assert {name: builder.name for name, builder in BUILDER_CLASSES.items()} == BUILDERS
    assert set(BUILDER_CLASSES) == set(DATA_SETS)


def test_tfds_knows_the_builders():
    registered = prepared.import_tfds().core.registered.list_imported_builders()
    assert set(BUILDERS.values()) <= set(registered)


@pytest.mark.slow
def test_a_builder_builds_what_the_reader_reads(tmp_path):
    write_flic(tmp_path / "source")
    tfds = prepared.import_tfds()
    builder = tfds.builder(BUILDERS["flic"], data_dir=tmp_path / "target", file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "source")
    builder.download_and_prepare(download_config=config)
    for split in ("train", "test"):
        source = read_flic(tmp_path / "source", split)
        rows = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        assert len(rows) == len(source)
        for row, record in zip(rows, source, strict=True):
            assert row["image_id"] == record.image_id and row["name"].decode() == record.picture.name
            assert row["image"] == record.picture.read_bytes()
            for field in PERSON_FIELDS:
                np.testing.assert_array_equal(row[field], getattr(record, field))
    with pytest.raises(DataError, match="was built by TFDS itself; choose another target"):
        prepare_data("flic", tmp_path / "source", tmp_path / "target")
