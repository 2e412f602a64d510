"""Helpers of the tests of quantized operators: nodes on quantized inputs, made with seeded values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cortado.compiler.graph import Node, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.ops.requantize import limits
from cortado.compiler.types import NUMPY_DTYPE, Quant, TensorType


def quant(scale: float, zero: int) -> Quant:
    return Quant((float(np.float32(scale)),), (zero,))


def result(
    scale: float, zero: int, dtype: str = "int8", rounding: str = "even", clamp: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The attributes of every requantizing operator."""
    lo, hi = clamp or limits(dtype)
    return {"quant": quant(scale, zero), "dtype": dtype, "rounding": rounding, "lo": lo, "hi": hi}


def values(random: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    low, high = limits(dtype)
    return random.integers(low, high + 1, tuple(shape)).astype(NUMPY_DTYPE[dtype])


def make_q(
    op: str, inputs: Sequence[tuple[np.ndarray, Quant | None]], attrs: Mapping[str, Any], constants: Sequence[int] = ()
) -> Node:
    """A node whose inputs have these arrays' types and quantizations; those at the positions in `constants` are constants."""
    made = []
    for position, (array, own) in enumerate(inputs):
        if position in constants:
            made.append(constant(array, f"c{position}", quant=own))
        else:
            made.append(graph_input(f"x{position}", TensorType(array.shape, array.dtype.name, own)).out())
    return make(op, made, dict(attrs), "node")


def window(rank: int, strides: int = 1, dilations: int = 1, pads: int = 0, end: int | None = None) -> dict[str, tuple[int, ...]]:
    """The attributes of a window that is the same along every axis."""
    return {
        "strides": (strides,) * rank, "dilations": (dilations,) * rank, "pads_begin": (pads,) * rank,
        "pads_end": (pads if end is None else end,) * rank,
    }  # fmt: skip
