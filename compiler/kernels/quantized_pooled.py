"""A quantized convolution whose image is only averaged: tiles add their pixels up, and the image is never stored.

A task has all pixels of its channels, so that no sum is shared between tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.quantized_average import Mean, RealMean, mean_of, real_mean_of
from cortado.compiler.kernels.quantized_conv import lower_q_sums, q_conv_staged, q_conv_sums
from cortado.compiler.kernels.quantized_sums import centred_weights, choose_dot, requantization
from cortado.compiler.kernels.requantize import Requantization
from cortado.compiler.lang import I32
from cortado.compiler.ops.quantized_pooled import CONV, mean_attrs
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target


@dataclass(frozen=True)
class PooledRequantization(Requantization):
    """The epilogue of sums whose bytes are summed over `cells` pixels, then averaged by `mean`, which makes bytes or floats."""

    mean: Mean | RealMean | None = None
    cells: int = 1

    def opened(self, k: KernelBuilder, out: Val, vectors: int, lanes: int) -> Val:
        sums = k.local("i32", vectors * lanes)
        for v in range(vectors):
            k.store(sums, k.zero(I32.with_lanes(lanes)), v * lanes)
        return sums

    def stored(self, scalar: str) -> str:
        """Only panels move through the output: the pixels of one are all at one place."""
        assert self.mean is not None
        return self.mean.stored

    def store_rows(self, k: KernelBuilder, places: Sequence[Val], rows: Sequence[Sequence[Val]], count: int) -> None:
        """Adds all rows to the panel's sums, which all places are."""
        lanes = rows[0][0].type.lanes
        for v, values in enumerate(zip(*rows, strict=True)):
            total = k.load(places[0], values[0].type, v * lanes)
            for value in values:
                total = total + self._clamped(k, value)
            k.store(places[0], total, v * lanes)

    def _clamped(self, k: KernelBuilder, value: Val) -> Val:
        """What `narrowed` gave as the byte's number."""
        if not self.converts(k.target, value.type.lanes):
            return value
        return k.min(k.max(value + self.zero, self.lo), self.hi)

    def closed(self, k: KernelBuilder, sums: Val, out: Val, lanes: int, channels: int) -> None:
        assert self.mean is not None
        for at in range(0, channels, lanes):
            total = k.load(sums, I32.with_lanes(lanes), at)
            self.mean.store(k, k.offset(out, at, self.mean.stored), total, self.cells, self.cells, min(lanes, channels - at))


def lower_q_conv_mean(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group], bias[O], perhaps a residual -> out[N,O] or [N,1,..,O]; int8 and uint8."""
    (out,) = outs
    if out.type.size == 0:
        return []
    conv = conv_of(node)
    image = conv.types[0]
    # No axis of pixels moves through the output, and images are groups of one set of weights.
    nowhere = Operand(replace(image, shape=(1, *image.shape[1:])), (0,) * (len(image.shape) - 1) + (1,))
    staged = q_conv_staged(conv, ins[0], choose_dot(conv, centred_weights(conv), target), target)
    words = staged.words
    first = [_first(operand) if position in (0, 3) else operand for position, operand in enumerate(ins)]
    sums = q_conv_sums(conv, first, [nowhere], target, staged=replace(staged, words=_first(words)))
    if image.shape[0] > 1:
        beside = ins[3].strides[0] if len(ins) == 4 else 0
        apart = GroupAxis(image.shape[0], words.strides[0], 0, out.strides[0], beside)
        sums = replace(sums, groups=(apart, *sums.groups))
    return lower_q_sums("q_conv_mean", conv, sums, target, pooled=_pooled(node, conv))


def conv_of(node: Node) -> Node:
    """The q_conv of a q_conv_mean."""
    attrs = {name: node.attrs[name] for name in CONV.attrs}
    types = CONV.infer([value.type for value in node.inputs], attrs)
    return Node("q_conv", node.inputs, attrs, types, node.name, node.origin)


def _pooled(node: Node, conv: Node) -> PooledRequantization:
    image = conv.types[0]
    own, cells, how = requantization(conv), prod(image.shape[1:-1]), mean_attrs(node.attrs, len(image.shape))
    mean = mean_of(image, how) if "quant" in how else real_mean_of(image, cells)
    given = {field.name: getattr(own, field.name) for field in fields(own)}
    return PooledRequantization(**given, mean=mean, cells=cells)


def _first(operand: Operand) -> Operand:
    """The first image."""
    return Operand(replace(operand.type, shape=(1, *operand.shape[1:])), operand.strides)
