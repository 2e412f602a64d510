"""Elementwise operators of two inputs of one type, with numpy's broadcasting in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cortado.compiler.ops.checks import FLOATS, INTS, NUMBERS, arity, broadcast_shapes, one_of, same_dtype
from cortado.compiler.ops.record import Attrs, Infer, Op
from cortado.compiler.types import TensorType

Function = Callable[[np.ndarray, np.ndarray], Any]
BOOL = frozenset({"bool"})


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integers truncate towards zero, as in C; by zero they give 0."""
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    remainder = a - quotient * b
    return quotient + ((remainder != 0) & ((a < 0) != (b < 0)) & (b != 0))


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """With the sign of a, as C's %; by zero it gives a."""
    return a - _divide(a, b) * b


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.power(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)


def _infer(allowed: frozenset[str], result: str | None) -> Infer:
    def infer(types: Any, attrs: Attrs) -> Any:
        arity(types, 2)
        one_of(same_dtype(types), allowed, "an input")
        shape = broadcast_shapes([t.shape for t in types])
        return (TensorType(shape, result or types[0].dtype),)

    return infer


def _binary(
    name: str,
    function: Function,
    allowed: frozenset[str] = NUMBERS,
    result: str | None = None,
    exact: bool = False,
    portable: bool = True,
) -> Op:
    def reference(arrays: Any, attrs: Attrs) -> Any:
        a, b = arrays
        return (np.asarray(function(a, b)).astype(np.dtype(result or a.dtype), copy=False),)

    return Op(name, _infer(allowed, result), reference, {}, exact, portable)


def _comparison(name: str, function: Function, allowed: frozenset[str] = NUMBERS) -> Op:
    return _binary(name, function, allowed, "bool", exact=True)


OPS: tuple[Op, ...] = (
    _binary("add", lambda a, b: a + b),
    _binary("sub", lambda a, b: a - b),
    _binary("mul", lambda a, b: a * b),
    _binary("div", _divide),
    _binary("remainder", _remainder, INTS, exact=True),
    # As the kernel language's max and min: the second where either is NaN.
    _binary("maximum", lambda a, b: np.where(a > b, a, b), exact=True),
    _binary("minimum", lambda a, b: np.where(a < b, a, b), exact=True),
    _binary("pow", _power, FLOATS, portable=False),
    _comparison("eq", lambda a, b: a == b, NUMBERS | BOOL),
    _comparison("ne", lambda a, b: a != b, NUMBERS | BOOL),
    _comparison("lt", lambda a, b: a < b),
    _comparison("le", lambda a, b: a <= b),
    _comparison("gt", lambda a, b: a > b),
    _comparison("ge", lambda a, b: a >= b),
    _binary("logical_and", lambda a, b: a & b, BOOL, exact=True),
    _binary("logical_or", lambda a, b: a | b, BOOL, exact=True),
    _binary("logical_xor", lambda a, b: a ^ b, BOOL, exact=True),
    _binary("bitwise_and", lambda a, b: a & b, INTS | BOOL, exact=True),
    _binary("bitwise_or", lambda a, b: a | b, INTS | BOOL, exact=True),
    _binary("bitwise_xor", lambda a, b: a ^ b, INTS | BOOL, exact=True),
)
