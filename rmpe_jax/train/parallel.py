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
    devices = list(devices or jax.local_devices())
    mapped = jax.pmap(
        partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
    )

    everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())

    def run(state: TrainState, batch: PoseBatch, key: Array):
        # A state that is already on every device stays as it is; the first one is copied there, and so the step is
        # compiled once.
        state, key = jax.device_put((state, key), everywhere)
        return mapped(state, split_batch(batch, len(devices)), key)

    return run


def split_batch(batch: Any, parts: int) -> Any:
    """Splits the first axis of every leaf into (parts, size / parts)."""

    def split(leaf):
        if leaf.shape[0] % parts:
            raise ValueError(f"a batch of {leaf.shape[0]} cannot be split evenly over {parts} devices")
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    return jax.tree.map(split, batch)
