import json

import numpy as np
import pytest
from made_data import as_archive, coco_annotation, crowdpose_annotation, figure, write_coco, write_crowdpose

from rmpe_jax.data.coco import coco_annotations, read_coco, read_coco_annotations, read_crowdpose
from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.people import people_in
from rmpe_jax.skeleton import COCO_17, CROWDPOSE_14

BOX = (10.0, 5.0, 60.0, 90.0)


def test_coco_people_are_read_with_their_boxes_joints_and_areas(tmp_path):
    changed = coco_annotation(2, 2, (90.0, 15.0, 140.0, 85.0), num_keypoints=15)
    changed["keypoints"][:6] = [7, 7, 0, 8, 8, 1]  # the nose is not labelled, the left eye is hidden
    write_coco(tmp_path, annotations=[coco_annotation(1, 1, BOX), changed])
    one, two, nobody = read_coco(tmp_path, "val2017")
    assert one.boxes.tolist() == [list(BOX)] and one.area.tolist() == pytest.approx([50 * 85 * 0.6])
    assert (one.visibility == 2).all() and np.isnan(one.crowd_index)
    np.testing.assert_array_equal(one.points, [figure(COCO_17.joints, BOX)])
    assert two.picture.path == tmp_path / "val2017" / "000000000002.jpg" and two.image_id == 2
    assert two.visibility.tolist() == [[0, 1] + [2] * 15]
    assert two.points[0, :2].tolist() == [[0, 0], [8, 8]]
    assert two.picture.read().shape == (96, 160, 3)
    assert nobody.image_id == 3 and len(nobody) == 0 and nobody.points.shape == (0, 17, 2)


def test_crowds_and_people_without_keypoints_are_kept_and_marked(tmp_path):
    annotations = [
        coco_annotation(1, 1, BOX, iscrowd=1, keypoints=[0] * 51, num_keypoints=0, segmentation={"counts": []}),
        coco_annotation(2, 1, BOX, keypoints=[0] * 51, num_keypoints=0),
        coco_annotation(3, 1, BOX, area=77),
    ]
    write_coco(tmp_path, annotations=annotations)
    record = read_coco(tmp_path, "val2017")[0]
    assert record.crowd.tolist() == [True, False, False]
    assert (record.visibility > 0).sum(1).tolist() == [0, 0, 17] and record.area[2] == 77
    assert [person.area for person in people_in([record])] == [77]


def test_coco_is_read_alike_from_its_folders_and_from_its_archives(tmp_path):
    write_coco(tmp_path)
    unpacked = read_coco(tmp_path, "val2017")
    pixels = unpacked[1].picture.read()
    as_archive(tmp_path / "val2017", "val2017.zip", prefix="val2017/").rename(tmp_path / "val2017.zip")
    archive = as_archive(tmp_path / "annotations", "a.zip", prefix="annotations/")
    archive.rename(tmp_path / "annotations_trainval2017.zip")
    packed = read_coco(tmp_path, "val2017")
    assert str(packed[1].picture) == f"{tmp_path}/val2017.zip:val2017/000000000002.jpg"
    np.testing.assert_array_equal(packed[1].picture.read(), pixels)
    for one, other in zip(packed, unpacked, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_each_coco_split_has_its_own_pictures(tmp_path):
    write_coco(tmp_path, split="train2017", pictures=2)
    write_coco(tmp_path, split="val2014", pictures=1)
    assert [len(read_coco(tmp_path, split)) for split in ("train2017", "val2014")] == [2, 1]


def test_cocos_test_sets_have_pictures_and_no_people(tmp_path):
    path = write_coco(tmp_path, split="test2017")
    about = {"images": json.loads(path.read_text())["images"][:2], "categories": []}
    (path.parent / "image_info_test-dev2017.json").write_text(json.dumps(about))
    records = read_coco(tmp_path, "test_dev2017")
    assert [len(record) for record in records] == [0, 0]
    assert records[0].picture.path == tmp_path / "test2017" / "000000000001.jpg"


def test_people_written_as_coco_annotations_are_read_back_the_same(tmp_path):
    annotations = [coco_annotation(1, 1, BOX), coco_annotation(2, 2, BOX, iscrowd=1), coco_annotation(3, 2, BOX)]
    annotations[2]["keypoints"][:6] = [0, 0, 0, 8, 8, 1]
    path = write_coco(tmp_path, annotations=annotations)
    records = read_coco(tmp_path, "val2017")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": coco_annotations(records)}))
    for one, other in zip(read_coco(tmp_path, "val2017"), records, strict=True):
        for field in ("points", "visibility", "boxes", "area", "crowd"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert [record.picture.name for record in records] == [f"{number:012}.jpg" for number in (1, 2, 3)]


# CrowdPose


def test_crowdpose_has_its_joints_crowd_index_and_half_the_box_as_area(tmp_path):
    annotations = [crowdpose_annotation(1, 101, BOX), crowdpose_annotation(2, 101, (70.0, 5.0, 100.0, 80.0))]
    annotations[1]["keypoints"][:6] = [0, 0, 0, 8, 8, 1]
    write_crowdpose(tmp_path, annotations=annotations)
    records = read_crowdpose(tmp_path, "val")
    assert [record.image_id for record in records] == [101, 102, 103]
    assert [record.crowd_index for record in records] == [0.0, 0.45, 0.9]
    assert [len(record) for record in records] == [2, 0, 0]
    first = records[0]
    np.testing.assert_array_equal(first.points[0], figure(CROWDPOSE_14.joints, BOX))
    assert first.visibility[1].tolist() == [0, 1] + [2] * 12
    assert first.area.tolist() == pytest.approx([0.53 * 50 * 85, 0.53 * 30 * 75])
    assert first.boxes.tolist() == [list(BOX), [70, 5, 100, 80]]


@pytest.mark.parametrize("place", ["", "json", "annotations"])
def test_crowdpose_is_read_from_any_usual_folder_and_from_its_archive(tmp_path, place):
    path = write_crowdpose(tmp_path, split="trainval")
    (tmp_path / place).mkdir(exist_ok=True)
    path.rename(tmp_path / place / path.name)
    assert read_crowdpose(tmp_path, "trainval")[0].picture.path == tmp_path / "images" / "101.jpg"
    as_archive(tmp_path / "images", "images.zip", prefix="images/").rename(tmp_path / "images.zip")
    records = read_crowdpose(tmp_path, "trainval")
    assert len(records) == 3 and records[2].picture.read().shape == (96, 160, 3)


def test_an_unknown_crowdpose_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="CrowdPose has the splits train, val, test, trainval, not 'val2017'"):
        read_crowdpose(tmp_path, "val2017")


# Bad input


def test_a_missing_annotation_file_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(MissingFileError, match=r"has no .*person_keypoints_val2017\.json.*cocodataset\.org"):
        read_coco(tmp_path, "val2017")
    with pytest.raises(MissingFileError, match=r"has no crowdpose_val\.json.*CrowdPose is"):
        read_crowdpose(tmp_path, "val")


def test_a_missing_picture_is_named_with_its_record(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(DataError, match=r"val2017\.json: image number 2: .*has no picture val2017/000000000002\.jpg"):
        read_coco(tmp_path, "val2017")


def test_malformed_annotations_are_named_with_their_line(tmp_path):
    path = write_coco(tmp_path)
    path.write_text('{"images": [],\n "annotations": [}\n')
    with pytest.raises(DataError, match=r"val2017\.json: malformed JSON at line 2"):
        read_coco(tmp_path, "val2017")


def test_truncated_annotations_are_named(tmp_path):
    path = write_coco(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"val2017\.json: malformed JSON at line 1"):
        read_coco(tmp_path, "val2017")


def test_annotations_that_are_not_text_are_named(tmp_path):
    path = write_coco(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"val2017\.json: JSON that cannot be held"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize("archive", ["annotations_trainval2017.zip", "val2017.zip"])
def test_a_damaged_archive_is_named(tmp_path, archive):
    write_coco(tmp_path)
    (tmp_path / archive).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=rf"{archive}: damaged, or not a zip archive"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an object with a list of images"),
        ({"annotations": []}, "an object with a list of images"),
        ({"images": 3}, "an object with a list of images"),
        ({"images": [], "annotations": None}, "annotations as a list"),
    ],
)
def test_a_file_that_is_not_cocos_is_named(tmp_path, content, message):
    write_coco(tmp_path).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"val2017\.json: expected {message}"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"id": 3}, "no file_name"),
        ({"file_name": "000000000001.jpg"}, "no id"),
        ("000000000001.jpg", "a field of the wrong type"),
        ({"id": "one", "file_name": "000000000001.jpg"}, "invalid literal"),
        ({"id": [1], "file_name": "000000000001.jpg"}, "a field of the wrong type"),
        ({"id": 1, "file_name": "000000000001.jpg", "crowdIndex": "low"}, "could not convert"),
    ],
)
def test_a_broken_image_is_named_with_its_place(tmp_path, image, message):
    write_coco(tmp_path).write_text(json.dumps({"images": [image], "annotations": []}))
    with pytest.raises(DataError, match=rf"val2017\.json: image number 1: .*{message}"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 99}, "is of picture 99, which is not listed"),
        ({"image_id": []}, "a field of the wrong type"),
        ({"keypoints": [1.0, 2.0, 2.0]}, "expected 51 numbers"),
        ({"keypoints": ["left"] * 51}, "could not convert"),
        ({"keypoints": [float("nan")] * 51}, "not finite"),
        ({"bbox": [1.0, 2.0, 3.0]}, "unpack"),
        ({"area": None}, "a field of the wrong type"),
    ],
)
def test_a_broken_annotation_is_named_with_its_place(tmp_path, changes, message):
    write_coco(tmp_path, annotations=[coco_annotation(11, 1, BOX), coco_annotation(12, 1, BOX) | changes])
    with pytest.raises(DataError, match=rf"val2017\.json: annotation number 2: .*{message}"):
        read_coco(tmp_path, "val2017")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [10.0, 5.0, -50.0, 85.0]}, r"bbox: width and height are -50\.0 and 85\.0"),
        ({"bbox": [10.0, 5.0, float("inf"), 85.0]}, "boxes holds numbers that are not finite"),
        ({"area": float("nan")}, "area is nan"),
    ],
)
def test_an_impossible_box_or_area_is_named_with_picture_and_person(tmp_path, changes, message):
    write_coco(tmp_path, annotations=[coco_annotation(11, 2, BOX), coco_annotation(12, 2, BOX) | changes])
    with pytest.raises(DataError, match=rf"val2017\.json: (image number 2: person 2|annotation number 2): {message}"):
        read_coco(tmp_path, "val2017")


def test_a_number_that_comes_twice_is_named(tmp_path):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image number 4: id 1 again"):
        read_coco(tmp_path, "val2017")


def test_annotations_of_other_categories_are_left_out(tmp_path):
    write_coco(tmp_path, annotations=[coco_annotation(1, 1, BOX), coco_annotation(2, 1, BOX, category_id=18)])
    assert len(read_coco(tmp_path, "val2017")[0]) == 1


@pytest.mark.parametrize("field", ["keypoints", "bbox", "image_id"])
def test_an_annotation_that_lacks_a_field_is_named_with_its_place(tmp_path, field):
    record = coco_annotation(1, 1, BOX)
    del record[field]
    write_coco(tmp_path, annotations=[record])
    with pytest.raises(DataError, match=f"annotation number 1: no {field}"):
        read_coco(tmp_path, "val2017")


def test_a_broken_crowdpose_annotation_is_named_with_its_place(tmp_path):
    write_crowdpose(tmp_path, annotations=[crowdpose_annotation(1, 101, BOX, keypoints=[0] * 51)])
    with pytest.raises(DataError, match=r"crowdpose_val\.json: annotation number 1: expected 42 numbers"):
        read_crowdpose(tmp_path, "val")


# An annotation file alone


def test_annotations_alone_are_the_people_of_the_data_set(tmp_path):
    hidden = coco_annotation(2, 2, BOX)
    hidden["keypoints"][:6] = [0, 0, 0, 8, 8, 1]
    path = write_coco(tmp_path, annotations=[coco_annotation(1, 1, BOX, iscrowd=1), hidden])
    expected = read_coco(tmp_path, "val2017")
    for picture in (tmp_path / "val2017").iterdir():
        picture.unlink()
    found, skeleton = read_coco_annotations(path)
    assert skeleton == COCO_17 and len(found) == 3
    for one, other in zip(found, expected, strict=True):
        for field in ("points", "visibility", "boxes", "area", "crowd"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        assert (one.image_id, one.picture.name) == (other.image_id, other.picture.name)
    assert read_coco_annotations(str(path))[0][0].picture.path == path.parent / "000000000001.jpg"


def test_annotations_alone_with_fourteen_joints_are_crowdposes(tmp_path):
    annotations = [crowdpose_annotation(1, 101, BOX), crowdpose_annotation(2, 102, BOX)]
    found, skeleton = read_coco_annotations(write_crowdpose(tmp_path, annotations=annotations))
    assert skeleton == CROWDPOSE_14 and [len(record) for record in found] == [1, 1, 0]
    assert found[1].crowd_index == 0.45 and found[0].area.tolist() == pytest.approx([0.53 * 50 * 85])
    np.testing.assert_array_equal(found[1].points[0], figure(CROWDPOSE_14.joints, BOX))


def test_annotations_alone_may_be_of_nobody(tmp_path):
    found, skeleton = read_coco_annotations(write_coco(tmp_path, annotations=[]))
    assert skeleton == COCO_17 and [len(record) for record in found] == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ('{"images": [],\n "annotations": [}', "malformed JSON at line 2"),
        ("[]", "expected an object with a list of images"),
        ('{"images": []}', None),
        ('{"images": [], "annotations": 3}', "expected annotations as a list"),
        ('{"images": [], "annotations": [7]}', "annotation number 1: a field of the wrong type"),
        ('{"images": [{"id": 1, "file_name": 5}]}', "image number 1: a field of the wrong type"),
        ('{"images": [{"id": 1}]}', "image number 1: no file_name"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "image number 2: id 1 again"),
    ],
)
def test_a_wrong_annotation_file_is_named_with_its_record(tmp_path, content, message):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content)
    if message is None:
        assert read_coco_annotations(path) == ([], COCO_17)
        return
    with pytest.raises(DataError, match=rf"^{path}: {message}"):
        read_coco_annotations(path)


def test_a_mixed_annotation_file_is_named_with_the_first_person_of_another_kind(tmp_path):
    path = write_coco(
        tmp_path, annotations=[coco_annotation(1, 1, BOX), coco_annotation(2, 2, BOX, keypoints=[1.0] * 42)]
    )
    with pytest.raises(DataError, match=r"val2017\.json: annotation number 2: expected 51 numbers in keypoints"):
        read_coco_annotations(path)


# The real data set


@pytest.mark.parametrize(
    ("split", "pictures", "everybody", "people"), [("train2017", 189, 578, 503), ("val2017", 40, 137, 97)]
)
def test_coco_has_the_pictures_and_people_that_its_readme_counts(real_data, split, pictures, everybody, people):
    records = read_coco(real_data / "coco", split)
    assert len(records) == pictures and sum(map(len, records)) == everybody
    found = people_in(records, min_joints=5)
    assert len(found) == people
    assert all(one.picture.path.is_file() for one in found)
