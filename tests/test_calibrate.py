"""What scores mean, and how they are made to mean it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from made_data import write_coco

from rmpe_jax.cli import main
from rmpe_jax.config import ConfigError, Experiment, HourglassConfig, override
from rmpe_jax.data.files import DataError
from rmpe_jax.evaluate import calibrate as module
from rmpe_jax.evaluate.calibrate import Judged, fit_calibration
from rmpe_jax.models.single_person import read_poses
from rmpe_jax.pretrained import load_weights
from rmpe_jax.records import Poses
from rmpe_jax.scores import UNCALIBRATED, calibrated, calibration_error, log_odds, pose_score

scores = st.floats(0, 1, width=32)


def test_a_calibration_by_hand():
    # Odds of 4 and 1, squared and halved: 8 and 1/2.
    found = calibrated(jnp.array([0.8, 0.5, 0.0]), (2.0, float(-np.log(2))))
    assert_close(found, [8 / 9, 1 / 3, 0.0])


@given(scores, scores, st.floats(0.05, 5), st.floats(-5, 5))
def test_calibrated_scores_stay_in_order_and_in_the_unit_interval(a, b, slope, shift):
    low, high = calibrated(jnp.array(sorted([a, b])), (slope, shift))
    assert 0 <= low <= high <= 1


def test_without_a_calibration_scores_are_not_touched():
    values = jax.random.uniform(jax.random.key(0), (7,)).at[0].set(0.0).at[1].set(1.0)
    np.testing.assert_array_equal(calibrated(values, UNCALIBRATED), values)


def test_calibrated_scores_have_the_gradient_of_their_formula():
    with jax.enable_x64(True):
        values = jnp.linspace(0.05, 0.95, 9)
        check_grads(jax.jit(functools.partial(calibrated, calibration=(1.3, -0.7))), (values,), order=1)
        check_grads(jax.jit(log_odds), (values,), order=1)


def test_scores_are_the_same_under_jit_and_vmap():
    values = jax.random.uniform(jax.random.key(0), (3, 5))
    assert_same_under_jit_and_vmap(functools.partial(calibrated, calibration=(1.3, -0.7)), values)
    right = values > 0.4
    assert_same_under_jit_and_vmap(calibration_error, values, right)


def test_a_poses_score_is_the_mean_of_its_joints():
    score = jnp.array([[0.2, 0.4, 0.9], [0.0, 0.0, 0.0]])
    assert_close(pose_score(score), [0.5, 0.0])
    poses = Poses(jnp.zeros((2, 3, 2)), score, jnp.zeros((2, 4)), jnp.ones(2, bool))
    assert_close(poses.pose_score, [0.5, 0.0])


def loop_error(score, right, bins):
    """The calibration error, one bin after the other."""
    total = 0.0
    for low in range(bins):
        member = [n for n, value in enumerate(score) if min(int(value * bins), bins - 1) == low]
        if member:
            total += abs(sum(float(score[n]) - float(right[n]) for n in member))
    return total / len(score)


@pytest.mark.parametrize("bins", [1, 3, 10])
def test_the_calibration_error_is_that_of_a_loop(bins):
    rng = np.random.default_rng(bins)
    score, right = rng.random(200).astype(np.float32), rng.random(200) < 0.4
    score[:2] = 0, 1
    found = calibration_error(jnp.asarray(score), jnp.asarray(right), bins=bins)
    assert found == pytest.approx(loop_error(score, right, bins), rel=1e-4)


def test_weighing_a_score_twice_is_counting_it_twice():
    score, right = jnp.array([0.15, 0.4, 0.85]), jnp.array([False, True, True])
    twice = [jnp.concatenate([array, array[:1]]) for array in (score, right)]
    assert calibration_error(score, right, weight=jnp.array([2.0, 1, 1])) == pytest.approx(
        float(calibration_error(*twice))
    )


def judged(slope, shift, count=20_000):
    """Joints that are right as often as a law says."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0.05, 0.95, count)
    chance = np.asarray(calibrated(jnp.asarray(score, jnp.float32), (slope, shift)))
    return Judged(score, rng.random(count) < chance, np.arange(count) // 10)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (1.3, -1.1), (0.4, 0.8)])
def test_the_fit_finds_the_law_that_scores_follow(slope, shift):
    found = fit_calibration(judged(slope, shift))
    assert (found.slope, found.shift) == pytest.approx((slope, shift), abs=0.06)
    assert found.joints == 20_000 and found.error_after < 0.02
    assert (slope, shift) == UNCALIBRATED or found.error_before > 0.1


def test_the_fit_is_that_of_least_cross_entropy():
    data = judged(1.5, -0.5, 500)
    found = fit_calibration(data)

    def entropy(slope, shift):
        chance = np.asarray(calibrated(jnp.asarray(data.score, jnp.float32), (slope, shift)), np.float64)
        return -np.where(data.right, np.log(chance), np.log1p(-chance)).mean()

    around = [(found.slope + a, found.shift + b) for a in (-0.1, 0, 0.1) for b in (-0.1, 0, 0.1) if a or b]
    assert all(entropy(*other) > entropy(found.slope, found.shift) for other in around)


def test_scores_that_tell_everything_give_a_finite_calibration():
    score = np.linspace(0.01, 0.99, 200)
    found = fit_calibration(Judged(score, score > 0.5, np.arange(200)))
    assert np.isfinite([found.slope, found.shift]).all() and found.slope > 1 and found.error_after < 0.1


@pytest.mark.parametrize(
    ("right", "message"),
    [
        (lambda score: score < 0.5, "do not tell right joints from wrong ones"),
        (lambda score: score[:20] > 0.5, "20 joints"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(right, message):
    score = np.random.default_rng(0).random(200)
    answer = right(score)
    with pytest.raises(DataError, match=message):
        fit_calibration(Judged(score[: len(answer)], answer, np.arange(len(answer))))


def test_joints_that_are_read_have_calibrated_scores(tiny_experiment):
    maps = jax.random.uniform(jax.random.key(0), (2, 8, 8, 19))
    identity = jnp.stack([jnp.eye(2, 3)] * 2)
    plain = read_poses(maps, identity, experiment=tiny_experiment)
    other = read_poses(maps, identity, experiment=override(tiny_experiment, ["model.calibration=0.5,-1"]))
    assert_close(other[0], plain[0])
    assert_close(other[1], calibrated(plain[1], (0.5, -1.0)))


@pytest.mark.parametrize("value", ["0,0", "-1,0", "nan,0", "1,inf"])
def test_a_calibration_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="model: calibration must be a positive slope and a finite shift"):
        override(Experiment(model=HourglassConfig()), [f"model.calibration={value}"])


@pytest.mark.slow
def test_the_command_writes_weights_with_their_calibration(tmp_path, tiny_weights, monkeypatch, capsys):
    from rmpe_jax.pretrained import save_weights

    write_coco(tmp_path, split="train2017")
    save_weights(tmp_path / "tiny.safetensors", tiny_weights)
    monkeypatch.setattr(module, "_FEWEST", 1)
    seen = []
    judge = module.judge

    def look(estimator, pictures, skeleton):
        seen.append(judge(estimator, pictures, skeleton))
        assert estimator.weights.experiment.model.calibration == UNCALIBRATED
        # An untrained network tells nothing: what it would take to learn from it.
        return judged(1.3, -0.4, 2000)

    monkeypatch.setattr(module, "judge", look)
    given = ["--weights", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "new.safetensors")]
    assert main(["calibrate", "coco", "--data", str(tmp_path), "--split", "train2017", "--no-flip", *given]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2000 joints: log odds times 1.") and said[-1] == f"weights: {tmp_path}/new.safetensors"
    slope, shift = load_weights(tmp_path / "new.safetensors").experiment.model.calibration
    assert (slope, shift) == pytest.approx((1.3, -0.4), abs=0.2)
    (found,) = seen
    assert len(found.score) == len(found.right) == len(found.picture) > 0
    assert ((found.score >= 0) & (found.score <= 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["coco", "--split", "val2017", "--out", "a.safetensors"],
            "--split val2017: results of coco are reported on it",
        ),
        (["lspet", "--out", "a.npz"], "--out a.npz: expected a name that ends in .safetensors"),
        (["nothing", "--out", "a.safetensors"], "nothing"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rmpe: ") and message in line
