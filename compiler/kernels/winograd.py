"""3x3 convolutions of stride 1 by Winograd's minimal filtering: fewer multiply-adds, paid with transforms and larger weights.

Three kernel calls: transform the input of every tile, one matrix product per point pair (the template of all matrix products), transform
the products back with the epilogue. Operands of one product lie together: [product][tile][channel].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Winograd
from cortado.compiler.kernels.contraction import Weights, lower_contraction
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import Epilogue, parse_epilogue
from cortado.compiler.kernels.geometry import Geometry, rows_geometry
from cortado.compiler.kernels.packing import WeightSource
from cortado.compiler.kernels.tiling import Core, core_of
from cortado.compiler.kernels.winograd_algebra import POINTS, TAPS, Filtering, filtering
from cortado.compiler.kernels.winograd_tiles import input_kernel, output_kernel
from cortado.compiler.lang import INDEX, Kernel
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

LINE = 16  # float32 of a cache line: rows of products are kept from falling on the same cache sets
TRANSFORM_INPUT, TRANSFORM_OUTPUT = 2.6, 2.2  # cycles per product and vector of channels, loads and stores included
STREAM, FAR_STREAM = 10.0, 5.0  # bytes a cycle that weights arrive with from beyond the second cache level, and from main memory
GAIN = 0.88  # of the direct way's cycles, at most: below that the larger weights do not pay
LEAST = 4_096  # cycles, some 1.3 us, that it must be faster by: weights grow several times


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


def serves_winograd(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> bool:
    """Whether the convolution can be done so: 3x3 of stride 1 without groups, known weights, whole vectors of channels."""
    x, w = ins[0], node.inputs[1].constant
    lanes = target.lanes("f32")
    attrs = node.attrs
    plain = w is not None and w.ndim == 4 and w.shape[1:3] == (TAPS, TAPS) and attrs["group"] == 1
    if not plain or w is None or lanes == 1 or x.type.dtype != "float32" or outs[0].type.size == 0:
        return False
    if (
        set(attrs["strides"]) | set(attrs["dilations"]) != {1}
        or w.shape[0] % lanes
        or w.shape[3] % lanes
        or min(attrs["pads_begin"]) < 0
    ):
        return False
    return not any(entry[0] == "bias" and node.inputs[2].constant is None for entry in attrs["epilogue"])


def tiling_of(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int) -> Tiling:
    """The tiles of F(m, 3). Raises ValueError where there is no such filtering."""
    if m not in POINTS:
        raise ValueError(f"F({m}) is not one of {', '.join(f'F({known})' for known in POINTS)}")
    images, out_height, out_width = outs[0].shape[:3]
    before = tuple(node.attrs["pads_begin"])
    return Tiling(filtering(m), images, ins[0].shape[1], ins[0].shape[2], out_height, out_width, before)


def choose_winograd(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> Winograd | None:
    """With which tiles Winograd is clearly faster than multiplying directly, or None: also where it cannot be done."""
    if not serves_winograd(node, ins, outs, target):
        return None
    core = core_of(target, "f32")
    outputs, channels = outs[0].shape[-1], ins[0].shape[-1]
    direct = _product_cycles(core, math.prod(outs[0].shape[:3]), TAPS * TAPS * channels, outputs, 1)
    best: tuple[float, Winograd] | None = None
    for m in POINTS:
        tiling = tiling_of(node, ins, outs, m)
        products = tiling.f.size**2
        cycles = _product_cycles(core, tiling.tiles, channels, outputs, products)
        cycles += tiling.tiles * products * (TRANSFORM_INPUT * channels + TRANSFORM_OUTPUT * outputs) / core.lanes
        if cycles < min(GAIN * direct, direct - LEAST) and (best is None or cycles < best[0]):
            best = (cycles, Winograd(m))
    return None if best is None else best[1]


def _product_cycles(core: Core, pixels: int, depth: int, outputs: int, products: int) -> float:
    """Multiply-adds at the rate of good tiles, or the arrival of the weights where that takes longer."""
    weights = products * depth * outputs * core.element
    fill = pixels / (math.ceil(pixels / 6) * 6)
    compute = products * pixels * depth * outputs / core.lanes / 2 / (0.9 * fill)
    if weights <= core.second_level // 2:
        return compute
    # Of a network's weights the last cache level keeps little from one run to the next where a single layer's take much of it.
    return max(compute, weights / (FAR_STREAM if weights > core.third_level // 4 else STREAM))


def product_problem(tiling: Tiling, outputs: int, channels: int) -> tuple[Geometry, tuple[GroupAxis, ...], int]:
    """The matrix products of all points as one contraction: geometry, groups, and output channels."""
    tiles = tiling.tiles
    geometry, _ = rows_geometry(_matrix(tiles, channels), _matrix(tiles, outputs), None, channels)
    return geometry, (GroupAxis(tiling.f.size**2, tiling.stride(channels), 1, tiling.stride(outputs), 0),), outputs


def lower_winograd(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], choice: Winograd, target: Target
) -> list[KernelCall]:
    """x[N,H,W,C], constant w[O,3,3,C], then the epilogue's inputs -> out[N,OH,OW,O]; float32, where `serves_winograd`."""
    tiling = tiling_of(node, ins, outs, choice.m)
    w = node.inputs[1].constant
    assert w is not None
    epilogue = parse_epilogue(node.attrs["epilogue"], 2)
    outputs, channels = w.shape[0], w.shape[3]
    products, tiles = tiling.f.size**2, tiling.tiles
    v_stride, m_stride = tiling.stride(channels), tiling.stride(outputs)
    geometry, groups, _ = product_problem(tiling, outputs, channels)
    v, m = Ref("scratch", nbytes=products * v_stride * 4), Ref("scratch", nbytes=products * m_stride * 4)
    source = WeightSource(((products, outputs * channels),), channels, ((channels, 1),), False)
    weights = Weights(source, tiling.f.filters(w), None)
    multiply = lower_contraction(
        "winograd", v, weights, _matrix(tiles, outputs), geometry, groups, outputs, Epilogue(), target, choice.products
    )
    multiply = [replace(call, refs=tuple(m if ref.kind == "output" else ref for ref in call.refs)) for call in multiply]
    bias = [] if epilogue.bias is None else [Ref("weights", array=node.inputs[epilogue.bias].constant)]
    residual = [] if epilogue.residual is None else [Ref("input", epilogue.residual)]
    back = (m, *bias, *residual, Ref("output", 0))
    beside = None if epilogue.residual is None else ins[epilogue.residual]
    tasks = tiling.images * tiling.rows
    return [
        KernelCall(_input_driver(tiling, ins[0], v_stride, target), (Ref("input", 0), v), tasks, tasks),
        *multiply,
        KernelCall(_output_driver(tiling, outs[0], beside, epilogue, m_stride, target), back, tasks, tasks),
    ]


def _matrix(rows: int, columns: int) -> Operand:
    return Operand(TensorType((rows, columns)), contiguous_strides((rows, columns)))


def _input_driver(tiling: Tiling, x: Operand, product: int, target: Target) -> Kernel:
    """(x, v, begin, end); a task is a row of tiles."""
    k = KernelBuilder("winograd_input", target)
    source, v = k.param("x"), k.param("v")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    interior, border = (input_kernel(tiling.f, at_border, target) for at_border in (False, True))
    channels, m, size = x.shape[3], tiling.f.m, tiling.f.size
    top, left = tiling.before
    inner = inner_tiles(tiling.columns, m, left, tiling.width, size)

    def task(number: Val) -> None:
        image, row = number // tiling.rows, number % tiling.rows
        y = row * m - top
        line = k.offset(k.offset(source, image * x.strides[0], "f32"), y * x.strides[1], "f32")
        to = k.offset(v, number * (tiling.columns * channels), "f32")

        def call(first: int, stop: int, at_border: bool) -> None:
            if first == stop:
                return
            args: list[Number] = [k.offset(line, (first * m - left) * x.strides[2], "f32"), k.offset(to, first * channels, "f32")]
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


def inner_tiles(tiles: int, m: int, before: int, length: int, size: int) -> tuple[int, int]:
    """The range of tiles along an axis that read nothing outside of the image."""
    fits = [t for t in range(tiles) if t * m - before >= 0 and t * m - before + size <= length]
    return (fits[0], fits[-1] + 1) if fits else (tiles, tiles)


def _output_driver(
    tiling: Tiling, out: Operand, residual: Operand | None, epilogue: Epilogue, product: int, target: Target
) -> Kernel:
    """(m, [bias], [residual], out, begin, end); a task is a row of tiles."""
    k = KernelBuilder("winograd_output", target)
    kind = epilogue.kind
    source = k.param("m")
    bias = [k.param("bias")] if kind.bias else []
    beside = k.param("residual") if residual is not None else None
    to = k.param("out")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    interior, border = (output_kernel(tiling.f, at_border, kind, target) for at_border in (False, True))
    channels, m = out.shape[3], tiling.f.m
    full = tiling.out_width // m

    def task(number: Val) -> None:
        image, row = number // tiling.rows, number % tiling.rows
        products = k.offset(source, number * (tiling.columns * channels), "f32")

        def line(base: Val, operand: Operand, first: int) -> Val:
            start = k.offset(base, image * operand.strides[0] + row * (m * operand.strides[1]), "f32")
            return k.offset(start, first * m * operand.strides[2], "f32")

        def call(first: int, stop: int, at_border: bool) -> None:
            if first == stop:
                return
            args: list[Number] = [k.offset(products, first * channels, "f32"), *bias]
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
