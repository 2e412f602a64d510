"""What the interpreter's generated functions call: the meaning of each operation on numpy values, and checked memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cortado.compiler.lang import Type

POISON = 0xFF
DTYPE: Mapping[str, np.dtype] = {
    "f64": np.dtype(np.float64), "f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16),
    "i8": np.dtype(np.int8), "i16": np.dtype(np.int16), "i32": np.dtype(np.int32), "i64": np.dtype(np.int64),
    "i1": np.dtype(np.bool_),
}  # fmt: skip
UNSIGNED = {name: np.dtype(f"u{dtype.name}") for name, dtype in DTYPE.items() if name in ("i8", "i16", "i32", "i64")}
WIDE = 1 << 64  # the interpreter's index has 64 bits


class Pointer(NamedTuple):
    """Byte `at` of `memory` (uint8, one axis)."""

    memory: np.ndarray
    at: int = 0


def constant(number: int | float, kind: Type) -> Any:
    """A numpy value of the type; integers wrap around."""
    dtype = DTYPE[kind.scalar]
    if kind.scalar == "bf16":
        one = to_bf16(np.float32(number))
    elif kind.scalar in UNSIGNED:
        one = UNSIGNED[kind.scalar].type(int(number) % (1 << 8 * dtype.itemsize)).view(dtype)
    else:
        with np.errstate(over="ignore"):
            one = dtype.type(number)
    return one if kind.lanes == 1 else np.full(kind.lanes, one, dtype)


def span(pointer: Pointer, at: int, nbytes: int, itemsize: int, where: str) -> slice:
    start = pointer.at + at
    if start < 0 or start + nbytes > pointer.memory.size:
        raise IndexError(f"{where} at byte {start}: outside its memory of {pointer.memory.size} bytes")
    if start % itemsize:
        raise IndexError(f"{where} at byte {start}: not a multiple of {itemsize}")
    return slice(start, start + nbytes)


def load(pointer: Pointer, at: int, lanes: int, dtype: np.dtype, where: str) -> Any:
    size = dtype.itemsize
    return pointer.memory[span(pointer, at, lanes * size, size, where)].view(dtype).copy()


def store(pointer: Pointer, at: int, lanes: int, dtype: np.dtype, value: Any, where: str) -> None:
    size = dtype.itemsize
    pointer.memory[span(pointer, at, lanes * size, size, where)].view(dtype)[:] = value


def masked_load(pointer: Pointer, at: int, lanes: int, dtype: np.dtype, mask: np.ndarray, where: str) -> Any:
    value = np.zeros(lanes, dtype)
    for i in np.flatnonzero(mask):
        value[i] = load(pointer, at + int(i) * dtype.itemsize, 1, dtype, where)[0]
    return value


def masked_store(pointer: Pointer, at: int, dtype: np.dtype, value: np.ndarray, mask: np.ndarray, where: str) -> None:
    for i in np.flatnonzero(mask):
        store(pointer, at + int(i) * dtype.itemsize, 1, dtype, value[i], where)


def poison(dtype: np.dtype, lanes: int) -> np.ndarray:
    return np.full(lanes * dtype.itemsize, POISON, np.uint8).view(dtype)


def shift(op: str, a: Any, b: Any, dtype: np.dtype, seen_as: np.dtype) -> Any:
    bits = 8 * dtype.itemsize
    good = b.view(seen_as) < bits
    by = np.where(good, b, 0).astype(dtype)
    moved = a << by if op == "shl" else a >> by if op == "ashr" else (a.view(seen_as) >> by.view(seen_as)).view(dtype)
    return np.where(good, moved, poison(dtype, 1)[0]).astype(dtype)[()]


def to_integer(a: Any, dtype: np.dtype, seen_as: np.dtype) -> Any:
    limits = np.iinfo(seen_as)
    whole = np.trunc(np.asarray(a, np.float64))
    good = (whole >= limits.min) & (whole < float(limits.max) + 1)
    inside = np.where(good, whole, 0).astype(seen_as).view(dtype)
    return np.where(good, inside, poison(dtype, 1)[0]).astype(dtype)[()]


def divisor(b: Any) -> Any:
    if not np.all(b):
        raise ZeroDivisionError("integer division by zero in a kernel")
    return b


def sdiv(a: Any, b: Any) -> Any:
    floor = a // divisor(b)
    return (floor + ((a % b != 0) & ((a < 0) != (b < 0)))).astype(a.dtype)


def srem(a: Any, b: Any) -> Any:
    return np.fmod(a, divisor(b))


def to_bf16(a: Any) -> Any:
    """Round to nearest even; NaNs stay NaNs. float64 goes through float32 rounded to odd, so that it is rounded once."""
    a = np.asarray(a)
    single = a.astype(np.float32)
    bits = single.view(np.uint32)
    if a.dtype == np.float64:
        bits = (bits - (np.abs(single) > np.abs(a))) | (single != a)
    bits = bits.astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(a), (bits >> 16) | 0x40, rounded).astype(np.uint16)[()]


def from_bf16(a: Any) -> Any:
    return (np.asarray(a).astype(np.uint32) << 16).view(np.float32)[()]


def signed(x: int) -> int:
    return x - WIDE if x >= WIDE >> 1 else x


def signed_quotient(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def unsigned(x: int) -> int:
    return x % WIDE


HELPERS: Mapping[str, Any] = {
    "load": load, "store": store, "masked_load": masked_load, "masked_store": masked_store, "poison": poison,
    "shift": shift, "to_integer": to_integer, "divisor": divisor, "sdiv": sdiv, "srem": srem, "to_bf16": to_bf16,
    "from_bf16": from_bf16, "signed": signed, "signed_quotient": signed_quotient, "unsigned": unsigned,
    "constant": constant, "wide": Type("i64"), "np": np, "Pointer": Pointer,
    **{f"t_{name}": dtype for name, dtype in DTYPE.items()}, **{f"u_{name}": dtype for name, dtype in UNSIGNED.items()},
}  # fmt: skip
