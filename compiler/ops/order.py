"""Scores from best to worst, with equal scores in the order in which the C++ standard library that Caffe2 was built with leaves them.

Equal scores decide which boxes a detector keeps, and scores that come from int8 are equal often. The library's sort is introsort (Musser,
"Introspective sorting and selection algorithms", 1997): median of three, parts of up to SMALL elements left to an insertion sort over the
whole. Its partial sort keeps a heap of the best seen so far with the worst of them on top (Williams, 1964; holes sink to the bottom before
the value rises, as Floyd's).
"""

from __future__ import annotations

import numpy as np

SMALL = 16  # elements that introsort leaves to the insertion sort


def best_first(scores: np.ndarray, wanted: int) -> np.ndarray:
    """int64[wanted]: the indices of the best of float32[n] scores, best first. wanted: at most n; fewer than n is a partial sort."""
    if len(np.unique(scores)) == len(scores):
        return np.argsort(-scores, kind="stable")[:wanted]
    work = _Sort(scores.tolist())
    if wanted < len(scores):
        work.partial(0, wanted, len(scores))
    else:
        work.full()
    return np.array(work.numbers[:wanted], np.int64)


def depth_limit(count: int) -> int:
    """How often introsort may split before it turns to heapsort."""
    return 2 * (max(count, 1).bit_length() - 1)


class _Sort:
    def __init__(self, scores: list[float]) -> None:
        self.scores, self.numbers = scores, list(range(len(scores)))

    def better(self, a: int, b: int) -> bool:
        """Of the numbers at places a and b."""
        return self.scores[self.numbers[a]] > self.scores[self.numbers[b]]

    # --- heap ---

    def partial(self, first: int, middle: int, last: int) -> None:
        """The best of first .. last - 1 to first .. middle - 1, in order."""
        numbers, size = self.numbers, middle - first
        for root in range(size // 2 - 1, -1, -1):
            self.sink(first, root, size, numbers[first + root])
        for at in range(middle, last) if size else ():
            if self.better(at, first):
                number, numbers[at] = numbers[at], numbers[first]
                self.sink(first, 0, size, number)
        for end in range(size - 1, 0, -1):
            number, numbers[first + end] = numbers[first + end], numbers[first]
            self.sink(first, 0, end, number)

    def sink(self, first: int, root: int, size: int, number: int) -> None:
        """Put a number at `root` of a heap, whose worst is on top: the hole goes to the bottom, the number rises from there."""
        numbers, scores, hole = self.numbers, self.scores, root
        while 2 * hole + 1 < size:
            child = 2 * hole + 2
            if child == size or self.better(first + child, first + child - 1):
                child -= 1
            numbers[first + hole] = numbers[first + child]
            hole = child
        while hole > root and scores[numbers[first + (hole - 1) // 2]] > scores[number]:
            numbers[first + hole] = numbers[first + (hole - 1) // 2]
            hole = (hole - 1) // 2
        numbers[first + hole] = number

    # --- introsort ---

    def full(self) -> None:
        numbers = self.numbers
        parts = [(0, len(numbers), depth_limit(len(numbers)))]
        while parts:
            first, last, depth = parts.pop()
            if last - first <= SMALL:
                continue
            if not depth:
                self.partial(first, last, last)
                continue
            cut = self.split(first, last)
            parts += [(first, cut, depth - 1), (cut, last, depth - 1)]
        for at in range(1, len(numbers)):
            number = numbers[at]
            while at and self.scores[number] > self.scores[numbers[at - 1]]:
                numbers[at] = numbers[at - 1]
                at -= 1
            numbers[at] = number

    def split(self, first: int, last: int) -> int:
        """Parts around the median of the second, middle and last element; where the second part begins. NaN must not lead outside."""
        numbers = self.numbers
        at = self.median(first + 1, first + (last - first) // 2, last - 1)
        numbers[first], numbers[at] = numbers[at], numbers[first]
        low, high = first + 1, last
        while True:
            while low < last and self.better(low, first):
                low += 1
            high -= 1
            while high > first and self.better(first, high):
                high -= 1
            if low >= high:
                return low
            numbers[low], numbers[high] = numbers[high], numbers[low]
            low += 1

    def median(self, a: int, b: int, c: int) -> int:
        if self.better(a, b):
            return b if self.better(b, c) else c if self.better(a, c) else a
        return a if self.better(a, c) else c if self.better(b, c) else b
