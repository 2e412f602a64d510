"""Which function makes the kernels of which operator: the one list that lowering reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cortado.compiler.graph import Node
from cortado.compiler.kernels.algorithm import choose_algorithm
from cortado.compiler.kernels.boxes import lower_bbox_transform, lower_image_splits
from cortado.compiler.kernels.choice import Chain, Choice, Direct, Strassen, Winograd
from cortado.compiler.kernels.compact import lower_distribute, lower_join_rows, lower_top_rows
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.kernels.conv_chain import lower_conv_chain
from cortado.compiler.kernels.conv_transpose import lower_conv_transpose
from cortado.compiler.kernels.dense import lower_batch_matmul, lower_fc
from cortado.compiler.kernels.keep import lower_keep_rows
from cortado.compiler.kernels.move import lower_bitcast, lower_broadcast_to, lower_gather, lower_pad, lower_tile, lower_transpose
from cortado.compiler.kernels.nms import lower_box_nms
from cortado.compiler.kernels.normalize import lower_lrn
from cortado.compiler.kernels.pointwise import lower_elementwise, lower_pointwise
from cortado.compiler.kernels.pool import lower_average_pool, lower_max_pool
from cortado.compiler.kernels.proposals import lower_generate_proposals
from cortado.compiler.kernels.quantized_average import lower_q_average_pool, lower_q_reduce
from cortado.compiler.kernels.quantized_conv import lower_q_chosen, lower_q_conv, lower_q_fc
from cortado.compiler.kernels.quantized_conv_transpose import lower_q_conv_transpose
from cortado.compiler.kernels.quantized_matmul import lower_q_matmul
from cortado.compiler.kernels.quantized_pointwise import lower_dequantize, lower_q_add, lower_q_mul, lower_quantize
from cortado.compiler.kernels.quantized_pooled import lower_q_conv_mean
from cortado.compiler.kernels.quantized_roi import lower_q_roi_align
from cortado.compiler.kernels.quantized_softmax import lower_q_softmax
from cortado.compiler.kernels.quantized_table import lower_q_table
from cortado.compiler.kernels.quantized_winograd import may_filter
from cortado.compiler.kernels.reduce import lower_reduce
from cortado.compiler.kernels.resize import lower_resize_bilinear, lower_resize_nearest
from cortado.compiler.kernels.roi import lower_heatmap_keypoint, lower_roi_align, lower_roi_pool
from cortado.compiler.kernels.segment import lower_segment_reduce
from cortado.compiler.kernels.select import lower_arg, lower_top_k
from cortado.compiler.kernels.softmax import lower_softmax
from cortado.compiler.kernels.strassen import lower_strassen, may_pair, serves_strassen
from cortado.compiler.kernels.winograd import lower_winograd, serves_winograd
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target, reproducible
from cortado.compiler.tuning import QUANTIZED, Tuning
from cortado.errors import OptionError

Lowering = Callable[[Node, Sequence[Operand], Sequence[Operand], Target], list[KernelCall]]


def lower_chosen(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice | None
) -> list[KernelCall]:
    """A conv or fc, of floats or integers, in the way that was chosen, or in the cost model's where choice is None.

    Raises ValueError for what cannot be.
    """
    if node.op in QUANTIZED:
        return lower_q_chosen(node, ins, outs, target, choice)
    if isinstance(choice, Chain):
        raise ValueError("it is no chain")
    if isinstance(choice, Winograd):
        if not serves_winograd(node, ins, outs, target):
            raise ValueError("it cannot be done by Winograd's filtering")
        return lower_winograd(node, ins, outs, choice, target)
    if isinstance(choice, Strassen):
        if not serves_strassen(node, ins, outs, target):
            raise ValueError("it cannot be done by Strassen's scheme")
        return lower_strassen(node, ins, outs, choice, target)
    if node.op == "conv":
        return lower_conv(node, ins, outs, target, choice)
    if choice is not None and not isinstance(choice, Direct):
        raise ValueError(f"{node.op} is always direct")
    return lower_fc(node, ins, outs, target, choice)


def lower_fastest(
    node: Node,
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    target: Target,
    larger: bool,
    tuning: Tuning | None,
    counted: bool,
) -> list[KernelCall]:
    """A conv or fc as the table of measurements says, else by the cost model: where `larger`, perhaps by an algorithm with larger weights.

    counted: some rows of the input may be no real ones. Strassen's scheme adds neighbouring rows, so it is not for these; nor, of layers
    with one key, for those with weights that differ too much.
    """
    choice = tuning.choice(node, ins, outs) if tuning is not None else None
    if isinstance(choice, Winograd | Strassen) and not larger:
        choice = None
    if isinstance(choice, Strassen) and (counted or not may_pair(node)):
        choice = None
    if choice is not None and tuning is not None:
        return _lower_measured(node, ins, outs, target, choice, tuning)
    chosen = choose_algorithm(node, ins, outs, target) if larger else None
    return lower_chosen(node, ins, outs, target, None if counted and isinstance(chosen, Strassen) else chosen)


def lower_q_fastest(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, larger: bool, tuning: Tuning | None
) -> list[KernelCall]:
    """As `lower_fastest` for q_conv and q_fc, measured only where `larger`. Of layers with one key some may have weights for which
    Winograd's filtering is not exact.
    """
    choice = tuning.choice(node, ins, outs) if larger and tuning is not None else None
    if isinstance(choice, Winograd) and not may_filter(node, choice.m):
        choice = None
    if choice is not None and tuning is not None:
        return _lower_measured(node, ins, outs, target, choice, tuning)
    return lower_chosen(node, ins, outs, target, None) if larger else LOWERINGS[node.op](node, ins, outs, target)


def _lower_measured(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice, tuning: Tuning
) -> list[KernelCall]:
    try:
        return lower_chosen(node, ins, outs, target, choice)
    except ValueError as error:
        raise OptionError(f"{tuning.name} does not fit {node.op} {node.name}: {error}; measure it anew") from error


def lower_reproducibly(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """As LOWERINGS, for all operators but CONTRACTIONS: their float results do not depend on the target (`target.reproducible`)."""
    return LOWERINGS[node.op](node, ins, outs, reproducible(target))


def lowerings(
    optimize_for: str, tuning: Tuning | None = None, same_bits: bool = False, counted: bool = False
) -> Mapping[str, Lowering]:
    """By operator, for a goal of `CompileOptions`: larger weights and buffers are worth it for "speed" only.

    same_bits: whether all but CONTRACTIONS are lowered reproducibly. counted: for nodes with rows that are found at run time.
    """
    fastest = partial(lower_fastest, larger=optimize_for == "speed", tuning=tuning, counted=counted)
    whole = partial(lower_q_fastest, larger=optimize_for == "speed", tuning=tuning)
    others = dict.fromkeys(LOWERINGS.keys() - CONTRACTIONS, lower_reproducibly) if same_bits else {}
    return {**LOWERINGS, "conv": fastest, "fc": fastest, "q_conv": whole, "q_fc": whole, **others}


# Sums of products. Time goes there, so float ones are made as is fastest on each target; those of integers are exact in any order.
CONTRACTIONS = frozenset(
    {"conv", "conv_chain", "conv_transpose", "fc", "batch_matmul"}
    | {"q_conv", "q_conv_transpose", "q_conv_mean", "q_fc", "q_matmul"}
)
LOWERINGS: Mapping[str, Lowering] = {
    **dict.fromkeys(ELEMENTWISE, lower_elementwise),
    "pointwise": lower_pointwise,
    "conv": lower_conv,
    "conv_chain": lower_conv_chain,
    "conv_transpose": lower_conv_transpose,
    "fc": lower_fc,
    "q_conv": lower_q_conv,
    "q_conv_transpose": lower_q_conv_transpose,
    "q_fc": lower_q_fc,
    "q_matmul": lower_q_matmul,
    "q_add": lower_q_add,
    "q_mul": lower_q_mul,
    "q_average_pool": lower_q_average_pool,
    "q_mean": lower_q_reduce,
    "q_sum": lower_q_reduce,
    "dequantized_mean": lower_q_reduce,
    "q_conv_mean": lower_q_conv_mean,
    "q_softmax": lower_q_softmax,
    "q_table": lower_q_table,
    "q_roi_align": lower_q_roi_align,
    "quantize": lower_quantize,
    "dequantize": lower_dequantize,
    "batch_matmul": lower_batch_matmul,
    "max_pool": lower_max_pool,
    "average_pool": lower_average_pool,
    "softmax": lower_softmax,
    "lrn": lower_lrn,
    "reduce_sum": lower_reduce,
    "reduce_mean": lower_reduce,
    "reduce_max": lower_reduce,
    "reduce_min": lower_reduce,
    "arg_max": lower_arg,
    "arg_min": lower_arg,
    "top_k": lower_top_k,
    "segment_reduce": lower_segment_reduce,
    "keep_rows": lower_keep_rows,
    "transpose": lower_transpose,
    "pad": lower_pad,
    "tile": lower_tile,
    "broadcast_to": lower_broadcast_to,
    "bitcast": lower_bitcast,
    "gather": lower_gather,
    "resize_nearest": lower_resize_nearest,
    "resize_bilinear": lower_resize_bilinear,
    "bbox_transform": lower_bbox_transform,
    "image_splits": lower_image_splits,
    "join_rows": lower_join_rows,
    "top_rows": lower_top_rows,
    "generate_proposals": lower_generate_proposals,
    "distribute_proposals": lower_distribute,
    "box_nms": lower_box_nms,
    "roi_align": lower_roi_align,
    "roi_pool": lower_roi_pool,
    "heatmap_keypoint": lower_heatmap_keypoint,
}
