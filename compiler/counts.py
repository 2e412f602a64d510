"""How many rows of a value are real, where that depends on the data.

Some operators (non-maximum suppression ...) find as many rows as the data has. Their outputs have room for the largest number, rows behind
the real ones are zeros, and the number is a value of the graph: int32[1]. Operators that treat the rows of an axis one by one run on all
of them and pass the number on; those that would mix real rows with others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cortado.compiler.graph import Node, Value
from cortado.compiler.ops import OPS
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.errors import UnsupportedError


@dataclass(frozen=True)
class Rows:
    """Of axis `axis` the first `count` (a value, int32[1]) are real."""

    axis: int
    count: Value


_BROADCASTING = frozenset(ELEMENTWISE) | {
    "pointwise", "where", "cast", "broadcast_to", "quantize", "dequantize", "q_table", "q_add", "q_mul",
}  # fmt: skip
_LAYERS = frozenset({"conv", "conv_transpose", "fc", "q_conv", "q_conv_transpose", "q_fc"})
_PER_IMAGE = frozenset(
    "conv q_conv q_conv_mean conv_transpose q_conv_transpose max_pool average_pool q_average_pool resize_nearest resize_bilinear".split()
)
_PER_ROW = frozenset({"batch_norm", "lrn", "fc", "q_fc"})  # each row of all axes but the last by itself
_ALONG = frozenset({"softmax", "q_softmax", "arg_max", "arg_min", "top_k"})  # one axis mixes
_REDUCTIONS = frozenset({"reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "q_mean", "q_sum", "dequantized_mean"})
_SUPPLIED = frozenset(
    {"top_rows", "join_rows", "image_splits", "box_nms", "distribute_proposals", "generate_proposals"}
)  # take the number as an input
_BOXES = frozenset({"roi_align", "roi_pool"})


class Counts:
    """Finds the rows of values, each value once."""

    def __init__(self) -> None:
        self._known: dict[Value, Rows | None] = {}

    def of(self, value: Value) -> Rows | None:
        """UnsupportedError where an operator on the way would mix real rows with others."""
        stack = [value.node]
        while stack:
            node = stack[-1]
            if node.out() in self._known:
                stack.pop()
                continue
            waiting = [v.node for v in node.inputs if v not in self._known]
            stack += waiting
            if not waiting:
                self._known.update((node.out(i), self._rows(node, i)) for i in range(len(node.types)))
        return self._known[value]

    def _rows(self, node: Node, output: int) -> Rows | None:
        own = _own(node, output)
        inputs = [self._known[value] for value in node.inputs]
        if own is not None or not any(inputs) or node.op in _SUPPLIED:
            return own
        found = _passed_on(node, inputs)
        if found is None:
            culprit = next(value for value, rows in zip(node.inputs, inputs, strict=True) if rows)
            raise UnsupportedError(
                f"the number of rows of '{culprit!r}' depends on the data, and {node.op} would mix them with the unused rows behind them"
            )
        return found


def _own(node: Node, output: int) -> Rows | None:
    """The rows of an output whose number the node itself computes."""
    if node.op == "distribute_proposals":
        levels = (len(node.types) - 1) // 2
        if output == levels:
            return Rows(0, node.inputs[1])
        return Rows(0, node.out(levels + 1 + output)) if output < levels else None
    record = OPS.get(node.op)
    counted = record.counts.get(output) if record is not None else None
    return None if counted is None else Rows(0, node.out(counted))


def _passed_on(node: Node, inputs: Sequence[Rows | None]) -> Rows | None:
    """Where the counted axis of the inputs is in the outputs; None where rows would be mixed."""
    first, attrs = inputs[0], node.attrs
    if node.op in _BROADCASTING:
        return _aligned(node, inputs)
    if node.op == "branch":
        return inputs[1] if first is None and len(set(inputs[1:])) == 1 else None
    if node.op == "bbox_transform" or node.op == "heatmap_keypoint":
        return _agreed(inputs[:2]) if not any(inputs[2:]) else None
    if node.op in _BOXES:
        return inputs[1] if first is None else None
    if node.op == "gather":
        return _gathered(node, inputs)
    if node.op == "concat":
        return _agreed(inputs) if all(rows is None or rows.axis != attrs["axis"] for rows in inputs) else None
    if node.op in ("batch_matmul", "q_matmul"):
        rank = len(node.types[0].shape)
        aligned = _aligned(node, [first, None])
        single = first is not None and len(node.inputs[0].shape) == rank and inputs[1] is None
        return aligned if single and aligned is not None and aligned.axis < rank - 1 - bool(attrs["transpose_a"]) else None
    if first is None:
        return None
    if any(inputs[1:]):  # a residual
        return _agreed(inputs) if node.op in _LAYERS else None
    return _of_one(node, first)


def _of_one(node: Node, rows: Rows) -> Rows | None:
    """Operators whose rows come from their first input."""
    axis, attrs, shape, out = rows.axis, node.attrs, node.inputs[0].shape, node.types[0].shape
    if node.op in _PER_IMAGE:
        return rows if axis == 0 else None
    if node.op in _PER_ROW:
        return rows if axis < len(shape) - 1 else None
    if node.op in _ALONG:
        gone = node.op.startswith("arg") and not attrs["keepdims"] and attrs["axis"] < axis
        return Rows(axis - gone, rows.count) if attrs["axis"] != axis else None
    if node.op in _REDUCTIONS:
        gone = 0 if attrs["keepdims"] else sum(a < axis for a in attrs["axes"])
        return Rows(axis - gone, rows.count) if axis not in attrs["axes"] else None
    if node.op == "transpose":
        return Rows(attrs["perm"].index(axis), rows.count)
    if node.op == "reshape":
        before = math.prod(shape[:axis])
        places = [i for i, size in enumerate(out) if size == shape[axis] and math.prod(out[:i]) == before]
        return Rows(places[0], rows.count) if places else None
    if node.op in ("slice", "pad", "tile"):
        return rows if out[axis] == shape[axis] else None
    return None


def _agreed(inputs: Sequence[Rows | None]) -> Rows | None:
    """The rows that all counted inputs share."""
    found = {rows for rows in inputs if rows is not None}
    return found.pop() if len(found) == 1 else None


def _aligned(node: Node, inputs: Sequence[Rows | None]) -> Rows | None:
    """Broadcasting aligns shapes at the last axis."""
    out = node.types[0].shape
    moved = []
    for value, rows in zip(node.inputs, inputs, strict=True):
        if rows is not None:
            axis = rows.axis + len(out) - len(value.shape)
            if out[axis] != value.shape[rows.axis]:
                return None
            moved.append(Rows(axis, rows.count))
    return _agreed(moved)


def _gathered(node: Node, inputs: Sequence[Rows | None]) -> Rows | None:
    """Counted indices give counted rows, whatever they point to; else the data's counted axis must be another one."""
    data, indices = inputs
    axis, extra = node.attrs["axis"], len(node.inputs[1].shape) - 1
    if indices is not None:
        return Rows(axis + indices.axis, indices.count) if data is None or data.axis == axis else None
    if data is None or data.axis == axis:
        return None
    return Rows(data.axis + (extra if data.axis > axis else 0), data.count)


Outputs = tuple[tuple[str, Value], ...]


def counted_outputs(outputs: Outputs, counts: Counts) -> tuple[Outputs, dict[str, str]]:
    """Graph outputs with those behind them that count the rows of others, and which counts which (`Graph.counts`).

    A number that several outputs share is there once, named after the first of them.
    """
    names = {name for name, _ in outputs}
    numbers: dict[Value, str] = {}
    found: dict[str, str] = {}
    for name, value in outputs:
        rows = counts.of(value)
        if rows is None:
            continue
        if rows.axis != 0:
            raise UnsupportedError(
                f"of the output '{name}' axis {rows.axis} depends on the data; only the first axis of an output may"
            )
        if rows.count not in numbers:
            number, own = 2, f"{name}/rows"
            while own in names:
                number, own = number + 1, f"{name}/rows_{number}"
            names.add(own)
            numbers[rows.count] = own
        found[name] = numbers[rows.count]
    return (*outputs, *((name, value) for value, name in numbers.items())), found
