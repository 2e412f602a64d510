"""A convolution as loops see it: three spatial axes with distances in elements, equal pixels collapsed, borders as static patterns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from cortado.compiler.program import Operand


@dataclass(frozen=True)
class Axis:
    """One axis of output positions and the taps (kernel cells) along it.

    Output position x reads input positions x * step + t * dilation - pad for taps t, as far as they are inside [0, size).
    in_stride, out_stride, residual_stride: distance of neighbours in elements. weight_stride: distance of neighbouring taps in the
    filter [O,*K,C], in elements.
    """

    size: int
    outputs: int
    taps: int
    step: int
    dilation: int
    pad: int
    in_stride: int
    out_stride: int
    residual_stride: int
    weight_stride: int

    def inside(self, x: int) -> tuple[int, int]:
        """Taps [first, stop) that output position x sees inside the input."""
        start = x * self.step - self.pad
        first = max(0, -(start // self.dilation))
        stop = min(self.taps, max(0, -((start - self.size) // self.dilation)))
        return (first, stop) if first < stop else (0, 0)

    @property
    def bordered(self) -> bool:
        """Whether some output position does not see all taps."""
        return any(self.inside(x) != (0, self.taps) for x in (0, self.outputs - 1))

    @property
    def pointwise(self) -> bool:
        """Whether output position x reads input position x + a constant and nothing else."""
        return self.taps == 1 and self.step == 1 and not self.bordered


@dataclass(frozen=True)
class Geometry:
    """images, then axes (depth, height, width) of a convolution; `width` is the axis that tiles run along.

    channels: neighbouring elements that one output reads at a tap (of one group). offset: elements from the input's start that all
    outputs have in common.
    """

    image: Axis
    depth: Axis
    height: Axis
    width: Axis
    channels: int
    offset: int

    @property
    def rows(self) -> int:
        """Output rows: positions of all axes but width."""
        return self.image.outputs * self.depth.outputs * self.height.outputs

    @property
    def depth_of_sum(self) -> int:
        """Terms of one output's sum: taps times channels."""
        return self.depth.taps * self.height.taps * self.width.taps * self.channels

    @property
    def merged(self) -> bool:
        """Whether the taps of one kernel row are neighbours in memory."""
        return self.width.taps == 1 or self.width.dilation * self.width.in_stride == self.channels

    @property
    def loops(self) -> int:
        """Loops over taps that a tile needs around those of one kernel row."""
        deep, high = (axis.taps > 1 or axis.bordered for axis in (self.depth, self.height))
        return 2 if deep else int(high)

    def weight_order(self, k_part: int) -> np.ndarray:
        """For every term of an output's sum, in the order the loops take them, its place in the filter [*K,C].

        k_part: channels that are taken through all taps before the next ones.
        """
        numbers = np.zeros((1, 1, 1, 1), np.int64)
        for place, axis in enumerate((self.depth, self.height, self.width)):
            shape = [1] * 4
            shape[place] = axis.taps
            numbers = numbers + (np.arange(axis.taps) * axis.weight_stride).reshape(shape)
        parts = [np.arange(at, min(at + k_part, self.channels)) for at in range(0, self.channels, k_part)]
        return np.concatenate([(numbers + part).reshape(-1) for part in parts])


UNIT = Axis(1, 1, 1, 1, 1, 0, 0, 0, 0, 0)


def conv_geometry(
    x: Operand, out: Operand, residual: Operand | None, kernel: Sequence[int], channels: int, attrs: Mapping[str, Any]
) -> Geometry:
    """The geometry of a convolution [N,*S,C] -> [N,*OS,O]. channels: of one group. attrs: those of `conv`.

    One long row of pixels is made wherever strides allow it (1x1 kernels). Axes that a kernel covers whole become part of the
    channels where they are neighbours in memory. Width is the innermost axis with more than one output, so that there are tiles.
    """
    strides = residual.strides if residual is not None else (0,) * len(out.strides)
    axes = [Axis(x.shape[0], x.shape[0], 1, 1, 1, 0, x.strides[0], out.strides[0], strides[0], 0)]
    axes += [_spatial_axis(x, out, strides, kernel, channels, attrs, i) for i in range(len(kernel))]
    offset = 0
    for number, axis in enumerate(axes):
        if not axis.bordered and axis.pad:
            offset -= axis.pad * axis.in_stride
            axes[number] = replace(axis, pad=0, size=axis.size + axis.pad)
    while attrs["group"] == 1 and len(axes) > 1 and _covered(axes[-1], channels):
        channels *= axes.pop().taps
    merged = _merged(axes)
    extended = [i for i, axis in enumerate(merged) if axis.outputs > 1]
    if extended and (extended[-1] > 0 or len(merged) < 4):  # the images stay in front of three axes with taps
        merged.append(merged.pop(extended[-1]))
    image, depth, height, width = [UNIT] * (4 - len(merged)) + merged
    return Geometry(image, depth, height, width, channels, offset)


def rows_geometry(x: Operand, out: Operand, residual: Operand | None, depth: int) -> tuple[Geometry, tuple[Axis, ...]]:
    """The geometry of x[...,K] -> out[...,O], where every row of x is a pixel of `depth` channels.

    Also the axes, outermost first, that strides keep apart and that are too many for a geometry.
    """
    strides = residual.strides if residual is not None else (0,) * len(out.strides)
    sizes = zip(x.shape[:-1], x.strides, out.strides, strides, strict=False)
    axes = _merged([Axis(size, size, 1, 1, 1, 0, of_x, of_out, of_residual, 0) for size, of_x, of_out, of_residual in sizes])
    image, plane, line, width = [UNIT] * (4 - len(axes)) + axes[-4:]
    return Geometry(image, plane, line, width, depth, 0), tuple(axes[:-4])


def _merged(axes: Sequence[Axis]) -> list[Axis]:
    """Without axes of one pixel, neighbours joined wherever strides make them one axis."""
    merged: list[Axis] = []
    for axis in axes:
        if axis.pointwise and axis.outputs == 1:
            continue
        if merged and _merges(merged[-1], axis):
            merged[-1] = replace(axis, size=merged[-1].outputs * axis.outputs, outputs=merged[-1].outputs * axis.outputs)
        else:
            merged.append(axis)
    return merged


def _spatial_axis(
    x: Operand,
    out: Operand,
    residual_strides: Sequence[int],
    kernel: Sequence[int],
    channels: int,
    attrs: Mapping[str, Any],
    i: int,
) -> Axis:
    taps, outputs = kernel[i], out.shape[1 + i]
    step = attrs["strides"][i] if outputs > 1 else 1
    dilation = attrs["dilations"][i] if taps > 1 else 1
    distances = x.strides[1 + i], out.strides[1 + i], residual_strides[1 + i], math.prod(kernel[i + 1 :]) * channels
    return Axis(x.shape[1 + i], outputs, taps, step, dilation, attrs["pads_begin"][i], *distances)


def _covered(axis: Axis, channels: int) -> bool:
    """Whether the single output along the axis reads neighbours only, so that its taps count as channels."""
    return axis.outputs == 1 and not axis.bordered and (axis.taps == 1 or axis.in_stride * axis.dilation == channels)


def _merges(outer: Axis, inner: Axis) -> bool:
    """Whether positions of both axes, in order, are one axis."""
    names = ("in_stride", "out_stride", "residual_stride")
    return outer.pointwise and inner.pointwise and all(getattr(outer, n) == getattr(inner, n) * inner.outputs for n in names)


# --- tiles along a row ---


@dataclass(frozen=True)
class Segment:
    """`count` equal tiles one after another, from output position `start` on.

    pixels: of a tile. first_tap: the first tap that any of its pixels sees. groups: (first pixel, stop pixel, taps) of neighbouring
    taps that the same pixels see; empty where no pixel sees anything.
    """

    start: int
    count: int
    pixels: int
    first_tap: int
    groups: tuple[tuple[int, int, int], ...]

    @property
    def stop(self) -> int:
        return self.start + self.count * self.pixels


def balanced(length: int, most: int) -> list[int]:
    """length as the fewest parts of at most `most`, sizes differing by at most one, larger ones first."""
    parts = -(-length // most)
    size, larger = divmod(length, parts) if parts else (0, 0)
    return [size + 1] * larger + [size] * (parts - larger)


def segments(axis: Axis, most: int) -> tuple[Segment, ...]:
    """The row of output positions cut into tiles of at most `most` pixels, equal neighbours taken together."""
    found: list[Segment] = []
    everything, at = (0, axis.taps), 0
    for size, same in groupby(balanced(axis.outputs, most)):
        count = len(list(same))
        if axis.pointwise:  # long rows need no look at each tile
            found.append(Segment(at, count, size, 0, ((0, size, 1),)))
        for start in () if axis.pointwise else range(at, at + count * size, size):
            interior = axis.inside(start) == axis.inside(start + size - 1) == everything
            tile = Segment(start, 1, size, 0, ((0, size, axis.taps),)) if interior else _tile(axis, start, size)
            if found and (found[-1].pixels, found[-1].first_tap, found[-1].groups) == (size, tile.first_tap, tile.groups):
                found[-1] = replace(found[-1], count=found[-1].count + 1)
            else:
                found.append(tile)
        at += count * size
    return tuple(found)


def _tile(axis: Axis, start: int, pixels: int) -> Segment:
    spans = [axis.inside(start + r) for r in range(pixels)]
    seen = [s for s in spans if s[0] < s[1]]
    if not seen:
        return Segment(start, 1, pixels, 0, ())
    first, stop = min(s[0] for s in seen), max(s[1] for s in seen)
    watchers = []
    for tap in range(first, stop):
        who = [r for r, span in enumerate(spans) if span[0] <= tap < span[1]]
        watchers.append((who[0], who[-1] + 1) if who else (0, 0))
    groups = tuple((*pixel_range, len(list(same))) for pixel_range, same in groupby(watchers))
    return Segment(start, 1, pixels, first, groups)
