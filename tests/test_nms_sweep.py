import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nms_scenes import (
    SIGMAS,
    VARIANTS,
    K,
    N,
    P,
    kept_by,
    made_objective,
    oks_ap_of,
    oks_truth,
    people_ap_of,
    people_truth,
    scenes,
)

from rmpe_jax.nms import sweep
from rmpe_jax.nms.objective import oks_objective, people_objective
from rmpe_jax.nms.pose import ALPHAPOSE, pose_similarity
from rmpe_jax.nms.sweep import Settings, average_precisions, eta_edges, make_tables, precision_by_picture

EVERY_VARIANT = pytest.mark.parametrize("parameters", VARIANTS.values(), ids=VARIANTS.keys())
SEEDS = st.integers(0, 2**32 - 1)
# Without shrinking: each example takes a second.
PHASES = (Phase.explicit, Phase.generate)
FEW = settings(max_examples=6, phases=PHASES)
SIGMA1, SIGMA2 = np.array([0.1, 0.5, 2.0], np.float32), np.array([0.5, 2.0], np.float32)
# Shares that no number of coincident joints has, where rounding would decide.
LAMBDA, SHARE = np.repeat(np.float32([0.3, 2.0]), 3), np.tile(np.float32([0.23, 0.53, 0.83]), 2)
SETTINGS = Settings(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0]), LAMBDA, SHARE * (1 + LAMBDA) * K)
LOOKED_AT = ((0, 0), (1, 4), (2, 2), (3, 3))


def equal_ranks(rng):
    """Ranks of which many are equal."""
    return np.float32(rng.integers(0, 5, (N, P)) / 4)


def setting_at(place, parameters):
    """The parameters of one of SETTINGS."""
    p, q = place
    chosen = {"sigma1": SIGMA1[SETTINGS.sigma1[p]], "sigma2": SIGMA2[SETTINGS.sigma2[p]]}
    chosen |= {"lambda_": SETTINGS.lambda_[q], "eta": SETTINGS.eta[q]}
    chosen = {name: float(value) for name, value in chosen.items()}
    return dataclasses.replace(parameters, eta_scale="absolute", **chosen)


@EVERY_VARIANT
@FEW
@given(SEEDS)
def test_oks_ap_of_every_setting_is_that_of_what_the_pose_nms_keeps(parameters, seed):
    rng, poses, points, labelled = scenes(seed)
    truth, score, rank = oks_truth(rng, points, labelled), np.round(rng.random((N, P)), 1), equal_ranks(rng)
    objective = oks_objective(poses, truth, score=score, rank=rank, sigmas=SIGMAS)
    tables = make_tables(objective, SIGMA1, SIGMA2, parameters)
    found = average_precisions(objective, tables, SETTINGS, [objective.count()], parameters)[0]
    for place in LOOKED_AT:
        stays = kept_by(poses, setting_at(place, parameters), rank)
        assert found[place] == pytest.approx(max(oks_ap_of(poses, stays, score, truth), 0), abs=1e-6), place


@EVERY_VARIANT
@FEW
@given(SEEDS)
def test_multi_person_ap_of_every_setting_is_that_of_what_the_pose_nms_keeps(parameters, seed):
    rng, poses, points, labelled = scenes(seed)
    truth, belongs, rank = people_truth(points, labelled), rng.random((N, P)) < 0.8, equal_ranks(rng)
    objective = people_objective(poses, truth, belongs=belongs, rank=rank)
    tables = make_tables(objective, SIGMA1, SIGMA2, parameters)
    found = average_precisions(objective, tables, SETTINGS, [objective.count()], parameters)[0]
    for place in LOOKED_AT:
        stays = kept_by(poses, setting_at(place, parameters), rank)
        assert_close(found[place], people_ap_of(jax.tree.map(jnp.asarray, poses), stays, truth, belongs))


def test_the_scenes_tell_settings_apart():
    # Otherwise the comparisons above would show nothing.
    rng, poses, points, labelled = scenes(0)
    for objective in (
        oks_objective(poses, oks_truth(rng, points, labelled), sigmas=SIGMAS),
        people_objective(poses, people_truth(points, labelled)),
    ):
        for parameters in VARIANTS.values():
            tables = make_tables(objective, SIGMA1, SIGMA2, parameters)
            found = average_precisions(objective, tables, SETTINGS, [objective.count()], parameters)
            assert len(np.unique(found)) > 4 and found.max() > 0.05


def precisions(objective, counts, parameters=VARIANTS["released"]):
    tables = make_tables(objective, SIGMA1, SIGMA2, parameters)
    return average_precisions(objective, tables, SETTINGS, counts, parameters)


def test_counting_over_some_pictures_is_counting_these_alone():
    rng, poses, points, labelled = scenes(2)
    truth = oks_truth(rng, points, labelled)
    some = np.arange(N) % 3 > 0
    of_all = oks_objective(poses, truth, sigmas=SIGMAS)
    of_some = oks_objective(*jax.tree.map(lambda leaf: leaf[some], (poses, truth)), sigmas=SIGMAS)
    counts = [of_all.count(some), of_all.count(some, room=500, worth=90)]
    expected = precisions(of_some, [of_some.count()])
    for found in precisions(of_all, counts):
        assert_close(found, expected[0])


def test_every_picture_may_have_a_setting_of_its_own():
    poses, objective = made_objective()
    parameters, diagonal = VARIANTS["released"], np.arange(4)
    tables = make_tables(objective, SIGMA1, SIGMA2, parameters)
    four = dataclasses.replace(SETTINGS, lambda_=LAMBDA[:4], eta=SETTINGS.eta[:4])
    together = average_precisions(objective, tables, four, [objective.count()], parameters)[0][diagonal, diagonal]
    for number in range(4):
        same = precision_by_picture(objective, tables, four, np.full(N, number), objective.count(), parameters)
        assert same == pytest.approx(together[number], abs=1e-6)
    # What is counted over one half is what that half's setting keeps.
    half = np.arange(N) % 2
    mixed = precision_by_picture(objective, tables, four, 3 * half, objective.count(half == 1), parameters)
    alone = average_precisions(objective, tables, four, [objective.count(half == 1)], parameters)[0]
    assert mixed == pytest.approx(alone[3, 3], abs=1e-6)


def test_settings_are_the_same_in_any_chunks(monkeypatch):
    _, objective = made_objective()
    expected = precisions(objective, [objective.count()])
    for room in (1, 5, 7, 12):
        monkeypatch.setattr(sweep, "_ROOM", room)
        assert_close(precisions(objective, [objective.count()]), expected)
    monkeypatch.setattr(sweep, "_ROOM", 12)
    monkeypatch.setattr(sweep, "_LEAST", 2)
    for workers, held in ((3, 1), (3, 2 * len(objective.picture_of_row)), (2, 10 * len(objective.picture_of_row))):
        monkeypatch.setattr(sweep, "_workers", lambda workers=workers: workers)
        monkeypatch.setattr(sweep, "_HELD", held)
        assert_close(precisions(objective, [objective.count()]), expected)


@pytest.mark.parametrize("name", ["released", "alphapose", "literal"])
def test_what_stays_changes_at_the_edges_of_eta_and_nowhere_else(name):
    parameters = dataclasses.replace(VARIANTS[name], sigma1=0.5, sigma2=2.0, lambda_=0.3)
    poses, objective = made_objective()
    tables = make_tables(objective, np.array([0.5]), np.array([2.0]), parameters)
    edges = eta_edges(objective, tables, 0.3, parameters)
    occurring = jax.vmap(lambda *one: pose_similarity(*one, parameters=parameters))(
        *(jnp.asarray(field) for field in (poses.points, poses.score, poses.boxes))
    )
    assert len(edges) > 20 and np.isin(np.round(edges, 3), np.round(np.asarray(occurring), 3)).all()
    assert (np.diff(edges) > 0).all()
    # Between two edges nothing changes, across each something does.
    ends = np.concatenate([edges[:1] - 2, edges, edges[-1:] + 2]).astype(np.float64)
    wide = np.flatnonzero(np.diff(ends) > 1e-3)
    tried = np.concatenate([ends[wide] + 0.1 * np.diff(ends)[wide], ends[wide + 1] - 0.1 * np.diff(ends)[wide]])
    right, answered = sweep._answers(
        objective.scenes,
        tables,
        *(jnp.zeros(1, jnp.int32),) * 2,
        jnp.full(len(tried), 0.3),
        jnp.float32(tried),
        parameters,
    )
    lower, upper = np.split(np.asarray(answered), 2, axis=1)
    assert (lower == upper).all()
    if not parameters.min_best:
        neighbours = np.flatnonzero(np.diff(wide) == 1)
        assert len(neighbours) > 10
        assert (lower[:, neighbours] != lower[:, neighbours + 1]).any(0).all()


def test_poses_that_merge_are_refused():
    _, objective = made_objective()
    with pytest.raises(ValueError, match="expected merge 'none', got 'weighted'"):
        make_tables(objective, SIGMA1, SIGMA2, ALPHAPOSE)


def test_objectives_name_what_does_not_fit():
    rng, poses, points, labelled = scenes(0)
    truth = oks_truth(rng, points, labelled)
    nobody = dataclasses.replace(poses, valid=np.zeros_like(poses.valid))
    with pytest.raises(ValueError, match="expected poses, got none"):
        oks_objective(nobody, truth, sigmas=SIGMAS)
    fewer = jax.tree.map(lambda leaf: leaf[1:], poses)
    with pytest.raises(ValueError, match="expected poses of 12 pictures with 5 joints, got 11 with 5"):
        oks_objective(fewer, truth, sigmas=SIGMAS)
    with pytest.raises(ValueError, match="expected poses of 12 groups with 5 joints, got 11 with 5"):
        people_objective(fewer, people_truth(points, labelled))
    with pytest.raises(ValueError, match="expected poses of several pictures"):
        oks_objective(jax.tree.map(lambda leaf: leaf[0], poses), truth, sigmas=SIGMAS)
    with pytest.raises(ValueError, match="at most 32 joints or thresholds, got 33"):
        oks_objective(poses, truth, sigmas=SIGMAS, thresholds=tuple(np.linspace(0.5, 0.9, 33)))


def test_more_than_sixteen_thresholds_are_counted_too():
    rng, poses, points, labelled = scenes(3)
    truth = oks_truth(rng, points, labelled)
    few = (0.5, 0.75)
    each = [oks_objective(poses, truth, sigmas=SIGMAS, thresholds=(value,)) for value in few]
    expected = np.mean([precisions(objective, [objective.count()]) for objective in each], 0)
    # Ten equal ones of each: the same mean, in a longer word.
    many = oks_objective(poses, truth, sigmas=SIGMAS, thresholds=(0.5,) * 10 + (0.75,) * 10)
    assert_close(precisions(many, [many.count()]), expected)


def test_of_more_than_the_most_poses_in_a_picture_the_best_count():
    rng, poses, points, labelled = scenes(4)
    truth = oks_truth(rng, points, labelled)
    objective = oks_objective(poses, truth, sigmas=SIGMAS, most=2)
    stays = kept_by(poses, setting_at((1, 4), VARIANTS["released"]))
    expected = oks_ap_of(poses, stays, np.asarray(poses.pose_score), truth, most=2)
    assert expected < oks_ap_of(poses, stays, np.asarray(poses.pose_score), truth)
    assert precisions(objective, [objective.count()])[0, 1, 4] == pytest.approx(expected, abs=1e-6)


def test_a_pose_whose_score_is_not_finite_is_left_out():
    rng, poses, points, labelled = scenes(5)
    truth, score = oks_truth(rng, points, labelled), rng.random((N, P))
    broken = rng.random((N, P)) < 0.3
    without = dataclasses.replace(poses, valid=poses.valid & ~broken)
    expected = oks_objective(without, truth, score=score, sigmas=SIGMAS)
    found = oks_objective(poses, truth, score=np.where(broken, np.nan, score), sigmas=SIGMAS)
    assert_close(precisions(found, [found.count()]), precisions(expected, [expected.count()]))


def test_pictures_without_people_or_poses_are_counted():
    rng, poses, points, labelled = scenes(6)
    truth = oks_truth(rng, points, labelled)
    empty = np.arange(N) < 4
    truth = dataclasses.replace(truth, valid=truth.valid & ~empty[:, None])
    found = precisions(objective := oks_objective(poses, truth, sigmas=SIGMAS), [objective.count()])[0]
    stays = kept_by(poses, setting_at((0, 0), VARIANTS["released"]))
    expected = oks_ap_of(poses, stays, np.asarray(poses.pose_score), truth)
    assert found[0, 0] == pytest.approx(expected, abs=1e-6)
    nobody = objective.count(empty)
    assert (precisions(objective, [nobody]) == 0).all()
