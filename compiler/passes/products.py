"""Products of matrices: one with a constant matrix is a fully connected layer, and a number that multiplies one goes into a factor."""

from __future__ import annotations

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant
from cortado.compiler.passes.fold_affine import ARITHMETIC, affine, scaled_constant, scaled_layer
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rewritten, rule

KEEPS = ("reshape", "transpose")  # every element once, as it is


@rule("batch_matmul")
def product_to_layer(node: Node, context: Context) -> Replacement | None:
    """a @ W -> fc(a, W transposed) for a constant matrix W."""
    a, b = node.inputs
    matrix = b.constant
    if matrix is None or a.constant is not None or node.attrs["transpose_a"] or matrix.size != np.prod(matrix.shape[-2:]):
        return None
    if len(matrix.shape) > len(a.shape):
        return None
    weights = matrix.reshape(matrix.shape[-2:])
    if not node.attrs["transpose_b"]:
        weights = np.ascontiguousarray(weights.T)
    return rewritten("fc", (a, constant(weights, b.node.name, b.node.origin)), {"epilogue": ()}, node)


@rule(*ARITHMETIC)
def scale_a_factor(node: Node, context: Context) -> Replacement | None:
    """(a @ b) * s -> (a * s) @ b for a number s, where a layer that makes a factor has s in its weights; reshapes and transposes may
    stand between. Likewise where there is no product.
    """
    step = affine(node)
    if step is None or step.scale is None or step.scale.size != 1 or step.shift is not None:
        return None
    if step.x.node.op != "batch_matmul" and step.x.node.op not in KEEPS:
        return None
    found = _scaled(step.x, step.scale, node, context)
    if found is None:
        return None
    return rewritten(found.node.op, found.node.inputs, found.node.attrs, node, (step.x.node,))


def _scaled(value: Value, scale: np.ndarray, reader: Node, context: Context) -> Value | None:
    """value * scale without an operation for it, if nothing else reads the value."""
    if not context.read_only_by(value, reader):
        return None
    if value.constant is not None:
        return scaled_constant(value, scale)
    node = value.node
    layer = scaled_layer(value, scale)
    if layer is not None:
        return layer.out()
    if node.op != "batch_matmul" and node.op not in KEEPS:
        return None
    for position, factor in enumerate(node.inputs):
        found = _scaled(factor, scale, node, context)
        if found is not None:
            inputs = (*node.inputs[:position], found, *node.inputs[position + 1 :])
            return Node(node.op, inputs, node.attrs, node.types, node.name, node.origin).out()
    return None


def cost(node: Node) -> tuple[int]:
    """Operations; a product is more than a layer."""
    return ({"input": 0, "constant": 0, "batch_matmul": 2}.get(node.op, 1),)


def products_to_layers(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "products_to_layers", (product_to_layer,), cost, steps)


def scale_factors(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "scale_factors", (scale_a_factor,), cost, steps)
