import pickle
import re
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_data import encoded, figure, matlab, picture

from rmpe_jax.data.files import DataError, Files, MissingFileError, PictureFile, parse_json, parse_mat, read_json
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.people import LabelledPicture, Person, Picture, in_skeleton, label, misplaced_box, people_in
from rmpe_jax.errors import RmpeError
from rmpe_jax.skeleton import COCO_LSP_19, LSP_14

HINT = "ask the authors"
JPEG = PictureFile(Path("p.jpg"))


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


# Files


def test_a_file_is_found_in_the_folder_or_in_an_archive_whatever_stands_before_it(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"loose")
    path = archive(tmp_path / "set.zip", {"set_v1/images/b.jpg": b"packed", "set_v1/labels.json": b"{}"})
    files = Files(tmp_path, "set.zip", "other.zip", hint=HINT)
    assert files.find("images/a.jpg") == PictureFile(tmp_path / "images" / "a.jpg")
    assert files.find("images/b.jpg") == PictureFile(path, "set_v1/images/b.jpg")
    assert files.find("labels.json") == PictureFile(path, "set_v1/labels.json")
    assert files.find("images/c.jpg") is None and files.find("mages/b.jpg") is None


def test_a_file_of_the_folder_goes_before_the_archives_and_those_in_their_order(tmp_path):
    archive(tmp_path / "one.zip", {"a": b"first", "b": b"first"})
    archive(tmp_path / "two.zip", {"a": b"second", "b": b"second", "c": b"second"})
    (tmp_path / "a").write_bytes(b"loose")
    files = Files(tmp_path, "one.zip", "two.zip", hint=HINT)
    assert [files.read(name)[1] for name in "abc"] == [b"loose", b"first", b"second"]


def test_the_first_file_that_exists_is_read(tmp_path):
    (tmp_path / "b").write_bytes(b"content")
    found, content = Files(tmp_path, hint=HINT).read("a", "b")
    assert found == PictureFile(tmp_path / "b") and content == b"content"


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(MissingFileError, match=rf"none: no such folder; {HINT}"):
        Files(tmp_path / "none", hint=HINT)
    files = Files(tmp_path, "none.zip", hint=HINT)
    with pytest.raises(MissingFileError, match=rf"{tmp_path}: has no a or b; {HINT}"):
        files.read("a", "b")
    with pytest.raises(MissingFileError, match=rf"has no pictures images; {HINT}"):
        files.picture("images/a.jpg")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=rf"has no picture images/a\.jpg; {HINT}") as raised:
        files.picture("images/a.jpg")
    assert not isinstance(raised.value, MissingFileError)


def test_errors_of_data_are_the_packages_own_and_value_errors():
    assert issubclass(MissingFileError, DataError) and issubclass(DataError, RmpeError | ValueError)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_an_archive_that_is_none_is_named(tmp_path, content):
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip: damaged, or not a zip archive"):
        Files(tmp_path, "set.zip", hint=HINT)


def damaged(tmp_path):
    path = archive(tmp_path / "damaged.zip", {"a.bmp": encoded(picture(), "BMP")}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    return path


def test_a_damaged_member_of_an_archive_is_named(tmp_path):
    damaged(tmp_path)
    files = Files(tmp_path, "damaged.zip", hint=HINT)
    with pytest.raises(DataError, match=r"damaged\.zip:a\.bmp: "):
        files.read("a.bmp")
    with pytest.raises(PictureError, match=r"damaged\.zip:a\.bmp: "):
        files.picture("a.bmp").read()


def test_a_picture_is_decoded_alike_from_a_file_and_from_an_archive(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))
    path = archive(tmp_path / "set.zip", {"a.png": encoded(picture(), "PNG")})
    for one in (PictureFile(tmp_path / "a.png"), PictureFile(path, "a.png")):
        assert isinstance(one, Picture)
        np.testing.assert_array_equal(one.read(), picture())
        assert one.read_bytes() == encoded(picture(), "PNG")


@pytest.mark.parametrize("where", [("none.jpg", None), ("none.zip", "a.jpg"), ("set.zip", "images/none.jpg")])
def test_a_missing_picture_archive_or_member_is_named(tmp_path, where):
    archive(tmp_path / "set.zip", {"a.png": b""})
    one = PictureFile(tmp_path / where[0], where[1])
    for read in (one.read, one.read_bytes):
        with pytest.raises(PictureError, match=where[0] + (f":{where[1]}" if where[1] else "")):
            read()


def test_a_picture_in_an_archive_travels_to_another_process(tmp_path):
    path = archive(tmp_path / "set.zip", {"a.png": encoded(picture(), "PNG")})
    one = pickle.loads(pickle.dumps(PictureFile(path, "a.png")))
    np.testing.assert_array_equal(one.read(), picture())


def test_many_threads_read_one_archive(tmp_path):
    members = {f"{n}.bin": np.random.default_rng(n).bytes(50_000) for n in range(20)}
    path = archive(tmp_path / "set.zip", members, zipfile.ZIP_DEFLATED)
    start = threading.Barrier(4)

    def read(turn):
        start.wait()
        return all(PictureFile(path, name).read_bytes() == members[name] for name in list(members)[turn:])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


# JSON and MATLAB files


def test_json_is_parsed():
    assert parse_json(b'{"a": [1, 2.5, null, "\xc3\xa9"]}', "a.json") == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a":\n [1,}', "malformed JSON at line 2, column 5"),
        (b"", "malformed JSON at line 1, column 1"),
        (b"\xff\xfe", "JSON that cannot be held"),
        (b"[" * 200_000, "JSON that cannot be held"),
        (b"1" * 5000, "JSON that cannot be held"),
    ],
)
def test_json_that_is_none_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        parse_json(content, "a.json")
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/a\.json: {message}"):
        read_json(tmp_path / "a.json")


def test_a_json_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


def test_matlab_structures_are_objects_and_single_entries_bare():
    content = matlab(a=[{"x": 1.0, "name": "one"}, {"x": np.array([1.0, 2.0])}], b=[{"x": 3.0}])
    first, second = parse_mat(content, "a.mat", "a")
    assert first.x == 1 and first.name == "one" and second.x.tolist() == [1, 2] and second.name.size == 0
    assert parse_mat(content, "a.mat", "b").x == 3


def test_a_matlab_file_without_the_variable_is_named():
    with pytest.raises(DataError, match=r"a\.mat: has no variable 'joints'"):
        parse_mat(matlab(points=np.zeros(3)), "a.mat", "joints")


def test_a_matlab_file_of_version_73_says_how_to_save_it():
    header = b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM" + bytes(400)
    with pytest.raises(DataError, match=r"a\.mat: a MATLAB file of version 7\.3; save it again with -v7"):
        parse_mat(header, "a.mat", "joints")


@pytest.mark.parametrize("end", [0, 3, 100, 127, 130, 200, 1500])
def test_a_truncated_matlab_file_is_named(end):
    content = matlab(joints=np.random.default_rng(0).random((20, 14, 3)))[:end]
    with pytest.raises(DataError, match=r"a\.mat: (not a MATLAB file|damaged|has no variable)"):
        parse_mat(content, "a.mat", "joints")


@pytest.mark.parametrize("seed", range(20))
def test_a_matlab_file_with_wrong_bytes_is_read_or_named(seed):
    rng = np.random.default_rng(seed)
    content = np.frombuffer(matlab(a=[{"x": 1.0, "name": "one"}, {"x": 2.0}], b=np.eye(3)), np.uint8).copy()
    content[rng.integers(128, len(content), 4)] = rng.integers(0, 256, 4)
    try:
        parse_mat(content.tobytes(), "a.mat", "a")
    except DataError as error:
        assert str(error).startswith("a.mat: ")


# Records


def someone(points=((1, 2), (3, 4), (5, 12)), visibility=(2, 1, 0), **more):
    return {"points": np.array(points, float), "visibility": np.array(visibility), **more}


def test_what_a_set_does_not_give_is_filled_in():
    record = label(JPEG, 7, [someone()], 3)
    assert record.picture is JPEG and record.image_id == 7 and len(record) == 1 and np.isnan(record.crowd_index)
    assert record.points.tolist() == [[[1, 2], [3, 4], [0, 0]]] and record.visibility.tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(record.boxes, [[0.9, 1.9, 3.1, 4.1]])
    np.testing.assert_allclose(record.area, [2.2**2])
    assert not record.crowd.any() and record.single.all() and record.group.tolist() == [-1]
    assert np.isnan(np.concatenate([record.heads.ravel(), record.centres.ravel(), record.scale])).all()


def test_the_box_that_is_filled_in_holds_the_head():
    record = label(JPEG, 7, [someone(heads=[0, -6, 4, 2])], 3)
    np.testing.assert_allclose(record.boxes, [[-0.2, -6.5, 4.2, 4.5]])


def test_a_set_gives_what_it_has():
    given = {"boxes": [1, 2, 30, 40], "area": 5.0, "crowd": True, "heads": [1, 2, 3, 4], "centres": [8, 9]}
    record = label(JPEG, 7, [someone(**given, scale=1.5, group=2, single=False)], 3, crowd_index=0.25)
    for name, value in (given | {"scale": 1.5, "group": 2, "single": False}).items():
        np.testing.assert_array_equal(getattr(record, name)[0], value)
    assert record.crowd_index == 0.25


@pytest.mark.parametrize("count", [0, 1, 2])
def test_arrays_have_the_documented_types_and_shapes_for_any_number_of_people(count):
    record = label(JPEG, 1, [someone()] * count, 3)
    assert isinstance(record, LabelledPicture) and len(record) == count
    shapes = {"boxes": (4,), "points": (3, 2), "visibility": (3,), "area": (), "crowd": (), "heads": (4,)}
    shapes |= {"centres": (2,), "scale": (), "group": (), "single": ()}
    types = {"visibility": np.uint8, "crowd": np.bool_, "single": np.bool_, "group": np.int32}
    for name, shape in shapes.items():
        array = getattr(record, name)
        assert array.shape == (count, *shape) and array.dtype == types.get(name, np.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visibility": np.ones(2)}, "expected 3 joints, got 2"),
        ({"points": [[1, 2], [np.nan, 4], [0, 0]]}, "points holds numbers that are not finite"),
        ({"boxes": [1, 2, np.inf, 4]}, "boxes holds numbers that are not finite"),
        ({"boxes": [5, 2, 1, 4]}, r"the box \[5\.0, 2\.0, 1\.0, 4\.0\] is inverted"),
        ({"area": np.nan}, "area holds numbers that are not finite"),
        ({"colour": 3}, "unknown field colour"),
    ],
)
def test_an_impossible_person_is_named_by_number_and_field(changes, message):
    with pytest.raises(ValueError, match=f"person 2: {message}"):
        label(JPEG, 1, [someone(), someone() | changes], 3)


def test_a_coordinate_of_a_joint_without_a_label_may_be_anything():
    record = label(JPEG, 1, [someone(points=[[1, 2], [3, 4], [np.nan, np.inf]])], 3)
    assert record.points[0, 2].tolist() == [0, 0] and np.isfinite(record.boxes).all()


@pytest.mark.parametrize("box", [[320, 10, 400, 90], [10, 240, 90, 300], [-90, 10, -1, 90], [10, -90, 90, -0.5]])
def test_a_box_outside_its_picture_is_named_with_picture_and_person(box):
    record = label(JPEG, 1, [someone(), someone(boxes=box)], 3)
    said = misplaced_box(record, (240, 320))
    assert said is not None and re.search(r"p\.jpg: the box of person 2, .*outside the picture of 320 x 240", said)


@pytest.mark.parametrize("box", [[319, 239, 400, 300], [-90, -90, 0, 0], [0, 0, 320, 240]])
def test_a_box_that_touches_its_picture_is_right(box):
    assert misplaced_box(label(JPEG, 1, [someone(boxes=box)], 3), (240, 320)) is None


def test_the_box_of_someone_without_labels_is_not_looked_at():
    record = label(JPEG, 1, [someone(visibility=[0, 0, 0], boxes=[900, 900, 990, 990])], 3)
    assert misplaced_box(record, (240, 320)) is None


# People


def test_people_are_those_with_enough_joints_who_are_no_crowd():
    people = [someone(boxes=[n, 0, n + 9, 9], visibility=[2] * n + [0] * (3 - n)) for n in range(4)]
    people.append(someone(visibility=[2, 2, 2], crowd=True))
    record = label(JPEG, 4, people, 3)
    assert [person.box[0] for person in people_in([record, record])] == [1, 2, 3, 1, 2, 3]
    assert [person.box[0] for person in people_in([record], min_joints=3)] == [3]
    assert people_in([label(JPEG, 4, [], 3)]) == []


def test_a_person_is_one_row_of_the_record():
    record = label(JPEG, 4, [someone(), someone(boxes=[1, 2, 30, 40], area=77)], 3)
    one = people_in([record])[1]
    assert one.picture is JPEG and one.image_id == 4 and one.area == 77
    assert one.box.tolist() == [1, 2, 30, 40] and one.box.dtype == np.float32
    np.testing.assert_array_equal(one.points, record.points[1])
    assert one.labelled.tolist() == [True, True, False]


def test_people_whose_box_is_too_small_are_left_out():
    boxes = [(5, 5, 6.5, 90), (5, 5, 7, 90), (5, 5, 5, 90)]
    record = label(JPEG, 1, [someone(boxes=box) for box in boxes], 3)
    assert [person.box.tolist() for person in people_in([record])] == [[5, 5, 7, 90]]


def test_people_take_the_joints_of_another_skeleton_by_name():
    points = figure(LSP_14.joints, (10, 10, 60, 90)).astype(np.float32)
    one = Person(JPEG, 1, np.array([10, 10, 60, 90], np.float32), points, np.ones(14, bool), 4000.0)
    (other,) = in_skeleton([one], LSP_14, COCO_LSP_19)
    assert other.picture is one.picture and other.box is one.box
    for index, joint in enumerate(COCO_LSP_19.joints):
        if joint in LSP_14.joints:
            assert other.labelled[index]
            np.testing.assert_array_equal(other.points[index], one.points[LSP_14.joints.index(joint)])
        else:
            assert not other.labelled[index] and (other.points[index] == 0).all()
    assert in_skeleton([], LSP_14, COCO_LSP_19) == []
