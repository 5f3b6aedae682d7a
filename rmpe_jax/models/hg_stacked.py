"""The hourglass authors' first network, of two stacks: wider, with three residual blocks at each place.

RMPE's first version stood on it: as deep as eight stacks of the later layout, but otherwise built. Halfway between the
two hourglasses the stem's features are joined to those of the first stack instead of added. ``config.features`` is the
width of an hourglass's output (theirs: 512); inside it is half of that. At 512 features, three blocks and 16 joints:
26,353,824 parameters, 26.2 billion multiplications for a picture of 256 pixels.

Reference: Newell, Yang and Deng, ECCV 2016, as in the model hg-stacked of their Torch code.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmpe_jax.config import HourglassConfig
from rmpe_jax.models.layers import Norm, Residual, centred, halved, max_pool, upsample_nearest


class WideHourglass(nn.Module):
    """One hourglass: half its features inside, and all of them where branches meet."""

    features: int
    depth: int
    residuals: int
    train: bool
    axis_name: str | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Applies the hourglass; height and width must be divisible by 2**depth."""
        wide, half = self.features, self.features // 2
        skip = self._blocks(x, *(self.residuals - 1) * [half], wide)
        low = self._blocks(max_pool(x), *self.residuals * [half])
        if self.depth > 1:
            low = WideHourglass(wide, self.depth - 1, self.residuals, self.train, self.axis_name, self.dtype)(low)
        else:
            low = self._blocks(low, wide)
        return skip + upsample_nearest(self._blocks(low, wide))

    def _blocks(self, x, *features):
        for count in features:
            x = Residual(count, self.train, self.axis_name, self.dtype)(x)
        return x


class HgStacked(nn.Module):
    """Stem, two wide hourglasses, and the maps of both."""

    config: HourglassConfig
    joints: int
    train: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "s b h w k"]:
        """Maps of both stacks, float32, at a quarter of the input's resolution."""
        config, wide = self.config, self.config.features
        common = {"train": self.train, "axis_name": self.axis_name, "dtype": config.dtype}
        dense = partial(nn.Dense, dtype=jnp.dtype(config.dtype))

        def linear(x, features):
            return nn.relu(Norm(**common)(dense(features)(x)))

        hourglass = nn.remat(WideHourglass) if config.remat else WideHourglass
        hourglass = partial(hourglass, wide, config.depth, config.residuals, self.train, self.axis_name, config.dtype)
        x = halved(centred(images, config), wide // 8, **common)
        pooled = max_pool(Residual(wide // 4, **common)(x))
        x = Residual(wide // 4, **common)(Residual(wide // 4, **common)(pooled))
        x = hourglass(name="hourglass_0")(Residual(wide // 2, **common)(x))
        x = linear(linear(x, wide), wide // 2)
        first = dense(self.joints, name="heatmaps_0")(x)
        joined = jnp.concatenate([x, pooled], -1)
        x = dense(joined.shape[-1], name="merge_features")(joined)
        x = x + dense(joined.shape[-1], name="merge_heatmaps")(first)
        x = linear(linear(hourglass(name="hourglass_1")(x), wide), wide)
        second = dense(self.joints, name="heatmaps_1")(x)
        return jnp.stack([first, second]).astype(jnp.float32)
