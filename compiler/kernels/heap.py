"""A heap of row numbers in memory: the best rows one after the other, without sorting all of them."""

from __future__ import annotations

from collections.abc import Callable

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import I1, I32, INDEX


class Heap:
    """Numbers (i32) with the best on top: the highest score, of equal ones the lower number.

    score: number (index) -> f32. Williams, "Algorithm 232: Heapsort", 1964.
    """

    def __init__(self, k: KernelBuilder, numbers: Val, score: Callable[[Val], Val]) -> None:
        self.k, self.numbers, self.score = k, numbers, score

    def fill(self, count: Val) -> None:
        """Numbers 0 to count - 1."""
        self.k.loop(0, count, 1, lambda i: self.store(i, i))
        self.order(count)

    def order(self, count: Val) -> None:
        """Make a heap of the `count` numbers that are there."""
        half = self.k.binary("udiv", count, 2)
        self.k.loop(0, half, 1, lambda i: self._sift(half - 1 - i, count))

    def pop(self, count: Val) -> Val:
        """Take the best of `count` (at least one) numbers away."""
        best = self.load(self.k.index(0))
        self.store(self.k.index(0), self.load(count - 1))
        self._sift(self.k.index(0), count - 1)
        return best

    def load(self, at: Val) -> Val:
        return self.k.convert(self.k.load(self.numbers, I32, at), INDEX, "sext")

    def store(self, at: Val, number: Val) -> None:
        self.k.store(self.numbers, self.k.convert(number, I32, "trunc"), at)

    def _sift(self, root: Val, size: Val) -> None:
        """Let the number at `root` sink below those that are better."""
        k = self.k
        value = self.load(root)
        own = self.score(value)

        def body(at: Val, _: Val) -> list[Val]:
            left = at * 2 + 1
            right = k.min(left + 1, size - 1)
            a, b = self.load(left), self.load(right)
            score_a, score_b = self.score(a), self.score(b)
            second = self._better(score_b, b, score_a, a)
            number, score = k.select(second, b, a), k.select(second, score_b, score_a)
            rises = self._better(score, number, own, value)

            def rise() -> None:
                self.store(at, number)

            k.if_(rises, rise)
            return [k.select(rises, k.select(second, right, left), at), rises]

        at, _ = k.while_(lambda at, moving: moving & (at * 2 + 1 < size), body, [root, k.const(1, I1)])
        self.store(at, value)

    def _better(self, score_a: Val, a: Val, score_b: Val, b: Val) -> Val:
        return (score_a > score_b) | (self.k.compare("eq", score_a, score_b) & (a < b))
