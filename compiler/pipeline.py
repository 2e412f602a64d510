"""Graph -> Program: the middle of the way, read top to bottom.

Files become a Graph in `cortado.source`, a Program becomes a Bundle in `cortado.build`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cortado.compiler.graph import Graph
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.options import CompileOptions
from cortado.compiler.program import Program
from cortado.compiler.quantize import quantize
from cortado.compiler.quantize.boundary import integer_boundary
from cortado.compiler.quantize.calibrate import Feeds, MakeExecutor, Progress
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.record import CalibrationRecord
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning
from cortado.compiler.verify import verify
from cortado.errors import CalibrationError, OptionError


def compile_program(
    graph: Graph,
    target: Target,
    options: CompileOptions,
    calibration: CalibrationRecord | None = None,
    tuning: Tuning | None = None,
) -> Program:
    """The whole compilation up to machine code.

    calibration: for dtype int8, of this graph. tuning: measured choices for this target.
    Raises UnsupportedError that lists every node without a kernel, OptionError for a dtype
    that this graph cannot be given, CalibrationError where the record is missing or of another network.
    """
    if options.dtype not in (None, "float32", "int8"):
        raise OptionError(
            f"dtype {options.dtype!r}: this version compiles float32 and int8; leave dtype out to keep the file's types"
        )
    if options.io_dtype not in (None, "float32", "int8"):
        raise OptionError(f"io_dtype {options.io_dtype!r} is not one of float32, int8")
    if options.io_dtype == "int8" and options.dtype != "int8":
        raise OptionError("io_dtype int8 needs a quantized model: give dtype int8 and calibration samples")
    if options.dtype == "int8" and calibration is None:
        raise CalibrationError(
            "dtype int8 needs calibration samples: give calibration=, about 32 typical inputs, or a saved record"
        )
    graph = optimize(graph, step_limit=options.step_limit)
    if options.dtype == "int8" and calibration is not None:
        graph = quantize.quantize_graph(graph, calibration)
        graph = integer_boundary(graph) if options.io_dtype == "int8" else graph
        verify(graph)
    return lower(graph, target, options.optimize_for, tuning)


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


def quantization_summary(graph: Graph, record: CalibrationRecord) -> dict[str, Any]:
    """What dtype int8 does to this graph, as plain data."""
    return quantize.summary(optimize(graph), record)
