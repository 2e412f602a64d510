"""The register block of products by Strassen's scheme: seven products for a block of pairs of pixels and a panel in both halves of the outputs.

Winograd's form of the scheme (Higham, Accuracy and Stability of Numerical Algorithms, section 23.1), for the halves A11 A12 / A21 A22 of
pixels and channels, and B11 B12 / B21 B22 of channels and outputs:

    S1 = A21 + A22   S2 = S1 - A11   S3 = A11 - A21   S4 = A12 - S2
    T1 = B12 - B11   T2 = B22 - T1   T3 = B22 - B12   T4 = B21 - T2
    C11 = A11 B11 + A12 B21          U = A11 B11 + S2 T2         V = U + S3 T3
    C12 = U + S1 T1 + S4 B22         C21 = V + A22 T4            C22 = V + S1 T1

Most products are added to the accumulators of another one, so that of the seven sums of results two are left, and these are made in
registers: nothing but finished outputs is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cortado.compiler.builder import Number, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.kernels.tile import Tile, TileSpec
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.target import Target

SUMS, PRODUCTS = 4, 7


@dataclass(frozen=True)
class PairSpec(TileSpec):
    """As a tile of `rows` pairs of pixels. seconds: how many of them have a second pixel: all, or all but the last."""

    seconds: int = 0

    def parameters(self) -> list[tuple[str, Type]]:
        """Names and types of the kernel's parameters, in order. All but the pointers are counts or distances in elements.

        a, residual, out: first pixel of the first pair, and of outputs the left half. *_pixel: distance of pairs, *_second: of a pair's pixels.
        right: distance of the halves of the outputs, also in bias. s: S1 of the first pair; s_pixel: distance of pairs, s_part: of S1 and S2.
        w: weights of the seven products, `run` steps each. count: tiles to do one after another. ahead, tile: as of `TileSpec`.
        """
        names = [
            ("a", PTR),
            ("a_pixel", INDEX),
            ("a_second", INDEX),
            ("s", PTR),
            ("s_pixel", INDEX),
            ("s_part", INDEX),
            ("w", PTR),
        ]
        names += [("bias", PTR)] * self.epilogue.bias
        for name in (*["residual"] * self.epilogue.residual, "out"):
            names += [(name, PTR), (f"{name}_pixel", INDEX), (f"{name}_second", INDEX)]
        names += [("right", INDEX), ("run", INDEX), ("count", INDEX)]
        return names + [("ahead", INDEX), ("tile", INDEX)] * (self.ahead > 0)


@lru_cache(maxsize=256)
def pair_kernel(spec: PairSpec, target: Target) -> Kernel:
    """Record the tile, once for all layers that have it. Called with the values of `spec.parameters()`."""
    return _PairTile(spec, target).record()


@dataclass(frozen=True)
class _Quarter:
    """A quarter of the outputs: of the second pixels of pairs, or of the first; the right half of the outputs, or the left."""

    second: bool
    right: bool


class _PairTile(Tile):
    spec: PairSpec

    def __init__(self, spec: PairSpec, target: Target) -> None:
        super().__init__(spec, target, f"strassen_{spec.scalar}_{spec.rows}x{spec.vectors}")

    def one(self, number: Val) -> None:
        k, p, spec = self.k, self.p, self.spec
        if spec.ahead:
            self.next_line = self.line_of(number)
        first = number * spec.rows
        a11, a12, a22 = (self.rows_at("a", first, moved) for moved in (0, p["run"], p["a_second"] + p["run"]))
        s1, s2, s3, s4 = (self.rows_at("s", first, p["s_part"] * part) for part in range(SUMS))
        zeros = [k.zero(self.vector)] * (spec.rows * spec.vectors)
        all_pairs, whole_pairs = (0, spec.rows), (0, spec.seconds)
        # In this order two other blocks of results at most are kept beside the one that a product is added to.
        u = self.product(0, zeros, a11, all_pairs)
        self.put(_Quarter(False, False), self.product(1, u, a12, all_pairs), first)
        u = self.product(2, u, s2, all_pairs)
        z = self.product(3, zeros, s1, all_pairs)
        self.put(_Quarter(False, True), self.product(4, _added(u, z), s4, all_pairs), first)
        if spec.seconds:
            v = self.product(5, u, s3, whole_pairs)
            self.put(_Quarter(True, True), _added(v, z), first)
            self.put(_Quarter(True, False), self.product(6, v, a22, whole_pairs), first)

    def rows_at(self, name: str, first: Val, moved: Number) -> list[Val]:
        base = self.k.offset(self.p[name], first * self.p[f"{name}_pixel"] + moved, self.spec.scalar)
        return self.pixels(base, self.p[f"{name}_pixel"], self.spec.scalar)

    def product(self, number: int, start: Sequence[Val], rows: Sequence[Val], seen: tuple[int, int]) -> list[Val]:
        """start + rows * the weights of a product, for the pairs in `seen`."""
        zeros = [self.k.zero(self.vector)] * len(start)
        weights = self.k.offset(self.p["w"], self.p["run"] * (number * self.panel), self.spec.scalar)
        return self.combine(self.run(rows, weights, self.p["run"], seen, [*start, *zeros * (self.spec.splits - 1)]))

    def put(self, quarter: _Quarter, sums: Sequence[Val], first: Val) -> None:
        """The epilogue and the store of a quarter of the outputs."""
        k, p, spec = self.k, self.p, self.spec
        right: Number = p["right"] if quarter.right else 0
        rows = range(spec.seconds if quarter.second else spec.rows)

        def places(name: str) -> list[Val]:
            return self.rows_at(name, first, p[f"{name}_second"] + right if quarter.second else right)

        values = list(sums[: len(rows) * spec.vectors])
        if spec.epilogue.bias:
            at = k.offset(p["bias"], right, spec.scalar)
            bias = [self.load_out(at, v) for v in range(spec.vectors)]
            values = _added(values, bias * len(rows))
        beside = places("residual") if spec.epilogue.residual else []
        residuals = [self.load_out(beside[r], v) for r in rows for v in range(spec.vectors)] if beside else []
        kind = EpilogueKind(False, spec.epilogue.residual, spec.epilogue.activation)
        outs = places("out")
        for i, value in enumerate(kind.finish(k, values, residuals)):
            r, v = divmod(i, spec.vectors)
            k.store_lanes(outs[r], value, self.lanes_of(v), v * self.lanes)


def _added(a: Sequence[Val], b: Sequence[Val]) -> list[Val]:
    return [x + y for x, y in zip(a, b, strict=True)]
