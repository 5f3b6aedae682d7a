"""OKS, the object keypoint similarity of COCO."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# cocoeval adds numpy.spacing(1) to the area.
_EPSILON = 2.220446049250313e-16


def oks(
    predicted: Float[Array, "k 2"],
    truth: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    area: Float[Array, ""],
    sigmas: Float[Array, "k"],
) -> Float[Array, ""]:
    """Mean over labelled joints of exp(-d^2 / (2 area (2 sigma)^2)); zero where nothing is labelled.

    A joint predicted as NaN counts as infinitely far.

    Args:
        predicted: joints, pixels.
        truth: labels, pixels.
        labelled: which joints count.
        area: of the labelled person's outline, square pixels.
        sigmas: per-joint constants, see ``Skeleton.sigmas``.

    Reference: https://cocodataset.org/#keypoints-eval; differs from cocoeval for a person without labelled joints,
    where cocoeval measures the distance to the doubled box.
    """
    usable = labelled & jnp.isfinite(predicted).all(-1)
    distance = jnp.where(usable[:, None], predicted - truth, 0.0)
    error = (distance**2).sum(-1) / (2 * (area + _EPSILON) * (2 * sigmas) ** 2)
    return jnp.where(usable, jnp.exp(-error), 0.0).sum() / jnp.maximum(labelled.sum(), 1)
