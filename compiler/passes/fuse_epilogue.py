"""What follows a convolution or fully connected layer goes into its epilogue: bias, one residual, one activation, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops.elementwise import UNARY
from cortado.compiler.ops.epilogue import ORDER
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rewritten, rule

LAYERS = ("conv", "conv_transpose", "fc")
# One output is computed from one input, at a cost that hides behind the products; expensive ones still save a trip through memory.
ACTIVATIONS = tuple(name for name, op in UNARY.items() if not name.startswith(("logical", "bitwise")))
MOVES = ("reshape", "concat")  # what an activation may change places with


def _open_layer(value: Value, kind: str, node: Node, context: Context) -> Node | None:
    """The layer behind a value that only `node` reads, if its epilogue may still be given an entry of this kind."""
    layer = value.node
    if layer.op not in LAYERS or not context.read_only_by(value, node):
        return None
    last = max((ORDER.index(entry[0]) for entry in layer.attrs["epilogue"]), default=-1)
    return layer if last < ORDER.index(kind) else None


def _extended(layer: Node, entry: tuple[object, ...], inputs: Sequence[Value], node: Node) -> Node:
    attrs = {**layer.attrs, "epilogue": (*layer.attrs["epilogue"], entry)}
    return rewritten(layer.op, (*layer.inputs, *inputs), attrs, node, (layer,))


def _activation(node: Node) -> tuple[object, ...]:
    return ("activation", node.op, tuple(sorted(node.attrs.items())))


@rule(*ACTIVATIONS)
def fuse_activation(node: Node, context: Context) -> Replacement | None:
    """relu(conv(x)) -> conv(x, activation relu), and so for every elementwise operator of one input."""
    layer = _open_layer(node.inputs[0], "activation", node, context)
    return _extended(layer, _activation(node), (), node) if layer is not None else None


@rule(*ACTIVATIONS)
def fuse_activation_through_moves(node: Node, context: Context) -> Replacement | None:
    """relu(concat(conv(x), conv(y))) -> concat(conv(x, relu), conv(y, relu)), and so through reshapes.

    Only where everything between belongs to the activation alone, so that no work is added.
    """
    if node.inputs[0].node.op not in MOVES:
        return None
    rebuilt = _activated(node.inputs[0], node, node, context, {})
    if rebuilt is None:
        return None
    top = rebuilt.node
    return Node(top.op, top.inputs, top.attrs, top.types, node.name, (*top.origin, *node.origin))


def _activated(value: Value, reader: Node, activation: Node, context: Context, done: dict[Value, Value]) -> Value | None:
    """The value after the activation, which only `reader` reads; None where a layer does not take it. done: what is made already."""
    if value in done:
        return done[value]
    producer = value.node
    if not context.read_only_by(value, reader):
        return None
    if producer.op in MOVES:
        parts = [_activated(part, producer, activation, context, done) for part in producer.inputs]
        if None in parts:
            return None
        made = Node(producer.op, tuple(part for part in parts if part is not None), producer.attrs, producer.types)
    else:
        layer = _open_layer(value, "activation", reader, context)
        if layer is None:
            return None
        made = _extended(layer, _activation(activation), (), layer)
    name = f"{producer.name}/{activation.op}"
    done[value] = Node(made.op, made.inputs, made.attrs, made.types, name, producer.origin).out()
    return done[value]


@rule("add")
def fuse_residual(node: Node, context: Context) -> Replacement | None:
    """conv(x) + y -> conv(x, residual y), for y of exactly the result's type; of two layers, the one that comes later takes the other."""
    left, right = node.inputs
    if left == right or left.type != node.types[0] or right.type != node.types[0]:
        return None
    candidates = []
    for value, other in ((left, right), (right, left)):
        layer = _open_layer(value, "residual", node, context)
        if layer is not None:
            candidates.append((context.position(layer), layer, other))
    if not candidates:
        return None
    _, layer, other = max(candidates, key=itemgetter(0))
    return _extended(layer, ("residual",), (other,), node)


def operations(node: Node) -> tuple[int, ...]:
    return (int(node.op not in ("input", "constant")),)


def fuse_epilogue(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "fuse_epilogue", (fuse_activation, fuse_activation_through_moves, fuse_residual), operations, steps)
