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
    groups: where the tasks are `groups` equal runs in the order of output 0's rows (along its first axis of more than one element), so
    that of N rows the first n are made by the first ceil(n * groups / N) runs; 0 where they are not in this order.
    generic: name in `kernels.generic.GENERIC` where this is no fast way, else "".
    """

    kernel: Kernel
    refs: tuple[Ref, ...]
    tasks: int = 1
    groups: int = 0
    generic: str = ""


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


@dataclass(frozen=True)
class Guard:
    """A step with it runs only where the truth value (one byte) at `place` is `wanted`."""

    place: Argument
    wanted: bool


@dataclass(frozen=True)
class Limit:
    """The tasks of a step that the rows found at run time need: those of so many of `groups` equal runs.

    count: where the number of rows is (int32); rows: the most there can be.
    """

    count: Argument
    rows: int
    groups: int

    @property
    def scale(self) -> tuple[int, int]:
        """(m, s): groups(n) = min((n * m + 2**s - 1) >> s, groups), at least ceil(n * groups / rows); without a division, in 31 bits."""
        whole, rest = divmod(self.groups, self.rows)
        if not rest:
            return whole, 0
        shift = 0
        while self.rows * (-(-(self.groups << shift + 1) // self.rows)) + (2 << shift) < 1 << 31 and shift < 16:
            shift += 1
        return -(-(self.groups << shift) // self.rows), shift

    def tasks(self, count: int, tasks: int) -> int:
        """How many of `tasks` are done for `count` rows."""
        m, shift = self.scale
        return min((max(count, 0) * m + (1 << shift) - 1) >> shift, self.groups) * (tasks // self.groups)


@dataclass(frozen=True, eq=False)
class Step:
    """kernel(args..., begin, end) over `tasks` tasks; where all guards hold, and as far as the limit says.

    name: the graph node's; origin: the source nodes it computes; macs: multiply-adds; shape: of the node's first output.
    generic: as of its KernelCall.
    """

    kernel: Kernel
    args: tuple[Argument, ...]
    tasks: int
    name: str
    op: str
    origin: tuple[str, ...] = ()
    macs: int = 0
    shape: tuple[int, ...] = ()
    guards: tuple[Guard, ...] = ()
    limit: Limit | None = None
    generic: str = ""

    @property
    def touched(self) -> tuple[Argument, ...]:
        """Everything that is read or written: by the kernel, and to decide on it."""
        count = () if self.limit is None else (self.limit.count,)
        return (*self.args, *(guard.place for guard in self.guards), *count)


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
