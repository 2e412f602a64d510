"""Arithmetic with constants per channel as a layer: a depthwise 1x1 convolution, whose weights int8 holds exactly (127 times a scale)."""

from __future__ import annotations

from typing import Any

import numpy as np

from cortado.compiler.graph import Node, Value, constant
from cortado.compiler.ops import make
from cortado.compiler.ops.pointwise import evaluate
from cortado.compiler.passes.fold_affine import ARITHMETIC, Affine, affine

CLAMPS = ("relu", "clip")


def affine_layer(node: Node) -> Node | None:
    """The convolution that computes what a float32 node does to the channels of its one computed input, with at most a clamp behind it.

    None for other nodes, and for tensors that no convolution takes.
    """
    if node.op not in ("pointwise", *ARITHMETIC) or sum(value.constant is None for value in node.inputs) != 1:
        return None
    top, clamp = _expanded(node), None
    if top.op in CLAMPS:
        clamp, top = ("activation", top.op, tuple(sorted(top.attrs.items()))), top.inputs[0].node
    found: Affine | None = None
    while found is None or found.x not in node.inputs:
        step = affine(top)
        if step is None:
            return None
        found, top = step if found is None else found.after(step), step.x.node
    x = found.x
    if x.type.dtype != "float32" or x.type != node.types[0] or not 3 <= len(x.shape) <= 5:
        return None
    return _depthwise(node, found, clamp)


def _expanded(node: Node) -> Node:
    """The last of the operators that a node stands for."""
    if node.op != "pointwise":
        return node
    top: Value = evaluate(node.inputs, node.attrs["expr"], lambda op, args, attrs: make(op.name, args, attrs, node.name).out())
    return top.node


def _depthwise(node: Node, step: Affine, clamp: tuple[Any, ...] | None) -> Node:
    channels, spatial = step.x.shape[-1], len(step.x.shape) - 2
    numbers = []
    for what, given, default in (("scale", step.scale, 1.0), ("shift", step.shift, 0.0)):
        values = np.broadcast_to(default if given is None else given, (channels,)).astype(np.float32)
        numbers.append(values.reshape(channels, *[1] * (spatial + 1)) if what == "scale" else values)
    inputs = (step.x, *(constant(array, f"{node.name}/{what}") for array, what in zip(numbers, ("scale", "shift"), strict=True)))
    attrs = {
        "strides": (1,) * spatial, "dilations": (1,) * spatial, "pads_begin": (0,) * spatial, "pads_end": (0,) * spatial,
        "group": channels, "epilogue": (("bias",), *([] if clamp is None else [clamp])),
    }  # fmt: skip
    return Node("conv", inputs, attrs, node.types, node.name, node.origin)
