"""Learning the four parameters: grids, the alternating search, the exact sweep of eta, and what is held out."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from nms_scenes import (
    SIGMAS,
    VARIANTS,
    K,
    N,
    P,
    made_objective,
    oks_ap_of,
    oks_truth,
    people_truth,
    scenes,
)

from rmpe_jax.nms.objective import oks_objective, people_objective
from rmpe_jax.nms.pose import DEFAULT, PRESETS, PoseNMSParameters, pose_similarity
from rmpe_jax.nms.search import (
    NAMES,
    PAIRS,
    EtaSweep,
    Grid,
    alternate,
    best_place,
    default_grid,
    fit_pose_nms,
    learnable,
    planes_of,
    precision_of,
    sweep_eta,
    try_grid,
)
from rmpe_jax.records import Poses

GIVEN = learnable(DEFAULT, K)
# Of these shares no number of coincident joints has one, where rounding would decide.
GRID = Grid(sigma1=(0.01, 0.4), sigma2=(0.5, 2.08), lambda_=(0.3, 2.08), eta=(0.07, 0.23, 0.53))
PLACES = tuple(itertools.product(range(2), range(2), range(2), range(3)))


@pytest.fixture(scope="module")
def scene():
    """Poses and truth, without people who do not count."""
    rng, poses, points, labelled = scenes(1)
    truth = oks_truth(rng, points, labelled)
    return poses, dataclasses.replace(truth, ignored=np.zeros(truth.ignored.shape, bool))


@pytest.fixture(scope="module")
def objective():
    return made_objective()[1]


@pytest.fixture(scope="module")
def fit(objective):
    return fit_pose_nms(objective, parameters=DEFAULT, grid=GRID, folds=3, starts=20, seed=4)


def kept_by_loop(poses, parameters):
    """Which poses stay, by the slow twin: the pose NMS itself would be compiled for every setting."""
    each = zip(poses.points, poses.score, poses.boxes, poses.valid, poses.pose_score, strict=True)
    return np.array([oracles.suppress_poses(*one, parameters, rank)[2] for *one, rank in each])


# Grids


def test_a_grid_has_places_values_and_a_shape():
    assert GRID.shape == (2, 2, 2, 3) and GRID.axes == (GRID.sigma1, GRID.sigma2, GRID.lambda_, GRID.eta)
    assert NAMES == ("sigma1", "sigma2", "lambda_", "eta")
    found = GRID.at((1, 0, 1, 2), VARIANTS["paper"])
    assert found == dataclasses.replace(VARIANTS["paper"], sigma1=0.4, sigma2=0.5, lambda_=2.08, eta=0.53)


def test_the_nearest_place_is_that_of_each_value_alone():
    for place in PLACES:
        assert GRID.nearest(GRID.at(place, GIVEN)) == place
    between = dataclasses.replace(GIVEN, sigma1=0.3, sigma2=9.0, lambda_=0.1, eta=0.37)
    assert GRID.nearest(between) == (1, 1, 0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [(), (0.5, 0.5), (0.5, 0.2), (0.5, math.nan)])
def test_values_that_do_not_rise_are_refused_with_their_name(name, values):
    with pytest.raises(ValueError, match=f"^{name}: expected rising values, got "):
        dataclasses.replace(GRID, **{name: values})


@pytest.mark.parametrize("joints", [1, 14, 17])
@pytest.mark.parametrize("name", PRESETS)
def test_what_is_learned_from_a_preset_starts_with_the_same_elimination(name, joints):
    preset = PRESETS[name]
    found = learnable(preset, joints)
    largest = (1 + preset.lambda_) * joints
    # Above the largest similarity nobody goes, as at it.
    assert found.threshold(joints) == pytest.approx(min(preset.threshold(joints), largest), rel=1e-12)
    assert (found.eta_scale, found.merge) == ("fraction", "none")
    same = dataclasses.replace(found, eta=preset.eta, eta_scale=preset.eta_scale, merge=preset.merge)
    assert same == preset and learnable(found, joints) == found


def test_a_negative_threshold_becomes_the_lowest_share():
    assert learnable(dataclasses.replace(DEFAULT, eta=-3.0), 5).eta == 0


@given(
    sigma1=st.floats(1e-3, 50),
    sigma2=st.floats(1e-3, 500),
    lambda_=st.floats(0, 50),
    eta=st.floats(0, 1),
    size=st.integers(2, 7),
)
def test_the_default_grid_holds_the_given_values_among_as_many_as_asked(sigma1, sigma2, lambda_, eta, size):
    given = dataclasses.replace(GIVEN, sigma1=sigma1, sigma2=sigma2, lambda_=lambda_, eta=eta)
    grid = default_grid(given, size=size)
    assert grid.shape == (size,) * 4
    assert grid.at(grid.nearest(given), GIVEN) == given


def test_the_default_grid_spans_what_makes_a_difference():
    grid = default_grid(dataclasses.replace(GIVEN, eta=0.3))
    assert grid.shape == (16,) * 4 and GIVEN.sigma1 == 0.01
    ends = [(axis[0], axis[-1]) for axis in grid.axes]
    assert_close(ends, [(0.01, 3), (0.1, 10), (0.1, 10), (0.02, 0.9)])


@pytest.mark.parametrize(("given", "size"), [(DEFAULT, 4), (GIVEN, 1), (GIVEN, 0)])
def test_a_default_grid_needs_a_share_and_two_values(given, size):
    with pytest.raises(
        ValueError, match=f"eta as a fraction and two values or more, got '{given.eta_scale}' and {size}"
    ):
        default_grid(given, size=size)


# Two at a time


def test_the_search_follows_a_table_made_by_hand():
    values = np.zeros((2, 2, 2, 3))
    values[0, 0, 0, 0] = 0.1
    values[1, 0, 0, 0] = 0.3  # the best of the first pair from the start
    values[1, 0, 1, 2] = 0.4  # then of the second
    values[0, 1, 1, 2] = 0.5  # then of the first again
    values[0, 0, 1, 1] = 0.9  # never on the way
    path = alternate(planes_of(values), (0, 0, 0, 0))
    assert [step.index for step in path] == [(0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 1, 2), (0, 1, 1, 2)]
    assert [step.value for step in path] == [0.1, 0.3, 0.4, 0.5]
    assert [step.pair for step in path] == [None, (0, 1), (2, 3), (0, 1)]


def test_the_search_goes_on_after_a_pair_that_did_not_improve():
    values = np.zeros((2, 2, 2, 3))
    values[0, 0, 0, 1] = 0.2
    values[1, 1, 0, 1] = 0.7
    assert [step.index for step in alternate(planes_of(values), (0, 0, 0, 0))] == [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (1, 1, 0, 1),
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_search_never_falls_and_ends_where_no_pair_improves(seed, levels):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (3, 4, 2, 3)) / 7
    start = tuple(int(rng.integers(size)) for size in values.shape)
    plane = planes_of(values)
    path = alternate(plane, start)
    assert path[0].index == start and [step.value for step in path] == [values[step.index] for step in path]
    assert (np.diff([step.value for step in path]) > 0).all()
    assert all(plane(pair, path[-1].index).max() == path[-1].value for pair in PAIRS)


def test_equal_values_and_rounding_are_no_improvement():
    assert len(alternate(planes_of(np.ones((2, 3, 2, 3))), (1, 1, 1, 1))) == 1
    values = np.full((2, 3, 2, 3), 0.5)
    values[0, 0, 1, 1] += 1e-7
    assert len(alternate(planes_of(values), (1, 1, 1, 1))) == 1


def test_other_pairs_may_be_taken():
    values = np.zeros((2, 2, 2, 3))
    values[1, 0, 1, 0] = 0.5
    assert len(alternate(planes_of(values), (0, 0, 0, 0))) == 1
    path = alternate(planes_of(values), (0, 0, 0, 0), pairs=((0, 2), (1, 3)))
    assert [(step.index, step.pair) for step in path[1:]] == [((1, 0, 1, 0), (0, 2))]
    # With one pair alone the others stay.
    values[1, 1, 1, 0] = 0.9
    path = alternate(planes_of(values), (0, 0, 0, 0), pairs=((0, 2),))
    assert [step.index for step in path] == [(0, 0, 0, 0), (1, 0, 1, 0)]


def test_a_plane_holds_the_other_two_fixed():
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(float)
    for pair in itertools.combinations(range(4), 2):
        found = planes_of(values)(pair, (1, 2, 3, 4))
        assert found.shape == tuple(values.shape[axis] for axis in pair)
        index = [1, 2, 3, 4]
        index[pair[0]], index[pair[1]] = 0, 1
        assert found[0, 1] == values[tuple(index)]


# Every combination


def test_the_best_place_is_in_the_middle_of_those_that_tie():
    values = np.zeros((2, 2, 2, 7))
    values[1, 0, 1, 2:7] = 0.5
    assert best_place(values) == (1, 0, 1, 4)
    values[1, 0, 1, 2] += 5e-7  # no more than rounding
    assert best_place(values) == (1, 0, 1, 4)
    values[0, 1, 0, 6] = 0.6
    assert best_place(values) == (0, 1, 0, 6)


def test_the_grid_has_the_precision_of_each_of_its_settings(scene, objective):
    poses, truth = scene
    values = try_grid(objective, GRID, GIVEN)
    assert values.shape == (1, *GRID.shape) and len(np.unique(values)) > 6
    for place in PLACES:
        parameters = GRID.at(place, GIVEN)
        alone = precision_of(objective, parameters)
        assert alone.shape == (1,) and values[0][place] == pytest.approx(alone[0], abs=1e-6)
    for place in ((0, 0, 0, 0), (1, 1, 0, 1), (1, 0, 1, 2)):
        stays = kept_by_loop(poses, GRID.at(place, GIVEN))
        expected = oks_ap_of(poses, stays, np.asarray(poses.pose_score), truth)
        assert values[0][place] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["released", "alphapose"])
def test_the_grid_is_that_of_a_slow_loop(name):
    _, poses, points, labelled = scenes(1)
    parameters, truth = learnable(VARIANTS[name], K), people_truth(points, labelled)
    people = [[(points[i, g], labelled[i, g], 12.0) for g in range(points.shape[1])] for i in range(N)]
    values = try_grid(people_objective(poses, truth), GRID, parameters)[0]
    present = np.isfinite(poses.points).all(-1)
    shown, found = np.where(present[..., None], poses.points, 0), []
    for place in ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 2)):
        stays = kept_by_loop(poses, GRID.at(place, parameters))
        predicted = [
            [(shown[i, p], poses.score[i, p], present[i, p]) for p in np.flatnonzero(stays[i])] for i in range(N)
        ]
        found.append(np.nanmean(oracles.multi_person_ap(people, predicted, "strict", "counted")))
        assert values[place] == pytest.approx(found[-1], abs=1e-5), place
    assert len(np.unique(np.round(found, 5))) > 1


def test_several_sets_of_pictures_are_counted_at_once(objective):
    halves = [objective.count(np.arange(N) % 2 == half) for half in range(2)]
    together = try_grid(objective, GRID, GIVEN, counts=halves)
    assert together.shape == (2, *GRID.shape)
    for half, count in enumerate(halves):
        assert_close(together[half], try_grid(objective, GRID, GIVEN, counts=[count])[0])
        place = (1, 0, 1, 1)
        assert precision_of(objective, GRID.at(place, GIVEN), counts=halves)[half] == pytest.approx(
            together[half][place]
        )
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_progress_is_told_chunks_and_the_number_of_settings(objective):
    told = []

    def progress(steps, total, what):
        told.append((total, what))
        yield from steps

    assert_close(try_grid(objective, GRID, GIVEN, progress=progress), try_grid(objective, GRID, GIVEN))
    assert told == [(1, "24 settings")]


def test_an_infinite_eta_keeps_everybody(scene, objective):
    poses, truth = scene
    everybody = oks_ap_of(poses, np.asarray(poses.valid), np.asarray(poses.pose_score), truth)
    found = precision_of(objective, dataclasses.replace(DEFAULT, eta=math.inf))
    assert found[0] == pytest.approx(everybody, abs=1e-6)


# Eta exactly


@pytest.mark.parametrize("name", ["released", "literal"])
def test_between_the_edges_of_eta_nothing_changes(objective, name):
    parameters = dataclasses.replace(VARIANTS[name], sigma1=0.4, sigma2=2.0, lambda_=0.3)
    sweep = sweep_eta(objective, parameters)
    assert len(sweep.values) == len(sweep.edges) + 1 > 20 and (np.diff(sweep.edges) > 0).all()
    rng, scale = np.random.default_rng(0), PoseNMSParameters.threshold(dataclasses.replace(parameters, eta=1.0), K)
    assert sweep.largest == pytest.approx((1 + 0.3) * K / scale)
    tried = rng.uniform(-0.1, 1.1, 40) * sweep.largest
    tried = tried[np.abs(tried[:, None] - sweep.edges).min(1) > 1e-5 * sweep.largest]
    assert len(tried) > 30
    for eta in tried:
        alone = precision_of(objective, dataclasses.replace(parameters, eta=float(eta)))[0]
        assert sweep.values[np.searchsorted(sweep.edges, eta)] == pytest.approx(alone, abs=1e-6)


def test_the_edges_as_shares_are_the_absolute_ones_over_the_largest_similarity(objective):
    share = dataclasses.replace(GIVEN, lambda_=0.3)
    absolute = dataclasses.replace(share, eta_scale="absolute")
    first, second = sweep_eta(objective, share), sweep_eta(objective, absolute)
    assert first.largest == pytest.approx(1) and second.largest == pytest.approx(1.3 * K)
    np.testing.assert_allclose(first.edges, second.edges / (1.3 * K), rtol=1e-12)
    assert_close(first.values, second.values)


def test_a_sweep_over_some_pictures_counts_these(objective):
    some = np.arange(N) % 3 == 0
    sweep = sweep_eta(objective, GIVEN, count=objective.count(some))
    middle = len(sweep.edges) // 2
    eta = float(sweep.edges[middle - 1 : middle + 1].mean())
    alone = precision_of(objective, dataclasses.replace(GIVEN, eta=eta), counts=[objective.count(some)])
    assert sweep.values[middle] == pytest.approx(alone[0], abs=1e-6)
    assert np.abs(sweep.values - sweep_eta(objective, GIVEN).values).max() > 0.01


@pytest.mark.parametrize(
    ("edges", "values", "expected"),
    [
        ([0.25, 0.5, 0.75], [0.1, 0.4, 0.2, 0.3], (0.4, 0.375)),
        # Of two stretches the wider.
        ([0.125, 0.25, 0.5, 0.75], [0.1, 0.4, 0.2, 0.4, 0.3], (0.4, 0.625)),
        # Stretches of one value are one, up to rounding.
        ([0.25, 0.375, 0.5, 0.875], [0.1, 0.4, 0.4 - 5e-7, 0.2, 0.3], (0.4, 0.375)),
        # The first reaches down to zero, the last up to the largest similarity.
        ([0.5, 0.75], [0.4, 0.2, 0.3], (0.4, 0.25)),
        ([0.25, 0.5], [0.1, 0.2, 0.4], (0.4, 0.75)),
        ([], [0.4], (0.4, 0.5)),
        # An edge beyond the largest similarity by rounding.
        ([0.5, 1 + 2**-20], [0.1, 0.2, 0.4], (0.4, 1.0)),
    ],
)
def test_the_best_eta_is_in_the_middle_of_the_widest_stretch(edges, values, expected):
    value, eta = EtaSweep(np.array(edges, float), np.array(values), 1.0).best()
    assert (value, eta) == (pytest.approx(expected[0]), expected[1])


def test_one_pose_in_each_picture_leaves_no_edges(scene):
    poses, truth = scene
    alone = dataclasses.replace(poses, valid=np.arange(P) == np.zeros((N, 1)))
    objective = oks_objective(alone, truth, sigmas=SIGMAS)
    sweep = sweep_eta(objective, GIVEN)
    assert len(sweep.edges) == 0 and len(sweep.values) == 1
    assert sweep.best() == (pytest.approx(precision_of(objective, GIVEN)[0]), pytest.approx(0.5))


# The whole


def test_the_learned_parameters_are_no_worse_than_given_and_grid(objective, fit):
    assert fit.grid == GRID
    assert_close(fit.values, try_grid(objective, GRID, GIVEN)[0])
    assert fit.value >= fit.values.max() - 1e-6 and fit.value == pytest.approx(
        precision_of(objective, fit.parameters)[0]
    )
    assert fit.given == pytest.approx(precision_of(objective, GIVEN)[0])
    # The learned ones are those of a place of the grid, but for eta.
    place = best_place(fit.values)
    assert dataclasses.replace(fit.parameters, eta=GRID.eta[place[3]]) == GRID.at(place, GIVEN)
    assert fit.value >= sweep_eta(objective, fit.parameters).values.max() - 1e-6


def test_with_the_default_grid_the_learned_value_is_at_least_the_given_one(objective):
    fit = fit_pose_nms(objective, parameters=DEFAULT, grid=default_grid(GIVEN, size=2), folds=0, starts=0)
    assert fit.value >= fit.given - 1e-6 and fit.values[fit.grid.nearest(GIVEN)] == pytest.approx(fit.given, abs=1e-6)
    assert fit.ends == () and fit.learned_without == () and fit.held_out is None
    assert fit.fold.tolist() == [0] * N


def test_eta_is_refined_beyond_the_grid(objective):
    # A grid on which everybody but one pose goes.
    coarse = Grid((0.01,), (2.08,), (2.08,), (1e-6, 2e-6))
    fit = fit_pose_nms(objective, parameters=DEFAULT, grid=coarse, folds=0, starts=0)
    sweep = sweep_eta(objective, GIVEN)
    assert fit.values.max() + 0.01 < fit.value == pytest.approx(sweep.values.max(), abs=1e-6)
    assert fit.parameters.eta == pytest.approx(sweep.best()[1])


def test_the_paths_are_those_of_the_alternating_search(fit):
    plane = planes_of(fit.values)
    assert fit.path == alternate(plane, GRID.nearest(GIVEN)) and len(fit.ends) == 20
    reached = {alternate(plane, place)[-1].value for place in PLACES}
    assert set(fit.ends) <= reached and max(fit.ends) <= fit.values.max()


@pytest.mark.slow
def test_without_nms_nobody_goes_for_any_reason(scene, objective):
    poses, truth = scene
    given = dataclasses.replace(VARIANTS["alphapose"], criterion="literal")
    grid = Grid((0.4,), (0.5,), (0.3,), (0.07, 0.23))
    fit = fit_pose_nms(objective, parameters=given, grid=grid, folds=0, starts=0)
    everybody = oks_ap_of(poses, np.asarray(poses.valid), np.asarray(poses.pose_score), truth)
    assert fit.nobody == pytest.approx(everybody, abs=1e-6) and abs(fit.nobody - fit.given) > 0.01


@pytest.mark.slow
def test_without_nms_equal_poses_stay_whatever_rounding_does():
    # In float32 the similarity of equal poses may be above (1 + lambda) k.
    points, score = np.zeros((2, 2, K, 2), np.float32), np.ones((2, 2, K), np.float32)
    boxes = np.tile(np.float32([0, 0, 100, 100]), (2, 2, 1))
    objective = people_objective(
        Poses(points, score, boxes, np.ones((2, 2), bool)),
        people_truth(np.zeros((2, 1, K, 2)), np.ones((2, 1, K), bool)),
    )
    for lambda_ in np.geomspace(0.1, 10, 60).tolist():
        whole = dataclasses.replace(GIVEN, lambda_=lambda_, eta=1.0)
        one = (jnp.asarray(array[0]) for array in (points, score, boxes))
        if pose_similarity(*one, parameters=whole)[0, 1] > np.float32(whole.threshold(K)):
            break
    else:
        pytest.fail("no such lambda")
    grid = Grid((0.01,), (2.08,), (lambda_,), (0.07,))
    fit = fit_pose_nms(objective, parameters=whole, grid=grid, folds=0, starts=0)
    # The second pose of everybody is a false alarm, but ranks below the first of the other picture or not.
    assert fit.value == pytest.approx(1) and fit.nobody < 0.9


def test_a_fit_is_that_of_its_seed(objective, fit):
    again = fit_pose_nms(objective, parameters=DEFAULT, grid=GRID, folds=3, starts=20, seed=4)
    assert_close(again.values, fit.values, atol=0, rtol=0)
    for name in ("parameters", "value", "path", "ends", "learned_without", "held_out"):
        assert getattr(again, name) == getattr(fit, name)
    other = fit_pose_nms(objective, parameters=DEFAULT, grid=GRID, folds=3, starts=20, seed=5)
    assert (other.fold != fit.fold).any() and other.learned_without != fit.learned_without
    # What is learned from all pictures does not depend on it.
    assert (other.parameters, other.value, other.path) == (fit.parameters, fit.value, fit.path)


def test_folds_are_equal_parts_of_the_pictures(fit):
    assert np.bincount(fit.fold).tolist() == [4, 4, 4] and len(fit.learned_without) == 3


def test_each_fold_is_learned_without_it(objective, fit):
    for number, learned in enumerate(fit.learned_without):
        count = objective.count(fit.fold != number)
        values = try_grid(objective, GRID, GIVEN, counts=[count])[0]
        place = best_place(values)
        assert dataclasses.replace(learned, eta=0.5) == dataclasses.replace(GRID.at(place, GIVEN), eta=0.5)
        best = sweep_eta(objective, learned, count=count).values.max()
        assert precision_of(objective, learned, counts=[count])[0] == pytest.approx(best, abs=1e-6)


def test_the_held_out_value_is_that_of_each_folds_own_parameters(scene, fit):
    poses, truth = scene
    stays = np.zeros((N, P), bool)
    for number, learned in enumerate(fit.learned_without):
        stays[fit.fold == number] = kept_by_loop(poses, learned)[fit.fold == number]
    expected = oks_ap_of(poses, stays, np.asarray(poses.pose_score), truth)
    assert fit.held_out == pytest.approx(expected, abs=1e-6)
    # It tells something: with the parameters in another order it is another.
    other = np.zeros((N, P), bool)
    for number, learned in enumerate(fit.learned_without):
        other[fit.fold == (number + 1) % 3] = kept_by_loop(poses, learned)[fit.fold == (number + 1) % 3]
    assert (other != stays).any()


@pytest.mark.slow
def test_groups_of_one_picture_are_in_one_fold():
    _, poses, points, labelled = scenes(3)
    picture = np.array([7, 7, 7, 3, 3, 9, 9, 1, 1, 1, 1, 5])
    objective = people_objective(poses, people_truth(points, labelled), picture=picture)
    assert objective.together.tolist() == picture.tolist()
    fit = fit_pose_nms(objective, grid=Grid((0.4,), (0.5,), (0.3,), (0.07, 0.53)), folds=5, starts=0)
    of_picture = {number: set(fit.fold[picture == number]) for number in picture}
    assert all(len(folds) == 1 for folds in of_picture.values())
    assert set().union(*of_picture.values()) == set(range(5))
    with pytest.raises(ValueError, match=r"expected from 2 to 5 folds \(the number of pictures\), got 6"):
        fit_pose_nms(objective, parameters=DEFAULT, grid=GRID, folds=6)


@pytest.mark.parametrize("folds", [1, N + 1, -1])
def test_a_wrong_number_of_folds_is_refused(objective, folds):
    with pytest.raises(ValueError, match=rf"expected from 2 to {N} folds \(the number of pictures\), got {folds}"):
        fit_pose_nms(objective, parameters=DEFAULT, grid=GRID, folds=folds)


def test_as_many_folds_as_pictures_leave_one_out(objective):
    fit = fit_pose_nms(
        objective, parameters=DEFAULT, grid=Grid((0.4,), (0.5,), (0.3,), (0.07, 0.53)), folds=N, starts=0
    )
    assert sorted(fit.fold) == list(range(N)) and len(fit.learned_without) == N
    assert fit.held_out is not None and 0 < fit.held_out < 1
