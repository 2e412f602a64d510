"""Normalizations, elementwise operators, data movement, reductions and resizing against formulas written separately here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from operator_nodes import f32, floats, ints, node, run

from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.ops.resize import resized
from cortado.compiler.ops.sums import tree_sum
from cortado.compiler.reference import evaluate
from cortado.compiler.types import TensorType
from cortado.errors import InputError, ShapeError

# --- normalization ---


def test_batch_norm_lrn_and_softmax_follow_their_formulas() -> None:
    rng = np.random.default_rng(4)
    x = f32(rng, 2, 3, 4, 7)
    scale, bias, mean = f32(rng, 7), f32(rng, 7), f32(rng, 7)
    variance = np.abs(f32(rng, 7))
    wide = x.astype(np.float64)
    expected = scale * (wide - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) + bias
    np.testing.assert_allclose(run("batch_norm", [x, scale, bias, mean, variance], epsilon=1e-3), expected, rtol=1e-4, atol=1e-5)

    for size in (1, 3, 5, 15):
        got = run("lrn", [x], size=size, alpha=0.5, beta=0.75, bias=2.0)
        for c in range(7):
            near = wide[..., max(0, c - size // 2) : c + size // 2 + 1]
            expected = wide[..., c] * (2.0 + 0.5 / size * (near**2).sum(-1)) ** -0.75
            np.testing.assert_allclose(got[..., c], expected, rtol=1e-5, atol=1e-6)

    for axis in range(4):
        powers = np.exp(wide - wide.max(axis, keepdims=True))
        expected = powers / powers.sum(axis, keepdims=True)
        np.testing.assert_allclose(run("softmax", [x], axis=axis), expected, rtol=1e-5, atol=1e-7)


def test_softmax_of_large_values_and_of_nothing() -> None:
    assert run("softmax", [floats([1e4, 1e4, -1e4])], axis=0).tolist() == [0.5, 0.5, 0.0]
    assert run("softmax", [np.zeros((2, 0), np.float32)], axis=1).shape == (2, 0)


# --- elementwise ---

NAN, INF = math.nan, math.inf


def same(got: np.ndarray, want: Any) -> bool:
    want = np.asarray(want, got.dtype)
    return bool(np.array_equal(got, want, equal_nan=got.dtype.kind == "f") and np.array_equal(np.signbit(got), np.signbit(want)))


def test_special_values() -> None:
    x = floats([NAN, -0.0, -1.0, 2.0, INF, -INF])
    assert same(run("relu", [x]), [NAN, -0.0, 0.0, 2.0, INF, 0.0])
    assert same(run("clip", [x], lo=0.0, hi=1.0), [NAN, -0.0, 0.0, 1.0, 1.0, 0.0])
    assert same(run("clip", [x], lo=3.0, hi=1.0), [NAN, 1, 1, 1, 1, 1])
    assert same(run("sign", [x]), [0, 0, -1, 1, 1, -1])
    assert same(run("maximum", [x, np.float32(0)]), [0.0, 0.0, 0.0, 2.0, INF, 0.0])
    soft = run("softplus", [floats([89.0, -18.0, 0.0])])
    assert soft[0] == INF and soft[1] == 0 and soft[2] == np.float32(math.log(2))
    assert run("sigmoid", [floats([-200.0, 200.0])]).tolist() == [0.0, 1.0]
    assert run("round_even", [floats([0.5, 1.5, -2.5])]).tolist() == [0.0, 2.0, -2.0]


@pytest.mark.parametrize(
    ("op", "function", "attrs"),
    [
        ("sigmoid", lambda v: 1 / (1 + math.exp(-v)), {}),
        ("tanh", math.tanh, {}),
        ("exp", math.exp, {}),
        ("erf", math.erf, {}),
        ("gelu", lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))), {}),
        ("gelu_tanh", lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))), {}),
        ("swish", lambda v: v / (1 + math.exp(-v)), {}),
        ("elu", lambda v: v if v > 0 else 0.7 * math.expm1(v), {"alpha": 0.7}),
        ("selu", lambda v: 1.05 * (v if v > 0 else 1.67 * math.expm1(v)), {"alpha": 1.67, "scale": 1.05}),
        ("leaky_relu", lambda v: v if v > 0 else 0.1 * v, {"alpha": 0.1}),
        ("thresholded_relu", lambda v: v if v > 0.5 else 0, {"alpha": 0.5}),
        ("hard_sigmoid", lambda v: min(max(0.3 * v + 0.4, 0), 1), {"alpha": 0.3, "beta": 0.4}),
        ("softplus", lambda v: math.log1p(math.exp(v)), {}),
        ("softsign", lambda v: v / (1 + abs(v)), {}),
        ("square", lambda v: v * v, {}),
        ("cube", lambda v: v**3, {}),
        ("reciprocal", lambda v: 1 / v, {}),
        ("cbrt", lambda v: math.copysign(abs(v) ** (1 / 3), v), {}),
        ("sin", math.sin, {}),
        ("cos", math.cos, {}),
        ("tan", math.tan, {}),
        ("atan", math.atan, {}),
        ("sinh", math.sinh, {}),
        ("cosh", math.cosh, {}),
        ("abs", abs, {}),
        ("negative", lambda v: -v, {}),
        ("floor", math.floor, {}),
        ("ceil", math.ceil, {}),
    ],
)  # fmt: skip
def test_unary_functions(op: str, function: Any, attrs: dict[str, Any]) -> None:
    x = np.random.default_rng(5).uniform(-4, 4, (3, 37)).astype(np.float32)
    got = run(op, [x], **attrs)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.vectorize(lambda v: float(function(float(v))))(x), rtol=3e-6, atol=1e-6)


def test_functions_on_part_of_the_line() -> None:
    x = np.random.default_rng(6).uniform(0.01, 0.99, 50).astype(np.float32)
    wide = x.astype(np.float64)
    for op, expected in {
        "log": np.log(wide), "sqrt": np.sqrt(wide), "rsqrt": wide**-0.5, "asin": np.arcsin(wide), "acos": np.arccos(wide),
    }.items():  # fmt: skip
        np.testing.assert_allclose(run(op, [x]), expected, rtol=3e-7, atol=1e-7)
    np.testing.assert_allclose(run("logit", [x], eps=1e-6), np.log(wide / (1 - wide)), rtol=1e-5, atol=1e-6)
    assert run("logit", [floats([-3.0])], eps=0.25)[0] == pytest.approx(math.log(1 / 3), rel=1e-6)


def test_binary_functions_broadcast_and_keep_their_type() -> None:
    rng = np.random.default_rng(7)
    a, b = f32(rng, 2, 1, 3), np.abs(f32(rng, 4, 1)) + 1
    for op, expected in {
        "add": a + b, "sub": a - b, "mul": a * b, "div": a / b, "maximum": np.maximum(a, b), "minimum": np.minimum(a, b),
        "eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b,
    }.items():  # fmt: skip
        got = run(op, [a, b])
        assert got.dtype == expected.dtype and np.array_equal(got, expected), op
    np.testing.assert_allclose(run("pow", [np.abs(a), b]), np.abs(a).astype(np.float64) ** b, rtol=1e-6)


def test_whole_numbers_divide_towards_zero() -> None:
    values = np.array([-7, -6, -1, 0, 1, 6, 7])
    for dtype in (np.int32, np.int64, np.int8):
        a, b = np.meshgrid(values, [-3, -2, 2, 3])
        got = run("div", [a.astype(dtype), b.astype(dtype)])
        assert got.dtype == dtype and np.array_equal(got, np.trunc(a / b))


def test_logic_and_bits() -> None:
    p, q = np.array([False, False, True, True]), np.array([False, True, False, True])
    assert run("logical_and", [p, q]).tolist() == [False, False, False, True]
    assert run("logical_or", [p, q]).tolist() == [False, True, True, True]
    assert run("logical_xor", [p, q]).tolist() == [False, True, True, False]
    assert run("logical_not", [p]).tolist() == [True, True, False, False]
    a, b = ints([12, -1]), ints([10, 7])
    assert run("bitwise_and", [a, b]).tolist() == [8, 7]
    assert run("bitwise_or", [a, b]).tolist() == [14, -1]
    assert run("bitwise_xor", [a, b]).tolist() == [6, -8]
    assert run("bitwise_not", [a]).tolist() == [-13, 0]


def test_where_prelu_and_cast() -> None:
    assert run("where", [np.array([[True], [False]]), floats([1, 2]), np.float32(9)]).tolist() == [[1, 2], [9, 9]]
    assert run("prelu", [floats([[-2, -2], [4, 4]]), floats([0.5, 2])]).tolist() == [[-1, -4], [4, 4]]
    assert run("prelu", [floats([[-2, 3]]), floats([0.5])]).tolist() == [[-1, 3]]
    x = floats([-1.9, 1.9, 300.7, -300.7, NAN, INF])
    assert run("cast", [x], dtype="int32").tolist() == [-1, 1, 300, -300, 0, 2**31 - 1]
    assert run("cast", [x], dtype="int8").tolist() == [-1, 1, 127, -128, 0, 127]
    assert run("cast", [x[:4]], dtype="bool").tolist() == [True] * 4
    assert run("cast", [ints([300, -1])], dtype="uint8").tolist() == [44, 255]


def test_empty_and_rank_0_tensors_work_everywhere_elementwise() -> None:
    for name, op in ELEMENTWISE.items():
        if op.attrs or name in ("prelu", "where"):
            continue
        for shape in ((), (0, 3)):
            for dtype in ("float32", "bool"):
                for count in (1, 2):
                    try:
                        made = node(name, [TensorType(shape, dtype)] * count, {})
                    except ShapeError:
                        continue
                    got = evaluate(made, [np.ones(shape, dtype)] * count)[0]
                    assert got.shape == shape and isinstance(got, np.ndarray)


def test_remainder_has_the_sign_of_the_dividend() -> None:
    assert run("remainder", [ints([7, -7, 7, -7]), ints([3, 3, -3, -3])]).tolist() == [1, -1, 1, -1]


# --- pointwise ---


def test_pointwise_evaluates_its_instructions_in_order() -> None:
    rng = np.random.default_rng(8)
    a, b, c = f32(rng, 2, 3), f32(rng, 3), f32(rng, 2, 1)
    expr = (("mul", (0, 1), ()), ("add", (3, 2), ()), ("clip", (4,), (("hi", 0.5), ("lo", -0.5))), ("sub", (5, 0), ()))
    assert np.array_equal(run("pointwise", [a, b, c], expr=expr), np.clip(a * b + c, -0.5, 0.5) - a)
    mixed = (("gt", (0, 1), ()), ("where", (2, 0, 1), ()), ("cast", (3,), (("dtype", "int32"),)))
    got = run("pointwise", [a * 9, b * 9], expr=mixed)
    assert got.dtype == np.int32 and np.array_equal(got, np.trunc(np.maximum(a * 9, b * 9)))


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ((), "no instructions"),
        ((("conv", (0,), ()),), "not elementwise"),
        ((("add", (0, 3), ()),), "only 2 values exist"),
        ((("clip", (0,), ()),), "attributes"),
        ((("relu", (1,), ()),), "inputs broadcast to"),
    ],
)
def test_malformed_expressions_are_a_mistake_of_the_compiler(expr: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        node("pointwise", [TensorType((2, 3)), TensorType((3,))], {"expr": expr})


# --- data movement, reductions, resizing ---


def test_data_movement() -> None:
    x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    assert np.array_equal(run("transpose", [x], perm=(2, 0, 1)), np.moveaxis(x, 2, 0))
    assert np.array_equal(run("reshape", [x], shape=(4, 6)), x.reshape(4, 6))
    assert np.array_equal(run("concat", [x, x[:, :1], x[:, :0]], axis=1), x[:, [0, 1, 2, 0]])
    assert np.array_equal(run("slice", [x], starts=(1, 0, 1), stops=(2, 3, 1)), x[1:2, 0:3, 1:1])
    assert np.array_equal(run("tile", [x], repeats=(1, 2, 3)), np.tile(x, (1, 2, 3)))
    assert np.array_equal(run("broadcast_to", [x[:, :1]], shape=(5, 2, 3, 4)), np.broadcast_to(x[:, :1], (5, 2, 3, 4)))
    indices = ints([[0, -1], [2, 1]])
    assert np.array_equal(run("gather", [x, indices], axis=1), x[:, indices])
    with pytest.raises(InputError, match="index 3 is outside axis 1 of size 3"):
        run("gather", [x, ints([3])], axis=1)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_as_numpy_pads_and_crops(mode: str) -> None:
    x = np.arange(20, dtype=np.float32).reshape(4, 5)
    more: dict[str, Any] = {"constant_values": 7.0} if mode == "constant" else {}
    got = run("pad", [x], begin=(3, 1), end=(0, 4), mode=mode, value=7.0)
    assert np.array_equal(got, np.pad(x, ((3, 0), (1, 4)), mode, **more))  # type: ignore[call-overload]
    assert np.array_equal(run("pad", [x], begin=(-1, 0), end=(0, -2), mode=mode, value=7.0), x[1:, :-2])


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2), ()])
def test_reductions(axes: tuple[int, ...], keepdims: bool) -> None:
    x = np.random.default_rng(9).integers(-9, 9, (3, 5, 7)).astype(np.float32)
    functions: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
    for op, function in functions.items():
        got = run(f"reduce_{op}", [x], axes=axes, keepdims=keepdims)
        np.testing.assert_allclose(got, function(x, axis=axes, keepdims=keepdims), rtol=1e-6)
        assert got.shape == np.sum(x, axis=axes, keepdims=keepdims).shape


def test_tree_sum_has_the_documented_order() -> None:
    a, b, c, d, e = (np.float32(v) for v in (1e8, 1.0, -1e8, 3.0, 0.5))
    assert tree_sum(np.array([a, b, c, d, e]), (0,)) == ((a + c) + np.float32(e)) + (b + d)
    assert tree_sum(np.zeros((0, 2), np.float32), (0,)).tolist() == [0, 0]


def test_resizing() -> None:
    assert resized(3, 0.34) == 1 and resized(10, 0.7) == 7
    with pytest.raises(ShapeError, match="above 0"):
        resized(3, -1.0)
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    got = run("resize_nearest", [x], scale_h=2.0, scale_w=1.5, out_h=4, out_w=4)
    assert got[0, :, :, 0].tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [3, 3, 4, 5]]
    got = run("resize_bilinear", [x], scale_h=1.5, scale_w=2.0, out_h=3, out_w=5)
    assert got[0, :, :, 0].tolist() == [[0, 0.5, 1, 1.5, 2], [1.5, 2, 2.5, 3, 3.5], [3, 3.5, 4, 4.5, 5]]


def test_arg_max_takes_the_first_of_equals() -> None:
    x = floats([[1, 3, 3], [2, 2, 1]])
    assert run("arg_max", [x], axis=1, keepdims=False).tolist() == [1, 0]
    assert run("arg_min", [x], axis=1, keepdims=True).tolist() == [[0], [2]]
    assert run("arg_max", [x], axis=0, keepdims=False).dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_top_k_is_stable_and_largest_first(dtype: Any) -> None:
    x = np.random.default_rng(10).integers(0, 5, (3, 9, 2)).astype(dtype)
    if dtype == np.int64:
        x[0, 0, 0] = np.iinfo(np.int64).min
    made = node("top_k", [TensorType(x.shape, x.dtype.name)], {"k": 4, "axis": 1})
    values, indices = evaluate(made, [x])
    for i, j in np.ndindex(3, 2):
        expected = sorted(range(9), key=lambda at: (-int(x[i, at, j]), at))[:4]
        assert indices[i, :, j].tolist() == expected
        assert values[i, :, j].tolist() == x[i, expected, j].tolist()
    with pytest.raises(ShapeError, match="k=10 must be between 1 and the axis's size, 9"):
        node("top_k", [TensorType(x.shape, x.dtype.name)], {"k": 10, "axis": 1})
