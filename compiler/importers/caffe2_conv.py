"""Convolutions, fully connected layers and matrix products of Caffe2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, Call, OpSpec
from cortado.compiler.importers.caffe2_window import read_window
from cortado.compiler.ops.checks import show
from cortado.errors import ShapeError, UnsupportedError

Results = Sequence[Value | None]


def _convolution(rank: int | None, relu: bool) -> Callable[[Call], Results]:
    """rank: the spatial axes the operator's name demands, or None for 1 to 3."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        first = call.channels_first()
        _check_filter(call, first, rank)
        x, w = call.channels_last(call.x, first), call.channels_last(call.inputs[1], first)
        window = read_window(call.args)
        if window.whole:
            raise UnsupportedError("a convolution with global_pooling is not supported: give the kernel size")
        attrs: dict[str, Any] = dict(window.fit(x.shape[1:-1]))
        kernel = attrs.pop("kernel")
        if kernel != w.shape[1:-1]:
            raise ShapeError(
                f"the kernel arguments say {show(kernel)}, but the filter '{call.operator.inputs[1]}' is "
                f"{show(call.inputs[1].shape)} ({'outputs, channels, kernel' if first else 'outputs, kernel, channels'})"
            )
        attrs.update(group=call.args.integer("group", 1), epilogue=(("bias",),) * (len(call.inputs) - 2))
        inputs = (x, w, *call.inputs[2:])
        if not relu:
            return (call.in_order(call.node("conv", inputs, attrs), first),)
        return (call.in_order(call.node("relu", (call.helper("conv", inputs, "conv", attrs),)), first),)

    return build


def _check_filter(call: Call, first: bool, rank: int | None) -> None:
    """Shapes in the file's own layout, so that messages speak of what the user sees."""
    x, w = call.x.shape, call.inputs[1].shape
    if not 3 <= len(x) <= 5 or (rank is not None and len(x) != rank + 2):
        wanted = "3, 4 or 5" if rank is None else str(rank + 2)
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(x)}; {call.operator.type} takes {wanted} axes")
    if len(w) != len(x):
        raise ShapeError(f"the filter '{call.operator.inputs[1]}' is {show(w)}; it must have as many axes as the input {show(x)}")
    group, channel = call.args.integer("group", 1), 1 if first else -1
    if group < 1 or w[0] % group or x[channel] != w[channel] * group:
        raise ShapeError(
            f"the filter '{call.operator.inputs[1]}' {show(w)} with group {group} fits {w[channel] * group} input channels and a "
            f"number of outputs that {group} divides; the input '{call.operator.inputs[0]}' {show(x)} has {x[channel]} channels"
        )
    if len(call.inputs) > 2:
        call.shape(2, (w[0],), "bias")


def _fully_connected(transposed: bool) -> Callable[[Call], Results]:
    """X is flattened at `axis`, W at `axis_w`; W is [outputs, inputs], or the other way round where transposed."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        x, w, b = call.inputs
        axis = call.axis(call.args.integer("axis", 1), len(x.shape))
        cut = call.axis(call.args.integer("axis_w", 1), len(w.shape), "axis_w")
        rows, columns = math.prod(w.shape[:cut]), math.prod(w.shape[cut:])
        count, depth = (columns, rows) if transposed else (rows, columns)
        if depth != math.prod(x.shape[axis:]):
            raise ShapeError(
                f"the weights '{call.operator.inputs[1]}' {show(w.shape)} take {depth} inputs for {count} outputs; the input "
                f"'{call.operator.inputs[0]}' {show(x.shape)}, flattened from axis {axis} on, has {math.prod(x.shape[axis:])}"
            )
        call.shape(2, (count,), "bias")
        matrix = call.reshaped(w, (rows, columns), "matrix")
        matrix = call.transposed(matrix, (1, 0), "transposed") if transposed else matrix
        shape = (*x.shape[:axis], count)
        if axis == len(x.shape) - 1:
            return (call.node("fc", (x, matrix, b), {"epilogue": (("bias",),)}),)
        flat = call.reshaped(x, (math.prod(x.shape[:axis]), depth), "flat")
        y = call.node("fc", (flat, matrix, b), {"epilogue": (("bias",),)})
        return (call.reshaped(y, shape, "shaped"),)

    return build


def _matmul(call: Call) -> Results:
    """A and B as matrices, flattened at axis_a and axis_b."""
    call.dtype(FLOAT32)
    matrices = []
    for value, name in zip(call.inputs, "ab", strict=True):
        cut = call.axis(call.args.integer(f"axis_{name}", 1), len(value.shape), f"axis_{name}")
        matrices.append(call.reshaped(value, (math.prod(value.shape[:cut]), math.prod(value.shape[cut:])), f"matrix_{name}"))
    return (call.node("batch_matmul", matrices, _turns(call)),)


def _turns(call: Call) -> dict[str, bool]:
    return {"transpose_a": call.args.flag("trans_a"), "transpose_b": call.args.flag("trans_b")}


def _batch_matmul(call: Call) -> Results:
    """Equal ranks without `broadcast`; with it numpy's broadcasting of the leading axes, and vectors as rows (A) and columns (B)."""
    call.dtype(FLOAT32)
    a, b = call.inputs
    turns = _turns(call)
    if not call.args.flag("broadcast"):
        if len(a.shape) != len(b.shape) or len(a.shape) < 2 or a.shape[:-2] != b.shape[:-2]:
            raise ShapeError(
                f"the inputs are {show(a.shape)} and {show(b.shape)}; without broadcast=1 they need the same number of axes, "
                "at least 2, and equal leading axes"
            )
        return (call.node("batch_matmul", (a, b), turns),)
    row, column = len(a.shape) == 1, len(b.shape) == 1
    if row:
        a, turns = call.reshaped(a, (1, *a.shape), "row"), {**turns, "transpose_a": False}
    if column:
        b, turns = call.reshaped(b, (*b.shape, 1), "column"), {**turns, "transpose_b": False}
    y = call.node("batch_matmul", (a, b), turns)
    shape = (*y.shape[:-2], *(() if row else y.shape[-2:-1]), *(() if column else y.shape[-1:]))
    return (call.reshaped(y, shape, "shaped"),)


_CONV = {
    name: OpSpec(_convolution(rank, relu), inputs=(2, 3))
    for name, rank, relu in (
        ("Conv", None, False),
        ("Conv1D", 1, False),
        ("Conv2D", 2, False),
        ("Conv3D", 3, False),
        ("ConvRelu", None, True),
    )
}

OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        **_CONV,
        "FC": OpSpec(_fully_connected(False), inputs=(3, 3)),
        "FCTransposed": OpSpec(_fully_connected(True), inputs=(3, 3)),
        "MatMul": OpSpec(_matmul, inputs=(2, 2)),
        "BatchMatMul": OpSpec(_batch_matmul, inputs=(2, 2)),
    }
)
