"""Runs samples through compiled float code and gathers statistics: one pass, whatever the methods that are compared afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from cortado.compiler.graph import Graph
from cortado.compiler.quantize.plan import Plan
from cortado.compiler.quantize.record import CalibrationRecord, TensorStatistics
from cortado.compiler.quantize.simulate import measured, tensor_name
from cortado.compiler.types import Executor
from cortado.errors import CalibrationError

Feeds: TypeAlias = Mapping[str, np.ndarray]
MakeExecutor: TypeAlias = Callable[[Graph], Executor]  # compiles a graph for this machine, without rewriting it
Progress: TypeAlias = Callable[[str, int], None]  # stage, how many samples are done


class CalibrationWarning(UserWarning):
    """Calibration works, but its data are poor."""


class Observer:
    """The float network, compiled once with its outputs and everything to observe as outputs.

    Outputs are called `output0` ... (as in measured) and by tensor_name, in the plan's order of observed values.
    """

    def __init__(self, plan: Plan, make_executor: MakeExecutor) -> None:
        self.plan = plan
        self.names = {tensor_name(value): repr(value) for value in plan.observed}
        self._given = {tensor_name(value): value.node.name for value in plan.observed if value.node.op == "input"}
        made = [(tensor_name(value), value) for value in plan.observed if value.node.op != "input"]
        outputs = (*measured(plan.graph), *made)
        self._executor = make_executor(Graph(plan.graph.name, plan.graph.inputs, outputs))

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs of one sample."""
        return {**self._executor.run(feeds), **{name: feeds[source] for name, source in self._given.items()}}

    def observed(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The observed tensors of one sample, by their own names."""
        arrays = self.run(feeds)
        return {tensor: arrays[name] for name, tensor in self.names.items()}


def observe(
    observer: Observer, samples: Iterable[Feeds], keep: int = 0, progress: Progress | None = None
) -> tuple[CalibrationRecord, list[Feeds]]:
    """Statistics of the plan's observed values over the samples, and the first `keep` samples.

    samples: arrays by input name, exactly of the graph's inputs. Memory does not grow with their number.
    CalibrationError: no sample, wrong names, shapes or dtypes, values that are not finite.
    """
    kept: list[Feeds] = []
    tensors: dict[str, TensorStatistics] = {}
    count = 0
    for feeds in samples:
        count += 1
        check_sample(observer.plan.graph, feeds, count)
        if len(kept) < keep:
            kept.append({name: np.array(array) for name, array in feeds.items()})
        for name, array in observer.observed(feeds).items():
            _check_finite(array, f"calibration sample {count} makes tensor {name!r}", "check the preprocessing, or leave it out")
            seen = TensorStatistics.of(array)
            tensors[name] = tensors[name].followed_by(seen) if name in tensors else seen
        if progress is not None:
            progress("observing", count)
    if not count:
        raise CalibrationError("there are no calibration samples: give at least one, better 32 or more")
    return CalibrationRecord(count, {name: tensors[name] for name in observer.names.values()}), kept


def check_sample(graph: Graph, feeds: Feeds, number: int) -> None:
    """CalibrationError that names everything wrong with a sample, unless it is exactly the graph's inputs, all finite."""
    if not isinstance(feeds, Mapping):
        raise CalibrationError(f"calibration sample {number} is a {type(feeds).__name__}, not arrays by input name")
    kinds = {node.name: node.types[0] for node in graph.inputs}
    wrong = [f"there is no input {name!r}" for name in feeds if name not in kinds]
    for name, kind in kinds.items():
        if name not in feeds:
            wrong.append(f"input {name!r} is missing")
            continue
        array = feeds[name]
        if not isinstance(array, np.ndarray):
            wrong.append(f"input {name!r} is a {type(array).__name__}, not an array")
        elif array.dtype != kind.numpy or array.shape != kind.shape:
            wrong.append(
                f"input {name!r} is {array.dtype}{list(array.shape)}, but the network takes {kind.dtype}{list(kind.shape)}"
            )
    if wrong:
        known = ", ".join(f"{name} {kind.dtype}{list(kind.shape)}" for name, kind in kinds.items())
        raise CalibrationError(f"calibration sample {number}: {'; '.join(wrong)} (the inputs are {known})")
    for name in kinds:
        _check_finite(feeds[name], f"calibration sample {number}: input {name!r} is", "leave that sample out")


def _check_finite(array: np.ndarray, what: str, advice: str) -> None:
    if array.dtype.kind != "f" or (array.size and np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    if not array.size:
        raise CalibrationError(f"{what} empty: there is nothing to observe")
    bad = "NaN" if np.isnan(array).any() else "infinite"
    count = int(array.size - np.isfinite(array).sum())
    raise CalibrationError(f"{what} {bad} in {count} of {array.size} places: {advice}")


def warn_of(record: CalibrationRecord) -> None:
    if record.samples == 1:
        warnings.warn(
            "calibrated with a single sample: the ranges are those of one input; give 32 or more",
            CalibrationWarning,
            stacklevel=3,
        )
    dull = [name for name, s in record.tensors.items() if s.low == s.high]
    if dull:
        listed = ", ".join(dull[:5]) + (" ..." if len(dull) > 5 else "")
        tensors = "1 tensor" if len(dull) == 1 else f"{len(dull)} tensors"
        message = f"{tensors} had one value only over all calibration samples: {listed}; are the samples real inputs?"
        warnings.warn(message, CalibrationWarning, stacklevel=3)


def check_record(plan: Plan, record: CalibrationRecord) -> None:
    """CalibrationError unless the record has statistics for every tensor of the plan, of its shape."""
    for value in plan.observed:
        statistics = record.tensors.get(repr(value))
        if statistics is None or statistics.shape != value.shape:
            found = "has nothing" if statistics is None else f"has shape {list(statistics.shape)}"
            raise CalibrationError(
                f"the calibration record was made for another network or input shape: for tensor {value!r} {list(value.shape)} it {found}; "
                "calibrate again"
            )
