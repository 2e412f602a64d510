"""Transposes that a matrix product can do without: by the order of its constant columns, or by reading the other way round."""

from __future__ import annotations

import math

import numpy as np

from cortado.compiler.graph import Graph, Node, constant
from cortado.compiler.passes.axes import order_of
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rewritten, rule


def _flattened(node: Node) -> tuple[Node, Node, int] | None:
    """(transpose, reshape, m) before a fully connected layer with constant weights, where the transpose keeps its first m axes

    in place and the reshape makes the columns of exactly the others.
    """
    reshape = node.inputs[0].node
    if reshape.op != "reshape" or node.inputs[1].constant is None:
        return None
    transpose = reshape.inputs[0].node
    if transpose.op != "transpose":
        return None
    shape, perm, columns = transpose.types[0].shape, transpose.attrs["perm"], reshape.types[0].shape[-1]
    for kept in range(len(perm) + 1):
        same = order_of(transpose.inputs[0].shape, perm[:kept]) == order_of(transpose.inputs[0].shape, range(kept))
        if sorted(perm[:kept]) == list(range(kept)) and same and math.prod(shape[kept:]) == columns > 0:
            return transpose, reshape, kept
    return None


@rule("fc")
def permute_columns(node: Node, context: Context) -> Replacement | None:
    """fc(reshape(transpose(x)), w) -> fc(reshape(x), w with its columns in x's order), if all readers of the transpose can do that."""
    match = _flattened(node)
    if match is None:
        return None
    transpose, reshape, kept = match
    if context.is_output(transpose.out()) or context.is_output(reshape.out()):
        return None
    for reader, _ in context.readers_of(transpose.out()):
        columns = [_reads_as_columns(fc, at) for fc, at in context.readers_of(reader.out())]
        if reader.op != "reshape" or not all(columns) or context.is_output(reader.out()):
            return None
    perm = transpose.attrs["perm"]
    weights = node.inputs[1]
    array = weights.node.attrs["value"]
    split = array.reshape(array.shape[0], *transpose.types[0].shape[kept:])
    moved = split.transpose(0, *(perm.index(axis) - kept + 1 for axis in range(kept, len(perm))))
    columns_moved = constant(
        np.ascontiguousarray(moved).reshape(array.shape), weights.node.name, weights.node.origin, weights.type.dtype
    )
    flat = rewritten("reshape", transpose.inputs, reshape.attrs, reshape, (transpose,))
    return rewritten("fc", (flat.out(), columns_moved, *node.inputs[2:]), node.attrs, node)


def _reads_as_columns(node: Node, position: int) -> bool:
    return node.op == "fc" and position == 0 and node.inputs[1].node.op == "constant"


def _swap(node: Node, position: int) -> Node | None:
    """The transpose before a matrix product that does nothing but swap rows and columns."""
    transpose = node.inputs[position].node
    if transpose.op != "transpose":
        return None
    rank = len(transpose.attrs["perm"])
    return transpose if transpose.attrs["perm"] == (*range(rank - 2), rank - 1, rank - 2) else None


@rule("batch_matmul")
def read_transposed(node: Node, context: Context) -> Replacement | None:
    """batch_matmul(transpose(a), b) -> batch_matmul(a, b, transpose_a), and so for b."""
    inputs, attrs = list(node.inputs), dict(node.attrs)
    swaps = []
    for position, flag in enumerate(("transpose_a", "transpose_b")):
        swap = _swap(node, position)
        if swap is not None:
            inputs[position] = swap.inputs[0]
            attrs[flag] = not attrs[flag]
            swaps.append(swap)
    return rewritten("batch_matmul", inputs, attrs, node, swaps) if swaps else None


def _left_to_do(node: Node) -> int:
    if node.op == "fc":
        return int(_flattened(node) is not None)
    return sum(_swap(node, position) is not None for position in (0, 1)) if node.op == "batch_matmul" else 0


def cost(node: Node) -> tuple[int, int]:
    """Elements transposed, then transposes that could still be absorbed."""
    return (node.types[0].size if node.op == "transpose" else 0, _left_to_do(node))


def absorb_transposes(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "absorb_transposes", (permute_columns, read_transposed), cost, steps)
