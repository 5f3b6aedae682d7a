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
from jax import lax
from jaxtyping import Array, Float

from rmpe_jax.config import HourglassConfig
from rmpe_jax.models.layers import Norm, Residual, fill_variables, max_pool, upsample_nearest

Variables = dict[str, Any]


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
        maps = nn.Dense(self.joints, dtype=dtype, name="heatmaps")(y)
        if self.last:
            return x, maps
        merge = partial(nn.Dense, config.features, dtype=dtype)
        return x + merge(name="merge_features")(y) + merge(name="merge_heatmaps")(maps), maps


class StackedHourglass(nn.Module):
    """Stem, then ``config.stacks`` hourglasses."""

    config: HourglassConfig
    joints: int
    train: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "s b h w k"]:
        """Maps of every stack, float32, at a quarter of the input's resolution."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        common = {"train": self.train, "axis_name": self.axis_name, "dtype": config.dtype}
        x = (images - jnp.broadcast_to(jnp.array(config.mean, images.dtype), images.shape)).astype(dtype)
        x = nn.Conv(config.features // 4, (7, 7), (2, 2), padding=((3, 3), (3, 3)), dtype=dtype)(x)
        x = nn.relu(Norm(**common)(x))
        x = Residual(config.features // 2, **common)(x)
        x = max_pool(x)
        x = Residual(config.features // (2 if config.stem == "rmpe" else 1), **common)(x)
        x = Residual(config.features, **common)(x)
        # Prediction compiles quickly as it is, and would stack the variables for every batch.
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
        """Maps of all stacks by one loop over their variables, laid on top of each other: XLA compiles one stack."""
        stack = Stack(self.config, self.joints, False, True, self.axis_name, looped=True, parent=None)
        names = [f"stack_{number}" for number in range(self.config.stacks)]
        params, statistics = ([self.get_variable(kind, name) for name in names] for kind in ("params", "batch_stats"))
        params[-1] = {**_no_merging(self.config, self.joints), **params[-1]}

        def one(x, variables):
            (x, maps), changed = stack.apply(variables, x, mutable=["batch_stats"])
            return x, (maps.astype(jnp.float32), changed["batch_stats"])

        one = jax.checkpoint(one, prevent_cse=False) if self.config.remat else one
        together = {"params": _on_top(params), "batch_stats": _on_top(statistics)}
        _, (maps, statistics) = lax.scan(one, x, together)
        for number, name in enumerate(names):
            self.put_variable("batch_stats", name, jax.tree.map(lambda leaf, n=number: leaf[n], statistics))
        return maps


def _no_merging(config: HourglassConfig, joints: int) -> dict[str, Any]:
    """Merging layers of zeros: the last stack, which has none, has the shape of the others with them."""
    inputs = {"merge_features": config.features, "merge_heatmaps": joints}
    bias = jnp.zeros(config.features)
    return {name: {"kernel": jnp.zeros((count, config.features)), "bias": bias} for name, count in inputs.items()}


def _on_top(trees: list[Any]) -> Any:
    """Trees of arrays as one tree of arrays with a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def hourglass_shapes(config: HourglassConfig, *, joints: int) -> Variables:
    """The shapes and dtypes of a network's variables, without making any: ``{"params": ..., "batch_stats": ...}``."""
    images = jax.ShapeDtypeStruct((1, *config.input_size, 3), jnp.float32)
    return jax.eval_shape(StackedHourglass(config, joints).init, jax.random.key(0), images)


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
    maps: Any = StackedHourglass(config, joints).apply(variables, images)
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
        variables: from ``init_hourglass``.
        images: RGB in [0, 1] at ``config.input_size``.
        config: the architecture.
        joints: heat maps per stack.
        axis_name: mapped axis over which the statistics are averaged; None outside pmap and shard_map.

    Returns:
        Maps of every stack, and the new ``batch_stats``.
    """
    module = StackedHourglass(config, joints, train=True, axis_name=axis_name)
    maps, updates = module.apply(variables, images, mutable=["batch_stats"])
    return maps, dict(updates)["batch_stats"]
