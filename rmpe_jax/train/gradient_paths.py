"""Through which of RMPE's paths a loss reaches theta: a laboratory for one crop.

theta acts in three places: the STN samples the picture along it for the estimator, the SDTN inverts it to put the heat
maps back, and the parallel SPPE sees what the STN sampled. ``remapping_loss`` takes theta once for each place; its
three gradients are the parts, and their sum is the gradient of the loss in theta (the chain rule).

Reference: RMPE, Fang et al., ICCV 2017, eqs 5 and 6 (the path through the inverse) and section 3.1.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from rmpe_jax.config import PATHS, Experiment, HourglassConfig
from rmpe_jax.geometry.affine import compose
from rmpe_jax.geometry.remapping import crop_from_stn, sdtn
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.models.hourglass import apply_hourglass
from rmpe_jax.models.rmpe import parallel_heatmaps, sppe_of
from rmpe_jax.train.losses import heatmap_loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByPath:
    """One theta for each path, or one gradient."""

    sampling: Float[Array, "*b 2 3"]  # STN -> SPPE
    inverse: Float[Array, "*b 2 3"]  # SDTN
    parallel: Float[Array, "*b 2 3"]  # STN -> parallel SPPE; zero without one

    @property
    def whole(self) -> Float[Array, "*b 2 3"]:
        """The sum: of gradients, the gradient of the loss in the one theta."""
        return self.sampling + self.inverse + self.parallel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """One person in a picture, a crop, and what the networks should find."""

    image: Num[Array, "*b H W 3"]  # RGB, 0 to 255
    image_from_crop: Float[Array, "*b 2 3"]
    targets: Float[Array, "*b h w k"]  # of the crop's frame
    centred: Float[Array, "*b h w k"]  # of the perfect crop's frame: what the parallel SPPE should see
    labelled: Bool[Array, "*b k"]


def remapping_loss(
    theta: ByPath,
    variables: dict[str, Any],
    scene: Scene,
    *,
    experiment: Experiment,
    frozen: dict[str, Any] | None = None,
    parallel: HourglassConfig | None = None,
) -> Float[Array, ""]:
    """The training loss of one crop, every place of theta apart, with running statistics of batch norm.

    Args:
        theta: crop_from_stn in the unit frame, for each path; all three alike give the loss itself.
        variables: of the experiment; its localization network, if any, is not asked.
        scene: what is looked at.
        experiment: the settings; ``localization.parallel_weight`` weighs the parallel SPPE.
        frozen: the parallel SPPE's variables; None for none.
        parallel: its architecture; the experiment's own by default.
    """
    joints, weight = experiment.joints.size, experiment.optim.positive_weight
    corners = experiment.hourglass.align_corners

    def seen(along: Float[Array, "2 3"]) -> Float[Array, "1 h w 3"]:
        size = experiment.model.input_size
        image_from_stn = compose(scene.image_from_crop, crop_from_stn(along, size, align_corners=corners))
        return crop_image(scene.image, image_from_stn, size)[None] / 255

    maps = apply_hourglass(sppe_of(variables, experiment), seen(theta.sampling), experiment.hourglass, joints=joints)[
        :, 0
    ]
    back = sdtn(maps, theta.inverse, align_corners=corners)
    loss = heatmap_loss(back, scene.targets, scene.labelled, positive_weight=weight)
    if frozen is not None:
        config = parallel or experiment.hourglass
        beside = parallel_heatmaps(frozen, seen(theta.parallel), config, joints=joints)[:, 0]
        centred = heatmap_loss(beside, scene.centred, scene.labelled, positive_weight=weight)
        loss = loss + experiment.localization.parallel_weight * centred
    return loss / jnp.maximum(scene.labelled.sum(), 1)


def gradient_paths(
    theta: Float[Array, "2 3"],
    variables: dict[str, Any],
    scene: Scene,
    *,
    paths: Collection[str] = PATHS,
    **settings: Any,
) -> tuple[Float[Array, ""], ByPath]:
    """The loss at theta, and its gradient split into the paths.

    Args:
        theta: crop_from_stn, unit frame.
        variables: see `remapping_loss`.
        scene: see `remapping_loss`.
        paths: those that are switched on; the gradients of the others are zero.
        settings: see `remapping_loss`.

    Raises:
        ValueError: an unknown path.
    """
    unknown = set(paths) - set(PATHS)
    if unknown:
        raise ValueError(f"expected paths of {', '.join(PATHS)}, got {sorted(unknown)[0]!r}")
    loss, found = jax.value_and_grad(remapping_loss)(ByPath(theta, theta, theta), variables, scene, **settings)
    return loss, ByPath(*(getattr(found, path) * (path in paths) for path in PATHS))
