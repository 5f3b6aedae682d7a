"""Random training crops, made on the device from one canvas: flip, scale, shift, rotation and colour as one affine map.

Every function is pure and takes one person; ``jax.vmap`` adds the batch.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from rmpe_jax.config import AugmentConfig, Experiment
from rmpe_jax.geometry.affine import compose, image_from_person, invert_affine, pixels_of_resized, transform_points
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.heatmaps import encode_heatmaps, points_inside
from rmpe_jax.proposals.generators import LAWS, Generator, Law, cut_patch, patch_share, whole_boxes
from rmpe_jax.records import PoseBatch, SceneBatch


def random_box(key: Array, box: Float[Array, "4"], config: AugmentConfig) -> Float[Array, "4"]:
    """The box scaled and shifted at random about its centre, by fractions of its longer side."""
    scale_key, shift_key = jax.random.split(key)
    size = box[2:] - box[:2]
    factor = jax.random.uniform(scale_key, minval=1 - config.scale, maxval=1 + config.scale)
    shift = jax.random.uniform(shift_key, (2,), minval=-config.shift, maxval=config.shift) * size.max()
    centre = (box[:2] + box[2:]) / 2 + shift
    return jnp.concatenate([centre - size * factor / 2, centre + size * factor / 2])


def random_rotation(key: Array, config: AugmentConfig) -> Float[Array, ""]:
    """An angle in radians: normal, cut at two standard deviations; zero with probability 1 - rotation_probability."""
    angle_key, choice_key = jax.random.split(key)
    angle = jnp.clip(jax.random.normal(angle_key), -2.0, 2.0) * jnp.deg2rad(config.rotation)
    return jnp.where(jax.random.bernoulli(choice_key, config.rotation_probability), angle, 0.0)


def mirror(width: int) -> Float[Array, "2 3"]:
    """The map that mirrors a crop of ``width`` pixels left to right."""
    return jnp.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingCrop:
    """One augmented crop of a person, and where it and the perfect crop lie on the canvas."""

    image: Float[Array, "*b h w 3"]  # RGB in [0, 1]
    points: Float[Array, "*b k 2"]  # joints, pixels of the crop
    labelled: Bool[Array, "*b k"]
    canvas_from_crop: Float[Array, "*b 2 3"]
    canvas_from_centred: Float[Array, "*b 2 3"]  # of the crop that the labelled box itself gives, alike mirrored
    colour: Float[Array, "*b 3"]  # what the channels were multiplied by


def random_crop(
    key: Array,
    canvas: UInt8[Array, "c c 3"],
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    *,
    config: AugmentConfig,
    size: tuple[int, int],
    extension: float,
    flip_order: tuple[int, ...],
    generator: Generator | None = None,
) -> TrainingCrop:
    """One augmented crop and its joints.

    The perfect crop is that of the box as it is labelled. For a patch it is the crop itself, which makes the parallel
    SPPE neutral, as in RMPE's code.

    Args:
        key: PRNG key.
        canvas: the person's canvas.
        box: the person's box, canvas pixels, not extended.
        points: joints, canvas pixels.
        labelled: which joints carry a label.
        config: ranges of the augmentation.
        size: (height, width) of the crop.
        extension: of the box, as at inference.
        flip_order: the skeleton's exchange of left and right.
        generator: of proposals, for poses in the order of ``points``; by default the law that ``config`` names.
    """
    box_key, turn_key, flip_key, colour_key = jax.random.split(key, 4)
    flip, rotation = jax.random.bernoulli(flip_key, config.flip), random_rotation(turn_key, config)

    def canvas_from(of_box: Float[Array, "4"]) -> Float[Array, "2 3"]:
        matrix = image_from_person(of_box, size, extension=extension, rotation=rotation)
        return jnp.where(flip, compose(matrix, mirror(size[1])), matrix)

    proposal, is_patch = random_proposal(box_key, box, points, labelled, config=config, generator=generator)
    canvas_from_crop = canvas_from(proposal)
    canvas_from_centred = jnp.where(is_patch, canvas_from_crop, canvas_from(box))
    order = jnp.where(flip, jnp.array(flip_order), jnp.arange(len(flip_order)))
    colour = jax.random.uniform(colour_key, (3,), minval=1 - config.colour, maxval=1 + config.colour)
    points = transform_points(invert_affine(canvas_from_crop), points)[order]
    image = coloured(crop_image(canvas, canvas_from_crop, size), colour[None, None])
    return TrainingCrop(image, points, labelled[order], canvas_from_crop, canvas_from_centred, colour)


def example_keys(key: Array, step: Array, batch: PoseBatch | SceneBatch) -> Array:
    """A key for each example of a step, from its index in the global batch: the same however the batch is spread."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(partial(jax.random.fold_in, step_key))(batch.index)


def training_crops(
    batch: PoseBatch, keys: Array, *, experiment: Experiment, generator: Generator | None = None
) -> TrainingCrop:
    """An augmented crop of every example.

    Args:
        batch: b people.
        keys: (b,), see ``example_keys``.
        experiment: the settings.
        generator: of proposals, see ``random_crop``.
    """
    crop = partial(
        random_crop,
        config=experiment.augment,
        size=experiment.model.input_size,
        extension=experiment.data.extension,
        flip_order=experiment.joints.flip_order,
        generator=generator,
    )
    return jax.vmap(crop)(keys, batch.canvas, batch.box, batch.points, batch.labelled & batch.valid[:, None])


def generator_of(config: AugmentConfig) -> Generator | None:
    """The law that the settings name; None for "jitter", which is ``random_box``.

    Raises:
        ValueError: they name a file, which has to be read first.
    """
    if config.proposals == "jitter":
        return None
    if config.proposals not in LAWS:
        raise ValueError(f"proposals {config.proposals!r} are of a file: hand over what `load_proposals` reads from it")
    return Law(config.proposals)


def random_proposal(
    key: Array,
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    *,
    config: AugmentConfig,
    generator: Generator | None,
) -> tuple[Float[Array, "4"], Bool[Array, ""]]:
    """The box as a detector might give it, and whether it is a patch."""
    generator = generator_of(config) if generator is None else generator
    if generator is None:
        proposal = random_box(key, box, config)
    else:
        proposal = whole_boxes(key, box, points, labelled, generator=generator, num=1)[0]
    share = config.patch or (patch_share(generator) if generator is not None else 0.0)
    return cut_patch(jax.random.fold_in(key, 1), proposal, box, share)


def coloured(image: Float[Array, "*b h w 3"], colour: Float[Array, "*b #h #w 3"]) -> Float[Array, "*b h w 3"]:
    """A crop in [0, 1] from one of a canvas, its channels multiplied and cut."""
    return jnp.clip(image / 255 * colour, 0.0, 1.0)


def heatmap_targets(
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    *,
    size: tuple[int, int],
    output_size: tuple[int, int],
    sigma: float,
    align_corners: bool = False,
) -> Float[Array, "h w k"]:
    """Target maps of a crop: a labelled joint inside the crop gets a Gaussian, one outside a zero map.

    ``align_corners`` says how the maps lie on the crop, see ``pixels_of_resized``.

    Reference: RMPE's training code draws only joints inside the crop and lets the zero maps of the others count.
    """
    present = labelled & points_inside(points, size)
    points = transform_points(pixels_of_resized(size, output_size, align_corners=align_corners), points)
    return encode_heatmaps(points, present, output_size, sigma=sigma)
