"""Building blocks of the hourglass: batch norm with an axis name, 1x1 convolution, pre-activation residual block."""

import flax.linen as nn
import jax.numpy as jnp
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
