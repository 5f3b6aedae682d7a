"""Training DPG's network: a detector's boxes against random ones, binary cross-entropy, half of each.

The random boxes are those among which DPG later chooses, so that the odds of what the network says are the ratio of the
two densities (``proposals.scored``).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from rmpe_jax.config import OptimConfig
from rmpe_jax.errors import RmpeError
from rmpe_jax.models.proposal_scorer import Variables, apply_scorer, init_scorer
from rmpe_jax.proposals.offsets import moved_box
from rmpe_jax.proposals.scored import random_boxes, score_boxes
from rmpe_jax.skeleton import Skeleton
from rmpe_jax.train.step import make_optimizer

# Random boxes against each detection: more of them, less noise; the pose image is drawn only once.
_RANDOM = 16
_BATCH, _RATE, _DECAY, _AVERAGE = 64, 2e-3, 0.02, 0.99


def scorer_loss(
    variables: Variables,
    key: Array,
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    offset: Float[Array, "4"],
) -> Float[Array, ""]:
    """Binary cross-entropy of one detection and of random boxes of the same person, both with weight one half.

    Args:
        variables: of the network.
        key: PRNG key of the random boxes.
        box: the person's own.
        points: joints, same frame.
        labelled: which carry a label.
        offset: of the detection from the own box, over its sides.
    """
    boxes = jnp.concatenate([moved_box(box, offset)[None], random_boxes(key, box, num=_RANDOM)])
    logits = score_boxes(apply_scorer, variables, boxes, box, points, labelled)
    return (jax.nn.softplus(-logits[0]) + jax.nn.softplus(logits[1:]).mean()) / 2


def mirrored(
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    offset: Float[Array, "4"],
    flip_order: tuple[int, ...],
) -> tuple[Float[Array, "k 2"], Bool[Array, "k"], Float[Array, "4"]]:
    """The person and the detection mirrored about the middle of the own box: joints, labels, offset."""
    order = np.array(flip_order)
    there = jnp.stack([box[0] + box[2] - points[:, 0], points[:, 1]], -1)
    return there[order], labelled[order], offset[jnp.array([2, 1, 0, 3])] * jnp.array([-1.0, 1.0, -1.0, 1.0])


def fit_scorer(
    boxes: Float[np.ndarray, "n 4"],
    points: Float[np.ndarray, "n k 2"],
    labelled: Bool[np.ndarray, "n k"],
    offsets: Float[np.ndarray, "m 4"],
    person: Int[np.ndarray, "m"],
    skeleton: Skeleton,
    *,
    steps: int = 2000,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[Variables, float]:
    """Trains the network of DPG.

    Args:
        boxes: people's own.
        points: their joints.
        labelled: which of them carry a label.
        offsets: of detections from the own boxes, over their sides.
        person: whose each detection is.
        skeleton: of the people.
        steps: of 64 detections each, mirrored at random.
        seed: of variables, batches and random boxes.
        progress: wraps the loop over the steps.

    Returns:
        Variables, the running average of the steps', and the mean loss of the last hundred steps.

    Raises:
        RmpeError: the loss became not finite.
    """
    key = jax.random.key(seed)
    people = jax.tree.map(
        lambda array: jnp.asarray(array, jnp.float32), (boxes, np.where(labelled[..., None], points, 0.0))
    )
    known, given, whose = jnp.asarray(labelled), jnp.asarray(offsets, jnp.float32), jnp.asarray(person)
    optimizer = make_optimizer(
        OptimConfig(steps=steps, batch=_BATCH, learning_rate=_RATE, warmup=100, weight_decay=_DECAY)
    )

    def batch_loss(variables: Variables, key: Array):
        def one(key):
            which, flip, boxes = jax.random.split(key, 3)
            detection = jax.random.randint(which, (), 0, len(given))
            box, points = (part[whose[detection]] for part in people)
            seen = points, known[whose[detection]], given[detection]
            other = mirrored(box, *seen, skeleton.flip_order)
            turn = jax.random.bernoulli(flip)
            seen = jax.tree.map(lambda a, b: jnp.where(turn, b, a), seen, other)
            return scorer_loss(variables, boxes, box, *seen)

        return jax.vmap(one)(jax.random.split(key, _BATCH)).mean()

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(variables, average, state, number):
        loss, gradient = jax.value_and_grad(batch_loss)(variables, jax.random.fold_in(key, number))
        updates, state = optimizer.update(gradient, state, variables)
        changed: Any = optax.apply_updates(variables, updates)
        weight = 1 - jnp.minimum(_AVERAGE, (1 + number) / (10 + number))
        return changed, optax.incremental_update(changed, average, weight), state, loss

    variables = jax.tree.map(jnp.asarray, init_scorer(key))
    average, state = jax.tree.map(jnp.copy, variables), optimizer.init(variables)
    losses, last = [], np.nan
    for number in progress(range(steps)):
        variables, average, state, loss = step(variables, average, state, jnp.asarray(number))
        losses.append(loss)
        if len(losses) % 100 == 0 or len(losses) == steps:
            last = float(jnp.stack(losses[-100:]).mean())
            if not np.isfinite(last):
                raise RmpeError(f"training the proposal scorer: the loss is {last} at step {len(losses)}")
    return jax.tree.map(np.asarray, average), last
