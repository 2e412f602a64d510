"""Transposed convolution: every input cell adds its value times the filter to the output cells under it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import bounded, one_of, per_axis, same_dtype, show
from cortado.compiler.ops.conv import EPILOGUE_ATTR, PRODUCTS
from cortado.compiler.ops.epilogue import apply_epilogue, check_epilogue
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.window import LIMIT, crop_and_pad
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
TRANSPOSED_ATTRS = {
    "strides": "distance of neighbouring input cells in the output, per spatial axis",
    "pads_begin": "output cells cut off before each spatial axis; negative adds zeros",
    "pads_end": "output cells cut off after each spatial axis; negative adds zeros",
    "output_padding": "additional output cells after each spatial axis, before the cut",
    "group": "independent groups of channels",
}


def conv_transpose_shape(x: tuple[int, ...], w: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
    """[N,*S,C] and [O,*K,C/group] -> [N,*OS,O] with OS = (S - 1) * stride + K + output_padding - pads."""
    rank = len(x) - 2
    for name, least in (("strides", 1), ("pads_begin", -LIMIT), ("pads_end", -LIMIT), ("output_padding", 0)):
        per_axis(name, attrs[name], rank)
        for value in attrs[name]:
            require(least <= value <= LIMIT, f"{name}={tuple(attrs[name])}: {value} is not between {least} and {LIMIT}")
    spatial = []
    for axis, (n, k, stride, begin, end, more) in enumerate(_geometry(x, w, attrs)):
        size = (n - 1) * stride + k + more - begin - end
        require(
            n >= 1 and size >= 1,
            f"spatial axis {axis}: size {n}, kernel {k}, pads {begin} and {end} give an output of size {size}",
        )
        require(more < stride, f"output_padding {more} must be smaller than the stride {stride}")
        spatial.append(size)
    return (x[0], *spatial, w[0])


def _geometry(x: tuple[int, ...], w: tuple[int, ...], attrs: Attrs) -> list[tuple[int, int, int, int, int, int]]:
    columns = (attrs["strides"], attrs["pads_begin"], attrs["pads_end"], attrs["output_padding"])
    return list(zip(x[1:-1], w[1:-1], *columns, strict=True))


def _whole(x: tuple[int, ...], w: tuple[int, ...], attrs: Attrs) -> list[int]:
    """Spatial output sizes before the pads are cut off."""
    return [(n - 1) * s + k + more for n, k, s, _, _, more in _geometry(x, w, attrs)]


def transposed_shape(x: TensorType, w: TensorType, attrs: Attrs) -> tuple[int, ...]:
    """The output's shape of a transposed convolution of x[N,*S,C] by w[O,*K,C/group]; ShapeError where they do not fit."""
    require(3 <= len(x.shape) <= 5, f"the input {show(x.shape)} has {len(x.shape)} axes; a convolution takes 3, 4 or 5")
    require(len(w.shape) == len(x.shape), f"the filter {show(w.shape)} must have as many axes as the input {show(x.shape)}")
    require(all(k >= 1 for k in w.shape), f"the filter {show(w.shape)} is empty")
    group, channels, outputs = attrs["group"], x.shape[-1], w.shape[0]
    require(isinstance(group, int) and group >= 1, f"group={group} must be a whole number of at least 1")
    require(channels % group == 0, f"group={group} does not divide the input's {channels} channels")
    require(outputs % group == 0, f"group={group} does not divide the filter's {outputs} outputs")
    require(
        w.shape[-1] == channels // group,
        f"the filter (outputs, kernel, channels) {show(w.shape)} is made for {w.shape[-1] * group} input channels; "
        f"the input has {channels}" + (f" (group={group})" if group > 1 else ""),
    )
    shape = conv_transpose_shape(x.shape, w.shape, attrs)
    bounded(TensorType((x.shape[0], *_whole(x.shape, w.shape, attrs), outputs), x.dtype), "the output before it is cut")
    return shape


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 2, f"takes an input and a filter, got {len(types)} inputs")
    x, w = types[:2]
    one_of(same_dtype(types[:2]), PRODUCTS)
    out = TensorType(transposed_shape(x, w, attrs), x.dtype)
    check_epilogue(attrs["epilogue"], out, types[2:])
    return (out,)


def convolve_transposed(x: np.ndarray, w: np.ndarray, attrs: Attrs) -> np.ndarray:
    """x[N,*S,C], w[O,*K,C/group] -> [N,*OS,O]: out[i * stride + t - pad] is the sum of x[i] * w[t] over cells i and taps t."""
    strides, group = attrs["strides"], attrs["group"]
    total = np.zeros((x.shape[0], *_whole(x.shape, w.shape, attrs), w.shape[0]), x.dtype)
    parts = x.reshape(*x.shape[:-1], group, x.shape[-1] // group)
    for position in np.ndindex(*w.shape[1:-1]):
        at = (slice(None), *position)
        cell = w[at].reshape(group, -1, w.shape[-1])
        product = np.einsum("...gc,goc->...go", parts, cell, optimize=True).reshape(*x.shape[:-1], w.shape[0])
        spatial = (slice(p, p + (n - 1) * s + 1, s) for p, n, s in zip(position, x.shape[1:-1], strides, strict=True))
        under = (slice(None), *spatial)
        total[under] += product
    return crop_and_pad(total, [-p for p in attrs["pads_begin"]], [-p for p in attrs["pads_end"]])


def _reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (apply_epilogue(convolve_transposed(arrays[0], arrays[1], attrs), attrs["epilogue"], arrays[2:]),)


def transposed_macs(types: Types, attrs: Attrs) -> int:
    return math.prod(types[0].shape[:-1]) * math.prod(types[1].shape)


OPS: tuple[Op, ...] = (Op("conv_transpose", _infer, _reference, {**TRANSPOSED_ATTRS, **EPILOGUE_ATTR}, macs=transposed_macs),)
