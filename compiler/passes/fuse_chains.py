"""A depthwise convolution with the one before and a 1x1 one after it becomes one operator, where its row blocks pay on the target: by
measurements, where there are any, else by the cost model.

The only rewrite that knows the target. It comes after all others, and after quantization: integer convolutions stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cortado.compiler.graph import Graph, Node
from cortado.compiler.kernels.chain import chain_pays
from cortado.compiler.kernels.depthwise import serves_depthwise
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.passes.fuse_epilogue import operations
from cortado.compiler.rewrite import Context, Replacement, Rule, Steps, apply_rules, rewritten
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning

RANGES = 4  # of rows, where a plan is for one thread: each has a scratch, and more threads may come


def fuse_chains(graph: Graph, target: Target, threads: int, steps: Steps, tuning: Tuning | None = None) -> Graph:
    """threads: the number that the plan is tuned for. tuning: what was measured for this target.

    Values are the same, to the bit where tiles are of the same shape.
    """

    def fuse_chain(node: Node, context: Context) -> Replacement | None:
        """[conv,] depthwise conv, conv 1x1 -> conv_chain; without the last where the depthwise output is for something else."""
        found = (chain_of(parts, threads) for parts in _chains_at(node, context))
        return next((chain for chain in found if _pays(chain, target, threads, tuning)), None)

    return apply_rules(graph, "fuse_chains", (Rule("fuse_chain", ("conv",), fuse_chain),), operations, steps)


def possible_chains(graph: Graph) -> Iterator[tuple[Node, ...]]:
    """The convolutions of every chain that could be fused in a graph, whether it pays or not. One convolution may be in several."""
    order = graph.nodes()
    context = Context.of(graph, order)
    for node in order:
        if node.op == "conv":
            yield from _chains_at(node, context)


def chain_of(parts: Sequence[Node], threads: int) -> Node:
    """The operator that does what these convolutions do one after another."""
    inputs = [parts[0].inputs[0], *(value for node in parts for value in node.inputs[1:])]
    stages = tuple(tuple(sorted(node.attrs.items())) for node in parts)
    attrs = {"stages": stages, "ranges": threads if threads > 1 else RANGES}
    return rewritten("conv_chain", inputs, attrs, parts[-1], parts[:-1])


def _chains_at(node: Node, context: Context) -> Iterator[tuple[Node, ...]]:
    """The chains that a convolution can be the end of, the longest first."""
    spread = node if _is_depthwise(node) else node.inputs[0].node
    after = None if spread is node else node
    if not _is_depthwise(spread) or (after is not None and not (_is_point(after) and _only(spread, after, context))):
        return
    if after is None and any(_takes(reader, at) for reader, at in context.readers_of(node.out())):
        return
    before = spread.inputs[0].node
    found = (spread,) if after is None else (spread, after)
    if _is_first(before) and _only(before, spread, context):
        yield (before, *found)
    if after is not None:
        yield found


def _pays(chain: Node, target: Target, threads: int, tuning: Tuning | None) -> bool:
    # Measured on one thread. On several, ranges of rows make some rows of the middle again, which only the cost model knows of.
    measured = tuning.fused(chain) if tuning is not None and threads == 1 else None
    if measured is not None:
        return measured
    return chain_pays(chain.inputs, chain.attrs, target, threads)


def _entries(node: Node) -> list[str]:
    return [entry[0] for entry in node.attrs["epilogue"]]


def _only(node: Node, reader: Node, context: Context) -> bool:
    return context.read_only_by(node.out(), reader)


def _takes(reader: Node, at: int) -> bool:
    """Whether a chain may be formed at the reader instead."""
    return at == 0 and reader.op == "conv" and _is_point(reader)


def _is_direct(node: Node) -> bool:
    """A convolution of images, one group, whose weights and bias are known."""
    if node.op != "conv" or node.attrs["group"] != 1 or len(node.types[0].shape) != 4 or node.types[0].size == 0:
        return False
    bias = parse_epilogue(node.attrs["epilogue"], 2).bias
    return all(node.inputs[i].constant is not None for i in (1, bias) if i is not None)


def _is_point(node: Node) -> bool:
    """Of these one that is 1x1."""
    if not _is_direct(node) or node.inputs[1].shape[1:-1] != (1, 1):
        return False
    return {*node.attrs["strides"]} == {1} and not any((*node.attrs["pads_begin"], *node.attrs["pads_end"]))


def _is_first(node: Node) -> bool:
    """Of these one whose rows can be made one at a time: there are several pixels in each."""
    return _is_direct(node) and node.types[0].shape[2] > 1 and "residual" not in _entries(node)


def _is_depthwise(node: Node) -> bool:
    """A depthwise convolution of images over several rows and columns, without residual."""
    if (
        node.op != "conv"
        or len(node.types[0].shape) != 4
        or not serves_depthwise(node, parse_epilogue(node.attrs["epilogue"], 2))
    ):
        return False
    several = min(node.inputs[1].shape[1:-1]) > 1 and min(node.types[0].shape[1:3]) > 1 and node.types[0].size > 0
    return several and min(node.attrs["pads_begin"]) >= 0 and "residual" not in _entries(node)
