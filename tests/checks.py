"""Checks that many tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads


def assert_gradients(function, *arguments):
    """The forward and reverse derivatives are those of finite differences, in float64 at JAX's default tolerances."""
    with jax.enable_x64(True):
        check_grads(jax.jit(function), tuple(jnp.array(argument, jnp.float64) for argument in arguments), order=1)


def assert_same_under_jit_and_vmap(function, *batched):
    """``jit`` and ``vmap`` give what a plain loop over the first axis gives, to float32 rounding."""
    count = jax.tree.leaves(batched)[0].shape[0]
    examples = [jax.tree.map(lambda leaf, i=i: leaf[i], batched) for i in range(count)]
    plain = [function(*example) for example in examples]
    jitted = jax.jit(function)
    for example, expected in zip(examples, plain, strict=True):
        assert_close(jitted(*example), expected)
    loop = jax.tree.map(lambda *leaves: np.stack(leaves), *plain)
    assert_close(jax.jit(jax.vmap(function))(*batched), loop)


def assert_close(actual, expected, *, rtol=1e-5, atol=1e-5):
    """Two trees agree, leaf by leaf."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def assert_identical(actual, expected):
    """Two trees agree in every bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
