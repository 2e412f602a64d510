"""The text form of graphs."""

from __future__ import annotations

import zlib

import numpy as np

from cortado.compiler.graph import Graph, Node, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.text import diff_graphs, format_graph
from cortado.compiler.types import TensorType

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)
X = graph_input("data", TensorType((2, 4)))


def layer(weights: np.ndarray = WEIGHTS, bound: float = 6.0) -> Node:
    epilogue = (("bias",), ("activation", "clip", (("hi", bound), ("lo", 0.0))))
    inputs = [X.out(), constant(weights, "fc1_w"), constant(np.array([1, 2, 3], np.float32), "fc1_b")]
    return make("fc", inputs, {"epilogue": epilogue}, "fc1", ("fc1_op", "relu1_op"))


def graph(node: Node, output: str = "fc1") -> Graph:
    return Graph("net", (X,), ((output, node.out()),), {"data": "NC"})


def test_one_line_a_node_with_types_and_attributes() -> None:
    crc = zlib.crc32(WEIGHTS.tobytes())
    assert format_graph(graph(layer())) == (
        "graph net\n"
        "input data : float32[2,4] NC\n"
        f"fc1_w = constant crc32={crc:08x} : float32[3,4]\n"
        "fc1_b = constant [1.0,2.0,3.0] : float32[3]\n"
        "fc1 = fc(data, fc1_w, fc1_b) epilogue=((bias),(activation,clip,((hi,6.0),(lo,0.0)))) : float32[2,3]"
        "  # from fc1_op, relu1_op\n"
        "output fc1 : float32[2,3]\n"
    )


def test_equal_graphs_have_equal_texts_and_no_difference() -> None:
    assert format_graph(graph(layer())) == format_graph(graph(layer()))
    assert diff_graphs(graph(layer()), graph(layer())) == ""


def test_the_difference_holds_only_what_changed() -> None:
    before = graph(layer())
    after = graph(make("softmax", [layer(bound=1.0).out()], {"axis": 1}, "prob"), "fc1")
    lines = diff_graphs(before, after).splitlines()
    assert [line[:7] for line in lines] == ["- fc1 =", "+ fc1 =", "- outpu", "+ outpu", "+ prob "]
    assert "(hi,6.0)" in lines[0] and "(hi,1.0)" in lines[1]
    assert lines[3] == "+ output fc1 = prob : float32[2,3]"


def test_a_changed_constant_and_a_removed_node_show() -> None:
    other = WEIGHTS.copy()
    other[0, 0] = 9
    assert [line[:9] for line in diff_graphs(graph(layer()), graph(layer(other))).splitlines()] == ["- fc1_w =", "+ fc1_w ="]
    removed = diff_graphs(graph(layer()), Graph("net", (X,), (("fc1", X.out()),))).splitlines()
    assert sum(line.startswith("- ") for line in removed) == 5  # input (its layout), two constants, the layer, the output
    assert [line for line in removed if line.startswith("+ ")] == [
        "+ input data : float32[2,4]",
        "+ output fc1 = data : float32[2,4]",
    ]
