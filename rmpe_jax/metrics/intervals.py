"""Seeded bootstrap over pictures: how far a metric would move on another test set of the same kind and size.

Pictures are drawn with replacement, so that people of one picture stay together. A draw is the number of times each
picture counts; every metric here takes these as ``weight``. Replicate r depends on the key and on r only: neither
``chunk`` nor the number of replicates changes it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def _draw(key: Key[Array, ""], replicate: Int[Array, ""], pictures: int) -> Int[Array, "i"]:
    drawn = jax.random.randint(jax.random.fold_in(key, replicate), (pictures,), 0, pictures)
    return jnp.zeros(pictures, int).at[drawn].add(1)


def resampling_weights(key: Key[Array, ""], pictures: int, replicates: int) -> Int[Array, "r i"]:
    """How often each picture counts in each replicate: ``pictures`` draws with replacement, so rows sum to that."""
    return jax.vmap(lambda replicate: _draw(key, replicate, pictures))(jnp.arange(replicates))


def bootstrap(
    key: Key[Array, ""],
    statistic: Callable[[Float[Array, "i"]], Any],
    pictures: int,
    *,
    replicates: int = 1000,
    chunk: int = 10,
) -> Any:
    """Values of a statistic on resampled pictures.

    It compiles by itself. Under ``jax.jit``, hand in what ``statistic`` closes over as arguments of the function:
    XLA would spend minutes on folding large constants.

    Args:
        key: two systems compared with the same key are resampled alike (``difference_interval``).
        statistic: from weights of the pictures, shape (pictures,), to an array or a tree of arrays.
        pictures: their number.
        replicates: how many values are wanted.
        chunk: so many are computed at once, which bounds memory; more than 10 pays on accelerators only.

    Returns:
        What ``statistic`` returns, each array with a first axis of size ``replicates``.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> errors = jnp.array([1.0, 2.0, 3.0, 4.0])
        >>> means = bootstrap(jax.random.key(0), lambda weight: (weight * errors).sum() / weight.sum(), 4)
        >>> low, high = interval(means)
        >>> bool(1.0 <= low < 2.5 < high <= 4.0)
        True

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13.
    """
    if min(pictures, replicates, chunk) < 1:
        raise ValueError(f"expected positive numbers, got {pictures=}, {replicates=}, {chunk=}")
    return jax.lax.map(
        lambda replicate: statistic(_draw(key, replicate, pictures).astype(jnp.float32)),
        jnp.arange(replicates),
        batch_size=min(chunk, replicates),
    )


def interval(
    values: Float[Array, "r *shape"], *, level: float = 0.95
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Percentile interval of replicate values: their (1 - level) / 2 and (1 + level) / 2 quantiles.

    Replicates that are NaN (no picture that was drawn has the joint) are left out, each entry by itself, so the
    interval holds given that there is something to measure; it is NaN where all are.

    Args:
        values: from ``bootstrap``, replicates first.
        level: share of the replicates inside, in (0, 1).

    Raises:
        ValueError: ``level`` outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"expected level in (0, 1), got {level}")
    low, high = jnp.nanquantile(values, jnp.array([(1 - level) / 2, (1 + level) / 2]), axis=0)
    return low, high


def difference_interval(
    a: Float[Array, "r *shape"], b: Float[Array, "..."], *, level: float = 0.95
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Percentile interval of a - b for two systems resampled alike: ``bootstrap`` with one key and the same pictures.

    A replicate that is NaN in either is left out.

    Args:
        a: from ``bootstrap``, replicates first.
        b: likewise, of a's shape.
        level: share of the replicates inside, in (0, 1).

    Raises:
        ValueError: other shapes, or ``level`` outside (0, 1).
    """
    if a.shape != b.shape:
        raise ValueError(f"expected paired replicates of one shape, got {a.shape} and {b.shape}")
    return interval(a - b, level=level)
