"""Runs a graph in numpy by its operators' references: what every other way of running it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops import OPS
from cortado.compiler.types import TensorType, cut_rows
from cortado.errors import InputError


def evaluate(node: Node, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One node's outputs, of exactly its types. The arrays must be of its inputs' types; results may share memory with them."""
    op = OPS[node.op]
    attrs = {**node.attrs, "input_types": tuple(value.type for value in node.inputs)} if op.takes_types else node.attrs
    with np.errstate(all="ignore"):
        outputs = op.reference(arrays, attrs)
    for kind, output in zip(node.types, outputs, strict=True):
        assert output.dtype == kind.numpy and output.shape == kind.shape, (
            f"the reference of {node!r} gave {output.dtype}{list(output.shape)} for {kind}"
        )
    return outputs


def check_feeds(expected: Mapping[str, TensorType], feeds: Mapping[str, np.ndarray]) -> None:
    """InputError, naming all of them, unless the feeds have exactly the expected names, dtypes and shapes."""
    problems = [f"input {name!r} is missing; it is {kind}" for name, kind in expected.items() if name not in feeds]
    names = ", ".join(map(repr, expected)) or "none"
    problems += [f"there is no input {name!r}; the inputs are {names}" for name in feeds if name not in expected]
    for name, kind in expected.items():
        array = feeds.get(name)
        if array is None:
            continue
        if not isinstance(array, np.ndarray):
            problems.append(f"input {name!r} is a {type(array).__name__}, not a numpy array")
        elif array.dtype != kind.numpy or array.shape != kind.shape:
            found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
            problems.append(f"input {name!r} is {found}; it must be {kind} (nothing is converted)")
    if problems:
        raise InputError("; ".join(problems))


def run_graph(graph: Graph, feeds: Mapping[str, np.ndarray], wanted: Sequence[Value] | None = None) -> dict[str, np.ndarray]:
    """Output arrays by the graph's output names, or, where `wanted` values are given, those by node name (`name:index` beyond 0).

    feeds: arrays by input name, exactly the graph's inputs. Results are new arrays. InputError where the feeds do not fit.
    Values are dropped after their last use, so memory follows the graph's width.
    """
    targets = graph.outputs if wanted is None else tuple((repr(value), value) for value in wanted)
    check_feeds({node.name: node.types[0] for node in graph.inputs}, feeds)
    nodes = Graph(graph.name, graph.inputs, targets).nodes()
    left = Counter(value for node in nodes for value in node.inputs)
    left.update(value for _, value in targets)
    values: dict[Value, np.ndarray] = {}
    for node in nodes:
        if node.op == "input":
            outputs: tuple[np.ndarray, ...] = (feeds[node.name],)
        elif node.op == "constant":
            outputs = (node.attrs["value"],)
        else:
            outputs = evaluate(node, [values[value] for value in node.inputs])
        values.update((node.out(i), output) for i, output in enumerate(outputs) if left[node.out(i)])
        del outputs
        for value in node.inputs:
            left[value] -= 1
            if not left[value]:
                del values[value]
    results = {name: np.array(values[value], order="C") for name, value in targets}
    return cut_rows(results, graph.counts) if wanted is None else results
