"""Checkpoints by orbax, verified: shape, dtype and crc32 of every leaf are stored and compared on restore.

The state is saved as host NumPy, so that any number of devices can restore it. Orbax alone restores a flipped byte
silently; here such a checkpoint is named and the one before it is used.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import logging
import re
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rmpe_jax.config import FOLDERS, ConfigError, Experiment, differences, from_json, to_json
from rmpe_jax.errors import RmpeError
from rmpe_jax.train.distributed import is_main, of_all
from rmpe_jax.train.state import TrainState

# What a description holds besides the checksums of the arrays.
_CONTENT = ("experiment", "best", "people", "due")
# Seconds for which the threads of a failed save are waited for.
_PATIENCE = 10.0
# Errors of the system that damage explains: a file is missing, or is looked for under a damaged name.
_OF_NAMES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class CheckpointError(RmpeError):
    """A checkpoint that cannot be written or read, none that is usable, or one that belongs to another run."""


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
    due: bool = False  # whether the validation after its step is still to be done


class Checkpoints:
    """The newest checkpoints of one run, in one folder; every process of a run opens it and calls the same."""

    def __init__(self, folder: str | Path, *, keep: int = 2, people: int | None = None):
        """Opens or makes ``folder``.

        Args:
            folder: of these checkpoints alone.
            keep: how many of the newest stay.
            people: how many there are to train on; a checkpoint of a run with another number is refused. None: any.

        Raises:
            CheckpointError: nothing can be written there.
        """
        self.folder, self._keep, self._people = Path(folder).resolve(), keep, people
        _check_folder(self.folder)
        # Where several processes wait for each other they tell two folders that save one step apart by this name only.
        several = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name)
        # Orbax's threads would wait five minutes for a folder that cannot be made: it is made before they start.
        ahead = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, async_options=ahead, multiprocessing_options=several
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._writing: int | None = None

    def save(self, state: TrainState, experiment: Experiment, best: Best | None = None, *, due: bool = False) -> None:
        """Copies the state to the host and returns; it is written under its step while the run goes on.

        Args:
            state: after its step.
            experiment: of the run.
            best: the highest score so far.
            due: the validation after this step was put off; see ``Saved``.

        Raises:
            CheckpointError: the checkpoint before this one could not be written, or this step is there already.
        """
        self.wait()
        step, tree = int(state.step), _as_numpy_tree(state)
        values = (to_json(experiment), best and dataclasses.asdict(best), self._people, due)
        content = dict(zip(_CONTENT, values, strict=True))
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

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of this step, sound or not."""
        return step in self._manager.all_steps()

    def bytes_needed(self, state: TrainState) -> int:
        """What the checkpoints will take on disk beyond those that are there, when there are as many as ever.

        That is one more than stay: the oldest goes when the newest is complete.
        """
        more = max(self._keep + 1 - len(self._manager.all_steps()), 1)
        return more * sum(leaf.nbytes for leaf in jax.tree.leaves(state))

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
            CheckpointError: checkpoints exist but none is sound, one cannot be read for another reason than damage, or
                they belong to another configuration or to other data. Nothing was moved or deleted then.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            found = self._tried(step, like, experiment)
            if isinstance(found, CheckpointError):
                raise found
            if isinstance(found, Saved):
                for damaged in steps[:place]:
                    self._put_aside(damaged)
                return found
            report(f"checkpoint {step} in {self.folder} is damaged and passed over: {found}")
            del found
            # Orbax's tasks of the other arrays end here, and not later where their errors would be printed.
            gc.collect()
        if steps:
            raise CheckpointError(f"no sound checkpoint in {self.folder}")
        return None

    def _tried(self, step: int, like: TrainState, experiment: Experiment) -> "Saved | _Damaged | CheckpointError":
        """What a step turns out to be, in all processes alike: what one of them cannot read none of them takes."""
        try:
            found = self._restore_step(step, like, experiment)
        except (_Damaged, CheckpointError) as error:
            found = error
        kinds = of_all([Saved, _Damaged, CheckpointError].index(type(found)))
        if len(set(kinds)) > 1:
            said = ", ".join(("sound", "damaged", "refused")[kind] for kind in kinds)
            own = "" if isinstance(found, Saved) else f"; here: {found}"
            return CheckpointError(f"{self.folder}: step {step} is not the same for all processes ({said}){own}")
        return found

    def _put_aside(self, step: int) -> None:
        """Renames a checkpoint to what orbax does not take for one, and which it therefore neither counts nor deletes.

        Orbax refuses to save at or before its latest step.
        """
        names = (f"damaged-{step}" + (f"-{number}" if number else "") for number in count())
        if is_main():
            (self.folder / str(step)).rename(next(new for new in map(self.folder.joinpath, names) if not new.exists()))
        of_all(step)
        self._manager.reload()

    def forget_after(self, step: int) -> None:
        """Deletes what is later than a step, by a run that is taken up again there and will save the same again.

        Orbax refuses to save at or before its latest step.
        """
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _restore_step(self, step: int, like: TrainState, experiment: Experiment) -> Saved:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        content = {name: value for name, value in meta.items() if name not in ("content", "leaves")}
        if meta.get("content") != _crc(content):
            raise _Damaged("its description does not match its checksum")
        if set(content) != set(_CONTENT):
            raise CheckpointError(f"{self.folder}: the checkpoints belong to another version of the package")
        _check_configuration(meta["experiment"], experiment)
        if None not in (self._people, meta["people"]) and self._people != meta["people"]:
            raise CheckpointError(
                f"{self.folder}: the checkpoints belong to a run on other data: {meta['people']} people against "
                f"{self._people}"
            )
        target = _as_numpy_tree(like)
        tree = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        for name, description in _describe(tree).items():
            if meta["leaves"].get(name) != description:
                raise _Damaged(f"{name} does not match its checksum")
        state = jax.tree_util.tree_map_with_path(
            lambda path, _: jax.numpy.asarray(tree[jax.tree_util.keystr(path)]), like
        )
        return Saved(state, meta["best"] and Best(**meta["best"]), meta["due"])

    def _read(self, step: int, **items: Any) -> Any:
        # Orbax reports damage through many exception types (ValueError, FileNotFoundError, KeyError, tensorstore's
        # own): whatever it raises here means that this step is damaged, unless the system says that it did not read.
        try:
            with self._reader() as reader:
                return reader.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            if not _not_read(error):
                raise _Damaged(_line(error)) from error
            what = f"step {step} could not be read, and no checkpoint was touched"
            raise CheckpointError(f"{self.folder}: {what}: {_line(error)}") from error

    @contextlib.contextmanager
    def _reader(self) -> Iterator[ocp.CheckpointManager]:
        """Reads in each process by itself: orbax would have one that fails waited for by those that do not."""
        if jax.process_count() == 1:
            yield self._manager
            return
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"{self.folder.name}_{own}"
        )
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
        with ocp.CheckpointManager(self.folder, options=options) as manager:
            yield manager

    def __enter__(self) -> "Checkpoints":
        with contextlib.ExitStack() as opened:
            opened.enter_context(_quiet())
            self._opened = opened.pop_all()
        self._hook, sys.unraisablehook = sys.unraisablehook, _without_late_arrays(sys.unraisablehook)
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
                if failed:
                    _await_threads()
                else:
                    sys.unraisablehook = self._hook


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what orbax and tensorstore print, with tracebacks, about errors that are raised here all the same."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def keep_task(record: logging.LogRecord) -> bool:
        # Of the arrays that orbax reads side by side the first error is raised; asyncio prints the others.
        return not record.getMessage().startswith("Task exception was never retrieved")

    absl, asyncio = logging.getLogger("absl"), logging.getLogger("asyncio")
    absl.addFilter(keep)
    asyncio.addFilter(keep_task)
    try:
        yield
    finally:
        asyncio.removeFilter(keep_task)
        absl.removeFilter(keep)


def _without_late_arrays(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Python's hook for errors that nobody can catch, without what tensorstore tells an event loop that is closed.

    Orbax closes its loop at the first error. Of the other arrays tensorstore's threads report whenever they are done
    with them: after a failure the hook stays.
    """

    def tell(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    return tell


def _await_threads() -> None:
    """Lets the threads of a save that failed come to their end, whose errors would be printed later."""
    deadline = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            with contextlib.suppress(Exception):  # theirs, one of which was raised
                thread.join(max(deadline - time.monotonic(), 0))


class _Damaged(Exception):
    pass


def _not_read(error: BaseException | None) -> bool:
    """Whether the system could not read (an input or output error, no permission, too many files, no memory)."""
    while error is not None:
        # Tensorstore gives the system's number in its text.
        told = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(told[1]) if told else error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or number not in _OF_NAMES:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_folder(folder: Path) -> None:
    """Makes a folder, and refuses one where no file can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise CheckpointError(f"{folder}: checkpoints cannot be written there: {reason}") from None


def check_space(folder: Path, needed: int) -> None:
    """Raises CheckpointError where the disk of a folder has fewer bytes free than will be needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: no space left for the checkpoints: they need {needed:,} bytes, of which {free:,} are free"
        )


def _check_configuration(text: str, experiment: Experiment) -> None:
    try:
        stored = from_json(Experiment, text)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoints belong to another version of the package: {error}") from None
    # How often a run logs, evaluates and saves may change, and so may the place of the data, but not which sets it is.
    both = [name for name in FOLDERS if getattr(stored.data, name) and getattr(experiment.data, name)]
    data = dataclasses.replace(stored.data, **{name: getattr(experiment.data, name) for name in both})
    run = dataclasses.replace(experiment.run, seed=stored.run.seed)
    found = differences(dataclasses.replace(stored, data=data, run=run), experiment)
    if found:
        raise CheckpointError(f"the checkpoints belong to another configuration: {'; '.join(found)}")


def _as_numpy_tree(state: TrainState) -> dict[str, np.ndarray]:
    # Flat names: orbax then stores plain dictionaries, whatever containers optax uses.
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(state)[0], strict=True)
    return dict(zip(map(jax.tree_util.keystr, paths), map(np.asarray, jax.device_get(leaves)), strict=True))


def _describe(tree: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    # zlib releases Python's lock, and reads the arrays where they are.
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda leaf: zlib.crc32(leaf.reshape(-1).view(np.uint8)), tree.values())
        return {
            name: [list(leaf.shape), str(leaf.dtype), found]
            for (name, leaf), found in zip(tree.items(), sums, strict=True)
        }


def _crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
