"""Operators of Caffe2 that prepare inputs and score outputs: softmax with loss, column-wise transforms, half precision, best paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FIRST, FLOAT32, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]
LEAST_PROBABILITY = 1e-20
LEAST_BASE = 1e-6


def _softmax_with_loss(call: Call) -> Results:
    """Softmax of everything from `axis` on, and the mean negative logarithm of the labels' probabilities (weighted by a third input)."""
    call.dtype(FLOAT32, 0)
    shape, scale = call.x.shape, call.args.number("scale", 1.0)
    axis = call.axis(call.args.integer("axis", 1), len(shape))
    rows, classes = math.prod(shape[:axis]), math.prod(shape[axis:])
    logits = call.reshaped(call.x, (rows, classes), "rows")
    chances = call.helper("softmax", (logits,), "chances", {"axis": 1})
    least = call.number(LEAST_PROBABILITY, "float32", "least")
    if call.args.flag("label_prob"):
        call.dtype(FLOAT32, 0, 1)
        call.shape(1, shape, "label probabilities")
        logarithms = call.helper("log", (call.helper("maximum", (chances, least), "bounded"),), "logarithms")
        terms = call.helper("mul", (logarithms, call.reshaped(call.inputs[1], (rows, classes), "labels")), "terms")
        terms = call.helper("reduce_sum", (terms,), "gains", {"axes": (1,), "keepdims": False})
    else:
        terms = _label_logarithms(call, chances, least)
    loss = _mean_loss(call, terms, rows, scale)
    return (call.as_output(chances, shape, 0), call.as_output(loss, (), 1))


def _label_logarithms(call: Call, chances: Value, least: Value) -> Value:
    call.dtype(frozenset({"int32"}), 1)
    rows, classes = chances.shape
    if call.inputs[1].type.size != rows:
        raise ShapeError(f"there are {call.inputs[1].type.size} labels for {rows} rows; there must be as many")
    starts = call.side((np.arange(rows) * classes).astype(np.int32), "row_starts")
    at = call.helper("add", (starts, call.reshaped(call.inputs[1], (rows,), "labels")), "places")
    chosen = call.helper("gather", (call.reshaped(chances, (rows * classes,), "flat"), at), "chosen", {"axis": 0})
    return call.helper("log", (call.helper("maximum", (chosen, least), "bounded"),), "logarithms")


def _mean_loss(call: Call, terms: Value, rows: int, scale: float) -> Value:
    everything = {"axes": (0,), "keepdims": False}
    if len(call.inputs) == 2:
        mean = call.helper("reduce_mean", (terms,), "mean", everything)
        return call.helper("mul", (mean, call.number(-scale, "float32", "scale")), "loss")
    call.dtype(FLOAT32, 0, 2)
    weights = call.reshaped(call.inputs[2], (rows,), "weights")
    total = call.helper("reduce_sum", (call.helper("mul", (terms, weights), "weighted"),), "total", everything)
    mean = call.helper("div", (total, call.helper("reduce_sum", (weights,), "weight", everything)), "mean")
    return call.helper("mul", (mean, call.number(-scale, "float32", "scale")), "loss")


def _box_cox(call: Call) -> Results:
    """Per column: (max(x + b, 1e-6)^a - 1) / a, and the logarithm where a is 0."""
    call.dtype(FLOAT32)
    if len(call.x.shape) < 1:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' has no axes")
    columns = math.prod(call.x.shape[1:])
    call.shape(1, (columns,), "exponents")
    call.shape(2, (columns,), "shifts")
    a, b = (call.reshaped(v, call.x.shape[1:], "columns") for v in call.inputs[1:])
    base = call.helper(
        "maximum", (call.helper("add", (call.x, b), "shifted"), call.number(LEAST_BASE, "float32", "least")), "base"
    )
    zero, one = call.number(0, "float32", "zero"), call.number(1, "float32", "one")
    idle = call.helper("eq", (a, zero), "idle")
    power = call.helper("sub", (call.helper("pow", (base, a), "power"), one), "difference")
    power = call.helper("div", (power, call.helper("where", (idle, one, a), "divisor")), "quotient")
    return (call.node("where", (idle, call.helper("log", (base,), "logarithm"), power)),)


def _normalize_planar(call: Call) -> Results:
    """(x - mean) / deviation per channel of [N, C, H, W]."""
    call.dtype(FLOAT32)
    shape = call.x.shape
    if len(shape) != 4:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(shape)}; NormalizePlanarYUV takes 4 axes")
    numbers = []
    for position, what in ((1, "mean"), (2, "deviation")):
        call.shape(position, (1, shape[1]), what)
        numbers.append(call.reshaped(call.inputs[position], (1, shape[1], 1, 1), "channels"))
    return (call.node("div", (call.helper("sub", (call.x, numbers[0]), "centred"), numbers[1])),)


def _piecewise(call: Call) -> Results:
    """Linear pieces between bounds, the value held beyond the outer ones; one set of pieces, by arguments."""
    call.dtype(FLOAT32)
    bounds, slopes, intercepts = (
        np.asarray(call.args.raw(name).floats, np.float32) for name in ("bounds", "slopes", "intercepts")
    )
    if len(call.inputs) > 1:
        raise UnsupportedError("pieces given as inputs are not supported; give them as arguments bounds, slopes and intercepts")
    if not call.args.flag("binary") or len(call.x.shape) != 1:
        raise UnsupportedError(
            f"only the binary form on one axis is supported; binary is {call.args.flag('binary')}, x {show(call.x.shape)}"
        )
    if len(bounds) < 2 or len(slopes) != len(bounds) - 1 or len(intercepts) != len(slopes) or np.any(np.diff(bounds) < 0):
        raise FormatError(
            f"{len(bounds)} bounds (which must rise), {len(slopes)} slopes and {len(intercepts)} intercepts do not fit together"
        )
    inside = call.helper("clip", (call.x,), "inside", {"lo": float(bounds[0]), "hi": float(bounds[-1])})
    column = call.reshaped(inside, (*call.x.shape, 1), "column")
    below = call.helper("lt", (call.side(bounds[1:-1], "bounds"), column), "below")
    ones = call.helper("cast", (below,), "ones", {"dtype": "int32"})
    piece = call.helper("reduce_sum", (ones,), "piece", {"axes": (1,), "keepdims": False})
    slope, intercept = (
        call.helper("gather", (call.side(values, name), piece), f"{name}_there", {"axis": 0})
        for values, name in ((slopes, "slopes"), (intercepts, "intercepts"))
    )
    return (call.node("add", (call.helper("mul", (inside, slope), "sloped"), intercept)),)


def _convert(source: str, target: str) -> Callable[[Call], Results]:
    def build(call: Call) -> Results:
        call.dtype(frozenset({source}))
        return (call.node("cast", (call.x,), {"dtype": target}),)

    return build


def _viterbi(call: Call) -> Results:
    """The best path through scores[T, K] with transitions[K, K] (from, to), as one state per step."""
    call.dtype(FLOAT32)
    scores, moves = call.inputs
    if len(scores.shape) != 2 or scores.shape[0] < 1 or moves.shape != (scores.shape[1],) * 2:
        raise ShapeError(
            f"the scores are {show(scores.shape)} and the transitions {show(moves.shape)}; they must be [T, K] and [K, K]"
        )
    steps, states = scores.shape
    best, origins = _row(call, scores, 0), []
    for step in range(1, steps):
        ways = call.helper("add", (call.reshaped(best, (states, 1), f"from{step}"), moves), f"ways{step}")
        origins.append(call.helper("arg_max", (ways,), f"origin{step}", {"axis": 0, "keepdims": False}))
        gain = call.helper("reduce_max", (ways,), f"gain{step}", {"axes": (0,), "keepdims": False})
        best = call.helper("add", (gain, _row(call, scores, step)), f"best{step}")
    state = call.helper("arg_max", (best,), "last", {"axis": 0, "keepdims": True})
    path = [state]
    for number, origin in enumerate(reversed(origins)):
        state = call.helper("gather", (origin, state), f"state{number}", {"axis": 0})
        path.append(state)
    path.reverse()
    joined = path[0] if steps == 1 else call.helper("concat", path, "path", {"axis": 0})
    return (call.node("cast", (joined,), {"dtype": "int32"}),)


def _row(call: Call, x: Value, number: int) -> Value:
    part = call.helper("slice", (x,), f"row{number}", {"starts": (number, 0), "stops": (number + 1, x.shape[1])})
    return call.reshaped(part, x.shape[1:], f"scores{number}")


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "SoftmaxWithLoss": OpSpec(_softmax_with_loss, inputs=(2, 3), outputs=(2, 2)),
        "BatchBoxCox": OpSpec(_box_cox, inputs=(3, 3), in_place=FIRST),
        "NormalizePlanarYUV": OpSpec(_normalize_planar, inputs=(3, 3), in_place=FIRST),
        "PiecewiseLinearTransform": OpSpec(_piecewise, inputs=(1, 4)),
        "FloatToHalf": OpSpec(_convert("float32", "float16")),
        "HalfToFloat": OpSpec(_convert("float16", "float32")),
        "ViterbiPath": OpSpec(_viterbi, inputs=(2, 2)),
    }
)
