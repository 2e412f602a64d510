"""Reductions of Caffe2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, NUMBERS, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import ShapeError

Results = Sequence[Value | None]
LOWEST = float(np.finfo(np.float32).min)


def _reduce(op: str, allowed: frozenset[str], before: str = "", after: str = "") -> OpSpec:
    """Over `axes` (absent or empty: all), kept with size 1 unless keepdims=0; with unary operators around it."""

    def build(call: Call) -> Results:
        call.dtype(allowed)
        rank = len(call.x.shape)
        axes = {call.axis(axis, rank, "axes") for axis in call.args.integers("axes")} or set(range(rank))
        attrs = {"axes": tuple(sorted(axes)), "keepdims": call.args.flag("keepdims", True)}
        x = call.helper(before, (call.x,), before) if before else call.x
        if not after:
            return (call.node(op, (x,), attrs),)
        return (call.node(after, (call.helper(op, (x,), op, attrs),)),)

    return OpSpec(build)


def _reduce_side(op: str, front: bool) -> OpSpec:
    """Over the first or the last `num_reduce_dim` axes, which vanish. A second input says how many elements each result takes."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32, 0)
        shape, count = call.x.shape, call.args.integer("num_reduce_dim", 1)
        if not 0 <= count <= len(shape):
            raise ShapeError(f"argument 'num_reduce_dim' is {count}; the input {show(shape)} has {len(shape)} axes")
        cut = count if front else len(shape) - count
        reduced, kept = (shape[:cut], shape[cut:]) if front else (shape[cut:], shape[:cut])
        if len(call.inputs) == 2:
            return (call.reshaped(_with_lengths(call, op, front, math.prod(reduced), math.prod(kept)), kept, "shaped"),)
        if count == 0:
            return (call.x,)
        axes = tuple(range(cut)) if front else tuple(range(cut, len(shape)))
        return (call.node(op, (call.x,), {"axes": axes, "keepdims": False}),)

    return OpSpec(build, inputs=(1, 2))


def _with_lengths(call: Call, op: str, front: bool, reduced: int, kept: int) -> Value:
    """The input as a matrix, what lies beyond each result's length replaced by what changes nothing."""
    call.dtype(frozenset({"int32"}), 1)
    call.shape(1, (kept,), "lengths")
    lengths = call.inputs[1]
    positions = np.arange(reduced, dtype=np.int32)
    across, axis = ((1, kept), 0) if front else ((kept, 1), 1)
    x = call.reshaped(call.x, (reduced, kept) if front else (kept, reduced), "matrix")
    column = call.side(positions[:, None] if front else positions[None, :], "positions")
    inside = call.helper("lt", (column, call.reshaped(lengths, across, "lengths")), "inside")
    neutral = call.number(LOWEST if op == "reduce_max" else 0, "float32", "neutral")
    chosen = call.helper("where", (inside, x, neutral), "chosen")
    attrs = {"axes": (axis,), "keepdims": False}
    if op != "reduce_mean":
        return call.node(op, (chosen,), attrs)
    total = call.helper("reduce_sum", (chosen,), "total", attrs)
    return call.node("div", (total, call.helper("cast", (lengths,), "count", {"dtype": "float32"})))


def _over(op: str, axis: int) -> OpSpec:
    """Over one axis of a tensor of three."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        if len(call.x.shape) != 3:
            raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} takes 3 axes")
        return (call.node(op, (call.x,), {"axes": (axis,), "keepdims": False}),)

    return OpSpec(build)


def _elements(before: str) -> Callable[[Call], Results]:
    """Over all elements; average=1 divides by their number."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        x = call.helper(before, (call.x,), before) if before else call.x
        op = "reduce_mean" if call.args.flag("average") else "reduce_sum"
        return (call.node(op, (x,), {"axes": tuple(range(len(x.shape))), "keepdims": False}),)

    return build


def _tail_sum(call: Call) -> Results:
    """Over all axes but the first."""
    call.dtype(FLOAT32)
    if len(call.x.shape) < 1:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' has no axes")
    return (call.node("reduce_sum", (call.x,), {"axes": tuple(range(1, len(call.x.shape))), "keepdims": False}),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "ReduceSum": _reduce("reduce_sum", NUMBERS),
        "ReduceMean": _reduce("reduce_mean", FLOAT32),
        "ReduceMax": _reduce("reduce_max", NUMBERS),
        "ReduceMin": _reduce("reduce_min", NUMBERS),
        "ReduceL1": _reduce("reduce_sum", FLOAT32, before="abs"),
        "ReduceL2": _reduce("reduce_sum", FLOAT32, before="square", after="sqrt"),
        "ReduceFrontSum": _reduce_side("reduce_sum", True),
        "ReduceFrontMean": _reduce_side("reduce_mean", True),
        "ReduceFrontMax": _reduce_side("reduce_max", True),
        "ReduceBackSum": _reduce_side("reduce_sum", False),
        "ReduceBackMean": _reduce_side("reduce_mean", False),
        "ReduceBackMax": _reduce_side("reduce_max", False),
        "ReduceTailSum": OpSpec(_tail_sum),
        "RowwiseMax": _over("reduce_max", 2),
        "ColwiseMax": _over("reduce_max", 1),
        "SumElements": OpSpec(_elements("")),
        "SumSqrElements": OpSpec(_elements("square")),
    }
)
