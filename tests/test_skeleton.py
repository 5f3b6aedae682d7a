import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.cocoeval import Params

from rmpe_jax.skeleton import (
    COCO_17,
    COCO_LSP_19,
    CROWDPOSE_14,
    FLIC_11,
    LIMB_JOINTS,
    LSP_14,
    MPII_16,
    SKELETONS,
    WAF_10,
    Skeleton,
    convert_points,
    joint_map,
    skeleton_named,
)

ARM = ("shoulder", "elbow", "wrist")
EVERY_SKELETON = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)


def test_skeletons_have_the_sizes_of_their_data_sets():
    assert [s.size for s in (COCO_17, LSP_14, MPII_16, COCO_LSP_19)] == [17, 14, 16, 19]
    assert [s.size for s in (CROWDPOSE_14, FLIC_11, WAF_10)] == [14, 11, 10]


def test_coco_joints_stand_in_the_order_of_its_files():
    assert COCO_17.joints[:5] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
    assert COCO_17.joints[5:9] == ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow")
    assert COCO_17.joints[15:] == ("left_ankle", "right_ankle")


def test_lsp_joints_stand_in_the_order_of_its_files():
    assert LSP_14.joints[0] == "right_ankle" and LSP_14.joints[5] == "left_ankle"
    assert LSP_14.joints[6] == "right_wrist" and LSP_14.joints[11:] == ("left_wrist", "neck", "head_top")


def test_mpii_joints_stand_in_the_order_of_its_files():
    assert MPII_16.joints[6:10] == ("pelvis", "thorax", "neck", "head_top")
    assert MPII_16.joints[10] == "right_wrist" and MPII_16.joints[15] == "left_wrist"


def test_crowdpose_joints_stand_in_the_order_of_its_files():
    assert CROWDPOSE_14.joints[:4] == ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow")
    assert CROWDPOSE_14.joints[6:8] == ("left_hip", "right_hip") and CROWDPOSE_14.joints[12:] == ("head_top", "neck")


def test_flic_joints_stand_in_the_order_of_its_labelled_columns():
    assert FLIC_11.joints[:3] == ("left_shoulder", "left_elbow", "left_wrist")
    assert FLIC_11.joints[6:] == ("left_hip", "right_hip", "left_eye", "right_eye", "nose")


def test_waf_joints_are_the_ends_of_its_six_sticks():
    assert set(WAF_10.joints[:6]) == {f"{side}_{part}" for side in ("left", "right") for part in ARM}
    assert set(WAF_10.joints[6:]) == {"neck", "head_top", "thorax", "pelvis"}


def test_coco_sigmas_are_those_of_its_evaluation():
    np.testing.assert_allclose(COCO_17.sigmas, Params(iouType="keypoints").kpt_oks_sigmas, rtol=1e-12)


@EVERY_SKELETON
def test_flipping_twice_is_the_identity(skeleton):
    order = np.array(skeleton.flip_order)
    np.testing.assert_array_equal(order[order], np.arange(skeleton.size))


@EVERY_SKELETON
def test_flipping_exchanges_the_sides_and_nothing_else(skeleton):
    for joint, other in zip(skeleton.joints, skeleton.flip_order, strict=True):
        expected = joint.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
        assert skeleton.joints[other] == expected


@EVERY_SKELETON
def test_limbs_join_two_known_joints_and_never_repeat(skeleton):
    limbs = {frozenset(limb) for limb in skeleton.limb_indices}
    assert len(limbs) == len(skeleton.limbs) and all(len(limb) == 2 for limb in limbs)
    names = [tuple(skeleton.joints[index] for index in limb) for limb in skeleton.limb_indices]
    assert tuple(names) == skeleton.limbs


@pytest.mark.parametrize("skeleton", [COCO_17, LSP_14, MPII_16, COCO_LSP_19, CROWDPOSE_14], ids=lambda s: s.name)
def test_the_twelve_limb_joints_are_in_every_skeleton_of_a_whole_body(skeleton):
    assert len(LIMB_JOINTS) == 12 and set(LIMB_JOINTS) <= set(skeleton.joints)


@EVERY_SKELETON
def test_the_six_arm_joints_are_in_every_skeleton(skeleton):
    assert {joint for joint in LIMB_JOINTS if joint.endswith(ARM)} <= set(skeleton.joints)


@EVERY_SKELETON
def test_a_skeleton_is_found_by_its_name(skeleton):
    assert skeleton_named(skeleton.name) is skeleton


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="body_25.*coco_17, coco_lsp_19, crowdpose_14, flic_11, lsp_14, mpii_16, waf_10"
    ):
        skeleton_named("body_25")


@pytest.mark.parametrize(
    ("joints", "limbs", "sigmas", "message"),
    [
        (("a", "a"), (), (0.1, 0.1), "repeat"),
        (("a", "b"), (), (0.1,), "2 joints but 1 sigmas"),
        (("a", "b"), (("a", "c"),), (0.1, 0.1), "unknown joints.*c"),
    ],
)
def test_inconsistent_skeletons_are_refused(joints, limbs, sigmas, message):
    with pytest.raises(ValueError, match=message):
        Skeleton("odd", joints, limbs, sigmas)


def test_joint_map_finds_joints_by_name_and_marks_missing_ones():
    small = Skeleton("small", ("neck", "nose", "tail"), (), (0.1, 0.1, 0.1))
    assert joint_map(COCO_LSP_19, small) == (17, 0, -1)


def test_conversion_moves_points_and_labels_together():
    points = jnp.arange(28.0).reshape(14, 2)
    labelled = jnp.ones(14, bool).at[0].set(False)  # right ankle
    converted, kept = convert_points(points, labelled, LSP_14, COCO_17)
    left_wrist, right_ankle = COCO_17.joints.index("left_wrist"), COCO_17.joints.index("right_ankle")
    np.testing.assert_array_equal(converted[left_wrist], points[11])
    np.testing.assert_array_equal(converted[right_ankle], points[0])
    assert kept[left_wrist] and not kept[right_ankle]


def test_joints_that_the_source_lacks_become_unlabelled_zeros():
    points, labelled = convert_points(jnp.full((14, 2), 7.0), jnp.ones(14, bool), LSP_14, COCO_17)
    assert not labelled[:5].any() and labelled[5:].all()
    np.testing.assert_array_equal(points[:5], 0.0)


@pytest.mark.parametrize("source", [COCO_17, LSP_14, CROWDPOSE_14, FLIC_11])
def test_conversion_to_the_joint_skeleton_and_back_loses_nothing(source):
    points = jnp.arange(2.0 * 3 * source.size).reshape(3, source.size, 2)
    labelled = jnp.arange(3 * source.size).reshape(3, source.size) % 3 > 0
    there = convert_points(points, labelled, source, COCO_LSP_19)
    back_points, back_labelled = convert_points(*there, COCO_LSP_19, source)
    np.testing.assert_array_equal(back_points, points)
    np.testing.assert_array_equal(back_labelled, labelled)
