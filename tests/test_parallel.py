"""However a step is mapped over devices and processes, and in how many parts, it is the same step."""

import functools
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parallel_steps
import pytest
import tiny
from checks import assert_close

from rmpe_jax.config import override
from rmpe_jax.train import step as step_module
from rmpe_jax.train.parallel import pmap_step, sharded_step
from rmpe_jax.train.step import init_state, train_step

counts = pytest.mark.parametrize("accumulate", [1, 2])


@functools.cache
def on_one_device(accumulate):
    return parallel_steps.take_steps("one device", accumulate)


def assert_same_steps(found, accumulate):
    (metrics, end), (expected, end_of_one) = found, on_one_device(accumulate)
    for name in expected[0]:
        ours, theirs = ([step[name] for step in steps] for steps in (metrics, expected))
        np.testing.assert_allclose(ours, theirs, rtol=2e-4 if name == "gradient_norm" else 1e-5, err_msg=name)
    for name in ("params", "batch_stats", "gradients"):
        assert jax.tree.structure(end[name]) == jax.tree.structure(end_of_one[name])
    jax.tree.map(assert_same_leaf, *(each[name] for each in (end, end_of_one) for name in ("params", "gradients")))
    pairs = zip(*(jax.tree_util.tree_leaves_with_path(each["batch_stats"]) for each in (end, end_of_one)), strict=True)
    for (path, ours), (_, theirs) in pairs:
        # A mean moves with the bias before it; see below.
        atol = 2e-2 if path[-1].key == "mean" else 1e-4 * theirs.max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=str(path))


def assert_same_leaf(weight, gradient, weight_of_one, gradient_of_one):
    """Gradients agree, and so do weights, but for those without gradient: of their rounding Adam makes whole steps.

    These are biases before a batch norm, which takes them away again.
    """
    scale = np.abs(gradient_of_one).max()
    np.testing.assert_allclose(gradient, gradient_of_one, rtol=0, atol=max(2e-4 * scale, 1e-6))
    if scale > 1e-6:
        np.testing.assert_allclose(weight, weight_of_one, rtol=0, atol=2e-4 * np.abs(weight_of_one).max())


@pytest.mark.slow
@counts
@pytest.mark.parametrize("way", ["pmap", "sharded"])
def test_four_devices_take_the_steps_of_one(way, accumulate):
    assert len(jax.devices()) == 4
    assert_same_steps(parallel_steps.take_steps(way, accumulate), accumulate)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@functools.cache
def results_of_two_processes(folder):
    coordinator = f"127.0.0.1:{free_port()}"
    program, places = (
        Path(__file__).with_name("one_of_several.py"),
        [Path(folder) / f"{number}.pickle" for number in range(2)],
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(program), coordinator, "2", str(number), str(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for number, place in enumerate(places)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return [pickle.loads(place.read_bytes()) for place in places]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return results_of_two_processes(tmp_path_factory.mktemp("processes"))


@pytest.mark.slow
@counts
@pytest.mark.parametrize("way", ["pmap", "sharded"])
def test_two_processes_of_two_devices_take_the_steps_of_one_device(way, accumulate, two_processes):
    for found in two_processes:
        assert_same_steps(found[f"{way} {accumulate}"], accumulate)


@pytest.mark.slow
def test_parts_of_a_batch_give_the_mean_gradient_of_the_parts():
    experiment = override(tiny.EXPERIMENT, ["optim.accumulate=2"])
    state, batch = init_state(jax.random.key(0), experiment), tiny.random_batch()
    both, _ = jax.jit(functools.partial(train_step, experiment=experiment))(state, batch, tiny.KEY)
    total = (batch.labelled & batch.valid[:, None]).sum()
    part = functools.partial(step_module._part_of_step, state, total, tiny.KEY, experiment, None, None, None)
    statistics, found = state.variables["batch_stats"], []
    for begin in range(2):
        # Every second person, and the batch norm's statistics one after the other.
        statistics, one = jax.jit(part)(statistics, jax.tree.map(lambda leaf, b=begin: leaf[b::2], batch))
        found.append(one[0])
    gradient = jax.tree.map(jnp.add, *found)
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    scale = jnp.minimum(1, experiment.optim.clip / norm)
    moment = jax.tree.map(lambda leaf: 0.1 * scale * leaf, gradient)
    assert_close(moments(both), moment, rtol=1e-3, atol=1e-6)
    assert_close(both.variables["batch_stats"], statistics, rtol=1e-5, atol=1e-6)


def moments(state):
    """Adam's first moment: a tenth of the clipped gradient after one step."""
    return optax.tree_utils.tree_get(state.optimizer, "mu")


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [pmap_step, sharded_step])
def test_a_step_frees_the_state_of_the_one_before_and_not_the_first(mapped):
    step = mapped(functools.partial(train_step, experiment=tiny.EXPERIMENT))
    first = init_state(jax.random.key(0), tiny.EXPERIMENT)
    second, _ = step(first, tiny.random_batch(), tiny.KEY)
    third, _ = step(second, tiny.random_batch(1), tiny.KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(second.variables))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((first, third)))


@pytest.mark.parametrize("mapped", [pmap_step, sharded_step])
def test_a_batch_that_cannot_be_split_is_refused_before_the_step(mapped):
    def never(*_, **__):
        raise AssertionError("the step was taken")

    batch = jax.tree.map(lambda leaf: leaf[:3], tiny.random_batch())
    with pytest.raises(ValueError, match="a batch of 3 cannot be split evenly over 4 devices"):
        mapped(never)(tiny.first_state(), batch, tiny.KEY)
