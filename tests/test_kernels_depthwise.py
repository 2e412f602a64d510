"""Depthwise convolution kernels against the reference, bit by bit on whole numbers; interpreted and native."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import check, made_target, node_of, reference, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.target import Target

TARGETS = (made_target(0, fma=False), made_target(128), *(made_target(bits, bits > 128, fma=False) for bits in (128, 256, 512)))
EVERYTHING = (("bias",), ("residual",), ("activation", "clip", (("hi", 60.0), ("lo", -20.0))))
Geometry = tuple[tuple[int, ...], int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]

# spatial, channels, outputs per channel, kernel, strides, dilations, pads_begin, pads_end
GEOMETRIES: list[Geometry] = [
    ((5, 11), 8, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((4, 6), 37, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((8, 9), 19, 1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ((7, 7), 16, 1, (3, 3), (2, 2), (1, 1), (0, 0), (1, 1)),
    ((6, 7), 5, 1, (5, 5), (1, 1), (1, 1), (2, 2), (2, 2)),
    ((9, 9), 4, 1, (3, 3), (1, 1), (2, 3), (2, 3), (2, 3)),
    ((5, 6), 6, 1, (2, 4), (1, 1), (1, 1), (-1, 3), (0, -1)),
    ((2, 2), 9, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((4, 4), 3, 1, (1, 1), (2, 2), (1, 1), (0, 0), (0, 0)),
    ((4, 5), 3, 2, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((3, 5), 17, 3, (3, 3), (1, 2), (1, 1), (1, 1), (1, 1)),
    ((3, 4), 9, 4, (2, 3), (1, 1), (1, 1), (0, 1), (1, 1)),
    ((3, 4), 3, 7, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((40,), 6, 1, (5,), (1,), (2,), (4,), (4,)),
    ((3, 4, 5), 7, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
]


def attrs_of(g: Geometry, epilogue: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"strides": g[4], "dilations": g[5], "pads_begin": g[6], "pads_end": g[7], "group": g[1], "epilogue": epilogue}


def arrays_of(g: Geometry, epilogue: tuple[Any, ...], batch: int = 1, dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(7)

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(-4, 5, shape).astype(dtype)

    x, w = numbers(batch, *g[0], g[1]), numbers(g[1] * g[2], *g[3], 1)
    out = node_of("conv", [x, w], attrs_of(g)).types[0].shape
    return [x, w, *(numbers(*{"bias": out[-1:], "residual": out}[entry[0]]) for entry in epilogue if entry[0] != "activation")]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.name}{'-fma' if t.rows[-1].name == 'fma' else ''}")
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_geometries(g: Geometry, target: Target) -> None:
    arrays = arrays_of(g, EVERYTHING, 1 + len(g[0]) % 2)
    check(lower_conv, node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2)), arrays, target, pad=3)


@pytest.mark.parametrize("epilogue", [(), EVERYTHING[:1], EVERYTHING[1:2], EVERYTHING[2:]], ids=str)
def test_epilogues(epilogue: tuple[Any, ...]) -> None:
    for g in (GEOMETRIES[1], GEOMETRIES[10]):
        arrays = arrays_of(g, epilogue)
        check(
            lower_conv,
            node_of("conv", arrays, attrs_of(g, epilogue), (1, 2) if ("bias",) in epilogue else (1,)),
            arrays,
            TARGETS[3],
        )


def test_weights_known_at_run_time() -> None:
    """Served by the kernels of grouped convolutions."""
    for g in (GEOMETRIES[2], GEOMETRIES[9]):
        arrays = arrays_of(g, EVERYTHING[:1])
        check(lower_conv, node_of("conv", arrays, attrs_of(g, EVERYTHING[:1])), arrays, TARGETS[3], pad=1)


def test_float64() -> None:
    for g in (GEOMETRIES[1], GEOMETRIES[9]):
        arrays = arrays_of(g, EVERYTHING, dtype="float64")
        for target in TARGETS[2:]:
            check(lower_conv, node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2)), arrays, target)


def test_residual_in_place() -> None:
    for g in (GEOMETRIES[1], GEOMETRIES[9]):
        arrays = arrays_of(g, EVERYTHING)
        node = node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2))
        assert run_lowered(lower_conv, node, arrays, TARGETS[3], in_place=3).tobytes() == reference(node, arrays).tobytes()


LARGER: list[Geometry] = [
    ((29, 28), 48, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((28, 30), 67, 1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ((14, 14), 40, 1, (5, 5), (1, 1), (1, 1), (2, 2), (2, 2)),
    ((14, 15), 24, 2, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((3000,), 16, 1, (9,), (1,), (1,), (4,), (4,)),
]


@pytest.mark.parametrize("name", runnable_targets())
@pytest.mark.parametrize("g", LARGER, ids=str)
def test_native(g: Geometry, name: str) -> None:
    arrays = arrays_of(g, EVERYTHING)
    node = node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2))
    check(lower_conv, node, arrays, find_target(name), how="native", pad=5)


def test_large_layers_have_tasks_for_eight_threads() -> None:
    for g in (LARGER[0], LARGER[4]):
        arrays = arrays_of((g[0], g[1] * 8, *g[2:]), ())
        node = node_of("conv", arrays, attrs_of((g[0], g[1] * 8, *g[2:])), (1,))
        ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
        calls = lower_conv(node, ins, [Operand(node.types[0], contiguous_strides(node.types[0].shape))], find_target("x86-64-v3"))
        assert calls[0].tasks >= 8
