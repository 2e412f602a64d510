"""Data movement: the same elements in another order, shape or number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import arity, axis_in, broadcast_shapes, moved, per_axis, same_dtype, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import NUMPY_DTYPE, TensorType
from cortado.errors import InputError

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
PAD_MODES = ("constant", "reflect", "edge")


def _kept(kind: TensorType) -> int | None:
    return None if kind.quant is None else kind.quant.axis


def _infer_transpose(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    perm = attrs["perm"]
    require(
        sorted(perm) == list(range(len(x.shape))),
        f"axes {tuple(perm)} must name each of the {len(x.shape)} axes of {show(x.shape)} once, counted from 0",
    )
    axis = _kept(x)
    return (moved(x, [x.shape[p] for p in perm], None if axis is None else tuple(perm).index(axis)),)


def _transpose(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (arrays[0].transpose(attrs["perm"]),)


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    shape = attrs["shape"]
    require(all(isinstance(d, int) and d >= 0 for d in shape), f"shape {show(shape)} must hold whole numbers of at least 0")
    require(
        math.prod(shape) == x.size,
        f"{show(x.shape)} has {x.size} elements and cannot become {show(shape)}, which has {math.prod(shape)}",
    )
    return (moved(x, shape),)


def _reshape(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (arrays[0].reshape(attrs["shape"]),)


def _infer_concat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 1, "takes at least one input, got none")
    same_dtype(types)
    first, axis = types[0], attrs["axis"]
    axis_in(axis, len(first.shape))
    for number, kind in enumerate(types):
        require(
            len(kind.shape) == len(first.shape)
            and all(a == b for i, (a, b) in enumerate(zip(kind.shape, first.shape, strict=True)) if i != axis),
            f"input {number} has shape {show(kind.shape)} and input 0 {show(first.shape)}: only axis {axis} may differ",
        )
        require(kind.quant == first.quant, f"input {number} is quantized differently from input 0: {kind} and {first}")
    shape = list(first.shape)
    shape[axis] = sum(kind.shape[axis] for kind in types)
    return (moved(first, shape, None if _kept(first) == axis else _kept(first)),)


def _concat(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.concatenate(arrays, axis=attrs["axis"]),)


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    starts, stops = attrs["starts"], attrs["stops"]
    per_axis("starts", starts, len(x.shape))
    per_axis("stops", stops, len(x.shape))
    for axis, (start, stop, size) in enumerate(zip(starts, stops, x.shape, strict=True)):
        require(0 <= start <= stop <= size, f"axis {axis} has size {size}: cannot take elements {start} up to {stop}")
    whole = (
        _kept(x)
        if _kept(x) is not None and starts[_kept(x) or 0] == 0 and stops[_kept(x) or 0] == x.shape[_kept(x) or 0]
        else None
    )
    return (moved(x, [stop - start for start, stop in zip(starts, stops, strict=True)], whole),)


def _slice(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (arrays[0][tuple(map(slice, attrs["starts"], attrs["stops"]))],)


def _infer_pad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    begin, end, mode = attrs["begin"], attrs["end"], attrs["mode"]
    per_axis("begin", begin, len(x.shape))
    per_axis("end", end, len(x.shape))
    require(mode in PAD_MODES, f"mode {mode!r} is not one of {', '.join(PAD_MODES)}")
    shape = [b + n + e for b, n, e in zip(begin, x.shape, end, strict=True)]
    for axis, (size, b, e) in enumerate(zip(x.shape, begin, end, strict=True)):
        require(shape[axis] >= 0, f"axis {axis} has size {size}: pads {b} and {e} leave less than nothing")
        if mode == "reflect":
            require(max(b, e) < max(size, 1), f"axis {axis} has size {size}: reflected pads {b} and {e} must be smaller than it")
        if mode == "edge":
            require(size > 0 or shape[axis] == 0, f"axis {axis} is empty: it has no edge to repeat")
    return (moved(x, shape, _kept(x)),)


def pad_indices(size: int, begin: int, end: int, mode: str) -> np.ndarray:
    """int64[begin + size + end]: which cell of the axis each padded cell shows; -1 where a constant stands."""
    at = np.arange(-begin, size + end, dtype=np.int64)
    if mode == "reflect":
        at = np.abs(at)
        return np.minimum(at, 2 * (size - 1) - at)
    if mode == "edge":
        return np.clip(at, 0, size - 1)
    return np.where((at >= 0) & (at < size), at, -1)


def _pad(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    for axis, (begin, end) in enumerate(zip(attrs["begin"], attrs["end"], strict=True)):
        if not begin and not end:
            continue
        at = pad_indices(x.shape[axis], begin, end, attrs["mode"])
        inside = at >= 0
        shape = (*x.shape[:axis], len(at), *x.shape[axis + 1 :])
        padded = np.full(shape, attrs["value"] if attrs["mode"] == "constant" else 0, x.dtype)
        padded[(slice(None),) * axis + (inside,)] = np.take(x, at[inside], axis=axis)
        x = padded
    return (x,)


def _infer_tile(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    repeats = attrs["repeats"]
    per_axis("repeats", repeats, len(x.shape))
    require(all(r >= 0 for r in repeats), f"repeats={tuple(repeats)} must not be negative")
    return (moved(x, [n * r for n, r in zip(x.shape, repeats, strict=True)]),)


def _tile(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.tile(arrays[0], attrs["repeats"]),)


def _infer_broadcast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    shape = tuple(attrs["shape"])
    require(all(isinstance(d, int) and d >= 0 for d in shape), f"shape {show(shape)} must hold whole numbers of at least 0")
    require(broadcast_shapes([x.shape, shape]) == shape, f"{show(x.shape)} does not broadcast to {show(shape)}")
    return (moved(x, shape),)


def _broadcast(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.broadcast_to(arrays[0], attrs["shape"]),)


def _infer_bitcast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    kind = attrs["dtype"]
    require(kind in NUMPY_DTYPE and "bool" not in (kind, x.dtype), f"{x.dtype} cannot be read as {kind}")
    require(len(x.shape) >= 1, "a tensor without axes cannot be read as another type")
    nbytes = x.shape[-1] * x.itemsize
    size = NUMPY_DTYPE[kind].itemsize
    require(nbytes % size == 0, f"the last axis of {show(x.shape)} has {nbytes} bytes, which is no whole number of {kind}")
    return (TensorType((*x.shape[:-1], nbytes // size), kind),)


def _bitcast(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.ascontiguousarray(arrays[0]).view(NUMPY_DTYPE[attrs["dtype"]]),)


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, indices = types
    axis = attrs["axis"]
    axis_in(axis, len(x.shape))
    require(indices.dtype in ("int32", "int64"), f"the indices are {indices.dtype}; they must be int32 or int64")
    return (moved(x, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])),)


def _gather(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Negative indices count from the end; indices outside [-n, n) are an error here and undefined in compiled code."""
    x, indices = arrays
    size = x.shape[attrs["axis"]]
    wrong = indices[(indices < -size) | (indices >= size)]
    if wrong.size:
        raise InputError(f"index {wrong.flat[0]} is outside axis {attrs['axis']} of size {size}")
    return (np.take(x, np.where(indices < 0, indices + size, indices), axis=attrs["axis"]),)


OPS: tuple[Op, ...] = (
    Op("transpose", _infer_transpose, _transpose, {"perm": "the input axis that becomes each output axis"}, True, True),
    Op("reshape", _infer_reshape, _reshape, {"shape": "the new shape, same number of elements"}, True, True),
    Op("concat", _infer_concat, _concat, {"axis": "the axis joined along"}, True, True),
    Op("slice", _infer_slice, _slice, {"starts": "first element, per axis", "stops": "one past the last, per axis"}, True, True),
    Op(
        "pad",
        _infer_pad,
        _pad,
        {
            "begin": "cells before, per axis; negative crops",
            "end": "cells after, per axis; negative crops",
            "mode": "constant, reflect (without repeating the edge) or edge",
            "value": "what stands in the new cells, for constant",
        },
        True,
        True,
    ),
    Op("tile", _infer_tile, _tile, {"repeats": "copies, per axis"}, True, True),
    Op("broadcast_to", _infer_broadcast, _broadcast, {"shape": "the new shape, by numpy's broadcasting"}, True, True),
    Op("bitcast", _infer_bitcast, _bitcast, {"dtype": "as which the last axis' bytes are read, the lowest first"}, True, True),
    Op("gather", _infer_gather, _gather, {"axis": "the axis the indices choose from"}, True, True),
)
