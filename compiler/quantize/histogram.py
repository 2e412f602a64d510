"""Histograms that grow: bins of one power-of-two width, so that widening and merging lose nothing but resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BINS = 2048
PRECISION = 20  # bits of a bin number at most, so that float32 finds the bin of a value exactly


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie in [(first + i) * 2**exponent, (first + i + 1) * 2**exponent).

    The exponent is a function of the smallest and the largest value alone, therefore the order of samples does not matter, and a
    merge of two histograms is the histogram of all their values.
    """

    exponent: int
    first: int
    counts: np.ndarray  # int64, at most BINS, read-only

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> np.ndarray:
        """float64[len(counts) + 1]."""
        return np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64) * self.width

    @property
    def centres(self) -> np.ndarray:
        return self.edges[:-1] + 0.5 * self.width

    @staticmethod
    def of(values: np.ndarray, low: float, high: float) -> Histogram:
        """Of finite float32 values between low and high, which are their smallest and largest (or wider)."""
        exponent = exponent_for(low, high)
        first = bin_of(low, exponent)
        numbers = np.multiply(values.reshape(-1), np.float32(math.ldexp(1.0, -exponent)))
        numbers = np.floor(numbers, out=numbers).astype(np.int32) - first
        counts = np.bincount(numbers, minlength=bin_of(high, exponent) - first + 1)
        return Histogram(exponent, first, frozen_counts(counts))

    def widened(self, exponent: int, first: int, bins: int) -> np.ndarray:
        """The counts in wider bins: int64[bins], beginning at bin `first` of that exponent."""
        shift = exponent - self.exponent
        numbers = (np.arange(self.first, self.first + len(self.counts), dtype=np.int64) >> shift) - first
        counts = np.zeros(bins, np.int64)
        np.add.at(counts, numbers, self.counts)
        return counts

    def spanning(self, low: float, high: float) -> Histogram:
        """The same values in bins from low to high, which hold at least those there are."""
        exponent = max(exponent_for(low, high), self.exponent)
        first = bin_of(low, exponent)
        return Histogram(exponent, first, frozen_counts(self.widened(exponent, first, bin_of(high, exponent) - first + 1)))

    def merged(self, other: Histogram, low: float, high: float) -> Histogram:
        """Of both's values; low and high: the smallest and largest of all."""
        exponent = max(exponent_for(low, high), self.exponent, other.exponent)
        first = bin_of(low, exponent)
        bins = bin_of(high, exponent) - first + 1
        counts = self.widened(exponent, first, bins) + other.widened(exponent, first, bins)
        return Histogram(exponent, first, frozen_counts(counts))


def bin_of(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(float(value), -exponent))


def exponent_for(low: float, high: float) -> int:
    """The narrowest bins with which the range takes no more than BINS, and every bin number no more than PRECISION bits."""
    largest = max(abs(low), abs(high))
    if largest == 0:
        return -PRECISION
    exponent = max(math.frexp(largest)[1] - PRECISION, -120)
    while bin_of(high, exponent) - bin_of(low, exponent) + 1 > BINS:
        exponent += 1
    return exponent


def frozen_counts(counts: np.ndarray) -> np.ndarray:
    counts = np.ascontiguousarray(counts, np.int64)
    counts.flags.writeable = False
    return counts
