"""Pooling and normalization operators of Caffe2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FIRST, FLOAT32, Call, OpSpec
from cortado.compiler.importers.caffe2_window import read_window
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]


def _pool(op: str, rank: int | None) -> Callable[[Call], Results]:
    """rank: the spatial axes the operator's name demands, or None for 1 to 3."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        first = call.channels_first()
        wanted = range(1, 4) if rank is None else (rank,)
        if len(call.x.shape) - 2 not in wanted:
            axes = " or ".join(str(n + 2) for n in wanted)
            raise ShapeError(
                f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} takes {axes} axes"
            )
        window = read_window(call.args)
        if any(d != 1 for d in window.dilations):
            raise FormatError(f"pooling has no dilation, found {show(window.dilations)}")
        if any(pad >= size for pad, size in zip(window.pads, window.kernel * 2, strict=not window.whole)):
            raise FormatError(f"every pad must be below the kernel: pads {show(window.pads)}, kernel {show(window.kernel)}")
        x = call.channels_last(call.x, first)
        attrs: dict[str, object] = dict(window.fit(x.shape[1:-1]))
        if op == "average_pool":
            attrs["count_include_pad"] = call.args.flag("count_include_pad")
        return (call.in_order(call.node(op, (x,), attrs), first),)

    return build


def _spatial_bn(call: Call) -> Results:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with the stored mean and variance."""
    if not call.args.flag("is_test"):
        raise UnsupportedError(
            "this SpatialBN is in training mode (it computes its own mean); export the net for testing (is_test: 1)"
        )
    if len(call.inputs) != 5 or len(call.operator.outputs) != 1:
        raise FormatError("with is_test it takes exactly five inputs (x, scale, bias, mean, variance) and gives one output")
    call.dtype(FLOAT32)
    first = call.channels_first()
    epsilon, momentum = call.args.number("epsilon", 1e-5), call.args.number("momentum", 0.9)
    if not epsilon > 0:
        raise FormatError(f"argument 'epsilon' is {epsilon}; it must be above 0")
    if not 0 <= momentum <= 1:
        raise FormatError(f"argument 'momentum' is {momentum}; it must be between 0 and 1")
    if len(call.x.shape) < 2:
        raise ShapeError(
            f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; batch normalization takes at least 2 axes"
        )
    channels = call.x.shape[1 if first else -1]
    for position, what in enumerate(("scale", "bias", "mean", "variance"), start=1):
        call.shape(position, (channels,), what)
    x = call.channels_last(call.x, first)
    return (call.in_order(call.node("batch_norm", (x, *call.inputs[1:]), {"epsilon": epsilon}), first),)


def _affine_channel(call: Call) -> Results:
    """x * scale + bias per channel."""
    call.dtype(FLOAT32)
    first = call.channels_first()
    if len(call.x.shape) < 2:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; AffineChannel takes at least 2 axes")
    channels = call.x.shape[1 if first else -1]
    call.shape(1, (channels,), "scale")
    call.shape(2, (channels,), "bias")
    scaled = call.helper("mul", (call.channels_last(call.x, first), call.inputs[1]), "scaled")
    return (call.in_order(call.node("add", (scaled, call.inputs[2])), first),)


def _lrn(call: Call) -> Results:
    """x * scale^-beta with scale = bias + alpha / size * (sum of squares over `size` channels); scale is the second output."""
    call.dtype(FLOAT32)
    first = call.channels_first()
    size, alpha, beta = call.args.integer("size", 0), call.args.number("alpha", 0.0), call.args.number("beta", 0.0)
    bias = call.args.number("bias", 1.0)
    if size < 1 or size % 2 == 0:
        raise FormatError(f"argument 'size' is {size}; it must be an odd number of channels")
    if not (alpha > 0 and beta > 0):
        raise FormatError(f"arguments 'alpha' and 'beta' are {alpha} and {beta}; both must be given and above 0")
    if len(call.x.shape) != 4:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; LRN takes 4 axes")
    x = call.channels_last(call.x, first)
    attrs = {"size": size, "alpha": alpha, "beta": beta, "bias": bias}
    y = call.in_order(call.node("lrn", (x,), attrs), first)
    if len(call.operator.outputs) == 1:
        return (y,)
    return (y, call.in_order(_lrn_scale(call, x, size, alpha, bias), first))


def _lrn_scale(call: Call, x: Value, size: int, alpha: float, bias: float) -> Value:
    """The mean of squares over neighbouring channels is an average pooling along them: channels become the one spatial axis."""
    lines = call.reshaped(call.helper("square", (x,), "squares"), (math.prod(x.shape[:-1]), x.shape[-1], 1), "lines")
    window = {
        "kernel": (size,), "strides": (1,), "dilations": (1,), "pads_begin": (size // 2,), "pads_end": (size // 2,),
        "count_include_pad": True,
    }  # fmt: skip
    mean = call.reshaped(call.helper("average_pool", (lines,), "mean", window), x.shape, "means")
    scaled = call.helper("mul", (mean, call.number(alpha, "float32", "alpha")), "scaled")
    return call.node("add", (scaled, call.number(bias, "float32", "bias")), output=1)


def _softmax(call: Call) -> Results:
    """One softmax over everything from `axis` on."""
    call.dtype(FLOAT32)
    x = call.x
    axis = call.axis(call.args.integer("axis", 1), len(x.shape))
    long = [i for i in range(axis, len(x.shape)) if x.shape[i] != 1] or [axis]
    if len(long) == 1:
        return (call.node("softmax", (x,), {"axis": long[0]}),)
    flat = call.reshaped(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), "flat")
    return (call.reshaped(call.node("softmax", (flat,), {"axis": 1}), x.shape, "shaped"),)


_POOLS = {
    f"{name}{suffix}": OpSpec(_pool(op, rank))
    for name, op in (("MaxPool", "max_pool"), ("AveragePool", "average_pool"))
    for suffix, rank in (("", None), ("1D", 1), ("2D", 2), ("3D", 3))
}

OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        **_POOLS,
        "SpatialBN": OpSpec(_spatial_bn, inputs=(5, 7), outputs=(1, 5), in_place=FIRST | {(3, 1), (4, 2), (5, 1), (6, 2)}),
        "AffineChannel": OpSpec(_affine_channel, inputs=(3, 3), in_place=FIRST),
        "LRN": OpSpec(_lrn, outputs=(1, 2)),
        "Softmax": OpSpec(_softmax),
    }
)
