"""Transposes cancel, sink and rise; what remains is at the boundary or absorbed by weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import STEPS, Net, assert_same_meaning, ops

from cortado.compiler.graph import Graph, Value
from cortado.compiler.passes import axes
from cortado.compiler.passes.absorb_transposes import absorb_transposes
from cortado.compiler.passes.channels_last import channels_last
from cortado.compiler.passes.simplify import simplify
from cortado.compiler.rewrite import Rewrite, Steps


def arranged(graph: Graph, trace: list[Rewrite] | None = None) -> Graph:
    """The passes about layout, as optimize runs them."""
    steps = Steps(trace=trace)
    return absorb_transposes(simplify(channels_last(simplify(graph, steps), steps), steps), steps)


def check(net: Net, *outputs: Value, **expected: int) -> Graph:
    graph = net.graph(*outputs)
    after = arranged(graph)
    assert ops(after) == expected
    assert_same_meaning(graph, after)
    return after


def middle(net: Net) -> Value:
    """Something in channels-first order that came from a convolution: a boundary transpose has been paid."""
    return net.conv_first(net.input(1, 3, 6, 8, name="data"), 4, 1)


def scaled(net: Net, x: Value) -> Value:
    return net.op("mul", net.weights(4, 1, 1), net.op("add", x, net.weights(1, 4, 1, 1)))


# Each maps a channels-first x[1,4,6,8] to another tensor; between convolutions no transpose may remain.
FREE: dict[str, Any] = {
    "relu": lambda n, x: n.op("relu", x),
    "constants per channel": scaled,
    "constants of the whole shape": lambda n, x: n.op("maximum", x, n.weights(1, 4, 6, 8)),
    "constants per column": lambda n, x: n.op("sub", n.weights(8), x),
    "numbers": lambda n, x: n.op("pow", n.op("abs", x), n.number(2)),
    "both operands": lambda n, x: n.op("add", n.op("tanh", x), n.op("sigmoid", x)),
    "comparison": lambda n, x: n.op("where", n.op("gt", x, n.number(0)), x, n.op("negative", x)),
    "cast": lambda n, x: n.op("cast", n.op("cast", x, dtype="int32"), dtype="float32"),
    "pointwise": lambda n, x: n.op("pointwise", x, n.weights(4, 1, 1), expr=(("mul", (0, 1), ()), ("relu", (2,), ()))),
    "concat": lambda n, x: n.op("concat", x, n.op("relu", x), n.op("abs", x), axis=1),
    "concat of rows": lambda n, x: n.op("concat", x, n.op("relu", x), axis=2),
    "slice": lambda n, x: n.op("slice", x, starts=(0, 1, 0, 2), stops=(1, 3, 6, 8)),
    "pad": lambda n, x: n.op("pad", x, begin=(0, 1, 2, 0), end=(0, 0, 1, 3), mode="edge", value=0.0),
    "softmax": lambda n, x: n.op("softmax", x, axis=1),
    "tile": lambda n, x: n.op("tile", x, repeats=(1, 2, 1, 3)),
    "broadcast": lambda n, x: n.op("broadcast_to", n.op("reduce_max", x, axes=(2,), keepdims=True), shape=(1, 4, 6, 8)),
    "reduction with axes kept": lambda n, x: n.op("reduce_mean", x, axes=(2, 3), keepdims=True),
    "multiplied by its mean": lambda n, x: n.op("mul", x, n.op("reduce_mean", x, axes=(2, 3), keepdims=True)),
    "split rows": lambda n, x: n.op("reshape", n.op("relu", n.op("reshape", x, shape=(1, 4, 3, 2, 8))), shape=(1, 4, 6, 8)),
    "joined space": lambda n, x: n.op(
        "reshape", n.op("softmax", n.op("reshape", x, shape=(1, 4, 48)), axis=2), shape=(1, 4, 6, 8)
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_between_convolutions_nothing_is_transposed(name: str) -> None:
    net = Net()
    y = net.conv(net.to_last(FREE[name](net, middle(net))), 5)
    graph = net.graph(y)
    after = arranged(graph)
    assert ops(after)["transpose"] == 1 and ops(graph)["transpose"] == 3
    assert_same_meaning(graph, after)


def test_a_reduction_that_drops_axes() -> None:
    net = Net()
    y = net.fc(net.op("reduce_mean", middle(net), axes=(2, 3), keepdims=False), 5)
    check(net, y, transpose=1, conv=1, reduce_mean=1, fc=1)


def test_a_chain_sinks_to_the_output() -> None:
    net = Net()
    after = check(net, net.op("relu", scaled(net, middle(net))), transpose=2, conv=1, add=1, mul=1, relu=1)
    assert after.outputs[0][1].node.op == "transpose"


def test_a_chain_from_the_input_is_done_before_or_after_but_not_between() -> None:
    """The transpose stays at the graph's input, so that arithmetic stands next to the convolution it can be folded into."""
    net = Net()
    x = net.op("sub", net.input(1, 3, 6, 8), net.weights(3, 1, 1))
    after = check(net, net.conv(net.to_last(x), 4), transpose=1, conv=1, sub=1)
    assert next(node for node in after.nodes() if node.op == "transpose").inputs[0].node.op == "input"


def test_a_small_type_is_transposed_rather_than_a_large_one() -> None:
    net = Net()
    x = net.op("mul", net.op("cast", net.input(1, 3, 6, 8, dtype="uint8"), dtype="float32"), net.number(0.5))
    after = check(net, net.conv(net.to_last(x), 4), transpose=1, conv=1, cast=1, mul=1)
    assert next(node for node in after.nodes() if node.op == "transpose").types[0].dtype == "uint8"


def test_nothing_moves_where_that_would_cost_more() -> None:
    """One operand comes in channels first and is larger than what is saved."""
    net = Net()
    small = net.conv_first(net.input(1, 3, 6, 8), 1)
    y = net.op("add", small, net.input(1, 40, 6, 8))
    graph = net.graph(net.op("relu", net.op("concat", y, net.input(1, 40, 6, 8), axis=1)))
    after = arranged(graph)
    assert sum(node.types[0].size for node in after.nodes() if node.op == "transpose") == 3 * 48
    assert_same_meaning(graph, after)


def test_a_value_that_is_needed_both_ways_is_transposed_once() -> None:
    net = Net()
    x = net.op("relu", middle(net))
    after = check(net, x, net.op("tanh", x), net.conv_first(x, 4), transpose=3, conv=2, relu=1, tanh=1)
    assert [value.node.op for _, value in after.outputs] == ["transpose", "tanh", "transpose"]


def test_a_residual_trunk() -> None:
    net = Net()
    x = middle(net)
    for _ in range(3):
        x = net.op("relu", net.op("add", net.conv_first(net.op("relu", x), 4), x))
    check(net, net.conv(net.to_last(x), 4), transpose=1, conv=5, relu=6, add=3)


def test_channel_shuffle_keeps_one_transpose() -> None:
    net = Net()
    x = net.op("reshape", middle(net), shape=(1, 2, 2, 6, 8))
    x = net.op("reshape", net.op("transpose", x, perm=(0, 2, 1, 3, 4)), shape=(1, 4, 6, 8))
    after = check(net, net.conv(net.to_last(x), 4), transpose=2, conv=2, reshape=2)
    assert [node.types[0].shape for node in after.nodes() if node.op == "transpose"][1] == (1, 6, 8, 2, 2)


def test_squeeze_and_excitation() -> None:
    net = Net()
    x = middle(net)
    s = net.op("reshape", net.op("reduce_mean", x, axes=(2, 3), keepdims=True), shape=(1, 4))
    s = net.op("reshape", net.op("sigmoid", net.fc(net.op("relu", net.fc(s, 2)), 4)), shape=(1, 4, 1, 1))
    y = net.conv(net.to_last(net.op("mul", x, s)), 4)
    graph = net.graph(y)
    after = arranged(graph)
    assert ops(after)["transpose"] == 1
    assert_same_meaning(graph, after)


def test_readers_that_share_a_transpose_leave_it_one_by_one() -> None:
    net = Net()
    x = middle(net)
    means = [net.op(op, x, axes=(2, 3), keepdims=False) for op in ("reduce_mean", "reduce_max")]
    check(net, *means, transpose=1, conv=1, reduce_mean=1, reduce_max=1)


def test_detection_heads() -> None:
    """conv -> (back to channels first) -> (the file's own transpose) -> reshape -> concat"""
    net = Net()
    x = middle(net)
    heads = [net.op("reshape", net.to_last(net.conv_first(x, 6)), shape=(1, 144, 2)) for _ in range(3)]
    y = net.op("softmax", net.op("concat", *heads, axis=1), axis=2)
    check(net, y, transpose=1, conv=4, reshape=3, concat=1, softmax=1)


def test_global_pool_softmax_and_a_shape_of_ones() -> None:
    net = Net()
    x = net.op("average_pool", net.to_last(middle(net)), **{**STEPS, "kernel": (6, 8)}, count_include_pad=False)
    x = net.op("reshape", net.op("softmax", net.op("reshape", net.to_first(x), shape=(1, 4)), axis=1), shape=(1, 4, 1, 1))
    check(net, x, transpose=1, conv=1, average_pool=1, reshape=2, softmax=1)


def test_rank_three_and_five() -> None:
    for rank in (3, 5):
        net = Net()
        first, last = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
        x = net.op("transpose", net.input(2, 3, *(4, 5, 6)[: rank - 2]), perm=last)
        steps = {key: value[:1] * (rank - 2) for key, value in STEPS.items()}
        for _ in range(2):
            w = net.weights(3, *(1,) * (rank - 2), 3)
            x = net.op("transpose", net.op("conv", x, w, **steps, group=1, epilogue=()), perm=first)
            x = net.op("transpose", net.op("clip", x, lo=-1.0, hi=1.0), perm=last)
        check(net, x, transpose=1, conv=2, clip=2)


def test_a_step_is_a_region_and_the_limit_holds() -> None:
    net = Net()
    x = net.op("relu", middle(net))
    x = net.op("tanh", net.conv_first(x, 4))
    graph = net.graph(net.conv(net.to_last(x), 4))
    counts = [ops(simplify(channels_last(graph, Steps(limit)), Steps()))["transpose"] for limit in range(3)]
    assert counts == [5, 3, 1]
    for limit in range(3):
        assert_same_meaning(graph, channels_last(graph, Steps(limit)))
    trace: list[Rewrite] = []
    channels_last(graph, Steps(trace=trace))
    assert [(r.rule, r.node) for r in trace] == [("choose_layouts", "n5"), ("choose_layouts", "n11")]


# --- transposes that weights absorb ---


def test_columns_of_a_fully_connected_layer_are_permuted() -> None:
    net = Net()
    x = net.op("reshape", middle(net), shape=(1, 192))
    after = check(net, net.fc(x, 5), transpose=1, conv=1, reshape=1, fc=1)
    assert not np.array_equal(after.outputs[0][1].node.inputs[1].constant, net_weights(net, "fc"))


def net_weights(net: Net, op: str) -> np.ndarray:
    again = Net()
    graph = again.graph(again.fc(again.op("reshape", middle(again), shape=(1, 192)), 5))
    array = next(node for node in graph.nodes() if node.op == op).inputs[1].constant
    assert array is not None
    return array


def test_an_activation_before_the_flattening() -> None:
    net = Net()
    x = net.op("reshape", net.op("relu", net.conv_first(net.input(2, 3, 6, 8), 4)), shape=(2, 192))
    check(net, net.fc(x, 5), net.fc(x, 3), transpose=1, conv=1, relu=1, reshape=1 + 1, fc=2)


@pytest.mark.parametrize("way", ["output", "weights", "other reader"])
def test_a_flattening_that_others_see_stays(way: str) -> None:
    net = Net()
    x = net.op("reshape", middle(net), shape=(1, 192))
    if way == "weights":
        check(net, net.op("fc", x, net.input(5, 192), epilogue=()), transpose=2, conv=1, reshape=1, fc=1)
    elif way == "output":
        check(net, net.fc(x, 5), x, transpose=2, conv=1, reshape=1, fc=1)
    else:
        check(net, net.fc(x, 5), net.op("softmax", x, axis=1), transpose=2, conv=1, reshape=1, fc=1, softmax=1)


def test_matrices_are_read_the_other_way_round() -> None:
    net = Net()
    a = net.op("transpose", net.input(2, 5, 3), perm=(0, 2, 1))
    b = net.op("transpose", net.input(2, 4, 5), perm=(0, 2, 1))
    after = check(net, net.op("batch_matmul", a, b, transpose_a=False, transpose_b=False), batch_matmul=1)
    assert dict(after.outputs[0][1].node.attrs) == {"transpose_a": True, "transpose_b": True}
    net = Net()
    a = net.op("transpose", net.input(5, 3, 2), perm=(2, 1, 0))
    check(net, net.op("batch_matmul", a, net.input(2, 5, 4), transpose_a=False, transpose_b=False), transpose=1, batch_matmul=1)


# --- permuted axes ---


@pytest.mark.parametrize(
    ("before", "after", "layout", "wanted"),
    [
        ((2, 3, 4), (2, 12), (0, 1, 2), (0, 1)),
        ((2, 3, 4), (2, 12), (1, 2, 0), (1, 0)),
        ((2, 3, 4), (2, 12), (0, 2, 1), None),
        ((2, 3, 4), (2, 12), (1, 0, 2), None),
        ((6, 4), (2, 3, 4), (1, 0), (2, 0, 1)),
        ((1, 6, 1, 4), (6, 4), (3, 0, 1, 2), (1, 0)),
        ((6, 4), (6, 1, 4, 1), (1, 0), (2, 3, 0, 1)),
        ((1, 1), (1,), (1, 0), (0,)),
    ],
)
def test_reshapes_carry_layouts_over(
    before: tuple[int, ...], after: tuple[int, ...], layout: axes.Layout, wanted: axes.Layout | None
) -> None:
    net = Net()
    node = net.op("reshape", net.input(*before), shape=after).node
    assert axes.output_layout(node, layout) == wanted
    if wanted is not None:
        back = axes.frame_layout_from_output(node, wanted)
        assert back is not None and axes.order_of(before, back) == axes.order_of(before, layout)


def test_operators_tied_to_their_axes_are_not_free() -> None:
    net = Net()
    x = net.input(1, 4, 4, 3)
    tied = [
        net.conv(x, 2),
        net.op("prelu", x, net.weights(3)),
        net.op("lrn", x, size=3, alpha=1e-4, beta=0.75, bias=1.0),
        net.fc(x, 2),
    ]
    tied += [
        net.op("pointwise", x, net.weights(3), expr=(("prelu", (0, 1), ()),)),
        net.op("reshape", net.input(0, 3), shape=(3, 0)),
    ]
    assert [axes.frame(value.node) for value in tied] == [None] * len(tied)
    assert axes.frame(net.op("relu", x).node) == 4
