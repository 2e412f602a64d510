"""Where a row of output pixels lies and which taps it sees: what drivers calculate once a row, in the kernel language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.kernels.geometry import Axis, Geometry, Segment


@dataclass(frozen=True)
class Row:
    """Offsets in elements from the tensors' starts to a row. a: of its position -pad in width, at the first taps inside the input.

    piece: which part of the row's tiles is meant. first_tap: number of kernel rows (depth * height) before the first inside.
    planes, kernel_rows: how many are inside.
    """

    a: Number
    out: Number
    residual: Number
    piece: Number
    first_tap: Number
    planes: Number
    kernel_rows: Number


def find_row(k: KernelBuilder, geometry: Geometry, unit: Val, row_parts: int) -> Row:
    """The row of a unit; each row is `row_parts` units."""
    image, depth, height = geometry.image, geometry.depth, geometry.height
    row, piece = unit // row_parts, unit % row_parts
    h, d, n = row % height.outputs, row // height.outputs, k.index(0)
    if depth.outputs == 1:
        n, d = d, k.index(0)
    elif image.outputs > 1:
        d, n = d % depth.outputs, d // depth.outputs
    if height.outputs == 1:
        h = k.index(0)
    if image.outputs == 1:
        n = k.index(0)
    plane, planes, from_plane = _inside(k, depth, d)
    line, lines, from_line = _inside(k, height, h)
    a = n * image.in_stride + from_plane * depth.in_stride + from_line * height.in_stride
    out = n * image.out_stride + d * depth.out_stride + h * height.out_stride
    residual = n * image.residual_stride + d * depth.residual_stride + h * height.residual_stride
    return Row(a, out, residual, piece, plane * height.taps + line, planes, lines)


def _inside(k: KernelBuilder, axis: Axis, x: Val) -> tuple[Val, Val, Val]:
    """The first tap inside the input, how many there are, and the input position of the first."""
    start = x * axis.step - axis.pad
    if not axis.bordered:
        return k.index(0), k.index(axis.taps), start
    up = axis.dilation - 1
    first = (k.max(0 - start, 0) + up) // axis.dilation
    stop = k.min((k.max(axis.size - start, 0) + up) // axis.dilation, axis.taps)
    return first, k.max(stop - first, 0), start + first * axis.dilation


def tiles_of_piece(k: KernelBuilder, row: Sequence[Segment], number: int, piece: Number, row_parts: int) -> tuple[Number, Number]:
    """The first pixel and the number of tiles of segment `number` that belong to a piece of the row."""
    segment = row[number]
    if row_parts == 1:
        return segment.start, segment.count
    low, high = (_tiles_before(k, row, number, p, row_parts) for p in (piece, piece + 1))
    return low * segment.pixels + segment.start, high - low


def start_of_piece(k: KernelBuilder, row: Sequence[Segment], piece: Number, row_parts: int) -> Val:
    """The pixel that a piece of the row begins with, or the row's number of pixels for the piece after the last."""
    pixel = k.index(0)
    for number, segment in enumerate(row):
        pixel = pixel + _tiles_before(k, row, number, piece, row_parts) * segment.pixels
    return pixel


def _tiles_before(k: KernelBuilder, row: Sequence[Segment], number: int, piece: Number, row_parts: int) -> Val:
    """Tiles of a segment that belong to earlier pieces.

    Rounded up, and larger tiles come first: so the first n of N pieces make at least n / N of the row, which limits of rows rely on.
    """
    total, before = sum(s.count for s in row), sum(s.count for s in row[:number])
    tile = (piece * total + (row_parts - 1)) // row_parts
    return k.min(k.max(tile - before, 0), row[number].count)
