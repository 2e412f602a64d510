"""Kernel to kernel: what the target's hardware lacks becomes integer code.

16-bit floats live in memory only: they are widened to float32 for every operation, and narrowed after it. float32 arithmetic and
integer division, where they are lacking, become calls of shared kernels; so does division of 64 bits where pointers have 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cortado.compiler import softfloat
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import constant
from cortado.compiler.lang import BYTES, F32, I32, I64, INDEX, Block, Inst, Kernel, Type
from cortado.compiler.rerecord import Rerecorder
from cortado.compiler.target import Target

_HALVES = ("f16", "bf16")
_DIVISIONS = ("udiv", "urem", "sdiv", "srem")


@lru_cache(maxsize=4096)
def legalize(kernel: Kernel, target: Target) -> Kernel:
    """The kernel itself where the target can run it as it is.

    Raises TargetError for float64 on a core without a float unit, which no integer code is there for.
    """
    if _uses_halves(kernel):
        kernel = _Halves(kernel, target).kernel()
    whole = target.fpu and target.divides and not (target.pointer_bits == 32 and _divides_long(kernel))
    return kernel if whole else _Integers(kernel, target).kernel()


@lru_cache(maxsize=4096)
def _divides_long(kernel: Kernel) -> bool:
    """Whether there is a division of 64 bits in the kernel or one that it calls."""

    def inside(block: Block) -> bool:
        return any(
            (inst.kind == "binary" and inst.attr in _DIVISIONS and inst.type.scalar == "i64")
            or (inst.kind == "call" and _divides_long(inst.attr))
            or any(map(inside, inst.blocks))
            for inst in block.body
        )

    return inside(kernel.body)


@lru_cache(maxsize=4096)
def _uses_halves(kernel: Kernel) -> bool:
    """Whether there is a 16-bit float in the kernel or one that it calls."""

    def inside(block: Block) -> bool:
        for inst in block.body:
            if inst.type.scalar in _HALVES or any(a.type.scalar in _HALVES for a in inst.args):
                return True
            if inst.kind == "call" and _uses_halves(inst.attr):
                return True
            if any(map(inside, inst.blocks)):
                return True
        return False

    return inside(kernel.body)


class _Halves(Rerecorder):
    """float16 and bfloat16 values are their bit patterns (i16).

    Rounding a float32 result of +, -, *, / once more gives the correctly rounded 16-bit one: 24 bits are at least twice 11, plus 2
    (Figueroa, "When is double rounding innocuous?", 1995).
    """

    def type(self, old: Type) -> Type:
        return Type("i16", old.lanes) if old.scalar in _HALVES else old

    def const(self, number: int | float, old: Type) -> Val:
        if old.scalar not in _HALVES:
            return self.k.const(number, old)
        return self.k.const(int(constant(number, old.with_lanes(1)).view(np.int16)), self.type(old))

    def callee(self, kernel: Kernel) -> Kernel:
        return _Halves(kernel, self.target).kernel() if _uses_halves(kernel) else kernel

    def wide(self, a: Val, old: Type) -> Val:
        return self.k.virtual(f"{old.scalar}_to_f32", a) if old.scalar in _HALVES else a

    def narrow(self, a: Val, old: Type) -> Val:
        return self.k.virtual(f"f32_to_{old.scalar}", a) if old.scalar in _HALVES else a

    def _binary(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.narrow(self.k.binary(inst.attr, *(self.wide(a, inst.type) for a in args)), inst.type)

    def _compare(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.compare(inst.attr, *(self.wide(a, inst.args[0].type) for a in args))

    def _virtual(self, inst: Inst, args: Sequence[Val]) -> Val:
        wide = (self.wide(a, old.type) for a, old in zip(args, inst.args, strict=True))
        return self.narrow(self.k.virtual(inst.attr, *wide), inst.type)

    def _convert(self, inst: Inst, args: Sequence[Val]) -> Val:
        k, how, (a,), old, new = self.k, inst.attr, args, inst.args[0].type, inst.type
        if how == "bitcast" or not {old.scalar, new.scalar} & set(_HALVES):
            return k.convert(a, self.type(new), how)
        a = self.wide(a, old)
        single = F32.with_lanes(new.lanes)
        if new.scalar not in _HALVES:  # from a half
            return a if new == single else k.convert(a, new, how)
        if how in ("sitofp", "uitofp"):
            a = k.convert(a, single, how)
        elif a.type.scalar == "f64":
            a = _rounded_to_odd(k, a)
        return self.narrow(a, new)


def _rounded_to_odd(k: KernelBuilder, a: Val) -> Val:
    """float64 to float32, toward zero, the last bit set where something was lost: so that narrowing it again rounds correctly."""
    near = k.convert(a, F32.with_lanes(a.type.lanes), "fptrunc")
    back, bits = k.convert(near, a.type, "fpext"), I32.with_lanes(a.type.lanes)
    beyond = k.compare("gt", k.virtual("abs", back), k.virtual("abs", a))
    toward_zero = k.convert(near, bits, "bitcast") - k.convert(beyond, bits, "zext")
    return k.convert(toward_zero | k.convert(k.compare("ne", back, a), bits, "zext"), near.type, "bitcast")


@lru_cache(maxsize=256)
def _float_function(name: str, arguments: int, target: Target) -> Kernel:
    k = KernelBuilder(f"soft_{name}", target, shared=True)
    values = [k.param("a", I32) for _ in range(arguments)]
    return k.finish(softfloat.FUNCTIONS[name](k, *values))


@lru_cache(maxsize=16)
def _division_function(target: Target, kind: Type, op: str) -> Kernel:
    """Unsigned quotient (udiv) or remainder (urem) of i32 or i64, one bit a round: the dividend's bits move through the remainder."""
    bits = 8 * BYTES[kind.scalar]
    k = KernelBuilder(f"soft_{op}_{kind}", target, shared=True)
    dividend, divisor = k.param("dividend", kind), k.param("divisor", kind)

    def bit(_: Val, quotient: Val, rest: Val) -> tuple[Val, Val]:
        """quotient: bits of the dividend not used yet, then those of the quotient. A bit that leaves rest makes it larger than any divisor."""
        over, rest = rest < 0, (rest << 1) | k.binary("lshr", quotient, bits - 1)
        fits = over | k.compare("uge", rest, divisor)
        return (quotient << 1) | k.convert(fits, kind, "zext"), k.select(fits, rest - divisor, rest)

    quotient, rest = k.loop(0, bits, 1, bit, (dividend, k.zero(kind)))
    return k.finish(quotient if op == "udiv" else rest)


class _Integers(Rerecorder):
    """float32 values are their bit patterns (i32) where there is no float unit; divisions are calls where there is no divider."""

    def type(self, old: Type) -> Type:
        if not old.is_float or self.target.fpu:
            return old
        if old.scalar == "f32":
            return Type("i32", old.lanes)
        raise self.fail(f"there is no float unit, and {old.scalar} cannot do without")

    def const(self, number: int | float, old: Type) -> Val:
        new = self.type(old)
        return self.k.const(number if new == old else softfloat.pattern(number), new)

    def callee(self, kernel: Kernel) -> Kernel:
        return legalize(kernel, self.target)

    def soft(self, inst: Inst) -> bool:
        return inst.args[0].type.scalar == "f32" and not self.target.fpu

    def per_lane(self, function: Kernel, args: Sequence[Val]) -> Val:
        """The function of every lane."""
        lanes = args[0].type.lanes
        whole = self.k.broadcast(self.k.call(function, *(self.k.lane(a, 0) for a in args)), lanes)
        for i in range(1, lanes):
            part = self.k.broadcast(self.k.call(function, *(self.k.lane(a, i) for a in args)), lanes)
            whole = self.k.shuffle(whole, part, [j if j != i else lanes + i for j in range(lanes)])
        return whole

    def _binary(self, inst: Inst, args: Sequence[Val]) -> Val:
        if self.soft(inst):
            if inst.attr in ("min", "max"):
                first = softfloat.compare(self.k, "lt" if inst.attr == "min" else "gt", *args)
                return self.k.select(first, *args)
            return self.per_lane(_float_function(inst.attr, 2, self.target), args)
        if inst.attr in _DIVISIONS and not self._divides(inst):
            return self._divided(inst.attr, *args)
        return self.k.binary(inst.attr, *args)

    def _divides(self, inst: Inst) -> bool:
        """Whether the target can: powers of two are shifts; other constants a multiplication, where the upper half of a product is to be had."""
        divisor, long = inst.args[1], inst.type.scalar == "i64"
        if self.target.divides and not (long and self.target.pointer_bits == 32):
            return True
        if divisor.kind != "const" or divisor.attr <= 0:
            return False
        return divisor.attr & (divisor.attr - 1) == 0 or (not long and self.target.has("mul_high", I32, I32))

    def _divided(self, op: str, a: Val, b: Val) -> Val:
        kind, signed, k = a.type, op[0] == "s", self.k
        whole = (I64 if kind.scalar == "i64" else I32).with_lanes(kind.lanes)
        if kind != whole:
            how = "trunc" if kind == INDEX else "sext" if signed else "zext"
            a, b = k.convert(a, whole, how), k.convert(b, whole, how)
        sign = a ^ b if op == "sdiv" else a
        if signed:
            a, b = (k.select(x < 0, 0 - x, x) for x in (a, b))
        if whole.scalar == "i64" and op.endswith("rem"):  # products of 64 bits may be calls as well
            result = self.per_lane(_division_function(self.target, I64, "urem"), (a, b))
        else:
            quotient = self.per_lane(_division_function(self.target, whole.with_lanes(1), "udiv"), (a, b))
            result = quotient if op.endswith("div") else a - quotient * b
        if signed:
            result = k.select(sign < 0, 0 - result, result)
        return result if kind == whole else k.convert(result, kind, "zext" if kind == INDEX else "trunc")

    def _compare(self, inst: Inst, args: Sequence[Val]) -> Val:
        return softfloat.compare(self.k, inst.attr, *args) if self.soft(inst) else self.k.compare(inst.attr, *args)

    def _convert(self, inst: Inst, args: Sequence[Val]) -> Val:
        how, (a,), old, new = inst.attr, args, inst.args[0].type, self.type(inst.type)
        if how == "bitcast" or self.target.fpu or not (old.is_float or inst.type.is_float):
            return self.k.convert(a, new, how)
        self.type(old)
        if "i64" in (old.scalar, new.scalar):
            raise self.fail(f"{old} cannot be converted to {inst.type} there")
        if how in ("sitofp", "uitofp"):
            a = self._as_i32(a, "sext" if how == "sitofp" else "zext")
        result = self.per_lane(_float_function(how, 1, self.target), (a,))
        if new.scalar == "i32":
            return result
        return self.k.convert(result, new, "sext" if new == INDEX else "trunc")

    def _as_i32(self, a: Val, how: str) -> Val:
        whole = I32.with_lanes(a.type.lanes)
        narrow = a.type != INDEX and BYTES[a.type.scalar] < 4
        return a if a.type == whole else self.k.convert(a, whole, how if narrow else "trunc")
