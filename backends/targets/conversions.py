"""Rows of conversions on x86-64: to integers, and to bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from cortado.backends.llvm import Function, ir_type
from cortado.backends.targets.rows import lengths
from cortado.compiler.lang import Type
from cortado.compiler.target import Row

_ROUND = {4: "llvm.x86.sse2.cvtps2dq", 8: "llvm.x86.avx.cvt.ps2dq.256", 16: "llvm.x86.avx512.mask.cvtps2dq.512"}
_FEATURE = {4: "", 8: "+avx", 16: "+avx512f"}


def _round_i32(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    """In the current rounding mode, which is to the nearest number, ties to even."""
    kind, more = ir_type(result, function.target), []
    if result.lanes == 16:  # every lane, the mode of the control register
        more = [(kind, "zeroinitializer"), ("i16", "-1"), ("i32", "4")]
    return function.intrinsic(_ROUND[result.lanes], kind, [*args, *more])


def round_rows(vector_bits: int) -> tuple[Row, ...]:
    """round_i32 on vectors."""
    known = [lanes for lanes in lengths(vector_bits, 32) if lanes in _ROUND]
    return tuple(Row("round_i32", (Type("f32", lanes),), _FEATURE[lanes], _round_i32) for lanes in known)


_PACKS = {4: ("llvm.x86.sse2.", ".128"), 8: ("llvm.x86.avx2.", ""), 16: ("llvm.x86.avx512.", ".512")}
_PACK_FEATURE = {4: "", 8: "+avx2", 16: "+avx512bw"}


def _narrow(to_bytes: str, lanes: int) -> Callable[..., str]:
    """Saturating packs to 16 bits, the zero point, saturating packs to bytes. lanes: of a register of words.

    Packs work inside of 128 bits each: at the end four bytes of every register follow each other there, and are put in order.
    """
    (family, size), halves, blocks = _PACKS[lanes], 2 * lanes, lanes // 4

    def emit(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
        count = result.lanes // lanes
        word, half = (ir_type(kind, function.target) for kind in (Type("i32", lanes), Type("i16", halves)))

        def paired(kind: str, value: str) -> list[str]:
            """The registers of an argument as 16 bits, two by two."""
            parts = []
            for number in range(count):
                order = ", ".join(f"i32 {number * lanes + lane}" for lane in range(lanes))
                parts.append(function.assign(f"shufflevector {kind} {value}, {kind} poison, <{lanes} x i32> <{order}>"))
            both = zip(parts[::2], parts[1::2], strict=True)
            return [function.intrinsic(f"{family}packssdw{size}", half, [(word, a), (word, b)]) for a, b in both]

        sums = [
            function.intrinsic(f"llvm.sadd.sat.v{halves}i16", half, [(half, value), (half, zero)])
            for value, zero in zip(*(paired(*argument) for argument in args), strict=True)
        ]
        packed = function.intrinsic(
            f"{family}{to_bytes}{size}", ir_type(Type("i8", 4 * lanes), function.target), [(half, sums[0]), (half, sums[-1])]
        )
        groups = function.assign(f"bitcast {ir_type(Type('i8', 4 * lanes), function.target)} {packed} to {word}")
        order = ", ".join(f"i32 {4 * block + number}" for number in range(count) for block in range(blocks))
        ordered = function.assign(f"shufflevector {word} {groups}, {word} poison, <{count * blocks} x i32> <{order}>")
        return function.assign(f"bitcast <{count * blocks} x i32> {ordered} to {ir_type(result, function.target)}")

    return emit


def narrow_rows(features: Collection[str], vector_bits: int) -> tuple[Row, ...]:
    """narrow_i8 and narrow_u8 of two and of four of the widest registers of words. features: without their plus signs."""
    lanes = max(n for n in lengths(vector_bits, 32) if n in _PACKS and _PACK_FEATURE[n].lstrip("+") in ("", *features))
    return tuple(
        Row(f"narrow_{kind}8", (Type("i32", count),) * 2, _PACK_FEATURE[lanes], _narrow(instruction, lanes))
        for count in (2 * lanes, 4 * lanes)
        for kind, instruction in (("i", "packsswb"), ("u", "packuswb"))
    )
