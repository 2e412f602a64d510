"""Rows of integer products (`compiler.dots`) for x86-64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from cortado.backends.llvm import Function, ir_type
from cortado.backends.targets.rows import lengths
from cortado.compiler.lang import Type
from cortado.compiler.target import Row

_SIGNS = -0x7F7F7F80  # the sign bits of the four bytes of a word
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def _pairs(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    """pmaddwd, then an addition."""
    kind, halves = ir_type(result, function.target), ir_type(Type("i16", 2 * result.lanes), function.target)
    words = [(halves, function.assign(f"bitcast {of} {value} to {halves}")) for of, value in args[1:]]
    products = function.intrinsic(_PAIRS[result.lanes], kind, words)
    return function.assign(f"add {kind} {args[0][1]}, {products}")


def _fused(name: str) -> Callable[..., str]:
    def emit(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
        return function.intrinsic(f"llvm.x86.avx512.{name}.{32 * result.lanes}", ir_type(result, function.target), args)

    return emit


def _flip_signs(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    """An exclusive or that LLVM's simplifications do not take for one: they would do it before the broadcast of a word, in registers,
    where one instruction can read, spread and flip it."""
    lanes, kind = result.lanes, ir_type(result, function.target)
    whole = [args[0], (kind, f"splat (i32 {_SIGNS})"), (f"<{lanes} x i1>", "splat (i1 true)"), ("i32", str(lanes))]
    return function.intrinsic(f"llvm.vp.xor.v{lanes}i32", kind, whole)


def x86_dots(features: Collection[str], vector_bits: int) -> tuple[Row, ...]:
    """dot2 for every level, dot4 and what it needs with VNNI. features: without their plus signs."""
    vnni = "avx512vnni" if "avx512vnni" in features else "avxvnni" if "avxvnni" in features else ""
    widest = 16 if "avx512bw" in features else 8 if "avx2" in features else 4
    rows: list[Row] = []
    for lanes in lengths(vector_bits, 32):
        types = (Type("i32", lanes),) * 3
        if vnni and lanes >= 4 and (lanes <= 8 or vnni == "avx512vnni"):
            rows += [Row("dot2", types, f"+{vnni}", _fused("vpdpwssd")), Row("dot4", types, f"+{vnni}", _fused("vpdpbusd"))]
            rows.append(Row("flip_signs", types[:1], f"+{vnni}", _flip_signs))
        elif 4 <= lanes <= widest:
            feature = {4: "", 8: "+avx2", 16: "+avx512bw"}[lanes]
            rows.append(Row("dot2", types, feature, _pairs))
    return tuple(rows)
