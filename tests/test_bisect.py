"""Finding a wrong rewrite and a wrong node."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from graphs import Net, feeds_of
from test_optimize import small_network

from cortado.compiler.bisect import exposed, first_wrong_node, first_wrong_rewrite, means_the_same, one_node_graph, relative_error
from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import run_graph
from cortado.compiler.rewrite import Rewrite
from cortado.compiler.text import format_graph

Arrays = Mapping[str, np.ndarray]


def test_a_right_optimization_has_no_wrong_rewrite() -> None:
    graph = small_network()
    assert first_wrong_rewrite(graph, means_the_same(graph, feeds_of(graph))) is None


@pytest.mark.parametrize("culprit", ["fuse_residual", "permute_columns", "reuse", "fuse_activation"])
def test_the_first_wrong_rewrite_is_named(culprit: str) -> None:
    """A machine that cannot run what one rule makes: everything from that rewrite on is wrong."""
    graph = small_network()
    trace: list[Rewrite] = []
    optimize(graph, trace=trace)
    number = next(r.number for r in trace if r.rule == culprit)
    steps_of = {format_graph(optimize(graph, n)): n for n in range(len(trace) + 1)}
    calls: list[int] = []

    def check(candidate: Graph) -> bool:
        calls.append(steps_of[format_graph(candidate)])
        return calls[-1] < number

    found = first_wrong_rewrite(graph, check)
    assert found is not None and found.rewrite == trace[number - 1]
    assert (steps_of[format_graph(found.before)], steps_of[format_graph(found.after)]) == (number - 1, number)
    assert len(calls) <= 2 + len(trace).bit_length()


def test_a_graph_that_is_wrong_before_any_rewrite() -> None:
    graph = small_network()
    found = first_wrong_rewrite(graph, lambda candidate: False)
    assert found is not None and found.rewrite is None and found.before is graph


def broken(name: str, factor: float) -> object:
    """A machine that computes one node a little wrong, and so all that depends on it."""

    def run(graph: Graph, feeds: Arrays) -> Arrays:
        def spoil(node: Node, inputs: tuple[Value, ...]) -> Node | Value:
            made = node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
            if node.name != name:
                return made
            net = Net()
            return net.op("mul", made.out(), net.number(factor), name=f"{name}/spoilt")

        return run_graph(graph.rebuild(spoil), feeds)

    return run


def test_the_first_wrong_node_and_how_to_run_it_alone() -> None:
    graph = small_network()
    feeds = feeds_of(graph)
    target = next(node for node in graph.nodes() if node.op == "add")
    found = first_wrong_node(graph, feeds, broken(target.name, 1.001))  # type: ignore[arg-type]
    assert found is not None and found.node is target and found.error == pytest.approx(1e-3, rel=0.01)
    alone = run_graph(found.graph, found.feeds)
    every = run_graph(exposed(graph), feeds)
    np.testing.assert_array_equal(alone[target.name], every[target.name])
    assert [node.op for node in found.graph.nodes()] == ["input", "input", "add"]


def test_small_errors_are_no_wrong_nodes() -> None:
    graph = small_network()
    assert first_wrong_node(graph, feeds_of(graph), run_graph) is None
    assert first_wrong_node(graph, feeds_of(graph), broken("blob", 1.00001)) is None  # type: ignore[arg-type]


def test_one_node_keeps_its_constants() -> None:
    net = Net()
    x = net.op("relu", net.input(2, 3, name="data"), name="a")
    y = net.fc(x, 4, name="fc")
    graph = net.graph(y)
    alone, feeds = one_node_graph(graph, y.node, {"a": np.ones((2, 3), np.float32), "other": np.zeros(1)})
    assert [n.name for n in alone.inputs] == ["a"] and list(feeds) == ["a"] and alone.outputs[0][0] == "fc"
    assert run_graph(alone, feeds)["fc"].shape == (2, 4)


@pytest.mark.parametrize(
    ("wanted", "got", "error"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0], [1e-30], np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.nan, 2.0], [np.nan, 1.0], 0.5),
        ([np.inf], [-np.inf], np.inf),
        ([1.0], [np.nan], np.inf),
        ([], [], 0.0),
        ([1.0], [[1.0]], np.inf),
    ],
)
def test_relative_error(wanted: list[float], got: list[float], error: float) -> None:
    assert relative_error(np.array(wanted, np.float32), np.array(got, np.float32)) == error


def test_whole_numbers_are_compared_exactly() -> None:
    a = np.array([1, 1000], np.int32)
    assert (
        relative_error(a, a.copy()) == 0
        and relative_error(a, a + 1) == np.inf
        and relative_error(a, a.astype(np.int64)) == np.inf
    )
