"""Post-training quantization, whole: samples become a record, and a record makes a float graph int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph
from cortado.compiler.quantize.calibrate import Feeds, MakeExecutor, Observer, Progress, check_record, observe, warn_of
from cortado.compiler.quantize.choose import DEFAULT, decide, moved_biases, quants_of
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.equalize import equalized
from cortado.compiler.quantize.plan import Plan, make_plan
from cortado.compiler.quantize.prepare import prepare
from cortado.compiler.quantize.ranges import GREATEST, LEAST
from cortado.compiler.quantize.record import CalibrationRecord, Decision
from cortado.compiler.quantize.rewrite import to_int8
from cortado.compiler.types import Quant
from cortado.errors import CalibrationError

AUTOMATIC = QuantizeConfig()


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
    observer = Observer(plan, make_executor)
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


def quantize_graph(graph: Graph, record: CalibrationRecord, config: QuantizeConfig = AUTOMATIC) -> Graph:
    """An optimized float graph in int8, with the same inputs and outputs. A function of its arguments alone.

    CalibrationError where the record was made for another network.
    """
    plan, quants, decision = _chosen(graph, record, config)
    moved = moved_biases(plan, _statistics(record, decision)) if decision.correct_bias else {}
    return to_int8(plan, quants, moved)


def summary(graph: Graph, record: CalibrationRecord, config: QuantizeConfig = AUTOMATIC) -> dict[str, Any]:
    """What quantize_graph did, as plain data: the record's hash, the choices, and range, scale and error by tensor.

    noise_db: 10 log10 of signal energy / noise energy on the samples that the choice was made on; None where it is not known.
    """
    plan, quants, decision = _chosen(graph, record, config)
    tensors = []
    for tensor, quant in zip(plan.tensors, quants, strict=True):
        scale, zero = quant.scales[0], quant.zero_points[0]
        errors = [decision.layers[repr(value)] for value in tensor.shown if repr(value) in decision.layers]
        low, high = (LEAST - zero) * scale, (GREATEST - zero) * scale
        entry = {"name": repr(tensor.shown[0]), "low": low, "high": high, "scale": scale, "zero_point": zero}
        tensors.append({**entry, "snr_db": decibels(max(errors)) if errors else None})
    return {
        "calibration": record.sha256,
        "samples": record.samples,
        "method": decision.method,
        "bias_correction": decision.correct_bias,
        "equalized_layers": len(decision.factors),
        "candidates_db": {name: decibels(error) for name, error in sorted(decision.errors.items())},
        "tensors": tensors,
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


def _chosen(graph: Graph, record: CalibrationRecord, config: QuantizeConfig) -> tuple[Plan, tuple[Quant, ...], Decision]:
    decision = decision_of(record, config)
    plan = _plan(graph, decision.factors)
    check_record(plan, record)
    return plan, quants_of(plan, _statistics(record, decision), decision.method), decision
