"""Operators of Caffe2 that change a tensor's shape or ask for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FIRST, FLOAT32, Call, OpSpec, integers
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]
MAX_RANK = 16


def _reshape(call: Call) -> Results:
    """0 keeps the input's axis, one -1 is inferred. The second output is the old shape."""
    if (len(call.inputs) == 2) == call.args.has("shape"):
        raise FormatError("the new shape must be given once: as argument 'shape' or as the second input")
    old_type = np.dtype(np.int64)
    if len(call.inputs) == 2:
        call.dtype(frozenset({"int32", "int64"}), 1)
        old_type = call.inputs[1].type.numpy
        wanted = integers(call.known(1, "new shape"))
    else:
        wanted = call.args.wide_integers("shape")
    old = call.x.shape
    result = call.as_output(call.x, _resolved(wanted, old))
    return (result, call.constant(np.array(old, old_type), 1))


def _resolved(wanted: Sequence[int], old: tuple[int, ...]) -> tuple[int, ...]:
    if len(wanted) > MAX_RANK or any(d < -1 for d in wanted) or wanted.count(-1) > 1:
        raise ShapeError(
            f"the new shape {show(wanted)} is impossible: at most {MAX_RANK} sizes, at most one -1, nothing below it"
        )
    if any(d == 0 and i >= len(old) for i, d in enumerate(wanted)):
        raise ShapeError(f"the new shape {show(wanted)} keeps (0) an axis that the input {show(old)} does not have")
    shape = [old[i] if d == 0 else d for i, d in enumerate(wanted)]
    size, known = math.prod(old), math.prod(d for d in shape if d != -1)
    if -1 in shape:
        if known == 0:
            raise ShapeError(f"the -1 in the new shape {show(wanted)} cannot be inferred: the other sizes multiply to 0")
        shape[shape.index(-1)] = size // known
    if math.prod(shape) != size:
        raise ShapeError(f"the input {show(old)} has {size} elements and cannot become {show(wanted)}")
    return tuple(shape)


def _resize_like(call: Call) -> Results:
    """The first input's elements in the second input's shape."""
    shape = call.inputs[1].shape
    if call.x.type.size != math.prod(shape):
        raise ShapeError(f"'{call.operator.inputs[0]}' {show(call.x.shape)} cannot take the shape {show(shape)}")
    return (call.as_output(call.x, shape),)


def _flatten(call: Call) -> Results:
    """Two axes: those before `axis`, and the rest."""
    axis, shape = call.args.integer("axis", 1), call.x.shape
    if not 0 <= axis <= len(shape):
        raise ShapeError(f"argument 'axis' is {axis}; the input {show(shape)} allows 0 to {len(shape)}")
    return (call.as_output(call.x, (math.prod(shape[:axis]), math.prod(shape[axis:]))),)


def _flatten_to_vec(call: Call) -> Results:
    if not call.x.shape:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' has no axes; it needs at least one")
    return (call.as_output(call.x, (call.x.type.size,)),)


def _dims(call: Call) -> tuple[int, ...]:
    """Argument `dims`: sorted, each once."""
    dims = tuple(sorted(set(call.args.integers("dims"))))
    if not dims:
        raise FormatError("argument 'dims' must be given")
    if dims[0] < 0:
        raise FormatError(f"argument 'dims' is {show(dims)}; axes are counted from 0")
    return dims


def _expand_dims(call: Call) -> Results:
    """dims are positions in the result."""
    dims, shape = _dims(call), list(call.x.shape)
    if dims[-1] >= len(shape) + len(dims):
        raise ShapeError(f"argument 'dims' is {show(dims)}; the result has only {len(shape) + len(dims)} axes")
    for axis in dims:
        shape.insert(axis, 1)
    return (call.as_output(call.x, shape),)


def _squeeze(call: Call) -> Results:
    dims, shape = _dims(call), call.x.shape
    if dims[-1] >= len(shape) or any(shape[axis] != 1 for axis in dims):
        raise ShapeError(f"argument 'dims' is {show(dims)}; each must name an axis of size 1 of the input {show(shape)}")
    return (call.as_output(call.x, [size for axis, size in enumerate(shape) if axis not in dims]),)


def _merge_dim(call: Call) -> Results:
    """The first two axes become one."""
    shape = call.x.shape
    if len(shape) < 2:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(shape)}; MergeDim needs at least 2 axes")
    return (call.as_output(call.x, (shape[0] * shape[1], *shape[2:])),)


def _prepend_dim(call: Call) -> Results:
    """The first axis becomes two, the first of them `dim_size` long."""
    size, shape = call.args.integer("dim_size", 0), call.x.shape
    if size < 1 or not shape or shape[0] % size:
        raise ShapeError(f"argument 'dim_size' is {size}; it must divide the first axis of the input {show(shape)}")
    return (call.as_output(call.x, (size, shape[0] // size, *shape[1:])),)


def _transpose(call: Call) -> Results:
    rank = len(call.x.shape)
    axes = call.args.integers("axes") if call.args.has("axes") else tuple(reversed(range(rank)))
    if sorted(axes) != list(range(rank)):
        raise ShapeError(f"argument 'axes' is {show(axes)}; it must name each axis of the input {show(call.x.shape)} once")
    return _permuted(call, axes)


def _permuted(call: Call, perm: Sequence[int]) -> Results:
    perm = tuple(perm)
    if perm == tuple(range(len(perm))):
        return (call.x,)
    if call.x.constant is not None:
        return (call.constant(call.x.constant.transpose(perm)),)
    return (call.node("transpose", (call.x,), {"perm": perm}),)


def _to_channels_last(call: Call) -> Results:
    rank = _image_rank(call)
    return _permuted(call, (0, *range(2, rank), 1))


def _to_channels_first(call: Call) -> Results:
    rank = _image_rank(call)
    return _permuted(call, (0, rank - 1, *range(1, rank - 1)))


def _image_rank(call: Call) -> int:
    call.dtype(FLOAT32)
    rank = len(call.x.shape)
    if rank < 2:
        raise ShapeError(
            f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} needs at least 2 axes"
        )
    return rank


def _shape(call: Call) -> Results:
    """The shape, or the sizes of the given axes."""
    shape = call.x.shape
    axes = call.args.integers("axes")
    chosen = [shape[call.axis(axis, len(shape), "axes")] for axis in axes] if axes else list(shape)
    return (call.constant(np.array(chosen, np.int64)),)


def _size(call: Call) -> Results:
    return (call.constant(np.array(call.x.type.size, np.int64)),)


def _is_empty(call: Call) -> Results:
    return (call.constant(np.array(call.x.type.size == 0)),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "Reshape": OpSpec(_reshape, inputs=(1, 2), outputs=(2, 2), in_place=FIRST),
        "ResizeLike": OpSpec(_resize_like, inputs=(2, 2)),
        "Flatten": OpSpec(_flatten),
        "FlattenToVec": OpSpec(_flatten_to_vec),
        "ExpandDims": OpSpec(_expand_dims, in_place=FIRST),
        "Squeeze": OpSpec(_squeeze, in_place=FIRST),
        "MergeDim": OpSpec(_merge_dim, in_place=FIRST),
        "PrependDim": OpSpec(_prepend_dim, in_place=FIRST),
        "Transpose": OpSpec(_transpose),
        "NCHW2NHWC": OpSpec(_to_channels_last),
        "NHWC2NCHW": OpSpec(_to_channels_first),
        "Shape": OpSpec(_shape),
        "Size": OpSpec(_size),
        "IsEmpty": OpSpec(_is_empty),
    }
)
