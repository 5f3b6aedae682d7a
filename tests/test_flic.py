import numpy as np
import pytest
from made_data import as_archive, figure, flic_example, matlab, write_flic

from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.flic import read_flic
from rmpe_jax.skeleton import FLIC_11

BOX = (10, 5, 60, 90)


def test_the_eleven_labelled_joints_count_from_0(tmp_path):
    write_flic(tmp_path)
    records = read_flic(tmp_path, "train")
    assert [record.image_id for record in records] == [1, 3, 4]
    for record in records:
        x0 = 10 * record.image_id
        np.testing.assert_allclose(record.points, [figure(FLIC_11.joints, (x0, 5, x0 + 50, 90))], atol=1e-12)
        assert (record.visibility == 2).all() and record.single.all() and np.isnan(record.heads).all()
        assert record.picture.read().shape == (96, 160, 3)


def test_train_and_test_are_marked_in_the_file(tmp_path):
    write_flic(tmp_path)
    assert [record.image_id for record in read_flic(tmp_path, "test")] == [2, 5]


def test_the_box_is_a_tenth_larger_than_the_joints(tmp_path):
    write_flic(tmp_path, examples=[flic_example(1, BOX, train=True)])
    record = read_flic(tmp_path, "train")[0]
    low, high = record.points[0].min(0), record.points[0].max(0)
    np.testing.assert_allclose(record.boxes[0, :2], low - 0.05 * (high - low))
    np.testing.assert_allclose(record.boxes[0, 2:], high + 0.05 * (high - low))
    np.testing.assert_allclose(record.area, 1.21 * np.prod(high - low))


def test_a_joint_without_numbers_is_not_labelled(tmp_path):
    examples = [flic_example(1, BOX, train=True, missing=(2, 16)), flic_example(2, BOX, train=True)]
    write_flic(tmp_path, examples=examples)
    record = read_flic(tmp_path, "train")[0]
    wrist, nose = FLIC_11.joints.index("left_wrist"), FLIC_11.joints.index("nose")
    assert np.flatnonzero(record.visibility[0] == 0).tolist() == sorted([wrist, nose])
    assert (record.points[0, [wrist, nose]] == 0).all()


def test_a_file_of_one_example_is_a_split_of_one(tmp_path):
    write_flic(tmp_path, examples=[flic_example(1, BOX, train=True)])
    assert len(read_flic(tmp_path, "train")) == 1 and read_flic(tmp_path, "test") == []


def test_it_is_read_alike_from_its_folder_and_from_its_archive(tmp_path):
    write_flic(tmp_path)
    unpacked = read_flic(tmp_path, "test")[1]
    pixels = unpacked.picture.read()
    path = as_archive(tmp_path, "FLIC.zip", prefix="FLIC/")
    packed = read_flic(tmp_path, "test")[1]
    assert str(packed.picture) == f"{path}:FLIC/images/film-00000005.jpg"
    np.testing.assert_array_equal(packed.points, unpacked.points)
    np.testing.assert_array_equal(packed.picture.read(), pixels)


# Bad input


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="FLIC has the splits train and test, not 'val'"):
        read_flic(tmp_path, "val")


def test_missing_files_are_named_with_what_the_set_is(tmp_path):
    with pytest.raises(MissingFileError, match=r"has no examples\.mat; FLIC is FLIC\.zip"):
        read_flic(tmp_path, "test")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    write_flic(tmp_path)
    path = tmp_path / "examples.mat"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"examples\.mat: (not a MATLAB file|damaged|has no variable)"):
        read_flic(tmp_path, "train")


def test_a_truncated_archive_is_named(tmp_path):
    write_flic(tmp_path)
    path = as_archive(tmp_path, "FLIC.zip")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"FLIC\.zip: damaged, or not a zip archive"):
        read_flic(tmp_path, "train")


def test_a_missing_picture_is_named_with_its_example(tmp_path):
    write_flic(tmp_path)
    (tmp_path / "images" / "film-00000003.jpg").unlink()
    with pytest.raises(DataError, match=r"examples\.mat: example 3: .*has no picture images/film-00000003\.jpg"):
        read_flic(tmp_path, "train")
    assert len(read_flic(tmp_path, "test")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coords": np.zeros((2, 28))}, r"expected coords of shape \(2, 29\), got \(2, 28\)"),
        ({"coords": "none"}, "could not convert"),
    ],
)
def test_a_broken_example_is_named(tmp_path, changes, message):
    write_flic(tmp_path, examples=[flic_example(1, BOX, train=True), flic_example(2, BOX, train=True, **changes)])
    with pytest.raises(DataError, match=rf"examples\.mat: example 2: {message}"):
        read_flic(tmp_path, "train")


@pytest.mark.parametrize("field", ["coords", "filepath", "istrain"])
def test_a_file_without_a_field_is_named_with_it(tmp_path, field):
    examples = [flic_example(number, BOX, train=True) for number in (1, 2)]
    write_flic(tmp_path, examples=examples)
    stripped = [{key: value for key, value in example.items() if key != field} for example in examples]
    (tmp_path / "examples.mat").write_bytes(matlab(examples=stripped))
    with pytest.raises(DataError, match=rf"examples\.mat: example 1: .*{field}"):
        read_flic(tmp_path, "train")


def test_examples_that_are_no_structures_are_named(tmp_path):
    write_flic(tmp_path)
    (tmp_path / "examples.mat").write_bytes(matlab(examples=np.arange(3.0)))
    with pytest.raises(DataError, match=r"examples\.mat: example 1: .*istrain"):
        read_flic(tmp_path, "train")
