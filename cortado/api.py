"""The three functions that everything starts with: load a model file, compile it, open what was saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cortado.compiler.graph import Graph
from cortado.compiler.options import CompileOptions
from cortado.compiler.target import Target
from cortado.errors import CalibrationError, OptionError
from cortado.model import Model
from cortado.preprocess import Preprocess

if TYPE_CHECKING:
    from cortado.compiler.program import Program
    from cortado.compiler.quantize.record import CalibrationRecord
    from cortado.compiler.tuning import Tuning
    from cortado.runtime.bundle import Bundle

    Calibration = Iterable[Mapping[str, np.ndarray]] | CalibrationRecord | str | os.PathLike[str]


def load(
    source: Any,
    *,
    init: Any = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Graph:
    """Read a model into a graph.

    source: a Caffe2 NetDef as path (.pb, .pbtxt), bytes or message object, or a folder with a predict and an init net;
    recognised by content. init: the weights as path, bytes, NetDef, `.npz` path or {name: array}.
    inputs: {name: shape or (shape, dtype)} for every external input that is read and that init does not give.
    outputs: names of any blobs (their last value) instead of the file's own outputs. weights: a .caffemodel, for a Caffe prototxt.

    FormatError: damaged or contradictory files. UnsupportedError: everything that cannot be compiled, in `.nodes`.
    InputError: missing or wrong inputs and weights. ShapeError: shapes that do not fit.
    """
    from cortado.loading import load_graph

    return load_graph(source, init, inputs, outputs, weights)


def compile(
    graph: Graph,
    *,
    target: str | Target = "host",
    board: str | None = None,
    dtype: str | None = None,
    calibration: Calibration | None = None,
    io_dtype: str | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
    optimize_for: str = "speed",
    threads: int = 1,
    strict: bool = False,
    separate_weights: bool = False,
    tuning: str | os.PathLike[str] | bool | None = None,
    keep_float: str | Sequence[str] = "slower",
) -> Model:
    """Native code for a graph.

    target: `CPU-or-level[+feature...][@system]` or "host"; `cortado targets` lists them. dtype: None keeps the file's types;
    "int8" quantizes. calibration: for int8, about 32 typical samples, each {input name: array}, or a record (of `calibrate`, or the path
    of a saved one). io_dtype: "int8" or "uint8" makes the boundary of a quantized model raw integers.
    preprocess: how pictures become the input; kept with the model. name: of the library; None takes the graph's.
    optimize_for: "speed", "size" or "memory". threads: the number that the plan is tuned for; any number runs.
    strict: fail if any node is computed in a slow generic way. separate_weights: a file beside the library instead of constants in it.
    tuning: a file of measured choices that `cortado tune` wrote. None: for "host" the user's own, where there is one, for other targets none,
    so that their bytes are the same on every machine. False: none.
    keep_float: for int8, what stays float32 though it could be int8. "slower": what an estimate says int8 would make slower, the same for all
    targets of an architecture (docs/quantization.md); "none"; or names of nodes, as `model.quantization["keep_float"]` lists them.
    Raises UnsupportedError that lists every node without a kernel, StrictError, TargetError, OptionError, CalibrationError.
    """
    if not isinstance(graph, Graph):
        raise OptionError(f"compile takes a graph, as cortado.load gives it, not {type(graph).__name__}")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise OptionError(f"preprocess takes a cortado.preprocess.Preprocess, not {type(preprocess).__name__}")
    if board is not None:
        raise OptionError(f"board {board!r}: this version knows no boards; give the processor as target")
    if calibration is not None and dtype != "int8":
        raise OptionError("calibration is for dtype 'int8'; leave it out")
    options = CompileOptions(
        name=name,
        dtype=dtype,
        io_dtype=io_dtype,
        optimize_for=optimize_for,
        threads=threads,
        strict=strict,
        separate_weights=separate_weights,
        keep_float=keep_float if isinstance(keep_float, str) else tuple(keep_float),
    )
    from cortado.backends.targets import find_target

    if not isinstance(target, (str, Target)):
        raise OptionError(f"target takes a name, such as 'host' or 'x86-64-v3', not {type(target).__name__} {target!r}")
    found = find_target(target) if isinstance(target, str) else target
    table = _tuning(tuning, found)
    options = replace(options, tuning=None if table is None else table.sha256)
    return Model(_bundle(graph, found, options, table, calibration, None if preprocess is None else preprocess.to_dict()))


def _bundle(
    graph: Graph,
    found: Target,
    options: CompileOptions,
    table: Tuning | None,
    calibration: Calibration | None,
    preprocess: dict[str, Any] | None,
) -> Bundle:
    from cortado.backends.codegen import start_workers

    plan = f"{graph.name} {found.name} {options}"
    done = start_workers(plan)  # before the imports below: they take as long as starting LLVM does
    from cortado.backends.targets.classes import judge_of
    from cortado.build import build, source_of
    from cortado.compiler.pipeline import compile_levels, compile_program

    record = None if calibration is None else _record(graph, calibration)
    levels: tuple[Program, ...] = ()
    if found.levels:
        levels, quantization = compile_levels(graph, found, options, record, judge_of(found))
        program = levels[-1]
    else:
        program, quantization = compile_program(graph, found, options, record, table, judge_of(found))
    bundle = build(program, found, options, source_of(graph), preprocess, quantization, levels=levels)
    done()
    return bundle


def calibrate(
    graph: Graph,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    method: str | None = None,
    before: CalibrationRecord | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> CalibrationRecord:
    """What `compile(dtype="int8", calibration=...)` needs to know of a graph's tensors: a record to keep, with `record.save(path)`.

    samples: each {input name: array}; they are read once, and memory does not grow with them. method: "extended", "min_max",
    "moving_average", "percentile", "entropy" or "mean_square_error"; None chooses by the error at the network's outputs. before: a record
    of earlier samples to go on from. progress: called with a stage and a count. Raises CalibrationError.
    """
    from cortado.compiler.pipeline import calibrate_graph
    from cortado.compiler.quantize.config import QuantizeConfig
    from cortado.compiler.quantize.record import CalibrationRecord
    from cortado.execute import host_executors

    if not isinstance(graph, Graph):
        raise OptionError(f"calibrate takes a graph, as cortado.load gives it, not {type(graph).__name__}")
    if before is not None and not isinstance(before, CalibrationRecord):
        raise OptionError(f"before takes a record, as calibrate gives it, not {type(before).__name__}")
    return calibrate_graph(graph, samples, host_executors(), QuantizeConfig(method), before, progress)


def _tuning(tuning: str | os.PathLike[str] | bool | None, target: Target) -> Tuning | None:
    from cortado.database import read_tuning, user_database

    if tuning is True:
        raise OptionError("tuning=True says nothing: give a file, None or False")
    if tuning is False:
        return None
    if tuning is not None:
        if not isinstance(tuning, (str, os.PathLike)):
            raise OptionError(f"tuning takes the path of a file, None or False, not {type(tuning).__name__}")
        return read_tuning(Path(tuning), target)
    own = user_database() if target.name == "host" else None
    table = read_tuning(own, target) if own is not None and own.is_file() else None
    return table if table is not None and table.choices else None


def _record(graph: Graph, calibration: Calibration) -> CalibrationRecord:
    from cortado.compiler.quantize.record import CalibrationRecord, load_record

    if isinstance(calibration, CalibrationRecord):
        return calibration
    if isinstance(calibration, (str, os.PathLike)):
        return load_record(calibration)
    if isinstance(calibration, Mapping) or not isinstance(calibration, Iterable):
        found = type(calibration).__name__
        raise CalibrationError(f"calibration takes a list of samples, each {{input name: array}}, or a record, not {found}")
    return calibrate(graph, calibration)


def open(folder: str | os.PathLike[str]) -> Model:
    """The model that `Model.save` or `cortado compile` wrote into a folder. Raises FormatError where it is missing or damaged."""
    from cortado.runtime.bundle import read_bundle

    models: list[Model] = []

    def link(bundle: Bundle) -> None:
        models.append(Model(bundle))
        models[0].link()

    bundle = read_bundle(folder, link)
    return models[0] if models else Model(bundle)
