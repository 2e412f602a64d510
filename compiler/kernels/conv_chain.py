"""A depthwise convolution, one before and a 1x1 one after it, row block by row block: what is between them stays in the caches.

For each block of output rows the convolution before makes the input rows that are not there yet, in a ring of as many rows as one
block reads; the depthwise driver makes the block's rows of them; the tiles of the 1x1 convolution after it make the block's output of
these. A range of tasks that is run at a time has buffers of its own, found by its first task, and goes on with the rows of the
task before; at its beginning it makes the rows again that another range makes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.chain import Stage, choose_blocks, input_shape, parse_chain, reach_of
from cortado.compiler.kernels.depthwise import Layer, choose_cuts, depthwise_driver, pack_steps
from cortado.compiler.kernels.depthwise_block import block_kernel
from cortado.compiler.kernels.driver import Contraction, contraction_driver
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.geometry import conv_geometry
from cortado.compiler.kernels.packing import pack_panels
from cortado.compiler.kernels.tile import tile_kernel
from cortado.compiler.kernels.tiling import Panels, Partition, choose_panels, core_of
from cortado.compiler.lang import BYTES, INDEX, SCALAR_OF, Kernel
from cortado.compiler.program import ALIGNMENT, KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType


def lower_conv_chain(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """x[N,H,W,C], then filter and epilogue inputs of [any,] a depthwise [and a 1x1] convolution -> out[N,OH,OW,O]."""
    return _Lowering(node, ins, outs[0], target).calls() if outs[0].type.size else []


class _Lowering:
    def __init__(self, node: Node, ins: Sequence[Operand], out: Operand, target: Target) -> None:
        self.target, self.x, self.out = target, ins[0], out
        self.scalar = SCALAR_OF[out.type.dtype]
        self.core = core_of(target, self.scalar)
        self.before, self.spread, self.after = parse_chain(node.inputs, node.attrs)
        last = self.after or self.spread
        self.residual_at = parse_epilogue(last.attrs["epilogue"], last.first + 1).residual
        self.residual = None if self.residual_at is None else ins[self.residual_at]
        self.wide = input_shape(node.inputs[0], self.before)  # what the depthwise convolution reads
        self.middle = self.spread.out  # what it writes
        self.blocks = choose_blocks(self.core, self.wide, self.middle, self.spread, self.before is not None, node.attrs["ranges"])
        line = ALIGNMENT // BYTES[self.scalar]  # ranges share no cache line
        self.ring = -(-self.blocks.ring * prod(self.wide[2:]) // line) * line
        self.slot = self.ring + (-(-self.blocks.rows * self.row // line) * line if self.after is not None else 0)

    @property
    def row(self) -> int:
        """Elements of a row of the depthwise output where it is not the chain's."""
        return self.middle[2] * self.middle[3]

    def calls(self) -> list[KernelCall]:
        kernels, weights = [], []
        if self.before is not None:
            assert self.wide[2] > 1, "rows of one pixel are not rows to the geometry"
            wide = _dense((1, *self.wide[1:]), self.out.type.dtype)
            wide = replace(wide, strides=(0, 0, *wide.strides[2:]))  # every row in the place that its call is given
            layer = self.layer(self.before, self.part(self.x, self.x.shape[1]), wide, None)
            kernels.append(self.direct(replace(layer, partition=replace(layer.partition, unit_block=1))))
            weights.append(self.packed(self.before, layer))
        kernel, packed = self.depthwise()
        kernels.append(kernel)
        weights.append(packed)
        after: dict[int, Kernel] = {}
        if self.after is not None:
            panels: Panels | None = None
            for rows in sorted({self.blocks.rows, self.blocks.last}, reverse=True):
                beside = None if self.residual is None else self.part(self.residual, rows)
                middle = _dense((1, rows, *self.middle[2:]), self.out.type.dtype)
                layer = self.layer(self.after, middle, self.part(self.out, rows), beside, panels)
                panels = layer.panels
                after[rows] = self.direct(layer)
            weights.append(self.packed(self.after, layer))
        more = [] if self.residual_at is None else [Ref("input", self.residual_at)]
        scratch = Ref("scratch", nbytes=self.blocks.tasks * self.slot * BYTES[self.scalar])
        refs = (Ref("input", 0), *weights, *more, scratch, Ref("output", 0))
        return [KernelCall(self.driver(kernels, after), refs, self.blocks.tasks)]

    def part(self, operand: Operand, rows: int) -> Operand:
        """So many rows of one image of an operand."""
        _, _, *rest = operand.shape
        return Operand(TensorType((1, rows, *rest), operand.type.dtype), operand.strides)

    # --- the kernels of the stages ---

    def depthwise(self) -> tuple[Kernel, Ref]:
        """A driver (a, weights, [residual], out, begin, end) over the rows of an image, and its weights."""
        filters, dtype = self.spread.filters, self.out.type.dtype
        wide, middle = (1, *self.wide[1:]), (1, *self.middle[1:])
        x = self.part(self.x, self.wide[1]) if self.before is None else _dense(wide, dtype)
        out = _dense(middle, dtype) if self.after is not None else self.part(self.out, middle[1])
        geometry = conv_geometry(x, out, None, filters.shape[1:-1], 1, self.spread.attrs)
        multiplier = middle[-1] // wide[-1]
        vectors, pixels, _, _ = choose_cuts(self.core, geometry, wide[-1], multiplier)
        kind = parse_epilogue(self.spread.attrs["epilogue"], 2).kind
        ring = self.blocks.ring if self.before is not None else 0
        layer = Layer(self.scalar, geometry, wide[-1], multiplier, kind, self.core.lanes, vectors, pixels, 1, 1, ring)
        weights, bias = filters.constant, self.spread.bias
        assert weights is not None
        packed = Ref("weights", array=pack_steps(weights, None if bias is None else bias[:, None], layer))
        return depthwise_driver(layer, self.target, block_kernel), packed

    def layer(self, stage: Stage, x: Operand, out: Operand, beside: Operand | None, panels: Panels | None = None) -> Contraction:
        """All pixels of the operands in one task. panels: None for the cost model's."""
        geometry = conv_geometry(x, out, beside, stage.filters.shape[1:-1], x.shape[-1], stage.attrs)
        if panels is None:
            panels = choose_panels(self.core, stage.filters.shape[0], geometry.width.outputs, geometry.depth_of_sum)
        whole = Partition(1, geometry.rows, geometry.rows, 1, panels.bodies, int(panels.last > 0), geometry.channels, 0)
        return Contraction(self.scalar, geometry, (), panels, whole, parse_epilogue(stage.attrs["epilogue"], 2).kind)

    def packed(self, stage: Stage, layer: Contraction) -> Ref:
        weights, bias = stage.filters.constant, stage.bias
        assert weights is not None
        terms = weights.reshape(1, weights.shape[0], -1)[:, :, layer.geometry.weight_order(layer.geometry.channels)]
        return Ref("weights", array=pack_panels(terms, None if bias is None else bias.reshape(1, -1), layer.panels))

    def direct(self, layer: Contraction) -> Kernel:
        """A driver (a, weights, [residual], out, begin, end)."""
        return contraction_driver(f"conv_{self.scalar}", layer, self.core, self.target, tile_kernel)

    # --- the driver around them ---

    def driver(self, kernels: Sequence[Kernel], after: Mapping[int, Kernel]) -> Kernel:
        """(x, weights of each stage, [residual], scratch, out, begin, end)"""
        return _Driver(self, kernels, after).record()


class _Driver:
    def __init__(self, chain: _Lowering, kernels: Sequence[Kernel], after: Mapping[int, Kernel]) -> None:
        self.chain, self.blocks, self.after = chain, chain.blocks, after
        *before, self.spread = kernels
        self.before = before[0] if before else None
        self.k = k = KernelBuilder(f"conv_chain_{chain.scalar}", chain.target)
        self.x = k.param("x")
        self.before_weights = k.param("before_weights") if before else None
        self.spread_weights = k.param("depthwise_weights")
        self.after_weights = k.param("after_weights") if after else None
        self.residual = None if chain.residual is None else k.param("residual")
        self.scratch, self.out = k.param("scratch"), k.param("out")

    def moved(self, ptr: Val, index: Number) -> Val:
        return self.k.offset(ptr, index, self.chain.scalar)

    def record(self) -> Kernel:
        k, blocks = self.k, self.blocks
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        self.ring = self.moved(self.scratch, begin * self.chain.slot)
        self.middle = self.moved(self.ring, self.chain.ring)
        stop = k.min(end * blocks.unit_block, blocks.count)
        k.loop(begin * blocks.unit_block, stop, 1, self.block, [k.index(0)])
        return k.finish()

    def block(self, number: Val, done: Val) -> tuple[Val]:
        """done: input rows of the image that the ring has had."""
        k, blocks = self.k, self.blocks
        image, inside = number // blocks.per_image, number % blocks.per_image
        if blocks.images == 1:
            image, inside = k.index(0), number
        first = inside * blocks.rows
        x = self.moved(self.x, image * self.chain.x.strides[0])
        stop = k.min(first + blocks.rows, blocks.height)
        if self.before is not None and self.before_weights is not None:
            needed, enough = self.input_rows(first, stop)
            start = k.max(needed, k.select(k.compare("eq", inside, 0), k.index(0), done))
            k.loop(start, enough, 1, lambda row: self.input_row(x, row))
            done = k.max(start, enough)
        self.rows(image, first, stop, x if self.before is None else self.ring)
        return (done,)

    def input_rows(self, first: Val, stop: Val) -> tuple[Val, Val]:
        """The rows [first, stop) of the input that the depthwise output rows [first, stop) read, as far as there are any."""
        k, attrs, height = self.k, self.chain.spread.attrs, self.chain.wide[1]
        step, pad, reach = attrs["strides"][0], attrs["pads_begin"][0], reach_of(self.chain.spread)
        return k.max(first * step - pad, 0), k.min((stop - 1) * step + (reach - pad), height)

    def input_row(self, x: Val, row: Val) -> None:
        assert self.before is not None and self.before_weights is not None
        to = self.moved(self.ring, row % self.blocks.ring * prod(self.chain.wide[2:]))
        self.k.call(self.before, x, self.before_weights, to, row, row + 1)

    def rows(self, image: Val, first: Val, stop: Val, a: Val) -> None:
        """The output rows [first, stop) of an image; a: its row 0, or the ring."""
        k, chain, blocks = self.k, self.chain, self.blocks

        def at(base: Val, operand: Operand, row: Number) -> Val:
            return self.moved(base, image * operand.strides[0] + row * operand.strides[1])

        if self.after_weights is None:
            k.call(self.spread, a, self.spread_weights, at(self.out, chain.out, 0), first, stop)
            return
        k.call(self.spread, a, self.spread_weights, self.moved(self.middle, 0 - first * chain.row), first, stop)

        def points(rows: int) -> None:
            assert self.after_weights is not None
            beside = [] if self.residual is None or chain.residual is None else [at(self.residual, chain.residual, first)]
            k.call(self.after[rows], self.middle, self.after_weights, *beside, at(self.out, chain.out, first), 0, 1)

        if blocks.last == blocks.rows:
            points(blocks.rows)
        else:
            whole = k.compare("eq", stop - first, blocks.rows)
            k.if_(whole, lambda: points(blocks.rows), lambda: points(blocks.last))


def _dense(shape: tuple[int, ...], dtype: str) -> Operand:
    return Operand(TensorType(shape, dtype), contiguous_strides(shape))
