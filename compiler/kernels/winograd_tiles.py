"""Shared kernels of the Winograd transforms: channels-last pixels to products' operands, products to channels-last pixels.

Vectors run over channels. A tile at a border has its own kernel, which tests every row and column; interior tiles test nothing. So do
channels that fill no vector: `tail` of them, or 0 in kernels of whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.kernels.winograd_algebra import Filtering, transform_input, transform_output
from cortado.compiler.kernels.winograd_drivers import shortest
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.target import Target


@lru_cache(maxsize=64)
def input_kernel(f: Filtering, border: bool, tail: int, target: Target) -> Kernel:
    """(x, v, count, channels, x_row, x_pixel, v_tile, v_product [, y, left, height, width]): `count` tiles beside each other.

    x: the first tile's first pixel (perhaps outside of the image), v: its place in product 0. Distances in elements; channels: a multiple
    of the lanes, or the tail. y, left: the first tile's position in the image of height x width, from which what is outside reads as zero.
    """
    k = KernelBuilder(f"winograd{f.m}_input{'_border' if border else ''}", target, shared=True)
    vector, count = _vector(tail, target)
    names = ["x", "v", "count", "channels", "x_row", "x_pixel", "v_tile", "v_product"] + ["y", "left", "height", "width"] * border
    p = {name: k.param(name, PTR if name in ("x", "v") else INDEX) for name in names}

    def read(base: Val, at: Val, left: Val | None, i: int, j: int) -> Val:
        def load() -> Val:
            return k.load_lanes(base, vector, count, at + p["x_row"] * i + p["x_pixel"] * j)

        if left is None:
            return load()
        y, x = p["y"] + i, left + j
        inside = _inside(k, y, p["height"]) & _inside(k, x, p["width"])
        return k.if_(inside, lambda: (load(),), lambda: (k.zero(vector),))[0]

    def tile(number: Val) -> None:
        first = k.offset(p["x"], number * f.m * p["x_pixel"], "f32")
        to = k.offset(p["v"], number * p["v_tile"], "f32")
        left = p["left"] + number * f.m if border else None

        def channels(c: Val) -> None:
            columns = [transform_input(k, f, [read(first, c, left, i, j) for i in range(f.size)]) for j in range(f.size)]
            for i in range(f.size):
                for j, value in enumerate(transform_input(k, f, [column[i] for column in columns])):
                    k.store(to, value, c + p["v_product"] * (i * f.size + j))

        k.loop(0, p["channels"], vector.lanes, channels)

    k.loop(0, p["count"], 1, tile)
    return k.finish()


@lru_cache(maxsize=64)
def output_kernel(f: Filtering, border: bool, tail: int, kind: EpilogueKind, target: Target) -> Kernel:
    """(m, [bias], [residual, r_row, r_pixel], out, count, channels, o_row, o_pixel, m_tile, m_product [, rows, columns]).

    rows, columns: pixels of the first tile (and what follows it in its row) that exist.
    """
    k = KernelBuilder(f"winograd{f.m}_output{'_border' if border else ''}", target, shared=True)
    vector, count = _vector(tail, target)
    names = ["m"] + ["bias"] * kind.bias + ["residual", "r_row", "r_pixel"] * kind.residual
    names += ["out", "count", "channels", "o_row", "o_pixel", "m_tile", "m_product"] + ["rows", "columns"] * border
    p = {name: k.param(name, PTR if name in ("m", "bias", "residual", "out") else INDEX) for name in names}

    def when(condition: Val | None, action: Callable[[], None]) -> None:
        if condition is None:
            action()
        else:
            k.if_(condition, action)

    def finish(value: Val, c: Val, out: Val, residual: Val | None, i: int, j: int) -> None:
        if kind.bias:
            value = value + k.load_lanes(p["bias"], vector, count, c)
        beside: Sequence[Val] = ()
        if residual is not None:
            beside = [k.load_lanes(residual, vector, count, c + p["r_row"] * i + p["r_pixel"] * j)]
        k.store_lanes(out, kind.finish(k, [value], beside)[0], count, c + p["o_row"] * i + p["o_pixel"] * j)

    def tile(number: Val) -> None:
        at = k.offset(p["m"], number * p["m_tile"], "f32")
        out = k.offset(p["out"], number * f.m * p["o_pixel"], "f32")
        residual = k.offset(p["residual"], number * f.m * p["r_pixel"], "f32") if kind.residual else None

        def channels(c: Val) -> None:
            products = [[k.load(at, vector, c + p["m_product"] * (i * f.size + j)) for i in range(f.size)] for j in range(f.size)]
            columns = [transform_output(k, f, column) for column in products]
            for i in range(f.m):
                for j, value in enumerate(transform_output(k, f, [column[i] for column in columns])):
                    here = (p["rows"] > i) & (p["columns"] - number * f.m > j) if border else None
                    when(here, partial(finish, value, c, out, residual, i, j))

        k.loop(0, p["channels"], vector.lanes, channels)

    k.loop(0, p["count"], 1, tile)
    return k.finish()


def _vector(tail: int, target: Target) -> tuple[Type, int]:
    """The vector that channels are loaded in, and how many of its lanes are channels."""
    lanes = shortest(tail) if tail else target.lanes("f32")
    return Type("f32", lanes), tail or lanes


def _inside(k: KernelBuilder, position: Val, size: Val) -> Val:
    return (position >= 0) & (position < size)
