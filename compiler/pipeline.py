"""Graph -> Program: the middle of the way, read top to bottom.

Files become a Graph in `cortado.source`, a Program becomes a Bundle in `cortado.build`.
"""

from __future__ import annotations

from cortado.compiler.graph import Graph
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.options import CompileOptions
from cortado.compiler.program import Program
from cortado.compiler.target import Target
from cortado.errors import OptionError


def compile_program(graph: Graph, target: Target, options: CompileOptions) -> Program:
    """The whole compilation up to machine code.

    Raises UnsupportedError that lists every node without a kernel, OptionError for a dtype that this graph cannot be given.
    """
    if options.dtype not in (None, "float32"):
        raise OptionError(f"dtype {options.dtype!r}: this version compiles float32; leave dtype out to keep the file's types")
    if options.io_dtype is not None:
        raise OptionError("io_dtype needs a quantized model; this version keeps the boundary's types")
    graph = optimize(graph, step_limit=options.step_limit)
    return lower(graph, target, options.optimize_for)
