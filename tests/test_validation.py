"""The score on validation people, on poses that are made up instead of predicted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmpe_jax.config import DataConfig, Experiment, HourglassConfig, OptimConfig
from rmpe_jax.data.pipeline import Canvases, Loader, training_people
from rmpe_jax.skeleton import LSP_14
from rmpe_jax.train.step import init_state
from rmpe_jax.train.validation import Validation, validation_pck

SIDE = 64


def standing_people(count):
    """People of one shape, whose torso's first diagonal is 10 pixels long, each moved by its number."""
    points = np.stack([np.linspace(10, 20, 14), np.linspace(10, 50, 14)], -1).astype(np.float32)
    points[LSP_14.joints.index("left_shoulder")] = 20, 20
    points[LSP_14.joints.index("right_hip")] = 26, 28
    return Canvases(
        np.zeros((count, SIDE, SIDE, 3), np.uint8),
        np.stack([points + number for number in range(count)]),
        np.ones((count, 14), bool),
        np.tile(np.array([5, 5, 40, 60], np.float32), (count, 1)),
        np.ones(count, bool),
    )


def score(people, moved_by, batch=2):
    """The score of predictions that are off by (person, joint) -> pixels."""

    def predict(moves, part):
        return part.points + moves[part.points[:, 0, 0].astype(int) - 10][:, :, None]

    return validation_pck(predict, jnp.asarray(moved_by, jnp.float32), people, batch, LSP_14)


def test_a_fifth_of_the_torso_is_the_limit():
    people, moves = standing_people(1), np.zeros((1, 14))
    # Along both axes, so the distance is the square root of two times as long; the limit is 2 pixels.
    moves[0, :3] = 1.40, 1.42, 30
    assert score(people, moves) == pytest.approx(12 / 14)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_the_size_of_the_batch_and_its_padding_change_nothing(batch):
    people, moves = standing_people(5), np.zeros((5, 14))
    moves[3] = 9
    assert score(people, moves, batch) == pytest.approx(4 / 5)


def test_people_that_could_not_be_read_and_joints_without_label_do_not_count():
    people, moves = standing_people(3), np.zeros((3, 14))
    moves[0], moves[1, :7] = 9, 9
    people.labelled[1, :7], people.valid[0] = False, False
    # Of the second person the torso is no longer labelled either: only the third is left.
    people.labelled[1, LSP_14.joints.index("right_hip")] = False
    assert score(people, moves) == 1


@pytest.fixture(scope="module")
def drawn():
    """An experiment on drawn people, and its people."""
    experiment = Experiment(
        model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(32, 32)),
        data=DataConfig(synthetic=4, canvas=48),
        optim=OptimConfig(batch=4),
    )
    return experiment, training_people(experiment.data, experiment.joints)


@pytest.mark.slow
def test_drawn_people_are_validated_on_drawn_people_and_others_are_drawn_for_the_eye(drawn):
    experiment, people = drawn
    state = init_state(jax.random.key(0), experiment)
    with Loader(people, experiment.data) as loader:
        validation = Validation(experiment, loader, workers=1, report=print)
        weights = validation.weights_of(state)
        canvases, points = validation.sample_points(weights)
        score = validation.score(weights)
        assert score is not None and 0 <= score <= 1
        assert len(canvases) == len(points) == 8 and np.isfinite(points).all()
        np.testing.assert_array_equal(canvases.canvas, validation.people.canvas[:8])

        # Elsewhere no one is set aside: the first training people are shown, and nothing is measured.
        unset = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, synthetic=0))
        validation = Validation(unset, loader, workers=1, report=print)
        assert validation.score(weights) is None
        canvases, points = validation.sample_points(weights)
        np.testing.assert_array_equal(canvases.canvas, loader.load(np.arange(8)).canvas)
        assert len(points) == 8
