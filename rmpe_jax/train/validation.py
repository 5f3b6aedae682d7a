"""What is looked at while a run goes on: the score on validation people, the best so far, pictures of predictions."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import Experiment
from rmpe_jax.data.people import in_skeleton, people_in
from rmpe_jax.data.pipeline import Canvases, Loader, evaluation_batches, rows_of
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.metrics.pck import correct_joints, pck, torso_length
from rmpe_jax.models.rmpe import unstack_estimator
from rmpe_jax.skeleton import Skeleton
from rmpe_jax.train.journal import prediction_sheet
from rmpe_jax.train.state import TrainState
from rmpe_jax.train.step import predict_step

# People on the sheet of sample predictions.
SAMPLES = 8


@runtime_checkable
class Examination(Protocol):
    """What a run is looked at by: poses here, boxes in ``detector_validation``."""

    @property
    def measure(self) -> str:
        """What the score is."""
        ...

    @property
    def column(self) -> str:
        """What the score is called in the log."""
        ...

    @property
    def scored(self) -> bool:
        """Whether there is anything to measure."""
        ...

    def weights_of(self, state: TrainState) -> Any:
        """The average weights of a state, as prediction has them, on the device."""
        ...

    def score(self, weights: Any) -> float | None:
        """The higher, the better, in [0, 1]; None if not ``scored``."""
        ...

    def sheet(self, weights: Any) -> np.ndarray:
        """A picture of predictions, uint8 RGB."""
        ...


class Validation:
    """Predicts with a run's average weights, on this process's first device."""

    measure, column = "PCK@0.2 on validation people", "validation_pck"

    def __init__(self, experiment: Experiment, loader: Loader, *, workers: int, report: Callable[[str], None]):
        """Reads the validation people of LSPET, or else drawn ones, where the experiment trains on such.

        Args:
            experiment: the settings.
            loader: of the training people, open; the first of them are drawn where there are none for validation.
            workers: how many decode pictures at a time.
            report: receives a line for each record that cannot be used.
        """
        self._experiment = experiment
        self._predict = jax.jit(partial(predict_step, experiment=experiment))
        self._batch = max(experiment.optim.batch // jax.device_count(), 1)
        self._skeleton = experiment.joints
        self.people = _validation_people(experiment, workers, report)
        few = loader.load(np.arange(min(SAMPLES, len(loader)))) if self.people is None else self.people
        self.samples = rows_of(few, slice(SAMPLES))

    @property
    def scored(self) -> bool:
        """Whether there are validation people."""
        return self.people is not None

    def weights_of(self, state: TrainState) -> Any:
        """The average weights of a state, as prediction has them, on the device."""
        return jax.tree.map(jnp.asarray, unstack_estimator(first_local(state.average), self._experiment))

    def score(self, weights: Any) -> float | None:
        """PCK@0.2 of the torso over LSP's fourteen joints; None without validation people."""
        if self.people is None:
            return None
        return validation_pck(self._predict, weights, self.people, self._batch, self._skeleton)

    def sample_points(self, weights: Any) -> tuple[Canvases, np.ndarray]:
        """The first people, and their joints as predicted, in pixels of their canvases."""
        batch = next(evaluation_batches(self.samples, len(self.samples)))
        return self.samples, np.asarray(self._predict(weights, batch))

    def sheet(self, weights: Any) -> np.ndarray:
        """The first people with their joints as predicted and as labelled, see ``prediction_sheet``."""
        return prediction_sheet(*self.sample_points(weights), self._skeleton)


def validation_pck(predict, variables, canvases: Canvases, batch: int, skeleton: Skeleton) -> float:
    """PCK@0.2 of the torso over LSP's fourteen joints, measured on canvases."""
    correct, counted = [], []
    for part in evaluation_batches(canvases, batch):
        predicted = predict(variables, part)
        length = jax.vmap(partial(torso_length, skeleton=skeleton))(part.points, part.labelled)
        labelled = part.labelled & part.valid[:, None] & (length > 0)[:, None]
        correct.append(jax.vmap(correct_joints)(predicted, part.points, labelled, length))
        counted.append(labelled)
    return float(pck(jnp.concatenate(correct), jnp.concatenate(counted))[0])


def first_local(tree: Any) -> Any:
    """Arrays that are whole on every device of every process, as this process's first device has them."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _validation_people(experiment: Experiment, workers: int, report: Callable[[str], None]) -> Canvases | None:
    name = next((name for name in ("lspet", "synthetic") if getattr(experiment.data, name)), None)
    if name is None:
        return None
    folder = experiment.data.lspet if name == "lspet" else "."
    people = people_in(read_data(name, folder, "val"))
    if not people:
        return None
    people = in_skeleton(people, data_set(name).skeleton, experiment.joints)
    with Loader(people, experiment.data, workers=workers, memory=0.0, report=report) as loader:
        return loader.load(np.arange(len(loader)))
