"""The whole optimization: same meaning at every step limit, same graph from same graph, and the same interface."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from graphs import Net, assert_same_meaning, ops
from random_graphs import random_graph

from cortado.compiler.graph import Graph
from cortado.compiler.optimize import optimize
from cortado.compiler.rewrite import Rewrite
from cortado.compiler.text import format_graph


def small_network() -> Graph:
    net = Net()
    data = net.input(1, 3, 9, 8, name="data")
    net.input(1, name="nobody reads this")
    x = net.op("relu", net.conv_first(data, 4, 3), name="blob")
    y = net.op("mul", net.conv_first(x, 4, 1), net.weights(4, 1, 1))
    y = net.op("clip", net.op("add", y, x), lo=0.0, hi=6.0)
    y = net.op("mul", y, net.op("sigmoid", net.conv_first(x, 4, 1)))
    y = net.op("concat", y, net.op("relu", net.conv_first(y, 2, 1)), axis=1)
    flat = net.op("reshape", y, shape=(1, y.type.size))
    graph = net.graph(net.op("softmax", net.fc(flat, 3), axis=1), x)
    return Graph("net", graph.inputs, graph.outputs, {"data": "NCHW"})


def test_a_small_network_becomes_few_nodes() -> None:
    graph = small_network()
    after = optimize(graph)
    assert ops(after) == {"transpose": 2, "conv": 4, "mul": 1, "concat": 1, "reshape": 1, "fc": 1, "softmax": 1}
    assert after.layouts == graph.layouts and after.inputs == graph.inputs
    assert_same_meaning(graph, after)


def test_every_step_limit_gives_the_same_meaning() -> None:
    graph = small_network()
    trace: list[Rewrite] = []
    whole = optimize(graph, trace=trace)
    assert len(trace) > 8 and [r.number for r in trace] == list(range(1, len(trace) + 1))
    for limit in range(len(trace) + 2):
        partial: list[Rewrite] = []
        after = optimize(graph, limit, partial)
        assert partial == trace[:limit]
        assert_same_meaning(graph, after)
    assert format_graph(after) == format_graph(whole)
    assert format_graph(optimize(graph, 0)) == format_graph(graph)


def test_an_optimized_graph_is_left_alone() -> None:
    after = optimize(small_network())
    assert optimize(after) is after


@pytest.mark.parametrize("seed", range(80))
def test_random_graphs_keep_their_meaning(seed: int) -> None:
    graph = random_graph(seed)
    trace: list[Rewrite] = []
    after = optimize(graph, trace=trace)
    assert_same_meaning(graph, after, 1e-4)
    transposed = [sum(node.types[0].nbytes for node in g.nodes() if node.op == "transpose") for g in (graph, after)]
    assert transposed[1] <= transposed[0]
    if trace:
        assert_same_meaning(graph, optimize(graph, step_limit=len(trace) * 2 // 3), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_random_graphs_keep_their_meaning_at_every_step(seed: int) -> None:
    graph = random_graph(seed)
    trace: list[Rewrite] = []
    optimize(graph, trace=trace)
    for limit in range(len(trace)):
        assert_same_meaning(graph, optimize(graph, limit), 1e-4)


PRINT = """
import sys
sys.path.insert(0, {tests!r})
from test_optimize import small_network, optimize, format_graph
from random_graphs import random_graph
print("".join(format_graph(optimize(graph)) for graph in [small_network(), *map(random_graph, range(12))]))
"""


def test_two_processes_make_the_same_graphs() -> None:
    texts = []
    for seed in ("1", "2"):
        code = PRINT.format(tests=os.path.dirname(__file__))
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        elsewhere = os.path.dirname(__file__)  # in the repository's root the folder ./cortado would hide the installed package
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=elsewhere)
        assert run.returncode == 0, run.stderr
        texts.append(run.stdout)
    assert texts[0] == texts[1] and "crc32" in texts[0]
