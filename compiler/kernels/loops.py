"""Loop nests over strided operands: broadcasting, collapsing of axes, tasks, rows of vectors with tails.

An iteration space is a shape and, per operand, one stride (in elements) per axis; 0 where the operand is stretched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import INDEX
from cortado.compiler.program import Operand

ENOUGH_TASKS = 64  # threads share evenly what has about this many parts
CHUNK = 4096  # elements of a long row that make one task

Piece = tuple[Val, int]  # index of the first element, number of elements (known while recording)


@dataclass(frozen=True)
class Space:
    """strides: per operand, one per axis of shape. No axis has one element; no two neighbours could be one."""

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def broadcast_strides(operand: Operand, shape: Sequence[int]) -> tuple[int, ...]:
    """The operand's strides seen in a shape that it broadcasts to (numpy's rule)."""
    missing = len(shape) - len(operand.shape)
    own = [s if d != 1 else 0 for d, s in zip(operand.shape, operand.strides, strict=True)]
    return (*[0] * missing, *own)


def collapse(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> Space:
    """Drop axes of one element and merge neighbours that every operand walks through as one; at least one axis remains."""
    merged: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(shape):
        steps = [s[axis] for s in strides]
        if size == 1:
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    if not merged:
        merged = [(1, [1] * len(strides))]
    return Space(tuple(m[0] for m in merged), tuple(tuple(m[1][i] for m in merged) for i in range(len(strides))))


def drivers(k: KernelBuilder) -> tuple[Val, Val]:
    """The last two parameters of every driver: begin and end of its range of tasks."""
    return k.param("begin", INDEX), k.param("end", INDEX)


def task_loop(k: KernelBuilder, begin: Val, end: Val, dims: Sequence[int], body: Callable[[list[Val]], None]) -> None:
    """body(coordinates) for the tasks begin..end of a grid."""

    def task(number: Val) -> None:
        coordinates: list[Val] = []
        for size in reversed(dims[1:]):
            coordinates.insert(0, number % size)
            number = number // size
        body([number, *coordinates] if dims else [])

    k.loop(begin, end, 1, task)


def nest(k: KernelBuilder, dims: Sequence[int], body: Callable[[list[Val]], None]) -> None:
    """body(coordinates) in nested loops, first axis outermost."""

    def level(coordinates: list[Val]) -> None:
        if len(coordinates) == len(dims):
            body(coordinates)
        else:
            k.loop(0, dims[len(coordinates)], 1, lambda i: level([*coordinates, i]))

    level([])


def position(k: KernelBuilder, coordinates: Sequence[Val], strides: Sequence[int]) -> Val:
    """Index of an element: the sum of coordinate * stride."""
    total = k.index(0)
    for coordinate, stride in zip(coordinates, strides, strict=True):
        if stride:
            total = total + coordinate * stride
    return total


def leading_axes(shape: Sequence[int], enough: int = ENOUGH_TASKS) -> int:
    """How many of the first axes are made tasks: as few as give enough of them."""
    count = 0
    while count < len(shape) and prod(shape[:count]) < enough:
        count += 1
    return count


def vector_row(
    k: KernelBuilder,
    length: int,
    lanes: int,
    unroll: int,
    body: Callable[[list[Piece]], None],
    part: tuple[Val, Val] | None = None,
) -> None:
    """Elements 0..length (or those of `part`, which starts at a multiple of lanes * unroll and ends at one or at length) as vectors.

    body(pieces) is called with what one trip does: `unroll` whole vectors, or what is left at the end, the last piece perhaps short.
    """
    block = lanes * unroll
    whole = length - length % block
    start, stop = part if part is not None else (k.index(0), k.index(length))
    k.loop(start, k.min(stop, whole), block, lambda i: body([(i + u * lanes, lanes) for u in range(unroll)]))
    rest = [(k.index(at), min(lanes, length - at)) for at in range(whole, length, lanes)]
    if rest and part is None:
        body(rest)
    elif rest:
        k.if_(k.compare("eq", stop, length), lambda: body(rest))


def rows(
    k: KernelBuilder,
    begin: Val,
    end: Val,
    shape: Sequence[int],
    block: int,
    body: Callable[[list[Val], tuple[Val, Val] | None], None],
) -> int:
    """Walk the rows (last axis) of a space; returns the number of tasks that begin and end count.

    body(coordinates of the row, part): part is None for a whole row, else the range of it to do, cut at multiples of `block` elements.
    """
    outer, length = list(shape[:-1]), shape[-1]
    chunk = -(-CHUNK // block) * block
    parts = -(-length // chunk)
    if prod(outer) < ENOUGH_TASKS and parts > 1:

        def partial(coordinates: list[Val]) -> None:
            start = coordinates[-1] * chunk
            body(coordinates[:-1], (start, k.min(start + chunk, length)))

        task_loop(k, begin, end, [*outer, parts], partial)
        return prod(outer) * parts
    lead = leading_axes(outer)
    task_loop(k, begin, end, outer[:lead], lambda head: nest(k, outer[lead:], lambda tail: body([*head, *tail], None)))
    return prod(outer[:lead])


def gather_lanes(k: KernelBuilder, vectors: Sequence[Val], wanted: Sequence[int]) -> Val:
    """A vector whose lane j is element wanted[j] of all the vectors' lanes in a row (-1: unspecified)."""
    lanes = vectors[0].type.lanes
    used = sorted({w // lanes for w in wanted if w >= 0})
    if not used:
        return vectors[0]
    first, second = used[0], used[min(1, len(used) - 1)]
    at = {first: 0, second: 0 if first == second else lanes}
    value = k.shuffle(
        vectors[first], vectors[second], [at[w // lanes] + w % lanes if w >= 0 and w // lanes in at else -1 for w in wanted]
    )
    for number in used[2:]:
        picks = [lanes + w % lanes if w >= 0 and w // lanes == number else j for j, w in enumerate(wanted)]
        value = k.shuffle(value, vectors[number], picks)
    return value


def across_lanes(k: KernelBuilder, value: Val, combine: Callable[[Val, Val], Val]) -> Val:
    """All lanes combined to a scalar, halves first."""
    while value.type.lanes > 1:
        half = value.type.lanes // 2
        value = combine(k.shuffle(value, value, range(half)), k.shuffle(value, value, range(half, 2 * half)))
    return value
