"""float32 in integers, bit for bit as numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.lang import I32
from cortado.compiler.softfloat import FUNCTIONS, compare
from cortado.compiler.virtual import VIRTUALS

M0 = find_target("cortex-m0")
LANES = 1 << 15

# Around every place where the form of a number changes.
EDGES = np.array(
    [
        0, 1, 2, 3, 0x7FFFFE, 0x7FFFFF, 0x800000, 0x800001, 0xFFFFFF, 0x1000000, 0x33800000, 0x33FFFFFF, 0x34000000, 0x3EFFFFFF,
        0x3F000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x40000000, 0x4AFFFFFF, 0x4B000000, 0x4B000001, 0x4B7FFFFF,
        0x4B800000, 0x4EFFFFFF, 0x7E800000, 0x7F000000, 0x7F7FFFFE, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF,
    ],
    np.uint32,
)  # fmt: skip


def run_on(name: str, *patterns: np.ndarray) -> np.ndarray:
    """FUNCTIONS[name] (or a comparison) on bit patterns, as the kernel language computes it."""
    k = KernelBuilder(name, M0)
    out = k.param("out")
    kind = I32.with_lanes(LANES)
    values = [k.load(k.param("in"), kind) for _ in patterns]
    k.store(out, FUNCTIONS[name](k, *values) if name in FUNCTIONS else as_int(k, compare(k, name, *values)))
    function = compile_kernel(k.finish())
    count = patterns[0].size
    padded = [np.concatenate([p, np.ones(-count % LANES, p.dtype)]).view(np.uint8) for p in patterns]
    result = np.zeros(padded[0].size, np.uint8)
    for at in range(0, result.size, 4 * LANES):
        function(Pointer(result, at), *(Pointer(p, at) for p in padded))
    return result.view(np.uint32)[:count]


def as_int(k: KernelBuilder, mask: Val) -> Val:
    return k.convert(mask, I32.with_lanes(mask.type.lanes), "zext")


def pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of edges, random patterns, and random numbers near each other and near the edges of the range."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([EDGES, EDGES | 0x80000000]).astype(np.uint32)
    a, b = (grid.reshape(-1) for grid in np.meshgrid(edges, edges))
    x, y = rng.integers(0, 1 << 32, (2, count), np.uint32)
    near = (x & 0x807FFFFF) | (rng.integers(100, 130, count, np.uint32) << 23)
    near_other = (y & 0x807FFFFF) | (rng.integers(100, 130, count, np.uint32) << 23)
    tiny = (x & 0x807FFFFF) | (rng.integers(0, 128, count, np.uint32) << 23)
    short = near & np.uint32(0xFFFFF000)
    return np.concatenate([a, x, near, tiny, short, x]), np.concatenate(
        [b, y, near_other, near_other, near, edges[y % edges.size]]
    )


def agree(got: np.ndarray, want: np.ndarray, *patterns: np.ndarray) -> None:
    """Equal bits, or both NaN."""
    same = (got == want.view(np.uint32)) | (np.isnan(want) & np.isnan(got.view(np.float32)))
    wrong = np.flatnonzero(~same)[:5]
    assert same.all(), [([f"{p[i]:08x}" for p in patterns], f"{got[i]:08x}", f"{want.view(np.uint32)[i]:08x}") for i in wrong]


ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    check_arithmetic(name, 1 << 14, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_on_millions_of_pairs(name: str) -> None:
    for seed in range(8):
        check_arithmetic(name, 1 << 18, seed)


def check_arithmetic(name: str, count: int, seed: int) -> None:
    a, b = pairs(count, seed)
    with np.errstate(all="ignore"):
        agree(run_on(name, a, b), ARITHMETIC[name](a.view(np.float32), b.view(np.float32)), a, b)


@pytest.mark.parametrize(
    ("name", "function"),
    {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}.items(),
)
def test_comparisons(name: str, function: np.ufunc) -> None:
    a, b = pairs(1 << 14, 2)
    np.testing.assert_array_equal(run_on(name, a, b), function(a.view(np.float32), b.view(np.float32)))


def test_conversions_from_integers() -> None:
    rng = np.random.default_rng(4)
    powers = np.array([(1 << i) + d for i in range(32) for d in (-1, 0, 1)]).astype(np.uint32)
    ints = np.concatenate(
        [powers, powers + (1 << 6), rng.integers(0, 1 << 32, 1 << 16, np.uint32), rng.integers(0, 1 << 26, 1 << 12, np.uint32)]
    )
    agree(run_on("sitofp", ints), ints.view(np.int32).astype(np.float32), ints)
    agree(run_on("uitofp", ints), ints.astype(np.float32), ints)


def test_conversions_to_integers() -> None:
    a, _ = pairs(1 << 16, 5)
    numbers = a.view(np.float32)
    signed = np.abs(np.where(np.isnan(numbers), np.inf, numbers)) < 2.0**31
    np.testing.assert_array_equal(run_on("fptosi", a[signed]).view(np.int32), numbers[signed].astype(np.int32))
    unsigned = np.flatnonzero((numbers > -1) & (numbers < 2.0**32))
    np.testing.assert_array_equal(run_on("fptoui", a[unsigned]), np.trunc(numbers[unsigned]).astype(np.int64).astype(np.uint32))


@pytest.mark.parametrize("name", ["leading_zeros", "mul_high"])
def test_integer_fallbacks_mean_the_same(name: str) -> None:
    rng = np.random.default_rng(6)
    edges = np.array([0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)
    a, b = (np.concatenate([g.reshape(-1), rng.integers(0, 1 << 32, LANES - 49, np.uint32)]) for g in np.meshgrid(edges, edges))
    inputs = (a, b)[: 1 if name == "leading_zeros" else 2]
    k = KernelBuilder(name, M0)
    out = k.param("out")
    values = [k.load(k.param("in"), I32.with_lanes(LANES)) for _ in inputs]
    k.store(out, VIRTUALS[name].fallback(k, *values))
    got = np.zeros(LANES, np.int32)
    compile_kernel(k.finish())(Pointer(got.view(np.uint8)), *(Pointer(x.view(np.uint8)) for x in inputs))
    np.testing.assert_array_equal(got, VIRTUALS[name].meaning(*(x.view(np.int32) for x in inputs)))
    exact = (
        [32 - int(x).bit_length() for x in a]
        if name == "leading_zeros"
        else [int(x) * int(y) >> 32 for x, y in zip(a, b, strict=True)]
    )
    np.testing.assert_array_equal(got.view(np.uint32), exact)
