"""Pooling kernels against the reference: every geometry, clipped windows, odd channel counts, views; interpreted and native."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, check, node_of
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.kernels.pool import lower_average_pool, lower_max_pool
from cortado.compiler.target import Target

LOWERINGS = {"max_pool": lower_max_pool, "average_pool": lower_average_pool}
Geometry = tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]

# spatial, channels, kernel, strides, dilations, pads_begin, pads_end
GEOMETRIES: list[Geometry] = [
    ((9, 11), 5, (3, 3), (2, 2), (1, 1), (0, 0), (0, 0)),
    ((9, 11), 16, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ((9, 12), 33, (3, 3), (2, 2), (1, 1), (0, 0), (2, 2)),
    ((8, 8), 3, (2, 2), (2, 2), (1, 1), (0, 0), (0, 0)),
    ((8, 13), 17, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((7, 7), 20, (7, 7), (1, 1), (1, 1), (0, 0), (0, 0)),
    ((7, 7), 144, (7, 7), (7, 7), (1, 1), (0, 0), (0, 0)),
    ((7, 7), 10, (5, 5), (1, 1), (1, 1), (2, 2), (2, 2)),
    ((13, 9), 6, (2, 3), (3, 4), (2, 2), (1, 0), (0, 3)),
    ((6, 30), 4, (3, 25), (1, 2), (1, 1), (1, 12), (1, 12)),
    ((6, 9), 8, (2, 2), (2, 2), (1, 1), (-1, -2), (0, -1)),
    ((3, 3), 4, (2, 2), (3, 3), (1, 1), (0, 0), (2, 2)),
    ((4, 4), 9, (3, 3), (3, 3), (1, 1), (2, 2), (3, 3)),
    ((1, 1), 7, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0)),
    ((30,), 5, (4,), (3,), (1,), (2,), (2,)),
    ((40,), 18, (40,), (1,), (1,), (0,), (0,)),
    ((5, 6, 7), 4, (3, 2, 3), (2, 1, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1)),
    ((4, 5, 6), 6, (4, 5, 6), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    ((5, 9, 9), 3, (2, 2, 2), (1, 2, 2), (2, 3, 1), (0, 1, 0), (1, 0, 0)),
]


def attrs_of(g: Geometry, op: str, include: bool = False) -> dict[str, Any]:
    attrs: dict[str, Any] = {"kernel": g[2], "strides": g[3], "dilations": g[4], "pads_begin": g[5], "pads_end": g[6]}
    return {**attrs, "count_include_pad": include} if op == "average_pool" else attrs


def image(g: Geometry, rng: np.random.Generator, batch: int = 2) -> np.ndarray:
    return rng.integers(-50, 50, (batch, *g[0], g[1])).astype(np.float32) / 8


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("op", LOWERINGS)
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_geometries(g: Geometry, op: str, target: Target) -> None:
    """Sums of eighths are exact, so averages are as well but for the one division."""
    x = image(g, np.random.default_rng(1))
    for include in (False, True) if op == "average_pool" else (False,):
        check(LOWERINGS[op], node_of(op, [x], attrs_of(g, op, include)), [x], target, pad=3 * include)


@pytest.mark.parametrize("seed", range(12))
def test_random_geometries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    done = 0
    while done < 4:
        rank = int(rng.integers(1, 4))

        def draw(low: int, high: int) -> tuple[int, ...]:
            return tuple(int(v) for v in rng.integers(low, high, rank))  # noqa: B023

        g: Geometry = (draw(1, 12), int(rng.integers(1, 40)), draw(1, 5), draw(1, 4), draw(1, 3), draw(-1, 4), draw(-1, 4))
        if any((n + b + e - d * (k - 1) - 1) // s < 0 for n, k, s, d, b, e in zip(g[0], *g[2:], strict=True)):
            continue
        done += 1
        x = image(g, rng, int(rng.integers(1, 3)))
        for op, lower in LOWERINGS.items():
            include = bool(rng.integers(0, 2))
            target = TARGETS[int(rng.integers(0, len(TARGETS)))]
            check(lower, node_of(op, [x], attrs_of(g, op, include)), [x], target, pad=int(rng.integers(0, 4)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float64"])
def test_max_of_other_types(dtype: str) -> None:
    x = (np.random.default_rng(2).integers(-120, 120, (1, 7, 6, 21)).astype(np.int8)).astype(dtype)
    for g in (GEOMETRIES[1], GEOMETRIES[7]):
        for target in TARGETS:
            check(lower_max_pool, node_of("max_pool", [x], attrs_of(g, "max_pool")), [x], target)


@pytest.mark.parametrize("name", runnable_targets())
def test_native(name: str) -> None:
    rng = np.random.default_rng(3)
    cases: list[Geometry] = [
        ((56, 57), 64, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
        ((54, 54), 96, (3, 3), (2, 2), (1, 1), (0, 0), (1, 1)),
        ((13, 13), 1000, (13, 13), (1, 1), (1, 1), (0, 0), (0, 0)),
        ((14, 14), 40, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
        ((20, 20), 3, (2, 2), (2, 2), (1, 1), (0, 0), (0, 0)),
        ((10, 400), 7, (3, 30), (1, 1), (1, 1), (1, 15), (1, 15)),
    ]
    for g in cases:
        x = image(g, rng, 1)
        for op, lower in LOWERINGS.items():
            check(lower, node_of(op, [x], attrs_of(g, op)), [x], find_target(name), how="native", pad=5)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("g", [GEOMETRIES[i] for i in (1, 6, 9, 11, 14, 15, 16)], ids=str)
def test_nan_counts_for_nothing_in_the_largest_cell(g: Geometry, target: Target) -> None:
    rng = np.random.default_rng(5)
    x = image(g, rng)
    holes = rng.random(x.shape) < 0.5
    lowest = np.finfo(np.float32).min
    node = node_of("max_pool", [x], attrs_of(g, "max_pool"))
    want = check(lower_max_pool, node, [np.where(holes, lowest, x)], target)
    got = check(lower_max_pool, node, [np.where(holes, np.float32(np.nan), x)], target)
    np.testing.assert_array_equal(got, want)
