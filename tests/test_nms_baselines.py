import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_same_under_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpe_jax.nms.baselines import box_pose_nms, joint_overlap_nms, oks_nms, soft_oks_nms
from rmpe_jax.records import Poses

P, K, SCENES = 6, 5, 40
SIGMAS = (0.026, 0.079, 0.062, 0.107, 0.089)
SEEDS = st.integers(0, 2**32 - 1)
METHODS = {
    "oks": partial(oks_nms, sigmas=SIGMAS, threshold=0.5),
    "box": partial(box_pose_nms, threshold=0.45),
    "joints": partial(joint_overlap_nms, distance=0.05, share=0.5),
}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
EVERYTHING = {**METHODS, "soft": partial(soft_oks_nms, sigmas=SIGMAS, limit=3)}


@partial(jax.jit, static_argnames="method")
def batched(scenes, rank, method):
    return jax.vmap(lambda poses, rank: EVERYTHING[method](poses, rank=rank))(scenes, rank)


@partial(jax.jit, static_argnames="method")
def one(poses, method, rank=None):
    return EVERYTHING[method](poses, rank=rank)


def many(scenes, rank, method):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, batched(scenes, rank, method))


def random_scenes(seed):
    """Pictures as host arrays in float64, with copies, missing joints and equal ranks."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (SCENES, P, K, 2))
    for index in range(1, P):
        original = np.arange(SCENES), rng.integers(0, index, SCENES)
        noise = rng.choice([0.0, 0.3, 1.0, 3.0, 8.0], SCENES)[:, None, None] * rng.normal(size=(SCENES, K, 2))
        points[:, index] = np.where(rng.random((SCENES, 1, 1)) < 0.6, points[original] + noise, points[:, index])
    middle, half = points.mean(2), rng.uniform(25, 60, (SCENES, P, 2))
    points[rng.random((SCENES, P, K)) < 0.05, 0] = np.nan
    boxes = np.concatenate([middle - half, middle + half], -1)
    score = np.where(rng.random((SCENES, P, K)) < 0.02, np.nan, rng.uniform(0, 1, (SCENES, P, K)))
    rank = np.where(rng.random((SCENES, P)) < 0.05, np.nan, rng.integers(0, 5, (SCENES, P)) / 4)
    return Poses(points, score, boxes, rng.random((SCENES, P)) < 0.85), rank


def removes(method, points, score, boxes):
    """Whether i removes j."""
    if method == "oks":
        return lambda i, j: oracles.pose_oks(points, score, boxes, SIGMAS, i, j) > 0.5
    if method == "box":
        return lambda i, j: oracles.iou(boxes[i], boxes[j]) > 0.45
    return lambda i, j: oracles.joints_overlap(points, score, 0.05, 0.5, i, j)


@EVERY_METHOD
@settings(max_examples=15)
@given(seed=SEEDS)
def test_the_mask_of_many_scenes_is_that_of_a_loop(method, seed):
    scenes, rank = random_scenes(seed)
    found = many(scenes, rank, method)
    for index in range(SCENES):
        arrays = [leaf[index] for leaf in (scenes.points, scenes.score, scenes.boxes)]
        eliminator = oracles.eliminators(removes(method, *arrays), rank[index], scenes.valid[index])
        np.testing.assert_array_equal(found[index], np.array(eliminator) == np.arange(P))
    assert 0.1 < (scenes.valid & ~found).mean() < 0.8


@settings(max_examples=15)
@given(seed=SEEDS)
def test_soft_oks_nms_of_many_scenes_is_that_of_a_loop(seed):
    scenes, rank = random_scenes(seed)
    mask, score = many(scenes, rank, "soft")
    for index in range(SCENES):
        arrays = (leaf[index] for leaf in (scenes.points, scenes.score, scenes.boxes, scenes.valid))
        expected = oracles.soft_oks_nms(*arrays, 0.9, SIGMAS, 3, rank[index])
        assert_close((mask[index], score[index]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", EVERYTHING)
@settings(max_examples=5)
@given(seed=SEEDS, other_seed=SEEDS)
def test_entries_that_are_not_valid_never_change_the_result(method, seed, other_seed):
    (scenes, rank), (other, other_rank) = random_scenes(seed), random_scenes(other_seed)

    def choose(ours, theirs):
        return np.where(scenes.valid.reshape(*scenes.valid.shape, *[1] * (ours.ndim - 2)), ours, theirs)

    changed = dataclasses.replace(jax.tree.map(choose, scenes, other), valid=scenes.valid)
    before, after = many(scenes, rank, method), many(changed, choose(rank, other_rank), method)
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("method", EVERYTHING)
@settings(max_examples=5)
@given(seed=SEEDS, x=st.floats(-300, 300), y=st.floats(-300, 300), scale=st.floats(0.1, 10))
def test_place_and_size_in_the_picture_do_not_matter(method, seed, x, y, scale):
    scenes, rank = random_scenes(seed)
    shift = np.array([x, y])
    boxes = scenes.boxes * scale + np.tile(shift, 2)
    moved = dataclasses.replace(scenes, points=scenes.points * scale + shift, boxes=boxes)
    assert_close(many(moved, rank, method), many(scenes, rank, method), rtol=1e-9, atol=1e-9)


def test_oks_of_two_poses_takes_the_mean_of_their_areas():
    # Areas 100 and 300: d^2 = 2 mean (2 sigma)^2 gives exp(-1) at each of two joints.
    side = np.sqrt(2 * 200 * 4) * 0.1
    poses = Poses(
        jnp.array([[[0.0, 0], [50, 50]], [[side, 0], [50, 50 + side]]]),
        jnp.array([[0.9, 0.9], [0.8, 0.8]]),
        jnp.array([[0.0, 0, 10, 10], [0.0, 0, 10, 30]]),
        jnp.ones(2, bool),
    )
    for threshold, stays in ((np.exp(-1) - 0.01, False), (np.exp(-1) + 0.01, True)):
        assert oks_nms(poses, sigmas=(0.1, 0.1), threshold=float(threshold)).tolist() == [True, stays]
    _, score = soft_oks_nms(poses, sigmas=(0.1, 0.1), threshold=0.9)
    assert_close(score, [0.9, 0.8 * np.exp(-np.exp(-2) / 0.9)])


FULL = Poses(
    jnp.broadcast_to(jnp.arange(10.0).reshape(5, 2), (P, K, 2)),
    jnp.full((P, K), 0.9),
    jnp.broadcast_to(jnp.array([0.0, 0, 9, 9]), (P, 4)),
    jnp.ones(P, bool),
)


@pytest.mark.parametrize(("close", "stays"), [(2, True), (3, False)])
def test_more_than_half_of_the_joints_close_to_the_references_are_too_many(close, stays):
    # The extent is 8 x 8, its diagonal 11.3, so close is within 0.566.
    shift = jnp.where(jnp.arange(K) < close, 0.56, 0.57)
    poses = dataclasses.replace(FULL, points=FULL.points.at[1, :, 0].add(shift), valid=jnp.arange(P) < 2)
    assert one(poses, "joints").tolist() == [True, stays, False, False, False, False]


def test_the_boxes_alone_decide_in_box_nms():
    boxes = FULL.boxes.at[1].add(100.0)
    assert one(dataclasses.replace(FULL, boxes=boxes), "box").tolist() == [True, True, False, False, False, False]


def test_soft_nms_takes_the_best_first_and_stops_at_the_limit():
    rank = jnp.array([0.1, 0.9, 0.8, 0.7, 0.6, 0.5])
    poses = dataclasses.replace(FULL, points=FULL.points.at[2:].add(1e3 * jnp.arange(4.0)[:, None, None] + 1e3))
    mask, score = one(poses, "soft", rank)
    assert mask.tolist() == [False, True, True, True, False, False]
    assert_close(score, [0.1 * np.exp(-1 / 0.9), 0.9, 0.8, 0.7, 0.6, 0.5])


@EVERY_METHOD
def test_nobody_is_nobody(method):
    nobody = jax.tree.map(lambda leaf: leaf[:0], FULL)
    assert EVERYTHING[method](nobody).shape == (0,)
    assert [a.shape for a in EVERYTHING["soft"](nobody)] == [(0,), (0,)]


@EVERY_METHOD
def test_without_a_valid_entry_nobody_stays_and_one_person_does(method):
    for valid in (jnp.zeros(P, bool), jnp.arange(P) == 3):
        poses = dataclasses.replace(FULL, valid=valid)
        np.testing.assert_array_equal(one(poses, method), valid)
        np.testing.assert_array_equal(one(poses, "soft")[0], valid)


@EVERY_METHOD
def test_of_identical_poses_at_full_capacity_the_first_or_the_best_ranked_stays(method):
    assert one(FULL, method).tolist() == [True] + [False] * 5
    assert one(FULL, method, jnp.arange(6.0)).tolist() == [False] * 5 + [True]
    assert one(FULL, method, jnp.array([jnp.nan, 1, 1, 1, 1, 1])).tolist() == [False, True] + [False] * 4


def test_of_identical_poses_soft_nms_takes_the_first_ones():
    assert one(FULL, "soft")[0].tolist() == [True] * 3 + [False] * 3


@EVERY_METHOD
def test_scores_of_zero_change_nothing(method):
    poses = dataclasses.replace(FULL, score=0 * FULL.score)
    np.testing.assert_array_equal(one(poses, method), one(FULL, method))
    np.testing.assert_array_equal(one(poses, "soft")[1], np.zeros(P))


@pytest.mark.parametrize("method", ["oks", "joints"])
def test_poses_without_a_finite_joint_all_stay(method):
    assert one(dataclasses.replace(FULL, points=jnp.nan * FULL.points), method).all()


@pytest.mark.parametrize("method", ["oks", "joints"])
def test_joints_that_both_poses_lack_do_not_keep_them_apart(method):
    missing = dataclasses.replace(FULL, points=FULL.points.at[:, 1].set(jnp.nan))
    assert one(missing, method).tolist() == [True] + [False] * 5


def test_a_joint_that_only_the_reference_has_counts_as_far_away_in_oks():
    poses = dataclasses.replace(FULL, points=FULL.points.at[1, :3].set(jnp.nan), valid=jnp.arange(P) < 2)
    assert one(poses, "oks").tolist()[:2] == [True, True]  # 2 of 5
    poses = dataclasses.replace(FULL, points=FULL.points.at[1, :2].set(jnp.nan), valid=jnp.arange(P) < 2)
    assert one(poses, "oks").tolist()[:2] == [True, False]  # 3 of 5


@pytest.mark.parametrize("box", [[np.nan, 0, 1, 1], [5.0, 5, 5, 5], [9.0, 9, 1, 1], [0.0, 0, np.inf, 1]])
def test_broken_boxes_give_finite_scores_and_remove_nobody_by_box(box):
    poses = dataclasses.replace(FULL, boxes=jnp.broadcast_to(jnp.array(box, jnp.float32), (P, 4)))
    assert np.isfinite(one(poses, "soft")[1]).all() and one(poses, "oks")[0]
    assert one(poses, "box").all()


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="one sigma for each of 5 joints, got 2"):
        oks_nms(FULL, sigmas=(0.1, 0.1))
    with pytest.raises(ValueError, match="got 0.0 and 20"):
        soft_oks_nms(FULL, sigmas=SIGMAS, threshold=0.0)
    with pytest.raises(ValueError, match="got 0.9 and -1"):
        soft_oks_nms(FULL, sigmas=SIGMAS, limit=-1)


@pytest.mark.parametrize("method", EVERYTHING)
def test_transformations_do_not_change_the_results(method):
    scenes = jax.tree.map(lambda leaf: jnp.asarray(leaf[:2]), random_scenes(3)[0])
    assert_same_under_jit_and_vmap(EVERYTHING[method], scenes)
