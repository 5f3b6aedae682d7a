import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_same_under_jit_and_vmap

from rmpe_jax.proposals import offsets
from rmpe_jax.proposals.offsets import PROPOSALS, patch_box, propose

BOX = jnp.array([10.0, -20.0, 50.0, 140.0])
SIDES = np.array([40.0, 160.0])
COUNT = 20_000
KEYS = jax.random.split(jax.random.key(3), COUNT)


@functools.cache
def proposals(law):
    return np.asarray(jax.jit(jax.vmap(lambda key: propose(key, BOX, law)))(KEYS))


@functools.cache
def patches():
    return np.asarray(jax.jit(jax.vmap(lambda key: patch_box(key, BOX, smallest=0.7)))(KEYS))


def test_corners_have_the_means_and_deviations_of_rmpes_code_and_alphaposes():
    offset = (proposals("alphapose_global") - np.asarray(BOX)) / np.tile(SIDES, 2)
    # Three standard errors of 20,000 draws: 0.003 of a mean, 1.5 % of a deviation.
    np.testing.assert_allclose(offset.mean(0), [-0.0142, 0.0043, 0.0154, -0.0013], atol=0.003)
    np.testing.assert_allclose(offset.std(0), [0.1158, 0.0680, 0.1337, 0.0711], rtol=0.02)
    np.testing.assert_allclose(np.corrcoef(offset.T), np.eye(4), atol=0.03)


def test_harsh_boxes_move_and_grow_within_their_ranges():
    boxes = proposals("harsh")
    sides, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    scale, shift = sides / SIDES, (centre - [30, 60]) / SIDES
    np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=1e-4)
    assert 0.7 - 1e-4 < scale.min() < 0.701 and 1.499 < scale.max() < 1.5 + 1e-4
    assert -0.3 - 1e-4 < shift.min() < -0.299 and 0.299 < shift.max() < 0.3 + 1e-4
    np.testing.assert_allclose(shift.mean(0), 0, atol=0.004)
    np.testing.assert_allclose(shift.std(0), 0.6 / np.sqrt(12), rtol=0.02)
    # Log-uniform: the median is the geometric mean of the limits.
    assert np.median(scale) == pytest.approx(np.sqrt(0.7 * 1.5), rel=0.01)


def test_an_exact_proposal_is_the_box():
    np.testing.assert_array_equal(propose(KEYS[0], BOX, "exact"), BOX)


@pytest.mark.parametrize("law", PROPOSALS)
def test_no_side_is_less_than_a_tenth(law, monkeypatch):
    monkeypatch.setattr(offsets, "_DEVIATION", (2.0,) * 4)  # most corners change places
    boxes = np.asarray(jax.jit(jax.vmap(lambda key: propose(key, BOX, law)))(KEYS))
    sides = (boxes[:, 2:] - boxes[:, :2]) / SIDES
    assert sides.min() >= 0.1 - 1e-4
    assert ((sides < 0.1 + 1e-4).mean() > 0.2) == (law == "alphapose_global")


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="alphapose_global, harsh, exact, got 'jitter'"):
        getattr(propose, "__wrapped__", propose)(KEYS[0], BOX, "jitter")


def test_a_patch_lies_inside_and_keeps_the_aspect():
    boxes, box = patches(), np.asarray(BOX)
    assert (boxes[:, :2] >= box[:2] - 1e-4).all() and (boxes[:, 2:] <= box[2:] + 1e-4).all()
    scale = (boxes[:, 2:] - boxes[:, :2]) / SIDES
    np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=1e-4)
    assert 0.7 - 1e-4 < scale.min() < 0.701 and 0.999 < scale.max() <= 1 + 1e-4
    # Anywhere inside: every share of the room that is left.
    room = scale[:, 0] < 0.9
    share = ((boxes[:, :2] - box[:2]) / (SIDES - (boxes[:, 2:] - boxes[:, :2])))[room]
    assert share.min() < 0.01 and share.max() > 0.99 and abs(share.mean() - 0.5) < 0.01


def test_the_smallest_patch_is_set_by_the_caller():
    sides = [patch_box(key, BOX, smallest=1.0) for key in KEYS[:3]]
    np.testing.assert_allclose(sides, np.stack([BOX] * 3), rtol=1e-5)


def test_transformations_do_not_change_the_proposals():
    boxes = jnp.array([[0.0, 0, 4, 6], [1.0, 2, 9, 3], [-5.0, 5, 6, 60]])
    for law in PROPOSALS:
        assert_same_under_jit_and_vmap(lambda key, box, law=law: propose(key, box, law), KEYS[:3], boxes)
    assert_same_under_jit_and_vmap(functools.partial(patch_box, smallest=0.85), KEYS[:3], boxes)
