"""Convolutions one after another as one operator, whose middle tensors nobody else reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cortado.compiler.ops import conv
from cortado.compiler.ops.epilogue import inputs_taken
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType

Input = TypeVar("Input")
(CONV,) = (op for op in conv.OPS if op.name == "conv")


def stage_attrs(attrs: Attrs) -> tuple[Mapping[str, Any], ...]:
    """The attributes of every convolution of the chain, first one first."""
    return tuple(dict(pairs) for pairs in attrs["stages"])


def stages(inputs: Sequence[Input], attrs: Attrs) -> Iterator[tuple[tuple[Input, ...], Mapping[str, Any]]]:
    """Per convolution its inputs but for the image, which is the one before's output, and its attributes."""
    at = 1
    for own in stage_attrs(attrs):
        stop = at + 1 + inputs_taken(own["epilogue"])
        yield tuple(inputs[at:stop]), own
        at = stop


def _infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 1, "takes an image, got no inputs")
    (out,) = types[:1]
    taken = 1
    for rest, own in stages(types, attrs):
        (out,) = CONV.infer((out, *rest), own)
        taken += len(rest)
    require(len(types) == taken, f"takes {taken} inputs, got {len(types)}")
    return (out,)


def _reference(arrays: Sequence[np.ndarray], attrs: Attrs) -> tuple[np.ndarray, ...]:
    (out,) = arrays[:1]
    for rest, own in stages(arrays, attrs):
        (out,) = CONV.reference((out, *rest), own)
    return (out,)


def _macs(types: Sequence[TensorType], attrs: Attrs) -> int:
    assert CONV.macs is not None
    (out,), total = types[:1], 0
    for rest, own in stages(types, attrs):
        total += CONV.macs((out, *rest), own)
        (out,) = CONV.infer((out, *rest), own)
    return total


OPS: tuple[Op, ...] = (
    Op(
        "conv_chain",
        _infer,
        _reference,
        {
            "stages": "per convolution its attributes as (name, value) pairs; inputs: the image, then each one's filter and epilogue inputs",
            "ranges": "into how many ranges of rows the work may be split",
        },
        macs=_macs,
    ),
)
