"""Operators of Caffe2 that search, compare with lists of numbers, and place by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import ANY, FIRST, FLOAT32, NUMBERS, Call, OpSpec, integers
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]
INDICES = frozenset({"int32", "int64"})


def _arg(op: str) -> Callable[[Call], Results]:
    """The position of the greatest or least element along `axis`; the axis stays with size 1 unless keepdims=0."""

    def build(call: Call) -> Results:
        call.dtype(NUMBERS)
        rank, axis = len(call.x.shape), call.args.integer("axis", -1)
        if (axis != -1 and not 0 <= axis < rank) or rank == 0:
            raise ShapeError(
                f"argument 'axis' is {axis}; the input {show(call.x.shape)} allows -1 (the last) and 0 to {rank - 1}"
            )
        return (call.node(op, (call.x,), {"axis": axis % rank, "keepdims": call.args.flag("keepdims", True)}),)

    return build


def _top_k(call: Call) -> Results:
    """The k greatest along `axis`, largest first; beyond the axis' end 0 and index -1. Third output: positions in the flat input."""
    call.dtype(NUMBERS, 0)
    shape = call.x.shape
    axis = call.args.integer("axis", -1)
    if (axis != -1 and not 0 <= axis < len(shape)) or not shape:
        raise ShapeError(f"argument 'axis' is {axis}; the input {show(shape)} allows -1 (the last) and 0 to {len(shape) - 1}")
    axis, k = axis % len(shape), _count(call)
    found = min(k, shape[axis])
    node = call.helper("top_k", (call.x,), "top", {"k": found, "axis": axis}).node
    values, indices = node.out(0), node.out(1)
    results = [_extended(call, values, axis, k, 0, 0), _extended(call, indices, axis, k, -1, 1)]
    if len(call.operator.outputs) == 3:
        stride = math.prod(shape[axis + 1 :])
        rest = [np.arange(n) * math.prod(shape[i + 1 :]) if i != axis else np.zeros(1, int) for i, n in enumerate(shape)]
        base = sum(part.reshape([-1 if j == i else 1 for j in range(len(shape))]) for i, part in enumerate(rest))
        moved = call.helper("mul", (indices, call.number(stride, "int64", "stride")), "moved")
        flat = call.helper("add", (moved, call.side(np.asarray(base, np.int64), "base")), "flat")
        flat = _extended(call, flat, axis, k, -1, 2)
        results.append(call.as_output(flat, (flat.type.size,), 2))
    return results


def _count(call: Call) -> int:
    if len(call.inputs) == 2:
        call.dtype(frozenset({"int64"}), 1)
        values = integers(call.known(1, "k"))
        if len(values) != 1:
            raise ShapeError(f"the k '{call.operator.inputs[1]}' has {len(values)} elements; it must have one")
        k = values[0]
    else:
        k = call.args.integer("k", -1)
    if k < 1:
        raise FormatError(f"k is {k}; it must be given, as argument 'k' or as the second input, and be at least 1")
    return k


def _extended(call: Call, x: Value, axis: int, size: int, value: int, output: int) -> Value:
    """x made `size` long by a constant."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    end = tuple(missing if i == axis else 0 for i in range(len(x.shape)))
    attrs = {"begin": (0,) * len(end), "end": end, "mode": "constant", "value": value}
    return call.helper("pad", (x,), f"extended{output}", attrs)


# --- comparisons with lists ---


def _one_hot(call: Call) -> Results:
    """Rows of zeros with a one at each index."""
    call.dtype(frozenset({"int64"}))
    (size,) = _one(call, 1, "number of classes")
    if len(call.x.shape) != 1:
        raise ShapeError(f"the indices '{call.operator.inputs[0]}' are {show(call.x.shape)}; they must have one axis")
    if size < 1:
        raise ShapeError(f"the number of classes is {size}; it must be at least 1")
    column = call.reshaped(call.x, (call.x.shape[0], 1), "column")
    equal = call.helper("eq", (column, call.side(np.arange(size), "classes")), "equal")
    return (call.node("cast", (equal,), {"dtype": "float32"}),)


def _one(call: Call, position: int, what: str) -> tuple[int, ...]:
    values = integers(call.known(position, what))
    if len(values) != 1:
        raise ShapeError(f"the {what} '{call.operator.inputs[position]}' has {len(values)} elements; it must have one")
    return values


def _batch_one_hot(call: Call) -> Results:
    """x[N, D] against lists of values, lengths[d] of them for column d: 1 where equal."""
    call.dtype(INDICES | BOOL_LIKE, 0, 2)
    lengths, values = integers(call.known(1, "lengths")), call.known(2, "values")
    if len(call.x.shape) != 2 or len(lengths) != call.x.shape[1] or sum(lengths) != values.size or min(lengths, default=1) < 0:
        raise ShapeError(
            f"x is {show(call.x.shape)}, with {len(lengths)} lengths that sum to {sum(lengths)} and {values.size} values: "
            "each column needs a length, and each length as many values"
        )
    columns = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    chosen = call.helper("gather", (call.x, call.side(columns, "columns")), "chosen", {"axis": 1})
    equal = call.helper("eq", (chosen, call.side(values.reshape(1, -1), "wanted")), "equal")
    return (call.node("cast", (equal,), {"dtype": call.x.type.dtype}),)


def _bucketize(call: Call) -> Results:
    """How many of the sorted boundaries are below each element."""
    call.dtype(FLOAT32)
    boundaries = call.args.raw("boundaries").floats
    limits = np.asarray(boundaries, np.float32)
    if np.any(np.diff(limits) < 0):
        raise FormatError(f"argument 'boundaries' is {show(limits.tolist())}; it must be sorted")
    if not len(limits):
        return (call.constant(np.zeros(call.x.shape, np.int32)),)
    cells = call.reshaped(call.x, (*call.x.shape, 1), "cells")
    below = call.helper("lt", (call.side(limits, "boundaries"), cells), "below")
    ones = call.helper("cast", (below,), "ones", {"dtype": "int32"})
    return (call.node("reduce_sum", (ones,), {"axes": (len(call.x.shape),), "keepdims": False}),)


def _is_nan(call: Call) -> Results:
    call.dtype(FLOAT32)
    return (call.node("cast", (call.helper("ne", (call.x, call.x), "different"),), {"dtype": "uint8"}),)


def _mod(call: Call) -> Results:
    """C's remainder; sign_follow_divisor=1 moves it to the divisor's sign."""
    call.dtype(INDICES)
    divisor, dtype = call.args.wide_integer("divisor", 0), call.x.type.dtype
    if divisor == 0:
        raise FormatError("argument 'divisor' must be given, and not be 0")
    number, zero = call.number(divisor, dtype, "divisor"), call.number(0, dtype, "zero")
    if not call.args.flag("sign_follow_divisor"):
        return (call.node("remainder", (call.x, number)),)
    rest = call.helper("remainder", (call.x, number), "remainder")
    opposite = call.helper("lt" if divisor > 0 else "gt", (rest, zero), "opposite")
    moved = call.helper("add", (rest, number), "moved")
    return (call.node("where", (opposite, moved, rest)),)


# --- placing by index ---


def _batch_permutation(call: Call) -> Results:
    call.dtype(frozenset({"int32"}), 1)
    call.shape(1, call.x.shape[:1], "permutation")
    return (call.node("gather", call.inputs, {"axis": 0}),)


def _scatter_assign(call: Call) -> Results:
    """Rows of x replaced; of equal indices the last wins. As a gather: for every row the last update that names it, or the row itself."""
    call.dtype(ANY, 0, 2)
    call.dtype(INDICES, 1)
    x, indices, updates = call.inputs
    if not x.shape or updates.shape != (*indices.shape, *x.shape[1:]):
        wanted = show((*indices.shape, *x.shape[1:]))
        raise ShapeError(f"the updates are {show(updates.shape)}; with indices {show(indices.shape)} they must be {wanted}")
    rows, count = x.shape[0], indices.type.size
    dtype = indices.type.numpy
    named = call.helper(
        "eq", (call.reshaped(indices, (1, count), "named"), call.side(np.arange(rows, dtype=dtype)[:, None], "rows")), "matches"
    )
    number = call.side(np.arange(rows, rows + count, dtype=dtype), "numbers")
    found = call.helper("where", (named, number, call.number(-1, indices.type.dtype, "none")), "found")
    last = call.helper("reduce_max", (found,), "last", {"axes": (1,), "keepdims": False})
    chosen = call.helper("maximum", (last, call.side(np.arange(rows, dtype=dtype), "own")), "chosen")
    both = call.helper("concat", (x, call.reshaped(updates, (count, *x.shape[1:]), "updates")), "both", {"axis": 0})
    return (call.node("gather", (both, chosen), {"axis": 0}),)


def _unsorted_sum(call: Call) -> Results:
    """Row s is the sum of the rows whose id is s: a product with a matrix of zeros and ones."""
    call.dtype(FLOAT32, 0)
    call.dtype(frozenset({"int32"}), 1)
    call.shape(1, call.x.shape[:1], "segment ids")
    segments = call.args.integer("num_segments", -1)
    if segments < 0:
        raise UnsupportedError("without argument 'num_segments' the number of results depends on the data; give it")
    rows, rest = call.x.shape[0], call.x.shape[1:]
    ids = call.reshaped(call.inputs[1], (1, rows), "ids")
    equal = call.helper("eq", (call.side(np.arange(segments, dtype=np.int32)[:, None], "segments"), ids), "equal")
    ones = call.helper("cast", (equal,), "ones", {"dtype": "float32"})
    flat = call.reshaped(call.x, (rows, math.prod(rest)), "flat")
    total = call.helper("batch_matmul", (ones, flat), "total", {"transpose_a": False, "transpose_b": False})
    return (call.as_output(total, (segments, *rest)),)


BOOL_LIKE = frozenset({"bool"})

OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "ArgMax": OpSpec(_arg("arg_max")),
        "ArgMin": OpSpec(_arg("arg_min")),
        "TopK": OpSpec(_top_k, inputs=(1, 2), outputs=(2, 3)),
        "OneHot": OpSpec(_one_hot, inputs=(2, 2)),
        "BatchOneHot": OpSpec(_batch_one_hot, inputs=(3, 3)),
        "Bucketize": OpSpec(_bucketize),
        "IsNaN": OpSpec(_is_nan),
        "Mod": OpSpec(_mod, in_place=FIRST),
        "BatchPermutation": OpSpec(_batch_permutation, inputs=(2, 2)),
        "ScatterAssign": OpSpec(_scatter_assign, inputs=(3, 3), in_place=FIRST),
        "UnsortedSegmentSum": OpSpec(_unsorted_sum, inputs=(2, 2)),
    }
)
