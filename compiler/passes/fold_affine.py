"""Batch normalization, and multiplications and additions by constants per channel, go into the weights of the layer before or after.

Constants are combined in float64 and rounded once to their own type where a new one is made: a batch normalization rounds its scale, then
its shift; folding rounds each weight and each bias once more. Nothing is folded where a result would not be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant
from cortado.compiler.ops import make
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rewritten, rule

LAYERS = ("conv", "conv_transpose", "fc")
ARITHMETIC = ("mul", "add", "sub", "div", "negative")
BIAS = (("bias",),)


class Affine(NamedTuple):
    """x * scale + shift per channel: float64 arrays of one element or of one per channel; None for 1 and for 0."""

    x: Value
    scale: np.ndarray | None
    shift: np.ndarray | None

    def after(self, inner: Affine) -> Affine:
        """self applied to inner's result."""
        scale = _both(self.scale, inner.scale, np.multiply)
        moved = inner.shift if self.scale is None or inner.shift is None else inner.shift * self.scale
        return Affine(inner.x, scale, _both(moved, self.shift, np.add))


def _both(a: np.ndarray | None, b: np.ndarray | None, combine: np.ufunc) -> np.ndarray | None:
    return combine(a, b) if a is not None and b is not None else b if a is None else a


def affine(node: Node) -> Affine | None:
    """What a node does to its input, if that is arithmetic with constants per channel on a float tensor."""
    if node.op not in ARITHMETIC:
        return None
    kind = node.types[0]
    if kind.dtype not in ("float32", "float64") or not kind.shape or kind.quant is not None:
        return None
    if node.op == "negative":
        return Affine(node.inputs[0], np.full(1, -1.0), None)
    left, right = (_per_channel(value, kind.shape) for value in node.inputs)
    swapped = right is None
    x, numbers = (node.inputs[1], left) if swapped else (node.inputs[0], right)
    if numbers is None or x.type != kind or x.constant is not None:
        return None
    if node.op == "mul":
        return Affine(x, numbers, None)
    if node.op == "add":
        return Affine(x, None, numbers)
    if node.op == "sub":
        return Affine(x, np.full(1, -1.0), numbers) if swapped else Affine(x, None, -numbers)
    return None if swapped or not np.all(numbers) else Affine(x, 1 / numbers, None)


def _per_channel(value: Value, shape: Sequence[int]) -> np.ndarray | None:
    """float64[1] or [C] where a constant has no axis but the last one of the shape."""
    array = value.constant
    if array is None or array.ndim > len(shape) or array.size not in (1, shape[-1]):
        return None
    if array.size > 1 and array.shape[-1] != array.size:
        return None
    return array.reshape(-1).astype(np.float64) if np.all(np.isfinite(array)) else None


def _rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(dtype)


@rule("batch_norm")
def expand_batch_norm(node: Node, context: Context) -> Replacement:
    """batch_norm(x, scale, bias, mean, var) -> x * a + (bias - mean * a) with a = scale / sqrt(var + epsilon).

    Where the parameters are no constants, or a is not finite: (x - mean) * (scale * rsqrt(var + epsilon)) + bias.
    """
    x, *parameters = node.inputs
    arrays = [value.constant for value in parameters]
    if any(array is None for array in arrays):
        return _batch_norm_by_operators(node)
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    with np.errstate(all="ignore"):
        factor = _rounded(scale / np.sqrt(variance + node.attrs["epsilon"]), x.type.numpy)
        shift = _rounded(bias - mean * factor.astype(np.float64), x.type.numpy)
    if not (np.all(np.isfinite(factor)) and np.all(np.isfinite(shift))):
        return _batch_norm_by_operators(node)
    scaled = make("mul", (x, constant(factor, f"{node.name}/scale")), {}, f"{node.name}/scaled", node.origin)
    return rewritten("add", (scaled.out(), constant(shift, f"{node.name}/shift")), {}, node)


def _batch_norm_by_operators(node: Node) -> Node:
    x, scale, bias, mean, variance = node.inputs
    epsilon = constant(np.asarray(node.attrs["epsilon"], x.type.numpy), f"{node.name}/epsilon")
    raised = make("add", (variance, epsilon), {}, f"{node.name}/variance", node.origin)
    inverse = make("rsqrt", (raised.out(),), {}, f"{node.name}/rsqrt", node.origin)
    factor = make("mul", (scale, inverse.out()), {}, f"{node.name}/scale", node.origin)
    centred = make("sub", (x, mean), {}, f"{node.name}/centred", node.origin)
    spread = make("mul", (centred.out(), factor.out()), {}, f"{node.name}/scaled", node.origin)
    return rewritten("add", (spread.out(), bias), {}, node)


@rule(*ARITHMETIC)
def merge_arithmetic(node: Node, context: Context) -> Replacement | None:
    """x * a + b - c * d ... -> x * s + t, where that takes fewer operations."""
    total = affine(node)
    chain = [node]
    while total is not None and context.read_only_by(total.x, chain[-1]):
        inner = affine(total.x.node)
        if inner is None:
            break
        chain.append(total.x.node)
        total = total.after(inner)
    if total is None or (total.scale is not None) + (total.shift is not None) >= len(chain):
        return None
    dtype = node.types[0].numpy
    result = total.x
    for op, numbers in (("mul", total.scale), ("add", total.shift)):
        if numbers is not None:
            rounded = _rounded(numbers, dtype)
            if not np.all(np.isfinite(rounded)):
                return None
            name = node.name if op == "add" or total.shift is None else f"{node.name}/scaled"
            step = rewritten(op, (result, constant(rounded, f"{name}/{op}")), {}, node, chain[:0:-1])
            result = Node(op, step.inputs, {}, step.types, name, step.origin).out()
    return result


def _layer(value: Value) -> Node | None:
    """The convolution or fully connected layer behind a value, if its parameters are constants and its epilogue adds a bias at most."""
    node = value.node
    if node.op not in LAYERS or node.attrs["epilogue"] not in ((), BIAS):
        return None
    return node if all(parameter.constant is not None for parameter in node.inputs[1:]) else None


def _with_parameters(layer: Node, weights: np.ndarray, bias: np.ndarray | None, node: Node, *absorbed: Node) -> Node | None:
    """The layer with other weights and bias, for the value of `node`; None where they are not finite. bias None: as it is."""
    w = layer.inputs[1]
    inputs = [layer.inputs[0], w if weights is w.constant else constant(weights, w.node.name, w.node.origin)]
    epilogue = layer.attrs["epilogue"]
    if bias is None:
        inputs += layer.inputs[2:]
    else:
        old = layer.inputs[2].node if len(layer.inputs) > 2 else None
        rounded = _rounded(bias, weights.dtype)
        if not np.all(np.isfinite(rounded)):
            return None
        inputs.append(constant(rounded, old.name if old else f"{layer.name}/bias", old.origin if old else ()))
        epilogue = epilogue or BIAS
    if weights is not w.constant and not np.all(np.isfinite(weights)):
        return None
    return rewritten(layer.op, inputs, {**layer.attrs, "epilogue": epilogue}, node, absorbed)


def _scaled(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """weights * scale, each product rounded once."""
    narrow = _rounded(scale, weights.dtype)
    with np.errstate(over="ignore", under="ignore"):
        return weights * narrow if np.array_equal(narrow, scale) else _rounded(weights * scale, weights.dtype)


def _bias(layer: Node) -> np.ndarray:
    array = layer.inputs[2].constant if len(layer.inputs) > 2 else None
    return np.zeros(layer.types[0].shape[-1]) if array is None else array.astype(np.float64)


@rule(*ARITHMETIC)
def fold_into_layer_before(node: Node, context: Context) -> Replacement | None:
    """(conv(x, w) + b) * s + t -> conv(x, w * s) + (b * s + t), per output channel; so for fc."""
    step = affine(node)
    layer = _layer(step.x) if step is not None and context.read_only_by(step.x, node) else None
    if step is None or layer is None:
        return None
    weights = layer.inputs[1].node.attrs["value"]
    bias = _bias(layer) if step.shift is not None or len(layer.inputs) > 2 else None
    if step.scale is not None:
        weights = _scaled(weights, step.scale.reshape(-1, *(1,) * (weights.ndim - 1)))
        bias = None if bias is None else bias * step.scale
    if bias is not None and step.shift is not None:
        bias = bias + step.shift
    return _with_parameters(layer, weights, bias, node, layer)


def scaled_layer(value: Value, scale: np.ndarray) -> Node | None:
    """A layer that makes value * scale, where one makes the value and its parameters can have the scale; one number or one per channel."""
    layer = _layer(value)
    if layer is None:
        return None
    weights = _scaled(layer.inputs[1].node.attrs["value"], scale.reshape(-1, *(1,) * (len(layer.inputs[1].shape) - 1)))
    return _with_parameters(layer, weights, _bias(layer) * scale if len(layer.inputs) > 2 else None, layer)


def scaled_constant(value: Value, scale: np.ndarray) -> Value | None:
    """A constant times a number; None where that is not finite."""
    array = _scaled(value.node.attrs["value"], scale)
    return constant(array, value.node.name, value.node.origin) if np.all(np.isfinite(array)) else None


def _takes(reader: Node, position: int, step: Affine) -> bool:
    """Can this reader of x * scale + shift have them in its parameters? A shift only without padding: zeros are padded, not shifted zeros."""
    if position != 0 or _layer(reader.out()) is None:
        return False
    if step.shift is None or reader.op == "fc":
        return True
    if reader.op == "conv_transpose":  # its outer cells meet fewer taps, and so less of the shift
        return False
    return all(amount <= 0 for side in ("pads_begin", "pads_end") for amount in reader.attrs[side])


def _arithmetic_before(node: Node) -> Affine | None:
    step = affine(node.inputs[0].node)
    return step if step is not None and _takes(node, 0, step) else None


@rule(*LAYERS)
def fold_into_layer_after(node: Node, context: Context) -> Replacement | None:
    """conv(x * s + t, w) + b -> conv(x, w * s) + (b + sum of w * t), per input channel, if all readers of x * s + t can do so."""
    step = _arithmetic_before(node)
    before = node.inputs[0].node
    if step is None or context.is_output(before.out()):
        return None
    if not all(_takes(reader, position, step) for reader, position in context.readers_of(before.out())):
        return None
    weights = node.inputs[1].node.attrs["value"]
    bias = None
    if step.shift is not None:
        shift = _by_input_channel(step.shift, node)
        bias = _bias(node) + (weights * shift).reshape(weights.shape[0], -1).sum(axis=1)
    if step.scale is not None:
        weights = _scaled(weights, _by_input_channel(step.scale, node))
    folded = _with_parameters(node, weights, bias, node, before)
    if folded is None:
        return None
    return Node(folded.op, (step.x, *folded.inputs[1:]), folded.attrs, folded.types, folded.name, folded.origin)


def _by_input_channel(numbers: np.ndarray, layer: Node) -> np.ndarray:
    """One number per channel of the layer's input, in the shape of its weights (or of one element)."""
    if numbers.size == 1:
        return numbers
    weights = layer.inputs[1]
    group = layer.attrs.get("group", 1)
    rows = np.repeat(numbers.reshape(group, -1), weights.shape[0] // group, axis=0)
    return rows.reshape(weights.shape[0], *(1,) * (len(weights.shape) - 2), -1)


def cost(node: Node) -> tuple[int, int]:
    """Operations (more for a batch_norm than for what it becomes), then arithmetic that layers still read through."""
    if node.op in ("input", "constant"):
        return (0, 0)
    before = 0
    if node.op in LAYERS:
        step = affine(node.inputs[0].node)
        while step is not None:
            before += 1
            step = affine(step.x.node)
    return (8 if node.op == "batch_norm" else 1, before)


def expand_batch_norms(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "expand_batch_norms", (expand_batch_norm,), cost, steps)


def merge_affine(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "merge_affine", (merge_arithmetic,), cost, steps)


def fold_affine(graph: Graph, steps: Steps) -> Graph:
    return apply_rules(graph, "fold_affine", (fold_into_layer_before, fold_into_layer_after), cost, steps)
