"""A quantized pointwise convolution and the mean of all its pixels become one operator: the image between them is never stored.

Target-independent: only where the input is so small that every panel of weights may pass all of it. Other kernels than 1x1 may be done by
Winograd's filtering, which stores the image anyway.
"""

from __future__ import annotations

from math import prod

from cortado.compiler.graph import Graph, Node
from cortado.compiler.ops.requantize import RESULT_ATTRS
from cortado.compiler.ops.window import is_global
from cortado.compiler.passes.fuse_epilogue import operations
from cortado.compiler.rewrite import Context, Replacement, Steps, apply_rules, rewritten, rule

MOST_BYTES = 128 << 10  # of one input image: half of the smallest second cache level of cores that have one


def fuse_pooling(graph: Graph, steps: Steps) -> Graph:
    """Values are the same, to the bit."""
    return apply_rules(graph, "fuse_pooling", (pool_in_epilogue,), operations, steps)


@rule("q_mean", "dequantized_mean", "q_average_pool")
def pool_in_epilogue(node: Node, context: Context) -> Replacement | None:
    """mean(q_conv 1x1) -> q_conv_mean, and likewise an average pool whose window is the whole image."""
    conv = node.inputs[0].node
    if conv.op != "q_conv" or not context.read_only_by(conv.out(), node) or not _is_global(node) or not _is_small(conv):
        return None
    mean = {name: node.attrs[name] for name in RESULT_ATTRS if name in node.attrs}
    mean["keepdims"] = node.attrs.get("keepdims", True)
    return rewritten("q_conv_mean", conv.inputs, {**conv.attrs, "mean": tuple(sorted(mean.items()))}, node, (conv,))


def _is_global(node: Node) -> bool:
    """The average of all pixels of every image."""
    shape = node.inputs[0].shape
    return (
        is_global(shape, node.attrs)
        if node.op == "q_average_pool"
        else sorted(node.attrs["axes"]) == list(range(1, len(shape) - 1))
    )


def _is_small(conv: Node) -> bool:
    x, w, out = conv.inputs[0].shape, conv.inputs[1].shape, conv.types[0].shape
    known = all(conv.inputs[i].constant is not None for i in (1, 2))
    return known and conv.attrs["group"] == 1 and set(w[1:-1]) == {1} and prod(out[1:-1]) > 1 and 0 < prod(x[1:]) <= MOST_BYTES
