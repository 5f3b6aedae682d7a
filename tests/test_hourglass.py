import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical

from rmpe_jax.config import HourglassConfig
from rmpe_jax.models.hourglass import apply_hourglass, apply_hourglass_training, hourglass_shapes, init_hourglass
from rmpe_jax.models.layers import upsample_nearest

TINY = HourglassConfig(stacks=2, features=8, depth=1, input_size=(8, 16))
JOINTS = 3


@functools.cache
def variables():
    return init_hourglass(jax.random.key(1), TINY, joints=JOINTS)


def images(seed=0, count=2):
    return jax.random.uniform(jax.random.key(seed), (count, *TINY.input_size, 3))


@functools.cache
def predictor(config=TINY):
    return jax.jit(lambda weights, pictures: apply_hourglass(weights, pictures, config, joints=JOINTS))


@functools.cache
def trainer(config=TINY):
    """Loss, new statistics and gradient of a training pass."""

    def loss_of(params, weights, pictures):
        maps, statistics = apply_hourglass_training(weights | {"params": params}, pictures, config, joints=JOINTS)
        return (maps**2).mean(), (maps, statistics)

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    return jax.jit(lambda weights, pictures: gradient(weights["params"], weights, pictures))


@pytest.mark.parametrize(("stacks", "count"), [(1, 3_426_448), (2, 6_570_400), (4, 12_858_304), (8, 25_434_112)])
def test_parameters_are_counted_exactly(stacks, count):
    shapes = hourglass_shapes(HourglassConfig(stacks=stacks), joints=16)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_maps_of_every_stack_come_out_at_a_quarter_of_the_size():
    maps = predictor()(variables(), images())
    assert maps.shape == (2, 2, *TINY.output_size, JOINTS) and maps.dtype == jnp.float32
    assert np.isfinite(maps).all() and np.abs(maps[0] - maps[1]).max() > 1e-3


def test_fresh_variables_have_the_shapes_of_the_network():
    made = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables())
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), hourglass_shapes(TINY, joints=JOINTS))
    assert made == expected


def test_fresh_variables_are_deterministic_by_key():
    key, other = jax.random.key(1), jax.random.key(2)
    assert_identical(init_hourglass(key, TINY, joints=JOINTS), variables())
    kernels = [
        weights["params"]["Conv_0"]["kernel"] for weights in (variables(), init_hourglass(other, TINY, joints=JOINTS))
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_fresh_kernels_differ_and_have_variance_one_over_fan_in():
    wide = HourglassConfig(stacks=1, features=64, depth=1, input_size=(8, 8))
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(init_hourglass(jax.random.key(0), wide, joints=16)):
        name = path[-1].key
        if name == "kernel":
            assert leaf.var() * np.prod(leaf.shape[:-1]) == pytest.approx(1, abs=0.2)
            seen.add(leaf.tobytes()[:64])
        else:
            np.testing.assert_array_equal(leaf, float(name in ("scale", "var")))
    assert len(seen) == 29


@pytest.mark.slow
def test_rematerialisation_changes_neither_outputs_nor_gradients():
    remat = dataclasses.replace(TINY, remat=True)
    assert_identical(init_hourglass(jax.random.key(1), remat, joints=JOINTS), variables())
    assert_close(trainer(remat)(variables(), images()), trainer()(variables(), images()), atol=1e-6)


def test_every_parameter_before_the_last_maps_gets_a_gradient():
    _, gradient = trainer()(variables(), images())
    # A bias in front of a batch norm is removed by it; all else must move the loss.
    size = {
        jax.tree_util.keystr(path): np.abs(leaf).max() for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert [name for name, value in size.items() if value < 1e-7 and "bias" not in name] == []


def test_prediction_treats_each_picture_on_its_own():
    pictures = images()
    alone = jnp.concatenate([predictor()(variables(), pictures[i : i + 1]) for i in range(2)], 1)
    assert_close(predictor()(variables(), pictures), alone)


def test_training_uses_the_statistics_of_the_batch():
    (_, (maps, _)), _ = trainer()(variables(), images())
    assert np.abs(maps - predictor()(variables(), images())).max() > 0.01
    # Another second picture changes the maps of the first.
    mixed = images().at[1].set(images(3)[1])
    (_, (other, _)), _ = trainer()(variables(), mixed)
    assert np.abs(other[:, 0] - maps[:, 0]).max() > 1e-4


def test_running_statistics_move_a_tenth_of_the_way_to_those_of_the_batch():
    zero_stem = jax.tree.map(np.copy, variables())
    stem = zero_stem["params"]["Conv_0"]
    stem["kernel"][:], stem["bias"][:] = 0.0, [3.0, -2.0]
    (_, (_, statistics)), _ = trainer()(zero_stem, images())
    # The stem gives a constant: its mean is the bias, its variance nothing.
    assert_close(statistics["Norm_0"]["BatchNorm_0"]["mean"], [0.3, -0.2])
    assert_close(statistics["Norm_0"]["BatchNorm_0"]["var"], [0.9, 0.9])


def test_prediction_uses_the_running_statistics():
    statistics = jax.tree.map(lambda leaf: leaf + 0.5, variables()["batch_stats"])
    changed = predictor()(variables() | {"batch_stats": statistics}, images())
    assert np.abs(changed - predictor()(variables(), images())).max() > 1e-3


def test_the_mean_is_subtracted_from_the_pictures():
    centred = dataclasses.replace(TINY, mean=(0.5, 0.25, 0.125))
    shifted = images() + jnp.array(centred.mean)[None, None, None]
    assert_close(predictor(centred)(variables(), shifted), predictor()(variables(), images()), atol=1e-4)


def test_half_precision_returns_float32_maps_near_the_full_ones():
    half = predictor(dataclasses.replace(TINY, dtype="bfloat16"))(variables(), images())
    full = predictor()(variables(), images())
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_upsampling_repeats_rows_and_columns():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(upsample_nearest(x), np.repeat(np.repeat(x, 2, 1), 2, 2))
