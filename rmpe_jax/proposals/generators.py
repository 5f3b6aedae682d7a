"""Proposals generators behind one signature: boxes that a detector might give a person, to train on.

``sample_boxes(key, box, points, labelled, generator=..., num=...)`` gives boxes and their weights, whatever the
generator is, so that a training step does not know which one it was given:

* ``Law("exact")``: the person's own box alone, the ablation's lower end;
* ``Law("uniform")``: the own box shaken uniformly, as far as it keeps an IoU above 0.5 with itself;
* ``Law("gaussian")``: one pair of Gaussians for all poses, those that RMPE's first code and AlphaPose carry; and
  ``Law("harsh")``, a wider law of the study of the STN;
* ``OffsetMixtures``: PGPG, fitted to a detector's boxes by pose.

All work for one person inside ``jit``; boxes are x0 y0 x1 y1 and not extended.
"""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.proposals.mixtures import OffsetMixtures, mixture_row, sample_offsets
from rmpe_jax.proposals.offsets import PROPOSALS, Proposals, moved_box, propose

#: The generators that know nothing of the pose.
LAWS: tuple[str, ...] = (*PROPOSALS, "uniform")
# RMPE (ICCV) table 4, "random jittering": boxes keep an IoU above this.
_SMALLEST_IOU = 0.5
# Of a uniform offset of each corner, over the sides: further inwards no box keeps the IoU, further outwards few do.
_WIDEST_JITTER = 0.5
# Uniform boxes drawn for each one that is wanted. One in five keeps the IoU; that none does is one case in 700,000.
_TRIES = 64


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Law:
    """A generator that knows nothing of the pose; ``LAWS`` has the names."""

    name: str

    def __post_init__(self):
        if self.name not in LAWS:
            raise ValueError(f"expected one of {', '.join(LAWS)}, got {self.name!r}")


Generator = Law | OffsetMixtures


def sample_boxes(
    key: Array,
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    *,
    generator: Generator,
    num: int,
) -> tuple[Float[Array, "num 4"], Float[Array, "num"]]:
    """Boxes that a detector might give a person.

    Args:
        key: PRNG key.
        box: the person's own, x0 y0 x1 y1, not extended.
        points: joints in the same frame; for PGPG in the order of its skeleton.
        labelled: which joints carry a label.
        generator: the law.
        num: how many boxes.

    Returns:
        Boxes with sides of at least a tenth of the own box's, and their weights, which sum to one. A box that is not
        finite or has no area gives itself, with equal weights.
    """
    usable = jnp.isfinite(box).all() & (box[2:] > box[:2]).all()
    own = jnp.where(usable, box, jnp.array([0.0, 0.0, 1.0, 1.0]))
    if isinstance(generator, OffsetMixtures):
        offsets = sample_offsets(key, mixture_row(points, labelled, generator), generator, num=num)
        boxes = jax.vmap(lambda offset: moved_box(own, offset))(offsets)
    elif generator.name == "uniform":
        boxes = jax.vmap(lambda one: _jittered(one, own))(jax.random.split(key, num))
    else:
        law = cast(Proposals, generator.name)
        boxes = jax.vmap(lambda one: propose(one, own, law))(jax.random.split(key, num))
    return jnp.where(usable, boxes, box[None]), jnp.full(num, 1 / num)


def _jittered(key: Array, box: Float[Array, "4"]) -> Float[Array, "4"]:
    """The first of some uniform boxes that keeps the IoU; the box itself if none does."""
    offsets = jax.random.uniform(key, (_TRIES, 4), minval=-_WIDEST_JITTER, maxval=_WIDEST_JITTER)
    boxes = jax.vmap(lambda offset: moved_box(box, offset))(offsets)
    keeps = box_iou(boxes, box[None]) > _SMALLEST_IOU
    return jnp.where(keeps.any(), boxes[keeps.argmax()], box)
