"""Each primitive, written as ONNX and run by ONNX Runtime, gives what JAX gives."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rmpe_jax.heatmaps import decode_dark, decode_heatmaps, decode_soft_argmax, encode_heatmaps
from rmpe_jax.onnx_graph import OnnxError, onnx_from_function

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(3, 4, 5)).astype(np.float32)
PICTURES = RNG.random((3, 8, 6, 2), np.float32)
WHOLE = RNG.integers(-4, 5, (3, 4)).astype(np.int32)
KERNEL = RNG.random((3, 5, 2, 4), np.float32)
WIDE = RNG.random((5, 4), np.float32)


def converted(function, *arrays, batch=True):
    """An ONNX model of a function whose first axes are the batch, and what it gives for these arrays."""
    (count,) = jax.export.symbolic_shape("b") if batch else (len(arrays[0]),)
    inputs = {f"x{n}": jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype) for n, a in enumerate(arrays)}
    model = onnx_from_function(lambda *given: {"y": function(*given)}, inputs)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["y"], dict(zip(inputs, arrays, strict=True)))[0]


def assert_same(function, *arrays, batch=True):
    expected = np.asarray(function(*map(jnp.asarray, arrays)))
    found = converted(function, *arrays, batch=batch)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def convolution(x, **settings):
    settings = {"window_strides": (2, 1), "padding": ((1, 2), (0, 3))} | settings
    return lax.conv_general_dilated(x, KERNEL, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)


def pooling(x):
    window, strides, padding = (1, 3, 2, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (0, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


@pytest.mark.parametrize(
    "function",
    [
        jnp.abs,
        jnp.cos,
        jnp.exp,
        jnp.floor,
        jnp.sign,
        jnp.sin,
        jnp.tanh,
        jax.nn.relu,
        jax.nn.sigmoid,
        jnp.square,
        lambda x: jnp.log1p(jnp.abs(x)) + jnp.log1p(-1e-5 * jnp.abs(x)) * 1e5 + jnp.log1p(0 * x),
        lambda x: x**3,
        lambda x: -x,
        lambda x: jnp.sqrt(jnp.abs(x)) + jnp.log(x**2) + lax.rsqrt(jnp.abs(x)),
        lambda x: jnp.abs(x) ** 0.7 + jnp.log2(jnp.abs(x)),
        lambda x: jnp.clip(x, -0.5, 0.5) + lax.clamp(-0.1, x, 0.2),
        lambda x: jnp.isfinite(x / jnp.where(x > 0, 1.0, 0.0)),
        lambda x: (x > 0) & (x != 1) | ~(x <= 0.5) & (x < 1),
        lambda x: jnp.minimum(x, 0.3) * jnp.maximum(x, x[:, ::-1]),
        lambda x: lax.select_n((x > 0).astype(jnp.int32) + (x > 1), x, 2 * x, 3 * x),
        lambda x: x.astype(jnp.int32),
        lambda x: lax.stop_gradient(x).astype(bool),
        lambda x: x.sum((1, 2)) + x.max((1, 2)) + x.min((1, 2)) + x.prod((1, 2)) + x.mean((1, 2)),
        lambda x: (x > 0).all(2) == (x > -1).any(2),
        lambda x: x.argmax(1),
        lambda x: x.reshape(x.shape[0] * 4, 5),
        lambda x: x.reshape(-1, 2, 10)[:, 0],
        lambda x: x.swapaxes(1, 2)[:, None, :, 0],
        lambda x: x[:, 1:4:2, ::-1],
        lambda x: jnp.concatenate([x, 2 * x])[x.shape[0] :],
        lambda x: jnp.stack([x, 2 * x], 2),
        lambda x: jax.vmap(lambda one: sum(n * row for n, row in enumerate(one)))(x),
        lambda x: jnp.split(jnp.concatenate([x, 2 * x]), 2)[1],
        lambda x: jnp.pad(x, ((0, 0), (1, 0), (2, 3)), constant_values=7),
        lambda x: x * jnp.arange(5.0)[None, None] + jnp.arange(4.0)[None, :, None],
        lambda x: jnp.broadcast_to(x[:, :, None], (*x.shape[:2], 3, 5)),
        lambda x: jnp.zeros((x.shape[0], 2)) + x.shape[0],
        lambda x: x @ WIDE,
        lambda x: jnp.einsum("bij,bkj->bki", x, x),
        lambda x: jnp.einsum("bij,i->bj", x, np.arange(4, dtype=np.float32)),
        lambda x: x[:, np.array([3, 0, 0])],
        lambda x: jax.vmap(lambda one, place: one[place])(x, x.argmax(1)[:, :2] % 4),
        lambda x: jax.vmap(lambda one, place: one[place, jnp.arange(5)])(x, x.argmax(1)),
        lambda x: jax.vmap(lambda one: lax.switch(one.argmax() % 3, [jnp.sin, jnp.cos, jnp.exp], one))(x),
        lambda x: jax.vmap(jnp.diagonal)(x[:, :, :4]),
        jax.checkpoint(jnp.sin),
        jax.jit(jnp.sin),
    ],
)
def test_functions_of_floats(function):
    assert_same(function, FLOATS)


@pytest.mark.parametrize(
    "function",
    [lambda x: x % 3 + x // 3, lambda x: (x & 3) | 4, lambda x: ~x, lambda x: lax.rem(x, jnp.int32(3)), jnp.abs],
)
def test_functions_of_whole_numbers(function):
    assert_same(function, WHOLE)


@pytest.mark.parametrize(
    "function",
    [
        convolution,
        functools.partial(convolution, rhs_dilation=(2, 1)),
        functools.partial(
            lax.conv_general_dilated, rhs=KERNEL.transpose(3, 2, 0, 1), window_strides=(1, 1), padding="VALID"
        ),
        pooling,
        lambda x: jax.vmap(lambda one: pooling(jnp.stack([one, -one])))(x),
        lambda x: jax.image.resize(x, (x.shape[0], 4, 4, 2), "linear"),
    ],
)
def test_functions_of_pictures(function):
    channels_first = isinstance(function, functools.partial) and function.func is lax.conv_general_dilated
    assert_same(function, PICTURES.transpose(0, 3, 1, 2) if channels_first else PICTURES)


@pytest.mark.parametrize("decoder", [decode_heatmaps, decode_dark, decode_soft_argmax])
def test_decoders_read_the_same_joints(decoder):
    points = jnp.array([[3.3, 5.1], [0.0, 0.0], [7.8, 6.2]])
    maps = np.asarray(encode_heatmaps(points, jnp.array([True, True, False]), (9, 8), sigma=1.0))
    both = np.stack([maps, maps[::-1]])
    for part in (0, 1):
        assert_same(lambda x, part=part: jax.vmap(decoder)(x)[part], both)


def test_no_dimension_has_to_be_symbolic():
    assert_same(lambda x, y: x[:, :4, 0] + y, FLOATS, WHOLE.astype(np.float32), batch=False)


def test_several_batches_go_through_one_model():
    (count,) = jax.export.symbolic_shape("b")
    model = onnx_from_function(
        lambda x: {"twice": jnp.concatenate([x, x]) * 2, "total": x.sum(0)},
        {"x": jax.ShapeDtypeStruct((count, 2), jnp.float32)},
        metadata={"kind": "test"},
    )
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for number in (1, 2, 5):
        given = RNG.random((number, 2), np.float32)
        total, twice = session.run(["total", "twice"], {"x": given})
        np.testing.assert_allclose(total, given.sum(0), rtol=1e-6)
        np.testing.assert_array_equal(twice, 2 * np.concatenate([given, given]))
    assert session.get_modelmeta().custom_metadata_map == {"kind": "test"}


def test_what_the_inputs_do_not_change_is_computed_beforehand():
    def function(x):
        return {"y": x * jnp.linalg.norm(jnp.arange(4.0)) + jnp.diagonal(jnp.eye(3))[1]}

    model = onnx.load_from_string(onnx_from_function(function, {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}))
    assert {node.op_type for node in model.graph.node} == {"Mul", "Add", "Identity"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, 1), "the primitive sort cannot be written as ONNX"),
        (lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), "the primitive while cannot"),
        (lambda x: x + jnp.arange(x.shape[0])[:, None, None], "numbers along the batch cannot"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0))), "padding between elements"),
        (lambda x: x[::-1], "a dimension of b - 1 is not a multiple of the batch"),
    ],
)
def test_what_cannot_be_written_is_named(function, message):
    with pytest.raises(OnnxError, match=message):
        converted(function, FLOATS)
