from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmpe_jax.metrics.pck import table_row
from rmpe_jax.metrics.pcp import (
    LSP_STICKS,
    PCP_COLUMNS,
    WAF_STICKS,
    correct_stickman,
    correct_sticks,
    match_stickmen,
    pcp,
    stickman_scores,
    sticks_of,
)
from rmpe_jax.skeleton import COCO_17, LSP_14, MPII_16

judge = jax.jit(correct_sticks, static_argnames=("criterion", "threshold"))
#: A stick of length 4 along x.
STICK = jnp.array([[[0.0, 0.0], [4.0, 0.0]]])
YES = jnp.array([True])


def moved(first, second):
    return STICK + jnp.array([[first, second]])


def test_the_strict_criterion_holds_for_both_ends_and_the_relaxed_one_for_their_mean():
    cases = [
        (moved([0.0, 2.0], [2.0, 0.0]), True, True),  # both at the limit
        (moved([0.0, 3.0], [0.0, 1.0]), False, True),  # the mean is at the limit
        (moved([0.0, 3.0], [0.0, 1.01]), False, False),
        (moved([jnp.nan, 0.0], [0.0, 0.0]), False, False),
    ]
    for predicted, strict, relaxed in cases:
        assert judge(predicted, STICK, YES).tolist() == [strict]
        assert judge(predicted, STICK, YES, criterion="relaxed").tolist() == [relaxed]


def test_a_stick_without_length_or_label_is_never_found():
    point = jnp.zeros((1, 2, 2))
    assert not judge(point, point, YES).any() and not judge(STICK, STICK, ~YES).any()


def test_the_threshold_is_a_multiple_of_the_true_length():
    assert judge(moved([0.0, 1.0], [0.0, 1.0]), STICK, YES, threshold=0.25).all()
    assert not judge(moved([0.0, 1.0], [0.0, 1.0]), STICK, YES, threshold=0.24).any()


@given(
    arrays(np.float32, (6, 2, 2), elements=st.integers(-6, 6).map(float)),
    arrays(np.float32, (6, 2, 2), elements=st.integers(-6, 6).map(float)),
    arrays(bool, 6),
    st.sampled_from(["strict", "relaxed"]),
)
def test_pcp_is_that_of_a_loop(error, truth, labelled, criterion):
    # Cases that rounding decides are left out.
    predicted = truth + error / 4
    found = judge(jnp.array(predicted), jnp.array(truth), jnp.array(labelled), criterion=criterion)
    lengths = np.linalg.norm(truth[:, 0].astype(float) - truth[:, 1], axis=-1)
    ends = np.linalg.norm(predicted.astype(float) - truth, axis=-1)
    error_ = ends.max(-1) if criterion == "strict" else ends.mean(-1)
    clear = np.abs(error_ - lengths / 2) > 1e-5
    expected = np.array(oracles.found_sticks(predicted, truth, labelled, criterion, 0.5))
    np.testing.assert_array_equal(np.asarray(found)[clear], expected[clear])


@given(arrays(np.float32, (6, 2, 2), elements=st.floats(-9, 9, width=32)))
def test_a_stick_found_strictly_is_found_relaxed(error):
    truth = jnp.tile(STICK, (6, 1, 1))
    strict = judge(truth + error, truth, jnp.ones(6, bool))
    relaxed = judge(truth + error, truth, jnp.ones(6, bool), criterion="relaxed")
    assert (relaxed | ~strict).all()


def test_another_criterion_is_refused():
    with pytest.raises(ValueError, match="expected criterion 'strict' or 'relaxed', got 'loose'"):
        correct_sticks(STICK, STICK, YES, criterion="loose")


def test_the_sticks_of_lsp_join_its_joints():
    points = jnp.array(np.stack([np.arange(14.0), np.arange(14.0) ** 2], -1), jnp.float32)
    sticks, labelled = sticks_of(points, jnp.ones(14, bool), LSP_14)
    assert len(LSP_STICKS) == 10 and labelled.all()
    found = dict(zip(LSP_STICKS, sticks, strict=True))
    index = LSP_14.joints.index
    assert_close(found["torso"][0], (points[8] + points[9]) / 2)
    assert_close(found["torso"][1], (points[2] + points[3]) / 2)
    for side in ("left", "right"):
        ends = [points[index(f"{side}_knee")], points[index(f"{side}_ankle")]]
        assert_close(found[f"{side}_lower_leg"], jnp.stack(ends))
    assert_close(found["head"], points[jnp.array([13, 12])])


def test_a_stick_is_labelled_if_all_its_joints_are_and_nan_stays_in_its_sticks():
    hip = LSP_14.joints.index("left_hip")
    points = jnp.ones((14, 2)).at[hip].set(jnp.nan)
    sticks, labelled = sticks_of(points, jnp.ones(14, bool).at[hip].set(False), LSP_14)
    lost = {name for name, known in zip(LSP_STICKS, labelled.tolist(), strict=True) if not known}
    assert lost == {"torso", "left_upper_leg"}
    np.testing.assert_array_equal(jnp.isfinite(sticks).all((1, 2)), labelled)


def test_the_sticks_of_waf_run_from_thorax_to_pelvis_and_have_no_legs():
    points = jnp.array(np.stack([np.arange(16.0), np.zeros(16)], -1), jnp.float32)
    sticks, labelled = sticks_of(points, jnp.ones(16, bool).at[10].set(False), MPII_16, sticks=WAF_STICKS)
    order = ["torso", "left_upper_arm", "right_upper_arm", "left_lower_arm", "right_lower_arm", "head"]
    assert list(WAF_STICKS) == order
    assert sticks[..., 0].tolist() == [[7, 6], [13, 14], [12, 11], [14, 15], [11, 10], [9, 8]]
    assert labelled.tolist() == [True, True, True, True, False, True]


def test_a_skeleton_that_lacks_a_joint_is_refused():
    with pytest.raises(ValueError, match=r"expected a skeleton with \['head_top', 'neck'\], got coco_17"):
        sticks_of(jnp.zeros((17, 2)), jnp.ones(17, bool), COCO_17)


def test_the_columns_are_those_of_deep_pose():
    assert tuple(PCP_COLUMNS) == ("UArm", "LArm", "ULeg", "LLeg", "Ave.")
    # Third stage of DeepPose on LSP.
    published = {"upper_arm": 0.56, "lower_arm": 0.38, "upper_leg": 0.77, "lower_leg": 0.71}
    each = [published.get(name.partition("_")[2], 0.0) for name in LSP_STICKS]
    row = table_row(jnp.array(each), tuple(LSP_STICKS), PCP_COLUMNS)
    assert_close(list(row.values()), [0.56, 0.38, 0.77, 0.71, 0.605])


def test_pcp_counts_labelled_sticks_and_weighs_people():
    correct = jnp.array([[True, False], [True, True], [False, False]])
    labelled = jnp.array([[True, True], [True, False], [True, False]])
    total, each = jax.jit(pcp)(correct, labelled)
    assert_close(total, 2 / 4)
    assert_close(each, [2 / 3, 0.0])
    total, each = jax.jit(pcp)(correct, labelled, weight=jnp.array([0.0, 3.0, 1.0]))
    assert_close(total, 3 / 4)
    np.testing.assert_allclose(each, [0.75, np.nan])


def test_a_true_stickman_takes_the_first_prediction_that_overlaps_enough():
    overlap = jnp.array([[0.5, 0.6, 0.0], [0.9, 0.9, 0.0], [0.6, 0.0, 0.8]])
    found = match_stickmen(overlap, jnp.array([True, True, False]), jnp.array([True, True, True]))
    assert found.tolist() == [1, 0, -1]
    assert match_stickmen(overlap, jnp.ones(3, bool), jnp.array([True, False, True])).tolist() == [1, -1, 2]


def test_a_hidden_stick_is_right_if_it_is_hidden_in_both():
    sticks = jnp.tile(STICK, (5, 1, 1))
    predicted = sticks.at[4].add(99.0).at[1].set(sticks[1, ::-1])  # the fifth is off, the second is turned round
    predicted_visible = jnp.array([True, True, False, False, True])
    truth_visible = jnp.array([True, True, True, False, True])
    right, flag = jax.jit(correct_stickman)(predicted, predicted_visible, sticks, truth_visible)
    assert right.tolist() == [True, True, False, True, False]
    assert flag.tolist() == [True, True, False, True, True]


def test_the_scores_of_stickmen_count_detected_people():
    correct = jnp.array([[True, False], [True, True], [True, True]])
    occlusion = jnp.array([[True, True], [True, False], [False, False]])
    detected = jnp.array([True, True, False])
    scores = jax.jit(stickman_scores)(correct, occlusion, detected)
    assert_close(scores.detection_rate, 2 / 3)
    assert_close(scores.pcp, [1.0, 0.5])
    assert_close(jnp.stack([scores.mpcp, scores.aop]), [0.75, 0.75])
    weighed = jax.jit(stickman_scores)(correct, occlusion, detected, weight=jnp.array([3.0, 1.0, 0.0]))
    assert_close(jnp.stack([weighed.detection_rate, weighed.mpcp, weighed.aop]), [1.0, 5 / 8, 7 / 8])


def test_nobody_detected_is_nan_but_for_the_rate():
    scores = jax.jit(stickman_scores)(jnp.ones((2, 6), bool), jnp.ones((2, 6), bool), jnp.zeros(2, bool))
    assert scores.detection_rate == 0.0 and np.isnan(scores.mpcp) and np.isnan(scores.aop)
    assert len(WAF_STICKS) == 6 and np.isnan(scores.pcp).all()


def test_transformations_do_not_change_the_metrics():
    rng = np.random.default_rng(0)
    truth = jnp.array(rng.normal(scale=4, size=(2, 6, 2, 2)), jnp.float32)
    predicted = jnp.array(truth + rng.normal(size=truth.shape), jnp.float32)
    labelled, visible = jnp.array(rng.random((2, 2, 6)) < 0.7)
    assert_same_under_jit_and_vmap(correct_sticks, predicted, truth, labelled)
    assert_same_under_jit_and_vmap(correct_stickman, predicted, visible, truth, labelled)
    points = jnp.array(rng.normal(size=(2, 14, 2)), jnp.float32)
    assert_same_under_jit_and_vmap(partial(sticks_of, skeleton=LSP_14), points, jnp.ones((2, 14), bool))

    def scores(*arguments):
        return jax.tree.leaves(stickman_scores(*arguments))

    assert_same_under_jit_and_vmap(scores, labelled[:, None], visible[:, None], jnp.ones((2, 1), bool))
    overlap = jnp.array(rng.random((2, 3, 2)), jnp.float32)
    assert_same_under_jit_and_vmap(match_stickmen, overlap, jnp.ones((2, 3), bool), jnp.ones((2, 2), bool))
