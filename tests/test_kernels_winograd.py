"""Winograd convolutions: the algebra, every border, the epilogue, and the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import TARGETS, add_epilogue, check, made_target, node_of, run_lowered
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Winograd
from cortado.compiler.kernels.table import lower_chosen
from cortado.compiler.kernels.winograd import choose_winograd, lower_winograd
from cortado.compiler.kernels.winograd_algebra import TILES, error_bound, filtering
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

FILTERINGS = [(m, taps) for taps, sizes in TILES.items() for m in sizes]
VECTORS = [t for t in TARGETS if t.vector_bits]
RELU = ("activation", "relu", ())


def conv_case(
    shape: tuple[int, ...],
    outputs: int,
    before: tuple[int, int],
    after: tuple[int, int],
    epilogue: tuple[Any, ...],
    seed: int = 0,
    group: int = 1,
    taps: int = 3,
) -> tuple[Node, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape, np.float32), rng.standard_normal((outputs, taps, taps, shape[3] // group), np.float32)]
    out = (shape[0], *(shape[1 + i] + before[i] + after[i] - taps + 1 for i in range(2)), outputs)
    fixed = add_epilogue(epilogue, out, arrays, rng)
    attrs = {
        "strides": (1, 1), "dilations": (1, 1), "pads_begin": before, "pads_end": after, "group": group, "epilogue": epilogue,
    }  # fmt: skip
    return node_of("conv", arrays, attrs, fixed), arrays


def forced(m: int) -> Any:
    """A lowering that takes tiles of m x m whether they pay or not."""

    def lower(node: Node, ins: Any, outs: Any, target: Target) -> list[KernelCall]:
        return lower_winograd(node, ins, outs, Winograd(m), target)

    return lower


def limits(m: int, taps: int) -> dict[str, float]:
    """What a convolution of normal values may differ by: eight products enlarge errors more than six do."""
    return {"rtol": 1e-4, "atol": 1e-4 if m + taps < 9 else 5e-4}


@pytest.mark.parametrize("m, taps", FILTERINGS)
def test_one_dimension_is_a_correlation(m: int, taps: int) -> None:
    f, rng = filtering(m, taps), np.random.default_rng(1)
    assert (f.taps, f.size) == (taps, m + taps - 1)
    d, g = rng.standard_normal(f.size), rng.standard_normal(taps)
    got = f.output @ ((f.filter @ g) * (f.input @ d))
    np.testing.assert_allclose(got, np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m, taps", FILTERINGS)
def test_the_error_against_float64_is_within_the_bound(m: int, taps: int) -> None:
    f, rng, channels = filtering(m, taps), np.random.default_rng(m), 64
    w = rng.standard_normal((4, taps, taps, channels)).astype(np.float32)
    tile = rng.choice([-1.0, 1.0], (f.size, f.size, channels)).astype(np.float32)
    single = f.filters(w).reshape(f.size, f.size, 4, channels)
    b, a = f.input.astype(np.float32), f.output.astype(np.float32)
    v = np.einsum("ij,jlc,kl->ikc", b, tile, b, dtype=np.float32)
    products = np.einsum("ikoc,ikc->iko", single, v, dtype=np.float32)
    got = np.einsum("ij,jlo,kl->iko", a, products, a, dtype=np.float32)
    wide = tile.astype(np.float64)
    exact = np.zeros((m, m, 4))
    for y in range(m):
        for x in range(m):
            exact[y, x] = np.einsum("ijc,oijc->o", wide[y : y + taps, x : x + taps], w.astype(np.float64))
    error = np.abs(got - exact).max(axis=(0, 1))
    allowed = error_bound(f, channels) * np.abs(w).sum(axis=(1, 2, 3))
    assert (error > 0).all() and (error < allowed).all() and (error * 1e5 > allowed).all()
    assert error.max() < {4: 1e-6, 6: 2e-6, 8: 1e-5}[f.size] * np.abs(exact).max()


@pytest.mark.parametrize("m, taps, other, fewer", [(2, 5, 4, 3), (4, 5, 6, 3)])
def test_errors_are_enlarged_as_much_as_with_fewer_taps_and_the_same_products(m: int, taps: int, other: int, fewer: int) -> None:
    assert filtering(m, taps).enlargement == pytest.approx(filtering(other, fewer).enlargement, rel=1e-9)


@pytest.mark.parametrize("m, taps", FILTERINGS)
@pytest.mark.parametrize("pads", ["same", "none", "all"])
@pytest.mark.parametrize("more", [(0, 2), (5, 8)])
def test_every_border_and_size(m: int, taps: int, pads: str, more: tuple[int, int]) -> None:
    """more: pixels of the image beyond the taps."""
    half, most = taps // 2, taps - 1
    before, after = {"same": ((half, half), (half, half)), "none": ((0, 0), (0, 0)), "all": ((most, 1), (0, most))}[pads]
    node, arrays = conv_case((1, taps + more[0], taps + more[1], 8), 4, before, after, (("bias",), RELU), sum(more), taps=taps)
    check(forced(m), node, arrays, made_target(128), **limits(m, taps), pad=3)


@pytest.mark.parametrize("target", VECTORS, ids=lambda t: t.name)
@pytest.mark.parametrize("epilogue", [(), (("bias",),), (("residual",), RELU), (("bias",), ("residual",), RELU)])
def test_every_epilogue_on_every_vector_length(target: Target, epilogue: tuple[Any, ...]) -> None:
    node, arrays = conv_case((2, 6, 7, 16), 16, (1, 1), (1, 1), epilogue)
    check(forced(4), node, arrays, target, rtol=1e-4, atol=1e-4, pieces=3)


def test_the_residual_may_be_overwritten() -> None:
    node, arrays = conv_case((1, 9, 9, 8), 8, (1, 1), (1, 1), (("bias",), ("residual",), RELU))
    check(forced(4), node, arrays, made_target(128), rtol=1e-4, atol=1e-4, in_place=3)


EVERYTHING = (("bias",), ("residual",), RELU)
# Channels, outputs, groups: that fill no vector, or only shorter ones.
PARTIAL = [(1, 1, 1), (3, 5, 1), (17, 9, 1), (24, 40, 1), (16, 30, 1), (12, 8, 4), (10, 6, 2), (48, 32, 2)]


@pytest.mark.parametrize("m, taps", [filtering for filtering in FILTERINGS if filtering[1] != 3])
@pytest.mark.parametrize("target", VECTORS, ids=lambda t: t.name)
@pytest.mark.parametrize("channels, outputs, group", [(5, 7, 1), (12, 20, 2)])
def test_any_taps(target: Target, m: int, taps: int, channels: int, outputs: int, group: int) -> None:
    node, arrays = conv_case((1, 6, 7, channels), outputs, (2, 2), (2, 2), EVERYTHING, group=group, taps=taps)
    check(forced(m), node, arrays, target, **limits(m, taps), pad=1)
    check(forced(m), node, arrays, target, **limits(m, taps), in_place=3)


@pytest.mark.parametrize("target", VECTORS, ids=lambda t: t.name)
@pytest.mark.parametrize("channels, outputs, group", PARTIAL)
def test_any_channels_outputs_and_groups(target: Target, channels: int, outputs: int, group: int) -> None:
    """With room behind the channels of every pixel, as in views of concatenated tensors, and without."""
    for pad, m in ((3, 4), (0, 2)):
        node, arrays = conv_case((2, 5, 6, channels), outputs, (1, 1), (1, 1), EVERYTHING, group=group)
        check(forced(m), node, arrays, target, rtol=2e-4, atol=2e-4, pad=pad)


def test_channels_that_fill_no_vector_may_overwrite_the_residual() -> None:
    node, arrays = conv_case((1, 5, 9, 8), 7, (1, 1), (1, 1), EVERYTHING)
    check(forced(4), node, arrays, made_target(128), rtol=1e-4, atol=1e-4, in_place=3)


@pytest.mark.parametrize("name", runnable_targets())
@pytest.mark.parametrize("channels, outputs, group", PARTIAL)
def test_any_channels_outputs_and_groups_compiled(name: str, channels: int, outputs: int, group: int) -> None:
    node, arrays = conv_case((1, 9, 14, channels), outputs, (1, 1), (1, 1), EVERYTHING, group=group)
    check(forced(4), node, arrays, find_target(name), rtol=2e-4, atol=2e-4, how="native", pad=5)


@pytest.mark.parametrize("name", runnable_targets())
@pytest.mark.parametrize("m, taps", [filtering for filtering in FILTERINGS if filtering[1] != 3])
@pytest.mark.parametrize("channels, outputs, group", [(3, 5, 1), (24, 40, 1), (10, 6, 2)])
def test_any_taps_compiled(name: str, m: int, taps: int, channels: int, outputs: int, group: int) -> None:
    node, arrays = conv_case((1, 9, 15, channels), outputs, (3, 1), (0, 4), EVERYTHING, group=group, taps=taps)
    check(forced(m), node, arrays, find_target(name), **limits(m, taps), how="native", pad=5)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("m, shape, outputs", [(4, (1, 28, 28, 128), 128), (2, (1, 7, 7, 64), 64), (4, (2, 13, 17, 48), 96)])
def test_compiled(name: str, m: int, shape: tuple[int, ...], outputs: int) -> None:
    node, arrays = conv_case(shape, outputs, (1, 1), (1, 1), (("bias",), RELU))
    scale = 3.0 * np.sqrt(shape[3])
    check(forced(m), node, arrays, find_target(name), rtol=2e-5, atol=1e-5 * scale, how="native")


@pytest.mark.parametrize("m, taps", [(6, 3), (3, 5), (6, 5)])
def test_other_tiles_are_refused(m: int, taps: int) -> None:
    node, arrays = conv_case((1, 9, 9, 8), 8, (1, 1), (1, 1), (), taps=taps)
    with pytest.raises(ValueError, match=rf"F\({m}\) is not one of F\(2\), F\(4\)"):
        run_lowered(forced(m), node, arrays, made_target(128))


@pytest.mark.parametrize("kernel", [(1, 5), (5, 1), (3, 5), (7, 7), (2, 2)])
def test_other_kernels_are_refused(kernel: tuple[int, int]) -> None:
    arrays = [np.ones((1, 56, 56, 64), np.float32), np.ones((64, *kernel, 64), np.float32)]
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0), "group": 1, "epilogue": ()}
    node = node_of("conv", arrays, attrs, [1])
    types = [*(value.type for value in node.inputs), node.types[0]]
    operands = [Operand(t, contiguous_strides(t.shape)) for t in types]
    target = find_target("x86-64-v3")
    assert choose_winograd(node, operands[:2], operands[2:], target) is None
    with pytest.raises(ValueError, match="cannot be done by Winograd"):
        lower_chosen(node, operands[:2], operands[2:], target, Winograd(2))


def chosen(shape: tuple[int, ...], outputs: int, target: str = "x86-64-v3", group: int = 1, taps: int = 3, **attrs: Any) -> int:
    pads = (taps // 2,) * 2
    node, _ = conv_case(shape, outputs, pads, pads, (("bias",), RELU), group=group, taps=taps)
    if attrs:
        node = Node(node.op, node.inputs, {**node.attrs, **attrs}, node.types, node.name)
    out = TensorType((shape[0], shape[1], shape[2], outputs))
    kinds = [TensorType(shape), TensorType((outputs, taps, taps, shape[3] // group)), out]
    operands = [Operand(t, contiguous_strides(t.shape)) for t in kinds]
    choice = choose_winograd(node, operands[:2], operands[2:], find_target(target))
    return 0 if choice is None else choice.m


def test_it_is_chosen_where_multiplications_dominate_and_defined_only_there() -> None:
    assert chosen((1, 56, 56, 64), 64) == 4
    assert chosen((1, 28, 28, 128), 128) == 4
    assert chosen((1, 56, 56, 64), 64, strides=(2, 2)) == 0
    assert chosen((1, 56, 56, 64), 64, dilations=(2, 2)) == 0
    assert chosen((1, 56, 56, 60), 9) == 4, "channels need not fill vectors"
    assert chosen((1, 28, 28, 96), 96, group=2) == 4
    assert chosen((1, 112, 112, 3), 32) == 0, "the transforms of the outputs cost more than they save"
    assert chosen((1, 56, 56, 64), 64, group=64) == 0, "there is a faster way for depthwise convolutions"
    assert chosen((1, 56, 56, 64), 64, target="cortex-m4") == 0


@pytest.mark.parametrize("target", ["x86-64-v3", "znver4"])
def test_it_is_chosen_where_it_was_measured_to_be_faster(target: str) -> None:
    """Each 1.5 to 3 times faster, on either target."""
    for size, channels, outputs, group in ((56, 16, 16, 1), (28, 24, 24, 1), (14, 40, 40, 1), (14, 56, 56, 1), (112, 32, 9, 1)):
        assert chosen((1, size, size, channels), outputs, target, group) == 4
    assert chosen((1, 13, 13, 192), 192, target, 2) == 4
    assert chosen((1, 28, 28, 128), 128, target, 8) == 4
    assert chosen((1, 40, 40, 128), 128, target, 32) == 0, "vectors hold the outputs of several groups"
    assert chosen((1, 10, 10, 512), 512, target, 32) == 0, "the weights of short products are waited for"
    assert chosen((1, 224, 224, 3), 64, target) == 0, "between the transforms there is more than the last cache level holds"


@pytest.mark.parametrize("target", ["x86-64-v3", "znver4"])
def test_five_taps_are_chosen_where_they_were_measured_to_be_faster(target: str) -> None:
    """Each 1.4 to 4.5 times faster, on either target."""
    layers = [(12, 20, 50, 1), (27, 96, 256, 2), (28, 16, 32, 1), (28, 32, 96, 1), (14, 16, 48, 1), (14, 24, 64, 1)]
    for size, channels, outputs, group in [*layers, (14, 32, 128, 1), (7, 32, 128, 1), (7, 48, 128, 1), (56, 8, 16, 1)]:
        assert chosen((1, size, size, channels), outputs, target, group, 5) == 4, (size, channels, outputs, group)
    assert chosen((1, 6, 6, 64), 64, target, taps=5) == 2, "a quarter of the larger tiles' outputs would not exist"
    for size, channels, outputs in ((28, 1, 20), (112, 1, 64), (224, 3, 64), (3, 128, 128)):
        assert chosen((1, size, size, channels), outputs, target, taps=5) == 0, (size, channels, outputs)
    assert chosen((1, 28, 28, 32), 96, target, taps=5, strides=(2, 2)) == 0
    assert chosen((1, 28, 28, 32), 32, target, 32, 5) == 0, "there is a faster way for depthwise convolutions"


def test_tiny_layers_keep_their_small_weights() -> None:
    """A microsecond is not worth four times the weights; the same channels in a larger image are."""
    assert chosen((1, 6, 6, 16), 16) == 0
    assert chosen((1, 56, 56, 16), 32) == 4
