"""Weights to int8, symmetric per output channel, and biases to int32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Node, Value
from cortado.compiler.quantize.plan import bias_of
from cortado.compiler.types import Quant, TensorType, frozen_array

LARGEST = 127
BIAS_LIMIT = 2.0**30  # leaves the accumulator as much room for the products
BIAS_STEPS = 2.0**12  # a bias without weights is kept to so many parts of a step of the result


@dataclass(frozen=True)
class IntegerLayer:
    """weights int8[O, ...], scales float32[O], bias int32[O] in units of input scale * weight scale."""

    weights: np.ndarray
    scales: np.ndarray
    bias: np.ndarray

    @property
    def real_weights(self) -> np.ndarray:
        """float32: what the integers stand for."""
        return self.weights.astype(np.float32) * self.scales.reshape(-1, *(1,) * (self.weights.ndim - 1))

    def constants(self, layer: Node) -> tuple[Value, Value]:
        """Nodes for weights and bias, named as the layer's own."""
        quant = Quant(tuple(map(float, self.scales)), (0,) * len(self.scales), 0)
        kind = TensorType(self.weights.shape, "int8", quant)
        given = layer.inputs[1].node
        weights = Node("constant", (), {"value": frozen_array(self.weights)}, (kind,), f"{given.name}/int8", given.origin)
        bias = TensorType(self.bias.shape, "int32")
        return weights.out(), Node("constant", (), {"value": frozen_array(self.bias)}, (bias,), f"{layer.name}/bias_int32").out()


def weight_scales(weights: np.ndarray) -> np.ndarray:
    """float32[O]: the largest magnitude of every output channel / 127; 0 for a channel of zeros."""
    largest = np.abs(weights.reshape(weights.shape[0], -1)).max(axis=1, initial=0)
    return (largest.astype(np.float64) / LARGEST).astype(np.float32)


def rounded_weights(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int8[O, ...]; a channel of scale 0 becomes zeros."""
    column = scales.astype(np.float64).reshape(-1, *(1,) * (weights.ndim - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(column > 0, weights / column, 0.0)
    return np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8)


def quantized_layer(layer: Node, x_scale: float, y_scale: float, moved: np.ndarray | None = None) -> IntegerLayer:
    """A float layer's weights and bias for inputs of scale x_scale and results of scale y_scale.

    moved: float64[O], added to the bias first. A channel's scale grows where its bias would not fit the accumulator; a channel of
    zeros takes the scale that suits its bias.
    """
    weights = layer.inputs[1].node.attrs["value"]
    bias = bias_of(layer) + (0.0 if moved is None else moved)
    scales = weight_scales(weights).astype(np.float64)
    needed = np.abs(bias) / (x_scale * BIAS_LIMIT)
    idle = np.maximum(needed, y_scale / (x_scale * BIAS_STEPS))
    scales = np.where(scales > 0, np.maximum(scales, needed), idle).astype(np.float32)
    unit = scales.astype(np.float64) * x_scale
    return IntegerLayer(rounded_weights(weights, scales), scales, np.rint(bias / unit).astype(np.int32))


def weight_error_bias(layer: Node, mean: np.ndarray) -> np.ndarray:
    """float64[O]: what must be added to the bias so that rounding the weights leaves the mean result where it was.

    mean: float64[C], of the layer's input by channel. Cells outside the image are taken as cells of the mean. Every cell of a transposed
    convolution's result meets the taps of one phase of the strides, on average one part in their product.
    """
    weights = layer.inputs[1].node.attrs["value"].astype(np.float64)
    scales = weight_scales(weights)
    column = scales.astype(np.float64).reshape(-1, *(1,) * (weights.ndim - 1))
    error = rounded_weights(weights, scales) * column - weights
    cells = error.reshape(error.shape[0], -1, error.shape[-1]).sum(axis=1)  # [O, C / group]
    if layer.op == "conv_transpose":
        cells /= math.prod(layer.attrs["strides"])
    group = layer.attrs.get("group", 1)
    per_group = mean.reshape(group, -1)
    return -np.einsum("goc,gc->go", cells.reshape(group, -1, cells.shape[1]), per_group).reshape(-1)
