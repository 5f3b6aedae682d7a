"""PGPG, the pose-guided proposals generator: boxes that a detector would give a person in this pose.

The offsets between a detector's box and a person's own, over the own box's sides, follow a Gaussian mixture that
belongs to the atomic pose that is nearest. ``evaluate.fit_proposals`` fits it; here is how it is drawn from.

Reference: RMPE (ICCV) section 3.3: P(offsets | atom(P)).
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from rmpe_jax.proposals.atoms import nearest_atom
from rmpe_jax.skeleton import Skeleton, joint_map, skeleton_named

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # Fitted on the host.
    Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OffsetMixtures:
    """A Gaussian mixture over four offsets for each of a atomic poses; and a last one for everybody else.

    Offsets are those of x0, y0, x1, y1 of the detector's box from the person's own, not extended, over its width or
    height. Mixtures of fewer than c components are filled up with components of weight zero.
    """

    atoms: Float[Array, "a k 2"]  # atomic poses in torso lengths from the torso's middle; NaN for a joint they lack
    weight: Float[Array, "b c"]  # of the components, b = a + 1: each row sums to one
    mean: Float[Array, "b c 4"]
    factor: Float[Array, "b c 4 4"]  # lower Cholesky factors of the covariances
    skeleton: str = dataclasses.field(metadata={"static": True})  # of the atomic poses

    @property
    def joints(self) -> Skeleton:
        """The skeleton of the atomic poses."""
        return skeleton_named(self.skeleton)


def in_skeleton(mixtures: OffsetMixtures, skeleton: Skeleton) -> OffsetMixtures:
    """The same law for poses of another skeleton; joints that the atomic poses lack are NaN in them."""
    order = np.array(joint_map(mixtures.joints, skeleton))
    atoms = jnp.where((order >= 0)[None, :, None], jnp.asarray(mixtures.atoms)[:, order], jnp.nan)
    return dataclasses.replace(mixtures, atoms=atoms, skeleton=skeleton.name)


def mixture_row(points: Float[Array, "k 2"], labelled: Bool[Array, "k"], mixtures: OffsetMixtures) -> Int[Array, ""]:
    """Which mixture a pose takes: its atomic pose's, or the last one if it has no torso or too few joints.

    Args:
        points: joints in the order of the mixtures' skeleton, any frame.
        labelled: which joints carry a label.
        mixtures: the law.
    """
    return nearest_atom(points, labelled, jnp.asarray(mixtures.atoms), skeleton=mixtures.joints)


def sample_offsets(key: Array, row: Int[Array, ""], mixtures: OffsetMixtures, *, num: int) -> Float[Array, "num 4"]:
    """Offsets drawn from one of the mixtures, over the box's width and height.

    Args:
        key: PRNG key.
        row: which mixture, see ``mixture_row``.
        mixtures: the law.
        num: how many.
    """
    component_key, normal_key = jax.random.split(key)
    weight = jnp.asarray(mixtures.weight)[row]
    component = jax.random.choice(component_key, weight.shape[0], (num,), p=weight)
    normal = jax.random.normal(normal_key, (num, 4))
    mean, factor = (jnp.asarray(field)[row][component] for field in (mixtures.mean, mixtures.factor))
    return mean + jnp.einsum("nij,nj->ni", factor, normal, precision="highest")


def offsets_of(boxes: Float[Array, "*n 4"], own: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """The offsets of detectors' boxes from people's own, over the own box's width and height."""
    size = own[..., 2:] - own[..., :2]
    return (boxes - own) / jnp.concatenate([size, size], -1)


def log_density(offsets: Float[Array, "4"], row: Int[Array, ""], mixtures: OffsetMixtures) -> Float[Array, ""]:
    """The logarithm of a mixture's density at some offsets: how likely a detector would give that box."""
    weight, mean, factor = (jnp.asarray(f)[row] for f in (mixtures.weight, mixtures.mean, mixtures.factor))
    white = jax.vmap(lambda f, d: jax.scipy.linalg.solve_triangular(f, d, lower=True))(factor, offsets[None] - mean)
    determinant = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
    each = -0.5 * (white**2).sum(-1) - determinant - 2 * jnp.log(2 * jnp.pi)
    return jax.scipy.special.logsumexp(each, b=weight)
