import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical

from rmpe_jax.config import LocalizationConfig
from rmpe_jax.models.localization import (
    apply_localization,
    apply_localization_training,
    init_localization,
    localization_shapes,
    theta_from_change,
)

SIZE = (32, 24)
SMALL = LocalizationConfig(kind="small")
SCALED = LocalizationConfig(kind="small", theta="scale_translation")
IDENTITY = np.eye(2, 3, dtype=np.float32)
apply = jax.jit(apply_localization, static_argnames="config")
apply_training = jax.jit(apply_localization_training, static_argnames=("config", "axis_name"))


def crops(count=3, size=SIZE, seed=1):
    return jax.random.uniform(jax.random.key(seed), (count, *size, 3))


@functools.cache
def fresh(config, size=SIZE):
    return init_localization(jax.random.key(0), config, size)


def with_last_layer(variables, seed=2):
    """The same network with a last layer that is not zero."""
    rng = np.random.default_rng(seed)
    last = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.1).astype(np.float32), variables["params"]["theta_zero"]
    )
    return {**variables, "params": {**variables["params"], "theta_zero": last}}


@pytest.mark.parametrize(
    "config",
    [SMALL, SCALED, pytest.param(LocalizationConfig(kind="resnet18"), marks=pytest.mark.slow)],
    ids=lambda config: f"{config.kind} {config.theta}",
)
def test_a_fresh_network_gives_the_identity_for_every_crop_exactly(config):
    theta = apply(fresh(config), crops(), config=config)
    np.testing.assert_array_equal(theta, np.broadcast_to(IDENTITY, (3, 2, 3)))


@pytest.mark.parametrize("size", [(256, 256), (64, 96)])
def test_the_originals_network_has_11_182_598_parameters_at_any_size(size):
    shapes = localization_shapes(LocalizationConfig(kind="resnet18"), size)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 11_182_598


def test_the_small_network_has_the_same_parameters_at_any_size():
    assert localization_shapes(SMALL, (256, 256)) == localization_shapes(SMALL, (32, 48))


def test_fresh_kernels_have_the_deviation_of_their_fan_in_and_the_last_layer_none():
    params = fresh(SMALL)["params"]
    kernel = params["_ConvNorm_3"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 64, 64) and kernel.std() == pytest.approx(1 / np.sqrt(9 * 64), rel=0.02)
    assert not params["theta_zero"]["kernel"].any() and not params["theta_zero"]["bias"].any()


def test_theta_is_the_identity_and_the_change_by_hand():
    change = jnp.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    assert_close(theta_from_change(change, SMALL)[0], [[1.1, 0.2, 0.3], [0.4, 1.5, 0.6]])
    assert_close(theta_from_change(change[:, :3], SCALED)[0], [[1.1, 0, 0.2], [0, 1.1, 0.3]])


def test_scale_and_translation_have_three_numbers_and_never_turn_or_shear():
    variables = with_last_layer(fresh(SCALED))
    assert variables["params"]["theta_zero"]["kernel"].shape[1] == 3
    assert fresh(SMALL)["params"]["theta_zero"]["kernel"].shape[1] == 6
    theta = apply(variables, crops(), config=SCALED)
    np.testing.assert_array_equal(theta[:, 0, 1], 0)
    np.testing.assert_array_equal(theta[:, 1, 0], 0)
    np.testing.assert_array_equal(theta[:, 0, 0], theta[:, 1, 1])
    assert np.ptp(np.asarray(theta), 0)[[0, 0, 1], [0, 2, 2]].min() > 1e-3  # all three depend on the crop


def test_only_training_updates_the_statistics_of_the_batch():
    variables = with_last_layer(fresh(SMALL))
    theta, statistics = apply_training(variables, crops(), config=SMALL)
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(statistics)
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["batch_stats"])
    assert all((old != new).any() for old, new in zip(before, after, strict=True))
    # Momentum 0.9, and the first layer's mean is that of its convolution.
    norm = {"params": variables["params"], "batch_stats": statistics}
    assert np.abs(theta - apply(norm, crops(), config=SMALL)).max() > 1e-3


def test_theta_under_running_statistics_does_not_depend_on_the_batch():
    variables = with_last_layer(fresh(SMALL))
    together = apply(variables, crops(), config=SMALL)
    for index in range(3):
        assert_close(apply(variables, crops()[index : index + 1], config=SMALL)[0], together[index])
    alone = apply_training(variables, crops()[:1], config=SMALL)[0][0]
    assert np.abs(alone - apply_training(variables, crops(), config=SMALL)[0][0]).max() > 1e-3


def test_compiling_does_not_change_theta():
    variables = with_last_layer(fresh(SMALL))
    assert_close(apply(variables, crops(), config=SMALL), apply_localization(variables, crops(), SMALL))


def test_the_gradient_reaches_the_last_layer_from_the_start():
    def total(params):
        theta = apply_localization({**fresh(SMALL), "params": params}, crops(), SMALL)
        return (theta * jnp.arange(1.0, 7.0).reshape(1, 2, 3)).sum()

    gradient = jax.jit(jax.grad(total))(fresh(SMALL)["params"])
    last, first = gradient["theta_zero"], gradient["_ConvNorm_0"]["Conv_0"]["kernel"]
    assert_close(last["bias"], 3 * np.arange(1.0, 7.0))
    assert np.abs(last["kernel"]).max(0).min() > 0.1
    np.testing.assert_array_equal(first, 0)  # behind the zero layer, until its first step


def test_other_keys_give_other_networks_and_the_same_key_the_same():
    assert_identical(init_localization(jax.random.key(0), SMALL, SIZE), fresh(SMALL))
    other = init_localization(jax.random.key(1), SMALL, SIZE)["params"]["_ConvNorm_0"]["Conv_0"]["kernel"]
    assert (other != fresh(SMALL)["params"]["_ConvNorm_0"]["Conv_0"]["kernel"]).all()
