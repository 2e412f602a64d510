"""Products with constant matrices, and numbers that multiply products."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net, assert_same_meaning, node_named, ops

from cortado.compiler.graph import Graph, Value
from cortado.compiler.optimize import optimize

PLAIN = {"transpose_a": False, "transpose_b": False}


def check(graph: Graph, **wanted: int) -> Graph:
    after = optimize(graph)
    assert_same_meaning(graph, after)
    assert ops(after) == wanted
    return after


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("shape", "leading"), [((4, 6), ()), ((2, 4, 6), ()), ((1, 1, 6), (1,)), ((2, 3, 4, 6), (1,))])
def test_a_constant_matrix_makes_a_layer(shape: tuple[int, ...], leading: tuple[int, ...], turned: bool) -> None:
    """Which takes the addition behind it as its bias."""
    net = Net()
    weights = net.weights(*leading, *((5, 6) if turned else (6, 5)))
    y = net.op("batch_matmul", net.input(*shape), weights, transpose_a=False, transpose_b=turned)
    after = check(net.graph(net.op("add", y, net.weights(5))), fc=1)
    assert after.outputs[0][1].node.attrs["epilogue"] == (("bias",),)


@pytest.mark.parametrize(
    ("a", "b", "attrs"),
    [((6, 4), (6, 5), {"transpose_a": True, "transpose_b": False}), ((2, 4, 6), (2, 6, 5), PLAIN), ((4, 6), (1, 1, 6, 5), PLAIN)],
)
def test_other_products_stay(a: tuple[int, ...], b: tuple[int, ...], attrs: dict[str, bool]) -> None:
    """Of transposed rows, of several matrices, and where the matrix has more axes than what it multiplies."""
    net = Net()
    check(net.graph(net.op("batch_matmul", net.input(*a), net.weights(*b), **attrs)), batch_matmul=1)
    net = Net()
    check(net.graph(net.op("batch_matmul", net.weights(3, 4), net.input(4, 5), **PLAIN)), batch_matmul=1)


def split(net: Net, x: Value) -> Value:
    return net.op("transpose", net.op("reshape", x, shape=(2, 6, 2, 4)), perm=(0, 2, 1, 3))


@pytest.mark.parametrize("op", ["mul", "div", "negative"])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_number_goes_into_the_weights_of_a_factor(op: str, second: bool, bias: bool) -> None:
    net = Net()
    made, given = split(net, net.fc(net.input(2, 6, 5), 8, bias=bias, name="layer")), net.input(2, 2, 6, 4)
    a, b = (given, made) if second else (made, given)
    y = net.op("batch_matmul", a, b, transpose_a=False, transpose_b=True, name="product")
    scaled = net.op(op, y, *([] if op == "negative" else [net.number(np.float32(0.3))]), name="scaled")
    after = check(net.graph(scaled), fc=1, reshape=1, transpose=1, batch_matmul=1)
    assert node_named(after, "layer").inputs[1].constant is not None
    assert set(after.outputs[0][1].node.origin) == {"op:product", "op:scaled"}


def test_without_a_product_as_well() -> None:
    net = Net()
    y = net.op("mul", split(net, net.fc(net.input(2, 6, 5), 8)), net.number(np.float32(0.3)))
    check(net.graph(y), fc=1, reshape=1, transpose=1)


def test_a_constant_factor_takes_the_number() -> None:
    net = Net()
    y = net.op("mul", net.op("batch_matmul", net.weights(3, 4), net.input(4, 5), **PLAIN), net.number(np.float32(0.3)))
    check(net.graph(y), batch_matmul=1)


@pytest.mark.parametrize("way", ["channels", "shift", "read elsewhere", "output", "no layer", "activation"])
def test_what_keeps_a_number_where_it_is(way: str) -> None:
    net = Net()
    layer = net.fc(net.input(2, 6, 5), 8)
    if way == "activation":
        layer = net.op("relu", layer)
    a, b = split(net, net.op("sigmoid", layer) if way == "no layer" else layer), net.input(2, 2, 6, 4)
    y = net.op("batch_matmul", a, b, transpose_a=False, transpose_b=True)
    number = net.weights(6) if way == "channels" else net.number(np.float32(0.3))
    scaled = net.op("add" if way == "shift" else "mul", y, number)
    others = {"read elsewhere": [net.op("sigmoid", a)], "output": [y]}.get(way, [])
    graph = net.graph(scaled, *others)
    after = optimize(graph)
    assert_same_meaning(graph, after)
    assert ops(after)["batch_matmul"] == 1 and ops(after).get("mul", 0) + ops(after).get("add", 0) == 1
