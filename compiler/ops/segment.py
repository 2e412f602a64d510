"""Reduction of runs of rows whose lengths are data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import arity, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.sums import tree_sum
from cortado.compiler.types import TensorType
from cortado.errors import InputError

MODES = ("sum", "mean", "max")


def _infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, lengths = types
    one_of(x.dtype, frozenset({"float32"}))
    require(len(x.shape) >= 1, "the rows have no axes; the first one must count them")
    require(lengths.dtype == "int32" and len(lengths.shape) == 1, f"the lengths are {lengths}; they must be int32 on one axis")
    require(attrs["mode"] in MODES, f"mode {attrs['mode']!r} is not one of {', '.join(MODES)}")
    return (TensorType((*lengths.shape, *x.shape[1:]), x.dtype),)


def _reference(arrays: Sequence[np.ndarray], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """0 for an empty run. Lengths that do not add up to the rows are an error here; compiled code reads no row beyond the last."""
    x, lengths = arrays
    if (lengths.size and lengths.min() < 0) or int(lengths.sum()) != x.shape[0]:
        raise InputError(f"the lengths {show(lengths.tolist())} must not be negative and must sum to the {x.shape[0]} rows")
    out = np.zeros((len(lengths), *x.shape[1:]), x.dtype)
    at = 0
    for number, count in enumerate(lengths.tolist()):
        run = x[at : at + count]
        at += count
        if count:
            out[number] = run.max(axis=0) if attrs["mode"] == "max" else tree_sum(run, (0,)).reshape(x.shape[1:])
            if attrs["mode"] == "mean":
                out[number] /= x.dtype.type(count)
    return (out,)


OPS: tuple[Op, ...] = (
    Op(
        "segment_reduce", _infer, _reference, {"mode": "sum, mean or max of each run of rows; 0 where it is empty"}, portable=True
    ),
)
