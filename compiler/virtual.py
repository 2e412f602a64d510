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
    """One rounding for float32: products of two are exact in float64; the sum's double rounding is at most 2^-29 ulp off a tie."""
    if np.asarray(a).dtype == np.float32:
        return np.asarray(np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)[()]
    return a * b + c


def _fma_fallback(k: KernelBuilder, a: Val, b: Val, c: Val) -> Val:
    return a * b + c


def _abs_fallback(k: KernelBuilder, a: Val) -> Val:
    bits = Type({"f32": "i32", "f64": "i64"}[a.type.scalar], a.type.lanes)
    magnitude = (1 << (8 * {"i32": 4, "i64": 8}[bits.scalar] - 1)) - 1
    return k.convert(k.convert(a, bits, "bitcast") & magnitude, a.type, "bitcast")


def _same(a: Type, *_: Type) -> Type:
    return a


_LIST = (
    Virtual("fma", _same, _fma_meaning, _fma_fallback),  # a * b + c, rounded once where the target has it
    Virtual("abs", _same, np.abs, _abs_fallback),
)

VIRTUALS: Mapping[str, Virtual] = {v.name: v for v in _LIST}
