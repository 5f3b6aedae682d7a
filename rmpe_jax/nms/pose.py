"""The parametric pose NMS: of poses that describe the same person, the most confident one stays.

The most confident pose is the reference; poses similar to it are eliminated; this repeats on what remains. The
similarity of a reference i and another pose j sums, over joints n,

    K_Sim = tanh(c_i / sigma1) tanh(c_j / sigma1) where k_j lies in the neighbourhood of k_i, else 0
    H_Sim = exp(-distance^2 / sigma2)
    d     = K_Sim + lambda H_Sim

and j goes when d > eta. (The paper's eq. 7 prints "d <= eta" although d grows with similarity; its released code
removes above eta, and so does this, unless ``criterion`` asks for the print.)

Distances are divided by a tenth of the longer side of the reference's box, the reference distance, so that the four
parameters do not depend on the size of people in the picture.

Reference: RMPE eqs 7 to 10; the code released with it; AlphaPose, the authors' later code, whose rules differ.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rmpe_jax.geometry.boxes import greedy_elimination
from rmpe_jax.records import Poses

# Settings beyond these would not be numbers, or of no use, in float32 once squared or divided by.
_SMALLEST, _LARGEST = 1e-9, 1e9


@dataclasses.dataclass(frozen=True)
class PoseNMSParameters:
    """The learned constants, the reading of the paper's two ambiguous definitions, and what other codes add."""

    sigma1: float = 0.01  # of the joints' confidences
    sigma2: float = 2.08  # of the distances, in ``unit`` (squared for "gaussian")
    lambda_: float = 2.08  # weight of H_Sim
    eta: float = 22.48  # similarity above which a pose goes, see ``eta_scale``
    eta_joints: int = 16  # number of joints that eta was learned with
    region: Literal["circle", "box"] = "circle"  # K_Sim's neighbourhood, see ``_is_near``
    kernel: Literal["laplace", "gaussian"] = "laplace"  # H_Sim: exp(-d / sigma2) or exp(-d^2 / sigma2)
    alpha: float = 0.1  # reference distance over the longer side of the reference's box
    # "literal" is eq. 7 as printed: a pose goes when d <= eta. It removes everybody who is unlike the reference, so a
    # picture keeps little more than one pose and its copies: for study only.
    criterion: Literal["similarity", "literal"] = "similarity"
    # eta k / eta_joints for k joints; eta as it is; or eta times (1 + lambda) k, the largest possible similarity.
    eta_scale: Literal["joints", "absolute", "fraction"] = "joints"
    unit: Literal["box", "pixel"] = "box"  # of distances in K_Sim and H_Sim: the reference distance, or a pixel
    match_joints: int = 0  # a pose also goes when so many joints are close to the reference's; 0: never
    match_limit: float = 7.0  # close: within the reference distance and this, pixels
    merge: Literal["none", "weighted"] = "none"  # what becomes of a kept pose's joints: see ``suppress_poses``
    merge_limit: float = math.inf  # joints further than this from the reference's are not merged, pixels
    merge_score: Literal["best", "weighted"] = "best"  # a merged joint's score: the maximum, or sum s s / sum s
    min_best: float = 0.0  # poses without a joint of at least this score are left out of the result

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            if (choices := get_args(kind)) and getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}, expected one of {choices}")
        for name in ("sigma1", "sigma2", "alpha", "eta_joints", "match_limit", "merge_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
            if not getattr(self, name) >= _SMALLEST:
                raise ValueError(f"{name} must be at least {_SMALLEST:g}, got {getattr(self, name)}")
        for name in ("lambda_", "match_joints", "min_best"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if math.isnan(self.eta) or (self.eta_scale == "fraction" and not 0 <= self.eta <= 1):
            raise ValueError(f"eta must be a number, in [0, 1] as a fraction, got {self.eta}")
        for name, value in vars(self).items():
            if not isinstance(value, str) and _LARGEST < abs(value) < math.inf:
                raise ValueError(f"{name} must be at most {_LARGEST:g}, got {value}")

    def threshold(self, joints: int) -> float:
        """The similarity above which a pose of so many joints goes."""
        largest = (1 + self.lambda_) * joints
        return self.eta * {"joints": joints / self.eta_joints, "absolute": 1.0, "fraction": largest}[self.eta_scale]


#: The code that the authors released with the paper (16 joints of MPII; delta1, mu, delta2 and gamma in its names).
RELEASED = PoseNMSParameters(merge="weighted")

#: Eqs 7 to 10 as printed, but for the sign in eq. 7. The paper prints no values of its learned constants, so these are
#: the released ones, although they were learned with the released definitions.
PAPER = PoseNMSParameters(region="box", kernel="gaussian")

#: AlphaPose (``pPose_nms.py``): thresholds for 17 joints, distances in pixels, and a second rule that counts joints.
ALPHAPOSE = PoseNMSParameters(
    sigma1=1.0,
    sigma2=2.65,
    lambda_=1.7,
    eta_scale="absolute",
    unit="pixel",
    match_joints=5,
    merge="weighted",
    merge_limit=15.0,
    merge_score="weighted",
    min_best=0.3,
)

#: The released elimination; the poses that stay are left as they were found.
DEFAULT = dataclasses.replace(RELEASED, merge="none")

PRESETS = {"default": DEFAULT, "paper": PAPER, "released": RELEASED, "alphapose": ALPHAPOSE}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Suppressed:
    """What the pose NMS makes of the poses of one picture."""

    poses: Poses  # in input order, those that stay merged; ``valid`` says which stay
    # Index of the pose that removed it; its own if it stays; -1 if it was not valid or has no joint of ``min_best``.
    eliminator: Int[Array | np.ndarray, "*batch p"]


_Removes = Callable[[Int[Array, ""]], Bool[Array, "p"]]  # of a reference: which poses it removes


class _Planes(NamedTuple):
    """Poses with the joints outermost, or one of them without the last axis.

    Sums over joints of (p,) or (p, p) planes are several times faster than over a minor axis of joints.
    """

    x: Float[Array, "k p"]
    y: Float[Array, "k p"]
    usable: Bool[Array, "k p"]  # finite in place and score; where not, x, y and confidence are zero
    confidence: Float[Array, "k p"]  # tanh(c / sigma1)
    side: Float[Array, "2 p"]  # width and height of the box


def keypoint_similarity(
    points: Float[Array, "p k 2"],
    score: Float[Array, "p k"],
    boxes: Float[Array, "p 4"],
    *,
    parameters: PoseNMSParameters = DEFAULT,
) -> Float[Array, "p p"]:
    """K_Sim of every pair of poses: about how many sure joints lie close to each other.

    Arguments and rows as in ``pose_similarity``; between 0 and k. Reference: RMPE eq. 8.
    """
    return _compare_all(points, score, boxes, parameters)[0]


def distance_similarity(
    points: Float[Array, "p k 2"],
    score: Float[Array, "p k"],
    boxes: Float[Array, "p 4"],
    *,
    parameters: PoseNMSParameters = DEFAULT,
) -> Float[Array, "p p"]:
    """H_Sim of every pair of poses, of the joints' places alone.

    Arguments and rows as in ``pose_similarity``, the score only tells which joints count; between 0 and k.
    Reference: RMPE eq. 9; the released code does not square the distance.
    """
    return _compare_all(points, score, boxes, parameters)[1]


def pose_similarity(
    points: Float[Array, "p k 2"],
    score: Float[Array, "p k"],
    boxes: Float[Array, "p 4"],
    *,
    parameters: PoseNMSParameters = DEFAULT,
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

    Reference: RMPE eq. 10.
    """
    keypoint, distance = _compare_all(points, score, boxes, parameters)
    return keypoint + parameters.lambda_ * distance


def matching_joints(
    points: Float[Array, "p k 2"],
    score: Float[Array, "p k"],
    boxes: Float[Array, "p 4"],
    *,
    parameters: PoseNMSParameters = ALPHAPOSE,
) -> Int[Array, "p p"]:
    """How many joints of every pair are close, for AlphaPose's second rule; row i takes pose i as the reference."""
    x, y, usable = joint_planes(points, score)
    squared = (x[:, :, None] - x[:, None]) ** 2 + (y[:, :, None] - y[:, None]) ** 2
    close = squared <= (_match_limit(_sides(boxes), parameters) ** 2)[None, :, None]
    return (close & usable[:, :, None] & usable[:, None]).sum(0)


def _planes(
    points: Float[Array, "p k 2"], score: Float[Array, "p k"], boxes: Float[Array, "p 4"], parameters: PoseNMSParameters
) -> _Planes:
    x, y, usable = joint_planes(points, score)
    return _Planes(x, y, usable, jnp.where(usable, jnp.tanh(score.T / parameters.sigma1), 0.0), _sides(boxes))


def joint_planes(
    points: Float[Array, "p k 2"], score: Float[Array, "p k"]
) -> tuple[Float[Array, "k p"], Float[Array, "k p"], Bool[Array, "k p"]]:
    """X and y of the joints, joints first, and which of them are finite in place and score; zero where not."""
    x, y = points[..., 0].T, points[..., 1].T
    usable = jnp.isfinite(x) & jnp.isfinite(y) & jnp.isfinite(score.T)
    return jnp.where(usable, x, 0.0), jnp.where(usable, y, 0.0), usable


def _sides(boxes: Float[Array, "p 4"]) -> Float[Array, "2 p"]:
    """Widths and heights, above zero even of broken boxes."""
    sides = jnp.where(jnp.isfinite(boxes).all(-1)[:, None], boxes[:, 2:] - boxes[:, :2], 0.0)
    return jnp.maximum(sides.T, 1e-3)


def _unit(side: Float[Array, "2 *p"], parameters: PoseNMSParameters) -> Float[Array, "*p"]:
    """What distances in K_Sim and H_Sim are measured in, pixels."""
    return jnp.ones_like(side[0]) if parameters.unit == "pixel" else parameters.alpha * side.max(0)


def _is_near(dx: Array, dy: Array, side: Float[Array, "2 *p"], parameters: PoseNMSParameters) -> Array:
    """B(k_i): whether a pose has a joint in the neighbourhood of where the reference has it, whose box has these sides.

    The paper's box has a tenth of the sides of the reference's box, the released code's circle a radius of a tenth of
    the longer side: more than twice as far. With ``unit="pixel"`` the box's sides and the circle's radius are a pixel.
    """
    if parameters.region == "circle":
        return dx**2 + dy**2 <= _unit(side, parameters) ** 2
    width, height = jnp.ones_like(side) if parameters.unit == "pixel" else parameters.alpha * side
    return (jnp.abs(dx) <= width / 2) & (jnp.abs(dy) <= height / 2)


def _kernel(squared: Array, parameters: PoseNMSParameters) -> Array:
    if parameters.kernel == "gaussian":
        return jnp.exp(-squared / parameters.sigma2)
    # The square root has no gradient at zero, where a pose meets itself: below the least number it is constant.
    return jnp.exp(-jnp.sqrt(jnp.maximum(squared, jnp.finfo(squared.dtype).tiny)) / parameters.sigma2)


def _compare(
    reference: _Planes, poses: _Planes, parameters: PoseNMSParameters
) -> tuple[Float[Array, "p"], Float[Array, "p"]]:
    """K_Sim and H_Sim of one reference and all poses."""
    keypoint = distance = jnp.zeros(poses.x.shape[1], poses.x.dtype)
    scale = 1 / _unit(reference.side, parameters) ** 2
    for joint in range(poses.x.shape[0]):
        dx, dy = poses.x[joint] - reference.x[joint], poses.y[joint] - reference.y[joint]
        both = poses.usable[joint] & reference.usable[joint]
        near = _is_near(dx, dy, reference.side, parameters)
        keypoint += jnp.where(near, reference.confidence[joint] * poses.confidence[joint], 0.0)
        distance += jnp.where(both, _kernel((dx**2 + dy**2) * scale, parameters), 0.0)
    return keypoint, distance


def _compare_all(
    points: Array, score: Array, boxes: Array, parameters: PoseNMSParameters
) -> tuple[Float[Array, "p p"], Float[Array, "p p"]]:
    """``_compare`` with each pose as the reference of a row."""
    planes = _planes(points, score, boxes, parameters)
    return jax.vmap(partial(_compare, parameters=parameters), (-1, None))(planes, planes)


def pose_nms(
    poses: Poses, *, parameters: PoseNMSParameters = DEFAULT, rank: Float[Array, "p"] | None = None
) -> Bool[Array, "p"]:
    """Which poses stay: the mask alone of ``suppress_poses``, which see.

    Returns:
        Mask of the poses that stay, in input order.
    """
    return suppress_poses(poses, parameters=parameters, rank=rank).poses.valid


def suppress_poses(
    poses: Poses, *, parameters: PoseNMSParameters = DEFAULT, rank: Float[Array, "p"] | None = None
) -> Suppressed:
    """The pose NMS: greedy, at fixed capacity, under ``jit`` and ``vmap``.

    References are taken by ``rank``, highest first, equal ones in input order, NaN last. Entries that are not valid
    never stay and remove nothing. A reference never removes itself, nor a pose ranked above it.

    With ``merge="weighted"`` each joint of a pose that stays moves to the mean, weighted by score, over the pose and
    those that it removed, of the joints within the reference distance and ``merge_limit`` of its own. A joint that is
    not finite, or where all scores are zero, stays in place. Boxes never change.

    Poses without a joint that scores ``min_best``, before and after merging, remove others but are not returned.

    Args:
        poses: of one picture.
        parameters: constants and definitions; one of ``PRESETS``, or learned.
        rank: order of the references; the mean of the joints' scores by default.

    Returns:
        The poses, of which those that stay are valid, and who removed whom.
    """
    return _suppress(poses, poses.pose_score if rank is None else rank, parameters)


# Compiled here, since a loop called outside of jit would compile at every call.
@partial(jax.jit, static_argnames="parameters")
def _suppress(poses: Poses, rank: Float[Array, "p"], parameters: PoseNMSParameters) -> Suppressed:
    # Who stays does not change with a small step, and a loop has no gradient backwards.
    planes = jax.lax.stop_gradient(_planes(poses.points, poses.score, poses.boxes, parameters))
    eliminator = greedy_elimination(_removal(planes, poses.valid, parameters), rank, poses.valid)
    merged = _merge(poses, eliminator, parameters) if parameters.merge == "weighted" else poses
    stays = eliminator == jnp.arange(eliminator.shape[0])
    if parameters.min_best:
        sure = [(planes.usable & (score.T >= parameters.min_best)).any(0) for score in (poses.score, merged.score)]
        eliminator = jnp.where(stays & ~(sure[0] & sure[1]), -1, eliminator)
        stays &= sure[0] & sure[1]
    return Suppressed(dataclasses.replace(merged, valid=stays), eliminator)


def _removal(planes: _Planes, valid: Bool[Array, "p"], parameters: PoseNMSParameters) -> _Removes:
    """Which poses a reference removes."""
    alike = _by_similarity(planes, parameters)
    if not parameters.match_joints:
        return alike
    matched = _by_matches(planes, parameters)
    undecided = valid & ~_matches_decide(planes.side, planes.x.shape[0], parameters)

    def removes(reference):
        # A loop of at most one turn: under vmap, where cond computes both branches, it is left out if no picture asks.
        # The reference changes in it, so that the compiler does not compute the similarity before the loop.
        def once(state):
            return jnp.zeros_like(state[0]), jnp.zeros_like(state[1]), state[2] | alike(state[1])

        start = undecided[reference], reference, matched(reference)
        return jax.lax.while_loop(lambda state: state[0], once, start)[2]

    return removes


def _by_similarity(planes: _Planes, parameters: PoseNMSParameters) -> _Removes:
    eta = parameters.threshold(planes.x.shape[0])

    def removes(reference):
        one = jax.tree.map(lambda plane: plane[..., reference], planes)
        keypoint, distance = _compare(one, planes, parameters)
        similarity = keypoint + parameters.lambda_ * distance
        return similarity > eta if parameters.criterion == "similarity" else similarity <= eta

    return removes


def _by_matches(planes: _Planes, parameters: PoseNMSParameters) -> _Removes:
    """The second rule: so many joints are close."""
    # A joint at infinity is close to none, without a mask.
    x, y = jnp.where(planes.usable, planes.x, jnp.inf), planes.y
    # What is read of a reference lies side by side.
    rows = jnp.concatenate([x, y, _match_limit(planes.side, parameters)[None] ** 2]).T

    def removes(reference):
        row = rows[reference]
        matches = jnp.zeros(x.shape[1], jnp.int32)
        for joint in range(len(x)):
            squared = (x[joint] - row[joint]) ** 2 + (y[joint] - row[len(x) + joint]) ** 2
            matches += squared <= row[-1]
        return matches >= parameters.match_joints

    return removes


def _match_limit(side: Float[Array, "2 p"], parameters: PoseNMSParameters) -> Float[Array, "p"]:
    return jnp.minimum(parameters.alpha * side.max(0), parameters.match_limit)


def _matches_decide(side: Float[Array, "2 p"], joints: int, parameters: PoseNMSParameters) -> Bool[Array, "p"]:
    """Which references remove nobody by similarity whom they do not remove by matches.

    Without enough matches, at most one fewer joints than that are close and add 1 + lambda at most; each of the others
    is further than the limit, which bounds its H_Sim, and its K_Sim is zero if the limit contains the neighbourhood.
    For AlphaPose's numbers that holds for boxes of 17 pixels and more, so the similarity is hardly ever needed.
    """
    if parameters.criterion == "literal":
        return jnp.zeros_like(side[0], bool)
    limit, unit = _match_limit(side, parameters), _unit(side, parameters)
    close = min(parameters.match_joints - 1, joints)
    contained = limit > 1.001 * unit  # circle or box: no point of it is further than a unit
    far = jnp.where(contained, 0.0, 1.0) + parameters.lambda_ * _kernel((limit / unit) ** 2, parameters)
    largest = close * (1 + parameters.lambda_) + (joints - close) * far
    return 1.001 * largest <= parameters.threshold(joints)  # with room for rounding


def _merge(poses: Poses, eliminator: Int[Array, "p"], parameters: PoseNMSParameters) -> Poses:
    """The poses that stay, as the mean of their clusters; the others as they are."""
    near, offset = _from_reference(poses, eliminator, parameters)
    weight = jnp.where(near, poses.score, 0.0)[..., None]
    index = jnp.where(eliminator < 0, eliminator.shape[0], eliminator)
    sums = _cluster_sums(jnp.concatenate([weight, weight**2, weight * offset], -1), index)
    total = sums[..., 0]
    moves, divisor = total > 0, jnp.where(total > 0, total, 1.0)
    points = poses.points + jnp.where(moves[..., None], sums[..., 2:] / divisor[..., None], 0.0)
    if parameters.merge_score == "weighted":
        score = jnp.where(moves, sums[..., 1] / divisor, poses.score)
    else:
        score = poses.score.at[index].max(jnp.where(near, poses.score, -jnp.inf), mode="drop")
    return dataclasses.replace(poses, points=points, score=score)


def _cluster_sums(values: Float[Array, "p k n"], index: Int[Array, "p"]) -> Float[Array, "p k n"]:
    """Sums over the poses of equal index; one beyond the last counts for nothing."""
    # Adding in place is much the faster on a CPU; elsewhere its order, and so the last bits, change from run to run.
    return jax.lax.platform_dependent(values, index, cpu=_sums_in_place, default=_sums_by_product)


def _sums_in_place(values: Array, index: Array) -> Array:
    return jnp.zeros_like(values).at[index].add(values, mode="drop")


def _sums_by_product(values: Array, index: Array) -> Array:
    members = (index[None] == jnp.arange(index.shape[0])[:, None]).astype(values.dtype)
    return jnp.einsum("ij,j...->i...", members, values, precision="highest")


def _from_reference(
    poses: Poses, eliminator: Int[Array, "p"], parameters: PoseNMSParameters
) -> tuple[Bool[Array, "p k"], Float[Array, "p k 2"]]:
    """How far each joint lies from its reference's, and whether within reach; zero where not."""
    reference = jnp.maximum(eliminator, 0)
    usable = jnp.isfinite(poses.points).all(-1) & jnp.isfinite(poses.score)
    # A joint that is not usable lies nowhere, so nothing is within its reach.
    offset = poses.points - jnp.where(usable[..., None], poses.points, jnp.nan)[reference]
    reach = jnp.minimum(parameters.alpha * _sides(poses.boxes).max(0), parameters.merge_limit)[reference]
    near = usable & ((offset**2).sum(-1) <= reach[:, None] ** 2)
    return near, jnp.where(near[..., None], offset, 0.0)
