"""Fully connected layers and matrix products against the reference, bit by bit on whole numbers; interpreted and native."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import Tensor, check, made_target, node_of, padded_strides, reference, run_calls, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.kernels.dense import lower_batch_matmul, lower_fc
from cortado.compiler.target import Target

TARGETS = (made_target(0, fma=False), made_target(128), *(made_target(bits, bits > 128, fma=False) for bits in (128, 256, 512)))
EVERYTHING = (("bias",), ("residual",), ("activation", "relu", ()))


def numbers(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


def fc_arrays(
    lead: tuple[int, ...], depth: int, outputs: int, epilogue: tuple[Any, ...], dtype: str = "float32"
) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"bias": (outputs,), "residual": (*lead, outputs)}
    extra = [numbers(rng, *shapes[entry[0]], dtype=dtype) for entry in epilogue if entry[0] != "activation"]
    return [numbers(rng, *lead, depth, dtype=dtype), numbers(rng, outputs, depth, dtype=dtype), *extra]


LAYERS = [
    ((), 7, 5),
    ((1,), 33, 50),
    ((1,), 4, 1),
    ((3,), 16, 10),
    ((2, 5), 9, 17),
    ((2, 1, 3, 2, 1, 2, 2), 3, 4),
    ((13,), 1, 3),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.name}{'-fma' if t.rows[-1].name == 'fma' else ''}")
@pytest.mark.parametrize(("lead", "depth", "outputs"), LAYERS, ids=str)
def test_fc(lead: tuple[int, ...], depth: int, outputs: int, target: Target) -> None:
    for epilogue in ((), EVERYTHING):
        arrays = fc_arrays(lead, depth, outputs, epilogue)
        for fixed in ((1, 2) if epilogue else (1,), ()):
            check(lower_fc, node_of("fc", arrays, {"epilogue": epilogue}, fixed), arrays, target, pad=3)


def test_fc_float64_and_in_place() -> None:
    arrays = fc_arrays((2, 3), 5, 9, EVERYTHING, "float64")
    node = node_of("fc", arrays, {"epilogue": EVERYTHING}, (1, 2))
    check(lower_fc, node, arrays, TARGETS[3])
    assert run_lowered(lower_fc, node, arrays, TARGETS[4], in_place=3).tobytes() == reference(node, arrays).tobytes()


def test_fc_of_views_whose_axes_stay_apart() -> None:
    """Six leading axes, none of which strides let join: those beyond four become groups."""
    lead = (2, 2, 1, 2, 2, 2, 2)
    arrays = fc_arrays(lead, 3, 5, ())
    node = node_of("fc", arrays, {"epilogue": ()}, (1,))
    strides = []
    for width in (3, 5):
        room, axes = 1, [1]
        for size in reversed((*lead[1:], width)):
            room *= size + 1
            axes.insert(0, room)
        strides.append(tuple(axes))
    ins = [Tensor(arrays[0], "float32", strides[0], 2), Tensor(arrays[1], "float32")]
    out = Tensor(np.zeros((*lead, 5), np.float32), "float32", strides[1], 4)
    run_calls(lower_fc(node, [t.operand for t in ins], [out.operand], TARGETS[3]), ins, [out], TARGETS[3], "interpret", 2)
    got = out.view.copy()
    assert out.canaries_intact()
    assert got.tobytes() == reference(node, arrays).tobytes()


PRODUCTS = [
    ((3, 4), (4, 5)),
    ((1, 9), (9, 1)),
    ((2, 5, 3), (2, 3, 18)),
    ((2, 1, 4, 6), (3, 6, 7)),
    ((4, 3), (2, 3, 3, 5)),
    ((2, 3, 4, 2), (1, 3, 2, 3)),
    ((2, 7, 1), (2, 1, 5)),
    ((2, 3, 37), (2, 37, 21)),
]


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize(("a", "b"), PRODUCTS, ids=str)
def test_batch_matmul(a: tuple[int, ...], b: tuple[int, ...], turned: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(4)
    arrays = [numbers(rng, *a), numbers(rng, *b)]
    arrays = [np.ascontiguousarray(np.swapaxes(m, -1, -2)) if turn else m for m, turn in zip(arrays, turned, strict=True)]
    attrs = {"transpose_a": turned[0], "transpose_b": turned[1]}
    for target in TARGETS:
        for fixed in ((), (1,)):
            check(lower_batch_matmul, node_of("batch_matmul", arrays, attrs, fixed), arrays, target, pad=2)


@pytest.mark.parametrize("name", runnable_targets())
def test_native(name: str) -> None:
    target, rng = find_target(name), np.random.default_rng(5)
    for lead, depth, outputs in (((1,), 300, 130), ((5,), 64, 200), ((70,), 33, 9)):
        arrays = fc_arrays(lead, depth, outputs, EVERYTHING)
        check(lower_fc, node_of("fc", arrays, {"epilogue": EVERYTHING}, (1, 2)), arrays, target, how="native", pad=3)
    arrays = [numbers(rng, 3, 40, 17), numbers(rng, 3, 29, 17)]
    node = node_of("batch_matmul", arrays, {"transpose_a": False, "transpose_b": True})
    check(lower_batch_matmul, node, arrays, target, how="native", pad=1)


def test_sums_of_nothing() -> None:
    arrays = [np.zeros((2, 3, 0), np.float32), np.zeros((0, 5), np.float32)]
    for target in TARGETS:
        node = node_of("batch_matmul", arrays, {"transpose_a": False, "transpose_b": False})
        assert not check(lower_batch_matmul, node, arrays, target).any()


def test_nothing_to_do() -> None:
    """Empty outputs need no kernel."""
    arrays = fc_arrays((0, 2), 3, 4, ())
    node = node_of("fc", arrays, {"epilogue": ()}, (1,))
    ins = [Tensor(array, "float32", padded_strides(array.shape, 0)) for array in arrays]
    out = Tensor(np.zeros((0, 2, 4), np.float32), "float32")
    assert lower_fc(node, [t.operand for t in ins], [out.operand], TARGETS[0]) == []
