"""From labelled people and a detector's boxes to PGPG and DPG, and what is said and drawn about PGPG."""

import dataclasses
import functools
import json
import sys

import numpy as np
import pytest
from checks import assert_identical
from made_data import TWO_PLACES, coco_annotation, figure, write_coco

from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.sets import read_data
from rmpe_jax.errors import MissingExtraError
from rmpe_jax.evaluate import proposals_sheet
from rmpe_jax.evaluate.fit_proposals import (
    FoundPeople,
    cluster_poses,
    find_people,
    fit_mixtures,
    fit_proposals,
    fit_scored,
    held_out,
    match_people,
    people_of,
    read_poses_file,
)
from rmpe_jax.evaluate.proposals_sheet import _HIGH, _LOW, draw_mixtures
from rmpe_jax.models.proposal_scorer import apply_scorer
from rmpe_jax.predict.detectors import read_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures
from rmpe_jax.records import Boxes
from rmpe_jax.skeleton import COCO_17
from rmpe_jax.train.proposal_scorer import fit_scorer

SPREAD = 0.03
BOX = (10.0, 5.0, 60.0, 165.0)  # its torso is 49.6 pixels long
TORSO, MIDDLE = 49.6, np.array([35.0, 65.0])


@functools.cache
def planted():
    """Three poses: standing, arms up, knees and feet high."""
    standing, up, bent = (figure(COCO_17.joints, BOX) for _ in range(3))
    for joint, name in enumerate(COCO_17.joints):
        if name.endswith(("elbow", "wrist")):
            up[joint, 1] -= 80
        if name.endswith(("knee", "ankle")):
            bent[joint, 1] -= 50
            bent[joint, 0] += 60
    return np.stack([standing, up, bent])


@functools.cache
def crowd(each=60, missing=0.0, noise=0.05):
    """People in the planted poses, in that order, here and there, small and large."""
    rng = np.random.default_rng(1)
    poses = np.repeat(planted(), each, 0) + rng.normal(scale=noise * TORSO, size=(3 * each, 17, 2))
    points = poses * rng.uniform(0.5, 3, (3 * each, 1, 1)) + rng.uniform(-100, 100, (3 * each, 1, 2))
    labelled = rng.random((3 * each, 17)) >= missing
    torso = [joint.endswith(("shoulder", "hip")) for joint in COCO_17.joints]
    return points, labelled | torso


def nearest_planted(atoms):
    """Which planted pose each atomic pose is nearest to, and the largest error of a joint, in torso lengths."""
    normal = (planted() - MIDDLE) / TORSO
    distance = np.linalg.norm(np.asarray(atoms)[:, None] - normal[None], axis=-1)
    return distance.mean(-1).argmin(1).tolist(), distance.mean(-1).min(1).max()


def people_with(offsets, person, points=None, labelled=None):
    """Found people in the planted poses, by number, each in the box of its joints; detections with these offsets."""
    points = planted() if points is None else points
    labelled = np.ones(points.shape[:2], bool) if labelled is None else labelled
    boxes = np.concatenate([points.min(1), points.max(1)], 1)
    return FoundPeople(boxes, points, labelled, np.asarray(offsets, np.float32), np.asarray(person))


@functools.cache
def atoms():
    return np.asarray((planted() - MIDDLE) / TORSO, np.float32)


# Whose a detection is


def test_a_detection_is_of_the_person_whom_it_overlaps_most():
    own = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [50, 0, 60, 10]], np.float32)
    found = np.array(
        [[0, 0, 10, 9], [3, 0, 12, 10], [52, 0, 62, 10], [80, 0, 90, 10], [0, 0, 0, 0], [np.nan, 0, 9, 9]], np.float32
    )
    assert match_people(own, found).tolist() == [0, 1, 2, -1, -1, -1]


@pytest.mark.parametrize(("side", "whose"), [(4.99, -1), (5.0, -1), (5.01, 0)])
def test_half_an_overlap_is_too_little(side, whose):
    # The detection lies within the person's box of area 100.
    assert match_people(np.array([[0, 0, 10, 10]], np.float32), np.array([[0, 0, 10, side]], np.float32)) == whose


@pytest.mark.parametrize(("people", "boxes"), [(0, 3), (3, 0), (0, 0)])
def test_without_people_or_boxes_nobody_is_matched(people, boxes):
    own, found = np.ones((people, 4), np.float32), np.ones((boxes, 4), np.float32)
    assert match_people(own, found).tolist() == [-1] * boxes


def test_a_person_may_have_many_detections():
    own = np.array([[0, 0, 10, 10]], np.float32)
    assert match_people(own, own.repeat(3, 0)).tolist() == [0, 0, 0]


# People and their detections

OFFSETS = np.array([[-0.1, 0.05, 0.1, -0.05], [0.02, 0, 0, 0.1]])


def pictures_in(folder, **changes):
    write_coco(folder, **changes)
    return read_data("coco", folder, "val2017")


def boxes_with(offsets, places=TWO_PLACES):
    own = np.array(places)
    sides = np.tile(own[:, 2:] - own[:, :2], 2)
    return own + offsets * sides


def test_offsets_are_those_of_the_detectors_boxes_over_the_sides(tmp_path):
    boxes = np.concatenate([boxes_with(OFFSETS)[::-1], [[0, 0, 150, 95], [10, 5, 60, 90]]])
    given = dataclasses.replace(Boxes.from_arrays(boxes), valid=np.array([True, True, True, False]))
    seen, steps = [], []

    def detect(image):
        seen.append(image.shape)
        return given

    def progress(pictures):
        for picture in pictures:
            steps.append(picture.image_id)
            yield picture

    found = find_people(pictures_in(tmp_path), detect, progress=progress)
    assert seen == [(96, 160, 3)] * 3 and steps == [1, 2, 3]
    assert found.points.shape == (6, 17, 2) and found.labelled.all()
    assert found.person.tolist() == [1, 0, 3, 2, 5, 4]
    np.testing.assert_allclose(found.offsets, np.tile(OFFSETS[::-1], (3, 1)), atol=1e-5)
    np.testing.assert_allclose(found.points[2], figure(COCO_17.joints, TWO_PLACES[0]))
    np.testing.assert_allclose(found.boxes, TWO_PLACES * 3)


def test_boxes_of_a_file_are_found_by_name_or_number(tmp_path):
    entries = []
    for picture, (x0, y0, x1, y1) in zip(["000000000001.jpg", 3], boxes_with(OFFSETS), strict=True):
        name = {"file_name": picture} if isinstance(picture, str) else {"image_id": picture}
        entries.append({**name, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9})
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    found = find_people(pictures_in(tmp_path), read_boxes(tmp_path / "boxes.json"))
    assert len(found.points) == 6 and found.person.tolist() == [0, 5]
    np.testing.assert_allclose(found.offsets, OFFSETS, atol=1e-5)


def test_people_who_cannot_be_used_and_pictures_of_nobody_are_left_out(tmp_path):
    people = [
        coco_annotation(1, 2, (10.0, 5.0, 60.0, 90.0), iscrowd=1),
        coco_annotation(2, 2, TWO_PLACES[1]),
        coco_annotation(3, 3, TWO_PLACES[0], keypoints=[0] * 51, num_keypoints=0),
    ]
    calls = []
    found = find_people(
        pictures_in(tmp_path, annotations=people), lambda image: calls.append(1) or Boxes.from_arrays(TWO_PLACES)
    )
    assert len(found.points) == 1 and found.person.tolist() == [0] and len(calls) == 1


def test_nothing_to_learn_from_is_said(tmp_path):
    pictures = pictures_in(tmp_path)
    with pytest.raises(DataError, match="no detection overlaps a labelled person by more than half"):
        find_people(pictures, lambda image: Boxes.from_arrays([[0.0, 0, 9, 9]]))
    with pytest.raises(DataError, match="no detection overlaps"):
        find_people(pictures, lambda image: Boxes.from_arrays([]))
    with pytest.raises(DataError, match="nobody to learn from"):
        find_people(pictures_in(tmp_path, annotations=[]), lambda image: Boxes.from_arrays(TWO_PLACES))


def with_a_broken_picture(folder):
    """Three pictures, of which the second cannot be read."""
    pictures = pictures_in(folder)
    pictures[1].picture.path.write_bytes(b"no picture")
    return pictures


def test_an_unreadable_picture_is_reported_and_passed_over(tmp_path):
    told = []
    pictures = with_a_broken_picture(tmp_path)
    found = find_people(pictures, lambda image: Boxes.from_arrays(TWO_PLACES), report=told.append)
    (problem,) = told
    assert problem.startswith(f"{pictures[1].picture.path}: ")
    # The people of the third follow those of the first.
    assert found.points.shape == (4, 17, 2) and found.person.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.boxes, TWO_PLACES * 2)
    np.testing.assert_allclose(found.offsets, 0, atol=1e-6)


def test_an_unreadable_picture_is_an_error_where_nobody_is_told(tmp_path):
    with pytest.raises(PictureError):
        find_people(with_a_broken_picture(tmp_path), lambda image: Boxes.from_arrays(TWO_PLACES))


def test_where_no_picture_can_be_read_there_is_nobody_to_learn_from(tmp_path):
    told, pictures = [], with_a_broken_picture(tmp_path)[1:2]
    with pytest.raises(DataError, match="nobody to learn from"):
        find_people(pictures, lambda image: Boxes.from_arrays(TWO_PLACES), report=told.append)
    assert len(told) == 1


def test_with_the_boxes_of_a_file_no_picture_is_read(tmp_path):
    entries = [{"image_id": 2, "category_id": 1, "bbox": [10, 5, 50, 85], "score": 0.9}]
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    found = find_people(with_a_broken_picture(tmp_path), read_boxes(tmp_path / "boxes.json"))
    assert len(found.points) == 6 and found.person.tolist() == [2]


def test_broken_entries_of_a_file_of_boxes_are_refused(tmp_path):
    (tmp_path / "boxes.json").write_text('[{"image_id": 1, "bbox": [1, 2, 3]}]')
    with pytest.raises(DataError, match=r"boxes\.json: detection 1: bbox: expected four numbers"):
        find_people(pictures_in(tmp_path), read_boxes(tmp_path / "boxes.json"))


# Some of the people


def test_detections_follow_their_people():
    people = people_with(np.arange(20).reshape(5, 4), [2, 0, 2, 1, 0])
    some = people_of(people, np.array([True, False, True]))
    assert some.person.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(some.offsets, people.offsets[[0, 1, 2, 4]])
    for name in ("boxes", "points", "labelled"):
        np.testing.assert_array_equal(getattr(some, name), getattr(people, name)[[0, 2]])


def test_all_people_are_the_same_and_nobody_has_no_detections():
    people = people_with(np.arange(8).reshape(2, 4), [2, 0])
    everybody, nobody = (people_of(people, np.full(3, chosen)) for chosen in (True, False))
    assert_identical(dataclasses.astuple(everybody), dataclasses.astuple(people))
    assert nobody.boxes.shape == (0, 4) and nobody.offsets.shape == (0, 4) and nobody.person.shape == (0,)


def numbered_people(count=50):
    """Everybody's number is in the box and in the offsets of two detections each; every fifth has none."""
    person = np.flatnonzero(np.arange(count) % 5).repeat(2)
    offsets = np.stack([person] * 4, 1)
    boxes = np.arange(count)[:, None] + [0.0, 0, 1, 1]
    points, labelled = np.zeros((count, 17, 2)), np.ones((count, 17), bool)
    return FoundPeople(boxes, points, labelled, offsets.astype(np.float32), person)


@pytest.mark.parametrize(("share", "aside"), [(0.2, 8), (0.5, 20), (0.01, 0), (0.99, 40)])
def test_nobody_is_on_both_sides_and_the_share_is_of_those_with_detections(share, aside):
    people = numbered_people()
    if aside in (0, 40):
        with pytest.raises(DataError, match=f"40 people have detections: too few to set {share:.0%} of them aside"):
            held_out(people, share)
        return
    learnt, other = held_out(people, share)
    assert len(other.points) == aside and len(learnt.points) == 50 - aside
    assert sorted([*learnt.boxes[:, 0], *other.boxes[:, 0]]) == list(range(50))
    for part in (learnt, other):
        np.testing.assert_array_equal(part.boxes[part.person, 0], part.offsets[:, 0])
    # All set aside have detections; those who have none stay.
    assert sorted(set(other.person)) == list(range(aside)) and len(learnt.offsets) + len(other.offsets) == 80


def test_the_seed_says_who_is_set_aside():
    first, again, other = (held_out(numbered_people(), 0.2, seed=seed)[1] for seed in (0, 0, 1))
    assert first.boxes.tolist() == again.boxes.tolist() != other.boxes.tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_people_to_set_some_aside_are_refused(count):
    with pytest.raises(DataError, match=f"{count} people have detections: too few to set 20% of them aside"):
        held_out(people_with(np.zeros((count, 4)), np.arange(count)), 0.2)


# Atomic poses


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_planted_poses_are_found(missing):
    found, clustered = cluster_poses(*crowd(missing=missing), COCO_17, 3)
    assert found.shape == (3, 17, 2) and found.dtype == np.float32
    assert clustered == 180
    places, error = nearest_planted(found)
    # Means of sixty poses with a noise of 0.05, some of it that of the torso itself.
    assert sorted(places) == [0, 1, 2] and error < (0.03 if missing else 0.025)


def test_the_seed_alone_decides():
    first, again = (cluster_poses(*crowd(), COCO_17, 5, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_missing_joints_do_not_draw_a_centre_to_the_mean():
    points, labelled = (part.copy() for part in crowd())
    # Half of those with arms up have no arms: the first filling puts their arms half way down.
    arms = [joint.endswith(("elbow", "wrist")) for joint in COCO_17.joints]
    labelled[60:120:2, arms] = False
    places, error = nearest_planted(cluster_poses(points, labelled, COCO_17, 3)[0])
    assert sorted(places) == [0, 1, 2] and error < 0.1


def test_poses_without_a_torso_or_six_joints_are_left_out():
    points, labelled = (part.copy() for part in crowd())
    torso = np.array([joint.endswith(("shoulder", "hip")) for joint in COCO_17.joints])
    labelled[:60] = torso  # four joints
    labelled[60:70] &= ~torso
    found, clustered = cluster_poses(points, labelled, COCO_17, 2)
    places, error = nearest_planted(found)
    assert sorted(places) == [1, 2] and error < 0.05 and clustered == 110
    with pytest.raises(DataError, match="nobody of 70 people has a torso and 6 labelled joints"):
        cluster_poses(points[:70], labelled[:70], COCO_17, 1)


def test_a_joint_that_nobody_has_is_left_out():
    points, labelled = (part.copy() for part in crowd())
    labelled[:, 0] = False
    found, _ = cluster_poses(points, labelled, COCO_17, 3)
    assert np.isnan(found[:, 0]).all() and np.isfinite(found[:, 1:]).all()


def test_a_joint_that_nobody_in_a_cluster_has_stays_at_everybodys_mean():
    points, labelled = (part.copy() for part in crowd())
    wrist = COCO_17.joints.index("left_wrist")
    labelled[120:, wrist] = False
    found, _ = cluster_poses(points, labelled, COCO_17, 3)
    places, _ = nearest_planted(found)
    # Those on their feet and those with arms up are equally many.
    between = (planted()[:2, wrist].mean(0) - MIDDLE) / TORSO
    np.testing.assert_allclose(found[places.index(2), wrist], between, atol=0.05)


def test_small_clusters_of_people_with_few_joints_cost_nobody_a_joint():
    assert np.isfinite(cluster_poses(*crowd(missing=0.4), COCO_17, 40)[0]).all()


@pytest.mark.parametrize(
    ("people", "count", "message"),
    [
        (slice(0, 4), 5, "5 atomic poses of 4 people with a torso and 6 joints: too many"),
        (slice(0, 0), 1, "nobody of 0 people has a torso and 6 labelled joints"),
        (slice(0, 4), 0, "expected at least one atomic pose, got 0"),
        (slice(0, 4), -3, "expected at least one atomic pose, got -3"),
        ([0] * 9 + [1] * 9, 3, "3 atomic poses of people in 2 poses: too many"),
    ],
)
def test_too_many_atomic_poses_or_none_are_refused(people, count, message):
    points, labelled = crowd()
    with pytest.raises(DataError, match=message):
        cluster_poses(points[people], labelled[people], COCO_17, count)


# Mixtures

MEANS = np.array([[0.1, -0.1, 0.0, 0.0], [-0.3, 0.0, 0.2, 0.1], [0.3, 0.0, 0.2, -0.2]])


def people_by_kind(counts, poses, places, *, spread=SPREAD, seed=2):
    """``counts`` people of each pose with so many detections each, about these places; pose -1 has no labels."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(counts)), [people for people, _ in counts])
    person = np.repeat(np.arange(len(kind)), np.array([each for _, each in counts])[kind])
    offsets = np.asarray(places)[kind[person]] + rng.normal(scale=spread, size=(len(person), 4))
    pose = np.asarray(poses)[kind]
    return people_with(offsets, person, planted()[pose], np.tile(pose[:, None] >= 0, 17))


@functools.cache
def fitted():
    """Standing people have one Gaussian, those with arms up two; three people are bent, and five have no pose."""
    counts = [(25, 8), (30, 8), (20, 8), (3, 20), (5, 4)]
    people = people_by_kind(counts, [0, 1, 1, 2, -1], [MEANS[0], MEANS[1], MEANS[2], -MEANS[2], MEANS[0]])
    return people, *fit_mixtures(people, atoms(), COCO_17)


def test_each_detection_has_its_persons_atomic_pose():
    people, mixtures, row, own = fitted()
    assert np.bincount(row).tolist() == [200, 400, 60, 20]
    assert row.shape == people.person.shape and own.dtype == bool
    assert mixtures.weight.shape == (4, 4) and mixtures.factor.shape == (4, 4, 4, 4)
    assert mixtures.skeleton == "coco_17" and mixtures.mean.dtype == np.float32
    np.testing.assert_array_equal(mixtures.atoms, atoms())
    np.testing.assert_allclose(mixtures.weight.sum(1), 1, rtol=1e-6)


def test_a_planted_gaussian_is_found_again_with_one_component():
    _, mixtures, _, own = fitted()
    assert own[0] and mixtures.weight[0].tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(mixtures.mean[0, 0], MEANS[0], atol=4 * SPREAD / np.sqrt(200))
    covariance = np.asarray(mixtures.factor[0, 0] @ mixtures.factor[0, 0].T)
    # The regularisation is a ninth of the variance; six standard errors.
    np.testing.assert_allclose(covariance / SPREAD**2, np.eye(4) * 10 / 9, atol=6 / np.sqrt(200))


def test_a_planted_mixture_of_two_is_found_again():
    _, mixtures, _, own = fitted()
    weight, mean = np.asarray(mixtures.weight[1]), np.asarray(mixtures.mean[1])
    order = np.argsort(-weight)
    assert own[1]
    np.testing.assert_allclose(weight[order], [0.6, 0.4, 0, 0], atol=0.01)  # the groups do not touch
    np.testing.assert_allclose(mean[order[:2]], MEANS[1:], atol=4 * SPREAD / np.sqrt(160))
    # Fillers are usable, though never drawn.
    np.testing.assert_array_equal(np.asarray(mixtures.factor[1])[order[2:]], np.tile(np.eye(4), (2, 1, 1)))


def assert_mixtures_of_all(mixtures, own):
    """Atomic poses without a mixture of their own have that of all, and the others have another."""
    for name in ("mean", "factor"):
        found = np.asarray(getattr(mixtures, name))
        for row, its_own in enumerate(own):
            assert np.array_equal(found[row], found[-1]) != its_own


def test_three_people_with_many_detections_take_the_mixture_of_all():
    people, mixtures, _, own = fitted()
    # Their detections are nobody else's, but three people are too few to tell.
    assert own.tolist() == [True, True, False]
    assert_mixtures_of_all(mixtures, own)
    # Of all: the average of everybody's offsets.
    of_all = np.asarray(mixtures.weight[3] @ mixtures.mean[3])
    np.testing.assert_allclose(of_all, people.offsets.mean(0), atol=1e-3)


@pytest.mark.parametrize(("fewest", "people", "is_own"), [(20, 20, True), (20, 19, False), (1, 5, True), (1, 4, False)])
def test_people_are_counted_and_not_detections_and_five_are_the_fewest(fewest, people, is_own):
    given = people_by_kind([(30, 2), (people, 10)], [0, 1], [MEANS[0], MEANS[1]])
    mixtures, _, own = fit_mixtures(given, atoms(), COCO_17, components=1, fewest=fewest)
    assert own.tolist() == [True, is_own, False]
    assert_mixtures_of_all(mixtures, own)


def test_an_atomic_pose_has_its_own_mixture_where_its_offsets_are_different():
    given = people_by_kind([(25, 4), (25, 4), (25, 4)], [0, 1, 2], [MEANS[0], MEANS[0], MEANS[1]])
    mixtures, _, own = fit_mixtures(given, atoms(), COCO_17, components=2)
    assert own[2]
    np.testing.assert_allclose(mixtures.mean[2, 0], MEANS[1], atol=5 * SPREAD / np.sqrt(100))
    assert_mixtures_of_all(mixtures, own)


def test_atomic_poses_that_follow_the_law_of_all_keep_its_mixture():
    found = []
    for seed in range(3):
        given = people_by_kind([(25, 4)] * 3, [0, 1, 2], [MEANS[0]] * 3, seed=seed)
        mixtures, _, own = fit_mixtures(given, atoms(), COCO_17, components=1)
        assert_mixtures_of_all(mixtures, own)
        found.extend(own.tolist())
    # Chance may let one of nine be told better.
    assert sum(found) <= 1


def test_what_one_person_alone_does_gives_no_mixture_of_its_own():
    """Each person has a place of their own: those left out are not told by the others'."""
    rng = np.random.default_rng(0)
    person = np.arange(75).repeat(10)
    offsets = rng.normal(scale=0.2, size=(75, 4))[person] + rng.normal(scale=0.01, size=(750, 4))
    people = people_with(offsets, person, planted()[np.arange(75) // 25], np.ones((75, 17), bool))
    _, _, own = fit_mixtures(people, atoms(), COCO_17, components=2)
    assert not own.any()


def test_no_more_components_than_asked_for():
    people = fitted()[0]
    mixtures, _, _ = fit_mixtures(people, atoms(), COCO_17, components=1)
    assert mixtures.weight.tolist() == [[1]] * 4 and mixtures.mean.shape == (4, 1, 4)


def test_equal_offsets_are_one_narrow_gaussian():
    people = people_by_kind([(50, 1)], [0], [[0.1, 0, 0, 0.2]], spread=0)
    mixtures, row, own = fit_mixtures(people, atoms(), COCO_17)
    assert row.tolist() == [0] * 50 and not own[1:].any() and mixtures.weight[0].tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(mixtures.mean[0, 0], [0.1, 0, 0, 0.2], atol=1e-5)
    np.testing.assert_allclose(mixtures.factor[0, 0], 0.01 * np.eye(4), atol=1e-5)


@pytest.mark.parametrize(("people", "fewest", "least"), [(19, 20, 20), (4, 1, 5), (0, 0, 5)])
def test_too_few_people_with_detections_are_refused(people, fewest, least):
    given = people_by_kind([(people, 30)], [0], [MEANS[0]])
    with pytest.raises(DataError, match=f"{people} labelled people have detections: at least {least} are needed"):
        fit_mixtures(given, atoms(), COCO_17, fewest=fewest)


@pytest.mark.parametrize("components", [0, -1])
def test_mixtures_of_nothing_are_refused(components):
    with pytest.raises(DataError, match=f"expected at least one component, got {components}"):
        fit_mixtures(fitted()[0], atoms(), COCO_17, components=components)


# All of it


@functools.cache
def crowd_with_offsets():
    """The crowd with two detections each, that lie by the pose."""
    points, labelled = crowd()
    person = np.arange(180).repeat(2)
    offsets = MEANS[person // 60] + np.random.default_rng(0).normal(scale=SPREAD, size=(360, 4))
    return people_with(offsets, person, points, labelled)


def test_the_law_is_learned_from_people_and_told():
    people, steps = crowd_with_offsets(), []
    mixtures, about = fit_proposals(
        people,
        COCO_17,
        atoms=3,
        components=2,
        fewest=30,
        seed=4,
        progress=lambda rows: (steps.append(row) or row for row in rows),
    )
    assert steps == [0, 1, 2]
    places, _ = nearest_planted(mixtures.atoms)
    for row, place in enumerate(places):
        np.testing.assert_allclose(mixtures.mean[row, 0], MEANS[place], atol=4 * SPREAD / np.sqrt(120))
    assert about["detections_of_atom"] == [120, 120, 120, 0] and about["own_mixture"] == [True] * 3
    assert about["components"][:3] == [1, 1, 1] and len(about["components"]) == 4
    assert (about["people"], about["clustered"], about["detections"]) == (180, 180, 360)
    assert (about["fewest"], about["seed"]) == (30, 4)
    np.testing.assert_allclose(about["mean_offsets"], people.offsets.mean(0), rtol=1e-6)
    np.testing.assert_allclose(about["deviations"], people.offsets.std(0), rtol=1e-6)
    assert json.loads(json.dumps(about)) == about


def test_other_poses_may_be_clustered():
    points, labelled = crowd()
    labelled = labelled.copy()
    labelled[60:70] = False
    poses = points[60:], labelled[60:]
    mixtures, about = fit_proposals(crowd_with_offsets(), COCO_17, poses=poses, atoms=2, components=1)
    assert sorted(nearest_planted(mixtures.atoms)[0]) == [1, 2]
    # Of the poses those that can be clustered.
    assert about["clustered"] == 110 and about["people"] == 180
    assert sum(about["detections_of_atom"]) == 360


def test_people_without_detections_are_not_counted_but_clustered():
    points, labelled = crowd()
    person = np.arange(0, 180, 3).repeat(2)
    offsets = np.random.default_rng(0).normal(scale=SPREAD, size=(120, 4))
    _, about = fit_proposals(people_with(offsets, person, points, labelled), COCO_17, atoms=3, components=1)
    assert (about["people"], about["detections"], about["clustered"]) == (60, 120, 180)
    assert about["fewest"] == 20 and about["detections_of_atom"] == [40, 40, 40, 0]


@pytest.mark.parametrize(
    ("module", "message"), [("sklearn.cluster", "clustering poses"), ("sklearn.mixture", "fitting mixtures")]
)
def test_without_scikit_learn_the_extra_is_named(monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{message} needs scikit-learn.*pip install 'rmpe-jax\[fit\]'"):
        fit_proposals(crowd_with_offsets(), COCO_17, atoms=3)


# DPG


@pytest.mark.slow
def test_dpgs_network_is_trained_on_the_people_and_told():
    people, steps = crowd_with_offsets(), []
    scored, about = fit_scored(
        people, COCO_17, steps=3, seed=4, progress=lambda rows: (steps.append(row) or row for row in rows)
    )
    assert steps == [0, 1, 2]
    expected, loss = fit_scorer(*dataclasses.astuple(people), COCO_17, steps=3, seed=4)
    assert_identical(scored.variables, expected)
    assert scored.skeleton == "coco_17" and scored.order == tuple(range(17)) and scored.score is apply_scorer
    assert about == {"people": 180, "detections": 360, "steps": 3, "seed": 4, "loss": loss}
    assert json.loads(json.dumps(about)) == about


def test_dpg_without_detections_is_refused():
    with pytest.raises(DataError, match="no detections of labelled people: nothing to learn DPG from"):
        fit_scored(people_of(crowd_with_offsets(), np.zeros(180, bool)), COCO_17)


# Poses from a file


def test_poses_without_pictures_are_read(tmp_path):
    keypoints = np.concatenate([crowd()[0], np.zeros((180, 17, 1))], 2)
    keypoints[:, 3:, 2] = [1, 2] * 7
    for kind in (np.float64, np.float32):
        np.savez(tmp_path / "poses.npz", keypoints=keypoints.astype(kind), other=np.zeros(3))
        points, labelled = read_poses_file(tmp_path / "poses.npz", COCO_17)
        np.testing.assert_array_equal(points, keypoints[..., :2].astype(kind))
        np.testing.assert_array_equal(labelled, np.arange(17)[None].repeat(180, 0) >= 3)
    np.savez(tmp_path / "poses.npz", keypoints=keypoints.astype(int))
    assert read_poses_file(str(tmp_path / "poses.npz"), COCO_17)[0].dtype == np.float64


def nan_in(shape):
    array = np.zeros(shape)
    array[-1, -1, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.zeros((3, 17, 3))}, "has no array keypoints"),
        ({"keypoints": np.zeros((3, 14, 3))}, r"expected numbers \(n, 17, 3\), got float64 \(3, 14, 3\)"),
        ({"keypoints": np.zeros((3, 17, 2))}, r"got float64 \(3, 17, 2\)"),
        ({"keypoints": np.zeros((17, 3))}, r"got float64 \(17, 3\)"),
        ({"keypoints": np.zeros((3, 17, 3), complex)}, "got complex128"),
        ({"keypoints": np.full((3, 17, 3), "1")}, "got <U1"),
        ({"keypoints": np.array([{"a": 1}], object)}, "damaged, or not an .npz file of plain arrays"),
        ({"keypoints": nan_in((3, 17, 3))}, "keypoints: holds values that are not finite"),
    ],
)
def test_a_wrong_file_of_poses_is_named_with_what_is_wrong(tmp_path, arrays, message):
    path = tmp_path / "poses.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=f"^{path}: .*{message}"):
        read_poses_file(path, COCO_17)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"dear diary", 0.5, 0.99])
def test_a_damaged_file_of_poses_is_named(tmp_path, content):
    path = tmp_path / "poses.npz"
    np.savez(path, keypoints=np.zeros((3, 17, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(content * len(whole))] if isinstance(content, float) else content)
    with pytest.raises(DataError, match=f"^{path}: damaged, or not an .npz file of plain arrays"):
        read_poses_file(path, COCO_17)


def test_a_missing_file_of_poses_is_named(tmp_path):
    for path in (tmp_path / "poses.npz", tmp_path):
        with pytest.raises(DataError, match=f"^{path}: no such file"):
            read_poses_file(path, COCO_17)


# The sheet


def law_with(mean, missing=(), poses=None):
    poses = (atoms() if poses is None else poses).copy()
    poses[:, list(missing)] = np.nan
    arrays = (np.full((4, 1), 1.0), np.tile(mean, (4, 1, 1)), np.tile(1e-3 * np.eye(4), (4, 1, 1, 1)))
    return OffsetMixtures(poses, *(np.asarray(a, np.float32) for a in arrays), skeleton="coco_17")


def bars(there):
    """Rows with at least thirty pixels."""
    return np.flatnonzero(there.sum(1) >= 30)


def tiles_of(sheet, count):
    return np.split(sheet[:, : sheet.shape[1] // count * count], count, 1)


def detections_of(counts, offset=(0.0, 0.0, 0.0, 0.0)):
    """One person in each planted pose and one without labels, with so many detections."""
    person = np.repeat(np.arange(4), counts)
    labelled = np.ones((4, 17), bool)
    labelled[3] = False
    return people_with(np.tile(offset, (len(person), 1)), person, planted()[[0, 1, 2, 0]], labelled)


def sheet_of(law, counts, own=(True, True, True), **given):
    return draw_mixtures(law, detections_of(counts, **given), own=own)


@pytest.mark.parametrize("missing", [(), (0, 3)])
def test_a_sheet_shows_the_own_box_in_white_and_drawn_ones_in_blue(missing):
    # Boxes above the own by a tenth of its height, which is at least 90 pixels.
    sheet = sheet_of(law_with([0, -0.1, 0, -0.1], missing), [4, 9, 0, 2])
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    for tile in tiles_of(sheet, 4):
        body = tile[18:].astype(int)  # below the caption
        white, blue = bars(body.min(-1) > 220), bars(body[..., 2] - body[..., 0] > 30)
        (top, bottom), drawn = (white.min(), white.max()), blue.min()
        assert drawn == pytest.approx(top - 0.1 * (bottom - top), abs=2)


def test_the_poses_with_most_detections_come_first():
    law = law_with([0, -0.1, 0, -0.1])
    one, other = (tiles_of(sheet_of(law, counts), 4) for counts in ([9, 4, 0, 2], [4, 9, 0, 2]))
    body = slice(18, None)  # below the caption
    np.testing.assert_array_equal(one[0][body], other[1][body])
    np.testing.assert_array_equal(one[1][body], other[0][body])
    np.testing.assert_array_equal(one[3], other[3])
    assert (one[0][body] != one[1][body]).any()


def test_the_corners_of_an_atomic_poses_detections_are_green_and_yellow():
    """The law's boxes lie elsewhere: below the own."""
    law, offset = law_with([0, 0.2, 0, 0.2]), (-0.1, -0.1, 0.1, 0.05)
    tiles = tiles_of(sheet_of(law, [4, 9, 0, 2], offset=offset), 4)
    for tile, there in zip(tiles, [True, True, False, True], strict=True):
        body = tile[18:]
        rows, columns = bars(body.min(-1) > 220), bars((body.min(-1) > 220).T)
        low, high = (np.argwhere((body == colour).all(-1)) for colour in (_LOW, _HIGH))
        if not there:
            assert not len(low) and not len(high)
            continue
        height, width = np.ptp(rows), np.ptp(columns)
        # The detections of a tile are alike here: one point for each corner.
        np.testing.assert_allclose(low, [[rows.min() - 0.1 * height, columns.min() - 0.1 * width]], atol=2)
        np.testing.assert_allclose(high, [[rows.max() + 0.05 * height, columns.max() + 0.1 * width]], atol=2)


def test_corners_beyond_the_tile_are_left_out():
    law = law_with([0, 0.2, 0, 0.2])
    beyond, none = (
        tiles_of(sheet_of(law, counts, offset=(-9.0, 0, 9, 0)), 4) for counts in ([4, 3, 2, 1], [0, 0, 0, 0])
    )
    for one, other in zip(beyond, none, strict=True):
        np.testing.assert_array_equal(one[18:], other[18:])


def test_a_star_marks_the_mixture_of_all(monkeypatch):
    written = []
    monkeypatch.setattr(proposals_sheet, "caption", lambda image, text: written.append(text) or image)
    sheet_of(law_with([0] * 4), [4, 9, 0, 2], own=(False, True, False))
    assert written == ["pose 1: 9", "pose 0: 4 *", "pose 2: 0 *", "all others: 2 *"]


def test_the_last_tile_has_the_mean_of_the_atomic_poses():
    mean = np.tile(atoms().mean(0), (3, 1, 1))
    one, other = (tiles_of(sheet_of(law_with([0] * 4, poses=p), [0, 0, 0, 1]), 4) for p in (atoms(), mean))
    np.testing.assert_array_equal(one[3], other[3])
    assert (one[0] != other[0]).any()


def test_the_seed_draws_the_boxes():
    wide = dataclasses.replace(law_with([0, 0, 0, 0]), factor=np.tile(0.1 * np.eye(4, dtype=np.float32), (4, 1, 1, 1)))
    people = detections_of([1, 1, 1, 1])
    first, again, other = (draw_mixtures(wide, people, own=[True] * 3, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
