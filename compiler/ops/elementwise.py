"""All elementwise operators: of one and of two inputs, and where, cast and prelu. Any may stand in a pointwise expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.ops import binary, unary
from cortado.compiler.ops.checks import FLOATS, INTS, NUMBERS, arity, broadcast_shapes, one_of, require, same_dtype, show
from cortado.compiler.ops.record import Attrs, Op
from cortado.compiler.types import NUMPY_DTYPE, TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
CASTABLE = NUMBERS | {"bool"}


def _infer_where(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 3)
    one_of(types[0].dtype, frozenset({"bool"}), "the condition")
    dtype = same_dtype(types[1:])
    return (TensorType(broadcast_shapes([t.shape for t in types]), dtype),)


def _where(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.where(*arrays),)


def _infer_prelu(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, slope = types
    one_of(same_dtype(types), FLOATS, "an input")
    channels = x.shape[-1] if x.shape else 1
    require(
        slope.shape in ((channels,), (1,)),
        f"the slope has shape {show(slope.shape)}; it must be [{channels}], one for each channel, or [1]",
    )
    return (x,)


def _prelu(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, slope = arrays
    below = x * slope if x.ndim else x * slope[0]
    return (np.asarray(np.where(x > 0, x, below)),)


def _infer_cast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    one_of(types[0].dtype, CASTABLE)
    one_of(attrs["dtype"], CASTABLE, "the type to cast to")
    return (TensorType(types[0].shape, attrs["dtype"]),)


def cast_array(x: np.ndarray, dtype: str) -> np.ndarray:
    """Floats to integers truncate towards zero; integers to narrower ones keep the low bits; to bool is: not equal to zero.

    Floats beyond the integer type's range are undefined in compiled code; here they saturate, and NaN gives 0.
    """
    to = NUMPY_DTYPE[dtype]
    if dtype == "bool":
        return x != 0
    if x.dtype.kind == "f" and dtype in INTS:
        limits = np.iinfo(to)
        whole = np.trunc(np.where(np.isnan(x), 0, x))
        inside = np.where((whole > limits.min) & (whole < limits.max), whole, 0).astype(to)
        return np.where(whole >= limits.max, to.type(limits.max), np.where(whole <= limits.min, to.type(limits.min), inside))
    return x.astype(to)


def _cast(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.asarray(cast_array(arrays[0], attrs["dtype"])),)


OPS: tuple[Op, ...] = (
    *unary.OPS,
    *binary.OPS,
    Op("where", _infer_where, _where, exact=True, portable=True),
    Op("prelu", _infer_prelu, _prelu, portable=True),
    Op("cast", _infer_cast, _cast, {"dtype": "the type to convert to"}, exact=True, portable=True),
)

ELEMENTWISE: Mapping[str, Op] = MappingProxyType({op.name: op for op in OPS})
UNARY: Mapping[str, Op] = MappingProxyType({op.name: op for op in unary.OPS})
