"""Row numbers from best to worst score in memory, equal scores exactly as ops.order leaves them."""

from __future__ import annotations

from collections.abc import Callable

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import I1, I32, INDEX
from cortado.compiler.ops.order import SMALL, depth_limit

PART = 3  # numbers that describe a part: first, last, depth


def parts_bytes(count: int) -> int:
    """Bytes that `Order` needs for the parts of up to `count` elements that wait to be split."""
    return 4 * PART * (depth_limit(count) + 2)


class Order:
    """Sorts i32 numbers. score: number (index) -> f32. parts: parts_bytes of room, for `full` alone."""

    def __init__(self, k: KernelBuilder, numbers: Val, score: Callable[[Val], Val], parts: Val | None = None) -> None:
        self.k, self.numbers, self.score, self.parts = k, numbers, score, parts

    def count_up(self, count: Val) -> None:
        """Numbers 0 to count - 1."""
        self.k.loop(0, count, 1, lambda i: self.store(i, i))

    def load(self, at: Val) -> Val:
        return self.k.convert(self.k.load(self.numbers, I32, at), INDEX, "sext")

    def store(self, at: Val, number: Val) -> None:
        self.k.store(self.numbers, self.k.convert(number, I32, "trunc"), at)

    def _at(self, place: Val) -> Val:
        return self.score(self.load(place))

    def _swap(self, a: Val, b: Val) -> None:
        first, second = self.load(a), self.load(b)
        self.store(a, second)
        self.store(b, first)

    # --- heap ---

    def partial(self, first: Val, middle: Val, last: Val) -> None:
        """The best of first .. last - 1 to first .. middle - 1 (at least one), in order."""
        k, size = self.k, middle - first
        half = k.binary("udiv", size, 2)
        k.loop(0, half, 1, lambda i: self._sink(first, half - 1 - i, size, self.load(first + half - 1 - i)))

        def replace(at: Val, size: Val) -> None:
            number = self.load(at)
            self.store(at, self.load(first))
            self._sink(first, k.index(0), size, number)

        k.loop(middle, last, 1, lambda at: k.if_(self._at(at) > self._at(first), lambda: replace(at, size)))
        k.loop(1, size, 1, lambda i: replace(first + size - i, size - i))

    def _sink(self, first: Val, root: Val, size: Val, number: Val) -> None:
        """Put a number at `root` of a heap, whose worst is on top: the hole goes to the bottom, the number rises from there."""
        k = self.k
        own = self.score(number)

        def down(hole: Val) -> list[Val]:
            left = hole * 2 + 1
            right = k.min(left + 1, size - 1)
            a, b = self.load(first + left), self.load(first + right)
            stays = (left + 1 >= size) | (self.score(b) > self.score(a))
            self.store(first + hole, k.select(stays, a, b))
            return [k.select(stays, left, right)]

        (hole,) = k.while_(lambda hole: hole * 2 + 1 < size, down, [root])

        def up(hole: Val, _: Val) -> list[Val]:
            parent = k.binary("udiv", hole - 1, 2)
            above = self.load(first + parent)
            rises = self.score(above) > own
            k.if_(rises, lambda: self.store(first + hole, above))
            return [k.select(rises, parent, hole), rises]

        hole, _ = k.while_(lambda hole, rises: rises & (hole > root), up, [hole, k.const(1, I1)])
        self.store(first + hole, number)

    # --- introsort ---

    def full(self, count: Val, most: int) -> None:
        """Numbers 0 .. count - 1 of the memory, best first. most: what count cannot exceed."""
        k = self.k
        if most > SMALL:
            assert self.parts is not None, "room for the parts"
            self._push(k.index(0), k.index(0), count, self._depth(count, most))
            k.while_(lambda waiting: waiting > 0, lambda waiting: [self._part(waiting - 1)], [k.index(1)])
        k.loop(1, k.max(count, 1), 1, self._insert)

    def _depth(self, count: Val, most: int) -> Val:
        """depth_limit(count)."""
        k = self.k
        depth = k.index(0)
        for power in range(1, most.bit_length()):
            depth = k.select(count >= 1 << power, k.index(2 * power), depth)
        return depth

    def _push(self, at: Val, first: Val, last: Val, depth: Val) -> None:
        assert self.parts is not None
        for i, number in enumerate((first, last, depth)):
            self.k.store(self.parts, self.k.convert(number, I32, "trunc"), at * PART + i)

    def _part(self, at: Val) -> Val:
        """Take the part at place `at`, which is the last that waits; how many wait then."""
        k = self.k
        assert self.parts is not None
        first, last, depth = (k.convert(k.load(self.parts, I32, at * PART + i), INDEX, "sext") for i in range(PART))

        def split() -> list[Val]:
            cut = self._split(first, last)
            self._push(at, first, cut, depth - 1)
            self._push(at + 1, cut, last, depth - 1)
            return [at + 2]

        def heapsort() -> list[Val]:
            self.partial(first, last, last)
            return [at]

        return k.if_(last - first > SMALL, lambda: list(k.if_(depth > 0, split, heapsort)), lambda: [at])[0]

    def _split(self, first: Val, last: Val) -> Val:
        """Parts around the median of the second, middle and last element; where the second part begins. NaN does not lead outside."""
        k = self.k
        self._swap(first, self._median(first + 1, first + k.binary("udiv", last - first, 2), last - 1))
        pivot = self._at(first)

        def scan(at: Val, end: Val, step: int, before: Callable[[Val], Val]) -> Val:
            def move(at: Val, _: Val) -> list[Val]:
                passes = before(self._at(at))
                return [k.select(passes, at + step, at), passes]

            return k.while_(lambda at, moving: moving & k.compare("ne", at, end), move, [at, k.const(1, I1)])[0]

        def meet(low: Val, high: Val, _: Val) -> list[Val]:
            low = scan(low, last, 1, lambda score: score > pivot)
            high = scan(high - 1, first, -1, lambda score: pivot > score)
            apart = low < high
            k.if_(apart, lambda: self._swap(low, high))
            return [k.select(apart, low + 1, low), high, apart]

        return k.while_(lambda low, high, apart: apart, meet, [first + 1, last, k.const(1, I1)])[0]

    def _median(self, a: Val, b: Val, c: Val) -> Val:
        select, x, y, z = self.k.select, self._at(a), self._at(b), self._at(c)
        falling = select(y > z, b, select(x > z, c, a))
        rising = select(x > z, a, select(y > z, c, b))
        return select(x > y, falling, rising)

    def _insert(self, at: Val) -> None:
        k = self.k
        number = self.load(at)
        own = self.score(number)

        def move(at: Val, _: Val) -> list[Val]:
            above = self.load(at - 1)
            rises = own > self.score(above)
            k.if_(rises, lambda: self.store(at, above))
            return [k.select(rises, at - 1, at), rises]

        at, _ = k.while_(lambda at, rises: rises & (at > 0), move, [at, k.const(1, I1)])
        self.store(at, number)
