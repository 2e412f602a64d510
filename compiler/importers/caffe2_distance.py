"""Operators of Caffe2 that work row by row: distances and similarities, linear functions per column, losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FIRST, FLOAT32, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]
SMALLEST_SQUARE = 1e-12


def _pair(call: Call) -> tuple[Value, Value]:
    """Both inputs as [rows, rest]; a vector is one number per row."""
    call.dtype(FLOAT32)
    a, b = call.inputs
    if a.shape != b.shape or not a.shape:
        raise ShapeError(f"the inputs are {show(a.shape)} and {show(b.shape)}; they must be equal and have an axis")
    shape = (a.shape[0], math.prod(a.shape[1:]))
    return call.reshaped(a, shape, "rows"), call.reshaped(b, shape, "rows")


_ROWS = {"axes": (1,), "keepdims": False}


def _dot(call: Call, a: Value, b: Value, name: str) -> Value:
    return call.helper("reduce_sum", (call.helper("mul", (a, b), f"{name}_terms"),), name, _ROWS)


def _dot_product(call: Call) -> Results:
    a, b = _pair(call)
    return (call.node("reduce_sum", (call.helper("mul", (a, b), "terms"),), _ROWS),)


def _squared_distance(call: Call) -> Results:
    """Half the squared Euclidean distance."""
    a, b = _pair(call)
    square = call.helper("square", (call.helper("sub", (a, b), "difference"),), "square")
    total = call.helper("reduce_sum", (square,), "total", _ROWS)
    return (call.node("mul", (total, call.number(0.5, "float32", "half"))),)


def _absolute_distance(call: Call) -> Results:
    a, b = _pair(call)
    magnitude = call.helper("abs", (call.helper("sub", (a, b), "difference"),), "magnitude")
    return (call.node("reduce_sum", (magnitude,), _ROWS),)


def _cosine_similarity(call: Call) -> Results:
    """a . b / (|a| |b|), with squared lengths of at least 1e-12."""
    a, b = _pair(call)
    least = call.number(SMALLEST_SQUARE, "float32", "smallest")
    inverses = []
    for value, name in ((a, "a"), (b, "b")):
        length = call.helper("maximum", (_dot(call, value, value, name), least), f"{name}_square")
        inverses.append(call.helper("rsqrt", (length,), f"{name}_inverse"))
    product = call.helper("mul", (_dot(call, a, b, "product"), inverses[0]), "half_way")
    return (call.node("mul", (product, inverses[1])),)


def _elementwise_linear(call: Call) -> Results:
    """x * a + b with one a and b per position of the axes from `axis` on."""
    call.dtype(FLOAT32)
    shape = call.x.shape
    axis = call.axis(call.args.integer("axis", 1), len(shape))
    count = math.prod(shape[axis:])
    call.shape(1, (count,), "factor")
    call.shape(2, (count,), "summand")
    factor, summand = (call.reshaped(v, shape[axis:], "shaped") for v in call.inputs[1:])
    return (call.node("add", (call.helper("mul", (call.x, factor), "product"), summand)),)


def _per_row(op: str, root: bool = False) -> Callable[[Call], Results]:
    """Every row (position of the first axis) combined with its own number, or with the number's root; a root of 0 divides by 1."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        x, w = call.inputs
        if not x.shape or w.type.size != x.shape[0]:
            raise ShapeError(
                f"input 1 '{call.operator.inputs[1]}' {show(w.shape)} must have one number for each row of {show(x.shape)}"
            )
        numbers = call.reshaped(w, (x.shape[0], *(1,) * (len(x.shape) - 1)), "column")
        if root:
            zero = call.helper("le", (numbers, call.number(0, "float32", "zero")), "idle")
            one = call.number(1, "float32", "one")
            numbers = call.helper("where", (zero, one, call.helper("sqrt", (numbers,), "root")), "divisor")
        return (call.node(op, (x, numbers)),)

    return build


def _averaged_loss(call: Call) -> Results:
    """The mean of all elements; 0 of none."""
    call.dtype(FLOAT32)
    op = "reduce_mean" if call.x.type.size else "reduce_sum"
    return (call.node(op, (call.x,), {"axes": tuple(range(len(call.x.shape))), "keepdims": False}),)


def _sum_like(call: Call) -> Results:
    """Sums over the axes that the second input, laid on the first as legacy broadcasting does, would be stretched along."""
    call.dtype(FLOAT32)
    a, b = call.x.shape, call.inputs[1].shape
    if math.prod(b) == 1:
        total = call.helper("reduce_sum", (call.x,), "total", {"axes": tuple(range(len(a))), "keepdims": False})
        return (call.as_output(total, b),)
    axis = call.args.integer("axis", -1)
    start = len(a) - len(b) if axis == -1 else axis
    if not 0 <= start <= len(a) - len(b):
        raise ShapeError(f"input 1 {show(b)} must lie within input 0 {show(a)}; it would start at axis {start}")
    laid = (*(1,) * start, *b, *(1,) * (len(a) - start - len(b)))
    if any(small not in (1, size) for small, size in zip(laid, a, strict=True)):
        raise ShapeError(f"input 1 {show(b)} must equal the axes of input 0 {show(a)} from axis {start} on")
    axes = tuple(i for i, (small, size) in enumerate(zip(laid, a, strict=True)) if small != size)
    if not axes:
        return (call.as_output(call.x, b),)
    total = call.helper("reduce_sum", (call.x,), "total", {"axes": axes, "keepdims": True})
    return (call.as_output(total, b),)


def _cross_entropy_with_logits(call: Call) -> Results:
    """Per row the mean of -(x (t - [x >= 0]) - log(1 + e^(x - 2 x [x >= 0])))."""
    call.dtype(FLOAT32)
    x, targets = call.inputs
    if x.shape != targets.shape or len(x.shape) < 1:
        raise ShapeError(f"the logits are {show(x.shape)} and the targets {show(targets.shape)}; they must be equal")
    for name in ("log_D_trick", "unjoined_lr_loss"):
        if call.args.flag(name):
            raise FormatError(f"argument '{name}' is a training variant that is not supported")
    positive = call.helper("relu", (x,), "positive")
    product = call.helper("mul", (x, targets), "product")
    tail = call.helper("softplus", (call.helper("negative", (call.helper("abs", (x,), "abs"),), "below"),), "tail")
    loss = call.helper("add", (call.helper("sub", (positive, product), "linear"), tail), "loss")
    return (call.node("reduce_mean", (loss,), {"axes": (len(x.shape) - 1,), "keepdims": False}),)


def _glu(call: Call) -> Results:
    """The first half along `dim` times the sigmoid of the second."""
    call.dtype(FLOAT32)
    shape = call.x.shape
    axis = call.axis(call.args.integer("dim", -1), len(shape), "dim")
    if shape[axis] % 2:
        raise ShapeError(f"axis {axis} of '{call.operator.inputs[0]}' {show(shape)} must be even, to be cut into halves")
    half = shape[axis] // 2
    parts = []
    for number, name in enumerate(("values", "gates")):
        starts = tuple(number * half if i == axis else 0 for i in range(len(shape)))
        stops = tuple((number + 1) * half if i == axis else size for i, size in enumerate(shape))
        parts.append(call.helper("slice", (call.x,), name, {"starts": starts, "stops": stops}))
    return (call.node("mul", (parts[0], call.helper("sigmoid", (parts[1],), "gate"))),)


def _stump(call: Call) -> Results:
    """high_value where x > threshold, else low_value."""
    call.dtype(FLOAT32)
    threshold, low, high = (
        call.number(call.args.number(name, 0.0), "float32", name) for name in ("threshold", "low_value", "high_value")
    )
    above = call.helper("gt", (call.x, threshold), "above")
    shape = {"shape": call.x.shape}
    values = [call.helper("broadcast_to", (v,), f"{name}s", shape) for v, name in ((high, "high"), (low, "low"))]
    return (call.node("where", (above, *values)),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "DotProduct": OpSpec(_dot_product, inputs=(2, 2)),
        "SquaredL2Distance": OpSpec(_squared_distance, inputs=(2, 2)),
        "L1Distance": OpSpec(_absolute_distance, inputs=(2, 2)),
        "CosineSimilarity": OpSpec(_cosine_similarity, inputs=(2, 2)),
        "ElementwiseLinear": OpSpec(_elementwise_linear, inputs=(3, 3)),
        "RowMul": OpSpec(_per_row("mul"), inputs=(2, 2)),
        "SquareRootDivide": OpSpec(_per_row("div", root=True), inputs=(2, 2), in_place=FIRST),
        "AveragedLoss": OpSpec(_averaged_loss),
        "SumReduceLike": OpSpec(_sum_like, inputs=(2, 2)),
        "SigmoidCrossEntropyWithLogits": OpSpec(_cross_entropy_with_logits, inputs=(2, 2)),
        "Glu": OpSpec(_glu),
        "StumpFunc": OpSpec(_stump),
    }
)
