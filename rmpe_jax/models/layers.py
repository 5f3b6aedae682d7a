"""Building blocks of the hourglass: batch norm with an axis name, residual block, convolution, pooling, upsampling."""

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rmpe_jax.config import DeepPoseConfig, HourglassConfig


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

    The input is added, through a 1x1 convolution where the number of features changes. ``looped`` says that the block
    is the body of a loop.
    """

    features: int
    train: bool
    axis_name: str | None
    dtype: str
    looped: bool = False

    # Blocks of one shape are traced once for all places.
    @nn.jit
    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Applies the block."""
        dtype = jnp.dtype(self.dtype)

        def norm_relu(y):
            return nn.relu(Norm(self.train, self.axis_name, self.dtype)(y))

        # A 1x1 convolution is a dense layer over the channels, and faster so on CPU.
        y = nn.Dense(self.features // 2, dtype=dtype)(norm_relu(x))
        kind = _convolve_in_loop if self.looped and jax.default_backend() == "cpu" else None
        y = nn.Conv(self.features // 2, (3, 3), dtype=dtype, conv_general_dilated=kind)(norm_relu(y))
        y = nn.Dense(self.features, dtype=dtype)(norm_relu(y))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=dtype, name="shortcut")(x)
        return x + y


def centred(images: Float[Array, "b H W 3"], config: HourglassConfig | DeepPoseConfig) -> Float[Array, "b H W 3"]:
    """Pictures less the mean colour of a network, in the type that it computes in."""
    mean = jnp.broadcast_to(jnp.array(config.mean, images.dtype), images.shape)
    return (images - mean).astype(jnp.dtype(config.dtype))


def halved(x: Float[Array, "b H W c"], features: int, **common: Any) -> Float[Array, "b h w f"]:
    """The first layers of an hourglass, to be called in a module: 7x7 convolution of stride 2, norm, relu."""
    dtype = jnp.dtype(common["dtype"])
    x = nn.Conv(features, (7, 7), (2, 2), padding=((3, 3), (3, 3)), dtype=dtype)(x)
    return nn.relu(Norm(**common)(x))


@jax.custom_vjp
def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "m n c f"]) -> Float[Array, "b h w f"]:
    """Convolution, as networks have it, that keeps height and width; zeros stand outside. Reverse derivatives only.

    out[y, x] = sum_ij in[y + i - m // 2, x + j - n // 2] kernel[i, j], for odd m and n

    It is ``lax.conv_general_dilated``, as is each of its derivatives, with its channels in the order of the function
    itself. JAX's own derivative reorders axes by dimension numbers, and such a convolution is many times slower where
    it stands inside a loop on a CPU (jax-ml/jax#12868).
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve_forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(kept, gradient):
    x, kernel = kept
    by_x = convolve(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    # Channels take the place of the batch, pictures that of the channels: the gradient is the kernel, as large as x.
    pictures, kernels = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
    numbers = ("NHWC", "HWIO", "NHWC")
    by_kernel = lax.conv_general_dilated(pictures, kernels, (1, 1), padding, dimension_numbers=numbers)
    return by_x, by_kernel.transpose(1, 2, 0, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _convolve_in_loop(x, kernel, *_, **__):
    """``convolve``, called as ``nn.Conv`` calls ``lax.conv_general_dilated``."""
    return convolve(x, kernel)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width: the maximum of each 2 x 2 pixels; both must be even.

    Pixels that share the maximum share its gradient evenly, or as 1/2, 1/4 and 1/4 where they are three.
    """
    b, h, w, c = x.shape
    # Not a pooling of XLA's: that one's gradient is twelve times as slow on a CPU, a fifth of a training step.
    pairs = x.reshape(b, h // 2, 2, w // 2, 2, c)
    rows = jnp.maximum(pairs[:, :, 0], pairs[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


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
