"""Checkpoints by orbax, verified: shape, dtype and crc32 of every leaf are stored and compared on restore.

The state is saved as host NumPy, so that any number of devices can restore it. Orbax alone restores a flipped byte
silently; here such a checkpoint is named and the one before it is used.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rmpe_jax.config import ConfigError, Experiment, differences, from_json, to_json
from rmpe_jax.errors import RmpeError
from rmpe_jax.train.state import TrainState


class CheckpointError(RmpeError):
    """No usable checkpoint where one was asked for, or one that belongs to another configuration."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The highest validation score of a run so far, and after how many steps."""

    score: float
    step: int


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds. The position in the data, the random keys and the schedule follow from the step."""

    state: TrainState
    best: Best | None


class Checkpoints:
    """The newest checkpoints of one run, in one folder; every process of a run opens it and calls the same."""

    def __init__(self, folder: str | Path, *, keep: int = 2):
        """Opens or makes ``folder``; ``keep`` is how many of the newest checkpoints stay."""
        self.folder = Path(folder).resolve()
        # Where several processes wait for each other they tell two folders that save one step apart by this name only.
        several = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, multiprocessing_options=several
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._writing: int | None = None

    def save(self, state: TrainState, experiment: Experiment, best: Best | None = None) -> None:
        """Copies the state to the host and returns; it is written under its step while the run goes on.

        Raises:
            CheckpointError: the checkpoint before this one could not be written, or this step is there already.
        """
        self.wait()
        step, tree = int(state.step), _as_numpy_tree(state)
        content = {"experiment": to_json(experiment), "best": best and dataclasses.asdict(best)}
        meta = {**content, "content": _crc(content), "leaves": _describe(tree)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self._writing = step
        with self._told():
            saved = self._manager.save(step, args=arguments)
        if not saved:
            raise CheckpointError(f"{self.folder} already holds step {step} or a later one")

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Returns when what was saved is complete on disk.

        Raises:
            CheckpointError: it could not be written, for lack of space for example; those before it stay.
        """
        with self._told():
            self._manager.wait_until_finished()
        self._writing = None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        # Orbax and tensorstore report what went wrong in their threads through many types of exceptions.
        try:
            yield
        except Exception as error:
            what = f"step {self._writing} could not be saved, the checkpoints before it stay"
            raise CheckpointError(f"{self.folder}: {what}: {_line(error)}") from error

    def restore(self, like: TrainState, experiment: Experiment, *, report: Callable[[str], None]) -> Saved | None:
        """The newest sound checkpoint, or None where the folder holds none at all.

        Args:
            like: a state of the same structure, such as the initial one.
            experiment: must agree with the stored one in everything but the paths of the data and how often the run
                logs, evaluates and saves.
            report: is told of each damaged checkpoint that is passed over.

        Raises:
            CheckpointError: checkpoints exist but none is sound, or they belong to another configuration.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                saved = self._restore_step(step, like, experiment)
            except _Damaged as error:
                report(f"checkpoint {step} in {self.folder} is damaged and passed over: {error}")
            else:
                self.forget_after(step)
                return saved
            # Orbax's tasks of the other arrays end here, and not later where their errors would be printed.
            gc.collect()
        if steps:
            raise CheckpointError(f"no sound checkpoint in {self.folder}")
        return None

    def forget_after(self, step: int) -> None:
        """Deletes what is later than a step: damaged, or saved by a run that is taken up again before it.

        Orbax refuses to save at or before its latest step.
        """
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _restore_step(self, step: int, like: TrainState, experiment: Experiment) -> Saved:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        content = {name: meta.get(name) for name in ("experiment", "best")}
        if meta.get("content") != _crc(content):
            raise _Damaged("its description does not match its checksum")
        _check_configuration(meta["experiment"], experiment)
        target = _as_numpy_tree(like)
        tree = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        restored = _describe(tree)
        for name, description in restored.items():
            if meta["leaves"].get(name) != description:
                raise _Damaged(f"{name} does not match its checksum")
        state = jax.tree_util.tree_map_with_path(
            lambda path, _: jax.numpy.asarray(tree[jax.tree_util.keystr(path)]), like
        )
        return Saved(state, meta["best"] and Best(**meta["best"]))

    def _read(self, step: int, **items: Any) -> Any:
        # Orbax reports damage through many exception types (ValueError, FileNotFoundError, KeyError, tensorstore's
        # own): whatever it raises here means that this step cannot be read.
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise _Damaged(_line(error)) from error

    def __enter__(self) -> "Checkpoints":
        with contextlib.ExitStack() as opened:
            opened.enter_context(_quiet())
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is being written and releases the folder."""
        with self._opened:
            failed = error[0] is not None
            try:
                if not failed:
                    self.wait()
            except CheckpointError:
                failed = True
                raise
            finally:
                # Orbax waits here too, and what it raises then would hide the first error.
                with contextlib.suppress(Exception) if failed else contextlib.nullcontext():
                    self._manager.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what orbax and tensorstore print, with tracebacks, about errors that are raised here all the same."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def keep_task(record: logging.LogRecord) -> bool:
        # Of the arrays that orbax reads side by side the first error is raised; asyncio prints the others.
        return not record.getMessage().startswith("Task exception was never retrieved")

    def tell(raised: Any) -> None:
        # Orbax closes its event loop at the first error; tensorstore still reports the other arrays to it.
        if str(raised.exc_value) != "Event loop is closed":
            before(raised)

    absl, asyncio, before = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook
    absl.addFilter(keep)
    asyncio.addFilter(keep_task)
    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = before
        asyncio.removeFilter(keep_task)
        absl.removeFilter(keep)


class _Damaged(Exception):
    pass


def _check_configuration(text: str, experiment: Experiment) -> None:
    try:
        stored = from_json(Experiment, text)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoints belong to another version of the package: {error}") from None
    # How often a run logs, evaluates and saves may change, and so may the place of the data.
    data = stored.data.with_folders_of(experiment.data)
    run = dataclasses.replace(experiment.run, seed=stored.run.seed)
    found = differences(dataclasses.replace(stored, data=data, run=run), experiment)
    if found:
        raise CheckpointError(f"the checkpoints belong to another configuration: {'; '.join(found)}")


def _as_numpy_tree(state: TrainState) -> dict[str, np.ndarray]:
    # Flat names: orbax then stores plain dictionaries, whatever containers optax uses.
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(state)[0], strict=True)
    return dict(zip(map(jax.tree_util.keystr, paths), map(np.asarray, jax.device_get(leaves)), strict=True))


def _describe(tree: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    # zlib releases Python's lock.
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda leaf: zlib.crc32(leaf.tobytes()), tree.values())
        return {
            name: [list(leaf.shape), str(leaf.dtype), found]
            for (name, leaf), found in zip(tree.items(), sums, strict=True)
        }


def _crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
