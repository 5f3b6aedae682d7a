"""Random training crops, made on the device from one canvas: flip, scale, shift, rotation and colour as one affine map.

Every function is pure and takes one person; ``jax.vmap`` adds the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from rmpe_jax.config import AugmentConfig
from rmpe_jax.geometry.affine import compose, image_from_person, invert_affine, pixels_of_resized, transform_points
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.heatmaps import encode_heatmaps, points_inside


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
) -> tuple[Float[Array, "h w 3"], Float[Array, "k 2"], Bool[Array, "k"]]:
    """One augmented crop and its joints.

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

    Returns:
        RGB in [0, 1]; joints in crop pixels; their labels.
    """
    box_key, turn_key, flip_key, colour_key = jax.random.split(key, 4)
    box = random_box(box_key, box, config)
    canvas_from_crop = image_from_person(box, size, extension=extension, rotation=random_rotation(turn_key, config))
    flip = jax.random.bernoulli(flip_key, config.flip)
    canvas_from_crop = jnp.where(flip, compose(canvas_from_crop, mirror(size[1])), canvas_from_crop)
    order = jnp.where(flip, jnp.array(flip_order), jnp.arange(len(flip_order)))
    colour = jax.random.uniform(colour_key, (3,), minval=1 - config.colour, maxval=1 + config.colour)
    crop = crop_image(canvas, canvas_from_crop, size) / 255
    crop = jnp.clip(crop * colour[None, None], 0.0, 1.0)
    return crop, transform_points(invert_affine(canvas_from_crop), points)[order], labelled[order]


def heatmap_targets(
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    *,
    size: tuple[int, int],
    output_size: tuple[int, int],
    sigma: float,
) -> Float[Array, "h w k"]:
    """Target maps of a crop: a labelled joint inside the crop gets a Gaussian, one outside a zero map.

    Reference: RMPE's training code draws only joints inside the crop and lets the zero maps of the others count.
    """
    present = labelled & points_inside(points, size)
    points = transform_points(pixels_of_resized(size, output_size), points)
    return encode_heatmaps(points, present, output_size, sigma=sigma)
