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

MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number, half to even, in the last bits of the sum
MAGIC_BITS = 0x4B400000


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
    if k.target.pointer_bits == 64 or acc.type.lanes > 1:
        wide = Type("i64", acc.type.lanes)
        product = k.convert(acc, wide, "sext") * k.convert(multiplier, wide, "sext")
        return k.convert((product + (1 << 30)) >> 31, acc.type, "trunc")
    low = acc * multiplier
    high = k.virtual("mul_high", acc, multiplier) - k.select(acc < 0, multiplier, k.zero(I32))
    bumped = low + (1 << 30)
    high = high + k.convert(k.compare("ult", bumped, 1 << 30), I32, "zext")
    return (high << 1) | k.binary("lshr", bumped, 31)


@dataclass(frozen=True)
class Requantization(EpilogueKind):
    """The epilogue of quantized sums. zero, lo, hi: of the result.

    beside: float32 bits of the residual's scale and its zero point. signed: whether residual bytes have a sign.
    """

    rounding: str = "even"
    zero: int = 0
    lo: int = -128
    hi: int = 127
    beside: tuple[int, int] = (0, 0)
    signed: bool = True

    @property
    def header(self) -> int:
        return 2 if self.rounding == "even" else 3

    def stored(self, scalar: str) -> str:
        return "i8"

    def narrowed(self, k: KernelBuilder, acc: Val, rows: Sequence[Val], residual: Val | None) -> Val:
        """The result of each lane, as i32. rows: the multipliers' rows for these channels, as words. residual: bytes."""
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
        return rounded_even(k, value, self.zero, self.lo, self.hi)


def multiplier_rows(scales: np.ndarray, rounding: str) -> np.ndarray:
    """int32[rows, O]: what a panel holds after the bias, for float32[O] scales."""
    if rounding == "even":
        return scales.astype(np.float32).view(np.int32)[None]
    return np.array([q31_multiplier(scale) for scale in scales], np.int32).T


def store_bytes(k: KernelBuilder, place: Val, values: Sequence[Val], count: int) -> None:
    """The low bytes of the first `count` lanes of the vectors, one after another."""
    lanes = values[0].type.lanes
    if lanes == 1:
        for at, value in enumerate(values[:count]):
            k.store(place, k.convert(value, Type("i8"), "trunc"), at)
        return
    joined = list(values)
    while len(joined) > 1:
        joined += joined[-1:] * (len(joined) % 2)
        width = 2 * joined[0].type.lanes
        joined = [k.shuffle(a, b, range(width)) for a, b in zip(joined[::2], joined[1::2], strict=True)]
    whole = k.convert(joined[0], Type("i8", joined[0].type.lanes), "trunc")
    at = 0
    while at < count:
        size = 1 << ((count - at).bit_length() - 1)
        piece = whole if (at, size) == (0, whole.type.lanes) else k.shuffle(whole, whole, range(at, at + size))
        k.store(place, piece, at)
        at += size


def load_bytes(k: KernelBuilder, place: Val, lanes: int, count: int, at: int) -> Val:
    """The first `count` bytes as lanes of a vector, the others unspecified; no memory beyond them is read."""
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
