"""Operators of Caffe2 on image patches: transposed and locally connected convolution, im2col, power-mean pooling, blocks to batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, Call, OpSpec
from cortado.compiler.importers.caffe2_window import read_transposed, read_window
from cortado.compiler.ops.checks import show
from cortado.compiler.ops.window import output_shape
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]


def _image(call: Call, rank: int = 4) -> None:
    if len(call.x.shape) != rank:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} takes {rank} axes")


# --- transposed convolution ---


def _conv_transpose(call: Call) -> Results:
    """Filter [C, M/group, *K] (NCHW) or [C, *K, M/group] (NHWC). Dilations are ignored, as in Caffe2."""
    call.dtype(FLOAT32)
    first = call.channels_first()
    _image(call)
    window, attrs = read_transposed(call.args)
    group = call.args.integer("group", 1)
    w = _transposed_filter(call, first, group, window.kernel)
    inputs = [call.channels_last(call.x, first), w]
    if len(call.inputs) == 3 and not call.args.flag("no_bias"):
        call.shape(2, (w.shape[0],), "bias")
        inputs.append(call.inputs[2])
    attrs = {**attrs, "group": group, "epilogue": (("bias",),) * (len(inputs) - 2)}
    return (call.in_order(call.node("conv_transpose", inputs, attrs), first),)


def _transposed_filter(call: Call, first: bool, group: int, kernel: Sequence[int]) -> Value:
    """The filter as [M, *K, C/group]."""
    x, w, name = call.x.shape, call.inputs[1].shape, call.operator.inputs[1]
    channels = x[1 if first else -1]
    if len(w) != 4 or w[0] != channels or group < 1 or channels % group:
        raise ShapeError(
            f"the filter '{name}' is {show(w)}, with group {group}; the first of its 4 axes must be the {channels} channels of the "
            f"input '{call.operator.inputs[0]}' {show(x)}, which group must divide"
        )
    cells, outputs = (w[2:], w[1]) if first else (w[1:-1], w[-1])
    if tuple(kernel) != cells:
        raise ShapeError(f"the kernel arguments say {show(kernel)}, but the filter '{name}' is {show(w)}")
    grouped = call.reshaped(call.inputs[1], (group, channels // group, *w[1:]), "groups")
    turned = call.transposed(grouped, (0, 2, 3, 4, 1) if first else (0, 4, 2, 3, 1), "turned")
    return call.reshaped(turned, (group * outputs, *cells, channels // group), "filter")


# --- patches ---


def _patches(call: Call, x: Value, first: bool) -> tuple[Value, tuple[int, int], int]:
    """Every window's cells: [N, C, cells, windows] (first) or [N, windows, cells, C]; the windows' rows and columns; cells."""
    window = read_window(call.args)
    spatial = x.shape[2:] if first else x.shape[1:3]
    attrs = window.fit(spatial)
    kernel = attrs["kernel"]
    out = output_shape(spatial, kernel, attrs)
    pads = (attrs["pads_begin"], attrs["pads_end"])
    begin, end = (((0, 0, *p) if first else (0, *p, 0)) for p in pads)
    if any(begin) or any(end):
        x = call.helper("pad", (x,), "padded", {"begin": begin, "end": end, "mode": "constant", "value": 0.0})
    height, width = x.shape[2:] if first else x.shape[1:3]
    lines = [
        np.arange(n)[:, None] * step + np.arange(k)[None, :] * gap
        for n, k, step, gap in zip(out, kernel, attrs["strides"], attrs["dilations"], strict=True)
    ]
    at = lines[0][:, None, :, None] * width + lines[1][None, :, None, :]  # [rows, columns, kernel rows, kernel columns]
    at = at.reshape(math.prod(out), math.prod(kernel)).astype(np.int32)
    if first:
        flat = call.reshaped(x, (*x.shape[:2], height * width), "flat")
        cells = call.helper("gather", (flat, call.side(at.T.copy(), "cells")), "patches", {"axis": 2})
    else:
        flat = call.reshaped(x, (x.shape[0], height * width, x.shape[3]), "flat")
        cells = call.helper("gather", (flat, call.side(at, "cells")), "patches", {"axis": 1})
    return cells, (out[0], out[1]), math.prod(kernel)


def _im2col(call: Call) -> Results:
    """[N, C * cells, rows, columns], or [N, rows, columns, cells * C] for NHWC."""
    call.dtype(FLOAT32)
    first = call.channels_first()
    _image(call)
    patches, (rows, columns), cells = _patches(call, call.x, first)
    images, channels = call.x.shape[0], call.x.shape[1 if first else 3]
    shape = (images, channels * cells, rows, columns) if first else (images, rows, columns, cells * channels)
    return (call.as_output(patches, shape),)


def _locally_connected(call: Call) -> Results:
    """A convolution with a filter of its own at every window: [rows, columns, M, C, kernel], bias [rows, columns, M]."""
    call.dtype(FLOAT32)
    first = call.channels_first()
    _image(call)
    if call.args.integer("group", 1) != 1:
        raise UnsupportedError("locally connected layers with groups are not supported")
    if not first:
        raise UnsupportedError("locally connected layers exist for order NCHW only")
    patches, (rows, columns), cells = _patches(call, call.x, True)
    images, channels = call.x.shape[:2]
    w = call.inputs[1].shape
    if len(w) != 6 or w[:2] != (rows, columns) or w[3] * w[4] * w[5] != channels * cells:
        raise ShapeError(
            f"the filters '{call.operator.inputs[1]}' are {show(w)}; they must be [{rows}, {columns}, outputs, {channels}, kernel rows, "
            "kernel columns]"
        )
    windows, outputs, terms = rows * columns, w[2], channels * cells
    call.shape(2, (rows, columns, outputs), "bias")
    x = call.reshaped(patches, (images, terms, windows), "terms")
    x = call.transposed(x, (2, 0, 1), "windows")
    filters = call.reshaped(call.inputs[1], (windows, outputs, terms), "filters")
    y = call.helper("batch_matmul", (x, filters), "products", {"transpose_a": False, "transpose_b": True})
    y = call.helper("add", (y, call.reshaped(call.inputs[2], (windows, 1, outputs), "biases")), "sums")
    y = call.transposed(y, (1, 2, 0), "images")
    return (call.as_output(y, (images, outputs, rows, columns)),)


def _lp_pool(call: Call) -> Results:
    """The p-th root of the sum of |x|^p over each window; padding adds nothing."""
    call.dtype(FLOAT32)
    first, p = call.channels_first(), call.args.number("p", 2.0)
    _image(call)
    if not p > 0:
        raise FormatError(f"argument 'p' is {p}; it must be above 0")
    x = call.channels_last(call.x, first)
    window = read_window(call.args).fit(x.shape[1:-1])
    powers = call.helper("square" if p == 2 else "abs", (x,), "powers")
    if p not in (1, 2):
        powers = call.helper("pow", (powers, call.number(p, "float32", "exponent")), "powers")
    mean = call.helper("average_pool", (powers,), "mean", {**window, "count_include_pad": True})
    total = call.helper("mul", (mean, call.number(math.prod(window["kernel"]), "float32", "area")), "total")
    if p == 2:
        total = call.node("sqrt", (total,))
    elif p != 1:
        total = call.node("pow", (total, call.number(1 / p, "float32", "root")))
    return (call.in_order(total, first),)


# --- blocks ---


def _block(call: Call) -> tuple[int, tuple[int, int, int, int]]:
    """The block size and the pads top, left, bottom, right; all but the first read argument `pad`, as in Caffe2."""
    call.dtype(FLOAT32)
    _image(call)
    if not call.channels_first():
        raise FormatError(f"{call.operator.type} exists for order NCHW only")
    size, pad = call.args.integer("block_size", 2), call.args.integer("pad", 0)
    if size < 1 or pad < 0:
        raise FormatError(f"block_size is {size} and pad {pad}; they must be at least 1 and 0")
    return size, (call.args.integer("pad_t", pad), pad, pad, pad)


def _space_to_batch(call: Call) -> Results:
    size, (top, left, bottom, right) = _block(call)
    x = call.x
    if top or left or bottom or right:
        attrs = {"begin": (0, 0, top, left), "end": (0, 0, bottom, right), "mode": "constant", "value": 0.0}
        x = call.helper("pad", (x,), "padded", attrs)
    images, channels, height, width = x.shape
    if height % size or width % size:
        raise ShapeError(f"the padded image is {height} by {width}; block_size {size} must divide both")
    parts = call.reshaped(x, (images, channels, height // size, size, width // size, size), "blocks")
    moved = call.transposed(parts, (3, 5, 0, 1, 2, 4), "moved")
    return (call.as_output(moved, (images * size * size, channels, height // size, width // size)),)


def _batch_to_space(call: Call) -> Results:
    size, (top, left, bottom, right) = _block(call)
    batch, channels, height, width = call.x.shape
    if batch % (size * size):
        raise ShapeError(f"the batch of {batch} must be a multiple of block_size squared, {size * size}")
    images = batch // (size * size)
    parts = call.reshaped(call.x, (size, size, images, channels, height, width), "blocks")
    moved = call.transposed(parts, (2, 3, 4, 0, 5, 1), "moved")
    whole = call.reshaped(moved, (images, channels, height * size, width * size), "whole")
    starts, stops = (0, 0, top, left), (images, channels, height * size - bottom, width * size - right)
    if not (top or left or bottom or right):
        return (call.as_output(moved, whole.shape),)
    return (call.node("slice", (whole,), {"starts": starts, "stops": stops}),)


def _resize_volume(call: Call) -> Results:
    """Nearest neighbour on [N, C, T, H, W]; height and width twice as large, the only factor Caffe2 takes."""
    call.dtype(FLOAT32)
    _image(call, 5)
    if not call.channels_first():
        raise FormatError("ResizeNearest3D exists for order NCHW only")
    time, high, wide = (call.args.number(f"{name}_scale", 1.0) for name in ("temporal", "height", "width"))
    if (high, wide) != (2.0, 2.0) or not time >= 1:
        raise FormatError(
            f"the scales are {time}, {high} and {wide}; height_scale and width_scale must be 2, temporal_scale at least 1"
        )
    x = call.x
    frames = x.shape[2]
    if time != 1:
        chosen = np.minimum((np.arange(int(frames * np.float32(time))) / np.float32(time)).astype(np.int32), frames - 1)
        x = call.helper("gather", (x, call.side(chosen, "frames")), "in_time", {"axis": 2})
    images, channels, frames, height, width = x.shape
    cells = call.reshaped(x, (images * channels * frames, height, 1, width, 1), "cells")
    doubled = call.helper("tile", (cells,), "doubled", {"repeats": (1, 1, 2, 1, 2)})
    return (call.as_output(doubled, (images, channels, frames, 2 * height, 2 * width)),)


def _integral_image(call: Call) -> Results:
    """Sums of everything above and to the left: products with triangles of ones on both sides; one row and column more."""
    call.dtype(FLOAT32)
    _image(call)
    height, width = call.x.shape[2:]
    down = call.side(np.tri(height + 1, height, -1, np.float32), "down")
    right = call.side(np.tri(width + 1, width, -1, np.float32), "right")
    plain = {"transpose_a": False, "transpose_b": False}
    rows = call.helper("batch_matmul", (down, call.x), "rows", plain)
    return (call.node("batch_matmul", (rows, right), {**plain, "transpose_b": True}),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "ConvTranspose": OpSpec(_conv_transpose, inputs=(2, 3)),
        "Im2Col": OpSpec(_im2col),
        "LC": OpSpec(_locally_connected, inputs=(3, 3)),
        "LpPool": OpSpec(_lp_pool),
        "SpaceToBatch": OpSpec(_space_to_batch),
        "BatchToSpace": OpSpec(_batch_to_space),
        "ResizeNearest3D": OpSpec(_resize_volume),
        "IntegralImage": OpSpec(_integral_image),
    }
)
