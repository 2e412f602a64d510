"""Geometry of sliding windows (convolution, pooling): the one place that knows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import MAX_BYTES, per_axis, show
from cortado.compiler.ops.record import Attrs, require

LIMIT = 2**16  # of a stride, dilation or pad: beyond every network, and it keeps all products small


def output_size(size: int, kernel: int, stride: int, dilation: int, pad_begin: int, pad_end: int) -> int:
    """floor((size + pads - dilation * (kernel - 1) - 1) / stride) + 1; may be <= 0 where no window fits."""
    return (size + pad_begin + pad_end - dilation * (kernel - 1) - 1) // stride + 1


def output_shape(spatial: Sequence[int], kernel: Sequence[int], attrs: Attrs) -> tuple[int, ...]:
    """Spatial output shape of a convolution or pooling with attrs strides, dilations, pads_begin, pads_end."""
    rank = len(spatial)
    require(1 <= rank <= 3, f"the input has {rank} spatial axes; 1, 2 or 3 are supported")
    for name, least in (("strides", 1), ("dilations", 1), ("pads_begin", -LIMIT), ("pads_end", -LIMIT)):
        per_axis(name, attrs[name], rank)
        for value in attrs[name]:
            if not least <= value <= LIMIT:
                require(False, f"{name}={tuple(attrs[name])}: {value} is not between {least} and {LIMIT}")
    if len(kernel) != rank or min(kernel) < 1:
        require(len(kernel) == rank, f"the kernel {show(kernel)} must have one size for each of the {rank} spatial axes")
        require(False, f"the kernel {show(kernel)} has a size below 1")
    geometry = list(
        zip(spatial, kernel, attrs["strides"], attrs["dilations"], attrs["pads_begin"], attrs["pads_end"], strict=True)
    )
    shape = tuple(output_size(*axis) for axis in geometry)
    for axis, (size, (n, k, _, dilation, begin, end)) in enumerate(zip(shape, geometry, strict=True)):
        if size < 1:
            reach = dilation * (k - 1) + 1
            spread = f" (dilated to {reach})" if reach != k else ""
            why = f"{n} with pads {begin} and {end} makes {n + begin + end}"
            require(False, f"a kernel of {k}{spread} does not fit spatial axis {axis}: {why}")
        require(n + begin + end <= MAX_BYTES, f"spatial axis {axis} of size {n} is padded beyond what memory can hold")
    return shape


def conv_output_shape(x: tuple[int, ...], w: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
    """[N,*S,C] and [O,*K,C/group] -> [N,*OS,O]."""
    return (x[0], *output_shape(x[1:-1], w[1:-1], attrs), w[0])


def pool_output_shape(x: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
    """[N,*S,C] -> [N,*OS,C]."""
    return (x[0], *output_shape(x[1:-1], attrs["kernel"], attrs), x[-1])


def is_global(x: tuple[int, ...], attrs: Attrs) -> bool:
    """Whether the only window of a pool is all of the image x[N,*S,C]."""
    return tuple(attrs["kernel"]) == x[1:-1] and not any((*attrs["pads_begin"], *attrs["pads_end"]))


def taps(size: int, kernel: int, stride: int, dilation: int, pad: int, out: int) -> list[tuple[int, int, int]]:
    """Which windows a kernel position touches along one axis: (position, first window, one past the last window), hits only.

    Window o reads cell o * stride - pad + position * dilation.
    """
    hits = []
    lowest = max(0, -((((out - 1) * stride) - pad) // dilation))
    highest = min(kernel - 1, (size - 1 + pad) // dilation)
    for position in range(lowest, highest + 1):
        at = position * dilation - pad
        first = max(0, -(at // stride))
        stop = min(out, (size - 1 - at) // stride + 1)
        if first < stop:
            hits.append((position, first, stop))
    return hits


def cells_inside(size: int, kernel: int, stride: int, dilation: int, pad: int, out: int) -> np.ndarray:
    """int64[out]: how many of each window's cells lie inside the image, along one axis."""
    counts = np.zeros(out, np.int64)
    for _, first, stop in taps(size, kernel, stride, dilation, pad, out):
        counts[first:stop] += 1
    return counts


def crop_and_pad(x: np.ndarray, begin: Sequence[int], end: Sequence[int]) -> np.ndarray:
    """Zeros around the spatial axes of x[N,*S,C]; negative amounts crop. No copy where nothing is padded."""
    keep, around = [slice(None)], []
    for n, b, e in zip(x.shape[1:-1], begin, end, strict=True):
        total = n + b + e
        start, stop = max(0, b), min(total, b + n)
        if start >= stop:
            start, stop = total, total
        keep.append(slice(start - b, stop - b) if stop > start else slice(0, 0))
        around.append((start, total - stop))
    x = x[tuple(keep)]
    return x if not any(b or e for b, e in around) else np.pad(x, ((0, 0), *around, (0, 0)))
