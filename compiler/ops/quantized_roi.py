"""Quantized features of boxes, as Caffe2's Int8RoIAlign computes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.boxes import check_rows, image_of
from cortado.compiler.ops.checks import arity, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.requantize import RESULT_ATTRS, check_result, scale_of, shift_away
from cortado.compiler.ops.roi import LARGEST_GRID, LARGEST_POOLED, grid, neighbours
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, rois = types
    scale_of(x, "the features")
    require(len(x.shape) == 4 and min(x.shape[:3]) >= 1, f"the features are {show(x.shape)}, channels last; no axis may be empty")
    for size in (attrs["pooled_h"], attrs["pooled_w"]):
        require(1 <= size <= LARGEST_POOLED, f"a result of {attrs['pooled_h']} x {attrs['pooled_w']} is impossible")
    check_rows(rois, (4, 5), "the boxes")
    require(0 <= attrs["sampling"] <= LARGEST_GRID, f"a sampling ratio of {attrs['sampling']} is impossible")
    return (check_result((rois.shape[0], attrs["pooled_h"], attrs["pooled_w"], x.shape[3]), attrs),)


def quantized_multiplier(real: float) -> tuple[int, int]:
    """(31-bit multiplier, right shift) of a float64 number below one, rounded half away from zero (gemmlowp)."""
    mantissa, exponent = np.frexp(real)
    multiplier = int(np.floor(mantissa * 2.0**31 + 0.5))
    return (multiplier // 2, -int(exponent) - 1) if multiplier == 1 << 31 else (multiplier, -int(exponent))


def _rescaled(acc: np.ndarray, real: float) -> np.ndarray:
    """acc * real: a doubled high product rounded half away from zero, then shift_away."""
    multiplier, shift = quantized_multiplier(real)
    product = acc.astype(np.int64) * multiplier
    magnitude = np.abs(product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))) >> 31
    return shift_away(np.where(product >= 0, magnitude, -magnitude), shift)


def _align(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """acc = sum over samples of the four neighbours times rint(255 * weight), minus 255 * zx per sample, also outside the image;

    y = clamp(acc * (sx / (sy * 255 * samples)) + zy) in fixed point. Samples lie as roi_align's do, boxes are at least one pixel wide.
    """
    x, rois = arrays
    scale, zero = scale_of(attrs["input_types"][0])
    quant = attrs["quant"]
    numbers = image_of(rois, x.shape[0]) if rois.shape[1] > 4 else np.zeros(len(rois), np.int64)
    out = np.zeros(
        (len(rois), attrs["pooled_h"], attrs["pooled_w"], x.shape[3]), np.uint8 if attrs["dtype"] == "uint8" else np.int8
    )
    for number, box in enumerate(rois[:, rois.shape[1] - 4 :]):
        corners = box * np.float32(attrs["scale"])
        size = np.maximum(corners[2:] - corners[:2], np.float32(1))
        ys = grid(corners[1], size[1], attrs["pooled_h"], attrs)[:, None, :, None]
        xs = grid(corners[0], size[0], attrs["pooled_w"], attrs)[None, :, None, :]
        acc = _weighted(x[numbers[number]].astype(np.int64), *np.broadcast_arrays(ys, xs))
        samples = acc.shape[2] * acc.shape[3]
        total = acc.sum(axis=(2, 3)) - 255 * zero * samples
        real = float(scale) / (float(np.float32(quant.scales[0])) * 255.0 * max(samples, 1))
        out[number] = np.clip(_rescaled(total, real) + quant.zero_points[0], attrs["lo"], attrs["hi"])
    return (out,)


def _weighted(x: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """x[H, W, C] at positions, the weights in 1/255; zero further than one cell outside."""
    height, width, _ = x.shape
    good = (ys >= -1) & (ys <= height) & (xs >= -1) & (xs <= width)
    (y0, y1, fy), (x0, x1, fx) = (neighbours(np.where(good, v, 0), n) for v, n in ((ys, height), (xs, width)))
    gy, gx = np.float32(1) - fy, np.float32(1) - fx
    total = np.zeros((*ys.shape, x.shape[2]), np.int64)
    for y, column, weight in ((y0, x0, gy * gx), (y0, x1, gy * fx), (y1, x0, fy * gx), (y1, x1, fy * fx)):
        whole = np.rint(weight * np.float32(255)).astype(np.int64) * good
        total += whole[..., None] * x[y, column]
    return total


OPS: tuple[Op, ...] = (
    Op(
        "q_roi_align",
        _infer,
        _align,
        {
            "scale": "pixels of the features per pixel of the boxes",
            "pooled_h": "rows of the result",
            "pooled_w": "columns of the result",
            "sampling": "samples per cell and axis; 0: as many as the cell has pixels",
            **RESULT_ATTRS,
        },
        exact=True,
        takes_types=True,
    ),
)
