"""Resizing of images [N,H,W,C] as Caffe2's ResizeNearest and UpsampleBilinear compute it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import FLOATS, arity, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
RESIZE_ATTRS = {
    "scale_h": "output height / input height",
    "scale_w": "output width / input width",
    "out_h": "output height",
    "out_w": "output width",
}


def resized(size: int, scale: float) -> int:
    """int(size * scale), multiplied in float32: Caffe2's output size."""
    require(math.isfinite(scale) and scale > 0, f"a scale of {scale} is impossible: it must be above 0")
    with np.errstate(over="ignore"):
        out = np.float32(size) * np.float32(scale)
    require(np.isfinite(out), f"a scale of {scale} is too large")
    return int(out)


def _infer(types: Types, attrs: Attrs, bilinear: bool) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    if bilinear:
        one_of(x.dtype, FLOATS)
    require(len(x.shape) == 4, f"the input {show(x.shape)} has {len(x.shape)} axes; resizing takes 4")
    for side, size in (("h", x.shape[1]), ("w", x.shape[2])):
        scale, out = attrs[f"scale_{side}"], attrs[f"out_{side}"]
        require(math.isfinite(scale) and scale > 0, f"scale_{side}={scale} is impossible: it must be above 0")
        require(isinstance(out, int) and out >= 0, f"out_{side}={out} must be a whole number of at least 0")
        require(size >= 1 or out == 0, f"the input {show(x.shape)} has no pixels to resize")
    return (TensorType((x.shape[0], attrs["out_h"], attrs["out_w"], x.shape[3]), x.dtype, x.quant),)


def nearest_sources(size: int, out: int, scale: float) -> np.ndarray:
    """int64[out]: the source of each output cell, min(int(i / scale), size - 1), divided in float32."""
    at = np.arange(out, dtype=np.float32) / np.float32(scale)
    return np.minimum(at.astype(np.int64), size - 1)


def bilinear_sources(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per output cell: lower and upper source (int64) and the weight of the upper one (float32), corners aligned.

    Position i * ((size - 1) / (out - 1)), in float32.
    """
    step = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
    at = np.arange(out, dtype=np.float32) * step
    low = np.minimum(at.astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def _nearest(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    rows = nearest_sources(x.shape[1], attrs["out_h"], attrs["scale_h"])
    columns = nearest_sources(x.shape[2], attrs["out_w"], attrs["scale_w"])
    return (x[:, rows[:, None], columns[None, :]],)


def _bilinear(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Rows blended of columns blended: (1-v) * ((1-h) * a + h * b) + v * ((1-h) * c + h * d)."""
    (x,) = arrays
    top, bottom, down = bilinear_sources(x.shape[1], attrs["out_h"])
    left, right, across = bilinear_sources(x.shape[2], attrs["out_w"])
    h = across.astype(x.dtype)[:, None]
    v = down.astype(x.dtype)[:, None, None]
    wide = (1 - h) * x[:, :, left] + h * x[:, :, right]
    return ((1 - v) * wide[:, top] + v * wide[:, bottom],)


OPS: tuple[Op, ...] = (
    Op(
        "resize_nearest",
        lambda types, attrs: _infer(types, attrs, False),
        _nearest,
        RESIZE_ATTRS,
        exact=True,
        portable=True,
    ),
    Op("resize_bilinear", lambda types, attrs: _infer(types, attrs, True), _bilinear, RESIZE_ATTRS, portable=True),
)
