"""Transcendentals: at most 2 ulp off float64 over the whole range of float32, special values right, the same bits for all vector lengths."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from lowered import made_target, node_of, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.kernels.pointwise import lower_elementwise
from cortado.compiler.target import Target
from cortado.compiler.virtual import VIRTUALS

Function = Callable[[np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def erf(x: np.ndarray) -> np.ndarray:
    return np.frompyfunc(math.erf, 1, 1)(x).astype(np.float64)


# name -> (float64 meaning, ulps that are never exceeded)
FUNCTIONS: dict[str, tuple[Function, float]] = {
    "exp": (np.exp, 1.1), "log": (np.log, 1.0), "tanh": (np.tanh, 1.75), "sigmoid": (sigmoid, 2.0), "erf": (erf, 2.0),
    "sin": (np.sin, 1.0), "cos": (np.cos, 1.0), "tan": (np.tan, 1.75), "asin": (np.arcsin, 1.75), "acos": (np.arccos, 1.5),
    "atan": (np.arctan, 1.5), "sinh": (np.sinh, 1.75), "cosh": (np.cosh, 1.5), "cbrt": (np.cbrt, 1.0),
}  # fmt: skip
WIDE, WIDE_NO_FMA = made_target(2048), made_target(2048, fma=False)


def all_exponents(mantissas: int, seed: int) -> np.ndarray:
    """Every exponent of float32 (zero, subnormals, infinity and NaN with them), both signs, random mantissas and the outermost ones."""
    rng = np.random.default_rng(seed)
    random = rng.integers(0, 1 << 23, (256, mantissas), dtype=np.uint32)
    random[:, :4] = [0, 1, (1 << 23) - 1, 1 << 22]
    bits = ((np.arange(256, dtype=np.uint32) << np.uint32(23))[:, None] | random).reshape(-1)
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units of the last place of want; infinite where only one is NaN. What overflows counts as 2^128."""
    with np.errstate(all="ignore"):
        exponent = np.clip(np.floor(np.log2(np.abs(want))), -126, 127)
        limit = [np.clip(v.astype(np.float64), -(2.0**128), 2.0**128) for v in (got, want)]
        error = np.abs(limit[0] - limit[1]) / np.exp2(np.where(np.isfinite(exponent), exponent, -126) - 23)
    same_nan = np.isnan(got) & np.isnan(want)
    return np.where(same_nan | (got == want), 0, np.where(np.isnan(got) | np.isnan(want), np.inf, error))


@pytest.mark.parametrize("target", [WIDE, WIDE_NO_FMA], ids=["fma", "no fma"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(name: str, target: Target) -> None:
    x = all_exponents(24, sum(map(ord, name)))
    if name in ("tanh", "sigmoid", "erf", "exp", "sinh", "cosh", "log", "asin", "acos", "atan"):
        dense = np.random.default_rng(1).uniform(-12, 12, 6000).astype(np.float32)
        x = np.concatenate([x, dense, dense / np.float32(12)])
    function, limit = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        want = function(x.astype(np.float64))
    got = run_lowered(lower_elementwise, node_of(name, [x], {}), [x], target)
    error = ulps(got, want)
    worst = int(np.argmax(error))
    assert error[worst] <= limit, f"{name}({x[worst]!r}) = {got[worst]!r}, not {want[worst]!r}: {error[worst]:.2f} ulp"
    signs = (np.signbit(got) == np.signbit(want)) | np.isnan(want)
    assert signs.all(), f"the sign of {name}({x[~signs][0]!r})"


def power_arguments() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    special = np.array(
        [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2, -2, 3, -3, 0.5, -0.5, 1e-45, -1e-45, 3e38, -3e38, 2.0**24, 2.0**23 + 1, -(2.0**23) - 1],
        np.float32,
    )  # fmt: skip
    a, b = np.meshgrid(special, special)
    anything = rng.integers(0, 2**32, (2, 4000), dtype=np.uint32).view(np.float32)
    usual = np.exp(rng.uniform(-20, 20, 8000)).astype(np.float32), (rng.standard_normal(8000) * 8).astype(np.float32)
    near_one = (1 + rng.standard_normal(4000) * 1e-4).astype(np.float32), (rng.standard_normal(4000) * 1e5).astype(np.float32)
    return (
        np.concatenate([a.reshape(-1), anything[0], usual[0], near_one[0]]),
        np.concatenate([b.reshape(-1), anything[1], usual[1], near_one[1]]),
    )


@pytest.mark.parametrize("target", [WIDE, WIDE_NO_FMA], ids=["fma", "no fma"])
def test_power(target: Target) -> None:
    x, y = power_arguments()
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64))
    got = run_lowered(lower_elementwise, node_of("pow", [x, y], {}), [x, y], target)
    error = ulps(got, want)
    worst = int(np.argmax(error))
    assert error[worst] <= 1.5, f"pow({x[worst]!r}, {y[worst]!r}) = {got[worst]!r}, not {want[worst]!r}: {error[worst]:.2f} ulp"
    assert ((np.signbit(got) == np.signbit(want)) | np.isnan(want)).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_depend_on_the_fma_row_alone(name: str) -> None:
    x = np.concatenate([all_exponents(4, 9)[::7], np.random.default_rng(2).uniform(-10, 10, 200).astype(np.float32)])
    node = node_of(name, [x], {})
    with_fma = run_lowered(lower_elementwise, node, [x], WIDE)
    without = run_lowered(lower_elementwise, node, [x], WIDE_NO_FMA)
    for bits in (0, 128, 512):
        for fma, want in ((True, with_fma), (False, without)):
            got = run_lowered(lower_elementwise, node, [x], made_target(bits, fma=fma))
            np.testing.assert_array_equal(got, want)
    for level in runnable_targets():
        target = find_target(level)
        got = run_lowered(lower_elementwise, node, [x], target, "native")
        np.testing.assert_array_equal(got, with_fma if any(row.name == "fma" for row in target.rows) else without)


def test_the_root_without_an_instruction_is_rounded_correctly() -> None:
    """What a target without a sqrt row gets."""
    bare = Target("bare", "x86_64-unknown-linux-gnu", "x86-64", "x86", vector_bits=2048)
    x = all_exponents(24, 6)
    with np.errstate(all="ignore"):
        arrays = (x, x.astype(np.float64) ** 3)
    for array in arrays:
        with np.errstate(all="ignore"):
            want = VIRTUALS["sqrt"].meaning(array)
        np.testing.assert_array_equal(run_lowered(lower_elementwise, node_of("sqrt", [array], {}), [array], bare), want)
