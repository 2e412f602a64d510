"""Winograd's minimal filtering F(m, 3) in whole numbers, and when its result is exact in 32 bits.

The usual matrices (points 0, +-1, +-2, infinity; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016) have rows
with fractions in the filter's transform. Here each such row is multiplied by its denominator and the output's transform makes up for
it, so that every output comes out `odd * 2^shift` times too large. All sums may wrap around: an odd number has an inverse modulo 2^32,
so a multiplication by it and an arithmetic shift give the sum itself, as long as that has room in 32 - shift bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.winograd_algebra import Filtering

TAPS = 3
TILES = (2, 4)  # the m of F(m, 3)
LARGEST = 128  # magnitude of an input: bytes with a sign


@dataclass(frozen=True)
class WholeFiltering(Filtering):
    """F(m, 3) in one dimension. odd, shifts: output i of a tile is odd * 2^shifts[i] times the true one."""

    odd: int
    shifts: tuple[int, ...]

    @property
    def inverse(self) -> int:
        """Of odd * odd modulo 2^32: both dimensions' factor."""
        return pow(self.odd * self.odd, -1, 1 << 32)

    def exact(self, w: np.ndarray) -> bool:
        """Whether inputs of at most LARGEST and weights w[O,3,3,C] fit: transformed ones 16 bits, sums what the shifts leave."""
        room = 31 - 2 * max(self.shifts)
        sums = np.abs(w.astype(np.int64)).reshape(w.shape[0], -1).sum(axis=1)
        values = LARGEST * int(np.abs(self.input).sum(axis=1).max()) ** 2
        weights = np.abs(self.filters(w.astype(np.int32)))
        return values < 1 << 15 and int(weights.max(initial=0)) < 1 << 15 and LARGEST * int(sums.max(initial=0)) < 1 << room


def whole_filtering(m: int) -> WholeFiltering:
    """m: one of TILES."""
    if m == 2:
        output = [[2, 1, 1, 0], [0, 1, -1, -2]]
        filters = [[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]]
        inputs = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
        return WholeFiltering(2, np.array(output), np.array(filters), np.array(inputs), 1, (1, 1))
    assert m == 4, "F(2, 3) and F(4, 3) alone"
    output = [[6, 4, 4, 1, 1, 0], [0, 2, -2, 1, -1, 0], [0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 6]]
    filters = [[1, 0, 0], [-1, -1, -1], [-1, 1, -1], [1, 2, 4], [1, -2, 4], [0, 0, 1]]
    inputs = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0]]
    inputs += [[0, 4, 0, -5, 0, 1]]
    return WholeFiltering(4, np.array(output), np.array(filters), np.array(inputs), 3, (3, 2, 1, 1))


def transform_input(f: WholeFiltering, values: Sequence[Val]) -> list[Val]:
    """f.input times one column of m + 2 integers, in few additions and shifts."""
    if f.m == 2:
        a, b, c, d = values
        return [a - c, b + c, c - b, b - d]
    a, b, c, d, e, last = values
    even, odd, near, far = e - (c << 2), d - (b << 2), e - c, (d - b) << 1
    return [((a - c) << 2) + near, even + odd, even - odd, near + far, near - far, (last - d) - (far << 1)]


def transform_output(f: WholeFiltering, values: Sequence[Val]) -> list[Val]:
    """f.output times one column of m + 2 products. Doubling is an addition: shifts are rarer units of many cores."""
    if f.m == 2:
        a, b, c, d = values
        return [(a << 1) + (b + c), (b - c) - (d << 1)]
    a, b, c, d, e, last = values
    total, difference, outer, far = b + c, b - c, d + e, d - e
    first = ((((a + total) << 1) + a) << 1) + outer
    fourth = (((last << 1) + last + far) << 1) + difference
    return [first, (difference << 1) + far, total + outer, fourth]


def true_sum(k: KernelBuilder, f: WholeFiltering, value: Val, i: int, j: int) -> Val:
    """The convolution's sum from the transformed one of output pixel (i, j) of a tile: i32 lanes."""
    if f.odd != 1:
        inverse = f.inverse
        value = value * k.const(inverse - (1 << 32) if inverse >> 31 else inverse, value.type)
    return value >> (f.shifts[i] + f.shifts[j])
