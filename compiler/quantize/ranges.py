"""From statistics to a range, and from a range to scale and zero point."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cortado.compiler.quantize.histogram import Histogram
from cortado.compiler.quantize.record import TensorStatistics
from cortado.compiler.types import Quant

Range = tuple[float, float]
LEVELS = 255  # steps between the least and the greatest int8 number
LEAST, GREATEST = -128, 127
SMALLEST_SCALE = 1e-30  # products of two scales stay normal float32 numbers
EXTENSION = 1.5
SYMMETRY = 2**0.5  # steps may be so much wider where zero is to be 0: half a bit
STEPS = 100  # ranges that the searches below try


def min_max(statistics: TensorStatistics) -> Range:
    """Everything that was seen."""
    return statistics.low, statistics.high


def extended(statistics: TensorStatistics) -> Range:
    """Everything that was seen, and beyond it EXTENSION times what it exceeds the samples' average range by.

    Where every sample reaches another height, the next one may reach a greater one.
    """
    low, high = statistics.low, statistics.high
    above, below = max(0.0, high - statistics.average_high), max(0.0, statistics.average_low - low)
    return low - EXTENSION * below, high + EXTENSION * above


def moving_average(statistics: TensorStatistics) -> Range:
    """The samples' own ranges, averaged with more weight on later ones."""
    return statistics.average_low, statistics.average_high


def percentile(statistics: TensorStatistics, share: float = 0.9999) -> Range:
    """The narrowest range that leaves out (1 - share) / 2 of the values at either end; where zero is an end, all at the other."""
    low, high = statistics.low, statistics.high
    histogram = statistics.histogram
    total = histogram.counts.sum()
    out = (1 - share) * total * (0.5 if low < 0 < high else 1.0)
    edges = histogram.edges
    below = np.cumsum(histogram.counts)
    above = np.cumsum(histogram.counts[::-1])[::-1]
    new_low, new_high = low, high
    if low < 0:
        new_low = max(low, float(edges[np.searchsorted(below, out, side="right")]))
    if high > 0:
        new_high = min(high, float(edges[1:][np.flatnonzero(above > out)[-1]]))
    return min(new_low, 0.0), max(new_high, 0.0)


def mean_square_error(statistics: TensorStatistics) -> Range:
    """The range with the least expected squared error: values outside are clipped, those inside rounded to LEVELS steps."""
    histogram = statistics.histogram
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)

    def error(low: float, high: float) -> float:
        step = (high - low) / LEVELS
        outside = np.maximum(low - centres, 0) + np.maximum(centres - high, 0)
        inside = float(counts[outside == 0].sum()) - zeros(histogram)
        return float(counts @ outside**2) + max(inside, 0.0) * step * step / 12

    return _search(statistics, error)


def entropy(statistics: TensorStatistics) -> Range:
    """The range that loses the least information: the Kullback-Leibler divergence of the quantized from the clipped distribution.

    The distribution is taken without zeros, which quantization keeps. (Migacz, 8-bit inference with TensorRT, GTC 2017.)
    """
    histogram = statistics.histogram
    counts = histogram.counts.astype(np.float64)
    at_zero = -histogram.first
    if 0 <= at_zero < len(counts):
        counts[at_zero] = counts[at_zero + 1] if at_zero + 1 < len(counts) else 0.0
    centres = histogram.centres

    def divergence(low: float, high: float) -> float:
        inside = (centres >= low) & (centres <= high)
        clipped = counts * inside
        kept = np.flatnonzero(inside)
        if not kept.size:
            return np.inf
        clipped[kept[0]] += counts[: kept[0]].sum()
        clipped[kept[-1]] += counts[kept[-1] + 1 :].sum()
        level = np.rint((centres[kept] - low) * (LEVELS / (high - low))).astype(np.int64)
        return _divergence(clipped[kept], counts[kept], np.clip(level, 0, LEVELS))

    return _search(statistics, divergence)


def _divergence(clipped: np.ndarray, counts: np.ndarray, level: np.ndarray) -> float:
    """Of the clipped distribution from the one where each level's counts are spread over its own non-empty bins."""
    filled = (counts > 0).astype(np.float64)
    mass = np.bincount(level, counts, LEVELS + 1)
    share = np.bincount(level, filled, LEVELS + 1)
    spread = filled * (mass / np.maximum(share, 1))[level]
    if not spread.sum() or not clipped.sum():
        return np.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    where = p > 0
    return float(np.sum(p[where] * np.log(p[where] / np.maximum(q[where], 1e-12))))


def zeros(histogram: Histogram) -> float:
    """Values in the bin that begins at zero, beyond what its neighbour has: mostly zeros, which quantization keeps."""
    at = -histogram.first
    if not 0 <= at < len(histogram.counts):
        return 0.0
    beside = histogram.counts[at + 1] if at + 1 < len(histogram.counts) else 0
    return max(0.0, float(histogram.counts[at] - beside))


def _search(statistics: TensorStatistics, cost: Callable[[float, float], float]) -> Range:
    """The best of the ranges that shrink the whole one: both ends first, then each end alone. Wider ones win ties."""
    low, high = with_zero(statistics.low, statistics.high)
    if low == high:
        return low, high
    best = min(((cost(low * part, high * part), -part) for part in _parts()), key=lambda pair: pair)
    part_low = part_high = -best[1]
    if low < 0 < high:
        part_low = -min((cost(low * part, high * part_high), -part) for part in _parts())[1]
        part_high = -min((cost(low * part_low, high * part), -part) for part in _parts())[1]
    return low * part_low, high * part_high


def _parts() -> list[float]:
    return [1 - 0.95 * step / STEPS for step in range(STEPS)]


METHODS: Mapping[str, Callable[[TensorStatistics], Range]] = {
    "extended": extended,
    "min_max": min_max,
    "moving_average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mean_square_error": mean_square_error,
}


def with_zero(low: float, high: float) -> Range:
    """The range with zero in it: padding, relu and clipped values need it exact."""
    return min(low, 0.0), max(high, 0.0)


def quant_of(low: float, high: float) -> Quant:
    """Asymmetric int8 for the range. A range of nothing but zero gets scale 1."""
    low, high = with_zero(low, high)
    scale = float(np.float32((high - low) / LEVELS)) or 1.0
    scale = max(scale, SMALLEST_SCALE)
    zero = int(np.clip(np.rint(LEAST - low / scale), LEAST, GREATEST))
    return Quant((float(np.float32(scale)),), (zero,))


def symmetric_quant_of(low: float, high: float) -> Quant:
    """As quant_of, but with zero point 0 where that costs no more than half a bit."""
    found = quant_of(low, high)
    scale = float(np.float32(max(-low, high) / GREATEST))
    return Quant((scale,), (0,)) if SMALLEST_SCALE <= scale <= SYMMETRY * found.scales[0] else found
