"""The state of a training run: arrays only."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step reads and returns; every leaf is an array."""

    step: Array  # int32, steps done
    variables: dict[str, Any]  # params and batch_stats
    average: dict[str, Any]  # their running average: what is evaluated and shipped
    optimizer: Any  # optax's state
    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)  # the parallel SPPE's variables; never change
