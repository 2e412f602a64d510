"""Kernels of convolutions whose groups share vectors, against the reference, bit by bit on whole numbers; interpreted and native."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from lowered import Lowering, check, made_target, node_of, reference, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Grouped
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.target import Target

TARGETS = (
    made_target(128),
    made_target(128, fma=False),
    made_target(256, masked=True),
    *(made_target(512, m) for m in (False, True)),
)


def name_of(target: Target) -> str:
    return f"{target.name}{'-masked' if target.masked else ''}{'-fma' if target.rows[-1].name == 'fma' else ''}"


EVERYTHING = (("bias",), ("residual",), ("activation", "clip", (("hi", 60.0), ("lo", -20.0))))
Geometry = tuple[
    tuple[int, ...], int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]
]

# spatial, groups, inputs and outputs of each, kernel, strides, dilations, pads_begin, pads_end
GEOMETRIES: list[Geometry] = [
    ((5, 11), 8, 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((4, 6), 9, 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((8, 9), 5, 2, 2, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ((7, 7), 4, 8, 8, (3, 3), (2, 2), (1, 1), (0, 0), (1, 1)),
    ((6, 7), 3, 2, 2, (5, 5), (1, 1), (1, 1), (2, 2), (2, 2)),
    ((9, 9), 7, 2, 2, (3, 3), (1, 1), (2, 3), (2, 3), (2, 3)),
    ((5, 6), 6, 4, 4, (2, 4), (1, 1), (1, 1), (-1, 3), (0, -1)),
    ((2, 2), 5, 2, 2, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((4, 4), 6, 4, 2, (1, 1), (2, 2), (1, 1), (0, 0), (0, 0)),
    ((4, 5), 6, 4, 8, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((4, 5), 5, 8, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((3, 5), 7, 3, 2, (3, 3), (1, 2), (1, 1), (1, 1), (1, 1)),
    ((3, 4), 9, 5, 4, (2, 3), (1, 1), (1, 1), (0, 1), (1, 1)),
    ((3, 4), 5, 3, 4, (2, 3), (1, 1), (1, 1), (0, 1), (1, 1)),
    ((3, 4), 5, 9, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((3, 4), 5, 1, 8, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((40,), 6, 2, 2, (5,), (1,), (2,), (4,), (4,)),
    ((3, 4, 5), 3, 2, 2, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
]
LARGER: list[Geometry] = [
    ((29, 28), 24, 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((28, 30), 9, 8, 8, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ((14, 14), 21, 2, 2, (5, 5), (1, 1), (1, 1), (2, 2), (2, 2)),
    ((14, 15), 6, 4, 8, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((14, 15), 7, 8, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((3000,), 8, 2, 2, (9,), (1,), (1,), (4,), (4,)),
]


def attrs_of(g: Geometry, epilogue: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"strides": g[5], "dilations": g[6], "pads_begin": g[7], "pads_end": g[8], "group": g[1], "epilogue": epilogue}


def arrays_of(g: Geometry, epilogue: tuple[Any, ...], batch: int = 1, dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(7)

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(-4, 5, shape).astype(dtype)

    x, w = numbers(batch, *g[0], g[1] * g[2]), numbers(g[1] * g[3], *g[4], g[2])
    out = node_of("conv", [x, w], attrs_of(g)).types[0].shape
    return [x, w, *(numbers(*{"bias": out[-1:], "residual": out}[entry[0]]) for entry in epilogue if entry[0] != "activation")]


def serves(g: Geometry, target: Target, dtype: str = "float32") -> bool:
    """Whether the target's vectors are filled by the outputs of whole groups, or groups by whole vectors."""
    lanes = target.lanes("f32" if dtype == "float32" else "f64")
    return max(lanes, g[3]) % min(lanes, g[3]) == 0


def in_blocks(pixels: int, packed: int | None = None) -> Lowering:
    return partial(lower_conv, choice=Grouped(pixels, packed))


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_geometries(g: Geometry, target: Target) -> None:
    if serves(g, target):
        arrays = arrays_of(g, EVERYTHING, 1 + len(g[0]) % 2)
        node = node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2))
        for blocks in (in_blocks(3), in_blocks(2, 32)):
            check(blocks, node, arrays, target, pad=3)


@pytest.mark.parametrize("epilogue", [(), EVERYTHING[:1], EVERYTHING[1:2], EVERYTHING[2:]], ids=str)
def test_epilogues(epilogue: tuple[Any, ...]) -> None:
    for g in (GEOMETRIES[1], GEOMETRIES[9]):
        arrays = arrays_of(g, epilogue)
        node = node_of("conv", arrays, attrs_of(g, epilogue), (1, 2) if ("bias",) in epilogue else (1,))
        check(in_blocks(3), node, arrays, TARGETS[2])


def test_float64() -> None:
    for g in GEOMETRIES[:3]:
        arrays = arrays_of(g, EVERYTHING, dtype="float64")
        for target in TARGETS[2:]:
            assert serves(g, target, "float64")
            check(in_blocks(4), node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2)), arrays, target)


def test_residual_in_place() -> None:
    for g in (GEOMETRIES[1], GEOMETRIES[9]):
        arrays = arrays_of(g, EVERYTHING)
        node = node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2))
        assert run_lowered(in_blocks(3), node, arrays, TARGETS[3], in_place=3).tobytes() == reference(node, arrays).tobytes()


@pytest.mark.parametrize("name", runnable_targets())
@pytest.mark.parametrize("g", LARGER, ids=str)
def test_native(g: Geometry, name: str) -> None:
    arrays, target = arrays_of(g, EVERYTHING), find_target(name)
    node = node_of("conv", arrays, attrs_of(g, EVERYTHING), (1, 2))
    check(lower_conv, node, arrays, target, how="native", pad=5)
    if serves(g, target):
        check(in_blocks(5, 16), node, arrays, target, how="native", pad=5)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", "znver4", "cortex-a76"])
def test_the_cost_model_takes_it_where_groups_share_vectors(name: str) -> None:
    target = find_target(name)
    lanes = target.lanes("f32")
    for channels in (2, 4, 8, 16, 32):
        family = family_of(((28, 28), 32, channels, channels, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), target)
        assert channels == lanes or family == ("grouped" if channels < lanes else "conv"), channels
    assert family_of(((28, 28), 32, 3, 3, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), target) == "conv"
    assert family_of(((28, 28), 8, 64, 2, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), target) == "conv"


@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m0"])
def test_cores_without_vectors_take_tiles(name: str) -> None:
    assert family_of(GEOMETRIES[0], find_target(name)) == "conv"


def test_weights_known_at_run_time() -> None:
    """Served by tiles for each group."""
    arrays = arrays_of(GEOMETRIES[2], EVERYTHING[:1])
    node = node_of("conv", arrays, attrs_of(GEOMETRIES[2], EVERYTHING[:1]))
    check(lower_conv, node, arrays, TARGETS[3], pad=1)
    with pytest.raises(ValueError, match="share vectors"):
        lowered(node, TARGETS[3], Grouped(2))


def test_choices_that_do_not_fit() -> None:
    node = node_of("conv", arrays_of(GEOMETRIES[0], ()), attrs_of(GEOMETRIES[0]), (1,))
    for choice in (Grouped(60), Grouped(2, 12)):
        with pytest.raises(ValueError, match="fit"):
            lowered(node, TARGETS[2], choice)


def test_large_layers_have_tasks_for_eight_threads() -> None:
    for g in (LARGER[0], LARGER[5]):
        wide = (g[0], g[1] * 8, *g[2:])
        assert lowered(node_of("conv", arrays_of(wide, ()), attrs_of(wide), (1,)), find_target("x86-64-v3"))[0].tasks >= 8


def lowered(node: Node, target: Target, choice: Grouped | None = None) -> list[KernelCall]:
    ins, (out,) = (
        [Operand(t, contiguous_strides(t.shape)) for t in types] for types in ([v.type for v in node.inputs], node.types)
    )
    return lower_conv(node, ins, [out], target, choice)


def family_of(g: Geometry, target: Target) -> str:
    """The first word of the kernel's name."""
    (call,) = lowered(node_of("conv", arrays_of(g, ()), attrs_of(g), (1,)), target)
    return call.kernel.name.partition("_")[0]
