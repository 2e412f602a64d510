"""Virtual instructions: what a target's rows may provide. Each has its meaning (numpy) and a portable fallback in the kernel language.

The meaning is the definition: the interpreter runs it, the tests compare every row with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cortado.compiler import dots
from cortado.compiler.evaluate import from_bf16, to_bf16
from cortado.compiler.lang import I8, INDEX, VOID, Type

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


def _round_i32_meaning(a: Any) -> Any:
    """Out of range: the smallest number, as x86-64 has it; elsewhere it may be another one."""
    whole = np.rint(np.asarray(a, dtype=np.float64))
    return np.where((whole >= -(2.0**31)) & (whole < 2.0**31), whole, -(2.0**31)).astype(np.int32)[()]


def _round_i32_fallback(k: KernelBuilder, a: Val) -> Val:
    return k.convert(k.virtual("round_even", a), Type("i32", a.type.lanes), "fptosi")


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


def _narrow_meaning(low: int, high: int) -> Callable[..., Any]:
    def meaning(words: Any, zero: Any) -> Any:
        moved = np.asarray(words, dtype=np.int64) + zero
        return np.clip(moved, low, high).astype(np.uint8).view(np.int8)[()]

    return meaning


def _narrow_fallback(low: int, high: int) -> Callable[..., Val]:
    def fallback(k: KernelBuilder, words: Val, zero: Val) -> Val:
        return k.convert(k.max(k.min(words + zero, high), low), _byte(words.type), "trunc")

    return fallback


def _lookup_fallback(k: KernelBuilder, table: Val, index: Val) -> Val:
    """By way of memory, one after another."""
    entries, found = k.local("i8", TABLE.lanes), k.local("i8", index.type.lanes)
    k.store(entries, table)
    for lane in range(index.type.lanes):
        k.store(found, k.load(entries, I8, k.convert(k.lane(index, lane), INDEX, "zext")), lane)
    return k.load(found, index.type)


def _f16_to_f32_fallback(k: KernelBuilder, a: Val) -> Val:
    """Subnormal numbers get a leading one, which is taken away again as a number; float32 has room for what is left."""
    wide, single = Type("i32", a.type.lanes), Type("f32", a.type.lanes)
    bits = k.convert(a, wide, "zext")
    magnitude = bits & 0x7FFF
    moved = (magnitude << 13) + (112 << 23)
    tiny = k.convert(k.convert(moved + (1 << 23), single, "bitcast") - 2.0**-14, wide, "bitcast")
    number = k.select(magnitude < 0x400, tiny, k.select(magnitude < 0x7C00, moved, moved | 0x7F800000))
    return k.convert(number | ((bits & 0x8000) << 16), single, "bitcast")


def _f32_to_f16_fallback(k: KernelBuilder, a: Val) -> Val:
    """Subnormal results: adding 0.5 puts their last bit at the end of the float32 significand, so that the addition rounds there."""
    wide = Type("i32", a.type.lanes)
    bits = k.convert(a, wide, "bitcast")
    magnitude = bits & 0x7FFFFFFF
    rebiased = magnitude + (0xFFF - (112 << 23)) + (k.binary("lshr", magnitude, 13) & 1)
    normal = k.binary("umin", k.binary("lshr", rebiased, 13), 0x7C00)
    half = k.const(0.5, a.type)
    tiny = k.convert(k.convert(magnitude, a.type, "bitcast") + half, wide, "bitcast") - k.convert(half, wide, "bitcast")
    number = k.select(magnitude < 0x38800000, tiny, k.select(magnitude > 0x7F800000, 0x7E00, normal))
    return k.convert(number | (k.binary("lshr", bits, 16) & 0x8000), Type("i16", a.type.lanes), "trunc")


def _bf16_to_f32_fallback(k: KernelBuilder, a: Val) -> Val:
    return k.convert(k.convert(a, Type("i32", a.type.lanes), "zext") << 16, Type("f32", a.type.lanes), "bitcast")


def _f32_to_bf16_fallback(k: KernelBuilder, a: Val) -> Val:
    bits = k.convert(a, Type("i32", a.type.lanes), "bitcast")
    upper = k.binary("lshr", bits, 16)
    rounded = k.binary("lshr", bits + 0x7FFF + (upper & 1), 16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return k.convert(k.select(nan, upper | 0x40, rounded), Type("i16", a.type.lanes), "trunc")


TABLE = I8.with_lanes(256)


def _same(a: Type, *_: Type) -> Type:
    return a


def _word(a: Type) -> Type:
    return Type("i32", a.lanes)


def _byte(a: Type, *_: Type) -> Type:
    return Type("i8", a.lanes)


def _single(a: Type) -> Type:
    return Type("f32", a.lanes)


def _half(a: Type) -> Type:
    return Type("i16", a.lanes)


_LIST = (
    Virtual("fma", _same, _fma_meaning, _fma_fallback),  # a * b + c, rounded once where the target has it
    Virtual("abs", _same, np.abs, _abs_fallback),
    Virtual("sqrt", _same, np.sqrt, _sqrt_fallback),  # correctly rounded
    Virtual("round_even", _same, np.rint, _round_even_fallback),  # to the nearest whole number, ties to the even one
    Virtual("round_i32", _word, _round_i32_meaning, _round_i32_fallback),  # of f32, as round_even, to i32; in its range
    Virtual("floor", _same, np.floor, _floor_fallback),
    Virtual("ceil", _same, np.ceil, _ceil_fallback),
    Virtual("leading_zeros", _same, _leading_zeros_meaning, _leading_zeros_fallback),  # of i32; 32 of zero
    Virtual("mul_high", _same, _mul_high_meaning, _mul_high_fallback),  # upper half of the unsigned product of two i32
    Virtual("dot2", _same, dots.dot2_meaning, dots.dot2_fallback),  # acc + sum of two products of int16
    Virtual(
        "dot4", _same, dots.dot4_meaning, dots.dot4_fallback
    ),  # acc + sum of four products of a byte without and one with sign
    # Signed bytes as dot4 takes them, 128 more; and back.
    Virtual("flip_signs", _same, dots.flip_signs_meaning, dots.flip_signs_fallback),
    # clamp(words + zero) to the range of a byte with sign, or without; zero: -128 to 255, the sum within 32 bits.
    Virtual("narrow_i8", _byte, _narrow_meaning(-128, 127), _narrow_fallback(-128, 127)),
    Virtual("narrow_u8", _byte, _narrow_meaning(0, 255), _narrow_fallback(0, 255)),
    # Of a TABLE and indices i8: the entries at the indices, which are taken without sign.
    Virtual("lookup", lambda table, index: index, lambda table, index: table[np.asarray(index).view(np.uint8)], _lookup_fallback),
    # A wish: the cache line at the pointer, which may lie outside of all memory, comes to the second cache level. Nothing without a row.
    Virtual("prefetch", lambda a: VOID, lambda a: None, lambda k, a: a),
    # 16-bit floats as bit patterns (i16), rounded to nearest even.
    Virtual("f16_to_f32", _single, lambda a: a.view(np.float16).astype(np.float32), _f16_to_f32_fallback),
    Virtual("f32_to_f16", _half, lambda a: a.astype(np.float16).view(np.int16), _f32_to_f16_fallback),
    Virtual("bf16_to_f32", _single, lambda a: from_bf16(a.view(np.uint16)), _bf16_to_f32_fallback),
    Virtual("f32_to_bf16", _half, lambda a: to_bf16(a).view(np.int16), _f32_to_bf16_fallback),
)

VIRTUALS: Mapping[str, Virtual] = {v.name: v for v in _LIST}
