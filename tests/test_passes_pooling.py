"""The mean of a quantized convolution's pixels: where it becomes part of the convolution, and what is computed then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import Net, feeds_of, ops
from test_quantize import assert_same_bits, quantized, samples, snr

import cortado
from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph, Value
from cortado.compiler.options import CompileOptions
from cortado.compiler.passes.fuse_pooling import fuse_pooling
from cortado.compiler.pipeline import compile_program
from cortado.compiler.quantize.boundary import integer_boundary
from cortado.compiler.reference import run_graph
from cortado.compiler.rewrite import Steps

WHOLE = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0), "count_include_pad": True}


def classifier(pool: str, size: int = 5, kernel: int = 1, last: bool = True) -> Graph:
    """Two convolutions, the mean of all pixels, and perhaps a layer behind it."""
    net = Net()
    x = net.op("relu", net.conv(net.input(2, size, size, 4), 8, 3, pad=1))
    x = net.op("relu", net.conv(x, 20, kernel, pad=kernel // 2, name="top"))
    x = mean(net, x, pool)
    return net.graph(net.fc(net.op("reshape", x, shape=(2, 20)), 7) if last else x)


def mean(net: Net, x: Value, pool: str) -> Value:
    if pool == "reduce_mean":
        return net.op(pool, x, axes=(1, 2), keepdims=False, name="mean")
    return net.op(pool, x, kernel=x.shape[1:3], **WHOLE, name="mean")


def fused(graph: Graph) -> Graph:
    """With the same bits."""
    after, feeds = fuse_pooling(graph, Steps()), feeds_of(graph)
    wanted, got = run_graph(graph, feeds), run_graph(after, feeds)
    assert all(np.array_equal(wanted[name], got[name]) for name in wanted)
    return after


@pytest.mark.parametrize("pool", ["reduce_mean", "average_pool"])
def test_the_image_between_layers_is_not_stored(pool: str) -> None:
    made, _ = quantized(classifier(pool))
    after = fused(made)
    assert "q_conv_mean" not in ops(made) and ops(after)["q_conv"] == 1 and ops(after)["q_conv_mean"] == 1
    assert not {"q_mean", "q_average_pool", "dequantized_mean"} & ops(after).keys()
    node = next(node for node in after.nodes() if node.op == "q_conv_mean")
    assert node.name == "mean" and {"op:top", "op:mean"} < set(node.origin)


@pytest.mark.parametrize("pool", ["reduce_mean", "average_pool"])
def test_behind_the_last_layer_the_mean_is_float(pool: str) -> None:
    graph = classifier(pool, last=False)
    made, _ = quantized(graph)
    assert ops(made)["dequantized_mean"] == 1 and "dequantize" not in ops(made), "no image of floats"
    assert made.outputs[0][1].type.dtype == "float32" and snr(graph, made) > 35
    assert "dequantized_mean" not in ops(fused(made))
    whole = integer_boundary(made, "uint8")
    assert ops(whole)["q_mean"] == 1 and whole.outputs[0][1].type.dtype == "uint8"
    feeds = feeds_of(whole)
    quant = whole.outputs[0][1].type.quant
    real = made.inputs[0].out()
    given = next(iter(feeds.values())).astype(np.float32) - np.float32(whole.inputs[0].types[0].quant.zero_points[0])
    (want,) = run_graph(made, {repr(real): given * np.float32(whole.inputs[0].types[0].quant.scales[0])}).values()
    (got,) = run_graph(whole, feeds).values()
    assert np.abs((got.astype(int) - quant.zero_points[0]) * quant.scales[0] - want).max() <= 0.51 * quant.scales[0]


def test_only_where_nobody_else_reads_the_image_and_every_panel_may_pass_it() -> None:
    for graph in (classifier("reduce_mean", kernel=3), classifier("reduce_mean", size=140)):
        made, _ = quantized(graph)
        assert fuse_pooling(made, Steps()) is made
    net = Net()
    top = net.op("relu", net.conv(net.conv(net.input(1, 5, 5, 4), 8), 20))
    graph = net.graph(net.fc(mean(net, top, "reduce_mean"), 7), net.conv(top, 4))
    made, _ = quantized(graph)
    assert "q_conv_mean" not in ops(fuse_pooling(made, Steps()))


def test_part_of_the_image_stays_a_pool_of_its_own() -> None:
    net = Net()
    top = net.conv(net.conv(net.input(1, 5, 5, 4), 8), 20)
    windows: dict[str, Any] = {**WHOLE, "kernel": (4, 5)}
    made, _ = quantized(net.graph(net.conv(net.op("average_pool", top, **windows), 4)))
    assert "q_conv_mean" not in ops(fuse_pooling(made, Steps())) and ops(made)["q_average_pool"] == 1


@pytest.mark.parametrize("last", [True, False])
def test_compiled(last: bool) -> None:
    graph = classifier("reduce_mean", last=last)
    assert_same_bits(graph)
    record = cortado.calibrate(graph, samples(graph))
    for goal, expected in (("speed", True), ("memory", True), ("size", False)):
        options = CompileOptions(dtype="int8", optimize_for=goal)
        program, _ = compile_program(graph, find_target("cortex-m4"), options, record)
        assert ("q_conv_mean" in [step.op for step in program.steps]) == expected
