import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_gradients, assert_identical, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from made_data import figure
from scipy.stats import multivariate_normal

from rmpe_jax.proposals.mixtures import (
    OffsetMixtures,
    in_skeleton,
    log_density,
    mixture_row,
    offsets_of,
    sample_offsets,
)
from rmpe_jax.proposals.offsets import moved_box
from rmpe_jax.skeleton import COCO_17, FLIC_11, LSP_14, MPII_16

COUNT = 20_000
# Two atomic poses and everybody else; the last mixture has one component, the first none at its start.
WEIGHT = np.array([[0.0, 0.25, 0.75], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])


@functools.cache
def law():
    rng = np.random.default_rng(0)
    mean = rng.normal(scale=0.3, size=(3, 3, 4))
    factor = np.tril(rng.normal(scale=0.03, size=(3, 3, 4, 4)))
    factor[..., np.arange(4), np.arange(4)] = rng.uniform(0.03, 0.1, (3, 3, 4))
    mean[WEIGHT == 0], factor[WEIGHT == 0] = 0, np.eye(4)
    standing = (figure(COCO_17.joints, (0, 0, 1, 3.2)) - [0.5, 1.2])[None]
    arrays = (standing * [[[1.0, 1]], [[1, -1]]], WEIGHT, mean, factor)
    return OffsetMixtures(*(np.asarray(array, np.float32) for array in arrays), skeleton="coco_17")


@functools.cache
def drawn(row):
    return np.asarray(jax.jit(lambda key: sample_offsets(key, jnp.array(row), law(), num=COUNT))(jax.random.key(3)))


def covariances():
    factor = np.asarray(law().factor)
    return factor @ factor.swapaxes(-1, -2)


# Drawing


@pytest.mark.parametrize("row", range(3))
def test_many_draws_have_the_mean_and_covariance_of_the_mixture(row):
    weight, mean = WEIGHT[row], np.asarray(law().mean)[row]
    centre = weight @ mean
    apart = np.einsum("c,ci,cj->ij", weight, mean - centre, mean - centre)
    covariance = np.einsum("c,cij->ij", weight, covariances()[row]) + apart
    # Four standard errors.
    error = 4 * np.sqrt(np.diag(covariance) / COUNT)
    assert (np.abs(drawn(row).mean(0) - centre) < error).all()
    deviations = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(
        np.cov(drawn(row).T) / np.outer(deviations, deviations),
        covariance / np.outer(deviations, deviations),
        atol=6 / np.sqrt(COUNT),
    )


@pytest.mark.parametrize("row", range(3))
def test_components_are_drawn_by_their_weight_and_have_their_own_covariance(row):
    mean, covariance = np.asarray(law().mean)[row], covariances()[row]
    distance = np.stack(
        [((d := drawn(row) - mean[c]) * np.linalg.solve(covariance[c], d.T).T).sum(1) for c in range(3)]
    )
    used = np.flatnonzero(WEIGHT[row])
    nearest = used[distance[used].argmin(0)]
    share = np.bincount(nearest, minlength=3) / COUNT
    np.testing.assert_allclose(share, WEIGHT[row], atol=4 * 0.5 / np.sqrt(COUNT))
    for component in used:
        found = drawn(row)[nearest == component] - mean[component]
        np.testing.assert_allclose(
            np.cov(found.T), covariance[component], atol=0.06 * np.diag(covariance[component]).max()
        )


def test_components_of_weight_zero_are_never_drawn():
    far = dataclasses.replace(law(), mean=np.where((WEIGHT == 0)[..., None], 1e3, law().mean).astype(np.float32))
    for row in (0, 2):
        offsets = jax.jit(lambda key, row: sample_offsets(key, row, far, num=COUNT))(jax.random.key(1), jnp.array(row))
        assert np.abs(offsets).max() < 10


def test_another_key_draws_others_and_each_draw_is_its_own():
    draw = jax.jit(lambda key: sample_offsets(key, jnp.array(1), law(), num=50))
    first, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.concatenate([first, other])[:, 0])) == 100


# Boxes and offsets


def test_offsets_are_over_the_sides_of_the_own_box():
    own, box = jnp.array([10.0, 20, 30, 120]), jnp.array([8.0, 30, 33, 100])
    assert_close(offsets_of(box, own), [-0.1, 0.1, 0.15, -0.2])
    assert_close(moved_box(own, jnp.array([-0.1, 0.1, 0.15, -0.2])), box)


numbers = st.floats(-100, 100, width=32)
sides = st.floats(1, 200, width=32)


@given(st.tuples(numbers, numbers, sides, sides), st.tuples(*[st.floats(-0.4375, 0.4375, width=32)] * 4))
def test_the_box_moved_by_its_offsets_is_the_box(place, offset):
    x, y, width, height = place
    own, offset = jnp.array([x, y, x + width, y + height], jnp.float32), jnp.array(offset, jnp.float32)
    assert_close(offsets_of(moved_box(own, offset), own), offset, atol=1e-3)


def test_offsets_take_any_leading_axes():
    own, boxes = jnp.ones((2, 3, 4)).at[..., 2:].set(5), jnp.arange(24.0).reshape(2, 3, 4)
    assert_close(offsets_of(boxes, own)[1, 2], offsets_of(boxes[1, 2], own[1, 2]))


# Density


@pytest.mark.parametrize("row", range(3))
def test_the_density_is_that_of_scipy(row):
    covariance, mean = covariances()[row].astype(np.float64), np.asarray(law().mean)[row]
    offsets = drawn(row)[:50]
    parts = [WEIGHT[row, c] * multivariate_normal(mean[c], covariance[c]).pdf(offsets) for c in range(3)]
    found = jax.jit(jax.vmap(lambda offset: log_density(offset, jnp.array(row), law())))(offsets)
    np.testing.assert_allclose(found, np.log(np.sum(parts, 0)), rtol=1e-3, atol=1e-3)


def test_far_from_everything_the_density_is_small_and_finite():
    assert -1e9 < log_density(jnp.full(4, 50.0), jnp.array(0), law()) < -1e4


def test_gradients_of_the_density_are_those_of_differences():
    assert_gradients(lambda offset: log_density(offset, jnp.array(1), law()), drawn(1)[0])


# Skeletons and poses


@pytest.mark.parametrize("skeleton", [LSP_14, MPII_16, FLIC_11])
def test_atomic_poses_go_to_another_skeleton_by_the_names_of_their_joints(skeleton):
    there = in_skeleton(law(), skeleton)
    assert there.skeleton == skeleton.name and there.joints == skeleton
    for name, joint in zip(skeleton.joints, np.moveaxis(there.atoms, 1, 0), strict=True):
        if name in COCO_17.joints:
            np.testing.assert_array_equal(joint, law().atoms[:, COCO_17.joints.index(name)])
        else:
            assert np.isnan(joint).all()
    np.testing.assert_array_equal(there.mean, law().mean)


def test_the_own_skeleton_changes_nothing():
    assert_identical(in_skeleton(law(), COCO_17), law())


@pytest.mark.parametrize("skeleton", [COCO_17, LSP_14, MPII_16, FLIC_11])
@pytest.mark.parametrize(("turned", "row"), [(False, 0), (True, 1)])
def test_a_pose_takes_the_mixture_of_its_atomic_pose_in_any_skeleton(skeleton, turned, row):
    points = figure(skeleton.joints, (10, 20, 40, 116)) * [1, -1 if turned else 1]
    points, mixtures = jnp.array(points, jnp.float32), in_skeleton(law(), skeleton)
    assert mixture_row(points, jnp.ones(skeleton.size, bool), mixtures) == row
    assert mixture_row(points, jnp.zeros(skeleton.size, bool), mixtures) == 2


def test_transformations_change_nothing():
    keys, rows = jax.random.split(jax.random.key(5), 3), jnp.arange(3)
    assert_same_under_jit_and_vmap(lambda key, row: sample_offsets(key, row, law(), num=5), keys, rows)
    assert_same_under_jit_and_vmap(lambda offset, row: log_density(offset, row, law()), jnp.array(drawn(1)[:3]), rows)
    own = jnp.array([[0.0, 0, 4, 6], [1.0, 2, 9, 30], [-5.0, 5, 6, 60]])
    assert_same_under_jit_and_vmap(offsets_of, own + 1, own)
    assert_same_under_jit_and_vmap(moved_box, own, jnp.array(drawn(0)[:3]))
    points = jnp.array(figure(COCO_17.joints, (0, 0, 9, 30)), jnp.float32)[None] * jnp.array([[[1.0, 1]], [[1, -1]]])
    assert_same_under_jit_and_vmap(lambda p, known: mixture_row(p, known, law()), points, jnp.ones((2, 17), bool))


def test_the_law_may_be_an_argument_of_a_compiled_function():
    draw = jax.jit(lambda key, mixtures: sample_offsets(key, jnp.array(0), mixtures, num=3))
    assert_close(draw(jax.random.key(0), law()), sample_offsets(jax.random.key(0), jnp.array(0), law(), num=3))
