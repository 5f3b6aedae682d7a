"""Human proposals as random offsets of a labelled box: one pair of Gaussians for all poses, and a harsher law.

Every function takes one box; ``jax.vmap`` adds more. Boxes are x0 y0 x1 y1, and the result is not extended.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Proposals = Literal["alphapose_global", "harsh", "exact"]
PROPOSALS: tuple[Proposals, ...] = ("alphapose_global", "harsh", "exact")
# Mean and deviation of the offsets of x0, y0, x1, y1 over the box's width or height: the numbers that RMPE's first
# Torch code and AlphaPose's ``addDPG`` carry.
_MEAN = (-0.0142, 0.0043, 0.0154, -0.0013)
_DEVIATION = (0.1158, 0.0680, 0.1337, 0.0711)
_HARSH_SHIFT, _HARSH_SCALE = 0.3, (0.7, 1.5)
_SMALLEST_SIDE = 0.1


def propose(key: Array, box: Float[Array, "4"], law: Proposals) -> Float[Array, "4"]:
    """One proposal for a labelled box.

    Args:
        key: PRNG key.
        box: x0 y0 x1 y1, any frame.
        law: "alphapose_global": corners moved by the Gaussians of RMPE's and AlphaPose's code, as fractions of the
            sides; "harsh": the centre moved by up to 30 % of each side, the sides times 0.7 to 1.5 (log-uniform);
            "exact": the box itself.

    Returns:
        A box with sides of at least a tenth of the given ones.

    Raises:
        ValueError: another law.
    """
    if law not in PROPOSALS:
        raise ValueError(f"expected one of {', '.join(PROPOSALS)}, got {law!r}")
    size = box[2:] - box[:2]
    if law == "exact":
        return box
    if law == "alphapose_global":
        return moved_box(box, jnp.array(_MEAN) + jnp.array(_DEVIATION) * jax.random.normal(key, (4,)))
    shift_key, scale_key = jax.random.split(key)
    shift = jax.random.uniform(shift_key, (2,), minval=-_HARSH_SHIFT, maxval=_HARSH_SHIFT)
    scale = jnp.exp(jax.random.uniform(scale_key, minval=jnp.log(_HARSH_SCALE[0]), maxval=jnp.log(_HARSH_SCALE[1])))
    centre, half = (box[:2] + box[2:]) / 2 + shift * size, size * scale / 2
    return jnp.concatenate([centre - half, centre + half])


def moved_box(box: Float[Array, "4"], offset: Float[Array, "4"]) -> Float[Array, "4"]:
    """The box whose corners are moved by ``offset`` over its sides; no side gets shorter than a tenth of it."""
    size = box[2:] - box[:2]
    low, high = box[:2] + offset[:2] * size, box[2:] + offset[2:] * size
    return jnp.concatenate([low, jnp.maximum(high, low + _SMALLEST_SIDE * size)])


def patch_box(key: Array, box: Float[Array, "4"], *, smallest: float) -> Float[Array, "4"]:
    """A part of a box: the same shape, its sides times U(smallest, 1), somewhere inside.

    Reference: the "patch" samples of RMPE's proposals generator.
    """
    scale_key, place_key = jax.random.split(key)
    size = box[2:] - box[:2]
    part = size * jax.random.uniform(scale_key, minval=smallest, maxval=1.0)
    low = box[:2] + jax.random.uniform(place_key, (2,)) * (size - part)
    return jnp.concatenate([low, low + part])
