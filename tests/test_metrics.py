from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rmpe_jax.metrics.oks import oks
from rmpe_jax.metrics.pck import correct_joints, pck, torso_length
from rmpe_jax.skeleton import COCO_17, LSP_14

SIGMAS = jnp.array(COCO_17.sigmas)
COORDINATES = st.floats(-50, 50, width=32)
POSES = arrays(np.float32, (17, 2), elements=COORDINATES)
LABELS = arrays(bool, 17)
similarity = jax.jit(oks)
correct = jax.jit(correct_joints, static_argnames="threshold")


def cocoeval_oks(predicted, truth, labelled, area):
    """The matrix of one picture's labels against one picture's detections, by COCO's own code."""
    people, detections = [], []
    for number, (points, seen) in enumerate(zip(truth, labelled, strict=True)):
        keypoints = np.concatenate([points, 2 * seen[:, None]], 1)
        person = {"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 9, 9]}
        people.append(
            person | {"area": area, "num_keypoints": int(seen.sum()), "keypoints": keypoints.ravel().tolist()}
        )
    for number, points in enumerate(predicted):
        keypoints = np.concatenate([points, np.ones((17, 1))], 1).ravel().tolist()
        # cocoeval sorts by score: falling scores keep the order.
        detections.append({"image_id": 1, "category_id": 1, "keypoints": keypoints, "score": 1 - 0.1 * number})
    labels = COCO()
    labels.dataset = {"info": {}, "images": [{"id": 1}], "annotations": people, "categories": [{"id": 1}]}
    labels.createIndex()
    evaluation = COCOeval(labels, labels.loadRes(detections), "keypoints")
    evaluation._prepare()
    return evaluation.computeOks(1, 1)


def test_oks_is_that_of_cocoeval():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 200, (3, 17, 2))
    predicted = truth[[0, 1, 2, 0]] + rng.normal(scale=6, size=(4, 17, 2))
    labelled = rng.random((3, 17)) < 0.7
    expected = cocoeval_oks(predicted, truth, labelled, 2500.0)
    assert (expected.max(0) > 0.2).all() and (expected < 0.95).all()
    for i in range(4):
        for j in range(3):
            arrays_ = (jnp.array(a, jnp.float32) for a in (predicted[i], truth[j]))
            found = similarity(*arrays_, jnp.array(labelled[j]), jnp.array(2500.0), SIGMAS)
            assert_close(found, expected[i, j], rtol=1e-4)


def test_oks_of_two_joints_by_hand():
    # One joint is exact; the other is off by 2 sigma times the root of twice the area: exp(-1).
    truth = jnp.array([[10.0, 10.0], [20.0, 20.0], [0.0, 0.0]])
    predicted = truth + jnp.array([[0.0, 0.0], [3.0, 4.0], [99.0, 99.0]])
    found = oks(predicted, truth, jnp.array([True, True, False]), jnp.array(12.5), jnp.array([0.1, 0.5, 0.1]))
    assert_close(found, (1 + np.exp(-1)) / 2)


@given(POSES, POSES, LABELS, st.floats(10, 1e5))
def test_oks_is_that_of_a_loop(predicted, truth, labelled, area):
    found = similarity(jnp.array(predicted), jnp.array(truth), jnp.array(labelled), jnp.array(area), SIGMAS)
    expected = oracles.oks(predicted.astype(float), truth.astype(float), labelled, area, COCO_17.sigmas)
    assert_close(found, expected, rtol=1e-4)
    assert 0 <= found <= 1 + 1e-6


@given(POSES, LABELS, POSES)
def test_unlabelled_joints_never_change_oks(truth, labelled, other):
    predicted = truth + np.float32(2)
    hidden = np.where(labelled[:, None], predicted, other)
    common = jnp.array(labelled), jnp.array(400.0), SIGMAS
    before = similarity(jnp.array(predicted), jnp.array(truth), *common)
    assert similarity(jnp.array(hidden), jnp.array(truth), *common) == before


def test_oks_without_labels_is_zero_even_for_nan():
    nothing = jnp.zeros(17, bool)
    assert similarity(jnp.full((17, 2), jnp.nan), jnp.zeros((17, 2)), nothing, jnp.array(100.0), SIGMAS) == 0.0


def test_oks_of_a_perfect_pose_is_one_and_falls_with_the_error():
    truth, labelled = jnp.ones((17, 2)), jnp.ones(17, bool)
    values = [similarity(truth + error, truth, labelled, jnp.array(100.0), SIGMAS) for error in (0.0, 0.5, 1.0, 9.0)]
    assert values[0] == 1.0 and values == sorted(values, reverse=True) and values[3] < 0.1


def test_oks_has_the_gradients_of_finite_differences():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 20, (17, 2))
    labelled = jnp.array(rng.random(17) < 0.7)
    sigmas = jnp.array(COCO_17.sigmas)
    predicted = truth + rng.normal(size=(17, 2))
    assert_gradients(lambda p, t, area: oks(p, t, labelled, area, sigmas.astype(p.dtype)), predicted, truth, 150.0)


def test_a_joint_exactly_at_the_limit_is_correct():
    predicted = jnp.array([[3.0, 4.0], [3.0, 4.01], [0.0, 0.0], [jnp.nan, 0.0]])
    labelled = jnp.array([True, True, False, True])
    found = correct_joints(predicted, jnp.zeros((4, 2)), labelled, jnp.array(20.0), threshold=0.25)
    assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize("length", [0.0, -1.0, np.nan])
def test_nothing_is_correct_without_a_body_length(length):
    assert not correct(jnp.zeros((4, 2)), jnp.zeros((4, 2)), jnp.ones(4, bool), jnp.array(length)).any()


def test_the_torso_runs_from_the_left_shoulder_to_the_right_hip():
    points = jnp.zeros((14, 2)).at[9].set(jnp.array([3.0, 4.0])).at[8].set(50.0).at[3].set(-50.0)
    assert torso_length(points, jnp.ones(14, bool), LSP_14) == 5.0


@pytest.mark.parametrize("joint", [9, 2])
def test_the_other_diagonal_stands_in_for_a_torso_that_is_not_labelled(joint):
    points = jnp.zeros((14, 2)).at[9].set(jnp.array([3.0, 4.0])).at[8].set(jnp.array([6.0, 8.0]))
    labelled = jnp.ones(14, bool).at[joint].set(False)
    assert torso_length(points, labelled, LSP_14) == 10.0
    for other in (8, 3):
        assert torso_length(points, labelled.at[other].set(False), LSP_14) == 0.0


def test_pck_by_hand():
    correct_ = jnp.array([[True, True, False], [True, False, False]])
    labelled = jnp.array([[True, True, False], [True, True, False]])
    total, each = pck(correct_, labelled)
    assert_close(total, 0.75)
    np.testing.assert_allclose(each, [1.0, 0.5, np.nan])


def test_pck_of_nothing_is_nan():
    total, each = pck(jnp.ones((2, 3), bool), jnp.zeros((2, 3), bool))
    assert np.isnan(total) and np.isnan(each).all()


@given(
    arrays(np.float32, (3, 4, 2), elements=st.integers(-4, 4).map(float)),
    arrays(bool, (3, 4)),
    arrays(np.float32, 3, elements=st.sampled_from([0.0, 4.0, 8.0])),
)
def test_pck_is_that_of_a_loop(error, labelled, length):
    truth = np.full((3, 4, 2), 7, np.float32)
    found = [
        correct(jnp.array(t + e), jnp.array(t), jnp.array(v), jnp.array(n), threshold=0.5)
        for t, e, v, n in zip(truth, error, labelled, length, strict=True)
    ]
    total, each = pck(jnp.stack(found), jnp.array(labelled))
    expected_total, expected_each = oracles.pck(truth + error, truth, labelled, length, 0.5)
    np.testing.assert_allclose(total, expected_total, rtol=1e-6)
    np.testing.assert_allclose(each, expected_each, rtol=1e-6)


@given(arrays(bool, (3, 4)), arrays(bool, (3, 4)), st.permutations(range(3)))
def test_pck_does_not_depend_on_the_order_of_people_or_on_unlabelled_joints(hits, labelled, order):
    order = np.array(order)
    expected = pck(jnp.array(hits & labelled), jnp.array(labelled))
    found = pck(jnp.array(hits)[order], jnp.array(labelled)[order])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_transformations_do_not_change_the_metrics(key):
    truth = jax.random.normal(key, (3, 14, 2))
    predicted = truth + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (3, 14, 2))
    labelled = jax.random.bernoulli(key, 0.7, (3, 14))
    sigmas = jnp.broadcast_to(jnp.array(LSP_14.sigmas), (3, 14))
    assert_same_under_jit_and_vmap(oks, predicted, truth, labelled, jnp.array([1.0, 2.0, 3.0]), sigmas)
    assert_same_under_jit_and_vmap(correct_joints, predicted, truth, labelled, jnp.array([1.0, 0.5, 0.0]))
    assert_same_under_jit_and_vmap(partial(torso_length, skeleton=LSP_14), truth, labelled)
    assert_same_under_jit_and_vmap(pck, labelled[:, None], jnp.ones((3, 1, 14), bool))
