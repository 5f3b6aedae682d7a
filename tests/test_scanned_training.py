"""Training with the stacks in one loop: their variables are stacked in the state alone, and train as the plain ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from checks import assert_close, assert_identical

import rmpe_jax.train.step as step_module
from rmpe_jax.config import DataConfig, override
from rmpe_jax.data.pipeline import Loader, training_people
from rmpe_jax.models.hourglass import MERGES, init_hourglass
from rmpe_jax.models.rmpe import LOCALIZATION, init_estimator, part_of, sppe_of, stack_estimator, unstack_estimator
from rmpe_jax.pretrained import Weights, load_weights, save_weights
from rmpe_jax.train.checkpoint import CheckpointError, Checkpoints
from rmpe_jax.train.loop import train
from rmpe_jax.train.parallel import pmap_step, sharded_step
from rmpe_jax.train.plan import plan_run
from rmpe_jax.train.step import init_state, predict_step, train_step
from rmpe_jax.train.validation import Validation

# A slow STN: its gradient leaps with theta, so that rounding alone would part two runs within five steps.
STN = ("localization.kind=small", "localization.source=crop", "localization.rate=0.1")


def settings(scan, *assignments):
    """The tiny experiment with two stacks."""
    return override(tiny.EXPERIMENT, ["model.stacks=2", f"model.scan={str(scan).lower()}", *assignments])


def first_state(experiment, **given):
    return init_state(jax.random.key(0), experiment, **given)


def frozen_hourglass(experiment):
    return init_hourglass(jax.random.key(5), experiment.model, joints=tiny.JOINTS)


def take_steps(experiment, *, state=None, seeds=range(5), mapping=jax.jit, **given):
    """The state after some steps, and their losses and norms of the gradient."""
    step = mapping(functools.partial(train_step, experiment=experiment))
    state, told = first_state(experiment, **given) if state is None else state, []
    for seed in seeds:
        state, metrics = step(state, tiny.random_batch(seed), tiny.KEY)
        told.append([float(metrics[name]) for name in ("loss", "parallel_loss", "gradient_norm")])
    return state, told


@pytest.fixture(scope="module")
def scanned():
    """A scanned run of a few steps, by AdamW: its state, losses and norms."""
    return take_steps(settings(True))


@pytest.fixture
def plain_descent(monkeypatch):
    """Gradients clipped and followed.

    Adam moves each parameter by about the rate, however small its gradient: where that is rounding alone, as for a bias
    that a batch norm removes, runs that are equal but for rounding part.
    """
    monkeypatch.setattr(step_module, "make_optimizer", rule)


def rule(config):
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.sgd(0.02, momentum=0.9))


def assert_same_training(experiment, found, expected):
    """Losses, variables and average, of a scanned and an unrolled run."""
    (state, told), (plain, plain_told) = found, expected
    np.testing.assert_allclose(told, plain_told, rtol=1e-4)
    assert plain_told[0][0] != plain_told[-1][0]
    for name in ("variables", "average"):
        mine, theirs = unstack_estimator(getattr(state, name), experiment), getattr(plain, name)
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


def test_the_state_has_the_stacks_of_plain_weights_together():
    experiment, start = settings(True), init_estimator(jax.random.key(3), settings(False))
    for state in (first_state(experiment), first_state(experiment, start=start)):
        assert "stacks" in state.variables["params"] and "stack_0" not in state.variables["params"]
        assert_identical(state.average, state.variables)
        # Two moments and a count.
        assert len(jax.tree.leaves(state.optimizer)) == 2 * len(jax.tree.leaves(state.variables["params"])) + 2
    assert_identical(unstack_estimator(state.variables, experiment), start)
    assert_identical(unstack_estimator(first_state(experiment).variables, experiment), plain_state().variables)


def plain_state():
    return first_state(settings(False))


def test_the_frozen_network_and_the_stn_have_the_plain_layout():
    experiment, plain = settings(True, *STN), settings(False, *STN)
    frozen, start = frozen_hourglass(plain), frozen_hourglass(plain)
    state, expected = (first_state(each, start=start, frozen=frozen) for each in (experiment, plain))
    assert_identical(state.frozen, expected.frozen)
    assert_identical(part_of(state.variables, LOCALIZATION), part_of(expected.variables, LOCALIZATION))
    assert "stacks" in sppe_of(state.variables, experiment)["params"]
    assert_identical(unstack_estimator(state.variables, experiment), jax.tree.map(np.asarray, expected.variables))
    assert stack_estimator(expected.variables, plain) is expected.variables


@pytest.mark.slow
@pytest.mark.parametrize(
    "assignments",
    [(), ("optim.accumulate=2",), ("model.remat=true",), STN],
    ids=["plain", "accumulated", "remat", "stn"],
)
def test_a_scanned_run_is_the_unrolled_one(assignments, plain_descent):
    runs = []
    for experiment in (settings(scan, *assignments) for scan in (True, False)):
        frozen = frozen_hourglass(experiment) if assignments == STN else None
        runs.append(take_steps(experiment, frozen=frozen))
    assert_same_training(settings(True, *assignments), *runs)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [pmap_step, sharded_step])
def test_a_scanned_run_on_four_devices_is_the_unrolled_one_on_one(mapping, plain_descent):
    experiment = settings(True)
    assert_same_training(experiment, take_steps(experiment, mapping=mapping), take_steps(settings(False)))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_merging_layers_that_the_last_stack_has_not_stay_zero(optimizer):
    experiment = settings(True, f"optim.optimizer={optimizer}", "optim.weight_decay=0.1", "optim.schedule=constant")
    before, (state, _) = first_state(experiment), take_steps(experiment)
    for tree in (state.variables["params"], state.average["params"], optax.tree.get(state.optimizer, "nu")):
        for name in MERGES:
            for leaf in tree["stacks"][name].values():
                np.testing.assert_array_equal(leaf[-1], 0)
    moved = [state.variables["params"]["stacks"][name]["kernel"] for name in MERGES]
    first = [before.variables["params"]["stacks"][name]["kernel"] for name in MERGES]
    assert min(np.abs(new - old)[0].max() for new, old in zip(moved, first, strict=True)) > 1e-4


@pytest.mark.slow
def test_a_resumed_scanned_run_is_the_one_that_never_stopped(tmp_path, scanned):
    experiment = settings(True)
    halfway, told = take_steps(experiment, seeds=range(2))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(halfway, experiment)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"scan"):
            checkpoints.restore(plain_state(), settings(False), report=pytest.fail)
        saved = checkpoints.restore(first_state(experiment), experiment, report=pytest.fail)
    resumed, rest = take_steps(experiment, state=saved.state, seeds=range(2, 5))
    assert_identical(resumed, scanned[0])
    assert told + rest == scanned[1]


@pytest.mark.slow
def test_a_scanned_run_is_validated_and_writes_plain_weights(tmp_path):
    data = dataclasses.replace(DataConfig(synthetic=4), canvas=tiny.CANVAS)
    changes = ["optim.steps=2", "run.save_every=2", "run.evaluate_every=1", "run.log_every=1"]
    experiment = dataclasses.replace(settings(True, *changes), data=data)
    path = train(experiment, tmp_path, workers=1)
    weights = load_weights(path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(first_state(experiment), experiment, report=pytest.fail).state
    assert_identical(weights.variables, unstack_estimator(state.average, experiment))
    # What validation predicts is what the weights of the file predict.
    predict, batch = jax.jit(functools.partial(predict_step, experiment=weights.experiment)), tiny.random_batch()
    people = training_people(experiment.data, experiment.joints)
    with Loader(people, experiment.data) as loader:
        validation = Validation(experiment, loader, workers=1, report=pytest.fail)
        assert_identical(validation.weights_of(state), jax.tree.map(jnp.asarray, weights.variables))
        assert np.isfinite(validation.sample_points(validation.weights_of(state))[1]).all()
    assert np.isfinite(predict(weights.variables, batch)).all()


def test_weights_of_a_scanned_experiment_start_an_unrolled_one_and_the_reverse(tmp_path):
    for scan in (True, False):
        path = tmp_path / f"{scan}.safetensors"
        made = init_estimator(jax.random.key(4), settings(scan))
        save_weights(path, Weights(settings(scan), made))
        other = dataclasses.replace(
            settings(not scan), start=str(path), data=DataConfig(synthetic=4, canvas=tiny.CANVAS)
        )
        state = plan_run(other).first_state()
        assert_identical(unstack_estimator(state.variables, other), made)
