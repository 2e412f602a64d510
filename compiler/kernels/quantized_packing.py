"""Panels of words of integers, made at run time of a second operand that is computed.

A panel starts with a row of biases and one of multipliers, as those of constant weights do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cortado.compiler.builder import Val
from cortado.compiler.kernels.packing import PanelPacker, WeightSource
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.kernels.requantize import widened
from cortado.compiler.kernels.tiling import Panels
from cortado.compiler.lang import Kernel, Type
from cortado.compiler.target import Target

HEADER = 2  # rows: biases, multipliers
ONES = 0x01010101


@dataclass(frozen=True)
class Factors:
    """What shapes the words of a second operand. signed, zero: of its bytes, zero 0 and signed where they are multiplied by dot4.

    moved: by how much dot4 sees the first operand's numbers too large, which the biases take back. multiplier: the bits of the one float32
    that sums are multiplied with.
    """

    signed: bool
    zero: int
    moved: int
    multiplier: int


def pack_words(source: WeightSource, factors: Factors, panels: Panels, dot: Dot, target: Target) -> tuple[Kernel, int]:
    """A driver (bytes, packed, begin, end) that makes the panels, and its number of tasks, one per panel.

    source: with one axis of terms; of channels or terms neighbours lie beside each other.
    """
    return _WordPacker(source, factors, panels, dot, target).record()


class _WordPacker(PanelPacker):
    def __init__(self, source: WeightSource, factors: Factors, panels: Panels, dot: Dot, target: Target) -> None:
        self.factors, self.unit, self.four = factors, dot.neighbours, dot.name == "dot4"
        ((self.terms, self.distance),) = source.terms
        self.words = -(-self.terms // self.unit)
        super().__init__(f"pack_{dot.name}", source, panels, "i32", HEADER, self.words, target)
        assert not self.four or (factors.signed and factors.zero == 0), "dot4 multiplies by signed bytes as they are"

    def fill(self, start: Val, group: Val, channel: Val, to: Val, vectors: int, last: bool) -> None:
        k, lanes = self.k, self.panels.lanes
        bytes_, words = k.offset(self.weights, start, "i8"), k.offset(to, HEADER * vectors * lanes, "i32")
        if self.source.output == 1 or lanes == 1:
            self.interleave(bytes_, words, vectors, last)
        else:
            self.transpose(bytes_, "i8", self.terms, self.unit, words, vectors, last, self.words_of)
        biases = self.biases(words, vectors)
        for v in range(vectors):
            k.store(to, biases[v], v * lanes)
            k.store(to, k.const(self.factors.multiplier, self.vector), (vectors + v) * lanes)

    # --- terms far apart ---

    def interleave(self, source: Val, words: Val, vectors: int, last: bool) -> None:
        """A vector of each of a word's terms, put together lane by lane."""
        k, lanes, unit = self.k, self.panels.lanes, self.unit

        def row(number: Val, count: int) -> None:
            for v in range(vectors):
                here = [
                    k.load_lanes(
                        k.offset(source, (number * unit + i) * self.distance + v * lanes * self.source.output, "i8"),
                        Type("i8", lanes), self.lanes_of(v, vectors, last),
                    )
                    for i in range(count)
                ]  # fmt: skip
                k.store(words, self.word(here), (number * vectors + v) * lanes)

        whole, rest = divmod(self.terms, unit)
        k.loop(0, whole, 1, lambda number: row(number, unit))
        if rest:
            row(k.index(whole), rest)

    def word(self, parts: Sequence[Val]) -> Val:
        """The parts of every lane from the lowest bits up."""
        k = self.k
        bits = 32 // self.unit
        found = k.zero(self.vector)
        for i, part in enumerate(parts):
            wide = widened(k, part, self.factors.signed) - self.factors.zero
            found = found | ((wide & ((1 << bits) - 1)) << (bits * i))
        return found

    # --- terms side by side ---

    def words_of(self, place: Val, terms: int, at: int) -> Val:
        """One channel's next terms; what a word has too much is multiplied by zeros."""
        k, lanes = self.k, self.panels.lanes
        value = k.load_lanes(place, Type("i8", lanes * self.unit), terms, at)
        if not self.four:
            value = widened(k, value, self.factors.signed, "i16") - self.factors.zero
        return k.convert(value, self.vector, "bitcast")

    # --- what precedes them ---

    def biases(self, words: Val, vectors: int) -> list[Val]:
        """Of the channels of a panel whose words are there."""
        k, lanes = self.k, self.panels.lanes
        zeros = [k.zero(self.vector)] * vectors
        if not self.four or not self.factors.moved:
            return zeros

        def add(number: Val, *sums: Val) -> list[Val]:
            loaded = [k.load(words, self.vector, (number * vectors + v) * lanes) for v in range(vectors)]
            return [k.virtual("dot4", s, k.const(ONES, self.vector), w) for s, w in zip(sums, loaded, strict=True)]

        return [value * -self.factors.moved for value in k.loop(0, self.words, 1, add, zeros)]
