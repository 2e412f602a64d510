"""Transcendental functions in the kernel language: straight-line code on f32 scalars or vectors, the same bits on all targets with the
same `fma` row, at most 2 ulp off over the whole range; subnormals, infinities and NaN are right.

Every polynomial is our own minimax fit: a linear program over 4000 Chebyshev nodes minimises the largest weighted error of the result
(weight: 1 / result, so relative), then coefficients are rounded to float32 one by one, lowest power first, and the others fitted again.

Largest errors found in ulp, native code against float64, with / without fma:

| exp | log | tanh | sigmoid | erf | sinh | cosh |
| --- | --- | --- | --- | --- | --- | --- |
| 1.03 / 1.01 | 0.86 / 0.86 | 1.64 / 1.64 | 1.65 / 1.89 | 1.76 / 1.92 | 1.61 / 1.61 | 1.47 / 1.47 |

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
LN2 = 0.6931471805599453
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
# tanh(x) = x + x^3 P(x^2), |x| <= ln 2 / 4; relative error 2^-32.5
TANH = (-0.33333322, 0.13331142, -0.05271529)
# erf(x) = 1 - e^(-x - x P(x)), 0 <= x <= 3.95; relative error 2^-30.1
ERF = (
    0.12837917, 0.63661987, 0.102770686, -0.019113738, -0.000265313, 0.0018193647, -0.0007589114, 0.00017673023, -2.3786655e-05,
    1.4502725e-06,
)  # fmt: skip


def exp(k: KernelBuilder, x: Val, halvings: int = 0) -> Val:
    """e^x / 2^halvings, as 2^n e^r with n whole and |r| <= ln 2 / 2; 2^n in two factors, as it may be infinite or subnormal."""
    x = k.min(k.const(90.5, x.type), k.max(k.const(-104.5, x.type), x))
    shifted, r = _reduce(k, x, 2 * BIAS - halvings)
    exponents = bits_of(k, shifted)
    half = exponents >> 1
    return _scaled_exp(k, r, float_of(k, half << 23)) * float_of(k, (exponents - half) << 23)


def exp_nonpositive(k: KernelBuilder, x: Val) -> Val:
    """e^x for x <= 0; zero instead of numbers below 2^-126.5, which saves a multiplication.

    Where the power of two would be 2^-127 its bits are those of zero.
    """
    shifted, r = _reduce(k, k.max(k.const(-88.0, x.type), x), BIAS)
    return _scaled_exp(k, r, _power(k, shifted))


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
    """tanh(y + r) = (T + t) / (1 + T t) with y = -n ln 2 / 2, T = tanh(y) = (1 - s) / (1 + s), s = 2^n, |r| <= ln 2 / 4, t = tanh(r).

    As b + (N - b D) / D with N / D that fraction and b near the result, so that rounding N and D costs little. b = max(3/4 - s, 0)
    is 0 for n = 0, where the quotient is t; the coefficients of N - b D are sums of few powers of two.
    """
    magnitude = k.min(k.const(10.0, x.type), k.virtual("abs", x))
    shifted = fma(k, magnitude, -2 * LOG2_E, ROUND + BIAS)
    r = fma(k, shifted - (ROUND + BIAS), single(LN2 / 2), magnitude)
    s = _power(k, shifted)
    square = r * r
    odd = k.const(single(TANH[-1]), x.type)
    for coefficient in TANH[-2::-1]:
        odd = fma(k, odd, square, coefficient)
    t = fma(k, odd, square * r, r)
    minus_b = k.min(s - 0.75, k.zero(x.type))
    rest, more = minus_b + 1.0, 1.0 - minus_b
    numerator = fma(k, t, fma(k, s, more, rest), fma(k, s, _negated(k, more), rest))
    quotient = numerator / fma(k, t, 1.0 - s, s + 1.0) - minus_b
    return float_of(k, bits_of(k, quotient) | (bits_of(k, x) & -0x80000000))


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
    """m - m q with q = e / (1 + e), e = e^-|x|, and m = 1, or e for negative x, so that both tails stay exact.

    e is made 2^24 times too large at first, so that no power of two is subnormal.
    """
    shifted, r = _reduce(k, k.max(k.const(-104.5, x.type), float_of(k, bits_of(k, x) | -0x80000000)), BIAS + 24)
    e = _scaled_exp(k, r, _power(k, shifted)) * 2.0**-24
    # the sign bit itself, as x86 selects by it without a comparison
    m = k.select(bits_of(k, x) < 0, e, k.const(1.0, x.type))
    return fma(k, m, e / (-1.0 - e), m)


def erf(k: KernelBuilder, x: Val) -> Val:
    """1 - e^(-|x| - |x| P(|x|)), one formula for all numbers: near 0 the exponent is small and known to full precision."""
    y = k.max(k.const(-3.95, x.type), float_of(k, bits_of(k, x) | -0x80000000))
    mirrored = [-c if power % 2 else c for power, c in enumerate(ERF)]
    return with_sign(k, _expm1(k, fma(k, polynomial(k, y, mirrored), y, y)), x)


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


def _scaled_exp(k: KernelBuilder, r: Val, scale: Val) -> Val:
    """e^r * scale for |r| <= 0.35 and a power of two."""
    return fma(k, fma(k, polynomial(k, r, EXP), r * r, r), scale, scale)


def _power(k: KernelBuilder, shifted: Val) -> Val:
    """2^(the low 9 bits of `shifted` - BIAS): the shift leaves nothing of its other bits."""
    return float_of(k, bits_of(k, shifted) << 23)


def _expm1(k: KernelBuilder, x: Val) -> Val:
    """e^x - 1 for -80 <= x <= 0: 2^n (e^r - 1) + (2^n - 1). One number for ln 2 will do: n times its error is divided by 2^-n."""
    shifted = fma(k, x, LOG2_E, ROUND + BIAS)
    r = fma(k, shifted - (ROUND + BIAS), -single(LN2), x)
    scale = _power(k, shifted)
    return fma(k, fma(k, polynomial(k, r, EXPM1), r * r, r), scale, scale - 1.0)


def _negated(k: KernelBuilder, x: Val) -> Val:
    return float_of(k, bits_of(k, x) ^ -0x80000000)


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
