"""Epilogues of layers, and elementwise operators fused among themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import STEPS, Net, assert_same_meaning, ops

from cortado.compiler.graph import Graph, Value
from cortado.compiler.passes.fuse_elementwise import MAX_INPUTS, MAX_INSTRUCTIONS, fuse_elementwise
from cortado.compiler.passes.fuse_epilogue import ACTIVATIONS, fuse_epilogue
from cortado.compiler.rewrite import Steps

RELU = ("activation", "relu", ())
RELU6 = ("activation", "clip", (("hi", 6.0), ("lo", 0.0)))


def image(net: Net, channels: int = 4) -> Value:
    return net.input(1, 5, 6, channels)


def relu6(net: Net, x: Value) -> Value:
    return net.op("clip", x, lo=0.0, hi=6.0)


def check(net: Net, *outputs: Value, **expected: int) -> Graph:
    graph = net.graph(*outputs)
    after = fuse_epilogue(graph, Steps())
    assert ops(after) == expected
    assert_same_meaning(graph, after, 1e-6)
    return after


def epilogue(graph: Graph, output: int = 0) -> tuple[Any, ...]:
    return graph.outputs[output][1].node.attrs["epilogue"]


@pytest.mark.parametrize("layer", ["conv", "fc"])
def test_bias_residual_and_activation(layer: str) -> None:
    net = Net()
    x = image(net)
    y = net.conv(x, 4, 3, pad=1, name="layer") if layer == "conv" else net.fc(x, 4, name="layer")
    after = check(net, relu6(net, net.op("add", y, x)), **{layer: 1})
    node = after.outputs[0][1].node
    assert epilogue(after) == (("bias",), ("residual",), RELU6) and node.inputs[3] == x
    assert node.name == after.outputs[0][1].node.name == "n3" and node.origin == ("op:layer", "op:n2", "op:n3")


ATTRS: dict[str, dict[str, float]] = {
    "clip": {"lo": 0.0, "hi": 6.0}, "leaky_relu": {"alpha": 0.1}, "thresholded_relu": {"alpha": 0.3}, "elu": {"alpha": 1.5},
    "selu": {"alpha": 1.6, "scale": 1.05}, "hard_sigmoid": {"alpha": 0.2, "beta": 0.5}, "logit": {"eps": 1e-3},
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str) -> None:
    net = Net()
    graph = net.graph(net.op(name, net.fc(image(net), 3), **ATTRS.get(name, {})))
    after = fuse_epilogue(graph, Steps())
    assert ops(after) == {"fc": 1} and epilogue(after)[-1][:2] == ("activation", name)
    with np.errstate(all="ignore"):
        assert_same_meaning(graph, after, 0)


def test_without_bias() -> None:
    net = Net()
    after = check(net, net.op("relu", net.conv(image(net), 4, bias=False)), conv=1)
    assert epilogue(after) == (RELU,)


def test_two_activations_only_the_first_fuses() -> None:
    net = Net()
    check(net, net.op("tanh", net.op("relu", net.conv(image(net), 4))), conv=1, tanh=1)


def test_a_residual_after_the_activation_stays() -> None:
    net = Net()
    x = image(net)
    check(net, net.op("add", net.op("relu", net.conv(x, 4)), x), conv=1, add=1)


def test_of_two_layers_the_later_one_takes_the_other() -> None:
    for swapped in (False, True):
        net = Net()
        x = image(net)
        first = net.conv(x, 8, name="first")
        second = net.conv(net.op("relu", net.conv(x, 3)), 8, name="second")
        total = net.op("add", second, first) if swapped else net.op("add", first, second)
        after = check(net, net.op("relu", total), conv=3)
        readers = {node.name: node for node in after.nodes()}
        assert readers["n9"].inputs[3].node.name == ("first" if not swapped else "second")


def test_a_residual_is_added_once() -> None:
    net = Net()
    x = image(net)
    check(net, net.op("add", net.op("add", net.conv(x, 4), x), net.op("abs", x)), conv=1, add=1, abs=1)


def test_a_layer_and_itself() -> None:
    net = Net()
    y = net.conv(image(net), 4)
    check(net, net.op("add", y, y), conv=1, add=1)


@pytest.mark.parametrize("shape", [(4,), (1, 5, 6, 1), (2, 5, 6, 4), ()])
def test_a_residual_has_exactly_the_shape(shape: tuple[int, ...]) -> None:
    net = Net()
    check(net, net.op("add", net.conv(image(net), 4), net.input(*shape)), conv=1, add=1)


def test_a_constant_of_the_whole_shape_is_a_residual() -> None:
    net = Net()
    check(net, net.op("add", net.weights(1, 5, 6, 4), net.conv(image(net), 4)), conv=1)


@pytest.mark.parametrize("way", ["output", "reader"])
def test_what_others_need_is_not_fused_away(way: str) -> None:
    net = Net()
    y = net.conv(image(net), 4)
    others = [y] if way == "output" else [net.op("softmax", y, axis=3)]
    check(net, net.op("relu", y), *others, conv=1, relu=1, **({"softmax": 1} if way == "reader" else {}))


def test_an_activation_passes_concats_and_reshapes() -> None:
    net = Net()
    x = image(net)
    parts = [net.conv(x, 2), net.op("concat", net.conv(x, 3), net.conv(x, 4), axis=3)]
    y = net.op("reshape", net.op("concat", *parts, axis=3), shape=(30, 9))
    after = check(net, net.op("relu", y, name="act"), conv=3, concat=2, reshape=1)
    assert after.outputs[0][1].node.name == "act"


def test_an_activation_does_not_pass_what_it_cannot_enter() -> None:
    net = Net()
    x = image(net)
    check(net, net.op("relu", net.op("concat", net.conv(x, 2), x, axis=3)), conv=1, concat=1, relu=1)
    net = Net()
    x = image(net)
    y = net.op("concat", net.conv(x, 2), net.conv(x, 3), axis=3)
    check(net, net.op("relu", y), y, conv=2, concat=1, relu=1)
    net = Net()
    y = net.conv(image(net), 2)
    check(net, net.op("relu", net.op("concat", y, y, axis=3)), conv=1, concat=1)


# --- elementwise ---


def fused(graph: Graph) -> Graph:
    after = fuse_elementwise(graph, Steps())
    assert_same_meaning(graph, after, 0)
    return after


def test_a_chain_becomes_one_expression() -> None:
    net = Net()
    x, c = image(net), net.weights(4)
    y = relu6(net, net.op("add", net.op("mul", x, c), net.number(3)))
    after = fused(net.graph(net.op("mul", y, x)))
    node = after.outputs[0][1].node
    assert ops(after) == {"pointwise": 1} and node.inputs[:2] == (x, c)
    assert node.attrs["expr"] == (
        ("mul", (0, 1), ()), ("add", (3, 2), ()), ("clip", (4,), (("hi", 6.0), ("lo", 0.0))), ("mul", (5, 0), ()),
    )  # fmt: skip
    assert node.origin == ("op:n1", "op:n3", "op:n4", "op:n5") and node.name == "n5"


def test_a_diamond_becomes_one_expression() -> None:
    net = Net()
    x = net.op("tanh", image(net))
    y = net.op(
        "add", net.op("mul", x, net.op("sigmoid", x)), net.op("where", net.op("gt", x, net.number(0)), x, net.op("negative", x))
    )
    after = fused(net.graph(y))
    assert ops(after) == {"pointwise": 1} and len(after.outputs[0][1].node.attrs["expr"]) == 7


def test_the_same_operand_twice() -> None:
    net = Net()
    x = net.op("abs", image(net))
    after = fused(net.graph(net.op("sub", x, net.op("mul", x, x))))
    assert ops(after) == {"pointwise": 1}
    assert after.outputs[0][1].node.attrs["expr"] == (("abs", (0,), ()), ("mul", (1, 1), ()), ("sub", (1, 2), ()))


def test_types_may_change_inside() -> None:
    net = Net()
    x = net.op("cast", net.input(3, 4, dtype="uint8"), dtype="float32")
    after = fused(net.graph(net.op("cast", net.op("prelu", net.op("mul", x, net.number(0.5)), net.weights(4)), dtype="int32")))
    assert ops(after) == {"pointwise": 1}


def test_pointwise_nodes_take_part() -> None:
    net = Net()
    x = net.op("pointwise", image(net), net.weights(4), expr=(("mul", (0, 1), ()), ("relu", (2,), ())))
    y = net.op("pointwise", net.weights(4), x, expr=(("add", (1, 0), ()), ("square", (2,), ())))
    after = fused(net.graph(y))
    assert after.outputs[0][1].node.attrs["expr"] == (
        ("mul", (0, 1), ()),
        ("relu", (3,), ()),
        ("add", (4, 2), ()),
        ("square", (5,), ()),
    )


@pytest.mark.parametrize("way", ["output", "reader", "smaller"])
def test_what_others_need_or_what_would_be_repeated_stays(way: str) -> None:
    net = Net()
    x = net.op("exp", net.input(4) if way == "smaller" else image(net))
    y = net.op("add", x, image(net))
    others = {"output": [x], "reader": [net.op("softmax", x, axis=3)] if way == "reader" else [], "smaller": []}[way]
    graph = net.graph(y, *others)
    assert fused(graph) is graph


def test_expressions_stay_small() -> None:
    net = Net()
    x = image(net)
    for _ in range(2 * MAX_INSTRUCTIONS):
        x = net.op("tanh", x)
    after = fused(net.graph(x))
    assert ops(after) == {"pointwise": 2}
    assert [len(node.attrs["expr"]) for node in after.nodes() if node.op == "pointwise"] == [MAX_INSTRUCTIONS] * 2
    net = Net()
    x = image(net)
    for _ in range(2 * MAX_INPUTS):
        x = net.op("add", x, image(net))
    after = fused(net.graph(x))
    assert sum(ops(after).values()) == 3 and max(len(node.inputs) for node in after.nodes()) == MAX_INPUTS


def test_a_layer_is_not_elementwise() -> None:
    net = Net()
    x = net.op("relu", image(net))
    y = net.op("conv", x, net.weights(4, 1, 1, 4), **STEPS, group=1, epilogue=())
    graph = net.graph(net.op("relu", y))
    assert fused(graph) is graph
