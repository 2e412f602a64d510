"""Quantized operators' references against slow formulas of their own and against the recorded arithmetic of QNNPACK."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from quantized_nodes import make_q, quant, result, values, window

from cortado.compiler.graph import graph_input
from cortado.compiler.ops import make
from cortado.compiler.ops.quantized import make_table
from cortado.compiler.ops.resize import bilinear_sources
from cortado.compiler.reference import evaluate
from cortado.compiler.types import Quant, TensorType
from cortado.errors import ShapeError

F = np.float32


@pytest.fixture(scope="module")
def model(shared: Path) -> ModuleType:
    """Integer models of Caffe2's Int8 operators, from the reference data."""
    spec = importlib.util.spec_from_file_location("int8model", shared / "conformance" / "int8model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nearest_even(value: F, zero: int, lo: int, hi: int) -> int:
    """Python's round is half to even on the exact value."""
    return min(max(round(float(value)) + zero, lo), hi)


def slow_conv(x, zx, w, zw, bias, strides, pad, dilation, group) -> dict:
    """Accumulators of a 2-d convolution by (n, y, x, o), one multiplication at a time."""
    n, h, width, _ = x.shape
    o, kh, kw, cg = w.shape
    oh, ow = ((s + 2 * pad - dilation * (k - 1) - 1) // strides + 1 for s, k in ((h, kh), (width, kw)))
    found = {}
    for at in np.ndindex(n, oh, ow, o):
        image, y, z, out = at
        total = int(bias[out])
        for a, b, i in np.ndindex(kh, kw, cg):
            row, column = y * strides - pad + a * dilation, z * strides - pad + b * dilation
            if 0 <= row < h and 0 <= column < width:
                cell = int(x[image, row, column, out // (o // group) * cg + i])
                total += (cell - zx) * (int(w[out, a, b, i]) - int(zw[out]))
        found[at] = total
    return found


@pytest.mark.parametrize(("strides", "pad", "dilation", "group"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (1, 1, 1, 4)])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("beside", [False, True])
def test_conv(strides: int, pad: int, dilation: int, group: int, dtype: str, beside: bool) -> None:
    random = np.random.default_rng(strides * 8 + group)
    x, w = values(random, (2, 5, 4, 4), dtype), values(random, (8, 3, 2, 4 // group), "int8")
    bias = random.integers(-3000, 3000, 8).astype(np.int32)
    scales = tuple(float(F(s)) for s in random.uniform(0.001, 0.02, 8))
    zx, zy = (-7, 3) if dtype == "int8" else (120, 5)
    attrs = {**window(2, strides, dilation, pad), "group": group, **result(0.11, zy, dtype, clamp=(zy, 100))}
    inputs = [(x, quant(0.05, zx)), (w, Quant(scales, (0,) * 8, 0)), (bias, None)]
    want = slow_conv(x, zx, w, [0] * 8, bias, strides, pad, dilation, group)
    shape = tuple(max(at[i] for at in want) + 1 for i in range(4))
    r = values(random, shape, dtype)
    if beside:
        inputs.append((r, quant(0.3, 9)))
    node = make_q("q_conv", inputs, attrs)
    (got,) = evaluate(node, [array for array, _ in inputs])
    assert got.shape == shape and got.dtype.name == dtype
    for at, acc in want.items():
        value = F(acc) * F(F(F(0.05) * F(scales[at[3]])) / F(0.11))
        if beside:
            value = F(value) + F(int(r[at]) - 9) * F(F(0.3) / F(0.11))
        assert got[at] == nearest_even(value, zy, zy, 100), at


def test_fc_with_weight_zero_points() -> None:
    random = np.random.default_rng(3)
    x, w = values(random, (2, 3, 7), "uint8"), values(random, (5, 7), "uint8")
    bias = random.integers(-300, 300, 5).astype(np.int32)
    node = make_q("q_fc", [(x, quant(0.02, 11)), (w, quant(0.01, 140)), (bias, None)], result(0.4, 100, "uint8"))
    (got,) = evaluate(node, [x, w, bias])
    for a, b, o in np.ndindex(2, 3, 5):
        acc = int(bias[o]) + sum((int(x[a, b, i]) - 11) * (int(w[o, i]) - 140) for i in range(7))
        assert got[a, b, o] == nearest_even(F(acc) * F(F(F(0.02) * F(0.01)) / F(0.4)), 100, 0, 255)


def test_ties_go_to_even() -> None:
    """acc * 0.5 for odd accumulators."""
    x = np.arange(-9, 10, dtype=np.int8).reshape(1, -1, 1, 1)
    node = make_q(
        "q_conv",
        [(x, quant(0.5, 0)), (np.ones((1, 1, 1, 1), np.int8), Quant((1.0,), (0,), 0)), (np.zeros(1, np.int32), None)],
        {**window(2), "group": 1, **result(1.0, 0)},
    )
    (got,) = evaluate(node, [x, np.ones((1, 1, 1, 1), np.int8), np.zeros(1, np.int32)])
    assert got.ravel().tolist() == [round(v / 2) for v in range(-9, 10)]


def test_accumulators_wrap() -> None:
    x, w = np.full((1, 1), 127, np.int8), np.full((1, 1), 127, np.int8)
    bias = np.array([2**31 - 1], np.int32)
    node = make_q("q_fc", [(x, quant(1.0, 0)), (w, quant(1.0, 0)), (bias, None)], result(2.0**24, 0))
    assert evaluate(node, [x, w, bias])[0].item() == round((127 * 127 + 2**31 - 1 - 2**32) / 2**24)


@pytest.mark.parametrize("seed", range(6))
def test_qnnpack_conv(model: ModuleType, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, w = values(random, (1, 6, 5, 4), "uint8"), values(random, (6, 3, 3, 4), "uint8")
    bias = random.integers(-20000, 20000, 6).astype(np.int32)
    sx, sw, sy = (float(F(random.uniform(*span))) for span in ((0.01, 0.1), (0.001, 0.02), (0.1, 2.0)))
    zx, zw, zy = (int(v) for v in random.integers(0, 256, 3))
    relu = bool(seed % 2)
    attrs = {**window(2, 1 + seed % 2, 1, 1), "group": 1, **result(sy, zy, "uint8", "qnnpack", (zy if relu else 0, 255))}
    node = make_q("q_conv", [(x, quant(sx, zx)), (w, quant(sw, zw)), (bias, None)], attrs)
    acc = model.conv_acc(x, zx, w, zw, bias, {"kernel": 3, "pad": 1, "stride": 1 + seed % 2})
    want = model.requant_q31(acc, model.conv_scale(sx, sw, sy), zy, model.relu_floor(zy, relu))
    assert np.array_equal(evaluate(node, [x, w, bias])[0], want)


@pytest.mark.parametrize("seed", range(6))
def test_add(model: ModuleType, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = values(random, (3, 4, 5), "uint8"), values(random, (3, 4, 5), "uint8")
    sa, sb, sy = (float(F(s)) for s in random.uniform(0.01, 0.2, 3))
    za, zb, zy = (int(v) for v in random.integers(0, 256, 3))
    node = make_q("q_add", [(a, quant(sa, za)), (b, quant(sb, zb))], result(sy, zy, "uint8", "qnnpack"))
    assert np.array_equal(evaluate(node, [a, b])[0], model.add(a, sa, za, b, sb, zb, sy, zy))
    node = make_q("q_add", [(a, quant(sa, za)), (b[0], quant(sb, zb))], result(sy, zy, "uint8", clamp=(9, 200)))
    (got,) = evaluate(node, [a, b[0]])
    for at in np.ndindex(a.shape):
        value = F(int(a[at]) - za) * F(F(sa) / F(sy)) + F(int(b[0][at[1:]]) - zb) * F(F(sb) / F(sy))
        assert got[at] == nearest_even(F(value), zy, 9, 200)


def test_mul() -> None:
    random = np.random.default_rng(5)
    a, b = values(random, (6, 5), "int8"), values(random, (5,), "int8")
    node = make_q("q_mul", [(a, quant(0.1, 3)), (b, quant(0.2, -8))], result(1.7, 1))
    (got,) = evaluate(node, [a, b])
    for i, j in np.ndindex(6, 5):
        value = F((int(a[i, j]) - 3) * (int(b[j]) + 8)) * F(F(F(0.1) * F(0.2)) / F(1.7))
        assert got[i, j] == nearest_even(value, 1, -128, 127)


@pytest.mark.parametrize("include", [False, True])
def test_average_pool(model: ModuleType, include: bool) -> None:
    random = np.random.default_rng(8)
    x = values(random, (1, 5, 6, 3), "uint8")
    attrs = {**window(2, 2, 1, 1), "kernel": (3, 3), "count_include_pad": include}
    (got,) = evaluate(make_q("q_average_pool", [(x, quant(0.3, 77))], {**attrs, **result(0.2, 60, "uint8")}), [x])
    for y, z, c in np.ndindex(*got.shape[1:]):
        cells = [(r, s) for r in range(2 * y - 1, 2 * y + 2) for s in range(2 * z - 1, 2 * z + 2) if 0 <= r < 5 and 0 <= s < 6]
        acc = sum(int(x[0, r, s, c]) - 77 for r, s in cells)
        scale = F(0.3) / F(F(0.2) * F(9 if include else len(cells)))
        assert got[0, y, z, c] == nearest_even(F(acc) * F(scale), 60, 0, 255)
    if include:
        node = make_q("q_average_pool", [(x, quant(0.3, 77))], {**attrs, **result(0.2, 60, "uint8", "qnnpack")})
        assert np.array_equal(
            evaluate(node, [x])[0], model.average_pool(x, 0.3, 77, 0.2, 60, {"kernel": 3, "stride": 2, "pad": 1})
        )


@pytest.mark.parametrize("keepdims", [False, True])
def test_mean_and_sum(keepdims: bool) -> None:
    x = values(np.random.default_rng(9), (2, 3, 4, 5), "int8")
    for op, cells, scale in (("q_mean", 12, 0.1), ("q_sum", 1, 1.1)):
        node = make_q(op, [(x, quant(0.3, 7))], {"axes": (1, 2), "keepdims": keepdims, **result(scale, -6)})
        (got,) = evaluate(node, [x])
        assert got.shape == ((2, 1, 1, 5) if keepdims else (2, 5))
        for n, c in np.ndindex(2, 5):
            acc = int((x[n, :, :, c].astype(int) - 7).sum())
            assert got.reshape(2, 5)[n, c] == nearest_even(F(acc) * F(F(0.3) / F(F(scale) * F(cells))), -6, -128, 127)


@pytest.mark.parametrize("keepdims", [False, True])
def test_dequantized_mean(keepdims: bool) -> None:
    x = values(np.random.default_rng(9), (2, 3, 4, 5), "uint8")
    node = make_q("dequantized_mean", [(x, quant(0.3, 7))], {"axes": (1, 2), "keepdims": keepdims})
    (got,) = evaluate(node, [x])
    assert got.dtype == F and got.shape == ((2, 1, 1, 5) if keepdims else (2, 5))
    for n, c in np.ndindex(2, 5):
        acc = int((x[n, :, :, c].astype(int) - 7).sum())
        assert got.reshape(2, 5)[n, c] == F(acc) * (F(0.3) / F(12))


@pytest.mark.parametrize("real", [False, True])
def test_conv_mean(real: bool) -> None:
    random = np.random.default_rng(12)
    x, w, bias = values(random, (2, 4, 3, 6), "int8"), values(random, (5, 2, 2, 6), "int8"), np.arange(-2, 3, dtype=np.int32)
    inputs = [(x, quant(0.1, 3)), (w, quant(0.02, 0)), (bias, None)]
    attrs = {**window(2), "group": 1, **result(0.5, 9, clamp=(9, 127))}
    how = {"keepdims": False, **({} if real else result(0.3, -4))}
    (got,) = evaluate(make_q("q_conv_mean", inputs, {**attrs, "mean": tuple(sorted(how.items()))}, (1, 2)), [x, w, bias])
    (image,) = evaluate(make_q("q_conv", inputs, attrs, (1, 2)), [x, w, bias])
    op = "dequantized_mean" if real else "q_mean"
    (want,) = evaluate(make_q(op, [(image, quant(0.5, 9))], {"axes": (1, 2), **how}), [image])
    assert np.array_equal(got, want) and got.dtype == want.dtype and len(np.unique(got)) > 5


@pytest.mark.parametrize("scale", [0.003, 0.1, 2.5])
def test_softmax(model: ModuleType, scale: float) -> None:
    x = values(np.random.default_rng(10), (3, 17), "uint8")
    node = make_q("q_softmax", [(x, quant(scale, 40))], {"axis": 1, "quant": quant(2.0**-8, 0), "dtype": "uint8"})
    (got,) = evaluate(node, [x])
    assert np.array_equal(got, model.softmax(x, scale))
    signed = (x.astype(int) - 128).astype(np.int8).T.copy()
    node = make_q("q_softmax", [(signed, quant(scale, 40))], {"axis": 0, "quant": quant(2.0**-8, -128), "dtype": "int8"})
    assert np.array_equal(evaluate(node, [signed])[0].T.astype(int) + 128, got)
    real = np.exp(scale * (x.astype(float) - x.max(1, keepdims=True)))
    assert np.abs(got / 256 - real / real.sum(1, keepdims=True)).max() < 1.01 / 256


def test_quantize_and_back(model: ModuleType) -> None:
    x = np.concatenate([np.random.default_rng(11).normal(0, 20, 500), np.arange(-6, 7) * 0.125]).astype(F)
    node = make_q("quantize", [(x, None)], {"quant": quant(0.25, 100), "dtype": "uint8"})
    (got,) = evaluate(node, [x])
    assert np.array_equal(got, model.quantize(x, 0.25, 100))
    (back,) = evaluate(make_q("dequantize", [(got, quant(0.25, 100))], {}), [got])
    assert np.array_equal(back, model.dequantize(got, 0.25, 100)) and np.abs(back - np.clip(x, -25, 38.75)).max() <= 0.125
    wild = np.array([math.nan, math.inf, -math.inf, 3e38], F)
    (got,) = evaluate(make_q("quantize", [(wild, None)], {"quant": quant(0.01, 5), "dtype": "int8"}), [wild])
    assert got.tolist() == [-128, 127, -128, 127]


def test_dequantize_per_channel() -> None:
    w = np.array([[1, -2], [3, 4]], np.int8)
    (got,) = evaluate(make_q("dequantize", [(w, Quant((0.5, 2.0), (0, 1), 0))], {}), [w])
    assert got.tolist() == [[0.5, -1.0], [4.0, 6.0]]


def test_table(model: ModuleType) -> None:
    kind = TensorType((256,), "uint8", quant(0.05, 90))
    x = np.arange(256, dtype=np.uint8)
    table = make_table(lambda v: np.where(v < 0, v * F(0.1), v), kind, quant(0.07, 30), "uint8")
    node = make_q("q_table", [(x, kind.quant)], {"table": table, "quant": quant(0.07, 30), "dtype": "uint8"})
    assert np.abs(evaluate(node, [x])[0].astype(int) - model.leaky(x, 0.05, 90, 0.07, 30, 0.1)).max() <= 1
    signed = TensorType((4,), "int8", quant(1.0, 0))
    table = make_table(lambda v: -v, signed, quant(1.0, 0), "int8")
    y = np.array([-128, -1, 0, 127], np.int8)
    node = make_q("q_table", [(y, signed.quant)], {"table": table, "quant": quant(1.0, 0), "dtype": "int8"})
    assert evaluate(node, [y])[0].tolist() == [127, 1, 0, -127]


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("max_pool", {**window(2, 2), "kernel": (2, 2)}),
        ("reshape", {"shape": (4, 8)}),
        ("transpose", {"perm": (3, 1, 2, 0)}),
        ("slice", {"starts": (0, 1, 0, 0), "stops": (1, 3, 2, 2)}),
        ("pad", {"begin": (0, 1, 1, 0), "end": (0, 1, 1, 0), "mode": "constant", "value": 7}),
        ("resize_nearest", {"scale_h": 2.0, "scale_w": 2.0, "out_h": 8, "out_w": 8}),
        ("resize_bilinear", {"scale_h": 2.0, "scale_w": 2.0, "out_h": 8, "out_w": 8}),
        ("reduce_max", {"axes": (1, 2), "keepdims": True}),
        ("reduce_min", {"axes": (3,), "keepdims": False}),
        ("tile", {"repeats": (2, 1, 1, 1)}),
        ("broadcast_to", {"shape": (3, 4, 4, 2)}),
    ],
)
def test_movement_keeps_quantization(op: str, attrs: dict) -> None:
    x = values(np.random.default_rng(12), (1, 4, 4, 2), "int8")
    node = make_q(op, [(x, quant(0.5, 7))], attrs)
    assert node.types[0].quant == quant(0.5, 7) and evaluate(node, [x])[0].dtype == np.int8


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("height", "width"), [(8, 11), (3, 4), (2, 2), (1, 1), (61, 7)])
def test_bilinear_resizing_of_bytes(dtype: str, height: int, width: int) -> None:
    """Weights of 11 bits: half a step, and what each axis's rounded weight may add, 255 / 4096."""
    x = values(np.random.default_rng(13), (2, 3, 4, 5), dtype)
    attrs = {"scale_h": height / 3, "scale_w": width / 4, "out_h": height, "out_w": width}
    (got,) = evaluate(make_q("resize_bilinear", [(x, quant(0.5, 7))], attrs), [x])
    real = x.astype(np.float64)
    (want,) = evaluate(make_q("resize_bilinear", [(real, None)], attrs), [real])
    assert np.abs(got - want).max() <= 0.5 + 0.13
    sides = [bilinear_sources(*sizes) for sizes in ((3, height), (4, width))]
    (tops, bottoms, downs), (lefts, rights, overs) = sides
    for n, y, z, c in np.ndindex(*got.shape):
        h, v = round(float(overs[z]) * 2048), round(float(downs[y]) * 2048)
        a, b, c_, d = (int(x[n, i, j, c]) for i in (tops[y], bottoms[y]) for j in (lefts[z], rights[z]))
        top, bottom = (a << 11) + (b - a) * h, (c_ << 11) + (d - c_) * h
        assert got[n, y, z, c] == ((top << 11) + (bottom - top) * v + (1 << 21)) >> 22


def test_equal_cells_stay_what_they_are() -> None:
    for dtype in ("int8", "uint8"):
        for number in (np.iinfo(dtype).min, np.iinfo(dtype).max):
            x = np.full((1, 2, 3, 1), number, dtype)
            attrs = {"scale_h": 3.5, "scale_w": 4.0, "out_h": 7, "out_w": 12}
            assert (evaluate(make_q("resize_bilinear", [(x, None)], attrs), [x])[0] == number).all()


def test_refusals() -> None:
    x, w, bias = np.zeros((1, 3), np.int8), np.zeros((2, 3), np.int8), np.zeros(2, np.int32)
    plain = result(1.0, 0)
    good = [(x, quant(1.0, 0)), (w, quant(1.0, 0)), (bias, None)]
    for inputs, attrs, word in (
        ([(x, None), *good[1:]], plain, "not quantized"),
        ([good[0], (w, Quant((1.0,) * 3, (0,) * 3, 1)), good[2]], plain, "axis 1"),
        ([*good[:2], (bias[:1], None)], plain, "int32"),
        (good, result(1.0, 300), "zero point"),
        (good, {**plain, "lo": 5, "hi": 4}, "clamp"),
        (good, {**plain, "rounding": "up"}, "rounding"),
        (good, {**plain, "rounding": "qnnpack"}, "QNNPACK"),
    ):
        with pytest.raises(ShapeError, match=word):
            make_q("q_fc", inputs, attrs)
    for op in ("q_mean", "q_sum"):
        large = graph_input("x", TensorType((2903, 2903), "uint8", quant(1.0, 0))).out()
        with pytest.raises(ShapeError, match=r"sums of 8427409 elements .* may not fit 32 bits: at most 8421504 are added"):
            make(op, [large], {"axes": (0, 1), "keepdims": False, **plain}, "node")
    with pytest.raises(ShapeError, match="1/256"):
        make_q("q_softmax", [good[0]], {"axis": 1, "quant": quant(1.0, -128), "dtype": "int8"})
