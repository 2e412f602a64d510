"""Rules for data movement: reshapes, transposes, slices, concats and pads that do nothing, or that one of them can do."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.graph import Node, Value
from cortado.compiler.ops import make
from cortado.compiler.rewrite import Context, Replacement, rewritten, rule, unite

Range = tuple[tuple[int, ...], tuple[int, ...]]


def left_to_do(node: Node) -> int:
    """1 where one of the rules below lets the node read through its producer. They read through all such producers at once."""
    if node.op in ("reshape", "transpose"):
        return int(node.inputs[0].node.op == node.op)
    if node.op == "slice":
        return int(_behind(node.inputs[0], node.attrs["starts"], node.attrs["stops"]) is not None)
    if node.op == "concat":
        return int(len(_parts(node)) < len(node.inputs))
    return int(_foldable_pad(node) is not None)


def _parts(node: Node) -> list[Value]:
    """The inputs of a concat without those that have no elements, but at least one."""
    return [value for value in node.inputs if value.shape[node.attrs["axis"]]] or [node.inputs[0]]


def moves_only_ones(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Does transposing keep the order of the elements in memory?"""
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved) or 0 in shape


def per_axis_quantized(value: Value) -> bool:
    return value.type.quant is not None and value.type.quant.axis is not None


def _chain(node: Node) -> list[Node]:
    """The node and its producers as long as they are the same operator, from the first to the node."""
    chain = [node]
    while chain[-1].inputs[0].node.op == node.op:
        chain.append(chain[-1].inputs[0].node)
    return chain[::-1]


@rule("reshape")
def merge_reshapes(node: Node, context: Context) -> Replacement | None:
    """reshape(reshape(x)) -> reshape(x); a reshape to the shape there is -> x."""
    chain = _chain(node)
    source = chain[0].inputs[0]
    if source.type == node.types[0]:
        return source
    return rewritten("reshape", (source,), node.attrs, node, chain[:-1]) if len(chain) > 1 else None


@rule("transpose")
def merge_transposes(node: Node, context: Context) -> Replacement | None:
    """transpose(transpose(x)) -> transpose(x); one that keeps all axes -> x."""
    chain = _chain(node)
    source = chain[0].inputs[0]
    perm = tuple(range(len(source.shape)))
    for step in chain:
        perm = tuple(perm[axis] for axis in step.attrs["perm"])
    if perm == tuple(range(len(perm))):
        return source
    return rewritten("transpose", (source,), {"perm": perm}, node, chain[:-1]) if len(chain) > 1 else None


@rule("transpose")
def transpose_to_reshape(node: Node, context: Context) -> Replacement | None:
    """A transpose that only moves axes of size one -> reshape."""
    source = node.inputs[0]
    if per_axis_quantized(source) or not moves_only_ones(source.shape, node.attrs["perm"]):
        return None
    return rewritten("reshape", (source,), {"shape": node.types[0].shape}, node)


def _behind(value: Value, starts: Sequence[int], stops: Sequence[int]) -> tuple[Value, Range] | None:
    """Where starts..stops of a slice's or a concat's result come from, if from one input of it."""
    producer = value.node
    if producer.op == "slice":
        before = producer.attrs["starts"]
        return producer.inputs[0], (_added(starts, before), _added(stops, before))
    if producer.op == "concat":
        axis = producer.attrs["axis"]
        part, start = _part_with(producer, starts[axis], stops[axis])
        back = [-start if at == axis else 0 for at in range(len(starts))]
        return None if part is None else (part, (_added(starts, back), _added(stops, back)))
    return None


def _added(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _part_with(concat: Node, start: int, stop: int) -> tuple[Value | None, int]:
    """The input of a concat that holds elements start..stop of its axis, and what comes before it."""
    before = 0
    for value in concat.inputs:
        size = value.shape[concat.attrs["axis"]]
        if before <= start < stop <= before + size:
            return value, before
        before += size
    return None, 0


@rule("slice")
def merge_slices(node: Node, context: Context) -> Replacement | None:
    """slice(slice(x)) -> slice(x); slice(concat(..., x, ...)) inside x -> slice(x); a slice of everything -> its input."""
    source, (starts, stops), skipped = node.inputs[0], (node.attrs["starts"], node.attrs["stops"]), []
    behind = _behind(source, starts, stops)
    while behind is not None:
        skipped.append(source.node)
        source, (starts, stops) = behind
        behind = _behind(source, starts, stops)
    if source.type == node.types[0]:
        return source
    return rewritten("slice", (source,), {"starts": starts, "stops": stops}, node, skipped[::-1]) if skipped else None


@rule("concat")
def drop_empty_parts(node: Node, context: Context) -> Replacement | None:
    """concat(x) -> x; parts without elements are left out."""
    parts = _parts(node)
    if len(parts) == 1 and parts[0].type == node.types[0]:
        return parts[0]
    return rewritten("concat", parts, node.attrs, node) if len(parts) < len(node.inputs) else None


@rule("concat")
def flatten_concats(node: Node, context: Context) -> Replacement | None:
    """concat(concat(a, b), c) along one axis -> concat(a, b, c), where nothing else reads the inner one.

    One that others read too is better left whole: it can be a view of the outer one, its parts cannot be views of both.
    """
    parts: list[Value] = []
    inner: list[Node] = []
    for value in node.inputs:
        producer = value.node
        if producer.op == "concat" and producer.attrs == node.attrs and context.read_only_by(value, node):
            parts += producer.inputs
            inner.append(producer)
        else:
            parts.append(value)
    return rewritten("concat", parts, node.attrs, node, inner) if inner else None


@rule("concat")
def join_slices(node: Node, context: Context) -> Replacement | None:
    """concat(x[0:2], x[2:5], ...) -> concat(x[0:5], ...) for neighbouring slices that nothing else reads."""
    axis = node.attrs["axis"]
    for at, (left, right) in enumerate(zip(node.inputs, node.inputs[1:], strict=False)):
        a, b = left.node, right.node
        if a.op != "slice" or b.op != "slice" or a is b or a.inputs != b.inputs:
            continue
        if not (context.read_only_by(left, node) and context.read_only_by(right, node)):
            continue
        starts, stops = list(a.attrs["starts"]), list(b.attrs["stops"])
        if a.attrs["stops"][axis] != b.attrs["starts"][axis]:
            continue
        starts[axis], stops[axis] = b.attrs["starts"][axis], a.attrs["stops"][axis]
        if (tuple(starts), tuple(stops)) != (b.attrs["starts"], a.attrs["stops"]):
            continue
        whole = {"starts": a.attrs["starts"], "stops": b.attrs["stops"]}
        if len(node.inputs) == 2:
            return rewritten("slice", a.inputs, whole, node, (a, b))
        joined = make("slice", a.inputs, whole, f"{a.name}/joined", unite((a, b)))
        return rewritten("concat", (*node.inputs[:at], joined.out(), *node.inputs[at + 2 :]), node.attrs, node)
    return None


@rule("pad")
def drop_pad_of_nothing(node: Node, context: Context) -> Replacement | None:
    return node.inputs[0] if not any(node.attrs["begin"]) and not any(node.attrs["end"]) else None


def _foldable_pad(node: Node) -> Node | None:
    """The pad before a convolution (or an average pooling that counts its padding) that it could do itself: zeros around the space."""
    if node.op != "conv" and not (node.op == "average_pool" and node.attrs["count_include_pad"]):
        return None
    pad = node.inputs[0].node
    if pad.op != "pad" or pad.attrs["mode"] != "constant" or pad.attrs["value"] != 0 or pad.inputs[0].type.quant is not None:
        return None
    begin, end = pad.attrs["begin"], pad.attrs["end"]
    if begin[0] or end[0] or begin[-1] or end[-1]:
        return None
    amounts = (*begin, *end, *node.attrs["pads_begin"], *node.attrs["pads_end"])
    return pad if min(amounts) >= 0 else None


@rule("conv", "average_pool")
def fold_pad(node: Node, context: Context) -> Replacement | None:
    """conv(pad(x)) -> conv(x) with larger pads, for zeros around the space."""
    pad = _foldable_pad(node)
    if pad is None:
        return None
    attrs = dict(node.attrs)
    for side, amounts in (("pads_begin", pad.attrs["begin"]), ("pads_end", pad.attrs["end"])):
        attrs[side] = tuple(a + b for a, b in zip(attrs[side], amounts[1:-1], strict=True))
    return rewritten(node.op, (pad.inputs[0], *node.inputs[1:]), attrs, node, (pad,))


RULES = (
    merge_reshapes,
    merge_transposes,
    transpose_to_reshape,
    merge_slices,
    drop_empty_parts,
    flatten_concats,
    join_slices,
    drop_pad_of_nothing,
    fold_pad,
)
