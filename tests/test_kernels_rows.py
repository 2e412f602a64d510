"""Softmax, reductions, normalizations and resizing against the reference; interpreted and native."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, check, node_of
from native import runnable_targets

from cortado.backends.codegen import assembly
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.kernels.normalize import lower_lrn
from cortado.compiler.kernels.reduce import lower_reduce
from cortado.compiler.kernels.resize import lower_resize_bilinear, lower_resize_nearest
from cortado.compiler.kernels.softmax import lower_softmax
from cortado.compiler.ops.resize import resized
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.target import Target
from cortado.errors import UnsupportedError

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(3)


def eighths(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Numbers whose sums are exact, in whatever order."""
    return np.random.default_rng(seed).integers(-99, 99, shape).astype(np.float32) / np.float32(8)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 1000), 1), ((3, 10), 1), ((50, 2), 1), ((41, 3), 1), ((9, 4), 1), ((7, 5), 1), ((2, 3, 1), 2), ((33,), 0), ((1,), 0),
     ((5, 37), 0), ((2, 6, 19), 1), ((2, 3, 2, 40), 2), ((4, 1, 5), 1), ((0, 4), 1), ((3, 130), 1), ((2, 2, 3, 2), 3)],
)  # fmt: skip
def test_softmax(shape: tuple[int, ...], axis: int, target: Target) -> None:
    for pad in (0, 3):
        x = normal(shape) * 4
        check(lower_softmax, node_of("softmax", [x], {"axis": axis}), [x], target, rtol=2e-6, atol=1e-37, pad=pad)


def test_softmax_of_infinities() -> None:
    x = np.array(
        [[-np.inf, 0, 1, 2, 3], [1e30, -1e30, 0, 1, 1e30], [-np.inf] * 5, [np.inf, 1, 2, 3, 4], [np.nan, 0, 1, 2, 3]], np.float32
    )
    for target in TARGETS:
        check(lower_softmax, node_of("softmax", [x], {"axis": 1}), [x], target, rtol=1e-6, atol=1e-37)
        check(lower_softmax, node_of("softmax", [x.T.copy()], {"axis": 0}), [x.T.copy()], target, rtol=1e-6, atol=1e-37)


def test_softmax_of_other_types_is_refused_by_name() -> None:
    x = np.zeros((2, 3))
    node = node_of("softmax", [x], {"axis": 1})
    with pytest.raises(UnsupportedError, match="softmax node: float64"):
        check(lower_softmax, node, [x], TARGETS[0])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("keepdims", [False, True])
def test_reduction_over_any_axes(keepdims: bool, target: Target) -> None:
    x = eighths((3, 5, 4, 11))
    for count in range(5):
        for axes in itertools.combinations(range(4), count):
            op = REDUCTIONS[(sum(axes) + count) % 4]
            attrs = {"axes": axes, "keepdims": keepdims}
            check(lower_reduce, node_of(op, [x], attrs), [x], target, rtol=1e-7, pad=len(axes) % 3)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((700, 3), (0,)), ((3, 900), (1,)), ((5000,), (0,)), ((2, 140, 70), (1,)), ((600, 2, 2), (0, 2)), ((1, 1), (0, 1)), ((6, 1), (0,)),
     ((17, 1, 9), (1,)), ((), ()), ((2, 513, 7), (1, 2))],
)  # fmt: skip
def test_reduction_of_long_axes(op: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = eighths(shape)
    for target in TARGETS:
        check(lower_reduce, node_of(op, [x], {"axes": axes, "keepdims": False}), [x], target, rtol=1e-7)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 37), (1,)), ((37, 5), (0,)), ((3, 4, 70), (0, 2)), ((600, 3), (0,)), ((1, 700), (1,))]
)
def test_nan_counts_for_nothing_in_extrema(shape: tuple[int, ...], axes: tuple[int, ...], target: Target) -> None:
    rng = np.random.default_rng(7)
    x = eighths(shape)
    holes = rng.random(shape) < 0.6
    for op, nothing in (("reduce_max", -np.inf), ("reduce_min", np.inf)):
        node = node_of(op, [x], {"axes": axes, "keepdims": False})
        want = check(lower_reduce, node, [np.where(holes, np.float32(nothing), x)], target)
        got = check(lower_reduce, node, [np.where(holes, np.float32(np.nan), x)], target)
        np.testing.assert_array_equal(got, want)
        empty = check(lower_reduce, node, [np.full(shape, np.nan, np.float32)], target)
        np.testing.assert_array_equal(empty, np.full(empty.shape, nothing, np.float32))


def test_empty_sum_is_zero() -> None:
    x = np.zeros((3, 0, 5), np.float32)
    check(lower_reduce, node_of("reduce_sum", [x], {"axes": (1,), "keepdims": False}), [x], TARGETS[2])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float64"])
def test_reduction_of_other_types(dtype: str) -> None:
    x = np.random.default_rng(1).integers(0 if dtype[0] == "u" else -100, 100, (5, 6, 35)).astype(dtype)
    for op in ("reduce_sum", "reduce_max", "reduce_min"):
        for axes in ((0,), (2,), (0, 1, 2)):
            for target in TARGETS:
                check(lower_reduce, node_of(op, [x], {"axes": axes, "keepdims": False}), [x], target)


@pytest.mark.parametrize(("name", "register"), [("x86-64-v3", "%ymm"), ("x86-64-v4", "%zmm"), ("aarch64", ".16b")])
@pytest.mark.parametrize(("dtype", "kind"), [("int8", "s"), ("uint8", "u")])
def test_extrema_of_bytes_are_vectors_of_bytes(dtype: str, kind: str, name: str, register: str) -> None:
    target = find_target(name)
    x = np.zeros((1, 9, 9, 256), dtype)
    node = node_of("reduce_max", [x], {"axes": (1, 2), "keepdims": False})
    ins, outs = ([Operand(kind, contiguous_strides(kind.shape))] for kind in (node.inputs[0].type, node.types[0]))
    (call,) = lower_reduce(node, ins, outs, target)
    lines = assembly(emit_module([call.kernel], target, "m"), target).splitlines()
    mnemonic = f"{kind}max" if name == "aarch64" else f"vpmax{kind}b"
    assert any(mnemonic in line and register in line for line in lines)


def test_long_sums_stay_accurate() -> None:
    """A million equal numbers: one accumulator would be off by per mille."""
    x = np.full((300_000, 1), 0.1, np.float32)
    target = find_target(runnable_targets()[-1]) if runnable_targets() else None
    if target is None:
        pytest.skip("this machine runs no target")
    check(lower_reduce, node_of("reduce_sum", [x], {"axes": (0,), "keepdims": False}), [x], target, rtol=2e-6, how="native")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("channels", "size"), [(1, 5), (3, 1), (4, 5), (7, 9), (17, 5), (40, 5), (64, 3), (96, 5), (35, 41)])
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0])
def test_lrn(channels: int, size: int, beta: float, target: Target) -> None:
    x = normal((2, 1, 2, channels))
    attrs = {"size": size, "alpha": 1e-2, "beta": beta, "bias": 1.5}
    check(lower_lrn, node_of("lrn", [x], attrs), [x], target, rtol=2e-6, pad=channels % 4)


def scaled(x: np.ndarray, scale_h: float, scale_w: float) -> dict[str, Any]:
    return {"scale_h": scale_h, "scale_w": scale_w, "out_h": resized(x.shape[1], scale_h), "out_w": resized(x.shape[2], scale_w)}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("channels", [1, 3, 8, 19])
def test_resize(channels: int, target: Target) -> None:
    x = eighths((2, 3, 4, channels))
    for scales in ((2.0, 2.0), (1.0, 3.0), (1.5, 2.7), (0.5, 0.4)):
        attrs = scaled(x, *scales)
        check(lower_resize_nearest, node_of("resize_nearest", [x], attrs), [x], target, pad=channels % 3)
        check(lower_resize_bilinear, node_of("resize_bilinear", [x], attrs), [x], target, rtol=1e-6, atol=1e-5, pad=channels % 3)
    small = eighths((1, 1, 1, channels)).astype(np.int32)
    check(lower_resize_nearest, node_of("resize_nearest", [small], scaled(small, 3.0, 2.5)), [small], target)


BYTES_RESIZED = ((2.0, 2.0), (1.0, 3.0), (1.5, 2.7), (0.5, 0.4), (4.0, 3.0))


def extreme_bytes(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers that make the largest sums, and some between."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(sum(shape)).choice([limits.min, limits.max, 0, 1, 5, 77], shape).astype(dtype)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", "cascadelake", "aarch64", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_bilinear_resizing_of_bytes(dtype: str, name: str) -> None:
    """To the bit: interpreted, and native where this machine can."""
    target = find_target(name)
    for channels, scales in itertools.product((1, 3, 8, 21, 70), BYTES_RESIZED):
        x = extreme_bytes((2, 3, 4, channels), dtype)
        node = node_of("resize_bilinear", [x], scaled(x, *scales))
        check(lower_resize_bilinear, node, [x], target, pad=channels % 3)
        if name in runnable_targets() and scales in BYTES_RESIZED[2:4]:
            check(lower_resize_bilinear, node, [x], target, pad=channels % 3, how="native")
    for shape in ((1, 1, 1, 9), (1, 1, 3, 36), (2, 3, 1, 132)):
        x = extreme_bytes(shape, dtype)
        check(lower_resize_bilinear, node_of("resize_bilinear", [x], scaled(x, 2.0, 3.0)), [x], target)


@pytest.mark.parametrize("name", runnable_targets())
def test_native(name: str) -> None:
    target = find_target(name)
    for shape, axis in (((1, 1000), 1), ((500, 2), 1), ((20, 91), 1), ((2, 21, 33, 35), 1)):
        x = normal(shape)
        check(lower_softmax, node_of("softmax", [x], {"axis": axis}), [x], target, rtol=2e-6, atol=1e-37, how="native", pad=1)
    for shape, axes in (((1, 49, 1280), (1,)), ((7, 3000), (1,)), ((30, 40, 50), (0, 2))):
        x = eighths(shape)
        for op in REDUCTIONS:
            check(lower_reduce, node_of(op, [x], {"axes": axes, "keepdims": True}), [x], target, rtol=1e-7, how="native")
    x = normal((1, 13, 13, 96))
    check(
        lower_lrn,
        node_of("lrn", [x], {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}),
        [x],
        target,
        rtol=2e-6,
        how="native",
    )
    x = normal((1, 9, 11, 40))
    for scales in ((2.0, 2.0), (1.7, 2.3)):
        check(lower_resize_nearest, node_of("resize_nearest", [x], scaled(x, *scales)), [x], target, how="native")
        node = node_of("resize_bilinear", [x], scaled(x, *scales))
        check(lower_resize_bilinear, node, [x], target, rtol=1e-5, atol=1e-5, how="native")
