"""Elementwise operators of Caffe2: of one input, of two with both kinds of broadcasting, and of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_args import Args
from cortado.compiler.importers.caffe2_call import ANY, BOOL, FIRST, FLOAT32, MANY, NEVER, NUMBERS, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError
from cortado.proto.caffe2 import DATA_TYPE_NUMBERS, DATA_TYPES

Results = Sequence[Value | None]
FLT_MAX = float(np.finfo(np.float32).max)
BOTH = frozenset({(0, 0), (1, 0)})


def _no_attrs(args: Args) -> dict[str, Any]:
    return {}


def _clip(args: Args) -> dict[str, Any]:
    return {"lo": args.number("min", -FLT_MAX), "hi": args.number("max", FLT_MAX)}


def _relu_n(args: Args) -> dict[str, Any]:
    top = args.number("n", 6.0)
    if not top > 0:
        raise FormatError(f"argument 'n' is {top}; it must be above 0")
    return {"lo": 0.0, "hi": top}


def _selu(args: Args) -> dict[str, Any]:
    scale = args.number("scale", 1.0507009873554804934193349852946)
    if not scale > 1:
        raise FormatError(f"argument 'scale' is {scale}; it must be above 1")
    return {"alpha": args.number("alpha", 1.6732632423543772848170429916717), "scale": scale}


def _alpha(default: float) -> Callable[[Args], dict[str, Any]]:
    return lambda args: {"alpha": args.number("alpha", default)}


def _unary(
    op: str, attrs: Callable[[Args], dict[str, Any]] = _no_attrs, allowed: frozenset[str] = FLOAT32, in_place: bool = True
) -> OpSpec:
    def build(call: Call) -> Results:
        call.dtype(allowed)
        return (call.node(op, (call.x,), attrs(call.args)),)

    return OpSpec(build, in_place=FIRST if in_place else NEVER)


def _gelu(call: Call) -> Results:
    call.dtype(FLOAT32)
    return (call.node("gelu_tanh" if call.args.flag("fast_gelu") else "gelu", (call.x,)),)


def _scale(call: Call) -> Results:
    call.dtype(FLOAT32)
    return (call.node("mul", (call.x, call.number(call.args.number("scale", 1.0), "float32", "scale"))),)


def _replace_nan(call: Call) -> Results:
    call.dtype(frozenset({"float32", "float64"}))
    is_nan = call.helper("ne", (call.x, call.x), "is_nan")
    value = call.number(call.args.number("value", 0.0), call.x.type.dtype, "value")
    return (call.node("where", (is_nan, value, call.x)),)


def _cast(call: Call) -> Results:
    """`to` is a number of TensorProto.DataType or its name; absent means float."""
    call.dtype(ANY)
    number = _data_type(call.args, "to")
    if number not in DATA_TYPES:
        raise FormatError(f"argument 'to' is {number}, which is no data type that a Cast can make")
    dtype = DATA_TYPES[number]
    if dtype == call.x.type.dtype:
        return (call.x,)
    return (call.node("cast", (call.x,), {"dtype": dtype}),)


def _data_type(args: Args, name: str) -> int:
    if not args.holds(name, "s"):
        return args.integer(name, 1)
    text = args.text(name, "")
    return DATA_TYPE_NUMBERS.get(text.upper(), 0)


def _prelu(call: Call) -> Results:
    """One slope for every channel (the argument `order` says where they are), or one for all."""
    call.dtype(FLOAT32)
    first = call.channels_first()
    slope = call.inputs[1]
    if slope.type.size == 1:
        return (call.node("prelu", (call.x, call.reshaped(slope, (1,), "slope"))),)
    if len(call.x.shape) < 2:
        raise ShapeError(
            f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; with one slope per channel it needs 2 axes"
        )
    call.shape(1, (call.x.shape[1 if first else -1],), "slope")
    return (call.in_order(call.node("prelu", (call.channels_last(call.x, first), slope)), first),)


# --- two inputs ---


def _second(call: Call, implicit: bool = True) -> tuple[Value, bool]:
    """Input 1 shaped so that numpy's broadcasting does what the arguments say, and whether broadcast=1 was given.

    implicit: without `broadcast` numpy's rule holds; otherwise the shapes must be equal.
    """
    a, b = call.inputs[:2]
    if not call.args.flag("broadcast"):
        if not implicit and a.shape != b.shape:
            raise ShapeError(f"the inputs are {show(a.shape)} and {show(b.shape)}; without broadcast=1 they must be equal")
        return b, False
    return call.reshaped(b, _legacy_shape(call, a.shape, b.shape), "broadcast"), True


def _legacy_shape(call: Call, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """b with ones around it, so that it lies on the run of a's axes that the arguments name (default: the last ones)."""
    if math.prod(b) == 1:
        return (1,) * len(a)
    axis = _legacy_axis(call.args)
    axis = len(a) - len(b) if axis is None else axis
    if len(b) > len(a) or not 0 <= axis <= len(a) - len(b):
        raise ShapeError(f"with broadcast=1 input 1 {show(b)} must lie within input 0 {show(a)}; it would start at axis {axis}")
    long = [i for i, size in enumerate(b) if size != 1]
    run = range(long[0], long[-1] + 1)
    if any(a[axis + i] != b[i] for i in run):
        raise ShapeError(
            f"with broadcast=1 input 1 {show(b)}, its outer ones apart, must equal the axes of input 0 {show(a)} from axis {axis} on"
        )
    return (1,) * axis + b + (1,) * (len(a) - axis - len(b))


def _legacy_axis(args: Args) -> int | None:
    axis, letter = args.integer("axis", -1), args.text("axis_str", "")
    if axis != -1:
        if letter:
            raise FormatError("arguments 'axis' and 'axis_str' exclude each other")
        return axis
    if not letter:
        return None
    order = args.text("order", "NCHW")
    if len(letter) != 1 or letter not in order:
        raise FormatError(f"argument 'axis_str' is '{letter}'; it must be one letter of the order {order}")
    return order.index(letter)


def _binary(op: str, allowed: frozenset[str], in_place: frozenset[tuple[int, int]] = FIRST) -> OpSpec:
    def build(call: Call) -> Results:
        call.dtype(allowed)
        b, legacy = _second(call)
        if legacy and call.operator.outputs[0] == call.operator.inputs[1] != call.operator.inputs[0]:
            raise FormatError("with broadcast=1 only input 0 may be overwritten, not input 1")
        return _kept(call, call.node(op, (call.x, b)))

    return OpSpec(build, inputs=(2, 2), in_place=in_place)


def _kept(call: Call, y: Value) -> Results:
    """An output that overwrites an input must have its shape."""
    for name, value in zip(call.operator.inputs, call.inputs, strict=True):
        if name == call.operator.outputs[0] and value.shape != y.shape:
            raise ShapeError(f"the result {show(y.shape)} overwrites '{name}', which has shape {show(value.shape)}")
    return (y,)


def _pow(call: Call) -> Results:
    """The exponent is input 1, or else the argument `exponent`."""
    call.dtype(FLOAT32)
    if len(call.inputs) == 2:
        b, _ = _second(call, implicit=False)
        return _kept(call, call.node("pow", (call.x, b)))
    if not call.args.has("exponent"):
        raise FormatError("no exponent: give it as the second input or as argument 'exponent'")
    exponent = call.args.number("exponent", 0.0)
    special = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if exponent in special:
        return (call.node(special[exponent], (call.x,)),)
    return (call.node("pow", (call.x, call.number(exponent, "float32", "exponent"))),)


def _where(call: Call) -> Results:
    """No broadcasting, but with broadcast_on_rows=1 one condition per row."""
    return _chosen(call, call.args.flag("broadcast_on_rows"))


def _conditional(call: Call) -> Results:
    return _chosen(call, True)


def _chosen(call: Call, rows: bool) -> Results:
    call.dtype(BOOL, 0)
    call.dtype(ANY, 1, 2)
    condition, a, b = call.inputs
    wanted = a.shape[:1] if rows else a.shape
    if a.shape != b.shape or condition.shape != wanted:
        raise ShapeError(
            f"the condition is {show(condition.shape)}, the choices {show(a.shape)} and {show(b.shape)}: the choices must be equal "
            f"and the condition {show(wanted)}"
        )
    if rows:
        condition = call.reshaped(condition, (*wanted, *(1,) * (len(a.shape) - 1)), "rows")
    return (call.node("where", (condition, a, b)),)


# --- many inputs ---


def _chain(op: str, allowed: frozenset[str], after: str = "") -> OpSpec:
    """((x0 op x1) op x2) ..., all of one shape, then a unary operator."""

    def build(call: Call) -> Results:
        _same_shapes(call)
        call.dtype(allowed)
        if len(call.inputs) == 1 and not after:
            return (call.x,)
        return (_folded(call, op, call.inputs, after),)

    return OpSpec(build, inputs=(1, MANY), in_place=FIRST)


def _folded(call: Call, op: str, values: Sequence[Value], after: str) -> Value:
    total = values[0]
    for number, value in enumerate(values[1:], start=1):
        last = number == len(values) - 1 and not after
        total = call.node(op, (total, value)) if last else call.helper(op, (total, value), f"{op}{number}")
    return call.node(after, (total,)) if after else total


def _same_shapes(call: Call, step: int = 1) -> None:
    """Of every step-th input."""
    for name, value in zip(call.operator.inputs[::step], call.inputs[::step], strict=True):
        if value.shape != call.x.shape:
            raise ShapeError(f"input '{name}' is {show(value.shape)}, but '{call.operator.inputs[0]}' is {show(call.x.shape)}")


def _mean(call: Call) -> Results:
    call.dtype(FLOAT32)
    _same_shapes(call)
    if len(call.inputs) == 1:
        return (call.x,)
    total = call.x
    for number, value in enumerate(call.inputs[1:], start=1):
        total = call.helper("add", (total, value), f"add{number}")
    return (call.node("mul", (total, call.number(1 / len(call.inputs), "float32", "share"))),)


def _weighted_sum(call: Call) -> Results:
    """x0 * w0 + x1 * w1 ...; each weight has one element."""
    call.dtype(FLOAT32)
    values, weights = call.inputs[::2], call.inputs[1::2]
    if len(values) != len(weights):
        raise FormatError(f"takes pairs of a tensor and its weight, the file gives {len(call.inputs)} inputs")
    if any(weight.type.size != 1 for weight in weights):
        raise ShapeError("every weight (input 1, 3, ...) must have exactly one element")
    _same_shapes(call, 2)
    terms = []
    for number, (value, weight) in enumerate(zip(values, weights, strict=True)):
        scalar = call.reshaped(weight, (), f"weight{number}")
        last = len(values) == 1
        terms.append(call.node("mul", (value, scalar)) if last else call.helper("mul", (value, scalar), f"term{number}"))
    return (_folded(call, "add", terms, ""),)


# --- identities ---


def _same(call: Call) -> Results:
    return (call.x,)


def _dropout(call: Call) -> Results:
    """A copy when testing; the mask, if declared, stays unset."""
    call.dtype(FLOAT32)
    ratio = call.args.number("ratio", 0.5)
    if not 0 <= ratio < 1:
        raise FormatError(f"argument 'ratio' is {ratio}; it must be at least 0 and below 1")
    if not call.args.flag("is_test"):
        raise UnsupportedError("this Dropout is in training mode (random); export the net for testing (is_test: 1)")
    return (call.x, *(None for _ in call.operator.outputs[1:]))


_UNARY = {
    "Abs": _unary("abs", in_place=False),
    "Acos": _unary("acos", in_place=False),
    "Asin": _unary("asin", in_place=False),
    "Atan": _unary("atan", in_place=False),
    "Cbrt": _unary("cbrt"),
    "Ceil": _unary("ceil"),
    "Clip": _unary("clip", _clip),
    "Cos": _unary("cos", in_place=False),
    "Cosh": _unary("cosh", in_place=False),
    "Cube": _unary("cube", allowed=NUMBERS, in_place=False),
    "Elu": _unary("elu", _alpha(1.0)),
    "Erf": _unary("erf", in_place=False),
    "Exp": _unary("exp"),
    "Floor": _unary("floor"),
    "Gelu": OpSpec(_gelu),
    "HardSigmoid": _unary("hard_sigmoid", lambda args: {"alpha": args.number("alpha", 0.2), "beta": args.number("beta", 0.5)}),
    "LeakyRelu": _unary("leaky_relu", _alpha(0.01)),
    "Log": _unary("log"),
    "Logit": _unary("logit", lambda args: {"eps": args.number("eps", 1e-6)}),
    "Negative": _unary("negative", allowed=NUMBERS),
    "Not": _unary("logical_not", allowed=BOOL, in_place=False),
    "Reciprocal": _unary("reciprocal"),
    "Relu": _unary("relu"),
    "ReluN": _unary("clip", _relu_n),
    "Rsqrt": _unary("rsqrt"),
    "Selu": _unary("selu", _selu),
    "Sigmoid": _unary("sigmoid"),
    "Sign": _unary("sign", allowed=NUMBERS, in_place=False),
    "Sin": _unary("sin", in_place=False),
    "Sinh": _unary("sinh", in_place=False),
    "Softplus": _unary("softplus"),
    "Softsign": _unary("softsign"),
    "Sqr": _unary("square"),
    "Sqrt": _unary("sqrt"),
    "Swish": _unary("swish", in_place=False),
    "Tan": _unary("tan", in_place=False),
    "Tanh": _unary("tanh"),
    "ThresholdedRelu": _unary("thresholded_relu", _alpha(1.0)),
    "Cast": OpSpec(_cast),
    "PRelu": OpSpec(_prelu, inputs=(2, 2), in_place=FIRST),
    "ReplaceNaN": OpSpec(_replace_nan, in_place=FIRST),
    "Scale": OpSpec(_scale, in_place=FIRST),
}
_COMPARED = NUMBERS | BOOL
_BITS = frozenset({"int32", "int64", "bool"})
_BINARY = {
    "Add": _binary("add", NUMBERS, BOTH),
    "Sub": _binary("sub", NUMBERS, BOTH),
    "Mul": _binary("mul", NUMBERS, BOTH),
    "Div": _binary("div", NUMBERS),
    "And": _binary("logical_and", BOOL),
    "Or": _binary("logical_or", BOOL),
    "Xor": _binary("logical_xor", BOOL),
    "BitwiseAnd": _binary("bitwise_and", _BITS),
    "BitwiseOr": _binary("bitwise_or", _BITS),
    "BitwiseXor": _binary("bitwise_xor", _BITS),
    "EQ": _binary("eq", _COMPARED, NEVER),
    "NE": _binary("ne", _COMPARED, NEVER),
    "LT": _binary("lt", NUMBERS, NEVER),
    "LE": _binary("le", NUMBERS, NEVER),
    "GT": _binary("gt", NUMBERS, NEVER),
    "GE": _binary("ge", NUMBERS, NEVER),
    "Pow": OpSpec(_pow, inputs=(1, 2), in_place=FIRST),
    "Where": OpSpec(_where, inputs=(3, 3)),
    "Conditional": OpSpec(_conditional, inputs=(3, 3)),
}
_MANY = {
    "Sum": _chain("add", frozenset({"float32", "int32"})),
    "SumRelu": _chain("add", FLOAT32, "relu"),
    "Max": _chain("maximum", FLOAT32),
    "Min": _chain("minimum", FLOAT32),
    "Mean": OpSpec(_mean, inputs=(1, MANY), in_place=FIRST),
    "WeightedSum": OpSpec(_weighted_sum, inputs=(2, MANY), in_place=FIRST),
}
_IDENTITIES = {
    "Alias": OpSpec(_same),
    "AliasWithName": OpSpec(_same),
    "Copy": OpSpec(_same),
    "CopyFromCPUInput": OpSpec(_same),
    "EnsureCPUOutput": OpSpec(_same),
    "EnsureDense": OpSpec(_same, in_place=FIRST),
    "StopGradient": OpSpec(_same, in_place=FIRST),
    "Dropout": OpSpec(_dropout, outputs=(1, 2), in_place=FIRST),
}

OPERATORS: Mapping[str, OpSpec] = MappingProxyType({**_UNARY, **_BINARY, **_MANY, **_IDENTITIES})
