"""Tools to find a compiler's fault: the first rewrite that makes a graph wrong, the first node that a machine computes wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, graph_input
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import run_graph
from cortado.compiler.rewrite import Rewrite

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Graph, Arrays], Arrays]  # arrays by input name in, by output name out


@dataclass(frozen=True, eq=False)
class WrongRewrite:
    """rewrite: the culprit, None where the graph is wrong before any. before, after: the optimized graph without and with it."""

    rewrite: Rewrite | None
    before: Graph
    after: Graph


@dataclass(frozen=True, eq=False)
class WrongNode:
    """node: the first whose value is wrong though its inputs are right; error: see relative_error.

    graph, feeds: the node alone, to run again.
    """

    node: Node
    error: float
    graph: Graph
    feeds: Arrays


def relative_error(wanted: np.ndarray, got: np.ndarray) -> float:
    """The largest difference over the largest magnitude wanted; inf where shapes or dtypes differ, or what is not finite does."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return 0.0 if np.array_equal(wanted, got) else float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True) or not np.all(np.isfinite(got[finite])):
        return float("inf")
    a, b = wanted[finite].astype(np.float64), got[finite].astype(np.float64)
    if not a.size:
        return 0.0
    difference, scale = float(np.abs(a - b).max()), float(np.abs(a).max())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def means_the_same(graph: Graph, feeds: Arrays, tolerance: float = 1e-4, run: Run = run_graph) -> Callable[[Graph], bool]:
    """A check for first_wrong_rewrite: does `run` give for a graph what the reference gives for this one?"""
    wanted = run_graph(graph, feeds)

    def check(other: Graph) -> bool:
        got = run(other, feeds)
        return all(relative_error(array, got[name]) <= tolerance for name, array in wanted.items())

    return check


def first_wrong_rewrite(graph: Graph, check: Callable[[Graph], bool]) -> WrongRewrite | None:
    """The rewrite of `optimize` after which check(optimized graph) fails, though it holds after the one before; None if all is right.

    Binary search: the check runs about log2(number of rewrites) times.
    """
    trace: list[Rewrite] = []
    whole = optimize(graph, trace=trace)
    if check(whole):
        return None
    right, wrong = 0, len(trace)
    before, after = optimize(graph, step_limit=0), whole
    if not check(before):
        return WrongRewrite(None, graph, before)
    while wrong - right > 1:
        middle = (right + wrong) // 2
        candidate = optimize(graph, step_limit=middle)
        if check(candidate):
            right, before = middle, candidate
        else:
            wrong, after = middle, candidate
    return WrongRewrite(trace[wrong - 1], before, after)


def exposed(graph: Graph) -> Graph:
    """The graph with every value that is computed as an output, named as the values print, producers first."""
    values = [node.out(i) for node in graph.nodes() if node.op not in ("input", "constant") for i in range(len(node.types))]
    return Graph(graph.name, graph.inputs, tuple((repr(value), value) for value in values))


def first_wrong_node(
    graph: Graph, feeds: Arrays, tested: Run, wanted: Run = run_graph, tolerance: float = 1e-4
) -> WrongNode | None:
    """Run the graph both ways with every value as an output; the first node where they differ, in the order of computation.

    Outputs are places of their own: a fault in the sharing of memory may hide from this.
    """
    open_graph = exposed(graph)
    right, got = wanted(open_graph, feeds), tested(open_graph, feeds)
    for name, value in open_graph.outputs:
        error = relative_error(right[name], got[name])
        if error > tolerance:
            known = {**feeds, **right}
            return WrongNode(value.node, error, *one_node_graph(graph, value.node, known))
    return None


def one_node_graph(graph: Graph, node: Node, arrays: Arrays) -> tuple[Graph, Arrays]:
    """A graph of the node alone with feeds for it; constants stay constants. arrays: every value the node reads, by name."""
    new: dict[Value, Value] = {}
    for value in node.inputs:
        if value.constant is None and value not in new:
            new[value] = graph_input(repr(value), value.type).out()
    alone = Node(node.op, tuple(new.get(v, v) for v in node.inputs), node.attrs, node.types, node.name, node.origin)
    outputs = tuple((repr(alone.out(i)), alone.out(i)) for i in range(len(node.types)))
    inputs = tuple(value.node for value in new.values())
    return Graph(f"{graph.name}/{node.name}", inputs, outputs), {n.name: arrays[n.name] for n in inputs}
