"""Channels that nothing depends on, or that are the same for every input, are not computed.

A channel of a layer's result is constant if its weights are zero on every channel that varies; what it contributes to the layers that
read it goes into their biases. At a padded border a constant other than zero contributes less than inside, so a padded reader keeps it.
Results may differ from the given graph's by the rounding of those sums; where the constants are zero, products with zero are all that is
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant
from cortado.compiler.ops import make
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.ops.epilogue import apply_epilogue
from cortado.compiler.ops.window import cells_inside
from cortado.compiler.reference import evaluate
from cortado.compiler.rewrite import Steps

LAYERS = ("conv", "fc")
POOLS = ("max_pool", "average_pool")
SAME = ("reshape", "reduce_mean", "reduce_max", "reduce_min", "resize_nearest", "resize_bilinear")
FLOATS = ("float32", "float64")
MULTIPLE = 4  # int8 dot products take so many channels at once, and every vector length is a multiple of it
ROUNDED = 16  # from so many kept channels on, rounding up costs less than the rest of a division would


def remove_dead_channels(graph: Graph, steps: Steps) -> Graph:
    """The graph without them; one step, since what a layer no longer makes another must no longer read."""
    if steps.exhausted:
        return graph
    nodes = graph.nodes()
    known = _Constants()
    for node in nodes:
        known.visit(node)
    kept = _Kept(graph, nodes, known)
    kept.settle()
    first = next((node for node in nodes if node.op in LAYERS and kept.shrinks(node)), None)
    if first is None:
        return graph
    steps.take("remove_dead_channels", "remove", first)
    rewrite = _Rewrite(known, kept)
    return graph.rebuild(rewrite.node)


def kind_of(node: Node) -> str:
    """How channels, the last axis, go through a node: "layer", "depthwise", "each", "concat", or "" where nothing is known."""
    out = node.types[0] if node.types else None
    if out is None or len(node.types) != 1 or out.dtype not in FLOATS or out.quant is not None or not out.shape:
        return ""
    if node.op in LAYERS:
        return _layer_kind(node)
    if node.op == "concat":
        return "concat" if node.attrs["axis"] == len(out.shape) - 1 else ""
    if not node.inputs or any(v.type.dtype not in FLOATS for v in node.inputs):
        return ""
    if node.op in POOLS:
        return "each"
    if node.op in SAME:
        x = node.inputs[0]
        through = bool(x.shape) and x.shape[-1] == out.shape[-1]
        return "each" if through and len(x.shape) - 1 not in node.attrs.get("axes", ()) else ""
    return "each" if node.op in ELEMENTWISE or node.op == "pointwise" else ""


def _layer_kind(node: Node) -> str:
    weights = node.inputs[1].constant
    bias = ("bias",) in node.attrs["epilogue"]
    if weights is None or (bias and node.inputs[2].constant is None) or not np.all(np.isfinite(weights)):
        return ""
    group = node.attrs.get("group", 1)
    if group == 1:
        return "layer"
    return "depthwise" if group == weights.shape[0] and weights.shape[-1] == 1 else ""


def data_of(node: Node) -> tuple[Value, ...]:
    """The inputs that have the channels of the node's result; constants of one value per channel, or of one value, are none."""
    if node.op in LAYERS:
        at = 2 + (("bias",) in node.attrs["epilogue"])
        residual = node.inputs[at : at + 1] if ("residual",) in node.attrs["epilogue"] else ()
        return (*(() if kind_of(node) == "layer" else node.inputs[:1]), *residual)
    return tuple(value for value in node.inputs if not _parameter(value, node))


def _parameter(value: Value, node: Node) -> bool:
    array = value.constant
    if array is None or node.op == "concat":
        return False
    return array.size == 1 or (array.ndim > 0 and array.size == array.shape[-1] == node.types[0].shape[-1])


def _even(node: Node) -> bool:
    """Does every window of a convolution or pooling see the same number of cells, and at least one?"""
    if node.op not in (*POOLS, "conv"):
        return True
    if (node.op == "average_pool" and not node.attrs["count_include_pad"]) or node.op == "max_pool":
        return all(np.all(cells_inside(*geometry) > 0) for geometry in _geometry(node))
    return all(np.all(cells_inside(*geometry) == geometry[1]) for geometry in _geometry(node))


def _geometry(node: Node) -> list[tuple[int, int, int, int, int, int]]:
    """(size, kernel, stride, dilation, pad, windows) per spatial axis."""
    x, out = node.inputs[0].shape[1:-1], node.types[0].shape[1:-1]
    kernel = node.inputs[1].shape[1:-1] if node.op == "conv" else node.attrs["kernel"]
    return list(zip(x, kernel, node.attrs["strides"], node.attrs["dilations"], node.attrs["pads_begin"], out, strict=True))


@dataclass
class _Constants:
    """found: value -> (which channels are constant, their values), where any are."""

    found: dict[Value, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def of(self, value: Value) -> tuple[np.ndarray, np.ndarray]:
        channels = value.shape[-1] if value.shape else 1
        return self.found.get(value) or (np.zeros(channels, bool), np.zeros(channels, value.type.numpy))

    def visit(self, node: Node) -> None:
        kind = kind_of(node)
        if not kind:
            return
        with np.errstate(all="ignore"):
            if kind == "concat":
                parts = [self.of(value) for value in node.inputs]
                fixed, values = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            elif kind == "each":
                fixed, values = self._each(node)
            else:
                fixed, values = self._layer(node, kind)
        fixed = fixed & np.isfinite(values)
        if fixed.any():
            self.found[node.out()] = fixed, np.where(fixed, values, 0).astype(node.types[0].numpy)

    def _each(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        channels = node.types[0].shape[-1]
        data = data_of(node)
        if any(value.shape[-1:] != (channels,) for value in data) or not data:
            return np.zeros(channels, bool), np.zeros(channels)
        inputs = {value: self.of(value) for value in data}
        fixed = np.logical_and.reduce([mask for mask, _ in inputs.values()])
        if not fixed.any():
            return fixed, np.zeros(channels)
        if node.op in (*POOLS, *SAME):
            values = inputs[node.inputs[0]][1]
            return fixed & (_even(node) | ((values == 0) & (node.op == "average_pool"))), values
        small = [constant(inputs[v][1], "x") if v in inputs else constant(np.ravel(v.constant), "p") for v in node.inputs]  # type: ignore[arg-type]
        made = make(node.op, small, node.attrs, node.name)
        return fixed, np.broadcast_to(evaluate(made, [v.node.attrs["value"] for v in small])[0], (channels,))

    def _layer(self, node: Node, kind: str) -> tuple[np.ndarray, np.ndarray]:
        weights = node.inputs[1].node.attrs["value"]
        x_fixed, x_values = self.of(node.inputs[0])
        rows = weights.reshape(weights.shape[0], -1, weights.shape[-1])  # [O, cells, C / group]
        if kind == "depthwise":
            rows, x_fixed, x_values = rows[..., 0], x_fixed[:, None], x_values[:, None]
        used = np.any(rows != 0, axis=1)
        harmless = x_fixed & (_even(node) | (x_values == 0))
        fixed = ~np.any((used[:, None] if kind == "depthwise" else used) & ~harmless, axis=1)
        known = np.where(x_fixed, x_values, 0).astype(np.float64)
        total = rows.astype(np.float64).sum(axis=1)
        acc = total * known[:, 0] if kind == "depthwise" else total @ known
        extra = []
        for entry, value in zip([e for e in node.attrs["epilogue"] if e[0] != "activation"], node.inputs[2:], strict=True):
            if entry[0] == "bias":
                extra.append(np.asarray(value.constant))
            else:
                other, values = self.of(value)
                fixed = fixed & other
                extra.append(values)
        return fixed, apply_epilogue(acc.astype(weights.dtype), node.attrs["epilogue"], extra)


class _Kept:
    """Which channels of each value stay: those that a reader needs, the same on all sides of an operation on each channel."""

    def __init__(self, graph: Graph, nodes: Sequence[Node], known: _Constants) -> None:
        self.nodes, self.known = nodes, known
        self.masks: dict[Value, np.ndarray] = {}
        outputs = graph.output_values()
        for node in nodes:
            made = bool(kind_of(node))
            for i, type_ in enumerate(node.types):
                whole = not made or node.out(i) in outputs or not type_.shape
                self.masks[node.out(i)] = np.full(type_.shape[-1] if type_.shape else 1, whole)
        for node in nodes:
            if not kind_of(node):
                for value in node.inputs:
                    self.masks[value][:] = True

    def shrinks(self, node: Node) -> bool:
        return not self.masks[node.out()].all() or (kind_of(node) == "layer" and not self.masks[node.inputs[0]].all())

    def settle(self) -> None:
        """Until nothing grows any more. Layers of more than a few channels keep as many as memory and vectors like."""
        self._close()
        while self._round_up():
            self._close()

    def _round_up(self) -> bool:
        changed = False
        for node in self.nodes:
            mask = self.masks[node.out()] if node.op in LAYERS and kind_of(node) else np.ones(1, bool)
            lacking = -int(mask.sum()) % MULTIPLE if mask.sum() >= ROUNDED else 0
            if lacking and not mask.all():
                mask[np.flatnonzero(~mask)[:lacking]] = changed = True
        return changed

    def _close(self) -> None:
        changed = True
        while changed:
            changed = False
            for node in reversed(self.nodes):
                kind = kind_of(node)
                if kind:
                    changed |= self._visit(node, kind)
                if kind and not self.masks[node.out()].any() and node.types[0].size:
                    self.masks[node.out()][0] = changed = True  # an empty tensor helps nobody

    def _grow(self, value: Value, mask: np.ndarray) -> bool:
        grown = self.masks[value] | mask
        if np.array_equal(grown, self.masks[value]):
            return False
        self.masks[value] = grown
        return True

    def _visit(self, node: Node, kind: str) -> bool:
        out = node.out()
        changed = False
        if kind == "concat":
            at = 0
            for value in node.inputs:
                part = slice(at, at + value.shape[-1])
                at = part.stop
                whole = np.zeros(len(self.masks[out]), bool)
                whole[part] = self.masks[value]
                changed |= self._grow(value, self.masks[out][part]) | self._grow(out, whole)
            return changed
        for value in data_of(node):
            if value.shape[-1:] == out.shape[-1:]:
                changed |= self._grow(value, self.masks[out])
                changed |= self._grow(out, self.masks[value])
            else:
                changed |= self._grow(value, np.ones(1, bool)) | self._grow(out, np.ones(1, bool))
        if kind == "layer":
            changed |= self._grow(node.inputs[0], self.needed(node))
        return changed

    def needed(self, layer: Node) -> np.ndarray:
        """The input channels that the kept results depend on and that the bias cannot take in."""
        weights = layer.inputs[1].node.attrs["value"][self.masks[layer.out()]]
        used = np.any(weights.reshape(-1, weights.shape[-1]) != 0, axis=0)
        fixed, values = self.known.of(layer.inputs[0])
        return np.asarray(used & ~(fixed & (_even(layer) | (values == 0))))


@dataclass
class _Rewrite:
    known: _Constants
    kept: _Kept

    def node(self, node: Node, inputs: tuple[Value, ...]) -> Node:
        kind = kind_of(node)
        same = inputs == node.inputs
        if not kind or (same and self.kept.masks[node.out()].all() and not (kind == "layer" and self.kept.shrinks(node))):
            return node if same else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        if node.op in LAYERS:
            return self._layer(node, inputs, kind)
        mask = self.kept.masks[node.out()]
        attrs = dict(node.attrs)
        if node.op == "reshape":
            attrs["shape"] = (*attrs["shape"][:-1], int(mask.sum()))
        operands = [_cut(new, mask) if _parameter(old, node) else new for old, new in zip(node.inputs, inputs, strict=True)]
        return make(node.op, operands, attrs, node.name, node.origin)

    def _layer(self, node: Node, inputs: tuple[Value, ...], kind: str) -> Node:
        rows = self.kept.masks[node.out()]
        weights = node.inputs[1].node.attrs["value"]
        epilogue = node.attrs["epilogue"]
        attrs = dict(node.attrs)
        operands = list(inputs)
        if kind == "depthwise":
            attrs["group"] = int(rows.sum())
            weights = weights[rows]
        else:
            columns = self.kept.masks[node.inputs[0]]
            moved = self._moved(node, columns)[rows]
            weights = weights[rows][..., columns]
            if moved.any() and ("bias",) not in epilogue:
                attrs["epilogue"] = epilogue = (("bias",), *epilogue)
                operands.insert(2, constant(np.zeros(len(rows), weights.dtype), f"{node.name}/bias"))
        operands[1] = _array(operands[1], weights)
        if ("bias",) in epilogue:
            bias = operands[2].node.attrs["value"][rows]
            if kind == "layer" and moved.any():
                bias = (bias + moved).astype(bias.dtype)
            operands[2] = _array(operands[2], bias)
        return make(node.op, operands, attrs, node.name, node.origin)

    def _moved(self, node: Node, columns: np.ndarray) -> np.ndarray:
        """float64[O]: what the constant channels that are no longer read contributed."""
        fixed, values = self.known.of(node.inputs[0])
        weights = node.inputs[1].node.attrs["value"]
        cells = weights.reshape(weights.shape[0], -1, weights.shape[-1]).astype(np.float64).sum(axis=1)
        return np.asarray(cells @ np.where(fixed & ~columns, values, 0).astype(np.float64))


def _array(value: Value, array: np.ndarray) -> Value:
    given = value.node
    return (
        value
        if array.shape == value.shape and np.array_equal(array, given.attrs["value"])
        else constant(array, given.name, given.origin)
    )


def _cut(value: Value, mask: np.ndarray) -> Value:
    """A parameter for the kept channels alone."""
    array = value.node.attrs["value"]
    return value if array.size == 1 else _array(value, array[..., mask])
