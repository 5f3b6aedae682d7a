"""What a person detector sees while it is trained: one scene, or parts of four put together, made on the device.

Each scene is placed so that one of its people, drawn at random, has a random size and a random place; so sizes follow
a law that does not depend on the pictures. Every function is pure; ``jax.vmap`` adds the batch.

Reference for putting four pictures together: Bochkovskiy et al., "YOLOv4", 2020, section 3.3.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmpe_jax.config import AugmentConfig, Experiment, PersonDetectorConfig
from rmpe_jax.geometry.affine import invert_affine, transform_points
from rmpe_jax.geometry.boxes import box_area, extend_boxes
from rmpe_jax.geometry.sampling import crop_images
from rmpe_jax.models.person_detector import STRIDE
from rmpe_jax.records import SceneBatch
from rmpe_jax.train.augment import coloured

# Where the corner at which four scenes meet may be, as a share of the sides.
_MEETING = (0.3, 0.7)
# How much a scene is enlarged or shrunk at most.
_SCALES = (0.1, 2.5)
# Width and height are multiplied by exp(U(-a, a)) each.
_ASPECT = 0.1
# Somebody of whom less than this share of the box is to be seen, or whose box is smaller than this share of the
# smallest or larger than this multiple of the largest length, may be found or not.
_VISIBLE, _SMALLEST, _LARGEST = 0.4, 0.6, 1.3
# What surrounds somebody in a scene whose other people are not labelled: nobody else is expected this close.
_OWN_GROUND = 0.1
# Probability that what is beyond a picture is black, as at inference; else its outermost pixels go on.
_BLACK = 0.5
# Times that a canvas may be halved before it is sampled, plus one.
_LEVELS = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingScene:
    """One example for a person detector."""

    image: Float[Array, "*b H W 3"]  # RGB in [0, 1]
    boxes: Float[Array, "*b n 4"]  # pixels of the image, cut at the edges of their scene
    person: Bool[Array, "*b n"]  # which boxes are to be found
    known: Bool[Array, "*b h w"]  # pixels of the maps at which a box that was found would be right or wrong


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Placed:
    """Where one scene lies in an example."""

    region: Float[Array, "*b 4"]  # what it fills, pixels of the image
    shown: Float[Array, "*b 4"]  # the part of the region that is picture, or at any rate not black
    canvas_from_image: Float[Array, "*b 2 3"]
    colour: Float[Array, "*b 3"]


def training_scenes(batch: SceneBatch, keys: Array, *, experiment: Experiment) -> TrainingScene:
    """An example from every four scenes.

    Args:
        batch: b examples.
        keys: (b,), see ``augment.example_keys``.
        experiment: the settings; its model is a person detector.
    """
    config: Any = experiment.model
    size = config.input_size
    place = partial(_place_scenes, augment=experiment.augment, config=config)
    placed = jax.vmap(place)(keys, batch)
    count, together = batch.valid.shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (batch.canvas, placed))
    images = crop_images(flat[0], flat[1].canvas_from_image, size, padding="border", levels=_LEVELS)
    images = coloured(images, flat[1].colour[:, None, None])
    x, y = jnp.arange(size[1], dtype=float)[None, None], jnp.arange(size[0], dtype=float)[None, :, None]
    here = _inside(x, y, flat[1].shown[:, None, None])
    images = jnp.where(here[..., None], images, 0.0).reshape(count, together, *size, 3).sum(1)
    boxes, person, known = jax.vmap(partial(_labels, config=config))(batch, placed)
    return TrainingScene(images, boxes, person, known)


def _place_scenes(key: Array, scenes: SceneBatch, *, augment: AugmentConfig, config: PersonDetectorConfig) -> _Placed:
    """Places the scenes of one example."""
    key, choice_key, meeting_key = jax.random.split(key, 3)
    height, width = config.input_size
    size = jnp.array([width, height], float)
    meeting = size * jax.random.uniform(meeting_key, (2,), minval=_MEETING[0], maxval=_MEETING[1])
    # Without a mosaic they meet in the last corner, and the first fills everything.
    x, y = jnp.where(jax.random.bernoulli(choice_key, augment.mosaic), meeting, size)
    zero = jnp.zeros(())
    quarters = [(zero, zero, x, y), (x, zero, width, y), (zero, y, x, height), (x, y, width, height)]
    regions = jnp.stack([jnp.stack([jnp.asarray(value, float) for value in quarter]) for quarter in quarters]) - 0.5
    place = partial(_place_scene, augment=augment, config=config)
    return jax.vmap(place)(jax.random.split(key, 4), regions, scenes.extent, scenes.boxes, scenes.person)


def _place_scene(
    key: Array,
    region: Float[Array, "4"],
    extent: Float[Array, "4"],
    boxes: Float[Array, "p 4"],
    person: Bool[Array, "p"],
    *,
    augment: AugmentConfig,
    config: PersonDetectorConfig,
) -> _Placed:
    """Places one scene, so that somebody in it, or some part of it where nobody is, comes to lie in the region."""
    who, part, length_key, stretch_key, place_key, flip_key, colour_key, black_key = jax.random.split(key, 8)
    inside = person & (_visible(boxes, extent) >= _VISIBLE)
    chosen = boxes[jax.random.categorical(who, jnp.where(inside, 0.0, -1e9))]
    anchor = jnp.where(inside.any(), chosen, _random_part(part, extent))
    room, span = region[2:] - region[:2], anchor[2:] - anchor[:2]
    low, high = jnp.log(config.lengths[0]), jnp.log(config.lengths[1])
    length = jnp.exp(jax.random.uniform(length_key, minval=low, maxval=high))
    scale = jnp.clip(jnp.minimum(length, 1.3 * room.max()) / jnp.maximum(span.max(), 1.0), *_SCALES)
    scale = scale * jnp.exp(jax.random.uniform(stretch_key, (2,), minval=-_ASPECT, maxval=_ASPECT))
    # Most of the anchor is in the region where there is room.
    margin = jnp.minimum(0.35 * span * scale, room / 2)
    centre = region[:2] + margin + jax.random.uniform(place_key, (2,)) * (room - 2 * margin)
    direction = jnp.where(jax.random.bernoulli(flip_key, augment.flip), jnp.array([-1.0, 1.0]), 1.0)
    slope = direction / scale
    shift = (anchor[:2] + anchor[2:]) / 2 - slope * centre
    zero = jnp.zeros(())
    matrix = jnp.stack([jnp.stack([slope[0], zero, shift[0]]), jnp.stack([zero, slope[1], shift[1]])])
    colour = jax.random.uniform(colour_key, (3,), minval=1 - augment.colour, maxval=1 + augment.colour)
    picture = _clipped(_moved(invert_affine(matrix), extent[None]), region[None])[0]
    shown = jnp.where(jax.random.bernoulli(black_key, _BLACK), picture, region)
    return _Placed(region, shown, matrix, colour)


def _random_part(key: Array, extent: Float[Array, "4"]) -> Float[Array, "4"]:
    """A square somewhere in a scene, of a tenth to nine tenths of its longer side."""
    side_key, place_key = jax.random.split(key)
    span = extent[2:] - extent[:2]
    half = span.max() * jax.random.uniform(side_key, minval=0.05, maxval=0.45)
    centre = extent[:2] + span * jax.random.uniform(place_key, (2,))
    return jnp.concatenate([centre - half, centre + half])


def _labels(
    scenes: SceneBatch, placed: _Placed, *, config: PersonDetectorConfig
) -> tuple[Float[Array, "n 4"], Bool[Array, "n"], Bool[Array, "h w"]]:
    """Boxes that are to be found in one example, and where what is found can be judged."""
    height, width = (side // STRIDE for side in config.input_size)
    x = (jnp.arange(width)[None, :] + 0.5) * STRIDE - 0.5
    y = (jnp.arange(height)[:, None] + 0.5) * STRIDE - 0.5

    def of_scene(extent, boxes, person, ignored, complete, valid, region, canvas_from_image):
        image_from_canvas = invert_affine(canvas_from_image)
        whole, extent = (_moved(image_from_canvas, each) for each in (boxes, extent[None]))
        shown = _clipped(whole, _clipped(extent, region[None]))
        share = box_area(shown) / jnp.maximum(box_area(whole), 1e-6)
        length = (shown[:, 2:] - shown[:, :2]).max(-1)
        right = (
            (share >= _VISIBLE) & (length >= _SMALLEST * config.lengths[0]) & (length <= _LARGEST * config.lengths[1])
        )
        found = person & right & valid
        unsure = valid & (box_area(shown) > 0) & (ignored | (person & ~right))
        own = extend_boxes(whole, _OWN_GROUND)
        judged = complete | ~_inside(x, y, extent[0]) | _in_any(x, y, own, person)
        known = _inside(x, y, region) & valid & judged & ~_in_any(x, y, shown, unsure)
        return shown, found, known

    shown, found, known = jax.vmap(of_scene)(
        scenes.extent, scenes.boxes, scenes.person, scenes.ignored, scenes.complete, scenes.valid,
        placed.region, placed.canvas_from_image,
    )  # fmt: skip
    return shown.reshape(-1, 4), found.reshape(-1), known.any(0)


def _moved(matrix: Float[Array, "2 3"], boxes: Float[Array, "p 4"]) -> Float[Array, "p 4"]:
    """Boxes along a map that may mirror them."""
    corners = transform_points(matrix, boxes.reshape(-1, 2, 2))
    return jnp.concatenate([corners.min(1), corners.max(1)], -1)


def _clipped(boxes: Float[Array, "p 4"], region: Float[Array, "#p 4"]) -> Float[Array, "p 4"]:
    low, high = (jnp.clip(boxes[:, part], region[:, :2], region[:, 2:]) for part in (slice(2), slice(2, 4)))
    return jnp.concatenate([low, high], -1)


def _visible(boxes: Float[Array, "p 4"], extent: Float[Array, "4"]) -> Float[Array, "p"]:
    """The share of each box that lies in the picture."""
    return box_area(_clipped(boxes, extent[None])) / jnp.maximum(box_area(boxes), 1e-6)


def _inside(x: Array, y: Array, boxes: Float[Array, "*n 4"]) -> Bool[Array, "..."]:
    """Whether pixels lie in a box; the axes of ``boxes`` but the last broadcast with those of ``x`` and ``y``."""
    return (x >= boxes[..., 0]) & (x < boxes[..., 2]) & (y >= boxes[..., 1]) & (y < boxes[..., 3])


def _in_any(x: Array, y: Array, boxes: Float[Array, "p 4"], counted: Bool[Array, "p"]) -> Bool[Array, "h w"]:
    return (_inside(x[None], y[None], boxes[:, None, None]) & counted[:, None, None]).any(0)
