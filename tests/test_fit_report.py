"""Generators fitted and compared with people set aside, and the pictures of that."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from made_data import figure

from rmpe_jax.data.files import DataError
from rmpe_jax.evaluate import fit_report, proposals_sheet
from rmpe_jax.evaluate.compare_proposals import (
    aspects,
    box_distances,
    compare_boxes,
    drawn_offsets,
    offset_distances,
    pose_gain,
)
from rmpe_jax.evaluate.fit_proposals import FoundPeople, held_out, people_of
from rmpe_jax.evaluate.fit_report import fit_and_compare
from rmpe_jax.evaluate.proposals_sheet import draw_offsets, draw_scored
from rmpe_jax.proposals.generators import Law
from rmpe_jax.proposals.mixtures import OffsetMixtures, log_density
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.skeleton import COCO_17

MEAN, SPREAD = np.array([0.1, -0.05, 0.05, -0.2]), 0.04


@functools.cache
def crowd(count=60, each=2):
    """Standing people of many sizes; their boxes lack the feet."""
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, 300, (count, 2)), rng.uniform(1, 3, (count, 1)) * [40, 110]
    boxes = np.concatenate([low, low + sides], 1)
    points = np.stack([figure(COCO_17.joints, box) for box in boxes]) + rng.normal(scale=2, size=(count, 17, 2))
    labelled = rng.random((count, 17)) < 0.9
    points[~labelled] = np.nan
    person = np.arange(count).repeat(each)
    offsets = MEAN + rng.normal(scale=SPREAD, size=(count * each, 4))
    return FoundPeople(boxes, points, labelled, offsets.astype(np.float32), person)


STANDING = figure(COCO_17.joints, (-0.5, -1.2, 0.5, 2.0))
BY_POSE = np.array([[0.1, 0, 0, 0], [0, 0, 0, 0.2], [0.3, 0, 0.3, 0]])


def law_by_pose(mean=BY_POSE, spread=0.0):
    """One Gaussian for those who stand, one for those who are upside down, and one for everybody else."""
    factor = np.tile(spread * np.eye(4), (3, 1, 1, 1))
    arrays = (STANDING[None] * [[[1.0, 1]], [[1, -1]]], np.ones((3, 1)), np.asarray(mean)[:, None], factor)
    return OffsetMixtures(*(np.asarray(array, np.float32) for array in arrays), skeleton="coco_17")


def people_in(kind, person, offsets):
    """People who stand (0), are upside down (1), or whose pose nobody knows (2), with these detections."""
    kind = np.asarray(kind)
    points = STANDING[None] * np.where(kind == 1, -1, 1)[:, None, None] * [[[20.0, 20]]] + 100
    points[kind == 2] = np.nan
    boxes = np.tile([90.0, 60, 110, 140], (len(kind), 1))
    labelled = np.isfinite(points).all(-1)
    return FoundPeople(boxes, points, labelled, np.asarray(offsets, np.float32), np.asarray(person))


# Offsets of drawn boxes


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1100])
def test_for_every_detection_one_box_is_drawn_for_its_person(count):
    """A mixture without spread gives each person the mean of their pose."""
    rng = np.random.default_rng(count)
    kind, person = np.array([0, 1, 2, 1, 0]), rng.integers(0, 5, count)
    people = people_in(kind, person, np.zeros((count, 4)))
    people = dataclasses.replace(people, boxes=people.boxes + rng.uniform(0, 5, (5, 1)))
    found = drawn_offsets(people, law_by_pose())
    assert found.shape == (count, 4)
    np.testing.assert_allclose(found, BY_POSE[kind[person]], atol=1e-4)


def test_exact_boxes_have_no_offsets():
    np.testing.assert_allclose(drawn_offsets(crowd(), Law("exact")), np.zeros((120, 4)), atol=1e-5)


def test_offsets_are_drawn_anew_for_every_detection_and_seed():
    first, again, other = (drawn_offsets(crowd(), Law("alphapose_global"), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.concatenate([first, other]), axis=0)) == 240
    # Those of the law, within four standard errors.
    np.testing.assert_allclose(first.mean(0), [-0.0142, 0.0043, 0.0154, -0.0013], atol=4 * 0.1337 / np.sqrt(120))


# Their distances


def slow_distance(one, other):
    """The largest difference of the two shares of values up to each value."""
    return max(abs(np.mean(one <= value) - np.mean(other <= value)) for value in np.concatenate([one, other]))


def test_distances_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(40, 4)), np.round(rng.normal(size=(27, 4)) * [1, 2, 0.5, 1] + [0, 0, 1, 0.3], 1)
    found = offset_distances(one, other)
    np.testing.assert_allclose(found, [slow_distance(one[:, axis], other[:, axis]) for axis in range(4)], rtol=1e-6)
    assert found == offset_distances(other, one)


def test_equal_samples_have_distance_zero_and_disjoint_ones_one():
    one = np.random.default_rng(0).uniform(size=(20, 4))
    assert offset_distances(one, one[::-1]) == [0.0] * 4
    assert offset_distances(one, one + [2, 0, -2, 0]) == [1.0, 0.0, 1.0, 0.0]


def test_the_shape_is_width_over_height_of_the_detectors_box():
    boxes = np.array([[0.0, 0, 10, 20], [5, 5, 105, 55], [0, 0, 1, 1]])
    points, labelled = np.zeros((3, 17, 2)), np.ones((3, 17), bool)
    found = np.array([[0.0, 0, 0, 0], [-0.1, 0, 0.1, 0.5], [0, -1, 0, 0], [0.2, 0.1, 0, 0]])
    people = FoundPeople(boxes, points, labelled, found.astype(np.float32), np.array([0, 1, 1, 0]))
    # 10 by 20; 120 by 75; 100 by 100; 8 by 18.
    np.testing.assert_allclose(aspects(people, found), [0.5, 1.6, 1, 8 / 18], rtol=1e-6)


def test_the_fifth_distance_is_that_of_the_shapes():
    rng = np.random.default_rng(0)
    people, other = crowd(), people_of(crowd(), np.arange(60) < 20)
    drawn = rng.normal(scale=0.1, size=(40, 4))
    found = box_distances(drawn, other, people)
    assert len(found) == 5 and found[:4] == offset_distances(drawn, people.offsets)
    expected = slow_distance(aspects(other, drawn), aspects(people, people.offsets))
    assert found[4] == pytest.approx(expected, abs=1e-6)
    assert box_distances(people.offsets, people, people) == [0.0] * 5


def test_boxes_of_one_shape_are_told_from_those_of_another_with_the_same_offsets():
    """Own boxes of two shapes: the same offsets give boxes of different shapes."""
    people = crowd()
    sides = people.boxes[:, 2:] - people.boxes[:, :2]
    wide = dataclasses.replace(people, boxes=np.concatenate([people.boxes[:, :2], people.boxes[:, :2] + 3 * sides], 1))
    wide.boxes[:, 3] = wide.boxes[:, 1] + sides[:, 1]
    assert box_distances(people.offsets, wide, people) == [0.0, 0.0, 0.0, 0.0, 1.0]


COMPARED = ("alphapose_global", "uniform", "random boxes", "detections of others")


def test_generators_are_compared_beside_others_and_the_detectors_own_boxes():
    learnt, aside = held_out(crowd(), 0.2)
    generators = {"exactly": Law("exact"), "harshly": Law("harsh")}
    distances, drawn = compare_boxes(generators, learnt, aside, COCO_17, seed=5)
    assert list(distances) == [*generators, *COMPARED] and list(drawn) == [*generators, *COMPARED[:-1]]
    for name, law in (generators | {name: Law(name) for name in COMPARED[:2]}).items():
        np.testing.assert_array_equal(drawn[name], drawn_offsets(aside, law, seed=5))
    for name, offsets in drawn.items():
        assert offsets.shape == aside.offsets.shape and distances[name] == box_distances(offsets, aside, aside)
    assert distances["detections of others"] == box_distances(learnt.offsets, learnt, aside)
    # Two samples of one law, and one of another.
    assert max(distances["detections of others"]) < 0.45 < max(distances["exactly"])


def test_the_random_boxes_that_dpg_chooses_from_are_chosen_by_nobody():
    people = crowd(60, 20)
    _, drawn = compare_boxes({}, people, people, COCO_17)
    offsets = drawn["random boxes"]
    assert len(np.unique(offsets, axis=0)) == 1200
    # Corners moved by a quarter of the sides, a few of which are held at a tenth of the side.
    np.testing.assert_allclose(offsets.mean(0), 0, atol=5 * 0.25 / np.sqrt(1200))
    np.testing.assert_allclose(offsets.std(0), 0.25, rtol=0.1)


# What the pose tells


def test_what_the_pose_tells_is_the_difference_of_two_densities():
    offsets = np.array([[0.1, 0, 0, 0], [0, 0, 0, 0], [0.2, 0.1, 0, 0.3], [0.5, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]])
    law, row = law_by_pose(spread=0.5), np.array([0, 0, 1, 2, 1])
    people = people_in([0, 1, 2], row, offsets)
    # Half the difference of the squared distances over the variance.
    squared = ((offsets[:, None] - BY_POSE[None]) ** 2).sum(-1) / (2 * 0.25)
    gain = squared[:, 2] - squared[np.arange(5), row]
    mean, low, high = pose_gain(people, law)
    assert mean == pytest.approx(gain.mean(), abs=1e-5)
    density = [
        float(log_density(jnp.asarray(offset, jnp.float32), jnp.asarray(number), law))
        - float(log_density(jnp.asarray(offset, jnp.float32), jnp.asarray(2), law))
        for offset, number in zip(offsets, row, strict=True)
    ]
    assert mean == pytest.approx(np.mean(density), abs=1e-5) and low <= mean <= high


def test_the_interval_is_that_of_people_and_not_of_detections():
    law = law_by_pose(spread=0.5)
    offsets = np.repeat(BY_POSE[:2] + [[0, 0, 0, 0], [0, 0, 0, 0.2]], [30, 2], 0)
    person = np.repeat([0, 1], [30, 2])
    mean, low, high = pose_gain(people_in([0, 1], person, offsets), law)
    each = [pose_gain(people_in([kind], [0], offsets[person == kind][:1]), law) for kind in (0, 1)]
    # Half of the replicates have one of the two people alone; of one person there is no interval.
    for values in each:
        np.testing.assert_allclose(values, values[0], rtol=1e-5)
    gains = [values[0] for values in each]
    assert mean == pytest.approx((30 * gains[0] + 2 * gains[1]) / 32, rel=1e-5)
    assert [low, high] == pytest.approx(sorted(gains), rel=1e-5)


def test_people_without_detections_do_not_count():
    law, offsets = law_by_pose(spread=0.5), BY_POSE[[0, 1, 1]]
    some = pose_gain(people_in([0, 1], [0, 1, 1], offsets), law)
    assert pose_gain(people_in([2, 0, 1, 1], [1, 3, 3], offsets), law) == pytest.approx(some, rel=1e-6)


def test_where_all_have_one_mixture_the_pose_tells_nothing():
    law = law_by_pose(np.tile(MEAN, (3, 1)), spread=SPREAD)
    assert pose_gain(crowd(), law) == [0.0, 0.0, 0.0]


def test_a_planted_law_of_the_pose_is_seen_and_a_wrong_one_costs():
    rng = np.random.default_rng(0)
    kind, person = np.arange(40) % 2, np.arange(40).repeat(3)
    offsets = BY_POSE[kind[person]] + rng.normal(scale=0.1, size=(120, 4))
    people = people_in(kind, person, offsets)
    # The law of all lies half way between both.
    middle = BY_POSE[:2].mean(0)
    right, wrong = (np.stack([*BY_POSE[order], middle]) for order in ([0, 1], [1, 0]))
    mean, low, high = pose_gain(people, law_by_pose(right, spread=0.1))
    # Each pose is 0.11 from there: with a deviation of 0.1 that is worth 0.625 nats.
    assert 0 < low < mean < high and mean == pytest.approx(0.625, abs=0.3)
    mean, low, high = pose_gain(people, law_by_pose(wrong, spread=0.1))
    assert low < mean < high < 0


def test_the_seed_draws_the_replicates():
    law = law_by_pose(spread=0.1)
    offsets = np.random.default_rng(0).normal(scale=0.1, size=(20, 4))
    people = people_in(np.arange(20) % 2, np.arange(20), offsets)
    first, again, other = (pose_gain(people, law, seed=seed) for seed in (0, 0, 1))
    assert first == again and first[0] == other[0] and first[1:] != other[1:]


# All of it


@functools.cache
def compared(kinds=("pgpg", "dpg")):
    titles = []

    def progress(title):
        return lambda steps: [titles.append(title), *steps][1:]

    found, distances, sheet = fit_and_compare(crowd(), COCO_17, kinds, atoms=2, steps=4, seed=3, progress=progress)
    return found, distances, sheet, titles


@pytest.mark.slow
def test_both_generators_are_fitted_to_some_people_and_compared_on_the_others():
    found, distances, _, titles = compared()
    assert list(found) == ["pgpg", "dpg"] and titles == ["atomic poses", "steps of DPG"]
    (mixtures, of_mixtures), (scored, of_scored) = found.values()
    assert isinstance(mixtures, OffsetMixtures) and isinstance(scored, ScoredProposals)
    learnt, aside = held_out(crowd(), 0.2, seed=3)
    assert list(distances) == ["pgpg", "dpg", *COMPARED]
    for name, (generator, about) in found.items():
        assert (about["people"], about["detections"], about["held_out"], about["seed"]) == (48, 96, 24, 3)
        drawn = drawn_offsets(aside, generator, seed=3)
        assert about["distances"] == distances[name]
        np.testing.assert_allclose(about["distances"], box_distances(drawn, aside, aside), atol=0.05)
        assert json.loads(json.dumps(about)) == about
    assert of_mixtures["mean_offsets"] == pytest.approx(learnt.offsets.mean(0).tolist())
    assert of_mixtures["pose_gain"] == pytest.approx(pose_gain(aside, mixtures, seed=3), abs=1e-6)
    assert "pose_gain" not in of_scored
    # The mixtures know the planted law already, and the network of four steps nothing yet.
    assert max(of_mixtures["distances"]) < 0.45 < max(of_scored["distances"])


@pytest.mark.slow
def test_one_kind_alone_is_fitted_as_among_both():
    (generator, about), both = compared(("pgpg",))[0]["pgpg"], compared()[0]["pgpg"]
    assert about == both[1]
    np.testing.assert_array_equal(generator.mean, both[0].mean)
    assert list(compared(("pgpg",))[1]) == ["pgpg", *COMPARED] and compared(("pgpg",))[3] == ["atomic poses"]


@pytest.mark.slow
def test_the_sheet_has_a_band_for_each_generator_and_one_of_offsets():
    found, _, sheet, _ = compared()
    learnt, aside = held_out(crowd(), 0.2, seed=3)
    bands = [
        proposals_sheet.draw_mixtures(found["pgpg"][0], learnt, own=found["pgpg"][1]["own_mixture"]),
        draw_scored(aside, found["dpg"][0]),
    ]
    top = 0
    for band in bands:
        height, width = band.shape[:2]
        np.testing.assert_array_equal(sheet[top : top + height, :width], band)
        assert (sheet[top : top + height, width:] == 30).all()
        top += height
    # Six tiles of two plots: the detector, both generators, three others for comparison.
    assert sheet.dtype == np.uint8 and sheet.shape == (top + 2 * (176 + 8 + 18), 4 * 2 * (176 + 8), 3)


def test_too_few_people_are_refused():
    with pytest.raises(DataError, match="2 people have detections: too few to set 20% of them aside"):
        fit_and_compare(people_of(crowd(), np.arange(60) < 2), COCO_17)


def test_a_fifth_of_the_people_is_set_aside(monkeypatch):
    shares = []
    monkeypatch.setattr(
        fit_report, "held_out", lambda people, share, seed: shares.append(share) or held_out(people, 0.0)
    )
    with pytest.raises(DataError):
        fit_and_compare(crowd(), COCO_17)
    assert shares == [0.2]


# The pictures


def lower(variables, image, rows, columns):
    """Boxes that begin in the lower half of the window."""
    half = rows.shape[-1] // 2
    return jnp.where(rows[:, :half].sum(-1) > 0, -jnp.inf, 0.0)


def given(score=lower):
    return ScoredProposals({}, score, "coco_17", tuple(range(17)))


def tiles_of(sheet, size):
    """The tiles below the caption, in reading order."""
    body = sheet[18:]
    rows = np.split(body, len(body) // size[0])
    return [tile for row in rows for tile in np.split(row, row.shape[1] // size[1], 1)]


def rows_in(image, colour):
    """Rows that hold a line of about this colour."""
    return np.flatnonzero((np.abs(image.astype(int) - colour).max(-1) < 30).sum(1) >= 10)


@pytest.mark.parametrize(
    ("people", "count", "shape"), [(60, 8, (1, 8)), (60, 11, (2, 8)), (3, 8, (1, 3)), (3, 2, (1, 2))]
)
def test_a_sheet_of_dpg_has_a_tile_for_each_person(people, count, shape):
    some = people_of(crowd(), np.arange(60) < people)
    sheet = draw_scored(some, given(), count=count)
    assert sheet.dtype == np.uint8 and sheet.shape == (18 + shape[0] * 2 * 176, shape[1] * 176, 3)


def test_a_tile_shows_pose_own_box_chosen_boxes_and_an_indicator():
    tiles = tiles_of(draw_scored(crowd(), given(), count=4), (352, 176))
    assert len({tile.tobytes() for tile in tiles}) == 4
    for tile in tiles:
        pose, indicator = tile[:176], tile[176:]
        # The own box is half the window high, and about its centre.
        rows = rows_in(pose, (0, 0, 0))
        assert rows.min() == pytest.approx(44, abs=1) and rows.max() == pytest.approx(132, abs=1)
        # Chosen boxes lie in the lower half.
        blue = rows_in(pose, (40, 90, 200))
        assert len(blue) > 1 and blue.min() >= 87
        # The first of them as an indicator: grey, black inside, white outside.
        assert (np.ptp(indicator.astype(int), -1) == 0).all()
        black = np.argwhere(indicator[..., 0] == 0)
        assert len(black) and black[:, 0].min() >= 87 and indicator[0, 0, 0] == 255
        # The figure's colours.
        assert (np.ptp(pose.astype(int), -1) > 100).sum() > 100


def test_without_accepted_boxes_the_own_box_is_the_indicator():
    never = given(lambda variables, image, rows, columns: jnp.full(len(rows), -1.0))
    for tile in tiles_of(draw_scored(crowd(), never, count=2), (352, 176)):
        black = np.argwhere(tile[176:, :, 0] < 128)
        assert black[:, 0].min() == pytest.approx(44, abs=1) and black[:, 0].max() == pytest.approx(131, abs=1)


def test_the_seed_says_who_is_drawn():
    first, again, other = (draw_scored(crowd(), given(), count=2, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def points_of(plot):
    """Places (right, up) of the drawn points of a plot without its frame, as offsets."""
    rows, columns = np.nonzero((plot == proposals_sheet._DRAWN).all(-1))
    return np.stack([columns, 175 - rows], 1) / 175 * 1.6 - 0.8


def test_clouds_show_the_offsets_of_both_axes():
    offsets = np.array([[-0.4, 0.1, 0.3, -0.2], [0.7, 0.6, 0.5, 0.4], [-9.0, 0, 9, 0]])
    sheet = draw_offsets(offsets, {})
    assert sheet.shape == (18 + 184, 2 * 184, 3)
    left, right = sheet[22:-4, 4:180], sheet[22:-4, 188:364]
    # Right: the offset of the lower corner; up: that of the upper one; those beyond the plot lie on its edge.
    np.testing.assert_allclose(sorted(points_of(left).tolist()), [[-0.8, 0.8], [-0.4, 0.3], [0.7, 0.5]], atol=0.01)
    np.testing.assert_allclose(sorted(points_of(right).tolist()), [[0, 0], [0.1, -0.2], [0.6, 0.4]], atol=0.01)


def test_the_detectors_cloud_comes_first_and_then_each_generators():
    rng = np.random.default_rng(0)
    found, *others = (rng.normal(scale=0.1, size=(30, 4)) for _ in range(5))
    sheet = draw_offsets(found, {f"law {number}": offsets for number, offsets in enumerate(others)})
    tiles = tiles_of(np.pad(sheet, ((18, 0), (0, 0), (0, 0))), (202, 368))
    assert sheet.shape == (2 * 202, 4 * 368, 3)
    for tile, offsets in zip(tiles, [found, *others], strict=False):
        alone = draw_offsets(offsets, {})
        np.testing.assert_array_equal(tile[18:], alone[18:])
    assert all((tile == 30).all() for tile in tiles[5:])


def test_the_distances_are_written_above(monkeypatch):
    written = []
    monkeypatch.setattr(proposals_sheet, "caption", lambda image, text: written.append(text) or image)
    found = np.random.default_rng(0).normal(size=(7, 4))
    draw_offsets(found, {"uniform": found + [9, 0, 0, 9]})
    assert written == ["detector, 7 boxes, held out", "uniform: 1.00 0.00 0.00 1.00"]
