"""Protocols, results and files of predictions: from labelled pictures and poses to a paper's table."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_data import (
    coco_annotation,
    figure,
    lsp_labels,
    waf_sticks,
    write_coco,
    write_crowdpose,
    write_flic,
    write_lsp,
    write_lspet,
    write_mpii,
    write_waf,
)

from rmpe_jax.data.coco import coco_annotations
from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.people import label, usable_rows
from rmpe_jax.data.sets import read_data
from rmpe_jax.evaluate import protocols
from rmpe_jax.evaluate.predictions import (
    Prediction,
    Predictions,
    as_results,
    predict_detected,
    predict_in_boxes,
    read_predictions,
    write_predictions,
)
from rmpe_jax.evaluate.results import (
    FORMAT,
    Measured,
    Table,
    as_markdown,
    as_text,
    compare,
    comparison_table,
    make_result,
    numbers_of,
    read_result,
)
from rmpe_jax.evaluate.run import PROTOCOLS, evaluate_dataset
from rmpe_jax.metrics.intervals import resampling_weights
from rmpe_jax.metrics.oks_ap import OKS_AP_NAMES
from rmpe_jax.metrics.pck import torso_length
from rmpe_jax.predict.detectors import read_boxes
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.predict.formats import coco_results
from rmpe_jax.records import Boxes, Poses
from rmpe_jax.skeleton import COCO_17, COCO_LSP_19, CROWDPOSE_14, FLIC_11, LSP_14, MPII_16, WAF_10

PLACES = [(10.0, 10.0, 60.0, 110.0), (100.0, 10.0, 150.0, 110.0)]
ALL_BOXES = [(10.0, 5.0, 60.0, 90.0), (90.0, 15.0, 140.0, 85.0)]


@dataclasses.dataclass(frozen=True)
class Stub:
    """A black picture, or one that cannot be read."""

    number: int
    damaged: bool = False

    def __str__(self):
        return f"made/{self.number}.png"

    @property
    def name(self):
        return str(self).rsplit("/", 1)[-1]

    def read(self):
        if self.damaged:
            raise PictureError(f"{self}: damaged")
        return np.zeros((120, 160, 3), np.uint8)

    def read_bytes(self):
        raise PictureError(f"{self}: has no file")


class Perfect(Estimator):
    """Knows the figure that fills every box of the made data, in ``joints``."""

    def __init__(self, weights, skeleton, *, grown=0.0):
        super().__init__(weights, nms=None, detector=lambda image: Boxes.from_arrays(ALL_BOXES))
        self._skeleton, self._grown = skeleton, grown

    @property
    def skeleton(self):
        return self._skeleton

    def poses_in_boxes(self, image, boxes):
        corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        margin = size * self._grown / (1 + self._grown) / 2
        inner = np.concatenate([corner + margin, corner + size - margin], 1)
        points = np.array([figure(self.skeleton.joints, box) for box in inner]).reshape(-1, self.skeleton.size, 2)
        score = jnp.ones(points.shape[:2])
        return Poses(jnp.asarray(points, jnp.float32), score, jnp.asarray(boxes), jnp.ones(len(boxes), bool))


def person(skeleton, place, *, unlabelled=(), **more):
    """A figure that fills a place; its head is a square of 20 pixels, so that half a head size is 6 sqrt(2)."""
    visibility = [0 if joint in unlabelled else 2 for joint in skeleton.joints]
    x0, y0, *_ = place
    about = {"points": figure(skeleton.joints, place), "visibility": visibility, "group": 0}
    return about | {"heads": [x0 + 15, y0, x0 + 35, y0 + 20]} | more


def mpii_person(place, **more):
    """Somebody of whom MPII knows the rough place, half as tall as 200 pixels."""
    x0, y0, x1, y1 = place
    return person(MPII_16, place, **({"centres": [(x0 + x1) / 2, (y0 + y1) / 2], "scale": 0.5} | more))


def pictures_of(skeleton, *people, damaged=(), **more):
    """Labelled pictures 1, 2, ..., each of the given people."""
    return [
        label(Stub(number, number in damaged), number, here, skeleton.size, **more)
        for number, here in enumerate(people, 1)
    ]


def made(skeleton, count=3):
    """As many pictures of two people."""
    one = mpii_person if skeleton is MPII_16 else functools.partial(person, skeleton)
    return pictures_of(skeleton, *([one(place) for place in PLACES] for _ in range(count)))


def crowded():
    """Three pictures of CrowdPose, one of each level."""
    levels = (0.1, 0.5, 0.9)
    return [dataclasses.replace(p, crowd_index=level) for p, level in zip(made(CROWDPOSE_14), levels, strict=True)]


def predictions(poses, *, boxes="gt", problems=()):
    return Predictions(list(poses), "network", boxes, list(problems))


def truth_of(pictures, *, off=(0.0, 0.0)):
    """Everybody where they are, or that far beside; what is not labelled is not predicted."""
    poses = []
    for record in pictures:
        for row in range(len(record)):
            present = record.visibility[row] > 0
            points, score = record.points[row] + np.array(off), np.full(len(present), 0.9)
            poses.append(Prediction(record.image_id, row, points, score, present, 0.9))
    return predictions(poses)


def noisy(pictures, *, seed=0, scale=4.0):
    """Poses off by some pixels, with scores of their own; one joint in ten is missing."""
    rng, poses = np.random.default_rng(seed), []
    for pose in truth_of(pictures).poses:
        points = pose.points + rng.normal(scale=scale, size=pose.points.shape)
        score, present = rng.uniform(0.3, 1, len(pose.score)), rng.random(len(pose.score)) < 0.9
        poses.append(dataclasses.replace(pose, points=points, score=score, present=present, pose_score=rng.random()))
    return predictions(poses)


def changed(given, place, **fields):
    """Predictions of which one is another."""
    poses = list(given.poses)
    poses[place] = dataclasses.replace(poses[place], **fields)
    return dataclasses.replace(given, poses=poses)


def moved(given, place, skeleton, joint, off):
    """Predictions of which one joint of one pose is elsewhere."""
    points = given.poses[place].points.copy()
    points[skeleton.joints.index(joint)] += off
    return changed(given, place, points=points)


# Protocol -> skeleton, pictures, and how they are measured.
CASES = {
    "pck": (LSP_14, made, lambda p, q: protocols.pck_torso(p, q, LSP_14, p)),
    "pck of FLIC": (FLIC_11, made, lambda p, q: protocols.pck_torso(p, q, FLIC_11, [])),
    "pckh": (MPII_16, made, lambda p, q: protocols.pckh(p, q, MPII_16)),
    "multi": (MPII_16, made, lambda p, q: protocols.multi_person(p, q, MPII_16, denominator="strict")),
    "multi of WAF": (WAF_10, made, lambda p, q: protocols.multi_person(p, q, WAF_10, denominator="strict")),
    "sticks": (WAF_10, made, lambda p, q: protocols.stickmen(p, q, WAF_10)),
    "oks": (COCO_17, made, lambda p, q: protocols.oks(p, q, COCO_17)),
    "oks of CrowdPose": (
        CROWDPOSE_14,
        lambda _: crowded(),
        lambda p, q: protocols.oks(p, q, CROWDPOSE_14, crowds=True),
    ),
    "oks of drawn people": (COCO_LSP_19, made, lambda p, q: protocols.oks(p, q, COCO_LSP_19)),
}


def measured(case, given=noisy):
    skeleton, pictures, measure = CASES[case]
    pictures = pictures(skeleton)
    return measure(pictures, given(pictures))


@functools.cache
def _compiled(case):
    # The statistic of a case closes over nothing but names: its data are an argument.
    return jax.jit(measured(case, truth_of).statistic)


def flat(tree, prefix=""):
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: float(value)}
    return found


def statistic(case, found, weight=None):
    """The numbers of what was measured, by path; NaN for the share of nothing."""
    weight = np.ones(3) if weight is None else np.asarray(weight, float)
    with jax.enable_x64(found.x64):
        return flat(_compiled(case)(found.data, weight))


def counted(case, found, weight=None):
    """The numbers that stand in the paper's table, without those of the references."""
    numbers = statistic(case, found, weight)
    return {path: numbers[path] for table in found.tables for row in table.rows.values() for path in row} | {}


REFERENCES = ("random_pck", "mean_pose_pck")


# Protocols


@pytest.mark.parametrize("case", CASES)
def test_the_truth_itself_gets_1_in_every_protocol(case):
    found = {path: value for path, value in counted(case, measured(case, truth_of)).items() if path not in REFERENCES}
    # No figure here covers the 96 x 96 pixels of a large person.
    nobody = {path for path, value in found.items() if np.isnan(value)}
    assert nobody == ({"ap_large", "ar_large"} if case in ("oks", "oks of drawn people") else set())
    assert len(found) - len(nobody) >= 3 and {found[path] for path in found.keys() - nobody} == {1.0}


@pytest.mark.parametrize("case", CASES)
def test_misplaced_poses_get_0_in_every_protocol(case):
    found = counted(case, measured(case, functools.partial(truth_of, off=(300.0, 300.0))))
    found = {path: value for path, value in found.items() if path not in REFERENCES and not np.isnan(value)}
    assert set(found.values()) == {0.0}
    # Of the stickmen only the detection rate is left: the others are shares of those who were detected.
    assert len(found) >= 3 or list(found) == ["detection_rate"]


@pytest.mark.parametrize("case", CASES)
def test_a_weight_of_two_is_the_picture_twice(case):
    skeleton, make, measure = CASES[case]
    pictures = make(skeleton)
    given = noisy(pictures)
    # Of the first picture a copy as number 2, and the second as number 3.
    numbers = {1: (1, 2), 2: (3,), 3: ()}
    doubled = [dataclasses.replace(r, image_id=n) for r in pictures for n in numbers[r.image_id]]
    poses = [dataclasses.replace(p, image_id=n) for p in given.poses for n in numbers[p.image_id]]
    weighted = statistic(case, measure(pictures, given), [2, 1, 0])
    twice = statistic(case, measure(doubled, predictions(poses)))
    # The references are drawn by the person's place in the list, and the mean pose is that of the pictures here.
    compared = [path for path in weighted if path not in REFERENCES]
    assert len(compared) > 3
    np.testing.assert_allclose([weighted[p] for p in compared], [twice[p] for p in compared], rtol=1e-6)


def test_one_wrong_wrist_is_one_joint_of_all():
    pictures = made(LSP_14)
    given = moved(truth_of(pictures), 0, LSP_14, "left_wrist", (0, 15))
    found = counted("pck", protocols.pck_torso(pictures, given, LSP_14, pictures))
    everything = statistic("pck", protocols.pck_torso(pictures, given, LSP_14, pictures))
    assert everything["pck"] == pytest.approx(83 / 84)
    assert everything["pck_per_joint/left_wrist"] == pytest.approx(5 / 6)
    assert everything["pck_per_joint/right_wrist"] == 1
    assert found["pck_columns/Wrist"] == pytest.approx(11 / 12) and found["pck_columns/Elbow"] == 1
    # The torso, from the left shoulder to the right hip, is 21.5 pixels wide and 31 high: 15 are 0.398 of it.
    assert [found[f"pdj/Wrist/{f}"] for f in (0.35, 0.4)] == [pytest.approx(11 / 12), 1]
    # The forearm is 5 wide and 14 high: its far end is off by 1.01 lengths, the mean of both by 0.505.
    assert found["pcp_strict/LArm"] == found["pcp_relaxed/LArm"] == pytest.approx(11 / 12)
    assert found["pcp_strict/Ave."] == pytest.approx(47 / 48)


def test_a_forearm_with_one_end_off_is_found_by_the_relaxed_criterion_only():
    pictures = made(LSP_14)
    given = moved(truth_of(pictures), 3, LSP_14, "right_wrist", (10, 0))
    found = counted("pck", protocols.pck_torso(pictures, given, LSP_14, pictures))
    assert found["pcp_strict/LArm"] == pytest.approx(11 / 12) and found["pcp_relaxed/LArm"] == 1


def test_pck_is_that_of_a_loop_over_people_and_joints():
    pictures = made(LSP_14)
    given = noisy(pictures, scale=6.0)
    hits = np.zeros((6, 14), bool)
    for place, pose in enumerate(given.poses):
        points = pictures[place // 2].points[place % 2]
        torso = torso_length(jnp.array(points, jnp.float32), jnp.ones(14, bool), LSP_14)
        hits[place] = pose.present & (np.linalg.norm(pose.points - points, axis=1) <= 0.2 * float(torso))
    found = statistic("pck", protocols.pck_torso(pictures, given, LSP_14, pictures))
    assert 0.3 < hits.mean() < 0.9 and found["pck"] == pytest.approx(hits.mean())
    each = [found[f"pck_per_joint/{joint}"] for joint in LSP_14.joints]
    np.testing.assert_allclose(each, hits.mean(0), rtol=1e-6)


def test_the_mean_pose_finds_figures_that_are_all_alike_and_chance_does_not():
    found = statistic("pck", measured("pck", noisy))
    assert found["mean_pose_pck"] == 1 and found["random_pck"] < 0.3
    without = protocols.pck_torso(made(LSP_14), noisy(made(LSP_14)), LSP_14, [])
    assert "mean_pose_pck" not in {path for table in without.tables for row in table.rows.values() for path in row}


def test_people_without_a_torso_do_not_count_for_pck():
    hips, one = ("left_hip", "right_hip"), functools.partial(person, LSP_14)
    pictures = pictures_of(LSP_14, [one(PLACES[0], unlabelled=hips), one(PLACES[1])], [one(PLACES[0])], [])
    given = changed(truth_of(pictures), 0, points=np.full((14, 2), 500.0))
    found = protocols.pck_torso(pictures, given, LSP_14, [])
    assert (found.about["people"], found.about["people_without_torso"]) == (3, 1)
    numbers = flat(jax.jit(found.statistic)(found.data, np.ones(3)))
    assert numbers["pck"] == 1
    # Sticks need no torso: two of six upper arms, hips aside, are those of the person who was missed.
    assert numbers["pcp_strict/UArm"] == pytest.approx(4 / 6) and numbers["pcp_strict/ULeg"] == 1
    assert flat(jax.jit(found.statistic)(found.data, np.array([1.0, 0, 1])))["pck"] == 1


def test_somebody_who_was_not_predicted_is_wrong_everywhere():
    pictures = made(LSP_14)
    given = truth_of(pictures)
    found = statistic("pck", protocols.pck_torso(pictures, predictions(given.poses[1:]), LSP_14, pictures))
    assert found["pck"] == pytest.approx(5 / 6) and found["pcp_strict/Ave."] == pytest.approx(5 / 6)


def test_of_two_poses_for_one_person_the_surest_counts():
    pictures = pictures_of(LSP_14, *([person(LSP_14, PLACES[0])] for _ in range(3)))
    good = truth_of(pictures).poses
    bad = [dataclasses.replace(pose, points=pose.points + 200, pose_score=0.1) for pose in good]
    for order in ([*good, *bad], [*bad, *good]):
        # As from a detector: nobody says whose poses they are.
        poses = [dataclasses.replace(pose, person=None) for pose in order]
        found = protocols.pck_torso(pictures, predictions(poses), LSP_14, pictures)
        assert statistic("pck", found)["pck"] == 1


def test_joints_that_a_network_lacks_are_wrong(tiny_weights):
    pictures = made(FLIC_11)
    estimator = Perfect(tiny_weights, LSP_14, grown=0)
    pictures = [dataclasses.replace(record, boxes=np.array(PLACES)) for record in pictures]
    given = predict_in_boxes(estimator, pictures, FLIC_11)
    assert [list(pose.present).count(False) for pose in given.poses] == [3] * 6
    found = statistic("pck of FLIC", protocols.pck_torso(pictures, given, FLIC_11, []))
    assert found["pck"] == pytest.approx(8 / 11) and found["pck_per_joint/nose"] == 0
    assert found["pck_columns/Elbow"] == found["pck_columns/Wrist"] == 1


def test_pckh_counts_its_own_joints_of_people_who_stand_apart():
    one = [
        mpii_person(PLACES[0]),
        mpii_person(PLACES[1], single=False),
        mpii_person((200.0, 10.0, 250.0, 110.0), heads=[np.nan] * 4),
    ]
    pictures = pictures_of(MPII_16, one, [mpii_person(PLACES[0], unlabelled=("left_knee",))], [])
    given = truth_of(pictures)
    for place, joint in ((0, "pelvis"), (0, "thorax"), (0, "head_top"), (1, "neck"), (2, "left_knee")):
        given = moved(given, place, MPII_16, joint, (50, 50))
    found = protocols.pckh(pictures, given, MPII_16)
    assert (found.about["people"], found.about["people_without_head"]) == (3, 1)
    numbers = statistic("pckh", found)
    assert numbers["pckh"] == pytest.approx(26 / 27)
    assert numbers["pckh_columns/Head"] == pytest.approx(3 / 4) and numbers["pckh_columns/Knee"] == 1


def test_pckh_at_a_tenth_and_the_area_are_those_of_one_offset():
    pictures = made(MPII_16)
    # A head size is 0.6 of the diagonal, 12 sqrt(2) pixels; everything is off by 0.255 of that.
    given = truth_of(pictures, off=(0.255 * 12 * np.sqrt(2), 0.0))
    found = statistic("pckh", protocols.pckh(pictures, given, MPII_16))
    assert (found["pckh"], found["pckh_01"]) == (1, 0)
    # Right at 0.26, 0.27, ..., 0.5: 25 of the 51 points.
    assert found["auc"] == pytest.approx(25 / 51)


# Groups


def multi(pictures, given, denominator="strict"):
    found = protocols.multi_person(pictures, given, MPII_16, denominator=denominator)
    return found, flat(jax.jit(found.statistic)(found.data, np.ones(len(pictures))))


def test_a_pose_outside_the_place_of_its_group_is_left_out():
    # The place is 20 pixels around the two centres, (35, 60) and (125, 60).
    pictures, surest = made(MPII_16), np.full(16, 1.0)
    given = truth_of(pictures)
    middle = given.poses[0].points - figure(MPII_16.joints, PLACES[0])[[2, 3, 12, 13]].mean(0)
    for place, total in (((35, 85), 1.0), ((35, 75), 0.7)):
        stray = dataclasses.replace(given.poses[0], points=middle + np.array(place), score=surest, person=None)
        numbers = statistic("multi", CASES["multi"][2](pictures, predictions([*given.poses, stray])))
        # A false answer above all others costs a seventh of each joint's precision.
        assert numbers["map"] == pytest.approx(1 if total == 1 else 6 / 7)


def test_two_groups_in_a_picture_do_not_take_each_others_poses():
    far = (400.0, 10.0, 450.0, 110.0)
    pictures = pictures_of(MPII_16, [mpii_person(PLACES[0]), mpii_person(PLACES[1]), mpii_person(far, group=1)])
    found, numbers = multi(pictures, truth_of(pictures))
    assert (found.about["groups"], found.about["people"]) == (2, 3) and numbers["map"] == 1
    _, numbers = multi(pictures, predictions(truth_of(pictures).poses[:2]))
    assert numbers["map"] == pytest.approx(2 / 3)
    _, numbers = multi(pictures, predictions(truth_of(pictures).poses[:2]), "toolkit_parity")
    assert numbers["map"] == 1


def test_groups_have_all_poses_of_their_picture_and_know_which_belong():
    far = (400.0, 10.0, 450.0, 110.0)
    people = [mpii_person(PLACES[0]), mpii_person(far, group=3), mpii_person(PLACES[1])]
    pictures = pictures_of(MPII_16, [mpii_person(PLACES[0], group=-1)], people, [mpii_person(PLACES[0])])
    given = truth_of(pictures[1:2])
    one, other, alone = protocols.groups_of(pictures, given, MPII_16)
    assert [group.place for group in (one, other, alone)] == [1, 1, 2]
    assert (one.rows.tolist(), other.rows.tolist(), alone.rows.tolist()) == ([0, 2], [1], [0])
    assert one.poses == other.poses == given.poses and alone.poses == alone.members == []
    assert (one.belongs.tolist(), other.belongs.tolist()) == ([True, False, True], [False, True, False])
    assert other.members == [given.poses[1]] and alone.belongs.shape == (0,)


def test_without_a_rough_place_every_pose_belongs():
    # WAF has none: a picture is a group.
    pictures = made(WAF_10, 1)
    (group,) = protocols.groups_of(pictures, truth_of(pictures, off=(500.0, 0.0)), WAF_10)
    assert group.belongs.tolist() == [True, True] and group.rows.tolist() == [0, 1]


def test_pictures_without_groups_are_one_clear_error():
    pictures = pictures_of(MPII_16, [mpii_person(PLACES[0], group=-1)], [])
    with pytest.raises(DataError, match="nobody to measure: no groups of people in these pictures"):
        protocols.groups_of(pictures, truth_of(pictures), MPII_16)


def test_a_group_of_which_nobody_is_labelled_is_none():
    pictures = pictures_of(MPII_16, [mpii_person(PLACES[0], group=2)], [mpii_person(PLACES[0], group=-1)])
    found, numbers = multi(pictures, truth_of(pictures))
    assert found.about["groups"] == 1 and numbers["map"] == 1


def test_recall_forgets_groups_that_nobody_answered_only_as_the_toolkit_does():
    pictures = made(MPII_16)
    given = predictions(truth_of(pictures).poses[:4])
    strict, parity = (
        protocols.multi_person(pictures, given, MPII_16, denominator=way) for way in ("strict", "toolkit_parity")
    )
    assert statistic("multi", strict)["map"] == pytest.approx(2 / 3)
    assert flat(jax.jit(parity.statistic)(parity.data, np.ones(3)))["map"] == 1
    assert parity.about["denominator"] == "toolkit_parity"


def test_an_answer_without_a_label_is_wrong_and_a_missing_joint_is_no_answer():
    joint = MPII_16.joints.index("left_wrist")
    pictures = pictures_of(
        MPII_16, *([mpii_person(place, unlabelled=u) for place in PLACES] for u in ((), ("left_wrist",)))
    )
    given = truth_of(pictures)
    _, numbers = multi(pictures, given)
    assert numbers["ap_per_joint/left_wrist"] == 1
    present = np.ones(16, bool)
    guessed = changed(changed(given, 2, present=present), 3, present=present)
    for place in (2, 3):
        score = np.full(16, 0.9)
        score[joint] = 0.95
        guessed = changed(guessed, place, score=score)
    _, numbers = multi(pictures, guessed)
    # Two wrong answers go before the two right ones: precision 1/3, then 2/4, and the envelope is 1/2.
    assert numbers["ap_per_joint/left_wrist"] == pytest.approx(1 / 2)


# Stickmen


def test_a_stick_counts_for_those_who_were_detected():
    pictures = made(WAF_10)
    given = moved(truth_of(pictures), 0, WAF_10, "left_wrist", (60, 0))
    found = statistic("sticks", protocols.stickmen(pictures, predictions(given.poses[:5]), WAF_10))
    assert found["detection_rate"] == pytest.approx(5 / 6)
    assert found["pcp/left_lower_arm"] == pytest.approx(4 / 5) and found["pcp/head"] == 1
    assert found["mpcp"] == pytest.approx(29 / 30) and found["aop"] == 1


def test_a_hidden_stick_is_right_where_it_was_called_hidden():
    wrist = WAF_10.joints.index("left_wrist")
    hidden = functools.partial(person, WAF_10, PLACES[0], unlabelled=("left_wrist",))
    pictures = pictures_of(WAF_10, [hidden()], [hidden()], [])
    given = truth_of(pictures)
    numbers = statistic("sticks", protocols.stickmen(pictures, given, WAF_10))
    assert numbers["mpcp"] == numbers["aop"] == 1
    # The first is thought to be seen; of the second the confidence says no.
    sure, unsure = np.full(10, 0.9), np.full(10, 0.9)
    unsure[wrist] = 0.19
    given = changed(
        changed(given, 0, present=np.ones(10, bool), score=sure), 1, present=np.ones(10, bool), score=unsure
    )
    numbers = statistic("sticks", protocols.stickmen(pictures, given, WAF_10))
    assert numbers["mpcp"] == pytest.approx(11 / 12) and numbers["aop"] == pytest.approx(11 / 12)
    assert numbers["pcp/left_lower_arm"] == 1 / 2


def test_the_first_pose_on_somebody_is_theirs():
    pictures = made(WAF_10)
    given = truth_of(pictures)
    # Off by a quarter of the window, and by more than half of the head, which is 20 pixels.
    twin = dataclasses.replace(given.poses[0], points=given.poses[0].points + np.array([0.0, 10.5]))
    found = statistic("sticks", protocols.stickmen(pictures, predictions([*given.poses, twin]), WAF_10))
    assert found["detection_rate"] == found["mpcp"] == 1
    found = statistic("sticks", protocols.stickmen(pictures, predictions([twin, *given.poses]), WAF_10))
    assert found["detection_rate"] == 1 and found["pcp/head"] == pytest.approx(5 / 6)


# OKS


def summary(pictures, given, skeleton):
    """By pycocotools."""
    numbers = [record.image_id for record in pictures]
    results = [result for result in as_results(given.poses) if result["image_id"] in numbers]
    return protocols.coco_summary(coco_annotations(pictures), results, numbers, skeleton.sigmas)


@pytest.mark.parametrize("case", ["oks", "oks of drawn people"])
def test_oks_numbers_are_those_of_pycocotools(case):
    skeleton, make, measure = CASES[case]
    pictures = make(skeleton)
    # A crowd, and somebody without joints, are neither to be found nor in the way.
    crowd = np.array([[False, False], [False, True], [False, False]])
    pictures = [dataclasses.replace(record, crowd=row) for record, row in zip(pictures, crowd, strict=True)]
    empty = pictures[2].visibility.copy()
    empty[1] = 0
    pictures[2] = dataclasses.replace(pictures[2], visibility=empty)
    given = noisy(pictures, scale=3.0)
    found = measure(pictures, given)
    exact = summary(pictures, given, skeleton)
    assert found.about["people"] == 4 and found.about["poses"] == 6
    assert found.about["difference_to_pycocotools"] <= 1e-6
    assert found.exact == {name: value for name, value in exact.items() if value >= 0}
    assert 0.05 < exact["ap"] < 0.95 and exact["ap_large"] == -1
    numbers = statistic(case, found)
    np.testing.assert_allclose([numbers[n] for n in found.exact], list(found.exact.values()), atol=1e-6)


def test_crowdpose_levels_are_the_ap_of_their_pictures():
    pictures = crowded()
    pictures[1] = dataclasses.replace(pictures[1], crowd_index=0.2)
    given = noisy(pictures, scale=4.0)
    numbers = statistic("oks of CrowdPose", CASES["oks of CrowdPose"][2](pictures, given))
    for name, places in {"ap_easy": [0], "ap_medium_crowd": [1], "ap_hard": [2]}.items():
        subset = [pictures[place] for place in places]
        assert numbers[name] == pytest.approx(summary(subset, given, CROWDPOSE_14)["ap"], abs=1e-9)
    pictures = [
        dataclasses.replace(record, crowd_index=index) for record, index in zip(pictures, (0.79, 0.8, 0.3), strict=True)
    ]
    numbers = statistic("oks of CrowdPose", CASES["oks of CrowdPose"][2](pictures, given))
    subset = [pictures[0], pictures[2]]
    assert numbers["ap_medium_crowd"] == pytest.approx(summary(subset, given, CROWDPOSE_14)["ap"], abs=1e-9)
    assert np.isnan(numbers["ap_easy"]) and 0 < numbers["ap_hard"] < 1


def test_oks_without_any_pose_is_0_and_without_any_person_is_nothing():
    pictures = made(COCO_17)
    found = protocols.oks(pictures, predictions([]), COCO_17)
    numbers = statistic("oks", found)
    assert numbers["ap"] == numbers["ar"] == 0 and found.exact is None
    crowds = [dataclasses.replace(record, crowd=np.array([True, True])) for record in pictures]
    numbers = statistic("oks", protocols.oks(crowds, truth_of(pictures), COCO_17))
    assert np.isnan(list(numbers.values())).all()


def test_a_difference_to_pycocotools_does_not_go_unseen(monkeypatch):
    pictures = made(COCO_17)
    right = summary(pictures, truth_of(pictures), COCO_17)
    monkeypatch.setattr(protocols, "coco_summary", lambda *given: right | {"ar50": right["ar50"] - 1e-3})
    with pytest.raises(DataError, match=r"differ by 0\.001"):
        protocols.oks(pictures, truth_of(pictures), COCO_17)


def test_intervals_of_oks_leave_out_draws_without_anybody():
    # Only the first picture has somebody of medium size.
    giants = [(10.0, 10.0, 260.0, 410.0), (300.0, 10.0, 550.0, 410.0)]
    pictures = pictures_of(COCO_17, *([person(COCO_17, place) for place in p] for p in (PLACES, giants, giants)))
    found = protocols.oks(pictures, truth_of(pictures), COCO_17)
    result = make_result({}, found, ["a", "b", "c"], replicates=40, seed=0)
    assert result["ap_medium"] == 1 and result["intervals"]["ap_medium"] == [1, 1]
    assert None in result["bootstrap"]["values"]["ap_medium"]


def limbs_of(pictures, given):
    names = [record.picture.name for record in pictures]
    return make_result({}, protocols.oks(pictures, given, COCO_17), names, replicates=0, seed=0)["limb_pck"]


def test_limb_pck_is_that_of_the_twelve_joints_of_arms_and_legs():
    pictures = made(COCO_17)
    given = moved(truth_of(pictures), 0, COCO_17, "left_ankle", (30, 0))
    given = moved(given, 0, COCO_17, "nose", (30, 0))
    assert limbs_of(pictures, given) == pytest.approx(71 / 72)
    legless = pictures_of(COCO_17, [person(COCO_17, PLACES[0], unlabelled=("left_hip", "right_hip"))])
    assert limbs_of(legless, truth_of(legless)) is None


def test_nobody_to_measure_is_an_error():
    empty = pictures_of(MPII_16, [], [mpii_person(PLACES[0], unlabelled=MPII_16.joints, group=-1)])
    for measure in (
        lambda: protocols.pck_torso(empty, predictions([]), MPII_16, []),
        lambda: protocols.pckh(empty, predictions([]), MPII_16),
        lambda: protocols.multi_person(empty, predictions([]), MPII_16, denominator="strict"),
        lambda: protocols.stickmen(pictures_of(WAF_10, []), predictions([]), WAF_10),
    ):
        with pytest.raises(DataError, match="nobody to measure"):
            measure()


# Results


def share_of(values):
    """A protocol of one number for each picture, with a column that nobody is in."""

    def count(data, weight):
        share = (weight * data).sum() / weight.sum()
        return {"zeta": share, "columns": {"Wrist": share, "Ankle": share / 2, "Nobody": share * jnp.nan}}

    rows = {"network": ("zeta", "columns/Wrist", "columns/Ankle", "columns/Nobody")}
    table = Table("shares", ("All", "Wrist", "Ankle", "Nobody"), rows)
    return Measured(count, jnp.array(values, jnp.float32), (table,), {"people": 7})


ABOUT = {"dataset": "made", "split": "val", "protocol": "share", "weights": "network", "boxes": "gt"}


@functools.cache
def result_of(values, *, replicates=200, seed=0):
    names = [f"{n}.jpg" for n in range(len(values))]
    return make_result(ABOUT, share_of(values), names, replicates=replicates, seed=seed)


WORSE = (0.0, 0.25, 0.5, 0.25, 0.0, 0.5, 0.25, 0.75)
BETTER = tuple(value + 0.125 for value in WORSE)


def test_an_interval_holds_the_number_and_is_as_wide_as_the_pictures_differ():
    result = result_of(WORSE)
    low, high = result["intervals"]["zeta"]
    # The standard error of the mean is 0.086.
    assert result["zeta"] == pytest.approx(0.3125) and low < 0.3125 < high and 0.25 < high - low < 0.42
    assert result["intervals"]["columns/Ankle"] == pytest.approx([low / 2, high / 2])
    assert result_of((0.25,) * 4)["intervals"]["zeta"] == [0.25, 0.25]


def test_intervals_are_those_of_the_seed_and_of_nothing_else():
    first, other = (result_of(WORSE, seed=seed) for seed in (0, 3))
    again = result_of.__wrapped__(WORSE)
    assert first == again and first["zeta"] == other["zeta"] and first["intervals"] != other["intervals"]


def test_replicates_are_the_statistic_of_resampled_pictures():
    found = measured("pck")
    result = make_result({}, found, ["a", "b", "c"], replicates=4, seed=5)
    weights = np.asarray(resampling_weights(jax.random.key(5), 3, 4), np.float32)
    for path in ("pck", "pcp_strict/UArm", "pdj/Wrist/0.1", "random_pck"):
        expected = [statistic("pck", found, weight)[path] for weight in weights]
        assert result["bootstrap"]["values"][path] == pytest.approx(expected, abs=1e-6)
    assert flat({name: result[name] for name in ("pck", "pdj")}) == pytest.approx(
        {path: value for path, value in statistic("pck", found).items() if path.split("/")[0] in ("pck", "pdj")}
    )


def test_without_replicates_there_are_no_intervals():
    result = result_of(WORSE, replicates=0)
    assert "intervals" not in result and "bootstrap" not in result
    assert without_replicates(result_of(WORSE)) == result
    assert "95 %" not in as_text(result) + as_markdown(result) and "zeta" in numbers_of(result)
    assert "columns" not in as_text(result).splitlines()[0] and "{" not in as_text(result)


def test_a_result_goes_through_json_and_back(tmp_path):
    path = tmp_path / "result.json"
    result = result_of(WORSE)
    path.write_text(json.dumps(result, allow_nan=False))
    assert read_result(path) == result
    assert result["columns"]["Nobody"] is None and result["intervals"]["columns/Nobody"] == [None, None]
    assert list(result)[:2] == ["format", "dataset"] and result["pictures"] == 8 and result["people"] == 7


def test_numbers_stand_in_the_order_of_the_paper():
    result = result_of(WORSE)
    assert list(result["columns"]) == ["Wrist", "Ankle", "Nobody"]
    assert list(numbers_of(result)) == ["zeta", "columns/Wrist", "columns/Ankle", "columns/Nobody"]
    found = make_result({}, measured("pck"), ["a", "b", "c"], replicates=0, seed=0)
    assert list(found["pck_per_joint"]) == list(LSP_14.joints)


def test_numbers_of_a_result_that_are_in_no_table_are_there_too():
    result = make_result({}, measured("multi"), ["a", "b", "c"], replicates=2, seed=0)
    numbers = numbers_of(result)
    assert next(iter(numbers)) == "ap_columns/Head" and numbers["ap_columns/Total"] == numbers["map"]
    assert [name for name in numbers if name.startswith("ap_per_joint/")] == [
        f"ap_per_joint/{j}" for j in LSP_14.joints
    ]


def test_the_text_is_the_table_in_per_cent():
    lines = as_text(result_of(WORSE)).splitlines()
    assert lines[:2] == ["dataset: made", "split: val"] and "people: 7" in lines
    place = lines.index("shares")
    assert lines[place + 1].split() == ["All", "Wrist", "Ankle", "Nobody"]
    assert lines[place + 2].split() == ["network", "31.2", "31.2", "15.6", "-"]
    assert lines[place + 3].split()[:2] == ["95", "%"] and lines[place + 3].split()[-1] == "-"
    assert len({len(line) for line in lines[place + 1 : place + 4]}) == 1


def test_the_markdown_is_the_table_in_per_cent():
    lines = as_markdown(result_of((0.25,) * 4)).splitlines()
    assert lines[0] == "dataset made, split val, protocol share, weights network, boxes gt, pictures 4"
    assert lines[2:] == [
        "**shares**",
        "",
        "|  | All | Wrist | Ankle | Nobody |",
        "| --- | --- | --- | --- | --- |",
        "| network | 25.0 | 25.0 | 12.5 | - |",
        "|   95 % | 25.0..25.0 | 25.0..25.0 | 12.5..12.5 | - |",
    ]


@pytest.mark.parametrize(
    ("case", "header"),
    [
        ("pck", ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Mean"]),
        ("pckh", ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Mean", "Mean@0.1", "AUC"]),
        ("multi", ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "UBody", "Total"]),
        ("multi of WAF", ["Head", "Shoulder", "Elbow", "Wrist", "Total"]),
        ("oks", ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]),
        ("oks of CrowdPose", ["AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_E", "AP_M", "AP_H"]),
    ],
)
def test_tables_have_the_columns_of_the_papers(case, header):
    assert list(measured(case).tables[0].columns) == header


@pytest.mark.parametrize("case", CASES)
def test_every_cell_of_a_table_is_a_number_of_the_statistic(case):
    found = measured(case)
    numbers = statistic(case, found)
    for table in found.tables:
        for row in table.rows.values():
            assert len(row) == len(table.columns) and set(row) <= set(numbers)


# Two results


def resampled(**changes):
    """A result with another bootstrap."""
    return result_of(BETTER) | {"bootstrap": result_of(BETTER)["bootstrap"] | changes}


def without_replicates(result):
    return {name: value for name, value in result.items() if name not in ("intervals", "bootstrap")}


def test_a_result_differs_from_itself_by_nothing():
    result = result_of(WORSE)
    found = compare(result, result)
    assert [entry.name for entry in found] == ["zeta", "columns/Wrist", "columns/Ankle"]
    assert all(entry.low == entry.high == 0 == entry.second - entry.first for entry in found)
    assert "*" not in comparison_table(found)


def test_a_sure_difference_has_an_interval_of_its_own_and_a_star():
    worse, better = result_of(WORSE), result_of(BETTER)
    assert worse["intervals"]["zeta"][1] > better["intervals"]["zeta"][0]
    (entry, *_) = compare(worse, better)
    # Every picture is better by the same: so is every draw.
    assert (entry.low, entry.high) == (pytest.approx(0.125, abs=2e-6), pytest.approx(0.125, abs=2e-6))
    text = comparison_table([entry]).splitlines()
    assert text[0].split() == ["first", "second", "difference", "95", "%"]
    assert text[1].split() == ["zeta", "31.2", "43.8", "+12.5", "+12.5..+12.5", "*"]
    (back, *_) = compare(better, worse)
    assert (back.low, back.high) == (pytest.approx(-0.125, abs=2e-6), pytest.approx(-0.125, abs=2e-6))
    assert "-12.5..-12.5 | *" in comparison_table([back], markdown=True)
    unsure = compare(worse, result_of((*WORSE[:-1], 0.9)))[0]
    assert unsure.low is not None and unsure.high is not None and unsure.low <= 0 <= unsure.high
    assert "*" not in comparison_table([unsure])


def test_without_replicates_a_difference_has_no_interval():
    worse, better = result_of(WORSE), result_of(BETTER)
    for pair in ((without_replicates(worse), better), (worse, without_replicates(better))):
        (entry, *_) = compare(*pair)
        assert entry.low is entry.high is None and entry.second - entry.first == pytest.approx(0.125)
        assert comparison_table([entry]).splitlines()[1].split()[-1] == "-"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: result_of(BETTER) | {"dataset": "coco"}, "dataset is 'made' in one and 'coco' in the other"),
        (lambda: result_of(BETTER) | {"split": "train"}, "split is 'val' in one and 'train'"),
        (lambda: result_of(BETTER) | {"protocol": "pck"}, "protocol is 'share' in one and 'pck'"),
        (lambda: result_of(BETTER) | {"denominator": "strict"}, "denominator is None in one and 'strict'"),
        (lambda: result_of((0.25,) * 4), "pictures is 8 in one and 4"),
        (lambda: resampled(pictures_sha256="0" * 64), "pictures_sha256 .* evaluate both on the same pictures"),
        (lambda: resampled(seed=3), "seed of the bootstrap differs"),
        (lambda: resampled(replicates=100), "replicates of the bootstrap differs"),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(other, message):
    with pytest.raises(DataError, match=f"not comparable: {message}"):
        compare(result_of(WORSE), other())


@pytest.mark.parametrize("content", ["[]", '{"ap": 1}', '{"format": "rmpe_jax.result.0"}', "3"])
def test_other_json_is_not_a_result(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"other\.json: not a result of `rmpe evaluate --json FILE`"):
        read_result(path)


# From a network to poses in the data set's skeleton


def test_thorax_and_pelvis_are_filled_in_between_shoulders_and_hips(tiny_weights):
    pictures = [dataclasses.replace(record, boxes=np.array(PLACES)) for record in made(MPII_16, 1)]
    first, second = predict_in_boxes(Perfect(tiny_weights, COCO_LSP_19), pictures, MPII_16).poses
    assert first.present.all() and (first.person, second.person) == (0, 1)
    for joint, ends in (("thorax", "shoulder"), ("pelvis", "hip")):
        places = [first.points[MPII_16.joints.index(name)] for name in (joint, f"left_{ends}", f"right_{ends}")]
        np.testing.assert_allclose(places[0], (places[1] + places[2]) / 2)
    np.testing.assert_allclose(second.points, figure(MPII_16.joints, PLACES[1]), atol=1e-4)
    # Without the hips there is no pelvis.
    found = predict_in_boxes(Perfect(tiny_weights, WAF_10), pictures, COCO_17).poses[0]
    assert [j for j, there in zip(COCO_17.joints, found.present, strict=True) if there] == [
        j for j in COCO_17.joints if j in WAF_10.joints
    ]


def test_only_people_with_joints_and_a_box_are_predicted_in_their_box(tiny_weights):
    unlabelled = person(COCO_17, PLACES[0], unlabelled=COCO_17.joints, boxes=PLACES[0])
    thin = person(COCO_17, PLACES[0], boxes=[10, 10, 11, 60])
    people = [unlabelled, person(COCO_17, PLACES[0], boxes=PLACES[0]), person(COCO_17, PLACES[1], crowd=True), thin]
    pictures = pictures_of(COCO_17, people, [unlabelled], damaged=(2,))
    assert usable_rows(pictures[0]).tolist() == [1]
    found = predict_in_boxes(Perfect(tiny_weights, COCO_17), pictures, COCO_17)
    # The second picture has nobody to find, and is not read.
    assert [(pose.image_id, pose.person) for pose in found.poses] == [(1, 1)] and found.problems == []


def test_an_unreadable_picture_is_named_and_nobody_is_found_in_it(tiny_weights):
    pictures = pictures_of(COCO_17, *([person(COCO_17, PLACES[0])] for _ in range(3)), damaged=(2,))
    estimator = Perfect(tiny_weights, COCO_17)
    for found, count in (
        (predict_in_boxes(estimator, pictures, COCO_17), 1),
        (predict_detected(estimator, pictures, COCO_17, None), 2),
    ):
        assert found.problems == ["made/2.png: damaged"]
        assert [pose.image_id for pose in found.poses] == [n for n in (1, 3) for _ in range(count)]
    assert (found.boxes, {pose.person for pose in found.poses}) == ("detector", {None})


def test_boxes_of_a_file_are_known_by_name_or_number(tmp_path, tiny_weights):
    path = tmp_path / "boxes.json"
    boxes = [{"file_name": "1.png", "bbox": [1, 2, 30, 40]}, {"image_id": 2, "bbox": [5, 6, 30, 40]}]
    path.write_text(json.dumps(boxes))
    found = predict_detected(Perfect(tiny_weights, COCO_17), made(COCO_17), COCO_17, read_boxes(path))
    assert [pose.image_id for pose in found.poses] == [1, 2] and found.boxes == "boxes.json"
    np.testing.assert_allclose(found.poses[1].points, figure(COCO_17.joints, (5, 6, 35, 46)), atol=1e-4)
    path.write_text(json.dumps([{"file_name": "other.png", "bbox": [1, 2, 30, 40]}]))
    with pytest.raises(DataError, match=r"boxes\.json: has no boxes for any of the pictures"):
        predict_detected(Perfect(tiny_weights, COCO_17), made(COCO_17), COCO_17, read_boxes(path))


# Files of predictions


def test_predictions_go_through_a_file_and_back(tmp_path):
    pictures, path = made(MPII_16), tmp_path / "poses.json"
    given = noisy(pictures)
    write_predictions(path, given, pictures)
    found = read_predictions(path, pictures, MPII_16)
    assert (found.source, found.boxes, found.problems) == ("poses.json", "poses.json", [])
    for pose, expected in zip(found.poses, given.poses, strict=True):
        assert (pose.image_id, pose.person) == (expected.image_id, expected.person)
        # A missing thorax or pelvis is filled in.
        filled = [MPII_16.joints.index(joint) for joint in ("thorax", "pelvis")]
        kept = np.delete(np.arange(16), filled)
        assert pose.present[kept].tolist() == expected.present[kept].tolist()
        there = kept[expected.present[kept]]
        np.testing.assert_allclose(pose.points[there], expected.points[there], atol=6e-4)
        assert pose.pose_score == pytest.approx(expected.pose_score, abs=1e-4)


@pytest.mark.parametrize("skeleton", [MPII_16, LSP_14, CROWDPOSE_14, FLIC_11, WAF_10], ids=lambda s: s.name)
def test_poses_of_the_predict_command_are_understood_in_every_skeleton(tmp_path, skeleton):
    points = jnp.array(figure(COCO_LSP_19.joints, PLACES[0]), jnp.float32)[None]
    poses = Poses(points, jnp.full((1, 19), 0.5), jnp.array([PLACES[0]], jnp.float32), jnp.ones(1, bool))
    pictures, path = made(skeleton), tmp_path / "poses.json"
    # A name goes before a number, which here is that of a call; what is of other pictures is left out.
    items = [
        *coco_results(poses, COCO_LSP_19, image_id=3, file_name="somewhere/2.png"),
        *coco_results(poses, COCO_LSP_19, image_id=1, file_name="4.png"),
    ]
    path.write_text(json.dumps(items))
    (pose,) = read_predictions(path, pictures, skeleton).poses
    assert (pose.image_id, pose.person, pose.pose_score) == (2, None, 0.5) and pose.present.all()
    between = [joint in ("thorax", "pelvis") for joint in skeleton.joints]
    expected = figure(skeleton.joints, PLACES[0])
    np.testing.assert_allclose(pose.points[~np.array(between)], expected[~np.array(between)], atol=1e-3)


def test_a_pose_in_a_picture_of_nobody_is_a_false_alarm(tmp_path):
    pictures = pictures_of(COCO_17, [person(COCO_17, PLACES[0])], [])
    item = {"keypoints": [10.0, 20.0, 0.9] * 17, "score": 0.9}
    path = tmp_path / "poses.json"
    path.write_text(json.dumps([item | {"file_name": "2.png", "image_id": 1}, item | {"image_id": 2}]))
    assert [pose.image_id for pose in read_predictions(path, pictures, COCO_17).poses] == [2, 2]


ITEM = {"image_id": 1, "keypoints": [1.0, 2.0, 0.5] * 14, "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of poses"),
        ("[1,\n2,,", "malformed JSON at line 2"),
        ("[]", "has no poses for any of the pictures"),
        (json.dumps([ITEM | {"image_id": 9}]), "has no poses for any of the pictures"),
        (json.dumps([ITEM, 5]), "pose number 2: expected an object, got int"),
        (
            json.dumps([ITEM, ITEM | {"keypoints": [1.0, 2.0, 0.5] * 15}]),
            "pose number 2: expected 14 or 17 joints .* got 15",
        ),
        (json.dumps([ITEM | {"keypoints": [1.0] * 41}]), "pose number 1: keypoints: .*41"),
        (json.dumps([ITEM | {"keypoints": ["a"] * 42}]), "pose number 1: keypoints: .*'a'"),
        (json.dumps([ITEM | {"keypoints": [[1.0, 2.0], [3.0]]}]), "pose number 1: keypoints: expected numbers"),
        (json.dumps([ITEM | {"keypoints": [1e300, 2.0, 0.5] * 14}]), "pose number 1: keypoints: .* at most 1e.09"),
        (json.dumps([ITEM | {"keypoints": [float("nan"), 2.0, 0.5] * 14}]), "pose number 1: .* must be finite"),
        (json.dumps([ITEM | {"keypoints": [None, 2.0, 0.5] * 14}]), "pose number 1: .* must be finite"),
        (json.dumps([ITEM | {"score": float("inf")}]), "pose number 1: .* must be finite"),
        (json.dumps([ITEM | {"score": None}]), "pose number 1: score: "),
        (json.dumps([ITEM | {"score": [0.5]}]), "pose number 1: score: expected a number"),
        (json.dumps([ITEM | {"score": 10**400}]), "pose number 1: score: expected numbers, got 1000"),
        (json.dumps([{k: v for k, v in ITEM.items() if k != "keypoints"}]), "pose number 1: no keypoints"),
        (json.dumps([{k: v for k, v in ITEM.items() if k != "score"}]), "pose number 1: no score"),
        (json.dumps([ITEM, ITEM, ITEM | {"person": 3}]), "pose number 3: person 3 of a picture with 2"),
        (json.dumps([ITEM | {"person": 0}]), "pose number 1: person 0 of a picture with 2"),
        (json.dumps([ITEM | {"person": "1"}]), "pose number 1: person '1' of a picture with 2"),
        (json.dumps([ITEM | {"person": 1.5}]), "pose number 1: person 1.5 of a picture with 2"),
        (json.dumps([ITEM | {"extra_keypoints": {"neck": [1.0, 2.0]}}]), "pose number 1: .*neck"),
        (json.dumps([ITEM | {"extra_keypoints": {"neck": "a"}}]), "pose number 1: neck: expected numbers, got 'a'"),
        (json.dumps([ITEM | {"extra_keypoints": [1.0]}]), "pose number 1: extra_keypoints: expected an object"),
        (json.dumps([ITEM | {"image_id": [1]}]), "pose number 1: image_id: expected a number"),
        (json.dumps([{k: v for k, v in ITEM.items() if k != "image_id"}]), "pose number 1: no image_id"),
        (json.dumps([ITEM | {"file_name": 7}]), "pose number 1: file_name: expected text, got 7"),
    ],
)
def test_a_wrong_file_of_predictions_is_named_with_the_pose(tmp_path, content, message):
    path = tmp_path / "poses.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"^{path}: {message}") as raised:
        read_predictions(path, made(LSP_14), LSP_14)
    assert "\n" not in str(raised.value)


def with_boxes(given):
    """Every other pose with the box it was predicted in."""
    rng, poses = np.random.default_rng(7), []
    for number, pose in enumerate(given.poses):
        low, size = rng.uniform(0, 50, 2), rng.uniform(0, 50, 2)
        poses.append(dataclasses.replace(pose, box=None if number % 2 else np.concatenate([low, low + size])))
    return predictions(poses)


def test_boxes_of_poses_go_through_a_file_and_back(tmp_path):
    pictures, path = made(MPII_16), tmp_path / "poses.json"
    given = with_boxes(noisy(pictures))
    write_predictions(path, given, pictures)
    # What COCO's evaluators read stays the extent of the joints.
    items = json.loads(path.read_text())
    assert ["box" in item for item in items] == [True, False] * 3 and all("bbox" in item for item in items)
    found = read_predictions(path, pictures, MPII_16).poses
    for pose, expected, item in zip(found, given.poses, items, strict=True):
        x, y, width, height = item["bbox"]
        extent = [x, y, x + width, y + height]
        np.testing.assert_allclose(pose.box, extent if expected.box is None else expected.box)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"box": [1, 2, 30, 40]}, [1, 2, 31, 42]),
        ({"bbox": [1, 2, 30, 40]}, [1, 2, 31, 42]),
        ({"box": [1, 2, 30, 40], "bbox": [5, 6, 7, 8]}, [1, 2, 31, 42]),
        ({"box": None}, None),
        ({"box": [1.5, 2, 0, 0]}, [1.5, 2, 1.5, 2]),
    ],
)
def test_the_box_of_a_pose_is_read_from_either_name(tmp_path, fields, expected):
    path = tmp_path / "poses.json"
    path.write_text(json.dumps([ITEM | fields]))
    box = read_predictions(path, made(LSP_14), LSP_14).poses[0].box
    assert expected is None if box is None else box.tolist() == expected


@pytest.mark.parametrize("name", ["box", "bbox"])
@pytest.mark.parametrize(
    "box",
    [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, -3, 4], [1, 2, float("nan"), 4], ["a"] * 4, {}, "wide", 7, [[1, 2], [3, 4]]]
    + [[0, 0, 1e300, 4], [0, 0, 10**400, 4]],
)
def test_a_broken_box_is_named_with_its_pose(tmp_path, name, box):
    path = tmp_path / "poses.json"
    path.write_text(json.dumps([ITEM, ITEM | {name: box}]))
    with pytest.raises(DataError, match=rf"^{path}: pose number 2: {name}: "):
        read_predictions(path, made(LSP_14), LSP_14)


def test_poses_of_a_network_have_the_box_they_were_predicted_in(tiny_weights):
    pictures = [dataclasses.replace(record, boxes=np.array(PLACES)) for record in made(COCO_17, 1)]
    estimator = Perfect(tiny_weights, COCO_17)
    assert [pose.box.tolist() for pose in predict_in_boxes(estimator, pictures, COCO_17).poses] == [
        list(place) for place in PLACES
    ]
    detected = predict_detected(estimator, pictures, COCO_17, None).poses
    assert [pose.box.tolist() for pose in detected] == [list(box) for box in ALL_BOXES]


# Whole evaluations


def measure(name, predictor, folder, **options):
    said = options.pop("said", [])
    return evaluate_dataset(name, predictor, folder, **({"replicates": 0, "report": said.append} | options))


@pytest.mark.parametrize("boxes", ["gt", "detector", "file"])
def test_the_truth_itself_has_an_ap_of_1(tmp_path, tiny_weights, boxes):
    write_coco(tmp_path)
    given = boxes
    if boxes == "file":
        entries = [
            {"image_id": n, "bbox": [x, y, u - x, v - y], "score": 0.9} for n in (1, 2, 3) for x, y, u, v in ALL_BOXES
        ]
        given = str(tmp_path / "boxes.json")
        (tmp_path / "boxes.json").write_text(json.dumps(entries))
    result = measure("coco", Perfect(tiny_weights, COCO_17), tmp_path, boxes=given)
    assert result["ap"] == result["ap50"] == result["ar"] == 1
    assert result.get("limb_pck", 1) == 1 and ("limb_pck" in result) == (boxes == "gt")
    assert result["boxes"] == ("boxes.json" if boxes == "file" else boxes) and result["weights"] == "tiny"
    assert (result["split"], result["pictures"], result["people"], result["poses"]) == ("val2017", 3, 6, 6)


def test_poses_beside_the_people_have_an_ap_of_0(tmp_path, tiny_weights):
    write_coco(tmp_path)
    estimator = Perfect(tiny_weights, COCO_17)
    estimator.detector = lambda image: Boxes.from_arrays(np.array(ALL_BOXES) + 300)
    assert measure("coco", estimator, tmp_path, boxes="detector")["ap"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "lspet"])
def test_saved_predictions_give_the_same_numbers(tmp_path, tiny_weights, name):
    if name == "coco":
        write_coco(tmp_path)
        # On coco the neck and the top of the head are no joints: they get lost.
        estimator = Perfect(tiny_weights, COCO_LSP_19)
    else:
        write_lspet(tmp_path)
        estimator = Perfect(tiny_weights, LSP_14, grown=0.35)
    saved = tmp_path / "saved" / "poses.json"
    replicates = 5 if name == "coco" else 0
    direct = measure(name, estimator, tmp_path, replicates=replicates, save_predictions=saved)
    again = measure(name, saved, tmp_path, replicates=replicates)
    paths = numbers_of(direct)
    assert len(paths) >= 10 and numbers_of(again) == paths
    assert again["weights"] == again["boxes"] == "poses.json" and ("limb_pck" in again) == (name == "coco")
    assert {(entry.low, entry.high) for entry in compare(direct, again)} == {(0, 0) if replicates else (None, None)}
    if name == "lspet":
        assert {item["person"] for item in json.loads(saved.read_text())} == {1}


def test_the_truth_itself_has_a_pck_of_1(tmp_path, tiny_weights):
    labels = lsp_labels()
    labels[..., 2] = 1
    write_lspet(tmp_path, labels=labels)
    result = measure("lspet", Perfect(tiny_weights, LSP_14, grown=0.1), tmp_path)
    # All made figures have one pose: the mean pose is as good.
    assert result["pck"] == result["mean_pose_pck"] == 1 and set(result["pck_per_joint"].values()) == {1.0}
    assert result["random_pck"] < 0.5 and result["people_without_torso"] == 0


def test_people_without_a_torso_are_counted(tmp_path, tiny_weights):
    labels = lsp_labels()
    for joint in ("right_hip", "left_hip"):
        labels[19, LSP_14.joints.index(joint), 2] = 0
    labels[39, :, 2] = 1
    write_lspet(tmp_path, labels=labels)
    result = measure("lspet", Perfect(tiny_weights, LSP_14, grown=0.1), tmp_path)
    assert result["people_without_torso"] == 1 and result["pck"] == 1


@pytest.mark.slow
def test_drawn_people_are_measured_without_files(tmp_path):
    pictures = read_data("synthetic", tmp_path, "val")[:4]
    path = tmp_path / "poses.json"
    write_predictions(path, truth_of(pictures), pictures)
    result = measure("synthetic", path, tmp_path, limit=4)
    assert result["ap"] == result["ar"] == 1 and result["pictures"] == 4 and result["split"] == "val"


SETS = {
    "crowdpose": (lambda folder: write_crowdpose(folder, split="test"), {}),
    "flic": (write_flic, {}),
    "lsp": (write_lsp, {}),
    "mpii": (write_mpii, {"split": "trainval"}),
    "mpii multi": (write_mpii, {"split": "trainval", "protocol": "multi", "toolkit_parity": True}),
    "waf": (lambda folder: write_waf(folder, {n: [waf_sticks(box) for box in ALL_BOXES] for n in (351, 353)}), {}),
    "waf sticks": (lambda folder: write_waf(folder, {352: [waf_sticks(ALL_BOXES[0])]}), {"protocol": "sticks"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SETS)
def test_the_labels_of_every_set_get_1_by_its_protocol(tmp_path, case):
    write, options = SETS[case]
    name, path = case.split()[0], tmp_path / "poses.json"
    write(tmp_path)
    pictures = read_data(name, tmp_path, options.get("split", PROTOCOLS[name][1]))
    write_predictions(path, truth_of(pictures), pictures)
    result = measure(name, path, tmp_path, **options)
    numbers = numbers_of(result)
    cells = [numbers[path] for path in numbers if path.split("/")[0] not in REFERENCES]
    assert {round(value, 6) for value in cells if value is not None} == {1.0}
    assert result["protocol"] == options.get("protocol", PROTOCOLS[name][0][0]) and result["unreadable"] == 0
    assert result.get("denominator") == {"mpii multi": "toolkit_parity", "waf": "strict"}.get(case)
    assert ("ap_hard" in numbers) == (name == "crowdpose")


def test_unreadable_pictures_are_reported_and_counted(tmp_path, tiny_weights):
    write_coco(tmp_path)
    broken = tmp_path / "val2017" / "000000000002.jpg"
    broken.write_bytes(b"not a picture")
    said = []
    result = measure("coco", Perfect(tiny_weights, COCO_17), tmp_path, said=said)
    assert len(said) == 1 and str(broken) in said[0]
    assert (result["unreadable"], result["pictures"], result["poses"]) == (1, 3, 4)
    assert result["ar"] == pytest.approx(2 / 3) and result["limb_pck"] == pytest.approx(2 / 3)


def test_a_subset_is_the_first_pictures(tmp_path, tiny_weights):
    write_coco(tmp_path, annotations=[coco_annotation(1, 3, ALL_BOXES[0])])
    result = measure("coco", Perfect(tiny_weights, COCO_17), tmp_path, limit=2)
    assert (result["pictures"], result["people"], result["poses"]) == (2, 0, 0)
    assert result["ap"] is None and "limb_pck" not in result
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mpi"}, "unknown data set 'mpi'; known: coco, crowdpose, .*waf"),
        ({"protocol": "pck"}, "coco has the protocols oks, not 'pck'"),
        ({"name": "mpii", "protocol": "oks"}, "mpii has the protocols pckh, multi, not 'oks'"),
        ({"name": "lspet", "boxes": "detector"}, "predicts each person in their own box: --boxes detector has no use"),
        ({"split": "val2014"}, "annotations/person_keypoints_val2014.json"),
        ({"split": "train2017"}, "the split train2017 of coco has no pictures"),
        ({"name": "lspet"}, "the split val of lspet has no pictures"),
        ({"name": "synthetic", "split": "test"}, "not 'test'"),
        ({"folder": "nowhere"}, "nowhere: no such folder"),
        ({"predictor": "nowhere.json"}, "nowhere.json: no such file"),
    ],
)
def test_what_cannot_be_measured_is_named(tmp_path, tiny_weights, arguments, message):
    write_coco(tmp_path)
    write_coco(tmp_path, split="train2017", pictures=0)
    write_lspet(tmp_path, labels=lsp_labels(5))
    given = {"name": "coco", "predictor": Perfect(tiny_weights, COCO_17), "folder": tmp_path} | arguments
    with pytest.raises(DataError, match=message):
        evaluate_dataset(**given)


def test_broken_boxes_stop_an_evaluation(tmp_path, tiny_weights):
    write_coco(tmp_path)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3]}]))
    with pytest.raises(DataError, match="detection 1"):
        measure("coco", Perfect(tiny_weights, COCO_17), tmp_path, boxes=str(boxes))


def test_every_data_set_has_a_protocol_and_a_split_that_it_knows():
    from rmpe_jax.data.sets import DATA_SETS

    assert set(PROTOCOLS) == set(DATA_SETS)
    for name, (known, split) in PROTOCOLS.items():
        assert known and split in DATA_SETS[name].splits


def test_oks_names_are_those_of_the_table():
    assert measured("oks").tables[0].rows == {"network": OKS_AP_NAMES}


# What users hand over


def test_mpii_people_are_cropped_as_the_hourglass_authors_do(tiny_weights):
    pictures = pictures_of(MPII_16, [mpii_person(PLACES[0], centres=[40.0, 50.0], scale=0.4)])
    asked = []

    class Asked(Perfect):
        def poses_in_boxes(self, image, boxes):
            asked.append(np.asarray(boxes[0]))
            return super().poses_in_boxes(image, boxes)

    estimator = Asked(tiny_weights, MPII_16)
    found = predict_in_boxes(estimator, pictures, MPII_16, positions=True)
    side = 1.25 * 200 * 0.4 / (1 + tiny_weights.experiment.data.extension)
    expected = [40 - side / 2, 50 + 15 * 0.4 - side / 2, 40 + side / 2, 50 + 15 * 0.4 + side / 2]
    np.testing.assert_allclose(asked[0], expected, rtol=1e-5)
    assert found.boxes == "position"


def test_the_area_of_a_pose_is_that_of_its_present_joints():
    points, present = np.array([[50.0, 50.0], [60.0, 70.0], [0.0, 0.0]]), np.array([True, True, False])
    (result,) = as_results([Prediction(1, 0, points, np.ones(3), present, 1.0)])
    assert result["bbox"] == [50, 50, 10, 20] and result["keypoints"][6:] == [0, 0, 0]


def test_toolkit_parity_of_another_protocol_is_an_error(tmp_path):
    with pytest.raises(DataError, match="toolkit parity is of multi-person AP"):
        evaluate_dataset("lspet", tmp_path / "poses.json", tmp_path, toolkit_parity=True)


@pytest.mark.parametrize(
    "changes",
    [{"tables": None}, {"bootstrap": None}, {"bootstrap": {"values": {"ap": [0.5]}, "replicates": 2}}, {"ap": "high"}],
)
def test_a_damaged_result_is_one_clear_error(tmp_path, changes):
    table = {"title": "t", "columns": ["AP"], "rows": {"network": ["ap"]}}
    result = {"format": FORMAT, "ap": 0.5, "tables": [table], **changes}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"result\.json: a damaged result"):
        read_result(tmp_path / "result.json")
