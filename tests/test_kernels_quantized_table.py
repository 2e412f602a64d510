"""Tables of bytes and softmax of bytes: by vectors and one by one, the reference's bits on every target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from emulated import Case, check_emulated
from lowered import TARGETS, check
from native import native, runs_here
from quantized_nodes import make_q, quant, values

from cortado.backends.codegen import assembly
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.evaluate import Pointer
from cortado.compiler.graph import Node
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.kernels.quantized_softmax import lower_q_softmax
from cortado.compiler.kernels.quantized_table import lower_q_table
from cortado.compiler.lang import I8, I32, Kernel
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.virtual import TABLE, VIRTUALS

VBMI = "x86-64-v4+avx512vbmi"
X86 = ("x86-64", "x86-64-v3", "x86-64-v4", VBMI, "znver4")
OTHERS = ("aarch64", "arm32-cortex-a7", "cortex-m4", "cortex-m55")
INTERPRETED = [*TARGETS, *map(find_target, (*X86, *OTHERS))]
LOWEST = {"int8": -128, "uint8": 0}


def table_case(shape: tuple[int, ...], dtype: str) -> tuple[Node, list[np.ndarray]]:
    random = np.random.default_rng(sum(shape))
    x = values(random, shape, dtype)
    attrs = {"table": values(random, (256,), dtype), "quant": quant(0.01, 3), "dtype": dtype}
    return make_q("q_table", [(x, quant(0.05, 5))], attrs), [x]


def softmax_case(shape: tuple[int, ...], axis: int, dtype: str, scale: float, spread: int = 256) -> tuple[Node, list[np.ndarray]]:
    """Bytes within so many of the highest."""
    random = np.random.default_rng(sum(shape))
    x = (127 - LOWEST["int8"] + LOWEST[dtype] - random.integers(0, spread, shape)).astype(dtype)
    attrs = {"axis": axis, "quant": quant(2.0**-8, LOWEST[dtype]), "dtype": dtype}
    return make_q("q_softmax", [(x, quant(scale, 5))], attrs), [x]


def tables() -> Iterator[tuple[Node, list[np.ndarray]]]:
    """Rows of whole blocks, of whole vectors and of less, some too short for any."""
    for dtype in LOWEST:
        for shape in ((2, 600), (3, 64), (5, 17, 9), (1, 70), (3, 3)):
            yield table_case(shape, dtype)


def softmaxes() -> Iterator[tuple[Node, list[np.ndarray]]]:
    """Few elements and many, by all shares of the table that are not zero; then axes that are not the last, the lanes filled or not."""
    for dtype in LOWEST:
        for size in (1, 2, 10, 65, 100, 197):
            yield softmax_case((3, size), 1, dtype, 0.05)
        for scale, spread in ((1e-4, 256), (0.9, 256), (0.05, 1), (3.0, 2)):
            yield softmax_case((2, 90), 1, dtype, scale, spread)
            yield softmax_case((2, 300), 1, dtype, scale, spread)
        for shape, axis in (((7, 40), 0), ((2, 3, 21), 1), ((2, 5, 3, 2), 1)):
            yield softmax_case(shape, axis, dtype, 0.05)


CASES = [*((lower_q_table, *case) for case in tables()), *((lower_q_softmax, *case) for case in softmaxes())]


def check_all(target: Target, how: str) -> None:
    for lower, node, arrays in CASES:
        check(lower, node, arrays, target, how=how, pad=1)
        check(lower, node, arrays, target, how=how, in_place=0)


@pytest.mark.parametrize("target", INTERPRETED, ids=lambda target: target.name)
def test_interpreted(target: Target) -> None:
    check_all(target, "interpret")


@pytest.mark.parametrize("name", [*X86, "aarch64"])
def test_native(name: str) -> None:
    target = find_target(name)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {name}")
    check_all(target, "native")


@pytest.mark.emulator
@pytest.mark.parametrize("name", ["x86-64-v4", VBMI, *OTHERS])
def test_emulated(name: str) -> None:
    check_emulated([Case(*case, pad=1) for case in CASES], find_target(name))


@pytest.mark.parametrize("name", X86)
def test_quotients_of_large_sums(name: str) -> None:
    """Where float32 is furthest off: sums up to 2^32 and as small as they get, quotients that are whole numbers and those just below."""
    target = find_target(name)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {name}")
    for size in (2, 3, 5, 7, 64, 96, 128, 129, 511, 512, 513, 1024, 4095, 65535, 65536):
        for scale, spread in ((1e-6, 2), (1e-4, 256), (0.02, 256), (0.3, 30)):
            node, arrays = softmax_case((2, size), 1, "uint8", scale, spread)
            check(lower_q_softmax, node, arrays, target, how="native")


# --- the instruction ---


def lookup_kernel(target: Target, lanes: int) -> Kernel:
    """out[0:256] = table[x[0:256]]."""
    k = KernelBuilder("lookups", target)
    out, table, x = k.param("out"), k.param("table"), k.param("x")
    entries = k.load(table, TABLE)
    for at in range(0, 256, lanes):
        k.store(out, k.virtual("lookup", entries, k.load(x, I8.with_lanes(lanes), at)), at)
    return k.finish()


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", VBMI, "aarch64"])
@pytest.mark.parametrize("count", [1, 4])
def test_every_byte_is_looked_up(name: str, count: int) -> None:
    target = find_target(name)
    random = np.random.default_rng(count)
    table, x, out = (random.permutation(256).astype(np.uint8) for _ in range(3))
    kernel = lookup_kernel(target, count * target.lanes("i8"))
    compile_kernel(kernel)(*(Pointer(array, 0) for array in (out, table, x)))
    assert (out == table[x]).all()
    assert (VIRTUALS["lookup"].meaning(table.view(np.int8), x.view(np.int8)).view(np.uint8) == out).all()
    if runs_here(target):
        out[:] = 0
        native(kernel, target)(out, table, x)
        assert (out == table[x]).all()


@pytest.mark.parametrize(
    ("name", "mnemonic", "register"),
    [
        ("x86-64-v3", "vpshufb", "%ymm"),
        ("alderlake", "vpshufb", "%ymm"),
        ("x86-64-v4", "vperm[it]2w", "%zmm"),
        ("cascadelake", "vperm[it]2w", "%zmm"),
        ("icelake-server", "vperm[it]2b", "%zmm"),
        ("sapphirerapids", "vperm[it]2b", "%zmm"),
        ("znver4", "vperm[it]2b", "%zmm"),
        ("aarch64", "tb[lx]", "16b"),
    ],
)
def test_mnemonics(name: str, mnemonic: str, register: str) -> None:
    target = find_target(name)
    node, _ = table_case((1, 600), "int8")
    lines = [line for line in text_of(node, target).splitlines() if re.search(rf"\s{mnemonic}\s.*{register}", line)]
    assert len(lines) >= 8
    assert not re.search(r"vperm[it]2b", text_of(node, target)) or "+avx512vbmi" in target.features


def text_of(node: Node, target: Target) -> str:
    operands: list[Any] = [Operand(value.type, contiguous_strides(value.shape)) for value in (*node.inputs, node.out())]
    (call,) = lower_q_table(node, operands[:-1], operands[-1:], target)
    return assembly(emit_module([call.kernel], target, "m"), target)


@pytest.mark.parametrize("name", [*X86, "aarch64"])
def test_one_lane_of_a_vector_is_stored_alone(name: str) -> None:
    """Where a mask would leave one lane, LLVM stores the word that the byte was narrowed from."""
    target = find_target(name)
    k = KernelBuilder("narrowed", target)
    out, x = k.param("out"), k.param("x")
    lanes = target.lanes("i32")
    k.store_lanes(out, k.convert(k.load(x, I32.with_lanes(lanes)), I8.with_lanes(lanes), "trunc"), 1)
    stored, words = np.zeros(8, np.int8), np.full(lanes, 0x01020304, np.int32)
    native(k.finish(), target)(stored, words)
    assert stored.tolist() == [4, 0, 0, 0, 0, 0, 0, 0]
