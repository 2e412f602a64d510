"""A quantized convolution and the mean of its pixels as one operator, whose image nobody else reads. Channels last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cortado.compiler.ops import quantized, quantized_elementwise
from cortado.compiler.ops.record import Attrs, Op
from cortado.compiler.types import TensorType

(CONV,) = (op for op in quantized.OPS if op.name == "q_conv")
MEANS = {op.name: op for op in quantized_elementwise.OPS}


def mean_op(attrs: Attrs) -> Op:
    """What is done with the image: q_mean, or dequantized_mean where the attributes say of no result's scale."""
    return MEANS["q_mean" if "quant" in dict(attrs["mean"]) else "dequantized_mean"]


def mean_attrs(attrs: Attrs, rank: int) -> Mapping[str, Any]:
    """Those of the mean over all pixels. rank: of the image."""
    return {**dict(attrs["mean"]), "axes": tuple(range(1, rank - 1))}


def _infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    (image,) = CONV.infer(types, attrs)
    return mean_op(attrs).infer((image,), mean_attrs(attrs, len(image.shape)))


def _reference(arrays: Sequence[np.ndarray], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """q_mean or dequantized_mean of q_conv(x, w, bias, perhaps a residual): the image is rounded before it is summed."""
    (image,) = CONV.infer(attrs["input_types"], attrs)
    how = {**mean_attrs(attrs, len(image.shape)), "input_types": (image,)}
    return mean_op(attrs).reference(CONV.reference(arrays, attrs), how)


OPS: tuple[Op, ...] = (
    Op(
        "q_conv_mean", _infer, _reference,
        {**CONV.attrs, "mean": "attributes of the q_mean, or dequantized_mean, over all pixels but its axes, as sorted pairs"},
        exact=True, portable=True, takes_types=True, macs=CONV.macs,
    ),
)  # fmt: skip
