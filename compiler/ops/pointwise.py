"""A fused elementwise expression. Made by passes only.

`expr` is a tuple of instructions (op name, args, attrs): args are ints, 0..n-1 the node's n inputs, n + i the result of
instruction i; attrs is a tuple of (key, value) pairs sorted by key. The last instruction is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cortado.compiler.ops.checks import broadcast_shapes
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.ops.record import Attrs, Op
from cortado.compiler.types import TensorType

Instruction = tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...]]


def evaluate(inputs: Sequence[Any], expr: Sequence[Instruction], apply: Callable[[Op, list[Any], Attrs], Any]) -> Any:
    """Run an expression over any kind of value; `apply` gives one instruction's result."""
    assert expr, "a pointwise expression has no instructions"
    values = list(inputs)
    for number, (name, args, pairs) in enumerate(expr):
        assert name in ELEMENTWISE, f"instruction {number} of the expression is {name!r}, which is not elementwise"
        op = ELEMENTWISE[name]
        assert tuple(sorted(op.attrs)) == tuple(key for key, _ in pairs), f"instruction {number}, {name}, has attributes {pairs}"
        assert all(0 <= a < len(values) for a in args), (
            f"instruction {number}, {name}, reads {args}: only {len(values)} values exist"
        )
        values.append(apply(op, [values[a] for a in args], dict(pairs)))
    return values[-1]


def _infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    out: TensorType = evaluate(types, attrs["expr"], lambda op, args, pairs: op.infer(args, pairs)[0])
    shape = broadcast_shapes([t.shape for t in types]) if types else out.shape
    assert out.shape == shape, f"the expression gives {out}, but its inputs broadcast to {shape}"
    return (out,)


def _reference(arrays: Sequence[np.ndarray], attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (evaluate(arrays, attrs["expr"], lambda op, args, pairs: op.reference(args, pairs)[0]),)


OPS: tuple[Op, ...] = (Op("pointwise", _infer, _reference, {"expr": "the instructions, see ops.pointwise"}),)
