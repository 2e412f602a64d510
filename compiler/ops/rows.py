"""Rows of which only the first `count` are real: the sizes are fixed when compiling, how many rows count is data (int32[1])."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.boxes import check_count
from cortado.compiler.ops.checks import arity, one_of, same_dtype, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
COUNT = TensorType((1,), "int32")


def _infer_join(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 2, "nothing to join")
    *parts, counts = types
    check_count(counts, len(parts))
    dtype = same_dtype(parts)
    rests = {kind.shape[1:] for kind in parts}
    require(
        all(kind.shape for kind in parts) and len(rests) == 1,
        f"shapes {', '.join(show(kind.shape) for kind in parts)} differ beyond the first axis",
    )
    return TensorType((sum(kind.shape[0] for kind in parts), *rests.pop()), dtype), COUNT


def _join(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """The real rows of every input, one after the other; zeros behind them."""
    *parts, counts = arrays
    out = np.zeros((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    at = 0
    for part, count in zip(parts, counts.tolist(), strict=True):
        out[at : at + count] = part[:count]
        at += count
    return out, np.array([at], np.int32)


def _infer_top(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 3)
    x, keys, count = types
    check_count(count)
    one_of(keys.dtype, frozenset({"float32"}), "the scores")
    require(len(x.shape) >= 1 and keys.shape == x.shape[:1], f"scores {show(keys.shape)} for rows {show(x.shape)}")
    require(1 <= attrs["k"] <= max(x.shape[0], 1), f"k={attrs['k']} of {x.shape[0]} rows")
    return TensorType((attrs["k"], *x.shape[1:]), x.dtype), COUNT


def _top(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Highest score first; of equal ones the lower row first; zeros behind them."""
    x, keys, count = arrays
    order = np.argsort(-keys[: count[0]], kind="stable")[: attrs["k"]]
    out = np.zeros((attrs["k"], *x.shape[1:]), x.dtype)
    out[: len(order)] = x[order]
    return out, np.array([len(order)], np.int32)


OPS: tuple[Op, ...] = (
    Op("join_rows", _infer_join, _join, {}, exact=True, portable=True, counts={0: 1}),
    Op("top_rows", _infer_top, _top, {"k": "at most so many rows"}, exact=True, portable=True, counts={0: 1}),
)
