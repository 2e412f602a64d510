"""Helpers of the operator tests: nodes of given types, and single operators run by their references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cortado.compiler.graph import Node, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.reference import evaluate
from cortado.compiler.types import TensorType


def node(op: str, kinds: Sequence[TensorType], attrs: dict[str, Any]) -> Node:
    return make(op, [graph_input(f"x{i}", kind).out() for i, kind in enumerate(kinds)], attrs, "n")


def run(op: str, arrays: Sequence[Any], **attrs: Any) -> np.ndarray:
    arrays = [np.asarray(a) for a in arrays]
    made = make(op, [constant(a, f"x{i}") for i, a in enumerate(arrays)], attrs, "n")
    return evaluate(made, arrays)[0]


def f32(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def floats(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def changed(attrs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**attrs, **more}


STEPS = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
CONV: dict[str, Any] = {**STEPS, "group": 1, "epilogue": ()}
POOL: dict[str, Any] = {**STEPS, "kernel": (2, 2)}
IMAGE = TensorType((1, 6, 6, 16))
