import contextlib
import io
import json

import numpy as np
import pytest
from made_data import figure, write_coco
from pycocotools.coco import COCO

from rmpe_jax.files import write_json
from rmpe_jax.predict.formats import coco_results
from rmpe_jax.records import Poses
from rmpe_jax.skeleton import COCO_17, COCO_LSP_19, LSP_14


def found(skeleton, count=2):
    boxes = np.array([[10 + n, 20, 60 + n, 90.5] for n in range(count)], np.float32).reshape(-1, 4)
    points = np.stack([figure(skeleton.joints, box) for box in boxes]) if count else np.zeros((0, skeleton.size, 2))
    score = np.linspace(0.2, 0.8, count * skeleton.size).reshape(count, skeleton.size)
    return Poses(points.astype(np.float32), score.astype(np.float32), boxes, np.ones(count, bool))


def test_keypoints_are_in_cocos_order_with_their_confidence():
    poses = found(COCO_LSP_19)
    for index, result in enumerate(coco_results(poses, COCO_LSP_19, image_id=5, file_name="a.jpg")):
        triplets = np.array(result["keypoints"]).reshape(17, 3)
        for number, joint in enumerate(COCO_17.joints):
            place = COCO_LSP_19.joints.index(joint)
            np.testing.assert_allclose(triplets[number, :2], poses.points[index, place], atol=6e-4)
            assert triplets[number, 2] == pytest.approx(poses.score[index, place], abs=6e-4)
        assert result["score"] == pytest.approx(poses.score[index].mean(), abs=1e-4)
        assert (result["image_id"], result["file_name"], result["category_id"]) == (5, "a.jpg", 1)


def test_joints_beyond_cocos_stand_by_name():
    poses = found(COCO_LSP_19, 1)
    (result,) = coco_results(poses, COCO_LSP_19, image_id=5, file_name="a.jpg")
    assert list(result["extra_keypoints"]) == ["neck", "head_top"]
    np.testing.assert_allclose(result["extra_keypoints"]["head_top"], [*poses.points[0, 18], 0.8], atol=6e-4)


def test_joints_that_the_skeleton_lacks_are_zero():
    (result,) = coco_results(found(LSP_14, 1), LSP_14, image_id=1, file_name="a.jpg")
    triplets = np.array(result["keypoints"]).reshape(17, 3)
    lacking = [joint not in LSP_14.joints for joint in COCO_17.joints]
    assert sum(lacking) == 5 and (triplets[lacking] == 0).all() and (triplets[np.invert(lacking)] != 0).all()


def test_the_box_is_corner_and_size():
    (result,) = coco_results(found(COCO_17, 1), COCO_17, image_id=1, file_name="a.jpg")
    assert result["box"] == [10, 20, 50, 70.5] and result["extra_keypoints"] == {}


def test_no_poses_give_no_results():
    assert coco_results(found(COCO_17, 0), COCO_17, image_id=1, file_name="a.jpg") == []


def test_results_survive_json_and_load_in_pycocotools(tmp_path):
    results = coco_results(found(COCO_LSP_19), COCO_LSP_19, image_id=2, file_name="000000000002.jpg")
    write_json(tmp_path / "new" / "poses.json", results)
    assert json.loads((tmp_path / "new" / "poses.json").read_text()) == results
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(write_coco(tmp_path))).loadRes(str(tmp_path / "new" / "poses.json"))
    assert len(loaded.getAnnIds(imgIds=[2])) == 2
    stored = dict(loaded.loadAnns(1)[0])
    assert stored["keypoints"] == results[0]["keypoints"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [1, object()])
    assert json.loads((tmp_path / "a.json").read_text()) == [1] and len(list(tmp_path.iterdir())) == 1
