"""Recording of kernels by staging: Python loops unroll while recording, `k.loop` records a run-time loop, values overload operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union

from cortado.compiler import lang
from cortado.compiler.lang import BYTES, I1, INDEX, PTR, VOID, Block, Inst, Kernel, Type
from cortado.compiler.target import Target
from cortado.compiler.virtual import VIRTUALS

Number = Union["Val", int, float]


class Val(Inst):
    """A recorded value; operators record further instructions in the builder that made it."""

    def __init__(self, k: KernelBuilder, kind: str, type_: Type, args: tuple[Inst, ...] = (), attr: Any = None) -> None:
        super().__init__(kind, type_, args, attr)
        self.k = k

    def __add__(self, other: Number) -> Val:
        return self.k.binary("add", self, other)

    def __radd__(self, other: Number) -> Val:
        return self.k.binary("add", other, self)

    def __sub__(self, other: Number) -> Val:
        return self.k.binary("sub", self, other)

    def __rsub__(self, other: Number) -> Val:
        return self.k.binary("sub", other, self)

    def __mul__(self, other: Number) -> Val:
        return self.k.binary("mul", self, other)

    def __rmul__(self, other: Number) -> Val:
        return self.k.binary("mul", other, self)

    def __truediv__(self, other: Number) -> Val:
        return self.k.binary("div", self, other)

    def __rtruediv__(self, other: Number) -> Val:
        return self.k.binary("div", other, self)

    def __floordiv__(self, other: Number) -> Val:
        """Unsigned division: indices are never negative."""
        return self.k.binary("udiv", self, other)

    def __mod__(self, other: Number) -> Val:
        return self.k.binary("urem", self, other)

    def __and__(self, other: Number) -> Val:
        return self.k.binary("and", self, other)

    def __or__(self, other: Number) -> Val:
        return self.k.binary("or", self, other)

    def __xor__(self, other: Number) -> Val:
        return self.k.binary("xor", self, other)

    def __lshift__(self, other: Number) -> Val:
        return self.k.binary("shl", self, other)

    def __rshift__(self, other: Number) -> Val:
        """Arithmetic shift right; `k.binary("lshr", ...)` for the logical one."""
        return self.k.binary("ashr", self, other)

    def __lt__(self, other: Number) -> Val:
        return self.k.compare("lt", self, other)

    def __le__(self, other: Number) -> Val:
        return self.k.compare("le", self, other)

    def __gt__(self, other: Number) -> Val:
        return self.k.compare("gt", self, other)

    def __ge__(self, other: Number) -> Val:
        return self.k.compare("ge", self, other)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.type}>"


class KernelBuilder:
    """Records one kernel for one target. `finish` gives the Kernel; a builder is used once."""

    def __init__(self, family: str, target: Target, shared: bool = False) -> None:
        self.family, self.target, self.shared = family, target, shared
        self._params: list[Val] = []
        self._block = Block()
        self._constants: dict[tuple[Any, ...], Val] = {}
        self._seen: list[dict[tuple[Any, ...], Val]] = [{}]

    # --- parameters, constants, the end ---

    def param(self, name: str, type_: Type = PTR) -> Val:
        value = Val(self, "param", type_, (), name)
        self._params.append(value)
        return value

    def const(self, number: int | float, type_: Type) -> Val:
        number = float(number) if type_.is_float else int(number)
        key = (repr(number), type_)
        if key not in self._constants:
            self._constants[key] = Val(self, "const", type_, (), number)
        return self._constants[key]

    def index(self, number: int) -> Val:
        return self.const(number, INDEX)

    def zero(self, type_: Type) -> Val:
        return self.const(0, type_)

    def finish(self, result: Val | None = None) -> Kernel:
        self._block.results = () if result is None else (result,)
        return Kernel(self.family, tuple(self._params), self._block, self.shared)

    # --- arithmetic ---

    def binary(self, op: str, a: Number, b: Number) -> Val:
        a, b = self._pair(a, b)
        if op not in lang.BINARY:
            raise ValueError(f"no binary operation {op!r}")
        folded = _fold(op, a, b)
        if folded is not None:
            return folded if isinstance(folded, Val) else self.const(folded, a.type)
        return self._pure("binary", a.type, (a, b), op)

    def min(self, a: Number, b: Number) -> Val:
        return self._ordered("min", "smin", a, b)

    def max(self, a: Number, b: Number) -> Val:
        return self._ordered("max", "smax", a, b)

    def compare(self, predicate: str, a: Number, b: Number) -> Val:
        a, b = self._pair(a, b)
        if predicate not in lang.COMPARE:
            raise ValueError(f"no comparison {predicate!r}")
        return self._pure("compare", I1.with_lanes(a.type.lanes), (a, b), predicate)

    def select(self, mask: Val, a: Number, b: Number) -> Val:
        a, b = self._pair(a, b)
        return self._pure("select", a.type, (mask, a, b))

    def convert(self, a: Val, type_: Type, how: str) -> Val:
        if how not in lang.CONVERT:
            raise ValueError(f"no conversion {how!r}")
        return a if how == "bitcast" and a.type == type_ else self._pure("convert", type_, (a,), how)

    def broadcast(self, a: Val, lanes: int) -> Val:
        if lanes == 1 or a.type.lanes == lanes:
            return a
        if a.kind == "const":
            return self.const(a.attr, a.type.with_lanes(lanes))
        return self._pure("broadcast", a.type.with_lanes(lanes), (a,))

    def shuffle(self, a: Val, b: Val, lanes: Sequence[int]) -> Val:
        return self._pure("shuffle", a.type.with_lanes(len(lanes)), (a, b), tuple(lanes))

    def lane(self, a: Val, number: int) -> Val:
        """One lane as a scalar."""
        return a if a.type.lanes == 1 else self.shuffle(a, a, (number,))

    def virtual(self, name: str, *args: Val) -> Val:
        """A virtual instruction: the target's row where it has one, else the portable fallback, recorded in its place."""
        row = VIRTUALS[name]
        types = tuple(a.type for a in args)
        if self.target.has(name, *types):
            return self._pure("virtual", row.result(*types), args, name)
        return row.fallback(self, *args)

    # --- memory ---

    def offset(self, ptr: Val, index: Number, scalar: str) -> Val:
        index = self._index(index)
        if index.kind == "const" and index.attr == 0:
            return ptr
        return self._pure("offset", ptr.type, (ptr, index), scalar)

    def load(self, ptr: Val, type_: Type, index: Number = 0) -> Val:
        return self._effect("load", type_, (ptr, self._index(index)))

    def store(self, ptr: Val, value: Val, index: Number = 0) -> None:
        self._effect("store", VOID, (ptr, self._index(index), value))

    def masked_load(self, ptr: Val, type_: Type, mask: Val, index: Number = 0) -> Val:
        return self._effect("masked_load", type_, (ptr, self._index(index), mask))

    def masked_store(self, ptr: Val, value: Val, mask: Val, index: Number = 0) -> None:
        self._effect("masked_store", VOID, (ptr, self._index(index), value, mask))

    def local(self, scalar: str, count: int) -> Val:
        return self._effect("local", PTR, (), (scalar, count))

    def load_lanes(self, ptr: Val, type_: Type, count: int, index: Number = 0) -> Val:
        """The first `count` lanes (known while recording) of a vector; the rest are zero and their memory is not touched."""
        if count == type_.lanes:
            return self.load(ptr, type_, index)
        if self.target.masked and (self.target.vector_bits > 256 or BYTES[type_.scalar] >= 4) and not _is_short(type_, count):
            return self.masked_load(ptr, type_, self.first_lanes(type_.lanes, count), index)
        base = self._index(index)
        whole: Val | None = None
        for at, size in _pieces(count):
            part = self._widen(self.load(ptr, type_.with_lanes(size), base + at), type_.lanes)
            if whole is None:
                whole = part
            else:
                keep = [i if i < at else type_.lanes + i - at if i < at + size else -1 for i in range(type_.lanes)]
                whole = self.shuffle(whole, part, keep)
        zero = self.zero(type_)
        return zero if whole is None else self.shuffle(whole, zero, [i if i < count else type_.lanes for i in range(type_.lanes)])

    def store_lanes(self, ptr: Val, value: Val, count: int, index: Number = 0) -> None:
        """Store the first `count` lanes (known while recording); the memory past them is not touched."""
        lanes = value.type.lanes
        if count == lanes:
            self.store(ptr, value, index)
        elif self.target.masked and self.target.vector_bits > 256 and not _is_short(value.type, count):
            # AVX2's masked stores take tens of micro-operations on AMD's cores; at most three parts do not.
            self.masked_store(ptr, value, self.first_lanes(lanes, count), index)
        else:
            base = self._index(index)
            for at, size in _pieces(count):
                self.store(ptr, self.shuffle(value, value, range(at, at + size)), base + at)

    def first_lanes(self, lanes: int, count: int) -> Val:
        """A mask with the first `count` lanes on."""
        on, off = self.const(1, I1.with_lanes(lanes)), self.const(0, I1.with_lanes(lanes))
        return self.shuffle(on, off, [i if i < count else lanes + i for i in range(lanes)])

    # --- control ---

    def loop(
        self, start: Number, stop: Number, step: int, body: Callable[..., Sequence[Val] | None], carried: Sequence[Val] = ()
    ) -> tuple[Val, ...]:
        """for i in range(start, stop, step): carried = body(i, *carried). Zero or one trip known while recording leaves no loop."""
        start, stop = self._index(start), self._index(stop)
        if start.kind == stop.kind == "const":
            trips = len(range(start.attr, stop.attr, step))
            if trips <= 1:
                return tuple(body(start, *carried) or ()) if trips else tuple(carried)
        variable = Val(self, "param", INDEX, (), "i")
        inside = tuple(Val(self, "param", c.type, (), "carried") for c in carried)
        block = self._record((variable, *inside), lambda: body(variable, *inside))
        return self._region("loop", (start, stop, self.index(step), *carried), (block,))

    def if_(
        self,
        condition: Val,
        then: Callable[[], Sequence[Val] | None],
        otherwise: Callable[[], Sequence[Val] | None] | None = None,
    ) -> tuple[Val, ...]:
        blocks = (self._record((), then), self._record((), otherwise or (lambda: ())))
        return self._region("if", (condition,), blocks)

    def while_(
        self, condition: Callable[..., Val], body: Callable[..., Sequence[Val]], carried: Sequence[Val]
    ) -> tuple[Val, ...]:
        def variables() -> tuple[Val, ...]:
            return tuple(Val(self, "param", c.type, (), "carried") for c in carried)

        test, inside = variables(), variables()
        blocks = (self._record(test, lambda: (condition(*test),)), self._record(inside, lambda: body(*inside)))
        return self._region("while", tuple(carried), blocks)

    def call(self, kernel: Kernel, *args: Number) -> Val:
        """The callee's result; a value of type void where it has none."""
        values = tuple(self._index(a) for a in args)
        expected = tuple(p.type for p in kernel.params)
        if tuple(v.type for v in values) != expected:
            raise TypeError(f"{kernel.name} takes {expected}, got {tuple(v.type for v in values)}")
        return self._effect("call", VOID if kernel.result is None else kernel.result.type, values, kernel)

    # --- inside ---

    def _index(self, value: Number) -> Val:
        return value if isinstance(value, Val) else self.index(int(value))

    def _pair(self, a: Number, b: Number) -> tuple[Val, Val]:
        if isinstance(a, Val):
            b = b if isinstance(b, Val) else self.const(b, a.type)
        elif isinstance(b, Val):
            a = self.const(a, b.type)
        else:
            raise TypeError("at least one operand must be a recorded value")
        if a.type != b.type:
            raise TypeError(f"operands of types {a.type} and {b.type}")
        return a, b

    def _ordered(self, of_floats: str, of_ints: str, a: Number, b: Number) -> Val:
        left, right = self._pair(a, b)
        return self.binary(of_floats if left.type.is_float else of_ints, left, right)

    def _widen(self, a: Val, lanes: int) -> Val:
        if a.type.lanes == 1:
            return self.broadcast(a, lanes)
        return self.shuffle(a, a, [i if i < a.type.lanes else -1 for i in range(lanes)])

    def _pure(self, kind: str, type_: Type, args: tuple[Inst, ...], attr: Any = None) -> Val:
        """Record unless the same pure instruction is already visible in this block or one around it."""
        key = (kind, type_, args, attr)
        for scope in reversed(self._seen):
            if key in scope:
                return scope[key]
        value = self._effect(kind, type_, args, attr)
        self._seen[-1][key] = value
        return value

    def _effect(self, kind: str, type_: Type, args: tuple[Inst, ...], attr: Any = None) -> Val:
        value = Val(self, kind, type_, args, attr)
        self._block.body.append(value)
        return value

    def _record(self, params: tuple[Val, ...], body: Callable[[], Sequence[Val] | None]) -> Block:
        outer, self._block = self._block, Block(params)
        self._seen.append({})
        self._block.results = tuple(body() or ())
        self._seen.pop()
        inner, self._block = self._block, outer
        return inner

    def _region(self, kind: str, args: tuple[Inst, ...], blocks: tuple[Block, ...]) -> tuple[Val, ...]:
        results = blocks[-1].results
        if kind == "if" and [r.type for r in blocks[0].results] != [r.type for r in results]:
            raise TypeError("the branches of an if give different types")
        node = self._effect(kind, VOID, args)
        node.blocks = blocks
        return tuple(self._effect("result", value.type, (node,), i) for i, value in enumerate(results))


def _is_short(type_: Type, count: int) -> bool:
    """Whether so many lanes are a shorter vector, or a word, which needs no mask.

    One lane never gets a mask: LLVM joins a store of it with the narrowing before, and then stores the whole word.
    """
    return count == 1 or (count.bit_count() == 1 and count * BYTES[type_.scalar] >= 4)


def _pieces(count: int) -> list[tuple[int, int]]:
    """count as (position, power of two), largest first."""
    pieces, at = [], 0
    while at < count:
        size = 1 << ((count - at).bit_length() - 1)
        pieces.append((at, size))
        at += size
    return pieces


def _fold(op: str, a: Val, b: Val) -> Val | int | None:
    """Index arithmetic that is known while recording: a number or one of the operands; None where nothing is known."""
    if a.type.is_float:
        return None
    x, y = (v.attr if v.kind == "const" else None for v in (a, b))
    if x is not None and y is not None and a.type == INDEX:
        table: dict[str, Callable[[], int]] = {
            "add": lambda: x + y, "sub": lambda: x - y, "mul": lambda: x * y, "udiv": lambda: x // y, "urem": lambda: x % y,
            "smin": lambda: min(x, y), "smax": lambda: max(x, y), "umin": lambda: min(x, y), "umax": lambda: max(x, y),
        }  # fmt: skip
        return table[op]() if op in table and (y or op not in ("udiv", "urem")) else None
    if op in ("add", "or", "xor") and x == 0:
        return b
    if op in ("add", "sub", "or", "xor", "shl", "lshr", "ashr") and y == 0:
        return a
    if op == "mul" and x == 1:
        return b
    if op in ("mul", "udiv", "sdiv") and y == 1:
        return a
    if op in ("mul", "and") and 0 in (x, y):
        return 0
    return None
