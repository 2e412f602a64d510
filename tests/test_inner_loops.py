"""The inner loops of convolution tiles, as assembly: multiply-adds and the loads they need, nothing kept on the stack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from lowered import node_of
from test_kernels_conv import attrs_of
from test_kernels_quantized import conv as quantized_conv

from cortado.backends.codegen import assembly
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.kernels.table import LOWERINGS
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.target import Target

LABEL = re.compile(r"^(\.?L\w+):")
JUMP = re.compile(r"^(?:j[a-z]+|b\.[a-z]+|cbn?z|tbn?z)\s.*?(\.?L\w+)$")
STACK = re.compile(r"\(%rsp|\[sp")
PRODUCT = re.compile(r"^(v?fn?m(add|sub)\d*p|v?mulp|fmla|fmul|(\{vex\} )?v?pdp(bus|wss)d|v?pmaddwd)")

# spatial, channels, outputs, kernel, strides, pad
SHAPES = {
    "1x1": ((14, 14), 256, 256, 1, 1, 0), "3x3": ((14, 14), 64, 128, 3, 1, 1), "7x7, stride 2": ((32, 32), 3, 64, 7, 2, 3),
    "few outputs": ((14, 14), 96, 24, 1, 1, 0),
}  # fmt: skip


def inner_loops(text: str) -> Iterator[list[str]]:
    """The instructions of every loop that is one straight run, its jump included."""
    label, body = "", list[str]()
    for line in text.splitlines():
        begin = LABEL.match(line)
        instruction = re.sub(r"\s+", " ", line.split("#")[0].strip())
        if begin:
            label, body = begin.group(1), []
        elif line.startswith("\t") and instruction and not instruction.startswith("."):
            body.append(instruction)
            jump = JUMP.match(instruction)
            if jump and jump.group(1) == label:
                yield body
            if jump:
                label, body = "", []


def product_loops(node: Node, target: Target) -> list[list[str]]:
    """The inner loops of the node's tiles, those in which there are several products."""
    ins = [Operand(value.type, contiguous_strides(value.shape)) for value in node.inputs]
    outs = [Operand(kind, contiguous_strides(kind.shape)) for kind in node.types]
    found = []
    for call in LOWERINGS[node.op](node, ins, outs, target):
        for kernel in call.kernel.callees():
            for loop in inner_loops(assembly(emit_module([kernel], target, "t"), target)):
                if sum(map(bool, map(PRODUCT.match, loop))) >= 4:
                    found.append(loop)
    return found


def check(loops: Sequence[Sequence[str]], least_share: float) -> None:
    assert loops
    for loop in loops:
        text = "\n".join(loop)
        assert not any(STACK.search(line) for line in loop), text
        share = sum(map(bool, map(PRODUCT.match, loop))) / len(loop)
        assert share >= least_share, f"{share:.2f}\n{text}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "least_share"),
    [("x86-64-v3", 0.4), ("haswell", 0.4), ("x86-64-v4", 0.45), ("cortex-a55", 0.5), ("cortex-a72", 0.5), ("aarch64", 0.5)],
)
def test_float_tiles(name: str, least_share: float, shape: str) -> None:
    spatial, channels, outputs, kernel, stride, pad = SHAPES[shape]
    arrays = [np.zeros((1, *spatial, channels), np.float32), np.zeros((outputs, kernel, kernel, channels), np.float32)]
    attrs = attrs_of((spatial, channels, outputs, (kernel,) * 2, (stride,) * 2, (1, 1), (pad,) * 2, (pad,) * 2, 1))
    check(product_loops(node_of("conv", arrays, attrs, (1,)), find_target(name)), least_share)


@pytest.mark.parametrize("shape", ["1x1", "3x3", "few outputs"])
@pytest.mark.parametrize(
    ("name", "least_share"), [("x86-64-v3", 0.25), ("alderlake", 0.3), ("x86-64-v4", 0.25), ("znver4", 0.45)]
)
def test_quantized_tiles(name: str, least_share: float, shape: str) -> None:
    spatial, channels, outputs, kernel, stride, pad = SHAPES[shape]
    _, node, _ = quantized_conv((1, *spatial, channels), (outputs, kernel, kernel, channels), pads=pad, strides=stride)
    loops = product_loops(node, find_target(name))
    check(loops, least_share)
    if name == "znver4":  # bytes are read and spread, and where they have a sign, made unsigned, by one instruction
        assert not any(re.search(r"vpbroadcastd %", line) for loop in loops for line in loop)
