"""The stacked hourglass, RMPE's single-person pose estimator (SPPE): crops in, every stack's heat maps out.

Reference: Newell, Yang and Deng, ECCV 2016, in the layout of RMPE's Torch code (residual after each hourglass, one
residual per place, no bias-free layers). At 256 features, 16 joints: 3,426,448 parameters for one stack, 25,434,112
for eight.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rmpe_jax.config import HourglassConfig
from rmpe_jax.models.hg_stacked import HgStacked
from rmpe_jax.models.layers import Norm, Residual, centred, fill_variables, halved, max_pool, upsample_nearest

Variables = dict[str, Any]
STACKS, HEATMAPS, MERGES = "stacks", "heatmaps", ("merge_features", "merge_heatmaps")


class Hourglass(nn.Module):
    """One hourglass: down ``depth`` times by max pooling, up again, with a residual branch at each resolution."""

    features: int
    depth: int
    residuals: int
    train: bool
    axis_name: str | None
    dtype: str
    looped: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w f"]) -> Float[Array, "b h w f"]:
        """Applies the hourglass; height and width must be divisible by 2**depth."""
        skip, low = x, max_pool(x)
        skip = self._residuals(skip)
        low = self._residuals(low)
        if self.depth > 1:
            settings = (self.features, self.depth - 1, self.residuals, self.train, self.axis_name, self.dtype)
            low = Hourglass(*settings, self.looped)(low)
        else:
            low = self._residuals(low)
        return skip + upsample_nearest(self._residuals(low))

    def _residuals(self, x):
        for _ in range(self.residuals):
            x = Residual(self.features, self.train, self.axis_name, self.dtype, self.looped)(x)
        return x


class Stack(nn.Module):
    """An hourglass, its heat maps, and the features handed to the next stack."""

    config: HourglassConfig
    joints: int
    last: bool
    train: bool
    axis_name: str | None
    looped: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w f"]) -> tuple[Float[Array, "b h w f"], Float[Array, "b h w k"]]:
        """Returns the next stack's input and this stack's maps."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        common = {"train": self.train, "axis_name": self.axis_name, "dtype": config.dtype}
        y = Hourglass(config.features, config.depth, config.residuals, **common, looped=self.looped)(x)
        for _ in range(config.residuals):
            y = Residual(config.features, **common, looped=self.looped)(y)
        y = nn.relu(Norm(**common)(nn.Dense(config.features, dtype=dtype)(y)))
        maps = nn.Dense(self.joints, dtype=dtype, name=HEATMAPS)(y)
        if self.last:
            return x, maps
        merge = partial(nn.Dense, config.features, dtype=dtype)
        features, heatmaps = (merge(name=name)(each) for name, each in zip(MERGES, (y, maps), strict=True))
        return x + features + heatmaps, maps


class StackedHourglass(nn.Module):
    """Stem, then ``config.stacks`` hourglasses."""

    config: HourglassConfig
    joints: int
    train: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "s b h w k"]:
        """Maps of every stack, float32, at a quarter of the input's resolution."""
        config = self.config
        common = {"train": self.train, "axis_name": self.axis_name, "dtype": config.dtype}
        x = halved(centred(images, config), config.features // 4, **common)
        x = Residual(config.features // 2, **common)(x)
        x = max_pool(x)
        x = Residual(config.features // (2 if config.layout == "rmpe" else 1), **common)(x)
        x = Residual(config.features, **common)(x)
        # Prediction compiles quickly as it is.
        if config.scan and self.train and not self.is_initializing():
            return self._scanned(x)
        stack = nn.remat(Stack) if config.remat else Stack
        maps = []
        for number in range(config.stacks):
            last = number == config.stacks - 1
            x, y = stack(config, self.joints, last, self.train, self.axis_name, name=f"stack_{number}")(x)
            maps.append(y.astype(jnp.float32))
        return jnp.stack(maps)

    def _scanned(self, x):
        """Maps of all stacks by one loop over their variables, see ``stack_variables``: XLA compiles one stack."""
        stack = Stack(self.config, self.joints, False, True, self.axis_name, looped=True, parent=None)

        def one(x, variables):
            (x, maps), changed = stack.apply(variables, x, mutable=["batch_stats"])
            return x, (maps.astype(jnp.float32), changed["batch_stats"])

        one = jax.checkpoint(one, prevent_cse=False) if self.config.remat else one
        variables = {kind: self.get_variable(kind, STACKS) for kind in ("params", "batch_stats")}
        _, (maps, statistics) = lax.scan(one, x, variables)
        self.put_variable("batch_stats", STACKS, statistics)
        return maps


def stack_variables(variables: Variables, config: HourglassConfig) -> Variables:
    """Variables as training has them: with ``config.scan`` those of all stacks as one, the stack being the first axis.

    ``stack_0/...`` to ``stack_7/...`` become ``stacks/...``. The last stack, which merges nothing, gets merging layers
    of zeros like the others: their output is not used, so their gradient is zero, and zeros they stay.

    Args:
        variables: one network's, from ``init_hourglass`` or a weight file.
        config: the architecture; without ``scan`` nothing changes.

    Returns:
        NumPy arrays where they were stacked, all else as it was.
    """
    if not config.scan:
        return variables
    return {kind: _stacked(content, _names(config)) for kind, content in variables.items()}


def unstack_variables(variables: Variables, config: HourglassConfig) -> Variables:
    """The opposite of ``stack_variables``: variables as weight files and prediction have them."""
    if not config.scan:
        return variables
    return {kind: _unstacked(content, _names(config)) for kind, content in variables.items()}


def _names(config: HourglassConfig) -> list[str]:
    return [f"stack_{number}" for number in range(config.stacks)]


def _stacked(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """One collection, its stacks as one."""
    *others, last = (content[name] for name in names)
    if HEATMAPS in last:
        joints, features = (last[HEATMAPS]["kernel"].shape[axis] for axis in (1, 0))
        inputs, bias = dict(zip(MERGES, (features, joints), strict=True)), np.zeros(features, np.float32)
        nothing = {
            name: {"kernel": np.zeros((size, features), np.float32), "bias": bias} for name, size in inputs.items()
        }
        last = last | nothing
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *others, last)
    return {name: kept for name, kept in content.items() if name not in names} | {STACKS: together}


def _unstacked(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """One collection, its stacks apart."""
    # On the host: a slice of each leaf by JAX would be as many programs.
    together = jax.tree.map(np.asarray, content[STACKS])
    stacks = {name: jax.tree.map(lambda leaf, n=number: leaf[n], together) for number, name in enumerate(names)}
    stacks[names[-1]] = {name: kept for name, kept in stacks[names[-1]].items() if name not in MERGES}
    return {name: kept for name, kept in content.items() if name != STACKS} | stacks


def _network(config: HourglassConfig, joints: int, *, train: bool = False, axis_name: str | None = None) -> nn.Module:
    kind = HgStacked if config.layout == "hg-stacked" else StackedHourglass
    return kind(config, joints, train, axis_name)


def hourglass_shapes(config: HourglassConfig, *, joints: int) -> Variables:
    """The shapes and dtypes of a network's variables, without making any: ``{"params": ..., "batch_stats": ...}``."""
    images = jax.ShapeDtypeStruct((1, *config.input_size, 3), jnp.float32)
    return jax.eval_shape(_network(config, joints).init, jax.random.key(0), images)


def init_hourglass(key: Array, config: HourglassConfig, *, joints: int) -> Variables:
    """Fresh variables of a stacked hourglass, see ``fill_variables``.

    Args:
        key: a JAX PRNG key; it must be concrete.
        config: the architecture.
        joints: heat maps per stack.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, plain nested dicts of float32 NumPy arrays.
    """
    return fill_variables(key, hourglass_shapes(config, joints=joints))


def apply_hourglass(
    variables: Variables, images: Float[Array, "b H W 3"], config: HourglassConfig, *, joints: int
) -> Float[Array, "s b h w k"]:
    """Heat maps of every stack with the running statistics of batch norm.

    Args:
        variables: from ``init_hourglass`` or a weight file.
        images: RGB in [0, 1] at ``config.input_size``.
        config: the architecture that ``variables`` belong to.
        joints: heat maps per stack.
    """
    maps: Any = _network(config, joints).apply(variables, images)
    return maps


def apply_hourglass_training(
    variables: Variables,
    images: Float[Array, "b H W 3"],
    config: HourglassConfig,
    *,
    joints: int,
    axis_name: str | None = None,
) -> tuple[Float[Array, "s b h w k"], Variables]:
    """Heat maps with the batch's own statistics, and the updated running statistics.

    Args:
        variables: from ``init_hourglass``, as ``stack_variables`` gives them.
        images: RGB in [0, 1] at ``config.input_size``.
        config: the architecture.
        joints: heat maps per stack.
        axis_name: mapped axis over which the statistics are averaged; None outside pmap and shard_map.

    Returns:
        Maps of every stack, and the new ``batch_stats``.
    """
    module = _network(config, joints, train=True, axis_name=axis_name)
    maps, updates = module.apply(variables, images, mutable=["batch_stats"])
    return maps, dict(updates)["batch_stats"]
