"""The training loop, to be read from top to bottom: data, state, steps, checkpoints, weights."""

import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmpe_jax.config import Experiment, differences, to_json
from rmpe_jax.data.people import in_skeleton as people_in_skeleton
from rmpe_jax.data.people import people_in
from rmpe_jax.data.pipeline import Canvases, Loader, evaluation_batches, training_batches, training_people
from rmpe_jax.data.sets import read_data
from rmpe_jax.errors import RmpeError
from rmpe_jax.files import replacing
from rmpe_jax.metrics.pck import correct_joints, pck, torso_length
from rmpe_jax.models.rmpe import has_stn, sppe_of
from rmpe_jax.pretrained import Weights, load_proposals, load_weights, save_weights
from rmpe_jax.proposals.generators import Generator, in_skeleton
from rmpe_jax.skeleton import LSP_14, Skeleton
from rmpe_jax.train.checkpoint import Checkpoints
from rmpe_jax.train.parallel import pmap_step
from rmpe_jax.train.step import init_state, predict_step, train_step


class TrainingError(RmpeError):
    """A run that cannot go on; the message says at which step and why."""


def train(
    experiment: Experiment, out: str | Path, *, workers: int = 2, processes: bool = False, memory: float = 8.0
) -> Path:
    """Trains, resuming from the newest sound checkpoint in ``out``, and writes ``out/NAME.safetensors``.

    Args:
        experiment: every setting of the run.
        out: folder for checkpoints, the log and the weights.
        workers: how many decode pictures at a time.
        processes: decode in processes rather than threads.
        memory: gigabytes of cut-out people that are kept; others are read again each time.

    Returns:
        Path of the weights: the running average, with the experiment in its metadata.

    Raises:
        TrainingError: the loss or its gradient is not finite, the batch cannot be split over the devices, or the run
            was told to stop (SIGTERM or Ctrl-C), after saving.
        DataError, CheckpointError: see there.
    """
    out = Path(out)
    skeleton, run, batch_size = experiment.joints, experiment.run, experiment.optim.batch
    devices = jax.local_device_count()
    if batch_size % (devices * experiment.optim.accumulate):
        parts = f"{devices} devices" + (
            f" in {experiment.optim.accumulate} parts" if experiment.optim.accumulate > 1 else ""
        )
        raise TrainingError(f"optim.batch: {batch_size} people cannot be split evenly over {parts}")
    people = training_people(experiment.data, skeleton)
    start = _starting_variables(experiment)
    beside = _same_skeleton(experiment.localization.parallel, experiment)
    generator = _generator(experiment)
    out.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(run.seed)
    loader = Loader(people, experiment.data, workers=workers, processes=processes, memory=memory, report=tqdm.write)
    with Checkpoints(out / "checkpoints") as checkpoints, _StopSignal() as stop, loader:
        frozen = beside and sppe_of(beside.variables, beside.experiment)
        state = init_state(key, experiment, start=start, frozen=frozen)
        state = checkpoints.restore(state, experiment, report=tqdm.write) or state
        validation = _validation(experiment, workers)
        parallel = None if beside is None else beside.experiment.model
        step = pmap_step(partial(train_step, experiment=experiment, parallel=parallel, generator=generator))
        predict = jax.jit(partial(predict_step, experiment=experiment))
        first, steps = int(state.step), experiment.optim.steps
        log = _Log(out / "log.csv", first)
        since, counted_from, checked = time.perf_counter(), first, first
        batches = training_batches(loader, batch_size, seed=run.seed, first=first, last=steps)
        with tqdm(total=steps, initial=first, desc=experiment.name, mininterval=1.0) as bar:
            for done, batch in enumerate(batches, first + 1):
                state, metrics = step(state, batch, key)
                bar.update()
                last = done == steps
                saving = done % run.save_every == 0 or last or stop.asked
                if done % run.log_every == 0 or saving:
                    loss, accuracy, norm = (float(metrics[name]) for name in ("loss", "accuracy", "gradient_norm"))
                    rate = (done - counted_from) * batch_size / (time.perf_counter() - since)
                    pace = f"rate {float(metrics['learning_rate']):.2g}, {rate:.0f} images/s"
                    bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.3f}, {pace}")
                    log.write(done, loss, accuracy, rate, None, float(len(loader.failures)))
                    if not np.isfinite([loss, norm]).all():
                        raise TrainingError(
                            f"at step {done} the loss is {loss} and its gradient's norm {norm}; "
                            f"both were finite at step {checked}, and the newest checkpoint is from there or before"
                        )
                    since, counted_from, checked = time.perf_counter(), done, done
                if validation is not None and (done % run.evaluate_every == 0 or last):
                    score = validation_pck(predict, state.average, validation, batch_size // devices, skeleton)
                    tqdm.write(f"step {done}: PCK@0.2 on LSPET's validation people {score:.4f}")
                    log.write(done, None, None, None, score, None)
                    since, counted_from = time.perf_counter(), done
                if saving:
                    checkpoints.save(state, experiment)
                if stop.asked and not last:
                    raise TrainingError(f"asked to stop; saved after step {done}, the same command goes on from there")
    path = out / f"{experiment.name}.safetensors"
    save_weights(path, Weights(experiment, jax.tree.map(np.asarray, state.average)))
    with replacing(out / f"{experiment.name}.json") as temporary:
        temporary.write_text(to_json(experiment) + "\n")
    return path


def _starting_variables(experiment: Experiment) -> dict[str, Any] | None:
    """Those of ``experiment.start``, without an STN where the experiment has none."""
    weights = _same_skeleton(experiment.start, experiment)
    if weights is None:
        return None
    found = differences(weights.experiment.model, experiment.model)
    both = has_stn(weights.experiment) and has_stn(experiment)
    if both:
        found += differences(weights.experiment.localization, experiment.localization)
    # How it is computed, and what trains it, may change; what its arrays are may not.
    names = ("stacks", "features", "depth", "residuals", "kind", "theta")
    found = [line for line in found if line.split(":")[0] in names]
    if found:
        raise TrainingError(f"{experiment.start}: of another architecture: {'; '.join(found)}")
    return weights.variables if both else sppe_of(weights.variables, weights.experiment)


def _same_skeleton(name: str, experiment: Experiment) -> Weights | None:
    """Weights by name or path, None for an empty one."""
    if not name:
        return None
    weights = load_weights(name)
    if weights.experiment.joints != experiment.joints:
        raise TrainingError(
            f"{name}: predicts {weights.experiment.joints.name}, but the experiment {experiment.joints.name}"
        )
    return weights


def _generator(experiment: Experiment) -> Generator | None:
    """The proposals generator of the experiment, for its skeleton; None for the jitter of its augmentation."""
    name = experiment.augment.proposals
    return None if name == "jitter" else in_skeleton(load_proposals(name), experiment.joints)


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


def _validation(experiment: Experiment, workers: int) -> Canvases | None:
    if not experiment.data.lspet:
        return None
    people = people_in(read_data("lspet", experiment.data.lspet, "val"))
    if not people:
        return None
    people = people_in_skeleton(people, LSP_14, experiment.joints)
    with Loader(people, experiment.data, workers=workers, memory=0.0, report=tqdm.write) as loader:
        return loader.load(np.arange(len(loader)))


class _Log:
    """Lines of step, loss, accuracy, images/s, validation PCK, records left out; goes on after a resumed run's step."""

    def __init__(self, path: Path, first: int):
        self._path = path
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        kept = [line for line in lines if line.split(",")[0].isdecimal() and int(line.split(",")[0]) <= first]
        with replacing(path) as temporary:
            temporary.write_text("\n".join(["step,loss,accuracy,images_per_second,validation_pck,left_out", *kept, ""]))

    def write(self, step: int, *values: float | None) -> None:
        with self._path.open("a") as file:
            file.write(",".join([str(step), *("" if v is None else f"{v:.6g}" for v in values)]) + "\n")


class _StopSignal:
    """Turns SIGTERM and Ctrl-C into a request that the loop reads between steps; a second one acts at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> "_StopSignal":
        self.asked = False
        self._before = {}
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        self.__exit__()
