import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmpe_jax.geometry.boxes import (
    box_area,
    box_iou,
    box_nms,
    boxes_on_picture,
    boxes_xywh_to_xyxy,
    boxes_xyxy_to_xywh,
    clip_boxes,
    extend_boxes,
    fit_aspect,
    greedy_suppression,
    usable_boxes,
)

NUMBERS = st.floats(-50, 50, width=32)
# Eight boxes as corner and size: rounded, so that equal corners, empty boxes and equal scores happen.
EIGHT_BOXES = arrays(np.float32, (8, 4), elements=st.integers(0, 12).map(float)).map(
    lambda a: np.concatenate([a[:, :2], a[:, :2] + a[:, 2:]], 1)
)
EIGHT_SCORES = arrays(np.float32, 8, elements=st.integers(0, 4).map(lambda n: n / 4))
EIGHT_FLAGS = arrays(bool, 8)
nms = jax.jit(box_nms, static_argnames="threshold")
suppression = jax.jit(greedy_suppression)


def random_boxes(seed, *shape):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (*shape, 2))
    return jnp.array(np.concatenate([corner, corner + rng.uniform(1, 15, (*shape, 2))], -1), jnp.float32)


def test_a_box_of_a_picture_has_its_area():
    assert box_area(jnp.array([-0.5, -0.5, 5.5, 3.5])) == 24.0


@pytest.mark.parametrize("box", [[3.0, 0, 1, 4], [0.0, 4, 4, 1], [3.0, 4, 1, 1], [2.0, 2, 2, 5]])
def test_inverted_and_flat_boxes_have_no_area_and_are_not_usable(box):
    assert box_area(jnp.array(box)) == 0.0
    assert not usable_boxes(jnp.array(box))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(4))
def test_boxes_that_are_not_finite_are_not_usable(bad, place):
    box = jnp.array([0.0, 0.0, 4.0, 4.0])
    assert usable_boxes(box) and not usable_boxes(box.at[place].set(bad))


@given(arrays(np.float32, (5, 4), elements=NUMBERS))
def test_formats_convert_back(boxes):
    assert_close(boxes_xyxy_to_xywh(boxes_xywh_to_xyxy(jnp.array(boxes))), boxes)
    assert_close(boxes_xywh_to_xyxy(boxes_xyxy_to_xywh(jnp.array(boxes))), boxes)


def test_iou_of_boxes_drawn_by_hand():
    a = jnp.array([0.0, 0.0, 4.0, 2.0])
    others = jnp.array([[0.0, 0, 4, 2], [2.0, 0, 6, 2], [1.0, 0, 2, 1], [4.0, 0, 6, 2], [9.0, 9, 10, 10]])
    assert_close(box_iou(jnp.broadcast_to(a, (5, 4)), others), [1, 1 / 3, 1 / 8, 0, 0])


def test_iou_of_empty_and_inverted_boxes_is_zero():
    full, empty, inverted = jnp.array([0.0, 0, 4, 4]), jnp.array([1.0, 1, 1, 3]), jnp.array([3.0, 3, 1, 1])
    for a, b in [(empty, empty), (empty, full), (full, inverted), (inverted, inverted), (inverted, empty)]:
        assert box_iou(a, b) == 0.0


@given(EIGHT_BOXES)
def test_iou_of_all_pairs_is_that_of_a_loop(boxes):
    found = box_iou(jnp.array(boxes)[:, None], jnp.array(boxes)[None])
    assert_close(found, np.array([[oracles.iou(a, b) for b in boxes] for a in boxes]))
    assert_close(found, found.T, atol=0)


@given(EIGHT_BOXES, st.floats(-50, 50), st.floats(-50, 50), st.floats(0.25, 4))
def test_iou_does_not_depend_on_place_and_scale(boxes, x, y, scale):
    moved = boxes * np.float32(scale) + np.float32([x, y, x, y])
    a, b = jnp.array(boxes), jnp.array(moved, jnp.float32)
    assert_close(box_iou(b[:4], b[4:]), box_iou(a[:4], a[4:]), atol=2e-4)


def test_iou_has_the_gradients_of_finite_differences():
    assert_gradients(box_iou, [[0, 0, 4, 3], [0, 0, 4, 3], [0, 0, 4, 3]], [[1, 1, 6, 5], [1, 1, 2, 2], [9, 9, 12, 11]])


def test_extension_grows_each_side_by_half_the_fraction():
    assert_close(extend_boxes(jnp.array([10.0, 20.0, 30.0, 60.0]), 0.3), [7.0, 14.0, 33.0, 66.0])


@given(arrays(np.float32, (5, 4), elements=NUMBERS), st.floats(0, 1))
def test_extension_keeps_the_centre_and_scales_the_size(boxes, fraction):
    extended = extend_boxes(jnp.array(boxes), fraction)
    assert_close(extended[:, :2] + extended[:, 2:], boxes[:, :2] + boxes[:, 2:], atol=1e-4)
    size = boxes[:, 2:] - boxes[:, :2]
    assert_close(extended[:, 2:] - extended[:, :2], size * (1 + np.float32(fraction)), atol=1e-4)


def test_aspect_is_reached_by_growing_the_shorter_side():
    boxes = jnp.array([[0.0, 0.0, 2.0, 4.0], [0.0, 0.0, 8.0, 4.0]])
    assert_close(fit_aspect(boxes, 1.0), [[-1, 0, 3, 4], [0, -2, 8, 6]])
    assert_close(fit_aspect(boxes[0], 0.25), [0, -2, 2, 6])


@given(EIGHT_BOXES, st.sampled_from([0.5, 0.75, 1.0, 2.0]))
def test_a_box_of_the_aspect_holds_the_box_it_was_made_from(boxes, aspect):
    fitted = np.asarray(fit_aspect(jnp.array(boxes), aspect))
    assert (fitted[:, :2] <= boxes[:, :2] + 1e-4).all() and (fitted[:, 2:] >= boxes[:, 2:] - 1e-4).all()
    assert_close(fitted[:, 2] - fitted[:, 0], aspect * (fitted[:, 3] - fitted[:, 1]), atol=1e-4)


def test_clipping_stops_at_the_edges_of_the_outermost_pixels():
    assert_close(clip_boxes(jnp.array([-9.0, 1.0, 99.0, 99.0]), (4, 6)), [-0.5, 1.0, 5.5, 3.5])


def test_a_box_outside_the_picture_is_clipped_to_an_empty_one():
    outside = jnp.array([[-9.0, 0, -3, 3], [7.0, 0, 9, 3], [0.0, -5, 3, -2], [0.0, 6, 3, 9]])
    np.testing.assert_array_equal(box_area(clip_boxes(outside, (4, 6))), 0.0)


@given(EIGHT_BOXES, EIGHT_SCORES, EIGHT_FLAGS, st.sampled_from([0.0, 0.3, 0.6]))
def test_box_nms_is_that_of_a_loop(boxes, score, valid, threshold):
    keep = nms(jnp.array(boxes), jnp.array(score), jnp.array(valid), threshold=threshold)
    np.testing.assert_array_equal(keep, oracles.box_nms(boxes, score, valid, threshold))


@given(EIGHT_BOXES, EIGHT_SCORES, EIGHT_FLAGS, EIGHT_BOXES, EIGHT_SCORES)
def test_entries_that_are_not_valid_never_change_box_nms(boxes, score, valid, other_boxes, other_score):
    keep = nms(jnp.array(boxes), jnp.array(score), jnp.array(valid))
    other_boxes = np.where(valid[:, None], boxes, other_boxes)
    again = nms(jnp.array(other_boxes), jnp.array(np.where(valid, score, other_score)), jnp.array(valid))
    np.testing.assert_array_equal(again, keep)


@given(EIGHT_BOXES, st.permutations(range(8)))
def test_box_nms_does_not_depend_on_the_order_of_different_scores(boxes, order):
    boxes, score, order = jnp.array(boxes), jnp.linspace(0.9, 0.1, 8), np.array(order)
    keep = nms(boxes, score, jnp.ones(8, bool))
    np.testing.assert_array_equal(nms(boxes[order], score[order], jnp.ones(8, bool)), keep[order])


def test_of_equal_boxes_with_equal_scores_the_first_stays():
    boxes = jnp.broadcast_to(jnp.array([0.0, 0.0, 4.0, 4.0]), (3, 4))
    assert box_nms(boxes, jnp.ones(3), jnp.ones(3, bool)).tolist() == [True, False, False]


def test_a_suppressed_box_removes_nothing():
    # A removes B; C overlaps only B and so stays.
    boxes = jnp.array([[0.0, 0, 10, 10], [3.0, 0, 13, 10], [6.0, 0, 16, 10]])
    keep = box_nms(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), threshold=0.5)
    assert keep.tolist() == [True, False, True]


def test_a_score_of_nan_counts_as_lowest():
    boxes = jnp.broadcast_to(jnp.array([0.0, 0.0, 4.0, 4.0]), (2, 4))
    assert box_nms(boxes, jnp.array([jnp.nan, 0.1]), jnp.ones(2, bool)).tolist() == [False, True]


@pytest.mark.parametrize("count", [1, 2, 256, 257, 400])
def test_suppression_of_many_with_equal_scores_is_that_of_a_loop(count):
    rng = np.random.default_rng(count)
    removes, valid = rng.random((count, count)) < 0.05, rng.random(count) < 0.9
    score = np.where(rng.random(count) < 0.05, -np.inf, rng.integers(0, 20, count) / 4)
    broken = np.where(rng.random(count) < 0.05, np.nan, score)
    keep = suppression(jnp.array(removes), jnp.array(broken), jnp.array(valid))
    # The loop knows no NaN: here they come after those of -inf.
    ranks = np.where(np.isnan(broken), -2.0, np.where(np.isinf(broken), -1.0, broken))
    np.testing.assert_array_equal(keep, oracles.suppress(lambda i, j: removes[i, j], ranks, valid))


def test_infinite_scores_are_the_highest_and_the_lowest_before_nan():
    score = jnp.array([jnp.nan, -jnp.inf, 0.0, jnp.inf, jnp.nan])
    everybody = jnp.ones((5, 5), bool)
    for last, best in ((5, 3), (3, 2), (2, 1), (1, 0)):
        keep = greedy_suppression(everybody, score, jnp.arange(5) < last)
        assert keep.tolist() == [index == best for index in range(5)]


@given(arrays(bool, (8, 8)), EIGHT_SCORES, EIGHT_FLAGS)
def test_suppression_is_that_of_a_loop_even_where_it_is_not_mutual(removes, score, valid):
    keep = suppression(jnp.array(removes), jnp.array(score), jnp.array(valid))
    np.testing.assert_array_equal(keep, oracles.suppress(lambda i, j: removes[i, j], score, valid))


def test_a_lower_score_never_removes_a_higher_one():
    removes = jnp.array([[False, False], [True, False]])
    assert greedy_suppression(removes, jnp.array([0.9, 0.1]), jnp.ones(2, bool)).all()


def test_the_diagonal_of_the_suppression_matrix_is_not_read():
    keep = greedy_suppression(jnp.eye(3, dtype=bool), jnp.array([0.1, 0.2, 0.3]), jnp.ones(3, bool))
    assert keep.all()


def test_transformations_do_not_change_the_results_on_boxes(key):
    boxes, score, valid = (
        random_boxes(0, 3, 6),
        jax.random.uniform(key, (3, 6)),
        jnp.ones((3, 6), bool).at[0, 2].set(False),
    )
    assert_same_under_jit_and_vmap(lambda b: box_iou(b[:, None], b[None]), boxes)
    assert_same_under_jit_and_vmap(lambda b: fit_aspect(clip_boxes(extend_boxes(b, 0.3), (16, 20)), 0.5), boxes)
    assert_same_under_jit_and_vmap(box_nms, boxes, score, valid)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 5, 5], True),
        ([-5, -5, 0, 0], True),
        ([-5, -5, -0.5, 5], False),
        ([19.4, 0, 30, 5], True),
        ([19.5, 0, 30, 5], False),
        ([0, 9.5, 5, 30], False),
        ([5, 5, 5, 8], False),
        ([np.nan, 0, 5, 5], False),
        ([0, 0, 2e6, 5], False),
    ],
)
def test_a_box_is_on_a_picture_where_they_share_area(box, expected):
    assert bool(boxes_on_picture(jnp.array(box, float), (10, 20))) is expected
