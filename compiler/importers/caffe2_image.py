"""Operators of Caffe2 that pad and resize images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, Call, OpSpec
from cortado.compiler.importers.caffe2_window import read_pads
from cortado.compiler.ops.checks import show
from cortado.compiler.ops.resize import resized
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]
_LARGEST_SCALE = 2**16


def _image(call: Call) -> None:
    if len(call.x.shape) != 4:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} takes 4 axes")


def _pad_image(call: Call) -> Results:
    """The spatial axes padded; negative pads crop after the others are put on."""
    call.dtype(FLOAT32)
    _image(call)
    first = call.channels_first()
    if call.args.integer("legacy_pad", 0) != 0:
        raise FormatError("PadImage takes explicit pads, not legacy_pad")
    for name in ("kernels", "kernel", "strides", "stride", "dilations", "dilation"):
        values = call.args.integers(name) + ((call.args.integer(name, 1),) if call.args.holds(name, "i") else ())
        if any(v != 1 for v in values) and not name.startswith("kernel"):
            raise FormatError(f"PadImage has no '{name}', found {show(values)}")
    mode = call.args.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise FormatError(f"argument 'mode' is '{mode}'; it must be constant, reflect or edge")
    pads = read_pads(call.args)
    if len(pads) != 4:
        raise FormatError(f"the pads are {show(pads)}; they must be top, left, bottom, right")
    axes = (2, 3) if first else (1, 2)
    begin, end = _placed(pads[:2], axes), _placed(pads[2:], axes)
    attrs = {"begin": _grown(begin), "end": _grown(end), "mode": mode, "value": call.args.number("value", 0.0)}
    if min(pads) >= 0:
        return (call.node("pad", (call.x,), attrs),)
    padded = call.helper("pad", (call.x,), "padded", attrs)
    starts = tuple(max(-b, 0) for b in begin)
    stops = tuple(n - max(-e, 0) for n, e in zip(padded.shape, end, strict=True))
    return (call.node("slice", (padded,), {"starts": starts, "stops": stops}),)


def _placed(values: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[axes.index(i)] if i in axes else 0 for i in range(4))


def _grown(pads: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(pad, 0) for pad in pads)


def _resize(op: str, ordered: bool) -> Callable[[Call], Results]:
    """Scales by argument, or [height, width] as the second input. ordered: the operator heeds `order`, else it is NCHW."""

    def build(call: Call) -> Results:
        call.dtype(FLOAT32)
        _image(call)
        first = call.channels_first()
        if not first and not ordered:
            raise FormatError(f"{call.operator.type} exists for order NCHW only")
        scale_h, scale_w = call.args.number("height_scale", 1.0), call.args.number("width_scale", 1.0)
        if len(call.inputs) == 2:
            scales = call.known(1, "scales").reshape(-1)
            if len(scales) != 2:
                raise ShapeError(f"the scales '{call.operator.inputs[1]}' must be [height, width]; found {len(scales)} values")
            scale_h, scale_w = float(scales[0]), float(scales[1])
        if not (0 < scale_h <= _LARGEST_SCALE and 0 < scale_w <= _LARGEST_SCALE):
            raise ShapeError(
                f"scales of {scale_h} and {scale_w} are impossible: they must be above 0 and at most {_LARGEST_SCALE}"
            )
        x = call.channels_last(call.x, first)
        attrs = {
            "scale_h": scale_h, "scale_w": scale_w, "out_h": resized(x.shape[1], scale_h), "out_w": resized(x.shape[2], scale_w),
        }  # fmt: skip
        return (call.in_order(call.node(op, (x,), attrs), first),)

    return build


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "PadImage": OpSpec(_pad_image),
        "ResizeNearest": OpSpec(_resize("resize_nearest", True), inputs=(1, 2)),
        "UpsampleBilinear": OpSpec(_resize("resize_bilinear", False), inputs=(1, 2)),
    }
)
