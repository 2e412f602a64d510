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
        "UnpackSegments": OpSpec(_unpack_segments, inputs=(2, 2)),
    }
)
