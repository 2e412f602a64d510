"""Post-training quantization, whole: samples become a record, and a record makes a float graph int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node
from cortado.compiler.passes.fuse_elementwise import fuse_elementwise
from cortado.compiler.quantize.calibrate import Feeds, MakeExecutor, Observer, Progress, check_record, observe, warn_of
from cortado.compiler.quantize.choose import DEFAULT, decide, moved_biases, quants_of
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.equalize import equalized
from cortado.compiler.quantize.joins import candidates, converted, kept_apart
from cortado.compiler.quantize.pays import Costs, estimated, named, staying_float
from cortado.compiler.quantize.plan import Plan, make_plan, split
from cortado.compiler.quantize.prepare import prepare
from cortado.compiler.quantize.ranges import GREATEST, LEAST
from cortado.compiler.quantize.record import CalibrationRecord, Decision
from cortado.compiler.quantize.rewrite import to_int8
from cortado.compiler.rewrite import Steps
from cortado.compiler.target import Target
from cortado.compiler.types import Quant
from cortado.errors import CalibrationError, OptionError

AUTOMATIC = QuantizeConfig()
SLOWER, NONE = "slower", "none"  # which nodes stay float: those that int8 makes slower, or none


def calibrate(
    graph: Graph,
    samples: Iterable[Feeds],
    make_executor: MakeExecutor,
    config: QuantizeConfig = AUTOMATIC,
    before: CalibrationRecord | None = None,
    progress: Progress | None = None,
) -> CalibrationRecord:
    """Observe the samples and decide how to quantize.

    graph: float and optimized. make_executor: compiles a graph for this machine. before: a record of earlier samples to go on from.
    progress: called with a stage ("observing", "comparing") and a count. CalibrationError where samples are unusable or the graph has
    no layer that int8 could compute; CalibrationWarning where they are poor.
    """
    plan = _plan(graph, {})
    observer = Observer(split(plan, candidates(plan)), make_executor)
    keep = config.samples_for(sum(value.type.size for value in plan.observed))
    record, kept = observe(observer, samples, keep, progress)
    if before is not None:
        check_record(plan, before)
        record = before.merged(record)
    warn_of(record)
    return decide(plan, record, observer, kept, make_executor, config, progress)


def decision_of(record: CalibrationRecord, config: QuantizeConfig) -> Decision:
    """What the record says, or the default, with what the config fixes."""
    decision = record.decision or DEFAULT
    if config.method is not None:
        decision = replace(decision, method=config.method)
    if config.correct_bias is not None:
        decision = replace(decision, correct_bias=config.correct_bias)
    return decision if config.equalize in (None, True) else replace(decision, factors={})


@dataclass(frozen=True)
class Assignment:
    """What every node becomes. whole: the plan in which all that can be int8 is; plan: the same without the nodes that stay float.

    quants: by tensor of the plans, whichever nodes are int8. costs: estimates, where the choice was made by them; judged: on which target.
    """

    plan: Plan
    whole: Plan
    quants: tuple[Quant, ...]
    decision: Decision
    moved: Mapping[Node, np.ndarray]
    costs: Costs | None = None
    judged: str | None = None

    @property
    def floats(self) -> tuple[str, ...]:
        """Names of the nodes that could be int8 but stay float, in order."""
        return tuple(node.name for node in self.whole.graph.nodes() if node in self.whole.quantized - self.plan.quantized)


def assign(
    graph: Graph,
    record: CalibrationRecord,
    config: QuantizeConfig = AUTOMATIC,
    keep_float: str | Sequence[str] = NONE,
    judge: Target | None = None,
) -> Assignment:
    """Ranges, and which nodes of an optimized float graph become int8. A function of its arguments alone.

    keep_float: SLOWER keeps float what the estimate for `judge` says is faster so, NONE nothing; else the names of nodes. CalibrationError where
    the record was made for another network, OptionError where there is no node of such a name.
    """
    decision = decision_of(record, config)
    plan = _plan(graph, decision.factors)
    check_record(plan, record)
    if decision.apart:
        plan = split(plan, kept_apart(plan, record.tensors))
    statistics = _statistics(record, decision)
    quants = quants_of(plan, statistics, decision.method)
    floats: frozenset[Node] = frozenset()
    costs = None
    if keep_float == SLOWER:
        costs = None if judge is None or not judge.vector_bits else estimated(plan, quants, judge)
        floats = frozenset() if costs is None else staying_float(plan, costs)
    elif not isinstance(keep_float, str):
        floats = _named(plan, keep_float)
    rest = replace(plan, quantized=plan.quantized - floats)
    moved = moved_biases(plan, statistics) if decision.correct_bias else {}
    judged = None if costs is None or judge is None else judge.name
    return Assignment(rest, plan, quants, decision, moved, costs, judged)


def _named(plan: Plan, names: Sequence[str]) -> frozenset[Node]:
    try:
        return named(plan, names)
    except KeyError as missing:
        known = ", ".join(node.name for node in plan.graph.nodes() if node in plan.quantized)
        raise OptionError(f"keep_float: there is no int8 node {missing}; there are {known}") from None


def quantize_graph(graph: Graph, record: CalibrationRecord, config: QuantizeConfig = AUTOMATIC) -> Graph:
    """An optimized float graph with all that can be int8 in int8, with the same inputs and outputs. Errors as `assign`."""
    return integer_graph(assign(graph, record, config))


def integer_graph(assigned: Assignment) -> Graph:
    """What stayed float is fused again where `prepare` took it apart."""
    return fuse_elementwise(to_int8(assigned.plan, assigned.quants, assigned.moved), Steps())


def summary(assigned: Assignment, record: CalibrationRecord) -> dict[str, Any]:
    """What was done, as plain data: the record's hash, the choices, range, scale and error by tensor, and type, cost and error by node.

    snr_db: 10 log10 of signal energy / noise energy on the samples that the choice was made on, of the tensor when everything before it is
    int8; alone_db: of the network's outputs when this layer alone is int8. None where it is not known.
    """
    plan, decision = assigned.whole, assigned.decision
    tensors = []
    for tensor, quant in zip(plan.tensors, assigned.quants, strict=True):
        scale, zero = quant.scales[0], quant.zero_points[0]
        low, high = (LEAST - zero) * scale, (GREATEST - zero) * scale
        entry = {"name": repr(tensor.shown[0]), "low": low, "high": high, "scale": scale, "zero_point": zero}
        tensors.append({**entry, "snr_db": _worst(plan, plan.of[tensor.members[0]], decision)})
    return {
        "calibration": record.sha256,
        "samples": record.samples,
        "method": decision.method,
        "bias_correction": decision.correct_bias,
        "equalized_layers": len(decision.factors),
        "candidates_db": {name: decibels(error) for name, error in sorted(decision.errors.items())},
        "judged_for": assigned.judged,
        "keep_float": list(assigned.floats),
        "converted": converted(assigned.plan),
        "layers": [_layer(assigned, node) for node in plan.graph.nodes() if node in plan.quantized],
        "tensors": tensors,
    }


def _worst(plan: Plan, tensor: int, decision: Decision) -> float | None:
    errors = [decision.layers[repr(value)] for value in plan.tensors[tensor].shown if repr(value) in decision.layers]
    return decibels(max(errors)) if errors else None


def _layer(assigned: Assignment, node: Node) -> dict[str, Any]:
    plan, costs, decision = assigned.whole, assigned.costs, assigned.decision
    alone = decision.alone.get(node.name)
    return {
        "name": node.name,
        "op": node.op,
        "origin": list(node.origin),
        "dtype": "int8" if node in assigned.plan.quantized else "float32",
        "tensor": plan.of[node.out()],
        "float_cycles": None if costs is None else round(costs.floats[node]),
        "int8_cycles": None if costs is None else round(costs.integers[node]),
        "snr_db": decibels(decision.layers[repr(node.out())]) if repr(node.out()) in decision.layers else None,
        "alone_db": None if alone is None else decibels(alone),
    }


def decibels(error: float) -> float | None:
    """Signal to noise ratio of a relative squared error; None without noise."""
    return round(float(-10 * np.log10(error)), 2) if error > 0 else None


def _statistics(record: CalibrationRecord, decision: Decision) -> Mapping[str, Any]:
    return record.effective if decision.factors else record.tensors


def _plan(graph: Graph, factors: Mapping[str, tuple[float, ...]]) -> Plan:
    plan = make_plan(equalized(prepare(graph), factors))
    if not plan.quantized:
        raise CalibrationError(
            f"network {graph.name!r} has no float32 convolution or fully connected layer that int8 could compute"
        )
    return plan
