"""arg_max, arg_min, top_k and segment_reduce: kernels against the reference, on every shape of target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import Tensor, check, made_target, node_of, padded_strides, reference, run_calls

from cortado.compiler.kernels.segment import lower_segment_reduce
from cortado.compiler.kernels.select import lower_arg, lower_top_k
from cortado.compiler.reference import evaluate
from cortado.compiler.types import NUMPY_DTYPE

TARGETS = [made_target(0), made_target(128), made_target(256, masked=True), made_target(512, masked=True)]
IDS = ["scalar", "4", "8", "16"]
SHAPES = [((37,), 0), ((5, 19), 1), ((5, 19), 0), ((3, 4, 6), 1), ((1, 21), 1), ((2, 3, 33), 2), ((1,), 0)]


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 1) -> np.ndarray:
    """Few different ones, so that there are ties."""
    return np.random.default_rng(seed).integers(0, 9, shape).astype(dtype)


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("op", ["arg_max", "arg_min"])
def test_positions(op: str, shape: tuple[int, ...], axis: int, target: Any) -> None:
    for dtype, keepdims in (("float32", True), ("float32", False), ("int32", True), ("int64", False), ("uint8", True)):
        x = numbers(shape, dtype)
        x = x - 4 if dtype != "uint8" else x * 30
        check(lower_arg, node_of(op, [x], {"axis": axis, "keepdims": keepdims}), [x], target, pad=2)


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_greatest_in_order(shape: tuple[int, ...], axis: int, target: Any) -> None:
    for dtype, k in (("float32", 1), ("float32", shape[axis]), ("int64", min(5, shape[axis])), ("uint8", 1)):
        ranked(numbers(shape, dtype, seed=k), axis, k, target)


def test_nan_comes_last() -> None:
    x = np.array([np.nan, 1, np.nan, 3, 2, np.nan], np.float32)
    for k in range(1, 7):
        ranked(x, 0, k, TARGETS[1])


def ranked(x: np.ndarray, axis: int, k: int, target: Any) -> None:
    node = node_of("top_k", [x], {"axis": axis, "k": k})
    source = Tensor(x, x.dtype.name, padded_strides(x.shape, 2), 4)
    outs = [Tensor(np.zeros(t.shape, NUMPY_DTYPE[t.dtype]), t.dtype, padded_strides(t.shape, 3), 5) for t in node.types]
    run_calls(lower_top_k(node, [source.operand], [o.operand for o in outs], target), [source], outs, target, "interpret", 2)
    for out, want in zip(outs, evaluate(node, [x]), strict=True):
        np.testing.assert_array_equal(out.view, want)
        assert out.canaries_intact()


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("columns", [(), (1,), (7,), (3, 19), (40,)])
def test_runs_of_rows(mode: str, columns: tuple[int, ...], target: Any) -> None:
    lengths = np.array([3, 0, 4, 1, 0], np.int32)
    arrays = [numbers((8, *columns), "float32") - 4, lengths]
    check(lower_segment_reduce, node_of("segment_reduce", arrays, {"mode": mode}), arrays, target, pad=2, rtol=1e-6)


def test_wrong_lengths_read_nothing_outside() -> None:
    x = numbers((4, 6), "float32")
    for wrong in ([9, 9], [-5, 3], [1, 1]):
        lengths = np.array(wrong, np.int32)
        node = node_of("segment_reduce", [x, lengths], {"mode": "sum"})
        with pytest.raises(Exception, match="must sum to the 4 rows"):
            reference(node, [x, lengths])
        ins = [Tensor(a, a.dtype.name, padded_strides(a.shape, 0), 0) for a in (x, lengths)]
        out = Tensor(np.zeros((2, 6), np.float32), "float32", padded_strides((2, 6), 0), 0)
        calls = lower_segment_reduce(node, [t.operand for t in ins], [out.operand], TARGETS[1])
        run_calls(calls, ins, [out], TARGETS[1], "interpret", 1)  # IndexError where it would
