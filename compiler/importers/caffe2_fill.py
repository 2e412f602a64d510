"""Operators of Caffe2 that make tensors from arguments alone: the vocabulary of init nets."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import Call, OpSpec, integers
from cortado.compiler.ops.checks import MAX_BYTES, show
from cortado.errors import FormatError, ShapeError, UnsupportedError
from cortado.proto.caffe2 import DATA_TYPES, Operator

Results = Sequence[Value | None]
_MAX_AXES = 16
_PIECE = 1 << 20  # random words drawn at once


def _fill_shape(call: Call) -> tuple[int, ...]:
    """Argument `shape`, or the shape (with input_as_shape the contents) of the input followed by extra_shape."""
    if not call.inputs:
        return _checked(call.args.wide_integers("shape"))
    if call.args.has("shape"):
        raise FormatError("the shape is given twice: as argument 'shape' and by the input")
    extra = call.args.wide_integers("extra_shape")
    if not call.args.flag("input_as_shape"):
        return _checked((*call.x.shape, *extra))
    call.dtype(frozenset({"int64"}))
    if len(call.x.shape) != 1:
        raise ShapeError(f"the shape input '{call.operator.inputs[0]}' is {show(call.x.shape)}; it must have one axis")
    return _checked((*integers(call.known(0, "shape")), *extra))


def _checked(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) > _MAX_AXES:
        raise ShapeError(f"the shape has {len(shape)} axes; at most {_MAX_AXES} are supported")
    if any(not 0 <= size <= MAX_BYTES for size in shape):
        raise ShapeError(f"the shape {show(shape)} holds an impossible size")
    return tuple(shape)


def _reserve(call: Call, shape: tuple[int, ...], dtype: str) -> None:
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    call.scope.reserve(nbytes, f"'{call.operator.outputs[0]}', {dtype}{show(shape)},")


def declared_bytes(operator: Operator) -> int:
    """How large a tensor the operator makes from nothing but arguments; 0 where the file must hold its values."""
    if operator.type not in _DECLARING or operator.inputs or "shape" not in operator.args:
        return 0
    return 4 * math.prod(max(size, 0) for size in operator.args["shape"].ints.tolist())


def _given(dtype: str) -> Callable[[Call], Results]:
    """The values are in the file. dtype: what the operator's name says; GivenTensorFill may say otherwise by argument `dtype`."""

    def build(call: Call) -> Results:
        shape, kind = _fill_shape(call), dtype
        if call.operator.type == "GivenTensorFill" and call.args.has("dtype"):
            kind = _dtype(call.args.integer("dtype", 1))
        stored = call.args.raw("values")
        values = stored.floats if kind.startswith("float") else stored.ints
        if len(values) != math.prod(shape):
            raise ShapeError(
                f"argument 'values' holds {len(values)} {kind} values, but the shape {show(shape)} needs {math.prod(shape)}"
            )
        array = values != 0 if kind == "bool" else values.astype(kind, copy=False)
        return (call.constant(array.reshape(shape)),)

    return build


def _given_bytes(call: Call) -> Results:
    """uint8 from one string of bytes."""
    shape, strings = _fill_shape(call), call.args.raw("values").strings
    if len(strings) != 1 or len(strings[0]) != math.prod(shape):
        sizes = [len(text) for text in strings]
        raise ShapeError(
            f"argument 'values' must be one string of {math.prod(shape)} bytes for the shape {show(shape)}; found {sizes}"
        )
    return (call.constant(np.frombuffer(strings[0], np.uint8).reshape(shape)),)


def _given_strings(call: Call) -> Results:
    raise UnsupportedError("tensors of strings are not supported")


def _dtype(number: int) -> str:
    if number not in DATA_TYPES:
        raise FormatError(f"argument 'dtype' is {number}; that is no type of numbers")
    return DATA_TYPES[number]


def _constant_fill(call: Call) -> Results:
    """Without `dtype` the kind of `value` decides: a float gives float32, a whole number int64."""
    args = call.args
    if args.has("dtype"):
        dtype = _dtype(args.integer("dtype", 1))
    elif args.has("value") and not args.holds("value", "f"):
        dtype = "int64"
    else:
        dtype = "float32"
    value: float | int = args.number("value", 0.0) if dtype.startswith("float") else args.wide_integer("value", 0)
    if not dtype.startswith(("float", "bool")):
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise FormatError(f"argument 'value' is {value}, which does not fit {dtype}")
    shape = _fill_shape(call)
    _reserve(call, shape, dtype)
    return (call.constant(np.full(shape, value, dtype)),)


# --- seeded random fills ---


def words(name: str, count: int) -> Iterator[np.ndarray]:
    """uint64[count] in pieces: PCG64's raw stream, seeded by the blob's name. numpy promises that the stream never changes."""
    bits = np.random.PCG64([0, zlib.crc32(name.encode())])
    for at in range(0, count, _PIECE):
        yield bits.random_raw(min(_PIECE, count - at))


def uniform(raw: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the words' upper 53 bits."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def gaussian(raw: np.ndarray) -> np.ndarray:
    """float64 of mean 0 and variance 1: the sum of each word's four 16-bit quarters, so cut off at 3.46."""
    total = np.zeros(len(raw), np.int64)
    for shift in (0, 16, 32, 48):
        total += ((raw >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    return (total - 2 * 0xFFFF) / math.sqrt(4 * (65536**2 - 1) / 12)


Draw = Callable[[np.ndarray], np.ndarray]


def _random(prepare: Callable[[Call, tuple[int, ...]], Draw]) -> OpSpec:
    """A random fill: deterministic by the blob's name, with Caffe2's distribution but not its random bits.

    prepare: from the call and the shape to the function that turns random words into values.
    """

    def build(call: Call) -> Results:
        shape = _fill_shape(call)
        _reserve(call, shape, "float32")
        draw = prepare(call, shape)
        array = np.empty(math.prod(shape), np.float32)
        at = 0
        with np.errstate(over="ignore"):
            for raw in words(call.operator.outputs[0], len(array)):
                array[at : at + len(raw)] = draw(raw)
                at += len(raw)
        return (call.constant(array.reshape(shape)),)

    return OpSpec(build, inputs=(0, 1))


def _uniform_fill(call: Call, shape: tuple[int, ...]) -> Draw:
    low, high = call.args.number("min", 0.0), call.args.number("max", 1.0)
    if not low < high:
        raise FormatError(f"arguments 'min' and 'max' are {low} and {high}; min must be below max")
    return lambda raw: low + (high - low) * uniform(raw)


def _gaussian_fill(call: Call, shape: tuple[int, ...]) -> Draw:
    mean, std = call.args.number("mean", 0.0), call.args.number("std", 1.0)
    if not std > 0:
        raise FormatError(f"argument 'std' is {std}; it must be above 0")
    return lambda raw: mean + std * gaussian(raw)


def _xavier_fill(call: Call, shape: tuple[int, ...]) -> Draw:
    """Uniform within sqrt(3 / fan in), where fan in is the size divided by the first axis (Glorot and Bengio 2010)."""
    reach = math.sqrt(3 / _fan(call, shape, 0))
    return lambda raw: reach * (2 * uniform(raw) - 1)


def _msra_fill(call: Call, shape: tuple[int, ...]) -> Draw:
    """Gaussian of standard deviation sqrt(2 / fan out), where fan out is the size divided by the second axis (He et al. 2015)."""
    std = math.sqrt(2 / _fan(call, shape, 1))
    return lambda raw: std * gaussian(raw)


def _fan(call: Call, shape: tuple[int, ...], axis: int) -> float:
    if len(shape) <= axis or 0 in shape:
        raise ShapeError(f"{call.operator.type} needs a shape with an axis {axis} and no empty one, found {show(shape)}")
    return math.prod(shape) / shape[axis]


def _range(call: Call) -> Results:
    """stop; start, stop; or start, stop, step: each of one element. Of one dtype, which is the result's."""
    call.dtype(frozenset({"float32", "float64", "int32", "int64"}))
    values = [call.known(position, "bound").reshape(-1) for position in range(len(call.inputs))]
    if any(len(value) != 1 for value in values):
        raise ShapeError("every input must have exactly one element")
    bounds = [value[0].item() for value in values]
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1) if len(bounds) == 2 else tuple(bounds)
    if not all(math.isfinite(bound) for bound in (start, stop, step)):
        raise ShapeError(f"a range from {start} to {stop} in steps of {step} is impossible")
    if step == 0:
        raise ShapeError("the step is 0")
    length = max(0, math.ceil((stop - start) / step))
    dtype = call.x.type.dtype
    _reserve(call, (length,), dtype)
    return (call.constant(start + np.arange(length, dtype=dtype) * np.dtype(dtype).type(step)),)


_DECLARING = frozenset({"ConstantFill", "UniformFill", "GaussianFill", "XavierFill", "MSRAFill"})
_GIVEN = {
    "GivenTensorFill": "float32",
    "GivenTensorDoubleFill": "float64",
    "GivenTensorIntFill": "int32",
    "GivenTensorInt64Fill": "int64",
    "GivenTensorInt16Fill": "int16",
    "GivenTensorBoolFill": "bool",
}

OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        **{name: OpSpec(_given(dtype), inputs=(0, 1)) for name, dtype in _GIVEN.items()},
        "GivenTensorByteStringToUInt8Fill": OpSpec(_given_bytes, inputs=(0, 1)),
        "GivenTensorStringFill": OpSpec(_given_strings, inputs=(0, 1)),
        "ConstantFill": OpSpec(_constant_fill, inputs=(0, 1)),
        "UniformFill": _random(_uniform_fill),
        "GaussianFill": _random(_gaussian_fill),
        "XavierFill": _random(_xavier_fill),
        "MSRAFill": _random(_msra_fill),
        "Range": OpSpec(_range, inputs=(1, 3)),
    }
)
