"""The smallest training run that has every part: settings, a batch, and its compiled step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, HourglassConfig, OptimConfig
from rmpe_jax.records import PoseBatch
from rmpe_jax.train.step import init_state, train_step

SKELETON, JOINTS, CANVAS, BATCH = "lsp_14", 14, 24, 4
EXPERIMENT = Experiment(
    name="tiny",
    skeleton=SKELETON,
    model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(16, 16)),
    data=DataConfig(canvas=CANVAS),
    # Mild changes: the batch can still be learned by heart.
    augment=AugmentConfig(flip=0.5, scale=0.05, shift=0.02, rotation=5.0, colour=0.1),
    optim=OptimConfig(steps=60, batch=BATCH, learning_rate=5e-3, warmup=2, average=0.2, sigma=1.0),
)
KEY = jax.random.key(7)


def random_batch(seed=0):
    """Four people on noisy canvases; about a fifth of the joints has no label."""
    rng = np.random.default_rng(seed)
    return PoseBatch(
        canvas=jnp.array(rng.integers(0, 256, (BATCH, CANVAS, CANVAS, 3)), jnp.uint8),
        points=jnp.array(rng.uniform(6, 18, (BATCH, JOINTS, 2)), jnp.float32),
        labelled=jnp.array(rng.random((BATCH, JOINTS)) < 0.8),
        box=jnp.array(rng.uniform(-1, 1, (BATCH, 4)) + [6, 6, 18, 18], jnp.float32),
        index=jnp.arange(BATCH, dtype=jnp.int32),
        valid=jnp.ones(BATCH, bool),
    )


@functools.cache
def first_state():
    return init_state(jax.random.key(0), EXPERIMENT)


@functools.cache
def compiled_step():
    """``train_step`` of the tiny experiment on one device: state, batch, key -> state, metrics."""
    return jax.jit(functools.partial(train_step, experiment=EXPERIMENT))


def train(state, batches):
    """The state after one step on each batch, and the losses."""
    losses = []
    for batch in batches:
        state, metrics = compiled_step()(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    return state, losses
