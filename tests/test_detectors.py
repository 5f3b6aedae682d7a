import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from made_data import picture, silhouette

from rmpe_jax.data.files import DataError
from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.predict.detectors import detect_with_hog, every_window_of_hog, needed_score, read_boxes
from rmpe_jax.predict.person_detector import PersonDetector
from rmpe_jax.records import Boxes

GOOD = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5}


def boxes_file(folder, content):
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# Boxes from a file


@pytest.mark.parametrize(
    "entry",
    [
        GOOD,
        GOOD | {"image_id": "7"},
        GOOD | {"image_id": "000007"},
        GOOD | {"image_id": 99, "file_name": "000007.jpg"},
        GOOD | {"file_name": "pictures/000007.jpg"},
    ],
)
def test_a_picture_is_known_by_its_number_its_stem_or_its_file_name(tmp_path, entry):
    found = read_boxes(boxes_file(tmp_path, [entry])).of_picture(Path("pictures/000007.jpg"))
    assert found is not None
    assert found.xyxy.tolist() == [[10, 20, 40, 60]] and found.score.tolist() == [0.5]
    assert found.xyxy.dtype == found.score.dtype == np.float32


def test_detection_files_of_alphapose_and_of_mmpose_are_read(tmp_path):
    # AlphaPose calls a picture by its file and adds the number of the box; mmpose follows COCO's results to the letter.
    alphapose = {"image_id": "000007.jpg", "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5, "idx": [0.0]}
    mmpose = {"bbox": [10.0, 20.0, 30.0, 40.0], "category_id": 1, "image_id": 7, "score": 0.5}
    for entry in (alphapose, mmpose):
        found = read_boxes(boxes_file(tmp_path, [entry, entry | {"category_id": 17}])).of_picture(Path("000007.jpg"))
        assert found is not None and found.xyxy.tolist() == [[10, 20, 40, 60]]


def test_boxes_of_other_pictures_stay_apart(tmp_path):
    entries = [GOOD, GOOD | {"image_id": 70}, GOOD | {"bbox": [1, 1, 2, 2], "score": 0.25}]
    boxes = read_boxes(boxes_file(tmp_path, entries))
    seven, seventy = boxes.of_picture(Path("7.jpg")), boxes.of_picture(Path("70.png"))
    assert seven is not None and seven.score.tolist() == [0.5, 0.25]
    assert seventy is not None and len(seventy.xyxy) == 1
    assert boxes.of_picture(Path("77.jpg")) is None
    assert boxes.problems == []


def test_the_file_gives_a_picture_its_number(tmp_path):
    boxes = read_boxes(boxes_file(tmp_path, [GOOD | {"image_id": 12, "file_name": "a.jpg"}]))
    assert boxes.image_id(Path("somewhere/a.jpg")) == 12
    assert boxes.image_id(Path("b.jpg")) is None


def test_a_score_may_be_absent_and_is_clipped(tmp_path):
    entries = [GOOD | {"score": 1.7}, GOOD | {"score": -3}, {"image_id": 7, "bbox": [1, 2, 3, 4]}]
    found = read_boxes(boxes_file(tmp_path, entries)).of_picture(Path("7.jpg"))
    assert found is not None and found.score.tolist() == [1, 0, 1]


def test_boxes_below_a_threshold_are_left_out(tmp_path):
    entries = [GOOD | {"score": score} for score in (0.2, 0.09, 0.08)]
    found = read_boxes(boxes_file(tmp_path, entries), threshold=0.09).of_picture(Path("7.jpg"))
    assert found is not None and found.score.tolist() == pytest.approx([0.2, 0.09])


def test_what_a_pose_must_reach_is_known_of_our_detectors():
    assert needed_score(detect_with_hog) == 0.3 and needed_score(lambda image: Boxes.from_arrays([])) == 0
    assert needed_score(PersonDetector()) == 0.12


def test_other_categories_are_left_out_without_a_word(tmp_path):
    boxes = read_boxes(boxes_file(tmp_path, [GOOD | {"category_id": 3}]))
    assert boxes.of_picture(Path("7.jpg")) is None and boxes.problems == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GOOD | {"bbox": [float("nan"), 1, 2, 3]}, "not finite"),
        (GOOD | {"bbox": [0, 1, float("inf"), 3]}, "not finite"),
        (GOOD | {"bbox": [0, 1, 10**400, 3]}, "too large"),
        (GOOD | {"bbox": [0, 1, 1e300, 3]}, "too large"),
        (GOOD | {"bbox": [0, 1, -5, 3]}, "must be positive"),
        (GOOD | {"bbox": [0, 1, 5, 0]}, "must be positive"),
        (GOOD | {"bbox": [0, 1, 5]}, "four numbers"),
        (GOOD | {"bbox": "0 1 5 5"}, "four numbers"),
        (GOOD | {"bbox": [0, 1, True, 5]}, "four numbers"),
        ({"image_id": 7, "score": 1.0}, "four numbers, got None"),
        (GOOD | {"score": "high"}, "score: expected a finite number, got 'high'"),
        (GOOD | {"score": float("nan")}, "score"),
        (GOOD | {"score": None}, "score"),
        ({"bbox": [0, 1, 5, 5]}, "image_id"),
        (GOOD | {"image_id": 7.5}, "image_id"),
        ([10, 20, 30, 40], "expected an object, got list"),
    ],
)
def test_a_broken_entry_is_named_and_the_others_stay(tmp_path, entry, message):
    path = boxes_file(tmp_path, [GOOD, entry, GOOD])
    boxes = read_boxes(path)
    found = boxes.of_picture(Path("7.jpg"))
    assert found is not None and len(found.xyxy) == 2
    (problem,) = boxes.problems
    assert problem.startswith(f"{path}: detection 2: ") and message in problem


def test_an_empty_list_has_no_boxes(tmp_path):
    boxes = read_boxes(boxes_file(tmp_path, []))
    assert boxes.entries == {} and boxes.problems == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"image_id": 1,\n  "bbox" [1]}]', "malformed JSON at line 3"),
        ("", "malformed JSON at line 1"),
        ({"annotations": []}, "expected a list of detections, got dict"),
    ],
)
def test_a_file_that_is_no_list_of_detections_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_boxes(boxes_file(tmp_path, content))
    assert str(tmp_path / "boxes.json") in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"boxes\.json: no such file"):
        read_boxes(tmp_path / "boxes.json")


# Boxes


@pytest.mark.parametrize(
    ("boxes", "count"), [([], 0), (np.zeros((0, 4)), 0), ([1, 2, 3, 4], 1), ([[1, 2, 3, 4]] * 3, 3)]
)
def test_detections_are_made_of_n_boxes(boxes, count):
    found = Boxes.from_arrays(boxes)
    assert found.xyxy.shape == (count, 4) and found.score.tolist() == [1] * count


@pytest.mark.parametrize("shape", [(4, 2), (2, 3), (8,), (1, 2, 4)])
def test_boxes_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected boxes of shape \(n, 4\), got"):
        Boxes.from_arrays(np.ones(shape))


def test_scores_must_be_as_many_as_boxes():
    with pytest.raises(ValueError, match="1 scores and 2 boxes"):
        Boxes.from_arrays(np.ones((2, 4)), [0.5])


# HOG


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 900), (900, 3), (120, 90)])
def test_a_blank_picture_of_any_shape_has_no_people(size):
    found = detect_with_hog(np.full((*size, 3), 127, np.uint8))
    assert found.xyxy.shape == (0, 4) and found.score.shape == (0,)


def test_a_standing_person_is_found_where_it_stands():
    image, box = silhouette()
    found = detect_with_hog(image)
    best = found.xyxy[found.score.argmax()]
    assert float(box_iou(jnp.asarray(best), jnp.asarray(box))) > 0.6
    assert found.score.max() > 0.8 and (found.score >= 0).all() and (found.score <= 1).all()


def test_boxes_scale_with_the_picture():
    small, large = (detect_with_hog(silhouette(180 * f, 150 * f, top=30 * f, tall=120 * f)[0]) for f in (1, 4))
    best = [jnp.asarray(found.xyxy[found.score.argmax()]) for found in (small, large)]
    iou = box_iou(best[0] * 4, best[1])
    assert float(iou) > 0.7


def test_boxes_stay_within_the_picture():
    image, _ = silhouette(250, 90, top=5, tall=240)
    found = detect_with_hog(image, hit_threshold=-1.0)
    assert len(found.xyxy) > 0
    assert (found.xyxy >= -0.5).all() and (found.xyxy[:, 2:] <= np.array([89.5, 249.5])).all()


def test_noise_gives_boxes_that_are_finite_and_scored():
    found = detect_with_hog(picture(200, 200), hit_threshold=-2.0)
    assert len(found.xyxy) > 0 and np.isfinite(found.xyxy).all() and (found.xyxy[:, 2:] > found.xyxy[:, :2]).all()


def test_every_window_gives_more_boxes_of_a_person_than_those_that_are_grouped():
    image, box = silhouette()
    grouped, every = detect_with_hog(image), every_window_of_hog(image)
    overlap = box_iou(jnp.asarray(every.xyxy), jnp.asarray(box)[None])
    assert (np.asarray(overlap) > 0.5).sum() > len(grouped.xyxy) and len(every.xyxy) > 5
    assert len(np.unique(every.xyxy, axis=0)) > 5
