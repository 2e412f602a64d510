"""Resizing of images [N,H,W,C] as Caffe2's ResizeNearest and UpsampleBilinear compute it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import FLOATS, arity, moved, one_of, show
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
BYTES = frozenset({"int8", "uint8"})
WEIGHT_BITS = 11  # of the weights by which bytes are blended: the most for which blends of both axes fit 32 bits
ONE = 1 << WEIGHT_BITS


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
        one_of(x.dtype, FLOATS | BYTES)
    require(len(x.shape) == 4, f"the input {show(x.shape)} has {len(x.shape)} axes; resizing takes 4")
    for side, size in (("h", x.shape[1]), ("w", x.shape[2])):
        scale, out = attrs[f"scale_{side}"], attrs[f"out_{side}"]
        require(math.isfinite(scale) and scale > 0, f"scale_{side}={scale} is impossible: it must be above 0")
        require(isinstance(out, int) and out >= 0, f"out_{side}={out} must be a whole number of at least 0")
        require(size >= 1 or out == 0, f"the input {show(x.shape)} has no pixels to resize")
    axis = None if x.quant is None or x.quant.axis in (1, 2) else x.quant.axis
    return (moved(x, (x.shape[0], attrs["out_h"], attrs["out_w"], x.shape[3]), axis),)


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


def byte_sources(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As bilinear_sources; the upper one's weight in units of 1 / ONE, int32 from 0 to ONE - 1.

    The rounded weight, half to even; where it is ONE, the upper source is the lower one and has all the weight.
    """
    low, high, over = bilinear_sources(size, out)
    weight = np.rint(over * np.float32(ONE)).astype(np.int32)
    whole = weight == ONE
    low = np.where(whole, high, low)
    return low, np.minimum(low + 1, size - 1), np.where(whole, 0, weight)


def _nearest(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    rows = nearest_sources(x.shape[1], attrs["out_h"], attrs["scale_h"])
    columns = nearest_sources(x.shape[2], attrs["out_w"], attrs["scale_w"])
    return (x[:, rows[:, None], columns[None, :]],)


def _bilinear(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Rows blended of columns blended: (1-v) * ((1-h) * a + h * b) + v * ((1-h) * c + h * d). Of bytes: _bilinear_bytes."""
    (x,) = arrays
    if x.dtype.name in BYTES:
        return (_bilinear_bytes(x, attrs),)
    top, bottom, down = bilinear_sources(x.shape[1], attrs["out_h"])
    left, right, across = bilinear_sources(x.shape[2], attrs["out_w"])
    h = across.astype(x.dtype)[:, None]
    v = down.astype(x.dtype)[:, None, None]
    wide = (1 - h) * x[:, :, left] + h * x[:, :, right]
    return ((1 - v) * wide[:, top] + v * wide[:, bottom],)


def _bilinear_bytes(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    """int8 or uint8 [N,H,W,C], quantized or not; the result has the input's scale and zero point.

    With h and v = round_half_even(float32 weight * 2^11), all in int32: top = (a << 11) + (b - a) * h, bottom the same of c and d, and
    ((top << 11) + (bottom - top) * v + 2^21) >> 22. The weights sum to one, so a zero point would only be added to each cell and to
    the result, and no result leaves the range of the cells. |top| <= 255 * 2^11 and no sum exceeds 255 * 2^22 + 2^21 < 2^31.
    """
    top, bottom, v = byte_sources(x.shape[1], attrs["out_h"])
    left, right, h = byte_sources(x.shape[2], attrs["out_w"])
    wide = x.astype(np.int32)
    wide = (wide[:, :, left] << WEIGHT_BITS) + (wide[:, :, right] - wide[:, :, left]) * h[:, None]
    above, below = wide[:, top], wide[:, bottom]
    half = 1 << (2 * WEIGHT_BITS - 1)
    return (((above << WEIGHT_BITS) + (below - above) * v[:, None, None] + half) >> (2 * WEIGHT_BITS)).astype(x.dtype)


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
