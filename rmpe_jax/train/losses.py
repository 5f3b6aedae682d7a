"""The loss of heat maps: squared error over every stack, weighted towards the joints, masked where nobody labelled."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def heatmap_loss(
    maps: Float[Array, "s h w k"],
    target: Float[Array, "h w k"],
    labelled: Bool[Array, "k"],
    *,
    positive_weight: float = 0.0,
) -> Float[Array, ""]:
    """Sum over stacks and labelled joints of the map's mean squared error, for one crop.

    sum_s sum_k labelled_k mean_hw (1 + positive_weight target) (maps - target)^2

    Divide by the number of labelled joints in the global batch. With ``positive_weight`` 0 this is the squared error
    of Newell et al.; a positive weight keeps small networks off the all-zero plateau.
    """
    error = (1 + positive_weight * target[None]) * (maps - target[None]) ** 2
    return jnp.where(labelled[None], error.mean((1, 2)), 0.0).sum()
