"""One of several values, chosen at run time: what a branch of the network leaves behind.

Unlike `where`, only the chosen value is computed (see `compiler.branches`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType


def _infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 2, f"takes a condition and values, got {len(types)} inputs")
    condition, *values = types
    require(condition.dtype == "bool" and condition.size == 1, f"the condition is {condition}; it must be one truth value")
    wanted = attrs["when"]
    require(len(wanted) == len(values), f"has {len(values)} values, and when={wanted}")
    require(set(wanted) <= {True, False} and len(set(wanted)) == len(wanted), f"when={wanted}; it must be different truth values")
    for value in values[1:]:
        require(value == values[0], f"the branches give {show(values[0].shape)} {values[0]} and {show(value.shape)} {value}")
    require(len(condition.shape) <= len(values[0].shape), f"the condition is {show(condition.shape)} for {show(values[0].shape)}")
    return (values[0],)


def _reference(arrays: Sequence[np.ndarray], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """The value that is wanted for what the condition is. Where there is none, nothing is said of the result: here zeros."""
    found = bool(arrays[0].reshape(()))
    for wanted, value in zip(attrs["when"], arrays[1:], strict=True):
        if wanted == found:
            return (value,)
    return (np.zeros_like(arrays[1]),)


OPS: tuple[Op, ...] = (
    Op("branch", _infer, _reference, {"when": "for each value after the condition, the truth that chooses it"}, exact=True),
)
