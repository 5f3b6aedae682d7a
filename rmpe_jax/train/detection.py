"""A person detector's part of a training step: which pixels are people's centres, and how large their boxes are.

The loss of an example is the focal loss of CenterNet over its centre map, plus the errors of size and of offset at the
pixels around each centre, relative to the person's sides; of every stack, and only where it is known who is there.

References: Zhou et al., "Objects as Points", 2019, eqs 1 to 4; Liu et al., "Training-Time-Friendly Network", AAAI 2020,
for centres as wide as people and sizes learned around them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmpe_jax.config import Experiment
from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.models.person_detector import STRIDE, DetectorMaps, apply_person_detector_training, boxes_of_maps
from rmpe_jax.records import SceneBatch
from rmpe_jax.train.augment import example_keys
from rmpe_jax.train.mosaics import TrainingScene, training_scenes
from rmpe_jax.train.state import TrainState

# Deviation of a centre's Gaussian over the side of its box, and the least, pixels of the map.
_WIDTH, _NARROWEST = 0.09, 0.5
# Exponents of the focal loss: of what is not yet right, and of the distance from a centre.
_FOCUS, _NEARNESS = 2, 4
# Pixels learn the box of a centre where its Gaussian is higher than this.
_AROUND = 0.2
# Weight of sizes and offsets.
_BOX_WEIGHT = 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectorTargets:
    """What the maps of one example should say."""

    heat: Float[Array, "*b h w"]  # 1 at the centre of a person, falling as a Gaussian around it
    centre: Bool[Array, "*b h w"]  # the pixels of centres
    box: Float[Array, "*b h w 4"]  # of the person whose centre is nearest: x, y, width, height, pixels of the map
    weight: Float[Array, "*b h w"]  # of the pixel for size and offset; one for each person in sum
    known: Bool[Array, "*b h w"]  # where a centre that is found is right or wrong
    place: Any  # (n, 2) y, x of each box's centre, pixels of the map
    person: Bool[Array, "*b n"]  # which boxes are to be found


def detector_targets(scene: TrainingScene) -> DetectorTargets:
    """The targets of one example."""
    height, width = scene.known.shape
    boxes = jnp.where(scene.person[:, None], (scene.boxes + 0.5) / STRIDE - 0.5, 0.0)
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    nearest = jnp.clip(jnp.round(centre), 0, jnp.array([[width - 1.0, height - 1.0]]))
    deviation = jnp.maximum(_WIDTH * side, _NARROWEST)

    def bell(axis, count):
        distance = jnp.arange(count, dtype=float)[None] - nearest[:, axis, None]
        return jnp.exp(-0.5 * (distance / deviation[:, axis, None]) ** 2)

    bells = bell(1, height)[:, :, None] * bell(0, width)[:, None] * scene.person[:, None, None]
    owner, heat = bells.argmax(0), bells.max(0)
    around = jnp.where(heat > _AROUND, heat, 0.0)
    owned = jax.ops.segment_sum(around.ravel(), owner.ravel(), len(boxes))
    weight = around / jnp.maximum(owned, 1e-6)[owner]
    place = nearest[:, ::-1].astype(jnp.int32)
    centres = jnp.zeros((height, width), bool).at[place[:, 0], place[:, 1]].max(scene.person)
    box = jnp.concatenate([centre, side], -1)[owner]
    return DetectorTargets(heat, centres, box, weight, scene.known, place, scene.person)


def detector_loss(maps: DetectorMaps, targets: DetectorTargets) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The losses of one example's maps: of centres, and of sizes and offsets; both sums.

    centres: - sum_centres (1 - p)^2 log p - sum_others (1 - heat)^4 p^2 log(1 - p), the latter where ``known``.
    boxes: sum_pixels weight (|log w' / w| + |log h' / h| + |dx' - dx| / w + |dy' - dy| / h).
    """
    p = jax.nn.sigmoid(maps.heat)
    right = (1 - p) ** _FOCUS * jax.nn.softplus(-maps.heat)
    wrong = (1 - targets.heat) ** _NEARNESS * p**_FOCUS * jax.nn.softplus(maps.heat)
    centres = jnp.where(targets.centre, right, jnp.where(targets.known, wrong, 0.0)).sum()
    height, width = targets.heat.shape
    x, y = jnp.meshgrid(jnp.arange(width, dtype=float), jnp.arange(height, dtype=float))
    side, offset = targets.box[..., 2:], targets.box[..., :2] - jnp.stack([x, y], -1)
    off = jnp.abs(maps.log_size - jnp.log(side)) + jnp.abs(maps.offset - offset) / side
    return centres, (targets.weight * off.sum(-1)).sum()


def detection_part(
    state: TrainState,
    total: Array,
    key: Array,
    experiment: Experiment,
    axis_name: str | None,
    statistics: Any,
    batch: SceneBatch,
) -> tuple[Any, tuple[Any, dict[str, Array]]]:
    """Batch statistics after some examples; their gradient, and their share of the loss and of the counts.

    Args:
        state: before the step.
        total: scenes of the whole batch, by which the loss is divided.
        key: of the run.
        experiment: the settings.
        axis_name: mapped axis over which statistics are averaged.
        statistics: ``batch_stats`` before these examples.
        batch: the examples.
    """
    config: Any = experiment.model
    scenes = training_scenes(batch, example_keys(key, state.step, batch), experiment=experiment)
    targets = jax.vmap(detector_targets)(scenes)
    compare = jax.vmap(jax.vmap(detector_loss), in_axes=(0, None))

    def loss_of(params):
        variables = {"params": params, "batch_stats": statistics}
        maps, changed = apply_person_detector_training(variables, scenes.image, config, axis_name=axis_name)
        centres, boxes = (each.sum() for each in compare(maps, targets))
        last = jax.tree.map(lambda leaf: leaf[-1], maps)
        return (centres + _BOX_WEIGHT * boxes) / total, (changed, last)

    found, gradient = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
    loss, (changed, maps) = found
    right = jax.vmap(_boxes_right)(maps, targets, scenes.boxes)
    counts = {"correct": right.sum(), "counted": scenes.person.sum()}
    return changed, (gradient, {"loss": loss, "parallel_loss": jnp.zeros(()), **counts})


def _boxes_right(maps: DetectorMaps, targets: DetectorTargets, boxes: Float[Array, "n 4"]) -> Bool[Array, "n"]:
    """Whose box, read at their centre, has an intersection over union of more than a half with theirs."""
    read = boxes_of_maps(maps)[targets.place[:, 0], targets.place[:, 1]]
    return targets.person & (box_iou(read, boxes) > 0.5)
