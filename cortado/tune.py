"""Tuning a network: measured choices for its kernels on this machine, and what they gain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cortado.api import compile as compile_graph
from cortado.backends.targets.classes import judge_of
from cortado.chains import chain_calls, chains_of, memory
from cortado.compiler.graph import Graph
from cortado.compiler.kernels.choice import Choice, describe, to_plain
from cortado.compiler.kernels.table import lower_chosen
from cortado.compiler.legalize import legalize
from cortado.compiler.options import CompileOptions
from cortado.compiler.pipeline import prepare
from cortado.compiler.program import KernelCall, Ref
from cortado.compiler.quantize.record import CalibrationRecord
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning
from cortado.compiler.types import NUMPY_DTYPE, TimedExecutor
from cortado.database import Entry, best_of, core_name, read_database
from cortado.model import Model
from cortado.profile import aligned
from cortado.runtime.stopwatch import Bench, timed_layers
from cortado.search import Layer, Tuner, in_turns, layers_of

SCHEMA = 1
WHOLE_SECONDS = 3.0  # of whole runs, before and after in turns


@dataclass(frozen=True)
class LayerResult:
    """nodes: names of those with this kernel. model_us, best_us: microseconds of one, as the cost model and as the best choice have it.

    layers: convolutions that it is, of which nodes are the last ones; several for a chain.
    """

    nodes: tuple[str, ...]
    op: str
    shape: tuple[int, ...]
    model: Choice
    best: Choice
    model_us: float
    best_us: float
    finished: bool
    layers: int = 1

    @property
    def gain(self) -> float:
        return self.best_us / self.model_us if self.model_us else 1.0


@dataclass(frozen=True)
class TuneReport:
    """layers: the most work first, then chains of them. unmeasured: kernels that there was no time for. model_us, tuned_us: whole runs of
    the network, before and after. database: the file.
    """

    name: str
    core: str
    database: str
    layers: tuple[LayerResult, ...]
    unmeasured: int
    model_us: float
    tuned_us: float

    def __str__(self) -> str:
        header = ("layer", "output", "cost model", "best", "us", "best us", "ratio")
        rows = []
        for layer in self.layers:
            more = f" and {len(layer.nodes) - 1} more" if len(layer.nodes) > 1 else ""
            chain = f"{layer.layers} layers to " if layer.layers > 1 else ""
            best = "the same" if layer.best == layer.model else describe(layer.best)
            numbers = (f"{layer.model_us:,.2f}", f"{layer.best_us:,.2f}", f"{layer.gain:.2f}")
            rows.append((chain + layer.nodes[0] + more, "x".join(map(str, layer.shape)), describe(layer.model), best, *numbers))
        left = [f"{self.unmeasured} kernels not measured yet: run it again", ""] if self.unmeasured else []
        return "\n".join(
            [
                f"{self.name} on {self.core}",
                "",
                *aligned(header, rows, 4),
                "",
                *left,
                f"whole run: {self.model_us:,.1f} us by the cost model, {self.tuned_us:,.1f} us tuned",
                f"kept in {self.database}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        plain = [
            {**asdict(layer), "model": to_plain(layer.model), "best": to_plain(layer.best), "gain": layer.gain}
            for layer in self.layers
        ]
        return {"schema": SCHEMA, **asdict(self), "layers": plain}


def result_of(layer: Layer, entry: Entry) -> LayerResult:
    best = entry.microseconds * entry.gain
    what = (layer.names, layer.node.op, layer.outs[0].shape)
    count = max(1, len(layer.parts))
    return LayerResult(*what, entry.baseline, entry.best, entry.microseconds, best, entry.finished, count)


def tune_graph(
    graph: Graph,
    target: Target,
    path: Path,
    seconds: float | None = None,
    watch: Callable[[str], None] = lambda text: None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> TuneReport:
    """Measure the choices for every conv and fc of a network, then whether chains of them should be one operator, and keep what is found in
    the file at `path`.

    target: that this machine can run. seconds: to begin measurements in; None for all. What the file has already is not measured again.
    watch: is told what goes on. settings: keywords of `cortado.compile` that say what is int8; a calibration is a record.
    Raises TargetError where the target is of another machine, FormatError where the file is something else.
    """
    began = time.monotonic()
    database = read_database(path)
    core = core_name(target)
    entries = database.entries(core)
    plain = compile_graph(graph, target=target, tuning=False, **settings)
    before = _WholeRun(plain)
    before.time()
    sizes = plain.report().sizes
    prepared = _prepared(graph, target, **settings)
    layers = [*layers_of(prepared, target), *chains_of(prepared)]  # a chain is compared with the best of its layers
    tuner = Tuner(
        target,
        lambda layer, choices: _executors(layer, choices, target, sizes.weights + sizes.arena, best_of(entries, str(path))),
        entries,
        lambda: database.save(path),
        None if seconds is None else began + seconds,
    )
    results, unmeasured = [], 0
    for number, layer in enumerate(layers, 1):
        entry = tuner.tune(layer, partial(_told, watch, f"{number}/{len(layers)}"))
        if entry is not None and entry.ratios:
            results.append(result_of(layer, entry))
        unmeasured += entry is None or not entry.finished
    after = _WholeRun(compile_graph(graph, target=target, tuning=path, **settings)) if path.exists() else before
    watch("whole runs")
    model_us, tuned_us = (least * 1e6 for least in in_turns([before, after], WHOLE_SECONDS, 10_000, 1e9))
    return TuneReport(plain.name, core, str(path), tuple(results), unmeasured, model_us, tuned_us)


def _prepared(graph: Graph, target: Target, calibration: CalibrationRecord | None = None, **settings: Any) -> Graph:
    """What a compilation makes of a graph before it chooses kernels."""
    return prepare(graph, CompileOptions(**settings), calibration, judge_of(target))[0]


def _told(watch: Callable[[str], None], before: str, text: str) -> None:
    watch(f"{before} {text}")


def _executors(layer: Layer, choices: Sequence[Choice], target: Target, network: int, tuning: Tuning) -> Sequence[TimedExecutor]:
    bench = Bench(memory(layer), layer.outs, target, network)
    return timed_layers([_calls(layer, choice, target, tuning) for choice in choices], target, bench)


def _calls(layer: Layer, choice: Choice, target: Target, tuning: Tuning) -> list[KernelCall]:
    what = (layer.node, layer.ins, layer.outs, target)
    calls = chain_calls(layer, choice, target, tuning) if layer.parts else lower_chosen(*what, choice)
    return [replace(call, kernel=legalize(call.kernel, target), refs=_same_memory(layer, call)) for call in calls]


def _same_memory(layer: Layer, call: KernelCall) -> tuple[Ref, ...]:
    """The pointers of a call, with a tensor that is several inputs at its first place: a block's input is often added to its output."""
    inputs = layer.node.inputs
    first = {i: inputs.index(value) for i, value in enumerate(inputs)}
    return tuple(replace(ref, index=first.get(ref.index, ref.index)) if ref.kind == "input" else ref for ref in call.refs)


class _WholeRun:
    """A model with a clock around whole runs."""

    def __init__(self, model: Model) -> None:
        self.model = model
        rng = np.random.default_rng(0)
        self.feeds: Mapping[str, np.ndarray] = {
            name: rng.random(info.shape).astype(NUMPY_DTYPE[info.dtype]) for name, info in model.inputs.items()
        }

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.feeds = feeds
        return self.model.run(feeds)

    def time(self) -> float:
        began = time.perf_counter()
        self.model.run(self.feeds)
        return time.perf_counter() - began
