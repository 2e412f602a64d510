"""Transposed convolution: phases against the definition, kernels against the reference, and what passes fold into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import check, made_target, node_of
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph, constant, graph_input
from cortado.compiler.interpret import run_program
from cortado.compiler.kernels.conv_transpose import lower_conv_transpose
from cortado.compiler.kernels.phases import phases
from cortado.compiler.lower import lower
from cortado.compiler.ops import make
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import run_graph
from cortado.compiler.types import TensorType


def attrs_of(
    strides: tuple[int, ...], begin: tuple[int, ...], end: tuple[int, ...], more: tuple[int, ...], group: int = 1
) -> dict[str, Any]:
    return {"strides": strides, "pads_begin": begin, "pads_end": end, "output_padding": more, "group": group, "epilogue": ()}


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "out"), [(5, 3, 2, 1, 10), (4, 2, 3, 0, 12), (6, 4, 2, -1, 13), (1, 5, 4, 2, 1)]
)
def test_phases_cover_every_pair_of_cell_and_tap_once(size: int, kernel: int, stride: int, pad: int, out: int) -> None:
    wanted = {(i * stride + t - pad, i, t) for i in range(size) for t in range(kernel) if 0 <= i * stride + t - pad < out}
    found = []
    for phase in phases(size, kernel, stride, pad, out):
        assert size + phase.pad_begin + phase.pad_end - len(phase.taps) + 1 == phase.count
        for n in range(phase.count):
            for place, tap in enumerate(phase.taps):
                cell = n + place - phase.pad_begin
                if 0 <= cell < size:
                    found.append((phase.first + n * stride, cell, tap))
    assert sorted(found) == sorted(wanted)


CASES = [
    ((1, 4, 5, 6), (7, 3, 3, 6), attrs_of((2, 2), (1, 1), (1, 1), (1, 0))),
    ((2, 3, 3, 4), (4, 2, 2, 2), attrs_of((2, 1), (0, 0), (0, 0), (0, 0), 2)),
    ((1, 3, 4, 3), (5, 2, 1, 3), attrs_of((3, 3), (0, 0), (0, 0), (0, 0))),  # phases that no tap reaches
    ((1, 5, 4, 8), (8, 4, 4, 1), attrs_of((2, 2), (1, 1), (1, 1), (0, 0), 8)),  # a channel each: bilinear upsampling
    ((2, 6, 5), (3, 4, 5), attrs_of((2,), (1,), (-2,), (0,))),
    ((1, 2, 3, 2, 4), (3, 2, 3, 2, 4), attrs_of((2, 1, 2), (0, 1, 0), (1, 1, 0), (1, 0, 0))),
]


@pytest.mark.parametrize(("x", "w", "attrs"), CASES)
@pytest.mark.parametrize("target", [made_target(0), made_target(128), made_target(512, masked=True)], ids=["scalar", "4", "16"])
def test_kernels_give_the_reference(x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any], target: Any) -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (x, w)]
    node = node_of("conv_transpose", arrays, attrs, fixed=[1])
    check(lower_conv_transpose, node, arrays, target, rtol=1e-5, atol=1e-5, pad=3)


@pytest.mark.parametrize("name", [name for name in runnable_targets() if name in ("x86-64", "x86-64-v3", "aarch64")])
def test_native_with_bias_residual_and_activation(name: str) -> None:
    rng = np.random.default_rng(4)
    attrs = {**attrs_of((2, 2), (1, 1), (1, 1), (1, 1)), "epilogue": (("bias",), ("residual",), ("activation", "relu", ()))}
    shapes = [(2, 5, 7, 12), (20, 3, 3, 12), (20,), (2, 10, 14, 20)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    node = node_of("conv_transpose", arrays, attrs, fixed=[1, 2])
    check(lower_conv_transpose, node, arrays, find_target(name), rtol=1e-5, atol=2e-5, pad=2, how="native")


def test_arithmetic_and_activations_go_into_the_layer() -> None:
    """A scale before, a scale and shift after and the activation; a shift before stays, since outer cells meet fewer taps."""
    rng = np.random.default_rng(5)
    x = graph_input("x", TensorType((1, 3, 3, 4))).out()
    numbers = [constant(rng.uniform(0.5, 2, n).astype(np.float32), f"c{i}") for i, n in enumerate((4, 4, 6, 6))]
    w = constant(rng.standard_normal((6, 3, 3, 4)).astype(np.float32), "w")
    value = make("add", (make("mul", (x, numbers[0]), {}, "scaled").out(), numbers[1]), {}, "shifted").out()
    value = make("conv_transpose", (value, w), attrs_of((2, 2), (1, 1), (1, 1), (0, 0)), "y").out()
    value = make("add", (make("mul", (value, numbers[2]), {}, "m").out(), numbers[3]), {}, "a").out()
    graph = Graph("", (x.node,), (("out", make("relu", (value,), {}, "r").out()),))
    better = optimize(graph)
    ops = [node.op for node in better.nodes() if node.op not in ("input", "constant")]
    assert ops.count("conv_transpose") == 1 and len(ops) == 2
    feeds = {"x": rng.standard_normal((1, 3, 3, 4)).astype(np.float32)}
    np.testing.assert_allclose(run_graph(better, feeds)["out"], run_graph(graph, feeds)["out"], rtol=1e-5, atol=1e-5)


def test_a_residual_may_be_overwritten() -> None:
    """relu(conv_transpose(x) + y) where y is no longer needed takes y's memory."""
    rng = np.random.default_rng(6)
    x = graph_input("x", TensorType((1, 3, 3, 4))).out()
    y = graph_input("y", TensorType((1, 6, 6, 5))).out()
    w = constant(rng.standard_normal((5, 4, 4, 4)).astype(np.float32), "w")
    up = make("conv_transpose", (x, w), attrs_of((2, 2), (1, 1), (1, 1), (0, 0)), "up").out()
    beside = make("softmax", (y,), {"axis": 3}, "beside").out()
    total = make("add", (up, beside), {}, "sum").out()
    graph = Graph("", (x.node, y.node), (("out", make("softmax", (total,), {"axis": 3}, "out").out()),))
    feeds = {n.name: rng.standard_normal(n.types[0].shape).astype(np.float32) for n in graph.inputs}
    program = lower(optimize(graph), made_target(128))
    arena = [buffer for buffer in program.buffers if buffer.place == "arena"]
    assert len(arena) == 1
    np.testing.assert_allclose(run_program(program, feeds)["out"], run_graph(graph, feeds)["out"], rtol=1e-5, atol=1e-6)
