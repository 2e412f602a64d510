"""Normalizations of Caffe2 whose statistics come from the data itself, and the statistics alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FIRST, FLOAT32, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]
SMALLEST_NORM = 1e-12


def _epsilon(call: Call, default: float = 1e-5) -> float:
    epsilon = call.args.number("epsilon", default)
    if epsilon < 0:
        raise FormatError(f"argument 'epsilon' is {epsilon}; it must not be negative")
    return epsilon


def _statistics(call: Call, x: Value, axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """Mean, x without its mean, and variance (divided by the number of elements); the axes stay with size 1."""
    attrs = {"axes": tuple(axes), "keepdims": True}
    mean = call.helper("reduce_mean", (x,), "mean", attrs)
    centred = call.helper("sub", (x, mean), "centred")
    square = call.helper("square", (centred,), "square")
    return mean, centred, call.helper("reduce_mean", (square,), "variance", attrs)


def _inverse_deviation(call: Call, variance: Value, epsilon: float) -> Value:
    shifted = call.helper("add", (variance, call.number(epsilon, "float32", "epsilon")), "shifted")
    return call.helper("rsqrt", (shifted,), "inverse")


def _scaled(call: Call, x: Value, factor: Value, scale: Value, bias: Value) -> Value:
    y = call.helper("mul", (x, factor), "normalized")
    return call.node("add", (call.helper("mul", (y, scale), "scaled"), bias))


def _instance_norm(call: Call) -> Results:
    """Per image and channel. Further outputs: mean and 1 / deviation, [N, C]."""
    call.dtype(FLOAT32)
    first, shape = call.channels_first(), call.x.shape
    if not 3 <= len(shape) <= 5:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(shape)}; InstanceNorm takes 3, 4 or 5 axes")
    channels = shape[1 if first else -1]
    call.shape(1, (channels,), "scale")
    call.shape(2, (channels,), "bias")
    epsilon = _epsilon(call)
    x = call.channels_last(call.x, first)
    mean, centred, variance = _statistics(call, x, range(1, len(shape) - 1))
    inverse = _inverse_deviation(call, variance, epsilon)
    y = call.in_order(_scaled(call, centred, inverse, *call.inputs[1:]), first)
    return _with_statistics(call, y, (mean, inverse), (shape[0], channels))


def _with_statistics(call: Call, y: Value, statistics: Sequence[Value], shape: Sequence[int]) -> list[Value]:
    """The result, then as many of the statistics, in that shape, as the operator has outputs for."""
    more = statistics[: len(call.operator.outputs) - 1]
    return [y, *(call.as_output(value, shape, number) for number, value in enumerate(more, start=1))]


def _group_norm(call: Call) -> Results:
    """Per image and group of channels. Further outputs: mean and 1 / deviation, [N, group]."""
    call.dtype(FLOAT32)
    first, shape, group = call.channels_first(), call.x.shape, call.args.integer("group", 32)
    if len(shape) < 2:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(shape)}; GroupNorm needs at least 2 axes")
    channels = shape[1 if first else -1]
    if group < 1 or channels % group:
        raise ShapeError(
            f"argument 'group' is {group} (32 where absent); it must divide the {channels} channels of {show(shape)}"
        )
    if len(call.operator.outputs) == 2:
        raise FormatError("takes 1 or 3 outputs, the file gives 2")
    call.shape(1, (channels,), "scale")
    call.shape(2, (channels,), "bias")
    epsilon = _epsilon(call)
    x = call.channels_last(call.x, first)
    grouped = call.reshaped(x, (shape[0], math.prod(x.shape[1:-1]), group, channels // group), "groups")
    mean, centred, variance = _statistics(call, grouped, (1, 3))
    inverse = _inverse_deviation(call, variance, epsilon)
    scale, bias = (call.reshaped(v, (group, channels // group), "groups") for v in call.inputs[1:])
    y = call.reshaped(_scaled(call, centred, inverse, scale, bias), x.shape, "joined")
    return _with_statistics(call, call.in_order(y, first), (mean, inverse), (shape[0], group))


def _layer_norm(call: Call) -> Results:
    """Over everything from `axis` on. Further outputs: mean and deviation. Scale and bias count with elementwise_affine=1 only."""
    call.dtype(FLOAT32)
    shape = call.x.shape
    if len(shape) < 2:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(shape)}; LayerNorm needs at least 2 axes")
    axis = call.axis(call.args.integer("axis", 1), len(shape))
    affine = call.args.flag("elementwise_affine")
    if affine and len(call.inputs) != 3:
        raise FormatError(
            f"elementwise_affine=1 needs scale and bias as inputs 1 and 2, the file gives {len(call.inputs)} inputs"
        )
    epsilon = _epsilon(call)
    mean, centred, variance = _statistics(call, call.x, range(axis, len(shape)))
    shifted = call.helper("add", (variance, call.number(epsilon, "float32", "epsilon")), "shifted")
    deviation, inverse = call.helper("sqrt", (shifted,), "deviation"), call.helper("rsqrt", (shifted,), "inverse")
    if affine:
        for position, what in ((1, "scale"), (2, "bias")):
            if call.inputs[position].type.size != math.prod(shape[axis:]):
                call.shape(position, shape[axis:], what)
        y = _scaled(call, centred, inverse, *(call.reshaped(v, shape[axis:], "shaped") for v in call.inputs[1:]))
    else:
        y = call.node("mul", (centred, inverse))
    return _with_statistics(call, y, (mean, deviation), (*shape[:axis], 1))


def _normalize(p: int) -> Callable[[Call], Results]:
    """x divided by its norm (sum of absolute values, or Euclidean) along one axis."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        axis = call.axis(call.args.integer("axis", -1), len(call.x.shape))
        attrs = {"axes": (axis,), "keepdims": True}
        if p == 1:
            norm = call.helper("reduce_sum", (call.helper("abs", (call.x,), "abs"),), "norm", attrs)
            return (call.node("div", (call.x, norm)),)
        total = call.helper("reduce_sum", (call.helper("square", (call.x,), "square"),), "total", attrs)
        norm = call.helper("sqrt", (total,), "norm")
        norm = call.helper("maximum", (norm, call.number(SMALLEST_NORM, "float32", "smallest")), "divisor")
        return (call.node("div", (call.x, norm)),)

    return build


def _lp_norm(call: Call) -> Results:
    """p=1: the sum of absolute values; p=2: of squares, without a root. average=1 divides by their number."""
    call.dtype(FLOAT32)
    p = call.args.integer("p", 2)
    if p not in (1, 2):
        raise FormatError(f"argument 'p' is {p}; it must be 1 or 2")
    terms = call.helper("abs" if p == 1 else "square", (call.x,), "terms")
    op = "reduce_mean" if call.args.flag("average") else "reduce_sum"
    total = call.helper(op, (terms,), "total", {"axes": tuple(range(len(terms.shape))), "keepdims": False})
    return (call.as_output(total, (1,)),)


def _moments(call: Call) -> Results:
    """Mean and variance over `axes` (absent or empty: all)."""
    call.dtype(FLOAT32)
    shape = call.x.shape
    axes = {call.axis(axis, len(shape), "axes") for axis in call.args.integers("axes")} or set(range(len(shape)))
    mean, _, variance = _statistics(call, call.x, sorted(axes))
    kept = call.args.flag("keepdims", True)
    wanted = mean.shape if kept else tuple(d for i, d in enumerate(shape) if i not in axes)
    return (call.as_output(mean, wanted, 0), call.as_output(variance, wanted, 1))


def _channel_sums(op: str, ordered: bool) -> Callable[[Call], Results]:
    """Sums or means, per channel, of the elements and of their squares. ordered: the operator heeds `order`, else it is NCHW."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        rank = len(call.x.shape)
        if rank < 3:
            raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} needs 3 axes")
        x = call.channels_last(call.x, call.channels_first() if ordered else True)
        attrs = {"axes": tuple(range(rank - 1)), "keepdims": False}
        square = call.helper("square", (x,), "square")
        return (call.node(op, (x,), attrs, 0), call.node(op, (square,), attrs, 1))

    return build


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "InstanceNorm": OpSpec(_instance_norm, inputs=(3, 3), outputs=(1, 3), in_place=FIRST),
        "GroupNorm": OpSpec(_group_norm, inputs=(3, 3), outputs=(1, 3)),
        "LayerNorm": OpSpec(_layer_norm, inputs=(1, 3), outputs=(3, 3)),
        "Normalize": OpSpec(_normalize(2)),
        "NormalizeL1": OpSpec(_normalize(1)),
        "LpNorm": OpSpec(_lp_norm),
        "Moments": OpSpec(_moments, outputs=(2, 2)),
        "BatchMoments": OpSpec(_channel_sums("reduce_mean", True), outputs=(2, 2)),
        "ChannelStats": OpSpec(_channel_sums("reduce_sum", False), outputs=(2, 2)),
    }
)
