"""Convolution, matrix products, epilogues and pooling against slow formulas written separately here."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from operator_nodes import CONV, IMAGE, STEPS, changed, f32, node, run

from cortado.compiler.ops import OPS
from cortado.compiler.ops.conv import convolve
from cortado.compiler.ops.window import cells_inside, output_size, taps
from cortado.compiler.reference import evaluate
from cortado.compiler.types import TensorType
from cortado.errors import ShapeError

SEEDS = range(25)


def window_attrs(rng: np.random.Generator, rank: int, least_pad: int = -1) -> dict[str, Any]:
    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high, rank))

    return {"strides": draw(1, 4), "dilations": draw(1, 3), "pads_begin": draw(least_pad, 3), "pads_end": draw(least_pad, 3)}


def cells(attrs: dict[str, Any], window: tuple[int, ...], position: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        o * s - b + k * d
        for o, s, b, k, d in zip(window, attrs["strides"], attrs["pads_begin"], position, attrs["dilations"], strict=True)
    )


def slow_conv(x: np.ndarray, w: np.ndarray, attrs: dict[str, Any], group: int) -> np.ndarray:
    """By the definition, one multiplication at a time, in double precision."""
    spatial, kernel, per_group = x.shape[1:-1], w.shape[1:-1], w.shape[0] // group
    geometry = zip(spatial, kernel, attrs["dilations"], attrs["strides"], attrs["pads_begin"], attrs["pads_end"], strict=True)
    size = tuple((n + b + e - (d * (k - 1) + 1)) // s + 1 for n, k, d, s, b, e in geometry)
    out = np.zeros((x.shape[0], *size, w.shape[0]))
    for at in np.ndindex(*out.shape):
        first = at[-1] // per_group * w.shape[-1]
        for position in np.ndindex(*kernel):
            cell = cells(attrs, at[1:-1], position)
            inside = all(
                -min(0, b) <= c < n + min(0, e)
                for c, n, b, e in zip(cell, spatial, attrs["pads_begin"], attrs["pads_end"], strict=True)
            )
            if inside:
                row = x[at[:1] + cell][first : first + w.shape[-1]].astype(np.float64)
                out[at] += float(row @ w[at[-1:] + position].astype(np.float64))
    return out


# --- windows ---


@pytest.mark.parametrize("seed", SEEDS)
def test_taps_are_the_cells_that_exist(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, kernel, stride, dilation = (int(v) for v in rng.integers(1, 9, 4))
    pad, end = (int(v) for v in rng.integers(-2, 12, 2))
    size = max(size, dilation * (kernel - 1) + 1 - pad - end)
    out = output_size(size, kernel, stride, dilation, pad, end)
    expected = {(k, o) for k in range(kernel) for o in range(out) if 0 <= o * stride - pad + k * dilation < size}
    assert {(k, o) for k, first, stop in taps(size, kernel, stride, dilation, pad, out) for o in range(first, stop)} == expected
    counts = [sum(o == window for _, o in expected) for window in range(out)]
    assert cells_inside(size, kernel, stride, dilation, pad, out).tolist() == counts


@pytest.mark.parametrize(("rank", "seed"), list(itertools.product((1, 2, 3), range(12))))
def test_conv_follows_its_definition(rank: int, seed: int) -> None:
    rng = np.random.default_rng((rank, seed))
    group = int(rng.choice([1, 1, 2, 3]))
    channels, outputs = group * int(rng.integers(1, 4)), group * int(rng.integers(1, 4))
    attrs = window_attrs(rng, rank)
    kernel = rng.integers(1, 4, rank)
    x, w = f32(rng, 2, *rng.integers(6, 9, rank), channels), f32(rng, outputs, *kernel, channels // group)
    got = run("conv", [x, w], **attrs, group=group, epilogue=())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_conv(x, w, attrs, group), rtol=1e-5, atol=1e-5)


def test_conv_of_whole_numbers_is_exact_across_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-8, 8, (2, 9, 7, 6)).astype(np.float32)
    w = rng.integers(-8, 8, (4, 3, 3, 6)).astype(np.float32)
    attrs = {**STEPS, "pads_begin": (1, 2), "group": 1}
    whole = convolve(x, w, attrs)
    monkeypatch.setattr("cortado.compiler.ops.conv.CHUNK", 1)
    assert np.array_equal(convolve(x, w, attrs), whole)
    assert np.array_equal(whole, slow_conv(x, w, attrs, 1))


def test_conv_crops_and_pads_beyond_the_image() -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    w = np.ones((1, 1, 1), np.float32)
    attrs = {"strides": (1,), "dilations": (1,), "group": 1, "epilogue": ()}
    assert run("conv", [x, w], **attrs, pads_begin=(-1,), pads_end=(-1,)).ravel().tolist() == [1, 2]
    assert run("conv", [x, w], **attrs, pads_begin=(-6,), pads_end=(4,)).ravel().tolist() == [0, 0]


def test_conv_of_no_image_and_its_macs() -> None:
    made = node("conv", [TensorType((0, 8, 8, 4)), TensorType((6, 3, 3, 2))], {**CONV, "group": 2})
    assert evaluate(made, [np.zeros((0, 8, 8, 4), np.float32), np.zeros((6, 3, 3, 2), np.float32)])[0].shape == (0, 6, 6, 6)
    macs = OPS["conv"].macs
    assert macs is not None
    assert macs([TensorType((2, 8, 8, 4)), TensorType((6, 3, 3, 2))], {**CONV, "group": 2}) == 2 * 6 * 6 * 6 * 9 * 2


@pytest.mark.parametrize(("rank", "seed"), list(itertools.product((1, 2, 3), range(8))))
def test_conv_transpose_is_the_adjoint_of_conv(rank: int, seed: int) -> None:
    """sum(conv(y, v) * x) = sum(y * conv_transpose(x, w)), where v is w with inputs and outputs exchanged; whole numbers, so exactly."""
    rng = np.random.default_rng((rank, seed))
    group, inputs, outputs = int(rng.choice([1, 1, 2])), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kernel = tuple(int(k) for k in rng.integers(1, 4, rank))
    strides = tuple(int(s) for s in rng.integers(1, 4, rank))
    more = tuple(int(rng.integers(0, s)) for s in strides)
    begin, end = (tuple(int(p) for p in rng.integers(-1, 2, rank)) for _ in range(2))
    x = rng.integers(-4, 5, (2, *rng.integers(3, 6, rank), group * inputs)).astype(np.float32)
    v = rng.integers(-4, 5, (group, inputs, *kernel, outputs)).astype(np.float32)
    attrs: dict[str, Any] = {"strides": strides, "pads_begin": begin, "pads_end": end, "group": group, "epilogue": ()}
    w = np.moveaxis(np.moveaxis(v, -1, 1), 2, -1)
    got = run("conv_transpose", [x, w.reshape(group * outputs, *kernel, inputs)], **attrs, output_padding=more)
    y = rng.integers(-4, 5, got.shape).astype(np.float32)
    # The convolution reads exactly the cells that the transposed one wrote: without the additional ones at the end.
    back = tuple(e - m for e, m in zip(end, more, strict=True))
    forward = run("conv", [y, v.reshape(group * inputs, *kernel, outputs)], **{**attrs, "pads_end": back}, dilations=(1,) * rank)
    assert forward.shape == x.shape
    assert np.sum(forward * x) == np.sum(y * got)


def test_fc_and_matmul_agree_with_einsum() -> None:
    rng = np.random.default_rng(1)
    x, w, b = f32(rng, 2, 3, 5), f32(rng, 4, 5), f32(rng, 4)
    np.testing.assert_allclose(
        run("fc", [x, w, b], epilogue=(("bias",),)), np.einsum("nmk,ok->nmo", x, w) + b, rtol=1e-5, atol=1e-6
    )
    for ta, tb in itertools.product((False, True), repeat=2):
        p, q = f32(rng, 3, 1, *((5, 2) if ta else (2, 5))), f32(rng, 4, *((6, 5) if tb else (5, 6)))
        expected = np.einsum("...mk,...kn->...mn", p.swapaxes(-1, -2) if ta else p, q.swapaxes(-1, -2) if tb else q)
        got = run("batch_matmul", [p, q], transpose_a=ta, transpose_b=tb)
        assert got.shape == (3, 4, 2, 6)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    macs = OPS["batch_matmul"].macs
    assert macs is not None
    assert (
        macs([TensorType((3, 1, 2, 5)), TensorType((4, 5, 6))], {"transpose_a": False, "transpose_b": False}) == 3 * 4 * 2 * 6 * 5
    )


# --- epilogue ---


def test_epilogue_adds_bias_and_residual_then_activates() -> None:
    rng = np.random.default_rng(2)
    x, w, bias = f32(rng, 1, 5, 5, 3), f32(rng, 4, 3, 3, 3), f32(rng, 4)
    residual = f32(rng, 1, 3, 3, 4)
    plain = run("conv", [x, w], **CONV)
    clip = ("activation", "clip", (("hi", 1.0), ("lo", 0.0)))
    got = run("conv", [x, w, bias, residual], **changed(CONV, epilogue=(("bias",), ("residual",), clip)))
    assert np.array_equal(got, np.clip((plain + bias) + residual, 0, 1))


@pytest.mark.parametrize(
    "epilogue",
    [
        (("residual",), ("bias",)),
        (("bias",), ("bias",)),
        (("activation", "add", ()),),
        (("activation", "clip", (("lo", 0.0),)),),
        (("scale",),),
    ],
)
def test_malformed_epilogues_are_a_mistake_of_the_compiler(epilogue: Any) -> None:
    kinds = [IMAGE, TensorType((8, 3, 3, 16)), TensorType((8,)), TensorType((8,))]
    with pytest.raises(AssertionError, match=r"epilogue|activation"):
        node("conv", kinds, changed(CONV, epilogue=epilogue))


def test_epilogue_inputs_are_counted() -> None:
    with pytest.raises(ShapeError, match="takes 1 input after the weights, got 0"):
        node("conv", [IMAGE, TensorType((8, 3, 3, 16))], changed(CONV, epilogue=(("bias",),)))


# --- pooling ---


@pytest.mark.parametrize(("rank", "include", "seed"), list(itertools.product((1, 2, 3), (False, True), range(8))))
def test_pools_follow_their_definition(rank: int, include: bool, seed: int) -> None:
    rng = np.random.default_rng((rank, seed))
    attrs = {**window_attrs(rng, rank, 0), "kernel": tuple(int(v) for v in rng.integers(1, 4, rank))}
    x = f32(rng, 2, *rng.integers(5, 8, rank), 3)
    largest = run("max_pool", [x], **attrs)
    mean = run("average_pool", [x], **attrs, count_include_pad=include)
    for at in np.ndindex(*largest.shape[:-1]):
        seen = [cells(attrs, at[1:], position) for position in np.ndindex(*attrs["kernel"])]
        inside = [x[at[:1] + c] for c in seen if all(0 <= i < n for i, n in zip(c, x.shape[1:-1], strict=True))]
        if inside:
            assert np.array_equal(largest[at], np.max(inside, axis=0))
        else:
            assert np.all(largest[at] == np.finfo(np.float32).min)
        divisor = math.prod(attrs["kernel"]) if include else max(1, len(inside))
        np.testing.assert_allclose(mean[at], np.sum(inside, axis=0) / divisor if inside else 0, rtol=1e-5, atol=1e-6)


def test_pool_windows_hanging_over_the_end_are_clipped() -> None:
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1)
    attrs = {"kernel": (2,), "strides": (2,), "dilations": (1,), "pads_begin": (0,), "pads_end": (1,)}
    assert run("max_pool", [-x], **attrs).ravel().tolist() == [-1, -3, -5]
    assert run("average_pool", [x], **attrs, count_include_pad=False).ravel().tolist() == [1.5, 3.5, 5]
    assert run("average_pool", [x], **attrs, count_include_pad=True).ravel().tolist() == [1.5, 3.5, 2.5]


def test_huge_pool_kernels_cost_no_more_than_the_image() -> None:
    attrs = {"kernel": (60000,), "strides": (1,), "dilations": (1,), "pads_begin": (59999,), "pads_end": (0,)}
    got = run("max_pool", [np.arange(4, dtype=np.float32).reshape(1, 4, 1)], **attrs)
    assert got.ravel().tolist() == [0, 1, 2, 3]
