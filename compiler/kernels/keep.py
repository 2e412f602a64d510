"""Rows chosen by a mask, moved together."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.compact import RowCopy, one_task
from cortado.compiler.kernels.loops import drivers
from cortado.compiler.lang import I32, SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_keep_rows(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """One task: where a row goes depends on all before it."""
    x, mask = ins
    out = outs[0]
    k = KernelBuilder(f"keep_rows_{SCALAR_OF[x.type.dtype]}", target)
    source, chosen, sink, total = (k.param(name) for name in ("in0", "mask", "out", "total"))
    begin, end = drivers(k)
    step = mask.strides[0]

    def body() -> None:
        copy = RowCopy(k, x, out)

        def row(number: Val, found: Val) -> list[Val]:
            here = k.compare("ne", k.load(chosen, Type("i8"), number * step), 0)
            if out.type.size:
                k.if_(here, lambda: copy.copy(source, number, sink, found))
            return [k.select(here, found + 1, found)]

        (found,) = k.loop(0, x.shape[0], 1, row, [k.index(0)])
        if out.type.size:
            copy.clear(sink, found, out.shape[0])
        k.store(total, k.convert(found, I32, "trunc"))

    one_task(k, begin, end, body)
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0), Ref("output", 1)))]
