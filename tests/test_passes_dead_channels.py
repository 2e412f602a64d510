"""Removal of channels that are constant or that nothing reads: what goes, what stays, and that the meaning does."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net, assert_same_meaning, node_named

from cortado.compiler.graph import Graph, Value, constant
from cortado.compiler.ops import OPS
from cortado.compiler.optimize import optimize
from cortado.compiler.passes.dead_channels import remove_dead_channels
from cortado.compiler.rewrite import Steps

RELU = ("activation", "relu", ())


def conv(
    net: Net, x: Value, outputs: int, dead: tuple[int, ...] = (), bias: float | None = 0.0, kernel: int = 1, pad: int = 0,
    group: int = 1, relu: bool = True, name: str | None = None, residual: Value | None = None,
) -> Value:  # fmt: skip
    """A layer whose `dead` output channels have no weights; bias: what they give before the relu, None for a layer without biases."""
    weights = net.rng.uniform(0.1, 1, (outputs, kernel, kernel, x.shape[-1] // group)).astype(np.float32)
    weights[list(dead)] = 0
    inputs = [x, constant(weights, f"{name}/w")]
    epilogue: tuple[tuple[object, ...], ...] = ()
    if bias is not None:
        values = net.rng.uniform(0.1, 1, outputs).astype(np.float32)
        values[list(dead)] = bias
        inputs.append(constant(values, f"{name}/b"))
        epilogue = (("bias",),)
    if residual is not None:
        inputs.append(residual)
        epilogue = (*epilogue, ("residual",))
    pads = {"pads_begin": (pad, pad), "pads_end": (pad, pad)}
    attrs = {"strides": (1, 1), "dilations": (1, 1), **pads, "group": group, "epilogue": (*epilogue, *(RELU,) * relu)}
    return net.op("conv", *inputs, name=name, **attrs)


def removed(graph: Graph) -> Graph:
    after = remove_dead_channels(graph, Steps())
    assert_same_meaning(graph, after)
    return after


def channels(graph: Graph, name: str) -> int:
    return node_named(graph, name).types[0].shape[-1]


def macs(graph: Graph) -> int:
    counts = ((OPS[n.op].macs, n) for n in graph.nodes() if n.op in OPS)
    return sum(count([v.type for v in node.inputs], node.attrs) for count, node in counts if count is not None)


@pytest.mark.parametrize("bias", [0.0, 0.75, -0.5, None])
@pytest.mark.parametrize("with_bias", [True, False])
def test_filters_of_zeros_go_and_their_constants_into_the_next_bias(bias: float | None, with_bias: bool) -> None:
    net = Net()
    a = conv(net, net.input(1, 5, 6, 3), 8, (1, 2, 6), bias, name="a")
    graph = net.graph(conv(net, a, 4, bias=0.0 if with_bias else None, relu=False, name="b"))
    after = removed(graph)
    assert channels(after, "a") == 5 and channels(after, "b") == 4
    assert macs(after) == 30 * (3 * 5 + 5 * 4) < macs(graph) == 30 * (3 * 8 + 8 * 4)


def test_nothing_reads_a_channel() -> None:
    net = Net()
    a = conv(net, net.input(1, 4, 4, 3), 6, name="a")
    weights = np.ones((2, 1, 1, 6), np.float32)
    weights[..., [0, 4]] = 0
    b = net.op("conv", a, constant(weights, "w"), name="b", **{**dict(node_named(net.graph(a), "a").attrs), "epilogue": ()})
    after = removed(net.graph(b))
    assert channels(after, "a") == 4


@pytest.mark.parametrize(("bias", "kept"), [(0.0, 5), (0.5, 8), (-0.5, 5)])
def test_at_a_padded_border_only_zeros_are_constant(bias: float, kept: int) -> None:
    net = Net()
    a = conv(net, net.input(1, 5, 6, 3), 8, (1, 2, 6), bias, name="a")
    after = removed(net.graph(conv(net, a, 4, kernel=3, pad=1, name="b")))
    assert channels(after, "a") == kept


def test_without_padding_wide_kernels_take_constants_in() -> None:
    net = Net()
    a = conv(net, net.input(1, 5, 6, 3), 8, (1, 2, 6), 0.5, name="a")
    assert channels(removed(net.graph(conv(net, a, 4, kernel=3, name="b"))), "a") == 5


@pytest.mark.parametrize(("pad", "bias", "kept"), [(1, 0.0, 5), (0, 0.5, 5), (1, 0.5, 6)])
def test_through_depthwise_layers(pad: int, bias: float, kept: int) -> None:
    """A depthwise channel of zeros is constant whatever it reads; a constant other than zero is none behind a padded border."""
    net = Net()
    a = conv(net, net.input(1, 6, 6, 3), 8, (2, 3), bias, name="a")
    b = conv(net, a, 8, (3, 7), 0.25, kernel=3, pad=pad, group=8, name="b")
    after = removed(net.graph(conv(net, b, 4, name="c")))
    assert channels(after, "a") == channels(after, "b") == kept
    assert node_named(after, "b").attrs["group"] == kept


def test_chains_of_dead_layers_end_in_a_bias() -> None:
    net = Net()
    a = conv(net, net.input(1, 3, 3, 2), 4, (0, 1, 2, 3), 0.5, name="a")
    b = conv(net, a, 6, (), None, name="b")
    after = removed(net.graph(conv(net, b, 3, name="c")))
    assert channels(after, "a") == channels(after, "b") == 1


def test_pools_concats_and_reshapes_pass_channels_on() -> None:
    net = Net()
    x = net.input(1, 8, 8, 3)
    a, b = (conv(net, x, 6, dead, 0.5, name=name) for dead, name in (((0, 1), "a"), ((5,), "b")))
    joined = net.op("concat", a, b, axis=3, name="joined")
    attrs = {"kernel": (2, 2), "strides": (2, 2), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
    pooled = net.op("max_pool", joined, name="pooled", **attrs)
    mean = net.op("reduce_mean", pooled, axes=(1, 2), keepdims=True, name="mean")
    flat = net.op("reshape", mean, shape=(1, 12), name="flat")
    after = removed(net.graph(net.fc(flat, 3)))
    assert [channels(after, n) for n in ("a", "b", "joined", "pooled", "flat")] == [4, 5, 9, 9, 9]


def test_a_residual_keeps_what_the_other_side_needs() -> None:
    net = Net()
    a = conv(net, net.input(1, 4, 4, 3), 8, (1, 2, 3), 0.5, name="a")
    b = conv(net, a, 8, (1, 2, 5), 0.25, name="b", residual=a)
    after = removed(net.graph(conv(net, b, 4, name="c")))
    assert channels(after, "a") == channels(after, "b") == 6  # 1 and 2 are constant on both sides


def test_elementwise_arithmetic_is_followed() -> None:
    net = Net()
    a = conv(net, net.input(1, 4, 4, 3), 8, (1, 2, 3), 0.5, name="a")
    scaled = net.op("mul", a, net.weights(8), name="scaled")
    bent = net.op("sigmoid", scaled, name="bent")
    after = removed(net.graph(conv(net, bent, 4, name="b")))
    assert channels(after, "bent") == channels(after, "a") == 5


def test_outputs_and_unknown_operators_see_all_channels() -> None:
    net = Net()
    a = conv(net, net.input(1, 4, 4, 3), 8, (1, 2), 0.0, name="a")
    b = conv(net, a, 8, (0, 5), 0.0, name="b")
    c = net.op("softmax", b, axis=3)
    graph = net.graph(a, c)
    assert remove_dead_channels(graph, Steps()) is graph


def test_many_channels_stay_multiples_of_four_and_few_do_not() -> None:
    net = Net()
    a = conv(net, net.input(1, 2, 2, 3), 32, tuple(range(9)), name="a")
    b = conv(net, a, 16, tuple(range(9)), name="b")
    after = removed(net.graph(conv(net, b, 4, name="c")))
    assert (channels(after, "a"), channels(after, "b")) == (24, 7)


def test_weights_that_are_not_finite_are_left_alone() -> None:
    net = Net()
    a = conv(net, net.input(1, 2, 2, 3), 8, (1,), name="a")
    b = conv(net, a, 4, name="b")
    b.node.inputs[1].node.attrs["value"].base[0, 0, 0, 1] = np.nan
    graph = net.graph(b)
    assert remove_dead_channels(graph, Steps()) is graph


def test_the_step_limit_stops_it() -> None:
    net = Net()
    a = conv(net, net.input(1, 2, 2, 3), 8, (1,), name="a")
    graph = net.graph(conv(net, a, 4, name="b"))
    assert remove_dead_channels(graph, Steps(0)) is graph
    steps = Steps()
    remove_dead_channels(graph, steps)
    assert steps.count == 1
    assert channels(optimize(graph), "a") == 7
