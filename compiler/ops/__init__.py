"""The operator table, and the making of nodes with their types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cortado.compiler.graph import Node, Value
from cortado.compiler.ops import (
    boxes,
    branch,
    conv,
    conv_chain,
    conv_transpose,
    elementwise,
    keep,
    nms,
    normalize,
    pointwise,
    pool,
    proposals,
    quantized,
    quantized_elementwise,
    quantized_matmul,
    quantized_pooled,
    quantized_roi,
    reduce,
    resize,
    roi,
    rows,
    segment,
    select,
    shape,
)
from cortado.compiler.ops.checks import bounded
from cortado.compiler.ops.record import Op, input_types
from cortado.compiler.types import TensorType
from cortado.errors import ShapeError


def merged(families: Iterable[Iterable[Op]]) -> Mapping[str, Op]:
    """One table of all families; two operators of one name are refused."""
    table: dict[str, Op] = {}
    for family in families:
        for op in family:
            if op.name in table:
                raise ValueError(f"two operators are called {op.name!r}")
            table[op.name] = op
    return MappingProxyType(table)


OPS: Mapping[str, Op] = merged(
    (
        conv.OPS,
        conv_chain.OPS,
        conv_transpose.OPS,
        pool.OPS,
        quantized.OPS,
        quantized_elementwise.OPS,
        quantized_matmul.OPS,
        quantized_pooled.OPS,
        quantized_roi.OPS,
        normalize.OPS,
        elementwise.OPS,
        pointwise.OPS,
        shape.OPS,
        reduce.OPS,
        segment.OPS,
        select.OPS,
        keep.OPS,
        branch.OPS,
        resize.OPS,
        boxes.OPS,
        rows.OPS,
        proposals.OPS,
        nms.OPS,
        roi.OPS,
    )
)


def infer_types(op: str, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    """The output types of an operator. ShapeError (without a node's name) where the user's shapes or arguments do not fit;

    AssertionError where the operator is unknown or the attributes are not exactly its record's.
    """
    assert op in OPS, f"there is no operator {op!r}"
    record = OPS[op]
    assert set(attrs) == set(record.attrs), f"{op} has attributes {sorted(attrs)}, its record {sorted(record.attrs)}"
    types = record.infer(input_types(inputs), attrs)
    for index, kind in enumerate(types):
        bounded(kind, "the output" if len(types) == 1 else f"output {index}")
    return types


def make(op: str, inputs: Sequence[Value], attrs: Mapping[str, Any], name: str, origin: Sequence[str] = ()) -> Node:
    """A node with inferred types. ShapeError begins with "node NAME (OP): "; AssertionError where the caller is wrong."""
    try:
        types = infer_types(op, inputs, attrs)
    except ShapeError as error:
        raise ShapeError(f"node {name} ({op}): {error}") from None
    except AssertionError as error:
        raise AssertionError(f"node {name} ({op}): {error}") from None
    return Node(op, tuple(inputs), attrs, types, name, tuple(origin))
