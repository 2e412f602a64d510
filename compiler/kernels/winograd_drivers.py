"""What Winograd's convolutions share in any arithmetic: how an image is cut into tiles, and the loops over rows of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.winograd_algebra import Filtering
from cortado.compiler.lang import INDEX, Kernel
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

    def stride(self, channels: int) -> int:
        """Elements from one product to the next."""
        plain = self.tiles * channels
        return plain + LINE if plain % (64 * LINE) == 0 else plain


@dataclass(frozen=True)
class Head:
    """What kernels that write tiles get between the products and the tensors: pointers by name, then numbers."""

    pointers: tuple[str, ...]
    numbers: tuple[int, ...]


def tiles_of(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], f: Filtering) -> Tiling:
    """How the output of a convolution of stride 1 is cut into tiles."""
    images, out_height, out_width = outs[0].shape[:3]
    return Tiling(f, images, ins[0].shape[1], ins[0].shape[2], out_height, out_width, tuple(node.attrs["pads_begin"]))


def input_driver(
    name: str, tiling: Tiling, x: Operand, scalars: tuple[str, str], product: int, kernels: Sequence[Kernel], target: Target
) -> Kernel:
    """(x, v, begin, end); a task is a row of tiles.

    scalars: of x and v. product: elements of v from one product to the next. kernels: for tiles inside of the image, and at its border.
    """
    k = KernelBuilder(name, target)
    source, v = k.param("x"), k.param("v")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    interior, border = kernels
    read, written = scalars
    channels, m, size = x.shape[3], tiling.f.m, tiling.f.size
    top, left = tiling.before
    inner = _inner_tiles(tiling.columns, m, left, tiling.width, size)

    def task(number: Val) -> None:
        image, row = number // tiling.rows, number % tiling.rows
        y = row * m - top
        line = k.offset(k.offset(source, image * x.strides[0], read), y * x.strides[1], read)
        to = k.offset(v, number * (tiling.columns * channels), written)

        def call(first: int, stop: int, at_border: bool) -> None:
            if first == stop:
                return
            args: list[Number] = [
                k.offset(line, (first * m - left) * x.strides[2], read),
                k.offset(to, first * channels, written),
            ]
            args += [stop - first, channels, x.strides[1], x.strides[2], channels, product]
            args += [y, first * m - left, tiling.height, tiling.width] if at_border else []
            k.call(border if at_border else interior, *args)

        def inside() -> None:
            call(0, inner[0], True)
            call(*inner, False)
            call(inner[1], tiling.columns, True)

        whole = (y >= 0) & (y + size <= tiling.height)
        k.if_(whole, inside, lambda: call(0, tiling.columns, True))

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
    scalars: tuple[str, str],
    head: Head,
    product: int,
    kernels: Sequence[Kernel],
    target: Target,
) -> Kernel:
    """(m, head's pointers, [residual], out, begin, end); a task is a row of tiles.

    scalars: of the products and of the output. product: elements from one product to the next. kernels: for whole tiles, and for those
    that the image's end cuts.
    """
    k = KernelBuilder(name, target)
    source = k.param("m")
    pointers = [k.param(pointer) for pointer in head.pointers]
    beside = k.param("residual") if residual is not None else None
    to = k.param("out")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    interior, border = kernels
    summed, written = scalars
    channels, m = out.shape[3], tiling.f.m
    full = tiling.out_width // m

    def task(number: Val) -> None:
        image, row = number // tiling.rows, number % tiling.rows
        products = k.offset(source, number * (tiling.columns * channels), summed)

        def line(base: Val, operand: Operand, first: int) -> Val:
            start = k.offset(base, image * operand.strides[0] + row * (m * operand.strides[1]), written)
            return k.offset(start, first * m * operand.strides[2], written)

        def call(first: int, stop: int, at_border: bool) -> None:
            if first == stop:
                return
            args: list[Number] = [k.offset(products, first * channels, summed), *pointers, *head.numbers]
            if beside is not None and residual is not None:
                args += [line(beside, residual, first), residual.strides[1], residual.strides[2]]
            args += [line(to, out, first), stop - first, channels, out.strides[1], out.strides[2], channels, product]
            args += [tiling.out_height - row * m, tiling.out_width - first * m] if at_border else []
            k.call(border if at_border else interior, *args)

        def whole() -> None:
            call(0, full, False)
            call(full, tiling.columns, True)

        k.if_((row + 1) * m <= tiling.out_height, whole, lambda: call(0, tiling.columns, True))

    k.loop(begin, end, 1, task)
    return k.finish()
