"""Checks and shape arithmetic that several operator families share. All raise ShapeError in the user's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from cortado.compiler.ops.record import require
from cortado.compiler.types import TensorType

FLOATS = frozenset({"float32", "float64", "float16"})
INTS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "int64"})
NUMBERS = FLOATS | INTS
MAX_RANK = 16
MAX_BYTES = 2**31 - 1  # offsets into a tensor fit 32 signed bits, on every target


def show(shape: Iterable[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def arity(types: Sequence[TensorType], wanted: int) -> None:
    require(len(types) == wanted, f"takes {wanted} input{'s' if wanted != 1 else ''}, got {len(types)}")


def one_of(dtype: str, allowed: frozenset[str], what: str = "the input") -> None:
    require(dtype in allowed, f"{what} is {dtype}; it must be {' or '.join(sorted(allowed))}")


def same_dtype(types: Sequence[TensorType]) -> str:
    found = sorted({t.dtype for t in types})
    require(len(found) == 1, f"the inputs have different types ({', '.join(t.dtype for t in types)}); cast them to one")
    return found[0]


def per_axis(name: str, values: Sequence[int], rank: int) -> None:
    require(
        len(values) == rank and all(isinstance(v, int) for v in values),
        f"{name}={tuple(values)} must give one whole number for each of the {rank} axes",
    )


def axis_in(axis: int, rank: int, name: str = "axis") -> None:
    require(
        isinstance(axis, int) and 0 <= axis < rank, f"{name} {axis} does not exist: the input has {rank} axes, counted from 0"
    )


def broadcast_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """numpy's rule: aligned at the last axis, each axis equal or 1."""
    rank = max((len(s) for s in shapes), default=0)
    result = []
    for back in range(rank, 0, -1):
        sizes = {s[-back] for s in shapes if len(s) >= back} - {1}
        if len(sizes) > 1:  # asked first, as making the message takes longer than all else here
            shown = " and ".join(map(show, shapes))
            require(False, f"shapes {shown} do not broadcast: axis -{back} has sizes {sorted(sizes)}; sizes must be equal or 1")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def moved(kind: TensorType, shape: Sequence[int], axis: int | None = None) -> TensorType:
    """The type of the same elements in another shape. axis: where a quantization axis went; None if it did not survive."""
    quant = kind.quant
    if quant is not None and quant.axis is not None:
        require(axis is not None, f"the input is quantized along axis {quant.axis}, which this operator does not keep")
        quant = replace(quant, axis=axis)
    return TensorType(tuple(shape), kind.dtype, quant)


def bounded(kind: TensorType, what: str) -> None:
    """Refuse what no target could hold, before anything is allocated."""
    require(len(kind.shape) <= MAX_RANK, f"{what} has {len(kind.shape)} axes; at most {MAX_RANK} are supported")
    require(
        kind.nbytes <= MAX_BYTES,
        f"{what} is {kind}: {kind.nbytes} bytes; a tensor may have at most {MAX_BYTES} bytes. Check the shapes and arguments",
    )
