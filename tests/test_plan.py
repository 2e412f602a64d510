"""Arena offsets: no overlap, close to the lower bound, deterministic."""

from __future__ import annotations

import random

import pytest

from cortado.compiler.plan import Interval, align, assign_offsets, largest_live_sum, overlapping, verify_plan
from cortado.compiler.program import Buffer, Program


def random_intervals(rng: random.Random, count: int) -> list[Interval]:
    result = []
    for step in range(count):
        length = rng.choice([1, 1, 1, 2, 3, rng.randint(1, count)])
        result.append(Interval(rng.randint(1, 100_000), step, min(count - 1, step + length)))
    return result


def overlaps(intervals: list[Interval], offsets: list[int]) -> list[tuple[int, int]]:
    found = []
    for i, a in enumerate(intervals):
        for j in range(i):
            b = intervals[j]
            live = a.first <= b.last and b.first <= a.last
            if live and offsets[i] < offsets[j] + b.nbytes and offsets[j] < offsets[i] + a.nbytes:
                found.append((i, j))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_live_buffers_never_overlap_and_the_arena_is_close_to_the_bound(seed: int) -> None:
    intervals = random_intervals(random.Random(seed), 60)
    offsets, size = assign_offsets(intervals)
    assert not overlaps(intervals, offsets)
    assert size == max(o + align(i.nbytes) for o, i in zip(offsets, intervals, strict=True))
    assert size <= 1.10 * largest_live_sum(intervals)
    assert all(o % 64 == 0 for o in offsets)


def test_a_chain_needs_two_neighbouring_buffers_only() -> None:
    intervals = [Interval(n, i, i + 1) for i, n in enumerate([1000, 4000, 2000, 8000, 64])]
    _, size = assign_offsets(intervals)
    assert size == largest_live_sum(intervals) == align(2000) + align(8000)


def test_no_buffers_need_no_arena() -> None:
    assert assign_offsets([]) == ([], 0)


def test_the_plan_is_a_function_of_its_input() -> None:
    intervals = random_intervals(random.Random(3), 100)
    assert assign_offsets(intervals) == assign_offsets(list(intervals))


def test_verification_finds_an_overlap() -> None:
    buffers = (Buffer("a", "arena", 100, 0, 0, 2), Buffer("b", "arena", 100, 64, 1, 3))
    with pytest.raises(AssertionError, match="a and b are live together"):
        verify_plan(Program("p", (), (), buffers, (), 256, b""))


def test_pairs_are_those_that_live_together() -> None:
    rng = random.Random(1)
    lives = [(first, first + rng.choice([0, 0, 1, 3, 20])) for first in (rng.randint(0, 40) for _ in range(120))]
    found = list(overlapping(lives))
    want = {(i, j) for i, (a, b) in enumerate(lives) for j, (c, d) in enumerate(lives) if i < j and a <= d and c <= b}
    assert len(found) == len(want) and {(min(pair), max(pair)) for pair in found} == want
    for step in range(62):
        assert largest_live_sum([Interval(1, a, b) for a, b in lives]) >= 64 * sum(a <= step <= b for a, b in lives)


def test_long_chains_are_planned_in_a_time_that_grows_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that are looked at, not seconds: each buffer of a chain meets two others."""
    looked = 0
    meets = Interval.meets

    def counted(self: Interval, other: Interval) -> bool:
        nonlocal looked
        looked += 1
        return meets(self, other)

    monkeypatch.setattr(Interval, "meets", counted)
    assign_offsets([Interval(64, i, i + 1) for i in range(5000)])
    assert looked <= 10_000
