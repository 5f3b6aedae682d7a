"""Generators fitted and compared with people set aside, and the pictures of that."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from made_data import figure

from rmpe_jax.data.files import DataError
from rmpe_jax.evaluate import fit_report, proposals_sheet
from rmpe_jax.evaluate.compare_proposals import drawn_offsets, offset_distances
from rmpe_jax.evaluate.fit_proposals import FoundPeople, held_out, people_of
from rmpe_jax.evaluate.fit_report import fit_and_compare
from rmpe_jax.evaluate.proposals_sheet import draw_offsets, draw_scored
from rmpe_jax.proposals.generators import Law
from rmpe_jax.proposals.mixtures import OffsetMixtures
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


# Offsets of drawn boxes


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1100])
def test_for_every_detection_one_box_is_drawn_for_its_person(count):
    """A mixture without spread gives each person the mean of their pose: some stand, some are upside down."""
    standing = figure(COCO_17.joints, (-0.5, -1.2, 0.5, 2.0))
    mean = np.array([[0.1, 0, 0, 0], [0, 0, 0, 0.2], [0.3, 0, 0.3, 0]])[:, None]
    arrays = (standing[None] * [[[1.0, 1]], [[1, -1]]], np.ones((3, 1)), mean, np.zeros((3, 1, 4, 4)))
    law = OffsetMixtures(*(np.asarray(array, np.float32) for array in arrays), skeleton="coco_17")
    rng = np.random.default_rng(count)
    kind, person = np.array([0, 1, 2, 1, 0]), rng.integers(0, 5, count)
    points = standing[None] * np.where(kind == 1, -1, 1)[:, None, None] * [[[20.0, 20]]] + 100
    points[2] = np.nan  # nobody knows this pose
    labelled = np.isfinite(points).all(-1)
    boxes = np.tile([90.0, 60, 110, 140], (5, 1)) + rng.uniform(0, 5, (5, 1))
    people = FoundPeople(boxes, points, labelled, np.zeros((count, 4), np.float32), person)
    found = drawn_offsets(people, law)
    assert found.shape == (count, 4)
    np.testing.assert_allclose(found, mean[kind[person], 0], atol=1e-4)


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


# All of it


@functools.cache
def compared(kinds=("pgpg", "dpg")):
    titles = []

    def progress(title):
        return lambda steps: [titles.append(title), *steps][1:]

    found, sheet = fit_and_compare(crowd(), COCO_17, kinds, atoms=2, steps=4, seed=3, progress=progress)
    return found, sheet, titles


@pytest.mark.slow
def test_both_generators_are_fitted_to_some_people_and_compared_on_the_others():
    found, _, titles = compared()
    assert list(found) == ["pgpg", "dpg"] and titles == ["atomic poses", "steps of DPG"]
    (mixtures, of_mixtures), (scored, of_scored) = found.values()
    assert isinstance(mixtures, OffsetMixtures) and isinstance(scored, ScoredProposals)
    learnt, aside = held_out(crowd(), 0.2, seed=3)
    for generator, about in found.values():
        assert (about["people"], about["detections"], about["held_out"], about["seed"]) == (48, 96, 24, 3)
        drawn = drawn_offsets(aside, generator, seed=3)
        np.testing.assert_allclose(about["distances"], offset_distances(drawn, aside.offsets), atol=0.05)
        assert json.loads(json.dumps(about)) == about
    assert of_mixtures["mean_offsets"] == pytest.approx(learnt.offsets.mean(0).tolist())
    # The mixtures know the planted law already, and the network of four steps nothing yet.
    assert max(of_mixtures["distances"]) < 0.45 < max(of_scored["distances"])


@pytest.mark.slow
def test_one_kind_alone_is_fitted_as_among_both():
    (generator, about), both = compared(("pgpg",))[0]["pgpg"], compared()[0]["pgpg"]
    assert about == both[1]
    np.testing.assert_array_equal(generator.mean, both[0].mean)
    assert compared(("pgpg",))[2] == ["atomic poses"]


@pytest.mark.slow
def test_the_sheet_has_a_band_for_each_generator_and_one_of_offsets():
    found, sheet, _ = compared()
    _, aside = held_out(crowd(), 0.2, seed=3)
    bands = [
        proposals_sheet.draw_mixtures(found["pgpg"][0], found["pgpg"][1]["detections_of_atom"]),
        draw_scored(aside, found["dpg"][0]),
    ]
    top = 0
    for band in bands:
        height, width = band.shape[:2]
        np.testing.assert_array_equal(sheet[top : top + height, :width], band)
        assert (sheet[top : top + height, width:] == 30).all()
        top += height
    # Five tiles of two plots: the detector, both generators, two laws for comparison.
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
