"""Rows chosen by a mask: how many there are is data, so they come with their number (see `compiler.counts`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import arity, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType


def _infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, mask = types
    require(mask.dtype == "bool", f"the mask is {mask.dtype}; it must be bool")
    require(len(x.shape) >= 1 and mask.shape == x.shape[:1], f"the mask is {show(mask.shape)} for rows of {show(x.shape)}")
    return x, TensorType((1,), "int32")


def _reference(arrays: Sequence[np.ndarray], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """The rows where the mask is true, in order; zeros behind them. Then how many they are."""
    x, mask = arrays
    out, kept = np.zeros_like(x), x[mask]
    out[: len(kept)] = kept
    return out, np.array([len(kept)], np.int32)


OPS: tuple[Op, ...] = (Op("keep_rows", _infer, _reference, {}, exact=True, portable=True, counts={0: 1}),)
