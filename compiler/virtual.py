"""Virtual instructions: what a target's rows may provide. Each has its meaning (numpy) and a portable fallback in the kernel language.

The meaning is the definition: the interpreter runs it, the tests compare every row with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cortado.compiler.lang import Type

if TYPE_CHECKING:
    from cortado.compiler.builder import KernelBuilder, Val


@dataclass(frozen=True)
class Virtual:
    """result: argument types -> result type. meaning: numpy values of those types -> value. fallback: records the portable form."""

    name: str
    result: Callable[..., Type]
    meaning: Callable[..., Any]
    fallback: Callable[..., Val]


def _fma_meaning(a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, for float32.

    The product is exact in float64. Where the rounded float64 sum looks like a tie between two float32 numbers but is not
    exact, it is moved to the odd neighbour on the true sum's side before the second rounding (round to odd: Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = np.asarray(product + c)
    bits = total.view(np.int64)
    close = (bits & 0xFFFFFFF) == 0
    if close.any():
        part = total - product
        error = (product - (total - part)) + (c - part)
        step = np.where((error > 0) == (total > 0), 1, -1)
        total = np.where(close & (np.abs(error) > 0), bits + step, bits).view(np.float64)
    return total.astype(np.float32)[()]


def _fma_fallback(k: KernelBuilder, a: Val, b: Val, c: Val) -> Val:
    return a * b + c


def _abs_fallback(k: KernelBuilder, a: Val) -> Val:
    bits, top = _bits_of(a)
    return k.convert(k.convert(a, bits, "bitcast") & ((1 << top) - 1), a.type, "bitcast")


def _sqrt_fallback(k: KernelBuilder, a: Val) -> Val:
    """The correctly rounded root, one bit of it a round: root and remainder by long division (shift and subtract) on integers."""
    digits, bits = {"f32": (23, Type("i32", a.type.lanes)), "f64": (52, Type("i64", a.type.lanes))}[a.type.scalar]
    top = 8 * {"i32": 4, "i64": 8}[bits.scalar] - 1
    bias = (1 << (top - digits - 1)) - 1
    tiny = a < 2.0 ** (1 - bias)
    whole = k.convert(k.select(tiny, a * 2.0 ** (digits + (digits & 1)), a), bits, "bitcast")
    exponent = k.binary("lshr", whole, digits) - bias
    mantissa = (whole & ((1 << digits) - 1)) | (1 << digits)
    left = mantissa << ((exponent & 1) + 1)
    root, total = k.zero(bits), k.zero(bits)
    for step in range(digits + 2):
        bit = 1 << (digits + 1 - step)
        trial = total + bit
        taken = trial <= left
        total = k.select(taken, trial + bit, total)
        left = k.select(taken, left - trial, left) << 1
        root = k.select(taken, root + bit, root)
    rounded = k.binary("lshr", root + k.select(k.compare("eq", left, 0), 0, root & 1), 1)
    power = (exponent >> 1) - k.select(tiny, k.const((digits + 1) >> 1, bits), k.zero(bits))
    result = k.convert(rounded + ((power + (bias - 1)) << digits), a.type, "bitcast")
    ordinary = (a > 0.0) & (a < float("inf"))
    negative = k.select(a < 0.0, k.const(float("nan"), a.type), a)
    return k.select(ordinary, result, negative)


def _signed_like(k: KernelBuilder, magnitude: Val, sign_of: Val) -> Val:
    bits, top = _bits_of(sign_of)
    sign = k.convert(sign_of, bits, "bitcast") & -(1 << top)
    return k.convert(k.convert(magnitude, bits, "bitcast") | sign, sign_of.type, "bitcast")


def _bits_of(a: Val) -> tuple[Type, int]:
    """The integer type of the same width, and the number of its top bit."""
    scalar, top = {"f32": ("i32", 31), "f64": ("i64", 63)}[a.type.scalar]
    return Type(scalar, a.type.lanes), top


def _round_even_fallback(k: KernelBuilder, a: Val) -> Val:
    """Adding and taking away the number at which fractions end rounds to nearest even; beyond it numbers are whole already."""
    whole_from = 2.0 ** {"f32": 23, "f64": 52}[a.type.scalar]
    magnitude = _abs_fallback(k, a)
    rounded = _signed_like(k, (magnitude + whole_from) - whole_from, a)
    return k.select(magnitude < whole_from, rounded, a)


def _floor_fallback(k: KernelBuilder, a: Val) -> Val:
    near = _round_even_fallback(k, a)
    return k.select(near > a, near - 1.0, near)


def _ceil_fallback(k: KernelBuilder, a: Val) -> Val:
    """The sign is put back because -0.7 gives -0.0."""
    near = _round_even_fallback(k, a)
    return _signed_like(k, k.select(near < a, near + 1.0, near), a)


def _leading_zeros_meaning(a: Any) -> Any:
    """frexp's exponent of a whole number is the number of its bits."""
    bits = np.frexp(np.asarray(a).view(np.uint32).astype(np.float64))[1]
    return (32 - bits).astype(np.int32)[()]


def _leading_zeros_fallback(k: KernelBuilder, a: Val) -> Val:
    """Halving: while the upper half is empty, count it and look at the lower one."""
    count = k.zero(a.type)
    for half in (16, 8, 4, 2, 1):
        empty = k.compare("ult", a, 1 << (32 - half))
        count = k.select(empty, count + half, count)
        a = k.select(empty, a << half, a)
    return k.select(a < 0, count, count + 1)


def _mul_high_meaning(a: Any, b: Any) -> Any:
    product = np.asarray(a).view(np.uint32).astype(np.uint64) * np.asarray(b).view(np.uint32)
    return (product >> np.uint64(32)).astype(np.uint32).view(np.int32)[()]


def _mul_high_fallback(k: KernelBuilder, a: Val, b: Val) -> Val:
    """Products of halves, their sums carried upward: none of them can overflow."""
    (a_low, a_high), (b_low, b_high) = ((x & 0xFFFF, k.binary("lshr", x, 16)) for x in (a, b))
    middle = a_high * b_low + k.binary("lshr", a_low * b_low, 16)
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + k.binary("lshr", middle, 16) + k.binary("lshr", other, 16)


def _same(a: Type, *_: Type) -> Type:
    return a


_LIST = (
    Virtual("fma", _same, _fma_meaning, _fma_fallback),  # a * b + c, rounded once where the target has it
    Virtual("abs", _same, np.abs, _abs_fallback),
    Virtual("sqrt", _same, np.sqrt, _sqrt_fallback),  # correctly rounded
    Virtual("round_even", _same, np.rint, _round_even_fallback),  # to the nearest whole number, ties to the even one
    Virtual("floor", _same, np.floor, _floor_fallback),
    Virtual("ceil", _same, np.ceil, _ceil_fallback),
    Virtual("leading_zeros", _same, _leading_zeros_meaning, _leading_zeros_fallback),  # of i32; 32 of zero
    Virtual("mul_high", _same, _mul_high_meaning, _mul_high_fallback),  # upper half of the unsigned product of two i32
)

VIRTUALS: Mapping[str, Virtual] = {v.name: v for v in _LIST}
