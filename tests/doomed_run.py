"""Lives of a training run, each of which may have a fixed end: killed, told to stop, or out of disk space.

One process imports everything once and then forks each life, so that a life starts in a second or two. Tests ask it
for lives through ``Lives``; it reads a line of JSON, a list of lives that go on side by side, and answers with a line
when all are over.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np

# What a run imports late is imported here, before the first fork.
import tensorboardX.proto.event_pb2
import tensorboardX.summary  # noqa: F401
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from rmpe_jax import cli
from rmpe_jax.data import pipeline
from rmpe_jax.data.pipeline import empty_canvases, evaluation_batches, pose_batch
from rmpe_jax.train import dry_run, loop, validation  # noqa: F401
from rmpe_jax.train.parallel import ParallelStep
from rmpe_jax.train.plan import Plan

# A life that hangs ends by SIGALRM, which no test takes for success.
_LONGEST_LIFE = 300
# For the deed "limit", bytes: less than a checkpoint's arrays take.
_LARGEST_FILE = 20_000
_FOLDERS = {"saving": "checkpoints", "best": "best"}
_TEMPORARY = ".orbax-checkpoint-tmp"


# What tests ask for


@dataclasses.dataclass(frozen=True)
class Doom:
    """What happens to a life: at the ``count``-th time at a place, ``delay`` seconds after it has been reached."""

    place: str  # start, restoring, reading, step, saving, best or weights
    count: int = 1
    delay: float = 0.0
    deed: str = "SIGKILL"  # or another signal; or halt, ask, limit, fill or poison, see ``_strike``


@dataclasses.dataclass(frozen=True)
class Order:
    """A life that is asked for."""

    arguments: list[str]  # of the `rmpe` command
    output: str  # file for what the command prints, on both streams
    notes: str  # file for what the life notes down, a JSON object a line
    doom: Doom | None = None
    devices: int = 1
    programs: str | None = None  # file of what was compiled before; without it a life compiles as every run does
    keep: bool = False  # write that file, instead of a run


@dataclasses.dataclass(frozen=True)
class Life:
    """A life that is over."""

    status: int  # of the process, negative where a signal ended it
    ended: float  # when, as time.time() gives it
    output: str
    notes: list[dict[str, Any]]

    @property
    def errors(self) -> list[str]:
        """The lines with which the command said what went wrong."""
        return [line for line in self.output.splitlines() if line.startswith("rmpe: ")]

    def noted(self, name: str) -> Any:
        """What was noted under a name; None where nothing was."""
        return next((note[name] for note in self.notes if name in note), None)


class Lives:
    """Starts lives; used as a context manager.

    Args:
        folder: for what they leave behind, and for the programs that JAX keeps from one to the next.
    """

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0
        self.programs = folder / "programs"

    def __enter__(self) -> "Lives":
        environment = {
            **os.environ,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error: object) -> None:
        # It ends with its input.
        self._process.communicate()

    def live(self, *wanted: dict[str, Any]) -> list[Life]:
        """Some lives side by side: for each the fields of an ``Order``, without its files."""
        orders = []
        for fields in wanted:
            self._count += 1
            files = {name: str(self._folder / f"{self._count}.{name}") for name in ("output", "notes")}
            orders.append(Order(**files, **fields))
        self._process.stdin.write(json.dumps([dataclasses.asdict(order) for order in orders]) + "\n")
        self._process.stdin.flush()
        ends = json.loads(self._process.stdout.readline())
        return [
            Life(*end, Path(order.output).read_text(errors="replace"), _json_lines(order.notes))
            for end, order in zip(ends, orders, strict=True)
        ]


def _json_lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# Their process


def main() -> None:
    """Lives until the input ends."""
    for line in sys.stdin:
        children = {}
        for place, fields in enumerate(json.loads(line)):
            child = os.fork()
            if child == 0:
                doom = fields.pop("doom")
                _live(Order(**fields, doom=doom and Doom(**doom)))
            children[child] = place
        ends = {}
        for _ in children:
            child, status = os.wait()
            ends[children[child]] = [os.waitstatus_to_exitcode(status), time.time()]
        print(json.dumps([ends[place] for place in sorted(ends)]), flush=True)


def _live(order: Order) -> None:
    """One life, in a process of its own: never returns."""
    signal.alarm(_LONGEST_LIFE)
    with open(order.output, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    status = 70
    try:
        jax.config.update("jax_num_cpu_devices", order.devices)
        note = _Notes(order.notes)
        note(begun=True)
        _watch_start(note)
        if order.keep:
            _keep_programs(order.programs)
        elif order.programs:
            _use_programs(pickle.loads(Path(order.programs).read_bytes()))
        if order.doom:
            _prepare(order.doom, note)
        status = cli.main(order.arguments)
    except _Kept:
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Notes:
    """Lines that are there whatever happens to the process next."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, **content: Any) -> None:
        os.write(self._file, json.dumps({**content, "time": time.time()}).encode() + b"\n")


def _wrap(owner: Any, name: str, before: Any) -> None:
    """Has ``before`` called with the same arguments, ahead of a function."""
    function = getattr(owner, name)

    def wrapped(*arguments, **options):
        before(*arguments, **options)
        return function(*arguments, **options)

    setattr(owner, name, wrapped)


def _watch_start(note: _Notes) -> None:
    """Notes the step from which a life goes on, and takes every score for the best so far, so that it is saved."""
    restore, examine = loop.Checkpoints.restore, loop._Watch.examine

    def restored(self, *arguments, **options):
        saved = restore(self, *arguments, **options)
        note(first=0 if saved is None else int(saved.state.step))
        return saved

    loop.Checkpoints.restore = restored
    # The log has the true score; what is compared with the best rises with the steps.
    loop._Watch.examine = lambda self, done, *rest: (examine(self, done, *rest) or 0.0) + done


# Where a life ends


def _prepare(doom: Doom, note: _Notes) -> None:
    seen, opened = 0, []

    def reached(*arguments: Any, **options: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == doom.count:
            _strike(doom, note, arguments, opened)

    def saving(checkpoints: Any, *rest: Any, **options: Any) -> None:
        if checkpoints.folder.name == _FOLDERS[doom.place]:
            reached(checkpoints)

    _wrap(loop.Checkpoints, "__init__", lambda self, *arguments, **options: opened.append(self))
    places = {
        "restoring": (loop.Checkpoints, "restore", reached),
        "reading": (pipeline, "cut_items", reached),
        "step": (ParallelStep, "__call__", reached),
        "saving": (loop.Checkpoints, "save", saving),
        "best": (loop.Checkpoints, "save", saving),
        "weights": (loop, "save_weights", reached),
    }
    if doom.place == "start":
        reached()
    else:
        _wrap(*places[doom.place])


def _strike(doom: Doom, note: _Notes, arguments: Any, opened: list[Any]) -> None:
    if doom.deed in ("halt", "limit", "fill"):
        # What was saved before is complete.
        for checkpoints in opened:
            checkpoints.wait()
    if doom.deed == "halt":
        os.kill(os.getpid(), signal.SIGKILL)
    elif doom.deed == "ask":
        # In the run's own thread: it is asked to stop at this step and no later one.
        os.kill(os.getpid(), signal.SIGTERM)
    elif doom.deed == "limit":
        # From here on no file can grow beyond a size that a log has not.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, resource.RLIM_INFINITY))
    elif doom.deed == "fill":
        _fill(opened[0].folder.parent / "ballast")
    elif doom.deed == "poison":
        _poison(arguments[1])
    elif doom.place == "weights":
        # They are written in no time, so nothing may go on beside.
        _strike_later(doom, note, [])
    else:
        folders = [checkpoints.folder for checkpoints in opened]
        what = _strike_within_save if doom.place in _FOLDERS else _strike_later
        threading.Thread(target=what, args=(doom, note, folders), daemon=True).start()


def _fill(path: Path) -> None:
    """Takes what room there is on a small file system."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def _strike_within_save(doom: Doom, note: _Notes, folders: list[Path]) -> None:
    # Orbax writes into a temporary folder that it renames when it is complete.
    name = _FOLDERS[doom.place]
    while not any(path.startswith(name) for path in _unfinished(folders)):
        pass
    _strike_later(doom, note, folders)


def _strike_later(doom: Doom, note: _Notes, folders: list[Path]) -> None:
    time.sleep(doom.delay)
    note(struck=doom.place, unfinished=_unfinished(folders))
    os.kill(os.getpid(), signal.Signals[doom.deed])


def _unfinished(folders: list[Path]) -> list[str]:
    """Checkpoints that are being written: folder and step."""
    names = [f"{folder.name}/{name}" for folder in folders for name in _names(folder)]
    return [name.removesuffix(_TEMPORARY) for name in names if name.endswith(_TEMPORARY)]


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _poison(state: Any) -> None:
    """Makes the first parameter of a state NaN, in place."""
    params = state.variables["params"]
    while isinstance(params[min(params)], dict):
        params = params[min(params)]
    params[min(params)] = params[min(params)] * np.nan


# What is compiled


class _Kept(Exception):
    pass


def _keep_programs(path: str) -> None:
    """Has the next run compile its step and its predictions, write them with its first state to ``path``, and end."""
    make_batches = loop._batches

    def keep(plan, loader, first, **options):
        batch, first_state = next(make_batches(plan, loader, first, **options)), plan.first_state()
        states = jax.tree.map(np.asarray, first_state)
        step = plan.step.lower(first_state, batch, plan.key).compile()
        judge = loop.Validation(plan.experiment, loader, workers=1, report=print)
        people = next(evaluation_batches(judge.people, judge._batch))
        predict = judge._predict.lower(jax.tree.map(jax.numpy.asarray, states.average), people).compile()
        metrics = sorted(jax.tree.unflatten(serialize(step)[2], range(step.out_tree.num_leaves))[1])
        found = {"state": states, "metrics": metrics, "step": serialize(step)[0], "predict": serialize(predict)[0]}
        Path(path).write_bytes(pickle.dumps(found))
        raise _Kept

    loop._batches = keep


def _use_programs(kept: dict[str, Any]) -> None:
    """Takes the pure functions of a run's settings, and its first state, as another life left them."""
    plan_run, begin = loop.plan_run, validation.Validation.__init__

    class Remembered(Plan):
        def first_state(self):
            return jax.tree.map(jax.numpy.asarray, kept["state"])

    def remembered_plan(*arguments, **options):
        plan = plan_run(*arguments, **options)
        fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
        people = pose_batch(empty_canvases(plan.experiment.optim.batch, plan.experiment.data.canvas, 14))
        taken = jax.tree.structure((plan.step.place(kept["state"], people, plan.key), {}))
        given = jax.tree.structure((kept["state"], dict.fromkeys(kept["metrics"], 0)))
        fields["step"] = ParallelStep(plan.step.place, deserialize_and_load(kept["step"], taken, given))
        return Remembered(**fields)

    def begun(self, experiment, *arguments, **options):
        begin(self, experiment, *arguments, **options)
        people = next(evaluation_batches(self.people, self._batch))
        taken = jax.tree.structure(((kept["state"].average, people), {}))
        self._predict = deserialize_and_load(kept["predict"], taken, jax.tree.structure(0))

    loop.plan_run, validation.Validation.__init__ = remembered_plan, begun


if __name__ == "__main__":
    main()
