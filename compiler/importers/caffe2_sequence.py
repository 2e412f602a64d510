"""Operators of Caffe2 on sequences: rows grouped by lengths, embeddings looked up and summed, masks, positions.

Shapes must be known when compiling, so what has as many rows as the lengths say is made only where the lengths are constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, Call, OpSpec, integers
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]
INDICES = frozenset({"int32", "int64"})
INT32 = frozenset({"int32"})


def _lengths(call: Call, position: int) -> Value:
    call.dtype(INT32, position)
    lengths = call.inputs[position]
    if len(lengths.shape) != 1:
        raise ShapeError(f"the lengths '{call.operator.inputs[position]}' are {show(lengths.shape)}; they must have one axis")
    return lengths


def _segments(call: Call, rows: Value, lengths: Value, mode: str) -> Results:
    return (call.node("segment_reduce", (rows, lengths), {"mode": mode}),)


def _lengths_reduce(mode: str) -> Callable[[Call], Results]:
    """One result for each run of rows; 0 for an empty one."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32, 0)
        return _segments(call, call.x, _lengths(call, 1), mode)

    return build


def _lengths_weighted(call: Call) -> Results:
    call.dtype(FLOAT32, 0, 1)
    return _segments(call, _weighted(call, call.x, call.inputs[1]), _lengths(call, 2), "sum")


def _weighted(call: Call, rows: Value, weights: Value) -> Value:
    """Every row times its weight."""
    if weights.type.size != rows.shape[0]:
        raise ShapeError(f"there are {weights.type.size} weights for {rows.shape[0]} rows; there must be as many")
    column = call.reshaped(weights, (rows.shape[0], *(1,) * (len(rows.shape) - 1)), "column")
    return call.helper("mul", (rows, column), "weighted")


def _rows(call: Call, table: Value, position: int) -> Value:
    """Rows of an embedding table at the indices given as an input."""
    call.dtype(INDICES, position)
    indices = call.inputs[position]
    if len(indices.shape) != 1 or not table.shape:
        raise ShapeError(f"the indices '{call.operator.inputs[position]}' are {show(indices.shape)}; they must have one axis")
    return call.helper("gather", (table, indices), "rows", {"axis": 0})


def _sparse(mode: str, weighted: bool) -> Callable[[Call], Results]:
    """DATA, (WEIGHTS,) INDICES, LENGTHS."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32, 0, *([1] if weighted else []))
        rows = _rows(call, call.x, 2 if weighted else 1)
        if weighted:
            rows = _weighted(call, rows, call.inputs[1])
        return _segments(call, rows, _lengths(call, 3 if weighted else 2), mode)

    return build


def _sparse_positional(call: Call) -> Results:
    """DATA, POSITION_WEIGHTS, INDICES, LENGTHS: each row's weight is that of its position in its run."""
    call.dtype(FLOAT32, 0, 1)
    lengths = _lengths(call, 3)
    rows = _rows(call, call.x, 2)
    weights = call.helper("gather", (call.inputs[1], _positions(call, lengths, rows.shape[0])), "weights", {"axis": 0})
    return _segments(call, _weighted(call, rows, weights), lengths, "sum")


def _starts(call: Call, lengths: Value) -> Value:
    """Where each run starts: the sum of the lengths before it."""
    count = lengths.shape[0]
    before = call.helper("mul", (lengths, call.side(np.tri(count, count, -1, np.int32), "triangle")), "before")
    return call.helper("reduce_sum", (before,), "starts", {"axes": (1,), "keepdims": False})


def _positions(call: Call, lengths: Value, rows: int) -> Value:
    """int32[rows]: every row's position in its run, which is its distance from the last start that is not after it."""
    numbers = np.arange(rows, dtype=np.int32)
    starts, zero = _starts(call, lengths), call.number(0, "int32", "zero")
    reached = call.helper("le", (starts, call.side(numbers[:, None], "numbers")), "reached")
    passed = call.helper("where", (reached, starts, zero), "passed")
    last = call.helper("reduce_max", (passed,), "last", {"axes": (1,), "keepdims": False})
    return call.helper("sub", (call.side(numbers, "row_numbers"), last), "positions")


# --- 8-bit tables ---


def _sparse_bytes(mode: str, weighted: bool, fused: bool) -> Callable[[Call], Results]:
    """A table of bytes; each row's scale and bias are the last input [rows, 2], or (fused) the row's own last 8 bytes."""

    def build(call: Call) -> Results:
        call.dtype(frozenset({"uint8"}), 0)
        indices = 2 if weighted else 1
        codes, scale, bias = _fused_table(call) if fused else _separate_table(call)
        rows = _rows(call, codes, indices)
        chosen = call.inputs[indices]
        parts = [call.helper("gather", (part, chosen), name, {"axis": 0}) for part, name in ((scale, "scales"), (bias, "biases"))]
        values = call.helper("cast", (rows,), "codes", {"dtype": "float32"})
        values = call.helper("add", (call.helper("mul", (values, parts[0]), "scaled"), parts[1]), "values")
        if weighted:
            call.dtype(FLOAT32, 1)
            values = _weighted(call, values, call.inputs[1])
        return _segments(call, values, _lengths(call, indices + 1), mode)

    return build


def _separate_table(call: Call) -> tuple[Value, Value, Value]:
    position = len(call.inputs) - 1
    call.dtype(FLOAT32, position)
    call.shape(position, (call.x.shape[0], 2), "scales and biases")
    table = call.known(position, "scales and biases")
    return call.x, call.side(table[:, :1].copy(), "scale"), call.side(table[:, 1:].copy(), "bias")


def _fused_table(call: Call) -> tuple[Value, Value, Value]:
    table = call.known(0, "table")
    if table.ndim != 2 or table.shape[1] < 8:
        raise ShapeError(f"the table '{call.operator.inputs[0]}' is {show(table.shape)}; it must be [rows, columns + 8]")
    numbers = np.ascontiguousarray(table[:, -8:]).view("<f4")
    codes = call.side(table[:, :-8].copy(), "table")
    return codes, call.side(numbers[:, :1].copy(), "scale"), call.side(numbers[:, 1:].copy(), "bias")


# --- masks, orders, positions ---


def _sequence_mask(call: Call) -> Results:
    """x as [rows, columns], cut at `axis`; what the mode leaves out becomes fill_val."""
    call.dtype(FLOAT32, 0)
    shape = call.x.shape
    for name in ("batch", "grad"):
        if call.args.has(name):
            raise UnsupportedError(f"argument '{name}' of SequenceMask is not supported")
    axis = call.axis(call.args.integer("axis", 1), len(shape))
    end = call.args.integer("repeat_from_axis", len(shape)) if call.args.has("repeat_from_axis") else len(shape)
    end = call.axis(end, len(shape), "repeat_from_axis") if end != len(shape) else end
    if end <= axis:
        raise ShapeError(f"argument 'repeat_from_axis' is {end}; it must be above axis {axis}")
    rows, columns, rest = math.prod(shape[:axis]), math.prod(shape[axis:end]), math.prod(shape[end:])
    kept = _kept_cells(call, rows, columns)
    fill = call.number(call.args.number("fill_val", -math.inf), "float32", "fill")
    x = call.reshaped(call.x, (rows, columns, rest), "cells")
    full = call.helper("broadcast_to", (fill,), "fills", {"shape": (rows, columns, rest)})
    return (call.as_output(call.helper("where", (kept, x, full), "masked"), shape),)


def _kept_cells(call: Call, rows: int, columns: int) -> Value:
    mode = call.args.text("mode", "")
    row, column = np.arange(rows, dtype=np.int32)[:, None], np.arange(columns, dtype=np.int32)[None, :]
    if mode == "sequence":
        if len(call.inputs) != 2:
            raise FormatError("mode 'sequence' takes the lengths as the second input")
        call.dtype(INT32, 1)
        if call.inputs[1].type.size != rows:
            raise ShapeError(f"there are {call.inputs[1].type.size} lengths for {rows} rows; there must be as many")
        lengths = call.reshaped(call.inputs[1], (rows, 1, 1), "ends")
        return call.helper("lt", (call.side(column[:, :, None], "columns"), lengths), "kept")
    if mode == "window":
        if len(call.inputs) != 2:
            raise FormatError("mode 'window' takes the centres as the second input")
        call.dtype(INT32, 1)
        radius = call.args.integer("radius", 10)
        centres = call.reshaped(call.inputs[1], (rows, 1, 1), "centres")
        distance = call.helper(
            "abs", (call.helper("sub", (call.side(column[:, :, None], "columns"), centres), "offsets"),), "distance"
        )
        return call.helper("le", (distance, call.number(radius, "int32", "radius")), "kept")
    masks = {"upper": column <= row, "lower": column >= row, "upperdiag": column < row, "lowerdiag": column > row}
    if mode not in masks:
        raise FormatError(f"argument 'mode' is '{mode}'; it must be sequence, window, upper, lower, upperdiag or lowerdiag")
    return call.side(masks[mode][:, :, None], "kept")


def _reverse_packed(call: Call) -> Results:
    """x[T, N, ...]: the first lengths[n] steps of column n in reverse order, the rest as they are."""
    lengths = _lengths(call, 1)
    shape = call.x.shape
    if len(shape) < 2 or lengths.shape != shape[1:2]:
        raise ShapeError(
            f"x is {show(shape)} and the lengths {show(lengths.shape)}; x must be [time, batch, ...] with one length per column"
        )
    steps, batch = shape[:2]
    time = call.side(np.arange(steps, dtype=np.int32)[:, None], "time")
    inside = call.helper("lt", (time, lengths), "inside")
    last = call.helper("sub", (lengths, call.number(1, "int32", "one")), "last")
    source = call.helper("where", (inside, call.helper("sub", (last, time), "mirrored"), time), "source")
    rows = call.helper("mul", (source, call.number(batch, "int32", "batch")), "row_starts")
    rows = call.helper("add", (rows, call.side(np.arange(batch, dtype=np.int32), "columns")), "source_rows")
    flat = call.reshaped(call.x, (steps * batch, *shape[2:]), "flat")
    return (call.node("gather", (flat, rows), {"axis": 0}),)


def _sinusoids(call: Call) -> Results:
    """Number i of the embedding is the sine (i even) or cosine (i odd) of position / alpha^(i / size).

    Caffe2 takes every row's position from its first column. It goes over the position's logarithm, so that 0 gives NaN in most numbers
    there; here 0 is a position like any other.
    """
    call.dtype(frozenset({"float32", "float64", "int32", "int64"}))
    size, alpha = call.args.integer("embedding_size", 100), call.args.number("alpha", 10000.0)
    amplitude = call.args.number("amplitude", 1.0)
    if size < 2 or size % 2:
        raise FormatError(f"argument 'embedding_size' is {size}; it must be even and at least 2")
    if len(call.x.shape) != 2:
        raise ShapeError(f"the positions '{call.operator.inputs[0]}' are {show(call.x.shape)}; they must have 2 axes")
    rows, columns = call.x.shape
    first = call.helper("slice", (call.x,), "first", {"starts": (0, 0), "stops": (rows, min(columns, 1))})
    if first.type.dtype != "float32":
        first = call.helper("cast", (first,), "numbers", {"dtype": "float32"})
    divisors = (float(alpha) ** (np.arange(size) / size)).astype(np.float32)
    waves = []
    for number, op in enumerate(("sin", "cos")):
        angles = call.helper("div", (first, call.side(divisors[number::2].copy(), f"{op}_divisors")), f"{op}_angles")
        waves.append(call.reshaped(call.helper(op, (angles,), op), (rows, size // 2, 1), f"{op}_column"))
    joined = call.reshaped(call.helper("concat", waves, "pairs", {"axis": 2}), (rows, 1, size), "waves")
    if amplitude != 1:
        joined = call.helper("mul", (joined, call.number(amplitude, "float32", "amplitude")), "scaled")
    return (call.node("broadcast_to", (joined,), {"shape": (rows, columns, size)}),)


def _lengths_to_ranges(call: Call) -> Results:
    """[runs, 2]: start and length of each."""
    lengths = _lengths(call, 0)
    columns = [call.reshaped(v, (lengths.shape[0], 1), "column") for v in (_starts(call, lengths), lengths)]
    return (call.node("concat", columns, {"axis": 1}),)


def _known_lengths(call: Call, position: int) -> tuple[int, ...]:
    _lengths(call, position)
    lengths = integers(call.known(position, "lengths"))
    if min(lengths, default=0) < 0:
        raise ShapeError(f"the lengths {show(lengths)} hold a negative one")
    return lengths


def _segment_ids(call: Call) -> Results:
    lengths = _known_lengths(call, 0)
    return (call.constant(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)),)


def _range_fill(call: Call) -> Results:
    lengths = _known_lengths(call, 0)
    return (call.constant(np.concatenate([np.arange(n, dtype=np.int32) for n in (0, *lengths)])),)


def _lengths_tile(call: Call) -> Results:
    """Row i, lengths[i] times."""
    lengths = _known_lengths(call, 1)
    if not call.x.shape or len(lengths) != call.x.shape[0]:
        raise ShapeError(f"there are {len(lengths)} lengths for the rows of {show(call.x.shape)}; there must be as many")
    rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return (call.node("gather", (call.x, call.side(rows, "rows")), {"axis": 0}),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "LengthsSum": OpSpec(_lengths_reduce("sum"), inputs=(2, 2)),
        "LengthsMean": OpSpec(_lengths_reduce("mean"), inputs=(2, 2)),
        "LengthsMax": OpSpec(_lengths_reduce("max"), inputs=(2, 2)),
        "LengthsWeightedSum": OpSpec(_lengths_weighted, inputs=(3, 3)),
        "SparseLengthsSum": OpSpec(_sparse("sum", False), inputs=(3, 3)),
        "SparseLengthsMean": OpSpec(_sparse("mean", False), inputs=(3, 3)),
        "SparseLengthsWeightedSum": OpSpec(_sparse("sum", True), inputs=(4, 4)),
        "SparseLengthsPositionalWeightedSum": OpSpec(_sparse_positional, inputs=(4, 4)),
        "SparseLengthsSum8BitsRowwise": OpSpec(_sparse_bytes("sum", False, False), inputs=(4, 4)),
        "SparseLengthsWeightedSum8BitsRowwise": OpSpec(_sparse_bytes("sum", True, False), inputs=(5, 5)),
        "SparseLengthsSumFused8BitRowwise": OpSpec(_sparse_bytes("sum", False, True), inputs=(3, 3)),
        "SparseLengthsMeanFused8BitRowwise": OpSpec(_sparse_bytes("mean", False, True), inputs=(3, 3)),
        "SparseLengthsWeightedSumFused8BitRowwise": OpSpec(_sparse_bytes("sum", True, True), inputs=(4, 4)),
        "SequenceMask": OpSpec(_sequence_mask, inputs=(1, 2)),
        "ReversePackedSegs": OpSpec(_reverse_packed, inputs=(2, 2)),
        "SinusoidPositionEncoding": OpSpec(_sinusoids),
        "LengthsToRanges": OpSpec(_lengths_to_ranges),
        "LengthsToSegmentIds": OpSpec(_segment_ids),
        "LengthsRangeFill": OpSpec(_range_fill),
        "LengthsTile": OpSpec(_lengths_tile, inputs=(2, 2)),
    }
)
