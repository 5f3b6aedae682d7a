"""One training step and one evaluation step: pure functions, the same on one device and under pmap."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from rmpe_jax.config import Experiment, OptimConfig
from rmpe_jax.heatmaps import decode_heatmaps
from rmpe_jax.models.hourglass import apply_hourglass_training, init_hourglass
from rmpe_jax.models.single_person import crop_people, estimate_heatmaps, read_poses
from rmpe_jax.records import PoseBatch
from rmpe_jax.train.augment import heatmap_targets, random_crop
from rmpe_jax.train.losses import heatmap_loss
from rmpe_jax.train.state import TrainState

Metrics = dict[str, Array]


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, clipped gradients, linear warm-up and a cosine down to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup, config.steps // 2), config.steps
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(schedule, weight_decay=config.weight_decay))


def init_state(key: Array, experiment: Experiment) -> TrainState:
    """The state before the first step."""
    variables = init_hourglass(key, experiment.model, joints=experiment.joints.size)
    variables = jax.tree.map(jnp.asarray, variables)
    optimizer = make_optimizer(experiment.optim).init(variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables, jax.tree.map(jnp.copy, variables), optimizer)


def train_step(
    state: TrainState, batch: PoseBatch, key: Array, *, experiment: Experiment, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Augments, predicts, and takes one step of the optimiser.

    Each example's randomness comes from (key, step, its index in the global batch), so the result does not depend on
    how the batch is spread over devices.

    Args:
        state: before the step.
        batch: this device's share of the global batch.
        key: the run's key, the same at every step.
        experiment: the settings.
        axis_name: the mapped axis over which gradients, batch statistics and metrics are summed; None for one device.

    Returns:
        The next state, and ``loss`` (per labelled joint, summed over stacks), ``accuracy`` (share of labelled joints
        inside the crop that the last stack puts within half a tenth of the map of its label) and ``gradient_norm``
        (before clipping).
    """
    model, optim = experiment.model, experiment.optim
    step_key = jax.random.fold_in(key, state.step)
    images, targets, labelled = jax.vmap(lambda *example: _example(step_key, *example, experiment=experiment))(
        batch.index, batch.canvas, batch.box, batch.points, batch.labelled & batch.valid[:, None]
    )
    total = _sum_over(labelled.sum(), axis_name)

    def loss_of(params):
        variables = {**state.variables, "params": params}
        joints = experiment.joints.size
        maps, statistics = apply_hourglass_training(variables, images, model, joints=joints, axis_name=axis_name)
        losses = jax.vmap(lambda *crop: heatmap_loss(*crop, positive_weight=optim.positive_weight), in_axes=(1, 0, 0))(
            maps, targets, labelled
        )
        return losses.sum() / jnp.maximum(total, 1), (statistics, maps[-1])

    (loss, (statistics, maps)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
    gradient, loss = _sum_over((gradient, loss), axis_name)
    updates, optimizer = make_optimizer(optim).update(gradient, state.optimizer, state.variables["params"])
    params = optax.apply_updates(state.variables["params"], updates)
    variables = {"params": params, "batch_stats": statistics}
    # The average starts as a short one, so that the first weights do not linger in it.
    decay = jnp.minimum(optim.average, (1 + state.step) / (10 + state.step))
    average: Any = optax.incremental_update(variables, state.average, 1 - decay)
    correct, counted = _sum_over(_map_accuracy(maps, targets, labelled), axis_name)
    accuracy = correct / jnp.maximum(counted, 1)
    metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, variables, average, optimizer), metrics


def _example(step_key, index, canvas, box, points, labelled, *, experiment: Experiment):
    size, output_size = experiment.model.input_size, experiment.model.output_size
    image, points, labelled = random_crop(
        jax.random.fold_in(step_key, index),
        canvas,
        box,
        points,
        labelled,
        config=experiment.augment,
        size=size,
        extension=experiment.data.extension,
        flip_order=experiment.joints.flip_order,
    )
    sigma = experiment.optim.sigma
    return image, heatmap_targets(points, labelled, size=size, output_size=output_size, sigma=sigma), labelled


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
    """Joints in canvas pixels, read from the plain crop of each person's extended box by the last stack."""

    def crop(canvas, box):
        crops, canvas_from_crop = crop_people(canvas, box[None], experiment=experiment)
        return crops[0], canvas_from_crop[0]

    crops, canvas_from_crop = jax.vmap(crop)(batch.canvas, batch.box)
    heatmaps = estimate_heatmaps(variables, crops, experiment=experiment, flip_test=False)
    return read_poses(heatmaps, canvas_from_crop, experiment=experiment)[0]
