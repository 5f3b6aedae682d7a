"""How a pure step is mapped over devices: the only file that knows pmap."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rmpe_jax.records import PoseBatch
from rmpe_jax.train.state import TrainState

AXIS = "devices"


def pmap_step(
    step: Callable[..., tuple[TrainState, dict[str, Array]]], devices: Sequence[Any] | None = None
) -> Callable[[TrainState, PoseBatch, Array], tuple[TrainState, dict[str, Array]]]:
    """Maps ``step(state, batch, key, axis_name=...)`` over devices.

    The state goes in and comes out as ordinary, replicated arrays; the batch is split along
    its first axis, which must be divisible by the number of devices.
    """
    # Of several processes each hands over its own devices' part, and the axis goes over those of all.
    mapped = jax.pmap(
        partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
    )
    own = list(devices or jax.local_devices())
    everywhere = NamedSharding(Mesh(np.array(own), (AXIS,)), PartitionSpec())

    def run(state: TrainState, batch: PoseBatch, key: Array):
        # A state that is already on every device stays as it is; the first one is copied there, and so the step is
        # compiled once.
        state, key = jax.device_put((state, key), everywhere)
        return mapped(state, split_batch(batch, len(own)), key)

    return run


def sharded_step(
    step: Callable[..., tuple[TrainState, dict[str, Array]]], devices: Sequence[Any] | None = None
) -> Callable[[TrainState, PoseBatch, Array], tuple[TrainState, dict[str, Array]]]:
    """The same as ``pmap_step``, by ``jit`` over a mesh of the devices of all processes; the state is donated.

    The step is that of one device: XLA splits it and adds the sums over devices by itself. The state and the metrics
    are whole on every device; the batch, this process's share of the global one, is split along its first axis.
    """
    mesh = Mesh(np.array(list(devices or jax.devices())), (AXIS,))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    @partial(jax.jit, out_shardings=everywhere, donate_argnums=0, static_argnums=3)
    def compiled(state, batch, words, kind):
        return step(state, batch, jax.random.wrap_key_data(words, impl=kind))

    def place(tree: Any, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        put = jax.make_array_from_process_local_data
        return jax.tree.map(lambda leaf: leaf if _is_placed(leaf, sharding) else put(sharding, np.asarray(leaf)), tree)

    def run(state: TrainState, batch: PoseBatch, key: Array):
        if len(batch.valid) % (mesh.size // jax.process_count()):
            raise ValueError(f"a batch of {len(batch.valid)} cannot be split evenly over {mesh.size} devices")
        # A key is an array of one process; its words can be placed everywhere.
        words, kind = np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
        return compiled(place(state, everywhere), place(batch, split), place(words, everywhere), kind)

    return run


def _is_placed(leaf: Any, sharding: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding == sharding


def split_batch(batch: Any, parts: int) -> Any:
    """Splits the first axis of every leaf into (parts, size / parts)."""

    def split(leaf):
        if leaf.shape[0] % parts:
            raise ValueError(f"a batch of {leaf.shape[0]} cannot be split evenly over {parts} devices")
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    return jax.tree.map(split, batch)
