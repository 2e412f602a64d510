"""The float graph as quantization wants it: only clamps stay with layers and with sums and products of two tensors.

Other activations become tables of their own, and fused arithmetic on several tensors comes apart into what int8 has operators for. What
stays float of it can be fused again.
"""

from __future__ import annotations

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops import make
from cortado.compiler.quantize.plan import CLAMPS, LAYERS, PAIRS


def prepare(graph: Graph) -> Graph:
    """The graph with every activation that an int8 layer cannot take as a node of its own, by the layer's name, and likewise with every
    instruction of an expression of several float32 tensors.
    """

    def split(node: Node, inputs: tuple[Value, ...]) -> Node | Value:
        same = node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        if node.op == "pointwise" and _of_several(node):
            return _apart(same)
        if node.op not in LAYERS or node.types[0].dtype != "float32" or not node.attrs["epilogue"]:
            return same
        last = node.attrs["epilogue"][-1]
        if last[0] != "activation" or last[1] in CLAMPS:
            return same
        attrs = {**node.attrs, "epilogue": node.attrs["epilogue"][:-1]}
        layer = make(node.op, inputs, attrs, f"{node.name}/linear", node.origin)
        return make(last[1], (layer.out(),), dict(last[2]), node.name, node.origin)

    return graph.rebuild(split)


def _of_several(node: Node) -> bool:
    computed = [value for value in node.inputs if value.constant is None]
    return len(computed) > 1 and all(value.type.dtype == "float32" for value in (*computed, node.out()))


def _apart(node: Node) -> Value:
    """Every instruction as a node, but for a clamp right behind a sum or a product: the two stay one expression."""
    expr, first = node.attrs["expr"], len(node.inputs)
    reads = [arg for _, args, _ in expr for arg in args]
    values: list[Value] = list(node.inputs)
    for number, (name, args, attrs) in enumerate(expr):
        own = node.name if number == len(expr) - 1 else f"{node.name}/{number}"
        before = expr[args[0] - first] if args[0] >= first else None
        if before is not None and name in CLAMPS and before[0] in PAIRS and reads.count(args[0]) == 1:
            operands = [values[arg] for arg in before[1]]
            if operands[0] != operands[1] and all(value.constant is None for value in operands):
                both = ((before[0], (0, 1), ()), (name, (2,), attrs))
                values.append(make("pointwise", operands, {"expr": both}, own, node.origin).out())
                continue
        values.append(make(name, [values[arg] for arg in args], dict(attrs), own, node.origin).out())
    return values[-1]
