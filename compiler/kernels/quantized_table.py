"""Quantized kernels that look numbers up: any function of one byte, and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import collapse, drivers, leading_axes, nest, position, rows, task_loop
from cortado.compiler.lang import I8, I32, INDEX
from cortado.compiler.ops.quantized_elementwise import softmax_table
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

UNROLL = 4


def lower_q_table(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """table[byte of x]."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    space = collapse(y.shape, [x.strides, y.strides])
    k = KernelBuilder("q_table", target)
    source, table, sink = k.param("in0"), k.param("table"), k.param("out")
    begin, end = drivers(k)

    def row(at: list[Val], part: tuple[Val, Val] | None) -> None:
        come, go = (k.offset(p, position(k, at, s[:-1]), "i8") for p, s in zip((source, sink), space.strides, strict=True))
        step_in, step_out = space.strides[0][-1], space.strides[1][-1]

        def one(i: Val) -> None:
            k.store(go, k.load(table, I8, k.convert(k.load(come, I8, i * step_in), INDEX, "zext")), i * step_out)

        start, stop = part if part is not None else (k.index(0), k.index(space.shape[-1]))
        whole = start + (stop - start) // UNROLL * UNROLL

        def several(i: Val) -> None:
            for u in range(UNROLL):
                one(i + u)

        k.loop(start, whole, UNROLL, several)
        k.loop(whole, stop, 1, one)

    tasks = rows(k, begin, end, space.shape, UNROLL, row)
    refs = (Ref("input", 0), Ref("weights", array=np.asarray(node.attrs["table"])), Ref("output", 0))
    return [KernelCall(k.finish(), refs, tasks, tasks)]


def lower_q_softmax(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Over any one axis; integers all through."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    axis, signed = node.attrs["axis"], x.type.dtype == "int8"
    table = softmax_table(scale_of(node.inputs[0].type)[0], x.shape[axis]).astype(np.uint32).view(np.int32)
    others = [i for i in range(len(x.shape)) if i != axis]
    space = collapse([x.shape[i] for i in others], [[o.strides[i] for i in others] for o in (x, y)])
    k = KernelBuilder("q_softmax", target)
    source, numbers, sink = k.param("in0"), k.param("table"), k.param("out")
    begin, end = drivers(k)
    lead = leading_axes(space.shape)
    zero, count = node.attrs["quant"].zero_points[0], x.shape[axis]

    def one(at: list[Val]) -> None:
        come, go = (k.offset(p, position(k, at, s), "i8") for p, s in zip((source, sink), space.strides, strict=True))

        def byte(i: Val) -> Val:
            return k.convert(k.load(come, I8, i * x.strides[axis]), I32, "sext" if signed else "zext")

        (greatest,) = k.loop(0, count, 1, lambda i, most: [k.max(most, byte(i))], [k.const(-128, I32)])

        def term(i: Val) -> Val:
            return k.load(numbers, I32, k.convert(byte(i) - greatest + 255, INDEX, "zext"))

        (total,) = k.loop(0, count, 1, lambda i, part: [part + term(i)], [k.zero(I32)])
        half = k.binary("lshr", total, 1)

        def result(i: Val) -> None:
            share = k.binary("udiv", (term(i) << 8) + half, total)
            k.store(go, k.convert(k.binary("umin", share, 255) + zero, I8, "trunc"), i * y.strides[axis])

        k.loop(0, count, 1, result)

    task_loop(k, begin, end, space.shape[:lead], lambda head: nest(k, space.shape[lead:], lambda tail: one([*head, *tail])))
    refs = (Ref("input", 0), Ref("weights", array=table), Ref("output", 0))
    tasks = prod(space.shape[:lead])
    return [KernelCall(k.finish(), refs, tasks, tasks if prod(x.shape[:axis]) > 1 else 0)]
