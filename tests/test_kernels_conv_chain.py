"""Chains of convolutions, row block by row block, against the reference: bit by bit on whole numbers; interpreted and native."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from lowered import check, made_target, node_of
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.conv_chain import lower_conv_chain
from cortado.compiler.ops import OPS
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.target import Target

TARGETS = tuple(made_target(bits, bits > 128) for bits in (128, 256, 512))
POINT = (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)
CLAMP = ("activation", "clip", (("hi", 9.0), ("lo", -4.0)))


@dataclass(frozen=True)
class Chain:
    """before, after: output channels of the other convolutions, 0 for none; the first one's kernel, strides, dilations and pads are `first`.

    ranges: of rows.
    """

    image: tuple[int, int, int, int]
    before: int
    after: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    multiplier: int = 1
    bias: bool = True
    residual: bool = False
    ranges: int = 3
    first: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int, int, int]] = POINT


CHAINS = (
    Chain((1, 9, 7, 5), 19, 6),
    Chain((2, 8, 9, 4), 16, 9, residual=True),
    Chain((1, 11, 6, 3), 17, 5, strides=(2, 2)),
    Chain((1, 10, 5, 8), 0, 11, residual=True),
    Chain((1, 9, 8, 6), 13, 0),
    Chain((1, 12, 7, 3), 8, 4, kernel=(5, 5), pads=(2, 2, 2, 2)),
    Chain((1, 13, 9, 2), 9, 3, dilations=(2, 3), pads=(2, 3, 2, 3)),
    Chain((3, 7, 6, 2), 5, 8, kernel=(2, 4), strides=(1, 2), pads=(0, 1, 1, 2), bias=False),
    Chain((1, 14, 4, 3), 6, 7, strides=(3, 1), pads=(0, 1, 0, 1)),
    Chain((1, 6, 5, 3), 4, 9, multiplier=2),
    Chain((1, 3, 3, 2), 20, 18, kernel=(5, 3), pads=(2, 1, 2, 1), ranges=1),
    Chain((1, 17, 13, 3), 18, 7, first=((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
    Chain((2, 16, 12, 3), 8, 5, strides=(2, 2), first=((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))),
    Chain((1, 9, 8, 4), 17, 0, first=((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), ranges=4),
    Chain((1, 13, 14, 5), 6, 9, first=((2, 4), (1, 3), (2, 1), (1, 2, 1, 0)), bias=False),
    Chain((1, 12, 9, 6), 20, 4, first=((1, 1), (2, 1), (1, 1), (0, 0, 0, 0))),
    Chain((1, 5, 9, 3), 7, 8, kernel=(3, 3), pads=(1, 1, 1, 1), first=((5, 3), (1, 2), (1, 1), (0, 1, 0, 1))),
)


def made(chain: Chain, dtype: str = "float32") -> tuple[Node, list[np.ndarray]]:
    """A node and whole numbers for its inputs, small enough that no sum is rounded."""
    rng = np.random.default_rng(11)

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(-3, 4, shape).astype(dtype)

    channels, stages = chain.image[-1], []
    arrays = [numbers(*chain.image)]
    bias = (("bias",),) * chain.bias

    def add(outputs: int, kernel: tuple[int, int], attrs: dict[str, Any], epilogue: tuple[Any, ...]) -> None:
        arrays.append(numbers(outputs, *kernel, channels // attrs["group"]))
        arrays.extend([numbers(outputs)] * chain.bias)
        stages.append({**attrs, "epilogue": epilogue})

    if chain.before:
        add(chain.before, chain.first[0], window(*chain.first[1:], 1), (*bias, CLAMP))
        channels = chain.before
    add(channels * chain.multiplier, chain.kernel, window(chain.strides, chain.dilations, chain.pads, channels), (*bias, CLAMP))
    channels *= chain.multiplier
    if chain.after:
        add(chain.after, POINT[0], window(*POINT[1:], 1), bias)
    if chain.residual:
        plain = node_of("conv_chain", arrays, attributes(stages, chain.ranges))
        arrays.append(numbers(*plain.types[0].shape))
        stages[-1]["epilogue"] += (("residual",),)
    fixed = range(1, len(arrays) - chain.residual)
    return node_of("conv_chain", arrays, attributes(stages, chain.ranges), fixed), arrays


def window(strides: tuple[int, int], dilations: tuple[int, int], pads: tuple[int, int, int, int], group: int) -> dict[str, Any]:
    return {"strides": strides, "dilations": dilations, "pads_begin": pads[:2], "pads_end": pads[2:], "group": group}


def attributes(stages: list[dict[str, Any]], ranges: int) -> dict[str, Any]:
    return {"stages": tuple(tuple(sorted(own.items())) for own in stages), "ranges": ranges}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_chains(chain: Chain, target: Target) -> None:
    """Whole and in pieces of tasks, the last ones first: ranges have rows and buffers of their own."""
    check(lower_conv_chain, *made(chain), target, pad=3)


def test_float64() -> None:
    for chain in CHAINS[:4]:
        check(lower_conv_chain, *made(chain, "float64"), TARGETS[2])


def test_random_chains() -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        kernel = tuple(int(rng.integers(2, 6)) for _ in range(2))
        dilations = tuple(int(rng.integers(1, 3)) for _ in range(2))
        reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        pads = tuple(int(rng.integers(0, r + 1)) for r in reach * 2)
        image = (int(rng.integers(1, 3)), *(int(r + rng.integers(3, 12)) for r in reach), int(rng.integers(1, 9)))
        before, after = ((0, 7), (11, 0), (18, 5))[rng.integers(3)]
        side = int(rng.integers(1, 4))  # of the first one's kernel, whose output is as large as its input
        first = (side, side), (1, 1), (1, 1), ((side - 1) // 2,) * 2 + (side // 2,) * 2
        chain = Chain(
            image, before, after, kernel, tuple(int(s) for s in rng.integers(1, 4, 2)), dilations, pads,
            bias=bool(rng.integers(2)), residual=bool(rng.integers(2)) and after > 0, ranges=int(rng.integers(1, 6)), first=first,
        )  # fmt: skip
        if image[-1] == 1 and not before:
            continue
        check(lower_conv_chain, *made(chain), TARGETS[int(rng.integers(3))], pad=int(rng.integers(3)))


LARGER = (
    Chain((1, 28, 29, 12), 72, 20, residual=True),
    Chain((1, 41, 40, 8), 48, 17, strides=(2, 2)),
    Chain((2, 20, 19, 24), 0, 40, kernel=(5, 5), pads=(2, 2, 2, 2)),
    Chain((2, 49, 47, 3), 40, 24, first=((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
)


@pytest.mark.parametrize("name", runnable_targets())
@pytest.mark.parametrize("chain", LARGER, ids=str)
def test_native(chain: Chain, name: str) -> None:
    residual = chain.residual and chain.strides == (1, 1)
    check(lower_conv_chain, *made(replace(chain, residual=residual)), find_target(name), how="native", pad=5)


def test_scratch_is_what_the_ranges_need_and_no_more() -> None:
    """Two rows of depthwise output and the ring of their input rows, for each range."""
    node, _ = made(Chain((1, 64, 64, 8), 128, 16, ranges=4))
    ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
    outs = [Operand(node.types[0], contiguous_strides(node.types[0].shape))]
    (call,) = lower_conv_chain(node, ins, outs, find_target("x86-64-v3"))
    (scratch,) = (ref for ref in call.refs if ref.kind == "scratch")
    row = 64 * 128 * 4
    assert call.tasks == 4 and scratch.nbytes == 4 * (4 * row + 2 * row)


def test_multiply_adds_are_those_of_the_convolutions() -> None:
    node, _ = made(Chain((1, 8, 8, 4), 12, 6))
    macs = OPS["conv_chain"].macs
    assert macs is not None
    assert macs([value.type for value in node.inputs], node.attrs) == 64 * (4 * 12 + 9 * 12 + 12 * 6)
