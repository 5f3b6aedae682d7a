import doctest
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_same_under_jit_and_vmap

from rmpe_jax.metrics.intervals import bootstrap, resampling_weights
from rmpe_jax.metrics.multi_person_ap import (
    MPII_COLUMNS,
    WAF_COLUMNS,
    PredictedPeople,
    TruePeople,
    assign_people,
    average_precision,
    joint_average_precision,
    match_people,
)
from rmpe_jax.metrics.pck import table_row
from rmpe_jax.skeleton import LSP_14


@partial(jax.jit, static_argnames="unlabelled")
def match(truth, predicted, unlabelled="wrong"):
    return jax.vmap(partial(match_people, unlabelled=unlabelled))(truth, predicted)


count = jax.jit(joint_average_precision, static_argnames="denominator")
area = jax.jit(average_precision)


def packed(truth, predicted, joints):
    """Ragged lists of (points, labelled, size) and (points, score, present) as records."""
    fields = [[[person[field] for person in people] for people in truth] for field in range(3)]
    answers = [[[person[field] for person in people] for people in predicted] for field in range(3)]
    return TruePeople.from_lists(*fields, joints=joints), PredictedPeople.from_lists(*answers, joints=joints)


# The example of PROTOCOLS.md: neck, wrist, ankle; every head is 10 pixels, so that 5 pixels are near enough.
ANNA = ([[10, 10], [30, 10], [50, 10]], [1, 1, 1], 10)
BEN = ([[10, 90], [30, 90], [0, 0]], [1, 1, 0], 10)
CARL = ([[20, 20], [40, 20], [60, 20]], [1, 1, 1], 10)
PREDICTED = [
    ([[10, 10], [30, 10], [50, 10]], [0.9, 0.9, 0.5], [1, 1, 1]),
    ([[13, 14], [31, 10], [50, 40]], [0.6, 0.6, 0.6], [1, 1, 1]),
    ([[10, 90], [0, 0], [50, 90]], [0.7, 0.0, 0.7], [1, 0, 1]),
    ([[80, 50], [90, 50], [99, 50]], [0.8, 0.95, 0.4], [1, 1, 1]),
]


@pytest.fixture(scope="module")
def example():
    return packed([[ANNA, BEN], [CARL]], [PREDICTED, []], 3)


def test_the_example_is_matched_as_by_hand(example):
    found = match(*example)
    assert_close(found.pck[0], [[1, 0], [2 / 3, 0], [0, 1 / 2], [0, 0]])
    assert found.person.tolist() == [[0, -1, 1, -1], [-1] * 4]
    assert found.correct[0].tolist() == [[True] * 3, [False] * 3, [True, False, False], [False] * 3]
    assert found.counted[0].tolist() == [[True] * 3, [True] * 3, [True, False, True], [True] * 3]
    assert found.labelled.tolist() == [[2, 2, 1], [1, 1, 1]] and found.answered.tolist() == [True, False]


@pytest.mark.parametrize(
    ("denominator", "unlabelled", "expected"),
    [
        ("strict", "wrong", [5 / 9, 1 / 6, 1 / 6]),
        ("toolkit_parity", "wrong", [5 / 6, 1 / 4, 1 / 3]),
        ("strict", "ignored", [5 / 9, 1 / 6, 1 / 4]),
        ("toolkit_parity", "ignored", [5 / 6, 1 / 4, 1 / 2]),
    ],
)
def test_the_example_is_counted_as_by_hand(example, denominator, unlabelled, expected):
    assert_close(count(match(*example, unlabelled=unlabelled), denominator=denominator), expected)
    ragged = [[ANNA, BEN], [CARL]], [PREDICTED, []]
    assert_close(oracles.multi_person_ap(*ragged, denominator, unlabelled), expected)


def test_the_examples_of_the_protocols_page_hold():
    page = Path(__file__).parents[1] / "PROTOCOLS.md"
    if not page.is_file():
        pytest.skip("there is no PROTOCOLS.md")
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and found.attempted > 10


def scene(rng, pictures=3, people=3, answers=4, joints=3):
    """A scene on a coarse grid with few scores: ties of shares and of scores, empty pictures, limits met exactly."""
    spots = rng.integers(0, 3, (pictures, people, joints, 2)) * 6.0
    truth, predicted = [], []
    for picture in range(pictures):
        size = rng.choice([4.0, 6.0, 10.0, 0.0], people, p=[0.3, 0.3, 0.3, 0.1])
        known = rng.random((people, joints)) < 0.75
        real = [(spots[picture, person], known[person], size[person]) for person in range(people)]
        truth.append(real[: rng.integers(0, people + 1)])
        given = []
        for _ in range(rng.integers(0, answers + 1)):
            points = spots[picture, rng.integers(people)] + rng.integers(-1, 2, (joints, 2)) * rng.choice([0, 2, 3])
            points = np.where(rng.random((joints, 1)) < 0.05, np.nan, points)
            given.append((points, rng.integers(1, 5, joints) / 4, rng.random(joints) < 0.85))
        predicted.append(given)
    return truth, predicted


@pytest.fixture(scope="module")
def scenes():
    """2,000 scenes with somebody in each, ragged, and the same as one record of 6,000 pictures."""
    rng = np.random.default_rng(0)
    ragged = [found for found in (scene(rng) for _ in range(2300)) if any(found[0]) or any(found[1])][:2000]
    truth, predicted = ([people for found in ragged for people in found[side]] for side in (0, 1))
    return ragged, packed(truth, predicted, 3)


@pytest.mark.parametrize("unlabelled", ["wrong", "ignored"])
def test_two_thousand_scenes_are_judged_as_by_the_twin(scenes, unlabelled):
    ragged, records = scenes
    matches = match(*records, unlabelled=unlabelled)
    matches = jax.tree.map(lambda leaf: leaf.reshape(len(ragged), 3, *leaf.shape[1:]), matches)
    for denominator in ("strict", "toolkit_parity"):
        found = jax.jit(jax.vmap(partial(joint_average_precision, denominator=denominator)))(matches)
        expected = [oracles.multi_person_ap(*each, denominator, unlabelled) for each in ragged]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.isnan(expected).any() and len(np.unique(np.round(expected, 6))) > 200


def test_no_two_predictions_are_given_one_person(scenes):
    matches = match(*scenes[1])
    for person in range(3):
        assert ((matches.person == person).sum(1) <= 1).all()
    assert (matches.counted | ~matches.correct).all()


def test_the_first_wins_a_tie():
    # Two predictions get half of either person: both stand for the first person, who takes the first of them.
    assert assign_people(jnp.full((2, 2), 0.5)).tolist() == [0, -1]
    # The best for the first person loses it to a better one and is not given its second choice.
    assert assign_people(jnp.array([[0.8, 0.7], [0.9, 0.0]])).tolist() == [-1, 0]


def test_nobody_is_matched_to_nothing(scenes):
    assert assign_people(jnp.zeros((3, 2))).tolist() == [-1, -1, -1]
    truth, predicted = scenes[1]
    for nobody in (
        (TruePeople(truth.points, truth.labelled, truth.head_size, np.zeros_like(truth.valid)), predicted),
        (truth, PredictedPeople(predicted.points, predicted.score, predicted.present, np.zeros_like(predicted.valid))),
    ):
        matches = match(*nobody)
        assert (matches.person == -1).all() and not matches.correct.any()


def test_what_is_not_valid_never_changes_a_result(scenes):
    truth, predicted = scenes[1]
    expected = count(match(truth, predicted))
    wild = jax.tree.map(np.array, (truth, predicted))
    wild[0].points[~truth.valid], wild[0].head_size[~truth.valid], wild[0].labelled[~truth.valid] = 6.0, 9.0, True
    wild[1].points[~predicted.valid], wild[1].score[~predicted.valid] = np.nan, np.nan
    wild[1].present[~predicted.valid] = True
    assert_close(count(match(*wild)), expected)


def test_a_score_of_nan_comes_last_and_does_not_leak():
    yes, ones = jnp.ones(3, bool), jnp.ones(3)
    correct = jnp.array([False, True, True])
    found = area(jnp.array([jnp.nan, 0.2, -jnp.inf]), yes, correct, ones, jnp.array(2.0))
    assert found == 1.0
    assert area(jnp.full(3, jnp.nan), ~yes, correct, ones, jnp.array(2.0)) == 0.0


def test_precision_takes_the_best_at_any_higher_recall():
    # Ranks: wrong, right, right, wrong, right; precisions 0, 1/2, 2/3, 1/2, 3/5.
    correct = jnp.array([False, True, True, False, True])
    score = jnp.array([0.9, 0.8, 0.7, 0.6, 0.5])
    found = area(score, jnp.ones(5, bool), correct, jnp.ones(5), jnp.array(4.0))
    assert_close(found, (2 / 3 + 2 / 3 + 3 / 5) / 4)


def test_equal_scores_stay_in_their_order():
    same, ones = jnp.ones(2), jnp.ones(2)
    first, second = jnp.array([True, False]), jnp.array([False, True])
    assert area(same, ones > 0, first, ones, jnp.array(1.0)) == 1.0
    assert area(same, ones > 0, second, ones, jnp.array(1.0)) == 0.5


def distinct_scene(rng):
    """Five pictures whose scores all differ."""
    truth, predicted = scene(rng, pictures=5)
    scores = iter(rng.permutation(5 * 4 * 3) / 60)
    return truth, [[(points, [next(scores) for _ in seen], seen) for points, _, seen in group] for group in predicted]


def test_whole_weights_are_repeated_pictures(key):
    rng = np.random.default_rng(1)
    weights = np.asarray(resampling_weights(key, 5, 40))
    for times in weights:
        truth, predicted = distinct_scene(rng)
        repeated = [[people[i] for i in np.repeat(np.arange(5), times)] for people in (truth, predicted)]
        matches = match(*pad(packed(truth, predicted, 3)))
        for denominator in ("strict", "toolkit_parity"):
            found = count(matches, weight=jnp.array(times, jnp.float32), denominator=denominator)
            expected = oracles.multi_person_ap(*repeated, denominator, "wrong")
            np.testing.assert_allclose(found, expected, atol=1e-6)


def pad(records):
    """Three people and four predictions in every picture, so that one compiled function serves all scenes."""

    def widen(leaf, capacity):
        return np.pad(leaf, [(0, 0), (0, capacity - leaf.shape[1])] + [(0, 0)] * (leaf.ndim - 2))

    return tuple(jax.tree.map(partial(widen, capacity=c), r) for r, c in zip(records, (3, 4), strict=True))


def test_bootstrap_replicates_are_the_counting_alone(example, key):
    matches = match(*example)
    values = jax.jit(
        lambda key: bootstrap(key, lambda weight: joint_average_precision(matches, weight=weight), 2, replicates=20)
    )(key)
    # Each weighting of two pictures, by hand: only the first has answers, recall has both under it.
    for drawn, value in zip(resampling_weights(key, 2, 20).tolist(), values, strict=True):
        if drawn[0] == 0:
            assert value.tolist() == [0.0, 0.0, 0.0]
        else:
            recall = np.array([2, 2, 1]) * drawn[0] / (np.array([2, 2, 1]) * drawn[0] + drawn[1])
            assert_close(value, np.array([5 / 6, 1 / 4, 1 / 3]) * recall)


def test_the_columns_are_those_of_the_papers():
    ap = jnp.arange(14.0)
    mpii = table_row(ap, LSP_14.joints, MPII_COLUMNS)
    assert tuple(mpii) == ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "UBody", "Total")
    assert tuple(WAF_COLUMNS) == ("Head", "Shoulder", "Elbow", "Wrist", "Total")
    assert mpii["Total"] == 6.5 and mpii["UBody"] == 9.5
    # RMPE's row of the WAF table: the total is the mean of its columns.
    published = {"neck": 0.956, "head_top": 0.956, "shoulder": 0.835, "elbow": 0.883, "wrist": 0.816}
    values = [published.get(name.removeprefix("left_").removeprefix("right_"), np.nan) for name in LSP_14.joints]
    row = table_row(jnp.array(values), LSP_14.joints, WAF_COLUMNS)
    assert_close(row["Total"], 0.8725)


def test_packing_keeps_everybody_and_pads_with_nobody():
    truth, predicted = packed([[], [ANNA], [ANNA, BEN]], [[], [], PREDICTED[:1]], 3)
    assert truth.valid.tolist() == [[False, False], [True, False], [True, True]]
    assert truth.points.shape == (3, 2, 3, 2) and truth.points[2, 1].tolist() == BEN[0]
    assert predicted.valid.tolist() == [[False], [False], [True]] and not predicted.present[:2].any()
    nobody = packed([[]], [[]], 3)
    assert nobody[0].points.shape == (1, 1, 3, 2) and not nobody[1].valid.any()


def test_wrong_lists_are_refused():
    with pytest.raises(ValueError, match=r"expected \[1\] people by picture, got \[0\]"):
        TruePeople.from_lists([[ANNA[0]]], [[]], [[10]], joints=3)
    with pytest.raises(ValueError, match=r"expected people of shape \(4, 2\), got \(3, 2\) in picture 0"):
        TruePeople.from_lists([[ANNA[0]]], [[ANNA[1]]], [[10]], joints=4)
    with pytest.raises(ValueError, match=r"expected \[1\] people by picture, got \[\]"):
        PredictedPeople.from_lists([[ANNA[0]]], [], [], joints=3)


def test_wrong_words_and_numbers_of_joints_are_refused(example):
    first = jax.tree.map(lambda leaf: jnp.array(leaf[0]), example)
    with pytest.raises(ValueError, match="expected unlabelled 'wrong' or 'ignored', got 'right'"):
        match_people(*first, unlabelled="right")
    with pytest.raises(ValueError, match="expected denominator 'strict' or 'toolkit_parity', got 'poseval'"):
        joint_average_precision(match(*example), denominator="poseval")
    fewer = PredictedPeople(first[1].points[:, :2], first[1].score[:, :2], first[1].present[:, :2], first[1].valid)
    with pytest.raises(ValueError, match="expected as many joints as labelled, 3, got 2"):
        match_people(first[0], fewer)


def test_transformations_do_not_change_the_metric(scenes):
    def judge(truth, predicted, weight):
        matches = jax.vmap(match_people)(truth, predicted)
        return [*jax.tree.leaves(matches), joint_average_precision(matches, weight=weight)]

    some = jax.tree.map(lambda leaf: jnp.array(leaf[6:12].reshape(2, 3, *leaf.shape[1:])), scenes[1])
    assert_same_under_jit_and_vmap(judge, *some, jnp.array([[1.0, 0.0, 2.0], [0.0, 0.5, 1.0]]))
