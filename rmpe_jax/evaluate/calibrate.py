"""Scores of an hourglass made probabilities: two numbers fitted to labelled people, and how far off scores are then.

What is fitted, and what scores mean, stands in ``rmpe_jax.scores``.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit

from rmpe_jax.data.files import DataError
from rmpe_jax.data.people import LabelledPicture
from rmpe_jax.evaluate.predictions import predict_in_boxes
from rmpe_jax.evaluate.protocols import Singles
from rmpe_jax.metrics.pck import correct_joints
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.pretrained import Weights
from rmpe_jax.scores import UNCALIBRATED, calibrated, calibration_error, log_odds
from rmpe_jax.skeleton import Skeleton

# Parts of the pictures, each of which is measured by a fit to the others.
_FOLDS = 5
_FEWEST = 50


@dataclasses.dataclass(frozen=True)
class Judged:
    """Joints of predicted people, whether they are right, and the picture of each."""

    score: Float[np.ndarray, "n"]  # uncalibrated
    right: Bool[np.ndarray, "n"]
    picture: np.ndarray  # (n,) number of the picture


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The two numbers, and the calibration error: without them, and with them where their fit did not look."""

    slope: float
    shift: float
    joints: int
    error_before: float
    error_after: float


def calibrate(
    weights: Weights, pictures: Sequence[LabelledPicture], skeleton: Skeleton, *, flip_test: bool = True
) -> tuple[Weights, Calibration]:
    """Weights whose scores are probabilities of being right.

    Everybody is predicted in their own box. Joints without a label, and people without a labelled torso, do not count.

    Args:
        weights: of an hourglass; an older calibration is replaced.
        pictures: labelled, and not among those that results are reported on.
        skeleton: of their people.
        flip_test: as the weights will be used.

    Returns:
        The weights, and what was fitted and measured, the latter by cross-validation over pictures.

    Raises:
        ConfigError: the model has no heat maps.
        DataError: fewer than 50 joints of two pictures to learn from, or scores that do not tell right from wrong.
    """
    plain = with_calibration(weights, UNCALIBRATED)
    judged = judge(Estimator(plain, nms=None, flip_test=flip_test), pictures, skeleton)
    found = fit_calibration(judged)
    return with_calibration(weights, (found.slope, found.shift)), found


def with_calibration(weights: Weights, calibration: tuple[float, float]) -> Weights:
    """The same weights with other two numbers."""
    model = dataclasses.replace(weights.experiment.hourglass, calibration=calibration)
    return dataclasses.replace(weights, experiment=dataclasses.replace(weights.experiment, model=model))


def judge(estimator: Estimator, pictures: Sequence[LabelledPicture], skeleton: Skeleton) -> Judged:
    """Which joints an estimator gets right in people's own boxes, by PCK@0.2 of the torso."""
    people = Singles(pictures, predict_in_boxes(estimator, pictures, skeleton))
    lengths = people.torsos(skeleton)
    counted = people.labelled & (lengths > 0)[:, None] & jnp.isfinite(people.score)
    right = jax.vmap(correct_joints)(people.predicted, people.truth, counted, lengths)
    picture = np.broadcast_to(people.place[:, None], counted.shape)
    score, right, counted = map(np.asarray, (people.score, right, counted))
    return Judged(score[counted], right[counted], picture[counted])


def fit_calibration(judged: Judged) -> Calibration:
    """Slope and shift of least cross-entropy, and the error before and after, the latter by cross-validation.

    Raises:
        DataError: fewer than 50 joints, or all of one picture; or a slope that is not positive: the scores do not tell
            right from wrong.
    """
    if len(judged.score) < _FEWEST or len(np.unique(judged.picture)) < 2:
        found = f"{len(judged.score)} joints of {len(np.unique(judged.picture))} pictures"
        raise DataError(f"{found} to learn a calibration from: at least {_FEWEST} of 2 are needed")
    slope, shift = _least_cross_entropy(judged.score, judged.right)
    # Pictures in turn, so that joints of one person stay together.
    fold = np.unique(judged.picture, return_inverse=True)[1] % _FOLDS
    after = np.array(judged.score)
    for number in np.unique(fold):
        aside = fold == number
        found = _least_cross_entropy(judged.score[~aside], judged.right[~aside])
        after[aside] = calibrated(jnp.asarray(judged.score[aside], jnp.float32), found)
    right = jnp.asarray(judged.right)
    before, after = (
        float(calibration_error(jnp.asarray(score, jnp.float32), right)) for score in (judged.score, after)
    )
    return Calibration(slope, shift, len(judged.score), before, after)


def _least_cross_entropy(score: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Platt's fit; his targets, a little off 0 and 1, keep it finite where scores tell everything."""
    x = np.asarray(jax.jit(log_odds)(jnp.asarray(score, jnp.float32)), np.float64)
    count = right.sum()
    target = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))

    def loss(numbers):
        z = numbers[0] * x + numbers[1]
        off = expit(z) - target
        return (np.logaddexp(0, z) - target * z).mean(), np.array([(off * x).mean(), off.mean()])

    slope, shift = (float(number) for number in minimize(loss, np.array(UNCALIBRATED), jac=True).x)
    if not slope > 0:
        raise DataError(f"scores do not tell right joints from wrong ones: their slope is {slope:.3f}")
    return slope, shift
