import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from made_data import coco_annotation, encoded, figure, lsp_labels, picture, write_coco, write_lspet

from rmpe_jax.config import DataConfig
from rmpe_jax.data.coco import read_coco
from rmpe_jax.data.lsp import read_lspet
from rmpe_jax.data.people import DataError, Person, Picture, in_skeleton
from rmpe_jax.data.pipeline import (
    cut_canvas,
    evaluation_batches,
    load_canvases,
    pose_batch,
    training_people,
    training_positions,
    usable_people,
)
from rmpe_jax.skeleton import COCO_17, COCO_LSP_19, LSP_14

CONFIG = DataConfig(canvas=64, extension=0.3, canvas_margin=1.5, min_joints=5)


def person(box, points=None, path="p.jpg"):
    points = figure(LSP_14.joints, box) if points is None else np.array(points)
    area = (box[2] - box[0]) * (box[3] - box[1])
    labelled = np.ones(len(points), bool)
    return Person(Picture(Path(path)), 1, np.array(box, np.float32), points.astype(np.float32), labelled, float(area))


# LSPET


@pytest.mark.parametrize("joints_first", [False, True])
def test_lspet_is_read_in_either_order_of_axes(tmp_path, joints_first):
    path = write_lspet(tmp_path, joints_first=joints_first)
    people = read_lspet(tmp_path, "train")
    assert len(people) == 38
    labels = lsp_labels()
    for one in people:
        number = one.image_id
        assert str(one.picture) == f"{path}:images/im{number:05}.jpg"
        known = labels[number - 1, :, 2] > 0
        np.testing.assert_array_equal(one.labelled, known)
        np.testing.assert_allclose(one.points[known], labels[number - 1, known, :2], rtol=1e-6)
        assert (one.points[~known] == 0).all()


def test_lspet_pictures_are_decoded_from_the_archive(tmp_path):
    write_lspet(tmp_path, also={"images/im00003.jpg": encoded(picture(seed=3), "PNG")})
    third = read_lspet(tmp_path, "train")[2]
    np.testing.assert_array_equal(third.picture.read(), picture(seed=3))


def test_every_twentieth_lspet_picture_is_for_validation(tmp_path):
    write_lspet(tmp_path)
    train, val = ([p.image_id for p in read_lspet(tmp_path, split)] for split in ("train", "val"))
    assert val == [20, 40]
    assert sorted(train + val) == list(range(1, 41))


def test_the_box_of_lspet_is_a_tenth_larger_than_the_labelled_joints(tmp_path):
    labels = np.zeros((1, 14, 3))
    labels[0, :3] = [[10, 20, 1], [30, 70, 1], [15, 30, 1]]
    labels[0, 3] = [500, 500, 0]  # not labelled: does not count
    write_lspet(tmp_path, labels=labels)
    (one,) = read_lspet(tmp_path, "train")
    np.testing.assert_allclose(one.box, [9, 17.5, 31, 72.5], rtol=1e-6)
    assert one.area == pytest.approx(22 * 55)


def test_someone_without_any_lspet_label_has_an_empty_box_and_is_not_usable(tmp_path):
    labels = lsp_labels(2)
    labels[0, :, 2] = 0
    labels[1, :3, :2] = np.nan
    write_lspet(tmp_path, labels=labels)
    nobody, partial = people = read_lspet(tmp_path, "train")
    assert nobody.box.tolist() == [0, 0, 0, 0]
    assert partial.labelled.sum() == 11 and np.isfinite(partial.points).all()
    assert usable_people(people, 1) == [partial]


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="train and val"):
        read_lspet(tmp_path, "test")


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(DataError, match=r"lspet_dataset\.zip: no such file"):
        read_lspet(tmp_path, "val")


def test_a_truncated_archive_is_named(tmp_path):
    path = write_lspet(tmp_path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"lspet_dataset\.zip: damaged"):
        read_lspet(tmp_path, "val")


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", bytes(300)])
def test_joints_that_are_no_matlab_file_are_damage(tmp_path, content):
    write_lspet(tmp_path, also={"joints.mat": content})
    with pytest.raises(DataError, match=r"lspet_dataset\.zip: damaged"):
        read_lspet(tmp_path, "val")


def test_an_archive_without_joints_is_named(tmp_path):
    write_lspet(tmp_path, leave_out=["joints.mat"])
    with pytest.raises(DataError, match=r"lspet_dataset\.zip.*joints\.mat"):
        read_lspet(tmp_path, "val")


def test_joints_under_another_name_are_not_found(tmp_path):
    matlab = io.BytesIO()
    scipy.io.savemat(matlab, {"points": lsp_labels()})
    write_lspet(tmp_path, also={"joints.mat": matlab.getvalue()})
    with pytest.raises(DataError, match=r"lspet_dataset\.zip.*'joints'"):
        read_lspet(tmp_path, "val")


def test_joints_of_another_shape_are_named_with_it(tmp_path):
    write_lspet(tmp_path, labels=lsp_labels()[:, :13])
    with pytest.raises(DataError, match=r"shape \(40, 13, 3\), expected \(people, 14, 3\)"):
        read_lspet(tmp_path, "val")


def test_a_missing_lspet_picture_is_named(tmp_path):
    write_lspet(tmp_path, leave_out=["images/im00007.jpg"])
    with pytest.raises(DataError, match="40 people, but picture 7 is not in the archive"):
        read_lspet(tmp_path, "val")


def test_other_pictures_in_the_archive_are_not_people(tmp_path):
    also = {"images/thumbnail.jpg": b"", "__MACOSX/images/._im00001.jpg": b"", "images/im2.jpg.txt": b""}
    write_lspet(tmp_path, also=also)
    assert read_lspet(tmp_path, "train")[0].picture.member == "images/im00001.jpg"


# COCO


def test_coco_people_are_read_with_their_boxes_joints_and_areas(tmp_path):
    changed = coco_annotation(2, 2, (90.0, 15.0, 140.0, 85.0), num_keypoints=15)
    changed["keypoints"][:6] = [7, 7, 0, 8, 8, 1]  # the nose is not labelled, the left eye is hidden
    write_coco(tmp_path, annotations=[coco_annotation(1, 1, (10.0, 5.0, 60.0, 90.0)), changed])
    one, two = read_coco(tmp_path, "val2017")
    assert one.box.tolist() == [10, 5, 60, 90] and one.area == pytest.approx(50 * 85 * 0.6) and one.labelled.all()
    np.testing.assert_allclose(one.points, figure(COCO_17.joints, one.box), rtol=1e-6)
    assert two.picture.path == tmp_path / "val2017" / "000000000002.jpg" and two.image_id == 2
    assert two.labelled.tolist() == [False] + [True] * 16
    assert two.points[:2].tolist() == [[0, 0], [8, 8]]
    assert two.picture.read().shape == (96, 160, 3)


def test_crowds_and_people_with_few_joints_are_left_out(tmp_path):
    box = (10.0, 5.0, 60.0, 90.0)
    annotations = [
        coco_annotation(1, 1, box, iscrowd=1),
        coco_annotation(2, 1, box, num_keypoints=0),
        coco_annotation(3, 1, box, num_keypoints=4),
        coco_annotation(4, 1, box, num_keypoints=5, area=77),
    ]
    write_coco(tmp_path, annotations=annotations)
    assert [p.area for p in read_coco(tmp_path, "val2017", min_joints=5)] == [77]
    assert len(read_coco(tmp_path, "val2017")) == 2


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"person_keypoints_val2017\.json: no such file"):
        read_coco(tmp_path, "val2017")


def test_malformed_annotations_are_named_with_their_line(tmp_path):
    path = write_coco(tmp_path)
    path.write_text('{"images": [],\n "annotations": [}\n')
    with pytest.raises(DataError, match=r"val2017\.json: malformed JSON at line 2"):
        read_coco(tmp_path, "val2017")


def test_annotations_that_are_not_text_are_named(tmp_path):
    path = write_coco(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"val2017\.json: cannot be read"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": [], "annotations": None}, {"images": 3}])
def test_a_file_that_is_not_cocos_is_named(tmp_path, content):
    write_coco(tmp_path).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"val2017\.json: expected.*images and annotations"):
        read_coco(tmp_path, "val2017")


def test_an_image_without_a_file_name_is_named(tmp_path):
    write_coco(tmp_path).write_text(json.dumps({"images": [{"id": 3}], "annotations": []}))
    with pytest.raises(DataError, match="file_name"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 99}, "annotation 12 is of picture 99, which is not listed"),
        ({"keypoints": [1.0, 2.0, 2.0]}, "expected 51 numbers"),
        ({"keypoints": ["left"] * 51}, "could not convert"),
        ({"keypoints": [float("nan")] * 51}, "not finite"),
        ({"bbox": [1.0, 2.0, 3.0]}, "unpack"),
        ({"area": None}, "float"),
    ],
)
def test_a_broken_annotation_is_named_with_its_place(tmp_path, changes, message):
    box = (10.0, 5.0, 60.0, 90.0)
    write_coco(tmp_path, annotations=[coco_annotation(11, 1, box), coco_annotation(12, 1, box) | changes])
    with pytest.raises(DataError, match=rf"val2017\.json: annotation number 2: .*{message}"):
        read_coco(tmp_path, "val2017")


def test_an_annotation_that_lacks_a_field_is_named_with_its_place(tmp_path):
    record = coco_annotation(1, 1, (10.0, 5.0, 60.0, 90.0))
    del record["keypoints"]
    write_coco(tmp_path, annotations=[record])
    with pytest.raises(DataError, match="annotation number 1: KeyError: 'keypoints'"):
        read_coco(tmp_path, "val2017")


# People of both


def test_people_take_the_joints_of_another_skeleton_by_name():
    one = person((10, 10, 60, 90))
    (other,) = in_skeleton([one], LSP_14, COCO_LSP_19)
    for index, joint in enumerate(COCO_LSP_19.joints):
        if joint in LSP_14.joints:
            assert other.labelled[index]
            np.testing.assert_array_equal(other.points[index], one.points[LSP_14.joints.index(joint)])
        else:
            assert not other.labelled[index] and (other.points[index] == 0).all()


def test_training_people_come_from_both_data_sets(tmp_path):
    write_lspet(tmp_path / "lsp")
    write_coco(tmp_path / "coco", split="train2017")
    config = dataclasses.replace(CONFIG, lspet=str(tmp_path / "lsp"), coco=str(tmp_path / "coco"), coco_repeat=3)
    people = training_people(config, COCO_LSP_19)
    assert len(people) == 38 + 3 * 6
    assert {p.labelled.size for p in people} == {19}


def test_no_training_data_says_what_to_set():
    with pytest.raises(DataError, match=r"data\.lspet or data\.coco"):
        training_people(DataConfig(), LSP_14)


def test_people_whose_box_is_too_small_are_not_usable():
    boxes = [(5, 5, 6.5, 90), (5, 5, 7, 90), (5, 5, 3, 90), (np.nan, 5, 9, 90)]
    assert [tuple(p.box) for p in usable_people([person(box) for box in boxes], 5)] == [(5, 5, 7, 90)]


# Canvases


def test_a_bright_pixel_at_a_joint_is_found_at_its_canvas_point():
    joints = np.array([[30, 40], [60, 90], [45, 63]])
    for index, (x, y) in enumerate(joints):
        image = np.zeros((160, 120, 3), np.uint8)
        image[y, x] = 255
        cut = cut_canvas(image, person((20, 30, 70, 100), joints), dataclasses.replace(CONFIG, canvas=410))
        bright = np.argwhere(cut.canvas[0, ..., 0] == cut.canvas.max())[:, ::-1]
        # At three canvas pixels for one of the picture the pixel is a plateau: its middle is the joint.
        np.testing.assert_allclose(bright.mean(0), cut.points[0, index], atol=0.6)


def test_a_canvas_as_large_as_its_square_is_the_picture_itself():
    image = picture(200, 200)
    box = (60.0, 70.0, 124.0, 134.0)
    side = int(np.ceil(64 * 1.3 * 1.5))
    cut = cut_canvas(image, person(box), dataclasses.replace(CONFIG, canvas=side))
    start = np.round(np.array([92, 102]) - (side - 1) / 2).astype(int)
    np.testing.assert_array_equal(cut.canvas[0], image[start[1] : start[1] + side, start[0] : start[0] + side])
    np.testing.assert_allclose(cut.points[0], figure(LSP_14.joints, box) - start, atol=1e-4)
    np.testing.assert_allclose(cut.box[0], np.array(box) - np.tile(start, 2), atol=1e-4)


def test_a_shrinking_cut_keeps_the_mean_of_the_picture():
    image = picture(300, 300)
    cut = cut_canvas(image, person((100, 100, 200, 200)), dataclasses.replace(CONFIG, canvas=39))
    assert cut.canvas.mean() == pytest.approx(image[52:247, 52:247].mean(), abs=0.5)


def test_what_lies_outside_the_picture_is_black():
    image = np.full((100, 100, 3), 200, np.uint8)
    cut = cut_canvas(image, person((80, 80, 130, 130)), CONFIG)
    scale = 64 / 98
    edge = round((100 - (105 - 48.5)) * scale)
    assert (cut.canvas[0, : edge - 1, : edge - 1] == 200).all()
    assert (cut.canvas[0, edge + 1 :] == 0).all() and (cut.canvas[0, :, edge + 1 :] == 0).all()


@pytest.mark.parametrize("box", [(-500, -400, -300, -100), (500, 10, 600, 90), (10, 300, 60, 500)])
def test_someone_wholly_outside_the_picture_gets_a_black_canvas(box):
    cut = cut_canvas(picture(), person(box), CONFIG)
    assert (cut.canvas == 0).all() and np.isfinite(cut.points).all() and np.isfinite(cut.box).all()


@pytest.mark.parametrize("factor", [10, 1e6])
def test_a_huge_box_takes_no_huge_memory_and_keeps_its_points_right(factor):
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:24, 30:34] = 255
    box = np.array([40, 30, 40, 30]) + factor * 40 * np.array([-1, -1, 1, 1])
    cut = cut_canvas(image, person(box, [[31.5, 21.5]] * 14), dataclasses.replace(CONFIG, canvas=240))
    bright = np.argwhere(cut.canvas[0, ..., 0] > 200)[:, ::-1]
    np.testing.assert_allclose(bright.mean(0), cut.points[0, 0], atol=0.6)


def test_points_without_a_label_stay_zero_on_the_canvas():
    one = person((20, 30, 70, 100))
    labelled = np.arange(14) % 2 == 0
    cut = cut_canvas(picture(), dataclasses.replace(one, labelled=labelled), CONFIG)
    assert (cut.points[0, ~labelled] == 0).all() and (cut.points[0, labelled] != 0).all()
    np.testing.assert_array_equal(cut.labelled[0], labelled)


def people_of_files(folder, count):
    people = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        path.write_bytes(encoded(picture(64, 64, seed=number)))
        people.append(person((10, 10, 40, 50 + number % 9), path=path))
    return people


def test_canvases_are_in_the_order_of_the_people_whatever_the_workers(tmp_path):
    people = people_of_files(tmp_path, 6)
    people += [dataclasses.replace(people[2], box=np.array([5, 5, 30, 30], np.float32))]  # a second one in a picture
    one, many = (load_canvases(people, CONFIG, workers=workers) for workers in (1, 4))
    assert len(one) == 7
    for index, whom in enumerate(people):
        expected = cut_canvas(whom.picture.read(), whom, CONFIG)
        for field in dataclasses.fields(expected):
            np.testing.assert_array_equal(getattr(one, field.name)[index], getattr(expected, field.name)[0])
            np.testing.assert_array_equal(getattr(one, field.name), getattr(many, field.name))


def test_a_corrupt_picture_in_a_hundred_is_named_and_its_people_are_left_out(tmp_path):
    people = people_of_files(tmp_path, 100)
    people.append(dataclasses.replace(people[40]))
    (tmp_path / "40.jpg").write_bytes(b"nothing")
    said = []
    canvases = load_canvases(people, CONFIG, report=said.append)
    assert len(said) == 1 and "left out: " in said[0] and str(tmp_path / "40.jpg") in said[0]
    assert len(canvases) == 99
    np.testing.assert_array_equal(canvases.box[40], cut_canvas(picture(64, 64), people[41], CONFIG).box[0])


def test_more_corrupt_pictures_than_one_in_a_hundred_stop_the_run(tmp_path):
    people = people_of_files(tmp_path, 100)
    for number in (7, 8):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    said = []
    with pytest.raises(DataError, match=r"2 of 100 pictures cannot be read; the first: .*7\.jpg"):
        load_canvases(people, CONFIG, report=said.append)
    assert len(said) == 2


def test_a_damaged_member_of_the_archive_is_named(tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bmp", encoded(picture(), "BMP"))
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    people = [dataclasses.replace(person((10, 10, 40, 50)), picture=Picture(path, "a.bmp"))]
    with pytest.raises(DataError, match=r"1 of 1 pictures.*damaged\.zip:a\.bmp: "):
        load_canvases(people, CONFIG, report=lambda line: None)


def test_a_missing_archive_or_member_is_named(tmp_path):
    write_lspet(tmp_path)
    gone = [Picture(tmp_path / "none.zip", "a.jpg"), Picture(tmp_path / "lspet_dataset.zip", "images/im99999.jpg")]
    for one in gone:
        with pytest.raises(ValueError, match=f"{one.path.name}:{one.member}"):
            one.read()


# Batches


def test_a_batch_depends_on_the_seed_and_the_step_only():
    first = [training_positions(50, 8, seed=3, step=step) for step in (0, 5, 6, 77)]
    again = [training_positions(50, 8, seed=3, step=step) for step in (77, 6, 5, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    assert any((training_positions(50, 8, seed=4, step=0) != first[0]).tolist())


@pytest.mark.parametrize(("count", "batch"), [(48, 8), (50, 8), (8, 8), (5, 1)])
def test_an_epoch_shows_everybody_at_most_once_and_leaves_out_only_the_rest(count, batch):
    steps = count // batch
    orders = []
    for epoch in range(3):
        shown = [training_positions(count, batch, seed=0, step=epoch * steps + place) for place in range(steps)]
        order = np.concatenate(shown)
        assert len(np.unique(order)) == len(order) == steps * batch and order.min() >= 0 and order.max() < count
        orders.append(order.tolist())
    assert steps == 1 or len({tuple(order) for order in orders}) == 3


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(DataError, match="batch of 9 people is larger than the 8 people"):
        training_positions(8, 9, seed=0, step=0)


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_evaluation_shows_everybody_once_in_batches_of_one_shape(tmp_path, count, batch):
    canvases = load_canvases(people_of_files(tmp_path, count), CONFIG)
    seen = []
    for part in evaluation_batches(canvases, batch):
        assert part.canvas.shape == (batch, 64, 64, 3) and part.points.shape == (batch, 14, 2)
        assert np.isfinite(part.points).all()
        seen.append(np.asarray(part.box)[np.asarray(part.valid)])
    np.testing.assert_array_equal(np.concatenate(seen), canvases.box)


def test_a_batch_numbers_its_people_and_pads_with_invalid_copies(tmp_path):
    canvases = load_canvases(people_of_files(tmp_path, 4), CONFIG)
    part = pose_batch(canvases, np.array([3, 1]), 5)
    assert part.index.tolist() == [0, 1, 2, 3, 4]
    assert part.valid.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(part.box[:2], canvases.box[[3, 1]])


# The real data sets


def test_lspet_has_9500_people_to_train_and_500_to_validate(real_data):
    train, val = (read_lspet(real_data / "lspet", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (9500, 500)
    assert len(usable_people(val, 1)) == 500
    image = val[0].picture.read()
    inside = (val[0].points[val[0].labelled] < image.shape[1::-1]).all()
    assert image.dtype == np.uint8 and image.shape[2] == 3 and inside


@pytest.mark.parametrize(("split", "people"), [("train2017", 503), ("val2017", 97)])
def test_coco_has_the_people_that_its_readme_counts(real_data, split, people):
    found = usable_people(read_coco(real_data / "coco", split, min_joints=5), 5)
    assert len(found) == people
    assert all(one.picture.path.is_file() for one in found)
