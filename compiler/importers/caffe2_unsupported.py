"""Operators of Caffe2 that are known and not imported, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_COUNTED = "how large the result is depends on the data"
_BYTES = "it packs float32 numbers into rows of bytes, a step of preparing a model, not of running one"
_UNPACKED = "it takes float32 numbers out of rows of bytes; SparseLengthsSumFused8BitRowwise looks such rows up"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "GatherRanges": _COUNTED,
        "PackSegments": _COUNTED,
        "FloatToFused8BitRowwiseQuantized": _BYTES,
        "FloatToRowwiseQuantized8Bits": _BYTES,
        "Fused8BitRowwiseQuantizedToFloat": _UNPACKED,
    }
)
