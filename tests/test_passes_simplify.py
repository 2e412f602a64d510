"""Constants computed, identities removed, movement merged: operators before and after, and the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from graphs import STEPS, TO_FIRST, TO_LAST, Net, assert_same_meaning, node_named, ops

from cortado.compiler.graph import Graph, Value, constant, graph_input
from cortado.compiler.passes.common_subexpressions import eliminate_common_subexpressions
from cortado.compiler.passes.simplify import simplify
from cortado.compiler.rewrite import Rewrite, Steps
from cortado.compiler.types import Quant, TensorType

Build = Callable[[Net], Value]
INF = math.inf


def image(n: Net, *shape: int) -> Value:
    return n.input(*(shape or (2, 3, 4, 5)))


def pool(n: Net, x: Value, op: str, **more: object) -> Value:
    extra = {"count_include_pad": False} if op == "average_pool" else {}
    return n.op(op, x, **{**STEPS, "kernel": (1, 1), **extra, **more})


def shuffled(n: Net) -> Value:
    x = image(n, 2, 6, 4)
    return n.op("transpose", n.op("transpose", x, perm=(1, 2, 0)), perm=(2, 0, 1))


GONE: dict[str, Build] = {
    "reshape to the same shape": lambda n: n.op("reshape", image(n), shape=(2, 3, 4, 5)),
    "reshape there and back": lambda n: n.op("reshape", n.op("reshape", image(n), shape=(6, 20)), shape=(2, 3, 4, 5)),
    "transpose that keeps all axes": lambda n: n.op("transpose", image(n), perm=(0, 1, 2, 3)),
    "transpose there and back": lambda n: n.op("transpose", n.op("transpose", image(n), perm=TO_LAST), perm=TO_FIRST),
    "three axes there and back": shuffled,
    "slice of everything": lambda n: n.op("slice", image(n), starts=(0, 0, 0, 0), stops=(2, 3, 4, 5)),
    "concat of one": lambda n: n.op("concat", image(n), axis=1),
    "concat with nothing": lambda n: n.op("concat", n.input(2, 0), n.input(2, 3), n.input(2, 0), axis=1),
    "slice of a concat's part": lambda n: n.op(
        "slice", n.op("concat", n.input(2, 3), n.input(2, 4), axis=1), starts=(0, 3), stops=(2, 7)
    ),
    "split and joined": lambda n: split_and_joined(n),
    "pad of nothing": lambda n: n.op("pad", image(n), begin=(0,) * 4, end=(0,) * 4, mode="edge", value=0.0),
    "cast to the same type": lambda n: n.op("cast", image(n), dtype="float32"),
    "clip to everything": lambda n: n.op("clip", image(n), lo=-INF, hi=INF),
    "plus zero": lambda n: n.op("add", image(n), n.number(0)),
    "zeros plus": lambda n: n.op("add", n.number(np.zeros((3, 1, 1))), image(n)),
    "minus zero": lambda n: n.op("sub", image(n), n.number([0.0])),
    "times one": lambda n: n.op("mul", image(n), n.number(np.ones(5))),
    "over one": lambda n: n.op("div", image(n), n.number(1)),
    "to the power of one": lambda n: n.op("pow", image(n), n.number(1)),
    "whole numbers times one": lambda n: n.op("mul", n.number(1, "int32"), n.input(3, dtype="int32")),
    "minus minus": lambda n: n.op("negative", n.op("negative", image(n))),
    "not not": lambda n: n.op("logical_not", n.op("logical_not", n.input(4, dtype="bool"))),
    "max pool of single cells": lambda n: pool(n, image(n), "max_pool"),
    "average pool of single cells": lambda n: pool(n, image(n), "average_pool"),
    "tile once": lambda n: n.op("tile", image(n), repeats=(1, 1, 1, 1)),
    "broadcast to the same shape": lambda n: n.op("broadcast_to", image(n), shape=(2, 3, 4, 5)),
    "resize to the same size": lambda n: n.op("resize_nearest", image(n), scale_h=1.0, scale_w=1.0, out_h=3, out_w=4),
    "sum over single cells": lambda n: n.op("reduce_sum", n.input(2, 1, 3), axes=(1,), keepdims=True),
    "mean over no axis": lambda n: n.op("reduce_mean", n.input(2, 3), axes=(), keepdims=False),
}


def neighbours(n: Net) -> Value:
    x = n.input(9, 4)
    parts = [n.op("slice", x, starts=(a, 1), stops=(b, 3)) for a, b in ((1, 2), (2, 5))]
    return n.op("concat", *parts, axis=0)


def split_and_joined(n: Net) -> Value:
    x = n.input(2, 6)
    parts = [n.op("slice", x, starts=(0, a), stops=(2, b)) for a, b in ((0, 1), (1, 4), (4, 6))]
    return n.op("concat", *parts, axis=1)


@pytest.mark.parametrize("name", GONE)
def test_what_does_nothing_goes(name: str) -> None:
    net = Net()
    graph = net.graph(GONE[name](net))
    assert ops(graph)
    after = simplify(graph, Steps())
    assert ops(after) == {}
    assert_same_meaning(graph, after)


STAYS: dict[str, Build] = {
    "plus zeros that make it larger": lambda n: n.op("add", n.input(3), n.number(np.zeros((2, 1)))),
    "plus almost zero": lambda n: n.op("add", image(n), n.number([0, 0, 0, 0, 1e-30])),
    "zero minus": lambda n: n.op("sub", n.number(0), image(n)),
    "one over": lambda n: n.op("div", n.number(1), image(n)),
    "clip": lambda n: n.op("clip", image(n), lo=-INF, hi=2.0),
    "transpose": lambda n: n.op("transpose", image(n), perm=TO_LAST),
    "slice": lambda n: n.op("slice", image(n), starts=(0, 0, 0, 0), stops=(2, 3, 4, 4)),
    "reshape": lambda n: n.op("reshape", image(n), shape=(6, 20)),
    "pool of single cells with steps": lambda n: pool(n, image(n), "max_pool", strides=(2, 1)),
    "pool of single cells with padding": lambda n: pool(n, image(n), "max_pool", pads_end=(1, 0)),
    "resize that turns the sides": lambda n: n.op(
        "resize_bilinear", n.input(1, 2, 3, 1), scale_h=1.5, scale_w=0.67, out_h=3, out_w=2
    ),
    "resize to the same size by a scale": lambda n: n.op(
        "resize_nearest", n.input(1, 3, 3, 1), scale_h=1.25, scale_w=1.0, out_h=3, out_w=3
    ),
    "reduction that does something": lambda n: n.op("reduce_max", n.input(2, 3), axes=(1,), keepdims=True),
    "not minus": lambda n: n.op("negative", n.op("abs", image(n))),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_does_something_stays(name: str) -> None:
    net = Net()
    graph = net.graph(STAYS[name](net))
    assert simplify(graph, Steps()) is graph


def clamped(n: Net, x: Value, *bounds: tuple[float, float] | None) -> Value:
    for bound in bounds:
        x = n.op("relu", x) if bound is None else n.op("clip", x, lo=bound[0], hi=bound[1])
    return x


@pytest.mark.parametrize(
    ("bounds", "op", "attrs"),
    [
        ([(0.0, INF)], "relu", {}),
        ([None, None, None], "relu", {}),
        ([None, (-1.0, 6.0)], "clip", {"lo": 0.0, "hi": 6.0}),
        ([(-1.0, 6.0), None], "clip", {"lo": 0.0, "hi": 6.0}),
        ([(-1.0, 0.5), (0.75, 1.0)], "clip", {"lo": 0.75, "hi": 0.75}),
        ([(-1.0, 1.0), (-0.5, 2.0), (-3.0, 0.25)], "clip", {"lo": -0.5, "hi": 0.25}),
        ([(1.0, -1.0), (-2.0, 2.0)], "clip", {"lo": -1.0, "hi": -1.0}),
    ],
)
def test_clamps_in_a_row_become_one(bounds: list[tuple[float, float] | None], op: str, attrs: dict[str, float]) -> None:
    net = Net()
    graph = net.graph(clamped(net, image(net), *bounds))
    after = simplify(graph, Steps())
    assert ops(after) == {op: 1} and dict(after.outputs[0][1].node.attrs) == attrs
    assert_same_meaning(graph, after, 0)


def test_a_clamp_that_others_read_stays() -> None:
    net = Net()
    first = net.op("clip", image(net), lo=-1.0, hi=1.0)
    graph = net.graph(net.op("relu", first), net.op("tanh", first))
    after = simplify(graph, Steps())
    assert ops(after) == {"clip": 2, "tanh": 1} and after.outputs[0][1].node.inputs[0].node.op == "input"
    assert_same_meaning(graph, after, 0)


ONE: dict[str, tuple[Build, str, dict[str, object]]] = {
    "reshapes": (lambda n: n.op("reshape", n.op("reshape", image(n), shape=(6, 20)), shape=(120,)), "reshape", {"shape": (120,)}),
    "transposes": (
        lambda n: n.op("transpose", n.op("transpose", image(n), perm=TO_LAST), perm=(3, 0, 1, 2)), "transpose", {"perm": (1, 0, 2, 3)},
    ),
    "transpose of ones": (lambda n: n.op("transpose", n.input(1, 7, 1, 1), perm=TO_LAST), "reshape", {"shape": (1, 1, 1, 7)}),
    "transpose of one channel": (lambda n: n.op("transpose", n.input(2, 1, 3, 4), perm=TO_LAST), "reshape", {"shape": (2, 3, 4, 1)}),
    "slices": (
        lambda n: n.op("slice", n.op("slice", n.input(9, 9), starts=(2, 0), stops=(8, 9)), starts=(1, 3), stops=(3, 4)),
        "slice", {"starts": (3, 3), "stops": (5, 4)},
    ),
    "slice inside a part": (
        lambda n: n.op("slice", n.op("concat", n.input(2, 3), n.input(2, 5), axis=1), starts=(0, 4), stops=(2, 7)),
        "slice", {"starts": (0, 1), "stops": (2, 4)},
    ),
    "neighbouring slices": (lambda n: neighbours(n), "slice", {"starts": (1, 1), "stops": (5, 3)}),
    "concats": (
        lambda n: n.op("concat", n.op("concat", n.input(2, 1), n.input(2, 2), axis=1), n.input(2, 3), axis=1), "concat", {"axis": 1},
    ),
    "reduction over single cells": (lambda n: n.op("reduce_max", n.input(2, 1, 3), axes=(1,), keepdims=False), "reshape", {"shape": (2, 3)}),
    "broadcast that only adds ones": (lambda n: n.op("broadcast_to", n.input(3), shape=(1, 1, 3)), "reshape", {"shape": (1, 1, 3)}),
    "broadcast before broadcasting": (lambda n: n.op("mul", n.input(2, 3), n.op("broadcast_to", n.input(3), shape=(2, 3))), "mul", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_several_become_one(name: str) -> None:
    build, op, attrs = ONE[name]
    net = Net()
    graph = net.graph(build(net))
    after = simplify(graph, Steps())
    assert ops(after) == {op: 1} and dict(after.outputs[0][1].node.attrs) == attrs
    assert after.outputs[0][1].node.name == graph.outputs[0][1].node.name
    assert_same_meaning(graph, after, 0)


def test_a_concat_that_others_read_stays_whole() -> None:
    net = Net()
    inner = net.op("concat", net.input(2, 1), net.input(2, 2), axis=1)
    graph = net.graph(net.op("concat", inner, net.input(2, 3), axis=1), net.op("relu", inner))
    assert simplify(graph, Steps()) is graph


def test_a_slice_over_two_parts_stays() -> None:
    net = Net()
    graph = net.graph(net.op("slice", net.op("concat", net.input(2, 3), net.input(2, 5), axis=1), starts=(0, 2), stops=(2, 7)))
    assert simplify(graph, Steps()) is graph


def test_slices_in_another_order_stay() -> None:
    net = Net()
    x = net.input(2, 6)
    parts = [net.op("slice", x, starts=(0, a), stops=(2, b)) for a, b in ((3, 6), (0, 3))]
    graph = net.graph(net.op("concat", *parts, axis=1))
    assert simplify(graph, Steps()) is graph


@pytest.mark.parametrize("op", ["conv", "average_pool"])
def test_zeros_around_the_space_become_padding(op: str) -> None:
    net = Net()
    padded = net.op("pad", net.input(1, 4, 5, 3), begin=(0, 1, 0, 0), end=(0, 2, 1, 0), mode="constant", value=0.0)
    more = {**STEPS, "pads_begin": (1, 1), "pads_end": (0, 1)}
    y = net.conv(padded, 2, 3, **more) if op == "conv" else pool(net, padded, op, **more, kernel=(2, 2), count_include_pad=True)
    graph = net.graph(y)
    after = simplify(graph, Steps())
    assert ops(after) == {op: 1}
    assert (after.outputs[0][1].node.attrs["pads_begin"], after.outputs[0][1].node.attrs["pads_end"]) == ((2, 1), (2, 2))
    assert_same_meaning(graph, after)


@pytest.mark.parametrize(
    "attrs",
    [
        {"mode": "edge", "value": 0.0},
        {"mode": "constant", "value": 0.5},
        {"mode": "constant", "value": 0.0, "end": (0, 0, 0, 1)},
        {"mode": "constant", "value": 0.0, "begin": (0, -1, 2, 0)},
    ],
)
def test_other_padding_stays(attrs: dict[str, object]) -> None:
    net = Net()
    x = net.op("pad", net.input(1, 4, 5, 3), **{"begin": (0, 1, 1, 0), "end": (0, 0, 0, 0), **attrs})
    graph = net.graph(net.conv(x, 2, 2))
    assert simplify(graph, Steps()) is graph


def test_an_average_that_counts_only_the_image_keeps_its_pad() -> None:
    net = Net()
    x = net.op("pad", net.input(1, 4, 5, 3), begin=(0, 1, 1, 0), end=(0, 0, 0, 0), mode="constant", value=0.0)
    graph = net.graph(pool(net, x, "average_pool", kernel=(2, 2)))
    assert simplify(graph, Steps()) is graph


def test_constants_are_computed() -> None:
    net = Net()
    a, b = net.weights(3, 4), net.weights(4)
    total = net.op("transpose", net.op("mul", net.op("add", a, b), net.number(2)), perm=(1, 0), name="w")
    graph = net.graph(net.op("add", net.input(4, 3), total))
    after = simplify(graph, Steps())
    assert ops(after) == {"add": 1} and node_named(after, "w").op == "constant"
    assert_same_meaning(graph, after, 0)


def test_what_depends_on_the_machine_is_not_computed() -> None:
    net = Net()
    graph = net.graph(net.op("add", net.input(4), net.op("exp", net.weights(4))))
    assert simplify(graph, Steps()) is graph


def test_constants_do_not_grow_much() -> None:
    net = Net()
    x = net.input(300, 300)
    small = net.op("tile", net.weights(10, 10), repeats=(2, 2), name="small")
    large = net.op("tile", net.weights(3, 3), repeats=(100, 100))
    graph = net.graph(net.op("add", x, large), small)
    after = simplify(graph, Steps())
    assert ops(after) == {"add": 1, "tile": 1} and node_named(after, "small").op == "constant"


def test_axes_of_size_one_keep_their_quantization() -> None:
    kind = TensorType((1, 7, 1), "int8", Quant((0.1,), (3,)))
    x = graph_input("x", kind)
    net = Net()
    net.inputs.append(x)
    graph = net.graph(net.op("transpose", x.out(), perm=(0, 2, 1)))
    after = simplify(graph, Steps())
    assert ops(after) == {"reshape": 1} and after.outputs[0][1].type.quant == kind.quant


# --- common subexpressions ---


def test_the_same_is_computed_once() -> None:
    net = Net()
    x = net.input(1, 6, 6, 2)
    w = net.rng.standard_normal((3, 3, 3, 2)).astype(np.float32)
    convs = [net.op("conv", x, constant(w.copy(), f"w{i}"), **STEPS, group=1, epilogue=()) for i in range(2)]
    graph = net.graph(net.op("add", net.op("relu", convs[0]), net.op("relu", convs[1])))
    trace: list[Rewrite] = []
    after = eliminate_common_subexpressions(graph, Steps(trace=trace))
    assert ops(after) == {"conv": 1, "relu": 1, "add": 1}
    assert [r.node for r in trace] == ["w1", "n1", "n3"]
    assert_same_meaning(graph, after, 0)


def test_operands_may_change_places() -> None:
    net = Net()
    x, y = net.input(3), net.input(3)
    graph = net.graph(
        net.op("sub", net.op("add", x, y), net.op("add", y, x)), net.op("sub", x, y), net.op("sub", y, x), net.op("add", x, x)
    )
    after = eliminate_common_subexpressions(graph, Steps())
    assert ops(after) == {"add": 2, "sub": 3}
    assert_same_meaning(graph, after, 0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros(40, np.float32), -np.zeros(40, np.float32)),
        (np.zeros(40, np.float32), np.zeros((40, 1), np.float32)),
        (np.arange(4000, dtype=np.float32), np.where(np.arange(4000) == 2000, 1, np.arange(4000)).astype(np.float32)),
        (np.ones(4, np.float32), np.ones(4, np.float32).view(np.int32)),
    ],
)
def test_constants_with_other_bytes_or_types_are_kept_apart(a: np.ndarray, b: np.ndarray) -> None:
    values = constant(a, "a"), constant(b, "b")
    graph = Graph("net", (), (("a", values[0]), ("b", values[1])))
    assert eliminate_common_subexpressions(graph, Steps()) is graph


def test_attributes_tell_apart() -> None:
    net = Net()
    x = net.input(3)
    clips = [net.op("clip", x, lo=lo, hi=1.0) for lo in (0.0, -0.0, 0.5, 0.0)]
    graph = net.graph(*clips)
    assert ops(eliminate_common_subexpressions(graph, Steps())) == {"clip": 3}
