"""The choices of a quantization, made by the error at the network's outputs over a few samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.quantize.calibrate import Feeds, MakeExecutor, Observer, Progress
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.equalize import equalized, find_factors
from cortado.compiler.quantize.joins import kept_apart
from cortado.compiler.quantize.plan import LAYERS, Plan, limits_of, make_plan, split
from cortado.compiler.quantize.ranges import METHODS, quant_of, symmetric_quant_of
from cortado.compiler.quantize.record import CalibrationRecord, Decision, TensorStatistics
from cortado.compiler.quantize.sensitivity import alone
from cortado.compiler.quantize.simulate import Simulation, simulation, tensor_name
from cortado.compiler.quantize.weights import weight_error_bias
from cortado.compiler.types import Executor, Quant

SAFE = "extended"  # clips nothing that was seen, and leaves room
DEFAULT = Decision(SAFE, True, apart=True)  # where no samples are left to compare on
GAIN = 0.98  # a later candidate must lower the error at least to this part
# Ranges without room above what was seen, and channels stretched up to what was seen of them, fit the samples better than other inputs,
# on which clipping loses without bound. They must be worth two bits: a sixteenth of the error.
RISKY_GAIN = 0.0625
APART_GAIN = 0.7  # conversions of what is joined take time: they must lower the error to this part
APART = "+apart"
Statistics = Mapping[str, TensorStatistics]


def quants_of(plan: Plan, statistics: Statistics, method: str) -> tuple[Quant, ...]:
    """Scale and zero point of every tensor of the plan, by its method's range over what is shown of it, within what it cannot leave."""
    found = []
    for tensor in plan.tensors:
        if tensor.quant is not None:
            found.append(tensor.quant)
            continue
        ranges = []
        for value in tensor.shown:
            (low, high), (least, most) = METHODS[method](statistics[repr(value)]), limits_of(value)
            ranges.append((max(low, least), min(high, most)))
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        found.append((symmetric_quant_of if tensor.symmetric else quant_of)(low, high))
    return tuple(found)


def moved_biases(plan: Plan, statistics: Statistics) -> dict[Node, np.ndarray]:
    """What bias correction adds, by layer whose input is observed."""
    moved = {}
    for node in plan.graph.nodes():
        if node in plan.quantized and node.op in LAYERS and repr(node.inputs[0]) in statistics:
            seen = statistics[repr(node.inputs[0])]
            if len(seen.channel_sum) == node.inputs[0].shape[-1]:
                moved[node] = weight_error_bias(node, seen.channel_mean)
    return moved


@dataclass(frozen=True)
class Comparison:
    """Runs candidates on samples and compares with what the float network gives."""

    simulation: Simulation
    executor: Executor
    observer: Observer

    @staticmethod
    def of(plan: Plan, observer: Observer, make_executor: MakeExecutor) -> Comparison:
        made = simulation(plan)
        return Comparison(made, make_executor(made.graph), observer)

    def errors(self, samples: Sequence[Feeds], quants: Sequence[Quant], moved: Mapping[Node, np.ndarray]) -> dict[str, float]:
        """Noise energy / signal energy by output of the simulation, over the samples."""
        extra = self.simulation.feeds(quants, moved)
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for feeds in samples:
            wanted = self.observer.run(feeds)
            for name, got in self.executor.run({**feeds, **extra}).items():
                exact = wanted[name].reshape(-1)
                difference = got.reshape(-1) - exact
                noise[name] = noise.get(name, 0.0) + energy(difference)
                signal[name] = signal.get(name, 0.0) + energy(exact)
        return {name: noise[name] / signal[name] if signal[name] else float(noise[name] > 0) for name in noise}


def energy(values: np.ndarray) -> float:
    """The sum of squares of float32[n]."""
    with np.errstate(over="ignore"):
        found = float(np.dot(values, values))
    return found if np.isfinite(found) else float(np.dot(values.astype(np.float64), values.astype(np.float64)))


def output_error(errors: Mapping[str, float]) -> float:
    """The mean over the network's outputs."""
    found = [error for name, error in errors.items() if name.startswith("output")]
    return sum(found) / max(1, len(found))


@dataclass
class _Contest:
    """Candidates against each other. best: (error, decision, errors by output and tensor)."""

    config: QuantizeConfig
    samples: Sequence[Feeds]
    progress: Progress | None
    errors: dict[str, float]
    best: tuple[float, Decision, dict[str, float]] | None = None
    risk: int = 0  # of the best
    count: int = 0

    def joins(
        self, plan: Plan, statistics: Statistics, methods: Sequence[str], observer: Observer, make_executor: MakeExecutor
    ) -> Comparison:
        """Of the plan, or of that with inputs of concats apart if this is enough better; by one method, as both gain alike by others."""
        near = Comparison.of(plan, observer, make_executor)
        apart = kept_apart(plan, statistics)
        if not apart:
            return near
        far = Comparison.of(split(plan, apart), observer, make_executor)
        method = SAFE if SAFE in methods else methods[0]
        found = []
        for comparison, suffix in ((near, ""), (far, APART)):
            quants = quants_of(comparison.simulation.plan, statistics, method)
            found.append(output_error(comparison.errors(self.samples, quants, {})))
            self.errors[method + suffix] = found[-1]
        return far if found[1] < APART_GAIN * found[0] else near

    def enter(
        self, comparison: Comparison, statistics: Statistics, methods: Sequence[str], factors: Mapping[str, tuple[float, ...]]
    ) -> None:
        """Every method, with and without bias correction."""
        plan = comparison.simulation.plan
        moved = moved_biases(plan, statistics)
        wanted = self.config.correct_bias
        for method in methods:
            quants = quants_of(plan, statistics, method)
            for correct in (False, True) if wanted is None else (wanted,):
                found = comparison.errors(self.samples, quants, moved if correct else {})
                error = output_error(found)
                name = method + "+bias" * correct + "+equalized" * bool(factors) + APART * bool(plan.apart)
                self.errors[name] = error
                self.count += 1
                if self.progress is not None:
                    self.progress("comparing", self.count)
                risk = int(method != SAFE) + int(bool(factors))
                if self.best is None or error < self.best[0] * (RISKY_GAIN if risk > self.risk else GAIN):
                    self.best, self.risk = (error, Decision(method, correct, factors, apart=bool(plan.apart)), found), risk


def decide(
    plan: Plan,
    record: CalibrationRecord,
    observer: Observer,
    samples: Sequence[Feeds],
    make_executor: MakeExecutor,
    config: QuantizeConfig,
    progress: Progress | None = None,
) -> CalibrationRecord:
    """The record with the decision whose error at the network's outputs is smallest over the samples."""
    contest = _Contest(config, samples, progress, {})
    methods = tuple(METHODS) if config.method is None else (config.method,)
    comparison = contest.joins(plan, record.tensors, methods, observer, make_executor)
    plan = comparison.simulation.plan
    factors = {} if config.equalize is False else find_factors(plan.graph, record)
    if not (factors and config.equalize):
        contest.enter(comparison, record.tensors, methods, {})
    overlay: Statistics = {}
    if factors:
        other = split(make_plan(equalized(plan.graph, factors)), plan.apart)
        second = Observer(other, make_executor)
        overlay = _equalized_statistics(record, second, samples, factors)
        promising = methods if contest.best is None else (contest.best[1].method,)
        contest.enter(Comparison.of(other, second, make_executor), {**record.tensors, **overlay}, promising, factors)
    assert contest.best is not None
    error, decision, found = contest.best
    names = {tensor_name(value): repr(value) for value in plan.observed}
    layers = {names[name]: error for name, error in found.items() if name in names}
    decision = replace(decision, errors=contest.errors, layers=layers)
    record = replace(record, decision=decision, equalized=overlay if decision.factors else {})
    if decision.factors:
        plan, observer = other, second
    quants = quants_of(plan, record.effective, decision.method)
    moved = moved_biases(plan, record.effective) if decision.correct_bias else {}
    single = alone(plan, quants, moved, error, observer, samples, make_executor, progress)
    return replace(record, decision=replace(decision, alone=single))


def _equalized_statistics(
    record: CalibrationRecord, observer: Observer, samples: Sequence[Feeds], factors: Mapping[str, tuple[float, ...]]
) -> dict[str, TensorStatistics]:
    """Of the tensors that the factors change: histograms over the samples at hand, everything else over all samples, recomputed."""
    seen: dict[str, TensorStatistics] = {}
    for feeds in samples:
        for name, array in observer.observed(feeds).items():
            if name in factors and name in record.tensors:
                here = TensorStatistics.of(array)
                seen[name] = seen[name].followed_by(here) if name in seen else here
    for name, found in seen.items():
        old, divisor = record.tensors[name], np.asarray(factors[name], np.float32)
        lows, highs = old.channel_low / divisor, old.channel_high / divisor
        low, high = min(float(lows.min()), found.low), max(float(highs.max()), found.high)
        seen[name] = replace(
            found,
            low=low,
            high=high,
            channel_low=lows,
            channel_high=highs,
            channel_sum=old.channel_sum / divisor * (found.elements / old.elements),
            histogram=found.histogram.spanning(low, high),
        )
    return seen
