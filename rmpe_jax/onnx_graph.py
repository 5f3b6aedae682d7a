"""A traced function as an ONNX model, one primitive of JAX after the other.

Known are the primitives that this package's networks, sampling and decoding are made of; another one is an error that
names it. Function calls are written in place, and what does not depend on the inputs is computed here by JAX itself.
One dimension may be symbolic, the batch; shapes hold whole multiples of it.

Convention: arrays keep JAX's order of axes (pictures: height, width, channels). Where a convolution of ONNX wants
channels first, they are moved there and back; ONNX Runtime removes most of these moves.
"""

import dataclasses
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from rmpe_jax.errors import MissingExtraError, RmpeError

# The oldest version that has every operator used here; ONNX Runtime reads it since 1.14.
OPSET = 18
_IR_VERSION = 8
# Arrays of more elements are computed when the model runs instead of being stored in it.
_LARGEST = 2**14
_INT64 = np.iinfo(np.int64)

Shape = tuple[Any, ...]


class OnnxError(RmpeError):
    """A program that cannot be written as ONNX; the message names the primitive."""


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array of the program, either known or the name of a tensor of the graph.

    Axes along which it is only repeated are of size 1: operators of ONNX repeat by themselves.
    """

    content: np.ndarray | str
    shape: Shape


@dataclasses.dataclass(frozen=True)
class _Graph:
    """The nodes and constants so far."""

    nodes: list[Any]
    constants: dict[Any, Any]
    batch: Any  # the symbolic dimension, or None
    batch_tensor: str  # a tensor of one element that holds it

    def node(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Adds a node of one output and returns the output's name."""
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """The name of a stored array; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def shape(self, dimensions: Shape) -> str | np.ndarray:
        """Dimensions as a tensor of int64."""
        if all(isinstance(size, int) for size in dimensions):
            return np.array(dimensions, np.int64)
        return self.node("Concat", *(self._size(size) for size in dimensions), axis=0)

    def _size(self, size: Any) -> str | np.ndarray:
        if isinstance(size, int):
            return np.array([size], np.int64)
        return self.node("Mul", self.batch_tensor, np.array([self.multiple(size)], np.int64))

    def multiple(self, size: Any) -> int:
        """How often the batch is in a symbolic dimension."""
        times = size // self.batch
        if not isinstance(times, int) or times * self.batch != size:
            raise OnnxError(f"a dimension of {size} is not a multiple of the batch")
        return times

    def reshape(self, tensor: str, dimensions: Shape) -> str:
        """A tensor in another shape."""
        unknown = [number for number, size in enumerate(dimensions) if not isinstance(size, int)]
        if len(unknown) == 1 and 0 not in dimensions:
            # ONNX finds the one dimension that is left open.
            sizes = [-1 if number == unknown[0] else size for number, size in enumerate(dimensions)]
            return self.node("Reshape", tensor, np.array(sizes, np.int64))
        return self.node("Reshape", tensor, self.shape(dimensions))

    def whole(self, value: _Value, dimensions: Shape) -> str:
        """The name of a tensor that has its full shape."""
        name = value.content if isinstance(value.content, str) else self.constant(value.content)
        if value.shape == dimensions:
            return name
        repeats = [1 if old == new else new for old, new in zip(value.shape, dimensions, strict=True)]
        return self.node("Expand", name, self.shape(tuple(repeats)))


def onnx_from_function(
    function: Callable[..., dict[str, jax.Array]],
    inputs: dict[str, jax.ShapeDtypeStruct],
    *,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """An ONNX model that computes what a function computes.

    Args:
        function: of as many arrays as there are inputs, to arrays by name.
        inputs: name, shape and dtype of each array; one dimension may be symbolic (``jax.export.symbolic_shape``) if
            it stands alone on an axis of an input.
        metadata: texts that are stored with the model (``metadata_props``).

    Returns:
        The serialised model, of opset ``OPSET``.

    Raises:
        OnnxError: the function uses a primitive that is not known here.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
        from onnx import helper
    except ImportError:
        raise MissingExtraError("onnx", "export", "writing ONNX") from None
    traced = jax.jit(function).trace(*inputs.values())
    graph = _begin(inputs)
    given = [_Value(name, tuple(spec.shape)) for name, spec in inputs.items()]
    found = _walk(graph, traced.jaxpr, given)
    results = {name: jax.ShapeDtypeStruct(info.shape, info.dtype) for name, info in sorted(traced.out_info.items())}
    for (name, spec), value in zip(results.items(), found, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.whole(value, tuple(spec.shape))], [name]))
    named = [[_described(*item) for item in specs.items()] for specs in (inputs, results)]
    content = helper.make_graph(graph.nodes, "rmpe_jax", *named, initializer=list(graph.constants.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(content, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="rmpe_jax")
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _begin(inputs: dict[str, jax.ShapeDtypeStruct]) -> _Graph:
    """An empty graph that knows its batch."""
    for name, spec in inputs.items():
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int):
                graph = _Graph([], {}, size, "")
                return dataclasses.replace(graph, batch_tensor=graph.node("Shape", name, start=axis, end=axis + 1))
    return _Graph([], {}, None, "")


def _described(name: str, spec: jax.ShapeDtypeStruct) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(
        name, _kind(spec.dtype), [s if isinstance(s, int) else str(s) for s in spec.shape]
    )


def _kind(dtype: Any) -> int:
    """The number that ONNX gives a type."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# Primitives that call: where their parameters keep what is called.
_CALLS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


def _walk(graph: _Graph, closed: ClosedJaxpr, inputs: Sequence[_Value]) -> list[_Value]:
    """The outputs of a program whose inputs are given."""
    jaxpr = closed.jaxpr
    known = [_known(constant) for constant in closed.consts]
    values: dict[Any, _Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*known, *inputs], strict=True))

    def read(atom: Any) -> _Value:
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval  # numbers of Python have the type that the program gives them
        return _known(np.asarray(atom.val, aval.dtype))

    for equation in jaxpr.eqns:
        outputs = _apply(graph, equation, [read(atom) for atom in equation.invars])
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _known(array: Any) -> _Value:
    return _Value(np.asarray(array), np.shape(array))


def _apply(graph: _Graph, equation: Any, inputs: list[_Value]) -> list[_Value]:
    """The outputs of one equation."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        called = params[_CALLS[name]]
        return _walk(graph, called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ()), inputs)
    if name == "platform_index":
        general = [number for number, platforms in enumerate(params["platforms"]) if platforms is None]
        return [_known(np.int32(general[0] if general else 0))]
    if name == "cond" and not isinstance(inputs[0].content, str):
        return _walk(graph, params["branches"][int(inputs[0].content)], inputs[1:])
    if name in _REPEATED:
        return [_REPEATED[name](graph, equation, *inputs)]
    computed = _computed(equation, inputs)
    if computed is not None:
        return computed
    if name in _ELEMENTWISE:
        return [_elementwise(graph, equation, inputs)]
    if name not in _WHOLE:
        raise OnnxError(f"the primitive {name} cannot be written as ONNX")
    tensors = [graph.whole(value, atom.aval.shape) for value, atom in zip(inputs, equation.invars, strict=True)]
    found = _WHOLE[name](graph, equation, *tensors)
    names = found if isinstance(found, list) else [found]
    return [_Value(output, var.aval.shape) for output, var in zip(names, equation.outvars, strict=True)]


def _computed(equation: Any, inputs: list[_Value]) -> list[_Value] | None:
    """What JAX makes of an equation whose inputs are known; None where they are not, or the result is large."""
    arrays: list[Any] = [value.content for value in inputs]
    if not arrays or any(isinstance(array, str) for array in arrays):
        return None
    shapes = [tuple(atom.aval.shape) for atom in [*equation.invars, *equation.outvars]]
    if equation.primitive.name in _ELEMENTWISE:
        arrays = list(np.broadcast_arrays(*arrays))
        shapes = [array.shape for array in arrays]
    if not all(isinstance(size, int) for shape in shapes for size in shape) or max(map(math.prod, shapes)) > _LARGEST:
        return None
    arrays = [jnp.asarray(np.broadcast_to(array, shape)) for array, shape in zip(arrays, shapes, strict=False)]
    found = equation.primitive.bind(*arrays, **equation.params)
    return [_known(array) for array in (found if equation.primitive.multiple_results else [found])]


def _elementwise(graph: _Graph, equation: Any, inputs: list[_Value]) -> _Value:
    """A primitive that works on each element alone, written for the axes that are not mere repetition."""
    names = [each.content if isinstance(each.content, str) else graph.constant(each.content) for each in inputs]
    rank = max(len(each.shape) for each in inputs)
    padded = [(1,) * (rank - len(each.shape)) + each.shape for each in inputs]
    shape = tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))
    return _Value(_ELEMENTWISE[equation.primitive.name](graph, equation, *names), shape)


def _plain(operator: str, **attributes: Any) -> Callable[..., str]:
    """A primitive that ONNX has too."""
    return lambda graph, equation, *inputs: graph.node(operator, *inputs, **attributes)


def _logical(boolean: str, bitwise: str) -> Callable[..., str]:
    def rule(graph: _Graph, equation: Any, *inputs: str) -> str:
        return graph.node(boolean if equation.outvars[0].aval.dtype == bool else bitwise, *inputs)

    return rule


def _not_equal(graph: _Graph, equation: Any, first: str, second: str) -> str:
    return graph.node("Not", graph.node("Equal", first, second))


def _is_finite(graph: _Graph, equation: Any, x: str) -> str:
    return graph.node("Not", graph.node("Or", graph.node("IsNaN", x), graph.node("IsInf", x)))


def _convert(graph: _Graph, equation: Any, x: str) -> str:
    return graph.node("Cast", x, to=_kind(equation.params["new_dtype"]))


def _rsqrt(graph: _Graph, equation: Any, x: str) -> str:
    return graph.node("Reciprocal", graph.node("Sqrt", x))


def _log1p(graph: _Graph, equation: Any, x: str) -> str:
    """Exact near zero: log(u) x / (u - 1) with u = 1 + x as it was rounded (Kahan)."""
    one = np.array(1, equation.outvars[0].aval.dtype)
    u = graph.node("Add", x, one)
    change = graph.node("Sub", u, one)
    ratio = graph.node("Mul", graph.node("Log", u), graph.node("Div", x, change))
    return graph.node("Where", graph.node("Equal", u, one), x, ratio)


def _log2(graph: _Graph, equation: Any, x: str) -> str:
    return graph.node("Div", graph.node("Log", x), np.array(math.log(2), equation.outvars[0].aval.dtype))


def _integer_power(graph: _Graph, equation: Any, x: str) -> str:
    return graph.node("Pow", x, np.array(equation.params["y"], equation.outvars[0].aval.dtype))


def _clamp(graph: _Graph, equation: Any, low: str, x: str, high: str) -> str:
    return graph.node("Min", graph.node("Max", x, low), high)


def _select(graph: _Graph, equation: Any, which: str, *cases: str) -> str:
    """``select_n``: the case of a number, or of False and True."""
    if equation.invars[0].aval.dtype == bool:
        return graph.node("Where", which, cases[1], cases[0])
    found = cases[0]
    for number, case in enumerate(cases[1:], 1):
        found = graph.node("Where", graph.node("Equal", which, np.array(number, np.int32)), case, found)
    return found


#: Rules for primitives that work on each element alone; inputs may be smaller than in the program.
_ELEMENTWISE: dict[str, Callable[..., str]] = {
    **{
        name: _plain(operator)
        for name, operator in {
            "abs": "Abs",
            "add": "Add",
            "copy": "Identity",
            "cos": "Cos",
            "div": "Div",
            "eq": "Equal",
            "exp": "Exp",
            "floor": "Floor",
            "ge": "GreaterOrEqual",
            "gt": "Greater",
            "le": "LessOrEqual",
            "log": "Log",
            "logistic": "Sigmoid",
            "lt": "Less",
            "max": "Max",
            "min": "Min",
            "mul": "Mul",
            "neg": "Neg",
            "pow": "Pow",
            "sign": "Sign",
            "sin": "Sin",
            "sqrt": "Sqrt",
            "stop_gradient": "Identity",
            "sub": "Sub",
            "tanh": "Tanh",
        }.items()
    },
    "and": _logical("And", "BitwiseAnd"),
    "clamp": _clamp,
    "convert_element_type": _convert,
    "integer_pow": _integer_power,
    "is_finite": _is_finite,
    "log1p": _log1p,
    "log2": _log2,
    "ne": _not_equal,
    "not": _logical("Not", "BitwiseNot"),
    "or": _logical("Or", "BitwiseOr"),
    "rem": _plain("Mod", fmod=1),
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": lambda graph, equation, x: graph.node("Mul", x, x),
}


def _broadcast(graph: _Graph, equation: Any, x: _Value) -> _Value:
    """``broadcast_in_dim``: axes of size 1 are put in; the repetition is left to who reads it."""
    axes = dict(zip(equation.params["broadcast_dimensions"], x.shape, strict=True))
    shape = tuple(axes.get(axis, 1) for axis in range(len(equation.params["shape"])))
    if shape == x.shape:
        return x
    content = graph.reshape(x.content, shape) if isinstance(x.content, str) else x.content.reshape(shape)
    return _Value(content, shape)


def _iota(graph: _Graph, equation: Any) -> _Value:
    params = equation.params
    count, axis = params["shape"][params["dimension"]], params["dimension"]
    if not isinstance(count, int):
        raise OnnxError("numbers along the batch cannot be written as ONNX")
    shape = tuple(count if number == axis else 1 for number in range(len(params["shape"])))
    return _Value(np.arange(count, dtype=params["dtype"]).reshape(shape), shape)


#: Rules for primitives whose result is in part repetition.
_REPEATED: dict[str, Callable[..., _Value]] = {"broadcast_in_dim": _broadcast, "iota": _iota}


def _reshape(graph: _Graph, equation: Any, x: str) -> str:
    return graph.reshape(x, equation.outvars[0].aval.shape)


def _transpose(graph: _Graph, equation: Any, x: str) -> str:
    return graph.node("Transpose", x, perm=equation.params["permutation"])


def _concatenate(graph: _Graph, equation: Any, *parts: str) -> str:
    return graph.node("Concat", *parts, axis=equation.params["dimension"])


def _stack(graph: _Graph, equation: Any, *parts: str) -> str:
    axis = equation.params["axis"]
    return graph.node("Concat", *(graph.node("Unsqueeze", part, np.array([axis])) for part in parts), axis=axis)


def _unstack(graph: _Graph, equation: Any, x: str) -> list[str]:
    axis, count = equation.params["axis"], len(equation.outvars)
    return [graph.node("Gather", x, np.array(number), axis=axis) for number in range(count)]


def _split(graph: _Graph, equation: Any, x: str) -> list[str]:
    """Parts of an axis; each begins at a whole multiple of the batch or at a known place."""
    axis, start, found = equation.params["axis"], 0, []
    for size in equation.params["sizes"]:
        bounds = (graph.shape((place,)) for place in (start, start + size))
        found.append(graph.node("Slice", x, *bounds, np.array([axis])))
        start = start + size
    return found


def _slice(graph: _Graph, equation: Any, x: str) -> str:
    params, shape = equation.params, equation.invars[0].aval.shape
    axes = np.arange(len(shape))
    steps = np.array(params["strides"] or [1] * len(shape), np.int64)
    start, limit = (graph.shape(tuple(params[key])) for key in ("start_indices", "limit_indices"))
    return graph.node("Slice", x, start, limit, axes, steps)


def _reverse(graph: _Graph, equation: Any, x: str) -> str:
    axes = np.array(equation.params["dimensions"], np.int64)
    low = np.full(axes.shape, _INT64.min)
    return graph.node("Slice", x, np.full(axes.shape, -1), low, axes, np.full(axes.shape, -1))


def _pad(graph: _Graph, equation: Any, x: str, value: str) -> str:
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between) or min(*low, *high) < 0:
        raise OnnxError("padding between elements, or less than none, cannot be written as ONNX")
    return graph.node("Pad", x, np.array([*low, *high], np.int64), value)


def _reduce(operator: str) -> Callable[..., str]:
    def rule(graph: _Graph, equation: Any, x: str) -> str:
        return graph.node(operator, x, np.array(equation.params["axes"], np.int64), keepdims=0)

    return rule


def _reduce_logical(operator: str) -> Callable[..., str]:
    """All or any of booleans: the smallest or largest of zeros and ones."""

    def rule(graph: _Graph, equation: Any, x: str) -> str:
        return _as(graph, _reduce(operator)(graph, equation, _as(graph, x, np.int32)), bool)

    return rule


def _as(graph: _Graph, x: str, dtype: Any) -> str:
    return graph.node("Cast", x, to=_kind(dtype))


def _argmax(graph: _Graph, equation: Any, x: str) -> str:
    (axis,) = equation.params["axes"]
    return _as(graph, graph.node("ArgMax", x, axis=axis, keepdims=0), equation.params["index_dtype"])


def _dot(graph: _Graph, equation: Any, first: str, second: str) -> str:
    """``dot_general``: a matrix product where it is one, else a sum over named axes."""
    (contracted, others), (batch, other_batch) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if not batch and ranks[1] == 2 and contracted == (ranks[0] - 1,) and others == (0,):
        return graph.node("MatMul", first, second)
    letters = iter(string.ascii_letters)
    left = [next(letters) for _ in range(ranks[0])]
    same = dict(zip([*others, *other_batch], [left[axis] for axis in [*contracted, *batch]], strict=True))
    right = [same.get(axis) or next(letters) for axis in range(ranks[1])]
    out = [left[axis] for axis in batch] + [x for axis, x in enumerate(left) if axis not in [*contracted, *batch]]
    out += [x for axis, x in enumerate(right) if axis not in same]
    return graph.node("Einsum", first, second, equation=f"{''.join(left)},{''.join(right)}->{''.join(out)}")


def _convolve(graph: _Graph, equation: Any, x: str, kernel: str) -> str:
    params = equation.params
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise OnnxError("a transposed convolution cannot be written as ONNX")
    low, high = zip(*params["padding"], strict=True)
    found = graph.node(
        "Conv",
        graph.node("Transpose", x, perm=numbers.lhs_spec),
        graph.node("Transpose", kernel, perm=numbers.rhs_spec),
        strides=params["window_strides"],
        pads=[*low, *high],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return graph.node("Transpose", found, perm=np.argsort(numbers.out_spec).tolist())


def _max_pool(graph: _Graph, equation: Any, x: str) -> str:
    """``reduce_window_max`` over height and width of pictures: ..., height, width, channels."""
    params, shape = equation.params, equation.invars[0].aval.shape
    window, strides, padding = (params[key] for key in ("window_dimensions", "window_strides", "padding"))
    dilations = {*params["base_dilation"], *params["window_dilation"]}
    if len(window) < 4 or {*window[:-3], window[-1]} != {1} or dilations != {1}:
        raise OnnxError("pooling of another kind than over height and width cannot be written as ONNX")
    low, high = zip(*padding[-3:-1], strict=True)
    pictures = graph.reshape(x, (math.prod(shape[:-3]), *shape[-3:]))
    moved = graph.node("Transpose", pictures, perm=(0, 3, 1, 2))
    found = graph.node("MaxPool", moved, kernel_shape=window[-3:-1], strides=strides[-3:-1], pads=[*low, *high])
    return graph.reshape(graph.node("Transpose", found, perm=(0, 2, 3, 1)), equation.outvars[0].aval.shape)


def _gather(graph: _Graph, equation: Any, x: str, indices: str) -> str:
    if len(equation.invars[1].aval.shape) == 1:
        return _gather_one(graph, equation, x, indices)
    return _gather_elements(graph, equation, x, indices)


def _gather_one(graph: _Graph, equation: Any, x: str, indices: str) -> str:
    """``gather`` of one part, which begins at the indices: a slice."""
    axes, sizes = equation.params["dimension_numbers"].start_index_map, equation.params["slice_sizes"]
    start = _as(graph, indices, np.int64)
    end = graph.node("Add", start, graph.shape(tuple(sizes[axis] for axis in axes)))
    return graph.reshape(graph.node("Slice", x, start, end, np.array(axes)), equation.outvars[0].aval.shape)


def _gather_elements(graph: _Graph, equation: Any, x: str, indices: str) -> str:
    """``gather`` of single elements along some axes and of everything along the others.

    What lies outside is read at the border; where JAX would fill it in, this package clips positions before.
    """
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, rank = equation.invars[0].aval.shape, len(equation.invars[1].aval.shape) - 1
    batch, looked_up = list(numbers.operand_batching_dims), list(numbers.start_index_map)
    rest = [axis for axis in range(len(shape)) if axis not in [*batch, *looked_up]]
    if any(sizes[axis] != 1 for axis in looked_up) or any(sizes[axis] != shape[axis] for axis in rest):
        raise OnnxError("a gather of parts of an axis cannot be written as ONNX")
    index_batch = list(numbers.start_indices_batching_dims)
    index_rest = [axis for axis in range(rank) if axis not in index_batch]
    limit = graph.shape(tuple(shape[axis] - 1 for axis in looked_up))
    places = graph.node("Transpose", _as(graph, indices, np.int64), perm=[*index_batch, *index_rest, rank])
    places = graph.node("Min", graph.node("Max", places, np.array(0, np.int64)), limit)
    moved = graph.node("Transpose", x, perm=[*batch, *looked_up, *rest])
    found = graph.node("GatherND", moved, places, batch_dims=len(batch))
    # Axes of what was found, by what they were: of the indices, or of the array.
    axes = [("index", axis) for axis in [*index_batch, *index_rest]] + [("array", axis) for axis in rest]
    kept = [axis for axis in range(len(shape)) if axis not in [*numbers.collapsed_slice_dims, *batch]]
    offsets, places_left = iter(kept), iter(range(rank))
    wanted = [
        ("array", next(offsets)) if axis in numbers.offset_dims else ("index", next(places_left))
        for axis in range(len(equation.outvars[0].aval.shape))
    ]
    found = graph.node("Transpose", found, perm=[axes.index(axis) for axis in wanted if axis in axes])
    return graph.reshape(found, equation.outvars[0].aval.shape)


def _dimension(graph: _Graph, equation: Any) -> str:
    """``dim_as_value``: a symbolic dimension as a number."""
    size = graph.node("Squeeze", graph.shape((equation.params["dim"],)))
    return _as(graph, size, equation.outvars[0].aval.dtype)


#: Rules for all other primitives; inputs have the shapes of the program.
_WHOLE: dict[str, Callable[..., str | list[str]]] = {
    "argmax": _argmax,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolve,
    "dim_as_value": _dimension,
    "dot_general": _dot,
    "gather": _gather,
    "pad": _pad,
    "reduce_and": _reduce_logical("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce_logical("ReduceMax"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}
