"""Softmax over one axis: largest element, exponentials and their sum, scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels import math
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.loops import (
    Piece,
    across_lanes,
    collapse,
    drivers,
    gather_lanes,
    leading_axes,
    nest,
    position,
    rows,
    task_loop,
    vector_row,
)
from cortado.compiler.kernels.scalar import require_float32
from cortado.compiler.lang import Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

FEW = 4  # as many dense classes are handled a vector of rows at a time
UNROLL = 2


def lower_softmax(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """float32. e^(x - max) / sum; the exponentials pass through the output. Raises UnsupportedError for other types."""
    (x,), (y,) = ins, outs
    require_float32(node, x.type.dtype)
    if y.type.size == 0:
        return []
    axis = node.attrs["axis"]
    size, steps = x.shape[axis], (x.strides[axis], y.strides[axis])
    others = [a for a in range(len(x.shape)) if a != axis]
    space = collapse([x.shape[a] for a in others], [[x.strides[a] for a in others], [y.strides[a] for a in others]])
    come, go = space.strides
    k = KernelBuilder("softmax_f32", target)
    source, sink = k.param("in0"), k.param("out")
    begin, end = drivers(k)
    lanes = target.lanes("f32")

    def places(coordinates: Sequence[Val]) -> tuple[Val, Val]:
        count = len(coordinates)
        return (
            k.offset(source, position(k, coordinates, come[:count]), "f32"),
            k.offset(sink, position(k, coordinates, go[:count]), "f32"),
        )

    def several(coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
        at = places(coordinates)
        vector_row(k, space.shape[-1], lanes, 1, lambda pieces: _few_classes(k, at, size, lanes, pieces), part)

    def across(coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
        at = places(coordinates)
        vector_row(k, space.shape[-1], lanes, 2, lambda pieces: _across(k, at, steps, size, lanes, pieces), part)

    def along(coordinates: list[Val]) -> None:
        _along(k, places(coordinates), steps, size, target.sum_lanes("f32") if steps == (1, 1) else 1)

    generic = ""
    if come[-1] == go[-1] == size <= FEW and steps == (1, 1) and lanes > 1:
        tasks = rows(k, begin, end, space.shape, lanes, several)
    elif come[-1] == go[-1] == 1 and space.shape[-1] > 1:
        tasks = rows(k, begin, end, space.shape, 2 * lanes, across)
    else:
        lead = leading_axes(space.shape)
        task_loop(k, begin, end, space.shape[:lead], lambda head: nest(k, space.shape[lead:], lambda tail: along([*head, *tail])))
        tasks = prod(space.shape[:lead])
        generic = generic_if("across_rows", steps != (1, 1) and lanes > 1, x.type.size)
    groups = tasks if prod(x.shape[:axis]) > 1 else 0
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, groups, generic)]


def _few_classes(k: KernelBuilder, places: tuple[Val, Val], size: int, lanes: int, pieces: list[Piece]) -> None:
    """`lanes` rows of 2 to 4 classes: a vector for each class."""
    source, sink = places
    type_ = Type("f32", lanes)
    for at, count in pieces:
        starts = range(0, count * size, lanes)
        counts = [min(lanes, count * size - start) for start in starts]
        loaded = [k.load_lanes(source, type_, n, at * size + start) for start, n in zip(starts, counts, strict=True)]
        classes = [gather_lanes(k, loaded, [c + j * size if j < count else -1 for j in range(lanes)]) for c in range(size)]
        largest = classes[0]
        for value in classes[1:]:
            largest = k.max(largest, value)
        powers = [math.exp_nonpositive(k, value - largest) for value in classes]
        total = powers[0]
        for value in powers[1:]:
            total = total + value
        scale = 1.0 / total
        results = [value * scale for value in powers]
        for start, n in zip(starts, counts, strict=True):
            wanted = [(start + j) % size * lanes + (start + j) // size if j < n else -1 for j in range(lanes)]
            k.store_lanes(sink, gather_lanes(k, results, wanted), n, at * size + start)


def _across(
    k: KernelBuilder, places: tuple[Val, Val], steps: tuple[int, int], size: int, lanes: int, pieces: list[Piece]
) -> None:
    """Neighbouring softmaxes in the lanes of vectors; the axis is walked with these steps."""
    source, sink = places
    type_ = Type("f32", lanes)

    def load(place: Val, step: int, i: Val) -> list[Val]:
        return [k.load_lanes(place, type_, count, i * step + at) for at, count in pieces]

    def store(values: Sequence[Val], i: Val) -> None:
        for value, (at, count) in zip(values, pieces, strict=True):
            k.store_lanes(sink, value, count, i * steps[1] + at)

    def largest(i: Val, *values: Val) -> list[Val]:
        return [k.max(value, new) for value, new in zip(values, load(source, steps[0], i), strict=True)]

    tops = k.loop(0, size, 1, largest, [k.const(-inf, type_)] * len(pieces))

    def power(i: Val, *sums: Val) -> list[Val]:
        powers = [math.exp_nonpositive(k, value - top) for value, top in zip(load(source, steps[0], i), tops, strict=True)]
        store(powers, i)
        return [total + p for total, p in zip(sums, powers, strict=True)]

    sums = k.loop(0, size, 1, power, [k.zero(type_)] * len(pieces))
    scales = [1.0 / total for total in sums]
    k.loop(0, size, 1, lambda i: store([v * s for v, s in zip(load(sink, steps[1], i), scales, strict=True)], i))


def _along(k: KernelBuilder, places: tuple[Val, Val], steps: tuple[int, int], size: int, lanes: int) -> None:
    """One softmax, its elements in the lanes of vectors."""
    source, sink = places
    lanes = min(lanes, 1 << (size - 1).bit_length())
    type_ = Type("f32", lanes)
    whole = size - size % (lanes * UNROLL)
    rest = [(k.index(at), min(lanes, size - at)) for at in range(whole, size, lanes)]

    def sweep(start: float, visit: Callable[[Val, Piece], Val]) -> list[Val]:
        """visit(accumulator, piece) over all pieces; every piece of a trip has an accumulator of its own."""
        held = [k.const(start, type_)] * (UNROLL if whole else len(rest))
        step = lanes * UNROLL
        done = list(k.loop(0, whole, step, lambda at, *v: [visit(a, (at + u * lanes, lanes)) for u, a in enumerate(v)], held))
        for u, piece in enumerate(rest):
            done[u] = visit(done[u], piece)
        return done

    def combined(values: list[Val], combine: Callable[[Val, Val], Val]) -> Val:
        total = values[0]
        for value in values[1:]:
            total = combine(total, value)
        return k.broadcast(across_lanes(k, total, combine), lanes)

    def element(piece: Piece) -> Val:
        value = k.load_lanes(source, type_, piece[1], piece[0] * steps[0])
        return value if piece[1] == lanes else k.select(k.first_lanes(lanes, piece[1]), value, -inf)

    top = combined(sweep(-inf, lambda value, piece: k.max(value, element(piece))), k.max)

    def power(value: Val, piece: Piece) -> Val:
        p = math.exp_nonpositive(k, element(piece) - top)
        k.store_lanes(sink, p, piece[1], piece[0] * steps[1])
        return value + p

    scale = 1.0 / combined(sweep(0.0, power), lambda a, b: a + b)

    def scaled(pieces: list[Piece]) -> None:
        values = [k.load_lanes(sink, type_, count, at * steps[1]) * scale for at, count in pieces]
        for value, (at, count) in zip(values, pieces, strict=True):
            k.store_lanes(sink, value, count, at * steps[1])

    vector_row(k, size, lanes, UNROLL, scaled)
