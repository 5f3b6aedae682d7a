import json
import sys

import numpy as np
import pytest
from made_data import (
    as_archive,
    cells,
    figure,
    matlab,
    mpii_list,
    mpii_person,
    mpii_release,
    write_mpii,
    write_mpii_hdf5,
    write_mpii_json,
)

from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.mpii import read_mpii
from rmpe_jax.data.people import people_in
from rmpe_jax.errors import MissingExtraError
from rmpe_jax.skeleton import MPII_16

RELEASE = r"mpii_human_pose_v1_u12_1\.mat"


def by_number(folder, split):
    return {record.image_id: record for record in read_mpii(folder, split)}


# The release


def test_joints_heads_and_places_of_the_release_count_from_0(tmp_path):
    write_mpii(tmp_path)
    record = by_number(tmp_path, "trainval")[1]
    assert record.picture.path == tmp_path / "images" / "000000001.jpg"
    np.testing.assert_array_equal(record.points, [figure(MPII_16.joints, (30, 5, 80, 92))])
    assert record.heads.tolist() == [[44, 1, 65, 21]]
    assert record.centres.tolist() == [[55, 48.5]] and record.scale.tolist() == [0.5]


def test_hidden_joints_are_marked_by_numbers_and_by_characters_and_the_unmarked_head_is_visible(tmp_path):
    write_mpii(tmp_path)
    first, second = by_number(tmp_path, "trainval")[2].visibility[:2]
    # Joint 0 has the character, joint 13 the number; the second person has no marks at all.
    assert first.tolist() == [1] + 12 * [2] + [1, 2, 2]
    assert second.tolist() == 16 * [2]


def test_joints_that_the_release_leaves_out_are_not_labelled(tmp_path):
    write_mpii(tmp_path)
    record = by_number(tmp_path, "trainval")[5]
    assert np.flatnonzero(record.visibility[0] == 0).tolist() == [8, 9]
    assert (record.points[0, 8:10] == 0).all()


def test_the_box_is_a_tenth_larger_than_joints_and_head(tmp_path):
    write_mpii(tmp_path)
    record = by_number(tmp_path, "trainval")[1]
    # Joints fill 30..80 x 5..92, the head is 44..65 x 1..21.
    np.testing.assert_allclose(record.boxes, [[27.5, 1 - 4.55, 82.5, 92 + 4.55]], rtol=1e-12)
    np.testing.assert_allclose(record.area, [55 * 100.1], rtol=1e-12)


def test_trainval_has_everybody_with_labels_and_pictures_without_anybody(tmp_path):
    write_mpii(tmp_path)
    records = by_number(tmp_path, "trainval")
    assert {number: len(record) for number, record in records.items()} == {1: 1, 2: 3, 3: 0, 5: 2, 6: 0}
    assert records[2].single.tolist() == [False, False, True] and records[1].single.tolist() == [True]
    # Somebody may be labelled without a rough place.
    assert np.isnan(records[5].centres[1]).all() and np.isnan(records[5].scale[1])


def test_the_test_split_has_places_and_no_labels(tmp_path):
    write_mpii(tmp_path)
    records = by_number(tmp_path, "test")
    assert {number: len(record) for number, record in records.items()} == {4: 2, 7: 1}
    assert not records[4].visibility.any() and np.isnan(records[4].heads).all()
    assert records[4].centres.tolist() == [[30, 40], [100, 50]] and records[4].scale.tolist() == [0.5, 0.25]
    assert records[4].boxes.tolist() == [[-20, -10, 80, 90], [75, 25, 125, 75]]
    assert people_in(records.values(), min_joints=1) == []


def test_groups_are_the_toolkits_and_leave_out_those_who_stand_apart(tmp_path):
    write_mpii(tmp_path, groups=True)
    records = by_number(tmp_path, "trainval") | by_number(tmp_path, "test")
    groups = {number: record.group.tolist() for number, record in records.items()}
    assert groups == {1: [-1], 2: [0, 0, -1], 3: [], 5: [0, 1], 6: [], 4: [0, 0], 7: [-1]}


def test_a_group_with_somebody_who_stands_apart_is_none(tmp_path):
    pictures = mpii_release()
    pictures[1] = (*pictures[1][:3], cells([np.array([1, 3]), np.array([2])]))
    write_mpii(tmp_path, pictures=pictures, groups=True)
    assert by_number(tmp_path, "trainval")[2].group.tolist() == [-1, 0, -1]


def test_without_the_toolkits_groups_those_who_do_not_stand_apart_are_one_group(tmp_path):
    write_mpii(tmp_path)
    groups = {number: record.group.tolist() for number, record in by_number(tmp_path, "trainval").items()}
    assert groups == {1: [-1], 2: [0, 0, -1], 3: [], 5: [0, 0], 6: []}


@pytest.mark.parametrize("form", [write_mpii_json, write_mpii_hdf5])
def test_train_and_val_are_the_parts_of_the_release_that_the_hourglass_list_makes(tmp_path, form):
    write_mpii(tmp_path)
    form(tmp_path)
    for name, number in (("a", 2), ("b", 5)):
        (tmp_path / "images" / f"{name}.jpg").unlink()
        (tmp_path / "images" / f"{number:09}.jpg").rename(tmp_path / "images" / f"{name}.jpg")
    pictures = mpii_release()
    release = [{"image": {"name": f"{n:09}.jpg"}, "annorect": rect} for n, (rect, *_) in enumerate(pictures, 1)]
    release[1]["image"]["name"], release[4]["image"]["name"] = "a.jpg", "b.jpg"
    content = {"annolist": release, "img_train": np.array([p[1] for p in pictures])}
    content["single_person"] = cells([p[2] for p in pictures])
    (tmp_path / "mpii_human_pose_v1_u12_1.mat").write_bytes(matlab(RELEASE=content))
    assert list(by_number(tmp_path, "train")) == [1, 3, 6] and list(by_number(tmp_path, "val")) == [2, 5]
    assert len(by_number(tmp_path, "val")[2]) == 3


@pytest.mark.parametrize("prefix", ["", "mpii_human_pose_v1_u12_2/"])
def test_the_release_is_read_from_its_archive(tmp_path, prefix):
    write_mpii(tmp_path)
    unpacked = read_mpii(tmp_path, "trainval")
    pixels = unpacked[1].picture.read()
    as_archive(tmp_path, "mpii_human_pose_v1_u12_2.zip", prefix=prefix)
    packed = read_mpii(tmp_path, "trainval")
    assert str(packed[1].picture).endswith(f"2.zip:{prefix}images/000000002.jpg")
    np.testing.assert_array_equal(packed[1].points, unpacked[1].points)
    np.testing.assert_array_equal(packed[1].picture.read(), pixels)


# The re-issues


@pytest.mark.parametrize("name", ["mpii_val.json", "annot/valid.json"])
def test_the_json_list_gives_people_by_picture_counted_from_0(tmp_path, name):
    write_mpii_json(tmp_path, name=name)
    b, a = read_mpii(tmp_path, "val")
    assert [len(b), len(a)] == [2, 1] and b.picture.path == tmp_path / "images" / "b.jpg"
    listed = mpii_list()
    np.testing.assert_array_equal(b.points, [listed[0][1] - 1, listed[2][1] - 1])
    assert (b.visibility == 2).all() and np.flatnonzero(a.visibility[0] == 0).tolist() == [0, 9]
    assert (a.points[0, [0, 9]] == 0).all() and np.isnan(b.heads).all() and b.single.all()
    np.testing.assert_allclose(b.centres[0], (listed[0][1] - 1).mean(0))
    assert b.scale.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(b.boxes[0], [7.5, 0.75, 62.5, 94.25])


def test_the_json_list_of_val_takes_head_sizes_from_the_evaluations_file(tmp_path):
    write_mpii_json(tmp_path)
    boxes = np.zeros((2, 2, 3))
    boxes[1] = [[30, 40, 60], [40, 30, 80]]
    (tmp_path / "gt_valid.mat").write_bytes(matlab(headboxes_src=boxes))
    b, a = read_mpii(tmp_path, "val")
    # Opposite corners lie 50, 50 and 100 apart, in the order of the list: b.jpg, a.jpg, b.jpg.
    sizes = [0.6 * np.linalg.norm(heads[:, 2:] - heads[:, :2], axis=1) for heads in (b.heads, a.heads)]
    np.testing.assert_allclose(np.concatenate(sizes), [30, 60, 30])


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("name", ["annot/valid.h5", "valid.h5"])
def test_the_hdf5_list_has_names_as_bytes_or_as_characters_and_head_sizes(tmp_path, name, codes):
    write_mpii_hdf5(tmp_path, name=name, codes=codes)
    b, a = read_mpii(tmp_path, "val")
    assert [str(record.picture.path) for record in (b, a)] == [f"{tmp_path}/images/{n}.jpg" for n in "ba"]
    np.testing.assert_array_equal(b.points[1], mpii_list()[2][1] - 1)
    assert np.flatnonzero(a.visibility[0] == 0).tolist() == [0, 9]
    np.testing.assert_allclose(0.6 * np.linalg.norm(b.heads[:, 2:] - b.heads[:, :2], axis=1), [24, 36])
    middle = (b.heads[0, :2] + b.heads[0, 2:]) / 2
    np.testing.assert_allclose(middle, b.points[0, 8:10].mean(0))


def test_a_head_box_never_stands_where_an_unlabelled_joint_would_be(tmp_path):
    points = np.array([points for _, points, _ in mpii_list()])
    points[0, 9], points[1, 8:10] = 0, -1
    write_mpii_hdf5(tmp_path, part=points)
    b, a = read_mpii(tmp_path, "val")
    np.testing.assert_allclose((b.heads[0, :2] + b.heads[0, 2:]) / 2, b.points[0, 8])
    known = a.points[0, a.visibility[0] > 0]
    np.testing.assert_allclose((a.heads[0, :2] + a.heads[0, 2:]) / 2, known.mean(0))
    assert (a.boxes[0, :2] > known.min(0) - 6).all()


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
def test_a_head_size_that_is_none_gives_no_head_box(tmp_path, size):
    write_mpii_hdf5(tmp_path, head_sizes=(24.0, size, 36.0))
    b, a = read_mpii(tmp_path, "val")
    assert np.isnan(a.heads).all() and np.isfinite(b.heads).all() and np.isfinite(a.boxes).all()


def test_the_lists_of_train_are_read_without_the_release(tmp_path):
    write_mpii_json(tmp_path / "json", name="mpii_train.json")
    write_mpii_hdf5(tmp_path / "hdf5", name="train.h5")
    for form in ("json", "hdf5"):
        assert [len(record) for record in read_mpii(tmp_path / form, "train")] == [2, 1]
        with pytest.raises(MissingFileError, match=r"has no mpii_human_pose_v1_u12_1\.mat; MPII is"):
            read_mpii(tmp_path / form, "trainval")


def test_hdf5_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    write_mpii_hdf5(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"valid\.h5 needs h5py.*pip install 'rmpe-jax\[data\]'"):
        read_mpii(tmp_path, "val")


# Bad input


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="MPII has the splits train, val, trainval, test, not 'valid'"):
        read_mpii(tmp_path, "valid")


@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
def test_missing_files_are_named_with_what_the_set_needs(tmp_path, split):
    with pytest.raises(MissingFileError, match=rf"has no {RELEASE}; MPII is"):
        read_mpii(tmp_path, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_release_alone_has_no_validation_split(tmp_path, split):
    write_mpii(tmp_path)
    with pytest.raises(MissingFileError, match=r"has no annot/valid\.json or mpii_val\.json or .*hourglass"):
        read_mpii(tmp_path, split)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_release_is_named(tmp_path, share):
    write_mpii(tmp_path)
    path = tmp_path / "mpii_human_pose_v1_u12_1.mat"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"{RELEASE}: (not a MATLAB file|damaged|has no variable)"):
        read_mpii(tmp_path, "trainval")


def test_a_release_that_is_another_file_is_named(tmp_path):
    write_mpii(tmp_path)
    (tmp_path / "mpii_human_pose_v1_u12_1.mat").write_bytes(matlab(RELEASE={"version": "12"}))
    with pytest.raises(DataError, match=rf"{RELEASE}: not MPII's release: .*annolist"):
        read_mpii(tmp_path, "test")


def test_a_release_whose_lists_differ_in_length_is_named(tmp_path):
    content = {"annolist": [{"image": {"name": "a"}, "annorect": []}] * 3, "img_train": np.ones(2)}
    content["single_person"] = cells([np.zeros(0)] * 3)
    write_mpii(tmp_path)
    (tmp_path / "mpii_human_pose_v1_u12_1.mat").write_bytes(matlab(RELEASE=content))
    with pytest.raises(DataError, match=rf"{RELEASE}: 3 pictures, but 2 in img_train, 3 apart"):
        read_mpii(tmp_path, "trainval")


def test_a_missing_picture_of_the_release_is_named(tmp_path):
    write_mpii(tmp_path)
    (tmp_path / "images" / "000000005.jpg").unlink()
    with pytest.raises(DataError, match=r"has no picture images/000000005\.jpg; MPII is"):
        read_mpii(tmp_path, "trainval")
    assert len(read_mpii(tmp_path, "test")) == 2


def odd_points(**changes):
    return {"point": [{"x": 5.0, "y": 6.0, "id": 3.0, "is_visible": "1", **changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annopoints": odd_points(id=16.0)}, r"joint 16\.0, expected 0 to 15"),
        ({"annopoints": odd_points(id=-1.0)}, r"joint -1\.0, expected 0 to 15"),
        ({"annopoints": odd_points(x=np.nan)}, "person 1: points holds numbers that are not finite"),
        ({"annopoints": odd_points(is_visible="hidden")}, "could not convert"),
        ({"annopoints": odd_points(x=np.zeros((0, 0)))}, "scalar|size-1|0-dimensional"),
        ({"x1": np.zeros((0, 0))}, "scalar|size-1|0-dimensional"),
        ({"objpos": {"x": 5.0}}, "'y'"),
        ({"scale": "large"}, "could not convert"),
    ],
)
def test_a_broken_person_is_named_with_the_picture(tmp_path, changes, message):
    pictures = mpii_release()
    pictures[4] = (mpii_person((30, 5, 80, 92)) | changes, *pictures[4][1:])
    write_mpii(tmp_path, pictures=pictures)
    with pytest.raises(DataError, match=rf"{RELEASE}: picture number 5: .*({message})"):
        read_mpii(tmp_path, "trainval")


def test_groups_of_another_release_are_named(tmp_path):
    write_mpii(tmp_path)
    (tmp_path / "groups_v12.mat").write_bytes(matlab(groups=cells([np.array([1])] * 6)))
    with pytest.raises(DataError, match=r"groups_v12\.mat: groups of 6 pictures, expected 7"):
        read_mpii(tmp_path, "trainval")


def test_a_group_of_people_who_are_not_there_is_named_with_the_picture(tmp_path):
    pictures = mpii_release()
    pictures[4] = (*pictures[4][:3], cells([np.array([1, 3])]))
    write_mpii(tmp_path, pictures=pictures, groups=True)
    with pytest.raises(DataError, match=rf"{RELEASE}: picture number 5: group \[1, 3\] of people who are not there"):
        read_mpii(tmp_path, "trainval")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": [[1, 2]] * 15}, "expected 16 joints"),
        ({"joints_vis": [1] * 15}, "expected 16 joints"),
        ({"joints": "none"}, "ValueError"),
        ({"scale": None}, "TypeError"),
        ({"center": [[1, 2], [3]]}, "ValueError"),
    ],
)
def test_a_broken_person_of_the_json_list_is_named(tmp_path, changes, message):
    path = write_mpii_json(tmp_path)
    content = json.loads(path.read_text())
    content[1] |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"mpii_val\.json: person number 2: .*{message}"):
        read_mpii(tmp_path, "val")


def test_a_person_of_the_json_list_who_lacks_a_field_is_named(tmp_path):
    path = write_mpii_json(tmp_path)
    content = json.loads(path.read_text())
    del content[2]["center"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"mpii_val\.json: person number 3: .*center"):
        read_mpii(tmp_path, "val")


@pytest.mark.parametrize(("content", "message"), [(b"{}", "a list of people"), (b"[{", "malformed JSON at line 1")])
def test_a_json_list_that_is_none_is_named(tmp_path, content, message):
    write_mpii_json(tmp_path).write_bytes(content)
    with pytest.raises(DataError, match=rf"mpii_val\.json: .*{message}"):
        read_mpii(tmp_path, "val")


def test_joints_of_a_list_that_are_not_finite_are_named_with_picture_and_person(tmp_path):
    people = mpii_list()
    people[2][1][3] = np.inf
    write_mpii_json(tmp_path, people=people)
    with pytest.raises(DataError, match=r"b\.jpg: person 2: points holds numbers that are not finite"):
        read_mpii(tmp_path, "val")


@pytest.mark.parametrize("form", [write_mpii_json, write_mpii_hdf5])
def test_a_missing_picture_of_a_list_is_named(tmp_path, form):
    form(tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg"):
        read_mpii(tmp_path, "val")


def test_head_boxes_of_another_number_of_people_are_named(tmp_path):
    write_mpii_json(tmp_path)
    (tmp_path / "mpii_gt_val.mat").write_bytes(matlab(headboxes_src=np.zeros((2, 2, 4))))
    with pytest.raises(DataError, match=r"mpii_gt_val\.mat: head boxes of shape \(2, 2, 4\), expected \(2, 2, 3\)"):
        read_mpii(tmp_path, "val")


@pytest.mark.parametrize("cut", [0, 50, 1000])
def test_a_truncated_hdf5_list_is_named(tmp_path, cut):
    path = write_mpii_hdf5(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"valid\.h5: damaged, or not MPII's list"):
        read_mpii(tmp_path, "val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": np.zeros((3, 15, 2))}, r"part has shape \(3, 15, 2\), expected \(3, 16, 2\)"),
        ({"center": np.zeros((2, 2))}, r"center has shape \(2, 2\), expected \(3, 2\)"),
        ({"scale": np.zeros((3, 1))}, r"scale has shape \(3, 1\), expected \(3,\)"),
        ({"normalize": np.zeros(4)}, r"normalize has shape \(4,\), expected \(3,\)"),
        ({"normalize": None}, "damaged, or not MPII's list: .*normalize"),
        ({"imgname": np.arange(3)}, "person number 1: no picture's name"),
        ({"imgname": np.full((3, 8), 255.0)}, "person number 1: no picture's name"),
    ],
)
def test_an_hdf5_list_of_another_form_is_named(tmp_path, changes, message):
    write_mpii_hdf5(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"valid\.h5: {message}"):
        read_mpii(tmp_path, "val")
