"""All graph rewrites, in order: one function, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable

from cortado.compiler.debug import DebugLog
from cortado.compiler.graph import Graph
from cortado.compiler.passes.absorb_transposes import absorb_transposes
from cortado.compiler.passes.channels_last import channels_last
from cortado.compiler.passes.common_subexpressions import eliminate_common_subexpressions
from cortado.compiler.passes.dead_channels import remove_dead_channels
from cortado.compiler.passes.fold_affine import expand_batch_norms, fold_affine, merge_affine
from cortado.compiler.passes.fuse_elementwise import fuse_elementwise
from cortado.compiler.passes.fuse_epilogue import fuse_epilogue
from cortado.compiler.passes.products import products_to_layers, scale_factors
from cortado.compiler.passes.simplify import simplify
from cortado.compiler.rewrite import Rewrite, Steps
from cortado.compiler.verify import verify

Pass = Callable[[Graph, Steps], Graph]


def optimize(graph: Graph, step_limit: int | None = None, trace: list[Rewrite] | None = None) -> Graph:
    """A graph with the same inputs, outputs and meaning, and less work. A function of the graph alone: same graph in, same graph out.

    step_limit: stop after this many rewrites. trace: takes one entry for each. Graph outputs are computed under their own names; inputs
    stay, also those nothing reads. Results may differ from the given graph's by rounding, see the passes. The graph is verified after each
    pass (GraphError: a bug of the compiler).
    """
    steps = Steps(step_limit, trace)
    log = DebugLog.from_environment()
    verify(graph)
    log.start(graph)

    def run(pass_: Pass) -> Graph:
        count = steps.count
        result = pass_(graph, steps)
        if result is not graph:
            verify(result)
        log.after(pass_.__name__, graph, result, steps.count - count)
        return result

    # What the file says twice or for nothing. A batch normalization becomes arithmetic, which works in any layout.
    graph = run(simplify)
    graph = run(eliminate_common_subexpressions)
    graph = run(expand_batch_norms)

    # One layout inside: the transposes around channels-last operators cancel, the others go where they cost least.
    graph = run(channels_last)
    graph = run(simplify)
    graph = run(absorb_transposes)
    graph = run(products_to_layers)

    # Arithmetic per channel goes into weights. Before fusing, so that layers' epilogues are still open.
    graph = run(merge_affine)
    graph = run(fold_affine)
    graph = run(scale_factors)

    # Fewer loops: epilogues first, they save a whole trip through memory; what remains is fused among itself.
    graph = run(fuse_epilogue)
    graph = run(fuse_elementwise)

    # Channels whose values are known or not needed. Late, since it looks at weights with everything folded in.
    graph = run(remove_dead_channels)

    # What the passes above have left equal or idle.
    graph = run(simplify)
    graph = run(eliminate_common_subexpressions)

    log.end(graph)
    return graph
