"""Which algorithm does a float layer with fewer multiply-adds than its formula has, where that pays for larger weights."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Strassen, Winograd
from cortado.compiler.kernels.strassen import choose_strassen
from cortado.compiler.kernels.winograd import choose_winograd
from cortado.compiler.program import Operand
from cortado.compiler.target import Target


def choose_algorithm(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> Winograd | Strassen | None:
    """Of a conv or fc, by the cost model; None where multiplying directly is as fast."""
    filtered = choose_winograd(node, ins, outs, target) if node.op == "conv" else None
    return filtered or choose_strassen(node, ins, outs, target)
