"""The STN's localization networks: a crop in, theta out; at the start theta is the identity, exactly.

Reference: RMPE's Torch code (ResNet-18 whose last layer has zero weights and the bias 1 0 0 0 1 0); Jaderberg et al.,
NIPS 2015, for the restriction of theta to scale and translation (their attention form).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmpe_jax.config import LocalizationConfig
from rmpe_jax.models.layers import Norm, fill_variables

Variables = dict[str, Any]
# Channels of the small network's stages; each halves the resolution.
_SMALL = (16, 32, 64, 64)


class _ConvNorm(nn.Module):
    """Convolution with bias and batch norm."""

    features: int
    kernel: int
    stride: int
    train: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        side = self.kernel // 2
        padding = ((side, side), (side, side))
        x = nn.Conv(self.features, (self.kernel, self.kernel), (self.stride, self.stride), padding=padding)(x)
        return Norm(self.train, self.axis_name, "float32")(x)


class _BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions; the shortcut is a bare 1x1 convolution where the shape changes."""

    features: int
    stride: int
    train: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        common = {"train": self.train, "axis_name": self.axis_name}
        y = nn.relu(_ConvNorm(self.features, 3, self.stride, **common)(x))
        y = _ConvNorm(self.features, 3, 1, **common)(y)
        if x.shape[-1] != self.features or self.stride != 1:
            x = nn.Conv(self.features, (1, 1), (self.stride, self.stride), padding="VALID", name="shortcut")(x)
        return nn.relu(x + y)


class Localization(nn.Module):
    """Features of the crop, their mean, and one linear layer to theta."""

    config: LocalizationConfig
    train: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, crops: Float[Array, "b H W 3"]) -> Float[Array, "b 2 3"]:
        """Theta of every crop, unit frame, (x, y) order."""
        x = self._resnet18(crops) if self.config.kind == "resnet18" else self._small(crops)
        x = x.mean((1, 2)) if self.config.kind == "resnet18" else x.reshape(x.shape[0], -1)
        count = 6 if self.config.theta == "affine" else 3
        # Named so that ``fill_variables`` leaves it at zero.
        change = nn.Dense(count, kernel_init=nn.initializers.zeros, name="theta_zero")(x)
        return theta_from_change(change, self.config)

    def _small(self, x):
        common = {"train": self.train, "axis_name": self.axis_name}
        for features in _SMALL:
            x = nn.relu(_ConvNorm(features, 3, 2, **common)(x))
        # Where things stand matters: the maps are kept, shrunk to a fixed 4 x 4.
        return jax.image.resize(x, (x.shape[0], 4, 4, x.shape[-1]), "linear")

    def _resnet18(self, x):
        common = {"train": self.train, "axis_name": self.axis_name}
        x = nn.relu(_ConvNorm(64, 7, 2, **common)(x))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage, features in enumerate((64, 128, 256, 512)):
            for block in range(2):
                x = _BasicBlock(features, 2 if stage and not block else 1, **common)(x)
        return x


def theta_directions(config: LocalizationConfig) -> Float[Array, "n 2 3"]:
    """What each output of the network changes: one of the six numbers, or the scale of both axes and the shifts."""
    six = jnp.eye(6).reshape(6, 2, 3)
    return six if config.theta == "affine" else jnp.stack([six[0] + six[4], six[2], six[5]])


def theta_from_change(change: Float[Array, "b n"], config: LocalizationConfig) -> Float[Array, "b 2 3"]:
    """Theta = identity + change: all six numbers, or scale (of both axes alike) and translation."""
    if config.theta == "affine":
        return jnp.eye(2, 3)[None] + change.reshape(-1, 2, 3)
    scale, shift = change[:, :1, None], change[:, 1:, None]
    return jnp.eye(2, 3)[None] + jnp.concatenate([scale * jnp.eye(2)[None], shift], 2)


def localization_shapes(config: LocalizationConfig, size: tuple[int, int]) -> Variables:
    """Shapes and dtypes of a network's variables for crops of ``size`` (height, width)."""
    crops = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(Localization(config).init, jax.random.key(0), crops)


def init_localization(key: Array, config: LocalizationConfig, size: tuple[int, int]) -> Variables:
    """Fresh variables, as plain nested dicts of float32 NumPy arrays; every crop gets the identity.

    Args:
        key: a concrete JAX PRNG key.
        config: which network.
        size: (height, width) of the crops.
    """
    return fill_variables(key, localization_shapes(config, size))


def apply_localization(
    variables: Variables, crops: Float[Array, "b H W 3"], config: LocalizationConfig
) -> Float[Array, "b 2 3"]:
    """Theta of every crop, with the running statistics of batch norm.

    Args:
        variables: from ``init_localization``.
        crops: RGB in [0, 1].
        config: which network.
    """
    theta: Any = Localization(config).apply(variables, crops)
    return theta


def apply_localization_training(
    variables: Variables, crops: Float[Array, "b H W 3"], config: LocalizationConfig, *, axis_name: str | None = None
) -> tuple[Float[Array, "b 2 3"], Variables]:
    """Theta with the batch's own statistics, and the updated running statistics."""
    theta, updates = Localization(config, True, axis_name).apply(variables, crops, mutable=["batch_stats"])
    return theta, dict(updates)["batch_stats"]
