"""Elementwise kernels: every operator, broadcasting, views, in place, all vector lengths; interpreted and native."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, check, made_target, node_of, reference, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.kernels.pointwise import lower_elementwise, lower_pointwise
from cortado.compiler.kernels.scalar import known_ops
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.target import Target
from cortado.errors import UnsupportedError

ATTRS: dict[str, dict[str, Any]] = {
    "clip": {"lo": -0.5, "hi": 1.25}, "leaky_relu": {"alpha": 0.1}, "thresholded_relu": {"alpha": 0.3}, "elu": {"alpha": 1.5},
    "selu": {"alpha": 1.6732632, "scale": 1.0507009}, "hard_sigmoid": {"alpha": 0.2, "beta": 0.5}, "logit": {"eps": 1e-3},
    "cast": {"dtype": "int32"},
}  # fmt: skip
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-42, 3e38, -3e38, 88.9, -104.0, 0.5, 1.5, 2.5, -0.5, 1.0, -1.0], np.float32
)
EXACT = frozenset(name for name, op in ELEMENTWISE.items() if op.exact) | {
    "add",
    "sub",
    "mul",
    "div",
    "sqrt",
    "leaky_relu",
    "prelu",
}
POSITIVE = frozenset({"log", "sqrt", "rsqrt", "logit", "pow"})


def samples(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(3)
    if name in ("asin", "acos"):
        values = np.clip(values / 10, -1, 1)
    return np.abs(values) if name in POSITIVE else values


def inputs(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    if name.startswith("logical"):
        return [rng.random(shape) < 0.5 for _ in range(1 if name == "logical_not" else 2)]
    if name.startswith("bitwise"):
        return [rng.integers(-99, 99, shape, dtype=np.int32) for _ in range(1 if name == "bitwise_not" else 2)]
    if name == "remainder":
        return [rng.integers(-99, 99, shape, dtype=np.int32) for _ in range(2)]
    if name == "where":
        return [rng.random(shape) < 0.5, samples(name, shape, rng), samples(name, shape, rng)]
    if name == "prelu":
        return [samples(name, shape, rng), samples(name, shape[-1:], rng)]
    return [samples(name, shape, rng) for _ in range(2 if name in BINARY else 1)]


WITHOUT_FLOATS = {"where", "prelu", "cast", "remainder"} | {
    name for name in ELEMENTWISE if name.startswith(("logical", "bitwise"))
}
BINARY = frozenset("add sub mul div maximum minimum pow eq ne lt le gt ge".split())


def test_every_operator_of_the_table_has_code() -> None:
    assert set(ELEMENTWISE) == known_ops() | {"cast"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_operator(name: str, target: Target) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    arrays = inputs(name, (3, 5, 7), rng)
    exact = name in EXACT
    check(
        lower_elementwise,
        node_of(name, arrays, ATTRS.get(name, {})),
        arrays,
        target,
        rtol=0 if exact else 1e-6,
        atol=0 if exact else 3e-7,
    )


@pytest.mark.parametrize("name", sorted(set(ELEMENTWISE) - WITHOUT_FLOATS))
def test_special_values(name: str) -> None:
    first, second = np.meshgrid(SPECIAL, SPECIAL)
    arrays = [first.copy(), second.copy()] if name in BINARY else [SPECIAL]
    atol = 1e-7 if name in ("elu", "selu") else 1e-44
    check(lower_elementwise, node_of(name, arrays, ATTRS.get(name, {})), arrays, TARGETS[3], rtol=3e-7, atol=atol)


SHAPES = [
    [(4, 33), (4, 33)], [(2, 3, 8), (8,)], [(2, 3, 8), (3, 1)], [(2, 3, 8), (1,)], [(2, 3, 8), ()], [(), ()], [(1, 1), (1,)],
    [(50, 3), (3,)], [(50, 5), (5,)], [(50, 17), (17,)], [(50, 17), (50, 1)], [(7, 1, 9), (1, 5, 1)], [(5, 1), (1, 6)],
    [(2, 2, 2, 2, 3), (2, 1, 2, 1, 3)], [(9000,), (9000,)], [(3, 5000), (5000,)], [(70, 40), (70, 40)], [(6, 1), (6, 1)],
    [(0, 4), (4,)], [(129, 1, 4), (1, 2, 4)],
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting_and_views(shapes: list[tuple[int, ...]], pad: int, target: Target) -> None:
    rng = np.random.default_rng(7)
    arrays = [np.asarray(rng.standard_normal(s), np.float32) for s in shapes]
    for order in (arrays, arrays[::-1]):
        check(lower_elementwise, node_of("sub", order, {}), order, target, pad=pad)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "float64"])
def test_number_types(dtype: str, target: Target) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0 if dtype[0] == "u" else -100, 100, (3, 70)).astype(dtype) for _ in range(2))
    for name in ("add", "sub", "mul", "div", "maximum", "minimum", "lt", "ge", "eq", "ne"):
        check(lower_elementwise, node_of(name, [a, b], {}), [a, b], target)
    for name in ("relu", "abs", "negative", "sign", "square"):
        check(lower_elementwise, node_of(name, [a], {}), [a], target)
    flags = a > b
    check(lower_elementwise, node_of("where", [flags, a, b], {}), [flags, a, b], target)


def test_integer_division_never_traps() -> None:
    a = np.array([5, -5, 0, -(2**31), 7, -7], np.int32)
    b = np.array([0, 0, 0, -1, -2, 2], np.int32)
    for target in (*TARGETS, *map(find_target, runnable_targets())):
        how = "interpret" if target in TARGETS else "native"
        got = run_lowered(lower_elementwise, node_of("div", [a, b], {}), [a, b], target, how)
        assert got.tolist() == [0, 0, 0, -(2**31), -3, -3]
        rest = run_lowered(lower_elementwise, node_of("remainder", [a, b], {}), [a, b], target, how)
        assert rest.tolist() == [5, -5, 0, 0, 1, -1]


CASTS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"]


@pytest.mark.parametrize("target", [TARGETS[0], TARGETS[2]], ids=lambda t: t.name)
@pytest.mark.parametrize("source", CASTS)
def test_cast(source: str, target: Target) -> None:
    rng = np.random.default_rng(5)
    array = (rng.standard_normal((3, 37)) * 200).astype(source)
    if source.startswith("float"):
        array.reshape(-1)[:12] = [1e30, -1e30, np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31), 2.0**63, 255.5, -0.9, -0.0, 65535.9]
    for to in CASTS:
        check(lower_elementwise, node_of("cast", [array], {"dtype": to}), [array], target)


def test_double_transcendentals_are_refused_by_name() -> None:
    x = np.zeros((2, 3))
    with pytest.raises(UnsupportedError, match="exp node: float64"):
        check(lower_elementwise, node_of("exp", [x], {}), [x], TARGETS[0])


def test_half_precision() -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.standard_normal((3, 21)).astype(np.float16) for _ in range(2))
    for name in ("add", "mul", "maximum", "relu", "abs", "exp", "tanh", "lt"):
        arrays = [a, b] if name in BINARY else [a]
        check(lower_elementwise, node_of(name, arrays, {}), arrays, TARGETS[2], rtol=1e-3)


EXPR = (
    ("mul", (0, 1), ()),
    ("add", (3, 2), ()),
    ("lt", (4, 0), ()),
    ("clip", (4,), (("hi", 1.0), ("lo", -1.0))),
    ("where", (5, 6, 0), ()),
    ("cast", (5,), (("dtype", "float32"),)),
    ("add", (7, 8), ()),
)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("in_place", [None, 0])
def test_fused_expression(in_place: int | None, target: Target) -> None:
    rng = np.random.default_rng(11)
    shapes = [(4, 6, 21), (21,), (6, 1)]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    node = node_of("pointwise", arrays, {"expr": EXPR})
    got = run_lowered(lower_pointwise, node, arrays, target, pad=2, in_place=in_place)
    np.testing.assert_array_equal(got, reference(node, arrays))


def test_wide_values_inside_an_expression() -> None:
    """float32 in and out, int64 in between: the vector's length follows the widest."""
    array = np.random.default_rng(0).standard_normal(100).astype(np.float32) * 50
    expr = (("cast", (0,), (("dtype", "int64"),)), ("add", (1, 1), ()), ("cast", (2,), (("dtype", "float32"),)))
    node = node_of("pointwise", [array], {"expr": expr})
    check(lower_pointwise, node, [array], made_target(512, masked=True))


@pytest.mark.parametrize("name", runnable_targets())
def test_native(name: str) -> None:
    """Larger shapes; the same bits as the interpreter."""
    target = find_target(name)
    rng = np.random.default_rng(1)
    cases: list[tuple[str, list[tuple[int, ...]], int]] = [
        ("relu", [(1, 56, 56, 64)], 0), ("add", [(3, 999), (3, 999)], 1), ("mul", [(40, 40, 3), (3,)], 0), ("tanh", [(1003,)], 0),
        ("sigmoid", [(7, 33)], 3), ("erf", [(7, 33)], 3), ("log", [(7, 33)], 3), ("exp", [(7, 33)], 3), ("floor", [(7, 33)], 3),
        ("sub", [(50, 17), (50, 1)], 0), ("lt", [(3, 50), (50,)], 0), ("prelu", [(9, 7, 20), (20,)], 0),
    ]  # fmt: skip
    for op, shapes, pad in cases:
        arrays = [samples(op, s, rng) for s in shapes]
        node = node_of(op, arrays, ATTRS.get(op, {}))
        got = check(lower_elementwise, node, arrays, target, rtol=1e-6, atol=3e-7, how="native", pad=pad)
        if arrays[0].size < 2000:
            assert got.tobytes() == run_lowered(lower_elementwise, node, arrays, target, pad=pad).tobytes()
