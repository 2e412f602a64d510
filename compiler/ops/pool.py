"""Pooling over spatial windows. Windows are clipped to the image, so pads may be as large as a ceil mode needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.ops.checks import FLOATS, NUMBERS, arity, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.window import cells_inside, pool_output_shape, taps
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]

POOL_ATTRS = {
    "kernel": "window size, per spatial axis",
    "strides": "step of the window, per spatial axis",
    "dilations": "distance of neighbouring window cells, per spatial axis",
    "pads_begin": "cells outside the image before each spatial axis; negative crops",
    "pads_end": "cells outside the image after each spatial axis; negative crops",
}


def _infer(types: Types, attrs: Attrs, allowed: frozenset[str]) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    one_of(x.dtype, allowed)
    require(3 <= len(x.shape) <= 5, f"the input {show(x.shape)} has {len(x.shape)} axes; pooling takes 3, 4 or 5")
    return (TensorType(pool_output_shape(x.shape, attrs), x.dtype, x.quant),)


def _axes(x: np.ndarray, attrs: Attrs) -> list[tuple[int, int, int, int, int, int]]:
    """(size, kernel, stride, dilation, pad, windows) per spatial axis."""
    out = pool_output_shape(x.shape, attrs)[1:-1]
    return list(zip(x.shape[1:-1], attrs["kernel"], attrs["strides"], attrs["dilations"], attrs["pads_begin"], out, strict=True))


def _sweep(x: np.ndarray, attrs: Attrs, start: float, combine: Callable[..., np.ndarray]) -> np.ndarray:
    """Combine each window's cells, one spatial axis after the other, cells in order of position."""
    for axis, geometry in enumerate(_axes(x, attrs), start=1):
        _, _, stride, dilation, pad, windows = geometry
        total = np.full((*x.shape[:axis], windows, *x.shape[axis + 1 :]), start, x.dtype)
        before = (slice(None),) * axis
        for position, first, stop in taps(*geometry):
            at = first * stride - pad + position * dilation
            cells = (*before, slice(at, at + (stop - first - 1) * stride + 1, stride))
            part = (*before, slice(first, stop))
            total[part] = combine(total[part], x[cells])
        x = total
    return x


def _max_pool(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """NaN counts for nothing, as in `if (cell > largest) largest = cell`."""
    (x,) = arrays
    lowest = np.finfo(x.dtype).min if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return (_sweep(x, attrs, lowest, np.fmax),)


def average_divisors(spatial: Sequence[int], out: Sequence[int], attrs: Attrs) -> np.ndarray:
    """float64[*OS]: what each window's sum is divided by; at least 1."""
    divisors = np.ones(tuple(out))
    geometry = zip(spatial, attrs["kernel"], attrs["strides"], attrs["dilations"], attrs["pads_begin"], out, strict=True)
    for axis, (size, kernel, stride, dilation, pad, windows) in enumerate(geometry):
        counts: np.ndarray | int = kernel
        if not attrs["count_include_pad"]:
            column = (-1,) + (1,) * (len(out) - axis - 1)
            counts = cells_inside(size, kernel, stride, dilation, pad, windows).reshape(column)
        divisors = divisors * counts
    return np.maximum(divisors, 1)


def window_sums(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    """x[N,*S,C] -> [N,*OS,C]: sums of the windows' cells inside the image."""
    return _sweep(x, attrs, 0, np.add)


def _average_pool(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    total = window_sums(x, attrs)
    divisors = average_divisors(x.shape[1:-1], total.shape[1:-1], attrs)
    return (total / divisors[..., None].astype(x.dtype),)


OPS: tuple[Op, ...] = (
    Op(
        "max_pool",
        lambda types, attrs: _infer(types, attrs, NUMBERS),
        _max_pool,
        POOL_ATTRS,
        exact=True,
        portable=True,
    ),
    Op(
        "average_pool",
        lambda types, attrs: _infer(types, attrs, FLOATS),
        _average_pool,
        {**POOL_ATTRS, "count_include_pad": "divide by the kernel's area, not by the cells inside the image"},
        portable=True,
    ),
)
