"""Any function of one byte, by a table of its 256 results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import Piece, collapse, drivers, position, rows, vector_row
from cortado.compiler.lang import I8, INDEX, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.virtual import TABLE

UNROLL = 4
SHORT = 4  # rows of less than this part of a vector are looked up one by one


def lower_q_table(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """table[byte of x]."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    space = collapse(y.shape, [x.strides, y.strides])
    k = KernelBuilder("q_table", target)
    source, table, sink = k.param("in0"), k.param("table"), k.param("out")
    begin, end = drivers(k)
    steps, length = (space.strides[0][-1], space.strides[1][-1]), space.shape[-1]
    lanes = target.lanes("i8")
    vectors = steps == (1, 1) and SHORT * length >= lanes and looks_up(target)
    entries = k.load(table, TABLE) if vectors else None

    def row(at: list[Val], part: tuple[Val, Val] | None) -> None:
        come, go = (k.offset(p, position(k, at, s[:-1]), "i8") for p, s in zip((source, sink), space.strides, strict=True))
        if entries is not None:
            look_up_vectors(k, entries, come, go, length, part)
            return
        start, stop = part if part is not None else (k.index(0), k.index(length))
        look_up_bytes(k, table, (come, go), steps, start, stop)

    tasks = rows(k, begin, end, space.shape, UNROLL * lanes if vectors else UNROLL, row)
    refs = (Ref("input", 0), Ref("weights", array=np.asarray(node.attrs["table"])), Ref("output", 0))
    return [KernelCall(k.finish(), refs, tasks, tasks)]


def looks_up(target: Target) -> bool:
    """Whether the target looks up vectors of bytes, one and UNROLL at once."""
    return all(target.has("lookup", TABLE, I8.with_lanes(count * target.lanes("i8"))) for count in (1, UNROLL))


def look_up_vectors(
    k: KernelBuilder,
    entries: Val,
    come: Val,
    go: Val,
    length: int,
    part: tuple[Val, Val] | None = None,
    index: Callable[[Val], Val] = lambda value: value,
) -> None:
    """go[i] = entries[index(come[i])], neighbouring bytes; part: as in `vector_row`. For a target that `looks_up`."""
    lanes = k.target.lanes("i8")

    def some(at: Val, count: int, kind: Type) -> None:
        value = k.virtual("lookup", entries, index(k.load_lanes(come, kind, count, at)))
        k.store_lanes(go, value, count, at)

    def body(pieces: list[Piece]) -> None:
        if sum(count for _, count in pieces) == UNROLL * lanes:
            some(pieces[0][0], UNROLL * lanes, I8.with_lanes(UNROLL * lanes))
            return
        for at, count in pieces:
            some(at, count, I8.with_lanes(lanes))

    vector_row(k, length, lanes, UNROLL, body, part)


def look_up_bytes(
    k: KernelBuilder,
    table: Val,
    places: tuple[Val, Val],
    steps: tuple[int, int],
    start: Val,
    stop: Val,
    how: str = "zext",
) -> None:
    """places[1][i] = table[byte places[0][i]] for i in start..stop, one by one. how: the bytes are made indices."""
    come, go = places

    def one(i: Val) -> None:
        k.store(go, k.load(table, I8, k.convert(k.load(come, I8, i * steps[0]), INDEX, how)), i * steps[1])

    whole = start + (stop - start) // UNROLL * UNROLL

    def several(i: Val) -> None:
        for u in range(UNROLL):
            one(i + u)

    k.loop(start, whole, UNROLL, several)
    k.loop(whole, stop, 1, one)
