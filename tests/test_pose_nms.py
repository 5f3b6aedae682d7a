import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st

from rmpe_jax.nms.pose import RELEASED, PoseNMSParameters, pose_nms, pose_similarity
from rmpe_jax.records import Poses

P, K = 6, 5
VARIANTS = [
    dataclasses.replace(RELEASED, region=region, kernel=kernel)
    for region in ("circle", "box")
    for kernel in ("laplace", "gaussian")
]
EVERY_VARIANT = pytest.mark.parametrize("parameters", VARIANTS, ids=lambda p: f"{p.region}-{p.kernel}")
SEEDS = st.integers(0, 2**32 - 1)
nms = jax.jit(pose_nms, static_argnames="parameters")
similarity = jax.jit(pose_similarity, static_argnames="parameters")


def random_poses(seed, count=P):
    """Clusters of similar poses: about half of them are a shaken copy of an earlier one."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (count, K, 2))
    for index in range(1, count):
        if rng.random() < 0.6:
            points[index] = points[rng.integers(index)] + rng.normal(scale=rng.uniform(0.1, 8), size=(K, 2))
    score = rng.uniform(0, 1, (count, K)) * (rng.random((count, K)) < 0.9)
    # Boxes of unequal size make the similarity clearly not symmetric.
    centre, half = points.mean(1), rng.uniform(10, 120, (count, 2))
    boxes = np.concatenate([centre - half, centre + half], -1)
    valid = rng.random(count) < 0.8
    return Poses(*(jnp.array(a, jnp.float32) for a in (points, score, boxes)), valid=jnp.array(valid))


def in_float64(poses):
    return tuple(np.asarray(a, float) for a in (poses.points, poses.score, poses.boxes))


def one_joint(distance_x, distance_y, score=(1.0, 1.0), box=(0.0, 0.0, 20.0, 40.0)):
    points = jnp.array([[[0.0, 0.0]], [[distance_x, distance_y]]])
    return points, jnp.array(score)[:, None], jnp.broadcast_to(jnp.array(box), (2, 4))


def test_similarity_of_one_joint_by_hand():
    # The longer side is 40, so the unit is 4: the joints are 0.75 units apart and near.
    parameters = PoseNMSParameters(sigma1=0.5, sigma2=2.0, lambda_=3.0)
    found = pose_similarity(*one_joint(0.0, 3.0, (0.4, 0.2)), parameters=parameters)
    expected = np.tanh(0.8) * np.tanh(0.4) + 3 * np.exp(-0.75 / 2)
    assert_close(found[0, 1], expected)
    assert_close(found[0, 0], np.tanh(0.8) ** 2 + 3)


def test_the_gaussian_kernel_by_hand():
    parameters = PoseNMSParameters(sigma1=0.5, sigma2=2.0, lambda_=3.0, kernel="gaussian")
    found = pose_similarity(*one_joint(0.0, 6.0), parameters=parameters)
    assert_close(found[0, 1], 3 * np.exp(-(1.5**2) / 2))


@pytest.mark.parametrize(
    ("region", "x", "y", "near"),
    [("circle", 4.0, 0.0, True), ("circle", 4.1, 0.0, False), ("circle", 3.0, 3.0, False)]
    + [("box", 1.0, 2.0, True), ("box", 1.1, 0.0, False), ("box", 0.0, 2.1, False)],
)
def test_the_neighbourhood_is_a_tenth_of_the_references_box(region, x, y, near):
    # Circle: radius a tenth of the longer side, 4. Box: a tenth of each side in total, 2 x 4.
    parameters = PoseNMSParameters(region=region, lambda_=0.0)
    found = pose_similarity(*one_joint(x, y), parameters=parameters)
    assert_close(found[0, 1], float(near))


def test_the_row_is_the_reference_whose_box_sets_the_scale():
    points, score, _ = one_joint(6.0, 0.0)
    boxes = jnp.array([[0.0, 0.0, 100.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    found = pose_similarity(points, score, boxes, parameters=PoseNMSParameters(lambda_=0.0))
    assert_close(found, [[1, 1], [0, 1]])


@EVERY_VARIANT
@given(seed=SEEDS)
def test_similarities_are_those_of_a_loop(parameters, seed):
    poses = random_poses(seed)
    found = similarity(poses.points, poses.score, poses.boxes, parameters=parameters)
    assert_close(found, oracles.pose_similarity(*in_float64(poses), parameters), rtol=1e-4, atol=1e-4)


@EVERY_VARIANT
@given(seed=SEEDS)
def test_pose_nms_is_that_of_a_loop(parameters, seed):
    poses = random_poses(seed)
    expected = oracles.pose_nms(*in_float64(poses), np.asarray(poses.valid), parameters)
    np.testing.assert_array_equal(nms(poses, parameters=parameters), expected)


@given(SEEDS, st.floats(-300, 300), st.floats(-300, 300), st.floats(0.5, 8))
def test_similarity_does_not_depend_on_place_and_size(seed, x, y, scale):
    poses, shift = random_poses(seed), jnp.array([x, y])
    smooth = dataclasses.replace(RELEASED, sigma1=1e3)  # K_Sim vanishes, and with it the edge of its neighbourhood
    before = similarity(poses.points, poses.score, poses.boxes, parameters=smooth)
    points = poses.points * scale + shift[None, None]
    boxes = poses.boxes * scale + jnp.tile(shift, 2)[None]
    assert_close(similarity(points, poses.score, boxes, parameters=smooth), before, rtol=1e-3, atol=1e-3)


@given(SEEDS)
def test_similarity_lies_between_zero_and_that_of_equal_sure_joints(seed):
    poses = random_poses(seed)
    found = similarity(poses.points, poses.score, poses.boxes)
    assert found.min() >= 0 and found.max() <= (1 + RELEASED.lambda_) * K + 1e-3


@given(SEEDS)
def test_the_surest_pose_stays_and_no_pose_that_is_not_valid_does(seed):
    poses = random_poses(seed)
    keep = nms(poses)
    assert not (keep & ~poses.valid).any()
    if poses.valid.any():
        assert keep[jnp.where(poses.valid, poses.pose_score, -1.0).argmax()]


@given(SEEDS, SEEDS)
def test_entries_that_are_not_valid_never_change_pose_nms(seed, other_seed):
    poses, other = random_poses(seed), random_poses(other_seed)

    def mixed(ours, theirs):
        return jnp.where(poses.valid.reshape(-1, *[1] * (ours.ndim - 1)), ours, theirs)

    changed = dataclasses.replace(jax.tree.map(mixed, poses, other), valid=poses.valid)
    np.testing.assert_array_equal(nms(changed), nms(poses))


@given(SEEDS, st.permutations(range(P)))
def test_pose_nms_does_not_depend_on_the_order_of_the_poses(seed, order):
    poses, order = random_poses(seed), np.array(order)
    shuffled = jax.tree.map(lambda leaf: leaf[order], poses)
    np.testing.assert_array_equal(nms(shuffled), nms(poses)[order])


def copies(count, joints=16, score=0.9):
    points = jnp.broadcast_to(jnp.arange(2.0 * joints).reshape(joints, 2), (count, joints, 2))
    boxes = jnp.broadcast_to(jnp.array([0.0, 0.0, 32.0, 32.0]), (count, 4))
    return Poses(points, jnp.full((count, joints), score), boxes, jnp.ones(count, bool))


@pytest.mark.parametrize("joints", [1, 14, 17])
def test_of_equal_poses_the_first_stays_whatever_the_number_of_joints(joints):
    assert pose_nms(copies(3, joints)).tolist() == [True, False, False]


def test_of_similar_poses_the_surest_stays():
    poses = copies(3)
    surer = poses.score.at[1].set(0.95)
    assert pose_nms(dataclasses.replace(poses, score=surer)).tolist() == [False, True, False]


def test_poses_far_apart_all_stay():
    poses = copies(3)
    shift = 500.0 * jnp.arange(3.0)
    apart = dataclasses.replace(poses, points=poses.points + shift[:, None, None], boxes=poses.boxes + shift[:, None])
    assert pose_nms(apart).all()


def test_a_removed_pose_removes_nothing():
    # In a row of three, each 2 units apart: similar neighbours, different ends.
    poses = copies(3, score=0.9)
    poses = dataclasses.replace(
        poses,
        points=poses.points + jnp.array([0.0, 3.0, 6.0])[:, None, None],
        score=poses.score - jnp.array([0.0, 0.1, 0.2])[:, None],
    )
    distances = np.sqrt(2) * np.array([3.0, 6.0]) / 3.2
    eta = float(16 * RELEASED.lambda_ * np.exp(-distances / RELEASED.sigma2).mean())
    assert pose_nms(poses, parameters=dataclasses.replace(RELEASED, eta=eta)).tolist() == [True, False, True]


def test_joints_that_are_not_finite_count_for_nothing():
    poses = copies(2, 4)
    found = similarity(poses.points.at[1, 0, 1].set(jnp.nan), poses.score.at[0, 1].set(jnp.inf), poses.boxes)
    assert_close(found[0, 1], 2 * (1 + RELEASED.lambda_))
    assert_close(np.diag(found), [3 * (1 + RELEASED.lambda_)] * 2)


@pytest.mark.parametrize("box", [[np.nan, 0, 1, 1], [5.0, 5, 5, 5], [9.0, 9, 1, 1], [0.0, 0, np.inf, 1]])
def test_a_broken_box_gives_finite_similarities(box):
    poses = copies(2, 4)
    found = similarity(poses.points, poses.score, jnp.broadcast_to(jnp.array(box, jnp.float32), (2, 4)))
    assert np.isfinite(found).all()


def test_a_pose_with_a_score_of_nan_comes_last():
    poses = copies(2)
    poses = dataclasses.replace(poses, score=poses.score.at[0, 0].set(jnp.nan))
    assert pose_nms(poses).tolist() == [False, True]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("region", "square"),
        ("kernel", "cauchy"),
        ("sigma1", 0.0),
        ("sigma2", -1.0),
        ("alpha", np.nan),
        ("eta_joints", 0),
    ],
)
def test_parameters_out_of_range_are_refused(setting, value):
    # Set behind the back of the type checker, which would refuse the two names before the class can.
    parameters = PoseNMSParameters()
    object.__setattr__(parameters, setting, value)
    with pytest.raises(ValueError, match=f"unknown.*{value}|{setting}.*positive"):
        parameters.__post_init__()


def test_similarity_has_the_gradients_of_finite_differences():
    poses = random_poses(3, 3)
    parameters = dataclasses.replace(RELEASED, kernel="gaussian", sigma1=0.5, alpha=0.37)
    assert_gradients(partial(pose_similarity, parameters=parameters), poses.points, poses.score, poses.boxes)


def test_transformations_do_not_change_pose_nms():
    poses = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_poses(seed) for seed in range(3)))
    assert_same_under_jit_and_vmap(pose_nms, poses)
    assert_same_under_jit_and_vmap(pose_similarity, poses.points, poses.score, poses.boxes)
