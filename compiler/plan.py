"""Offsets in the arena: buffers that are live at the same time never overlap; the arena is as small as a few good orders can make it.

Offline dynamic storage allocation is NP-hard; greedy placement at the lowest free offset, in several orders, then repeated with the
buffers that end at the top moved to the front, comes within a few percent of the lower bound (the largest sum of live bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate

from cortado.compiler.program import ALIGNMENT, Program

ROUNDS = 24  # of improvement per starting order; each costs a pass over all pairs of buffers
GOOD_ENOUGH = 1.0


@dataclass(frozen=True)
class Interval:
    """A buffer's need: bytes, and the first and last step that touch it.

    only: (condition, truth value) pairs without all of which nothing touches it. Of two buffers that ask for opposite values of one
    condition only one is ever used.
    """

    nbytes: int
    first: int
    last: int
    only: frozenset[tuple[Hashable, bool]] = frozenset()

    def meets(self, other: Interval) -> bool:
        """Whether both may hold something at the same time."""
        together = self.first <= other.last and other.first <= self.last
        return together and not excludes(self.only, other.only)


def excludes(a: frozenset[tuple[Hashable, bool]], b: frozenset[tuple[Hashable, bool]]) -> bool:
    return any((condition, not wanted) in b for condition, wanted in a)


def align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def largest_live_sum(intervals: Sequence[Interval]) -> int:
    """The lower bound of any plan without branches: the largest sum of (aligned) bytes that are live at one step."""
    changes: dict[int, int] = {}
    for i in intervals:
        changes[i.first] = changes.get(i.first, 0) + align(i.nbytes)
        changes[i.last + 1] = changes.get(i.last + 1, 0) - align(i.nbytes)
    return max(accumulate(changes[step] for step in sorted(changes)), default=0)


def overlapping(lives: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Every pair of numbers of lives (first step, last step) that have a step in common, once; takes as long as there are pairs."""
    living: list[tuple[int, int]] = []  # a heap of (last step, number)
    for number in sorted(range(len(lives)), key=lambda n: lives[n]):
        first, last = lives[number]
        while living and living[0][0] < first:
            heappop(living)
        for _, other in living:
            yield other, number
        heappush(living, (last, number))


def assign_offsets(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Byte offset of each interval and the arena's size."""
    bound = largest_live_sum(intervals)
    neighbours: list[list[int]] = [[] for _ in intervals]
    for i, j in overlapping([(interval.first, interval.last) for interval in intervals]):
        if intervals[i].meets(intervals[j]):
            neighbours[i].append(j)
            neighbours[j].append(i)
    orders: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-intervals[i].nbytes, intervals[i].first, i),
        lambda i: (-intervals[i].nbytes * (intervals[i].last - intervals[i].first + 1), i),
        lambda i: (intervals[i].first, -intervals[i].nbytes, i),
        lambda i: (-(intervals[i].last - intervals[i].first), -intervals[i].nbytes, i),
    )
    best, best_size = [0] * len(intervals), -1
    for key in orders:
        order = sorted(range(len(intervals)), key=key)
        for _ in range(ROUNDS):
            offsets = _place(intervals, neighbours, order)
            size = max((o + align(i.nbytes) for o, i in zip(offsets, intervals, strict=True)), default=0)
            if best_size < 0 or size < best_size:
                best, best_size = offsets, size
            if size <= bound * GOOD_ENOUGH:
                return best, best_size
            top = [i for i in order if offsets[i] + align(intervals[i].nbytes) == size]
            if order[: len(top)] == top:
                break
            order = top + [i for i in order if i not in top]
    return best, max(best_size, 0)


def _place(intervals: Sequence[Interval], neighbours: Sequence[Sequence[int]], order: Sequence[int]) -> list[int]:
    offsets = [-1] * len(intervals)
    for i in order:
        taken = sorted((offsets[j], offsets[j] + align(intervals[j].nbytes)) for j in neighbours[i] if offsets[j] >= 0)
        need, at = align(intervals[i].nbytes), 0
        for start, end in taken:
            if start - at >= need:
                break
            at = max(at, end)
        offsets[i] = at
    return offsets


def verify_plan(program: Program) -> None:
    """No two live buffers overlap, every buffer is inside its memory, every argument inside its buffer. A failure is a bug of the compiler."""
    only = guards_of_buffers(program)
    arena = [(b, only.get(number, frozenset())) for number, b in enumerate(program.buffers) if b.place == "arena"]
    for a, _ in arena:
        if a.offset % ALIGNMENT or a.offset + a.nbytes > program.arena_bytes:
            raise AssertionError(f"buffer {a.name} at {a.offset} does not fit an arena of {program.arena_bytes} bytes")
    for i, j in overlapping([(buffer.first, buffer.last) for buffer, _ in arena]):
        (a, only_a), (b, only_b) = arena[i], arena[j]
        if a.offset < b.offset + b.nbytes and b.offset < a.offset + a.nbytes and not excludes(only_a, only_b):
            raise AssertionError(f"buffers {a.name} and {b.name} are live together and overlap")
    for buffer in program.buffers:
        if buffer.place == "weights" and buffer.offset + buffer.nbytes > len(program.weights):
            raise AssertionError(f"constant {buffer.name} lies past the end of the weights")
    for index, step in enumerate(program.steps):
        for argument in step.touched:
            buffer = program.buffers[argument.buffer]
            if not 0 <= argument.offset <= buffer.nbytes:
                raise AssertionError(f"step {step.name} points outside of buffer {buffer.name}")
            if buffer.place == "arena" and not buffer.first <= index <= buffer.last:
                raise AssertionError(f"step {step.name} uses buffer {buffer.name} outside of its lifetime")


def guards_of_buffers(program: Program) -> dict[int, frozenset[tuple[Hashable, bool]]]:
    """Buffer -> the guards that all steps which touch it have (in `Interval.only`'s form). Guards are read whatever they say."""
    found: dict[int, frozenset[tuple[Hashable, bool]]] = {}
    for step in program.steps:
        own: frozenset[tuple[Hashable, bool]] = frozenset((guard.place, guard.wanted) for guard in step.guards)
        read = {guard.place.buffer for guard in step.guards}
        for argument in step.touched:
            number = argument.buffer
            found[number] = frozenset() if number in read else found.get(number, own) & own
    return found
