"""Arithmetic with constants per channel between int8 layers: batch normalization ahead of a convolution, as in DenseNet."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net, node_named, ops
from test_quantize import assert_same_bits, quantized, snr

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops import make
from cortado.compiler.optimize import optimize
from cortado.compiler.quantize.affine import affine_layer
from cortado.compiler.reference import evaluate


def dense_block() -> Graph:
    """Every layer reads all before it, through a batch normalization of its own that no layer can take."""
    net = Net()
    x = net.conv(net.input(1, 8, 8, 3), 12, 3, pad=1)
    for number in range(3):
        y = net.op("add", net.op("mul", x, net.weights(x.shape[-1])), net.weights(x.shape[-1]))
        y = net.op("relu", y, name=f"normal{number}")
        x = net.op("concat", x, net.conv(net.conv(y, 16), 8, 3, pad=1), axis=3)
    return net.graph(net.conv(net.op("relu", net.op("mul", x, net.weights(36))), 5))


def test_a_dense_block_is_int8_as_a_whole() -> None:
    graph = dense_block()
    made, _ = quantized(graph)
    found = ops(made)
    assert found["quantize"] == found["dequantize"] == 1 and not {"pointwise", "mul", "add", "relu"} & found.keys()
    assert found["q_conv"] == 12
    layer = node_named(made, "normal1")
    assert layer.attrs["group"] == 20 and layer.attrs["lo"] == layer.types[0].quant.zero_points[0]
    assert set(np.abs(layer.inputs[1].node.attrs["value"]).reshape(-1)) == {127}
    assert snr(graph, made) > 23


def test_the_same_bits_everywhere() -> None:
    assert_same_bits(dense_block())


def test_before_the_first_layer_and_behind_the_last_it_is_float() -> None:
    net = Net()
    x = net.op("abs", net.op("mul", net.op("sqrt", net.op("abs", net.input(1, 4, 4, 3))), net.weights(3)))
    y = net.op("tanh", net.op("mul", net.op("sigmoid", net.conv(x, 6)), net.weights(6)))
    made, _ = quantized(net.graph(y))
    assert ops(made)["q_conv"] == 1 and ops(made)["pointwise"] == 2


CASES = {
    "mul": lambda net, x, c: net.op("mul", c, x),
    "sub": lambda net, x, c: net.op("relu", net.op("sub", x, c)),
    "from": lambda net, x, c: net.op("sub", c, net.op("mul", x, net.weights(1, 1, 6))),
    "div": lambda net, x, c: net.op("clip", net.op("div", x, c), lo=-0.5, hi=1.5),
    "several": lambda net, x, c: net.op("add", net.op("mul", net.op("negative", net.op("add", x, c)), net.weights(6)), net.number(0.5)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 4, 3, 6), (1, 2, 2, 3, 6)])
def test_it_is_a_depthwise_convolution(case: str, shape: tuple[int, ...]) -> None:
    net = Net()
    graph = optimize(
        net.graph(CASES[case](net, net.op("abs", net.input(*shape)), net.weights(6)), net.op("abs", net.inputs[0].out()))
    )
    node = next(value.node for _, value in graph.outputs if value.node.op != "abs")
    layer = affine_layer(node)
    assert layer is not None and layer.attrs["group"] == 6
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    (got,), (want,) = ([*evaluate(n, [x if v.constant is None else v.constant for v in n.inputs])] for n in (layer, node))
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()


def test_what_is_no_convolution_of_channels() -> None:
    def of(node: Value) -> Node | None:
        return affine_layer(node.node)

    net = Net()
    x, flat = net.input(1, 4, 4, 6), net.input(3, 6)
    assert of(net.op("mul", x, net.weights(1, 4, 1, 1))) is None, "a number for every row"
    assert of(net.op("mul", flat, net.weights(6))) is None, "no axis of pixels"
    assert of(net.op("mul", x, x)) is None and of(net.op("add", x, net.op("exp", x))) is None
    assert of(net.op("sigmoid", net.op("mul", x, net.weights(6)))) is None
    wide = make("add", (net.input(1, 1, 1, 1), net.weights(6)), {}, "wide")
    assert affine_layer(wide) is None, "the result has more channels"
