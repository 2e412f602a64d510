"""From 32-bit accumulators back to bytes: the kernels' side of `ops.requantize`, with the same bits.

Per-channel numbers are rows of 32-bit words before a panel's weights: the bias, then the multipliers (a float32 scale; for QNNPACK's
rounding a 31-bit multiplier and a shift).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.lang import BYTES, F32, I32, Type
from cortado.compiler.ops.requantize import q31_multiplier
from cortado.compiler.target import Target

MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number, half to even, in the last bits of the sum
MAGIC_BITS = 0x4B400000
PACKED = 4  # vectors of words that make one of bytes


def widened(k: KernelBuilder, value: Val, signed: bool, scalar: str = "i32") -> Val:
    """Bytes as wider integers."""
    return k.convert(value, Type(scalar, value.type.lanes), "sext" if signed else "zext")


def rounded_even(k: KernelBuilder, value: Val, zero: int, lo: int, hi: int) -> Val:
    """clamp(round_half_even(value) + zero, lo, hi) of float32 as i32; NaN gives lo. The clamped number is far below 2^22."""
    clamped = k.min(k.max(value, float(lo - zero)), float(hi - zero))
    return k.convert(clamped + MAGIC, Type("i32", value.type.lanes), "bitcast") - (MAGIC_BITS - zero)


def clamped(k: KernelBuilder, value: Val, zero: int, lo: int, hi: int) -> Val:
    return k.min(k.max(value + zero, lo), hi)


def shifted_away(k: KernelBuilder, value: Val, shift: Val) -> Val:
    """value / 2^shift to the nearest whole number, halves away from zero; shift in every lane."""
    one = k.const(1, value.type)
    mask = k.binary("shl", one, shift) - 1
    remainder = (value & mask) + (value >> (8 * BYTES[value.type.scalar] - 1))
    up = k.convert(k.compare("gt", remainder, k.binary("ashr", mask, one)), value.type, "zext")
    return k.binary("ashr", value, shift) + up


def rounded_product(k: KernelBuilder, acc: Val, multiplier: Val) -> Val:
    """(acc * multiplier + 2^30) >> 31 of i32, the multiplier positive."""
    if has_long(k, acc):
        wide = Type("i64", acc.type.lanes)
        product = k.convert(acc, wide, "sext") * k.convert(multiplier, wide, "sext")
        return k.convert((product + (1 << 30)) >> 31, acc.type, "trunc")
    high, low = long_sum(k, long_product(k, acc, multiplier), (k.zero(I32), k.const(1 << 30, I32)))
    return (high << 1) | k.binary("lshr", low, 31)


def rounded_mean(k: KernelBuilder, acc: Val, multiplier: Val, shift: Val) -> Val:
    """(acc * multiplier - (acc < 0) + 2^(shift - 1)) >> shift in 64 bits."""
    if has_long(k, acc):
        wide = Type("i64", acc.type.lanes)
        product = k.convert(acc, wide, "sext") * k.convert(multiplier, wide, "sext") + k.convert(acc >> 31, wide, "sext")
        distance = k.convert(shift, wide, "sext")
        half = k.binary("shl", k.const(1, wide), distance - 1)
        return k.convert(k.binary("ashr", product + half, distance), acc.type, "trunc")
    one, before, far = k.const(1, I32), shift - 1, k.compare("ge", shift, 32)
    bit = k.binary("shl", one, before & 31)
    upper = k.compare("ge", before, 32)
    half_words = k.select(upper, bit, k.zero(I32)), k.select(upper, k.zero(I32), bit)
    below = acc >> 31
    high, low = long_sum(k, long_sum(k, long_product(k, acc, multiplier), (below, below)), half_words)
    near = k.binary("shl", high, (0 - shift) & 31) | k.binary("lshr", low, shift & 31)
    return k.select(far, k.binary("ashr", high, shift & 31), near)


def has_long(k: KernelBuilder, value: Val) -> bool:
    """Whether products of 64 bits are instructions, not calls."""
    return k.target.pointer_bits == 64 or value.type.lanes > 1


def long_product(k: KernelBuilder, a: Val, b: Val) -> tuple[Val, Val]:
    """The 64 bits of a * b, b not negative, as (high, low) words."""
    return k.virtual("mul_high", a, b) - k.select(a < 0, b, k.zero(I32)), a * b


def long_sum(k: KernelBuilder, a: tuple[Val, Val], b: tuple[Val, Val]) -> tuple[Val, Val]:
    """(high, low) words added, with the carry."""
    low = a[1] + b[1]
    return a[0] + b[0] + k.convert(k.compare("ult", low, b[1]), I32, "zext"), low


@dataclass(frozen=True)
class Requantization(EpilogueKind):
    """The epilogue of quantized sums. zero, lo, hi: of the result.

    beside: float32 bits of the residual's scale and its zero point. signed: whether residual bytes have a sign.
    tame: no sum of 32 bits becomes so large by its scale that conversions to integers do not hold it.
    """

    rounding: str = "even"
    zero: int = 0
    lo: int = -128
    hi: int = 127
    beside: tuple[int, int] = (0, 0)
    signed: bool = True
    tame: bool = False

    @property
    def header(self) -> int:
        return 2 if self.rounding == "even" else 3

    def stored(self, scalar: str) -> str:
        return "i8"

    def added(self, scalar: str) -> str:
        return "i8"

    def converts(self, target: Target, lanes: int) -> bool:
        """Whether rounding is one instruction, and clamping that of narrowing to bytes."""
        return self.tame and self.rounding == "even" and target.has("round_i32", F32.with_lanes(lanes))

    def narrowed(self, k: KernelBuilder, acc: Val, rows: Sequence[Val], residual: Val | None) -> Val:
        """The result of each lane, as i32; unclamped and without the zero point where it `converts`.

        rows: the multipliers' rows for these channels, as words. residual: bytes.
        """
        lanes = acc.type.lanes
        if self.rounding == "qnnpack":
            value = shifted_away(k, rounded_product(k, acc, rows[0]), rows[1])
            return clamped(k, value, self.zero, self.lo, self.hi)
        single = F32.with_lanes(lanes)
        value = k.convert(acc, single, "sitofp") * k.convert(rows[0], single, "bitcast")
        if residual is not None:
            scale = float(np.array(self.beside[0], np.uint32).view(np.float32))
            moved = widened(k, residual, self.signed) - self.beside[1]
            value = value + k.convert(moved, single, "sitofp") * scale
        if self.converts(k.target, lanes):
            return k.virtual("round_i32", value)
        return rounded_even(k, value, self.zero, self.lo, self.hi)

    def store(self, k: KernelBuilder, place: Val, values: Sequence[Val], count: int) -> None:
        """The first `count` lanes of what `narrowed` gave, as bytes."""
        self.store_rows(k, [place], [values], count)

    def store_rows(self, k: KernelBuilder, places: Sequence[Val], rows: Sequence[Sequence[Val]], count: int) -> None:
        """As `store`, for several places and as many vectors for each. Four vectors, of one row or several, are narrowed at once."""
        lanes = rows[0][0].type.lanes
        if not self.converts(k.target, lanes):
            for place, values in zip(places, rows, strict=True):
                store_bytes(k, place, values, count)
            return
        whole = len(rows[0]) // PACKED * PACKED
        for place, values in zip(places, rows, strict=True):
            for at in range(0, whole, PACKED):
                part = k.offset(place, at * lanes, "i8")
                self._store_packed(k, [part], [values[at : at + PACKED]], min(PACKED * lanes, count - at * lanes))
        rest = len(rows[0]) - whole
        if rest:
            together = PACKED // rest
            for first in range(0, len(rows), together):
                chosen = slice(first, first + together)
                parts = [k.offset(place, whole * lanes, "i8") for place in places[chosen]]
                self._store_packed(k, parts, [values[whole:] for values in rows[chosen]], count - whole * lanes)

    def _store_packed(self, k: KernelBuilder, places: Sequence[Val], rows: Sequence[Sequence[Val]], count: int) -> None:
        """Not more than PACKED vectors."""
        packed = self.bytes_of(k, joined(k, [value for values in rows for value in values]))
        size = len(rows[0]) * rows[0][0].type.lanes
        for number, place in enumerate(places):
            store_some(k, place, packed, number * size, count)

    def bytes_of(self, k: KernelBuilder, words: Val) -> Val:
        """What `narrowed` gave, where it `converts`. Clamping to all of a byte's range is what saturating instructions do."""
        low, high, name = (-128, 127, "narrow_i8") if self.lo < 0 else (0, 255, "narrow_u8")
        packed = k.virtual(name, words, k.const(self.zero, words.type))
        if (self.lo, self.hi) == (low, high):
            return packed
        least, most = ("smax", "smin") if low < 0 else ("umax", "umin")
        return k.binary(most, k.binary(least, packed, self.lo), self.hi)


def multiplier_rows(scales: np.ndarray, rounding: str) -> np.ndarray:
    """int32[rows, O]: what a panel holds after the bias, for float32[O] scales."""
    if rounding == "even":
        return scales.astype(np.float32).view(np.int32)[None]
    return np.array([q31_multiplier(scale) for scale in scales], np.int32).T


def joined(k: KernelBuilder, values: Sequence[Val]) -> Val:
    """One vector of a power of two of the vectors, one after another; what is missing is the last of them again."""
    parts = list(values)
    while len(parts) > 1:
        parts += parts[-1:] * (len(parts) % 2)
        width = 2 * parts[0].type.lanes
        parts = [k.shuffle(a, b, range(width)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def store_bytes(k: KernelBuilder, place: Val, values: Sequence[Val], count: int) -> None:
    """The low bytes of the first `count` lanes of the vectors, one after another."""
    narrow = Type("i8", values[0].type.lanes)
    if narrow.lanes == 1:
        for at, value in enumerate(values[:count]):
            k.store(place, k.convert(value, narrow, "trunc"), at)
        return
    words = joined(k, values)
    store_some(k, place, k.convert(words, Type("i8", words.type.lanes), "trunc"), 0, count)


def store_some(k: KernelBuilder, place: Val, whole: Val, first: int, count: int) -> None:
    """Lanes [first, first + count) of bytes."""
    lanes = whole.type.lanes
    if _masks_bytes(k) and (count.bit_count() > 2 or (count % 4 and count > 4)):
        size = 1 << (count - 1).bit_length()
        part = whole if size == lanes else k.shuffle(whole, whole, [min(first + i, lanes - 1) for i in range(size)])
        k.store_lanes(place, part, count)
        return
    at = 0
    while at < count:
        size = 1 << ((count - at).bit_length() - 1)
        piece = whole if size == lanes else k.shuffle(whole, whole, range(first + at, first + at + size))
        k.store(place, piece, at)
        at += size


def _masks_bytes(k: KernelBuilder) -> bool:
    """Whether loads and stores of some bytes of a vector are instructions."""
    return k.target.masked and k.target.vector_bits > 256


def load_bytes(k: KernelBuilder, place: Val, lanes: int, count: int, at: int) -> Val:
    """The first `count` bytes as lanes of a vector, the others unspecified; no memory beyond them is read."""
    if _masks_bytes(k) and count.bit_count() > 1:
        return k.load_lanes(place, Type("i8", lanes), count, at)
    whole: Val | None = None
    done = 0
    while done < count:
        size = 1 << ((count - done).bit_length() - 1)
        part = k.load(place, Type("i8", size), at + done)
        if size == lanes:
            return part
        spread = k.broadcast(part, lanes) if size == 1 else k.shuffle(part, part, [i if i < size else -1 for i in range(lanes)])
        if whole is None:
            whole = spread
        else:
            keep = [i if i < done else lanes + i - done if i < done + size else -1 for i in range(lanes)]
            whole = k.shuffle(whole, spread, keep)
        done += size
    assert whole is not None, "at least one byte"
    return whole
