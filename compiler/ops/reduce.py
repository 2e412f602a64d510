"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import FLOATS, NUMBERS, arity, axis_in, moved, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.sums import tree_sum
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
REDUCE_ATTRS = {"axes": "the axes reduced over", "keepdims": "keep them with size 1"}


def _shape(shape: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
    axes = set(attrs["axes"])
    if attrs["keepdims"]:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _infer_extremum(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """An extremum is one of the elements, and quantized as they are."""
    (result,) = _infer(types, attrs, NUMBERS, False)
    axis, axes = None if types[0].quant is None else types[0].quant.axis, attrs["axes"]
    if axis is not None:
        axis = None if axis in axes else axis if attrs["keepdims"] else axis - sum(a < axis for a in axes)
    return (moved(types[0], result.shape, axis),)


def _infer(types: Types, attrs: Attrs, allowed: frozenset[str], empty: bool) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    one_of(x.dtype, allowed)
    axes = attrs["axes"]
    for axis in axes:
        axis_in(axis, len(x.shape), "reduced axis")
        require(empty or x.shape[axis] > 0, f"axis {axis} of {show(x.shape)} is empty: there is nothing to reduce")
    require(len(set(axes)) == len(axes), f"axes={tuple(axes)} names an axis twice")
    return (TensorType(_shape(x.shape, attrs), x.dtype),)


def _sum(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    return tree_sum(x, attrs["axes"]).reshape(_shape(x.shape, attrs))


def _mean(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    count = int(np.prod([x.shape[a] for a in attrs["axes"]], dtype=np.int64))
    return _sum(x, attrs) / x.dtype.type(count)


def _max(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    return _extremum(np.fmax, -np.inf, x, attrs)


def _min(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    return _extremum(np.fmin, np.inf, x, attrs)


def _extremum(combine: np.ufunc, start: float, x: np.ndarray, attrs: Attrs) -> np.ndarray:
    """NaN counts for nothing, as in `if (x > largest) largest = x`; infinity, the start, where there is no number."""
    first = x.dtype.type(start) if x.dtype.kind == "f" else None
    return np.asarray(combine.reduce(x, axis=tuple(attrs["axes"]), keepdims=attrs["keepdims"], initial=first))


OPS: tuple[Op, ...] = (
    Op(
        "reduce_sum",
        lambda types, attrs: _infer(types, attrs, NUMBERS, True),
        lambda arrays, attrs: (_sum(arrays[0], attrs),),
        REDUCE_ATTRS,
        portable=True,
    ),
    Op(
        "reduce_mean",
        lambda types, attrs: _infer(types, attrs, FLOATS, False),
        lambda arrays, attrs: (_mean(arrays[0], attrs),),
        REDUCE_ATTRS,
        portable=True,
    ),
    Op(
        "reduce_max",
        _infer_extremum,
        lambda arrays, attrs: (_max(arrays[0], attrs),),
        REDUCE_ATTRS,
        exact=True,
        portable=True,
    ),
    Op(
        "reduce_min",
        _infer_extremum,
        lambda arrays, attrs: (_min(arrays[0], attrs),),
        REDUCE_ATTRS,
        exact=True,
        portable=True,
    ),
)
