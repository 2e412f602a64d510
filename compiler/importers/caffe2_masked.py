"""Operators of Caffe2 whose number of results is data, up to a largest one that is known (see `compiler.counts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import ANY, FLOAT32, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import ShapeError, UnsupportedError

Results = Sequence[Value | None]
INT32 = frozenset({"int32"})


def _boolean_mask(call: Call) -> Results:
    """The rows where the mask is true; the second output is their numbers."""
    call.dtype(ANY, 0)
    call.dtype(frozenset({"bool"}), 1)
    x, mask = call.inputs
    if not x.shape or mask.shape != x.shape[:1]:
        raise ShapeError(
            f"the mask '{call.operator.inputs[1]}' is {show(mask.shape)}; it must have one element for each row of {show(x.shape)}"
        )
    rows = call.node("keep_rows", (x, mask))
    if len(call.operator.outputs) == 1:
        return (rows,)
    numbers = call.side(np.arange(x.shape[0], dtype=np.int64), "numbers")
    return (rows, call.node("keep_rows", (numbers, mask), None, 1))


def _unpack_segments(call: Call) -> Results:
    """From [runs, longest, ...] the rows that the lengths count."""
    call.dtype(INT32, 0)
    lengths, packed = call.inputs
    if len(packed.shape) < 2 or lengths.shape != packed.shape[:1]:
        raise ShapeError(
            f"the lengths are {show(lengths.shape)} and the segments {show(packed.shape)}; there must be one length for each"
        )
    runs, longest = packed.shape[:2]
    steps = call.side(np.arange(longest, dtype=np.int32), "steps")
    inside = call.helper("lt", (steps, call.reshaped(lengths, (runs, 1), "column")), "inside")
    flat = call.reshaped(packed, (runs * longest, *packed.shape[2:]), "flat")
    return (call.node("keep_rows", (flat, call.reshaped(inside, (runs * longest,), "mask"))),)


def _pack_segments(call: Call) -> Results:
    """Rows, as many in a row as the lengths say, to [runs, longest, ...], zeros (pad_minf: the lowest number) behind each run.

    longest: `max_length`, to which longer runs are cut, or the largest of constant lengths.
    """
    call.dtype(INT32, 0)
    lengths, rows = call.inputs
    longest = call.args.integer("max_length", -1)
    if len(lengths.shape) != 1 or not rows.shape:
        raise ShapeError(
            f"the lengths are {show(lengths.shape)} and the rows {show(rows.shape)}; lengths have one axis, rows at least one"
        )
    if longest <= 0:
        if lengths.constant is None:
            raise UnsupportedError(
                "how long the longest segment is depends on the data; give argument max_length, or constant lengths"
            )
        longest = int(lengths.constant.max(initial=0))
    runs, count = lengths.shape[0], rows.shape[0]
    before = call.side(np.tri(runs, k=-1, dtype=np.int32), "before")
    starts = call.helper(
        "reduce_sum", (call.helper("mul", (before, lengths), "earlier"),), "starts", {"axes": (1,), "keepdims": True}
    )
    steps = call.side(np.arange(longest, dtype=np.int32), "steps")
    inside = call.helper("lt", (steps, call.reshaped(lengths, (runs, 1), "column")), "inside")
    shape = (runs, longest, *rows.shape[1:])
    fill = float("-inf") if call.args.flag("pad_minf") else 0.0
    if not count or not longest or not runs:
        packed = call.constant(np.full(shape, fill, rows.type.numpy))
    else:
        last = call.number(count - 1, "int32", "last")
        places = call.helper("minimum", (call.helper("add", (starts, steps), "after"), last), "places")
        taken = call.helper("gather", (rows, places), "rows", {"axis": 0})
        mask = call.reshaped(inside, (runs, longest, *[1] * (len(rows.shape) - 1)), "mask")
        packed = call.node("where", (mask, taken, call.number(fill, rows.type.dtype, "fill")))
    if len(call.operator.outputs) == 1:
        return (packed,)
    return (packed, call.as_output(inside, (runs, longest), 1) if call.args.flag("return_presence_mask") else None)


def _gather_ranges(call: Call) -> Results:
    """data[N], ranges[rows, k, (first, length)] -> all elements in the ranges, one range after the other, and how many each row has."""
    call.dtype(ANY, 0)
    call.dtype(frozenset({"int32", "int64"}), 1)
    data, ranges = call.inputs
    if len(data.shape) != 1 or len(ranges.shape) != 3 or ranges.shape[2] != 2:
        raise ShapeError(
            f"the data are {show(data.shape)} and the ranges {show(ranges.shape)}; they must be [n] and [rows, ranges, 2]"
        )
    rows, each, count = *ranges.shape[:2], data.shape[0]
    if ranges.constant is not None and ranges.constant.size and int(ranges.constant.sum(axis=2).max()) > count:
        raise ShapeError(f"a range ends at {int(ranges.constant.sum(axis=2).max())}, but there are {count} elements")
    if ranges.type.dtype != "int32":
        ranges = call.helper("cast", (ranges,), "numbers", {"dtype": "int32"})

    def column(number: int, name: str) -> Value:
        attrs = {"starts": (0, 0, number), "stops": (rows, each, number + 1)}
        return call.helper("slice", (ranges,), name, attrs)

    first, length = column(0, "first"), column(1, "length")
    places = call.side(np.arange(count, dtype=np.int32), "places")
    after = call.helper("ge", (places, first), "after")
    inside = call.helper(
        "logical_and", (after, call.helper("lt", (places, call.helper("add", (first, length), "end")), "before")), "inside"
    )
    spread = call.helper("broadcast_to", (data,), "spread", {"shape": (rows, each, count)})
    flat, mask = (call.reshaped(value, (rows * each * count,), "flat") for value in (spread, inside))
    kept = call.node("keep_rows", (flat, mask))
    sums = call.helper("reduce_sum", (length,), "sums", {"axes": (1,), "keepdims": False})
    return (kept, call.as_output(sums, (rows,), 1))


def _ctc_greedy(call: Call) -> Results:
    """x[T, N, classes] (, lengths): per column the best class of each step, without repeats and without the blank class 0.

    Outputs: how many are left per column, and all of them, column after column.
    """
    call.dtype(FLOAT32, 0)
    if len(call.x.shape) != 3:
        raise UnsupportedError(
            f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; only [time, batch, classes] is supported"
        )
    steps, batch, _ = call.x.shape
    best = call.helper("arg_max", (call.x,), "best", {"axis": 2, "keepdims": False})
    labels = call.transposed(call.helper("cast", (best,), "labels", {"dtype": "int32"}), (1, 0), "columns")
    zero = call.number(0, "int32", "blank")
    kept = call.helper("ne", (labels, zero), "spoken")
    if call.args.flag("merge_repeated", True) and steps > 1:
        before = call.helper("slice", (labels,), "before", {"starts": (0, 0), "stops": (batch, steps - 1)})
        shifted = {"begin": (0, 1), "end": (0, 0), "mode": "constant", "value": -1}
        before = call.helper("pad", (before,), "previous", shifted)
        kept = call.helper("logical_and", (kept, call.helper("ne", (labels, before), "new")), "kept")
    if len(call.inputs) == 2:
        call.dtype(INT32, 1)
        call.shape(1, (batch,), "lengths")
        time = call.side(np.arange(steps, dtype=np.int32), "time")
        inside = call.helper("lt", (time, call.reshaped(call.inputs[1], (batch, 1), "ends")), "inside")
        kept = call.helper("logical_and", (kept, inside), "kept_inside")
    ones = call.helper("cast", (kept,), "ones", {"dtype": "int32"})
    counts = call.node("reduce_sum", (ones,), {"axes": (1,), "keepdims": False})
    flat, mask = (call.reshaped(v, (batch * steps,), "flat") for v in (labels, kept))
    return (counts, call.node("keep_rows", (flat, mask), None, 1))


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "BooleanMask": OpSpec(_boolean_mask, inputs=(2, 2), outputs=(1, 2)),
        "CTCGreedyDecoder": OpSpec(_ctc_greedy, inputs=(1, 2), outputs=(2, 2)),
        "GatherRanges": OpSpec(_gather_ranges, inputs=(2, 2), outputs=(2, 2)),
        "PackSegments": OpSpec(_pack_segments, inputs=(2, 2), outputs=(1, 2)),
        "UnpackSegments": OpSpec(_unpack_segments, inputs=(2, 2)),
    }
)
