import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_gradients, assert_identical, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from made_data import figure

from rmpe_jax.proposals.atoms import FEWEST_JOINTS, nearest_atom, normalized_pose, torso_frame
from rmpe_jax.skeleton import COCO_17, SKELETONS, WAF_10, Skeleton

JOINTS = ("left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_knee", "right_knee")
TOY = Skeleton("toy", JOINTS, (), (0.1,) * 6)
POINTS = jnp.array([[4.0, 0], [0, 0], [3, 10], [1, 10], [4, 20], [-1, 20]])
ALL = jnp.ones(6, bool)


def without(*names):
    """Which of the toy's joints are labelled: all but these."""
    return jnp.array([joint not in names for joint in JOINTS])


def moved(skeleton, count, seed=0, spread=6.0):
    """Figures with joints moved at random, some of them not labelled."""
    rng = np.random.default_rng(seed)
    points = figure(skeleton.joints, (10, 5, 60, 90)) + rng.normal(scale=spread, size=(count, skeleton.size, 2))
    return jnp.array(points, jnp.float32), jnp.array(rng.random((count, skeleton.size)) < 0.7)


# The torso


def test_the_torso_goes_from_the_middle_of_the_shoulders_to_that_of_the_hips():
    middle, length = torso_frame(POINTS, ALL, skeleton=TOY)
    assert middle.tolist() == [2, 5] and length == 10


@pytest.mark.parametrize(
    ("missing", "middle", "squared"),
    [
        (["right_shoulder"], [3, 5], 104),  # from (4, 0) to (2, 10)
        (["left_hip"], [1.5, 5], 101),  # from (2, 0) to (1, 10)
        (["left_shoulder", "right_hip"], [1.5, 5], 109),  # from (0, 0) to (3, 10)
        (["left_knee", "right_knee"], [2, 5], 100),
    ],
)
def test_one_joint_of_a_pair_stands_for_both(missing, middle, squared):
    found, length = torso_frame(POINTS, without(*missing), skeleton=TOY)
    assert found.tolist() == middle
    assert length**2 == pytest.approx(squared, rel=1e-6)


@pytest.mark.parametrize("pair", [JOINTS[:2], JOINTS[2:4], JOINTS[:4], JOINTS])
def test_without_a_pair_there_is_no_torso(pair):
    middle, length = torso_frame(POINTS, without(*pair), skeleton=TOY)
    assert middle.tolist() == [0, 0] and length == 0


@pytest.mark.parametrize(("height", "found"), [(0.0, False), (0.9, False), (1.1, True)])
def test_a_torso_seen_from_its_end_gives_no_scale(height, found):
    # The joints extend over 20 pixels, of which the shortest torso is a twentieth.
    points = POINTS.at[:2, 1].set(0.0).at[2:4, 1].set(height)
    middle, length = torso_frame(points, ALL, skeleton=TOY)
    assert length == pytest.approx(height if found else 0) and middle[0] == (2 if found else 0)
    # A joint that is not labelled extends nothing.
    assert torso_frame(points.at[4].set(1e4), without("left_knee"), skeleton=TOY)[1] == length


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS.keys())
def test_every_skeleton_has_a_torso(skeleton):
    points = jnp.array(figure(skeleton.joints, (10.0, 0, 50, 100)), jnp.float32)
    middle, length = torso_frame(points, jnp.ones(skeleton.size, bool), skeleton=skeleton)
    assert_close(middle, [30, 37.5])  # a made figure has its shoulders at 0.22 of its height, hips and pelvis at 0.53
    assert length == pytest.approx(31)


def test_without_hips_the_pelvis_ends_the_torso():
    points = jnp.array(figure(WAF_10.joints, (0.0, 0, 10, 100)), jnp.float32)
    labelled = jnp.array([joint != "pelvis" for joint in WAF_10.joints])
    assert torso_frame(points, labelled, skeleton=WAF_10)[1] == 0


# Poses in torso lengths


def test_a_pose_is_measured_in_torso_lengths_from_the_middle_of_the_torso():
    pose, known = normalized_pose(POINTS, ALL, skeleton=TOY)
    assert_close(pose, [[0.2, -0.5], [-0.2, -0.5], [0.1, 0.5], [-0.1, 0.5], [0.2, 1.5], [-0.3, 1.5]])
    assert known.all()


def test_joints_that_a_pose_lacks_are_zero():
    pose, known = normalized_pose(POINTS, without("left_knee"), skeleton=TOY)
    assert pose[4].tolist() == [0, 0] and known.tolist() == [True] * 4 + [False, True]
    assert_close(pose[5], [-0.3, 1.5])


@given(
    scale=st.floats(0.1, 10),
    x=st.floats(-500, 500),
    y=st.floats(-500, 500),
    labelled=st.lists(st.booleans(), min_size=6),
)
def test_moved_and_scaled_poses_are_the_same(scale, x, y, labelled):
    known = jnp.array(labelled[:6])
    pose = normalized_pose(POINTS, known, skeleton=TOY)
    there = normalized_pose(POINTS * scale + jnp.array([[x, y]], jnp.float32), known, skeleton=TOY)
    assert_close(there[0], pose[0], atol=2e-3)
    np.testing.assert_array_equal(there[1], pose[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_joint_that_is_not_finite_counts_as_not_labelled(value):
    broken = POINTS.at[4, 1].set(value).at[0].set(value)
    expected = normalized_pose(POINTS, without("left_knee", "left_shoulder"), skeleton=TOY)
    assert_identical(normalized_pose(broken, ALL, skeleton=TOY), expected)
    hidden = normalized_pose(broken, without("left_knee", "left_shoulder"), skeleton=TOY)
    assert_identical(hidden, expected)


@pytest.mark.parametrize("missing", [JOINTS, JOINTS[:2], JOINTS[2:4]])
def test_without_a_torso_a_pose_has_nothing(missing):
    pose, known = normalized_pose(POINTS, without(*missing), skeleton=TOY)
    assert not known.any() and not pose.any()


def test_gradients_are_those_of_differences():
    assert_gradients(lambda points: torso_frame(points, without("left_hip"), skeleton=TOY), POINTS)
    assert_gradients(lambda points: normalized_pose(points, without("left_knee"), skeleton=TOY)[0], POINTS)


@pytest.mark.parametrize("missing", [JOINTS, JOINTS[:2], ()])
def test_gradients_without_a_torso_are_zero(missing):
    points = jnp.ones((6, 2))
    gradient = jax.grad(lambda p: normalized_pose(p, without(*missing), skeleton=TOY)[0].sum())(points)
    np.testing.assert_array_equal(gradient, 0)


# The nearest atomic pose


def test_the_nearest_of_two_atomic_poses_is_taken():
    normal, _ = normalized_pose(POINTS, ALL, skeleton=TOY)
    atoms = jnp.stack([normal + 0.5, normal + 0.1, normal - 0.2])
    assert nearest_atom(3 * POINTS + 7, ALL, atoms, skeleton=TOY) == 1
    # What counts is the distance over all joints, not that of one.
    far = atoms.at[1, 5].add(9.0)
    assert nearest_atom(3 * POINTS + 7, ALL, far, skeleton=TOY) == 2


def test_the_nearest_is_the_one_of_a_loop():
    points, labelled = moved(COCO_17, 40)
    poses = jax.jit(jax.vmap(lambda p, known: normalized_pose(p, known, skeleton=COCO_17)))(points, labelled)
    atoms = np.array(moved(COCO_17, 5, seed=1)[0]) / 26 - [1.3, 1.4]
    atoms[:, 3] = np.nan
    expected = []
    for pose, known in zip(*(np.asarray(part) for part in poses), strict=True):
        rows = [joint for joint in range(17) if known[joint] and joint != 3]
        distance = [np.mean([((pose[j] - atom[j]) ** 2).sum() for j in rows]) for atom in atoms] if rows else []
        expected.append(int(np.argmin(distance)) if len(rows) >= FEWEST_JOINTS else 5)
    find = jax.jit(jax.vmap(lambda p, known: nearest_atom(p, known, jnp.asarray(atoms, jnp.float32), skeleton=COCO_17)))
    assert find(points, labelled).tolist() == expected
    assert len(set(expected)) == 6


def test_a_joint_that_any_atomic_pose_lacks_compares_nothing():
    points, _ = moved(COCO_17, 1)
    labelled = jnp.ones(17, bool)
    normal, _ = normalized_pose(points[0], labelled, skeleton=COCO_17)
    atoms = jnp.stack([normal.at[0].add(50.0), normal + 0.1])
    assert nearest_atom(points[0], labelled, atoms, skeleton=COCO_17) == 1
    assert nearest_atom(points[0], labelled, atoms.at[1, 0].set(jnp.nan), skeleton=COCO_17) == 0


@pytest.mark.parametrize(("joints", "found"), [(6, 0), (5, 2), (0, 2)])
def test_a_pose_with_too_few_joints_is_like_none(joints, found):
    points, _ = moved(COCO_17, 1)
    order = np.array([COCO_17.joints.index(name) for name in (*JOINTS, *COCO_17.joints[:5])])
    labelled = jnp.zeros(17, bool).at[order[:joints]].set(True)
    normal, _ = normalized_pose(points[0], jnp.ones(17, bool), skeleton=COCO_17)
    atoms = jnp.stack([normal, normal + 1])
    assert nearest_atom(points[0], labelled, atoms, skeleton=COCO_17) == found
    # Joints that the atomic poses lack do not count.
    assert nearest_atom(points[0], labelled, atoms.at[:, order[0]].set(jnp.nan), skeleton=COCO_17) == 2


def test_a_pose_without_a_torso_is_like_none():
    points, _ = moved(COCO_17, 1)
    labelled = jnp.array(["hip" not in joint for joint in COCO_17.joints])
    assert nearest_atom(points[0], labelled, jnp.zeros((4, 17, 2)), skeleton=COCO_17) == 4


def test_transformations_change_nothing():
    points, labelled = moved(COCO_17, 3)
    atoms = moved(COCO_17, 2, seed=1)[0] / 26
    assert_same_under_jit_and_vmap(lambda p, known: torso_frame(p, known, skeleton=COCO_17), points, labelled)
    assert_same_under_jit_and_vmap(lambda p, known: normalized_pose(p, known, skeleton=COCO_17), points, labelled)
    assert_same_under_jit_and_vmap(lambda p, known: nearest_atom(p, known, atoms, skeleton=COCO_17), points, labelled)
