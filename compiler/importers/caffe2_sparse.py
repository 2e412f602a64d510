"""Operators of Caffe2 that make dense tensors of pairs of index and value.

Each is a search, for every place of the result, for the last pair that names it: a comparison of all places with all pairs, a maximum, a
gather. Where no pair does, the row after the last one is taken, which holds what stands there by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]
INDICES = frozenset({"int32", "int64"})


def _sparse_to_dense(call: Call) -> Results:
    """Row i of the result is the sum of the values whose index is i; the third input has as many rows as the result."""
    call.dtype(INDICES, 0)
    call.dtype(FLOAT32, 1)
    indices, values = call.inputs[:2]
    if len(indices.shape) != 1 or values.shape[:1] != indices.shape:
        raise ShapeError(
            f"the indices are {show(indices.shape)} and the values {show(values.shape)}; there must be one row of values per index"
        )
    if len(call.inputs) == 3:
        rows = call.inputs[2].shape[0]
    elif indices.constant is not None:
        rows = int(indices.constant.max(initial=-1)) + 1
    else:
        raise UnsupportedError("without a third input that has as many rows as the result, their number depends on the data")
    named = call.side(np.arange(rows, dtype=indices.type.numpy)[:, None], "rows")
    equal = call.helper("eq", (named, call.reshaped(indices, (1, indices.shape[0]), "named")), "equal")
    ones = call.helper("cast", (equal,), "ones", {"dtype": "float32"})
    flat = call.reshaped(values, (values.shape[0], math.prod(values.shape[1:])), "flat")
    total = call.helper("batch_matmul", (ones, flat), "total", {"transpose_a": False, "transpose_b": False})
    return (call.as_output(total, (rows, *values.shape[1:])),)


def _runs(call: Call, lengths: Value, count: int) -> Value:
    """int32[1, count]: in which run each pair lies: one less than the number of runs that start at or before it."""
    if len(lengths.shape) != 1 or lengths.type.dtype not in INDICES:
        raise ShapeError(f"the lengths are {lengths.type}; they must be whole numbers on one axis")
    dtype, number = lengths.type.dtype, lengths.shape[0]
    before = call.helper("mul", (lengths, call.side(np.tri(number, number, -1, lengths.type.numpy), "triangle")), "before")
    starts = call.helper("reduce_sum", (before,), "starts", {"axes": (1,), "keepdims": True})
    begun = call.helper("le", (starts, call.side(np.arange(count, dtype=lengths.type.numpy)[None, :], "numbers")), "begun")
    ones = call.helper("cast", (begun,), "begun_ones", {"dtype": dtype})
    total = call.helper("reduce_sum", (ones,), "started", {"axes": (0,), "keepdims": True})
    return call.helper("sub", (total, call.number(1, dtype, "one")), "runs")


def _last_pairs(call: Call, runs: Value | None, run_count: int, indices: Value, places: np.ndarray) -> Value:
    """int32[run_count, places]: the last pair of each run with each place's index; the number of pairs where there is none."""
    count = indices.shape[0]
    wanted = call.side(places.astype(indices.type.numpy).reshape(1, -1, 1), "places")
    matches = call.helper("eq", (wanted, call.reshaped(indices, (1, 1, count), "named")), "named_here")
    if runs is not None:
        numbers = call.side(np.arange(run_count, dtype=runs.type.numpy).reshape(-1, 1, 1), "run_numbers")
        inside = call.helper("eq", (numbers, call.reshaped(runs, (1, 1, count), "run")), "inside")
        matches = call.helper("logical_and", (matches, inside), "matches")
    found = call.helper(
        "where", (matches, call.side(np.arange(count, dtype=np.int32), "pairs"), call.number(-1, "int32", "none")), "found"
    )
    last = call.helper("reduce_max", (found,), "last", {"axes": (2,), "keepdims": False})
    absent = call.helper("lt", (last, call.number(0, "int32", "zero")), "absent")
    return call.helper("where", (absent, call.number(count, "int32", "default_row"), last), "chosen")


def _sparse_to_dense_mask(call: Call) -> Results:
    """indices, values, default (, lengths): for each run a row of values in the order of argument `mask`."""
    call.dtype(INDICES, 0)
    call.dtype(FLOAT32, 1, 2)
    mask = np.array(call.args.wide_integers("mask"), np.int64)
    if not len(mask) or len(set(mask.tolist())) != len(mask):
        raise FormatError(f"argument 'mask' is {show(mask.tolist())}; it must list indices, each once")
    if call.args.flag("return_presence_mask"):
        raise UnsupportedError("argument 'return_presence_mask' is not supported")
    indices, values, default = call.inputs[:3]
    if len(indices.shape) != 1 or values.shape[:1] != indices.shape or default.type.size != math.prod(values.shape[1:]):
        raise ShapeError(
            f"indices {show(indices.shape)}, values {show(values.shape)} and default {show(default.shape)} do not fit together"
        )
    with_lengths = len(call.inputs) == 4
    runs = _runs(call, call.inputs[3], indices.shape[0]) if with_lengths else None
    chosen = _last_pairs(call, runs, call.inputs[3].shape[0] if with_lengths else 1, indices, mask)
    extended = call.helper("concat", (values, call.reshaped(default, (1, *values.shape[1:]), "default")), "extended", {"axis": 0})
    y = call.helper("gather", (extended, chosen), "dense", {"axis": 0})
    return (call.as_output(y, y.shape if with_lengths else y.shape[1:]),)


def _batch_sparse_to_dense(call: Call) -> Results:
    """lengths, indices, values (, a tensor of the result's shape): for each run a row of numbers, default_value where none is given."""
    call.dtype(INDICES, 0, 1)
    call.dtype(FLOAT32, 2)
    lengths, indices, values = call.inputs[:3]
    if len(indices.shape) != 1 or values.shape != indices.shape:
        raise ShapeError(
            f"the indices are {show(indices.shape)} and the values {show(values.shape)}; they must be equal, on one axis"
        )
    width = call.inputs[3].shape[-1] if len(call.inputs) == 4 else call.args.integer("dense_last_dim", -1)
    if width < 1:
        raise UnsupportedError(
            "without argument 'dense_last_dim' or a fourth input the length of the rows is not known; give one"
        )
    chosen = _last_pairs(call, _runs(call, lengths, indices.shape[0]), lengths.shape[0], indices, np.arange(width))
    default = call.side(np.array([call.args.number("default_value", 0.0)], np.float32), "default")
    extended = call.helper("concat", (values, default), "extended", {"axis": 0})
    return (call.node("gather", (extended, chosen), {"axis": 0}),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "SparseToDense": OpSpec(_sparse_to_dense, inputs=(2, 3)),
        "SparseToDenseMask": OpSpec(_sparse_to_dense_mask, inputs=(3, 4), outputs=(1, 2)),
        "BatchSparseToDense": OpSpec(_batch_sparse_to_dense, inputs=(3, 4)),
    }
)
