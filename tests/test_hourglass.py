import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical
from jax import lax
from jax.test_util import check_grads

from rmpe_jax.config import HourglassConfig
from rmpe_jax.models.hourglass import (
    MERGES,
    apply_hourglass,
    apply_hourglass_training,
    hourglass_shapes,
    init_hourglass,
    stack_variables,
    unstack_variables,
)
from rmpe_jax.models.layers import convolve, max_pool, upsample_nearest

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
    assert_close(trainer(remat)(variables(), images()), trainer()(variables(), images()))


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


def test_pooling_takes_the_maximum_of_two_by_two_pixels():
    ramp = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(ramp)[0, :, :, 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(max_pool(-ramp)[0, :, :, 0], [[0, -2], [-8, -10]])
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(max_pool))(x[None]), expected[None])


def test_the_gradient_of_pooling_goes_to_the_maximum_and_is_shared_by_equals():
    x = jnp.array([[1.0, 3, 2, 2], [0, 2, 2, 2]])[None, :, :, None]
    gradient = jax.grad(lambda x: (max_pool(x) * jnp.array([5.0, 8.0])[None, None, :, None]).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 5, 2, 2], [0, 0, 2, 2]])


def test_a_missing_number_is_not_pooled_away():
    assert np.isnan(max_pool(jnp.array([[jnp.nan, 1], [2, 3]])[None, :, :, None])).all()


def plain_convolution(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(*shapes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def test_the_convolution_reads_neighbours_and_zeros_outside():
    ramp, right = jnp.arange(6.0).reshape(1, 2, 3, 1), jnp.zeros((3, 3, 1, 1)).at[1, 2].set(1.0)
    np.testing.assert_array_equal(convolve(ramp, right)[0, :, :, 0], [[1, 2, 0], [4, 5, 0]])
    np.testing.assert_array_equal(convolve(ramp, jnp.ones((3, 3, 1, 1)))[0, :, :, 0], [[8, 15, 12]] * 2)


def test_the_gradient_of_the_convolution_is_the_one_by_hand():
    ramp = jnp.arange(6.0).reshape(1, 2, 3, 1)
    chosen = jnp.zeros((1, 2, 3, 1)).at[0, 0, 1].set(1.0)  # only the output at row 0, column 1
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    by_x, by_kernel = jax.vjp(convolve, ramp, kernel)[1](chosen)
    np.testing.assert_array_equal(by_x[0, :, :, 0], [[3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(by_kernel[:, :, 0, 0], [[0, 0, 0], [0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("batch", "size", "sides", "channels"),
    [(1, (4, 4), (3, 3), (2, 2)), (3, (5, 2), (3, 5), (1, 4)), (2, (1, 6), (5, 1), (3, 2))],
)
def test_the_convolution_and_its_gradients_are_those_of_jax(batch, size, sides, channels):
    x, kernel, out = drawn((batch, *size, channels[0]), (*sides, *channels), (batch, *size, channels[1]))
    found, backward = jax.vjp(convolve, x, kernel)
    expected, plain_backward = jax.vjp(plain_convolution, x, kernel)
    np.testing.assert_array_equal(found, expected)
    assert_close(backward(out), plain_backward(out), rtol=1e-5, atol=2e-5)


@pytest.mark.slow
def test_the_gradients_of_the_convolution_are_those_of_finite_differences():
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(array, jnp.float64) for array in drawn((2, 4, 5, 3), (3, 3, 3, 2)))
        check_grads(jax.jit(convolve), (x, kernel), order=2, modes=("rev",))


@pytest.mark.slow
def test_the_convolution_is_the_same_under_jit_vmap_and_in_a_loop():
    x, kernel = drawn((3, 2, 4, 5, 3), (3, 3, 3, 2))

    def slopes(convolution, one):
        return jax.grad(lambda one, kernel: (convolution(one, kernel) ** 3).sum(), (0, 1))(one, kernel)

    expected = [slopes(plain_convolution, one) for one in x]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    assert_close(jax.jit(jax.vmap(lambda one: slopes(convolve, one)))(x), expected, rtol=1e-4, atol=1e-4)
    assert_close(lax.map(lambda one: slopes(convolve, one), x), expected, rtol=1e-4, atol=1e-4)


def network(stacks, **changes):
    """A network of some stacks, unrolled and scanned."""
    config = HourglassConfig(stacks=stacks, features=8, depth=1, input_size=(16, 16), **changes)
    return [dataclasses.replace(config, scan=scan) for scan in (False, True)]


@functools.cache
def variables_of(stacks):
    """With statistics that differ from stack to stack."""
    made = init_hourglass(jax.random.key(2), network(stacks)[0], joints=JOINTS)
    rng = np.random.default_rng(0)
    statistics = jax.tree.map(
        lambda leaf: (leaf + rng.uniform(0, 0.3, leaf.shape)).astype(np.float32), made["batch_stats"]
    )
    return made | {"batch_stats": statistics}


def pictures_of(count=2):
    return jax.random.uniform(jax.random.key(4), (count, 16, 16, 3))


def train_apart(config, pictures, **settings):
    """Maps, and the statistics of each stack."""
    weights = stack_variables(variables_of(config.stacks), config)
    maps, statistics = apply_hourglass_training(weights, pictures, config, joints=JOINTS, **settings)
    return maps, apart(statistics, config)


def apart(content, config):
    """One collection of variables, or a gradient, with its stacks apart."""
    return unstack_variables({"params": content}, config)["params"]


def training(config):
    """Loss, maps, statistics and gradient."""
    (loss, (maps, statistics)), gradient = trainer(config)(
        stack_variables(variables_of(config.stacks), config), pictures_of()
    )
    return loss, maps, apart(statistics, config), apart(gradient, config)


def assert_same_training(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert_close(found, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stacks", [1, 2, 3])
def test_scanned_stacks_train_as_the_unrolled_ones(stacks):
    unrolled, scanned = network(stacks)
    assert_same_training(training(scanned), training(unrolled))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_scanned_stacks_give_the_maps_and_statistics_of_the_unrolled_ones(dtype, tolerance):
    found, expected = (
        jax.jit(functools.partial(apply_hourglass_training, config=config, joints=JOINTS))(
            stack_variables(variables_of(2), config), pictures_of()
        )
        for config in reversed(network(2, dtype=dtype))
    )
    found = found[0], apart(found[1], network(2)[1])
    assert found[0].dtype == jnp.float32
    assert np.abs(found[0] - expected[0]).max() < tolerance * np.abs(expected[0]).max()
    assert jax.tree.structure(found[1]) == jax.tree.structure(expected[1])
    assert_close(found[1], expected[1], rtol=tolerance, atol=tolerance)


def test_scanning_does_not_touch_prediction():
    found, expected = (
        jax.make_jaxpr(functools.partial(apply_hourglass, config=config, joints=JOINTS))(variables_of(2), pictures_of())
        for config in network(2)
    )
    assert str(found) == str(expected) and "scan" not in str(found)


def test_scanning_changes_no_variable():
    unrolled, scanned = network(2)
    assert_identical(init_hourglass(jax.random.key(2), scanned, joints=JOINTS)["params"], variables_of(2)["params"])
    shapes = [hourglass_shapes(config, joints=JOINTS) for config in (unrolled, scanned)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


@pytest.mark.slow
def test_scanned_stacks_are_recomputed_where_that_is_asked_for():
    unrolled, scanned = (dataclasses.replace(config, remat=True) for config in network(2))
    assert_same_training(training(scanned), training(network(2)[0]))
    # Each stack by itself, or the body of the one loop.
    counts = [
        str(jax.make_jaxpr(trainer(config))(stack_variables(variables_of(2), config), pictures_of())).count("remat")
        for config in (unrolled, scanned)
    ]
    assert counts == [2, 1]


@pytest.mark.slow
def test_scanned_stacks_average_their_statistics_over_devices():
    def mapped(config):
        def one(pictures):
            weights = stack_variables(variables_of(2), config)
            return apply_hourglass_training(weights, pictures, config, joints=JOINTS, axis_name="devices")

        maps, statistics = jax.pmap(one, axis_name="devices", out_axes=(1, None))(
            pictures_of(8).reshape(4, 2, 16, 16, 3)
        )
        return maps.reshape(2, 8, 4, 4, JOINTS), apart(statistics, config)

    whole = train_apart(network(2)[1], pictures_of(8))
    for config in network(2):
        assert_close(mapped(config), whole, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_scanned_stacks_are_mapped_like_others():
    config = network(2)[1]
    pairs = pictures_of(4).reshape(2, 2, 16, 16, 3)
    run = functools.partial(apply_hourglass_training, config=config, joints=JOINTS)
    weights = stack_variables(variables_of(2), config)
    found = jax.jit(jax.vmap(run, in_axes=(None, 0)))(weights, pairs)
    for number, pair in enumerate(pairs):
        assert_close(jax.tree.map(lambda leaf, n=number: leaf[n], found), run(weights, pair), rtol=1e-4)


@pytest.mark.slow
def test_the_program_of_scanned_stacks_does_not_grow_with_their_number():
    def lines(stacks):
        config, images = network(stacks)[1], jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        weights = stack_variables(init_hourglass(jax.random.key(0), config, joints=JOINTS), config)
        return len(trainer(config).lower(weights, images).as_text().splitlines())

    assert lines(2) == lines(6)


@pytest.mark.parametrize("stacks", [1, 3])
def test_stacked_variables_come_apart_as_they_were(stacks):
    unrolled, scanned = network(stacks)
    plain = variables_of(stacks)
    assert stack_variables(plain, unrolled) is plain and unstack_variables(plain, unrolled) is plain
    stacked = stack_variables(plain, scanned)
    assert_identical(unstack_variables(stacked, scanned), plain)
    assert_identical(unstack_variables(jax.tree.map(jnp.asarray, stacked), scanned), plain)


def test_stacked_variables_lie_on_each_other_and_the_last_stack_merges_with_zeros():
    plain, stacked = variables_of(3), stack_variables(variables_of(3), network(3)[1])
    for kind, content in stacked.items():
        assert {name for name in plain[kind] if not name.startswith("stack_")} == set(content) - {"stacks"}
        assert {len(leaf) for leaf in jax.tree.leaves(content["stacks"])} == {3}
    np.testing.assert_array_equal(
        stacked["params"]["stacks"]["heatmaps"]["kernel"][1], plain["params"]["stack_1"]["heatmaps"]["kernel"]
    )
    for name in MERGES:
        assert np.abs(stacked["params"]["stacks"][name]["kernel"][1]).max() > 0.01
        for leaf in stacked["params"]["stacks"][name].values():
            assert leaf.dtype == np.float32
            np.testing.assert_array_equal(leaf[2], 0)
