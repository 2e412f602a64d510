"""Operators of Caffe2 that join, cut, choose and repeat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import ANY, FLOAT32, MANY, Call, OpSpec, integers
from cortado.compiler.ops.checks import broadcast_shapes, show
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]
INDICES = frozenset({"int32", "int64"})


def _axis(call: Call, rank: int) -> int:
    """Argument `axis`, or else the channel axis that `order` chooses: 1 or 3."""
    if call.args.has("axis"):
        if call.args.has("order"):
            raise FormatError("arguments 'axis' and 'order' exclude each other")
        return call.axis(call.args.integer("axis", 0), rank)
    return call.axis(1 if call.channels_first() else 3, rank)


def _concat(call: Call) -> Results:
    """The second output says how long each part is. add_axis=1 stacks along a new axis."""
    call.dtype(ANY)
    values, shape, added = list(call.inputs), call.x.shape, call.args.flag("add_axis")
    axis = _axis(call, len(shape) + added)
    for name, value in zip(call.operator.inputs, values, strict=True):
        same = len(value.shape) == len(shape) and all(
            a == b for i, (a, b) in enumerate(zip(value.shape, shape, strict=True)) if i != axis
        )
        if not same or (added and value.shape != shape):
            raise ShapeError(
                f"input '{name}' is {show(value.shape)} and '{call.operator.inputs[0]}' {show(shape)}: "
                + ("with add_axis all must be equal" if added else f"only axis {axis} may differ")
            )
    if added:
        values = [call.reshaped(v, (*shape[:axis], 1, *shape[axis:]), f"part{i}") for i, v in enumerate(values)]
    lengths = call.constant(np.array([v.shape[axis] for v in values], np.int32), 1)
    return (values[0] if len(values) == 1 else call.node("concat", values, {"axis": axis}), lengths)


def _split(call: Call) -> Results:
    """Sizes by argument `split`, by the second input, or equal. add_axis=1 drops the axis, one element for each output."""
    x, outputs = call.x, len(call.operator.outputs)
    axis = _axis(call, len(x.shape))
    dropped = call.args.flag("add_axis")
    sizes = _sizes(call, x.shape[axis], outputs)
    if dropped and any(size != 1 for size in sizes):
        raise ShapeError(f"with add_axis axis {axis} must be as long as there are outputs ({outputs}); it is {x.shape[axis]}")
    results, at = [], 0
    for output, size in enumerate(sizes):
        starts = tuple(at if i == axis else 0 for i in range(len(x.shape)))
        stops = tuple(at + size if i == axis else n for i, n in enumerate(x.shape))
        at += size
        part = x if outputs == 1 else call.node("slice", (x,), {"starts": starts, "stops": stops}, output)
        shape = [n for i, n in enumerate(part.shape) if not (dropped and i == axis)]
        results.append(call.reshaped(part, shape, f"part{output}"))
    return results


def _sizes(call: Call, length: int, outputs: int) -> tuple[int, ...]:
    if len(call.inputs) == 2:
        if call.args.has("split"):
            raise FormatError("the sizes are given twice: as argument 'split' and as the second input")
        call.dtype(frozenset({"int32"}), 1)
        sizes = integers(call.known(1, "sizes"))
    elif call.args.has("split"):
        sizes = call.args.integers("split")
    else:
        if length % outputs:
            raise ShapeError(f"an axis of {length} cannot be cut into {outputs} equal parts")
        sizes = (length // outputs,) * outputs
    if len(sizes) != outputs or sum(sizes) != length or any(size < 0 for size in sizes):
        raise ShapeError(f"sizes {show(sizes)} for {outputs} outputs do not cut an axis of {length}")
    return sizes


def _slice(call: Call) -> Results:
    """Only one axis may really be cut, as in Caffe2. Negative positions count from one past the end."""
    if len(call.inputs) == 1:
        starts, ends = call.args.integers("starts"), call.args.integers("ends")
    elif len(call.inputs) == 3:
        call.dtype(INDICES, 1, 2)
        starts, ends = (integers(call.known(position, "positions")) for position in (1, 2))
    else:
        raise FormatError("takes the tensor alone (with arguments 'starts' and 'ends') or with both as inputs")
    shape = call.x.shape
    if len(starts) != len(shape) or len(ends) != len(shape):
        raise ShapeError(f"starts {show(starts)} and ends {show(ends)} must have one value for each axis of {show(shape)}")
    begin, stop = [], []
    for start, end, size in zip(starts, ends, shape, strict=True):
        first = min(start + size + 1 if start < 0 else start, size)
        last = min(end + size + 1 if end < 0 else end, size)
        if not 0 <= first <= last:
            raise ShapeError(f"starts {show(starts)} and ends {show(ends)} do not lie within {show(shape)}")
        begin.append(first)
        stop.append(last)
    cut = [i for i, size in enumerate(shape) if stop[i] - begin[i] != size]
    if len(cut) > 1:
        raise ShapeError(f"axes {cut} would be cut; Caffe2's Slice cuts only one axis at a time, use several")
    if not cut:
        return (call.x,)
    return (call.node("slice", (call.x,), {"starts": tuple(begin), "stops": tuple(stop)}),)


def _tile(call: Call) -> Results:
    """`tiles` copies along `axis`; either may be an input instead. An int64 `tiles` input forces axis 0, as in Caffe2."""
    rank = len(call.x.shape)
    if len(call.inputs) == 1:
        tiles = call.args.integer("tiles", 0) if call.args.has("tiles") else None
    else:
        call.dtype(INDICES, 1)
        tiles = _single(call, 1, "number of tiles")
    if len(call.inputs) == 3:
        call.dtype(INDICES, 2)
        axis: int | None = _single(call, 2, "axis")
    else:
        axis = call.args.integer("axis", 0) if call.args.has("axis") else None
    if len(call.inputs) > 1 and call.inputs[1].type.dtype == "int64":
        axis = 0
    if tiles is None or axis is None:
        raise FormatError("arguments 'tiles' and 'axis' must be given")
    if tiles < 0:
        raise ShapeError(f"the number of tiles is {tiles}; it must not be negative")
    axis = call.axis(axis, rank)
    if tiles == 1:
        return (call.x,)
    return (call.node("tile", (call.x,), {"repeats": tuple(tiles if i == axis else 1 for i in range(rank))}),)


def _single(call: Call, position: int, what: str) -> int:
    values = integers(call.known(position, what))
    if len(values) != 1:
        raise ShapeError(f"the {what} '{call.operator.inputs[position]}' has {len(values)} elements; it must have one")
    return values[0]


def _numpy_tile(call: Call) -> Results:
    """One number of repeats for each axis, as the second input."""
    call.dtype(frozenset({"int64"}), 1)
    repeats = integers(call.known(1, "repeats"))
    if len(repeats) != len(call.x.shape) or any(r < 0 for r in repeats):
        raise ShapeError(f"repeats {show(repeats)} must hold one number of at least 0 for each axis of {show(call.x.shape)}")
    return (call.node("tile", (call.x,), {"repeats": repeats}),)


def _expand(call: Call) -> Results:
    """numpy's broadcasting against a shape, in both directions."""
    call.dtype(INDICES, 1)
    wanted = integers(call.known(1, "shape"))
    if any(d < 0 for d in wanted):
        raise ShapeError(f"the shape {show(wanted)} has a negative size")
    shape = broadcast_shapes([call.x.shape, wanted])
    if shape == call.x.shape:
        return (call.x,)
    return (call.node("broadcast_to", (call.x,), {"shape": shape}),)


def _gather(call: Call) -> Results:
    """Negative indices count from the end on axis 0, elsewhere with wrap_indices=1 only. match_outer pairs the axes before `axis`."""
    call.dtype(INDICES, 1)
    x, indices = call.inputs
    axis = call.axis(call.args.integer("axis", 0), len(x.shape))
    wraps = axis == 0 or call.args.flag("wrap_indices")
    known = indices.constant
    if known is not None and known.size and not (-x.shape[axis] if wraps else 0) <= known.min() <= known.max() < x.shape[axis]:
        raise ShapeError(
            f"the indices '{call.operator.inputs[1]}' lie outside axis {axis} of '{call.operator.inputs[0]}' {show(x.shape)}"
        )
    if not call.args.flag("match_outer") or axis == 0:
        return (call.node("gather", (x, indices), {"axis": axis}),)
    if len(indices.shape) < axis or x.shape[:axis] != indices.shape[:axis]:
        raise ShapeError(f"with match_outer the indices {show(indices.shape)} must begin with the axes {show(x.shape[:axis])}")
    return (_gather_matched(call, x, indices, axis),)


def _gather_matched(call: Call, x: Value, indices: Value, axis: int) -> Value:
    """One gather from the rows of all outer positions, each position's indices moved to its own rows."""
    outer, length = math.prod(x.shape[:axis]), x.shape[axis]
    rows = call.reshaped(x, (outer * length, *x.shape[axis + 1 :]), "rows")
    first_rows = (np.arange(outer) * length).reshape(*x.shape[:axis], *(1,) * (len(indices.shape) - axis))
    base = call.side(first_rows.astype(indices.type.numpy), "first_rows")
    if call.args.flag("wrap_indices"):
        zero = call.number(0, indices.type.dtype, "zero")
        whole = call.number(length, indices.type.dtype, "length")
        below = call.helper("lt", (indices, zero), "below")
        indices = call.helper("where", (below, call.helper("add", (indices, whole), "wrapped"), indices), "indices")
    return call.node("gather", (rows, call.helper("add", (base, indices), "positions")), {"axis": 0})


def _batch_gather(call: Call) -> Results:
    """The same indices in every row of the first axis."""
    call.dtype(INDICES, 1)
    if len(call.x.shape) < 2:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; BatchGather needs at least 2 axes")
    return (call.node("gather", call.inputs, {"axis": 1}),)


def _channel_shuffle(call: Call) -> Results:
    """Channels as [group, C/group] become [C/group, group]."""
    call.dtype(FLOAT32)
    first, group, shape = call.channels_first(), call.args.integer("group", 1), call.x.shape
    axis = 1 if first else len(shape) - 1
    if len(shape) < 2 or group < 1 or shape[axis] % group:
        raise ShapeError(f"group {group} does not divide the channels of the input '{call.operator.inputs[0]}' {show(shape)}")
    parts = call.reshaped(call.x, (*shape[:axis], group, shape[axis] // group, *shape[axis + 1 :]), "groups")
    perm = (*range(axis), axis + 1, axis, *range(axis + 2, len(shape) + 1))
    return (call.as_output(call.transposed(parts, perm, "shuffled"), shape),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "Concat": OpSpec(_concat, inputs=(1, MANY), outputs=(2, 2)),
        "DepthConcat": OpSpec(_concat, inputs=(1, MANY), outputs=(2, 2)),
        "Split": OpSpec(_split, inputs=(1, 2), outputs=(1, MANY)),
        "DepthSplit": OpSpec(_split, inputs=(1, 2), outputs=(1, MANY)),
        "Slice": OpSpec(_slice, inputs=(1, 3)),
        "Tile": OpSpec(_tile, inputs=(1, 3)),
        "NumpyTile": OpSpec(_numpy_tile, inputs=(2, 2)),
        "Expand": OpSpec(_expand, inputs=(2, 2)),
        "Gather": OpSpec(_gather, inputs=(2, 2)),
        "BatchGather": OpSpec(_batch_gather, inputs=(2, 2)),
        "ChannelShuffle": OpSpec(_channel_shuffle),
    }
)
