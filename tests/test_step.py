import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from checks import assert_close, assert_identical

from rmpe_jax.config import OptimConfig
from rmpe_jax.geometry.affine import image_from_person, invert_affine, pixels_of_resized, transform_points
from rmpe_jax.heatmaps import encode_heatmaps
from rmpe_jax.models import single_person
from rmpe_jax.train import step as step_module
from rmpe_jax.train.parallel import split_batch
from rmpe_jax.train.step import init_state, learning_rate, make_optimizer, predict_step


@functools.cache
def trained():
    """The state after a few steps on changing batches, and the losses."""
    return tiny.train(tiny.first_state(), [tiny.random_batch(seed) for seed in range(4)])


@functools.cache
def predict():
    return jax.jit(functools.partial(predict_step, experiment=tiny.EXPERIMENT))


def moments(state):
    """Adam's running mean of the gradients."""
    return optax.tree_utils.tree_get(state.optimizer, "mu")


def test_a_fresh_state_is_deterministic_and_counts_from_zero():
    state = tiny.first_state()
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert_identical(init_state(jax.random.key(0), tiny.EXPERIMENT), state)
    assert_identical(state.average, state.variables)


def test_one_batch_can_be_learned_by_heart():
    _, losses = tiny.train(tiny.first_state(), [tiny.random_batch()] * 40)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_a_step_is_a_pure_function():
    batch, state = tiny.random_batch(), trained()[0]
    assert_identical(tiny.compiled_step()(state, batch, tiny.KEY), tiny.compiled_step()(state, batch, tiny.KEY))


def test_the_augmentation_changes_with_the_step_and_the_key():
    batch, state = tiny.random_batch(), tiny.first_state()
    later = dataclasses.replace(state, step=state.step + 1)
    losses = [
        float(tiny.compiled_step()(s, batch, k)[1]["loss"])
        for s, k in ((state, tiny.KEY), (later, tiny.KEY), (state, jax.random.key(8)))
    ]
    assert len(set(losses)) == 3


def test_randomness_goes_with_the_index_and_not_with_the_place():
    batch, order = tiny.random_batch(), np.array([2, 0, 3, 1])
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    metrics = [tiny.compiled_step()(tiny.first_state(), b, tiny.KEY)[1] for b in (batch, shuffled)]
    assert_close(metrics[1], metrics[0])


def test_points_of_unlabelled_joints_never_change_a_step():
    batch = tiny.random_batch()
    points = jnp.where(batch.labelled[..., None], batch.points, 1e3)
    assert not batch.labelled.all()
    results = [
        tiny.compiled_step()(tiny.first_state(), b, tiny.KEY)
        for b in (batch, dataclasses.replace(batch, points=points))
    ]
    assert_identical(results[1], results[0])


def test_a_joint_that_nobody_labels_gives_its_map_no_gradient():
    batch, joint = tiny.random_batch(), 12  # the neck, which a flip leaves in its place
    batch = dataclasses.replace(batch, labelled=batch.labelled.at[:, joint].set(False))
    before, (after, _) = tiny.first_state(), tiny.train(tiny.first_state(), [batch] * 3)
    kernels = [np.asarray(s.variables["params"]["stack_0"]["heatmaps"]["kernel"]) for s in (before, after)]
    changed = (kernels[0] != kernels[1]).any(0)
    assert changed.tolist() == [index != joint for index in range(tiny.JOINTS)]


def test_labels_of_padding_entries_never_change_a_step():
    # Their pictures do reach the batch norm; labels, points and loss do not count.
    batch = tiny.random_batch()
    batch = dataclasses.replace(batch, valid=jnp.array([True, True, True, False]))
    other = dataclasses.replace(
        batch, points=batch.points.at[3].set(10.0), labelled=batch.labelled.at[3].set(~batch.labelled[3])
    )
    unlabelled = dataclasses.replace(batch, labelled=batch.labelled.at[3].set(False), valid=jnp.ones(4, bool))
    expected = tiny.compiled_step()(tiny.first_state(), batch, tiny.KEY)
    for same in (other, unlabelled):
        assert_identical(tiny.compiled_step()(tiny.first_state(), same, tiny.KEY), expected)
    full = tiny.compiled_step()(tiny.first_state(), tiny.random_batch(), tiny.KEY)
    assert full[1]["loss"] != expected[1]["loss"]


def test_a_batch_without_labels_costs_nothing_and_stays_finite():
    batch = dataclasses.replace(tiny.random_batch(), valid=jnp.zeros(4, bool), box=jnp.zeros((4, 4)))
    state, metrics = tiny.compiled_step()(tiny.first_state(), batch, tiny.KEY)
    assert metrics["loss"] == 0.0 and metrics["accuracy"] == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_the_average_follows_the_weights_at_first_quickly():
    state = tiny.first_state()
    average = jax.tree.map(np.asarray, state.average)
    for number, decay in enumerate((1 / 10, 2 / 11, 0.2, 0.2)):  # at most ``optim.average``
        state, _ = tiny.compiled_step()(state, tiny.random_batch(number), tiny.KEY)
        weights = jax.tree.map(np.asarray, state.variables)
        average = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, average, weights)
        assert_close(state.average, average, atol=1e-6)


def test_perfect_maps_have_full_accuracy_and_displaced_ones_none():
    labelled = jnp.array([[True, True, False]])
    points = jnp.array([[3.0, 4.0], [9.0, 12.0], [5.0, 5.0]])
    targets = encode_heatmaps(points, labelled[0], (20, 20), sigma=1.0)[None]
    accuracy = jax.jit(step_module._map_accuracy)
    for shift, expected in ((0, 2), (1, 2), (2, 0)):  # within 0.05 x 20 = 1 pixel
        maps = jnp.roll(targets, shift, 2)
        correct, counted = accuracy(maps, targets, labelled)
        assert (int(correct), int(counted)) == (expected, 2)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = OptimConfig(steps=20, warmup=4, learning_rate=0.1, clip=100.0)
    optimizer, params = make_optimizer(config), {"w": jnp.zeros(())}
    state, sizes = optimizer.init(params), []
    for _ in range(21):
        # Adam turns a constant gradient into a step of the learning rate.
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        sizes.append(-float(updates["w"]))
    np.testing.assert_allclose(sizes[:5], [0, 0.025, 0.05, 0.075, 0.1], atol=1e-5)
    np.testing.assert_allclose([sizes[12], sizes[20]], [0.05, 0], atol=1e-5)


def test_a_rate_that_falls_in_steps_rises_first_and_drops_at_shares_of_the_run():
    config = OptimConfig(steps=30, warmup=4, learning_rate=0.1, schedule="steps", drops=(0.5, 0.9), drop=0.2)
    rates = [float(learning_rate(step, config=config)) for step in range(30)]
    np.testing.assert_allclose(rates[:5], [0, 0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rates[4:], [0.1] * 11 + [0.02] * 12 + [0.004] * 3, rtol=1e-6)


def test_a_constant_rate_stays_and_may_begin_at_once():
    config = OptimConfig(steps=30, warmup=0, learning_rate=0.1, schedule="constant")
    np.testing.assert_allclose([float(learning_rate(step, config=config)) for step in (0, 7, 29)], 0.1, rtol=1e-6)


def test_rmsprop_is_torchs():
    # square = 0.99 square + 0.01 g^2; w = w - rate g / (sqrt(square) + 1e-8), with the penalty in the gradient.
    config = OptimConfig(
        optimizer="rmsprop", schedule="constant", warmup=0, learning_rate=0.1, weight_decay=0.5, clip=9.0
    )
    optimizer, weights, square = make_optimizer(config), {"w": jnp.array([1.0, -2.0])}, np.zeros(2)
    state, expected = optimizer.init(weights), np.array([1.0, -2.0])
    for gradient in ([0.3, 0.0], [-1.0, 2.0], [0.0, 0.5]):
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, weights)
        weights = optax.apply_updates(weights, updates)
        total = np.array(gradient) + 0.5 * expected
        square = 0.99 * square + 0.01 * total**2
        expected = expected - 0.1 * total / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(weights["w"], expected, rtol=1e-5, atol=1e-6)


def test_a_step_says_its_learning_rate():
    _, metrics = tiny.compiled_step()(trained()[0], tiny.random_batch(), tiny.KEY)
    assert float(metrics["learning_rate"]) == pytest.approx(float(learning_rate(4, config=tiny.EXPERIMENT.optim)))


def test_the_gradient_is_clipped_to_its_largest_norm():
    optimizer = make_optimizer(OptimConfig(clip=1.0))
    gradient = {"a": jnp.array([30.0, 0.0]), "b": jnp.array(40.0)}
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    # The first moment after one step is a tenth of the gradient, here scaled to length 1.
    assert_close(optax.tree_utils.tree_get(state, "mu"), {"a": np.array([0.06, 0.0]), "b": np.array(0.08)})


def test_weight_decay_shrinks_weights_without_gradient():
    config = OptimConfig(steps=10, warmup=1, learning_rate=0.1, weight_decay=0.5)
    optimizer, params = make_optimizer(config), {"w": jnp.array(2.0)}
    updates = params
    state = optimizer.init(params)
    for _ in range(2):  # the first step has rate zero
        updates, state = optimizer.update({"w": jnp.zeros(())}, state, params)
    assert_close(updates["w"], -0.1 * 0.5 * 2.0)


def test_predicted_points_are_pixels_of_the_canvas(monkeypatch):
    batch = tiny.random_batch()
    size, output_size = tiny.EXPERIMENT.model.input_size, tiny.EXPERIMENT.model.output_size
    inside = jnp.array([[1.0, 2.0], [2.0, 1.0]] * 7)  # heat-map pixels
    maps = encode_heatmaps(inside, jnp.ones(14, bool), output_size, sigma=1.0)
    monkeypatch.setattr(single_person, "apply_hourglass", lambda *_, **__: jnp.stack([maps[None]] * 2))
    found = jax.jit(functools.partial(predict_step, experiment=tiny.EXPERIMENT))({}, batch)

    def map_points(box, points):
        crop_from_canvas = invert_affine(image_from_person(box, size, extension=0.3))
        return transform_points(pixels_of_resized(size, output_size), transform_points(crop_from_canvas, points))

    assert_close(jax.jit(jax.vmap(map_points))(batch.box, found), np.stack([inside] * tiny.BATCH), atol=1e-4)


def test_padding_never_changes_the_predictions_of_the_others():
    weights, batch = trained()[0].average, tiny.random_batch(3)
    other = tiny.random_batch(4)
    changed = jax.tree.map(lambda ours, theirs: ours.at[2:].set(theirs[2:]), batch, other)
    empty = dataclasses.replace(batch, box=batch.box.at[2:].set(0.0), canvas=batch.canvas.at[2:].set(0))
    for padded in (changed, empty):
        points = predict()(weights, padded)
        assert_identical(points[:2], predict()(weights, batch)[:2])
        assert np.isfinite(points).all()


def test_a_batch_is_split_in_order_and_only_evenly():
    parts = split_batch(tiny.random_batch(), 2)
    assert parts.index.tolist() == [[0, 1], [2, 3]] and parts.canvas.shape == (2, 2, 24, 24, 3)
    with pytest.raises(ValueError, match="batch of 4 .* over 3 devices"):
        split_batch(tiny.random_batch(), 3)
