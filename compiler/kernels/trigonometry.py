"""Circular functions and their inverses, float32, in the kernel language. See `math` for how polynomials were made and what is promised.

Largest errors found in ulp over every 32nd float, with / without fma: sin 0.87 / 0.91, cos 0.89 / 0.93, tan 1.66 / 1.67,
asin 1.62 / 1.67, acos 1.14 / 1.14, atan 1.22 / 1.22.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan, pi

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.loops import across_lanes
from cortado.compiler.kernels.math import ROUND, ROUND_BITS, bits_of, float_of, fma, polynomial, with_sign
from cortado.compiler.lang import Type

# on |r| <= pi / 4: sin r = r + r^3 P(r^2), 2^-32; cos r = 1 - r^2 / 2 + r^4 P(r^2), 2^-32; tan r = r + r^3 P(r^2), 2^-29.5
SIN = (-0.166666672, 0.00833337847, -0.000198525624, 2.82634505e-06)
COS = (0.0416666456, -0.00138872978, 2.44300845e-05)
TAN = (0.333333492, 0.133326724, 0.0540594421, 0.0212828144, 0.0108375158, 8.41909277e-05, 0.00438016001)
# asin x = x + x^3 P(x^2), x <= 1/2, 2^-27.6; atan x = x + x^3 P(x^2), x <= 1, 2^-28.5
ASIN = (0.166667521, 0.0749530643, 0.0454697721, 0.0241807736, 0.0421664119)
ATAN = (
    -0.333332986, 0.199985296, -0.142640159, 0.109508812, -0.0839931443, 0.0578817166, -0.0310976002, 0.0108692329, -0.00178300741,
)  # fmt: skip
# pi / 2 in parts: twice 16 bits, whose products with numbers below 256 are exact, and the rest
HALF_PI = (1.57080078125, -4.454399459064007e-06, -5.56443155e-11)
HALF_PI_LOW = -4.371139e-08  # pi / 2 less its float32
UNIT = pi / 2 / 65536
UNIT_FIRST = 2.396106719970703e-05  # 12 bits of UNIT
NEAR = 256.0  # up to here the three parts are enough
# 2 / pi: 32 zeros before the binary point and 224 bits after it
TWO_OVER_PI = (0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB)


def sin(k: KernelBuilder, x: Val) -> Val:
    quadrant, r, lost = _reduced(k, x)
    value = k.select(_odd(k, quadrant), _cos(k, r, lost), _sin(k, r, lost))
    flip = ((quadrant & 2) << 30) ^ (bits_of(k, x) & -0x80000000)
    return _defined(k, x, k.select(k.compare("eq", x, 0.0), x, float_of(k, bits_of(k, value) ^ flip)))


def cos(k: KernelBuilder, x: Val) -> Val:
    quadrant, r, lost = _reduced(k, x)
    value = k.select(_odd(k, quadrant), _sin(k, r, lost), _cos(k, r, lost))
    return _defined(k, x, float_of(k, bits_of(k, value) ^ (((quadrant + 1) & 2) << 30)))


def tan(k: KernelBuilder, x: Val) -> Val:
    """tan r in even quadrants, -1 / tan r in odd ones."""
    quadrant, r, lost = _reduced(k, x)
    z = r * r
    value = r + fma(k, polynomial(k, z, TAN) * z, r, fma(k, z, lost, lost))
    value = k.select(_odd(k, quadrant), -1.0 / value, value)
    value = float_of(k, bits_of(k, value) ^ (bits_of(k, x) & -0x80000000))
    return _defined(k, x, k.select(k.compare("eq", x, 0.0), x, value))


def asin(k: KernelBuilder, x: Val) -> Val:
    """Beyond 1/2: pi / 2 - 2 asin(sqrt((1 - |x|) / 2))."""
    magnitude = k.virtual("abs", x)
    near = magnitude <= 0.5
    square = k.select(near, x * x, (1.0 - magnitude) * 0.5)
    t = k.select(near, magnitude, k.virtual("sqrt", square))
    small = polynomial(k, square, ASIN) * square * t
    far = pi / 2 - ((t + t) - (HALF_PI_LOW - (small + small)))
    return with_sign(k, k.select(near, t + small, far), x)


def acos(k: KernelBuilder, x: Val) -> Val:
    """pi / 2 - asin x up to 1/2; beyond, 2 asin(sqrt((1 - |x|) / 2)), from pi for negative x."""
    magnitude = k.virtual("abs", x)
    near = magnitude <= 0.5
    square = k.select(near, x * x, (1.0 - magnitude) * 0.5)
    t = k.select(near, x, k.virtual("sqrt", square))
    small = polynomial(k, square, ASIN) * square * t
    middle = pi / 2 - (t - (HALF_PI_LOW - small))
    twice = (t + small) * 2.0
    behind = pi - ((t + t) - (2.0 * HALF_PI_LOW - (small + small)))
    return k.select(near, middle, k.select(x < 0.0, behind, twice))


def atan(k: KernelBuilder, x: Val) -> Val:
    """Beyond 1: pi / 2 - atan(1 / |x|)."""
    magnitude = k.virtual("abs", x)
    far = magnitude > 1.0
    t = k.select(far, 1.0 / magnitude, magnitude)
    z = t * t
    small = polynomial(k, z, ATAN) * z * t
    turned = pi / 2 - (t - (HALF_PI_LOW - small))
    return with_sign(k, k.select(far, turned, t + small), x)


def _odd(k: KernelBuilder, quadrant: Val) -> Val:
    return k.compare("ne", quadrant & 1, 0)


def _defined(k: KernelBuilder, x: Val, value: Val) -> Val:
    return k.select(k.virtual("abs", x) < inf, value, k.const(nan, x.type))


def _sin(k: KernelBuilder, r: Val, lost: Val) -> Val:
    z = r * r
    return r + fma(k, polynomial(k, z, SIN) * z, r, lost)


def _cos(k: KernelBuilder, r: Val, lost: Val) -> Val:
    """1 - z / 2 and what that rounds away, then the rest."""
    z = r * r
    half = z * 0.5
    near = 1.0 - half
    rest = fma(k, polynomial(k, z, COS), z * z, ((1.0 - near) - half) - r * lost)
    return near + rest


def _reduced(k: KernelBuilder, x: Val) -> tuple[Val, Val, Val]:
    """|x| = quadrant * pi / 2 + r + lost, |r| <= pi / 4 (the quadrant modulo 4). Only where a lane is large is the long way taken."""
    magnitude = k.virtual("abs", x)
    far = magnitude >= NEAR
    quadrant, r, lost = _near(k, magnitude)
    any_far = across_lanes(k, k.convert(far, Type("i32", x.type.lanes), "zext"), lambda a, b: a | b)

    def long_way() -> list[Val]:
        found = _far(k, magnitude)
        return [k.select(far, a, b) for a, b in zip(found, (quadrant, r, lost), strict=True)]

    taken = k.if_(k.compare("ne", any_far, 0), long_way, lambda: (quadrant, r, lost))
    return taken[0], taken[1], taken[2]


def _near(k: KernelBuilder, x: Val) -> tuple[Val, Val, Val]:
    """Cody and Waite's reduction."""
    shifted = x * (2 / pi) + ROUND
    n = shifted - ROUND
    first = x - n * HALF_PI[0]
    step = n * HALF_PI[1]
    second = first - step
    low = ((first - second) - step) - n * HALF_PI[2]
    r = second + low
    return bits_of(k, shifted) - ROUND_BITS, r, (second - r) + low


def _far(k: KernelBuilder, x: Val) -> tuple[Val, Val, Val]:
    """Payne and Hanek's reduction: the mantissa times those 96 bits of 2 / pi that decide the quadrant and the fraction after it."""
    bits = bits_of(k, x)
    exponent = k.binary("lshr", bits, 23) - 127
    mantissa = (bits & 0x7FFFFF) | 0x800000
    at = exponent + 7
    word, shift = at >> 5, at & 31
    words = [_table(k, word, i) for i in range(4)]
    window = [(a << shift) | k.binary("lshr", k.binary("lshr", b, 1), 31 - shift) for a, b in pairwise(words)]
    carried = _high_product(k, mantissa, window[2])
    low = mantissa * window[1] + carried
    overflow = k.convert(k.compare("ult", low, carried), bits.type, "zext")
    high = mantissa * window[0] + _high_product(k, mantissa, window[1]) + overflow
    quadrant = k.binary("lshr", high + 0x20000000, 30)
    fraction = high - (quadrant << 30)
    # the fraction's 62 bits in pieces that are exact as floats, then as a sum of two floats, in units of 2^-16 of a quadrant
    pieces = (
        fraction >> 14, ((fraction & 0x3FFF) << 2) | k.binary("lshr", low, 30), k.binary("lshr", low, 14) & 0xFFFF, low & 0x3FFF,
    )  # fmt: skip
    a, b, c, d = (k.convert(piece, x.type, "sitofp") for piece in pieces)
    total = fma(k, b, 2.0**-16, a)
    rest = fma(k, b, 2.0**-16, a - total) + fma(k, c, 2.0**-32, d * 2.0**-46)
    value = total + rest
    rest = rest - (value - total)
    lead = float_of(k, bits_of(k, value) & -0x1000)
    exact = lead * UNIT_FIRST
    low_part = lead * (UNIT - UNIT_FIRST) + ((value - lead) + rest) * UNIT
    r = exact + low_part
    return quadrant, r, (exact - r) + low_part


def _high_product(k: KernelBuilder, a: Val, b: Val) -> Val:
    """The upper 32 of the 64 bits of an unsigned product, from products of 16 bits: not every core has more."""
    a_low, a_high = a & 0xFFFF, k.binary("lshr", a, 16)
    b_low, b_high = b & 0xFFFF, k.binary("lshr", b, 16)
    lower = a_high * b_low + k.binary("lshr", a_low * b_low, 16)
    upper = a_low * b_high + (lower & 0xFFFF)
    return a_high * b_high + k.binary("lshr", lower, 16) + k.binary("lshr", upper, 16)


def _table(k: KernelBuilder, word: Val, offset: int) -> Val:
    """TWO_OVER_PI[word + offset], word from 0 to 4."""
    value = k.const(TWO_OVER_PI[offset], word.type)
    for i in range(1, 5):
        value = k.select(k.compare("eq", word, i), k.const(TWO_OVER_PI[i + offset], word.type), value)
    return value
