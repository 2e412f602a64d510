"""Kernel to kernel: what the target's hardware lacks (float32 arithmetic, integer division) becomes integer code in shared kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from cortado.compiler import softfloat
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import BYTES, I32, INDEX, Block, Inst, Kernel, Type
from cortado.compiler.target import Target
from cortado.errors import TargetError

_DIVISIONS = ("udiv", "urem", "sdiv", "srem")


def legalize(kernel: Kernel, target: Target) -> Kernel:
    """The kernel itself where the target can run it as it is. float32 values become their bit patterns (i32) otherwise.

    Raises TargetError for other float types, which no integer code is there for.
    """
    return kernel if target.fpu and target.divides else _legalized(kernel, target)


@lru_cache(maxsize=4096)
def _legalized(kernel: Kernel, target: Target) -> Kernel:
    return _Rewriter(kernel, target).kernel()


@lru_cache(maxsize=256)
def _float_function(name: str, arguments: int, target: Target) -> Kernel:
    k = KernelBuilder(f"soft_{name}", target, shared=True)
    values = [k.param("a", I32) for _ in range(arguments)]
    return k.finish(softfloat.FUNCTIONS[name](k, *values))


@lru_cache(maxsize=16)
def _division_function(target: Target) -> Kernel:
    """Unsigned quotient, one bit a round: the dividend's bits move through the remainder."""
    k = KernelBuilder("soft_udiv", target, shared=True)
    dividend, divisor = k.param("dividend", I32), k.param("divisor", I32)

    def bit(_: Val, quotient: Val, rest: Val) -> tuple[Val, Val]:
        """quotient: bits of the dividend not used yet, then those of the quotient. A bit that leaves rest makes it larger than any divisor."""
        over, rest = rest < 0, (rest << 1) | k.binary("lshr", quotient, 31)
        fits = over | k.compare("uge", rest, divisor)
        return (quotient << 1) | k.convert(fits, I32, "zext"), k.select(fits, rest - divisor, rest)

    quotient, _ = k.loop(0, 32, 1, bit, (dividend, k.zero(I32)))
    return k.finish(quotient)


class _Rewriter:
    """Records the kernel anew. `values`: old instruction -> new value."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.old, self.target = kernel, target
        self.k = KernelBuilder(kernel.family, target, kernel.shared)
        self.values: dict[Inst, Val] = {}
        self.results: dict[Inst, tuple[Val, ...]] = {}

    def kernel(self) -> Kernel:
        for p in self.old.params:
            self.values[p] = self.k.param(p.attr, self.type(p.type))
        self.block(self.old.body)
        return self.k.finish(None if self.old.result is None else self.value(self.old.result))

    def type(self, old: Type) -> Type:
        if not old.is_float or self.target.fpu:
            return old
        if old.scalar == "f32":
            return Type("i32", old.lanes)
        raise TargetError(
            f"target {self.target.name} has no float unit: {old.scalar} cannot be used there (kernel {self.old.name})"
        )

    def value(self, old: Inst) -> Val:
        if old.kind != "const":
            return self.values[old]
        new = self.type(old.type)
        return self.k.const(old.attr if new == old.type else softfloat.pattern(old.attr), new)

    def block(self, block: Block) -> tuple[Val, ...]:
        for inst in block.body:
            write: Callable[[Inst, Sequence[Val]], Val | None] | None = getattr(self, f"_{inst.kind}", None)
            if write is None:
                raise TargetError(f"target {self.target.name}: {inst.kind} is not to be had there (kernel {self.old.name})")
            new = write(inst, () if inst.kind == "result" else tuple(map(self.value, inst.args)))
            if new is not None:
                self.values[inst] = new
        return tuple(map(self.value, block.results))

    def soft(self, inst: Inst) -> bool:
        return inst.args[0].type.scalar == "f32" and not self.target.fpu

    def per_lane(self, function: Kernel, args: Sequence[Val]) -> Val:
        """The function of every lane."""
        lanes = args[0].type.lanes
        whole = self.k.call(function, *(self.k.lane(a, 0) for a in args))
        one = whole.type
        whole = self.k.broadcast(whole, lanes)
        for i in range(1, lanes):
            part = self.k.broadcast(self.k.call(function, *(self.k.lane(a, i) for a in args)), lanes)
            whole = self.k.shuffle(whole, part, [j if j != i else lanes + i for j in range(lanes)])
        assert whole.type == one.with_lanes(lanes)
        return whole

    # --- arithmetic ---

    def _binary(self, inst: Inst, args: Sequence[Val]) -> Val:
        if self.soft(inst):
            if inst.attr in ("min", "max"):
                first = softfloat.compare(self.k, "lt" if inst.attr == "min" else "gt", *args)
                return self.k.select(first, *args)
            return self.per_lane(_float_function(inst.attr, 2, self.target), args)
        if inst.attr in _DIVISIONS and not self.target.divides and not self._by_power_of_two(inst):
            return self._divided(inst.attr, *args)
        return self.k.binary(inst.attr, *args)

    def _by_power_of_two(self, inst: Inst) -> bool:
        """Shifts do. Other constant divisors become a multiplication, where the upper half of a product is to be had."""
        divisor = inst.args[1]
        if divisor.kind != "const" or divisor.attr <= 0:
            return False
        return divisor.attr & (divisor.attr - 1) == 0 or self.target.has("mul_high", I32, I32)

    def _divided(self, op: str, a: Val, b: Val) -> Val:
        kind, signed, k = a.type, op[0] == "s", self.k
        if kind.scalar not in ("index", "i32", "i16", "i8"):
            raise TargetError(f"target {self.target.name} does not divide {kind} (kernel {self.old.name})")
        whole = I32.with_lanes(kind.lanes)
        if kind != whole:
            how = "trunc" if kind == INDEX else "sext" if signed else "zext"
            a, b = k.convert(a, whole, how), k.convert(b, whole, how)
        sign = a ^ b if op == "sdiv" else a
        if signed:
            a, b = (k.select(x < 0, 0 - x, x) for x in (a, b))
        quotient = self.per_lane(_division_function(self.target), (a, b))
        result = quotient if op.endswith("div") else a - quotient * b
        if signed:
            result = k.select(sign < 0, 0 - result, result)
        return result if kind == whole else k.convert(result, kind, "zext" if kind == INDEX else "trunc")

    def _compare(self, inst: Inst, args: Sequence[Val]) -> Val:
        return softfloat.compare(self.k, inst.attr, *args) if self.soft(inst) else self.k.compare(inst.attr, *args)

    def _select(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.select(*args)

    def _convert(self, inst: Inst, args: Sequence[Val]) -> Val:
        how, (a,), old = inst.attr, args, inst.args[0].type
        new = self.type(inst.type)
        if how == "bitcast" or self.target.fpu or not (old.is_float or inst.type.is_float):
            return self.k.convert(a, new, how)
        self.type(old)
        if how in ("sitofp", "uitofp"):
            return self.per_lane(_float_function(how, 1, self.target), (self._as_i32(a, "sext" if how == "sitofp" else "zext"),))
        if how in ("fptosi", "fptoui"):
            whole = self.per_lane(_float_function(how, 1, self.target), (a,))
            if new.scalar == "i64":
                raise TargetError(f"target {self.target.name} does not convert float32 to int64 (kernel {self.old.name})")
            return whole if new.scalar == "i32" else self.k.convert(whole, new, "sext" if new == INDEX else "trunc")
        raise TargetError(
            f"target {self.target.name} has no float unit: no conversion from {old} to {inst.type} (kernel {self.old.name})"
        )

    def _as_i32(self, a: Val, how: str) -> Val:
        whole = I32.with_lanes(a.type.lanes)
        if a.type.scalar == "i64":
            raise TargetError(f"target {self.target.name} does not convert int64 to float32 (kernel {self.old.name})")
        narrow = a.type.scalar != "index" and BYTES[a.type.scalar] < 4
        return a if a.type == whole else self.k.convert(a, whole, how if narrow else "trunc")

    def _virtual(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.virtual(inst.attr, *args)

    def _broadcast(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.broadcast(args[0], inst.type.lanes)

    def _shuffle(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.shuffle(args[0], args[1], inst.attr)

    # --- memory ---

    def _offset(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.offset(args[0], args[1], self.type(Type(inst.attr)).scalar)

    def _local(self, inst: Inst, args: Sequence[Val]) -> Val:
        scalar, count = inst.attr
        return self.k.local(self.type(Type(scalar)).scalar, count)

    def _load(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.load(args[0], self.type(inst.type), args[1])

    def _store(self, inst: Inst, args: Sequence[Val]) -> None:
        self.k.store(args[0], args[2], args[1])

    def _masked_load(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.masked_load(args[0], self.type(inst.type), args[2], args[1])

    def _masked_store(self, inst: Inst, args: Sequence[Val]) -> None:
        self.k.masked_store(args[0], args[2], args[3], args[1])

    def _call(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.call(legalize(inst.attr, self.target), *args)

    # --- control ---

    def _loop(self, inst: Inst, args: Sequence[Val]) -> None:
        start, stop, step, *carried = args
        (body,) = inst.blocks
        self.results[inst] = self.k.loop(start, stop, step.attr, lambda *new: self.inside(body, new), carried)

    def _if(self, inst: Inst, args: Sequence[Val]) -> None:
        then, otherwise = inst.blocks
        self.results[inst] = self.k.if_(args[0], lambda: self.block(then), lambda: self.block(otherwise))

    def _while(self, inst: Inst, args: Sequence[Val]) -> None:
        test, body = inst.blocks
        self.results[inst] = self.k.while_(lambda *new: self.inside(test, new)[0], lambda *new: self.inside(body, new), args)

    def _result(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.results[inst.args[0]][inst.attr]

    def inside(self, block: Block, params: Sequence[Val]) -> tuple[Val, ...]:
        self.values |= dict(zip(block.params, params, strict=True))
        return self.block(block)
