"""Building blocks of the hourglass: batch norm with an axis name, 1x1 convolution, pre-activation residual block."""

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Norm(nn.Module):
    """Batch norm with PyTorch's constants, reduced over ``axis_name`` when that is given."""

    train: bool
    axis_name: str | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises by the batch while training, by the running statistics otherwise."""
        return nn.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name if self.train else None,
            dtype=jnp.dtype(self.dtype),
        )(x)


class Residual(nn.Module):
    """Pre-activation bottleneck: (norm, relu, conv) with kernels 1, 3, 1 and half the features in the middle.

    The input is added, through a 1x1 convolution where the number of features changes.
    """

    features: int
    train: bool
    axis_name: str | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Applies the block."""
        dtype = jnp.dtype(self.dtype)

        def norm_relu(y):
            return nn.relu(Norm(self.train, self.axis_name, self.dtype)(y))

        # A 1x1 convolution is a dense layer over the channels, and faster so on CPU.
        y = nn.Dense(self.features // 2, dtype=dtype)(norm_relu(x))
        y = nn.Conv(self.features // 2, (3, 3), dtype=dtype)(norm_relu(y))
        y = nn.Dense(self.features, dtype=dtype)(norm_relu(y))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=dtype, name="shortcut")(x)
        return x + y


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by repetition."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def fill_variables(key: Array, shapes: dict[str, Any]) -> dict[str, Any]:
    """Fresh values for a tree of shapes: plain nested dicts of float32 NumPy arrays.

    Kernels are normal with variance 1 / fan-in, each drawn from the key and the parameter's path, those of a layer
    whose name ends in ``_zero`` are 0; biases and running means are 0, scales and running variances 1. The shapes come
    from ``jax.eval_shape``, which takes about a second where a compiled ``init`` takes a minute at eight stacks.

    Args:
        key: a JAX PRNG key; it must be concrete.
        shapes: ``{"params": ..., "batch_stats": ...}``.
    """
    words = np.asarray(jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)

    def fill(path, leaf):
        name = "/".join(str(entry.key) for entry in path)
        if name.endswith("kernel") and "_zero/" not in name:
            rng = np.random.default_rng([*words.tolist(), zlib.crc32(name.encode())])
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(np.float32)
        return np.full(leaf.shape, float(name.endswith(("scale", "var"))), np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)
