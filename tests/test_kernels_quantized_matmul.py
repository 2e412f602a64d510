"""Products of two computed int8 matrices: the operator, and its kernels on the interpreter and compiled, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, check
from native import runs_here
from quantized_nodes import make_q, quant, result, values

from cortado.backends.codegen import assembly
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.counts import Counts, Rows
from cortado.compiler.graph import Node, graph_input
from cortado.compiler.kernels.quantized_matmul import lower_q_matmul
from cortado.compiler.legalize import legalize
from cortado.compiler.ops import make
from cortado.compiler.ops.quantized_matmul import MOST_TERMS
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.reference import evaluate
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType
from cortado.errors import ShapeError, UnsupportedError

Kind = tuple[str, int, str, int]
INTERPRETED = [
    *TARGETS,
    *map(find_target, ("x86-64", "x86-64-v3", "cascadelake", "alderlake", "cortex-m0", "cortex-m4", "aarch64")),
]
TURNS = [(False, False), (True, False), (False, True), (True, True)]
# shapes, as they are multiplied; dtypes and zero points of both
SHAPES = [
    ((3, 4), (4, 5)),
    ((1, 9), (9, 1)),
    ((2, 5, 3), (2, 3, 18)),
    ((2, 1, 4, 6), (3, 6, 7)),
    ((4, 3), (2, 3, 3, 5)),
    ((2, 3, 4, 2), (1, 3, 2, 3)),
    ((2, 7, 1), (2, 1, 5)),
    ((2, 9, 32), (2, 32, 40)),
    ((1, 70), (70, 33)),
]
KINDS = [
    ("int8", -128, "int8", 0),
    ("int8", 9, "int8", 0),
    ("uint8", 0, "int8", 0),
    ("int8", -3, "int8", 7),
    ("uint8", 99, "uint8", 128),
]


def product(
    a: Sequence[int],
    b: Sequence[int],
    turned: tuple[bool, bool],
    kind: Kind,
    how: dict[str, Any] | None = None,
) -> tuple[Node, list[np.ndarray]]:
    random = np.random.default_rng(sum(a) + 7 * sum(b))
    arrays = [values(random, a, kind[0]), values(random, b, kind[2])]
    arrays = [np.ascontiguousarray(np.swapaxes(m, -1, -2)) if turn else m for m, turn in zip(arrays, turned, strict=True)]
    quants = [quant(0.05, kind[1]), quant(0.03, kind[3])]
    attrs = {"transpose_a": turned[0], "transpose_b": turned[1], **(how or result(0.04 * max(a[-1], 1) ** 0.5, 5))}
    return make_q("q_matmul", list(zip(arrays, quants, strict=True)), attrs), arrays


def calls_of(node: Node, target: Target) -> list[KernelCall]:
    operands = [Operand(v.type, contiguous_strides(v.shape)) for v in (*node.inputs, node.out())]
    return lower_q_matmul(node, operands[:2], operands[2:], target)


def cases() -> Iterator[tuple[Node, list[np.ndarray]]]:
    """Every shape in one of the ways matrices lie, and one that fills vectors in every way."""
    for number, (a, b) in enumerate(SHAPES):
        for kind in KINDS:
            yield product(a, b, TURNS[number % 4], kind)
    for turned in TURNS:
        for kind in (KINDS[1], KINDS[3]):
            yield product((2, 5, 70), (2, 70, 20), turned, kind)


@pytest.mark.parametrize("turned", TURNS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_reference(kind: Kind, turned: tuple[bool, bool]) -> None:
    """One product at a time, in Python's integers."""
    for a, b in SHAPES[:7]:
        node, arrays = product(a, b, turned, kind)
        x, y = (np.swapaxes(m, -1, -2) if turn else m for m, turn in zip(arrays, turned, strict=True))
        (got,) = evaluate(node, arrays)
        batch = got.shape[:-2]
        x, y = np.broadcast_to(x, (*batch, *x.shape[-2:])), np.broadcast_to(y, (*batch, *y.shape[-2:]))
        scale = np.float32(np.float32(0.05) * np.float32(0.03)) / np.float32(node.attrs["quant"].scales[0])
        for *at, m, n in np.ndindex(got.shape):
            acc = sum((int(p) - kind[1]) * (int(q) - kind[3]) for p, q in zip(x[(*at, m)], y[(*at, slice(None), n)], strict=True))
            assert got[(*at, m, n)] == min(max(round(float(np.float32(acc) * scale)) + 5, -128), 127)
        real = (x.astype(float) - kind[1]) * 0.05 @ ((y.astype(float) - kind[3]) * 0.03)
        step = node.attrs["quant"].scales[0]
        np.testing.assert_allclose((got.astype(float) - 5) * step, real.clip(-133 * step, 122 * step), atol=0.5001 * step)


def test_refusals() -> None:
    x = np.zeros((2, 3), np.int8)
    attrs = {"transpose_a": False, "transpose_b": True, **result(1.0, 0)}
    good = (x, quant(1.0, 0))
    long = np.zeros((1, MOST_TERMS + 1), np.int8)
    for inputs, more, word in (
        ([good, (x, None)], {}, "input b is not quantized"),
        ([good, (x, quant(1.0, 200))], {}, "zero point 200 of input b"),
        ([good, good], {"transpose_b": False}, "inner sizes 3 and 2 differ"),
        ([good, good], {"rounding": "qnnpack"}, "'qnnpack'.*rounds to even"),
        ([good, good], {"lo": 5, "hi": 4}, "clamp"),
        ([(long, quant(1.0, 0))] * 2, {}, "sums of 33026 products do not fit 32 bits"),
        ([(x, quant(1e30, 0))] * 2, {}, "float32 can hold"),
    ):
        with pytest.raises(ShapeError, match=word):
            make_q("q_matmul", inputs, {**attrs, **more})
    make_q("q_matmul", [(long[:, 1:], quant(1.0, 0))] * 2, attrs)


def test_rows_that_depend_on_the_data() -> None:
    """Those of a are rows of the result; all others would be summed or repeated."""
    rows = graph_input("x", TensorType((7, 7), "int8", quant(0.1, 3))).out()
    kept = make("keep_rows", (rows, graph_input("mask", TensorType((7,), "bool")).out()), {}, "kept")
    attrs = {"transpose_a": False, "transpose_b": False, **result(1.0, 0)}
    assert Counts().of(make("q_matmul", (kept.out(), rows), attrs, "n").out()) == Rows(0, kept.out(1))
    for inputs, turned in (((kept.out(), rows), True), ((rows, kept.out()), False)):
        mixed = make("q_matmul", inputs, {**attrs, "transpose_a": turned}, "n")
        with pytest.raises(UnsupportedError, match="'kept' depends on the data, and q_matmul would mix them"):
            Counts().of(mixed.out())


@pytest.mark.parametrize("target", INTERPRETED, ids=lambda target: target.name)
def test_interpreted(target: Target) -> None:
    for node, arrays in cases():
        check(lower_q_matmul, node, arrays, target, pad=1)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", "znver4", "aarch64"])
def test_native(name: str) -> None:
    target = find_target(name)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {name}")
    for node, arrays in [*list(cases())[::3], product((2, 30, 65), (65, 130), (False, True), KINDS[1])]:
        check(lower_q_matmul, node, arrays, target, how="native", pad=1)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "znver4"])
def test_the_largest_sums(name: str) -> None:
    """As deep as 32 bits hold, and with factors as far from their zero points as can be."""
    target = find_target(name)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {name}")
    for values_, zeros, dtypes in (
        ((255, 255), (0, 0), ("uint8", "uint8")),
        ((0, 255), (255, 0), ("uint8", "uint8")),
        ((0, 0), (255, 255), ("uint8", "uint8")),
        ((127, -128), (-128, 0), ("int8", "int8")),
        ((127, -128), (-128, 127), ("int8", "int8")),
        ((255, 127), (0, 0), ("uint8", "int8")),
    ):
        shapes = (2, MOST_TERMS), (MOST_TERMS, 3)
        arrays = [np.full(shape, v, dtype) for shape, v, dtype in zip(shapes, values_, dtypes, strict=True)]
        quants = [quant(1e-3, zero) for zero in zeros]
        total = (values_[0] - zeros[0]) * (values_[1] - zeros[1]) * MOST_TERMS
        attrs = {"transpose_a": False, "transpose_b": False, **result(abs(total) / 100 * 1e-6, 0)}
        node = make_q("q_matmul", list(zip(arrays, quants, strict=True)), attrs)
        got = check(lower_q_matmul, node, arrays, target, how="native")
        assert set(got.ravel()) == {100 if total > 0 else -100}


def test_sums_of_nothing() -> None:
    for target in INTERPRETED[::3]:
        node, arrays = product((3, 0), (0, 5), (False, False), KINDS[1])
        assert set(check(lower_q_matmul, node, arrays, target).ravel()) == {5}
        node, arrays = product((0, 4), (4, 5), (False, False), KINDS[1])
        assert calls_of(node, target) == []


@pytest.mark.parametrize(
    ("target", "kind", "turned", "families"),
    [
        ("znver4", KINDS[1], (False, False), ["pack_dot4", "q_matmul_dot4"]),  # whole words are read in place
        ("znver4", KINDS[3], (False, False), ["stage_dot2", "pack_dot2", "q_matmul_dot2"]),  # b has a zero point
        ("znver4", KINDS[1], (True, False), ["matmul_rows_i8", "pack_dot4", "q_matmul_dot4"]),
        ("x86-64-v3", KINDS[1], (False, True), ["stage_dot2", "pack_dot2", "q_matmul_dot2"]),
        ("cortex-m4", KINDS[1], (False, False), ["stage_dot2", "pack_dot2", "q_matmul_dot2"]),
    ],
)
def test_which_way_is_taken(target: str, kind: Kind, turned: tuple[bool, bool], families: list[str]) -> None:
    node, _ = product((2, 9, 32), (2, 32, 40), turned, kind)
    assert [call.kernel.family for call in calls_of(node, find_target(target))] == families


@pytest.mark.parametrize(
    ("name", "mnemonic"),
    [("x86-64", "pmaddwd"), ("x86-64-v3", "vpmaddwd"), ("znver4", "vpdpbusd"), ("cortex-m4", "smlabb")],
)
def test_mnemonics(name: str, mnemonic: str) -> None:
    target = find_target(name)
    node, _ = product((2, 9, 32), (2, 32, 40), (False, True), KINDS[1])
    kernel = legalize(calls_of(node, target)[-1].kernel, target)
    text = assembly(emit_module([*kernel.callees(), kernel], target, "m"), target)
    assert sum(mnemonic in line for line in text.splitlines()) >= 4
