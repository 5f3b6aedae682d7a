import numpy as np
import pytest
from made_data import as_archive, encoded, lsp_labels, matlab, picture, write_lsp, write_lspet

from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.lsp import read_lsp, read_lspet
from rmpe_jax.data.people import people_in
from rmpe_jax.skeleton import LSP_14


@pytest.mark.parametrize("joints_first", [False, True])
def test_lspet_is_read_in_either_order_of_axes(tmp_path, joints_first):
    path = write_lspet(tmp_path, joints_first=joints_first)
    records = read_lspet(tmp_path, "train")
    assert len(records) == 38
    labels = lsp_labels()
    for record in records:
        number = record.image_id
        assert str(record.picture) == f"{path}:images/im{number:05}.jpg" and len(record) == 1
        known = labels[number - 1, :, 2] > 0
        np.testing.assert_array_equal(record.visibility, [2 * known])
        np.testing.assert_array_equal(record.points[0, known], labels[number - 1, known, :2])
        assert (record.points[0, ~known] == 0).all()


def test_lspet_people_stand_alone_and_have_no_head_box_place_or_scale(tmp_path):
    write_lspet(tmp_path)
    record = read_lspet(tmp_path, "val")[0]
    assert record.single.tolist() == [True] and record.group.tolist() == [-1] and record.crowd.tolist() == [False]
    for field in (record.heads, record.centres, record.scale, record.crowd_index):
        assert np.isnan(field).all()


def test_lspet_pictures_are_decoded_from_the_archive(tmp_path):
    write_lspet(tmp_path, also={"images/im00003.jpg": encoded(picture(seed=3), "PNG")})
    third = read_lspet(tmp_path, "train")[2]
    np.testing.assert_array_equal(third.picture.read(), picture(seed=3))


@pytest.mark.parametrize("prefix", ["", "lspet_dataset/"])
def test_lspet_is_read_alike_from_its_folder_and_from_an_archive_with_a_folder(tmp_path, prefix):
    labels = lsp_labels(20)
    write_lsp(tmp_path, labels=labels, digits=5, extended=True)
    unpacked = read_lspet(tmp_path, "val")[0]
    assert str(unpacked.picture) == f"{tmp_path}/images/im00020.jpg"
    pixels = unpacked.picture.read()
    path = as_archive(tmp_path, "lspet_dataset.zip", prefix=prefix)
    packed = read_lspet(tmp_path, "val")[0]
    assert str(packed.picture) == f"{path}:{prefix}images/im00020.jpg"
    np.testing.assert_array_equal(packed.points, unpacked.points)
    np.testing.assert_array_equal(packed.picture.read(), pixels)


def test_one_sets_file_is_not_taken_for_the_others(tmp_path):
    write_lsp(tmp_path / "lspet", digits=5, extended=True)
    with pytest.raises(
        DataError, match=r"joints\.mat: joints have the shape \(14, 3, 8\) of LSPET's file, expected LSP's"
    ):
        read_lsp(tmp_path / "lspet", "test")
    write_lsp(tmp_path / "lsp")
    with pytest.raises(
        DataError, match=r"joints\.mat: joints have the shape \(3, 14, 8\) of LSP's file, expected LSPET's"
    ):
        read_lspet(tmp_path / "lsp", "val")


def test_every_twentieth_lspet_picture_is_for_validation(tmp_path):
    write_lspet(tmp_path)
    train, val = ([record.image_id for record in read_lspet(tmp_path, split)] for split in ("train", "val"))
    assert val == [20, 40]
    assert sorted(train + val) == list(range(1, 41))


def test_the_box_of_lspet_is_a_tenth_larger_than_the_labelled_joints(tmp_path):
    labels = np.zeros((2, 14, 3))
    labels[0, :3] = [[10, 20, 1], [30, 70, 1], [15, 30, 1]]
    labels[0, 3] = [500, 500, 0]  # not labelled: does not count
    write_lspet(tmp_path, labels=labels)
    record = read_lspet(tmp_path, "train")[0]
    np.testing.assert_allclose(record.boxes, [[9, 17.5, 31, 72.5]], rtol=1e-12)
    assert record.area.tolist() == pytest.approx([22 * 55])


def test_someone_without_any_lspet_label_has_an_empty_box_and_is_nobody_to_find(tmp_path):
    labels = lsp_labels(2)
    labels[0, :, 2] = 0
    labels[1, :3, :2] = np.nan
    write_lspet(tmp_path, labels=labels)
    nobody, partial = records = read_lspet(tmp_path, "train")
    assert nobody.boxes.tolist() == [[0, 0, 0, 0]]
    assert (partial.visibility > 0).sum() == 11 and np.isfinite(partial.points).all()
    assert [person.image_id for person in people_in(records)] == [2]


def test_lsp_labels_every_joint_and_marks_hidden_ones(tmp_path):
    labels = lsp_labels(8)  # without a right wrist in every third picture
    labels[..., 2] = 1 - labels[..., 2]
    write_lsp(tmp_path, labels=labels)
    records = read_lsp(tmp_path, "train") + read_lsp(tmp_path, "test")
    wrist = LSP_14.joints.index("right_wrist")
    for record, joints in zip(records, labels, strict=True):
        hidden = np.arange(14) == wrist if record.image_id in (1, 4, 7) else np.zeros(14, bool)
        np.testing.assert_array_equal(record.visibility, [np.where(hidden, 1, 2)])
        np.testing.assert_array_equal(record.points, [joints[:, :2]])


def test_lsp_trains_on_its_first_half_and_tests_on_the_second(tmp_path):
    write_lsp(tmp_path)
    train, test = ([record.image_id for record in read_lsp(tmp_path, split)] for split in ("train", "test"))
    assert train == [1, 2, 3, 4] and test == [5, 6, 7, 8]


@pytest.mark.parametrize("archive", ["lsp_dataset.zip", "lsp_dataset_original.zip"])
def test_lsp_is_read_from_either_of_its_archives(tmp_path, archive):
    write_lsp(tmp_path)
    unpacked = read_lsp(tmp_path, "test")[0]
    assert str(unpacked.picture) == f"{tmp_path}/images/im0005.jpg"
    path = as_archive(tmp_path, archive)
    packed = read_lsp(tmp_path, "test")[0]
    assert str(packed.picture) == f"{path}:images/im0005.jpg" and packed.picture.read().shape == (96, 160, 3)
    np.testing.assert_array_equal(packed.points, unpacked.points)


# Bad input


@pytest.mark.parametrize(
    ("read", "split", "known"), [(read_lspet, "test", "LSPET.*train and val"), (read_lsp, "val", "LSP.*train and test")]
)
def test_an_unknown_split_names_the_known_ones(tmp_path, read, split, known):
    with pytest.raises(DataError, match=known):
        read(tmp_path, split)


@pytest.mark.parametrize(("read", "archive"), [(read_lspet, "lspet_dataset"), (read_lsp, "lsp_dataset")])
def test_missing_files_are_named_with_the_archive_that_has_them(tmp_path, read, archive):
    with pytest.raises(MissingFileError, match=rf"has no joints\.mat; .* is {archive}\.zip"):
        read(tmp_path, "train")
    with pytest.raises(MissingFileError, match=rf"none: no such folder; .* is {archive}\.zip"):
        read(tmp_path / "none", "train")


def test_a_truncated_archive_is_named(tmp_path):
    path = write_lspet(tmp_path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"lspet_dataset\.zip: damaged"):
        read_lspet(tmp_path, "val")


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", bytes(300), matlab(joints=lsp_labels())[:1000]])
def test_joints_that_are_no_matlab_file_are_named(tmp_path, content):
    write_lspet(tmp_path, also={"joints.mat": content})
    with pytest.raises(DataError, match=r"lspet_dataset\.zip:joints\.mat: (not a MATLAB file|damaged)"):
        read_lspet(tmp_path, "val")


def test_an_archive_without_joints_is_named(tmp_path):
    write_lspet(tmp_path, leave_out=["joints.mat"])
    with pytest.raises(MissingFileError, match=r"has no joints\.mat"):
        read_lspet(tmp_path, "val")


def test_joints_under_another_name_are_not_found(tmp_path):
    write_lspet(tmp_path, also={"joints.mat": matlab(points=lsp_labels())})
    with pytest.raises(DataError, match=r"lspet_dataset\.zip:joints\.mat.*'joints'"):
        read_lspet(tmp_path, "val")


@pytest.mark.parametrize("labels", [lsp_labels()[:, :13], lsp_labels()[..., :2], lsp_labels()[0]])
def test_joints_of_another_shape_are_named_with_it(tmp_path, labels):
    write_lspet(tmp_path, also={"joints.mat": matlab(joints=labels)})
    with pytest.raises(DataError, match=r"joints\.mat: joints have the shape \(.*\), expected 14 joints of 3 numbers"):
        read_lspet(tmp_path, "val")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_lsp_joints_that_are_not_finite_are_named_with_their_picture(tmp_path, value):
    labels = lsp_labels(8)
    labels[5, 3, 1] = value
    write_lsp(tmp_path, labels=labels)
    with pytest.raises(DataError, match=r"joints\.mat: picture 6: person 1: points holds numbers that are not finite"):
        read_lsp(tmp_path, "test")


def test_a_missing_picture_is_named(tmp_path):
    write_lspet(tmp_path, leave_out=["images/im00020.jpg"])
    with pytest.raises(DataError, match=r"joints\.mat: labels picture 20, but .* has no images/im00020\.jpg"):
        read_lspet(tmp_path, "val")
    assert len(read_lspet(tmp_path, "train")) == 38


def test_other_pictures_in_the_archive_are_not_people(tmp_path):
    also = {"images/thumbnail.jpg": b"", "__MACOSX/images/._im00001.jpg": b"", "images/im2.jpg.txt": b""}
    write_lspet(tmp_path, also=also)
    assert read_lspet(tmp_path, "train")[0].picture.member == "images/im00001.jpg"


# The real data set


def test_lspet_has_9500_people_to_train_and_500_to_validate(real_data):
    train, val = (read_lspet(real_data / "lspet", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (9500, 500)
    assert len(people_in(train)) == 9500 and len(people_in(val)) == 500
    image = val[0].picture.read()
    inside = (val[0].points[val[0].visibility > 0] < image.shape[1::-1]).all()
    assert image.dtype == np.uint8 and image.shape[2] == 3 and inside
