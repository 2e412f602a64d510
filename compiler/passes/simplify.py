"""Constants are computed, and what does nothing goes: the rules that are right at any stage, run together to a fixed point."""

from __future__ import annotations

from cortado.compiler.graph import Graph, Node, constant
from cortado.compiler.ops import OPS
from cortado.compiler.passes import identities, movement
from cortado.compiler.reference import evaluate
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rule

GROWTH = 1 << 16  # bytes by which a folded constant may exceed the constants it is made of


@rule()
def fold_constants(node: Node, context: Context) -> Replacement | None:
    """Compute what depends on constants alone, where the reference's bits are the same on every machine and the result is not much larger."""
    if node.op not in OPS or not OPS[node.op].portable or any(value.constant is None for value in node.inputs):
        return None
    if node.op == "pointwise" and not all(OPS[name].portable for name, _, _ in node.attrs["expr"]):
        return None
    if sum(kind.nbytes for kind in node.types) > sum(value.type.nbytes for value in node.inputs) + GROWTH:
        return None
    if any(kind.quant is not None or kind.dtype == "bfloat16" for kind in (*node.types, *(v.type for v in node.inputs))):
        return None
    arrays = evaluate(node, [value.node.attrs["value"] for value in node.inputs])
    names = [node.name if index == 0 else f"{node.name}/{index}" for index in range(len(arrays))]
    return tuple(constant(array, name, node.origin) for array, name in zip(arrays, names, strict=True))


def cost(node: Node) -> tuple[int, int]:
    """Operations (a reshape is cheaper than anything else), then what the rules would still make simpler without removing any."""
    if node.op in ("input", "constant"):
        return (0, 0)
    return (1 if node.op == "reshape" else 2, movement.left_to_do(node) + identities.left_to_do(node))


def simplify(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "simplify", (fold_constants, *identities.RULES, *movement.RULES), cost, steps)
