"""Quantized transposed convolution: the operator against its definition, kernels against the operator, to the bit on all targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, check
from native import runs_here
from quantized_nodes import make_q, quant, result, values
from test_quantized_ops import F, nearest_even

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.quantized_conv_transpose import lower_q_conv_transpose
from cortado.compiler.legalize import legalize
from cortado.compiler.ops.requantize import requantize_q31
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.reference import evaluate
from cortado.compiler.target import Target
from cortado.compiler.types import Quant
from cortado.errors import ShapeError, UnsupportedError

INTERPRETED = [*TARGETS, *map(find_target, ("x86-64", "x86-64-v3", "cascadelake", "alderlake", "znver4", "cortex-m4", "aarch64"))]
NATIVE = ("x86-64", "x86-64-v3", "sixteen lanes", "x86-64-v4", "alderlake", "znver4", "aarch64")


def transposed(
    x: Sequence[int], w: Sequence[int], strides: int | tuple[int, ...] = 2, begin: int | tuple[int, ...] = 0,
    end: int | tuple[int, ...] = 0, more: int | tuple[int, ...] = 0, group: int = 1, beside: bool = False,
    rounding: str = "even", dtype: str = "int8", constants: Sequence[int] = (1, 2),
) -> tuple[Node, list[np.ndarray]]:  # fmt: skip
    random = np.random.default_rng(sum(x) + 7 * sum(w))
    outputs, zero = w[0], -7 if dtype == "int8" else 99
    whole = rounding == "qnnpack"
    arrays = [values(random, x, dtype), values(random, w, "uint8" if whole else "int8")]
    arrays.append(random.integers(-3000, 3000, outputs).astype(np.int32))
    scales = tuple(float(s) for s in random.uniform(0.001, 0.02, outputs).astype(np.float32))
    of_weights = quant(0.003, 131) if whole else Quant(scales, (0,) * outputs, 0)
    quants: list[Quant | None] = [quant(0.05, zero), of_weights, None]
    attrs: dict[str, Any] = {"group": group, **result(0.5, zero + 3, dtype, rounding, (zero + 3, zero + 117))}
    for name, value in (("strides", strides), ("pads_begin", begin), ("pads_end", end), ("output_padding", more)):
        attrs[name] = value if isinstance(value, tuple) else (value,) * (len(x) - 2)
    node = make_q("q_conv_transpose", list(zip(arrays, quants, strict=True)), attrs, constants)
    if beside:
        arrays.append(values(random, node.types[0].shape, dtype))
        quants.append(quant(0.3, 9))
        node = make_q("q_conv_transpose", list(zip(arrays, quants, strict=True)), attrs, constants)
    return node, arrays


CASES: dict[str, dict[str, Any]] = {
    "2x2, stride 2": {"x": (1, 4, 5, 8), "w": (17, 2, 2, 8)},
    "4x4, stride 2": {"x": (1, 4, 5, 12), "w": (20, 4, 4, 12), "begin": 1, "end": 1},
    "3x3, odd channels, images, residual": {
        "x": (2, 4, 3, 6), "w": (7, 3, 3, 6), "begin": 1, "end": 1, "more": (1, 0), "beside": True,
    },
    "one phase": {"x": (1, 4, 4, 8), "w": (9, 3, 3, 8), "strides": 1, "begin": 1, "end": 1},
    "strides differ, groups": {"x": (2, 3, 3, 8), "w": (12, 2, 3, 4), "strides": (2, 1), "group": 2, "dtype": "uint8"},
    "phases that no tap reaches": {"x": (1, 3, 4, 4), "w": (5, 2, 1, 4), "strides": 3, "beside": True},
    "no tap reaches any output": {"x": (1, 1, 1, 4), "w": (5, 1, 1, 4), "strides": 3, "begin": 1, "end": -1, "more": 1},
    "zeros around, qnnpack": {
        "x": (1, 3, 5, 8), "w": (6, 3, 2, 8), "begin": -2, "end": (-3, -1), "dtype": "uint8", "rounding": "qnnpack",
    },
    "phases that no tap reaches, qnnpack": {"x": (1, 3, 2, 4), "w": (6, 1, 1, 4), "dtype": "uint8", "rounding": "qnnpack"},
    "cut deeply": {"x": (1, 5, 6, 8), "w": (8, 4, 4, 8), "begin": (3, 5), "end": (4, 2)},
    "one spatial axis": {"x": (2, 6, 5), "w": (3, 4, 5), "begin": 1, "end": -2, "dtype": "uint8"},
    "three spatial axes": {"x": (1, 2, 3, 2, 4), "w": (6, 2, 3, 2, 4), "strides": (2, 1, 2), "begin": (0, 1, 0), "more": (1, 0, 0)},
    "depthwise": {"x": (1, 5, 4, 24), "w": (24, 4, 4, 1), "begin": 1, "end": 1, "group": 24},
    "depthwise, residual, idle phases": {
        "x": (2, 3, 5, 20), "w": (20, 2, 2, 1), "strides": 3, "begin": -1, "group": 20, "beside": True, "dtype": "uint8",
    },
    "depthwise, two outputs": {"x": (1, 4, 3, 5), "w": (10, 3, 3, 1), "begin": 1, "group": 5, "rounding": "qnnpack", "dtype": "uint8"},
    "depthwise, one spatial axis": {"x": (1, 9, 17), "w": (17, 5, 1), "strides": 3, "begin": 2, "more": 2, "group": 17},
}  # fmt: skip


@pytest.mark.parametrize("form", CASES.values(), ids=CASES)
def test_the_operator_is_its_definition(form: dict[str, Any]) -> None:
    """Every input cell and tap added to the output cell that they meet at, one by one."""
    node, arrays = transposed(**form)
    attrs, (x, w, bias) = node.attrs, [array.astype(np.int64) for array in arrays[:3]]
    zeros = np.broadcast_to(node.inputs[1].type.quant.zero_points, len(w)).reshape(-1, *[1] * (w.ndim - 1))
    x, w = x - node.inputs[0].type.quant.zero_points[0], w - zeros
    shape, groups = node.types[0].shape, attrs["group"]
    acc = np.zeros(shape, np.int64) + bias
    for cell in np.ndindex(*x.shape[:-1]):
        for tap in np.ndindex(*w.shape[1:-1]):
            to = [i * s + t - b for i, t, s, b in zip(cell[1:], tap, attrs["strides"], attrs["pads_begin"], strict=True)]
            if all(0 <= at < size for at, size in zip(to, shape[1:-1], strict=True)):
                for o in range(shape[-1]):
                    part = o // (shape[-1] // groups)
                    row = x[cell].reshape(groups, -1)[part]
                    acc[(cell[0], *to, o)] += row @ w[(o, *tap)]
    scales = np.broadcast_to([F(F(F(0.05) * F(s)) / F(0.5)) for s in node.inputs[1].type.quant.scales], shape[-1])
    zero, lo, hi = attrs["quant"].zero_points[0], attrs["lo"], attrs["hi"]
    (got,) = evaluate(node, arrays)
    assert got.shape == shape and got.dtype == arrays[0].dtype
    if attrs["rounding"] == "qnnpack":
        np.testing.assert_array_equal(got, requantize_q31(acc, scales, zero, lo, hi, attrs["dtype"]))
        return
    for at in np.ndindex(*shape):
        value = F(acc[at]) * scales[at[-1]]
        if len(arrays) == 4:
            value = F(value + F(int(arrays[3][at]) - 9) * F(F(0.3) / F(0.5)))
        assert got[at] == nearest_even(value, zero, lo, hi), at


@pytest.mark.parametrize("target", INTERPRETED, ids=lambda target: target.name)
def test_interpreted(target: Target) -> None:
    for form in CASES.values():
        check(lower_q_conv_transpose, *transposed(**form), target, pad=1)


@pytest.mark.parametrize("name", NATIVE)
def test_native(name: str) -> None:
    """Sixteen lanes: the kernels of AVX-512, which LLVM splits for machines without it."""
    target = find_target("x86-64-v3" if name == "sixteen lanes" else name)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {target.name}")
    if name == "sixteen lanes":
        target = replace(target, vector_bits=512)
    for form in CASES.values():
        check(lower_q_conv_transpose, *transposed(**form), target, how="native", pad=1)


@pytest.mark.parametrize("name", ["cortex-m0", "cortex-m4", "cortex-m55", "arm32-cortex-a7", "aarch64", "x86-64-v4"])
def test_code_for_other_processors(name: str) -> None:
    target = find_target(name)
    modules = []
    for number, form in enumerate(list(CASES.values())[1:3]):
        node, _ = transposed(**form)
        for call in lowered(node, target):
            kernel = legalize(call.kernel, target)
            modules.append((f"{number}", emit_module([*kernel.callees(), kernel], target, f"m{len(modules)}")))
    assert len(compile_modules(modules, target)) >= 8


def lowered(node: Node, target: Target) -> list[KernelCall]:
    operands = [Operand(value.type, contiguous_strides(value.shape)) for value in (*node.inputs, node.out())]
    return lower_q_conv_transpose(node, operands[:-1], operands[-1:], target)


@pytest.mark.parametrize(
    ("case", "families"),
    [
        ("4x4, stride 2", ["stage_dot4"] + ["q_conv_dot4"] * 4),
        ("2x2, stride 2", ["q_conv_dot4"] * 4),
        ("zeros around, qnnpack", ["stage_dot2"] + ["q_conv_dot2"] * 4),
    ],
)
def test_all_phases_read_one_staged_input(case: str, families: list[str]) -> None:
    assert [call.kernel.family for call in lowered(transposed(**CASES[case])[0], find_target("cascadelake"))] == families


def test_work_is_that_of_the_taps_that_meet_a_cell() -> None:
    node, _ = transposed((1, 4, 5, 12), (20, 4, 4, 12), begin=1, end=1)
    sums = [ref.array.size for call in lowered(node, find_target("cascadelake")) for ref in call.refs if ref.kind == "weights"]
    assert sum(sums) <= 4 * 32 * (4 * 12 // 4 + 2), "no tap is packed twice"


def test_what_is_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"the filter \(outputs, kernel, channels\) .* is made for 3 input channels; the input has 4"
    ):
        transposed((1, 4, 4, 4), (5, 2, 2, 3))
    with pytest.raises(ShapeError, match="output_padding 2 must be smaller than the stride 2"):
        transposed((1, 4, 4, 4), (5, 2, 2, 4), more=2)
    node, _ = transposed((1, 4, 4, 4), (5, 2, 2, 4), constants=(1,))
    with pytest.raises(UnsupportedError, match="q_conv_transpose node: quantized weights and bias must be constants"):
        lowered(node, TARGETS[2])
