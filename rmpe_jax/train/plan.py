"""What a run needs before its first step, checked before anything is compiled."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from rmpe_jax.config import DeepPoseConfig, Experiment, HourglassConfig, PersonDetectorConfig, differences
from rmpe_jax.data.pipeline import Cutting, PeopleCutting, training_people, training_positions
from rmpe_jax.data.scenes import SceneCutting, training_scenes
from rmpe_jax.errors import RmpeError
from rmpe_jax.models.rmpe import has_stn, sppe_of
from rmpe_jax.pretrained import Weights, load_proposals, load_weights
from rmpe_jax.proposals.generators import Generator, in_skeleton
from rmpe_jax.train.parallel import ParallelStep, pmap_step, sharded_step
from rmpe_jax.train.state import TrainState
from rmpe_jax.train.step import init_state, train_step

# What collectives (Gloo, NCCL) and the coordination service say when a process is gone or silent.
_OF_PROCESSES = re.compile("gloo|nccl|coordination|barrier|heartbeat|unavailable|aborted|deadline_exceeded", re.I)

#: How a step is mapped over devices.
MAPPINGS: dict[str, Callable[..., ParallelStep]] = {"pmap": pmap_step, "sharded": sharded_step}


class TrainingError(RmpeError):
    """A run that cannot start or go on; the message says why."""


@contextlib.contextmanager
def explaining_devices(experiment: Experiment) -> Iterator[None]:
    """Says what a failure of a device, or of the runtime between processes, means for a run.

    Raises:
        TrainingError: instead of JAX's own error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise _explained(str(error), experiment) from error


def _explained(text: str, experiment: Experiment) -> TrainingError:
    line = (text.splitlines() or [""])[0]
    if "RESOURCE_EXHAUSTED" in text:
        ways = "a smaller optim.batch, optim.accumulate=2 or more, model.remat=true or model.dtype=bfloat16 take less"
        return TrainingError(f"the device ran out of memory at batch {experiment.optim.batch}; {ways}. {line}")
    if jax.process_count() > 1 and _OF_PROCESSES.search(text):
        return TrainingError(f"the processes lost each other; the run goes on from its newest checkpoint. {line}")
    return TrainingError(line)


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment with everything that it names, read and found to fit together."""

    experiment: Experiment
    people: list[Any]  # to train on, ``data.pipeline.Item``; of a person detector scenes
    cutting: Cutting  # how they become canvases
    start: dict[str, Any] | None  # variables to begin with
    frozen: dict[str, Any] | None  # those of the parallel SPPE
    settings: dict[str, Any]  # of ``train_step``
    step: ParallelStep  # it, over all devices
    key: Array  # the source of all randomness

    def first_state(self) -> TrainState:
        """The state before the first step."""
        return init_state(self.key, self.experiment, start=self.start, frozen=self.frozen)


def plan_run(experiment: Experiment, *, mapping: str = "pmap") -> Plan:
    """Reads what an experiment names.

    Raises:
        TrainingError: the batch cannot be split over the devices of all processes, or weights do not fit.
        DataError, WeightsError: a data set, weights or proposals that cannot be read.
    """
    optim = experiment.optim
    parts = jax.device_count() * optim.accumulate
    if optim.batch % parts:
        over = f"{jax.device_count()} devices" + (f" in {optim.accumulate} parts" if optim.accumulate > 1 else "")
        raise TrainingError(f"optim.batch: {optim.batch} people cannot be split evenly over {over}")
    people, cutting = _items(experiment)
    training_positions(len(people), optim.batch * cutting.together, seed=experiment.run.seed, step=0)
    start = _starting_variables(experiment)
    beside = _same_skeleton(experiment.localization.parallel, experiment)
    frozen = beside and sppe_of(beside.variables, beside.experiment)
    parallel = beside and beside.experiment.hourglass
    if parallel and parallel.align_corners != experiment.hourglass.align_corners:
        name, theirs = experiment.localization.parallel, str(parallel.align_corners).lower()
        raise TrainingError(f"{name}: its maps lie on the crop otherwise: say model.align_corners={theirs}")
    settings = {"experiment": experiment, "parallel": parallel, "generator": read_generator(experiment)}
    step = MAPPINGS[mapping](partial(train_step, **settings))
    return Plan(experiment, people, cutting, start, frozen, settings, step, jax.random.key(experiment.run.seed))


def _items(experiment: Experiment) -> tuple[list[Any], Cutting]:
    """What is trained on, and how it is cut out."""
    if isinstance(experiment.model, PersonDetectorConfig):
        return training_scenes(experiment.data), SceneCutting(experiment.data)
    return training_people(experiment.data, experiment.joints), PeopleCutting(experiment.data, experiment.joints.size)


def _starting_variables(experiment: Experiment) -> dict[str, Any] | None:
    """Those of ``experiment.start``, without an STN where the experiment has none."""
    weights = _same_skeleton(experiment.start, experiment)
    if weights is None:
        return None
    theirs, ours = weights.experiment.model, experiment.model
    if isinstance(theirs, HourglassConfig) and isinstance(ours, PersonDetectorConfig):
        ours = ours.hourglass
    found = differences(theirs, ours)
    both = has_stn(weights.experiment) and has_stn(experiment)
    if both:
        found += differences(weights.experiment.localization, experiment.localization)
    # How it is computed, and what trains it, may change; what its arrays are, see and mean may not.
    names = ["stacks", "features", "layout", "depth", "residuals", "kind", "theta", "backbone", "width", "stages"]
    names += ["mean", "align_corners", "side"]
    if isinstance(experiment.model, DeepPoseConfig) and experiment.model.backbone == "alexnet":
        names.append("input_size")
    found = [line for line in found if line.split(":")[0] in names]
    if found:
        raise TrainingError(f"{experiment.start}: of another architecture or crop: {'; '.join(found)}")
    return weights.variables if both else sppe_of(weights.variables, weights.experiment)


def _same_skeleton(name: str, experiment: Experiment) -> Weights | None:
    """Weights by name or path, None for an empty one."""
    if not name:
        return None
    weights = load_weights(name)
    has_joints = not isinstance(experiment.model, PersonDetectorConfig)
    if has_joints and weights.experiment.joints != experiment.joints:
        raise TrainingError(
            f"{name}: predicts {weights.experiment.joints.name}, but the experiment {experiment.joints.name}"
        )
    return weights


def read_generator(experiment: Experiment) -> Generator | None:
    """The proposals generator of an experiment, for its skeleton; None for the jitter of its augmentation."""
    name = experiment.augment.proposals
    return None if name == "jitter" else in_skeleton(load_proposals(name), experiment.joints)
