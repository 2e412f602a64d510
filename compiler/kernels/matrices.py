"""Stacks of matrices as products see them: which axes are rows and columns, and what broadcasting makes of the axes before them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.strided import strided_copy
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

Batch = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matrices:
    """Matrices as they are multiplied: (size, distance) of the axes before them, of rows and of columns."""

    batch: Batch
    rows: tuple[int, int]
    columns: tuple[int, int]

    @staticmethod
    def of(operand: Operand, transposed: bool) -> Matrices:
        *batch, rows, columns = zip(operand.shape, operand.strides, strict=True)
        return Matrices(tuple(batch), *((columns, rows) if transposed else (rows, columns)))

    def operand(self, dtype: str) -> Operand:
        """The same elements, not transposed."""
        axes = (*self.batch, self.rows, self.columns)
        return Operand(TensorType(tuple(size for size, _ in axes), dtype), tuple(distance for _, distance in axes))


@dataclass(frozen=True)
class Stack:
    """The products of two stacks. groups: one axis for each of the result's before its matrices. weights: (size, distance) of those along
    which the second operand has matrices of its own, of which there are `distinct`.
    """

    groups: tuple[GroupAxis, ...]
    weights: Batch
    distinct: int


def stack_of(a: Batch, b: Batch, out: Operand) -> Stack:
    """a, b: the operands' axes before their matrices, which broadcast to the result's."""
    batch = out.shape[:-2]
    of_a, of_b = _spread(a, len(batch)), _spread(b, len(batch))
    groups: list[GroupAxis] = []
    weights: list[tuple[int, int]] = []
    distinct = 1
    for i in reversed(range(len(batch))):
        shared = of_b[i][0] == 1
        along = of_a[i][1] if of_a[i][0] > 1 else 0
        groups.insert(0, GroupAxis(batch[i], along, 0 if shared else distinct, out.strides[i], 0))
        if not shared:
            weights.insert(0, of_b[i])
            distinct *= batch[i]
    return Stack(tuple(groups), tuple(weights), distinct)


def _spread(batch: Batch, rank: int) -> list[tuple[int, int]]:
    """Broadcasting: axes of one in front."""
    return [(1, 0)] * (rank - len(batch)) + list(batch)


def by_rows(a: Matrices, dtype: str, target: Target) -> tuple[list[KernelCall], Ref, Matrices]:
    """Input 0 as matrices whose rows' elements are neighbours in memory: where they are not, a copy."""
    if a.columns[1] == 1 or a.columns[0] <= 1:
        return [], Ref("input", 0), a
    source = a.operand(dtype)
    copied = Operand(source.type, contiguous_strides(source.shape))
    scratch = Ref("scratch", nbytes=source.type.nbytes)
    calls = strided_copy("matmul_rows", source.type.itemsize, source.shape, source.strides, copied.strides, target)
    return [replace(call, refs=(Ref("input", 0), scratch), groups=0) for call in calls], scratch, Matrices.of(copied, False)
