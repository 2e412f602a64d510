"""Convolution kernels against the reference: every geometry, borders, groups, views, epilogues; interpreted and native.

Arrays hold small whole numbers, so that every sum is exact in any order and results are compared bit by bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lowered import check, made_target, node_of, reference, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.backends.targets.rows import PREFETCH
from cortado.compiler.graph import Node
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.lang import text
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.target import Memory, Target

# fma is slow to interpret: the shapes of tiles do not depend on it but for lanes of four, which are had both ways
TARGETS = (made_target(0, fma=False), made_target(128), *(made_target(bits, bits > 128, fma=False) for bits in (128, 256, 512)))
Geometry = tuple[
    tuple[int, ...], int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int
]

# spatial, channels, outputs, kernel, strides, dilations, pads_begin, pads_end, group
GEOMETRIES: list[Geometry] = [
    ((5, 7), 8, 16, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 1),
    ((5, 9), 5, 33, (1, 1), (2, 2), (1, 1), (0, 0), (0, 0), 1),
    ((4, 5), 3, 7, (1, 1), (1, 1), (1, 1), (1, 2), (2, 1), 1),
    ((4, 13), 4, 18, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((7, 7), 3, 10, (3, 3), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ((6, 9), 3, 6, (7, 7), (2, 2), (1, 1), (3, 3), (3, 3), 1),
    ((5, 9), 3, 9, (3, 3), (1, 1), (2, 3), (2, 3), (2, 3), 1),
    ((8, 10), 4, 5, (5, 3), (1, 2), (1, 1), (2, 0), (1, 2), 1),
    ((9, 8), 4, 8, (2, 2), (2, 2), (1, 1), (-1, -2), (0, -1), 1),
    ((3, 3), 5, 6, (3, 3), (1, 1), (4, 4), (4, 4), (4, 4), 1),
    ((2, 2), 4, 8, (3, 3), (3, 3), (1, 1), (3, 3), (3, 3), 1),
    ((1, 1), 5, 50, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((4, 4), 5, 40, (4, 4), (1, 1), (1, 1), (0, 0), (0, 0), 1),
    ((7, 6), 6, 3, (2, 6), (1, 1), (1, 1), (0, 0), (0, 0), 1),
    ((7, 6), 6, 3, (2, 6), (1, 1), (1, 1), (1, 0), (0, 0), 1),
    ((5, 6), 1, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((3, 7), 6, 9, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 3),
    ((5, 5), 8, 36, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 2),
    ((6, 6), 4, 12, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 4),
    ((29,), 5, 12, (4,), (3,), (2,), (2,), (5,), 1),
    ((70,), 3, 9, (1,), (1,), (1,), (0,), (0,), 1),
    ((19, 1), 4, 8, (5, 1), (1, 1), (1, 1), (2, 0), (2, 0), 1),
    ((3, 4, 5), 3, 5, (3, 2, 3), (1, 2, 1), (1, 1, 2), (1, 0, 2), (1, 1, 2), 1),
    ((3, 4, 5), 4, 8, (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0), 1),
    ((3, 4, 5), 4, 6, (3, 1, 1), (1, 1, 1), (1, 1, 1), (1, 0, 0), (1, 0, 0), 2),
]


def whole_numbers(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


def attrs_of(g: Geometry, epilogue: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"strides": g[4], "dilations": g[5], "pads_begin": g[6], "pads_end": g[7], "group": g[8], "epilogue": epilogue}


def arrays_of(
    g: Geometry, batch: int = 1, epilogue: tuple[Any, ...] = (), dtype: str = "float32", seed: int = 0
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x, w = whole_numbers(rng, batch, *g[0], g[1], dtype=dtype), whole_numbers(rng, g[2], *g[3], g[1] // g[8], dtype=dtype)
    out = node_of("conv", [x, w], attrs_of(g)).types[0].shape
    shapes = {"bias": out[-1:], "residual": out}
    return [x, w, *(whole_numbers(rng, *shapes[entry[0]], dtype=dtype) for entry in epilogue if entry[0] != "activation")]


def fixed_inputs(epilogue: tuple[Any, ...]) -> tuple[int, ...]:
    return (1, 2) if ("bias",) in epilogue else (1,)


def lowered(node: Node, target: Target) -> list[KernelCall]:
    ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
    return lower_conv(node, ins, [Operand(node.types[0], contiguous_strides(node.types[0].shape))], target)


EVERYTHING = (("bias",), ("residual",), ("activation", "relu", ()))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.name}{'-fma' if t.rows[-1].name == 'fma' else ''}")
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_geometries(g: Geometry, target: Target) -> None:
    arrays = arrays_of(g, 1 + len(g[0]) % 2, EVERYTHING)
    check(lower_conv, node_of("conv", arrays, attrs_of(g, EVERYTHING), fixed_inputs(EVERYTHING)), arrays, target, pad=3)


@pytest.mark.parametrize(
    "epilogue", [(), EVERYTHING[:1], EVERYTHING[1:2], EVERYTHING[:2], EVERYTHING[2:], EVERYTHING[::2]], ids=str
)
def test_epilogues(epilogue: tuple[Any, ...]) -> None:
    g = GEOMETRIES[3]
    arrays = arrays_of(g, epilogue=epilogue)
    for target in TARGETS[2:4]:
        check(lower_conv, node_of("conv", arrays, attrs_of(g, epilogue), fixed_inputs(epilogue)), arrays, target)


@pytest.mark.parametrize(
    "activation",
    [("clip", (("hi", 6.0), ("lo", 0.0))), ("leaky_relu", (("alpha", 0.125),)), ("sigmoid", ()), ("tanh", ())],
    ids=lambda a: a[0],
)
def test_activations(activation: tuple[str, tuple[Any, ...]]) -> None:
    g, epilogue = GEOMETRIES[0], (("bias",), ("activation", *activation))
    arrays = arrays_of(g, epilogue=epilogue)
    node = node_of("conv", arrays, attrs_of(g, epilogue), (1, 2))
    check(lower_conv, node, arrays, TARGETS[3], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fixed", [(), (1,), (2,)], ids=str)
@pytest.mark.parametrize("g", [GEOMETRIES[i] for i in (0, 8, 12, 13, 16, 18, 22)], ids=str)
def test_weights_known_at_run_time(g: Geometry, fixed: tuple[int, ...]) -> None:
    """Weights or bias that the graph computes are packed by a kernel of their own; views of them as well."""
    epilogue = (("bias",),)
    arrays = arrays_of(g, epilogue=epilogue)
    node = node_of("conv", arrays, attrs_of(g, epilogue), fixed)
    assert len(lowered(node, TARGETS[3])) == 2
    for target in TARGETS:
        check(lower_conv, node, arrays, target, pad=2)


@pytest.mark.parametrize("g", [GEOMETRIES[i] for i in (0, 8, 10, 16, 21)], ids=str)
def test_float64(g: Geometry) -> None:
    arrays = arrays_of(g, epilogue=EVERYTHING, dtype="float64")
    for target in TARGETS:
        check(lower_conv, node_of("conv", arrays, attrs_of(g, EVERYTHING), fixed_inputs(EVERYTHING)), arrays, target, pad=1)


@pytest.mark.parametrize("g", [GEOMETRIES[i] for i in (0, 6, 7, 8, 22)], ids=str)
def test_parts_of_k(g: Geometry) -> None:
    """Caches so small that a panel of weights is used in parts: sums rest in the output, which may be the residual's memory."""
    g = (g[0], 9, *g[2:])
    arrays = arrays_of(g, epilogue=EVERYTHING)
    node = node_of("conv", arrays, attrs_of(g, EVERYTHING), fixed_inputs(EVERYTHING))
    for target in TARGETS[2:4]:
        small = replace(target, memories=(Memory("l1", 128), Memory("l2", 256)))
        families = {callee.family for callee in lowered(node, small)[0].kernel.callees()}
        assert any(family.endswith("_first") for family in families), families
        check(lower_conv, node, arrays, small, pad=1)
        got = run_lowered(lower_conv, node, arrays, small, in_place=3)
        assert got.tobytes() == reference(node, arrays).tobytes()


def test_residual_in_place() -> None:
    for g in (GEOMETRIES[0], GEOMETRIES[3], GEOMETRIES[16]):
        arrays = arrays_of(g, epilogue=EVERYTHING)
        node = node_of("conv", arrays, attrs_of(g, EVERYTHING), fixed_inputs(EVERYTHING))
        for pieces in (1, 4):
            got = run_lowered(lower_conv, node, arrays, TARGETS[3], in_place=3, pieces=pieces, pad=2)
            assert got.tobytes() == reference(node, arrays).tobytes()


def test_padding_is_never_read() -> None:
    """Values that a padded copy would turn into NaN: the input's surroundings hold canaries, zeros are not multiplied."""
    g: Geometry = ((4, 5), 3, 8, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1)
    x, w = arrays_of(g, batch=1)
    w[:, 0, :, :] = np.inf  # the upper kernel row: outside the image for the first output row
    node = node_of("conv", [x, w], attrs_of(g), (1,))
    got = run_lowered(lower_conv, node, [x, w], TARGETS[3])
    assert np.isfinite(got[0, 0]).all() and not np.isfinite(got[0, 1:]).all()


def random_geometry(rng: np.random.Generator) -> Geometry | None:
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    group = int(rng.choice([1, 1, 2, 3]))
    channels, outputs = group * int(rng.integers(1, 9)), group * int(rng.integers(1, 20))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high, rank))

    spatial, kernel, strides, dilations = per_axis(1, 8), per_axis(1, 4), per_axis(1, 4), per_axis(1, 4)
    begin, end = per_axis(-1, 4), per_axis(-1, 4)
    room = [s + b + e - d * (k - 1) - 1 for s, b, e, d, k in zip(spatial, begin, end, dilations, kernel, strict=True)]
    fits = all(r >= 0 for r in room) and all(s + min(b, 0) + min(e, 0) > 0 for s, b, e in zip(spatial, begin, end, strict=True))
    return (spatial, channels, outputs, kernel, strides, dilations, begin, end, group) if fits else None


@pytest.mark.parametrize("seed", range(4))
def test_random_geometries(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    done = 0
    while done < 12:
        g = random_geometry(rng)
        if g is None:
            continue
        done += 1
        epilogue = tuple(entry for entry in EVERYTHING if rng.random() < 0.6)
        arrays = arrays_of(g, int(rng.integers(1, 4)), epilogue, seed=seed)
        node = node_of("conv", arrays, attrs_of(g, epilogue), fixed_inputs(epilogue))
        check(lower_conv, node, arrays, TARGETS[int(rng.integers(len(TARGETS)))], pad=int(rng.integers(4)))


LARGER: list[Geometry] = [
    ((27, 27), 48, 72, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 1),
    ((14, 13), 40, 50, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((37, 35), 3, 32, (7, 7), (2, 2), (1, 1), (3, 3), (3, 3), 1),
    ((7, 7), 320, 48, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((16, 16), 24, 36, (5, 5), (2, 2), (1, 1), (2, 2), (2, 2), 3),
    ((900,), 7, 21, (9,), (1,), (1,), (4,), (4,), 1),
    ((6, 10, 12), 8, 12, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
]


@pytest.mark.parametrize("name", runnable_targets())
@pytest.mark.parametrize("g", LARGER, ids=str)
def test_native(g: Geometry, name: str) -> None:
    arrays = arrays_of(g, 1, EVERYTHING)
    check(
        lower_conv, node_of("conv", arrays, attrs_of(g, EVERYTHING), fixed_inputs(EVERYTHING)), arrays, find_target(name), how="native",
        pad=5,
    )  # fmt: skip


def test_heavy_weights_are_fetched_ahead() -> None:
    """Few pixels, weights larger than the second cache level: tiles ask for the next panel, which may be past the last one."""
    g: Geometry = ((7, 7), 256, 520, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 1)
    arrays = arrays_of(g)
    node = node_of("conv", arrays, attrs_of(g), (1,))
    for name, wanted in (("x86-64-v3", True), ("cortex-a53", True), ("arm32-cortex-a7", False)):
        tiles = lowered(node, find_target(name))[0].kernel.callees()
        assert all(("virtual prefetch" in text(tile)) == wanted for tile in tiles), name
    target = replace(made_target(256, masked=True, fma=False), rows=(PREFETCH,), memories=(Memory("l1", 512), Memory("l2", 8192)))
    small: Geometry = ((4, 5), 9, 130, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 1)
    arrays = arrays_of(small, epilogue=EVERYTHING)
    node = node_of("conv", arrays, attrs_of(small, EVERYTHING), fixed_inputs(EVERYTHING))
    assert any("virtual prefetch" in text(tile) for tile in lowered(node, target)[0].kernel.callees())
    check(lower_conv, node, arrays, target, pad=1)


def test_layers_share_tiles() -> None:
    """Width, channels and view do not shape the inner code: layers of the same register block call the same kernels."""
    target = find_target("x86-64-v3")

    def tiles(size: int, channels: int, kernel: int) -> set[str]:
        pads = (kernel // 2,) * 2
        g: Geometry = ((size, size), channels, 64, (kernel, kernel), (1, 1), (1, 1), pads, pads, 1)
        arrays = [np.zeros((1, size, size, channels), np.float32), np.zeros((64, kernel, kernel, channels), np.float32)]
        calls = lowered(node_of("conv", arrays, attrs_of(g), (1,)), target)
        return {callee.name for callee in calls[0].kernel.callees()}

    assert tiles(28, 64, 3) == tiles(28, 96, 3)
    assert tiles(28, 64, 1) == tiles(28, 72, 1) and tiles(28, 256, 1) == tiles(28, 512, 1)


def test_large_layers_have_tasks_for_eight_threads() -> None:
    for size, channels, outputs, kernel in ((56, 64, 64, 3), (7, 512, 512, 3), (14, 256, 1024, 1), (1, 2048, 1000, 1)):
        pads = (kernel // 2,) * 2
        g: Geometry = ((size, size), channels, outputs, (kernel, kernel), (1, 1), (1, 1), pads, pads, 1)
        arrays = [np.zeros((1, size, size, channels), np.float32), np.zeros((outputs, kernel, kernel, channels), np.float32)]
        assert lowered(node_of("conv", arrays, attrs_of(g), (1,)), find_target("x86-64-v3"))[0].tasks >= 8
