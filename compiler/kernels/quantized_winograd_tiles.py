"""Shared kernels of the whole-number Winograd transforms: bytes to 16-bit operands of products, 32-bit products to bytes.

Vectors run over channels. A tile at a border has its own kernel, which tests every row and column; interior tiles test nothing. So do
channels that fill no vector: `tail` of them, or 0 in kernels of whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.quantized_filtering import WholeFiltering, transform_input, transform_output, true_sum
from cortado.compiler.kernels.requantize import Requantization, load_bytes
from cortado.compiler.kernels.winograd_drivers import shortest
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.target import Target


def input_kernel(f: WholeFiltering, border: bool, tail: int, flip: bool, blank: int, target: Target) -> Kernel:
    """(x, v, count, channels, x_row, x_pixel, v_tile, v_product [, y, left, height, width]): `count` tiles beside each other.

    x: the first tile's first pixel (perhaps outside of the image), v: its place in product 0, int16. Distances in elements; channels: a
    multiple of the lanes, or the tail. y, left: the first tile's position in the image of height x width. flip: bytes have no sign, 128 is taken
    off them. blank: the number, after that, of which the padding consists.
    """
    k = KernelBuilder(f"q_winograd{f.m}_input{'_border' if border else ''}", target, shared=True)
    lanes = max(2, shortest(tail)) if tail else target.lanes("i16")  # words are of two
    vector = Type("i16", lanes)
    names = ["x", "v", "count", "channels", "x_row", "x_pixel", "v_tile", "v_product"] + ["y", "left", "height", "width"] * border
    p = {name: k.param(name, PTR if name in ("x", "v") else INDEX) for name in names}

    def read(base: Val, at: Val, left: Val | None, i: int, j: int) -> Val:
        def load() -> Val:
            value = load_bytes(k, k.offset(base, at + p["x_row"] * i + p["x_pixel"] * j, "i8"), lanes, tail or lanes, 0)
            return k.convert(value ^ 0x80 if flip else value, vector, "sext")

        if left is None:
            return load()
        inside = _inside(p["y"] + i, p["height"]) & _inside(left + j, p["width"])
        return k.if_(inside, lambda: (load(),), lambda: (k.const(blank, vector),))[0]

    def tile(number: Val) -> None:
        first = k.offset(p["x"], number * f.m * p["x_pixel"], "i8")
        to = k.offset(p["v"], number * p["v_tile"], "i16")
        left = p["left"] + number * f.m if border else None

        def channels(c: Val) -> None:
            columns = [transform_input(f, [read(first, c, left, i, j) for i in range(f.size)]) for j in range(f.size)]
            for i in range(f.size):
                for j, value in enumerate(transform_input(f, [column[i] for column in columns])):
                    k.store(to, value, c + p["v_product"] * (i * f.size + j))

        k.loop(0, p["channels"], lanes, channels)

    k.loop(0, p["count"], 1, tile)
    return k.finish()


def output_kernel(f: WholeFiltering, border: bool, tail: int, kind: Requantization, target: Target) -> Kernel:
    """(m, head, h_row, [residual, r_row, r_pixel], out, count, channels, o_row, o_pixel, m_tile, m_product [, rows, columns]).

    head: the bias of every channel, then, each h_row further, the multipliers' rows. rows, columns: pixels of the first tile (and what
    follows it in its row) that exist.
    """
    k = KernelBuilder(f"q_winograd{f.m}_output{'_border' if border else ''}", target, shared=True)
    vector = Type("i32", target.lanes("i32"))
    count = tail or vector.lanes
    names = ["m", "head", "h_row"] + ["residual", "r_row", "r_pixel"] * kind.residual
    names += ["out", "count", "channels", "o_row", "o_pixel", "m_tile", "m_product"] + ["rows", "columns"] * border
    p = {name: k.param(name, PTR if name in ("m", "head", "residual", "out") else INDEX) for name in names}

    def when(condition: Val | None, action: Callable[[], None]) -> None:
        if condition is None:
            action()
        else:
            k.if_(condition, action)

    def finish(value: Val, head: Sequence[Val], out: Val, residual: Val | None, i: int, j: int) -> None:
        acc = true_sum(k, f, value, i, j) + head[0]
        beside: Val | None = None
        if residual is not None:
            beside = load_bytes(k, k.offset(residual, p["r_row"] * i + p["r_pixel"] * j, "i8"), vector.lanes, count, 0)
        place = k.offset(out, p["o_row"] * i + p["o_pixel"] * j, "i8")
        kind.store(k, place, [kind.narrowed(k, acc, head[1:], beside)], count)

    def tile(number: Val) -> None:
        at = k.offset(p["m"], number * p["m_tile"], "i32")
        out = k.offset(p["out"], number * f.m * p["o_pixel"], "i8")
        residual = k.offset(p["residual"], number * f.m * p["r_pixel"], "i8") if kind.residual else None

        def channels(c: Val) -> None:
            products = [[k.load(at, vector, c + p["m_product"] * (i * f.size + j)) for i in range(f.size)] for j in range(f.size)]
            columns = [transform_output(f, column) for column in products]
            head = [k.load_lanes(p["head"], vector, count, c + p["h_row"] * row) for row in range(kind.header)]
            here, beside = k.offset(out, c, "i8"), None if residual is None else k.offset(residual, c, "i8")
            for i in range(f.m):
                for j, value in enumerate(transform_output(f, [column[i] for column in columns])):
                    exists = (p["rows"] > i) & (p["columns"] - number * f.m > j) if border else None
                    when(exists, partial(finish, value, head, here, beside, i, j))

        k.loop(0, p["channels"], vector.lanes, channels)

    k.loop(0, p["count"], 1, tile)
    return k.finish()


def _inside(position: Val, size: Val) -> Val:
    return (position >= 0) & (position < size)
