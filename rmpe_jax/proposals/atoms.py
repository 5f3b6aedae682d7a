"""Atomic poses: a few typical poses, one of which stands for everybody's.

What a detector's box looks like depends on the pose: arms above the head, a seated person, somebody bent. The poses of
many people, laid over each other at the torso and brought to the same torso length, are clustered; the centres are the
atomic poses. A pose belongs to the nearest of them, by the joints that it has.

Reference: RMPE (ICCV) section 3.3, after Yao and Fei-Fei (CVPR 2010) and Andriluka et al. (CVPR 2014).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rmpe_jax.skeleton import Skeleton

# A pose with fewer labelled joints is like too many atomic poses to be told apart.
FEWEST_JOINTS = 6
# A torso shorter than this share of the labelled joints' extent is seen from the end: it gives no scale.
_SHORTEST_TORSO = 0.05
# The ends of the torso; the second choice is for skeletons without the first.
_ENDS = ((("left_shoulder", "right_shoulder"),), (("left_hip", "right_hip"), ("pelvis",)))


def torso_frame(
    points: Float[Array, "k 2"], labelled: Bool[Array, "k"], *, skeleton: Skeleton
) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """The middle of the torso and its length, from the middle of the shoulders to that of the hips.

    Of a pair of which one joint is labelled, that one stands for both. A skeleton without hips ends at its pelvis.

    Args:
        points: joints, any frame.
        labelled: which joints carry a label.
        skeleton: of the pose.

    Returns:
        Middle and length; length zero where a pair is missing or both ends coincide, and middle zero there.
    """
    (shoulders, any_shoulder), (hips, any_hip) = (_middle(points, labelled, skeleton, choices) for choices in _ENDS)
    seen = jnp.where(labelled[:, None], points, jnp.nan)
    extent = (jnp.nanmax(seen, 0) - jnp.nanmin(seen, 0)).max()
    across = shoulders - hips
    squared = (across**2).sum()
    found = any_shoulder & any_hip & (squared > (_SHORTEST_TORSO * extent) ** 2)
    return jnp.where(found, (shoulders + hips) / 2, 0.0), jnp.where(
        found, jnp.sqrt(jnp.where(found, squared, 1.0)), 0.0
    )


def _middle(
    points: Array, labelled: Array, skeleton: Skeleton, choices: tuple[tuple[str, ...], ...]
) -> tuple[Float[Array, "2"], Bool[Array, ""]]:
    names = next(names for names in choices if set(names) <= set(skeleton.joints))
    joints = jnp.array([skeleton.joints.index(name) for name in names])
    known = labelled[joints]
    total = jnp.where(known[:, None], points[joints], 0.0).sum(0)
    return total / jnp.maximum(known.sum(), 1), known.any()


def normalized_pose(
    points: Float[Array, "k 2"], labelled: Bool[Array, "k"], *, skeleton: Skeleton
) -> tuple[Float[Array, "k 2"], Bool[Array, "k"]]:
    """The pose in torso lengths from the middle of its torso, and which joints it has; nothing without a torso.

    Args:
        points: joints, any frame.
        labelled: which joints carry a label; one that is not finite counts as not labelled.
        skeleton: of the pose.
    """
    labelled = labelled & jnp.isfinite(points).all(-1)
    points = jnp.where(labelled[:, None], points, 0.0)
    middle, length = torso_frame(points, labelled, skeleton=skeleton)
    known = labelled & (length > 0)
    normal = (points - middle[None]) / jnp.where(length > 0, length, 1.0)
    return jnp.where(known[:, None], normal, 0.0), known


def nearest_atom(
    points: Float[Array, "k 2"], labelled: Bool[Array, "k"], atoms: Float[Array, "a k 2"], *, skeleton: Skeleton
) -> Int[Array, ""]:
    """Index of the atomic pose with the least mean squared distance over the joints that the pose has.

    Args:
        points: joints, any frame.
        labelled: which joints carry a label.
        atoms: the atomic poses, in torso lengths; NaN for a joint that they lack.
        skeleton: of the pose and of the atomic poses.

    Returns:
        The index; the number of atomic poses, a, for a pose without a torso or with fewer than six joints.
    """
    pose, known = normalized_pose(points, labelled, skeleton=skeleton)
    known = known & jnp.isfinite(atoms).all((0, 2))
    squared = ((atoms - pose[None]) ** 2).sum(-1)
    distance = jnp.where(known[None], squared, 0.0).sum(-1)
    return jnp.where(known.sum() >= FEWEST_JOINTS, distance.argmin(), len(atoms))
