"""Tensor types, the executor protocol, and the boundary's description: what every layer agrees on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# bfloat16 has no numpy dtype: its arrays are held as uint16 bit patterns.
NUMPY_DTYPE: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int16": np.dtype(np.int16),
    "uint16": np.dtype(np.uint16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Quant:
    """Affine quantization: real = (q - zero_point) * scale.

    scales, zero_points: one entry (axis None, per tensor) or one per index of `axis`.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.zero_points) or not self.scales:
            raise ValueError(f"{len(self.scales)} scales but {len(self.zero_points)} zero points")
        if self.axis is None and len(self.scales) != 1:
            raise ValueError("per-tensor quantization has exactly one scale")
        if not all(s > 0 and math.isfinite(s) for s in self.scales):
            raise ValueError("scales must be positive and finite")


@dataclass(frozen=True)
class TensorType:
    """Shape (concrete), dtype (a key of NUMPY_DTYPE) and optional quantization of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    quant: Quant | None = None

    def __post_init__(self) -> None:
        if self.dtype not in NUMPY_DTYPE:
            raise ValueError(f"unknown dtype {self.dtype!r}")
        if any(not isinstance(d, int) or d < 0 for d in self.shape):
            raise ValueError(f"shape {self.shape} is not a tuple of non-negative ints")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return NUMPY_DTYPE[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def numpy(self) -> np.dtype:
        return NUMPY_DTYPE[self.dtype]

    def __str__(self) -> str:
        quant = ""
        if self.quant is not None:
            axis = "" if self.quant.axis is None else f"@{self.quant.axis}"
            quant = f" q{axis}({self.quant.scales[0]:.6g},{self.quant.zero_points[0]})"
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{quant}"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a compiled model as its user sees it.

    layout: the source's axis names ("NCHW", "NHWC", ...), or "" where the file does not say.
    scale, zero_point: of a quantized boundary tensor, else None.
    count: name of the output (int32[1]) that says how many rows of this one are real, where that depends on the data, else None.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None
    count: str | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY_DTYPE[self.dtype].itemsize


class Executor(Protocol):
    """Runs code inside the compiler (calibration, host timing): arrays by input name in, by output name out."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class TimedExecutor(Executor, Protocol):
    """An executor with a clock."""

    def time(self) -> float:
        """Seconds of one run on the arrays of the last `run`, with the caches as they are within a network."""
        ...


def cut_rows(arrays: Mapping[str, np.ndarray], counts: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Outputs as their user sees them: cut to their real rows, without the arrays that only say how many these are."""
    numbers = set(counts.values())
    return {
        name: array[: int(arrays[counts[name]][0])] if name in counts else array
        for name, array in arrays.items()
        if name not in numbers
    }


def frozen_array(array: np.ndarray) -> np.ndarray:
    """A read-only, C-contiguous array with the same contents (no copy where it is both already)."""
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array
