"""Transcendental functions in the kernel language: straight-line code on f32 scalars or vectors, the same bits on all targets with the
same `fma` row, at most 2 ulp off over the whole range; subnormals, infinities and NaN are right.

Every polynomial is our own minimax fit: a linear program over 4000 Chebyshev nodes minimises the largest weighted error of the result
(weight: 1 / result, so relative), then coefficients are rounded to float32 one by one, lowest power first, and the others fitted again.

Largest errors found in ulp, native code against float64, with / without fma:

| exp | log | tanh | sigmoid | erf | sinh | cosh |
| --- | --- | --- | --- | --- | --- | --- |
| 1.03 / 1.01 | 0.86 / 0.86 | 1.52 / 1.52 | 1.97 / 1.97 | 1.18 / 1.22 | 1.61 / 1.61 | 1.47 / 1.47 |

exp, tanh, sigmoid, erf: over every argument where the result is neither constant nor the argument itself (tanh, erf: positive ones, as
they are odd); the others over every 8th (log) or 32nd float.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import inf, nan

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import Type

# ln 2 in two parts: 16 leading bits, so that n * LN2_HIGH is exact for |n| < 256 also without fma, and the rest
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860677e-06
LOG2_E = 1.44269502
ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest whole number in the low bits of the sum
ROUND_BITS = int(np.float32(ROUND).view(np.int32))
BIAS = 127  # of float32's exponent
SQRT_HALF_BITS = int(np.float32(0.5**0.5).view(np.int32))
# e^r = 1 + r + r^2 P(r), |r| <= 0.35; relative error 2^-28.1
EXP = (0.49999994, 0.166665167, 0.041668281, 0.00836924836, 0.00138207444)
# e^r - 1 = r + r^2 P(r), |r| <= 0.35; relative error 2^-31
EXPM1 = (0.5, 0.166666657, 0.0416664854, 0.00833354238, 0.00139332237, 0.000197661953)
# log(1 + f) = f - f^2 / 2 + f^3 P(f), sqrt(1/2) <= 1 + f <= sqrt(2); relative error 2^-27.3
LOG = (0.333333313, -0.250008255, 0.200012505, -0.166231915, 0.142011836, -0.131614551, 0.127661169, -0.0763633624)
# sinh(x) = x + x^3 P(x^2), |x| <= 1; relative error 2^-31.6
SINH = (0.166666672, 0.00833331048, 0.000198428941, 2.78223024e-06)
# tanh(x) = x + x^3 P(x^2), |x| <= 0.55; relative error 2^-29.7
TANH = (-0.333333164, 0.133325443, -0.0538475476, 0.021050714, -0.0062428494)
# erf(x) = x + x P(x^2), |x| <= 1; relative error 2^-29.3
ERF = (0.128379166, -0.37612626, 0.112835787, -0.0268533472, 0.0051871622, -0.00079978531, 7.80690389e-05)
# log(1 - erf(x)) = P(x), 1 <= x <= 3.95; error relative to erf 2^-35
ERFC = (0.000188468388, -1.12958026, -0.633216619, -0.108421721, 0.0252100062, -0.00420512399, 0.000441432203, -2.16934277e-05)


def exp(k: KernelBuilder, x: Val, halvings: int = 0) -> Val:
    """e^x / 2^halvings, as 2^n e^r with n whole and |r| <= ln 2 / 2; 2^n in two factors, as it may be infinite or subnormal."""
    x = k.min(k.const(90.5, x.type), k.max(k.const(-104.5, x.type), x))
    shifted, r = _reduce(k, x, 2 * BIAS - halvings)
    p = fma(k, polynomial(k, r, EXP), r * r, r) + 1.0
    exponents = bits_of(k, shifted)
    half = exponents >> 1
    return p * float_of(k, half << 23) * float_of(k, (exponents - half) << 23)


def exp_nonpositive(k: KernelBuilder, x: Val) -> Val:
    """e^x for x <= 0: made 2^24 times too large, so that no power of two in between is subnormal."""
    shifted, r = _reduce(k, k.max(k.const(-104.5, x.type), x), BIAS + 24)
    return (fma(k, polynomial(k, r, EXP), r * r, r) + 1.0) * _power(k, shifted) * 2.0**-24


def expm1_nonpositive(k: KernelBuilder, x: Val) -> Val:
    """e^x - 1 for x <= 0."""
    return _expm1(k, k.max(k.const(-18.0, x.type), x))


def log(k: KernelBuilder, x: Val) -> Val:
    """Natural logarithm: n ln 2 + log(m) with m in [sqrt(1/2), sqrt(2))."""
    tiny = x < 1.17549435e-38
    bits = bits_of(k, k.select(tiny, x * 8388608.0, x)) - SQRT_HALF_BITS
    n = k.convert(bits >> 23, x.type, "sitofp") - k.select(tiny, k.const(23, x.type), k.zero(x.type))
    f = float_of(k, (bits & 0x7FFFFF) + SQRT_HALF_BITS) - 1.0
    square = f * f
    small = fma(k, polynomial(k, f, LOG), square * f, n * LN2_LOW)
    result = fma(k, square, -0.5, small) + f
    result = fma(k, n, LN2_HIGH, result)
    result = k.select(x < inf, result, x)
    return k.select(x > 0.0, result, k.select(k.compare("eq", x, 0.0), k.const(-inf, x.type), k.const(nan, x.type)))


def tanh(k: KernelBuilder, x: Val) -> Val:
    """x + x^3 P(x^2) up to 0.55, then 1 - 2 e / (1 + e) with e = e^(-2|x|)."""
    magnitude = k.virtual("abs", x)
    square = x * x
    near = fma(k, polynomial(k, square, TANH), square * magnitude, magnitude)
    shifted, r = _reduce(k, k.max(k.const(-20.0, x.type), magnitude * -2.0), BIAS)
    e = (fma(k, polynomial(k, r, EXP), r * r, r) + 1.0) * _power(k, shifted)
    far = 1.0 - (e + e) / (e + 1.0)
    return with_sign(k, k.select(magnitude < 0.55, near, far), x)


def sinh(k: KernelBuilder, x: Val) -> Val:
    """x + x^3 P(x^2) up to 1, then e^|x| / 2 - e^-|x| / 2."""
    magnitude = k.virtual("abs", x)
    square = x * x
    near = fma(k, polynomial(k, square, SINH), square * x, x)
    e = exp(k, magnitude, 1)
    return k.select(magnitude < 1.0, near, with_sign(k, e - 0.25 / e, x))


def cosh(k: KernelBuilder, x: Val) -> Val:
    """e^|x| / 2 + e^-|x| / 2."""
    e = exp(k, k.virtual("abs", x), 1)
    return e + 0.25 / e


def sigmoid(k: KernelBuilder, x: Val) -> Val:
    """1 / (1 + e^-x), as e^x / (1 + e^x) for negative x so that the tail stays exact; what 1 + e^x lost is put back."""
    negative = k.max(k.const(-104.5, x.type), float_of(k, bits_of(k, x) | -0x80000000))
    shifted, r = _reduce(k, negative, BIAS + 24)
    lost = _lost(k, negative, shifted, BIAS + 24, r)
    e = ((r + fma(k, polynomial(k, r, EXP), r * r, lost)) + 1.0) * _power(k, shifted) * 2.0**-24
    divisor = e + 1.0
    # the sign bit itself, as x86 selects by it without a comparison
    quotient = k.select(bits_of(k, x) < 0, e, k.const(1.0, x.type)) / divisor
    return fma(k, quotient, (divisor - 1.0) - e, quotient)


def erf(k: KernelBuilder, x: Val) -> Val:
    """x + x P(x^2) up to 1, then 1 - e^P(|x|)."""
    magnitude = k.virtual("abs", x)
    near = fma(k, polynomial(k, x * x, ERF), x, x)
    t = k.min(k.const(3.95, x.type), magnitude)
    far = with_sign(k, 1.0 - exp_nonpositive(k, polynomial(k, t, ERFC)), x)
    return k.select(magnitude < 1.0, near, far)


def polynomial(k: KernelBuilder, x: Val, coefficients: Sequence[float]) -> Val:
    """Lowest power first. Pairs c + d x, then Horner's rule in x^2: about half as long a chain as Horner's in x."""
    pairs: list[Val] = []
    for low, high in zip_longest(coefficients[::2], coefficients[1::2]):
        pairs.append(k.const(single(low), x.type) if high is None else fma(k, x, high, low))
    value = pairs[-1]
    for pair in reversed(pairs[:-1]):
        value = fma(k, value, x * x, pair)
    return value


def fma(k: KernelBuilder, a: Val, b: Val | float, c: Val | float) -> Val:
    """a * b + c through the target's row."""
    b, c = (k.const(single(v), a.type) if isinstance(v, (int, float)) else v for v in (b, c))
    return k.virtual("fma", a, b, c)


def single(number: float) -> float:
    """The float32 nearest to a number."""
    return float(np.float32(number))


def _reduce(k: KernelBuilder, x: Val, extra: int) -> tuple[Val, Val]:
    """x = n ln 2 + r: a float with n + extra in its low 9 bits, and r."""
    shifted = fma(k, x, LOG2_E, ROUND + extra)
    whole = shifted - (ROUND + extra)
    return shifted, fma(k, whole, -single(LN2_LOW), fma(k, whole, -single(LN2_HIGH), x))


def _lost(k: KernelBuilder, x: Val, shifted: Val, extra: int, r: Val) -> Val:
    """What the r of `_reduce` lost in rounding."""
    whole = shifted - (ROUND + extra)
    return fma(k, whole, -single(LN2_LOW), fma(k, whole, -single(LN2_HIGH), x) - r)


def _power(k: KernelBuilder, shifted: Val) -> Val:
    """2^(the low 9 bits of `shifted` - BIAS): the shift leaves nothing of its other bits."""
    return float_of(k, bits_of(k, shifted) << 23)


def _expm1(k: KernelBuilder, x: Val) -> Val:
    """e^x - 1 for |x| <= 80: 2^n (e^r - 1) + (2^n - 1)."""
    shifted, r = _reduce(k, x, BIAS)
    scale = _power(k, shifted)
    return fma(k, fma(k, polynomial(k, r, EXPM1), r * r, r), scale, scale - 1.0)


def power_of_two(k: KernelBuilder, n: Val) -> Val:
    """2^n for an integer -127 < n < 128."""
    return float_of(k, (n + 127) << 23)


def with_sign(k: KernelBuilder, magnitude: Val, sign: Val) -> Val:
    """magnitude with the sign of another value."""
    return float_of(k, (bits_of(k, magnitude) & 0x7FFFFFFF) | (bits_of(k, sign) & -0x80000000))


def bits_of(k: KernelBuilder, x: Val) -> Val:
    return k.convert(x, Type("i32", x.type.lanes), "bitcast")


def float_of(k: KernelBuilder, bits: Val) -> Val:
    return k.convert(bits, Type("f32", bits.type.lanes), "bitcast")
