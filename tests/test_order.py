"""The order of scores: equal ones as the C++ standard library of GNU leaves them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lowered import made_target

from cortado.compiler.builder import KernelBuilder
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.kernels.order import Order, parts_bytes
from cortado.compiler.lang import F32
from cortado.compiler.ops.order import best_first

SOURCE = """
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>
int main() {
  int count, wanted;
  while (std::scanf("%d %d", &count, &wanted) == 2) {
    std::vector<float> scores(count);
    for (auto& score : scores) std::scanf("%f", &score);
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    auto better = [&](int a, int b) { return scores[a] > scores[b]; };
    if (wanted < count) std::partial_sort(order.begin(), order.begin() + wanted, order.end(), better);
    else std::sort(order.begin(), order.end(), better);
    for (int i = 0; i < wanted; i++) std::printf("%d ", order[i]);
    std::printf("\\n");
  }
}
"""


def killer(count: int) -> np.ndarray:
    """Makes every median of three a bad pivot, so that introsort turns to heapsort (Musser, 1997)."""
    half = count // 2
    odd = [i if i % 2 else half + i - 1 for i in range(1, half + 1)]
    return -np.array(odd + [2 * i for i in range(1, half + 1)], np.float32)


def cases() -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    found = []
    for count in (1, 2, 15, 16, 17, 18, 40, 97, 300):
        for levels in (1, 2, 5, 1000):
            scores = rng.integers(0, levels, count).astype(np.float32)
            found += [(scores, wanted) for wanted in {1, count // 3, count} if wanted]
    for count in (200, 600):
        slow = killer(count)
        found += [(slow, count), (np.floor(slow / 3), count), (np.sort(slow), count)]
    return found


def compiled_order(scores: np.ndarray, wanted: int) -> np.ndarray:
    count = len(scores)
    k = KernelBuilder("order", made_target(0))
    values, numbers, parts = (k.param(name) for name in ("scores", "numbers", "parts"))
    order = Order(k, numbers, lambda number: k.load(values, F32, number), parts)
    order.count_up(k.index(count))
    if wanted < count:
        order.partial(k.index(0), k.index(wanted), k.index(count))
    else:
        order.full(k.index(count), count)
    out = np.zeros(count, np.int32)
    memory = [a.view(np.uint8) for a in (scores.copy(), out, np.zeros(parts_bytes(count), np.uint8))]
    compile_kernel(k.finish())(*(Pointer(m, 0) for m in memory))
    return out[:wanted]


def of_gnu(given: list[tuple[np.ndarray, int]], folder: Path) -> list[list[int]]:
    (folder / "order.cpp").write_text(SOURCE)
    subprocess.run(["g++", "-O1", "-o", folder / "order", folder / "order.cpp"], check=True)
    text = "\n".join(f"{len(scores)} {wanted} {' '.join(map(str, scores.tolist()))}" for scores, wanted in given)
    done = subprocess.run([folder / "order"], input=text, capture_output=True, text=True, check=True)
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_equal_scores_come_as_the_cpp_library_leaves_them(tmp_path: Path) -> None:
    given = cases()
    for (scores, wanted), want in zip(given, of_gnu(given, tmp_path), strict=True):
        assert best_first(scores, wanted).tolist() == want, (len(scores), wanted)


def test_the_kernel_gives_the_order_of_the_reference() -> None:
    for scores, wanted in cases():
        assert compiled_order(scores, wanted).tolist() == best_first(scores, wanted).tolist(), (len(scores), wanted)


@pytest.mark.parametrize("order", [best_first, compiled_order])
def test_nan_stays_inside(order: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """Nothing is promised of its place, but every number comes once."""
    rng = np.random.default_rng(3)
    for count in (20, 64, 150):
        scores = rng.integers(0, 4, count).astype(np.float32)
        scores[rng.random(count) < 0.4] = np.nan
        assert sorted(order(scores, count).tolist()) == list(range(count))
        assert len(set(order(scores, count // 2).tolist())) == count // 2
