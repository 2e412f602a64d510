"""Data movement kernels: exact, for every size of element, every permutation, views on both sides; interpreted and native."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lowered import TARGETS, Tensor, check, node_of, run_calls
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.kernels.move import lower_broadcast_to, lower_copy, lower_gather, lower_pad, lower_tile, lower_transpose
from cortado.compiler.kernels.strided import MOVED_AS, transposed
from cortado.compiler.lang import Type
from cortado.compiler.target import Target

DTYPES = ["int8", "uint16", "float32", "int64"]


def numbered(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    count = int(np.prod(shape))
    if dtype == "bool":
        return (np.arange(count) % 3 == 0).reshape(shape)
    return (
        (np.arange(count) % 120).astype(dtype).reshape(shape)
        if dtype == "int8"
        else np.arange(count).astype(dtype).reshape(shape)
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("perm", list(itertools.permutations(range(3))), ids=str)
def test_permutations(perm: tuple[int, ...], target: Target) -> None:
    for shape in ((5, 7, 9), (2, 20, 33), (3, 1, 4), (6, 3, 2)):
        for dtype in DTYPES if shape == (2, 20, 33) else ["float32"]:
            x = numbered(shape, dtype)
            check(lower_transpose, node_of("transpose", [x], {"perm": perm}), [x], target, pad=sum(shape) % 3)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 17, 33])
def test_channels_first_and_last(channels: int, target: Target) -> None:
    for pad in (0, 3):
        for dtype in ("float32", "uint8"):
            x = numbered((2, channels, 5, 7), dtype)
            check(lower_transpose, node_of("transpose", [x], {"perm": (0, 2, 3, 1)}), [x], target, pad=pad)
            x = numbered((2, 5, 7, channels), dtype)
            check(lower_transpose, node_of("transpose", [x], {"perm": (0, 3, 1, 2)}), [x], target, pad=pad)


@pytest.mark.parametrize("perm", [(0, 2, 1, 3), (3, 1, 0, 2), (1, 0, 3, 2), (2, 3, 0, 1), (0, 1, 2, 3), (3, 2, 1, 0)], ids=str)
def test_four_axes(perm: tuple[int, ...]) -> None:
    x = numbered((4, 3, 6, 10))
    for target in TARGETS:
        check(lower_transpose, node_of("transpose", [x], {"perm": perm}), [x], target, pad=1)


@pytest.mark.parametrize(
    ("itemsize", "count"), [(1, 2), (1, 16), (2, 8), (2, 16), (4, 1), (4, 4), (4, 8), (4, 16), (8, 2), (8, 8)]
)
def test_blocks_in_registers(itemsize: int, count: int) -> None:
    k = KernelBuilder("block", TARGETS[3])
    source, sink = k.param("in"), k.param("out")
    type_ = Type(MOVED_AS[itemsize], count)
    for i, value in enumerate(transposed(k, [k.load(source, type_, i * count) for i in range(count)], itemsize)):
        k.store(sink, value, i * count)
    x = (np.arange(count * count) % 256).astype(f"u{itemsize}").reshape(count, count)
    y = np.zeros_like(x)
    compile_kernel(k.finish())(*(Pointer(a.reshape(-1).view(np.uint8)) for a in (x, y)))
    np.testing.assert_array_equal(y, x.T)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "float32", "float64"])
def test_copy_between_views(dtype: str, target: Target) -> None:
    """Same shape, other strides: what a concat, a slice or a reshape that is no view needs."""
    cases = [
        ((4, 9), (9, 1), (20, 1)), ((4, 9), (21, 1), (9, 1)), ((3, 5, 70), (350, 70, 1), (1000, 130, 1)), ((7, 1), (4, 1), (1, 1)),
        ((7, 1), (1, 1), (5, 1)), ((2, 3, 1, 4), (12, 4, 4, 1), (30, 10, 7, 1)), ((5000,), (1,), (1,)), ((), (), ()), ((0, 3), (3, 1), (3, 1)),
    ]  # fmt: skip
    for shape, come, go in cases:
        x = Tensor(numbered(shape, dtype), dtype, come, 3)
        y = Tensor(np.zeros(shape, x.view.dtype), dtype, go, 2)
        wanted = x.view.copy()
        node = node_of("abs", [np.zeros(shape, np.float32)], {})
        run_calls(lower_copy(node, [x.operand], [y.operand], target), [x], [y], target, "interpret", 2)
        np.testing.assert_array_equal(y.view, wanted)
        assert y.canaries_intact()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_tile_and_broadcast(target: Target) -> None:
    for dtype in DTYPES:
        for shape, repeats in (((3, 5), (2, 3)), ((2, 1, 4), (1, 6, 1)), ((7,), (4,)), ((2, 3, 1), (3, 1, 9)), ((2, 2), (0, 1))):
            x = numbered(shape, dtype)
            check(lower_tile, node_of("tile", [x], {"repeats": repeats}), [x], target, pad=len(repeats) - 1)
        for shape, to in (((3, 1), (3, 20)), ((1, 9), (4, 9)), ((), (3, 3)), ((2, 1, 3), (5, 2, 4, 3)), ((1, 6, 1), (3, 6, 7))):
            x = numbered(shape, dtype)
            check(lower_broadcast_to, node_of("broadcast_to", [x], {"shape": to}), [x], target)


PADS = [
    ((2, 5, 6, 3), (0, 1, 2, 0), (0, 2, 1, 0)), ((2, 5, 6, 3), (0, 0, 0, 2), (0, 0, 0, 1)), ((4, 5), (3, 0), (0, 4)), ((7,), (3,), (5,)),
    ((5, 9), (-1, -2), (-2, 3)), ((3, 1, 4), (1, 0, 2), (1, 0, 3)), ((1, 4, 1), (0, 2, 0), (0, 3, 0)), ((6, 20), (0, 0), (0, 0)),
    ((4, 4, 1), (1, 1, 0), (1, 1, 0)),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode: str, target: Target) -> None:
    for number, (shape, begin, end) in enumerate(PADS):
        if mode == "reflect" and any(max(b, e) >= n for n, b, e in zip(shape, begin, end, strict=True)):
            continue
        for dtype in DTYPES[:: 1 + 2 * (number > 1)]:
            x = numbered(shape, dtype)
            attrs = {"begin": begin, "end": end, "mode": mode, "value": 7.0 if dtype == "float32" else 7}
            check(lower_pad, node_of("pad", [x], attrs), [x], target, pad=number % 3)


def test_pad_of_nothing_is_all_constant() -> None:
    x = np.zeros((0, 3), np.float32)
    check(lower_pad, node_of("pad", [x], {"begin": (2, 1), "end": (1, 0), "mode": "constant", "value": -1.5}), [x], TARGETS[2])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_gather(kind: str, target: Target) -> None:
    rng = np.random.default_rng(0)
    cases = [
        ((9, 5), 0, (4,)),
        ((9, 37), 0, (2, 3)),
        ((3, 8, 5), 1, (6,)),
        ((3, 8), 1, (7,)),
        ((6,), 0, ()),
        ((4, 2, 3, 5), 2, (2, 2)),
    ]
    for shape, axis, chosen in cases:
        for dtype in DTYPES:
            x = numbered(shape, dtype)
            indices = np.asarray(rng.integers(-shape[axis], shape[axis], chosen), kind)
            check(lower_gather, node_of("gather", [x, indices], {"axis": axis}), [x, indices], target, pad=axis)


def test_gather_stays_inside_the_tensor() -> None:
    x, indices = numbered((4, 3)), np.array([100, -100, 4, 2**31 - 1], np.int32)
    ins, out = [Tensor(x, "float32"), Tensor(indices, "int32")], Tensor(np.zeros((4, 3), np.float32), "float32")
    node = node_of("gather", [x, indices], {"axis": 0})
    run_calls(lower_gather(node, [t.operand for t in ins], [out.operand], TARGETS[1]), ins, [out], TARGETS[1], "interpret", 1)
    np.testing.assert_array_equal(out.view, x[[3, 0, 3, 3]])


@pytest.mark.parametrize("name", runnable_targets())
def test_native(name: str) -> None:
    target = find_target(name)
    for shape, perm in (
        ((1, 3, 61, 67), (0, 2, 3, 1)),
        ((1, 61, 67, 3), (0, 3, 1, 2)),
        ((2, 70, 14, 14), (0, 2, 3, 1)),
        ((130, 77), (1, 0)),
    ):
        for dtype in ("float32", "uint8", "int64"):
            x = numbered(shape, dtype)
            check(lower_transpose, node_of("transpose", [x], {"perm": perm}), [x], target, how="native", pad=len(dtype) % 2)
    x = numbered((2, 9, 11, 24))
    for mode in ("constant", "reflect", "edge"):
        attrs = {"begin": (0, 3, 3, 0), "end": (0, 2, 2, 0), "mode": mode, "value": 0.5}
        check(lower_pad, node_of("pad", [x], attrs), [x], target, how="native", pad=2)
    check(lower_tile, node_of("tile", [x], {"repeats": (1, 2, 2, 1)}), [x], target, how="native")
