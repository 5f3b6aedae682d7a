"""A gradient in theta from steps that can be seen: central differences in place of the exact derivative.

The heat maps of a convolutional network tremble as its input moves by fractions of a pixel, so the exact derivative of
their loss in theta is mostly noise: it holds for a thousandth of the picture and says little of where a tenth of the
picture leads. Measured figures: experiments/README.md.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def by_differences(
    loss: Callable[[Float[Array, "*b 2 3"]], Float[Array, "*b"]],
    theta: Float[Array, "*b 2 3"],
    *,
    step: float,
    directions: Float[Array, "n 2 3"],
) -> Float[Array, "*b"]:
    """``loss(theta)``, whose gradient in theta is the slope of each example's loss across a whole step.

    The slope along a direction d is (loss(theta + step d) - loss(theta - step d)) / (2 step): two more losses for each
    direction, and no backward pass. Only theta has a gradient; derivatives of the gradient are zero. As the step goes
    to zero it becomes the exact gradient, as far as the directions reach.

    Args:
        loss: of every example, from its own theta alone.
        theta: unit frame.
        step: greater than 0, in the unit of theta.
        directions: orthogonal to each other.

    Raises:
        ValueError: a step that is not greater than 0.

    Example:
        >>> import jax
        >>> square = lambda theta: (theta**2).sum((-2, -1))
        >>> shift = jnp.array([[[0.0, 0, 1], [0, 0, 0]]])
        >>> along_x = lambda theta: by_differences(square, theta, step=0.5, directions=shift)
        >>> jax.grad(along_x)(jnp.full((2, 3), 2.0)).tolist()
        [[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    """
    if not step > 0:
        raise ValueError(f"expected a step greater than 0, got {step}")
    fixed, directions = lax.stop_gradient(theta), directions.astype(theta.dtype)

    def slope(direction):
        change = step * jnp.broadcast_to(direction, fixed.shape)
        return (loss(fixed + change) - loss(fixed - change)) / (2 * step)

    # One after the other: all at once they would need the memory of as many batches.
    slopes = lax.map(slope, directions)
    unit = directions / (directions**2).sum((1, 2), keepdims=True)
    gradient = lax.stop_gradient(jnp.tensordot(slopes, unit, ((0,), (0,))))
    return lax.stop_gradient(loss(fixed)) + (gradient * (theta - fixed)).sum((-2, -1))
