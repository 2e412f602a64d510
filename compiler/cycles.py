"""Estimated cycles of kernels: their recorded instructions, counted as often as loops run, against what a core can start in a cycle.

It orders ways of computing the same thing (float or int8, say) on a kind of core. It knows no latencies, and of caches only that what
does not stay in the second level costs time by its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cortado.compiler.lang import BYTES, INDEX, Block, Inst, Kernel
from cortado.compiler.program import KernelCall
from cortado.compiler.target import Target

# Wide out-of-order cores, per cycle: float operations and products, all operations on vectors, loads, stores, instructions.
PRODUCTS, VECTORS, LOADS, STORES, ISSUE = 2.0, 2.5, 2.0, 1.0, 5.0
ADDRESS = 0.25  # instructions that index arithmetic amounts to, after common parts and multiplications are gone
CALL = 6.0  # cycles
WEIGHTS = 6.0  # bytes per cycle that come from memory
TENSORS = 10.0  # bytes per cycle of inputs and results that do not stay in the second cache level
HIDDEN = 0.5  # part of the shorter of computing and moving that the longer does not hide
UNKNOWN_TRIPS = 8  # of loops whose ends depend on data
SLOW: Mapping[str, float] = MappingProxyType({"div": 5, "sdiv": 20, "udiv": 20, "srem": 20, "urem": 20})
VIRTUAL: Mapping[str, float] = MappingProxyType({"sqrt": 6})  # products' time
ADDED = ("dot2", "dot4")  # products that a second instruction adds, but on targets with MULTIPLY_ADD
MULTIPLY_ADD = ("vnni", "dotprod")
SOFT = 40.0  # instructions of a float operation without float unit
IN_ORDER_LOAD = 2.0

Env = dict[Inst, int]


@dataclass
class Counts:
    """Instructions of a stretch of code without loops, by what they occupy; in vectors of the target."""

    products: float = 0.0
    others: float = 0.0
    loads: float = 0.0
    stores: float = 0.0
    addresses: float = 0.0

    def cycles(self, target: Target) -> float:
        vectors = self.products + self.others
        total = vectors + self.loads + self.stores + ADDRESS * self.addresses
        if not target.vector_bits:
            return total + (IN_ORDER_LOAD - 1) * self.loads
        return max(self.products / PRODUCTS, vectors / VECTORS, self.loads / LOADS, self.stores / STORES, total / ISSUE)


def cycles(calls: Iterable[KernelCall], target: Target, moved: int = 0) -> float:
    """Of all tasks of the calls, on one thread. moved: bytes of the inputs and results that they share."""
    calls = tuple(calls)
    room = target.cache("l2", 256 << 10)
    weights = sum(ref.array.nbytes for call in calls for ref in call.refs if ref.array is not None)
    traffic = (weights / WEIGHTS if weights > room else 0.0) + (moved / TENSORS if moved > room else 0.0)
    work = sum(_of_call(call, target) for call in calls)
    if not target.vector_bits:
        return work
    return max(work, traffic) + HIDDEN * min(work, traffic)


def _of_call(call: KernelCall, target: Target) -> float:
    begin, end = call.kernel.params[-2:]
    return _Walk(target).block(call.kernel.body, {begin: 0, end: call.tasks})


@dataclass
class _Walk:
    target: Target
    known: dict[tuple[str, tuple[int | None, ...]], float] = field(default_factory=dict)

    def block(self, block: Block, env: Env) -> float:
        """Cycles; env: what is known of index values, to which the block's own are added."""
        counts = Counts()
        total = 0.0
        for inst in block.body:
            if inst.kind in ("loop", "while", "if", "call"):
                total += getattr(self, f"_{inst.kind}")(inst, env)
            else:
                self._count(inst, env, counts)
        return total + counts.cycles(self.target)

    def _value(self, inst: Inst, env: Env) -> int | None:
        return int(inst.attr) if inst.kind == "const" and inst.type == INDEX else env.get(inst)

    def _count(self, inst: Inst, env: Env, counts: Counts) -> None:
        kind = inst.kind
        if kind in ("load", "masked_load"):
            counts.loads += self._vectors(inst)
        elif kind in ("store", "masked_store"):
            counts.stores += self._vectors(inst.args[2])
        elif kind in ("binary", "compare", "select", "convert") and INDEX in (inst.type, *(a.type for a in inst.args)):
            counts.addresses += 1
            found = self._index(inst, env)
            if found is not None:
                env[inst] = found
        elif kind in ("binary", "compare", "select", "convert", "shuffle", "virtual"):
            self._arithmetic(inst, counts)

    def _vectors(self, inst: Inst) -> float:
        """How many of the target's vectors an instruction's widest operand or result fills."""
        if inst.type.scalar not in BYTES:
            return 1.0
        bits = max(8 * BYTES[t.scalar] * t.lanes for t in (inst.type, *(a.type for a in inst.args)) if t.scalar in BYTES)
        return float(max(1, -(-bits // self.target.vector_bits))) if self.target.vector_bits else float(inst.type.lanes)

    def _arithmetic(self, inst: Inst, counts: Counts) -> None:
        vectors = self._vectors(inst)
        floats = inst.type.is_float and inst.kind in ("binary", "virtual")
        weight = SLOW.get(inst.attr, 1.0) if inst.kind == "binary" else VIRTUAL.get(inst.attr, 1.0) if floats else 1.0
        if floats and not self.target.fpu:
            weight *= SOFT
        whole = self.target.instructions(inst.attr, *(a.type for a in inst.args)) if inst.kind == "virtual" else 0
        if whole:
            counts.others += whole
        elif inst.kind == "virtual" and inst.attr in ADDED:
            counts.products += vectors
            counts.others += 0 if any(name in f for f in self.target.features for name in MULTIPLY_ADD) else vectors
        elif floats or (inst.kind == "binary" and inst.attr == "mul"):
            counts.products += vectors * weight
        else:
            counts.others += vectors * weight

    def _index(self, inst: Inst, env: Env) -> int | None:
        values = [self._value(a, env) for a in inst.args]
        if inst.kind == "select":
            return values[2] if values[0] == 0 else values[1] if values[0] is not None else None
        if any(v is None for v in values) or inst.kind == "convert":
            if inst.attr == "smin":  # what is known of a minimum is what it does not exceed
                return next((v for v in values if v is not None), None)
            return values[0] if inst.kind == "convert" and values else None
        a, b = (int(v) for v in values if v is not None)
        if inst.kind == "compare":
            name = inst.attr if inst.attr in ("eq", "ne") else inst.attr.lstrip("u")
            return int({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[name])
        simple = {"add": a + b, "sub": a - b, "mul": a * b, "and": a & b, "or": a | b, "xor": a ^ b}
        if inst.attr in simple:
            return simple[inst.attr]
        if inst.attr in ("udiv", "sdiv", "urem", "srem"):
            return None if not b else a // b if inst.attr.endswith("div") else a % b
        if inst.attr in ("smin", "umin", "smax", "umax"):
            return min(a, b) if inst.attr.endswith("min") else max(a, b)
        return {"shl": a << min(b, 63), "lshr": a >> min(b, 63), "ashr": a >> min(b, 63)}.get(inst.attr)

    def _loop(self, inst: Inst, env: Env) -> float:
        """The middle one of its trips stands for all."""
        start, stop, step = (self._value(a, env) for a in inst.args[:3])
        (body,) = inst.blocks
        inner = dict(env)
        trips = UNKNOWN_TRIPS
        if start is not None and stop is not None and step:
            trips = len(range(start, stop, step))
            inner[body.params[0]] = start + trips // 2 * step
        for param, first in zip(body.params[1:], inst.args[3:], strict=True):
            value = self._value(first, env)
            if value is not None:
                inner[param] = value
        return trips * (self.block(body, inner) + 2 / ISSUE) if trips else 0.0

    def _while(self, inst: Inst, env: Env) -> float:
        return UNKNOWN_TRIPS * sum(self.block(block, dict(env)) for block in inst.blocks)

    def _if(self, inst: Inst, env: Env) -> float:
        condition = self._value(inst.args[0], env)
        if condition is not None:
            return self.block(inst.blocks[0 if condition else 1], dict(env))
        return max(self.block(block, dict(env)) for block in inst.blocks)

    def _call(self, inst: Inst, env: Env) -> float:
        kernel: Kernel = inst.attr
        values = tuple(self._value(a, env) for a in inst.args)
        key = kernel.name, values
        if key not in self.known:
            inner = {p: v for p, v in zip(kernel.params, values, strict=True) if v is not None}
            self.known[key] = self.block(kernel.body, inner)
        return self.known[key] + CALL
