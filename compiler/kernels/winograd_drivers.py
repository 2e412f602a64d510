"""What Winograd's convolutions share in any arithmetic: how an image is cut into tiles, and the loops over rows of tiles.

Channels are taken in strips: whole vectors first, then what is left, if anything, by kernels of their own on the shortest vector that holds
it. Between the transforms a tile's channels have room for that vector, so there it is loaded and stored whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.winograd_algebra import Filtering
from cortado.compiler.lang import BYTES, INDEX, Kernel
from cortado.compiler.program import Operand
from cortado.compiler.target import Target

LINE = 16  # float32 of a cache line: rows of products are kept from falling on the same cache sets


@dataclass(frozen=True)
class Tiling:
    """How an output is cut into tiles of m x m pixels. before: pads at the top and left."""

    f: Filtering
    images: int
    height: int
    width: int
    out_height: int
    out_width: int
    before: tuple[int, int]

    @property
    def rows(self) -> int:
        return -(-self.out_height // self.f.m)

    @property
    def columns(self) -> int:
        return -(-self.out_width // self.f.m)

    @property
    def tiles(self) -> int:
        return self.images * self.rows * self.columns

    def scratch(self, scalar: str, channels: int, lanes: int) -> Scratch:
        """Where operands or results of the products lie, of so many channels that are treated in vectors of `lanes`."""
        tail = channels % lanes
        pitch = channels - tail + (shortest(tail) if tail else 0)
        plain = self.tiles * pitch
        return Scratch(scalar, pitch, plain + LINE if plain % (16 * LINE) == 0 else plain, self.f.size**2)


@dataclass(frozen=True)
class Scratch:
    """Operands or results of products: [product][tile][channel].

    pitch: elements from one tile to the next, a few of them unused where channels fill no vector. stride: from one product to the next.
    """

    scalar: str
    pitch: int
    stride: int
    products: int

    @property
    def nbytes(self) -> int:
        return self.products * self.stride * BYTES[self.scalar]


def shortest(channels: int) -> int:
    """Lanes of the shortest vector that holds so many channels."""
    return 1 << (channels - 1).bit_length()


@dataclass(frozen=True)
class Strip:
    """Neighbouring channels, from `first` on, that the same two kernels transform: one for tiles inside, one for those at a border."""

    first: int
    channels: int
    kernels: tuple[Kernel, Kernel]


def strips_of(channels: int, lanes: int, record: Callable[[bool, int], Kernel]) -> tuple[Strip, ...]:
    """record: the kernel for tiles at the border or not, and a strip of so many channels that fill no vector, or 0 where they all do."""
    tail = channels % lanes
    parts = [(0, channels - tail, 0), (channels - tail, tail, tail)]
    return tuple(Strip(first, size, (record(False, rest), record(True, rest))) for first, size, rest in parts if size)


@dataclass(frozen=True)
class Head:
    """What kernels that write tiles get between the products and the tensors: pointers by name, then numbers.

    The pointers are to numbers of every channel, of the products' scalar type.
    """

    pointers: tuple[str, ...]
    numbers: tuple[int, ...]


def tiles_of(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], f: Filtering) -> Tiling:
    """How the output of a convolution of stride 1 is cut into tiles."""
    images, out_height, out_width = outs[0].shape[:3]
    return Tiling(f, images, ins[0].shape[1], ins[0].shape[2], out_height, out_width, tuple(node.attrs["pads_begin"]))


def input_driver(name: str, tiling: Tiling, x: Operand, read: str, v: Scratch, strips: Sequence[Strip], target: Target) -> Kernel:
    """(x, v, begin, end); a task is a row of tiles. read: scalar of x."""
    k = KernelBuilder(name, target)
    source, operands = k.param("x"), k.param("v")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    m, size = tiling.f.m, tiling.f.size
    top, left = tiling.before
    inner = _inner_tiles(tiling.columns, m, left, tiling.width, size)

    def task(number: Val) -> None:
        image, row = number // tiling.rows, number % tiling.rows
        y = row * m - top
        line = k.offset(k.offset(source, image * x.strides[0], read), y * x.strides[1], read)
        to = k.offset(operands, number * (tiling.columns * v.pitch), v.scalar)

        def call(strip: Strip, first: int, stop: int, at_border: bool) -> None:
            if first == stop:
                return
            args: list[Number] = [
                k.offset(line, (first * m - left) * x.strides[2] + strip.first, read),
                k.offset(to, first * v.pitch + strip.first, v.scalar),
            ]
            args += [stop - first, strip.channels, x.strides[1], x.strides[2], v.pitch, v.stride]
            args += [y, first * m - left, tiling.height, tiling.width] if at_border else []
            k.call(strip.kernels[at_border], *args)

        def inside() -> None:
            for strip in strips:
                call(strip, 0, inner[0], True)
                call(strip, *inner, False)
                call(strip, inner[1], tiling.columns, True)

        def at_edge() -> None:
            for strip in strips:
                call(strip, 0, tiling.columns, True)

        if _inner_tiles(tiling.rows, m, top, tiling.height, size) == (0, tiling.rows):
            inside()
        else:
            k.if_((y >= 0) & (y + size <= tiling.height), inside, at_edge)

    k.loop(begin, end, 1, task)
    return k.finish()


def _inner_tiles(tiles: int, m: int, before: int, length: int, size: int) -> tuple[int, int]:
    """The range of tiles along an axis that read nothing outside of the image."""
    fits = [t for t in range(tiles) if t * m - before >= 0 and t * m - before + size <= length]
    return (fits[0], fits[-1] + 1) if fits else (tiles, tiles)


def output_driver(
    name: str,
    tiling: Tiling,
    out: Operand,
    residual: Operand | None,
    written: str,
    head: Head,
    sums: Scratch,
    strips: Sequence[Strip],
    target: Target,
) -> Kernel:
    """(m, head's pointers, [residual], out, begin, end); a task is a row of tiles. written: scalar of the output."""
    k = KernelBuilder(name, target)
    source = k.param("m")
    pointers = [k.param(pointer) for pointer in head.pointers]
    beside = k.param("residual") if residual is not None else None
    to = k.param("out")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    m = tiling.f.m
    full = tiling.out_width // m

    def task(number: Val) -> None:
        image, row = number // tiling.rows, number % tiling.rows
        products = k.offset(source, number * (tiling.columns * sums.pitch), sums.scalar)

        def line(base: Val, operand: Operand, first: int, channel: int) -> Val:
            start = k.offset(base, image * operand.strides[0] + row * (m * operand.strides[1]), written)
            return k.offset(start, first * m * operand.strides[2] + channel, written)

        def call(strip: Strip, first: int, stop: int, at_border: bool) -> None:
            if first == stop:
                return
            args: list[Number] = [k.offset(products, first * sums.pitch + strip.first, sums.scalar)]
            args += [*(k.offset(pointer, strip.first, sums.scalar) for pointer in pointers), *head.numbers]
            if beside is not None and residual is not None:
                args += [line(beside, residual, first, strip.first), residual.strides[1], residual.strides[2]]
            args += [line(to, out, first, strip.first), stop - first, strip.channels, out.strides[1], out.strides[2]]
            args += [sums.pitch, sums.stride]
            args += [tiling.out_height - row * m, tiling.out_width - first * m] if at_border else []
            k.call(strip.kernels[at_border], *args)

        def whole() -> None:
            for strip in strips:
                call(strip, 0, full, False)
                call(strip, full, tiling.columns, True)

        def cut() -> None:
            for strip in strips:
                call(strip, 0, tiling.columns, True)

        if tiling.out_height % m == 0:
            whole()
        else:
            k.if_((row + 1) * m <= tiling.out_height, whole, cut)

    k.loop(begin, end, 1, task)
    return k.finish()
