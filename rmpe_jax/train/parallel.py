"""How a pure step is mapped over devices: the only file that knows pmap."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rmpe_jax.records import PoseBatch, SceneBatch
from rmpe_jax.train.state import TrainState

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class ParallelStep:
    """A step mapped over devices: state, batch, key -> state, metrics.

    State, key and metrics are whole on every device; the batch, this process's share of the global one, is split along
    its first axis, which must be divisible by the number of its devices. The state that is given is freed, unless it
    was not yet on the devices.
    """

    place: Callable[..., tuple[Any, ...]]  # state, batch, key -> the arguments of ``mapped``, where it takes them
    mapped: Any  # compiled when it is first called

    def __call__(
        self, state: TrainState, batch: PoseBatch | SceneBatch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """Takes one step."""
        return self.mapped(*self.place(state, batch, key))

    def lower(self, state: TrainState, batch: PoseBatch | SceneBatch, key: Array) -> Any:
        """The step as a program for these arguments (``jax.stages.Lowered``), not yet compiled."""
        return self.mapped.lower(*self.place(state, batch, key))


def pmap_step(
    step: Callable[..., tuple[TrainState, dict[str, Array]]], devices: Sequence[Any] | None = None
) -> ParallelStep:
    """Maps ``step(state, batch, key, axis_name=...)`` over devices by ``pmap``, over those of all processes."""
    # Of several processes each hands over its own devices' part, and the axis goes over those of all.
    mapped = jax.pmap(
        partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    own = list(devices or jax.local_devices())
    everywhere = NamedSharding(Mesh(np.array(own), (AXIS,)), PartitionSpec())

    def place(state: TrainState, batch: PoseBatch | SceneBatch, key: Array):
        # The key goes where the state is, so that the step is compiled once.
        return _placed(state, everywhere), split_batch(batch, len(own)), jax.device_put(key, everywhere)

    return ParallelStep(place, mapped)


def sharded_step(
    step: Callable[..., tuple[TrainState, dict[str, Array]]], devices: Sequence[Any] | None = None
) -> ParallelStep:
    """The same as ``pmap_step``, by ``jit`` over a mesh of the devices of all processes.

    The step is that of one device: XLA splits it and adds the sums over devices by itself. The key is of JAX's default
    kind.
    """
    mesh = Mesh(np.array(list(devices or jax.devices())), (AXIS,))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    @partial(jax.jit, out_shardings=everywhere, donate_argnums=0)
    def mapped(state, batch, words):
        return step(state, batch, jax.random.wrap_key_data(words))

    def put(tree: Any, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda leaf: _of_all_processes(leaf, sharding), tree)

    def place(state: TrainState, batch: PoseBatch | SceneBatch, key: Array):
        check_split(len(batch.valid), mesh.size // jax.process_count())
        # A key is an array of one process; its words can be placed everywhere.
        words = np.asarray(jax.random.key_data(key))
        whole = _placed(state, everywhere) if jax.process_count() == 1 else put(state, everywhere)
        return whole, put(batch, split), put(words, everywhere)

    return ParallelStep(place, mapped)


def _placed(state: TrainState, sharding: NamedSharding) -> TrainState:
    """A state whole on every device: as it is where a step has put it, else copied, so that the step frees the copy."""
    if isinstance(state.step, jax.Array) and state.step.sharding.is_equivalent_to(sharding, 0):
        return state
    # By way of the host: a copy to several devices would share the memory of the one that has it.
    return jax.tree.map(lambda leaf: jax.device_put(np.array(leaf), sharding), state)


def _of_all_processes(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """This process's part of an array, or all of one that is whole everywhere, as part of the array of all."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    split = sharding.spec == PartitionSpec(AXIS)
    if split and isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
        # It lies on this process's devices in parts already.
        parts, shape = [shard.data for shard in leaf.addressable_shards], list(leaf.shape)
        shape[0] *= jax.process_count()
        return jax.make_array_from_single_device_arrays(tuple(shape), sharding, parts)
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))


def check_split(size: int, parts: int) -> None:
    """Raises ValueError where a batch cannot be split evenly."""
    if size % parts:
        raise ValueError(f"a batch of {size} cannot be split evenly over {parts} devices")


def split_batch(batch: Any, parts: int) -> Any:
    """Splits the first axis of every leaf into (parts, size / parts)."""

    def split(leaf):
        check_split(leaf.shape[0], parts)
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    return jax.tree.map(split, batch)
