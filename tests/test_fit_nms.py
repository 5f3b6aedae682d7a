"""From a file of detections and labels to a file of learned parameters, and what is said and drawn about it."""

import dataclasses
import itertools
import json
import math

import cv2
import jax
import numpy as np
import pytest
from made_data import (
    TWO_PLACES,
    cells,
    coco_annotation,
    detections,
    mpii_person,
    waf_sticks,
    write_coco,
    write_crowdpose,
    write_mpii,
    write_waf,
)

from rmpe_jax.data.files import DataError
from rmpe_jax.evaluate import protocols
from rmpe_jax.evaluate.fit_nms import (
    TOLERANCES,
    Labelled,
    as_poses,
    as_text,
    best_places,
    describe,
    fit_nms,
    flatness,
    make_objective,
    read_labelled,
    suppressed,
)
from rmpe_jax.evaluate.fit_sheet import draw_fit
from rmpe_jax.evaluate.predictions import Prediction, Predictions
from rmpe_jax.nms.pose import DEFAULT, PRESETS
from rmpe_jax.nms.search import NAMES, Fit, Grid, Step, learnable, precision_of
from rmpe_jax.pretrained import NMS_FORMAT, load_nms
from rmpe_jax.skeleton import COCO_17, CROWDPOSE_14, MPII_16, WAF_10

BOXES = TWO_PLACES
EVERYBODY = dataclasses.replace(DEFAULT, eta=math.inf)


def write_detections(path, found):
    path.write_text(json.dumps(found))
    return path


def coco_names(numbers):
    return [f"{number:012}.jpg" for number in numbers]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Five pictures of two people, in the last of which nobody was found."""
    folder = tmp_path_factory.mktemp("coco")
    annotations = write_coco(folder, split="train2017", pictures=5)
    found = write_detections(folder / "poses.json", detections(COCO_17, coco_names(range(1, 5))))
    return read_labelled(found, annotations=annotations)


@pytest.fixture(scope="module")
def mpii(tmp_path_factory):
    """Three groups of two, two groups in one picture, and a picture of nobody."""
    folder, empty = tmp_path_factory.mktemp("mpii"), np.zeros((0, 0))
    two = [mpii_person(box) for box in BOXES]
    together, apart = cells([np.array([1, 2], np.uint8)]), cells([np.array([1], np.uint8), np.array([2], np.uint8)])
    pictures = [*((two, 1, empty, together) for _ in range(3)), (two, 1, empty, apart), (empty, 1, empty, empty)]
    write_mpii(folder, pictures=pictures, groups=True)
    found = detections(MPII_16, [f"{number:09}.jpg" for number in range(1, 5)])
    path = write_detections(folder / "poses.json", found)
    return read_labelled(path, dataset="mpii", folder=folder, split="trainval")


@pytest.fixture(scope="module")
def learned(coco, tmp_path_factory):
    """The fit, what is said, and the file."""
    out = tmp_path_factory.mktemp("learned") / "new" / "nms.json"
    return *fit_nms(coco, out, size=2, folds=2, replicates=30), out


# Labels and detections


def test_labels_come_from_an_annotation_file_without_pictures(tmp_path, coco):
    assert len(coco.pictures) == 5 and coco.skeleton == COCO_17 and not coco.multi_person
    assert len(coco.predictions.poses) == 24 and coco.predictions.source == "poses.json"
    path = write_crowdpose(tmp_path)
    found = write_detections(tmp_path / "poses.json", detections(CROWDPOSE_14, ["101.jpg"]))
    (tmp_path / "images" / "101.jpg").unlink()
    crowd = read_labelled(found, annotations=path)
    assert (crowd.skeleton, crowd.multi_person, len(crowd.pictures)) == (CROWDPOSE_14, False, 3)


def test_labels_come_from_the_training_split_of_a_data_set(tmp_path, coco):
    write_coco(tmp_path, split="train2017", pictures=2)
    write_coco(tmp_path, split="val2017", pictures=3)
    found = write_detections(tmp_path / "poses.json", detections(COCO_17, coco_names([1])))
    assert len(read_labelled(found, dataset="coco", folder=tmp_path).pictures) == 2
    assert len(read_labelled(found, dataset="coco", folder=tmp_path, split="val2017").pictures) == 3
    write_waf(tmp_path, {n: [waf_sticks(box) for box in BOXES] for n in (1, 353)})
    found = write_detections(tmp_path / "waf.json", detections(WAF_10, ["group photo 1.jpg"]))
    family = read_labelled(found, dataset="waf", folder=tmp_path)
    assert family.multi_person and len(family.pictures) == 350 and family.skeleton == WAF_10


def test_pictures_stand_in_the_order_of_their_numbers(tmp_path):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"].reverse()
    path.write_text(json.dumps(content))
    found = write_detections(tmp_path / "poses.json", detections(COCO_17, coco_names([1, 2, 3])))
    assert [record.image_id for record in read_labelled(found, annotations=path).pictures] == [1, 2, 3]


@pytest.mark.parametrize("both", [True, False])
def test_labels_come_from_one_place(tmp_path, both):
    given = {"annotations": tmp_path / "a.json", "dataset": "coco"} if both else {}
    with pytest.raises(DataError, match="expected either an annotation file or a data set"):
        read_labelled(tmp_path / "poses.json", **given)


@pytest.mark.parametrize("name", ["lspet", "lsp", "flic"])
def test_a_data_set_that_measures_one_person_at_a_time_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: measures people one by one: it says nothing about duplicates"):
        read_labelled(tmp_path / "poses.json", dataset=name, folder=tmp_path)


def test_what_is_missing_is_named(tmp_path):
    path = write_coco(tmp_path)
    for given, message in (
        ({"annotations": tmp_path / "none.json"}, "none.json: no such file"),
        ({"annotations": path}, "poses.json: no such file"),
        ({"dataset": "octopus"}, "unknown data set 'octopus'"),
        ({"dataset": "coco", "folder": tmp_path}, "person_keypoints_train2017.json"),
    ):
        with pytest.raises(DataError, match=message):
            read_labelled(tmp_path / "poses.json", **given)


def pose(points, *, present=(True, True, True), score=(0.5, 0.25, 1.0), pose_score=0.75, box=None, image_id=1):
    return Prediction(image_id, None, np.array(points, float), np.array(score), np.array(present), pose_score, box=box)


def test_predictions_become_padded_arrays():
    first = pose([[1, 2], [3, 4], [5, 6]], box=np.array([0.0, 1, 20, 30]))
    second = pose([[1, 2], [9, 4], [5, 6]], present=(True, True, False), pose_score=0.5)
    poses, score = as_poses([[first, second], [], [second]], [2, 0])
    assert poses.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert score.tolist() == [[0.75, 0.5], [0, 0], [0.5, 0]]
    np.testing.assert_array_equal(poses.points[0], [[[5, 6], [1, 2]], [[np.nan, np.nan], [1, 2]]])
    assert poses.score[0].tolist() == [[1, 0.5], [0, 0.5]]
    # Without a box the extent of the joints that are there, chosen or not.
    assert poses.boxes[0].tolist() == [[0, 1, 20, 30], [1, 2, 9, 4]] and poses.boxes[2, 0].tolist() == [1, 2, 9, 4]
    nothing = as_poses([[pose(np.zeros((3, 2)), present=(False,) * 3)], []], [0, 1])[0]
    assert nothing.boxes[0, 0].tolist() == [0] * 4 and nothing.valid.sum() == 1
    assert as_poses([[], []], [0])[0].points.shape == (2, 1, 1, 2)


# What is maximised


def measured_ap(labelled, kept):
    """AP as `rmpe evaluate` gives it; on COCO it is pycocotools'."""
    if labelled.multi_person:
        found = protocols.multi_person(labelled.pictures, kept, labelled.skeleton, denominator="strict")
        return float(jax.jit(found.statistic)(found.data, np.ones(len(labelled.pictures)))["map"])
    found = protocols.oks(labelled.pictures, kept, labelled.skeleton)
    assert found.exact is not None
    return found.exact["ap"]


@pytest.mark.parametrize("kind", ["coco", "mpii"])
def test_the_objective_is_the_ap_of_what_the_pose_nms_keeps(request, kind):
    labelled: Labelled = request.getfixturevalue(kind)
    objective, found = make_objective(labelled), []
    assert objective.joints == {"coco": 17, "mpii": 14}[kind]
    strict = dataclasses.replace(learnable(DEFAULT, objective.joints), sigma1=0.4, eta=0.7)
    for parameters in (EVERYBODY, DEFAULT, strict):
        kept = suppressed(labelled, [parameters], np.zeros(len(labelled.pictures), int))
        found.append(len(kept.poses))
        value = precision_of(objective, parameters)[0]
        assert value == pytest.approx(measured_ap(labelled, kept), abs=1e-6) and 0.2 < value < 1
    assert found[0] == 24 and len(set(found)) == 3


def test_each_picture_may_be_suppressed_by_parameters_of_its_own(coco):
    nobody_goes = np.array([0, 1, 0, 1, 1])
    kept = suppressed(coco, [EVERYBODY, DEFAULT], nobody_goes)
    each = [suppressed(coco, [one], np.zeros(5, int)).poses for one in (EVERYBODY, DEFAULT)]
    for record, which in zip(coco.pictures, nobody_goes, strict=True):
        here = [id(p) for p in kept.poses if p.image_id == record.image_id]
        assert here == [id(p) for p in each[which] if p.image_id == record.image_id]
    assert len(each[1]) < len(kept.poses) < len(each[0])
    assert (kept.source, kept.boxes) == (coco.predictions.source, coco.predictions.boxes)


def test_equal_scores_are_counted_in_pycocotools_order(tmp_path):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"].reverse()
    path.write_text(json.dumps(content))
    found = [item | {"score": 0.5} for item in detections(COCO_17, coco_names([1]))]
    wrong = [found[0] | {"file_name": coco_names([3])[0], "keypoints": [1.0, 1.0, 0.9] * 17}] * 4
    labelled = read_labelled(write_detections(tmp_path / "poses.json", [*wrong, *found]), annotations=path)
    value = precision_of(make_objective(labelled), EVERYBODY)[0]
    assert value == pytest.approx(measured_ap(labelled, labelled.predictions), abs=1e-6) and value > 0.1


def test_groups_of_one_picture_are_not_parted(mpii):
    objective = make_objective(mpii)
    assert objective.pictures == 5 and objective.together.tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("kind", ["nobody labelled", "no groups", "nobody found"])
def test_nothing_to_learn_from_is_one_clear_error(tmp_path, coco, mpii, kind):
    if kind == "nobody labelled":
        path = write_coco(tmp_path, annotations=[coco_annotation(1, 1, BOXES[0], iscrowd=1)])
        found = write_detections(tmp_path / "poses.json", detections(COCO_17, coco_names([1])))
        labelled, message = read_labelled(found, annotations=path), rf"nobody to measure: no labelled people in {path}$"
    elif kind == "no groups":
        labelled = dataclasses.replace(mpii, pictures=mpii.pictures[4:], predictions=predictions_of(mpii, []))
        message = "nobody to measure: no groups of people"
    else:
        stray = dataclasses.replace(mpii.predictions.poses[0], image_id=mpii.pictures[4].image_id)
        labelled = dataclasses.replace(mpii, predictions=predictions_of(mpii, [stray]))
        message = r"poses\.json: has no poses for any picture with a group of people"
    with pytest.raises(DataError, match=message):
        fit_nms(labelled, tmp_path / "nms.json")
    assert not (tmp_path / "nms.json").exists()


def predictions_of(labelled, poses):
    return Predictions(poses, labelled.predictions.source, labelled.predictions.boxes, [])


@pytest.mark.parametrize(("kind", "folds", "pictures"), [("coco", 6, 5), ("mpii", 5, 4)])
def test_more_folds_than_pictures_are_one_clear_error(request, tmp_path, kind, folds, pictures):
    # MPII's groups of one picture do not count twice.
    with pytest.raises(DataError, match=f"{folds} folds of {pictures} pictures: fewer --folds, or 0 for none"):
        fit_nms(request.getfixturevalue(kind), tmp_path / "nms.json", size=2, folds=folds)
    assert not (tmp_path / "nms.json").exists()


# The file


def test_the_learned_file_holds_the_parameters(learned):
    fit, about, out = learned
    assert load_nms(out) == fit.parameters
    content = json.loads(out.read_text())
    assert content["format"] == NMS_FORMAT and content["fit"] == about
    assert [path.name for path in out.parent.iterdir()] == ["nms.json"]


def test_the_held_out_value_is_that_of_pycocotools(coco, learned):
    fit, about, _ = learned
    gain = about["held_out_gain"]
    assert about["value"]["held_out"] == pytest.approx(gain["learned"], abs=1e-6)
    assert about["value"]["given"] == pytest.approx(gain["given"], abs=1e-6)
    kept = suppressed(coco, fit.learned_without, fit.fold)
    assert gain["learned"] == pytest.approx(measured_ap(coco, kept), abs=1e-9)
    assert gain["low"] - 1e-6 <= gain["learned"] - gain["given"] <= gain["high"] + 1e-6


def test_the_file_says_how_it_was_learned(coco, learned):
    fit, about, _ = learned
    assert about["metric"] == "OKS AP" and about["detections"] == "poses.json" and about["skeleton"] == COCO_17.name
    assert (about["pictures"], about["poses"], about["settings"], about["seed"]) == (5, 24, 16, 0)
    value = about["value"]
    assert (value["learned"], value["given"], value["without_nms"]) == (fit.value, fit.given, fit.nobody)
    objective = make_objective(coco)
    assert fit.given == pytest.approx(precision_of(objective, DEFAULT)[0], abs=1e-6)
    assert fit.nobody == pytest.approx(precision_of(objective, EVERYBODY)[0], abs=1e-6)
    assert fit.value >= fit.given - 1e-6 and len({fit.value, fit.given, fit.nobody}) == 3
    assert [list(one) for one in about["learned_without"]] == [list(NAMES)] * 2


def test_groups_are_learned_from_and_held_out_together(tmp_path, mpii):
    fit, about = fit_nms(
        mpii, tmp_path / "nms.json", parameters=PRESETS["released"], size=2, folds=2, replicates=0, seed=3
    )
    assert about["metric"] == "multi-person AP" and (about["pictures"], about["seed"]) == (5, 3)
    assert fit.fold[3] == fit.fold[4] and set(fit.fold) == {0, 1}
    gain = about["held_out_gain"]
    assert gain["low"] is gain["high"] is None
    assert gain["learned"] == pytest.approx(about["value"]["held_out"], abs=1e-5)
    assert gain["given"] == pytest.approx(about["value"]["given"], abs=1e-5)
    chosen = np.array([*fit.fold[:4], 0])
    assert gain["learned"] == pytest.approx(measured_ap(mpii, suppressed(mpii, fit.learned_without, chosen)), abs=1e-6)
    # Learned without merging, and written for a preset that merges.
    found = load_nms(tmp_path / "nms.json")
    assert found == dataclasses.replace(fit.parameters, merge="weighted") and fit.parameters.merge == "none"
    assert "merges poses as the preset does" in as_text(fit, about)


# What is said and drawn


def made_fit(*, best=(1, 2, 0, 1), held_out=None):
    """A grid of known values: 0.5 at the best place, 0.49 beside it, 0.3 where the search starts."""
    grid = Grid((0.1, 0.2), (1.0, 2.0, 3.0), (0.5, 1.0, 1.5), (0.2, 0.4, 0.6, 0.8))
    values = np.linspace(0.1, 0.2, 72).reshape(grid.shape)
    values[0, 0, 0, 0], values[best] = 0.3, 0.5
    beside = (0, *best[1:])
    values[beside] = 0.4925
    path = (Step((0, 0, 0, 0), None, 0.3), Step(beside, (0, 1), 0.4925))
    given = learnable(DEFAULT, 17)
    return Fit(
        parameters=dataclasses.replace(grid.at(best, given), eta=0.45),
        value=0.505,
        given=0.3,
        nobody=0.25,
        grid=grid,
        values=values,
        path=path,
        ends=(0.5, 0.5, 0.4925, 0.3),
        fold=np.zeros(5, int),
        learned_without=() if held_out is None else (grid.at(best, given), grid.at(beside, given)),
        held_out=held_out,
    )


def test_the_best_places_have_each_value_once():
    values = np.array([0.1, 0.5, 0.5 + 1e-8, 0.3, 0.5, 0.2, 0.3, 0.4]).reshape(2, 2, 2, 1)
    assert best_places(values) == [(0, 0, 1, 0), (1, 1, 1, 0), (0, 1, 1, 0), (1, 0, 1, 0), (0, 0, 0, 0)]
    assert best_places(values, 2) == [(0, 0, 1, 0), (1, 1, 1, 0)]


def test_of_places_that_tie_the_one_in_the_middle_is_said_to_be_best():
    values = np.zeros((1, 1, 1, 9))
    values[..., 3:8] = 0.5
    assert best_places(values) == [(0, 0, 0, 5), (0, 0, 0, 2)]


def test_flatness_is_the_share_of_the_grid_and_its_ranges():
    fit = made_fit()
    found = flatness(fit, 0.005)
    assert (found["below"], found["share"]) == (0.005, 1 / 72)
    assert [found[name] for name in NAMES] == [[0.2, 0.2], [3.0, 3.0], [0.5, 0.5], [0.4, 0.4]]
    found = flatness(fit, 0.01)
    assert found["share"] == 2 / 72 and found["sigma1"] == [0.1, 0.2] and found["sigma2"] == [3.0, 3.0]
    found = flatness(fit, 0.25)
    assert found["share"] == 3 / 72 and found["sigma2"] == [1.0, 3.0] and found["eta"] == [0.2, 0.4]
    assert flatness(fit, 1.0)["share"] == 1


def test_what_is_said_are_the_numbers_of_the_fit(coco):
    fit = made_fit(held_out=0.45)
    about = describe(fit, make_objective(coco), coco)
    assert about["value"] == {"learned": 0.505, "given": 0.3, "without_nms": 0.25, "held_out": 0.45}
    there = about["alternating"]
    assert there["below_exhaustive"] == pytest.approx(0.0075) and there["random_starts"] == 4
    assert there["starts_that_reach_it"] == 0.5 and there["worst_start_below"] == pytest.approx(0.2)
    start = {"sigma1": 0.1, "sigma2": 1.0, "lambda_": 0.5, "eta": 0.2, "value": 0.3}
    assert there["path"] == [start, {"sigma1": 0.1, "sigma2": 3.0, "lambda_": 0.5, "eta": 0.4, "value": 0.4925}]
    assert about["best_settings"][0] == {"sigma1": 0.2, "sigma2": 3.0, "lambda_": 0.5, "eta": 0.4, "value": 0.5}
    assert len(about["best_settings"]) == 10 and about["settings"] == 72
    assert [level["below"] for level in about["flatness"]] == list(TOLERANCES)
    assert about["grid"]["eta"] == [0.2, 0.4, 0.6, 0.8]
    json.dumps(about, allow_nan=False)
    none = describe(dataclasses.replace(fit, ends=()), make_objective(coco), coco)["alternating"]
    assert none["starts_that_reach_it"] is None and none["worst_start_below"] is None


def test_the_text_has_the_numbers_in_per_cent(coco):
    fit = made_fit(held_out=0.45)
    about = describe(fit, make_objective(coco), coco)
    about["held_out_gain"] = {"given": 0.3, "learned": 0.45, "low": 0.1, "high": 0.2}
    lines = as_text(fit, about).splitlines()
    assert lines[0] == "OKS AP, in per cent, of 24 poses in 5 pictures, 1 of them without any:"
    assert lines[1].split() == ["no", "NMS", "25.0", "given", "30.0", "learned", "50.5"]
    assert "2 folds: 45.0, +15.0 (+10.0 to +20.0) over given" in lines[2]
    assert lines[3] == "two parameters at a time: 1 steps to 49.2, 0.75 below the best of 72 settings"
    assert lines[4].strip() == "from 4 random starts 50.0 % get there, the worst ends 20.00 below"
    place = lines.index("best settings")
    assert lines[place + 2].split() == ["0.2", "3", "0.5", "0.4", "50.00"]
    place = lines.index("how flat the optimum is")
    assert lines[place + 3].strip() == (
        "within 1: 2.8 % of the settings; sigma1 0.1 to 0.2, sigma2 3 to 3, lambda 0.5 to 0.5, eta 0.4 to 0.4"
    )
    assert lines[-1] == "learned: sigma1 0.2, sigma2 3, lambda 0.5, eta 0.45"


def test_the_text_leaves_out_what_there_is_not(coco):
    fit = dataclasses.replace(made_fit(), ends=())
    text = as_text(fit, describe(fit, make_objective(coco), coco))
    assert "not searched on" not in text and "random starts" not in text
    fit = made_fit(held_out=0.45)
    about = describe(fit, make_objective(coco), coco)
    about["held_out_gain"] = {"given": 0.3, "learned": 0.25, "low": None, "high": None}
    assert "2 folds: 25.0, -5.0 over given" in as_text(fit, about)


def rings(sheet):
    """The centres of the red rings, (y, x), in reading order."""
    red = (sheet == np.array([255, 60, 60])).all(-1).astype(np.uint8)
    _, _, stats, centres = cv2.connectedComponentsWithStats(cv2.dilate(red, np.ones((3, 3), np.uint8)))
    assert (stats[1:, 4] > 30).all()
    return sorted((round(y), round(x)) for x, y in centres[1:])


@pytest.mark.parametrize("best", [(1, 2, 0, 1), (1, 0, 2, 3)])
def test_the_sheet_has_a_ring_at_the_best_of_every_two_parameters(best):
    fit = made_fit(best=best)
    sheet = draw_fit(fit)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    found, expected = rings(sheet), []
    size = [288 // count for count in fit.grid.shape]
    tile = (288 + 38 + 10 + 18, 288 + 64 + 10)
    for number, (a, b) in enumerate(itertools.combinations(range(4), 2)):
        corner = 18 + (number // 3) * tile[0], (number % 3) * tile[1]
        y = corner[0] + 18 + 10 + 288 - (best[a] + 0.5) * size[a]
        expected.append((y, corner[1] + 64 + (best[b] + 0.5) * size[b]))
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=3)
    # Within the ring yellow, or the white path where it passes by; a disc where the path starts.
    assert {tuple(sheet[y, x].tolist()) for y, x in found} == {(253, 231, 37), (255, 255, 255)}
    start = 18 + 18 + 10 + 288 - size[0] // 2, 64 + size[1] // 2
    assert (sheet[start[0] - 1 : start[0] + 2, start[1] - 1 : start[1] + 2] == 255).all()


def test_where_all_settings_are_equal_the_maps_are_those_of_the_best():
    fit = made_fit()
    sheet = draw_fit(dataclasses.replace(fit, values=np.full(fit.values.shape, 0.5)))
    yellow = (sheet == np.array([253, 231, 37])).all(-1)
    assert yellow.mean() > 0.5 and not (sheet == np.array([68, 1, 84])).all(-1).any()
