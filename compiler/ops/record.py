"""What an operator is: one record. A new operator is one record and, where needed, one importer line per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.types import TensorType
from cortado.errors import ShapeError

Attrs = Mapping[str, Any]
Infer = Callable[[Sequence[TensorType], Attrs], tuple[TensorType, ...]]
Reference = Callable[[Sequence[np.ndarray], Attrs], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Op:
    """One operator, channels last wherever it has channels.

    name: lower_case, the field's standard term.
    attrs: attribute name -> one line of meaning; a node has exactly these.
    infer: (input types, attrs) -> output types; raises ShapeError in the user's words (without the node's name).
    reference: numpy meaning; (input arrays, attrs) -> output arrays of exactly the inferred types.
    exact: True where every executor must give the reference's bits; False where results may round differently.
    portable: True where the reference's bits do not depend on the machine (no transcendentals, no `@`), so that it may fold constants.
    takes_types: the reference's attrs also hold `input_types`, a tuple: the scales of quantized inputs are in their types.
    macs: (input types, attrs) -> multiply-adds, for reports and cost models.
    counts: output -> the output (int32[1]) that says how many rows of it, along axis 0, are real; the rest are zeros.
    """

    name: str
    infer: Infer
    reference: Reference
    attrs: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    portable: bool = False
    takes_types: bool = False
    macs: Callable[[Sequence[TensorType], Attrs], int] | None = None
    counts: Mapping[int, int] = field(default_factory=dict)


def require(condition: object, message: str) -> None:
    """Raise ShapeError(message) unless the condition holds."""
    if not condition:
        raise ShapeError(message)


def input_types(values: Sequence[Value]) -> tuple[TensorType, ...]:
    return tuple(value.type for value in values)
