"""What a person detector's maps should say of an example, and the loss of what they do say."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st

from rmpe_jax.models.person_detector import DetectorMaps
from rmpe_jax.train import detection
from rmpe_jax.train.detection import DetectorTargets, detector_loss, detector_targets
from rmpe_jax.train.mosaics import TrainingScene

SIZE = (16, 16)  # of the maps


def example(boxes, person=None, *, size=SIZE, known=True):
    """A scene of people with these boxes, in pixels of the network's input."""
    boxes = jnp.array(boxes, jnp.float32).reshape(-1, 4)
    person = jnp.ones(len(boxes), bool) if person is None else jnp.array(person)
    return TrainingScene(jnp.zeros((4 * size[0], 4 * size[1], 3)), boxes, person, jnp.full(size, known))


def input_box(x0, y0, x1, y1):
    """Pixels of the input from those of the maps."""
    return [4 * (value + 0.5) - 0.5 for value in (x0, y0, x1, y1)]


def targets_of(boxes, person=None, **options):
    return jax.jit(detector_targets)(example(boxes, person, **options))


# Targets


def test_a_person_s_centre_is_a_bell_as_wide_as_their_box_by_hand():
    found = targets_of([input_box(4, 0, 12, 12)])
    # 8 wide and 12 high about (8, 6): deviations of 0.72 and 1.08.
    assert found.centre[6, 8] and found.centre.sum() == 1 and found.heat[6, 8] == 1
    np.testing.assert_allclose(found.heat[6, 9], math.exp(-0.5 / 0.72**2), rtol=1e-5)
    np.testing.assert_allclose(found.heat[8, 8], math.exp(-0.5 * (2 / 1.08) ** 2), rtol=1e-5)
    np.testing.assert_allclose(found.heat[5, 7], math.exp(-0.5 / 0.72**2 - 0.5 / 1.08**2), rtol=1e-5)
    np.testing.assert_allclose(found.box[6, 8], [8, 6, 8, 12], rtol=1e-6)
    np.testing.assert_array_equal(found.place, [[6, 8]])
    # Pixels of more than a fifth: the column of the centre two up and down are 0.18, its neighbours 0.38 and 0.25.
    around = np.zeros(SIZE, bool)
    around[5:8, 7:10] = True
    np.testing.assert_array_equal(found.weight > 0, around)
    np.testing.assert_allclose(found.weight[6, 8] / found.weight[6, 9], math.exp(0.5 / 0.72**2), rtol=1e-5)
    assert found.known.all() and found.person.all()


def test_a_small_person_has_a_bell_of_half_a_pixel_and_the_pixel_nearest_to_the_centre():
    found = targets_of([input_box(3.0, 6.5, 3.8, 7.9)])
    assert found.centre[7, 3] and found.centre.sum() == 1
    np.testing.assert_allclose(found.heat[7, 4], math.exp(-2), rtol=1e-5)
    assert found.weight[7, 3] == 1
    np.testing.assert_allclose(found.box[7, 3], [3.4, 7.2, 0.8, 1.4], rtol=1e-4)


SIDE = st.floats(1, 60)
PLACE = st.floats(-2, 66)


@given(st.lists(st.tuples(PLACE, PLACE, SIDE, SIDE, st.booleans()), min_size=1, max_size=5))
def test_targets_are_those_of_loops_over_people_and_pixels(people):
    # Never halfway between two pixels, where rounding decides.
    centres = [[4 * round(x / 4 - 0.5, 1) + 0.613, 4 * round(y / 4 - 0.5, 1) + 0.613] for x, y, *_ in people]
    boxes = [
        [x - w / 2, y - h / 2, x + w / 2, y + h / 2] for (x, y), (*_, w, h, _) in zip(centres, people, strict=True)
    ]
    boxes = np.array(boxes, np.float32)
    person = np.array([each[-1] for each in people])
    padded = np.concatenate([boxes, np.zeros((5 - len(boxes), 4), np.float32)])
    listed = np.concatenate([person, np.zeros(5 - len(person), bool)])
    found = targets_of(padded, listed)
    heat, centre, owner, weight = oracles.centre_maps((boxes + 0.5) / 4 - 0.5, person, SIZE)
    np.testing.assert_allclose(found.heat, heat, atol=1e-5)
    np.testing.assert_array_equal(found.centre, centre)
    # Where a bell is at the limit, or two are alike, rounding decides whose pixel it is.
    alone = [
        oracles.centre_maps((boxes[n : n + 1] + 0.5) / 4 - 0.5, person[n : n + 1], SIZE)[0] for n in range(len(boxes))
    ]
    low, high = np.sort([np.zeros(SIZE), *alone], 0)[-2:]
    if (np.abs(high - 0.2) > 1e-4).all() and ((high - low > 1e-4) | (high < 0.2)).all():
        np.testing.assert_allclose(found.weight, weight, atol=1e-4)
        mine = weight > 0
        sides = boxes[:, 2:] - boxes[:, :2]
        np.testing.assert_allclose(np.asarray(found.box)[mine, 2:], sides[owner[mine]] / 4, atol=1e-4)
    assert found.weight.sum() <= person.sum() + 1e-4


def test_weights_sum_to_one_for_each_of_several_people_whatever_their_size():
    boxes = [input_box(0, 0, 1, 2), input_box(3, 1, 13, 15), input_box(12, 10, 15, 15.5), input_box(0, 13, 2, 14)]
    found = targets_of(boxes, [True, True, True, False])
    sizes = [(1, 2), (10, 14), (3, 5.5)]
    for width, height in sizes:
        mine = np.isclose(found.box[..., 2], width, atol=1e-3) & np.isclose(found.box[..., 3], height, atol=1e-3)
        np.testing.assert_allclose(np.asarray(found.weight)[mine].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(found.weight.sum(), 3, rtol=1e-5)
    # The fourth is nobody's box.
    assert found.heat[13:15, 0:3].max() < 1e-3


def test_of_two_people_at_one_place_the_larger_has_the_pixels_around_and_the_first_the_centre():
    small, large = input_box(7, 7, 9, 9), input_box(2, 2, 14, 14)
    found = targets_of([small, large])
    assert found.centre.sum() == 1 and found.place.tolist() == [[8, 8], [8, 8]]
    np.testing.assert_allclose(found.box[8, 8], [8, 8, 2, 2], rtol=1e-5)
    np.testing.assert_allclose(found.box[8, 9], [8, 8, 12, 12], rtol=1e-5)
    assert found.weight[8, 8] == pytest.approx(1) and found.weight.sum() == pytest.approx(2)
    # Of two who are alike in size the second has nothing left, and nobody's weight becomes NaN.
    found = targets_of([small, small])
    assert found.weight.sum() == pytest.approx(1)


def test_nobody_gives_maps_of_nothing():
    for boxes, person in (([input_box(4, 4, 9, 9)] * 2, [False, False]), ([[0, 0, 0, 0]], [False])):
        found = targets_of(boxes, person)
        assert not found.heat.any() and not found.centre.any() and not found.weight.any()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_whatever_stands_where_nobody_is_changes_nothing():
    plain = targets_of([input_box(4, 4, 9, 9), [0, 0, 0, 0]], [True, False])
    for other in ([np.nan] * 4, [1, 2, np.inf, 3], [30, 30, 10, 10], input_box(5, 5, 8, 8)):
        found = targets_of([input_box(4, 4, 9, 9), other], [True, False])
        jax.tree.map(np.testing.assert_array_equal, vars(found), vars(plain))


def test_a_person_of_no_size_at_the_very_edge_stays_finite_and_in_the_maps():
    found = targets_of([[63.5, 63.5, 63.5, 63.5], [-0.5, 20, -0.5, 40]])
    assert found.place.tolist() == [[15, 15], [7, 0]]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_targets_are_the_same_under_jit_and_vmap():
    scenes = [example([input_box(n, 1, n + 4, 9), input_box(2, 8, 12, 15)], [True, n > 1]) for n in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scenes)
    assert_same_under_jit_and_vmap(lambda scene: vars(detector_targets(scene)), batch)


# The loss


def targets_by_hand():
    """Of two pixels side by side the left is a centre; what the right one says is known."""
    return DetectorTargets(
        heat=jnp.array([[1.0, 0.5]]),
        centre=jnp.array([[True, False]]),
        box=jnp.array([[[0.5, 0.0, 2.0, 4.0], [0.5, 0.0, 2.0, 4.0]]]),
        weight=jnp.array([[0.75, 0.25]]),
        known=jnp.array([[False, True]]),
        place=jnp.array([[0, 0]]),
        person=jnp.array([True]),
    )


def test_the_loss_by_hand():
    maps = DetectorMaps(
        jnp.zeros((1, 2)), jnp.log(jnp.array([[[1.0, 4.0], [2.0, 8.0]]])), jnp.array([[[0.0, 0.0], [-0.5, 1.0]]])
    )
    centres, boxes = detector_loss(maps, targets_by_hand())
    # Both say one half: a quarter of log 2, and a sixteenth times a quarter of it.
    np.testing.assert_allclose(centres, math.log(2) / 4 + math.log(2) / 64, rtol=1e-6)
    # On the left the width is half what it should be and x half a pixel of two off; on the right the height is twice
    # what it should be and y one of four off.
    np.testing.assert_allclose(boxes, 0.75 * (math.log(2) + 0.25) + 0.25 * (math.log(2) + 0.25), rtol=1e-6)


def random_case(seed, size=(5, 6)):
    """Maps and targets of three people, as NumPy arrays, and what is known at random."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 3, (3, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.7, 3, (3, 2))], -1)
    scene = example([input_box(*box) for box in boxes], [True, True, seed % 2 == 0], size=size)
    targets = jax.jit(detector_targets)(dataclasses.replace(scene, known=jnp.array(rng.random(size) < 0.6)))
    maps = rng.normal(-1, 1.5, size), rng.normal(0, 1, (*size, 2)), rng.normal(0, 1, (*size, 2))
    return [each.astype(np.float32) for each in maps], targets


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_a_loop_over_pixels(seed):
    maps, targets = random_case(seed)
    found = jax.jit(detector_loss)(DetectorMaps(*map(jnp.asarray, maps)), targets)
    parts = (targets.heat, targets.centre, targets.box, targets.weight, targets.known)
    np.testing.assert_allclose(found, oracles.detector_losses(*maps, *map(np.asarray, parts)), rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_of_the_loss_is_that_of_differences(seed):
    maps, targets = random_case(seed)

    def loss(*fields):
        centres, boxes = detector_loss(DetectorMaps(*fields), targets)
        return centres + boxes

    assert_gradients(loss, *maps)


def test_the_loss_is_the_same_under_jit_and_vmap():
    cases = [random_case(seed) for seed in range(3)]
    maps = [DetectorMaps(*map(jnp.asarray, fields)) for fields, _ in cases]
    batch = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in (maps, [t for _, t in cases])]
    assert_same_under_jit_and_vmap(detector_loss, *batch)


def maps_saying(targets, *, sure=20.0):
    """Maps that say all that targets want."""
    height, width = targets.heat.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    offset = np.asarray(targets.box[..., :2]) - np.stack([x, y], -1)
    heat = np.where(targets.centre, sure, -sure)
    return DetectorMaps(*(jnp.array(each, jnp.float32) for each in (heat, np.log(targets.box[..., 2:]), offset)))


def test_perfect_maps_cost_nothing_and_any_change_of_them_something():
    targets = targets_of([input_box(4, 0, 12, 12), input_box(1, 9, 4, 15)])
    maps = maps_saying(targets)
    centres, boxes = detector_loss(maps, targets)
    assert 0 <= centres < 1e-6 and 0 <= boxes < 1e-5
    row, column = targets.place[0]
    for name, place, value in (
        ("heat", (row, column), -1.0),
        ("heat", (12, 12), 1.0),
        ("log_size", (row, column, 0), 0.0),
        ("offset", (row, column, 1), 3.0),
    ):
        changed = dataclasses.replace(maps, **{name: getattr(maps, name).at[place].set(value)})
        assert sum(detector_loss(changed, targets)) > 0.02, name


def test_nothing_flows_where_it_is_not_known_but_into_who_is_to_be_found():
    maps, targets = random_case(2, size=SIZE)
    targets = dataclasses.replace(targets, known=targets.known.at[0].set(False))

    def loss(fields):
        return sum(detector_loss(DetectorMaps(*fields), targets))

    heat, log_size, offset = jax.grad(loss)([jnp.asarray(each) for each in maps])
    np.testing.assert_array_equal(heat != 0, targets.known & (targets.heat < 1) | targets.centre)
    for each in (log_size, offset):
        np.testing.assert_array_equal((each != 0).all(-1), targets.weight > 0)
    assert (targets.weight[~np.asarray(targets.known)] > 0).any() and (~targets.known).sum() > 20


def test_logits_however_large_have_finite_losses_and_gradients():
    _, targets = random_case(0)
    for logit in (-1e4, -100.0, 100.0, 1e4):
        fields = [jnp.full((5, 6), logit), jnp.zeros((5, 6, 2)), jnp.zeros((5, 6, 2))]
        value, slope = jax.value_and_grad(lambda each: sum(detector_loss(DetectorMaps(*each), targets)))(fields)
        assert np.isfinite(value) and all(np.isfinite(each).all() for each in slope)


# What is right


def test_a_box_is_right_where_it_is_read_at_the_centre_with_half_its_area_in_common():
    boxes = jnp.array([input_box(4, 0, 12, 12), input_box(1, 9, 4, 15), input_box(10, 13, 15, 15.5)])
    targets = targets_of(boxes, [True, True, False])
    maps = maps_saying(targets)
    right = functools.partial(detection._boxes_right, targets=targets, boxes=boxes)
    assert right(maps).tolist() == [True, True, False]
    # Shifted by a side times share, 1 - share of 1 + share is in common: a third is the limit.
    for share, expected in ((0.30, True), (0.36, False)):
        moved = dataclasses.replace(maps, offset=maps.offset.at[..., 0].add(8 * share))
        assert bool(right(moved)[0]) == expected
    for factor, expected in ((1.9, True), (2.1, False)):
        larger = dataclasses.replace(maps, log_size=maps.log_size.at[..., 1].add(math.log(factor)))
        assert right(larger).tolist() == [expected, expected, False]
