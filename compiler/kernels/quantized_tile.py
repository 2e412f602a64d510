"""The matmul-shaped tile on integers: an element of A is a word of two int16 or four bytes, a step is a dot instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cortado.compiler.builder import Val
from cortado.compiler.kernels.requantize import Requantization, load_bytes
from cortado.compiler.kernels.tile import Tile, TileSpec
from cortado.compiler.lang import I32, Kernel, Type
from cortado.compiler.target import Target


@dataclass(frozen=True)
class Dot:
    """How sums are made. name: virtual instruction (dot2 or dot4). flip: whether the bytes of A have a sign that dot4 must not see."""

    name: str
    flip: bool = False

    @property
    def neighbours(self) -> int:
        """Channels of one word."""
        return int(self.name[-1])

    def tile_kernel(self, spec: TileSpec, target: Target) -> Kernel:
        """As tile.tile_kernel; the scalar is i32, the epilogue a Requantization."""
        return _recorded(spec, target, self)


@lru_cache(maxsize=1024)
def _recorded(spec: TileSpec, target: Target, dot: Dot) -> Kernel:
    """Once for all layers that have the tile."""
    return _QuantizedTile(spec, target, dot).record()


class _QuantizedTile(Tile):
    def __init__(self, spec: TileSpec, target: Target, dot: Dot) -> None:
        super().__init__(spec, target, f"tile_{dot.name}_{spec.rows}x{spec.vectors}")
        self.dot = dot

    def load_element(self, row: Val, step: int) -> Val:
        """Bytes need no alignment."""
        if self.dot.name != "dot4":
            return super().load_element(row, step)
        k = self.k
        return k.convert(k.load(row, Type("i8", 4), 4 * step), I32, "bitcast")

    def spread_element(self, row: Val, step: int) -> Val:
        word = super().spread_element(row, step)
        return self.k.virtual("flip_signs", word) if self.dot.flip else word

    def multiply_add(self, values: dict[int, Val], step: int, r: int, v: int, a: Val, w: Val) -> None:
        i = ((step % self.spec.splits) * self.spec.rows + r) * self.spec.vectors + v
        values[i] = self.k.virtual(self.dot.name, values[i], a, w)

    def finish(self, accumulators: list[Val], outs: Sequence[Val], first: Val) -> None:
        k, spec = self.k, self.spec
        kind = spec.epilogue
        if not isinstance(kind, Requantization):
            super().finish(accumulators, outs, first)
            return
        rows = [
            [k.load(self.p["bias"], self.vector, (row * spec.vectors + v) * self.lanes) for row in range(1, kind.header)]
            for v in range(spec.vectors)
        ]
        beside: list[Val] = []
        if spec.takes_residual:
            base = k.offset(self.p["residual"], first * self.p["residual_pixel"], "i8")
            beside = self.pixels(base, self.p["residual_pixel"], "i8")
        results: list[list[Val]] = []
        for r in range(spec.rows):
            values = []
            for v in range(spec.vectors):
                residual = load_bytes(k, beside[r], self.lanes, self.lanes_of(v), v * self.lanes) if beside else None
                values.append(kind.narrowed(k, accumulators[r * spec.vectors + v], rows[v], residual))
            results.append(values)
        kind.store_rows(k, outs, results, (spec.vectors - 1) * self.lanes + self.lanes_of(spec.vectors - 1))
