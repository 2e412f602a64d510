"""Rows of conversions that are one instruction on x86-64."""

from __future__ import annotations

from collections.abc import Sequence

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
