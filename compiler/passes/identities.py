"""Rules for computations that do nothing, or that one operation can do. Exact but for the sign of a zero (x + 0)."""

from __future__ import annotations

import math

import numpy as np

from cortado.compiler.graph import Node, Value
from cortado.compiler.ops import infer_types
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.rewrite import Context, Replacement, rewritten, rule
from cortado.errors import ShapeError

NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1}  # as the second operand
COMMUTATIVE = ("add", "mul")
REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
WINDOWS = ("kernel", "strides")


def left_to_do(node: Node) -> int:
    """What the rules below would change without removing a node: clamps in a row, a clip that is a relu, needless broadcasts."""
    if node.op in ("relu", "clip") and node.types[0].dtype.startswith("float"):
        is_relu = node.op == "clip" and (node.attrs["lo"], node.attrs["hi"]) == (0, math.inf)
        return (node.inputs[0].node.op in ("relu", "clip")) + is_relu
    return len(_needless_broadcasts(node)) if node.op in ELEMENTWISE else 0


def _is_all(value: Value, number: int) -> bool:
    array = value.constant
    return array is not None and value.type.dtype != "bfloat16" and array.size > 0 and bool(np.all(array == number))


@rule(*NEUTRAL)
def drop_neutral_operand(node: Node, context: Context) -> Replacement | None:
    """x + 0, 0 + x, x - 0, x * 1, 1 * x, x / 1, x ** 1 -> x, where the constant does not make x larger."""
    number = NEUTRAL[node.op]
    left, right = node.inputs
    if left.type == node.types[0] and _is_all(right, number):
        return left
    if node.op in COMMUTATIVE and right.type == node.types[0] and _is_all(left, number):
        return right
    return None


@rule("cast", "tile", "broadcast_to", "resize_nearest", "resize_bilinear", *REDUCTIONS)
def drop_no_change(node: Node, context: Context) -> Replacement | None:
    """A cast to the same type, a tile or broadcast to the same shape, a resize to the same size, a reduction over single cells -> x."""
    source = node.inputs[0]
    if source.type.size != node.types[0].size or source.type.dtype != node.types[0].dtype:
        return None
    if node.op.startswith("resize") and source.type != node.types[0]:
        return None
    if node.op == "resize_nearest" and (node.attrs["scale_h"] != 1 or node.attrs["scale_w"] != 1):
        return None
    if node.op in REDUCTIONS and any(source.shape[axis] != 1 for axis in node.attrs["axes"]):
        return None
    if source.type == node.types[0]:
        return source
    return rewritten("reshape", (source,), {"shape": node.types[0].shape}, node) if source.type.quant is None else None


@rule("max_pool", "average_pool")
def drop_single_cell_pool(node: Node, context: Context) -> Replacement | None:
    """Pooling over windows of one cell, each cell once -> x."""
    single = all(step == 1 for name in WINDOWS for step in node.attrs[name])
    padded = any(node.attrs["pads_begin"]) or any(node.attrs["pads_end"])
    return node.inputs[0] if single and not padded and node.inputs[0].type == node.types[0] else None


@rule("negative", "logical_not", "bitwise_not")
def drop_double_inverse(node: Node, context: Context) -> Replacement | None:
    """-(-x) -> x, and so for logical and bitwise not."""
    producer = node.inputs[0].node
    return producer.inputs[0] if producer.op == node.op else None


def _clamps(node: Node) -> list[Node]:
    chain = [node]
    while chain[-1].inputs[0].node.op in ("relu", "clip"):
        chain.append(chain[-1].inputs[0].node)
    return chain[::-1]


@rule("relu", "clip")
def merge_clamps(node: Node, context: Context) -> Replacement | None:
    """relu and clip in a row -> one of them; clip(x, -inf, inf) -> x; clip(x, 0, inf) -> relu(x)."""
    if not node.types[0].dtype.startswith("float"):
        return None
    chain = _clamps(node)
    low, high = -math.inf, math.inf
    for step in chain:
        lower, upper = (0.0, math.inf) if step.op == "relu" else (step.attrs["lo"], step.attrs["hi"])
        low, high = min(max(low, lower), upper), min(max(high, lower), upper)
    source = chain[0].inputs[0]
    if (low, high) == (-math.inf, math.inf):
        return source
    op, attrs = ("relu", {}) if (low, high) == (0.0, math.inf) else ("clip", {"lo": low, "hi": high})
    if len(chain) == 1 and op == node.op:
        return None
    return rewritten(op, (source,), attrs, node, chain[:-1])


def _needless_broadcasts(node: Node) -> list[int]:
    """Input positions whose broadcast_to the node's own broadcasting would do as well."""
    found: list[int] = []
    inputs = list(node.inputs)
    for at, value in enumerate(node.inputs):
        if value.node.op != "broadcast_to":
            continue
        before, inputs[at] = inputs[at], value.node.inputs[0]
        try:
            same = infer_types(node.op, inputs, node.attrs) == node.types
        except ShapeError:
            same = False
        if same:
            found.append(at)
        else:
            inputs[at] = before
    return found


@rule(*ELEMENTWISE)
def drop_broadcasts(node: Node, context: Context) -> Replacement | None:
    """x + broadcast_to(y) -> x + y, where the result has the same shape."""
    needless = _needless_broadcasts(node)
    if not needless:
        return None
    inputs = [v.node.inputs[0] if at in needless else v for at, v in enumerate(node.inputs)]
    return rewritten(node.op, inputs, node.attrs, node, [node.inputs[at].node for at in needless])


@rule("branch")
def drop_decided_branches(node: Node, context: Context) -> Replacement | None:
    """branch(known, x, y) -> the value that is chosen; branch(c, x, x) -> x."""
    condition, *values = node.inputs
    if len(values) == 2 and values[0] == values[1]:
        return values[0]
    if condition.constant is None:
        return None
    found = bool(condition.constant.reshape(()))
    return next((value for wanted, value in zip(node.attrs["when"], values, strict=True) if wanted == found), None)


RULES = (
    drop_neutral_operand,
    drop_no_change,
    drop_single_cell_pool,
    drop_double_inverse,
    merge_clamps,
    drop_broadcasts,
    drop_decided_branches,
)
