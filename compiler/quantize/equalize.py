"""Cross-layer equalization: a channel is made smaller in one layer and larger in the next, so that one scale suits all channels.

relu(x * s) = relu(x) * s for positive s, so the factors meet between a layer with at most a relu and the layers that read it. As in
Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), but balancing what activations were seen
to reach against the weights that read them, as output channels have weight scales of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant
from cortado.compiler.ops import make
from cortado.compiler.quantize.plan import LAYERS, is_layer
from cortado.compiler.quantize.record import CalibrationRecord

MOST = 16.0  # largest change of a channel against the others: what calibration hardly saw must not grow without bound
Factors = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Pair:
    """value: a layer's result. readers: the layers that take it as their input, which are all that read it."""

    value: Value
    readers: tuple[Node, ...]


def pairs(graph: Graph) -> Iterator[Pair]:
    uses, outputs = graph.uses(), graph.output_values()
    for node in graph.nodes():
        value = node.out()
        if not is_layer(node) or value in outputs or not uses.get(value):
            continue
        entries = node.attrs["epilogue"]
        if ("residual",) in entries or any(entry[0] == "activation" and entry[1] != "relu" for entry in entries):
            continue
        if all(is_layer(reader) and position == 0 for reader, position in uses[value]):
            yield Pair(value, tuple(reader for reader, _ in uses[value]))


def find_factors(graph: Graph, record: CalibrationRecord) -> dict[str, tuple[float, ...]]:
    """By name of a layer: what each channel of its result is divided by. The largest magnitude of the whole result stays."""
    found = {}
    for pair in pairs(graph):
        statistics = record.tensors.get(repr(pair.value))
        if statistics is None:
            continue
        reach = np.maximum(np.abs(statistics.channel_low), np.abs(statistics.channel_high)).astype(np.float64)
        weight = np.max([_reading(reader, len(reach)) for reader in pair.readers], axis=0)
        live = (reach > 0) & (weight > 0)
        if live.sum() < 2:
            continue
        factors = np.ones(len(reach))
        factors[live] = np.sqrt(reach[live] / weight[live])
        scaled = np.max(reach[live] / factors[live])
        factors[live] *= scaled / reach[live].max()
        found[pair.value.node.name] = tuple(map(float, np.clip(factors, 1 / MOST, 1.0).astype(np.float32)))
    return found


def _reading(reader: Node, channels: int) -> np.ndarray:
    """float64[C]: the largest weight on each input channel, as a part of its output channel's largest.

    A depthwise layer's weights are relative to themselves alone: nothing is lost by what they are multiplied with.
    """
    weights = np.abs(reader.inputs[1].node.attrs["value"].astype(np.float64))
    weights = weights.reshape(weights.shape[0], -1, weights.shape[-1]).max(axis=1)  # [O, C / group]
    largest = weights.max(axis=1, keepdims=True)
    share = np.divide(weights, largest, out=np.zeros_like(weights), where=largest > 0)
    group = reader.attrs.get("group", 1)
    return share.reshape(group, -1, share.shape[1]).max(axis=1).reshape(channels)


def equalized(graph: Graph, factors: Factors) -> Graph:
    """The graph with each named layer's result divided by the factors, and multiplied with them again where it is read."""
    if not factors:
        return graph

    def scaled(node: Node, inputs: tuple[Value, ...]) -> Node:
        same = node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        if node.op not in LAYERS:
            return same
        own, before = factors.get(node.name), factors.get(node.inputs[0].node.name)
        if own is None and before is None:
            return same
        weights = node.inputs[1].node.attrs["value"].astype(np.float64)
        operands = list(inputs)
        if before is not None:
            weights = weights * _by_input(np.asarray(before), node)
        if own is not None:
            weights = weights / np.asarray(own).reshape(-1, *(1,) * (weights.ndim - 1))
            if ("bias",) in node.attrs["epilogue"]:
                bias = node.inputs[2].node
                operands[2] = constant((bias.attrs["value"] / np.asarray(own)).astype(np.float32), bias.name, bias.origin)
        given = node.inputs[1].node
        operands[1] = constant(weights.astype(np.float32), given.name, given.origin)
        return make(node.op, operands, node.attrs, node.name, node.origin)

    return graph.rebuild(scaled)


def _by_input(numbers: np.ndarray, layer: Node) -> np.ndarray:
    """One number per input channel, in the shape of the layer's weights."""
    outputs, *middle, _ = layer.inputs[1].shape
    group = layer.attrs.get("group", 1)
    rows = np.repeat(numbers.reshape(group, -1), outputs // group, axis=0)
    return rows.reshape(outputs, *(1,) * len(middle), -1)
