"""Operators of Caffe2 between rows of float32 numbers and rows of bytes with a scale and a bias for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import ShapeError

Results = Sequence[Value | None]
PARAMETERS = 8  # bytes: scale and bias, float32


def _quantized(call: Call) -> tuple[Value, Value, Value]:
    """float32 [N, C], whole numbers 0 to 255 between each row's least and largest one, and scale and bias that lead back, each [N, 1]."""
    call.dtype(FLOAT32, 0)
    if len(call.x.shape) != 2 or not call.x.shape[1]:
        raise ShapeError(f"'{call.operator.inputs[0]}' is {show(call.x.shape)}; it must be a matrix with columns")
    axes = {"axes": (1,), "keepdims": True}
    least, largest = (call.helper(f"reduce_{what}", (call.x,), what, axes) for what in ("min", "max"))
    span = call.helper("sub", (largest, least), "range")
    levels = call.number(255.0, "float32", "levels")
    wide = call.helper("add", (span, call.number(1e-8, "float32", "epsilon")), "wide")
    above, inverse = call.helper("sub", (call.x, least), "above"), call.helper("div", (levels, wide), "inverse")
    whole = call.helper("round_even", (call.helper("mul", (above, inverse), "steps"),), "whole")
    return whole, call.helper("div", (span, levels), "step"), least


def _to_rows(call: Call) -> Results:
    """A row of equal numbers has scale 1."""
    whole, step, least = _quantized(call)
    none, one = call.number(0.0, "float32", "none"), call.number(1.0, "float32", "one")
    scale = call.helper("where", (call.helper("eq", (step, none), "flat"), one, step), "scale")
    return (call.node("cast", (whole,), {"dtype": "uint8"}), call.node("concat", (scale, least), {"axis": 1}, 1))


def _to_fused_rows(call: Call) -> Results:
    """The parameters' bytes stand behind each row's; a row of equal numbers has scale 0."""
    whole, step, least = _quantized(call)
    parameters = call.helper("concat", (step, least), "parameters", {"axis": 1})
    tail = call.helper("bitcast", (parameters,), "tail", {"dtype": "uint8"})
    return (call.node("concat", (call.helper("cast", (whole,), "bytes", {"dtype": "uint8"}), tail), {"axis": 1}),)


def _from_fused_rows(call: Call) -> Results:
    call.dtype(frozenset({"uint8"}), 0)
    if len(call.x.shape) != 2 or call.x.shape[1] < PARAMETERS:
        raise ShapeError(
            f"'{call.operator.inputs[0]}' is {show(call.x.shape)}; it must be rows of bytes, the last 8 scale and bias"
        )
    rows, wide = call.x.shape
    columns = wide - PARAMETERS
    held = call.helper("slice", (call.x,), "bytes", {"starts": (0, 0), "stops": (rows, columns)})
    tail = call.helper("slice", (call.x,), "tail", {"starts": (0, columns), "stops": (rows, wide)})
    parameters = call.helper("bitcast", (tail,), "parameters", {"dtype": "float32"})
    scale, bias = (
        call.helper("slice", (parameters,), name, {"starts": (0, at), "stops": (rows, at + 1)})
        for at, name in enumerate(("scale", "bias"))
    )
    numbers = call.helper("cast", (held,), "numbers", {"dtype": "float32"})
    return (call.node("add", (call.helper("mul", (numbers, scale), "scaled"), bias)),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "FloatToFused8BitRowwiseQuantized": OpSpec(_to_fused_rows),
        "FloatToRowwiseQuantized8Bits": OpSpec(_to_rows, outputs=(2, 2)),
        "Fused8BitRowwiseQuantizedToFloat": OpSpec(_from_fused_rows),
    }
)
