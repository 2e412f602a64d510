"""Elementwise operators that follow each other become one loop over the elements: a `pointwise` node with an expression."""

from __future__ import annotations

from collections.abc import Mapping

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.ops.pointwise import Instruction
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rewritten, rule

MAX_INSTRUCTIONS = 24  # so that kernels stay small and live values fit the registers
MAX_INPUTS = 8  # each is a pointer and its strides
FUSABLE = (*ELEMENTWISE, "pointwise")


def expression(node: Node) -> tuple[Instruction, ...]:
    """An elementwise node as instructions over its inputs."""
    if node.op == "pointwise":
        return node.attrs["expr"]
    return ((node.op, tuple(range(len(node.inputs))), tuple(sorted(node.attrs.items()))),)


@rule(*FUSABLE)
def fuse_producer(node: Node, context: Context) -> Replacement | None:
    """f(g(x), y) -> pointwise(x, y), where only f reads g(x) and g has as many elements as f: nothing is computed twice."""
    for value in dict.fromkeys(node.inputs):
        producer = value.node
        if producer.op not in FUSABLE or value.shape != node.types[0].shape or not context.read_only_by(value, node):
            continue
        inputs, expr = inline(node, producer)
        if len(expr) <= MAX_INSTRUCTIONS and len(inputs) <= MAX_INPUTS:
            return rewritten("pointwise", inputs, {"expr": expr}, node, (producer,))
    return None


def inline(node: Node, producer: Node) -> tuple[tuple[Value, ...], tuple[Instruction, ...]]:
    """Inputs and instructions of the node with the producer's instructions in front."""
    result = producer.out()
    inputs = tuple(dict.fromkeys((*producer.inputs, *(value for value in node.inputs if value != result))))
    first, second = expression(producer), expression(node)
    at = {value: index for index, value in enumerate(inputs)}
    at[result] = len(inputs) + len(first) - 1
    before = _renumbered(first, producer, at, len(inputs))
    return inputs, before + _renumbered(second, node, at, len(inputs) + len(first))


def _renumbered(expr: tuple[Instruction, ...], node: Node, at: Mapping[Value, int], start: int) -> tuple[Instruction, ...]:
    """Instructions that read the node's inputs at other numbers, and whose own results are numbered from `start`."""
    places = [*(at[value] for value in node.inputs), *range(start, start + len(expr))]
    return tuple((name, tuple(places[arg] for arg in args), attrs) for name, args, attrs in expr)


def operations(node: Node) -> tuple[int, ...]:
    return (int(node.op not in ("input", "constant")),)


def fuse_elementwise(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "fuse_elementwise", (fuse_producer,), operations, steps)
