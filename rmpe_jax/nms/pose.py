"""The parametric pose NMS: of poses that describe the same person, the most confident one stays.

The most confident pose is the reference; poses similar to it are eliminated; this repeats on what remains. The
similarity of a reference i and another pose j sums, over joints n,

    K_Sim = tanh(c_i / sigma1) tanh(c_j / sigma1) where k_j lies in the neighbourhood of k_i, else 0
    H_Sim = exp(-distance^2 / sigma2)
    d     = K_Sim + lambda H_Sim

and j goes when d > eta. (The paper's eq. 7 prints "d <= eta" although d grows with similarity; its released code
removes above eta, and so does this.)

Distances are divided by a tenth of the longer side of the reference's box, so that the four parameters do not depend
on the size of people in the picture.

Reference: RMPE eqs 7 to 10.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmpe_jax.geometry.boxes import greedy_suppression
from rmpe_jax.records import Poses


@dataclasses.dataclass(frozen=True)
class PoseNMSParameters:
    """The learned constants and the reading of the paper's two ambiguous definitions."""

    sigma1: float = 0.01  # of the joints' confidences
    sigma2: float = 2.08  # of the distances, in units of the reference distance (squared for "gaussian")
    lambda_: float = 2.08  # weight of H_Sim
    eta: float = 22.48  # similarity above which a pose goes, for ``eta_joints`` joints
    eta_joints: int = 16  # number of joints that eta was learned with; eta scales with the joints at hand
    region: Literal["circle", "box"] = "circle"  # K_Sim's neighbourhood: see ``keypoint_similarity``
    kernel: Literal["laplace", "gaussian"] = "laplace"  # H_Sim: exp(-d / sigma2) or exp(-d^2 / sigma2)
    alpha: float = 0.1  # reference distance over the longer side of the reference's box

    def __post_init__(self):
        if self.region not in ("circle", "box") or self.kernel not in ("laplace", "gaussian"):
            raise ValueError(f"unknown region {self.region!r} or kernel {self.kernel!r}")
        if not (self.sigma1 > 0 and self.sigma2 > 0 and self.alpha > 0 and self.eta_joints > 0):
            raise ValueError("sigma1, sigma2, alpha and eta_joints must be positive")


#: The constants and definitions of the code that the authors released with the paper (16 joints of MPII).
RELEASED = PoseNMSParameters()


def pose_similarity(
    points: Float[Array, "p k 2"],
    score: Float[Array, "p k"],
    boxes: Float[Array, "p 4"],
    *,
    parameters: PoseNMSParameters = RELEASED,
) -> Float[Array, "p p"]:
    """The similarity d of every pair of poses.

    Row i takes pose i as the reference, whose box sets the scale: the matrix is not symmetric.

    Args:
        points: joints, pixels.
        score: confidences; each joint that is not finite in place or score counts for nothing.
        boxes: each pose's box, not extended, x0 y0 x1 y1.
        parameters: constants and definitions.

    Returns:
        Similarities, between 0 and (1 + lambda) k.
    """
    usable = jnp.isfinite(points).all(-1) & jnp.isfinite(score)
    points, score = jnp.where(usable[..., None], points, 0.0), jnp.where(usable, score, 0.0)
    side = jnp.where(jnp.isfinite(boxes).all(-1)[:, None], boxes[:, 2:] - boxes[:, :2], 0.0)
    side = jnp.maximum(side, 1e-3)
    confidence = jnp.tanh(score / parameters.sigma1)
    total = jnp.zeros((points.shape[0], points.shape[0]), points.dtype)
    # Joints run outermost: sums over (p, p) planes are several times faster than over a minor axis of joints.
    for joint in range(points.shape[1]):
        both = usable[:, None, joint] & usable[None, :, joint]
        difference = jnp.abs(points[:, None, joint] - points[None, :, joint])
        near = _is_near(difference, side, parameters)
        keypoint = jnp.where(near, confidence[:, None, joint] * confidence[None, :, joint], 0.0)
        total += jnp.where(both, keypoint + parameters.lambda_ * _kernel(difference, side, parameters), 0.0)
    return total


def _reference_distance(side: Float[Array, "p 2"], parameters: PoseNMSParameters) -> Float[Array, "p 1"]:
    return parameters.alpha * side.max(-1, keepdims=True)


def _is_near(
    difference: Float[Array, "p p 2"], side: Float[Array, "p 2"], parameters: PoseNMSParameters
) -> Bool[Array, "p p"]:
    """B(k_i): the paper's box, a tenth of the reference's box on each side, or the released code's circle."""
    if parameters.region == "box":
        return (difference <= parameters.alpha * side[:, None] / 2).all(-1)
    return (difference**2).sum(-1) <= _reference_distance(side, parameters) ** 2


def _kernel(
    difference: Float[Array, "p p 2"], side: Float[Array, "p 2"], parameters: PoseNMSParameters
) -> Float[Array, "p p"]:
    squared = (difference**2).sum(-1) / _reference_distance(side, parameters) ** 2
    if parameters.kernel == "gaussian":
        return jnp.exp(-squared / parameters.sigma2)
    # The square root has no gradient at zero, where a pose meets itself: there the distance is constant.
    apart = squared > 0
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
    return jnp.exp(-distance / parameters.sigma2)


def pose_nms(poses: Poses, *, parameters: PoseNMSParameters = RELEASED) -> Bool[Array, "p"]:
    """Which poses stay: greedy, at fixed capacity, under ``jit`` and ``vmap``.

    References are taken by mean joint confidence, highest first, equal ones in input order. Entries that are not
    valid never stay and remove nothing. A reference never removes itself. eta is scaled by the number of joints over
    ``eta_joints``.

    Args:
        poses: of one picture.
        parameters: constants and definitions; ``RELEASED`` by default.

    Returns:
        Mask of the poses that stay, in input order.
    """
    eta = parameters.eta * poses.points.shape[1] / parameters.eta_joints
    similarity = pose_similarity(poses.points, poses.score, poses.boxes, parameters=parameters)
    return greedy_suppression(similarity > eta, poses.pose_score, poses.valid)
