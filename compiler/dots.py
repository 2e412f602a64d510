"""Virtual instructions of integer products: sums of neighbouring products, added to 32-bit accumulators.

Operands are words of 32 bits, one per accumulator lane, that hold the neighbours: two int16, or four bytes. Sums wrap around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cortado.compiler.builder import KernelBuilder, Val


def _parts(word: Any, dtype: type, count: int) -> np.ndarray:
    return np.atleast_1d(np.asarray(word)).view(dtype).astype(np.int32).reshape(-1, count)


def _sum(acc: Any, a: np.ndarray, b: np.ndarray) -> Any:
    total = (a * b).sum(axis=1, dtype=np.int32)
    return total + acc if np.ndim(acc) else np.int32(total[0] + acc)


def dot2_meaning(acc: Any, a: Any, b: Any) -> Any:
    return _sum(acc, _parts(a, np.int16, 2), _parts(b, np.int16, 2))


def dot2_fallback(k: KernelBuilder, acc: Val, a: Val, b: Val) -> Val:
    return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16)


def dot4_meaning(acc: Any, a: Any, b: Any) -> Any:
    return _sum(acc, _parts(a, np.uint8, 4), _parts(b, np.int8, 4))


def dot4_fallback(k: KernelBuilder, acc: Val, a: Val, b: Val) -> Val:
    for byte in range(4):
        unsigned = k.binary("lshr", a, 8 * byte) & 0xFF
        acc = acc + unsigned * ((b << (24 - 8 * byte)) >> 24)
    return acc


SIGNS = -0x7F7F7F80  # the sign bits of the four bytes of a word


def flip_signs_meaning(a: Any) -> Any:
    return a ^ np.int32(SIGNS)


def flip_signs_fallback(k: KernelBuilder, a: Val) -> Val:
    return a ^ SIGNS
