"""Inputs of concats with scales of their own: where they pay, what is chosen, and the same bits everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from graphs import Net, node_named, ops
from native import X86_LEVELS, skip_unless_run
from test_quantize import Feeds, samples

import cortado
from cortado.backends.targets import find_target
from cortado.backends.targets.classes import judge_of
from cortado.compiler.graph import Graph, Value
from cortado.compiler.interpret import run_program
from cortado.compiler.optimize import optimize
from cortado.compiler.options import CompileOptions
from cortado.compiler.pipeline import compile_program
from cortado.compiler.quantize.calibrate import Observer, observe
from cortado.compiler.quantize.choose import moved_biases, quants_of
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.joins import RATIO, candidates, converted, kept_apart
from cortado.compiler.quantize.pays import estimated
from cortado.compiler.quantize.plan import make_plan, split
from cortado.compiler.quantize.quantize import assign, calibrate, integer_graph, quantize_graph, summary
from cortado.compiler.quantize.record import CalibrationRecord, load_record
from cortado.compiler.quantize.simulate import simulation
from cortado.compiler.reference import run_graph
from cortado.compiler.verify import verify
from cortado.execute import ReferenceExecutor
from cortado.int8_report import int8_lines

POOL = {"kernel": (2, 2), "strides": (2, 2), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
FIXED = QuantizeConfig("min_max", False, False)


def layer(net: Net, x: Value, outputs: int, kernel: int = 3, size: float = 1.0, name: str | None = None) -> Value:
    """A convolution whose results have some `size` times the range of x."""
    y = net.conv(x, outputs, kernel, pad=kernel // 2, name=name)
    weights, bias = (v.node.attrs["value"].base for v in y.node.inputs[1:])
    weights *= size * np.sqrt(6 / (kernel * kernel * x.shape[-1]))
    bias *= 0.1
    return y


def unet(gain: float, transposed: bool = True, size: int = 16, channels: int = 12) -> Graph:
    """One level: the skip connection is pooled for the way down, and joined with a tensor of about `gain` times its range."""
    net = Net()
    skip = net.op("relu", layer(net, net.input(1, size, size, 3), channels), name="skip")
    down = net.op("max_pool", skip, **POOL, name="down")
    deep = net.op("relu", layer(net, net.op("relu", layer(net, down, 2 * channels)), 2 * channels), name="deep")
    if transposed:
        wide = net.conv_transpose(deep, channels, 2, 2, name="wide")
        wide.node.inputs[1].node.attrs["value"].base[:] *= gain * np.sqrt(0.75 / channels)
    else:
        small = net.op("relu", layer(net, deep, channels, 1, gain))
        wide = net.op("resize_nearest", small, scale_h=2.0, scale_w=2.0, out_h=size, out_w=size, name="wide")
    joined = net.op("concat", wide, skip, axis=3, name="joined")
    return net.graph(layer(net, net.op("relu", layer(net, joined, channels), name="up"), 4, 1))


def signal_to_noise(graph: Graph, made: Graph) -> float:
    """dB, on inputs that calibration did not see."""
    noise = signal = 0.0
    for feeds in samples(graph, 3, seed=9):
        want, got = run_graph(graph, feeds)["out0"], run_graph(made, feeds)["out0"]
        noise, signal = noise + float(np.sum((want - got) ** 2)), signal + float(np.sum(want**2))
    return 10 * float(np.log10(signal / noise))


@lru_cache
def calibrated(gain: float, transposed: bool = True) -> tuple[Graph, CalibrationRecord]:
    graph = optimize(unet(gain, transposed))
    return graph, calibrate(graph, samples(graph, 6), ReferenceExecutor)


def joined_alike(record: CalibrationRecord) -> CalibrationRecord:
    assert record.decision is not None
    return replace(record, decision=replace(record.decision, apart=False))


@pytest.mark.parametrize("transposed", [True, False])
def test_a_skip_connection_with_a_small_range_keeps_its_scale(transposed: bool) -> None:
    graph, record = calibrated(50.0, transposed)
    assert record.decision is not None and record.decision.apart
    made, before = quantize_graph(graph, record), quantize_graph(graph, joined_alike(record))
    verify(made)
    wide, skip = node_named(made, "joined").inputs
    assert ops(made)["q_table"] == 1 and "q_table" not in ops(before) and skip.node.op == "q_table"
    assert wide.type.quant == skip.type.quant == node_named(made, "joined").types[0].quant
    own = node_named(made, "skip").types[0].quant
    assert own == node_named(made, "down").types[0].quant and own is not None and wide.type.quant is not None
    assert own.scales[0] < wide.type.quant.scales[0] / 30
    assert signal_to_noise(graph, made) > 29 and signal_to_noise(graph, before) < 15


def test_ranges_that_are_alike_stay_together() -> None:
    graph, record = calibrated(1.0)
    plan = make_plan(graph)
    assert record.decision is not None and not record.decision.apart
    assert candidates(plan) == {("joined", 1)} and not kept_apart(plan, record.tensors)
    assert not any("apart" in name for name in record.decision.errors)
    made = quantize_graph(graph, record)
    assert len({node_named(made, name).types[0].quant for name in ("skip", "down", "wide", "joined")}) == 1
    assert signal_to_noise(graph, made) > 29


def test_what_does_not_help_the_outputs_is_not_done() -> None:
    """Here all precision is lost in what is joined: the next layer weighs the small part as much as the large one."""
    graph = unet(1e5)
    weights = node_named(graph, "up").inputs[0].node.inputs[1].node.attrs["value"].base
    weights[..., :12] /= 1e5
    graph = optimize(graph)
    record = calibrate(graph, samples(graph, 3), ReferenceExecutor, FIXED)
    assert kept_apart(make_plan(graph), record.tensors) and record.decision is not None and not record.decision.apart
    errors = record.decision.errors
    assert errors["min_max+apart"] > 0.7 * errors["min_max"]
    assert "q_table" not in ops(quantize_graph(graph, record, FIXED))


def chain(growth: float, count: int = 6) -> Graph:
    """Each concat adds a tensor of `growth` times the range to the one before; a layer reads every one of them."""
    net = Net()
    x = layer(net, net.input(1, 6, 6, 4), 4, 1, name="first")
    results = []
    for i in range(count):
        results.append(layer(net, x, 2, 1, name=f"read{i}"))
        new = layer(net, x, 4, 1, growth, name=f"new{i}")
        x = net.op("concat", x, new, axis=3, name=f"cat{i}")
    return net.graph(*results, layer(net, x, 2, 1, name="last"))


def ranges_of(graph: Graph) -> CalibrationRecord:
    plan = make_plan(graph)
    return observe(Observer(split(plan, candidates(plan)), ReferenceExecutor), samples(graph))[0]


def test_chains_are_cut_where_the_range_has_grown() -> None:
    """A cut copies all that was joined before it, so there are as few as keep the range within RATIO."""
    found = {growth: kept_apart(make_plan(chain(growth)), ranges_of(chain(growth)).tensors) for growth in (0.2, 1.7, 30.0)}
    assert not found[0.2] and len(found[30.0]) == 6
    assert 1 <= len(found[1.7]) <= 3
    graph = chain(1.7)
    plan = split(make_plan(graph), found[1.7])
    statistics = ranges_of(graph).tensors
    widest = {i: max(_width(statistics, v) for v in tensor.shown) for i, tensor in enumerate(plan.tensors)}
    for value in (node_named(graph, f"read{i}").inputs[0] for i in range(6)):
        assert _width(statistics, value) > widest[plan.of[value]] / RATIO


def _width(statistics: object, value: Value) -> float:
    found = statistics[repr(value)]  # type: ignore[index]
    return max(found.high, 0.0) - min(found.low, 0.0)


def test_only_what_others_read_can_be_apart() -> None:
    net = Net()
    x = layer(net, net.input(1, 6, 6, 4), 4)
    alone = layer(net, x, 4, 1, 0.01, name="alone")
    pooled = net.op("max_pool", x, **POOL, name="pooled")
    parts = [net.op("max_pool", alone, **POOL), pooled, layer(net, pooled, 4, 1, 100.0, name="large")]
    plan = make_plan(net.graph(layer(net, net.op("concat", *parts, axis=3, name="cat"), 4)))
    assert candidates(plan) == {("cat", 1)}


def test_what_several_concats_read_goes_with_the_finer_one() -> None:
    net = Net()
    x = net.input(1, 6, 6, 4)
    shared, small = (layer(net, x, 4, name=name) for name in ("shared", "small"))
    fine = net.op("concat", shared, small, axis=3, name="fine")
    large = layer(net, fine, 4, 1, 100.0, name="large")
    graph = net.graph(layer(net, net.op("concat", large, shared, axis=3, name="coarse"), 4))
    plan, record = make_plan(graph), ranges_of(graph)
    assert kept_apart(plan, record.tensors) == {("coarse", 1)}
    made = quantize_graph(graph, record)
    assert node_named(made, "shared").types == node_named(made, "small").types
    del record.tensors["shared"]  # type: ignore[attr-defined]
    assert not kept_apart(plan, record.tensors), "what was not observed can have no scale of its own"
    assert "q_table" not in ops(quantize_graph(graph, record))


def test_shares_of_a_softmax_keep_their_scale() -> None:
    net = Net()
    shares = [net.op("softmax", layer(net, net.input(1, 4, 4, 3), 8, size=s), axis=3) for s in (0.01, 50.0)]
    graph = net.graph(layer(net, net.op("concat", *shares, axis=3), 4), layer(net, shares[0], 4))
    plan = make_plan(graph)
    assert len(candidates(plan)) == 1 and not kept_apart(plan, ranges_of(graph).tensors)


@pytest.mark.parametrize("correct", [False, True])
def test_the_simulation_computes_what_the_integers_do(correct: bool) -> None:
    graph, record = calibrated(50.0)
    config = QuantizeConfig("min_max", correct, False)
    made = quantize_graph(graph, record, config)
    plan = split(make_plan(graph), kept_apart(make_plan(graph), record.tensors))
    assert converted(plan) == ["skip"]
    built = simulation(plan)
    verify(built.graph)
    extra = built.feeds(quants_of(plan, record.tensors, "min_max"), moved_biases(plan, record.tensors) if correct else {})
    [feeds] = samples(graph, 1, seed=5)
    want, got = run_graph(made, feeds)["out0"], run_graph(built.graph, {**feeds, **extra})["output0"]
    step = np.unique(np.diff(np.unique(want))).min()
    assert np.mean(np.abs(want - got) > 0.01 * step) < 0.05  # ties apart, and what they lead to


def test_what_is_reported() -> None:
    graph, record = calibrated(50.0)
    assigned = assign(graph, record)
    found = summary(assigned, record)
    assert found["converted"] == ["skip"]
    assert {"extended", "extended+apart"} <= found["candidates_db"].keys()
    rows = {row["name"]: found["tensors"][row["tensor"]] for row in found["layers"]}
    assert rows["skip"]["high"] == rows["down"]["high"] < rows["joined"]["high"] / 20
    assert rows["joined"] == rows["wide"] and all(row["snr_db"] > 25 for row in rows.values())
    assert [line for line in int8_lines(found) if "much smaller: skip" in line]
    together = summary(assign(graph, joined_alike(record)), record)
    assert together["converted"] == [] and not [line for line in int8_lines(together) if "much smaller" in line]


def test_joined_in_float_there_is_nothing_to_convert() -> None:
    graph, record = calibrated(50.0)
    assigned = assign(graph, record, keep_float=["joined"])
    made = integer_graph(assigned)
    assert "q_table" not in ops(made) and summary(assigned, record)["converted"] == []
    scales = [value.node.inputs[0].type.quant for value in node_named(made, "joined").inputs]
    assert None not in scales and scales[0] != scales[1]
    assert signal_to_noise(graph, made) > 29


def test_conversions_count_among_the_costs() -> None:
    graph, record = calibrated(50.0)
    target = judge_of(find_target("x86-64-v3"))
    assert target is not None
    costs = []
    for given in (record, joined_alike(record)):
        assigned = assign(graph, given)
        costs.append(estimated(assigned.plan, assigned.quants, target).integers)
    at = next(node for node in costs[0] if node.name == "joined")
    before = next(cost for node, cost in costs[1].items() if node.name == "joined")
    assert before == 0 and costs[0][at] > 16 * 16 * 12 / 4  # vectors of a table take half a cycle a byte


def test_records_saved_before_and_after(tmp_path: Path) -> None:
    graph, record = calibrated(50.0)
    record.save(tmp_path / "now.npz")
    again = load_record(tmp_path / "now.npz")
    assert again.sha256 == record.sha256 and again.decision == record.decision
    # A record without the ranges of what is only pooled and joined, and whose decision knows nothing of scales apart.
    old = replace(record, tensors={name: found for name, found in record.tensors.items() if name != "skip"})
    old = joined_alike(old)
    parts, _ = old._parts()
    del parts["decision"]["apart"]
    old.save(tmp_path / "old.npz")
    with np.load(tmp_path / "old.npz") as file:
        held = {name: file[name] for name in file.files}
    held["cortado_calibration"] = np.frombuffer(json.dumps(parts).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **held)
    loaded = load_record(tmp_path / "old.npz")
    assert "q_table" not in ops(quantize_graph(graph, loaded))
    assert "q_table" not in ops(quantize_graph(graph, replace(loaded, decision=None))), "without its range nothing is apart"
    # Going on from it, ranges stay those that both have.
    resumed = calibrate(graph, samples(graph, 2, seed=3), ReferenceExecutor, FIXED, before=loaded)
    assert resumed.samples == 8 and resumed.tensors.keys() == loaded.tensors.keys()
    assert resumed.decision is not None and not resumed.decision.apart
    # Two of now have no decision together; ranges decide then.
    merged = record.merged(calibrate(graph, samples(graph, 2, seed=3), ReferenceExecutor, FIXED))
    assert merged.decision is None and ops(quantize_graph(graph, merged))["q_table"] == 1
    assert old.merged(record).tensors.keys() == record.merged(old).tensors.keys() == old.tensors.keys()


def test_equalized_layers_beside_it() -> None:
    """The plan is made again for the equalized network, with the same inputs apart."""
    graph, _ = calibrated(50.0)
    config = QuantizeConfig("min_max", False, True)
    record = calibrate(graph, samples(graph, 4), ReferenceExecutor, config)
    assert record.decision is not None and record.decision.factors and record.decision.apart
    assert any(name == "min_max+equalized+apart" for name in record.decision.errors)
    made = quantize_graph(graph, record, config)
    assert ops(made)["q_table"] == 1 and signal_to_noise(graph, made) > 27


@lru_cache(maxsize=1)
def of_skips() -> tuple[Graph, CalibrationRecord, Feeds, np.ndarray]:
    """The graph, its calibration, a sample, and what the baseline's kernels make of it."""
    graph = unet(50.0, size=10, channels=7)
    record = cortado.calibrate(graph, samples(graph), method="min_max")
    [feeds] = samples(graph, 1, seed=3)
    options = CompileOptions(dtype="int8", keep_float="none")
    program = compile_program(graph, find_target("x86-64"), options, record)[0]
    assert not [step for step in program.steps if step.name.startswith("joined") and "converted" not in step.name]
    return graph, record, feeds, run_program(program, feeds)["out0"]


@pytest.mark.parametrize("level", [*X86_LEVELS, "cascadelake", "host", "aarch64", "cortex-m0", "cortex-m4", "cortex-m55"])
def test_the_same_bits_everywhere(level: str) -> None:
    """In this process, or emulated where this machine lacks the instructions."""
    skip_unless_run(level)
    graph, record, feeds, want = of_skips()
    model = cortado.compile(graph, target=level, dtype="int8", keep_float="none", calibration=record)
    assert model.quantization is not None and model.quantization["converted"] == ["skip"]
    assert model.run(feeds)["out0"].tobytes() == want.tobytes() and len(np.unique(want)) > 5
