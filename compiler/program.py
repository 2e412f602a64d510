"""Program: what lowering gives and backends take. Every offset is fixed; nothing here is about LLVM or files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cortado.compiler.lang import Kernel
from cortado.compiler.types import TensorInfo, TensorType

ALIGNMENT = 64  # bytes: of the arena's start, of every buffer and of the weights


@dataclass(frozen=True)
class Operand:
    """A tensor as a kernel sees it: the type and, per axis, the distance of neighbours in elements.

    The last axis of a tensor of rank > 0 always has stride 1. Views (of a concatenated buffer, of a slice) have larger outer strides.
    """

    type: TensorType
    strides: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


@dataclass(frozen=True, eq=False)
class Ref:
    """What a kernel's pointer points to, seen from one node.

    kind: "input" or "output" (of the node, by index), "weights" (array), "scratch" (nbytes). offset: elements from the start of an input or
    output to where the pointer points.
    """

    kind: str
    index: int = 0
    array: np.ndarray | None = None
    nbytes: int = 0
    offset: int = 0


@dataclass(frozen=True, eq=False)
class KernelCall:
    """One kernel launch of a node. Drivers take one ptr per ref, then `begin` and `end` (index): the range of tasks to do.

    tasks: how many independent tasks there are; any partition of range(tasks), in any order or in parallel, gives the same bits.
    """

    kernel: Kernel
    refs: tuple[Ref, ...]
    tasks: int = 1


@dataclass(frozen=True)
class Buffer:
    """place: "input" or "output" (offset is the position in the interface), "arena" or "weights" (offset in bytes).

    first, last: the steps between which it is live (arena only).
    """

    name: str
    place: str
    nbytes: int
    offset: int
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Argument:
    """buffer: index into Program.buffers; offset: bytes into it."""

    buffer: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Step:
    """kernel(args..., begin, end) over `tasks` tasks.

    name: the graph node's; origin: the source nodes it computes; macs: multiply-adds; shape: of the node's first output.
    """

    kernel: Kernel
    args: tuple[Argument, ...]
    tasks: int
    name: str
    op: str
    origin: tuple[str, ...] = ()
    macs: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """inputs, outputs: (source name, description) in the source's order. weights: the packed blob, without its header.

    arena_bytes: the sum of buffers and holes, without the header and the alignment slack that the bundle adds.
    """

    name: str
    inputs: tuple[tuple[str, TensorInfo], ...]
    outputs: tuple[tuple[str, TensorInfo], ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    weights: bytes
