"""The network behind DPG's score: how likely would a detector return this box for a person in this pose?

A few convolutions turn the pose image into feature maps, once for each person. An indicator is one minus the outer
product of its rows and columns, so what the maps hold inside a proposal is rows @ maps @ columns, and a thousand
proposals cost three small matrix products. Two hidden layers see that, the proposal's rows and columns, and the pose.

Reference: the network of RMPE's first version was never published; this one is our own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmpe_jax.models.layers import fill_variables
from rmpe_jax.proposals.scored import INDICATOR_SIZE, POSE_SIZE

Variables = dict[str, Any]
# Channels of the maps that are summed inside a proposal, of what is kept of the whole pose, and of the hidden layers.
_INSIDE, _WHOLE, _HIDDEN = 16, 32, 64


class ProposalScorer(nn.Module):
    """Convolutions over the pose image, sums inside the proposals, two hidden layers."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "p h w 3"], rows: Float[Array, "p n s"], columns: Float[Array, "p n s"]
    ) -> Float[Array, "p n"]:
        """Logits of every proposal."""
        # White, where there is nothing, is zero.
        x = 1 - images
        for features in (16, 32):
            x = nn.relu(nn.Conv(features, (3, 3), (2, 2))(x))
        maps = nn.Conv(_INSIDE, (3, 3))(x)
        inside = jnp.einsum("pnr,prcf,pnc->pnf", rows, maps, columns) / INDICATOR_SIZE
        x = nn.relu(nn.Conv(16, (3, 3), (2, 2))(x))
        whole = nn.relu(nn.Dense(_WHOLE)(x.reshape(len(x), -1)))
        of_box = nn.Dense(_HIDDEN)(jnp.concatenate([inside, rows, columns], -1))
        x = nn.relu(of_box + nn.Dense(_HIDDEN)(whole)[:, None])
        x = nn.relu(nn.Dense(_HIDDEN)(x))
        return nn.Dense(1, name="logit_zero")(x)[..., 0]


def scorer_shapes() -> Variables:
    """Shapes and dtypes of the variables."""
    image = jax.ShapeDtypeStruct((1, POSE_SIZE, POSE_SIZE, 3), jnp.float32)
    profile = jax.ShapeDtypeStruct((1, 1, INDICATOR_SIZE), jnp.float32)
    return jax.eval_shape(ProposalScorer().init, jax.random.key(0), image, profile, profile)


def init_scorer(key: Array) -> Variables:
    """Fresh variables, as plain nested dicts of float32 NumPy arrays; every proposal has the probability one half.

    Args:
        key: a concrete JAX PRNG key.
    """
    return fill_variables(key, scorer_shapes())


def apply_scorer(
    variables: Variables, image: Float[Array, "h w 3"], rows: Float[Array, "n s"], columns: Float[Array, "n s"]
) -> Float[Array, "n"]:
    """Logits of the probability that a detector would return each of n proposals for one person.

    Args:
        variables: from ``init_scorer``.
        image: the pose, see ``pose_image``.
        rows: of the proposals' indicators, see ``indicator_profiles``.
        columns: of them.
    """
    logits: Any = ProposalScorer().apply(variables, image[None], rows[None], columns[None])
    return logits[0]
