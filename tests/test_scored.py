"""DPG: what its network sees, and how boxes are chosen by the scores of any function."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_gradients, assert_identical, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from made_data import figure

from rmpe_jax.proposals.mixtures import offsets_of
from rmpe_jax.proposals.scored import (
    INDICATOR_SIZE,
    POSE_SIZE,
    ScoredProposals,
    choose_boxes,
    in_skeleton,
    indicator_image,
    indicator_profiles,
    joint_colours,
    pose_image,
    random_boxes,
    sample_scored,
    window_around,
)
from rmpe_jax.skeleton import COCO_17, FLIC_11, LSP_14, MPII_16, SKELETONS

BOX = jnp.array([10.0, -20.0, 50.0, 140.0])
SQUARE = jnp.array([0.0, 0.0, 40.0, 40.0])
STANDING = jnp.array(figure(LSP_14.joints, np.asarray(BOX)), jnp.float32)
ALL = jnp.ones(14, bool)
WINDOW = jnp.array([0.0, 0.0, 8.0, 8.0])

# Pictures of a proposal


def test_the_window_is_twice_the_longer_side_about_the_centre():
    assert_close(window_around(BOX), [-130, -100, 190, 220])
    assert_close(window_around(jnp.array([0.0, 0, 6, 2])), [-3, -5, 9, 7])


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([2, 0, 6, 4], [1, 1, 0, 0], [0, 1, 1, 0]),  # pixels of two units
        ([3, 1, 6.5, 2], [0.5, 0, 0, 0], [0, 0.5, 1, 0.25]),
        ([2.5, 3, 3.5, 7.5], [0, 0.5, 1, 0.75], [0, 0.5, 0, 0]),  # within one column
        ([-5, -5, 3, 99], [1, 1, 1, 1], [1, 0.5, 0, 0]),  # larger than the window
        ([9, 2, 12, 4], [0, 1, 0, 0], [0, 0, 0, 0]),  # outside it
        ([6, 4, 2, 8], [0, 0, 1, 1], [0, 0, 0, 0]),  # turned over
    ],
)
def test_profiles_are_the_share_of_each_row_and_column_by_hand(box, rows, columns):
    found = indicator_profiles(jnp.array(box, jnp.float32), WINDOW, 4)
    assert_close(found, (jnp.array(rows), jnp.array(columns)))


def test_an_indicator_is_black_inside_white_outside_and_grey_where_the_edge_cuts_a_pixel():
    image = indicator_image(jnp.array([3.0, 2.0, 6.0, 5.0]), WINDOW, size=4)
    white = [1, 1, 1, 1]
    assert_close(image, jnp.array([white, [1, 0.5, 0, 1], [1, 0.75, 0.5, 1], white]))


corners = st.floats(-4, 12, width=32)


@given(st.tuples(corners, corners, corners, corners))
def test_what_an_indicator_covers_is_the_area_within_the_window(place):
    box = np.concatenate([np.minimum(place[:2], place[2:]), np.maximum(place[:2], place[2:])]).astype(np.float32)
    image = np.asarray(indicator_image(jnp.array(box), WINDOW, size=16))
    width, height = np.clip(box[2:], 0, 8) - np.clip(box[:2], 0, 8)
    assert (1 - image).sum() * 0.25 == pytest.approx(width * height, abs=1e-3)
    assert image.min() >= 0 and image.max() <= 1


def test_an_indicator_has_as_many_pixels_as_the_pose_image():
    assert indicator_image(BOX, window_around(BOX)).shape == (POSE_SIZE, POSE_SIZE)


def test_gradients_of_the_profiles_are_those_of_differences():
    # No edge lies on the edge of a pixel, where the derivative jumps.
    box, weight = [2.3, 1.1, 6.7, 5.6], np.arange(8.0)

    def total(box, window):
        rows, columns = indicator_profiles(box, window, 8)
        return (rows * weight).sum() + (columns * weight[::-1]).sum()

    assert_gradients(total, box, [0.1, -0.2, 8.1, 7.8])


# Pictures of a pose


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda skeleton: skeleton.name)
def test_every_joint_has_a_colour_of_its_own(skeleton):
    colours = joint_colours(skeleton.size)
    assert colours.shape == (skeleton.size, 3) and colours.min() >= 0 and colours.max() <= 1
    apart = np.abs(colours[:, None] - colours[None]).max(-1) + np.eye(skeleton.size)
    # Told apart from each other and from white.
    assert apart.min() > 0.05 and colours.min(1).max() < 0.5


def test_a_joint_at_the_middle_of_a_pixel_has_its_colour_there_by_hand():
    point = jnp.array([[2.5, 4.5]])
    image = pose_image(point, jnp.ones(1, bool), WINDOW, size=8)
    # Hue 0, lightness 0.35, saturation 0.9: the largest is 0.35 times 1.9, the others what is left of 0.7.
    colour = np.array([0.665, 0.035, 0.035])
    assert_close(image[4, 2], colour)
    # A pixel further is an eighth of the window, 25/6 deviations of the blob.
    near, corner = math.exp(-((25 / 6) ** 2) / 2), math.exp(-((25 / 6) ** 2))
    for place, share in (((4, 1), near), ((3, 2), near), ((5, 3), corner), ((0, 7), 0)):
        assert_close(image[place], 1 - share * (1 - colour), atol=1e-7)


def slow_pose_image(points, labelled, window, size):
    """Every pixel by itself, in float64."""
    image, colours = np.ones((size, size, 3)), joint_colours(len(points))
    side = window[2] - window[0]
    for row in range(size):
        for column in range(size):
            x, y = window[0] + (column + 0.5) * side / size, window[1] + (row + 0.5) * side / size
            for (px, py), known, colour in zip(points, labelled, colours, strict=True):
                if known:
                    squared = ((x - px) ** 2 + (y - py) ** 2) / side**2
                    image[row, column] -= math.exp(-squared / (2 * 0.03**2)) * (1 - colour)
    return np.clip(image, 0, 1)


def test_the_pose_image_is_that_of_a_slow_loop(key):
    labelled = np.arange(14) % 5 != 2
    points = np.asarray(STANDING) + np.random.default_rng(0).normal(scale=9, size=(14, 2))
    found = pose_image(jnp.array(points, jnp.float32), jnp.array(labelled), window_around(BOX), size=24)
    assert_close(found, slow_pose_image(points, labelled, np.asarray(window_around(BOX), float), 24), atol=1e-4)


def test_without_labelled_joints_the_picture_is_white():
    image = pose_image(STANDING, ~ALL, window_around(BOX))
    assert image.shape == (POSE_SIZE, POSE_SIZE, 3)
    np.testing.assert_array_equal(image, 1)
    np.testing.assert_array_equal(pose_image(STANDING + 1e4, ALL, window_around(BOX)), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_joints_that_are_not_finite_are_not_drawn(value):
    broken = STANDING.at[3, 0].set(value)
    expected = pose_image(STANDING, ALL.at[3].set(False), window_around(BOX))
    assert_identical(pose_image(broken, ALL, window_around(BOX)), expected)


def test_joints_at_one_place_stay_a_picture():
    image = pose_image(jnp.full((14, 2), 20.0), ALL, window_around(BOX))
    assert image.min() == 0 and image.max() == 1


@given(st.floats(0.25, 20, width=32), st.tuples(*[st.floats(-500, 500, width=32)] * 2))
def test_moving_and_enlarging_everything_changes_no_picture(scale, shift):
    shift = jnp.array(shift)
    there = BOX * scale + jnp.tile(shift, 2)
    other = jnp.array([0.0, 3.0, 45.0, 70.0])
    # Pixels are a fortieth of a box of about the smallest scale, and positions up to 500 are known to 3e-5.
    image = pose_image(STANDING * scale + shift[None], ALL, window_around(there))
    assert_close(image, pose_image(STANDING, ALL, window_around(BOX)), atol=2e-3)
    indicator = indicator_image(other * scale + jnp.tile(shift, 2), window_around(there))
    assert_close(indicator, indicator_image(other, window_around(BOX)), atol=2e-3)


# Random boxes


def test_random_boxes_move_each_corner_by_a_normal_number_of_a_quarter_of_the_sides():
    boxes = random_boxes(jax.random.key(0), BOX, num=20_000)
    offsets = np.asarray(offsets_of(boxes, jnp.tile(BOX, (20_000, 1))))
    # Four standard errors. Upper corners are held back in the one box of two hundred with a side of less than a tenth.
    np.testing.assert_allclose(offsets.mean(0), 0, atol=4 * 0.25 / np.sqrt(20_000))
    np.testing.assert_allclose(offsets.std(0), 0.25, rtol=0.02)
    np.testing.assert_allclose((np.abs(offsets) < 0.25).mean(0), 0.6827, atol=4 * 0.47 / np.sqrt(20_000))
    np.testing.assert_allclose(np.corrcoef(offsets.T), np.eye(4), atol=0.04)
    assert ((boxes[:, 2:] - boxes[:, :2]) / jnp.array([[40, 160]])).min() > 0.1 - 1e-4


# Boxes by their scores

CANDIDATES = jnp.arange(32.0).reshape(8, 4)
LOGITS = jnp.array([0.0, 1.0, 2.0, -0.1, jnp.nan, -jnp.inf, 0.5, -3.0])
DRAWS = 20_000


def shares(logits, threshold, draw):
    """The exact probabilities."""
    weights = []
    for logit in np.asarray(logits, float):
        p = 1 / (1 + math.exp(-logit)) if math.isfinite(logit) else 0.0
        weights.append((p / (1 - p) if draw == "odds" else p) if p >= threshold and p > 0 else 0.0)
    return np.array(weights) / np.sum(weights)


@pytest.mark.parametrize("draw", ["odds", "score"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
def test_boxes_are_drawn_in_proportion_to_the_odds_or_the_score(draw, threshold):
    choose = functools.partial(choose_boxes, threshold=threshold, draw=draw, num=DRAWS)
    boxes = np.asarray(jax.jit(choose)(jax.random.key(0), CANDIDATES, LOGITS))
    found = np.bincount((boxes[:, 0] / 4).astype(int), minlength=8) / DRAWS
    expected = shares(LOGITS, threshold, draw)
    assert (found[expected == 0] == 0).all() and len(np.flatnonzero(expected)) == {0.0: 6, 0.5: 4, 0.7: 2}[threshold]
    statistic = DRAWS * ((found - expected) ** 2 / np.where(expected > 0, expected, 1)).sum()
    assert statistic < 21  # chi-squared with at most five degrees of freedom: one in a thousand is larger
    np.testing.assert_array_equal(boxes, np.asarray(CANDIDATES)[(boxes[:, 0] / 4).astype(int)])


def test_odds_and_scores_are_other_laws():
    odds, score = (shares(LOGITS, 0.5, draw) for draw in ("odds", "score"))
    assert odds[2] / odds[0] == pytest.approx(math.e**2) and score[2] / score[0] == pytest.approx(
        2 * 0.880797, rel=1e-5
    )


@pytest.mark.parametrize("draw", ["odds", "score"])
@pytest.mark.parametrize("logits", [[-0.1] * 8, [math.nan] * 8, [-math.inf] * 8])
def test_where_nothing_reaches_the_threshold_there_is_no_box(draw, logits):
    boxes = choose_boxes(jax.random.key(0), CANDIDATES, jnp.array(logits), threshold=0.5, draw=draw, num=3)
    assert boxes.shape == (3, 4) and np.isnan(boxes).all()


@pytest.mark.parametrize("draw", ["odds", "score"])
def test_a_score_beyond_all_numbers_is_chosen_where_odds_are_drawn(draw):
    logits = LOGITS.at[3].set(jnp.inf)
    boxes = choose_boxes(jax.random.key(0), CANDIDATES, logits, threshold=0.5, draw=draw, num=50)
    assert np.isfinite(boxes).all() and ((boxes == CANDIDATES[3][None]).all() == (draw == "odds"))


def test_one_box_that_reaches_the_threshold_is_always_it():
    boxes = choose_boxes(jax.random.key(0), CANDIDATES, jnp.full(8, -1.0).at[5].set(0), threshold=0.5, num=9)
    np.testing.assert_array_equal(boxes, np.tile(CANDIDATES[5], (9, 1)))


# All of it, with made score functions


def left(variables, image, rows, columns):
    """Boxes that lie left of the middle of the window."""
    half = columns.shape[-1] // 2
    return jnp.where(columns[:, half:].sum(-1) > 0, -jnp.inf, 0.0)


def none(variables, image, rows, columns):
    return jnp.full(len(rows), -jnp.inf)


def any_box(variables, image, rows, columns):
    return jnp.zeros(len(rows))


def by_first_joint(variables, image, rows, columns):
    """Boxes that reach the lower edge of the window where the image is red, and the upper one elsewhere."""
    red = (image[..., 0] - image[..., 1]).max() > 0.3
    return jnp.where(red, rows[:, -1], rows[:, 0]) * 40 - 20


def proposals(score, order=tuple(range(14)), skeleton="lsp_14", **settings):
    return ScoredProposals({}, score, skeleton, order, **settings)


def drawn(given, points=STANDING, labelled=ALL, *, box=BOX, num=200, seed=0):
    draw = jax.jit(functools.partial(sample_scored, proposals=given, num=num))
    return np.asarray(draw(jax.random.key(seed), box, points, labelled))


def test_chosen_boxes_are_random_ones_that_the_score_accepts():
    boxes = drawn(proposals(left, candidates=512))
    assert boxes[:, 2].max() <= 30 + 1e-3 and len(np.unique(boxes, axis=0)) > 5
    box_key, _ = jax.random.split(jax.random.key(0))
    candidates = np.asarray(random_boxes(box_key, BOX, num=512))
    distance = np.abs(boxes[:, None] - candidates[None]).max(-1).min(1)
    np.testing.assert_allclose(distance, 0, atol=1e-4)


def test_fewer_candidates_are_drawn_where_fewer_are_asked_for():
    assert len(np.unique(drawn(proposals(any_box, candidates=3)), axis=0)) == 3
    assert len(np.unique(drawn(proposals(any_box, candidates=1)), axis=0)) == 1


@pytest.mark.parametrize("settings", [{}, {"draw": "score"}, {"threshold": 0.0}])
def test_where_no_box_is_accepted_the_own_is_given(settings):
    np.testing.assert_array_equal(drawn(proposals(none, **settings)), np.tile(BOX, (200, 1)))


def test_the_threshold_is_of_the_probability():
    assert len(np.unique(drawn(proposals(any_box, threshold=0.5)), axis=0)) > 100
    np.testing.assert_array_equal(drawn(proposals(any_box, threshold=0.51)), np.tile(BOX, (200, 1)))


@pytest.mark.parametrize(
    ("points", "labelled"), [(STANDING, ~ALL), (STANDING * jnp.nan, ALL), (STANDING.at[0].set(jnp.inf), ~ALL)]
)
def test_a_pose_without_labels_gives_the_own_box(points, labelled):
    np.testing.assert_array_equal(drawn(proposals(any_box), points, labelled), np.tile(BOX, (200, 1)))


def test_the_score_sees_the_pose_in_the_order_of_its_skeleton():
    """Red is the colour of the first joint of the generator's skeleton."""
    one = ALL & (jnp.arange(14) == 5)
    first = drawn(proposals(by_first_joint), labelled=ALL & (jnp.arange(14) == 0))
    assert first[:, 3].min() > 200  # the lowest pixels of the window begin there
    other = drawn(proposals(by_first_joint), labelled=ALL & (jnp.arange(14) == 7))
    assert other[:, 1].max() < -80 and np.median(first[:, 1]) > -80
    # The sixth of the joints handed over is the generator's first.
    there = drawn(proposals(by_first_joint, order=(5, *range(1, 14))), labelled=one)
    assert there[:, 3].min() > 200


def test_joints_that_the_poses_lack_are_not_drawn():
    # -1 must not be read as the last joint.
    nobody = proposals(any_box, order=(-1,) * 14)
    np.testing.assert_array_equal(drawn(nobody), np.tile(BOX, (200, 1)))
    without = proposals(by_first_joint, order=(-1, *range(1, 13), 12))
    assert drawn(without, labelled=ALL.at[:13].set(False).at[7].set(True))[:, 1].max() < -80


@pytest.mark.parametrize("skeleton", [LSP_14, MPII_16, COCO_17, FLIC_11])
def test_a_generator_goes_to_another_skeleton_by_the_names_of_the_joints(skeleton):
    there = in_skeleton(proposals(any_box), skeleton)
    assert there.skeleton == "lsp_14" and len(there.order) == 14
    for joint, place in zip(LSP_14.joints, there.order, strict=True):
        assert place == (skeleton.joints.index(joint) if joint in skeleton.joints else -1)
    assert in_skeleton(there, LSP_14) == proposals(any_box)


def gaussian(variables, image, rows, columns):
    """The log of a Gaussian's density over that of random boxes, in the offsets of x0 and y1; small odds throughout."""
    # Edges of a box in pixels: those before it are not covered at all, one is in part.
    low = (1 - jax.lax.cummax(columns, 1)).sum(-1)
    high = INDICATOR_SIZE - (1 - jax.lax.cummax(rows, 1, reverse=True)).sum(-1)
    # The own box of a square person has eight pixels, from the fifth to the twelfth.
    x0, y1 = (low - 4) / 8, (high - 12) / 8
    squared = (x0 - MEAN[0]) ** 2 + (y1 - MEAN[1]) ** 2
    return -squared / (2 * DEVIATION**2) + (x0**2 + y1**2) / (2 * 0.25**2) - variables["less"]


MEAN, DEVIATION, PEOPLE = (-0.1, 0.05), 0.12, 2000


def test_drawing_in_proportion_to_the_odds_follows_the_density_ratio():
    """The odds are a Gaussian over a wider one, so what is drawn has the former's mean and deviation."""
    given = ScoredProposals({"less": np.float32(3)}, gaussian, "lsp_14", tuple(range(14)), 512, 0.0)
    points = jnp.full((14, 2), 20.0)
    draw = jax.vmap(lambda key: sample_scored(key, SQUARE, points, ALL, given, num=1)[0])
    keys = jax.random.split(jax.random.key(0), (4, PEOPLE // 4))
    boxes = jnp.concatenate([jax.jit(draw)(some) for some in keys])
    offsets = np.asarray(offsets_of(boxes, jnp.tile(SQUARE, (PEOPLE, 1))))
    planted = offsets[:, [0, 3]]
    # Four standard errors; of 512 candidates those that count are about 180, so that the bias is below a hundredth.
    np.testing.assert_allclose(planted.mean(0), MEAN, atol=4 * DEVIATION / np.sqrt(PEOPLE))
    np.testing.assert_allclose(planted.std(0), DEVIATION, rtol=4 / np.sqrt(2 * PEOPLE))
    # Those of y0 are as wide as the candidates'.
    assert np.abs(offsets[:, 1].mean()) < 0.03 and offsets[:, 1].std() == pytest.approx(0.25, rel=0.07)


def test_transformations_change_nothing():
    keys, boxes = (
        jax.random.split(jax.random.key(3), 3),
        jnp.array([[0.0, 0, 4, 6], [10, -20, 50, 140], [-5, 5, 6, 60]]),
    )
    points, known = jnp.stack([STANDING] * 3), jnp.stack([ALL, ALL.at[:9].set(False), ~ALL])
    draw = functools.partial(sample_scored, proposals=proposals(by_first_joint, threshold=0.0), num=3)
    assert_same_under_jit_and_vmap(draw, keys, boxes, points, known)
    assert_same_under_jit_and_vmap(
        lambda box, points, known: pose_image(points, known, window_around(box), size=16), boxes, points, known
    )
    assert_same_under_jit_and_vmap(lambda box: indicator_image(box, window_around(boxes[1]), size=16), boxes)


def test_variables_are_arrays_and_the_rest_is_fixed():
    given = ScoredProposals({"less": np.float32(3)}, gaussian, "lsp_14", (0,))
    leaves, structure = jax.tree.flatten(given)
    assert leaves == [3] and jax.tree.unflatten(structure, leaves) == given
    assert structure != jax.tree.structure(dataclasses.replace(given, threshold=0.6))


@pytest.mark.parametrize(
    "settings",
    [
        {"candidates": 0},
        {"candidates": -5},
        {"threshold": -0.1},
        {"threshold": 1.0},
        {"threshold": math.nan},
        {"draw": "both"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    given = proposals(any_box)
    for name, value in settings.items():
        object.__setattr__(given, name, value)  # past the checks of types, which are made in tests alone
    with pytest.raises(ValueError, match="expected candidates >= 1, 0 <= threshold < 1 and draw odds or score, got"):
        given.__post_init__()
