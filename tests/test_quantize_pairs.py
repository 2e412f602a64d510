"""Sums and products of two tensors with a clamp behind them, and fused arithmetic on several tensors, in int8."""

from __future__ import annotations

import pytest
from graphs import Net, node_named, ops
from test_quantize import assert_same_bits, quantized, snr

from cortado.compiler.graph import Graph, Value
from cortado.compiler.optimize import optimize


def layers(net: Net, count: int) -> list[Value]:
    """Computed tensors of one shape, behind activations, so that sums of them go into no layer."""
    x = net.input(1, 6, 6, 4)
    return [net.op("sigmoid" if i % 2 else "relu", net.conv(x, 8, 3, pad=1)) for i in range(count)]


@pytest.mark.parametrize("op", ["add", "mul"])
def test_a_clamp_behind_a_pair_is_its_own(op: str) -> None:
    net = Net()
    a, b, c = layers(net, 3)
    first = net.op("clip", net.op(op, a, b), lo=0.1, hi=0.6, name="first")
    graph = net.graph(net.conv(net.op("relu", net.op(op, first, c), name="second"), 5))
    assert ops(optimize(graph)) == {"conv": 4, "pointwise": 1}
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 1, "q_conv": 4, "q_table": 1, f"q_{op}": 2, "dequantize": 1}
    between = next(node for node in made.nodes() if node.op == f"q_{op}" and node.name != "second")
    quant = between.types[0].quant
    assert quant is not None and between.attrs["lo"] == round(0.1 / quant.scales[0]) + quant.zero_points[0]
    assert between.attrs["hi"] == round(0.6 / quant.scales[0]) + quant.zero_points[0]
    assert node_named(made, "second").attrs["lo"] == node_named(made, "second").types[0].quant.zero_points[0]
    assert snr(graph, made) > 28


def test_expressions_come_apart() -> None:
    net = Net()
    a, b, c = layers(net, 3)
    bent = net.op("mul", net.op("mul", a, net.op("sigmoid", net.op("add", net.op("mul", b, net.weights(8)), net.number(0.5)))), c)
    graph = net.graph(net.conv(net.op("relu", net.op("add", net.op("add", bent, a), net.weights(8))), 5))
    made, _ = quantized(graph)
    found = ops(made)
    assert found["quantize"] == found["dequantize"] == 1 and "pointwise" not in found
    assert found["q_mul"] == 2 and found["q_add"] == 1
    assert snr(graph, made) > 25


def outside() -> Graph:
    """Arithmetic behind the last layer, and some that int8 has no operator for."""
    net = Net()
    a, b, c = layers(net, 3)
    fourth = net.conv(net.op("relu", net.op("sub", net.op("mul", a, b), net.op("exp", c))), 8)
    return net.graph(net.op("relu", net.op("add", net.op("mul", fourth, a), b), name="last"))


def test_what_stays_float_is_fused_again() -> None:
    graph = outside()
    made, _ = quantized(graph)
    assert ops(made)["pointwise"] == 2 and not {"add", "sub", "mul", "exp", "relu"} & ops(made).keys()
    assert len(node_named(made, "last").attrs["expr"]) == 3


def test_the_same_bits_everywhere() -> None:
    net = Net()
    a, b, c = layers(net, 3)
    graph = net.graph(net.conv(net.op("relu", net.op("add", net.op("add", a, b), c)), 5))
    assert_same_bits(graph)
