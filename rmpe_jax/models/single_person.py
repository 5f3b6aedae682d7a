"""Single-person pose estimation (SPPE) in a picture: boxes to crops, crops to heat maps, heat maps to joints.

The same three functions serve inference and the evaluation during training. All are pure; the first two are
differentiable, the third reads maxima, through which nothing flows back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from rmpe_jax.config import DeepPoseConfig, Experiment
from rmpe_jax.geometry.affine import compose, image_from_person, pixels_of_resized, transform_points
from rmpe_jax.geometry.boxes import usable_boxes
from rmpe_jax.geometry.remapping import crop_from_stn, sdtn
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.heatmaps import decode_dark, decode_heatmaps, decode_soft_argmax, flip_heatmaps
from rmpe_jax.models.deep_pose import estimate_positions
from rmpe_jax.models.hourglass import apply_hourglass
from rmpe_jax.models.rmpe import sppe_of
from rmpe_jax.scores import calibrated

#: Times that a crop may read from a halved copy of the picture, plus one: shrinks up to 16 times read clean means.
LEVELS = 5


def crop_people(
    image: Num[Array, "H W 3"], boxes: Float[Array, "p 4"], *, experiment: Experiment
) -> tuple[Float[Array, "p h w 3"], Float[Array, "p 2 3"]]:
    """Crops of each person's extended box, RGB in [0, 1], and ``image_from_crop`` of each.

    A box that is not usable (see ``usable_boxes``) gives the crop of a unit box at the origin: mask
    it out.
    """
    size, extension = experiment.model.input_size, experiment.data.extension
    boxes = jnp.where(usable_boxes(boxes)[:, None], boxes, jnp.array([0.0, 0.0, 1.0, 1.0])[None])
    maps = jax.vmap(lambda box: image_from_person(box, size, extension=extension))(boxes)
    return jax.vmap(lambda matrix: crop_image(image, matrix, size, levels=LEVELS) / 255)(maps), maps


def estimate_heatmaps(
    variables: dict[str, Any], crops: Float[Array, "p h w 3"], *, experiment: Experiment, flip_test: bool
) -> Float[Array, "p hm wm k"]:
    """Heat maps of the last stack; with ``flip_test`` the mean with those of the mirrored crops, mirrored back."""
    skeleton, count = experiment.joints, crops.shape[0]
    if flip_test:
        crops = jnp.concatenate([crops, crops[:, :, ::-1]])
    maps = apply_hourglass(sppe_of(variables, experiment), crops, experiment.hourglass, joints=skeleton.size)[-1]
    if flip_test:
        back = jax.vmap(partial(flip_heatmaps, flip_order=skeleton.flip_order))(maps[count:])
        maps = (maps[:count] + back) / 2
    return maps


def estimate_joints(
    variables: dict[str, Any],
    image: Num[Array, "H W 3"],
    crops: Float[Array, "p h w 3"],
    image_from_crop: Float[Array, "p 2 3"],
    *,
    experiment: Experiment,
    flip_test: bool,
    scales: tuple[float, ...] = (1.0,),
) -> tuple[Float[Array, "p k 2"], Float[Array, "p k"]]:
    """Joints in picture pixels and their scores (see ``scores``), whatever the model of the experiment.

    Args:
        variables: of the experiment's networks.
        image: RGB, 0 to 255; DeepPose's later stages look at it again.
        crops: what the estimator sees of each person, RGB in [0, 1].
        image_from_crop: of each crop.
        experiment: the architecture.
        flip_test: average with mirrored crops.
        scales: the multi-scale test: average over crops with sides this many times as long, about the same centre. Of
            an hourglass the heat maps, where crops cover each other, of DeepPose the joints.
    """
    views = [_zoomed(image, crops, image_from_crop, scale, experiment) for scale in scales]
    settings: dict[str, Any] = {"flip_test": flip_test}
    if isinstance(experiment.model, DeepPoseConfig):
        settings |= {"skeleton": experiment.joints, "levels": LEVELS}
        found = [estimate_positions(variables, image, *view, experiment.model, **settings) for view in views]
        points, score = (jnp.stack(parts).mean(0) for parts in zip(*found, strict=True))
        return points, score
    maps = [estimate_heatmaps(variables, seen, experiment=experiment, **settings) for seen, _ in views]
    return read_poses(_mean_over_scales(maps, scales, experiment), image_from_crop, experiment=experiment)


def _zoomed(
    image: Num[Array, "H W 3"],
    crops: Float[Array, "p h w 3"],
    image_from_crop: Float[Array, "p 2 3"],
    scale: float,
    experiment: Experiment,
) -> tuple[Float[Array, "p h w 3"], Float[Array, "p 2 3"]]:
    """Crops with sides ``scale`` times as long, and their ``image_from_crop``."""
    if scale == 1:
        return crops, image_from_crop
    size = experiment.model.input_size
    maps = jax.vmap(lambda outer: compose(outer, crop_from_stn(_zoom(scale), size)))(image_from_crop)
    return jax.vmap(lambda matrix: crop_image(image, matrix, size, levels=LEVELS) / 255)(maps), maps


def _zoom(scale: float) -> Float[Array, "2 3"]:
    """Theta of a crop whose sides are ``scale`` times as long."""
    return jnp.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]])


def _mean_over_scales(
    heatmaps: list[Float[Array, "p hm wm k"]], scales: tuple[float, ...], experiment: Experiment
) -> Float[Array, "p hm wm k"]:
    """Maps of crops of several scales, each put back by the SDTN, averaged where their crops reach."""
    undo = partial(sdtn, align_corners=experiment.hourglass.align_corners)
    total, covered = jnp.zeros_like(heatmaps[0]), jnp.zeros_like(heatmaps[0][:1, :, :, :1])
    for maps, scale in zip(heatmaps, scales, strict=True):
        there = jnp.ones_like(covered)
        if scale != 1:
            maps, there = (jax.vmap(lambda each, s=scale: undo(each, _zoom(s)))(array) for array in (maps, there))
        total, covered = total + maps, covered + there
    # If all scales are below one, no crop reaches the edges: there is nobody.
    return jnp.where(covered > 0, total / jnp.maximum(covered, 1e-6), 0.0)


def decoder_of(
    experiment: Experiment,
) -> Callable[[Float[Array, "h w k"]], tuple[Float[Array, "k 2"], Float[Array, "k"]]]:
    """The decoder that ``model.decoder`` names; DARK smooths by the deviation of the targets."""
    dark = partial(decode_dark, blur=experiment.optim.sigma)
    found = {"quarter": decode_heatmaps, "dark": dark, "soft_argmax": decode_soft_argmax}
    return found[experiment.hourglass.decoder]


def read_poses(
    heatmaps: Float[Array, "p hm wm k"], image_from_crop: Float[Array, "p 2 3"], *, experiment: Experiment
) -> tuple[Float[Array, "p k 2"], Float[Array, "p k"]]:
    """Joints in picture pixels and their scores (see ``scores``), from the maps of each crop."""
    points, score = jax.vmap(decoder_of(experiment))(heatmaps)
    config = experiment.hourglass
    back = pixels_of_resized(config.output_size, config.input_size, align_corners=config.align_corners)
    points = transform_points(back, points)
    return jax.vmap(transform_points)(image_from_crop, points), calibrated(score, config.calibration)
