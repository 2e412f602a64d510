"""The matrices of Winograd's minimal filtering F(m, taps), and how kernels apply them.

Y = A' [(G g G') * (B' d B)] A with the Cook-Toom construction (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
2016; Blahut, "Fast Algorithms for Signal Processing", section 5.2). Interpolation points come in pairs +p, -p, which halves the work of
the transforms. They depend on the number of products alone, m + taps - 1, and so does `enlargement`, which they keep low. With four
points beside zero and infinity, +-sqrt(1/2), +-sqrt(2) keep the matrices' entries near one: the largest error of a layer of F(4, 3)
against float64 is about 2e-6 of its largest value, against 6e-6 for the usual +-1, +-2. With six, +-1/2, +-1, +-2 have exact
entries: F(4, 5) is off by 3e-6 to 1e-5, which F(4, 3) would be with +-1, +-2 as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val

# Positive halves of the pairs, by products in one dimension.
POINTS: Mapping[int, tuple[float, ...]] = {4: (1.0,), 6: (math.sqrt(0.5), math.sqrt(2.0)), 8: (0.5, 1.0, 2.0)}
TILES: Mapping[int, tuple[int, ...]] = {3: (2, 4), 5: (2, 4)}  # the m of F(m, taps), by taps


@dataclass(frozen=True, eq=False)
class Filtering:
    """F(m, taps) in one dimension. m: outputs of a tile. output[m, size], filter[size, taps], input[size, size]: A', G and B'."""

    m: int
    output: np.ndarray
    filter: np.ndarray
    input: np.ndarray

    @property
    def taps(self) -> int:
        return self.filter.shape[1]

    @property
    def size(self) -> int:
        """Inputs and products of a tile: m + taps - 1."""
        return self.input.shape[0]

    @property
    def pairs(self) -> int:
        """Of points: the products but for those of zero and infinity."""
        return self.size // 2 - 1

    @property
    def enlargement(self) -> float:
        """By how much the matrices may enlarge an error: the largest sum of |A'||G|(|B'|1), squared for two dimensions."""
        sums = np.einsum("in,nt,n->it", np.abs(self.output), np.abs(self.filter), np.abs(self.input).sum(axis=1))
        return float(sums.max() ** 2)

    def filters(self, w: np.ndarray) -> np.ndarray:
        """w[O,taps,taps,C] -> [size * size, O, C] in w's dtype, computed in float64."""
        wide = w.astype(np.float64)
        across = np.zeros((self.size, *wide.shape[:1], *wide.shape[2:]))
        for a in range(self.size):
            for tap in range(self.taps):
                across[a] += self.filter[a, tap] * wide[:, tap]
        result = np.zeros((self.size, self.size, w.shape[0], w.shape[3]))
        for b in range(self.size):
            for tap in range(self.taps):
                result[:, b] += self.filter[b, tap] * across[:, :, tap]
        return result.reshape(self.size**2, w.shape[0], w.shape[3]).astype(w.dtype)


def error_bound(f: Filtering, channels: int) -> float:
    """By how much a float32 layer may differ from the exact result, as a multiple of max|x| * sum|w| of an output channel.

    The number of roundings on the way of a product (both transforms in two dimensions, the filter, a sum over the channels), times the
    enlargement (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1). Multiplying directly, it is
    taps**2 * channels * 2**-24. Real errors are far below both.
    """
    roundings = channels + 1 + 4 * (f.size + 1)
    return f.enlargement * roundings * 2.0**-24


@cache
def filtering(m: int, taps: int) -> Filtering:
    """Products are ordered: point 0, then +p and -p of each pair, then infinity."""
    n = m + taps - 1
    points = np.array([0.0, *(sign * p for p in POINTS[n] for sign in (1, -1))])
    output, filters, inputs = np.zeros((m, n)), np.zeros((n, taps)), np.zeros((n, n))
    for i, point in enumerate(points):
        output[:, i] = [_power(point, e) for e in range(m)]
        others = [q for j, q in enumerate(points) if j != i]
        filters[i] = [_power(point, e) / _product([point - q for q in others]) for e in range(taps)]
        inputs[i, : n - 1] = _polynomial(others)
    output[m - 1, n - 1] = filters[n - 1, taps - 1] = 1.0
    inputs[n - 1] = _polynomial(list(points))
    return Filtering(m, output, filters, inputs)


def _power(point: float, exponent: int) -> float:
    return _product([point] * exponent)


def _product(factors: Sequence[float]) -> float:
    """In order: a power function of the machine could differ in the last bit, and weights must not."""
    result = 1.0
    for factor in factors:
        result *= float(factor)
    return result


def _polynomial(roots: Sequence[float]) -> np.ndarray:
    """Coefficients, lowest first, of the product of (x - root)."""
    coefficients = [1.0]
    for root in roots:
        shifted, scaled = [0.0, *coefficients], [*(-float(root) * c for c in coefficients), 0.0]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return np.array(coefficients)


def transform_input(k: KernelBuilder, f: Filtering, values: Sequence[Val]) -> list[Val]:
    """B' times one column of `size` values. The rows of +p and -p share their even and odd halves."""
    result = [_combine(k, f.input[0], values, range(f.size))]
    for pair in range(f.pairs):
        row = f.input[1 + 2 * pair]
        even = _combine(k, row, values, range(0, f.size, 2))
        odd = _combine(k, row, values, range(1, f.size, 2))
        result += [even + odd, even - odd]
    return [*result, _combine(k, f.input[f.size - 1], values, range(f.size))]


def transform_output(k: KernelBuilder, f: Filtering, values: Sequence[Val]) -> list[Val]:
    """A' times one column of `size` products: even powers take the sums of the pairs, odd ones their differences."""
    sums = [values[1 + 2 * i] + values[2 + 2 * i] for i in range(f.pairs)]
    differences = [values[1 + 2 * i] - values[2 + 2 * i] for i in range(f.pairs)]
    result = []
    for power in range(f.m):
        parts = sums if power % 2 == 0 else differences
        start = values[f.size - 1] if power == f.m - 1 else values[0] if power == 0 else None
        result.append(_combine(k, f.output[power, 1 : f.size - 1 : 2], parts, range(len(parts)), start))
    return result


def _combine(
    k: KernelBuilder, coefficients: np.ndarray, values: Sequence[Val], places: Sequence[int], start: Val | None = None
) -> Val:
    """Sum of coefficient * value over the places whose coefficient is not (but for rounding) zero, and of `start`.

    With many registers, what is not multiplied comes first, so that all else is multiplied and added at once. With few, the constants
    of those instructions would have to be loaded each time, and separate products and sums are no slower. What is taken off comes after
    what it may be taken off from, or it would be multiplied by -1.
    """
    terms = [(float(np.float32(coefficients[place])), values[place]) for place in places]
    terms = [(c, value) for c, value in terms if abs(c) >= 1e-6]
    terms.sort(key=lambda term: abs(term[0] + 1.0) < 1e-6)
    if k.target.vector_registers > 16:
        terms.sort(key=lambda term: abs(abs(term[0]) - 1.0) >= 1e-6)
    total = start
    for c, value in terms:
        near = abs(abs(c) - 1.0) < 1e-6
        if total is None:
            total = value if near and c > 0 else value * (math.copysign(1.0, c) if near else c)
        elif near:
            total = total + value if c > 0 else total - value
        else:
            total = k.virtual("fma", value, k.const(c, value.type), total)
    assert total is not None
    return total
