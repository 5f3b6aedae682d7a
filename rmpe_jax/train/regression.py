"""DeepPose's part of a training step: the summed squared error of every stage, on simulated errors of the one before.

Reference: Toshev and Szegedy, CVPR 2014: eq. 2 (the loss), section 3.2 (the cascade). Differs in that all stages learn
at once. The paper trains one after the other, and draws 40 displacements for each joint of each example from a normal
fitted to the errors of the finished stage. Here a stage sees ``displacements`` fresh ones of random joints in every
step, from a normal fitted to the errors that the stage before makes now (their running mean and variance, in diameters
of the pose); after 40 k / ``displacements`` epochs it has seen 40 for each joint.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rmpe_jax.config import DeepPoseConfig, Experiment
from rmpe_jax.geometry.affine import compose, invert_affine, transform_points
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.models.deep_pose import (
    apply_stage_training,
    dropout_masks,
    error_name,
    normalised_from_points,
    pose_diameter,
    stage_name,
    stage_of,
    surroundings,
)
from rmpe_jax.proposals.generators import Generator
from rmpe_jax.records import PoseBatch
from rmpe_jax.train.augment import TrainingCrop, coloured, example_keys, training_crops
from rmpe_jax.train.state import TrainState

# A joint is right within this share of the pose's diameter: what the confidence learns, and PCK@0.2 counts.
_RIGHT = 0.2
# How much of the running mean and variance of a stage's errors stays in each step.
_MOMENTUM = 0.95
# Weight of the confidence's cross-entropy, which shares no weights with the positions.
_CONFIDENCE = 0.01


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Shown:
    """What a stage sees of n pictures, and what it should say about j joints of each."""

    images: Float[Array, "*b n h w 3"]  # RGB in [0, 1]
    joint: Int[Array, "*b n j"]  # which joints are asked for
    target: Float[Array, "*b n j 2"]  # where they are, normalised by the picture
    counted: Bool[Array, "*b n j"]  # labelled
    diameter: Float[Array, "*b n"]  # of the pose, pixels of the picture


def regression_part(
    state: TrainState,
    total: Array,
    key: Array,
    experiment: Experiment,
    generator: Generator | None,
    axis_name: str | None,
    statistics: Any,
    batch: PoseBatch,
) -> tuple[Any, tuple[Any, dict[str, Array]]]:
    """Batch statistics after some examples; their gradient, and their share of the loss and of the counts.

    Args:
        state: before the step.
        total: labelled joints of the whole batch, by which the loss is divided.
        key: of the run.
        experiment: the settings.
        generator: of proposals.
        axis_name: mapped axis over which statistics are averaged.
        statistics: ``batch_stats`` before these examples.
        batch: the examples.
    """
    config: Any = experiment.model
    keys = example_keys(key, state.step, batch)
    crops = training_crops(batch, keys, experiment=experiment, generator=generator)
    diameter = partial(pose_diameter, skeleton=experiment.joints, size=config.input_size)
    diameters = jax.vmap(diameter)(crops.points, crops.labelled)
    shown = [_person(crops, diameters, config)]
    for number in range(1, config.stages):
        errors = statistics[error_name(number - 1)]
        around = partial(_surroundings, errors=errors, config=config)
        each = jax.vmap(around)(_keys(keys, 2 * number), batch.canvas, crops, diameters)
        shown.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), each))

    def loss_of(params):
        changed, losses, all_right = {}, [], []
        for number, seen in enumerate(shown):
            variables = stage_of({"params": params, "batch_stats": statistics}, number)
            kept = _masks(_keys(keys, 2 * number + 1), len(seen.images), config)
            (positions, logits), new = apply_stage_training(
                variables, seen.images, config, joints=experiment.joints.size, kept=kept, axis_name=axis_name
            )
            positions = jnp.take_along_axis(positions, seen.joint[..., None], 1)
            logits = jnp.take_along_axis(logits, seen.joint, 1)
            off, right = _compare(positions, seen, config)
            changed[stage_name(number)] = new
            if number < config.stages - 1:
                old, joints = statistics[error_name(number)], experiment.joints.size
                changed[error_name(number)] = _running(old, off, seen, joints=joints, axis_name=axis_name)
            # Of a later stage's random joints there are fewer, or more, than labelled ones.
            share = crops.labelled.size / seen.joint.size / total
            squared = ((positions - seen.target) ** 2).sum(-1)
            unsure = jax.nn.softplus(logits) - logits * right
            losses.append(share * jnp.stack([jnp.where(seen.counted, each, 0).sum() for each in (squared, unsure)]))
            all_right.append((right & seen.counted).sum())
        position_loss, confidence_loss = jnp.stack(losses).sum(0)
        return position_loss + _CONFIDENCE * confidence_loss, (changed, position_loss, all_right[0])

    gradient, (changed, loss, correct) = jax.grad(loss_of, has_aux=True)(state.variables["params"])
    counts = {"correct": correct, "counted": crops.labelled.sum()}
    return changed, (gradient, {"loss": loss, "parallel_loss": jnp.zeros(()), **counts})


def _person(crops: TrainingCrop, diameters: Float[Array, " b"], config: DeepPoseConfig) -> _Shown:
    """What the first stage sees: the crop, with all joints."""
    joint = jnp.broadcast_to(jnp.arange(crops.labelled.shape[1])[None], crops.labelled.shape)
    return _Shown(
        crops.image, joint, normalised_from_points(crops.points, config.input_size), crops.labelled, diameters
    )


def _surroundings(
    key: Array,
    canvas: Array,
    crop: TrainingCrop,
    diameter: Float[Array, ""],
    *,
    errors: dict[str, Float[Array, "k 2"]],
    config: DeepPoseConfig,
) -> _Shown:
    """What a later stage sees of one person: random joints, as if the stage before had been off by random errors."""
    joint_key, error_key = jax.random.split(key)
    joint = jax.random.randint(joint_key, (config.displacements,), 0, len(crop.points))
    deviation = jnp.sqrt(errors["var"])[joint]
    error = errors["mean"][joint] + deviation * jax.random.normal(error_key, (config.displacements, 2))
    truth = crop.points[joint]
    crop_from_joint = surroundings(truth + error * diameter, diameter, config)

    def see(matrix):
        image = crop_image(canvas, compose(crop.canvas_from_crop, matrix), config.input_size)
        return coloured(image, crop.colour[None, None])

    local = jax.vmap(lambda matrix, point: transform_points(invert_affine(matrix), point))(crop_from_joint, truth)
    # The square around a joint is ``side`` diameters wide.
    local_diameter = jnp.full(config.displacements, min(config.input_size) / config.side)
    target = normalised_from_points(local, config.input_size)[:, None]
    return _Shown(jax.vmap(see)(crop_from_joint), joint[:, None], target, crop.labelled[joint][:, None], local_diameter)


def _compare(
    positions: Float[Array, "n j 2"], seen: _Shown, config: DeepPoseConfig
) -> tuple[Float[Array, "n j 2"], Bool[Array, "n j"]]:
    """How far off positions are, in diameters, and which are right; nothing flows back."""
    scale = jnp.array(config.input_size[::-1], jnp.float32)[None, None]
    off = lax.stop_gradient(positions - seen.target) * scale / seen.diameter[:, None, None]
    return off, jnp.linalg.norm(off, axis=-1) <= _RIGHT


def _running(
    old: dict[str, Array], off: Float[Array, "n j 2"], seen: _Shown, *, joints: int, axis_name: str | None
) -> dict[str, Array]:
    """The running mean and variance of each joint's error, in diameters; errors above one count as one."""
    which = jax.nn.one_hot(seen.joint, joints) * seen.counted[..., None]
    off = jnp.clip(off, -1.0, 1.0)
    sums = which.sum((0, 1)), jnp.einsum("njk,njd->kd", which, off), jnp.einsum("njk,njd->kd", which, off**2)
    count, first, second = sums if axis_name is None else lax.psum(sums, axis_name)
    known = jnp.maximum(count, 1)[:, None]
    mean, keep = first / known, jnp.where(count > 0, _MOMENTUM, 1.0)[:, None]
    variance = jnp.maximum(second / known - mean**2, 0.0)
    return {"mean": keep * old["mean"] + (1 - keep) * mean, "var": keep * old["var"] + (1 - keep) * variance}


def _keys(keys: Array, number: int) -> Array:
    """Keys for one more use of each example's."""
    # The crop's own randomness has the keys as they are.
    return jax.vmap(lambda key: jax.random.fold_in(key, 1000 + number))(keys)


def _masks(keys: Array, count: int, config: DeepPoseConfig) -> Float[Array, "n 2 f"] | None:
    """Masks of dropout for the pictures of every example."""
    if config.backbone != "alexnet" or not config.dropout:
        return None
    each = jax.vmap(lambda key: jax.random.split(key, count // len(keys)))(keys).reshape(-1)
    return jax.vmap(partial(dropout_masks, config=config))(each)
