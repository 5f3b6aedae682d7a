"""``rmpe train``."""

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmpe_jax.cli.options import add_workers, complain, number
from rmpe_jax.errors import RmpeError


def add_train(commands: Any) -> None:
    """Adds the command ``train``."""
    train = commands.add_parser("train", help="train a network from an experiment file")
    train.add_argument("experiment", metavar="EXPERIMENT.py", help="a Python file that defines `experiment`; it is run")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="change a setting, such as model.stacks=4; may be repeated",
    )
    train.add_argument(
        "--out", metavar="DIR", help="checkpoints, log and weights (default: runs/NAME); an interrupted run goes on"
    )
    add_workers(train)
    train.add_argument("--processes", action="store_true", help="decode in processes instead of threads")
    train.add_argument(
        "--memory",
        type=number(float, 0),
        default=8.0,
        metavar="GB",
        help="cut-out people that are kept in memory; the others are read again each time (default: %(default)s)",
    )
    train.add_argument(
        "--on-device", action="store_true", help="keep all cut-out people in the devices' memory; the same batches"
    )
    train.add_argument(
        "--mapping",
        choices=("pmap", "sharded"),
        default="pmap",
        help="the step over devices by pmap, or by jit over a mesh (default: %(default)s)",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="compile one step, print what it takes and how fast it is, and stop; --out, --processes, --memory and "
        "--on-device have no use then",
    )
    _add_processes(train)
    train.set_defaults(run=_train)


def _add_processes(train: argparse.ArgumentParser) -> None:
    several = train.add_argument_group("several processes, on one machine or many")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="train together with the other processes; SLURM, Open MPI, GKE and TPU pods are found by JAX",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is to be reached")
    several.add_argument("--process-count", type=number(int, 1), metavar="N", help="how many there are")
    several.add_argument("--process", type=number(int, 0), metavar="I", help="the number of this one, from 0")
    several.add_argument(
        "--peer-timeout",
        type=number(float, 1),
        default=100.0,
        metavar="S",
        help="seconds to wait for the others, and for a sign of life of them later (default: %(default)g)",
    )


def _train(options: argparse.Namespace) -> int:
    from rmpe_jax.train.distributed import is_main, join

    where = (options.coordinator, options.process_count, options.process)
    if options.distributed:
        join(*where, timeout=options.peer_timeout)
    elif where != (None, None, None):
        raise RmpeError("--coordinator, --process-count and --process are for --distributed")
    # What follows makes arrays, which only a process that has joined may do.
    from rmpe_jax.train.dry_run import dry_run
    from rmpe_jax.train.loop import train

    experiment = read_experiment(Path(options.experiment), options.assignments)
    if options.dry_run:
        found = dry_run(experiment, workers=options.workers, mapping=options.mapping, report=complain)
        if is_main():
            print(found.as_text())
        return 0
    weights = train(
        experiment,
        options.out or Path("runs") / experiment.name,
        workers=options.workers,
        processes=options.processes,
        memory=options.memory,
        on_device=options.on_device,
        mapping=options.mapping,
    )
    if is_main():
        print(f"weights: {weights}")
    return 0


def read_experiment(path: Path, assignments: Sequence[str]) -> Any:
    """What a file defines as ``experiment``, with settings changed."""
    from rmpe_jax.config import Experiment, override
    from rmpe_jax.data.files import DataError

    if not path.is_file():
        raise DataError(f"{path}: no such experiment file")
    experiment = runpy.run_path(str(path)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise DataError(f"{path}: defines no `experiment` of type rmpe_jax.config.Experiment")
    return override(experiment, assignments)
