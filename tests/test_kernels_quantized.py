"""Quantized kernels: on the interpreter for many targets, compiled for the machine's; the reference's bits everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, Lowering, check, run_lowered
from native import runs_here
from quantized_nodes import make_q, quant, result, values, window

from cortado.backends.codegen import assembly
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.quantized_average import lower_q_average_pool, lower_q_reduce
from cortado.compiler.kernels.quantized_conv import lower_q_conv, lower_q_conv_larger, lower_q_fc
from cortado.compiler.kernels.quantized_pointwise import lower_dequantize, lower_q_add, lower_q_mul, lower_quantize
from cortado.compiler.kernels.quantized_pooled import lower_q_conv_mean
from cortado.compiler.kernels.quantized_softmax import lower_q_softmax
from cortado.compiler.kernels.quantized_table import lower_q_table
from cortado.compiler.ops import make
from cortado.compiler.ops.quantized import make_table
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.reference import evaluate
from cortado.compiler.types import Quant, TensorType
from cortado.errors import UnsupportedError

Test = tuple[Lowering, Node, list[np.ndarray]]
INTERPRETED = [*TARGETS, *map(find_target, ("x86-64", "x86-64-v3", "cascadelake", "alderlake", "cortex-m4", "aarch64"))]


def conv(
    x: Sequence[int], w: Sequence[int], pads: int = 0, strides: int = 1, dilations: int = 1, group: int = 1, beside: bool = False,
    rounding: str = "even", dtype: str = "int8",
) -> Test:  # fmt: skip
    random = np.random.default_rng(sum(x) + 7 * sum(w))
    zero, outputs = -7 if dtype == "int8" else 99, w[0]
    arrays = [values(random, x, dtype), values(random, w, "int8" if rounding == "even" else "uint8")]
    arrays.append(random.integers(-3000, 3000, outputs).astype(np.int32))
    scales = tuple(float(s) for s in random.uniform(0.001, 0.02, outputs).astype(np.float32))
    quants: list[Quant | None] = [quant(0.05, zero), Quant(scales, (0,) * outputs, 0), None]
    if rounding == "qnnpack":
        quants[1] = quant(0.003, 131)
    clamp = (zero + 3, 110) if dtype == "int8" else (zero, 255)
    attrs = {**window(len(x) - 2, strides, dilations, pads), "group": group, **result(0.5, zero + 3, dtype, rounding, clamp)}
    node = make_q("q_conv", list(zip(arrays, quants, strict=True)), attrs, (1, 2))
    if beside:
        arrays.append(values(random, node.types[0].shape, dtype))
        quants.append(quant(0.3, 9))
        node = make_q("q_conv", list(zip(arrays, quants, strict=True)), attrs, (1, 2))
    return lower_q_conv, node, arrays


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "1x1": {"x": (1, 4, 5, 6), "w": (10, 1, 1, 6)},
    "1x1 of whole words": {"x": (1, 4, 5, 8), "w": (17, 1, 1, 8)},
    "3x3 with borders, odd channels": {"x": (1, 5, 4, 3), "w": (9, 3, 3, 3), "pads": 1},
    "3x3, few channels, many pixels": {"x": (1, 4, 23, 3), "w": (9, 3, 3, 3), "pads": 1, "strides": 2},
    "one channel, many pixels": {"x": (1, 4, 37, 1), "w": (5, 3, 3, 1), "dtype": "uint8"},
    "groups of few channels, many pixels": {"x": (1, 3, 14, 15), "w": (10, 2, 2, 3), "group": 5, "dtype": "uint8"},
    "groups, stride, residual": {"x": (2, 5, 5, 8), "w": (16, 3, 3, 4), "pads": 1, "strides": 2, "group": 2, "beside": True},
    "many groups of odd size": {"x": (1, 3, 4, 15), "w": (10, 2, 2, 3), "group": 5},
    "dilated, qnnpack": {"x": (1, 6, 8, 8), "w": (20, 2, 3, 8), "pads": 2, "dilations": 2, "dtype": "uint8", "rounding": "qnnpack"},
    "one spatial axis": {"x": (1, 9, 4), "w": (5, 3, 4), "pads": 1, "dtype": "uint8"},
    "three spatial axes": {"x": (1, 3, 4, 3, 2), "w": (4, 2, 2, 2, 2), "pads": 1},
    "cropped": {"x": (1, 6, 6, 4), "w": (4, 3, 3, 4), "pads": -1},
    "depthwise": {"x": (1, 6, 7, 9), "w": (9, 3, 3, 1), "group": 9, "pads": 1},
    "depthwise, stride, residual": {"x": (2, 7, 6, 20), "w": (20, 5, 3, 1), "group": 20, "pads": 2, "strides": 2, "beside": True},
    "depthwise, two outputs": {
        "x": (1, 5, 6, 5), "w": (10, 3, 3, 1), "group": 5, "pads": 1, "dtype": "uint8", "rounding": "qnnpack",
    },
    "depthwise, wide": {"x": (1, 5, 19, 18), "w": (18, 3, 3, 1), "group": 18, "pads": 1, "dtype": "uint8"},
    "depthwise, two outputs, dilated": {"x": (1, 5, 6, 17), "w": (34, 3, 3, 1), "group": 17, "pads": 1, "dilations": 2},
}  # fmt: skip

# Depthwise ones that take four products of bytes at once: channels of whole steps and of parts of one, borders, rows left over.
QUADS: dict[str, dict[str, Any]] = {
    "two steps and a few": {"x": (1, 5, 6, 135), "w": (135, 3, 3, 1), "group": 135, "pads": 1},
    "half a step, odd rows, images": {"x": (2, 7, 4, 96), "w": (96, 3, 3, 1), "group": 96, "pads": 1, "dtype": "uint8"},
    "stride 2": {"x": (1, 9, 8, 80), "w": (80, 3, 3, 1), "group": 80, "pads": 1, "strides": 2},
    "stride 2, no padding": {"x": (1, 8, 9, 24), "w": (24, 3, 3, 1), "group": 24, "strides": 2, "dtype": "uint8"},
    "no padding": {"x": (1, 6, 7, 16), "w": (16, 3, 3, 1), "group": 16},
    "narrower than the kernel": {"x": (1, 4, 1, 40), "w": (40, 3, 3, 1), "group": 40, "pads": 1},
    "one row": {"x": (1, 1, 5, 33), "w": (33, 3, 3, 1), "group": 33, "pads": 1},
    "rows only": {"x": (1, 7, 5, 20), "w": (20, 3, 1, 1), "group": 20},
    "columns only": {"x": (1, 4, 9, 20), "w": (20, 1, 3, 1), "group": 20, "strides": 2},
}

# Few channels whose windows are made rows of words.
PATCHES: dict[str, dict[str, Any]] = {
    "7x7, stride 2": {"x": (1, 13, 12, 3), "w": (140, 7, 7, 3), "pads": 3, "strides": 2},
    "5x5 of one channel, images": {"x": (2, 6, 7, 1), "w": (40, 5, 5, 1), "pads": 2, "dtype": "uint8"},
    "rows far apart, residual": {"x": (1, 9, 8, 5), "w": (65, 7, 3, 5), "pads": 1, "beside": True},
    "one pixel a row": {"x": (1, 8, 5, 3), "w": (129, 6, 5, 3), "dtype": "uint8", "strides": 2},
}


def fc(rows: Sequence[int], depth: int, outputs: int, beside: bool = False, how: dict[str, Any] | None = None) -> Test:
    random = np.random.default_rng(depth)
    arrays = [values(random, (*rows, depth), "uint8"), values(random, (outputs, depth), "int8")]
    arrays.append(random.integers(-900, 900, outputs).astype(np.int32))
    inputs = [(arrays[0], quant(0.02, 100)), (arrays[1], quant(0.01, 0)), (arrays[2], None)]
    if beside:
        arrays.append(values(random, (*rows, outputs), "int8"))
        inputs.append((arrays[3], quant(0.3, 4)))
    return lower_q_fc, make_q("q_fc", inputs, how or result(0.4, 3), (1, 2)), arrays


def pooled(x: Sequence[int], w: Sequence[int], real: bool, keepdims: bool, **how: Any) -> Test:
    """conv(x, w, **how) and the mean of its pixels, in floats where `real`."""
    _, node, arrays = conv(x, w, **how)
    mean = {} if real else result(0.2, -3, rounding=node.attrs["rounding"])
    attrs = {**node.attrs, "mean": tuple(sorted({**mean, "keepdims": keepdims}.items()))}
    return lower_q_conv_mean, make("q_conv_mean", node.inputs, attrs, "pooled"), arrays


POOLED = [
    pooled((1, 5, 4, 12), (21, 1, 1, 12), True, True),
    pooled((2, 3, 5, 20), (150, 1, 1, 20), False, False, beside=True, dtype="uint8"),
    pooled((2, 3, 5, 20), (70, 1, 1, 20), True, False, beside=True),
    pooled((2, 5, 4, 8), (12, 3, 3, 4), False, True, group=2, pads=1, strides=2, rounding="qnnpack"),
    pooled((1, 6, 5), (9, 1, 5), False, True),
]

# Results that saturate at both ends, with scales for which 32-bit sums need care and for which they do not.
SATURATED = [
    fc((3,), 10, 9, beside, result(scale, 3, dtype, clamp=clamp))
    for scale, beside in ((1e-4, False), (0.002, True), (0.02, False))
    for dtype, clamp in (("int8", None), ("uint8", None), ("int8", (-20, 90)), ("uint8", (7, 99)))
]


def others() -> Iterator[Test]:
    random = np.random.default_rng(0)
    for dtype, zero in (("int8", -7), ("uint8", 120)):
        a, b, x = (values(random, shape, dtype) for shape in ((2, 3, 21), (3, 21), (2, 6, 7, 19)))
        for rounding in ("even", "qnnpack"):
            how = result(0.5, zero + 3, dtype, rounding)
            pair = [(a, quant(0.2, zero)), (b, quant(0.3, zero + 1))]
            yield lower_q_add, make_q("q_add", pair, how), [a, b]
            yield lower_q_mul, make_q("q_mul", pair, how), [a, b]
            for include, kernel, strides, pads in ((True, (3, 3), 2, 1), (False, (3, 3), 2, 1), (False, (6, 7), 1, 0)):
                attrs = {**window(2, strides, 1, pads), "kernel": kernel, "count_include_pad": include, **how}
                yield lower_q_average_pool, make_q("q_average_pool", [(x, quant(0.2, zero))], attrs), [x]
            for axes, keepdims in (((1, 2), False), ((3,), True), ((0, 2), True), ((0, 1, 2, 3), False)):
                attrs = {"axes": axes, "keepdims": keepdims, **how}
                for op, scale in (("q_mean", 0.2), ("q_sum", 0.02)):
                    yield lower_q_reduce, make_q(op, [(x, quant(scale, zero))], attrs), [x]
                real = {"axes": axes, "keepdims": keepdims}
                yield lower_q_reduce, make_q("dequantized_mean", [(x, quant(0.2, zero))], real), [x]
        real = random.normal(0, 30, (3, 21)).astype(np.float32)
        real[0, :3] = np.nan, np.inf, -np.inf
        yield lower_quantize, make_q("quantize", [(real, None)], {"quant": quant(0.25, zero), "dtype": dtype}), [real]
        yield lower_dequantize, make_q("dequantize", [(a, quant(0.25, zero))], {}), [a]
        table = make_table(np.tanh, TensorType((1,), dtype, quant(0.05, zero)), quant(0.01, zero), dtype)
        attrs = {"table": table, "quant": quant(0.01, zero), "dtype": dtype}
        yield lower_q_table, make_q("q_table", [(x, quant(0.05, zero))], attrs), [x]
        for axis in range(3):
            attrs = {"axis": axis, "quant": quant(2.0**-8, -128 if dtype == "int8" else 0), "dtype": dtype}
            yield lower_q_softmax, make_q("q_softmax", [(a, quant(0.05, zero))], attrs), [a]


PRODUCTS = [*(conv(**form) for form in CONVOLUTIONS.values()), fc((3,), 10, 9), fc((2, 2), 8, 17, True), fc((), 5, 3)]


@pytest.mark.parametrize("target", INTERPRETED, ids=lambda target: target.name)
def test_interpreted(target: Any) -> None:
    for lower, node, arrays in [*PRODUCTS, *POOLED]:
        check(lower, node, arrays, target, pad=1)


@pytest.mark.parametrize("name", ["cascadelake", "alderlake", "znver4"])
def test_depthwise_by_four(name: str) -> None:
    target = find_target(name)
    for form in QUADS.values():
        lower, node, arrays = conv(**form)
        operands = [Operand(value.type, contiguous_strides(value.shape)) for value in (*node.inputs, node.out())]
        (call,) = lower(node, operands[:-1], operands[-1:], target)
        assert any("_rows" in callee.family for callee in call.kernel.callees()), "it went another way"
        check(lower, node, arrays, target, pad=1)
        if runs_here(target):
            check(lower, node, arrays, target, how="native", pad=1)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "cascadelake", "alderlake", "znver4", "aarch64"])
def test_patches(name: str) -> None:
    target = find_target(name)
    for form in PATCHES.values():
        _, node, arrays = conv(**form)
        operands = [Operand(value.type, contiguous_strides(value.shape)) for value in (*node.inputs, node.out())]
        families = [call.kernel.family for call in lower_q_conv_larger(node, operands[:-1], operands[-1:], target)]
        assert "patches" in families or name == "aarch64", form
        check(lower_q_conv_larger, node, arrays, target, pad=1)
        if runs_here(target):
            check(lower_q_conv_larger, node, arrays, target, how="native", pad=1)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "cascadelake", "aarch64"])
def test_saturation(name: str) -> None:
    target = find_target(name)
    for lower, node, arrays in SATURATED:
        got = check(lower, node, arrays, target, pad=1)
        assert {got.min(), got.max()} == {node.attrs["lo"], node.attrs["hi"]}
        if runs_here(target):
            check(lower, node, arrays, target, how="native", pad=1)


@pytest.mark.parametrize("target", INTERPRETED[::3], ids=lambda target: target.name)
def test_others_interpreted(target: Any) -> None:
    for lower, node, arrays in others():
        check(lower, node, arrays, target, pad=1)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "sixteen lanes", "x86-64-v4", "znver4"])
def test_native(name: str) -> None:
    """Sixteen lanes: the kernels of AVX-512, which LLVM splits for machines without it."""
    base = "x86-64-v3" if name == "sixteen lanes" else name
    target = find_target(base)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {base}")
    if name == "sixteen lanes":
        target = replace(target, vector_bits=512)
    for lower, node, arrays in [*PRODUCTS[:8], *PRODUCTS[12:14], *PRODUCTS[15:16], *POOLED, *others()]:
        want = evaluate(node, arrays)[0]
        got = run_lowered(lower, node, arrays, target, how="native")
        assert got.tobytes() == want.tobytes(), (node.op, dict(node.attrs))


@pytest.mark.parametrize(
    ("name", "mnemonic"),
    [
        ("x86-64", "pmaddwd"),
        ("x86-64-v3", "vpmaddwd"),
        ("alderlake", "vpdpbusd"),
        ("cascadelake", "vpdpbusd"),
        ("znver4", "vpdpbusd"),
    ],
)
def test_mnemonics(name: str, mnemonic: str) -> None:
    target = find_target(name)
    lower, node, _ = conv((1, 6, 6, 32), (32, 1, 1, 32))
    ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
    outs = [Operand(node.types[0], contiguous_strides(node.types[0].shape))]
    kernel = lower(node, ins, outs, target)[-1].kernel
    lines = [
        line for line in assembly(emit_module([*kernel.callees(), kernel], target, "m"), target).splitlines() if mnemonic in line
    ]
    assert len(lines) >= 8
    register = "%zmm" if target.vector_bits == 512 else "%ymm" if target.vector_bits == 256 else "%xmm"
    assert all(register in line for line in lines)


def test_weights_with_large_zero_points_take_the_wide_way() -> None:
    """uint8 weights minus 131 do not fit a byte."""
    lower, node, arrays = conv((1, 4, 5, 8), (8, 1, 1, 8), rounding="qnnpack", dtype="uint8")
    ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
    outs = [Operand(node.types[0], contiguous_strides(node.types[0].shape))]
    families = [call.kernel.family for call in lower(node, ins, outs, find_target("cascadelake"))]
    assert families == ["stage_dot2", "q_conv_dot2"]
    check(lower, node, arrays, find_target("cascadelake"))


def test_whole_words_are_read_in_place() -> None:
    lower, node, _ = conv((1, 4, 5, 8), (8, 1, 1, 8))
    ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
    outs = [Operand(node.types[0], contiguous_strides(node.types[0].shape))]
    assert [call.kernel.family for call in lower(node, ins, outs, find_target("cascadelake"))] == ["q_conv_dot4"]


def test_unknown_weights_are_refused() -> None:
    _, node, arrays = conv((1, 4, 5, 8), (8, 1, 1, 8))
    quants = [value.type.quant for value in node.inputs]
    open_ = make_q("q_conv", list(zip(arrays, quants, strict=True)), node.attrs)
    operands = [Operand(value.type, contiguous_strides(value.shape)) for value in (*open_.inputs, open_.out())]
    with pytest.raises(UnsupportedError, match="constants"):
        lower_q_conv(open_, operands[:3], operands[3:], TARGETS[2])
