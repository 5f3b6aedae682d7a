"""Pictures full of poses, for tests of learning the pose NMS, and the average precision of what it keeps."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.metrics.average_precision import average_precision
from rmpe_jax.metrics.multi_person_ap import PredictedPeople, TruePeople, joint_average_precision, match_people
from rmpe_jax.metrics.oks_ap import ScoredKeypoints, TrueKeypoints, match_keypoints
from rmpe_jax.nms.objective import oks_objective
from rmpe_jax.nms.pose import ALPHAPOSE, PAPER, PoseNMSParameters, pose_nms
from rmpe_jax.records import Poses

N, P, G, K = 12, 9, 3, 5
SIGMAS = (0.05, 0.1, 0.2, 0.1, 0.05)
# Every definition that the search reads.
VARIANTS = {
    "released": PoseNMSParameters(),
    "paper": dataclasses.replace(PAPER, eta_scale="fraction", eta=0.5),
    "alphapose": dataclasses.replace(ALPHAPOSE, merge="none", match_joints=5, match_limit=1.0, min_best=0.6),
    "literal": PoseNMSParameters(alpha=2.0, criterion="literal", eta_scale="absolute", match_joints=5, match_limit=1.0),
    "pixel": PoseNMSParameters(region="box", unit="pixel", kernel="gaussian", min_best=0.8),
}


def scenes(seed, pictures=N, capacity=P):
    """People, and poses around them: shaken copies, copies of copies, false alarms, missing joints and equal scores."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, (pictures, G, K, 2))
    labelled = (rng.random((pictures, G, K)) < 0.8) & (rng.random((pictures, G, 1)) < 0.9)
    person = rng.integers(0, G, (pictures, capacity))
    noise = rng.choice([0.0, 0.2, 1.0, 5.0, 20.0], (pictures, capacity))[..., None, None]
    points = truth[np.arange(pictures)[:, None], person] + noise * rng.normal(size=(pictures, capacity, K, 2))
    points[rng.random((pictures, capacity, K)) < 0.05] = np.nan
    score = np.round(rng.uniform(0, 1, (pictures, capacity, K)), 1)
    centre, half = truth[np.arange(pictures)[:, None], person].mean(2), rng.uniform(30, 90, (pictures, capacity, 2))
    boxes = np.concatenate([centre - half, centre + half], -1)
    # The same numbers of poses in another order, so that little is compiled.
    valid = np.arange(capacity) < rng.permutation(np.arange(pictures) % (capacity + 1))[:, None]
    valid = rng.permuted(valid, axis=1)
    poses = Poses(*(array.astype(np.float32) for array in (points, score, boxes)), valid=valid)
    return rng, poses, truth, labelled


def oks_truth(rng, points, labelled):
    box = np.concatenate([points.min(2), points.max(2)], -1)
    area = rng.uniform(500, 9000, points.shape[:2])
    crowd = rng.random(area.shape) < 0.15
    valid = rng.random(area.shape) < 0.9
    return TrueKeypoints(points, labelled, area, box, crowd | ~labelled.any(2), crowd, valid)


def kept_by(poses, parameters, rank=None):
    # The mean by NumPy, as objectives take it: JAX's may round equal ones apart.
    rank = np.asarray(poses.pose_score) if rank is None else rank
    return np.asarray(_kept_by(jax.tree.map(jnp.asarray, poses), jnp.asarray(rank), parameters))


@partial(jax.jit, static_argnames="parameters")
def _kept_by(poses, rank, parameters):
    return jax.vmap(lambda one, rank: pose_nms(one, parameters=parameters, rank=rank))(poses, rank)


def oks_ap_of(poses, stays, score, truth, most=20):
    with jax.enable_x64(True):
        points = np.nan_to_num(np.asarray(poses.points, np.float64))
        points = np.where(np.isfinite(poses.points).all(-1, keepdims=True), points, 0)
        found = ScoredKeypoints(points, score, np.ones(score.shape), stays)
        matches = _match(truth, found, most)
        return float(np.asarray(average_precision(matches)[0])[0].mean())


@partial(jax.jit, static_argnames="most")
def _match(truth, found, most):
    return match_keypoints(truth, found, sigmas=SIGMAS, most=most)


def people_truth(points, labelled):
    return TruePeople(
        points.astype(np.float32),
        labelled,
        np.full(points.shape[:2], 12.0, np.float32),
        np.ones(points.shape[:2], bool),
    )


@jax.jit
def people_ap_of(poses, stays, truth, belongs):
    present = jnp.isfinite(poses.points).all(-1)
    points = jnp.where(present[..., None], poses.points, 0.0)
    predicted = PredictedPeople(points, poses.score, present, stays & belongs)
    return jnp.nanmean(joint_average_precision(jax.vmap(match_people)(truth, predicted)))


def made_objective(seed=1):
    rng, poses, points, labelled = scenes(seed)
    truth = oks_truth(rng, points, labelled)
    return poses, oks_objective(poses, dataclasses.replace(truth, ignored=np.zeros((N, G), bool)), sigmas=SIGMAS)
