"""Rows that many families share, made for all vector lengths up to the target's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cortado.backends.llvm import Function, intrinsic_row, ir_type
from cortado.compiler.lang import I32, PTR, Type
from cortado.compiler.target import Row

INTRINSICS: Mapping[str, str] = {
    "fma": "llvm.fma", "abs": "llvm.fabs", "sqrt": "llvm.sqrt", "round_even": "llvm.roundeven", "floor": "llvm.floor",
    "ceil": "llvm.ceil",
}  # fmt: skip
_ARGUMENTS: Mapping[str, int] = {"fma": 3}


def lengths(vector_bits: int, scalar_bits: int) -> tuple[int, ...]:
    """Lanes 1, 2, 4 ... up to one full vector."""
    most = max(1, vector_bits // scalar_bits)
    return tuple(1 << i for i in range(most.bit_length()))


def float_rows(
    features: Mapping[str, str],
    vector_bits: int,
    scalars: tuple[str, ...] = ("f32",),
    intrinsics: Mapping[str, str] = INTRINSICS,
) -> tuple[Row, ...]:
    """Rows for the virtual instructions in `features`: name -> the target feature it needs ("" for none).

    fma is given for float32 alone: its meaning is defined there. intrinsics: by virtual instruction, without the type's suffix.
    """
    rows: list[Row] = []
    for scalar in scalars:
        for lanes in lengths(vector_bits, {"f32": 32, "f64": 64}[scalar]):
            for name, feature in features.items():
                if name != "fma" or scalar == "f32":
                    types = (Type(scalar, lanes),) * _ARGUMENTS.get(name, 1)
                    rows.append(Row(name, types, feature, intrinsic_row(intrinsics[name])))
    return tuple(rows)


def _leading_zeros(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    return function.intrinsic("llvm.ctlz.i32", "i32", [args[0], ("i1", "false")])


def _mul_high(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    wide = [function.assign(f"zext i32 {value} to i64") for _, value in args]
    product = function.assign(f"mul nuw i64 {wide[0]}, {wide[1]}")
    return function.assign(f"trunc i64 {function.assign(f'lshr i64 {product}, 32')} to i32")


def _f16_to_f32(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    half = ir_type(Type("f16", result.lanes), function.target)
    pattern = function.assign(f"bitcast {args[0][0]} {args[0][1]} to {half}")
    return function.assign(f"fpext {half} {pattern} to {ir_type(result, function.target)}")


def _f32_to_f16(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    half = ir_type(Type("f16", result.lanes), function.target)
    number = function.assign(f"fptrunc {args[0][0]} {args[0][1]} to {half}")
    return function.assign(f"bitcast {half} {number} to {ir_type(result, function.target)}")


def half_rows(feature: str, vector_bits: int) -> tuple[Row, ...]:
    """Conversions between float16 and float32."""
    rows: list[Row] = []
    for lanes in lengths(vector_bits, 32):
        rows.append(Row("f16_to_f32", (Type("i16", lanes),), feature, _f16_to_f32))
        rows.append(Row("f32_to_f16", (Type("f32", lanes),), feature, _f32_to_f16))
    return tuple(rows)


INTEGER_ROWS = (Row("leading_zeros", (I32,), "", _leading_zeros), Row("mul_high", (I32, I32), "", _mul_high))


def _prefetch(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
    """For reading, of data, into the second cache level and beyond (locality 2 of 3)."""
    return function.intrinsic("llvm.prefetch.p0", "void", [args[0], ("i32", "0"), ("i32", "2"), ("i32", "1")])


PREFETCH = Row("prefetch", (PTR,), "", _prefetch)
