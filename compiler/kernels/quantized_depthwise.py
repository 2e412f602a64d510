"""Quantized depthwise convolution: the float blocks and their driver, on bytes widened to words.

Two kernel rows are done at once: a word holds both rows' values of a channel, and dot2 adds both products. In a single row the upper
halves do not count: the weight's is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cortado.compiler.builder import Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.depthwise import MOST_OUTPUTS, Layer, choose_cuts, depthwise_driver, pack_steps
from cortado.compiler.kernels.depthwise_block import Block, BlockSpec
from cortado.compiler.kernels.geometry import conv_geometry
from cortado.compiler.kernels.quantized_depthwise_driver import serves_rows
from cortado.compiler.kernels.quantized_depthwise_quads import lower_q_quads, serves_q_quads
from cortado.compiler.kernels.quantized_depthwise_rows import lower_q_rows
from cortado.compiler.kernels.requantize import Requantization, load_bytes, multiplier_rows, widened
from cortado.compiler.kernels.tiling import core_of
from cortado.compiler.lang import Kernel, Type
from cortado.compiler.ops.quantized import output_scales
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def serves_q_depthwise(node: Node) -> bool:
    """Whether the convolution is depthwise with few outputs per channel."""
    group, outputs = node.attrs["group"], node.types[0].shape[-1]
    return group > 1 and group == node.inputs[0].shape[-1] and outputs <= MOST_OUTPUTS * group


def lower_q_depthwise(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], w: np.ndarray, epilogue: Requantization, target: Target
) -> list[KernelCall]:
    """x[N,*S,C], w[C*multiplier,*K,1] without zero points -> out[N,*OS,C*multiplier]."""
    if serves_q_quads(node, w, epilogue, target):
        return lower_q_quads(node, ins, outs, w, epilogue, target)
    if serves_rows(node, target):
        return lower_q_rows(node, ins, outs, w, epilogue, target)
    x, out = ins[0], outs[0]
    channels = x.shape[-1]
    core, multiplier = core_of(target, "i32"), out.shape[-1] // channels
    core = replace(core, registers=core.registers - (not core.in_order), fused=core.lanes > 1)
    geometry = conv_geometry(x, out, ins[3] if epilogue.residual else None, w.shape[1:-1], 1, node.attrs)
    layer = Layer("i32", geometry, channels, multiplier, epilogue, core.lanes, *choose_cuts(core, geometry, channels, multiplier))
    bias = node.inputs[2].constant
    assert bias is not None
    scales = output_scales([value.type for value in node.inputs], node.attrs)
    head = np.concatenate([bias[None], multiplier_rows(scales, epilogue.rounding)]).T
    words = (w.astype(np.int64) & 0xFFFF).astype(np.int32)
    weights = Ref("weights", array=pack_steps(words, head, layer))
    kind = node.inputs[0].type
    form = _Form(scale_of(kind)[1], kind.dtype == "int8")
    residual = [Ref("input", 3)] if epilogue.residual else []
    kernel = depthwise_driver(layer, target, form.block_kernel)
    return [KernelCall(kernel, (Ref("input", 0), weights, *residual, Ref("output", 0)), layer.tasks)]


@dataclass(frozen=True)
class _Form:
    """The input's zero point, and whether its bytes have a sign."""

    zero: int
    signed: bool

    def block_kernel(self, spec: BlockSpec, target: Target) -> Kernel:
        return _QuantizedBlock(spec, target, self).record()


class _QuantizedBlock(Block):
    halves = False

    def __init__(self, spec: BlockSpec, target: Target, form: _Form) -> None:
        super().__init__(spec, target)
        self.form, self.pair = form, False

    def kernel_rows(self, a: Val, w: Val, channels: int, sums: list[Val]) -> list[Val]:
        k, p = self.k, self.p

        def once(i: Val, *carried: Val) -> list[Val]:
            return self.columns(self.moved(a, i * p["a_row"]), self.moved_words(w, i * p["w_row"]), channels, list(carried))

        if self.spec.lanes == 1:
            return list(k.loop(0, p["kernel_rows"], 1, once, sums))
        whole = p["kernel_rows"] // 2 * 2
        self.pair = True
        both = k.loop(0, whole, 2, once, sums)
        self.pair = False
        return list(k.loop(whole, p["kernel_rows"], 1, once, both))

    def load(self, column: Val, vector: Type, count: int, at: int) -> Val:
        k, lanes = self.k, self.spec.lanes
        value = load_bytes(k, column, lanes, count, at)
        if not self.pair:
            return widened(k, value, self.form.signed) - self.form.zero
        below = load_bytes(k, self.moved(column, self.p["a_row"]), lanes, count, at)
        woven = k.shuffle(value, below, [lanes * (i % 2) + i // 2 for i in range(2 * lanes)])
        return k.convert(widened(k, woven, self.form.signed, "i16") - self.form.zero, vector, "bitcast")

    def load_weight(self, w: Val, at: int, vector: Type) -> Val:
        weight = super().load_weight(w, at, vector)
        return weight | (super().load_weight(self.moved_words(w, self.p["w_row"]), at, vector) << 16) if self.pair else weight

    def multiply_add(self, value: Val, weight: Val, total: Val) -> Val:
        return self.k.virtual("dot2", total, value, weight)

    def finish(self, sums: list[list[Val]], r: int, head: Val | None, residual: Val | None, out: Val, channels: int) -> None:
        k, p, spec = self.k, self.p, self.spec
        kind = spec.epilogue
        assert isinstance(kind, Requantization) and head is not None
        values = self.woven(sums)
        outputs = channels * spec.multiplier
        row = spec.vectors * spec.lanes * spec.multiplier
        rows = []
        for number in range(1, kind.header):
            places = [
                [number * row + (m * spec.vectors + v) * spec.lanes for v in range(len(sums[0]))] for m in range(spec.multiplier)
            ]
            rows.append(self.woven([[k.load(head, self.vector, place) for place in of_output] for of_output in places]))
        narrow = []
        for v, value in enumerate(values[: -(-outputs // spec.lanes)]):
            beside: Val | None = None
            if residual is not None:
                at = self.moved(residual, p["residual_pixel"] * r)
                beside = load_bytes(k, at, spec.lanes, self.lanes_of(v, outputs), v * spec.lanes)
            narrow.append(kind.narrowed(k, value, [of_row[v] for of_row in rows], beside))
        kind.store(k, self.moved(out, p["out_pixel"] * r), narrow, outputs)
