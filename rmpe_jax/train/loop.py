"""The training loop, to be read from top to bottom: data, state, steps, checkpoints, weights."""

import contextlib
import csv
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rmpe_jax.config import Experiment, PersonDetectorConfig
from rmpe_jax.data.pipeline import Loader, device_batches, training_batches, training_positions
from rmpe_jax.files import check_writable, replacing
from rmpe_jax.models.rmpe import unstack_estimator
from rmpe_jax.pretrained import Weights, save_weights
from rmpe_jax.train.checkpoint import Best, Checkpoints, Saved, check_space
from rmpe_jax.train.detector_validation import DetectorValidation
from rmpe_jax.train.distributed import asked_to_stop, check_alike, is_main, of_main
from rmpe_jax.train.journal import Journal
from rmpe_jax.train.plan import Plan, TrainingError, explaining_devices, plan_run
from rmpe_jax.train.provenance import write_provenance
from rmpe_jax.train.state import TrainState
from rmpe_jax.train.validation import Examination, Validation


def train(
    experiment: Experiment,
    out: str | Path,
    *,
    workers: int = 2,
    processes: bool = False,
    memory: float = 8.0,
    on_device: bool = False,
    mapping: str = "pmap",
) -> Path:
    """Trains, resuming from the newest sound checkpoint in ``out``, and writes ``out/NAME.safetensors``.

    Of several processes (``distributed.join``) each reads its share of the pictures and takes part in saving; the first
    alone writes logs, pictures and weights. All see the same folder ``out``.

    Args:
        experiment: every setting of the run.
        out: folder for checkpoints (the newest; in ``best`` those of the highest validation score), run.json, log.csv,
            TensorBoard's event files, the weights, and in ``NAME-best.safetensors`` those of the highest score.
        workers: how many decode pictures at a time, in each process.
        processes: decode in processes rather than threads.
        memory: gigabytes of cut-out people that are kept; others are read again each time.
        on_device: keep all cut-out people in the memory of every device instead: the same batches, without the host.
        mapping: over devices by ``pmap``, or ``sharded`` by jit over a mesh (``train.parallel``).

    Returns:
        Path of the weights: the running average, with the experiment in its metadata.

    Raises:
        TrainingError: the loss or its gradient is not finite, the batch cannot be split over the devices, a device has
            too little memory, or the run was told to stop (SIGTERM or Ctrl-C), after saving.
        DataError, CheckpointError, JoinError: see there.
    """
    with explaining_devices(experiment):
        plan = plan_run(experiment, mapping=mapping)
        reading = {"workers": workers, "processes": processes, "memory": 0.0 if on_device else memory}
        return _run(plan, Path(out), reading, on_device=on_device)


def _run(plan: Plan, out: Path, reading: dict[str, Any], *, on_device: bool) -> Path:
    """The run that was planned, from its newest checkpoint to its weights."""
    experiment, people = plan.experiment, len(plan.people)
    run, last = experiment.run, experiment.optim.steps
    weights = out / f"{experiment.name}.safetensors"
    check_writable(weights)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        newest = opened.enter_context(Checkpoints(out / "checkpoints", people=people))
        best = opened.enter_context(Checkpoints(out / "best", people=people))
        loader = opened.enter_context(
            Loader(plan.people, experiment.data, cutting=plan.cutting, report=_tell, **reading)
        )
        stop = opened.enter_context(_StopSignal())
        state = plan.first_state()
        saved = newest.restore(state, experiment, report=_tell_once) or Saved(state, None)
        state, first = saved.state, int(saved.state.step)
        check_alike("the step of the newest checkpoint, in a folder that all processes should share,", first)
        if first < last:
            detector = isinstance(experiment.model, PersonDetectorConfig)
            examination = DetectorValidation if detector else Validation
            validation = examination(experiment, loader, workers=reading["workers"], report=_tell)
            scored = [best] if validation.scored else []
            check_space(out, sum(checkpoints.bytes_needed(state) for checkpoints in (newest, *scored)))
            highest = _best_again(best, saved, experiment)
            batches = _batches(plan, loader, first, on_device=on_device)
            watch = opened.enter_context(_Watch(plan, loader, out, newest, first))
            examine = partial(_examine, watch, validation, best, experiment)
            if saved.due:
                highest = examine(first, state, highest)
            for done, batch in enumerate(batches, first + 1):
                state, metrics = plan.step(state, batch, plan.key)
                watch.add(done, metrics)
                stopping = done < last and (stop.asked or asked_to_stop(done))
                saving = done % run.save_every == 0 or done == last or stopping
                examining = done % run.evaluate_every == 0 or done == last
                if done % run.log_every == 0 or saving or examining:
                    watch.report(done)
                # Whoever asks to stop grants seconds: the next start makes up for the examination.
                if examining and not stopping:
                    highest = examine(done, state, highest)
                if saving:
                    if highest is not None and highest.step < done:
                        best.wait()  # what a checkpoint names is there
                    newest.save(state, experiment, highest, due=examining and stopping)
                if stopping:
                    newest.wait()
                    raise TrainingError(f"asked to stop; saved after step {done}, the same command goes on from there")
        # Weights are written when what they are made of is on disk.
        for checkpoints in (newest, best):
            checkpoints.wait()
        _write_weights(weights, experiment, state.average)
        best_saved = best.restore(state, experiment, report=_tell_once)
        if best_saved is not None:
            _write_weights(out / f"{experiment.name}-best.safetensors", experiment, best_saved.state.average)
    return weights


def _best_again(best: Checkpoints, saved: Saved, experiment: Experiment) -> Best | None:
    """The highest score of a run that goes on, as far as ``best`` holds its step.

    Saved again is what was being written when the run was killed; what a damaged checkpoint took along is forgotten.
    """
    first, highest = int(saved.state.step), saved.best
    # Where the examination is due, another start may have made it and been killed.
    best.forget_after(first - saved.due)
    if highest is None or best.holds(highest.step):
        return highest
    if highest.step < first:
        return None
    best.save(saved.state, experiment, highest)
    return highest


def _examine(
    watch: "_Watch",
    validation: Examination,
    best: Checkpoints,
    experiment: Experiment,
    done: int,
    state: TrainState,
    highest: Best | None,
) -> Best | None:
    """Measures after a step, and keeps the state with the highest score; returns that."""
    score = watch.examine(done, validation, state)
    if score is None or (highest is not None and score <= highest.score):
        return highest
    highest = Best(score, done)
    best.save(state, experiment, highest)
    return highest


def _write_weights(path: Path, experiment: Experiment, average: Any) -> None:
    """The average of the weights, once."""
    if is_main():
        save_weights(path, Weights(experiment, unstack_estimator(jax.tree.map(np.asarray, average), experiment)))


def _batches(plan: Plan, loader: Loader, first: int, *, on_device: bool) -> Iterator[Any]:
    """The batches from a step on: this process's share."""
    optim = plan.experiment.optim
    settings: dict[str, Any] = {"seed": plan.experiment.run.seed, "first": first, "last": optim.steps}
    settings |= {"process": jax.process_index(), "processes": jax.process_count()}
    if on_device:
        progress = partial(tqdm, desc="people", unit_scale=True, disable=not is_main())
        return device_batches(loader, optim.batch, progress=progress, **settings)
    return training_batches(loader, optim.batch, **settings)


class _Watch:
    """Looks at the metrics of every step, and tells them: to the screen, the log and TensorBoard."""

    def __init__(self, plan: Plan, loader: Loader, out: Path, checkpoints: Checkpoints, first: int):
        self._plan, self._loader, self._out, self._checkpoints, self._first = plan, loader, out, checkpoints, first
        self._waiting: list[tuple[int, Any]] = []
        self._since = time.perf_counter()

    def __enter__(self) -> "_Watch":
        experiment, main = self._plan.experiment, is_main()
        with contextlib.ExitStack() as opened:
            self._journal = opened.enter_context(Journal(self._out, self._first)) if main else None
            self._scored = main and _has_score(self._out / "log.csv", self._first)
            if main:
                write_provenance(self._out / "run.json", experiment)
            self._bar = opened.enter_context(
                tqdm(
                    total=experiment.optim.steps,
                    initial=self._first,
                    desc=experiment.name,
                    mininterval=1.0,
                    disable=not main,
                )
            )
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def add(self, done: int, metrics: dict[str, Any]) -> None:
        """Takes note of a step; its numbers may still be on their way."""
        self._waiting.append((done, metrics))
        self._bar.update()

    def report(self, done: int) -> None:
        """Waits for all steps so far and tells of the last.

        Raises:
            TrainingError: one of them had a loss or a gradient that is not finite.
        """
        steps = [
            (step, {name: float(value) for name, value in jax.device_get(found).items()})
            for step, found in self._waiting
        ]
        batch = self._plan.experiment.optim.batch
        pace = len(steps) * batch / (time.perf_counter() - self._since)
        self._since, self._waiting = time.perf_counter(), []
        for step, metrics in steps:
            if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
                raise self._stopped_at(step, metrics)
        metrics = steps[-1][1]
        epoch = f"epoch {done * batch * self._plan.cutting.together / len(self._plan.people):.1f}"
        told = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.3f}, rate {metrics['learning_rate']:.2g}"
        self._bar.set_postfix_str(f"{epoch}, {told}, {pace:.0f} images/s")
        if self._journal is not None:
            names = ("loss", "accuracy", "learning_rate", "gradient_norm")
            left_out = float(len(self._loader.failures))
            told = {name: metrics[name] for name in names}
            self._journal.write(done, **told, images_per_second=pace, left_out=left_out)

    def examine(self, done: int, validation: Examination, state: TrainState) -> float | None:
        """Measures and draws predictions; the score is process 0's in all processes."""
        weights = validation.weights_of(state)
        score = validation.score(weights)
        if score is not None:
            score = of_main(score)
            _tell_once(f"step {done}: {validation.measure} {score:.4f}")
        # An examination that a stopped run put off may have been made, and written, by a start that was killed.
        if self._journal is not None and not (self._scored and done == self._first):
            self._journal.pictures(done, "predictions", validation.sheet(weights))
            if score is not None:
                self._journal.write(done, **{validation.column: score})
        self._since = time.perf_counter()
        return score

    def _stopped_at(self, step: int, metrics: dict[str, float]) -> TrainingError:
        """The error for a step that is not finite, whose batch is written for inspection."""
        path = self._out / f"not_finite_{step}.npz"
        if is_main():
            self._write_batch(path, step, metrics)
        newest = self._checkpoints.newest_step()
        kept = "there is no checkpoint yet" if newest is None else f"the newest checkpoint is of step {newest}"
        return TrainingError(
            f"at step {step} the loss is {metrics['loss']} and its gradient's norm {metrics['gradient_norm']}; in all "
            f"steps before both were finite. Its batch is in {path}; {kept}"
        )

    def _write_batch(self, path: Path, step: int, metrics: dict[str, float]) -> None:
        # The data of a step follow from its number.
        experiment = self._plan.experiment
        batch = experiment.optim.batch * self._plan.cutting.together
        positions = training_positions(len(self._loader), batch, seed=experiment.run.seed, step=step - 1)
        arrays: dict[str, Any] = dataclasses.asdict(self._loader.load(positions)) | metrics
        arrays["picture"] = np.array([str(self._plan.people[position].picture) for position in positions])
        with replacing(path) as temporary:
            np.savez(temporary, position=positions, step=step, **arrays)


def _has_score(path: Path, step: int) -> bool:
    """Whether a log tells the score after a step."""
    with path.open(newline="") as file:
        scores = ("validation_pck", "validation_recall")
        return any(int(row["step"]) == step and any(row[name] for name in scores) for row in csv.DictReader(file))


def _tell(line: str) -> None:
    """To the screen, from any process."""
    tqdm.write(line if jax.process_count() == 1 else f"process {jax.process_index()}: {line}")


def _tell_once(line: str) -> None:
    """What every process would say alike."""
    if is_main():
        tqdm.write(line)


class _StopSignal:
    """Turns SIGTERM and Ctrl-C into a request that the loop reads between steps; a second one acts at once."""

    def __enter__(self) -> "_StopSignal":
        self.asked = False
        self._before = {}
        handlers = {signal.SIGTERM: self._ask, signal.SIGINT: self._ask}
        if jax.process_count() > 1:
            # JAX catches SIGTERM and tells the other processes, so that all stop after the same step.
            handlers = {signal.SIGINT: self._pass_on}
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        self.__exit__()

    def _pass_on(self, number, frame):
        os.kill(os.getpid(), signal.SIGTERM)
        self.__exit__()
