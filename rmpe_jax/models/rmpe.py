"""The estimator of a single person with its spatial re-mapping: STN -> SPPE -> SDTN, and the frozen parallel SPPE.

Variables are those of the hourglass as they are or, with a localization network, ``{"params": {"sppe": ...,
"localization": ...}, "batch_stats": ...}``: ``part_of`` takes one network's out.

Reference: RMPE, Fang et al., ICCV 2017, section 3.1.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from rmpe_jax.config import DeepPoseConfig, Experiment, HourglassConfig, PersonDetectorConfig
from rmpe_jax.geometry.affine import compose
from rmpe_jax.geometry.remapping import crop_from_stn, sdtn, stn
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.models.deep_pose import deep_pose_shapes, init_deep_pose
from rmpe_jax.models.hourglass import (
    apply_hourglass,
    apply_hourglass_training,
    hourglass_shapes,
    init_hourglass,
    stack_variables,
    unstack_variables,
)
from rmpe_jax.models.localization import (
    apply_localization,
    apply_localization_training,
    init_localization,
    localization_shapes,
)
from rmpe_jax.models.person_detector import detector_shapes, init_person_detector

Variables = dict[str, Any]
SPPE, LOCALIZATION = "sppe", "localization"


def has_stn(experiment: Experiment) -> bool:
    """Whether the experiment has a localization network."""
    return experiment.localization.kind != "none"


def part_of(variables: Variables, part: str) -> Variables:
    """One network's ``{"params": ..., "batch_stats": ...}``."""
    return {collection: content[part] for collection, content in variables.items()}


def join_parts(sppe: Variables, localization: Variables) -> Variables:
    """The opposite of ``part_of``."""
    return {name: {SPPE: sppe[name], LOCALIZATION: localization[name]} for name in sppe}


def sppe_of(variables: Variables, experiment: Experiment) -> Variables:
    """The hourglass's variables, with or without an STN in front of it."""
    return part_of(variables, SPPE) if has_stn(experiment) else variables


def estimator_shapes(experiment: Experiment) -> Variables:
    """Shapes and dtypes of an experiment's variables."""
    if isinstance(experiment.model, DeepPoseConfig):
        return deep_pose_shapes(experiment.model, joints=experiment.joints.size)
    if isinstance(experiment.model, PersonDetectorConfig):
        return detector_shapes(experiment.model)
    sppe = hourglass_shapes(experiment.hourglass, joints=experiment.joints.size)
    if not has_stn(experiment):
        return sppe
    return join_parts(sppe, localization_shapes(experiment.localization, experiment.model.input_size))


def init_estimator(key: Array, experiment: Experiment) -> Variables:
    """Fresh variables of an experiment's networks; its STN starts as the identity.

    Args:
        key: a concrete JAX PRNG key.
        experiment: the architecture.
    """
    if isinstance(experiment.model, DeepPoseConfig):
        return init_deep_pose(key, experiment.model, joints=experiment.joints.size)
    if isinstance(experiment.model, PersonDetectorConfig):
        return init_person_detector(key, experiment.model)
    sppe = init_hourglass(key, experiment.hourglass, joints=experiment.joints.size)
    if not has_stn(experiment):
        return sppe
    localization = init_localization(key, experiment.localization, experiment.model.input_size)
    return join_parts(sppe, localization)


def stack_estimator(variables: Variables, experiment: Experiment) -> Variables:
    """An experiment's variables as its training has them, see ``stack_variables``; the STN has no stacks."""
    return _with_sppe(stack_variables, variables, experiment)


def unstack_estimator(variables: Variables, experiment: Experiment) -> Variables:
    """The opposite of ``stack_estimator``: variables as weight files and prediction have them."""
    return _with_sppe(unstack_variables, variables, experiment)


def _with_sppe(change: Callable[..., Variables], variables: Variables, experiment: Experiment) -> Variables:
    """Variables with those of the hourglass changed."""
    config = experiment.model
    if not isinstance(config, HourglassConfig) or not config.scan:
        return variables
    sppe = change(sppe_of(variables, experiment), config)
    return join_parts(sppe, part_of(variables, LOCALIZATION)) if has_stn(experiment) else sppe


def remap_crops(
    variables: Variables,
    image: Num[Array, "H W 3"],
    crops: Float[Array, "p h w 3"],
    image_from_crop: Float[Array, "p 2 3"],
    *,
    experiment: Experiment,
    levels: int = 1,
) -> tuple[Float[Array, "p h w 3"], Float[Array, "p 2 3"]]:
    """The STN at inference: each crop again as the localization network wants it, and ``image_from_stn``.

    The map from the STN's output to the picture is one affine map, so nothing has to be put back: joints read in the
    STN's output go to the picture along it (the SDTN on points). Without a localization network nothing changes.

    Args:
        variables: of the experiment.
        image: RGB, 0 to 255.
        crops: RGB in [0, 1].
        image_from_crop: of each crop.
        experiment: ``localization.source`` says whether the picture is sampled once along both maps ("picture") or the
            crop is sampled again ("crop").
        levels: see ``crop_image``.
    """
    if not has_stn(experiment):
        return crops, image_from_crop
    size, config = experiment.model.input_size, experiment.localization
    theta = apply_localization(part_of(variables, LOCALIZATION), crops, config)
    corners = experiment.hourglass.align_corners
    inner = jax.vmap(lambda each: crop_from_stn(each, size, align_corners=corners))(theta)
    maps = jax.vmap(compose)(image_from_crop, inner)
    if config.source == "crop":
        return jax.vmap(lambda crop, each: stn(crop, each, size, align_corners=corners))(crops, theta), maps
    return jax.vmap(lambda matrix: crop_image(image, matrix, size, levels=levels) / 255)(maps), maps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remapped:
    """What the networks make of b crops while training."""

    maps: Float[Array, "s b h w k"]  # heat maps of every stack, in the crop's frame
    theta: Float[Array, "b 2 3"]  # crop_from_stn, unit frame; the identity without an STN
    images: Float[Array, "b H W 3"]  # the STN's output; the crops without one


def apply_estimator_training(
    variables: Variables,
    crops: Float[Array, "b H W 3"],
    sample: Callable[[Float[Array, "b 2 3"]], Float[Array, "b H W 3"]],
    *,
    experiment: Experiment,
    axis_name: str | None = None,
) -> tuple[Remapped, Variables]:
    """Heat maps with the batch's own statistics, and the updated running statistics.

    Args:
        variables: that are trained, as ``stack_estimator`` gives them.
        crops: RGB in [0, 1].
        sample: the crops as the STN resamples them along theta (b, 2, 3).
        experiment: the architecture; through a path that ``localization.paths`` does not name, the maps have no
            gradient in theta.
        axis_name: mapped axis over which batch statistics are averaged.
    """
    joints, count = experiment.joints.size, len(crops)
    if not has_stn(experiment):
        maps, statistics = apply_hourglass_training(
            variables, crops, experiment.hourglass, joints=joints, axis_name=axis_name
        )
        return Remapped(maps, jnp.broadcast_to(jnp.eye(2, 3)[None], (count, 2, 3)), crops), statistics
    theta, localization = apply_localization_training(
        part_of(variables, LOCALIZATION), crops, experiment.localization, axis_name=axis_name
    )
    images, paths = sample(theta), experiment.localization.paths.split(",")
    seen = images if "sampling" in paths else lax.stop_gradient(images)
    maps, sppe = apply_hourglass_training(
        part_of(variables, SPPE), seen, experiment.hourglass, joints=joints, axis_name=axis_name
    )
    back = theta if "inverse" in paths else lax.stop_gradient(theta)
    undo = partial(sdtn, align_corners=experiment.hourglass.align_corners)
    maps = jax.vmap(undo, in_axes=(1, 0), out_axes=1)(maps, back)
    return Remapped(maps, theta, images), {SPPE: sppe, LOCALIZATION: localization}


def parallel_heatmaps(
    frozen: Variables, images: Float[Array, "b H W 3"], config: HourglassConfig, *, joints: int
) -> Float[Array, "s b h w k"]:
    """Heat maps of the frozen SPPE in the STN's frame.

    It has its running statistics and no gradient of its own; the localization network's passes through it.

    Args:
        frozen: its variables.
        images: the STN's output.
        config: its architecture.
        joints: heat maps per stack.
    """
    return apply_hourglass(lax.stop_gradient(frozen), images, config, joints=joints)
