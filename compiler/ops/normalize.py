"""Normalizations: batch, local response, softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import FLOATS, arity, axis_in, one_of, same_dtype, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.sums import tree_sum
from cortado.compiler.ops.unary import exp
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]


def _infer_batch_norm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 5)
    x = types[0]
    one_of(same_dtype(types), FLOATS, "an input")
    require(len(x.shape) >= 1, "the input has no axes; the last one must be the channels")
    for kind, what in zip(types[1:], ("scale", "bias", "mean", "variance"), strict=True):
        require(kind.shape == x.shape[-1:], f"the {what} has shape {show(kind.shape)}; the input has {x.shape[-1]} channels")
    require(attrs["epsilon"] >= 0, f"epsilon={attrs['epsilon']} must not be negative")
    return (x,)


def _batch_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, scale, bias, mean, variance = arrays
    factor = scale / np.sqrt(variance + x.dtype.type(attrs["epsilon"]))
    return ((x - mean) * factor + bias,)


def _infer_lrn(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    one_of(x.dtype, FLOATS)
    require(len(x.shape) >= 1, "the input has no axes; the last one must be the channels")
    size = attrs["size"]
    require(isinstance(size, int) and size >= 1 and size % 2 == 1, f"size={size} must be an odd whole number of at least 1")
    return (x,)


def _lrn(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """x * (bias + alpha / size * sum of x^2 over the `size` channels around)^-beta, as Caffe2's LRN."""
    (x,) = arrays
    channels, half = x.shape[-1], attrs["size"] // 2
    squares = x * x
    total = np.zeros_like(x)
    for shift in range(-min(half, channels - 1), min(half, channels - 1) + 1):
        first, stop = max(0, -shift), min(channels, channels - shift)
        total[..., first:stop] += squares[..., first + shift : stop + shift]
    scale = x.dtype.type(attrs["bias"]) + x.dtype.type(attrs["alpha"] / attrs["size"]) * total
    return (x * np.power(scale.astype(np.float64), -attrs["beta"]).astype(x.dtype),)


def _infer_softmax(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    one_of(types[0].dtype, FLOATS)
    axis_in(attrs["axis"], len(types[0].shape))
    return (types[0],)


def _softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    if x.size == 0:
        return (x.copy(),)
    axis = attrs["axis"]
    powers = exp(x - x.max(axis=axis, keepdims=True))
    return (powers / np.expand_dims(tree_sum(powers, (axis,)), axis),)


OPS: tuple[Op, ...] = (
    Op("batch_norm", _infer_batch_norm, _batch_norm, {"epsilon": "added to the variance"}, portable=True),
    Op(
        "lrn",
        _infer_lrn,
        _lrn,
        {
            "size": "channels summed over, odd",
            "alpha": "factor of the sum, divided by size",
            "beta": "exponent",
            "bias": "added to the sum",
        },
    ),
    Op("softmax", _infer_softmax, _softmax, {"axis": "the one axis normalized over"}),
)
