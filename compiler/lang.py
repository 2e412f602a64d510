"""The kernel language: the only other language there is. Kernels are recorded by `builder`, run by `interpret`, printed by emitters.

A Kernel is a function: parameters, then a block of instructions in SSA form. A shared kernel may have a result, its block's. Node kinds
(KINDS) and their fields:

| kind | args | attr | meaning |
| --- | --- | --- | --- |
| param | | name | a parameter (ptr or index; of a shared kernel also i32), the variable of a loop or a carried value |
| const | | number | a number of the type; a vector of it in every lane when the type has lanes |
| binary | a, b | op of BINARY | lane by lane |
| compare | a, b | predicate of COMPARE | i1 lanes |
| select | mask, a, b | | a where mask (one lane selects whole vectors) |
| convert | a | how of CONVERT | to the node's type |
| broadcast | scalar | | every lane |
| shuffle | a, b | lane numbers | lanes of a then b; -1 is unspecified; a mask of one lane gives a scalar |
| offset | ptr, index | scalar type | ptr moved by index elements |
| load | ptr, index | | the vector (or scalar) at ptr + index elements |
| store | ptr, index, value | | |
| masked_load | ptr, index, mask | | lanes off read nothing and are zero |
| masked_store | ptr, index, value, mask | | lanes off write nothing |
| virtual | ... | name in `virtual.VIRTUALS` | an instruction that the target's rows provide |
| call | ... | Kernel | an internal function; the value is its result, if it has one |
| local | | (scalar, count) | a pointer to an uninitialised array that lives as long as the call |
| loop | start, stop, step, *carried | | blocks: one, params (variable, *carried), results the next carried values; runs while variable < stop |
| if | condition | | blocks: then, else; their results are the node's |
| while | *carried | | blocks: condition (result one i1), body; params are the carried values |
| result | | index | of the loop / if / while in args[0] |
| grid_index | | axis or (axis, "block") | GPU work item |
| barrier | | | GPU block barrier |

Types: index is as wide as a pointer; i1 is a truth value and has no form in memory; integers have no sign, the operations do. Integers
wrap around, but index additions, subtractions, products and left shifts must not. Addresses are multiples of the element's size. A shift by
the width or more and a conversion out of range give an unspecified number; dividing by zero is an error.
Float min and max are `a < b ? a : b` and `a > b ? a : b` (so the second where either is NaN).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

KINDS = frozenset(
    "param const binary compare select convert broadcast shuffle offset load store masked_load masked_store virtual call local "
    "loop if while result grid_index barrier".split()
)
FLOATS = frozenset({"f64", "f32", "f16", "bf16"})
INTS = frozenset({"i8", "i16", "i32", "i64", "index"})
BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "i1": 1}
BINARY = frozenset(
    "add sub mul div min max "  # floats; add, sub, mul also integers
    "sdiv udiv srem urem smin smax umin umax and or xor shl lshr ashr".split()
)
COMPARE = frozenset("eq ne lt le gt ge ult ule ugt uge".split())  # floats: ordered, but ne is unordered-or-different
CONVERT = frozenset("sext zext trunc sitofp uitofp fptosi fptoui fpext fptrunc bitcast".split())
SCALAR_OF = {
    "float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "int8": "i8", "uint8": "i8", "int16": "i16",
    "uint16": "i16", "int32": "i32", "int64": "i64", "bool": "i8",
}  # fmt: skip


@dataclass(frozen=True)
class Type:
    """scalar: one of BYTES, "index" or "ptr"; lanes: 1 is a scalar; space: memory space of a ptr ("", "shared")."""

    scalar: str
    lanes: int = 1
    space: str = ""

    def __post_init__(self) -> None:
        if self.scalar not in BYTES and self.scalar not in ("index", "ptr", "void"):
            raise ValueError(f"unknown scalar type {self.scalar!r}")
        if self.lanes < 1 or (self.lanes > 1 and self.scalar in ("index", "ptr", "void")):
            raise ValueError(f"{self.scalar} cannot have {self.lanes} lanes")

    @property
    def is_float(self) -> bool:
        return self.scalar in FLOATS

    def with_lanes(self, lanes: int) -> Type:
        return replace(self, lanes=lanes)

    def __str__(self) -> str:
        return self.scalar if self.lanes == 1 else f"{self.scalar}x{self.lanes}"


F32, I32, I8, I64, I1 = Type("f32"), Type("i32"), Type("i8"), Type("i64"), Type("i1")
INDEX, PTR, VOID = Type("index"), Type("ptr"), Type("void")


@dataclass(eq=False)
class Inst:
    """One instruction; also the value it computes. Compared by identity."""

    kind: str
    type: Type
    args: tuple[Inst, ...] = ()
    attr: Any = None
    blocks: tuple[Block, ...] = ()


@dataclass(eq=False)
class Block:
    params: tuple[Inst, ...] = ()
    body: list[Inst] = field(default_factory=list)
    results: tuple[Inst, ...] = ()


@dataclass(frozen=True, eq=False)
class Kernel:
    """A recorded function. family: readable name of what it is ("conv_f32_6x4"); name: unique by content.

    shared: called by other kernels (an internal function) rather than being a step's driver. digest: SHA-256 of its text.
    """

    family: str
    params: tuple[Inst, ...]
    body: Block
    shared: bool = False
    name: str = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(text(self).encode()).hexdigest())
        object.__setattr__(self, "name", f"{self.family}_{self.digest[:10]}")

    @property
    def result(self) -> Inst | None:
        return self.body.results[0] if self.body.results else None

    def callees(self) -> tuple[Kernel, ...]:
        """Every kernel this one calls, directly or not, callees first, each once."""
        found: dict[str, Kernel] = {}

        def visit(block: Block) -> None:
            for inst in block.body:
                if inst.kind == "call" and inst.attr.name not in found:
                    visit(inst.attr.body)
                    found[inst.attr.name] = inst.attr
                for inner in inst.blocks:
                    visit(inner)

        visit(self.body)
        return tuple(found.values())


def text(kernel: Kernel) -> str:
    """The kernel as text: numbered values, one line an instruction. Equal texts mean equal kernels (called ones by name)."""
    numbers: dict[Inst, str] = {}
    lines: list[str] = []

    def name(inst: Inst) -> str:
        if inst.kind == "const":
            return f"{inst.type} {inst.attr!r}"
        return numbers.setdefault(inst, f"%{len(numbers)}")

    def attribute(inst: Inst) -> str:
        if inst.attr is None:
            return ""
        return f" {inst.attr.name}" if isinstance(inst.attr, Kernel) else f" {inst.attr}"

    def show(block: Block, depth: int) -> None:
        pad = "  " * depth
        for inst in block.body:
            head = "" if inst.type == VOID and not inst.blocks else f"{name(inst)} = "
            lines.append(f"{pad}{head}{inst.kind}{attribute(inst)} {inst.type} {', '.join(map(name, inst.args))}".rstrip())
            for inner in inst.blocks:
                lines.append(f"{pad}  ({', '.join(f'{name(p)} {p.type}' for p in inner.params)})")
                show(inner, depth + 2)
                lines.append(f"{pad}  -> {', '.join(map(name, inner.results))}")

    lines.append(f"kernel {kernel.family}({', '.join(f'{name(p)} {p.type}' for p in kernel.params)})")
    show(kernel.body, 1)
    if kernel.result is not None:
        lines.append(f"  -> {name(kernel.result)}")
    return "\n".join(lines) + "\n"
