"""Other ways to remove poses of the same person, to compare the parametric pose NMS with.

All share its interface: the poses of one picture in, a mask of those that stay out, in input order; references are
taken by ``rank``, the mean of the joints' scores by default, highest first, equal ones in input order, NaN last.
Entries that are not valid never stay and remove nothing. Joints that are not finite in place or score count for
nothing; a broken box has no area. A pose goes when its overlap with a reference is above the threshold.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rmpe_jax.geometry.boxes import box_area, box_nms, greedy_elimination, usable_boxes
from rmpe_jax.nms.pose import joint_planes
from rmpe_jax.records import Poses

# cocoeval adds numpy.spacing(1) to the area.
_EPSILON = 2.220446049250313e-16


def oks_nms(
    poses: Poses, *, threshold: float = 0.9, sigmas: tuple[float, ...], rank: Float[Array, "p"] | None = None
) -> Bool[Array, "p"]:
    """NMS by OKS: the mean over the reference's joints of exp(-d^2 / (2 area (2 sigma)^2)).

    The area is the mean of both poses' boxes'. A joint that only the reference has counts as infinitely far.

    Args:
        poses: of one picture.
        threshold: OKS above which the weaker pose goes; mmpose's default.
        sigmas: of OKS, one for each joint, see ``Skeleton.sigmas``.
        rank: order of the references.
    """
    overlap = _oks_with(poses, sigmas)
    return _greedy(lambda reference: overlap(reference) > threshold, poses, rank)


def soft_oks_nms(
    poses: Poses,
    *,
    threshold: float = 0.9,
    sigmas: tuple[float, ...],
    limit: int = 20,
    rank: Float[Array, "p"] | None = None,
) -> tuple[Bool[Array, "p"], Float[Array, "p"]]:
    """Soft NMS by OKS: nobody goes for being similar, but loses score, s exp(-oks^2 / threshold) for each pose taken.

    The best of those left is taken, the others lose score, and so on, ``limit`` times at most.

    Args:
        poses: of one picture.
        threshold: the larger, the less is lost; mmpose's default.
        sigmas: of OKS, one for each joint.
        limit: how many poses stay at most.
        rank: scores to start from, not negative.

    Returns:
        Mask of the poses taken, and their scores when they were; the others' are what is left, zero if not valid.

    Reference: Bodla et al., Soft-NMS, ICCV 2017, with OKS in place of IoU as in mmpose.
    """
    if not threshold > 0 or limit < 0:
        raise ValueError(f"expected a threshold above 0 and a limit not below, got {threshold} and {limit}")
    overlap = _oks_with(poses, sigmas)
    rank = poses.pose_score if rank is None else rank
    score = jnp.where(poses.valid & ~jnp.isnan(rank), rank, 0.0)
    if not score.size:
        return poses.valid, score

    def take(_, state):
        left, score = state
        best = jnp.argmax(jnp.where(left, score, -jnp.inf))
        left = left & (jnp.arange(left.shape[0]) != best)
        return left, jnp.where(left, score * jnp.exp(-(overlap(best) ** 2) / threshold), score)

    left, score = jax.lax.fori_loop(0, min(limit, score.shape[0]), take, (poses.valid, score))
    return poses.valid & ~left, score


def box_pose_nms(poses: Poses, *, threshold: float = 0.45, rank: Float[Array, "p"] | None = None) -> Bool[Array, "p"]:
    """NMS by the IoU of the poses' boxes: what a detector does, whatever the poses.

    Args:
        poses: of one picture.
        threshold: IoU above which the weaker pose goes.
        rank: order of the references.
    """
    boxes = jnp.where(usable_boxes(poses.boxes)[:, None], poses.boxes, 0.0)
    return box_nms(boxes, poses.pose_score if rank is None else rank, poses.valid, threshold=threshold)


def joint_overlap_nms(
    poses: Poses, *, distance: float = 0.05, share: float = 0.5, rank: Float[Array, "p"] | None = None
) -> Bool[Array, "p"]:
    """NMS by the number of joints in the same place.

    Stands in for the NMS of Chen and Yuille (CVPR 2015) in the paper's ablation, whose exact rule is not at hand.

    Args:
        poses: of one picture.
        distance: how far joints may lie apart, over the diagonal of the extent of the reference's joints.
        share: a pose goes when more than this share of its joints is as close to the reference's.
        rank: order of the references.
    """
    x, y, usable = joint_planes(poses.points, poses.score)
    limit = distance**2 * (_extent(x, usable) ** 2 + _extent(y, usable) ** 2)
    joints = usable.sum(0)

    def removes(reference):
        squared = (x - x[:, reference, None]) ** 2 + (y - y[:, reference, None]) ** 2
        close = usable & usable[:, reference, None] & (squared <= limit[reference])
        return close.sum(0) > share * joints

    return _greedy(removes, poses, rank)


def _greedy(
    removes: Callable[[Int[Array, ""]], Bool[Array, "p"]], poses: Poses, rank: Float[Array, "p"] | None
) -> Bool[Array, "p"]:
    rank = poses.pose_score if rank is None else rank
    return greedy_elimination(removes, rank, poses.valid) == jnp.arange(rank.shape[0])


def _extent(values: Float[Array, "k p"], usable: Bool[Array, "k p"]) -> Float[Array, "p"]:
    """Largest less smallest value over usable joints; zero where there are none."""
    low, high = (jnp.where(usable, values, fill) for fill in (jnp.inf, -jnp.inf))
    return jnp.maximum(high.max(0, initial=-jnp.inf) - low.min(0, initial=jnp.inf), 0.0)


def _oks_with(poses: Poses, sigmas: tuple[float, ...]) -> Callable[[Int[Array, ""]], Float[Array, "p"]]:
    """A function that gives the OKS of one pose, the reference, with all."""
    if len(sigmas) != poses.score.shape[1]:
        raise ValueError(f"expected one sigma for each of {poses.score.shape[1]} joints, got {len(sigmas)}")
    x, y, usable = joint_planes(poses.points, poses.score)
    width = 8**0.5 * jnp.array(sigmas, x.dtype)[:, None]
    x, y = x / width, y / width
    area = jnp.where(usable_boxes(poses.boxes), box_area(poses.boxes), 0.0)
    # A missing joint is infinitely far from all others, without a mask: as the reference's it lies at the other end.
    other, own = (jnp.where(usable, x, end) for end in (jnp.inf, -jnp.inf))
    # What is read of a reference lies side by side.
    rows = jnp.concatenate([own, y, area[None], jnp.maximum(usable.sum(0), 1).astype(x.dtype)[None]]).T

    def overlap(reference):
        *place, own_area, joints = rows[reference]
        scale = -1 / ((area + own_area) / 2 + _EPSILON)
        total = jnp.zeros_like(area)
        # Joints run outermost: several times faster than sums over a minor axis.
        for joint in range(len(sigmas)):
            squared = (other[joint] - place[joint]) ** 2 + (y[joint] - place[len(sigmas) + joint]) ** 2
            total += jnp.exp(squared * scale)
        return total / joints

    return overlap
