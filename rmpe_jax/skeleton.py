"""Skeletons: joint names, limbs, left-right pairs and OKS sigmas, and how one skeleton maps to another.

Joints are matched by name. Sides are written ``left_`` and ``right_`` and mean the person's own left and right.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A named, ordered set of joints.

    Attributes:
        name: how commands and weight files call it.
        joints: joint names in storage order.
        limbs: pairs of joint names to be drawn as sticks.
        sigmas: the per-joint constant of OKS, as used by COCO's evaluation (one per joint).
    """

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...]

    def __post_init__(self):
        if len(set(self.joints)) != len(self.joints):
            raise ValueError(f"skeleton {self.name}: joint names repeat")
        if len(self.sigmas) != len(self.joints):
            raise ValueError(f"skeleton {self.name}: {len(self.joints)} joints but {len(self.sigmas)} sigmas")
        unknown = {joint for limb in self.limbs for joint in limb} - set(self.joints)
        if unknown:
            raise ValueError(f"skeleton {self.name}: limbs name unknown joints {sorted(unknown)}")

    @property
    def size(self) -> int:
        """Number of joints."""
        return len(self.joints)

    @functools.cached_property
    def flip_order(self) -> tuple[int, ...]:
        """``points[flip_order]`` exchanges left and right joints; joints without a side stay."""
        swap = {"left": "right", "right": "left"}
        order = []
        for joint in self.joints:
            side, _, rest = joint.partition("_")
            order.append(self.joints.index(f"{swap[side]}_{rest}" if side in swap else joint))
        return tuple(order)

    @functools.cached_property
    def limb_indices(self) -> tuple[tuple[int, int], ...]:
        """The limbs as pairs of joint indices."""
        return tuple((self.joints.index(a), self.joints.index(b)) for a, b in self.limbs)


def joint_map(source: Skeleton, target: Skeleton) -> tuple[int, ...]:
    """For each joint of ``target`` its index in ``source``, or -1 where ``source`` has no such joint.

    Example:
        >>> joint_map(LSP_14, COCO_17)[:6]
        (-1, -1, -1, -1, -1, 9)
    """
    return tuple(source.joints.index(joint) if joint in source.joints else -1 for joint in target.joints)


def convert_points(
    points: Float[Array, "*n k 2"], labelled: Bool[Array, "*n k"], source: Skeleton, target: Skeleton
) -> tuple[Float[Array, "*n j 2"], Bool[Array, "*n j"]]:
    """Reorders points from one skeleton to another; joints that ``source`` lacks become (0, 0), not labelled.

    Args:
        points: joints in ``source`` order, any frame.
        labelled: which of them carry a label.
        source: the skeleton of the input.
        target: the skeleton wanted.

    Returns:
        Points and labels in ``target`` order.
    """
    order = jnp.array(joint_map(source, target))
    known = jnp.broadcast_to(order >= 0, (*labelled.shape[:-1], target.size))
    points = jnp.where(known[..., None], points[..., order, :], 0.0)
    return points, labelled[..., order] & known


_SIDES = ("left", "right")
_LIMBS_OF_THE_BODY = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in _SIDES
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)
_TORSO = (
    ("left_shoulder", "right_shoulder"),
    ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
)
_FACE = (("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"))

# COCO's evaluation (pycocotools, Params.kpt_oks_sigmas) gives the 17 values. Joints that COCO lacks take CrowdPose's
# 0.079 for head and neck, and the hip's value for the pelvis.
_SIGMA = {
    **{"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062},
    **{"hip": 0.107, "knee": 0.087, "ankle": 0.089, "neck": 0.079, "head_top": 0.079, "thorax": 0.079, "pelvis": 0.107},
}


def _sigmas(joints: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(_SIGMA[joint.removeprefix("left_").removeprefix("right_")] for joint in joints)


def _skeleton(name: str, joints: tuple[str, ...], limbs: tuple[tuple[str, str], ...]) -> Skeleton:
    return Skeleton(name, joints, limbs, _sigmas(joints))


_COCO_JOINTS = ("nose",) + tuple(
    f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in _SIDES
)
_LSP_JOINTS = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
    *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    *("neck", "head_top"),
)
_MPII_JOINTS = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
    *("pelvis", "thorax", "neck", "head_top"),
    *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
)

COCO_17 = _skeleton("coco_17", _COCO_JOINTS, _LIMBS_OF_THE_BODY + _TORSO + _FACE)
LSP_14 = _skeleton("lsp_14", _LSP_JOINTS, _LIMBS_OF_THE_BODY + _TORSO + (("neck", "head_top"),))
MPII_16 = _skeleton(
    "mpii_16",
    _MPII_JOINTS,
    _LIMBS_OF_THE_BODY + _TORSO + (("pelvis", "thorax"), ("thorax", "neck"), ("neck", "head_top")),
)
#: COCO's joints, then the two that only LSP has: one network learns from both data sets.
COCO_LSP_19 = _skeleton(
    "coco_lsp_19", (*_COCO_JOINTS, "neck", "head_top"), _LIMBS_OF_THE_BODY + _TORSO + _FACE + (("neck", "head_top"),)
)

_SIDED = tuple(f"{side}_{part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in _SIDES)
_ARMS = tuple(limb for limb in _LIMBS_OF_THE_BODY if limb[0].endswith(("shoulder", "elbow")))
CROWDPOSE_14 = _skeleton(
    "crowdpose_14", (*_SIDED, "head_top", "neck"), _LIMBS_OF_THE_BODY + _TORSO + (("neck", "head_top"),)
)
#: The eleven joints of FLIC that are labelled, in FLIC's order.
FLIC_11 = _skeleton(
    "flic_11",
    (
        *("left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist"),
        *("left_hip", "right_hip", "left_eye", "right_eye", "nose"),
    ),
    _ARMS + _TORSO + _FACE[:2],
)
#: The ends of We Are Family's six sticks: arms in LSP's order, head, torso.
WAF_10 = _skeleton(
    "waf_10",
    (*_LSP_JOINTS[6:], "thorax", "pelvis"),
    _ARMS + (("left_shoulder", "right_shoulder"), ("thorax", "pelvis"), ("neck", "head_top")),
)

SKELETONS = {
    skeleton.name: skeleton for skeleton in (COCO_17, LSP_14, MPII_16, COCO_LSP_19, CROWDPOSE_14, FLIC_11, WAF_10)
}
#: The twelve joints of arms and legs that the skeletons of whole bodies have.
LIMB_JOINTS = tuple(joint for joint in _COCO_JOINTS if joint in _LSP_JOINTS)


def skeleton_named(name: str) -> Skeleton:
    """Looks a skeleton up by name; raises ValueError that lists the known names."""
    if name not in SKELETONS:
        raise ValueError(f"unknown skeleton {name!r}; known: {', '.join(sorted(SKELETONS))}")
    return SKELETONS[name]
