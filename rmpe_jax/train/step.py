"""One training step and one evaluation step: pure functions, the same on one device and under pmap."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from rmpe_jax.config import DeepPoseConfig, Experiment, HourglassConfig, OptimConfig, PersonDetectorConfig
from rmpe_jax.geometry.affine import compose, invert_affine, transform_points
from rmpe_jax.geometry.remapping import crop_from_stn
from rmpe_jax.geometry.sampling import crop_images
from rmpe_jax.heatmaps import decode_heatmaps
from rmpe_jax.models.localization import theta_directions
from rmpe_jax.models.person_detector import with_own_maps
from rmpe_jax.models.rmpe import (
    LOCALIZATION,
    SPPE,
    apply_estimator_training,
    has_stn,
    init_estimator,
    join_parts,
    parallel_heatmaps,
    part_of,
    remap_crops,
    stack_estimator,
)
from rmpe_jax.models.single_person import LEVELS, crop_people, estimate_joints
from rmpe_jax.proposals.generators import Generator
from rmpe_jax.records import PoseBatch, SceneBatch
from rmpe_jax.train.augment import TrainingCrop, coloured, example_keys, heatmap_targets, training_crops
from rmpe_jax.train.detection import detection_part
from rmpe_jax.train.differences import by_differences
from rmpe_jax.train.losses import heatmap_loss
from rmpe_jax.train.regression import regression_part
from rmpe_jax.train.state import TrainState

Metrics = dict[str, Array]


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Gradients clipped, then AdamW, or RMSprop with Torch's constants, at the rates of ``learning_rate``."""
    schedule: Any = partial(learning_rate, config=config)
    if config.optimizer == "adamw":
        rule = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        rule = optax.rmsprop(schedule, decay=0.99, eps=1e-8, eps_in_sqrt=False)
        rule = optax.chain(optax.add_decayed_weights(config.weight_decay), rule)
    return optax.chain(optax.clip_by_global_norm(config.clip), rule)


def learning_rate(step: Array | int, *, config: OptimConfig) -> Float[Array, ""]:
    """The rate of a step: a linear rise, then a cosine down to zero, drops at shares of the run, or no change."""
    rate, warmup = config.learning_rate, min(config.warmup, config.steps // 2)
    if config.schedule == "cosine":
        return jnp.asarray(optax.warmup_cosine_decay_schedule(0.0, rate, warmup, config.steps)(step))
    rise = jnp.minimum(step / warmup, 1.0) if warmup else 1.0
    passed = jnp.asarray(0)
    if config.schedule == "steps":
        passed = (step >= jnp.array([round(share * config.steps) for share in config.drops])).sum()
    return jnp.asarray(rate * rise * config.drop**passed, jnp.float32)


def init_state(
    key: Array, experiment: Experiment, *, start: dict[str, Any] | None = None, frozen: dict[str, Any] | None = None
) -> TrainState:
    """The state before the first step.

    Args:
        key: of fresh variables.
        experiment: the settings.
        start: variables to begin with; an experiment with an STN also takes those of an hourglass alone, and a person
            detector those of an estimator, without what belongs to its joints' maps.
        frozen: variables of the parallel SPPE.
    """
    variables = init_estimator(key, experiment)
    if start is not None and has_stn(experiment) and SPPE not in start["params"]:
        start = join_parts(start, part_of(variables, LOCALIZATION))
    if start is not None and isinstance(experiment.model, PersonDetectorConfig):
        start = with_own_maps(start, variables)
    variables = stack_estimator(variables if start is None else start, experiment)
    variables = jax.tree.map(jnp.asarray, variables)
    optimizer = make_optimizer(experiment.optim).init(variables["params"])
    average, beside = jax.tree.map(jnp.copy, variables), jax.tree.map(jnp.asarray, frozen or {})
    return TrainState(jnp.zeros((), jnp.int32), variables, average, optimizer, beside)


def train_step(
    state: TrainState,
    batch: PoseBatch | SceneBatch,
    key: Array,
    *,
    experiment: Experiment,
    parallel: HourglassConfig | None = None,
    generator: Generator | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Augments, predicts, and takes one step of the optimiser.

    Each example's randomness comes from (key, step, its index in the global batch), so the result does not depend on
    how the batch is spread over devices.

    Args:
        state: before the step.
        batch: this device's share of the global batch: people, or scenes for a person detector.
        key: the run's key, the same at every step.
        experiment: the settings.
        parallel: the architecture of ``state.frozen``; the experiment's own by default.
        generator: of proposals, in the experiment's skeleton; by default the law that the experiment names.
        axis_name: the mapped axis over which gradients, batch statistics and metrics are summed; None for one device.

    Returns:
        The next state, and ``loss`` (per labelled joint, or per scene of a person detector; summed over stacks or
        stages; with the parallel SPPE's), ``parallel_loss`` (its part of it), ``accuracy`` (of an hourglass the share
        of labelled joints inside the crop that the last stack puts within half a tenth of the map of its label, of
        DeepPose that of labelled joints that the first stage puts within a fifth of the torso, of a person detector
        that of people whose box is right where it is read at their centre), ``gradient_norm`` (before clipping) and
        ``learning_rate``.
    """
    optim = experiment.optim
    counted = batch.valid if isinstance(batch, SceneBatch) else batch.labelled & batch.valid[:, None]
    total = jnp.maximum(_sum_over(counted.sum(), axis_name), 1)
    if isinstance(experiment.model, DeepPoseConfig):
        one_part = partial(regression_part, state, total, key, experiment, generator, axis_name)
    elif isinstance(experiment.model, PersonDetectorConfig):
        one_part = partial(detection_part, state, total, key, experiment, axis_name)
    else:
        one_part = partial(_part_of_step, state, total, key, experiment, parallel, generator, axis_name)
    statistics, (gradient, sums) = _accumulated(one_part, state.variables["batch_stats"], batch, optim.accumulate)
    gradient, sums = _sum_over((gradient, sums), axis_name)
    updates, optimizer = make_optimizer(optim).update(gradient, state.optimizer, state.variables["params"])
    if has_stn(experiment):
        updates = _scaled(updates, experiment.localization.rate)
    params = optax.apply_updates(state.variables["params"], updates)
    variables = {"params": params, "batch_stats": statistics}
    # The average starts as a short one, so that the first weights do not linger in it.
    decay = jnp.minimum(optim.average, (1 + state.step) / (10 + state.step))
    average: Any = optax.incremental_update(variables, state.average, 1 - decay)
    metrics = {name: sums[name] for name in ("loss", "parallel_loss")}
    metrics["accuracy"] = sums["correct"] / jnp.maximum(sums["counted"], 1)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    metrics["learning_rate"] = learning_rate(state.step, config=optim)
    return TrainState(state.step + 1, variables, average, optimizer, state.frozen), metrics


def _accumulated(
    part: Callable[[Any, Any], tuple[Any, Any]], statistics: Any, batch: PoseBatch | SceneBatch, count: int
) -> tuple[Any, Any]:
    """Statistics after all parts of a batch, one after the other, and the sums of what the parts give.

    Part n takes every ``count``-th example from the n-th on, so that parts are the same however many devices there are.
    """
    if count == 1:
        return part(statistics, batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(part, statistics, jax.tree.map(lambda leaf: leaf[0], parts))[1]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry, one):
        statistics, total = carry
        statistics, found = part(statistics, one)
        return (statistics, jax.tree.map(jnp.add, total, found)), None

    # On a CPU the gradient of a convolution is many times slower inside a loop (jax-ml/jax#12868).
    unroll = count if jax.default_backend() == "cpu" else 1
    return lax.scan(add, (statistics, nothing), parts, unroll=unroll)[0]


def _part_of_step(
    state: TrainState,
    total: Array,
    key: Array,
    experiment: Experiment,
    parallel: HourglassConfig | None,
    generator: Generator | None,
    axis_name: str | None,
    statistics: Any,
    batch: PoseBatch,
) -> tuple[Any, tuple[Any, Metrics]]:
    """Batch statistics after some examples; their gradient, and their share of the loss and of the counts."""
    crops, targets, centred = _examples(state.step, batch, key, experiment, generator)
    compare = jax.vmap(partial(heatmap_loss, positive_weight=experiment.optim.positive_weight), in_axes=(1, 0, 0))
    sample = partial(_resample, batch.canvas, crops, experiment=experiment)
    config = experiment.localization

    def beside_of(images):
        maps = parallel_heatmaps(state.frozen, images, parallel or experiment.hourglass, joints=experiment.joints.size)
        return compare(maps, centred, crops.labelled)

    def loss_of(params):
        variables = {"params": params, "batch_stats": statistics}
        made, changed = apply_estimator_training(
            variables, crops.image, sample, experiment=experiment, axis_name=axis_name
        )
        loss, beside = compare(made.maps, targets, crops.labelled).sum() / total, jnp.zeros(())
        if state.frozen:
            if config.parallel_step:
                step, directions = config.parallel_step, theta_directions(config)
                each = by_differences(
                    lambda theta: beside_of(sample(theta)), made.theta, step=step, directions=directions
                )
            else:
                each = beside_of(made.images)
            if "parallel" not in config.paths.split(","):
                each = lax.stop_gradient(each)
            beside = config.parallel_weight * each.sum() / total
        return loss + beside, (changed, made.maps[-1], beside)

    found, gradient = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
    loss, (changed, maps, beside) = found
    correct, counted = _map_accuracy(maps, targets, crops.labelled)
    sums = {"loss": loss, "parallel_loss": beside, "correct": correct, "counted": counted}
    return changed, (gradient, sums)


def _scaled(updates: Any, rate: float) -> Any:
    """Updates with those of the localization network multiplied."""
    return {**updates, LOCALIZATION: jax.tree.map(lambda update: rate * update, updates[LOCALIZATION])}


def _examples(
    step: Array, batch: PoseBatch, key: Array, experiment: Experiment, generator: Generator | None = None
) -> tuple[TrainingCrop, Float[Array, "b h w k"], Float[Array, "b h w k"]]:
    """Augmented crops, their targets, and the targets of the parallel SPPE: the joints in the perfect crop."""
    crops = training_crops(batch, example_keys(key, step, batch), experiment=experiment, generator=generator)
    config, sigma = experiment.hourglass, experiment.optim.sigma
    frames = {"size": config.input_size, "output_size": config.output_size, "align_corners": config.align_corners}
    target = jax.vmap(partial(heatmap_targets, **frames, sigma=sigma))
    centred_from_crop = jax.vmap(compose)(jax.vmap(invert_affine)(crops.canvas_from_centred), crops.canvas_from_crop)
    centred = jax.vmap(transform_points)(centred_from_crop, crops.points)
    return crops, target(crops.points, crops.labelled), target(centred, crops.labelled)


def _resample(
    canvas: Array, crops: TrainingCrop, theta: Float[Array, "b 2 3"], *, experiment: Experiment
) -> Float[Array, "b h w 3"]:
    """The crops along theta: sampled once from the canvas along both maps, or again from themselves."""
    size, corners = experiment.model.input_size, experiment.hourglass.align_corners
    inner = jax.vmap(lambda each: crop_from_stn(each, size, align_corners=corners))(theta)
    if experiment.localization.source == "crop":
        return crop_images(crops.image, inner, size)
    maps = jax.vmap(compose)(crops.canvas_from_crop, inner)
    return coloured(crop_images(canvas, maps, size), crops.colour[:, None, None])


def _sum_over(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else lax.psum(tree, axis_name)


def _map_accuracy(
    maps: Float[Array, "b h w k"], targets: Float[Array, "b h w k"], labelled: Bool[Array, "b k"]
) -> tuple[Array, Array]:
    """Counts of correct and of counted joints: the training accuracy of Newell et al., within 0.5 x map / 10."""
    counted = labelled & (targets.max((1, 2)) > 0.5)
    predicted, _ = jax.vmap(decode_heatmaps)(maps)
    truth, _ = jax.vmap(decode_heatmaps)(targets)
    near = jnp.linalg.norm(predicted - truth, axis=-1) <= 0.05 * maps.shape[1]
    return (near & counted).sum(), counted.sum()


def predict_step(variables: dict[str, Any], batch: PoseBatch, *, experiment: Experiment) -> Float[Array, "b k 2"]:
    """Joints in canvas pixels, estimated in the plain crop of each person's extended box."""

    def person(canvas, box):
        crops, canvas_from_crop = crop_people(canvas, box[None], experiment=experiment)
        crops, canvas_from_crop = remap_crops(
            variables, canvas, crops, canvas_from_crop, experiment=experiment, levels=LEVELS
        )
        joints = partial(estimate_joints, experiment=experiment, flip_test=False)
        return joints(variables, canvas, crops, canvas_from_crop)[0][0]

    return jax.vmap(person)(batch.canvas, batch.box)
