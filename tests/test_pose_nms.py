import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpe_jax.nms.pose import (
    ALPHAPOSE,
    DEFAULT,
    PAPER,
    PRESETS,
    RELEASED,
    PoseNMSParameters,
    _matches_decide,
    _sums_by_product,
    _sums_in_place,
    distance_similarity,
    keypoint_similarity,
    pose_nms,
    pose_similarity,
    suppress_poses,
)
from rmpe_jax.records import Poses

P, K = 6, 5
# Every option at least twice. The thresholds of AlphaPose are for 17 joints, so they are lowered for K.
VARIANTS = {
    **{name: parameters for name, parameters in PRESETS.items() if name != "alphapose"},
    "alphapose": dataclasses.replace(ALPHAPOSE, eta=4.0, match_joints=3, match_limit=5.0, min_best=0.6),
    # Large boxes are decided by matches alone, small ones by similarity too.
    "decided": dataclasses.replace(ALPHAPOSE, eta=6.5, match_joints=3, match_limit=5.0, min_best=0.6),
    "literal": PoseNMSParameters(
        criterion="literal", eta=4.0, kernel="gaussian", match_joints=3, match_limit=20.0, merge="weighted"
    ),
    "fraction": PoseNMSParameters(
        region="box", alpha=0.3, eta=0.3, eta_scale="fraction", merge="weighted", merge_limit=3.0, min_best=0.8
    ),
    "pixel": PoseNMSParameters(
        region="box", kernel="gaussian", unit="pixel", eta=1.0, eta_scale="absolute", merge="weighted",
        merge_score="weighted", sigma1=0.5,
    ),
    "matches": PoseNMSParameters(sigma1=0.5, eta=9.0, eta_scale="absolute", match_joints=2, match_limit=2.0),
    "odd": PoseNMSParameters(
        criterion="literal", eta=0.01, eta_scale="fraction", region="box", unit="pixel", match_joints=4, min_best=0.7
    ),
}  # fmt: skip
EVERY_VARIANT = pytest.mark.parametrize("parameters", VARIANTS.values(), ids=VARIANTS.keys())
SCENES = 40
FEW = settings(max_examples=5)  # of SCENES scenes each
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


def random_scenes(seed, count, people=P):
    """Pictures as host arrays in float64: shaken and exact copies, missing joints, broken scores, equal scores."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (count, people, K, 2))
    score = np.clip(rng.uniform(-0.1, 1, (count, people, K)), 0, None)
    for index in range(1, people):
        original = np.arange(count), rng.integers(0, index, count)
        noise = rng.choice([0.0, 0.3, 1.0, 3.0, 8.0], count)[:, None, None] * rng.normal(size=(count, K, 2))
        copied, equal = rng.random(count) < 0.6, rng.random(count) < 0.3
        points[:, index] = np.where(copied[:, None, None], points[original] + noise, points[:, index])
        score[:, index] = np.where(equal[:, None], score[original], score[:, index])
    centre, half = points.mean(2), rng.uniform(5, 80, (count, people, 2))
    points[rng.random((count, people, K)) < 0.04, rng.integers(2)] = rng.choice([np.nan, np.inf])
    score[rng.random((count, people, K)) < 0.02] = np.nan
    score[rng.random((count, people)) < 0.05] = 0
    boxes = np.concatenate([centre - half, centre + half], -1)
    boxes[rng.random((count, people)) < 0.03, rng.integers(4)] = np.nan
    # Host arrays, so that they are not cut to float32 on the way.
    return Poses(points, score, boxes, rng.random((count, people)) < 0.85)


def random_ranks(seed):
    """Scores of which many are equal and some are NaN."""
    rng = np.random.default_rng([seed, 1])
    return np.where(rng.random((SCENES, P)) < 0.05, np.nan, rng.integers(0, 5, (SCENES, P)) / 4)


def choose(flags, ours, theirs):
    return np.where(flags.reshape(*flags.shape, *[1] * (ours.ndim - 2)), ours, theirs)


def mapped(scenes, scale, shift):
    boxes = scenes.boxes * scale + np.tile(shift, 2)
    return dataclasses.replace(scenes, points=scenes.points * scale + shift, boxes=boxes)


@partial(jax.jit, static_argnames="parameters")
def batched(scenes, rank, parameters):
    return jax.vmap(lambda poses, rank: suppress_poses(poses, parameters=parameters, rank=rank))(scenes, rank)


def suppress_many(scenes, rank, parameters):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, batched(scenes, rank, parameters))


def leaves(poses):
    return poses.points, poses.score, poses.boxes


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


@partial(jax.jit, static_argnames="parameters")
def three_similarities(*arguments, parameters):
    return [f(*arguments, parameters=parameters) for f in (keypoint_similarity, distance_similarity, pose_similarity)]


@EVERY_VARIANT
@given(seed=SEEDS)
def test_similarities_are_those_of_a_loop(parameters, seed):
    scene = random_scenes(seed, 1)
    keypoint, distance, _ = oracles.pose_terms(scene.points[0], scene.score[0], scene.boxes[0], parameters)
    with jax.enable_x64(True):
        arguments = (jnp.asarray(leaf[0]) for leaf in leaves(scene))
        found = three_similarities(*arguments, parameters=parameters)
        expected = [keypoint, distance, keypoint + parameters.lambda_ * distance]
        assert_close(found, expected, rtol=1e-9, atol=1e-9)


@EVERY_VARIANT
@settings(max_examples=14)
@given(seed=SEEDS)
def test_what_becomes_of_many_scenes_is_that_of_a_loop(parameters, seed):
    scenes, rank = random_scenes(seed, SCENES), random_ranks(seed)
    found = suppress_many(scenes, rank, parameters)
    for index in range(SCENES):
        arrays = (leaf[index] for leaf in (scenes.points, scenes.score, scenes.boxes, scenes.valid))
        points, score, stays, eliminator = oracles.suppress_poses(*arrays, parameters, rank[index])
        np.testing.assert_array_equal(found.eliminator[index], eliminator)
        np.testing.assert_array_equal(found.poses.valid[index], stays)
        np.testing.assert_allclose(found.poses.points[index], points, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.poses.score[index], score, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.poses.boxes, scenes.boxes)


def test_the_scenes_exercise_every_outcome():
    # Otherwise the comparison above would show nothing.
    scenes, rank = random_scenes(1, SCENES), random_ranks(1)
    for parameters in VARIANTS.values():
        found = suppress_many(scenes, rank, parameters)
        own = found.eliminator == np.arange(P)[None]
        assert own.mean() > 0.1 and ((found.eliminator >= 0) & ~own).mean() > 0.05
        assert (((found.eliminator < 0) & scenes.valid).mean() > 0.02) == (parameters.min_best > 0)
        moved = ~np.isclose(found.poses.points, scenes.points, equal_nan=True)
        assert (moved.mean() > 0.005) == (parameters.merge == "weighted")


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


@EVERY_VARIANT
@FEW
@given(seed=SEEDS, other_seed=SEEDS)
def test_entries_that_are_not_valid_never_change_the_result(parameters, seed, other_seed):
    poses, other = random_scenes(seed, SCENES), random_scenes(other_seed, SCENES)
    changed = dataclasses.replace(jax.tree.map(partial(choose, poses.valid), poses, other), valid=poses.valid)
    rank = random_ranks(seed)
    before = suppress_many(poses, rank, parameters)
    after = suppress_many(changed, choose(poses.valid, rank, random_ranks(other_seed)), parameters)
    np.testing.assert_array_equal(after.eliminator, before.eliminator)
    for ours, theirs in zip(jax.tree.leaves(after.poses), jax.tree.leaves(before.poses), strict=True):
        np.testing.assert_array_equal(ours[poses.valid], theirs[poses.valid])


@EVERY_VARIANT
@FEW
@given(seed=SEEDS, order=st.permutations(range(K)))
def test_the_order_of_the_joints_does_not_matter(parameters, seed, order):
    scenes, rank = random_scenes(seed, SCENES), random_ranks(seed)
    before = suppress_many(scenes, rank, parameters)
    shuffled = dataclasses.replace(scenes, points=scenes.points[:, :, order], score=scenes.score[:, :, order])
    after = suppress_many(shuffled, rank, parameters)
    np.testing.assert_array_equal(after.eliminator, before.eliminator)
    np.testing.assert_allclose(after.poses.points, before.poses.points[:, :, order], rtol=1e-9)


@EVERY_VARIANT
@FEW
@given(seed=SEEDS, x=st.floats(-300, 300), y=st.floats(-300, 300))
def test_the_place_in_the_picture_does_not_matter(parameters, seed, x, y):
    scenes, rank = random_scenes(seed, SCENES), random_ranks(seed)
    before, after = (suppress_many(s, rank, parameters) for s in (scenes, mapped(scenes, 1.0, np.array([x, y]))))
    np.testing.assert_array_equal(after.eliminator, before.eliminator)
    np.testing.assert_allclose(after.poses.points, mapped(before.poses, 1.0, np.array([x, y])).points, rtol=1e-9)


@pytest.mark.parametrize("parameters", [DEFAULT, PAPER, RELEASED], ids=["default", "paper", "released"])
@FEW
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_the_size_of_people_does_not_matter(parameters, seed, scale):
    scenes, rank = random_scenes(seed, SCENES), random_ranks(seed)
    before, after = (suppress_many(s, rank, parameters) for s in (scenes, mapped(scenes, scale, np.zeros(2))))
    np.testing.assert_array_equal(after.eliminator, before.eliminator)
    np.testing.assert_allclose(after.poses.points, mapped(before.poses, scale, np.zeros(2)).points, rtol=1e-9)


@given(seed=SEEDS)
def test_the_mask_alone_is_that_of_the_poses(seed):
    poses, parameters = random_poses(seed), VARIANTS["alphapose"]
    expected = suppress_poses(poses, parameters=parameters).poses.valid
    np.testing.assert_array_equal(nms(poses, parameters=parameters), expected)


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


# By hand: the criterion, eta, units, the second rule.


def some_joints_apart(close, joints=16, distance=400.0, near=0.0, side=32.0):
    """Two poses of which the second has ``close`` joints at ``near`` pixels and the others far away."""
    poses = copies(2, joints)
    shift = jnp.where(jnp.arange(joints) < close, near, distance)
    points = poses.points.at[1, :, 0].add(shift)
    return dataclasses.replace(poses, points=points, boxes=poses.boxes * (side / 32))


@pytest.mark.parametrize(("close", "stays"), [(7, True), (8, False)])
def test_by_the_released_numbers_eight_coincident_joints_of_sixteen_are_too_many(close, stays):
    # Each adds 1 + 2.08; 22.48 / 3.08 = 7.3.
    assert pose_nms(some_joints_apart(close), parameters=RELEASED).tolist() == [True, stays]


@pytest.mark.parametrize(("near", "stays"), [(0.0, False), (3.0, False), (3.4, True)])
def test_by_the_released_numbers_ten_joints_at_the_circle_are_enough(near, stays):
    # The radius is 3.2 pixels; at 3 a joint adds 1 + 2.08 exp(-0.9375 / 2.08) = 2.33, beyond the radius 1.25.
    assert pose_nms(some_joints_apart(10, near=near), parameters=RELEASED).tolist() == [True, stays]


def test_read_literally_whoever_is_unlike_the_reference_goes():
    literal = dataclasses.replace(DEFAULT, criterion="literal")
    assert pose_nms(some_joints_apart(0), parameters=literal).tolist() == [True, False]
    assert pose_nms(some_joints_apart(16), parameters=literal).tolist() == [True, True]


@pytest.mark.parametrize(
    ("scale", "eta", "expected"),
    [("joints", 8.0, 8.0 * 10 / 16), ("absolute", 8.0, 8.0), ("fraction", 0.5, 0.5 * 3.08 * 10)],
)
def test_eta_is_for_so_many_joints_or_absolute_or_a_share_of_the_largest_similarity(scale, eta, expected):
    parameters = dataclasses.replace(DEFAULT, eta=eta, eta_scale=scale)
    assert parameters.threshold(10) == pytest.approx(expected)


def test_a_share_of_the_largest_similarity_is_a_share_of_coincident_joints():
    half = dataclasses.replace(DEFAULT, eta=0.5, eta_scale="fraction")
    assert pose_nms(some_joints_apart(5, 10), parameters=half).all()
    assert pose_nms(some_joints_apart(6, 10), parameters=half).tolist() == [True, False]


def test_in_pixels_the_box_sets_no_scale():
    parameters = PoseNMSParameters(sigma1=0.5, sigma2=2.0, lambda_=3.0, unit="pixel")
    for size in (1.0, 1000.0):
        found = pose_similarity(*one_joint(0.6, 0.8, (0.4, 0.2), (0.0, 0.0, size, size)), parameters=parameters)
        assert_close(found[0, 1], np.tanh(0.8) * np.tanh(0.4) + 3 * np.exp(-1 / 2))


@pytest.mark.parametrize(
    ("region", "x", "near"), [("circle", 1.0, 1), ("circle", 1.1, 0), ("box", 0.5, 1), ("box", 0.6, 0)]
)
def test_in_pixels_the_circle_has_a_radius_and_the_box_sides_of_one(region, x, near):
    parameters = PoseNMSParameters(region=region, unit="pixel")
    assert_close(keypoint_similarity(*one_joint(x, 0.0), parameters=parameters)[0, 1], float(near))


@pytest.mark.parametrize(
    ("close", "near", "side", "stays"),
    [(5, 6.9, 200.0, False), (4, 6.9, 200.0, True), (5, 7.1, 200.0, True), (5, 4.0, 39.0, True), (5, 4.0, 41.0, False)],
)
def test_by_alphaposes_second_rule_five_close_joints_are_too_many(close, near, side, stays):
    # Close is within 7 pixels and a tenth of the box.
    poses = some_joints_apart(close, 17, near=near, side=side)
    assert pose_nms(poses, parameters=ALPHAPOSE).tolist() == [True, stays]
    assert pose_nms(poses, parameters=dataclasses.replace(ALPHAPOSE, match_joints=0)).all()


def test_the_presets_have_the_numbers_of_their_sources():
    assert RELEASED.threshold(16) == ALPHAPOSE.threshold(17) == 22.48
    assert dataclasses.replace(RELEASED, merge="none") == DEFAULT == PoseNMSParameters()
    assert (PAPER.region, PAPER.kernel, PAPER.merge) == ("box", "gaussian", "none")


@pytest.mark.parametrize(("side", "decided"), [(16.0, False), (18.0, True), (400.0, True), (0.0, False)])
def test_by_alphaposes_numbers_matches_decide_alone_but_for_tiny_boxes(side, decided):
    # 4 joints add 2.7 at most, the other 13 1.7 exp(-d / 2.65) each: 22.48 at d = 1.69 pixels.
    sides = jnp.full((2, 3), max(side, 1e-3))
    assert _matches_decide(sides, 17, ALPHAPOSE).tolist() == [decided] * 3
    assert not _matches_decide(sides, 17, dataclasses.replace(ALPHAPOSE, criterion="literal")).any()


@pytest.mark.parametrize(
    "parameters",
    [ALPHAPOSE, VARIANTS["decided"]]
    + [PoseNMSParameters(eta=eta, match_joints=match, match_limit=1e3) for eta in (16.0, 22.48) for match in (2, 7)]
    + [dataclasses.replace(PAPER, eta=eta, match_joints=match) for eta in (2.0, 9.0) for match in (1, 4, 30)],
)
def test_where_matches_decide_nobody_with_fewer_is_similar_enough(parameters):
    # The most similar that a pose without enough matches can be: some joints coincide, the rest are just not close.
    joints = 17
    side = jnp.stack([jnp.linspace(0.5, 100.0, 200)] * 2)
    close = jnp.arange(joints) < min(parameters.match_joints - 1, joints)
    limit = jnp.minimum(parameters.alpha * side[0], parameters.match_limit)
    points = jnp.where(close[None], 0.0, 1.0001 * limit[:, None])
    pairs = jnp.stack([jnp.zeros_like(points), points], 1)
    pairs = jnp.stack([pairs, jnp.zeros_like(pairs)], -1)
    boxes = jnp.broadcast_to(jnp.concatenate([jnp.zeros_like(side), side]).T[:, None], (200, 2, 4))
    found = jax.vmap(partial(pose_similarity, parameters=parameters))(pairs, jnp.full((200, 2, joints), 9.0), boxes)
    stays = found[:, 0, 1] <= parameters.threshold(joints)
    decided = _matches_decide(side, joints, parameters)
    assert not (decided & ~stays).any()


# By hand: who removed whom, merging, the least score.


def in_a_row(*x, score=None, k=3):
    """Poses of k joints at the same place each, on a line; boxes of 40 pixels, so joints within 4 are merged."""
    count = len(x)
    points = jnp.broadcast_to(jnp.array([[value, 0.0] for value in x])[:, None], (count, k, 2))
    scores = jnp.broadcast_to(jnp.array(score or [0.9 - 0.1 * n for n in range(count)])[:, None], (count, k))
    return Poses(points, scores, jnp.broadcast_to(jnp.array([0.0, 0, 40, 40]), (count, 4)), jnp.ones(count, bool))


def test_the_eliminator_is_the_one_that_removed_a_pose():
    poses = in_a_row(0.0, 100.0, 1.0, 101.0, 200.0, 300.0)
    poses = dataclasses.replace(poses, valid=poses.valid.at[5].set(False))
    assert suppress_poses(poses).eliminator.tolist() == [0, 1, 0, 1, 4, -1]


def test_merged_joints_are_the_mean_weighted_by_score():
    merged = suppress_poses(in_a_row(0.0, 2.0, score=[0.6, 0.3]), parameters=RELEASED).poses
    assert_close(merged.points[0], np.tile([2 / 3, 0], (3, 1)))
    assert_close(merged.score[0], np.full(3, 0.6))
    assert_close(merged.points[1], np.tile([2.0, 0], (3, 1)))


@pytest.mark.parametrize(("how", "expected"), [("best", 0.6), ("weighted", (0.36 + 0.09) / 0.9)])
def test_the_score_of_a_merged_joint_is_the_best_or_the_weighted_mean(how, expected):
    parameters = dataclasses.replace(RELEASED, merge_score=how)
    assert_close(
        suppress_poses(in_a_row(0.0, 2.0, score=[0.6, 0.3]), parameters=parameters).poses.score[0, 0], expected
    )


def test_a_merged_joint_may_take_a_better_score_from_a_pose_of_less():
    poses = in_a_row(0.0, 0.0)
    poses = dataclasses.replace(poses, score=poses.score.at[1, 0].set(0.95))
    assert_close(suppress_poses(poses, parameters=RELEASED).poses.score[0], [0.95, 0.9, 0.9])


@pytest.mark.parametrize(("limit", "moves"), [(np.inf, True), (2.1, True), (1.9, False)])
def test_joints_out_of_reach_are_not_merged(limit, moves):
    poses = in_a_row(0.0, 2.0)
    poses = dataclasses.replace(poses, points=poses.points.at[1, 0, 1].set(4.1))  # beyond a tenth of the box
    merged = suppress_poses(poses, parameters=dataclasses.replace(RELEASED, merge_limit=limit)).poses
    assert not merged.valid[1]
    assert (merged.points[0, :, 0] > 0).tolist() == [False, moves, moves]


def test_merging_moves_no_joint_where_all_scores_are_zero_or_which_is_missing():
    poses = in_a_row(0.0, 2.0, k=8)
    score = poses.score.at[:, 0].set(0.0)
    points = poses.points.at[0, 1, 0].set(jnp.nan).at[1, 2, 1].set(jnp.inf)
    merged = suppress_poses(dataclasses.replace(poses, points=points, score=score), parameters=RELEASED).poses
    assert merged.valid.tolist() == [True, False]
    np.testing.assert_array_equal(merged.points[0, :3], points[0, :3])
    np.testing.assert_array_equal(merged.score[0, :3], score[0, :3])
    assert (merged.points[0, 3:, 0] > 0).all()


def test_a_pose_without_a_sure_joint_removes_others_but_is_not_returned():
    parameters = dataclasses.replace(DEFAULT, min_best=0.3)
    found = suppress_poses(in_a_row(0.0, 0.0, 100.0, 200.0, score=[0.25, 0.2, 0.4, 0.1]), parameters=parameters)
    assert found.eliminator.tolist() == [-1, 0, 2, -1]
    assert found.poses.valid.tolist() == [False, False, True, False]


def test_the_least_score_counts_before_and_after_merging():
    best = dataclasses.replace(RELEASED, min_best=0.5)
    weaker = in_a_row(0.0, 0.0, score=[0.45, 0.3])
    assert not pose_nms(dataclasses.replace(weaker, score=weaker.score.at[1, 0].set(0.6)), parameters=best).any()
    weighted = dataclasses.replace(best, merge_score="weighted")
    assert not pose_nms(in_a_row(0.0, 0.0, score=[0.55, 0.4]), parameters=weighted).any()
    assert pose_nms(in_a_row(0.0, 0.0, score=[0.55, 0.4]), parameters=best).tolist() == [True, False]


def test_a_missing_joint_makes_no_pose_sure():
    poses = in_a_row(0.0, score=[0.2])
    poses = dataclasses.replace(
        poses, points=poses.points.at[0, 0, 0].set(jnp.nan), score=poses.score.at[0, 0].set(0.9)
    )
    assert not pose_nms(poses, parameters=dataclasses.replace(DEFAULT, min_best=0.3)).any()


def test_a_given_rank_orders_the_references():
    assert pose_nms(in_a_row(0.0, 0.0, 0.0), rank=jnp.array([0.1, 0.2, 0.3])).tolist() == [False, False, True]
    assert pose_nms(in_a_row(0.0, 0.0, 0.0), rank=jnp.array([jnp.nan, 0.2, 0.2])).tolist() == [False, True, False]


# Defined behaviour at the edges.

FULL = copies(6, 6)  # at full capacity
EVERY_PRESET = pytest.mark.parametrize(
    "parameters", [dataclasses.replace(preset, min_best=0.0) for preset in PRESETS.values()], ids=PRESETS.keys()
)


def assert_in_place(found, poses):
    assert_close((found.poses.points, found.poses.score), (poses.points, poses.score))


@EVERY_PRESET
def test_nobody_is_nobody(parameters):
    found = suppress_poses(copies(0), parameters=parameters)
    assert found.eliminator.shape == (0,) and found.poses.points.shape == (0, 16, 2)
    assert pose_similarity(*leaves(copies(0)), parameters=parameters).shape == (0, 0)


@EVERY_PRESET
def test_without_a_valid_entry_nobody_stays(parameters):
    found = suppress_poses(dataclasses.replace(FULL, valid=jnp.zeros(6, bool)), parameters=parameters)
    assert found.eliminator.tolist() == [-1] * 6 and not found.poses.valid.any()
    assert_in_place(found, FULL)


@EVERY_PRESET
def test_one_person_stays_as_it_is(parameters):
    found = suppress_poses(dataclasses.replace(FULL, valid=jnp.arange(6) == 4), parameters=parameters)
    assert found.eliminator.tolist() == [-1, -1, -1, -1, 4, -1]
    assert_in_place(found, FULL)


def test_a_record_of_one_person_works_too():
    assert suppress_poses(copies(1)).eliminator.tolist() == [0]


@EVERY_PRESET
def test_of_identical_poses_the_first_stays_where_it_is(parameters):
    found = suppress_poses(FULL, parameters=parameters)
    assert found.eliminator.tolist() == [0] * 6
    assert_in_place(found, FULL)


@EVERY_PRESET
def test_distant_poses_of_equal_score_all_stay(parameters):
    shift = 500.0 * jnp.arange(6.0)
    apart = dataclasses.replace(FULL, points=FULL.points + shift[:, None, None], boxes=FULL.boxes + shift[:, None])
    found = suppress_poses(apart, parameters=parameters)
    assert found.eliminator.tolist() == list(range(6))
    assert_in_place(found, apart)


@EVERY_PRESET
def test_poses_whose_scores_are_all_zero_are_compared_by_their_joints_places(parameters):
    poses = dataclasses.replace(FULL, score=0 * FULL.score)
    found = suppress_poses(poses, parameters=parameters)
    assert found.eliminator.tolist() == [0] * 6
    assert_in_place(found, poses)


@EVERY_PRESET
def test_poses_without_a_finite_joint_all_stay(parameters):
    poses = dataclasses.replace(FULL, points=jnp.nan * FULL.points)
    found = suppress_poses(poses, parameters=parameters)
    assert found.eliminator.tolist() == list(range(6))
    assert_in_place(found, poses)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [(name, "square", "unknown") for name in ("region", "kernel", "criterion", "eta_scale", "unit", "merge")]
    + [("merge_score", "worst", "unknown")]
    + [(name, 0.0, "must be positive") for name in ("sigma1", "sigma2", "alpha", "eta_joints", "match_limit")]
    + [("alpha", np.nan, "must be positive"), ("merge_limit", -1.0, "must be positive")]
    + [(name, -1.0, "must not be negative") for name in ("lambda_", "match_joints", "min_best")]
    + [(name, 1e-300, "must be at least 1e-09") for name in ("sigma1", "sigma2", "alpha")]
    + [(name, 10**30, "must be at most 1e.09") for name in ("sigma2", "lambda_", "match_joints", "eta_joints")]
    + [("eta", np.nan, "must be a number"), ("eta", 22.48, "as a fraction")],
)
def test_parameters_out_of_range_are_refused(setting, value, message):
    # Set behind the back of the type checker, which would refuse the names before the class can.
    parameters = PoseNMSParameters(eta=0.5, eta_scale="fraction")
    object.__setattr__(parameters, setting, value)
    with pytest.raises(ValueError, match=rf"{setting}.*{message}|{message} {setting}"):
        parameters.__post_init__()


@pytest.mark.parametrize(
    ("function", "kernel"),
    [(keypoint_similarity, "laplace"), (distance_similarity, "laplace"), (pose_similarity, "gaussian")],
)
def test_similarities_have_the_gradients_of_finite_differences(function, kernel):
    poses = random_poses(3, 3)
    parameters = dataclasses.replace(RELEASED, kernel=kernel, sigma1=0.5, alpha=0.37)
    assert_gradients(partial(function, parameters=parameters), poses.points, poses.score, poses.boxes)


@EVERY_PRESET
def test_gradients_are_finite_where_poses_coincide(parameters):
    poses = copies(2, 2)
    points = poses.points.at[0, 0, 0].set(jnp.nan)
    gradients = jax.grad(lambda *arguments: pose_similarity(*arguments, parameters=parameters).sum(), (0, 1, 2))
    assert all(np.isfinite(gradient).all() for gradient in jax.jit(gradients)(points, poses.score, poses.boxes))


@pytest.mark.parametrize("how", ["best", "weighted"])
def test_merged_poses_have_the_gradient_of_the_mean(how):
    parameters = dataclasses.replace(RELEASED, merge_score=how)
    poses = in_a_row(0.0, 2.0, score=[0.6, 0.3])
    poses = dataclasses.replace(poses, points=poses.points.at[1, 2].set(jnp.nan))

    def place(points):
        return (
            suppress_poses(dataclasses.replace(poses, points=points), parameters=parameters).poses.points[0, :2].sum()
        )

    assert_close(jax.jit(jax.grad(place))(poses.points)[:, :, 0], [[2 / 3, 2 / 3, 0], [1 / 3, 1 / 3, 0]])


def test_sums_over_clusters_do_not_depend_on_how_they_are_made():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(9, 3, 2)), jnp.float32)
    index = jnp.array([0, 4, 4, 9, 0, 8, 4, 9, 1])
    expected = [np.asarray(values)[np.asarray(index) == number].sum(0) for number in range(9)]
    for sums in (_sums_in_place, _sums_by_product):
        assert_close(sums(values, index), expected, rtol=1e-5, atol=1e-6)


def test_transformations_do_not_change_the_results():
    poses = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_poses(seed) for seed in range(4)))
    parameters = VARIANTS["alphapose"]
    assert_same_under_jit_and_vmap(lambda p: jax.tree.leaves(suppress_poses(p, parameters=parameters)), poses)
    assert_same_under_jit_and_vmap(pose_nms, poses)


def test_transformations_do_not_change_similarities():
    poses = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_poses(seed) for seed in range(3)))
    assert_same_under_jit_and_vmap(pose_similarity, *leaves(poses))
