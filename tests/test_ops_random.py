"""Random nodes: inference either refuses with a ShapeError or gives types that the reference then produces exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from operator_nodes import node

from cortado.compiler.ops import (
    OPS,
    boxes,
    branch,
    conv_chain,
    nms,
    proposals,
    quantized,
    quantized_elementwise,
    quantized_matmul,
    quantized_pooled,
    quantized_roi,
    roi,
    rows,
)
from cortado.compiler.reference import evaluate
from cortado.compiler.types import TensorType
from cortado.errors import InputError, ShapeError

DTYPES = ("float32", "float32", "float32", "float64", "int32", "int64", "uint8", "bool")
Draw = Callable[[np.random.Generator, int], Any]


def whole(rng: np.random.Generator, low: int = -2, high: int = 5) -> int:
    return int(rng.integers(low, high))


def many(count: Callable[[int], int], low: int = -2, high: int = 5) -> Draw:
    """A tuple of whole numbers, usually `count(rank)` of them."""
    return lambda rng, rank: tuple(
        whole(rng, low, high) for _ in range(max(0, count(rank) + int(rng.choice([0, 0, 0, 0, 0, 0, -1, 1]))))
    )


def spatial(rank: int) -> int:
    return rank - 2


def steps(rng: np.random.Generator, rank: int) -> tuple[int, ...]:
    """One for each spatial axis, seldom an impossible 0."""
    return tuple(int(s) for s in rng.choice([1, 1, 2, 2, 3], rank - 2) * (rng.integers(0, 20, rank - 2) > 0))


def all_axes(rank: int) -> int:
    return rank


ATTRIBUTES: dict[str, Draw] = {
    "strides": steps, "dilations": steps, "kernel": steps,
    "pads_begin": many(spatial, -1, 3), "pads_end": many(spatial, -1, 3), "output_padding": many(spatial, 0, 2),
    "begin": many(all_axes), "end": many(all_axes), "starts": many(all_axes, -1, 2), "stops": many(all_axes, -1, 5),
    "repeats": many(all_axes, -1, 3), "shape": many(all_axes, -1, 5), "axes": many(lambda rank: rank - 1, -1, 4),
    "perm": lambda rng, rank: tuple(int(p) for p in rng.permutation(rank)), "axis": lambda rng, rank: whole(rng, -1, 4),
    "group": lambda rng, rank: int(rng.choice([0, 1, 1, 1, 2, 3])), "size": lambda rng, rank: whole(rng, -1, 8),
    "k": lambda rng, rank: whole(rng),
    "keepdims": lambda rng, rank: bool(rng.integers(2)), "count_include_pad": lambda rng, rank: bool(rng.integers(2)),
    "transpose_a": lambda rng, rank: bool(rng.integers(2)), "transpose_b": lambda rng, rank: bool(rng.integers(2)),
    "mode": lambda rng, rank: str(rng.choice(["constant", "reflect", "edge", "wrap", "sum", "mean", "max"])),
    "dtype": lambda rng, rank: str(rng.choice(DTYPES)),
    "epilogue": lambda rng, rank: (("activation", "relu", ()),) if rng.integers(2) else (),
    "expr": lambda rng, rank: (("add", (0, 0), ()), ("abs", (1,), ())),
    "out_h": lambda rng, rank: whole(rng, -1, 6), "out_w": lambda rng, rank: whole(rng, -1, 6),
}  # fmt: skip
# Inputs of these belong together in ways that random ones never do; tests of their own (test_detection, test_branches ...) make them.
STRUCTURED = frozenset(
    op.name
    for family in (
        boxes,
        branch,
        conv_chain,
        nms,
        proposals,
        roi,
        rows,
        quantized,
        quantized_elementwise,
        quantized_matmul,
        quantized_pooled,
        quantized_roi,
    )
    for op in family.OPS
)
RANKS = {
    "conv": (3, 6),
    "conv_transpose": (3, 6),
    "max_pool": (3, 6),
    "average_pool": (3, 6),
    "resize_nearest": (4, 5),
    "resize_bilinear": (4, 5),
}


def draw_node(rng: np.random.Generator, op: str) -> tuple[list[TensorType], dict[str, Any]]:
    """Input types and attributes, near enough to what fits that some do."""
    rank = int(rng.integers(*RANKS.get(op, (0, 5))))
    shape = tuple(int(d) for d in rng.choice([0, 1, 1, 2, 3, 4, 5, 6], rank))
    dtype = "float32" if op in RANKS and rng.integers(4) else str(rng.choice(DTYPES))
    kinds = [TensorType(shape, dtype)]
    attrs = {name: ATTRIBUTES[name](rng, rank) if name in ATTRIBUTES else float(rng.uniform(-0.5, 3)) for name in OPS[op].attrs}
    channels = shape[-1:] or (1,)
    more = {
        "conv": [(whole(rng, 0, 5), *rng.integers(1, 4, max(0, rank - 2)), channels[0] // max(1, attrs.get("group", 1)))],
        "fc": [(whole(rng, 0, 5), *channels)], "batch_matmul": [(*channels, whole(rng, 0, 5))], "batch_norm": [channels] * 4,
        "prelu": [channels], "where": [shape, shape], "gather": [(whole(rng, 0, 4),)],
        "segment_reduce": [(whole(rng, 0, 5),)],
    }  # fmt: skip
    more["conv_transpose"] = more["conv"]
    if op in more:
        dtype = {"gather": "int64", "segment_reduce": "int32"}.get(op, dtype)
        kinds += [TensorType(tuple(int(d) for d in extra), dtype) for extra in more[op]]
        kinds[0] = TensorType(shape, "bool") if op == "where" else kinds[0]
    elif op != "pointwise" and rng.integers(2):
        kinds.append(TensorType(tuple(int(d) if rng.integers(4) else 1 for d in shape), kinds[0].dtype))
    return kinds, attrs


@pytest.mark.parametrize("op", sorted(set(OPS) - STRUCTURED))
def test_the_reference_gives_what_inference_says_or_inference_refuses(op: str) -> None:
    rng = np.random.default_rng(list(op.encode()))
    accepted = tried = 0
    while accepted < 30 and tried < 3000:
        tried += 1
        kinds, attrs = draw_node(rng, op)
        try:
            made = node(op, kinds, attrs)
        except ShapeError:
            continue
        arrays = [rng.integers(0, 2, kind.shape).astype(kind.numpy) for kind in kinds]
        try:
            outputs = evaluate(made, arrays)
        except InputError:
            continue
        accepted += 1
        assert len(outputs) == len(made.types)
    assert accepted == 30, f"only {accepted} of {tried} were accepted: the test draws badly"
