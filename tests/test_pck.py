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

from rmpe_jax.metrics.multi_person_ap import MPII_COLUMNS
from rmpe_jax.metrics.pck import (
    AUC_THRESHOLDS,
    PDJ_FRACTIONS,
    correct_joints,
    correct_joints_at,
    mpii_head_size,
    pck,
    pck_auc,
    pck_curve,
    table_row,
    torso_length,
)
from rmpe_jax.skeleton import LSP_14

THRESHOLDS = (0.1, 0.25, 0.5)
weighted_pck, curve, auc = (jax.jit(function) for function in (pck, pck_curve, pck_auc))
judge = jax.jit(jax.vmap(partial(correct_joints_at, thresholds=THRESHOLDS)))


def people(count=5, joints=4):
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=20, size=(count, joints, 2)).astype(np.float32)
    predicted = truth + rng.normal(scale=3, size=truth.shape).astype(np.float32)
    length = np.linspace(5, 20, count, dtype=np.float32)
    return tuple(jnp.array(a) for a in (predicted, truth, rng.random((count, joints)) < 0.8, length))


def test_mpii_head_size_is_three_fifths_of_the_diagonal():
    boxes = jnp.array([[10.0, 20.0, 40.0, 60.0], [5.0, 5.0, 5.0, 5.0]])
    assert_close(mpii_head_size(boxes), [30.0, 0.0])
    assert_close(mpii_head_size(boxes[0]), 30.0)


def test_a_curve_by_hand():
    # Errors of 0, 1 and 5 pixels and a joint without label; the head is 10 pixels.
    truth = jnp.zeros((4, 2))
    predicted = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    labelled = jnp.array([True, True, True, False])
    found = correct_joints_at(predicted, truth, labelled, jnp.array(10.0), (0.0, 0.1, 0.49, 0.5))
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(found, np.array(expected, bool))
    total, each = curve(found[None], labelled[None])
    assert_close(total, [1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(each[:, 2:], [[0, np.nan], [0, np.nan], [0, np.nan], [1, np.nan]])
    total, each = auc(found[None], labelled[None])
    assert_close(total, 2 / 3)
    np.testing.assert_allclose(each, [1, 0.75, 0.25, np.nan])


def test_the_area_under_the_curve_counts_the_thresholds_that_suffice():
    # An error of 0.205 heads passes 0.21, 0.22, ..., 0.50: 30 of 51 thresholds.
    found = correct_joints_at(
        jnp.array([[2.05, 0.0]]), jnp.zeros((1, 2)), jnp.ones(1, bool), jnp.array(10.0), AUC_THRESHOLDS
    )
    assert len(AUC_THRESHOLDS) == 51 and AUC_THRESHOLDS[0] == 0.0 and AUC_THRESHOLDS[-1] == 0.5
    assert_close(auc(found[None], jnp.ones((1, 1), bool))[0], 30 / 51)


def test_each_point_of_the_curve_is_that_of_a_loop():
    predicted, truth, labelled, length = people(20)
    total, each = curve(judge(predicted, truth, labelled, length), labelled)
    for place, threshold in enumerate(THRESHOLDS):
        expected = oracles.pck(*(np.asarray(a) for a in (predicted, truth, labelled, length)), threshold)
        np.testing.assert_allclose(total[place], expected[0], rtol=1e-6)
        np.testing.assert_allclose(each[place], expected[1], rtol=1e-6)


def test_each_threshold_is_that_of_correct_joints():
    at_once = judge(*people())
    for place, threshold in enumerate(THRESHOLDS):
        one_by_one = jax.jit(jax.vmap(partial(correct_joints, threshold=threshold)))(*people())
        np.testing.assert_array_equal(at_once[:, place], one_by_one)


def test_pdj_takes_the_torso_as_its_unit():
    # The torso is 100 pixels; every joint is off by 12: found from a fraction of 0.15 on.
    truth = jnp.zeros((14, 2)).at[9].set(jnp.array([60.0, 80.0]))
    labelled = jnp.ones(14, bool)
    diameter = torso_length(truth, labelled, LSP_14)
    found = correct_joints_at(truth + jnp.array([[0.0, 12.0]]), truth, labelled, diameter, PDJ_FRACTIONS)
    total, _ = curve(found[None], labelled[None])
    assert diameter == 100.0 and total.tolist() == [0.0, 0.0] + [1.0] * 8


@pytest.mark.parametrize("length", [0.0, -1.0, np.nan])
def test_nothing_is_found_without_a_length_or_at_nan(length):
    still = jnp.zeros((2, 2))
    assert not correct_joints_at(still, still, jnp.ones(2, bool), jnp.array(length), THRESHOLDS).any()
    lost = jnp.full((2, 2), jnp.nan)
    assert not correct_joints_at(lost, still, jnp.ones(2, bool), jnp.array(1.0), THRESHOLDS).any()


@given(arrays(bool, (4, 3)), arrays(bool, (4, 3)), arrays(np.float32, 4, elements=st.integers(0, 3).map(float)))
def test_whole_weights_are_repeated_people(hits, labelled, weight):
    error, known = (np.repeat(a, weight.astype(int), 0) for a in (np.where(hits, 0.0, 9.0), labelled))
    error = np.stack([error, error], -1)
    expected = oracles.pck(error, np.zeros_like(error), known, np.ones(len(error)), 0.5)
    found = weighted_pck(jnp.array(hits), jnp.array(labelled), weight=jnp.array(weight))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_a_table_row_is_the_mean_of_what_its_columns_name():
    values = jnp.arange(14.0)
    row = table_row(values, LSP_14.joints, MPII_COLUMNS)
    order = ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "UBody", "Total")
    assert tuple(row) == order
    assert [float(row[name]) for name in order] == [12.5, 8.5, 8.5, 8.5, 2.5, 2.5, 2.5, 9.5, 6.5]


def test_a_table_row_leaves_out_joints_that_nobody_has():
    values = jnp.where(jnp.arange(14) < 6, jnp.nan, jnp.arange(14.0))
    row = table_row(values, LSP_14.joints, MPII_COLUMNS)
    assert row["Total"] == 9.5 and np.isnan(row["Knee"])


def test_a_table_row_refuses_names_that_do_not_fit():
    with pytest.raises(ValueError, match="expected a name for each of 3 values, got 2"):
        table_row(jnp.zeros(3), ("neck", "nose"), {})
    with pytest.raises(ValueError, match=r"expected columns of \('neck',\), got \['nose'\]"):
        table_row(jnp.zeros(1), ("neck",), {"Head": ("nose", "neck")})


def test_transformations_do_not_change_the_metrics():
    predicted, truth, labelled, length = people()
    assert_same_under_jit_and_vmap(
        partial(correct_joints_at, thresholds=THRESHOLDS), predicted, truth, labelled, length
    )
    found = judge(predicted, truth, labelled, length)
    pictures = found.reshape(5, 1, 3, 4), labelled.reshape(5, 1, 4)

    def with_weight(function):
        return lambda correct, labels, weight: function(correct, labels, weight=weight)

    weight = jnp.ones((5, 1)) * 2
    assert_same_under_jit_and_vmap(with_weight(pck_curve), *pictures, weight)
    assert_same_under_jit_and_vmap(with_weight(pck_auc), *pictures, weight)
    assert_same_under_jit_and_vmap(mpii_head_size, jnp.ones((3, 4)))
