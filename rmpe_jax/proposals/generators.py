"""Proposals generators behind one signature: boxes that a detector might give a person, to train on.

``sample_boxes(key, box, points, labelled, generator=..., num=...)`` gives boxes and their weights, whatever the
generator is, so that a training step does not know which one it was given:

* ``Law("exact")``: the person's own box alone, the ablation's lower end;
* ``Law("uniform")``: the own box shaken uniformly, as far as it keeps an IoU above 0.5 with itself;
* ``Law("alphapose_global")``: one pair of Gaussians for all poses, those that RMPE's first code and AlphaPose carry;
  ``Law("patch_15")`` and ``Law("patch_30")``, the same with so many of a hundred boxes cut down to a part of the
  person, as AlphaPose and RMPE's released code train; ``Law("harsh")``, a wider law of the study of the STN;
* ``OffsetMixtures``: PGPG, fitted to a detector's boxes by pose;
* ``ScoredProposals``: DPG, random boxes chosen by a network that has seen a detector's.

All work for one person inside ``jit``; boxes are x0 y0 x1 y1 and not extended.
"""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.proposals import mixtures, scored
from rmpe_jax.proposals.mixtures import OffsetMixtures, mixture_row, sample_offsets
from rmpe_jax.proposals.offsets import PROPOSALS, Proposals, moved_box, patch_box, propose
from rmpe_jax.proposals.scored import ScoredProposals, sample_scored
from rmpe_jax.skeleton import Skeleton

# The published Gaussians with this share of patches: AlphaPose's, and RMPE's released code.
_PATCHES = {"patch_15": 0.15, "patch_30": 0.3}
#: The generators that know nothing of the pose.
LAWS: tuple[str, ...] = (*PROPOSALS, "uniform", *_PATCHES)
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


Generator = Law | OffsetMixtures | ScoredProposals


def in_skeleton(generator: Generator, skeleton: Skeleton) -> Generator:
    """The same generator for poses of another skeleton."""
    if isinstance(generator, OffsetMixtures):
        return mixtures.in_skeleton(generator, skeleton)
    return scored.in_skeleton(generator, skeleton) if isinstance(generator, ScoredProposals) else generator


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
        points: joints in the same frame; for PGPG and DPG in the order of their skeleton, see ``in_skeleton``.
        labelled: which joints carry a label.
        generator: the law.
        num: how many boxes. DPG's are drawn with repetition, from the few of its random boxes that score high: of 64,
            a quarter are different ones.

    Returns:
        Boxes with sides of at least a tenth of the own box's, and their weights, which sum to one. A box that is not
        finite or has no area gives itself, as it is.

    Raises:
        ValueError: no boxes are asked for.
    """
    boxes = whole_boxes(key, box, points, labelled, generator=generator, num=num)
    keys = jax.random.split(jax.random.fold_in(key, 1), num)
    boxes, _ = jax.vmap(lambda one, key: cut_patch(key, one, box, patch_share(generator)))(boxes, keys)
    return boxes, jnp.full(num, 1 / num)


def whole_boxes(
    key: Array,
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    *,
    generator: Generator,
    num: int,
) -> Float[Array, "{num} 4"]:
    """The boxes of ``sample_boxes`` before some of them are cut down to patches."""
    if num < 1:
        raise ValueError(f"expected num >= 1, got {num}")
    usable = _usable(box)
    own = jnp.where(usable, box, jnp.array([0.0, 0.0, 1.0, 1.0]))
    if isinstance(generator, ScoredProposals):
        boxes = sample_scored(key, own, points, labelled, generator, num=num)
    elif isinstance(generator, OffsetMixtures):
        offsets = sample_offsets(key, mixture_row(points, labelled, generator), generator, num=num)
        boxes = jax.vmap(lambda offset: moved_box(own, offset))(offsets)
    elif generator.name == "uniform":
        boxes = jax.vmap(lambda one: _jittered(one, own))(jax.random.split(key, num))
    else:
        law = cast(Proposals, "alphapose_global" if generator.name in _PATCHES else generator.name)
        boxes = jax.vmap(lambda one: propose(one, own, law))(jax.random.split(key, num))
    return jnp.where(usable, boxes, box[None])


def _usable(box: Float[Array, "4"]) -> Bool[Array, ""]:
    return jnp.isfinite(box).all() & jnp.isfinite(box[2:] - box[:2]).all() & (box[2:] > box[:2]).all()


def patch_share(generator: Generator) -> float:
    """How many of a generator's boxes are patches."""
    return _PATCHES.get(generator.name, 0.0) if isinstance(generator, Law) else 0.0


def cut_patch(
    key: Array, proposal: Float[Array, "4"], box: Float[Array, "4"], share: float
) -> tuple[Float[Array, "4"], Bool[Array, ""]]:
    """The proposal, or with the probability ``share`` a part of the person's own box; and whether it is one.

    The sides of the part are U(1 - share, 1) of the box's: in the released code one uniform number says both.
    """
    if not share:
        return proposal, jnp.zeros((), bool)
    choice_key, patch_key = jax.random.split(key)
    is_patch = jax.random.bernoulli(choice_key, share) & _usable(box)
    return jnp.where(is_patch, patch_box(patch_key, box, smallest=1 - share), proposal), is_patch


def _jittered(key: Array, box: Float[Array, "4"]) -> Float[Array, "4"]:
    """The first of some uniform boxes that keeps the IoU; the box itself if none does."""
    offsets = jax.random.uniform(key, (_TRIES, 4), minval=-_WIDEST_JITTER, maxval=_WIDEST_JITTER)
    boxes = jax.vmap(lambda offset: moved_box(box, offset))(offsets)
    keeps = box_iou(boxes, box[None]) > _SMALLEST_IOU
    return jnp.where(keeps.any(), boxes[keeps.argmax()], box)
