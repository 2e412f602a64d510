"""Products by Strassen's scheme: the algebra, odd numbers of pixels, every epilogue, images that do not mix, and the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, Tensor, add_epilogue, check, made_target, node_of, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.evaluate import Pointer
from cortado.compiler.graph import Node
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.kernels.choice import Choice, Direct, Strassen, from_plain, to_plain
from cortado.compiler.kernels.strassen import alike, choose_strassen, error_bound, lower_strassen, serves_strassen
from cortado.compiler.kernels.table import lower_chosen, lowerings
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning, kernel_key
from cortado.compiler.types import TensorType
from cortado.errors import OptionError

VECTORS = [t for t in TARGETS if t.vector_bits]
RELU = ("activation", "relu", ())
EVERYTHING = (("bias",), ("residual",), RELU)
ZEN4 = find_target("znver4")


def layer_case(
    shape: tuple[int, ...], outputs: int, epilogue: tuple[Any, ...] = (), op: str = "conv"
) -> tuple[Node, list[np.ndarray]]:
    """A 1x1 convolution or a fully connected layer of x[shape]."""
    rng = np.random.default_rng(len(shape) + shape[-1] + outputs)
    taps = (1,) * (len(shape) - 2) if op == "conv" else ()
    arrays = [rng.standard_normal(shape, np.float32), rng.standard_normal((outputs, *taps, shape[-1]), np.float32)]
    fixed = add_epilogue(epilogue, (*shape[:-1], outputs), arrays, rng)
    attrs: dict[str, Any] = {"epilogue": epilogue}
    if op == "conv":
        ones, zeros = (1,) * len(taps), (0,) * len(taps)
        attrs |= {"strides": ones, "dilations": ones, "pads_begin": zeros, "pads_end": zeros, "group": 1}
    return node_of(op, arrays, attrs, fixed), arrays


def forced(products: Direct | None = None) -> Any:
    """A lowering that takes the scheme whether it pays or not."""

    def lower(node: Node, ins: Any, outs: Any, target: Target) -> list[KernelCall]:
        return lower_strassen(node, ins, outs, Strassen(products), target)

    return lower


def operands(node: Node) -> tuple[list[Operand], list[Operand]]:
    types = [value.type for value in node.inputs], node.types
    ins, outs = ([Operand(t, contiguous_strides(t.shape)) for t in side] for side in types)
    return ins, outs


LIMITS = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("target", VECTORS, ids=lambda t: t.name)
@pytest.mark.parametrize("pixels", [(4, 4), (5, 5), (1, 17), (3, 7)])
@pytest.mark.parametrize("channels, outputs", [(8, 32), (6, 10), (34, 64), (10, 72)])
def test_any_sizes(target: Target, pixels: tuple[int, int], channels: int, outputs: int) -> None:
    """With room behind the channels of every pixel, as in views of concatenated tensors, and without."""
    node, arrays = layer_case((1, *pixels, channels), outputs, EVERYTHING)
    check(forced(), node, arrays, target, **LIMITS, pad=3)


@pytest.mark.parametrize("target", VECTORS, ids=lambda t: t.name)
@pytest.mark.parametrize("epilogue", [(), (("bias",),), (("residual",), RELU), (RELU,), EVERYTHING])
def test_every_epilogue_on_every_vector_length(target: Target, epilogue: tuple[Any, ...]) -> None:
    node, arrays = layer_case((2, 5, 7, 12), 24, epilogue)
    check(forced(), node, arrays, target, **LIMITS, pieces=3)


@pytest.mark.parametrize("rows, vectors", [(1, 1), (2, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("pixels", [16, 17])
def test_every_block_of_registers(rows: int, vectors: int, pixels: int) -> None:
    node, arrays = layer_case((1, pixels, 1, 8), 40, EVERYTHING)
    check(forced(Direct(vectors, rows, rows)), node, arrays, made_target(128), **LIMITS, pieces=2)


@pytest.mark.parametrize("target", VECTORS, ids=lambda t: t.name)
def test_rows_of_a_fully_connected_layer(target: Target) -> None:
    node, arrays = layer_case((2, 19, 20), 36, EVERYTHING, "fc")
    check(forced(), node, arrays, target, **LIMITS, pad=1)


def test_the_residual_may_be_overwritten() -> None:
    node, arrays = layer_case((1, 5, 5, 8), 16, EVERYTHING)
    check(forced(), node, arrays, made_target(128), **LIMITS, in_place=3)


@pytest.mark.parametrize("shape, outputs", [((1, 9, 13, 96), 34), ((2, 7, 13, 96), 50), ((1, 7, 12, 96), 40)])
def test_pieces_of_the_pairs(shape: tuple[int, ...], outputs: int) -> None:
    """Several tasks of several pieces, each with its own place for sums of inputs, which the tasks before leave alone."""
    target = made_target(128)
    node, arrays = layer_case(shape, outputs, EVERYTHING)
    ins, outs = operands(node)
    (call,) = lower_strassen(node, ins, outs, Strassen(), target)
    assert call.tasks % shape[0] == 0 and call.tasks > shape[0]
    check(forced(), node, arrays, target, **LIMITS, pieces=5)
    tensors = [Tensor(a, v.type.dtype) for a, v in zip(arrays, node.inputs, strict=True)]
    out = Tensor(np.zeros(node.types[0].shape, np.float32), "float32")
    room = call.refs[1].nbytes // call.tasks
    for task in range(call.tasks):
        sums = np.zeros(call.refs[1].nbytes, np.uint8)
        pointers = {"weights": lambda ref: Pointer(ref.array.view(np.uint8), 0), "scratch": lambda _, held=sums: Pointer(held, 0)}
        pointers |= {"input": lambda ref: Pointer(tensors[ref.index].memory, 0), "output": lambda _: Pointer(out.memory, 0)}
        compile_kernel(call.kernel)(*(pointers[ref.kind](ref) for ref in call.refs), task, task + 1)
        (touched,) = np.nonzero(sums)
        assert task * room <= touched.min() and touched.max() < (task + 1) * room


@pytest.mark.parametrize("pixels", [35, 36])
@pytest.mark.parametrize("products", [None, Direct(1, 4, 4, blocks=3, ahead=True), Direct(3, 2, 2, fill=3)])
def test_heavy_weights_pass_once(pixels: int, products: Direct | None) -> None:
    """Where sums of inputs are made by a kernel of their own: whole, and in pieces of both kernels' tasks."""
    target = made_target(512, masked=True)
    node, arrays = layer_case((2, pixels, 1, 160), 176, EVERYTHING)
    ins, outs = operands(node)
    summing, multiplying = lower_strassen(node, ins, outs, Strassen(products), target)
    assert summing.tasks % 2 == multiplying.tasks % 2 == 0 and multiplying.tasks > 2
    check(forced(products), node, arrays, target, **LIMITS, pieces=4)


def test_with_registers_for_three_blocks() -> None:
    target = replace(made_target(512, masked=True), vector_registers=32)
    node, arrays = layer_case((1, 9, 9, 32), 70, EVERYTHING)
    check(forced(), node, arrays, target, **LIMITS)
    with pytest.raises(ValueError, match="too large"):
        lower_strassen(node, *operands(node), Strassen(Direct(12, 1, 1)), target)


def test_rows_of_which_some_are_not_real_are_not_added() -> None:
    """They may hold anything, NaN as well."""
    node, _ = layer_case((1, 196, 512), 512, (), "fc")
    for counted in (False, True):
        (*_, call) = lowerings("speed", counted=counted)["fc"](node, *operands(node), ZEN4)
        assert call.kernel.name.startswith("fc_f32" if counted else "strassen_products")


def test_measured_choices() -> None:
    node, _ = layer_case((1, 14, 14, 64), 64)
    ins, outs = operands(node)
    key = kernel_key(node, ins, outs)

    def kernel(choice: Choice, goal: str = "speed", weights: Node = node) -> str:
        return lowerings(goal, Tuning({key: choice}, "table", ""))["conv"](weights, ins, outs, made_target(256))[-1].kernel.name

    assert kernel(Strassen()).startswith("strassen_products")
    assert kernel(Strassen(), "size").startswith("conv_f32")
    assert kernel(from_plain(to_plain(Strassen(Direct(1, 4, 4))))).startswith("strassen_products")
    w = np.ones((64, 1, 1, 64), np.float32)
    w[3] /= 4096
    other = node_of("conv", [np.zeros((1, 14, 14, 64), np.float32), w], dict(node.attrs), [1])
    assert kernel(Strassen(), weights=other).startswith("conv_f32")  # the same key, weights that must not be added
    with pytest.raises(OptionError, match="measure it anew"):
        kernel(Strassen(Direct(40, 1, 1)))


@pytest.mark.parametrize("target", runnable_targets())
@pytest.mark.parametrize("shape, outputs", [((1, 9, 9, 64), 64), ((1, 5, 5, 30), 42), ((2, 7, 7, 256), 200)])
def test_native_code(target: str, shape: tuple[int, ...], outputs: int) -> None:
    node, arrays = layer_case(shape, outputs, EVERYTHING)
    check(forced(), node, arrays, find_target(target), rtol=1e-4, atol=2e-4, how="native")


def test_an_image_does_not_depend_on_the_others() -> None:
    node, arrays = layer_case((3, 3, 5, 8), 16, (("bias",),))
    whole = run_lowered(forced(), node, arrays, made_target(128))
    changed = [arrays[0].copy(), *arrays[1:]]
    changed[0][1:] = 1e30
    assert run_lowered(forced(), node, changed, made_target(128))[0].tobytes() == whole[0].tobytes()


@pytest.mark.parametrize("channels", [16, 128])
def test_the_error_against_float64_is_within_the_bound(channels: int) -> None:
    """And less than four times that of the same sums in order."""
    node, arrays = layer_case((1, 8, 8, channels), 32)
    a, w = np.maximum(arrays[0], 0), arrays[1].reshape(32, channels)
    exact = a.astype(np.float64) @ w.T.astype(np.float64)
    direct = np.zeros(exact.shape, np.float32)
    for c in range(channels):
        direct += a[..., c, None] * w[:, c]
    error = np.abs(run_lowered(forced(), node, [a, arrays[1]], made_target(256, masked=True)) - exact).max()
    assert 0 < error < error_bound(channels) * np.abs(a).max() * np.abs(w).max()
    assert error < 4 * np.abs(direct - exact).max()


@pytest.mark.parametrize(
    "shape, outputs, expected",
    [
        ((1, 14, 14, 512), 512, True),
        ((1, 25, 5, 64), 64, True),
        ((4, 196, 384), 384, True),  # rows of a transformer, image by image
        ((64, 512), 512, False),  # rows that are images
        ((64, 2, 2, 512), 512, False),  # two pairs of pixels in an image
        ((1, 56, 56, 64), 16, False),  # the sums cost more than they save
        ((1, 14, 14, 512), 511, False),
        ((1, 14, 14, 511), 512, False),
    ],
)
def test_where_it_is_chosen(shape: tuple[int, ...], outputs: int, expected: bool) -> None:
    node, _ = layer_case(shape, outputs, (("bias",),), "conv" if len(shape) == 4 else "fc")
    ins, outs = operands(node)
    assert (choose_strassen(node, ins, outs, ZEN4) is not None) == expected
    fast = {goal: len(lowerings(goal)[node.op](node, ins, outs, ZEN4)[-1].refs) for goal in ("speed", "size", "memory")}
    assert fast["size"] == fast["memory"] == 3 and (fast["speed"] > 3) == expected


def test_what_it_cannot_do() -> None:
    target = made_target(128)
    node, _ = layer_case((1, 8, 8, 8), 8)
    ins, outs = operands(node)
    assert serves_strassen(node, ins, outs, target)
    assert not serves_strassen(node, ins, outs, made_target(0))
    wide = Operand(TensorType((1, 8, 8, 8)), (800, 100, 8, 1))
    assert not serves_strassen(node, [wide, *ins[1:]], outs, target)  # rows of pixels apart
    assert not serves_strassen(node, ins, [wide], target)
    for attrs in ({"strides": (2, 1)}, {"pads_begin": (1, 0)}, {"pads_end": (0, 1)}):
        shape = (1, 4 if "strides" in attrs else 8 + (attrs.get("pads_begin", (0,))[0]), 8 + attrs.get("pads_end", (0, 0))[1], 8)
        other = node_of(
            "conv", [np.zeros((1, 8, 8, 8), np.float32), np.ones((8, 1, 1, 8), np.float32)], {**node.attrs, **attrs}, [1]
        )
        assert other.types[0].shape == shape and not serves_strassen(other, *operands(other), target)
        with pytest.raises(ValueError, match="Strassen"):
            lower_chosen(other, *operands(other), target, Strassen())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("factor, expected", [(1.0, True), (2.0**-7, True), (2.0**-12, False), (2.0**-40, True), (0.0, True)])
def test_weights_of_different_sizes_are_multiplied_directly(axis: int, factor: float, expected: bool) -> None:
    """An output or a channel that is small beside its partner would lose digits; one that is nothing has none."""
    w = np.random.default_rng(0).uniform(0.9, 1.0, (32, 64)).astype(np.float32)
    w[(3,) if axis == 0 else (slice(None), 5)] *= np.float32(factor)
    assert alike(w) == expected
    node = node_of(
        "conv", [np.zeros((1, 14, 14, 64), np.float32), w.reshape(32, 1, 1, 64)], layer_case((1, 14, 14, 64), 32)[0].attrs, [1]
    )
    assert serves_strassen(node, *operands(node), ZEN4) == expected
