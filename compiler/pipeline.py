"""Graph -> Program: the middle of the way, read top to bottom.

Files become a Graph in `cortado.source`, a Program becomes a Bundle in `cortado.build`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cortado.compiler.graph import Graph
from cortado.compiler.kernels.generic import GENERIC
from cortado.compiler.kernels.shared import SharedChoices
from cortado.compiler.levels import share_weights
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.options import CompileOptions
from cortado.compiler.passes.fuse_chains import fuse_chains
from cortado.compiler.passes.fuse_pooling import fuse_pooling
from cortado.compiler.program import Program
from cortado.compiler.quantize import quantize
from cortado.compiler.quantize.boundary import INTEGERS, integer_boundary, is_quantized
from cortado.compiler.quantize.calibrate import Feeds, MakeExecutor, Progress
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.record import CalibrationRecord
from cortado.compiler.rewrite import Rewrite, Steps
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning
from cortado.compiler.verify import verify
from cortado.errors import CalibrationError, OptionError, StrictError


def compile_program(
    graph: Graph,
    target: Target,
    options: CompileOptions,
    calibration: CalibrationRecord | None = None,
    tuning: Tuning | None = None,
    judge: Target | None = None,
) -> tuple[Program, dict[str, Any] | None]:
    """The whole compilation up to machine code, and what became of the graph in int8, as plain data.

    calibration: for dtype int8, of this graph. tuning: measured choices for this target. judge: the target by which it is chosen what stays
    float where int8 is slower; None: nothing stays float.
    Raises UnsupportedError that lists every node without a kernel, OptionError for a dtype
    that this graph cannot be given, CalibrationError where the record is missing or of another network, StrictError (options.strict)
    that lists every node that would be computed in a slow generic way.
    """
    done: list[Rewrite] = []
    graph, summary = prepare(graph, options, calibration, judge, done)
    if options.optimize_for == "speed":
        graph = fuse_chains(graph, target, options.threads, Steps(options.step_limit, done, len(done)), tuning)
        verify(graph)
    if options.optimize_for != "size":  # tiles that add up are code of their own
        graph = fuse_pooling(graph, Steps(options.step_limit, done, len(done)))
        verify(graph)
    program = lower(graph, target, options.optimize_for, tuning)
    if options.strict:
        refuse_generic(program)
    return program, summary


def prepare(
    graph: Graph,
    options: CompileOptions,
    calibration: CalibrationRecord | None = None,
    judge: Target | None = None,
    done: list[Rewrite] | None = None,
) -> tuple[Graph, dict[str, Any] | None]:
    """All that `compile_program` does before it looks at the target. done: takes the rewrites of `optimize`."""
    if options.dtype not in (None, "float32", "int8"):
        raise OptionError(
            f"dtype {options.dtype!r}: this version compiles float32 and int8; leave dtype out to keep the file's types"
        )
    integers = options.io_dtype in INTEGERS
    if options.io_dtype not in (None, "float32", *INTEGERS):
        raise OptionError(f"io_dtype {options.io_dtype!r} is not one of float32, {', '.join(INTEGERS)}")
    if integers and options.dtype != "int8" and not is_quantized(graph):
        raise OptionError(f"io_dtype {options.io_dtype} needs a quantized model: give dtype int8 and calibration samples")
    if options.dtype == "int8" and calibration is None:
        raise CalibrationError(
            "dtype int8 needs calibration samples: give calibration=, about 32 typical inputs, or a saved record"
        )
    graph = optimize(graph, step_limit=options.step_limit, trace=done)
    summary = None
    if options.dtype == "int8" and calibration is not None:
        all_int8 = integers or options.optimize_for != "speed"
        keep = quantize.NONE if options.keep_float == quantize.SLOWER and all_int8 else options.keep_float
        assigned = quantize.assign(graph, calibration, keep_float=keep, judge=judge)
        graph = quantize.integer_graph(assigned)
        summary = quantize.summary(assigned, calibration)
        verify(graph)
    if options.io_dtype is not None and integers:
        graph = integer_boundary(graph, options.io_dtype)
        verify(graph)
    return graph, summary


def compile_levels(
    graph: Graph,
    target: Target,
    options: CompileOptions,
    calibration: CalibrationRecord | None = None,
    judge: Target | None = None,
) -> tuple[tuple[Program, ...], dict[str, Any] | None]:
    """As compile_program, for each of the target's levels: the programs share one blob of weights.

    The level that has the judge's name decides on algorithms for all.
    """
    reference = next((level for level in target.levels if judge is not None and level.name == judge.name), target.levels[0])
    larger = options.optimize_for == "speed"
    made = []
    for level in target.levels:
        choices = SharedChoices({}, target.name, "", level, target.levels, reference, larger)
        made.append(compile_program(graph, level, options, calibration, choices, judge))
    return share_weights([program for program, _ in made]), made[-1][1]


def generic_nodes(program: Program) -> list[str]:
    """One line for each node that is computed in a slow generic way: which, what happens, and what would avoid it."""
    lines = []
    for step in program.steps:
        if step.generic:
            way = GENERIC[step.generic]
            came = f" (from {', '.join(step.origin)})" if step.origin else ""
            lines.append(f"{step.op} {step.name}{came} {way.does}; to avoid it: {way.avoid}")
    return list(dict.fromkeys(lines))


def refuse_generic(program: Program) -> None:
    """StrictError that lists what `generic_nodes` finds, if anything."""
    lines = generic_nodes(program)
    if lines:
        nodes = "node is" if len(lines) == 1 else "nodes are"
        listed = "".join(f"\n  {line}" for line in lines)
        raise StrictError(f"strict: {len(lines)} {nodes} computed in a slow generic way:{listed}", lines)


def calibrate_graph(
    graph: Graph,
    samples: Iterable[Feeds],
    make_executor: MakeExecutor,
    config: QuantizeConfig = quantize.AUTOMATIC,
    before: CalibrationRecord | None = None,
    progress: Progress | None = None,
) -> CalibrationRecord:
    """The record that `compile_program` takes, as `quantize.calibrate` makes it of the optimized graph."""
    return quantize.calibrate(optimize(graph), samples, make_executor, config, before, progress)
