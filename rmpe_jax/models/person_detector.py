"""A person detector on the stacked hourglass: maps of people's centres, of their sizes, and of the way to a centre.

Reference: Zhou et al., "Objects as Points" (CenterNet), 2019, arXiv 1904.07850. Differs in that sizes are logarithms,
that every pixel near a centre knows the way to it, not only the nearest one (as in TTFNet, Liu et al. 2020), and that
the picture is searched at several scales, so that one network of few parameters needs to know few sizes of people.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from rmpe_jax.config import PersonDetectorConfig
from rmpe_jax.geometry.affine import image_from_crop, transform_points
from rmpe_jax.geometry.boxes import box_nms
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.models.hourglass import apply_hourglass, apply_hourglass_training, hourglass_shapes, init_hourglass
from rmpe_jax.records import Boxes

Variables = dict[str, Any]
# Maps of the hourglass: one of centres, two of sizes, two of offsets.
_MAPS = 5
#: Pixels of the picture in one of the maps.
STRIDE = 4
# What fresh networks say: hardly a centre anywhere, and boxes of so many pixels of the map. CenterNet has the first.
_RARE, _USUAL_SIDE = -2.19, 10.0
# Logarithms of sides are kept between these, so that no box is infinite.
_LOG_SIDES = (-3.0, 8.0)
# Boxes may be longer or shorter than those of training by this factor before another scale is left to find them.
_SLACK = 1.25
# Times that the picture may be halved before it is sampled, plus one.
_LEVELS = 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectorMaps:
    """What the network says of every pixel of its maps."""

    heat: Float[Array, "*b h w"]  # logit: a person's centre is here
    log_size: Float[Array, "*b h w 2"]  # logarithms of width and height, pixels of the map
    offset: Float[Array, "*b h w 2"]  # x, y from here to the centre, pixels of the map


def detector_shapes(config: PersonDetectorConfig) -> Variables:
    """The shapes and dtypes of a detector's variables."""
    return hourglass_shapes(config.hourglass, joints=_MAPS)


def init_person_detector(key: Array, config: PersonDetectorConfig) -> Variables:
    """Fresh variables, plain nested dicts of float32 NumPy arrays; ``key`` must be concrete."""
    return init_hourglass(key, config.hourglass, joints=_MAPS)


def with_own_maps(start: Variables, fresh: Variables) -> Variables:
    """Variables of another hourglass of the same size, with fresh ones where they depend on how many maps it gives."""
    return jax.tree.map(lambda old, new: old if old.shape == new.shape else new, start, fresh)


def apply_person_detector(
    variables: Variables, images: Float[Array, "b H W 3"], config: PersonDetectorConfig
) -> DetectorMaps:
    """The last stack's maps, with the running statistics of batch norm.

    Args:
        variables: from ``init_person_detector`` or a weight file.
        images: RGB in [0, 1]; height and width are multiples of 4 x 2^depth.
        config: the architecture.
    """
    return _read_maps(apply_hourglass(variables, images, config.hourglass, joints=_MAPS)[-1])


def apply_person_detector_training(
    variables: Variables,
    images: Float[Array, "b H W 3"],
    config: PersonDetectorConfig,
    *,
    axis_name: str | None = None,
) -> tuple[DetectorMaps, Variables]:
    """Every stack's maps (s, b, ...) with the batch's own statistics, and the new ``batch_stats``."""
    maps, statistics = apply_hourglass_training(variables, images, config.hourglass, joints=_MAPS, axis_name=axis_name)
    return _read_maps(maps), statistics


def _read_maps(maps: Float[Array, "*b h w 5"]) -> DetectorMaps:
    log_size = jnp.clip(maps[..., 1:3] + jnp.log(_USUAL_SIDE), *_LOG_SIDES)
    return DetectorMaps(maps[..., 0] + _RARE, log_size, maps[..., 3:5])


def boxes_of_maps(maps: DetectorMaps) -> Float[Array, "*b h w 4"]:
    """The box that every pixel of the maps stands for, in pixels of the network's input."""
    height, width = maps.heat.shape[-2:]
    x, y = jnp.meshgrid(jnp.arange(width, dtype=float), jnp.arange(height, dtype=float))
    here = jnp.broadcast_to(jnp.stack([x, y], -1), maps.offset.shape)
    centre, half = here + maps.offset, jnp.exp(maps.log_size) / 2
    return (jnp.concatenate([centre - half, centre + half], -1) + 0.5) * STRIDE - 0.5


def decode_boxes(maps: DetectorMaps, *, capacity: int) -> Boxes:
    """Boxes at the highest peaks of one picture's centre map: pixels that none of their eight neighbours exceeds.

    Args:
        maps: of one picture.
        capacity: how many.

    Returns:
        In pixels of the network's input, the highest score first; fewer peaks leave entries that are not valid.

    Reference: Zhou et al. 2019, section 3.1.
    """
    score = jax.nn.sigmoid(jnp.where(jnp.isnan(maps.heat), -jnp.inf, maps.heat))
    around = lax.reduce_window(score, -jnp.inf, lax.max, (3, 3), (1, 1), "SAME")
    peaks = jnp.where(score == around, score, -1.0).ravel()
    best, place = lax.top_k(peaks, min(capacity, peaks.size))
    boxes = boxes_of_maps(maps).reshape(-1, 4)[place]
    # A score of zero is where the maps are not numbers.
    valid = (best > 0) & jnp.isfinite(boxes).all(-1)
    return Boxes(jnp.where(valid[:, None], boxes, 0.0), jnp.maximum(best, 0.0), valid)


def detect_people(
    variables: Variables,
    image: Num[Array, "H W 3"],
    size: tuple[int, int] | Num[Array, "2"],
    *,
    config: PersonDetectorConfig,
    threshold: float,
    capacity: int,
) -> Boxes:
    """The boxes of a picture's people, found at every scale of ``config.sides``: pure, for ``jit``.

    Args:
        variables: of the detector.
        image: RGB, 0 to 255; it may be padded with black at the right and the lower edge.
        size: (height, width) of the picture itself.
        config: the architecture.
        threshold: boxes of a lower score are not valid.
        capacity: most boxes, the best ones.

    Returns:
        Pixels of the picture, cut at its edges, the highest score first.
    """
    height, width = jnp.asarray(size[0], float), jnp.asarray(size[1], float)
    search = partial(_search, variables, image, config=config, capacity=capacity)
    found = [search(jnp.maximum(height, width), side) for side in config.sides]
    everywhere: Boxes = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
    xyxy, score, valid = everywhere.xyxy, everywhere.score, everywhere.valid
    limit = jnp.stack([width, height, width, height]) - 0.5
    xyxy = jnp.clip(xyxy, -0.5, jnp.broadcast_to(limit, xyxy.shape))
    valid &= (score >= threshold) & (xyxy[:, 2:] > xyxy[:, :2]).all(-1)
    valid = box_nms(xyxy, score, valid, threshold=config.overlap)
    _, best = lax.top_k(jnp.where(valid, score, -1.0), min(capacity, len(score)))
    return Boxes(jnp.where(valid[:, None], xyxy, 0.0)[best], score[best], valid[best])


def _search(
    variables: Variables, image: Array, longer: Array, side: int, *, config: PersonDetectorConfig, capacity: int
) -> Boxes:
    """Boxes found in a square in which the picture's longer side has ``side`` pixels; pixels of the picture."""
    square = jnp.stack([-0.5, -0.5, longer - 0.5, longer - 0.5])
    image_from_input = image_from_crop(square, (side, side))
    seen = crop_image(image, image_from_input, (side, side), levels=_LEVELS) / 255
    maps = jax.tree.map(lambda leaf: leaf[0], apply_person_detector(variables, seen[None], config))
    boxes = decode_boxes(maps, capacity=capacity)
    length = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).max(-1)
    low, high = config.lengths[0] / _SLACK, config.lengths[1] * _SLACK
    # What no other scale could show better stays, however small or large it is.
    known = (side == max(config.sides)) | (length >= low)
    known &= (side == min(config.sides)) | (length <= high)
    xyxy = transform_points(image_from_input, boxes.xyxy.reshape(-1, 2)).reshape(-1, 4)
    return Boxes(xyxy, boxes.score, boxes.valid & known)
