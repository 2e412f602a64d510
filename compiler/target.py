"""A target as plain, frozen, self-validating data. The instances live in `backends.targets`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cortado.compiler.lang import FLOATS, Type

SUM_BITS = 128  # what x86-64 at its least level and arm64 have
_BITS = MappingProxyType({"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i8": 8, "i16": 16, "i32": 32, "i64": 64})


@dataclass(frozen=True)
class Row:
    """One instruction of a target: how a virtual instruction is had there. The compiler looks at name, types and feature only.

    name: key of `virtual.VIRTUALS`. types: argument types, as in the node. feature: needed target feature, or "".
    emit: for an emitter of the target's own language; opaque here.
    instructions: that it becomes; 0: one for each vector of its widest operand.
    """

    name: str
    types: tuple[Type, ...]
    feature: str
    emit: Callable[..., str]
    instructions: int = 0


@dataclass(frozen=True)
class Memory:
    """A memory of a board or core. kind: "l1", "l2", "l3", "flash", "ram", "tcm"."""

    kind: str
    nbytes: int


@dataclass(frozen=True)
class Target:
    """name: as the user writes it. features: LLVM's names, each with its "+".

    vector_bits: 0 where there are no vectors. vector_registers: architectural float/vector registers that a kernel may fill.
    masked: masked loads and stores are real instructions, not loops of branches. fpu: float32 arithmetic is in hardware.
    divides: integer division of 32 bits is.
    products: multiply-adds of whole vectors that start in a cycle.
    sum_bits: floats are added up, and their extrema found, in vectors of at most so many bits; 0: as long as vector_bits.
    levels: what one bundle carries code for, the least demanding first; the target itself is what all of them have. Else empty.
    """

    name: str
    triple: str
    cpu: str
    family: str
    object_format: str = "elf"
    features: tuple[str, ...] = ()
    pointer_bits: int = 64
    vector_bits: int = 0
    vector_registers: int = 16
    masked: bool = False
    fpu: bool = True
    divides: bool = True
    products: int = 2
    sum_bits: int = 0
    rows: tuple[Row, ...] = ()
    memories: tuple[Memory, ...] = ()
    clock_hz: int = 0
    levels: tuple[Target, ...] = ()
    has_rows: frozenset[tuple[str, tuple[Type, ...]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.pointer_bits not in (32, 64):
            raise ValueError(f"target {self.name}: pointers of {self.pointer_bits} bits")
        if self.vector_bits % 32 or self.vector_bits > 2048:
            raise ValueError(f"target {self.name}: vectors of {self.vector_bits} bits")
        if self.sum_bits % 32:
            raise ValueError(f"target {self.name}: sums in {self.sum_bits} bits")
        if self.object_format not in ("elf", "macho", "coff", "wasm", "ptx"):
            raise ValueError(f"target {self.name}: unknown object format {self.object_format!r}")
        available = set(self.features)
        for row in self.rows:
            if row.feature and row.feature not in available:
                raise ValueError(f"target {self.name}: row {row.name} needs {row.feature}, which is not among its features")
        object.__setattr__(self, "has_rows", frozenset((row.name, row.types) for row in self.rows))

    def has(self, name: str, *types: Type) -> bool:
        """Whether a row provides the virtual instruction for these argument types."""
        return (name, types) in self.has_rows

    def instructions(self, name: str, *types: Type) -> int:
        """What `Row.instructions` says of the row that provides it; 0 where there is none."""
        return next((row.instructions for row in self.rows if (row.name, row.types) == (name, types)), 0)

    def lanes(self, scalar: str) -> int:
        """Elements of the scalar type in one vector; 1 where there are no vectors."""
        return max(1, self.vector_bits // _BITS[scalar])

    def sum_lanes(self, scalar: str) -> int:
        """As `lanes`, for kernels in which the length of vectors decides in what order numbers are added or compared."""
        limited = self.sum_bits and scalar in FLOATS
        return max(1, (min(self.vector_bits, self.sum_bits) if limited else self.vector_bits) // _BITS[scalar])

    def cache(self, kind: str, otherwise: int) -> int:
        """Bytes of a memory level, or a usual size where the target does not say."""
        return next((m.nbytes for m in self.memories if m.kind == kind), otherwise)


def reproducible(target: Target) -> Target:
    """The target without what makes float results depend on it: nothing is fused, and the order of sums is that of short vectors.

    Kernels recorded for it, contractions excepted, compute the same bits on all levels of x86-64 and on arm64, but for NaN's sign and
    payload. Elements that are treated one by one keep the longest vectors.
    """
    return replace(target, sum_bits=SUM_BITS, rows=tuple(row for row in target.rows if row.name != "fma"))
