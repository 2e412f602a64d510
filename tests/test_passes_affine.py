"""Batch normalization and arithmetic per channel go into weights; where they cannot, they stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import STEPS, Net, assert_same_meaning, node_named, ops

from cortado.compiler.graph import Graph, Value, constant
from cortado.compiler.passes.fold_affine import expand_batch_norms, fold_affine, merge_affine
from cortado.compiler.rewrite import Steps


def folded(graph: Graph) -> Graph:
    steps = Steps()
    return fold_affine(merge_affine(expand_batch_norms(graph, steps), steps), steps)


def check(net: Net, *outputs: Value, **expected: int) -> Graph:
    graph = net.graph(*outputs)
    after = folded(graph)
    assert ops(after) == expected
    assert_same_meaning(graph, after)
    return after


def image(net: Net, channels: int = 4) -> Value:
    return net.input(2, 5, 6, channels)


def batch_norm(net: Net, x: Value, epsilon: float = 1e-3, name: str | None = None) -> Value:
    c = x.shape[-1]
    variance = constant(net.rng.uniform(0.1, 2, c).astype(np.float32), net.name())
    return net.op("batch_norm", x, net.weights(c), net.weights(c), net.weights(c), variance, epsilon=epsilon, name=name)


LAYERS: dict[str, Any] = {
    "conv": lambda n, x, **k: n.conv(x, 6, 3, pad=1, **k),
    "conv without bias": lambda n, x, **k: n.conv(x, 6, 3, pad=1, bias=False, **k),
    "strided conv": lambda n, x, **k: n.conv(x, 6, 3, strides=(2, 1), dilations=(1, 2), **k),
    "grouped conv": lambda n, x, **k: n.conv(x, 6, 3, group=2, **k),
    "depthwise conv": lambda n, x, **k: n.conv(x, 8, 3, pad=1, group=4, **k),
    "fc": lambda n, x, **k: n.fc(x, 6, **k),
    "fc without bias": lambda n, x, **k: n.fc(x, 6, bias=False, **k),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm_goes_into_the_layer_before(layer: str) -> None:
    net = Net()
    y = batch_norm(net, LAYERS[layer](net, image(net)), name="bn")
    after = check(net, y, **{y.node.inputs[0].node.op: 1})
    node = after.outputs[0][1].node
    assert node.name == "bn" and node.attrs["epilogue"] == (("bias",),)
    assert node.origin[-1] == "op:bn" and len(node.origin) == 2


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", ["mul", "mul swapped", "number", "add", "sub", "sub swapped", "div", "negative", "spread"])
def test_arithmetic_goes_into_the_layer_before(layer: str, form: str) -> None:
    net = Net()
    x = LAYERS[layer](net, image(net))
    c = x.shape[-1]
    numbers = constant(net.rng.uniform(0.5, 2, c).astype(np.float32), "numbers")
    y = {
        "mul": lambda: net.op("mul", x, numbers),
        "mul swapped": lambda: net.op("mul", numbers, x),
        "number": lambda: net.op("add", net.op("mul", net.number(3), x), net.number([[0.25]])),
        "add": lambda: net.op("add", x, numbers),
        "sub": lambda: net.op("sub", x, numbers),
        "sub swapped": lambda: net.op("sub", numbers, x),
        "div": lambda: net.op("div", x, numbers),
        "negative": lambda: net.op("negative", x),
        "spread": lambda: net.op("add", x, net.weights(1, 1, 1, c)),
    }[form]()
    check(net, y, **{x.node.op: 1})


def test_normalization_scale_and_shift_are_rounded_into_the_weights_once() -> None:
    """conv -> batch_norm -> mul -> add, as Caffe2 writes it."""
    net = Net()
    x = net.conv(image(net), 6, 3, name="conv")
    y = net.op("add", net.op("mul", batch_norm(net, x), net.weights(6)), net.weights(6))
    graph = net.graph(y)
    steps = Steps()
    merged = merge_affine(expand_batch_norms(graph, steps), steps)
    assert ops(merged) == {"conv": 1, "mul": 1, "add": 1}
    after = fold_affine(merged, steps)
    assert ops(after) == {"conv": 1}
    weights, scale = (
        node_named(graph, "conv").inputs[1].constant,
        node_named(merged, merged.outputs[0][1].node.inputs[0].node.name),
    )
    factor = scale.inputs[1].constant
    assert weights is not None and factor is not None
    np.testing.assert_array_equal(after.outputs[0][1].node.inputs[1].constant, weights * factor[:, None, None, None])
    assert_same_meaning(graph, after)


def test_batch_norm_constants_are_computed_in_double_precision() -> None:
    """1 / sqrt(3e-8 + 1e-12) in float32 alone would already be off in the last digits."""
    net = Net()
    variance, one = np.float32([3e-8, 0.7]), np.ones(2, np.float32)
    parameters = [constant(a, f"p{i}") for i, a in enumerate((one, one, np.float32([0.1, 0.2]), variance))]
    after = expand_batch_norms(net.graph(net.op("batch_norm", net.input(3, 2), *parameters, epsilon=1e-12, name="bn")), Steps())
    scale = node_named(after, "bn/scale").attrs["value"]
    exact = 1 / np.sqrt(variance.astype(np.float64) + 1e-12)
    np.testing.assert_array_equal(scale, exact.astype(np.float32))
    shift = node_named(after, "bn/shift").attrs["value"]
    np.testing.assert_array_equal(
        shift, (1 - np.float32([0.1, 0.2]).astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
    )


def test_batch_norm_of_computed_parameters() -> None:
    net = Net()
    x, parameters = net.input(2, 3, 4), [net.input(4) for _ in range(4)]
    parameters[3] = net.op("square", parameters[3])
    graph = net.graph(net.op("batch_norm", x, *parameters, epsilon=0.5))
    after = expand_batch_norms(graph, Steps())
    assert ops(after) == {"square": 1, "add": 2, "rsqrt": 1, "mul": 2, "sub": 1}
    assert_same_meaning(graph, after)


def test_batch_norm_by_zero_stays_infinite() -> None:
    net = Net()
    numbers = [net.number(a) for a in ([1.0, 1.0], [0.5, 0.5], [1.0, 1.0], [0.0, 1.0])]
    graph = net.graph(net.op("batch_norm", net.input(3, 2), *numbers, epsilon=0.0))
    after = expand_batch_norms(graph, Steps())
    assert ops(after) == {"add": 2, "rsqrt": 1, "mul": 2, "sub": 1}
    assert_same_meaning(graph, after)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scalar", [False, True])
def test_a_scale_goes_into_the_layer_after(layer: str, scalar: bool) -> None:
    net = Net()
    y = LAYERS[layer](net, net.op("mul", image(net), net.number(0.5) if scalar else net.weights(4)))
    check(net, y, **{y.node.op: 1})


@pytest.mark.parametrize("layer", LAYERS)
def test_a_shift_goes_into_the_layer_after_only_where_nothing_is_padded(layer: str) -> None:
    net = Net()
    y = LAYERS[layer](net, net.op("sub", image(net), net.weights(4)))
    padded = y.node.op == "conv" and any(y.node.attrs["pads_begin"])
    check(net, y, **{y.node.op: 1}, **({"sub": 1} if padded else {}))


def test_a_cropping_convolution_takes_a_shift() -> None:
    net = Net()
    y = net.conv(net.op("add", image(net), net.weights(4)), 6, 2, pads_begin=(-1, 0), pads_end=(0, -2))
    check(net, y, conv=1)


def test_scale_and_shift_before_a_layer() -> None:
    net = Net()
    x = net.op("add", net.op("mul", image(net), net.weights(4)), net.weights(1, 4))
    check(net, net.conv(x, 6, 3), net.fc(x, 2), conv=1, fc=1)


@pytest.mark.parametrize("other", ["output", "relu", "padded", "weights"])
def test_what_others_need_stays_before_the_layer(other: str) -> None:
    net = Net()
    x = net.op("add", image(net), net.weights(4))
    y = net.conv(x, 6, 3)
    if other == "output":
        check(net, y, x, conv=1, add=1)
    elif other == "relu":
        check(net, y, net.op("relu", x), conv=1, add=1, relu=1)
    elif other == "padded":
        check(net, y, net.conv(x, 6, 3, pad=1), conv=2, add=1)
    else:
        filter_ = net.op("reshape", net.input(36), shape=(1, 3, 3, 4))
        check(net, y, net.op("conv", x, filter_, **STEPS, group=1, epilogue=()), conv=2, add=1, reshape=1)


@pytest.mark.parametrize(
    "other", ["output", "reader", "activation", "residual", "weights", "per row", "computed", "infinite", "larger"]
)
def test_what_does_not_fold_into_the_layer_before(other: str) -> None:
    net = Net()
    x, epilogue, numbers = image(net), [], net.weights(6)
    inputs = [x, net.weights(6, 1, 1, 4)]
    if other == "activation":
        epilogue = [("activation", "relu", ())]
    elif other == "residual":
        epilogue, inputs = [("residual",)], [*inputs, net.input(2, 5, 6, 6)]
    elif other == "weights":
        inputs[1] = net.input(6, 1, 1, 4)
    y = net.op("conv", *inputs, **STEPS, group=1, epilogue=tuple(epilogue))
    if other == "per row":
        numbers = net.weights(5, 1, 1)
    elif other == "computed":
        numbers = net.input(6)
    elif other == "infinite":
        numbers = net.number([1, 1, 1, 1, 1, 3e38])
        inputs[1] = constant(np.full((6, 1, 1, 4), 1e3, np.float32), "large")
        y = net.op("conv", *inputs, **STEPS, group=1, epilogue=())
    elif other == "larger":
        numbers = net.weights(3, 1, 1, 1, 6)
    z = net.op("mul", y, numbers)
    outputs = [z] + [y] * (other == "output") + [net.op("abs", y)] * (other == "reader")
    graph = net.graph(*outputs)
    assert ops(folded(graph)) == ops(graph)


def test_arithmetic_in_a_row_is_merged() -> None:
    net = Net()
    x = net.op(
        "div",
        net.op("sub", net.op("mul", net.op("add", image(net), net.weights(4)), net.number(2)), net.weights(4)),
        net.number(4),
    )
    check(net, net.op("negative", x), mul=1, add=1)
    net = Net()
    check(net, net.op("sub", net.op("add", image(net), net.number(1.5)), net.number(1)), add=1)
    net = Net()
    check(net, net.op("mul", net.op("mul", net.number(3), image(net)), net.weights(4)), mul=1)


def test_merged_arithmetic_keeps_what_others_read() -> None:
    net = Net()
    x = net.op("mul", image(net), net.number(2))
    graph = net.graph(net.op("mul", x, net.number(3)), net.op("relu", x))
    assert folded(graph) is graph


def test_whole_numbers_and_half_precision_are_left_alone() -> None:
    net = Net()
    x, h = net.input(2, 3, dtype="int32"), net.input(2, 3, dtype="float16")
    ints = net.op("add", net.op("add", x, net.number(1, "int32")), net.number(2, "int32"))
    halves = net.op("mul", net.op("mul", h, net.number(3, "float16")), net.number(2, "float16"))
    graph = net.graph(ints, halves)
    assert folded(graph) is graph


def test_shared_weights_are_not_changed_for_others() -> None:
    net = Net()
    x, w = image(net), net.weights(6, 1, 1, 4, name="w")
    a, b = (net.op("conv", x, w, **STEPS, group=1, epilogue=()) for _ in range(2))
    after = check(net, net.op("mul", a, net.weights(6)), b, conv=2)
    np.testing.assert_array_equal(after.outputs[1][1].node.inputs[1].constant, w.constant)
