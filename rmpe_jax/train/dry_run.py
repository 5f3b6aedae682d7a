"""One step of a run, compiled and timed, without training: what it needs and how fast it would be."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from rmpe_jax.config import Experiment, HourglassConfig, override
from rmpe_jax.data.pipeline import Loader, training_batches
from rmpe_jax.models.rmpe import estimator_shapes
from rmpe_jax.records import PoseBatch, SceneBatch
from rmpe_jax.train.plan import Plan, explaining_devices, plan_run
from rmpe_jax.train.step import init_state, train_step

# Batches that are read to see how fast that goes, and seconds for which steps are timed.
_READ, _TIMED = 4, 3.0


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What one step of an experiment takes, on these devices."""

    parameters: int
    people: int  # in an epoch
    epochs: float
    devices: int
    device_kind: str
    flops: float | None  # of a step, over all devices; None where XLA does not count them
    argument_bytes: int | None  # on each device: state and batch; None where the compiler does not tell
    temporary_bytes: int | None  # on each device, during the step
    device_bytes: int | None  # that a device has; None where it does not tell
    compile_seconds: float
    images_per_second: float  # that the step takes, over all devices
    read_per_second: float  # that this process reads in the first epoch

    def as_text(self) -> str:
        """A line for each number."""
        flops = "not counted by XLA" if self.flops is None else f"{self.flops / 1e9:,.1f} GFLOP"
        memory = "not told by the compiler"
        if self.argument_bytes is not None and self.temporary_bytes is not None:
            state, work = self.argument_bytes / 1e6, self.temporary_bytes / 1e6
            memory = f"{state + work:,.0f} MB: state and batch {state:,.0f}, work {work:,.0f}"
        have = "" if self.device_bytes is None else f", of {self.device_bytes / 1e6:,.0f} MB"
        lines = {
            "parameters": f"{self.parameters:,}",
            "people": f"{self.people:,} in an epoch, {self.epochs:.1f} epochs",
            "devices": f"{self.devices} of kind {self.device_kind}",
            "a step": flops,
            "memory of each device": memory + have,
            "compiled in": f"{self.compile_seconds:.1f} s",
            "expected": f"{self.images_per_second:,.0f} images/s",
            "pictures read": f"{self.read_per_second:,.0f} people/s in the first epoch, then from memory",
        }
        return "\n".join(f"{name + ':':23}{line}" for name, line in lines.items())


def dry_run(
    experiment: Experiment, *, workers: int = 2, mapping: str = "pmap", report: Callable[[str], None] = print
) -> DryRun:
    """Reads the first people, compiles the step and repeats it on them; writes nothing.

    Args:
        experiment: the settings.
        workers: how many decode pictures at a time.
        mapping: how the step is mapped over devices, as for ``train``.
        report: receives a line for each record that cannot be used.

    Raises:
        As ``train`` before its first step.
    """
    with explaining_devices(experiment):
        return _dry_run(experiment, workers, mapping, report)


def _dry_run(experiment: Experiment, workers: int, mapping: str, report: Callable[[str], None]) -> DryRun:
    plan = plan_run(experiment, mapping=mapping)
    optim = experiment.optim
    places = {"process": jax.process_index(), "processes": jax.process_count()}
    reading: dict[str, Any] = {"cutting": plan.cutting, "workers": workers, "memory": 0.0, "report": report}
    with Loader(plan.people, experiment.data, **reading) as loader:
        since, last = time.perf_counter(), min(_READ, optim.steps)
        batches = list(training_batches(loader, optim.batch, seed=experiment.run.seed, first=0, last=last, **places))
        read = last * optim.batch * plan.cutting.together / jax.process_count() / (time.perf_counter() - since)
    shapes = jax.tree.leaves(estimator_shapes(experiment)["params"])
    return DryRun(
        parameters=sum(shape.size for shape in shapes),
        people=len(plan.people),
        epochs=optim.steps * optim.batch * plan.cutting.together / len(plan.people),
        devices=jax.device_count(),
        device_kind=jax.devices()[0].device_kind,
        read_per_second=read,
        flops=step_flops(plan, batches[0]),
        **_compiled_and_timed(plan, batches[0]),
    )


def step_flops(plan: Plan, batch: PoseBatch | SceneBatch) -> float | None:
    """Floating-point operations of a step over all devices, as XLA counts them before it optimises; None if it cannot.

    XLA counts once what a loop repeats, so the stacks are unrolled and the batch is one part in what it counts.
    """
    experiment = plan.experiment
    loops = ["model.scan=false"] if isinstance(experiment.model, HourglassConfig) else []
    plain = override(experiment, [*loops, "optim.accumulate=1"])
    step = partial(train_step, **plan.settings | {"experiment": plain})
    state = init_state(plan.key, plain, start=plan.start, frozen=plan.frozen)
    counted: Any = jax.jit(step).lower(state, batch, plan.key).cost_analysis()
    return counted["flops"] * jax.process_count() if counted and "flops" in counted else None


def _compiled_and_timed(plan: Plan, batch: PoseBatch | SceneBatch) -> dict[str, Any]:
    """Compiles the step as a run would, and repeats it for a while."""
    state, since = plan.first_state(), time.perf_counter()
    compiled = plan.step.lower(state, batch, plan.key).compile()
    compile_seconds = time.perf_counter() - since
    seconds: list[float] = []
    # The first call still loads what was compiled.
    while len(seconds) < 2 or sum(seconds) < _TIMED:
        since = time.perf_counter()
        state, metrics = compiled(*plan.step.place(state, batch, plan.key))
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - since)
    memory, stats = compiled.memory_analysis(), jax.local_devices()[0].memory_stats() or {}
    return {
        "argument_bytes": memory and memory.argument_size_in_bytes,
        "temporary_bytes": memory and memory.temp_size_in_bytes,
        "device_bytes": stats.get("bytes_limit"),
        "compile_seconds": compile_seconds,
        "images_per_second": plan.experiment.optim.batch / float(np.median(seconds[1:])),
    }
