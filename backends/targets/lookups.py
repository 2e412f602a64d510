"""Rows of `lookup`: entries of a table of 256 bytes, by byte shuffles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence

from cortado.backends.llvm import Function
from cortado.compiler.lang import I8
from cortado.compiler.target import Row
from cortado.compiler.virtual import TABLE

Emit = Callable[[Function, tuple[str, str], str, list[str]], list[str]]  # table, type of the indices' vectors, these -> entries
TOGETHER = 4  # vectors that one row serves


def _cut(function: Function, whole: tuple[str, str], lanes: int, repeat: int = 1) -> list[tuple[str, str]]:
    """A vector cut into parts of so many lanes, each `repeat` times in a vector of its own."""
    kind, value = whole
    total, element = kind.strip("<>").split(" x ")
    found = []
    for first in range(0, int(total), lanes):
        order = ", ".join(f"i32 {first + lane}" for lane in [*range(lanes)] * repeat)
        part = function.assign(f"shufflevector {kind} {value}, {kind} poison, <{lanes * repeat} x i32> <{order}>")
        found.append((f"<{lanes * repeat} x {element}>", part))
    return found


def _join(function: Function, kind: str, values: Sequence[str]) -> str:
    lanes, element = kind.strip("<>").split(" x ")
    size, parts = int(lanes), list(values)
    while len(parts) > 1:
        order = ", ".join(f"i32 {lane}" for lane in range(2 * size))
        of = f"<{size} x {element}>"
        parts = [
            function.assign(f"shufflevector {of} {a}, {of} {b}, <{2 * size} x i32> <{order}>")
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        size *= 2
    return parts[0]


def _pshufb(function: Function, table: tuple[str, str], kind: str, indices: list[str]) -> list[str]:
    """Sixteen shuffles, each of which gives zero where the top bit of its index is set; the indices go down by 16 from one to the next.

    What they give is combined by exclusive or. With T(i) for 16 entries of the table, the first eight steps look up T(i) ^ T(i - 1), so
    that for x < 128 all but T(x >> 4) cancels. For x >= 128 they leave T(7) ^ T((x >> 4) - 8), which the last eight steps take away
    again; there the subtraction saturates, so that for x < 128 the top bit stays set. A step serves all vectors before the next one
    does: the tables of all steps do not fit the registers.
    """

    def xor(a: str, b: str) -> str:
        return function.assign(f"xor {kind} {a}, {b}")

    entries = [value for _, value in _cut(function, table, 16, repeat=2)]
    steps = [entries[0], *(xor(a, b) for a, b in itertools.pairwise(entries))]
    steps[8] = xor(steps[8], entries[0])
    steps[9:] = [xor(a, b) for a, b in zip(steps[9:], steps[1:8], strict=True)]
    totals: list[str] = []
    for number, step in enumerate(steps):
        if number > 8:
            less = [(kind, "splat (i8 16)")]
            indices = [function.intrinsic("llvm.ssub.sat.v32i8", kind, [(kind, index), *less]) for index in indices]
        elif number:
            indices = [function.assign(f"sub {kind} {index}, splat (i8 16)") for index in indices]
        found = [function.intrinsic("llvm.x86.avx2.pshuf.b", kind, [(kind, step), (kind, index)]) for index in indices]
        totals = [xor(a, b) for a, b in zip(totals, found, strict=True)] if totals else found
    return totals


def _words(function: Function, table: tuple[str, str], kind: str, indices: list[str]) -> list[str]:
    """Permutations of 64 words, those with 128 of the bytes, for the even and for the odd bytes of the indices, then a choice of halves."""
    word = "<32 x i16>"
    parts = _cut(function, ("<128 x i16>", function.assign(f"bitcast {table[0]} {table[1]} to <128 x i16>")), 32)

    def bit(index: str, number: int) -> str:
        masked = function.assign(f"and {word} {index}, splat (i16 {1 << number if number < 15 else -(1 << 15)})")
        return function.assign(f"icmp ne {word} {masked}, zeroinitializer")

    def words(index: str, first: int) -> str:
        """Words that hold the entry, for the byte of the index that begins at bit `first`."""
        pair = (word, function.assign(f"lshr {word} {index}, splat (i16 {first + 1})"))
        low, high = (
            function.intrinsic("llvm.x86.avx512.vpermi2var.hi.512", word, [parts[at], pair, parts[at + 1]]) for at in (0, 2)
        )
        return function.assign(f"select <32 x i1> {bit(index, first + 7)}, {word} {high}, {word} {low}")

    def entries(bytes_: str) -> str:
        index = function.assign(f"bitcast {kind} {bytes_} to {word}")
        even, odd = words(index, 0), words(index, 8)
        low, high = (function.assign(f"{shift} {word} {value}, splat (i16 8)") for shift, value in (("lshr", even), ("shl", odd)))
        even = function.assign(f"select <32 x i1> {bit(index, 0)}, {word} {low}, {word} {even}")
        odd = function.assign(f"select <32 x i1> {bit(index, 8)}, {word} {odd}, {word} {high}")
        even, odd = (function.assign(f"and {word} {value}, splat (i16 {mask})") for value, mask in ((even, 255), (odd, -256)))
        return function.assign(f"bitcast {word} {function.assign(f'or {word} {even}, {odd}')} to {kind}")

    return [entries(index) for index in indices]


def _bytes(function: Function, table: tuple[str, str], kind: str, indices: list[str]) -> list[str]:
    """Two permutations of 128 bytes, and a choice by the top bit."""
    parts = _cut(function, table, 64)

    def entries(index: str) -> str:
        low, high = (
            function.intrinsic("llvm.x86.avx512.vpermi2var.qi.512", kind, [parts[at], (kind, index), parts[at + 1]])
            for at in (0, 2)
        )
        upper = function.assign(f"icmp slt {kind} {index}, zeroinitializer")
        return function.assign(f"select <64 x i1> {upper}, {kind} {high}, {kind} {low}")

    return [entries(index) for index in indices]


def _tbl(function: Function, table: tuple[str, str], kind: str, indices: list[str]) -> list[str]:
    """Four times 64 entries: tbx leaves what its index does not reach."""
    parts = _cut(function, table, 16)

    def entries(index: str) -> str:
        found = function.intrinsic("llvm.aarch64.neon.tbl4.v16i8", kind, [*parts[:4], (kind, index)])
        for first in (4, 8, 12):
            index = function.assign(f"sub {kind} {index}, splat (i8 64)")
            reached = [(kind, found), *parts[first : first + 4], (kind, index)]
            found = function.intrinsic("llvm.aarch64.neon.tbx4.v16i8", kind, reached)
        return found

    return [entries(index) for index in indices]


def _rows(lanes: int, feature: str, emit: Emit, instructions: int) -> tuple[Row, ...]:
    """For one vector and for several. instructions: of one."""

    def whole(function: Function, result: object, args: Sequence[tuple[str, str]]) -> str:
        indices = _cut(function, args[1], lanes)
        kind = indices[0][0]
        return _join(function, kind, emit(function, args[0], kind, [value for _, value in indices]))

    return tuple(
        Row("lookup", (TABLE, I8.with_lanes(count * lanes)), feature, whole, count * instructions) for count in (1, TOGETHER)
    )


NEON_LOOKUPS = _rows(16, "+neon", _tbl, 12)


def x86_lookups(features: Collection[str]) -> tuple[Row, ...]:
    """For the longest vectors. features: without their plus signs. SSSE3 would need 62 instructions for 16 bytes: no gain."""
    if "avx512vbmi" in features:
        return _rows(64, "+avx512vbmi", _bytes, 4)
    if "avx512bw" in features:
        return _rows(64, "+avx512bw", _words, 16)
    return _rows(32, "+avx2", _pshufb, 46) if "avx2" in features else ()
