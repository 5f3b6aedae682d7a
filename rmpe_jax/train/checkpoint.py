"""Checkpoints by orbax, verified: shape, dtype and crc32 of every leaf are stored and compared on restore.

The state is saved as host NumPy, so that any number of devices can restore it. Orbax alone restores a flipped byte
silently; here such a checkpoint is named and the one before it is used.
"""

import dataclasses
import zlib
from collections.abc import Callable
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


class Checkpoints:
    """The newest checkpoints of one run, in one folder."""

    def __init__(self, folder: str | Path, *, keep: int = 2):
        """Opens or makes ``folder``; ``keep`` is how many of the newest checkpoints stay."""
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: TrainState, experiment: Experiment) -> None:
        """Writes the state under its step; returns when it is complete on disk."""
        tree = _as_numpy_tree(state)
        meta = {"experiment": to_json(experiment), "leaves": _describe(tree)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        saved = self._manager.save(int(state.step), args=arguments)
        self._manager.wait_until_finished()
        if not saved:
            raise CheckpointError(f"{self.folder} already holds step {int(state.step)} or a later one")

    def restore(self, like: TrainState, experiment: Experiment, *, report: Callable[[str], None]) -> TrainState | None:
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
                state = self._restore_step(step, like, experiment)
            except _Damaged as error:
                report(f"checkpoint {step} in {self.folder} is damaged and passed over: {error}")
                continue
            # Orbax refuses to save at or before its latest step: what is damaged must go.
            for damaged in steps[: steps.index(step)]:
                self._manager.delete(damaged)
            return state
        if steps:
            raise CheckpointError(f"no sound checkpoint in {self.folder}")
        return None

    def _restore_step(self, step: int, like: TrainState, experiment: Experiment) -> TrainState:
        target = _as_numpy_tree(like)
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        _check_configuration(meta, experiment)
        tree = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        restored = _describe(tree)
        for name, description in meta["leaves"].items():
            if restored.get(name) != description:
                raise _Damaged(f"{name} does not match its checksum")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.numpy.asarray(tree[jax.tree_util.keystr(path)]), like
        )

    def _read(self, step: int, **items: Any) -> Any:
        # Orbax reports damage through many exception types (ValueError, FileNotFoundError, KeyError, tensorstore's
        # own): whatever it raises here means that this step cannot be read.
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise _Damaged(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for pending writes and releases the folder."""
        self._manager.close()


class _Damaged(Exception):
    pass


def _check_configuration(meta: dict[str, Any], experiment: Experiment) -> None:
    try:
        stored = from_json(Experiment, meta["experiment"])
    except (ConfigError, KeyError) as error:
        raise _Damaged(f"its configuration cannot be read: {error}") from None
    # How often a run logs, evaluates and saves may change, and so may the place of the data.
    data = stored.data.with_folders_of(experiment.data)
    run = dataclasses.replace(experiment.run, seed=stored.run.seed)
    found = differences(dataclasses.replace(stored, data=data, run=run), experiment)
    if found:
        raise CheckpointError(f"the checkpoints belong to another configuration: {'; '.join(found)}")


def _as_numpy_tree(state: TrainState) -> dict[str, np.ndarray]:
    # Flat names: orbax then stores plain dictionaries, whatever containers optax uses.
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def _describe(tree: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    return {name: [list(leaf.shape), str(leaf.dtype), zlib.crc32(leaf.tobytes())] for name, leaf in tree.items()}
