"""Choosing elements by their order along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.ops.checks import NUMBERS, arity, axis_in, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]


def _infer_arg(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    axis = attrs["axis"]
    one_of(x.dtype, NUMBERS)
    axis_in(axis, len(x.shape))
    require(x.shape[axis] > 0, f"axis {axis} of {show(x.shape)} is empty: there is nothing to choose")
    kept = (1,) if attrs["keepdims"] else ()
    return (TensorType((*x.shape[:axis], *kept, *x.shape[axis + 1 :]), "int64"),)


def _arg(name: str, function: Callable[..., np.ndarray]) -> Op:
    def reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        best = np.asarray(function(arrays[0], axis=attrs["axis"])).astype(np.int64)
        return (np.expand_dims(best, attrs["axis"]) if attrs["keepdims"] else best,)

    attributes = {"axis": "the axis searched; of equal elements the first", "keepdims": "keep it with size 1"}
    return Op(name, _infer_arg, reference, attributes, exact=True, portable=True)


def _infer_top_k(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    axis, k = attrs["axis"], attrs["k"]
    one_of(x.dtype, NUMBERS)
    axis_in(axis, len(x.shape))
    require(isinstance(k, int) and 1 <= k <= x.shape[axis], f"k={k} must be between 1 and the axis's size, {x.shape[axis]}")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return TensorType(shape, x.dtype, x.quant), TensorType(shape, "int64")


def _top_k(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Largest first; of equal elements the one with the lower index."""
    (x,) = arrays
    falling = -x if x.dtype.kind == "f" else ~x  # both turn the order round without overflow
    order = np.argsort(falling, axis=attrs["axis"], kind="stable")
    best = np.take(order, np.arange(attrs["k"]), axis=attrs["axis"])
    return np.take_along_axis(x, best, axis=attrs["axis"]), best.astype(np.int64)


OPS: tuple[Op, ...] = (
    _arg("arg_max", np.argmax),
    _arg("arg_min", np.argmin),
    Op("top_k", _infer_top_k, _top_k, {"k": "how many", "axis": "the axis searched"}, exact=True, portable=True),
)
