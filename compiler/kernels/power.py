"""Power and cube root of float32 in the kernel language. See `math` for how polynomials were made and what is promised.

Where one float32 is not enough, a number is carried as two: a first part of 12 leading bits, whose products are exact on every target,
and the rest. Largest errors found in ulp: cube root 0.76 over every 32nd float, power 1.11 (with fma) and 1.37 over 9 million pairs.
"""

from __future__ import annotations

from math import inf, log, nan

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.math import (
    ROUND,
    ROUND_BITS,
    SQRT_HALF_BITS,
    bits_of,
    float_of,
    fma,
    polynomial,
    power_of_two,
    with_sign,
)

# 3 atanh(s) / s = 3 + z + z^2 P(z), z = s^2, |s| <= 0.172; absolute error 2^-35
ATANH = (0.600002408, 0.428193063, 0.351633221)
# 2^r = 1 + r P(r), |r| <= 0.5; relative error 2^-28.2
EXP2 = (0.693147182, 0.240226477, 0.0555035807, 0.00961850304, 0.00133918866, 0.00015329165)
CP = 2 / (3 * log(2))
CP_FIRST = 0.961669921875  # 12 bits of CP
CUBE_ROOT_BITS = 709958130  # two thirds of the exponent's bias, less what makes the first guess's error smallest


def power(k: KernelBuilder, x: Val, y: Val) -> Val:
    """x^y with IEEE 754's special cases: 2^(y log2|x|), signed where y is odd."""
    magnitude = k.virtual("abs", x)
    first, rest = _log2(k, magnitude)
    # beyond 2^33 every x but 1 overflows or vanishes, and no product here is infinite
    limited = k.min(k.const(2.0**33, y.type), k.max(k.const(-(2.0**33), y.type), y))
    lead = _leading(k, limited)
    low = (limited - lead) * first + limited * rest
    result = _exp2(k, lead * first, low)
    negative_y = y < 0.0
    zero, infinite = k.zero(x.type), k.const(inf, x.type)
    result = k.select(k.compare("eq", magnitude, 0.0), k.select(negative_y, infinite, zero), result)
    result = k.select(k.compare("eq", magnitude, inf), k.select(negative_y, zero, infinite), result)
    half = y * 0.5
    whole = k.compare("eq", k.virtual("round_even", y), y)
    odd = whole & k.compare("ne", k.virtual("round_even", half), half)
    result = k.select(odd, with_sign(k, result, x), result)
    undefined = (x < 0.0) & (x > -inf) & (whole ^ 1)
    undefined = undefined | k.compare("ne", x, x) | k.compare("ne", y, y)
    one = (
        k.compare("eq", y, 0.0) | k.compare("eq", x, 1.0) | (k.compare("eq", x, -1.0) & k.compare("eq", k.virtual("abs", y), inf))
    )
    return k.select(one, k.const(1, x.type), k.select(undefined, k.const(nan, x.type), result))


def cube_root(k: KernelBuilder, x: Val) -> Val:
    """Halley's iteration from a guess at the exponent; in the last step the guess has 12 bits, so that its square is exact."""
    magnitude = k.virtual("abs", x)
    tiny, large = magnitude < 1.17549435e-38, magnitude > 1e30
    scaled = magnitude * k.select(tiny, k.const(2.0**24, x.type), k.select(large, k.const(2.0**-24, x.type), 1.0))
    guess = float_of(k, k.binary("udiv", bits_of(k, scaled), 3) + CUBE_ROOT_BITS)
    cube = guess * guess * guess
    guess = _leading(k, guess + guess * ((scaled - cube) / (cube + cube + scaled)))
    cube = guess * guess * guess
    root = guess + guess * ((scaled - cube) / (cube + cube + scaled))
    root = root * k.select(tiny, k.const(2.0**-8, x.type), k.select(large, k.const(2.0**8, x.type), 1.0))
    ordinary = (magnitude > 0.0) & (magnitude < inf)
    return k.select(ordinary, with_sign(k, root, x), x)


def _leading(k: KernelBuilder, x: Val) -> Val:
    """x cut off after its first 12 bits."""
    return float_of(k, bits_of(k, x) & -0x1000)


def _log2(k: KernelBuilder, x: Val) -> tuple[Val, Val]:
    """log2 of a positive number, in two parts: exponent + CP s (3 + z + z^2 P(z)) with s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2))."""
    tiny = x < 1.17549435e-38
    bits = bits_of(k, k.select(tiny, x * 8388608.0, x)) - SQRT_HALF_BITS
    exponent = k.convert(bits >> 23, x.type, "sitofp") - k.select(tiny, k.const(23, x.type), k.zero(x.type))
    m = float_of(k, (bits & 0x7FFFFF) + SQRT_HALF_BITS)
    above, below = m - 1.0, m + 1.0
    inverse = 1.0 / below
    s = above * inverse
    s_first, below_first = _leading(k, s), _leading(k, below)
    s_rest = inverse * ((above - s_first * below_first) - s_first * (m - (below_first - 1.0)))
    z, square = s * s, s_first * s_first
    tail = polynomial(k, z, ATANH) * z * z + s_rest * (s_first + s)
    sum_first = _leading(k, (square + 3.0) + tail)
    sum_rest = tail - ((sum_first - 3.0) - square)
    exact, small = s_first * sum_first, s_rest * sum_first + sum_rest * s
    product_first = _leading(k, exact + small)
    product_rest = small - (product_first - exact)
    lead = product_first * CP_FIRST
    rest = product_first * (CP - CP_FIRST) + product_rest * CP
    first = _leading(k, (lead + rest) + exponent)
    return first, rest - ((first - exponent) - lead)


def _exp2(k: KernelBuilder, exact: Val, low: Val) -> Val:
    """2^(exact + low)."""
    total = exact + low
    shifted = k.min(k.const(160, total.type), k.max(k.const(-160, total.type), total)) + ROUND
    r = (exact - (shifted - ROUND)) + low
    p = fma(k, polynomial(k, r, EXP2), r, 1.0)
    n = bits_of(k, shifted) - ROUND_BITS
    half = n >> 1
    result = p * power_of_two(k, half) * power_of_two(k, n - half)
    result = k.select(total > 129.0, k.const(inf, p.type), result)
    return k.select(total < -151.0, k.zero(p.type), result)
