"""Which operators work as well on permuted axes, and how.

A layout of a tensor is a permutation: the tensor is held as transpose(tensor, layout). An operator that can work in other layouts
has a frame: the axes that its one layout permutes. The frame is its output's axes; for reductions and reshapes, its input's.
Inputs of fewer axes than the frame are aligned at the last one, as broadcasting does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cortado.compiler.graph import Node
from cortado.compiler.ops.elementwise import ELEMENTWISE

Layout = tuple[int, ...]

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
SAME_AXES = frozenset({*ELEMENTWISE, "pointwise", "concat", "slice", "pad", "tile", "broadcast_to", "softmax", "branch"}) - {
    "prelu"
}
INPUT_AXES = frozenset({*REDUCTIONS, "reshape"})


def identity(rank: int) -> Layout:
    return tuple(range(rank))


def compose(perm: Sequence[int], layout: Sequence[int]) -> Layout:
    """The layout of x in which transpose(x, perm) is held in `layout`."""
    return tuple(perm[axis] for axis in layout)


def relative(held: Sequence[int], wanted: Sequence[int]) -> Layout:
    """The transpose that turns a tensor held in one layout into one held in another."""
    return tuple(held.index(axis) for axis in wanted)


def order_of(shape: Sequence[int], layout: Iterable[int]) -> Layout:
    """What of a layout matters in memory: the order of the axes that have more than one element."""
    return tuple(axis for axis in layout if shape[axis] != 1)


def frame(node: Node) -> int | None:
    """Rank of the frame; None for operators that are tied to their axes."""
    if any(value.type.quant is not None and value.type.quant.axis is not None for value in node.inputs):
        return None
    if node.op == "pointwise" and any(name == "prelu" for name, _, _ in node.attrs["expr"]):
        return None
    if node.op in SAME_AXES:
        return len(node.types[0].shape)
    if node.op in INPUT_AXES and 0 not in node.inputs[0].shape:
        return len(node.inputs[0].shape)
    return None


def input_layout(node: Node, position: int, layout: Layout) -> Layout:
    """How input `position` must be held (but for axes of size one that align it with the frame)."""
    missing = len(layout) - len(node.inputs[position].shape)
    return tuple(axis - missing for axis in layout if axis >= missing)


def frame_layout_from_input(node: Node, position: int, layout: Layout) -> Layout:
    """A frame layout that takes input `position` as it is held."""
    missing = (frame(node) or 0) - len(layout)
    return (*range(missing), *(axis + missing for axis in layout))


def output_layout(node: Node, layout: Layout) -> Layout | None:
    """How the output is held where the frame has this layout; None where the operator cannot work in it."""
    if node.op == "reshape":
        blocks = _blocks(node.inputs[0].shape, node.types[0].shape)
        return _reordered(blocks, order_of(node.inputs[0].shape, layout), node.types[0].shape)
    if node.op in REDUCTIONS and not node.attrs["keepdims"]:
        kept = [axis for axis in range(len(layout)) if axis not in node.attrs["axes"]]
        return tuple(kept.index(axis) for axis in layout if axis in kept)
    return layout


def frame_layout_from_output(node: Node, layout: Layout) -> Layout | None:
    """A frame layout that gives the output as it is wanted."""
    if node.op == "reshape":
        blocks = [(after, before) for before, after in _blocks(node.inputs[0].shape, node.types[0].shape)]
        return _reordered(blocks, order_of(node.types[0].shape, layout), node.inputs[0].shape)
    if node.op in REDUCTIONS and not node.attrs["keepdims"]:
        rank = len(node.inputs[0].shape)
        kept = [axis for axis in range(rank) if axis not in node.attrs["axes"]]
        return _with_rest([kept[axis] for axis in layout], rank)
    return layout


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[Layout, Layout]]:
    """The smallest runs of axes of the two shapes that hold the same elements, without axes of size one.

    ([2,3,4], [6,1,4]) -> [((0,1), (0,)), ((2,), (2,))]
    """
    blocks: list[tuple[Layout, Layout]] = []
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left:
        a, b = [left.pop(0)], [right.pop(0)]
        m, n = before[a[0]], after[b[0]]
        while m != n:
            if m < n:
                a.append(left.pop(0))
                m *= before[a[-1]]
            else:
                b.append(right.pop(0))
                n *= after[b[-1]]
        blocks.append((tuple(a), tuple(b)))
    return blocks


def _reordered(blocks: Sequence[tuple[Layout, Layout]], order: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout of `shape` where the blocks' first sides come in this order; None where the order takes a block apart."""
    found: list[int] = []
    start_of = {block[0][0]: block for block in blocks}
    at = 0
    while at < len(order):
        block = start_of.get(order[at])
        if block is None or order[at : at + len(block[0])] != block[0]:
            return None
        found += block[1]
        at += len(block[0])
    return _with_rest(found, len(shape))


def _with_rest(order: list[int], rank: int) -> Layout:
    """A full layout from the order of some axes: each of the others follows the axis before it."""
    for axis in range(rank):
        if axis not in order:
            order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(order)


def _permuted(*names: str) -> Callable[[Mapping[str, Any], Layout], dict[str, Any]]:
    return lambda attrs, layout: {name: tuple(attrs[name][axis] for axis in layout) for name in names}


def _axis(attrs: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    return {"axis": layout.index(attrs["axis"])}


def _axes(attrs: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    return {"axes": tuple(sorted(layout.index(axis) for axis in attrs["axes"]))}


def permuted_attrs(node: Node, layout: Layout) -> dict[str, Any]:
    """The node's attributes where its frame has this layout."""
    changes: dict[str, Callable[[Mapping[str, Any], Layout], dict[str, Any]]] = {
        "concat": _axis,
        "softmax": _axis,
        "slice": _permuted("starts", "stops"),
        "pad": _permuted("begin", "end"),
        "tile": _permuted("repeats"),
        "broadcast_to": _permuted("shape"),
        **dict.fromkeys(REDUCTIONS, _axes),
    }
    if node.op == "reshape":
        held = output_layout(node, layout)
        assert held is not None
        return {"shape": tuple(node.types[0].shape[axis] for axis in held)}
    change = changes.get(node.op)
    return {**node.attrs, **(change(node.attrs, layout) if change is not None else {})}
