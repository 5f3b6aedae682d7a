"""Boxes as x0 y0 x1 y1, in pixels: formats, IoU, extension, clipping, box NMS.

Convention: coordinates are continuous and pixel centres stand at integers, so a picture of W x H pixels covers
[-0.5, W - 0.5] x [-0.5, H - 0.5]. Every function takes one box ``(4,)`` or any leading axes ``(..., 4)``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Pixels from the origin beyond which a box is taken for broken; much farther, float32 overflows.
_FARTHEST = 1e6
# Up to so many scores all pairs are compared: a fifth of the time of sorting on a CPU, but memory for every pair.
_COUNTED = 256


def boxes_xywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Corner and size to two corners, as COCO files need.

    Example:
        >>> boxes_xywh_to_xyxy(jnp.array([10.0, 20.0, 4.0, 6.0])).tolist()
        [10.0, 20.0, 14.0, 26.0]
    """
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def boxes_xyxy_to_xywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Two corners to corner and size; the inverse of ``boxes_xywh_to_xyxy``."""
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def usable_boxes(boxes: Float[Array, "*n 4"]) -> Bool[Array, "*n"]:
    """True where both sides are longer than zero and all four numbers are finite and below a million pixels."""
    return (jnp.abs(boxes) <= _FARTHEST).all(-1) & (boxes[..., 2:] > boxes[..., :2]).all(-1)


def boxes_on_picture(boxes: Float[Array, "*n 4"], size: tuple[int, int]) -> Bool[Array, "*n"]:
    """True where a box is usable and shares some area with a picture of ``size`` (height, width)."""
    return usable_boxes(boxes) & (box_area(clip_boxes(boxes, size)) > 0)


def box_area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Area in square pixels; zero for an inverted box."""
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0).prod(-1)


def box_iou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Intersection over union of boxes at the same place in ``a`` and ``b``; zero where both are empty.

    For all pairs write ``box_iou(a[:, None], b[None])``.

    Example:
        >>> float(box_iou(jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 0.0, 3.0, 2.0])))
        0.3333333432674408
    """
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    overlap = jnp.maximum(high - low, 0.0).prod(-1)
    union = box_area(a) + box_area(b) - overlap
    return overlap / jnp.where(union > 0, union, 1.0)


def extend_boxes(boxes: Float[Array, "*n 4"], fraction: float) -> Float[Array, "*n 4"]:
    """Grows each box about its centre by ``fraction`` of its width and height in total.

    Reference: RMPE extends human proposals "to guarantee the entire person region": by 0.3 at ICCV 2017 (15 % at
    each side in the released evaluation), by 0.2 in the arXiv text.

    Example:
        >>> [round(float(v), 4) for v in extend_boxes(jnp.array([0.0, 0.0, 10.0, 20.0]), 0.2)]
        [-1.0, -2.0, 11.0, 22.0]
    """
    margin = (boxes[..., 2:] - boxes[..., :2]) * (fraction / 2)
    return jnp.concatenate([boxes[..., :2] - margin, boxes[..., 2:] + margin], -1)


def fit_aspect(boxes: Float[Array, "*n 4"], aspect: float) -> Float[Array, "*n 4"]:
    """Grows the shorter side about the centre until width / height is ``aspect``, so that a crop is not distorted."""
    size = boxes[..., 2:] - boxes[..., :2]
    width = jnp.maximum(size[..., 0], size[..., 1] * aspect)
    half = jnp.stack([width, width / aspect], -1) / 2
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def clip_boxes(boxes: Float[Array, "*n 4"], size: tuple[int, int]) -> Float[Array, "*n 4"]:
    """Clips to a picture of ``size`` (height, width); a box wholly outside becomes empty."""
    height, width = size
    limit = jnp.array([width, height, width, height], boxes.dtype) - 0.5
    return jnp.clip(boxes, -0.5, jnp.broadcast_to(limit, boxes.shape))


def box_nms(
    boxes: Float[Array, "p 4"], score: Float[Array, "p"], valid: Bool[Array, "p"], *, threshold: float = 0.6
) -> Bool[Array, "p"]:
    """Greedy non-maximum suppression: which boxes stay.

    The highest score first (equal scores: the lower index), each kept box removes those with IoU > ``threshold``.

    Args:
        boxes: x0 y0 x1 y1, pixels.
        score: confidence.
        valid: entries that hold a box; the others are never kept and remove nothing.
        threshold: IoU above which the weaker box goes.

    Returns:
        Mask of the kept boxes, in input order.
    """
    overlap = box_iou(boxes[:, None], boxes[None]) > threshold
    return greedy_suppression(overlap, score, valid)


def greedy_suppression(
    removes: Bool[Array, "p p"], score: Float[Array, "p"], valid: Bool[Array, "p"]
) -> Bool[Array, "p"]:
    """Which entries the greedy loop keeps, where all pairs are at hand.

    Args:
        removes: ``removes[i, j]`` says that i, once kept, removes j if j is ranked lower; the diagonal is not read.
        score: order of the references, highest first; equal scores keep the input order; NaN counts as lowest.
        valid: entries that take part.

    Returns:
        Mask of the kept entries, in input order.
    """
    return greedy_elimination(lambda reference: removes[reference], score, valid) == jnp.arange(score.shape[0])


def greedy_elimination(
    removes: Callable[[Int[Array, ""]], Bool[Array, "p"]], score: Float[Array, "p"], valid: Bool[Array, "p"]
) -> Int[Array, "p"]:
    """The greedy loop of every NMS here: who removes whom.

    The best entry left is kept and removes what it says of the others left; this repeats until none is left.

    Args:
        removes: gives the row of one reference: which others it removes. Called for kept entries only.
        score: order of the references, highest first; equal scores keep the input order; NaN counts as lowest.
        valid: entries that take part.

    Returns:
        For each entry the index of the one that removed it, its own where it is kept, -1 where it is not valid.
    """
    count = score.shape[0]
    if count == 0:
        return jnp.zeros(0, jnp.int32)
    place = _places(score)
    index = jnp.arange(count, dtype=jnp.int32)
    order = jnp.zeros_like(index).at[place].set(index, unique_indices=True)
    out, free = -2, -1  # what stands for an entry that takes no part, and for one that is left

    def best_left(remover):
        return jnp.where(remover == free, place, count).min()

    def visit(state):
        remover, best = state
        reference = order.at[best].get(mode="clip")
        gone = (remover == free) & (removes(reference) | (place == best))
        remover = jnp.where(gone, reference, remover)
        return remover, best_left(remover)

    start = jnp.where(valid, free, jnp.full_like(index, out))
    remover, _ = jax.lax.while_loop(lambda state: state[1] < count, visit, (start, best_left(start)))
    return jnp.maximum(remover, -1)


def _places(score: Float[Array, "p"]) -> Int[Array, "p"]:
    """How many entries come before each one: highest score first, equal ones in input order, NaN last."""
    index = jnp.arange(score.shape[0], dtype=jnp.int32)
    if score.shape[0] > _COUNTED:
        order = jnp.argsort(-score, stable=True)  # sorting puts NaN last
        return jnp.zeros_like(index).at[order].set(index, unique_indices=True)
    # NaN comes after everything, an infinite score included.
    score = jnp.where(jnp.isnan(score), -jnp.inf, jnp.maximum(score, jnp.finfo(score.dtype).min))
    equal_before = (score[:, None] == score[None]) & (index[:, None] < index[None])
    return ((score[:, None] > score[None]) | equal_before).sum(0, dtype=jnp.int32)
