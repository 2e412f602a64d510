"""float32 arithmetic in integers, for cores without a float unit: IEEE 754 binary32, round to nearest even, subnormals included.

Every function takes and gives bit patterns (i32, any number of lanes) and records straight code without branches. A NaN result is
some quiet NaN. The names follow IEEE 754: a number is sign, biased exponent (field of 8 bits) and fraction (23 bits); its
significand is the fraction with the leading one, which subnormal numbers lack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cortado.compiler.lang import I32

if TYPE_CHECKING:
    from cortado.compiler.builder import KernelBuilder, Val

INFINITY, QUIET_NAN = 0x7F800000, 0x7FC00000
_SIGN, _MAGNITUDE, _FRACTION, _ONE = 0x80000000, 0x7FFFFFFF, 0x007FFFFF, 0x00800000
_BIAS = 127


def pattern(number: float) -> int:
    """Bits of the nearest float32."""
    with np.errstate(over="ignore"):
        return int(np.float32(number).view(np.uint32))


def add(k: KernelBuilder, a: Val, b: Val) -> Val:
    """The significand of the smaller operand is aligned, with three bits below the last and everything lost collected in the lowest."""
    swap = k.compare("ult", a & _MAGNITUDE, b & _MAGNITUDE)
    large, small = k.select(swap, b, a), k.select(swap, a, b)
    exponent, significand = _aligned(k, large)
    small_exponent, small_significand = _aligned(k, small)
    other = _shift_right_sticky(k, small_significand << 3, exponent - small_exponent)
    opposite = (a ^ b) < 0
    total = (significand << 3) + k.select(opposite, 0 - other, other)
    carried = k.compare("uge", total, 1 << 27)
    total = k.select(carried, k.binary("lshr", total, 1) | (total & 1), total)
    exponent = k.select(carried, exponent + 1, exponent)
    up = k.min(k.virtual("leading_zeros", total) - 5, exponent - 1)
    total, exponent = total << up, exponent - up
    rounded = k.binary("lshr", total + 3 + (k.binary("lshr", total, 3) & 1), 3)
    packed = k.binary("umin", ((exponent - 1) << 23) + rounded, INFINITY)
    cancelled = opposite & k.compare("eq", total, 0)
    result = k.select(cancelled, k.zero(a.type), packed | (large & _SIGN))
    # large is the operand of greater magnitude: the NaN or infinity, if there is one.
    both_infinite = opposite & k.compare("eq", small & _MAGNITUDE, INFINITY)
    special = k.select(_is_nan(k, large) | both_infinite, k.const(QUIET_NAN, a.type), large)
    return k.select(k.compare("uge", large & _MAGNITUDE, INFINITY), special, result)


def sub(k: KernelBuilder, a: Val, b: Val) -> Val:
    return add(k, a, b ^ _SIGN)


def mul(k: KernelBuilder, a: Val, b: Val) -> Val:
    sign = (a ^ b) & _SIGN
    (exponent_a, x), (exponent_b, y) = _normalized(k, a), _normalized(k, b)
    x, y = x << 8, y << 8
    high, low = k.virtual("mul_high", x, y), x * y
    low_half = high >= 0  # the product of two numbers in [1, 2) is below 2
    exponent = exponent_a + exponent_b - _BIAS + k.select(low_half, k.zero(a.type), k.const(1, a.type))
    high = k.select(low_half, (high << 1) | k.binary("lshr", low, 31), high)
    lost = k.select(low_half, low << 1, low)
    result = sign | _pack(k, exponent, high | _one_if(k, k.compare("ne", lost, 0)))
    zero, infinite = _is_zero(k, a) | _is_zero(k, b), _is_infinite(k, a) | _is_infinite(k, b)
    result = k.select(infinite, sign | INFINITY, k.select(zero, sign, result))
    return k.select(_is_nan(k, a) | _is_nan(k, b) | (zero & infinite), k.const(QUIET_NAN, a.type), result)


def div(k: KernelBuilder, a: Val, b: Val) -> Val:
    """Long division, one bit of the quotient a round; the remainder only matters as zero or not."""
    sign = (a ^ b) & _SIGN
    (exponent_a, x), (exponent_b, y) = _normalized(k, a), _normalized(k, b)
    below = k.compare("ult", x, y)
    exponent = exponent_a - exponent_b + _BIAS - _one_if(k, below)
    rest = k.select(below, x << 1, x)

    def bit(_: Val, quotient: Val, left: Val) -> tuple[Val, Val]:
        fits = k.compare("uge", left, y)
        return (quotient << 1) | _one_if(k, fits), k.select(fits, left - y, left) << 1

    quotient, rest = k.loop(0, 26, 1, bit, (k.zero(a.type), rest))
    result = sign | _pack(k, exponent, (quotient << 6) | _one_if(k, k.compare("ne", rest, 0)))
    zero_a, zero_b, infinite_a, infinite_b = _is_zero(k, a), _is_zero(k, b), _is_infinite(k, a), _is_infinite(k, b)
    result = k.select(infinite_a | zero_b, sign | INFINITY, k.select(zero_a | infinite_b, sign, result))
    undefined = (zero_a & zero_b) | (infinite_a & infinite_b) | _is_nan(k, a) | _is_nan(k, b)
    return k.select(undefined, k.const(QUIET_NAN, a.type), result)


def compare(k: KernelBuilder, predicate: str, a: Val, b: Val) -> Val:
    """Ordered comparisons, except ne. As signed integers, sign and magnitude are in order once negative ones are turned around."""
    ordered = k.compare("ule", a & _MAGNITUDE, INFINITY) & k.compare("ule", b & _MAGNITUDE, INFINITY)
    if predicate == "ne":
        return (ordered & k.compare("eq", _key(k, a), _key(k, b))) ^ 1
    return ordered & k.compare(predicate, _key(k, a), _key(k, b))


def from_unsigned(k: KernelBuilder, a: Val) -> Val:
    up = k.virtual("leading_zeros", a)
    return k.select(k.compare("eq", a, 0), a, _pack(k, _BIAS + 31 - up, a << (up & 31)))


def from_signed(k: KernelBuilder, a: Val) -> Val:
    return (a & _SIGN) | from_unsigned(k, k.select(a < 0, 0 - a, a))


def to_unsigned(k: KernelBuilder, a: Val) -> Val:
    """Toward zero. Unspecified outside the range, as in the language."""
    exponent = k.binary("lshr", a & _MAGNITUDE, 23)
    down = _BIAS + 31 - exponent
    whole = k.binary("lshr", ((a & _FRACTION) | _ONE) << 8, down & 31)
    return k.select(exponent < _BIAS, k.zero(a.type), whole)


def to_signed(k: KernelBuilder, a: Val) -> Val:
    magnitude = to_unsigned(k, a)
    return k.select(a < 0, 0 - magnitude, magnitude)


FUNCTIONS: Mapping[str, Callable[..., Val]] = {
    "add": add, "sub": sub, "mul": mul, "div": div, "sitofp": from_signed, "uitofp": from_unsigned, "fptosi": to_signed,
    "fptoui": to_unsigned,
}  # fmt: skip


def _one_if(k: KernelBuilder, condition: Val) -> Val:
    return k.convert(condition, I32.with_lanes(condition.type.lanes), "zext")


def _is_nan(k: KernelBuilder, a: Val) -> Val:
    return k.compare("ugt", a & _MAGNITUDE, INFINITY)


def _is_infinite(k: KernelBuilder, a: Val) -> Val:
    return k.compare("eq", a & _MAGNITUDE, INFINITY)


def _is_zero(k: KernelBuilder, a: Val) -> Val:
    return k.compare("eq", a & _MAGNITUDE, 0)


def _key(k: KernelBuilder, a: Val) -> Val:
    return k.select(a < 0, k.const(_SIGN, a.type) - a, a)


def _aligned(k: KernelBuilder, a: Val) -> tuple[Val, Val]:
    """Exponent field and significand; subnormals are read with the field's value 1 and no leading one."""
    field, fraction = k.binary("lshr", a & _MAGNITUDE, 23), a & _FRACTION
    normal = k.compare("ne", field, 0)
    return k.select(normal, field, 1), k.select(normal, fraction | _ONE, fraction)


def _normalized(k: KernelBuilder, a: Val) -> tuple[Val, Val]:
    """Exponent field, continued below 1 for subnormals, and a significand with its leading one. Zero gives anything."""
    field, significand = _aligned(k, a)
    up = k.virtual("leading_zeros", significand) - 8
    return field - up, significand << (up & 31)


def _shift_right_sticky(k: KernelBuilder, a: Val, down: Val) -> Val:
    """a >> down (0 or more), the lowest bit also set where a bit was lost."""
    within = k.binary("umin", down, 31)
    kept = k.binary("lshr", a, within)
    return kept | _one_if(k, k.compare("ne", kept << within, a))


def _pack(k: KernelBuilder, exponent: Val, significand: Val) -> Val:
    """Magnitude of the significand, whose leading one is bit 31 (the lowest bit: everything below it), rounded to 24 bits.

    The leading one is added to the exponent field, so a subnormal that rounds up to a normal number needs no case of its own.
    """
    significand = _shift_right_sticky(k, significand, k.max(1 - exponent, 0) + 1)
    rounded = k.binary("lshr", significand + 0x3F + (k.binary("lshr", significand, 7) & 1), 7)
    field = k.max(exponent - 1, 0)
    return k.binary("umin", (k.binary("umin", field, 0xFF) << 23) + rounded, INFINITY)
