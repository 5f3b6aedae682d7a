"""Ten steps of the tiny experiment, mapped in each way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from rmpe_jax.config import override
from rmpe_jax.train.parallel import pmap_step, sharded_step
from rmpe_jax.train.step import init_state, train_step

STEPS, BATCH = 10, 8


def experiment_of(accumulate):
    """A rate so low that rounding, which Adam blows up to whole steps where a gradient is zero, stays small."""
    return override(
        tiny.EXPERIMENT, [f"optim.batch={BATCH}", f"optim.accumulate={accumulate}", "optim.learning_rate=5e-4"]
    )


def batch_of(number):
    """Eight people, the same wherever they are made."""
    halves = tiny.random_batch(number), tiny.random_batch(number + 100)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *halves)
    return dataclasses.replace(both, index=np.arange(BATCH, dtype=np.int32))


WAYS = {"one device": lambda step: jax.jit(step), "pmap": pmap_step, "sharded": sharded_step}


def take_steps(way, accumulate, share=slice(None)):
    """Every metric of every step; the average weights, with statistics, and Adam's mean gradient at the end."""
    experiment = experiment_of(accumulate)
    step = WAYS[way](functools.partial(train_step, experiment=experiment))
    state, found = init_state(jax.random.key(0), experiment), []
    for number in range(STEPS):
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[share]), batch_of(number))
        state, metrics = step(state, batch, tiny.KEY)
        found.append({name: float(np.asarray(value)) for name, value in metrics.items()})
    mean = optax.tree_utils.tree_get(state.optimizer, "mu")
    return found, jax.tree.map(np.asarray, {**state.average, "gradients": mean})
