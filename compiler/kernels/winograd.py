"""3x3 convolutions of stride 1 by Winograd's minimal filtering: fewer multiply-adds, paid with transforms and larger weights.

Three kernel calls: transform the input of every tile, one matrix product per point pair (the template of all matrix products), transform
the products back with the epilogue. Operands of one product lie together: [product][tile][channel].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Winograd
from cortado.compiler.kernels.contraction import Weights, lower_contraction
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import Epilogue, parse_epilogue
from cortado.compiler.kernels.geometry import Geometry, rows_geometry
from cortado.compiler.kernels.packing import WeightSource
from cortado.compiler.kernels.tiling import Core, core_of
from cortado.compiler.kernels.winograd_algebra import POINTS, TAPS, filtering
from cortado.compiler.kernels.winograd_drivers import Head, Tiling, input_driver, output_driver, tiles_of
from cortado.compiler.kernels.winograd_tiles import input_kernel, output_kernel
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

TRANSFORM_INPUT, TRANSFORM_OUTPUT = 2.6, 2.2  # cycles per product and vector of channels, loads and stores included
STREAM, FAR_STREAM = 10.0, 5.0  # bytes a cycle that weights arrive with from beyond the second cache level, and from main memory
GAIN = 0.88  # of the direct way's cycles, at most: below that the larger weights do not pay
LEAST = 4_096  # cycles, some 1.3 us, that it must be faster by: weights grow several times


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
    return tiles_of(node, ins, outs, filtering(m))


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
    tasks, kind = tiling.images * tiling.rows, epilogue.kind
    readers = tuple(input_kernel(tiling.f, at_border, target) for at_border in (False, True))
    writers = tuple(output_kernel(tiling.f, at_border, kind, target) for at_border in (False, True))
    read_tiles = input_driver("winograd_input", tiling, ins[0], ("f32", "f32"), v_stride, readers, target)
    head = Head(("bias",) if kind.bias else (), ())
    write_tiles = output_driver("winograd_output", tiling, outs[0], beside, ("f32", "f32"), head, m_stride, writers, target)
    return [
        KernelCall(read_tiles, (Ref("input", 0), v), tasks, tasks),
        *multiply,
        KernelCall(write_tiles, back, tasks, tasks),
    ]


def _matrix(rows: int, columns: int) -> Operand:
    return Operand(TensorType((rows, columns)), contiguous_strides((rows, columns)))
