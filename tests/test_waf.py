import numpy as np
import pytest
from made_data import as_archive, figure, waf_sticks, write_waf

from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.waf import read_waf
from rmpe_jax.skeleton import WAF_10

BOX, OTHER = (10, 5, 60, 90), (70, 8, 120, 88)
TORSO, RIGHT_UPPER, LEFT_UPPER, RIGHT_LOWER, LEFT_LOWER, HEAD = range(6)


def joints_of(folder, sticks):
    """Joints by name, NaN where not labelled, of somebody whose sticks are written and read again."""
    write_waf(folder, {3: [sticks]})
    record = read_waf(folder, "train")[2]
    points = np.where(record.visibility[0, :, None] > 0, record.points[0], np.nan)
    return dict(zip(WAF_10.joints, points, strict=True))


def hidden(joints):
    return {name for name, point in joints.items() if np.isnan(point).any()}


FIGURE = dict(zip(WAF_10.joints, figure(WAF_10.joints, BOX), strict=True))


def test_the_ends_of_the_sticks_are_the_joints_counted_from_0(tmp_path):
    write_waf(tmp_path, {3: [waf_sticks(BOX), waf_sticks(OTHER)]})
    record = read_waf(tmp_path, "train")[2]
    assert record.image_id == 3 and str(record.picture) == f"{tmp_path}/images/group photo 3.jpg"
    np.testing.assert_allclose(record.points, [figure(WAF_10.joints, box) for box in (BOX, OTHER)], atol=1e-5)
    assert (record.visibility == 2).all()


def test_the_persons_right_is_on_the_pictures_left(tmp_path):
    joints = joints_of(tmp_path, waf_sticks(BOX))
    assert joints["right_wrist"][0] < joints["left_wrist"][0]


def test_everybody_in_a_picture_is_one_group_and_nobody_stands_apart(tmp_path):
    write_waf(tmp_path, {3: [waf_sticks(BOX), waf_sticks(OTHER)]})
    record = read_waf(tmp_path, "train")[2]
    assert record.group.tolist() == [0, 0] and record.single.tolist() == [False, False]


def test_the_head_box_is_the_square_whose_size_is_the_length_of_the_head_stick(tmp_path):
    write_waf(tmp_path, {3: [waf_sticks(BOX)]})
    (head,) = read_waf(tmp_path, "train")[2].heads
    x0, y0, x1, y1 = head
    assert x1 - x0 == pytest.approx(y1 - y0) and 0.6 * np.hypot(x1 - x0, y1 - y0) == pytest.approx(17, abs=1e-4)
    np.testing.assert_allclose([(x0 + x1) / 2, (y0 + y1) / 2], [35, 13.5], atol=1e-5)


def test_the_first_350_pictures_are_for_training_and_the_others_for_the_test(tmp_path):
    write_waf(tmp_path, {350: [waf_sticks(BOX)], 351: [waf_sticks(BOX), waf_sticks(OTHER)]})
    train, test = (read_waf(tmp_path, split) for split in ("train", "test"))
    assert [record.image_id for record in train] == list(range(1, 351))
    assert [record.image_id for record in test] == [351, 352, 353, 354]
    assert [len(record) for record in test] == [2, 0, 0, 0] and len(train[-1]) == 1
    assert test[1].points.shape == (0, 10, 2)


def test_it_is_read_alike_from_its_folder_and_from_its_archive(tmp_path):
    write_waf(tmp_path, {351: [waf_sticks(BOX)]})
    unpacked = read_waf(tmp_path, "test")[0]
    as_archive(tmp_path, "WeAreFamilyStickmen.zip", prefix="WeAreFamilyStickmen/")
    packed = read_waf(tmp_path, "test")[0]
    assert str(packed.picture).endswith(".zip:WeAreFamilyStickmen/images/group photo 351.jpg")
    np.testing.assert_array_equal(packed.points, unpacked.points)


@pytest.mark.parametrize(
    ("parts", "joints"),
    [
        ([HEAD], {"head_top", "neck"}),
        ([TORSO], {"thorax", "pelvis"}),
        ([RIGHT_LOWER], {"right_wrist"}),
        ([LEFT_UPPER], {"left_shoulder"}),
        ([LEFT_UPPER, LEFT_LOWER], {"left_shoulder", "left_elbow", "left_wrist"}),
        (range(6), set(WAF_10.joints)),
    ],
)
def test_a_hidden_part_hides_the_joints_that_only_it_shows(tmp_path, parts, joints):
    found = joints_of(tmp_path, waf_sticks(BOX, hidden=parts))
    assert hidden(found) == joints
    for name in set(WAF_10.joints) - joints:
        np.testing.assert_allclose(found[name], FIGURE[name], atol=1e-5)


def test_nobody_without_a_head_stick_has_a_head_box(tmp_path):
    write_waf(tmp_path, {3: [waf_sticks(BOX, hidden=[HEAD])]})
    assert np.isnan(read_waf(tmp_path, "train")[2].heads).all()


@pytest.mark.parametrize("turned", range(6))
def test_which_end_of_a_stick_is_listed_first_does_not_matter(tmp_path, turned):
    sticks = waf_sticks(BOX)
    sticks[turned] = sticks[turned, [2, 3, 0, 1]]
    found = joints_of(tmp_path, sticks)
    for name, point in FIGURE.items():
        np.testing.assert_allclose(found[name], point, atol=1e-5)


@pytest.mark.parametrize(
    ("hides", "stick", "joints"),
    [
        ([RIGHT_UPPER], RIGHT_LOWER, ("right_elbow", "right_wrist")),
        ([TORSO], LEFT_UPPER, ("left_shoulder", "left_elbow")),
    ],
)
def test_an_arm_without_the_part_above_it_is_taken_as_listed(tmp_path, hides, stick, joints):
    sticks = waf_sticks(BOX, hidden=hides)
    sticks[stick] = [100, 50, 90, 20]
    found = joints_of(tmp_path, sticks)
    assert found[joints[0]].tolist() == [99, 49] and found[joints[1]].tolist()[0] == pytest.approx(
        89 if stick == RIGHT_LOWER else found["left_elbow"][0]
    )


# Bad input


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="splits train and test, not 'val'"):
        read_waf(tmp_path, "val")


def test_a_missing_file_is_named_with_what_the_set_is(tmp_path):
    with pytest.raises(MissingFileError, match=r"has no data/waf_sticks_all\.txt .*We Are Family is"):
        read_waf(tmp_path, "test")


def test_a_missing_picture_is_named(tmp_path):
    write_waf(tmp_path, {})
    (tmp_path / "images" / "group photo 352.jpg").unlink()
    with pytest.raises(DataError, match=r"has no picture images/group photo 352\.jpg"):
        read_waf(tmp_path, "test")
    assert len(read_waf(tmp_path, "train")) == 350


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "group photo 1.jpg 0 5", "expected a picture, its number of people, and 6"),
        (1, "0 6", "expected a picture, its number of people, and 6"),
        (2, "group photo 2.jpg -1 6", "expected a picture, its number of people, and 6"),
        (2, "group photo 2.jpg", "expected a picture, its number of people, and 6"),
        (2, "alone.jpg", "expected a picture, its number of people, and 6"),
        (5, "1 2 3", "expected 4 numbers of a stick, got '1 2 3'"),
        (6, "1 2 3 four", "could not convert"),
        (3, "group photo 3.jpg 2 6", "expected 4 numbers of a stick, got 'group photo 4.jpg 0 6'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, text, message):
    path = write_waf(tmp_path, {3: [waf_sticks(BOX)]})
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    number = 10 if "photo 4" in message else line
    with pytest.raises(DataError, match=rf"waf_sticks_all\.txt: line {number}: {message}"):
        read_waf(tmp_path, "train")


def test_a_truncated_file_is_named_with_the_picture_that_lacks_sticks(tmp_path):
    path = write_waf(tmp_path, {354: [waf_sticks(BOX)]})
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    with pytest.raises(DataError, match=r"line 354: the file ends before the sticks of group photo 354\.jpg"):
        read_waf(tmp_path, "test")


def test_a_file_that_is_no_text_is_named(tmp_path):
    write_waf(tmp_path, {}).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"waf_sticks_all\.txt: not a text"):
        read_waf(tmp_path, "test")


def test_a_coordinate_that_is_infinite_is_a_hidden_part(tmp_path):
    sticks = waf_sticks(BOX)
    sticks[HEAD, 0] = np.inf
    assert hidden(joints_of(tmp_path, sticks)) == {"head_top"}
