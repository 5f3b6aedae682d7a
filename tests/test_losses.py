from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmpe_jax.train.losses import heatmap_loss

STACKS, HEIGHT, WIDTH, JOINTS = 2, 3, 4, 3
MAPS = arrays(np.float32, (STACKS, HEIGHT, WIDTH, JOINTS), elements=st.floats(-2, 2, width=32))
TARGETS = arrays(np.float32, (HEIGHT, WIDTH, JOINTS), elements=st.floats(0, 1, width=32))
LABELS = arrays(bool, JOINTS)
loss = jax.jit(heatmap_loss, static_argnames="positive_weight")


def test_the_loss_of_four_pixels_by_hand():
    target = jnp.array([[1.0, 0.0], [0.0, 0.5]])[..., None]
    maps = jnp.array([[0.5, 1.0], [0.0, 0.5]])[None, ..., None]
    labelled = jnp.array([True])
    assert_close(heatmap_loss(maps, target, labelled), (0.25 + 1) / 4)
    assert_close(heatmap_loss(maps, target, labelled, positive_weight=10.0), (11 * 0.25 + 1) / 4)


@pytest.mark.parametrize("weight", [0.0, 10.0])
@given(maps=MAPS, target=TARGETS, labelled=LABELS)
def test_the_loss_is_that_of_a_loop(weight, maps, target, labelled):
    found = loss(jnp.array(maps), jnp.array(target), jnp.array(labelled), positive_weight=weight)
    assert_close(found, oracles.heatmap_loss(maps.astype(float), target.astype(float), labelled, weight), rtol=1e-4)


@given(TARGETS, LABELS)
def test_perfect_maps_cost_nothing_in_any_number_of_stacks(target, labelled):
    maps = jnp.broadcast_to(jnp.array(target), (STACKS, *target.shape))
    assert loss(maps, jnp.array(target), jnp.array(labelled), positive_weight=10.0) == 0.0


@given(MAPS, MAPS, TARGETS, LABELS)
def test_maps_of_unlabelled_joints_never_change_the_loss(maps, other, target, labelled):
    changed = np.where(labelled, maps, other)
    common = jnp.array(target), jnp.array(labelled)
    assert loss(jnp.array(changed), *common) == loss(jnp.array(maps), *common)


@given(MAPS, TARGETS, LABELS)
def test_stacks_add_up(maps, target, labelled):
    common = jnp.array(target), jnp.array(labelled)
    parts = [heatmap_loss(jnp.array(maps[stack : stack + 1]), *common) for stack in range(STACKS)]
    assert_close(loss(jnp.array(maps), *common), sum(parts))


def test_unlabelled_joints_have_no_gradient(key):
    maps = jax.random.normal(key, (STACKS, HEIGHT, WIDTH, JOINTS))
    target, labelled = jnp.zeros((HEIGHT, WIDTH, JOINTS)), jnp.array([True, False, True])
    gradient = np.asarray(jax.grad(loss)(maps, target, labelled, positive_weight=10.0))
    np.testing.assert_array_equal(gradient[..., 1], 0.0)
    assert (gradient[..., [0, 2]] != 0).all()


def test_nothing_labelled_costs_nothing(key):
    maps = jax.random.normal(key, (STACKS, HEIGHT, WIDTH, JOINTS))
    assert loss(maps, jnp.ones((HEIGHT, WIDTH, JOINTS)), jnp.zeros(JOINTS, bool)) == 0.0


def test_the_loss_has_the_gradients_of_finite_differences():
    rng = np.random.default_rng(0)
    labelled = jnp.array([True, False, True])
    assert_gradients(
        lambda maps, target: heatmap_loss(maps, target, labelled, positive_weight=10.0),
        rng.normal(size=(STACKS, HEIGHT, WIDTH, JOINTS)),
        rng.random((HEIGHT, WIDTH, JOINTS)),
    )


def test_transformations_do_not_change_the_loss(key):
    maps = jax.random.normal(key, (3, STACKS, HEIGHT, WIDTH, JOINTS))
    labelled = jnp.array([[True, True, False], [False, False, False], [True, True, True]])
    assert_same_under_jit_and_vmap(partial(heatmap_loss, positive_weight=10.0), maps, maps[:, 0] ** 2, labelled)
