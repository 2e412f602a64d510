"""Winograd convolutions of bytes: the algebra, its limits, borders, epilogues, and the choice; always the reference's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import check, made_target
from native import runnable_targets
from quantized_nodes import make_q, quant, result, window
from test_kernels_quantized import conv

from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.quantized_conv import lower_q_conv, lower_q_conv_larger
from cortado.compiler.kernels.quantized_filtering import LARGEST, whole_filtering
from cortado.compiler.kernels.quantized_winograd import choose_q_winograd, lower_q_winograd
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import Quant

SIZES = [2, 4]
CASES: dict[str, dict[str, Any]] = {
    "borders": {"x": (1, 6, 7, 8), "w": (8, 3, 3, 8), "pads": 1},
    "inner tiles, residual": {"x": (1, 9, 8, 8), "w": (8, 3, 3, 8), "beside": True},
    "images of uint8, qnnpack": {"x": (2, 5, 3, 8), "w": (16, 3, 3, 8), "pads": 1, "dtype": "uint8", "rounding": "qnnpack"},
    "one channel, one output": {"x": (1, 5, 6, 1), "w": (1, 3, 3, 1), "pads": 1, "dtype": "uint8"},
    "odd channels and outputs": {"x": (1, 5, 6, 23), "w": (11, 3, 3, 23), "pads": 1, "beside": True},
    "a few channels more than vectors hold": {"x": (1, 5, 3, 34), "w": (18, 3, 3, 34), "pads": 1, "dtype": "uint8"},
}


def forced(m: int) -> Any:
    """A lowering that takes tiles of m x m whether they pay or not."""

    def lower(node: Node, ins: Any, outs: Any, target: Target) -> list[KernelCall]:
        return lower_q_winograd(node, ins, outs, m, target)

    return lower


@pytest.mark.parametrize("m", SIZES)
def test_one_dimension_is_a_correlation_times_a_known_number(m: int) -> None:
    f, random = whole_filtering(m), np.random.default_rng(m)
    d, g = random.integers(-99, 99, f.size), random.integers(-99, 99, 3)
    want = [int((d[i : i + 3] * g).sum()) * f.odd << f.shifts[i] for i in range(m)]
    np.testing.assert_array_equal(f.output @ ((f.filter @ g) * (f.input @ d)), want)
    assert f.inverse * f.odd**2 % (1 << 32) == 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("target", [made_target(128), find_target("x86-64-v3"), find_target("cascadelake")], ids=lambda t: t.name)
def test_interpreted(target: Target, m: int, name: str) -> None:
    _, node, arrays = conv(**CASES[name])
    check(forced(m), node, arrays, target, pad=3)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("target", runnable_targets())
def test_compiled(target: str, m: int, name: str) -> None:
    _, node, arrays = conv(**CASES[name])
    check(forced(m), node, arrays, find_target(target), how="native", pad=3)


def extreme(weight: int, channels: int) -> tuple[Node, list[np.ndarray]]:
    """Inputs of the largest magnitude and equal weights."""
    x = np.full((1, 8, 8, channels), -128, np.int8)
    x[0, ::2, 1::2] = 127
    w, bias = np.full((8, 3, 3, channels), weight, np.int8), np.zeros(8, np.int32)
    w[1::2] = -weight
    inputs = [(x, quant(0.1, -128)), (w, Quant((1e-6,) * 8, (0,) * 8, 0)), (bias, None)]
    return make_q("q_conv", inputs, {**window(2, pads=1), "group": 1, **result(0.01, 3)}, (1, 2)), [x, w, bias]


@pytest.mark.parametrize("m", SIZES)
def test_the_largest_numbers_that_count_as_exact_are(m: int) -> None:
    node, arrays = extreme(127, 224)
    assert whole_filtering(m).exact(arrays[1])
    check(forced(m), node, arrays, find_target("x86-64-v3"))


@pytest.mark.parametrize("m", SIZES)
def test_sums_without_room_are_refused(m: int) -> None:
    f = whole_filtering(m)
    least = (1 << (31 - 2 * max(f.shifts))) // (LARGEST * 127 * 9) + 1
    w = np.full((1, 3, 3, least), 127, np.int16)
    assert not f.exact(w) and f.exact(w[..., 1:])
    assert not f.exact(np.full((1, 3, 3, 1), 1 << 13, np.int16)), "transformed weights have more than 16 bits"


def chosen(shape: tuple[int, ...], outputs: int, target: str, weight: int | None = None, **how: Any) -> int | None:
    _, node, _ = conv(shape, (outputs, 3, 3, shape[3]), **{"pads": 1, **how})
    if weight is not None:
        node, _ = extreme(weight, shape[3])
    operands = [Operand(v.type, contiguous_strides(v.type.shape)) for v in (*node.inputs, node.out())]
    return choose_q_winograd(node, operands[:-1], operands[-1:], find_target(target))


def test_choice() -> None:
    assert chosen((1, 28, 28, 64), 64, "x86-64-v3") == 4
    assert chosen((1, 28, 28, 64), 64, "x86-64-v3", strides=2) is None
    assert chosen((1, 28, 28, 3), 64, "x86-64-v3") is None
    assert chosen((1, 28, 28, 64), 64, "cortex-m4") is None
    assert chosen((1, 4, 4, 512), 8, "x86-64-v3", weight=127) != 4, "its sums are not exact"


def test_only_speed_takes_larger_weights() -> None:
    _, node, _ = conv((1, 28, 28, 64), (64, 3, 3, 64), pads=1)
    operands = [Operand(v.type, contiguous_strides(v.type.shape)) for v in (*node.inputs, node.out())]
    sizes = []
    for lower in (lower_q_conv, lower_q_conv_larger):
        calls = lower(node, operands[:-1], operands[-1:], find_target("x86-64-v3"))
        sizes.append(sum(ref.array.nbytes for call in calls for ref in call.refs if ref.array is not None))
    assert sizes[1] > 3 * sizes[0]
