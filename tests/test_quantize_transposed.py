"""Networks that grow their images again: quantized whole, and what quantization knows about transposed convolutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from compiled import Compiled
from graphs import Net, assert_same_meaning, ops
from native import X86_LEVELS, runnable_targets
from test_quantize import check_bias_correction, check_simulation, quantized, relu, samples, snr

import cortado
from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph, Value
from cortado.compiler.interpret import run_program
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.quantize.choose import quants_of
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.equalize import equalized, find_factors
from cortado.compiler.quantize.pays import estimated
from cortado.compiler.quantize.plan import make_plan
from cortado.compiler.quantize.quantize import calibrate, quantize_graph
from cortado.compiler.reference import run_graph
from cortado.execute import ReferenceExecutor

HALVES = {"kernel": (2, 2), "strides": (2, 2), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}


def unet(size: int = 16, width: int = 8) -> Graph:
    """Two levels down, two up, each beside what it was before; one of both usual kernels, 2x2 and 4x4."""
    net = Net()
    skips: list[Value] = []
    x = net.input(1, size, size, 3)
    for level in (0, 1):
        x = relu(net, even(net.conv(x, width << level, 3, pad=1)))
        skips.append(x)
        x = net.op("max_pool", x, **HALVES)
    x = relu(net, even(net.conv(x, width << 2, 3, pad=1)))
    for level, kernel in ((1, 2), (0, 4)):
        x = even(net.conv_transpose(x, width << level, kernel, 2, pad=kernel // 2 - 1))
        x = net.op("concat", x, skips[level], axis=3)
        x = relu(net, even(net.conv(x, width << level, 3, pad=1)))
    return net.graph(even(net.conv(x, 2)))


def even(layer: Value) -> Value:
    """The layer with filters that keep the size of numbers (He et al., 2015), as training leaves it."""
    filters = layer.node.inputs[1].node.attrs["value"]
    met = filters[0].size / (math.prod(layer.node.attrs["strides"]) if layer.node.op == "conv_transpose" else 1)
    filters.base[...] *= math.sqrt(6 / met)
    return layer


@pytest.fixture(scope="module")
def graph() -> Graph:
    return unet()


def test_a_unet_is_int8_from_end_to_end(graph: Graph) -> None:
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 1, "q_conv": 6, "max_pool": 2, "q_conv_transpose": 2, "concat": 2, "dequantize": 1}
    assert snr(graph, made) > 30


def test_a_unet_has_the_same_bits_everywhere(graph: Graph) -> None:
    record = cortado.calibrate(graph, samples(graph))
    made = quantize_graph(optimize(graph), record)
    [feeds] = samples(graph, 1, seed=3)
    want = run_graph(made, feeds)["out0"]
    assert len(np.unique(want)) > 50
    for name in (*X86_LEVELS, "cascadelake", "aarch64", "cortex-m4"):
        target = find_target(name)
        program = lower(made, target)
        np.testing.assert_array_equal(run_program(program, feeds)["out0"], want, err_msg=name)
        if name in runnable_targets():
            np.testing.assert_array_equal(Compiled([program], target).run(program, feeds)["out0"], want, err_msg=name)
    model = cortado.compile(graph, dtype="int8", calibration=record, keep_float="none")
    np.testing.assert_array_equal(model.run(feeds)["out0"], want)
    text = str(model.report())
    assert "q_conv_transpose" in text and " dB" in text


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["x86-64-v4+avx512vnni", "aarch64", "cortex-m4", "cortex-m55"])
def test_a_unet_has_the_same_bits_on_other_machines(target: str, graph: Graph) -> None:
    record = cortado.calibrate(graph, samples(graph), method="min_max")
    [feeds] = samples(graph, 1, seed=4)
    model = cortado.compile(graph, target=target, dtype="int8", calibration=record, keep_float="none")
    try:
        got = model.run(feeds)["out0"]
    except cortado.TargetError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(got, run_graph(quantize_graph(optimize(graph), record), feeds)["out0"])


@pytest.mark.parametrize("config", [QuantizeConfig("min_max", False, False), QuantizeConfig("min_max", True, True)])
def test_the_simulation_computes_what_the_integers_do(config: QuantizeConfig) -> None:
    net = Net()
    a = relu(net, net.conv_transpose(net.input(1, 5, 5, 4), 8, 3, 2, pad=1))
    b = net.op("leaky_relu", net.conv_transpose(a, 8, 4, 2, pad=1, group=2), alpha=0.1)
    c = net.op("add", net.conv_transpose(a, 8, 2, 2), b)
    graph = net.graph(net.op("clip", net.conv_transpose(c, 6, 1, 1), lo=-3.0, hi=4.0))
    made, record = quantized(graph, config)
    assert ops(made) == {"quantize": 1, "q_conv_transpose": 4, "q_table": 1, "dequantize": 1}
    assert record.decision is not None and record.decision.alone
    check_simulation(graph, config)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, 2)])
def test_bias_correction_removes_the_mean_error(kernel: int, stride: int) -> None:
    """Of a cell's mean, which only the taps of its phase contribute to."""
    net = Net()
    x = net.op("abs", net.input(1, 16, 16, 64))
    check_bias_correction(optimize(net.graph(net.conv_transpose(x, 8, kernel, stride))))


@pytest.mark.parametrize("group", [1, 2])
def test_equalization_goes_through(group: int) -> None:
    """Of channels that a transposed convolution makes, and of those that it reads."""
    net = Net()
    a = relu(net, net.conv_transpose(net.input(1, 4, 4, 4), 16, 2, 2, name="a"))
    b = net.conv_transpose(a, 8, 4, 2, pad=1, group=group, name="b")
    sizes = np.geomspace(1, 300, 16).astype(np.float32)
    a.node.inputs[0].node.inputs[1].node.attrs["value"].base[...] *= sizes.reshape(16, 1, 1, 1)
    of_b = b.node.inputs[1].node.attrs["value"].base
    of_b.reshape(group, 8 // group, 4, 4, -1)[...] /= sizes.reshape(group, 1, 1, 1, -1)
    graph = optimize(net.graph(b))
    record = calibrate(graph, samples(graph), ReferenceExecutor, QuantizeConfig("min_max"))
    factors = find_factors(graph, record)
    assert len(factors) == 1
    assert_same_meaning(graph, equalized(graph, factors))
    assert record.decision is not None
    assert record.decision.errors["min_max+equalized"] < 0.3 * record.decision.errors["min_max"]


def test_what_a_transposed_convolution_takes_is_estimated(graph: Graph) -> None:
    better = optimize(unet(64, 32))
    plan = make_plan(better)
    statistics = calibrate(optimize(graph), samples(graph), ReferenceExecutor, QuantizeConfig("min_max", True, False))
    quants = quants_of(make_plan(optimize(graph)), statistics.effective, "min_max")
    costs = estimated(plan, quants, find_target("x86-64-v3"))
    layers = [node for node in plan.quantized if node.op == "conv_transpose"]
    assert len(layers) == 2 and all(0 < costs.integers[node] < costs.floats[node] for node in layers)


def test_a_filter_that_is_computed_stays_float() -> None:
    net = Net()
    attrs = {"strides": (2, 2), "pads_begin": (0, 0), "pads_end": (0, 0), "output_padding": (0, 0), "group": 1, "epilogue": ()}
    up = net.op("conv_transpose", net.conv(net.input(1, 4, 4, 3), 8), net.input(5, 2, 2, 8), **attrs)
    made, _ = quantized(net.graph(net.conv(up, 4)))
    assert ops(made) == {"quantize": 2, "q_conv": 2, "dequantize": 2, "conv_transpose": 1}
