"""Which nodes of a float graph become int8, and which of their values share scale and zero point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.ops.pointwise import Instruction
from cortado.compiler.ops.quantized_elementwise import MOST_SOFTMAX, MOST_SUMMED, SOFTMAX_SCALE, summed
from cortado.compiler.ops.quantized_matmul import MOST_TERMS
from cortado.compiler.quantize.affine import CLAMPS, affine_layer
from cortado.compiler.types import Quant

LAYERS = ("conv", "conv_transpose", "fc")
BLENDS = ("resize_bilinear",)  # between elements: rounded, but within their limits
MOVES = (  # the result has the scale and zero point of the input
    "max_pool", "reshape", "transpose", "concat", "slice", "pad", "tile", "resize_nearest", "gather", "broadcast_to", "reduce_max",
    "reduce_min", *BLENDS,
)  # fmt: skip
SUMS = ("average_pool", "reduce_mean", "reduce_sum")
PAIRS = ("add", "mul")
Join = tuple[str, int]  # a concat's name, and which of its inputs
SHARES = Quant((SOFTMAX_SCALE,), (-128,))  # of a softmax's results, whatever the samples are


@dataclass(frozen=True)
class Tensor:
    """Values that share scale and zero point.

    name: of the first. members: all of them. shown: those that something else than a move of elements within the group reads, whose
    values therefore matter; they are observed. quant: what the operator that makes them fixes, or None. symmetric: products are faster
    where zero is 0.
    """

    name: str
    members: tuple[Value, ...]
    shown: tuple[Value, ...]
    quant: Quant | None = None
    symmetric: bool = False


@dataclass(frozen=True)
class Plan:
    """quantized: the nodes that compute in int8. tensors: in order of their first values. of: value -> its tensor's index.

    apart: the inputs of concats that do not share the result's scale for being joined, but are converted to it.
    """

    graph: Graph
    quantized: frozenset[Node]
    tensors: tuple[Tensor, ...]
    of: dict[Value, int]
    apart: frozenset[Join] = frozenset()

    @property
    def observed(self) -> tuple[Value, ...]:
        return tuple(value for tensor in self.tensors for value in tensor.shown)


def is_layer(node: Node) -> bool:
    """A layer in float32 whose weights and bias are constants, with at most a clamp as activation."""
    if node.op not in LAYERS or node.types[0].dtype != "float32" or node.inputs[1].constant is None:
        return False
    kinds = [entry[0] for entry in node.attrs["epilogue"]]
    if "bias" in kinds and node.inputs[2].constant is None:
        return False
    return "activation" not in kinds or node.attrs["epilogue"][-1][1] in CLAMPS


def is_product(node: Node) -> bool:
    """A product of two float32 matrices that are both computed."""
    if node.op != "batch_matmul" or node.types[0].dtype != "float32" or any(v.constant is not None for v in node.inputs):
        return False
    return node.inputs[0].shape[-2 if node.attrs["transpose_a"] else -1] <= MOST_TERMS


def table_input(node: Node) -> Value | None:
    """The one float32 tensor of which the node's result is an elementwise function; None for other nodes."""
    if node.op != "pointwise" and not (node.op in ELEMENTWISE and all(v.type.dtype == "float32" for v in node.inputs)):
        return None
    free = [value for value in node.inputs if value.constant is None]
    if len(free) != 1 or any(v.constant is not None and v.constant.size != 1 for v in node.inputs):
        return None
    return free[0] if free[0].type.dtype == "float32" and node.types[0] == free[0].type else None


def pair_of(node: Node) -> tuple[str, Instruction | None] | None:
    """Which of PAIRS the node is, of two computed tensors, and the clamp behind it, if there is one; None for other nodes."""
    if any(value.constant is not None for value in node.inputs):
        return None
    if node.op in PAIRS:
        return node.op, None
    if node.op != "pointwise" or len(node.inputs) != 2 or len(node.attrs["expr"]) != 2:
        return None
    first, second = node.attrs["expr"]
    fits = first[:2] in [(pair, (0, 1)) for pair in PAIRS] and second[0] in CLAMPS and second[1] == (2,)
    return (first[0], second) if fits else None


def _can_compute(node: Node) -> bool:
    """Apart from layers and products: is there an int8 operator that computes this?"""
    if any(kind.dtype != "float32" for kind in node.types) or any(v.constant is not None for v in node.inputs):
        return table_input(node) is not None or affine_layer(node) is not None
    if pair_of(node) is not None:
        return True
    if node.op == "softmax":
        return node.types[0].shape[node.attrs["axis"]] <= MOST_SOFTMAX
    if node.op in SUMS:
        shape = node.inputs[0].shape
        return 3 <= len(shape) <= 5 if node.op == "average_pool" else 1 <= summed(shape, node.attrs["axes"]) <= MOST_SUMMED
    return table_input(node) is not None


def _can_move(node: Node) -> bool:
    if node.op not in MOVES or node.types[0].dtype != "float32" or node.inputs[0].type.dtype != "float32":
        return False
    return not (node.op == "pad" and node.attrs["mode"] == "constant" and node.attrs["value"] != 0)


def passes_on(node: Node) -> bool:
    """A move whose result holds elements of its inputs alone: clipping those to a range is the same before it and after it."""
    return node.op in MOVES and node.op not in BLENDS


def _moved(node: Node) -> Sequence[Value]:
    """The inputs that share the scale of a move's result."""
    return node.inputs if node.op == "concat" else node.inputs[:1]


def make_plan(graph: Graph) -> Plan:
    """Contractions become int8, and what lies between them; what only leads to outputs stays float, and so does arithmetic before the first.

    Contractions are layers, and products of matrices that depend on one.
    """
    nodes = graph.nodes()
    after: set[Node] = set()  # what depends on a layer: before, arithmetic on the input is worth its precision
    for node in nodes:
        if is_layer(node) or any(value.node in after for value in node.inputs):
            after.add(node)
    contractions = {node for node in nodes if is_layer(node) or (is_product(node) and node in after)}
    uses = graph.uses()
    mixed = {node for node in nodes if node.op == "softmax" and _joins_others(node, uses)}
    leads = _leads_to(contractions, nodes, uses, mixed)
    quantized: set[Node] = set()
    for node in nodes:
        computes = node in after and node not in mixed and _can_compute(node)
        computes = computes and all(value.node in quantized for value in activations(node))
        if node in contractions or (node in leads and (computes or _can_move(node))):
            quantized.add(node)
    for node in reversed(nodes):  # a move is worth it only if int8 computation reads the result
        if node in quantized and node.op in MOVES and not any(r in quantized for r, _ in uses.get(node.out(), ())):
            quantized.remove(node)
    return _with_tensors(graph, nodes, frozenset(quantized), frozenset())


def split(plan: Plan, apart: frozenset[Join]) -> Plan:
    """The same with these inputs of concats, and no others, apart."""
    return plan if apart == plan.apart else _with_tensors(plan.graph, plan.graph.nodes(), plan.quantized, apart)


Uses = Mapping[Value, Sequence[tuple[Node, int]]]


def _leads_to(contractions: set[Node], nodes: Sequence[Node], uses: Uses, but: set[Node]) -> set[Node]:
    """Nodes from which a contraction can be reached through what int8 can do, apart from some nodes."""
    found: set[Node] = set()
    for node in reversed(nodes):
        for i in range(len(node.types)):
            for reader, _ in uses.get(node.out(i), ()):
                passes = reader in found and reader not in but and (_can_move(reader) or _can_compute(reader))
                if (reader in contractions or passes) and node.out(i) in activations(reader):
                    found.add(node)
    return found


def _joins_others(softmax: Node, uses: Uses) -> bool:
    """Do moves join its results, whose scale is fixed, with those of other operators in one tensor?"""

    def shares(value: Value) -> bool:
        node = value.node
        return node.op == "softmax" or (_can_move(node) and all(map(shares, _moved(node))))

    waiting = [softmax.out()]
    for value in waiting:
        moves = [reader for reader, _ in uses.get(value, ()) if _can_move(reader) and value in _moved(reader)]
        if not all(shares(other) for move in moves for other in _moved(move)):
            return True
        waiting += [move.out() for move in moves]
    return False


def _with_tensors(graph: Graph, nodes: Sequence[Node], quantized: frozenset[Node], apart: frozenset[Join]) -> Plan:
    parent: dict[Value, Value] = {}

    def root(value: Value) -> Value:
        while parent.setdefault(value, value) != value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    order: dict[Value, None] = {}
    for node in (n for n in nodes if n in quantized):
        moved = _moved(node) if node.op in MOVES else ()
        for value in (*activations(node), node.out()):
            order.setdefault(value)
            root(value)
        for i, value in enumerate(moved):
            if (node.name, i) not in apart:
                parent[root(value)] = root(node.out())
    groups: dict[Value, list[Value]] = {}
    for value in order:
        groups.setdefault(root(value), []).append(value)
    uses = graph.uses()
    outputs = graph.output_values()
    seconds = {node.inputs[1] for node in quantized if is_product(node)}
    tensors: list[Tensor] = []
    of: dict[Value, int] = {}
    for members in groups.values():
        inner = set(members)
        shown = [
            value
            for value in members
            if value in outputs or any(not (r in quantized and passes_on(r) and r.out() in inner) for r, _ in uses.get(value, ()))
        ]
        of.update((value, len(tensors)) for value in members)
        quant = SHARES if any(v.node in quantized and v.node.op == "softmax" for v in members) else None
        symmetric = any(v in seconds for v in members)
        tensors.append(Tensor(repr(members[0]), tuple(members), tuple(shown), quant, symmetric))
    return Plan(graph, quantized, tuple(tensors), of, apart)


def activations(node: Node) -> tuple[Value, ...]:
    """The inputs of a node that int8 makes int8: all but weights, bias and indices."""
    if node.op in LAYERS:
        residual = ("residual",) in node.attrs["epilogue"]
        at = 2 + (("bias",) in node.attrs["epilogue"])
        return (node.inputs[0], *(node.inputs[at : at + 1] if residual else ()))
    x = table_input(node)
    if x is not None:
        return (x,)
    layer = affine_layer(node)
    if layer is not None:
        return layer.inputs[:1]
    return node.inputs if node.op == "concat" or pair_of(node) is not None or is_product(node) else node.inputs[:1]


def bias_of(node: Node) -> np.ndarray:
    """float64[O] of a layer."""
    has = ("bias",) in node.attrs["epilogue"]
    array = node.inputs[2].constant if has else None
    return np.zeros(node.types[0].shape[-1]) if array is None else array.astype(np.float64)


def clamp_of(node: Node) -> tuple[float, float]:
    """What the clamp of a layer, or behind a sum or product of two tensors, limits the results to."""
    pair = pair_of(node)
    if pair is not None:
        clamp = None if pair[1] is None else (pair[1][0], pair[1][2])
    else:
        epilogue = node.attrs["epilogue"]
        clamp = epilogue[-1][1:] if epilogue and epilogue[-1][0] == "activation" else None
    if clamp is None:
        return -np.inf, np.inf
    if clamp[0] == "relu":
        return 0.0, np.inf
    limits = dict(clamp[1])
    return limits["lo"], limits["hi"]


def limits_of(value: Value) -> tuple[float, float]:
    """What the value cannot leave, whatever the input: the clamps it went through."""
    node = value.node
    if node.op in LAYERS or pair_of(node) is not None:
        return clamp_of(node)
    layer = affine_layer(node)
    if layer is not None:
        return clamp_of(layer)
    if node.op == "relu":
        return 0.0, np.inf
    if node.op == "clip":
        return node.attrs["lo"], node.attrs["hi"]
    if node.op in ("sigmoid", "softmax", "hard_sigmoid"):
        return 0.0, 1.0
    if node.op == "tanh":
        return -1.0, 1.0
    if node.op in (*MOVES, "average_pool", "reduce_mean") and node.op != "pad":
        found = [limits_of(x) for x in (node.inputs if node.op == "concat" else node.inputs[:1])]
        return min(low for low, _ in found), max(high for _, high in found)
    if node.op == "reduce_sum":
        count = summed(node.inputs[0].shape, node.attrs["axes"])
        low, high = limits_of(node.inputs[0])
        return (count * low, count * high) if count else (0.0, 0.0)
    return -np.inf, np.inf
