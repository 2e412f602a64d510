"""Where int8 is worth it: estimates of kernels, the cut through a network, and what a user may fix."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
from graphs import Net

import cortado
from cortado.backends.targets import find_target
from cortado.backends.targets.classes import judge_of
from cortado.compiler.cycles import cycles
from cortado.compiler.graph import Graph, Node
from cortado.compiler.kernels.table import LOWERINGS
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.pays import GAIN, WHOLE_GAIN, Costs, staying_float, total
from cortado.compiler.quantize.plan import Plan, make_plan
from cortado.compiler.quantize.quantize import assign, calibrate, integer_graph, summary
from cortado.compiler.reference import run_graph
from cortado.compiler.target import Target
from cortado.errors import OptionError
from cortado.execute import ReferenceExecutor
from cortado.int8_report import costliest

V3 = find_target("x86-64-v3")


def network(depth: int = 3) -> Graph:
    """Convolutions in a row; beside the middle one another way, and an addition."""
    net = Net()
    x = net.input(1, 8, 8, 8)
    for i in range(depth):
        y = net.op("relu", net.conv(x, 8, 3, pad=1, name=f"a{i}"), name=f"r{i}")
        x = net.op("add", y, net.conv(x, 8, name=f"b{i}"), name=f"s{i}") if i == 1 else y
    return net.graph(x)


def cost_of(node: Node, target: Target = V3) -> float:
    ins, outs = (
        [Operand(t, contiguous_strides(t.shape)) for t in types] for types in ([v.type for v in node.inputs], node.types)
    )
    return cycles(LOWERINGS[node.op](node, ins, outs, target), target)


def conv(size: int, channels: int, outputs: int) -> Node:
    net = Net()
    return net.conv(net.input(1, size, size, channels), outputs, 3, pad=1).node


def test_estimates_grow_with_the_work() -> None:
    small, wide, large = cost_of(conv(16, 16, 16)), cost_of(conv(16, 16, 64)), cost_of(conv(32, 16, 16))
    assert 3 < wide / small < 5 and 3 < large / small < 5
    macs = 16 * 16 * 16 * 16 * 9
    assert macs / 16 <= small < 2 * macs / 16  # two multiply-adds of eight lanes a cycle are the most
    assert cost_of(conv(16, 16, 16), find_target("x86-64")) > 1.8 * small
    assert cost_of(conv(16, 16, 16), find_target("cortex-m4")) > 2 * macs


def random_costs(plan: Plan, seed: int) -> Costs:
    rng = np.random.default_rng(seed)
    nodes = [n for n in plan.graph.nodes() if n in plan.quantized]
    each = [{k: float(rng.integers(1, 40) * 1e5) for k in keys} for keys in (nodes, nodes, plan.of, plan.of)]
    return Costs(*each)


@pytest.mark.parametrize("seed", range(12))
def test_the_cut_is_the_best_of_all_choices(seed: int) -> None:
    plan = make_plan(network())
    costs = random_costs(plan, seed)
    nodes = list(costs.floats)
    scaled = Costs(
        costs.floats, {n: GAIN * c for n, c in costs.integers.items()}, {v: GAIN * c for v, c in costs.into.items()}, costs.back
    )
    every = (frozenset(n for n, keep in zip(nodes, choice, strict=True) if keep) for choice in product((0, 1), repeat=len(nodes)))
    best = min(total(plan, scaled, floats) for floats in every)
    chosen = staying_float(plan, costs)
    worth = total(plan, costs, chosen) <= WHOLE_GAIN * total(plan, costs, frozenset())
    assert worth or not chosen
    if chosen:
        assert total(plan, scaled, chosen) == pytest.approx(best)


def test_cheap_int8_takes_everything_and_dear_int8_nothing() -> None:
    plan = make_plan(network())
    zero, ten = dict.fromkeys(plan.of, 0.0), dict.fromkeys([n for n in plan.graph.nodes() if n in plan.quantized], 1e6)
    assert not staying_float(plan, Costs(ten, dict.fromkeys(ten, 1e5), zero, zero))
    assert staying_float(plan, Costs(dict.fromkeys(ten, 1e5), ten, zero, zero)) == plan.quantized
    assert not staying_float(
        plan, Costs(ten, dict.fromkeys(ten, 1.05e6), zero, zero)
    )  # the smaller form wins where times are alike
    assert not staying_float(
        plan, Costs(dict.fromkeys(ten, 1.0), dict.fromkeys(ten, 10.0), zero, zero)
    )  # and where there is little time


@pytest.mark.parametrize("names", [["a0"], ["s1", "r1"], ["b1"], ["a0", "r0", "a1", "r1", "b1", "s1", "a2"]])
def test_any_nodes_can_stay_float(names: list[str]) -> None:
    graph = network()
    rng = np.random.default_rng(0)
    feeds = [{"x0": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(3)]
    record = calibrate(graph, feeds, ReferenceExecutor, QuantizeConfig("min_max", False, False))
    made = integer_graph(assign(graph, record, keep_float=names))
    assert all(node.types[0].dtype == "float32" for node in made.nodes() if node.name in names)
    want, got = (next(iter(run_graph(g, feeds[0]).values())) for g in (graph, made))
    error = np.sum((want - got) ** 2) / np.sum(want**2)
    assert error < 1e-3 and (error > 1e-9 or len(names) == 7)


def test_levels_of_an_architecture_choose_alike() -> None:
    graph = network()
    feeds = [{"x0": np.random.default_rng(i).standard_normal((1, 8, 8, 8)).astype(np.float32)} for i in range(3)]
    record = cortado.calibrate(graph, feeds, method="min_max")
    found = [
        cortado.compile(graph, dtype="int8", calibration=record, target=t).quantization
        for t in ("x86-64", "x86-64-v3", "x86-64-v4")
    ]
    assert found[0] == found[1] == found[2] and found[0] is not None and found[0]["judged_for"] == "x86-64-v3"
    board = cortado.compile(graph, dtype="int8", calibration=record, target="cortex-m4").quantization
    assert board is not None and board["judged_for"] is None and board["keep_float"] == []
    assert judge_of(find_target("cortex-m55")) is None


def test_what_keep_float_refuses() -> None:
    graph = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = cortado.calibrate(graph, [{"x0": np.ones((1, 8, 8, 8), np.float32)}], method="min_max")
    with pytest.raises(OptionError, match="no int8 node 'nobody'; there are"):
        cortado.compile(graph, dtype="int8", calibration=record, keep_float=["nobody"])
    with pytest.raises(OptionError, match="must be 'slower', 'none' or a list"):
        cortado.compile(graph, dtype="int8", calibration=record, keep_float="faster")
    everything = cortado.compile(graph, dtype="int8", calibration=record, keep_float="none").quantization
    assert everything is not None and not everything["keep_float"]
    name = everything["layers"][-1]["name"]
    kept = cortado.compile(graph, dtype="int8", calibration=record, keep_float=[name]).quantization
    assert kept is not None and kept["keep_float"] == [name]


def test_errors_of_layers_alone_say_which_costs_most() -> None:
    """One layer has an output channel a thousand times larger than the others, which its tensor's single scale then cannot hold."""
    rng = np.random.default_rng(5)
    net = Net()
    x = net.input(1, 8, 8, 8)
    good = net.conv(net.conv(x, 8, name="first"), 8, name="second")
    attrs = {**good.node.attrs, "epilogue": ()}
    uneven, narrow = (rng.standard_normal((8, 1, 1, 8)).astype(np.float32) for _ in range(2))
    uneven[3] *= 1000
    narrow[..., 3] /= 1000
    middle = net.op("conv", good, net.number(uneven), **attrs, name="uneven_layer")
    graph = net.graph(net.op("conv", middle, net.number(narrow), **attrs, name="last"))
    feeds = [{"x0": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(4)]
    record = calibrate(graph, feeds, ReferenceExecutor, QuantizeConfig("min_max", False, False))
    found = summary(assign(graph, record), record)
    alone = {layer["name"]: layer["alone_db"] for layer in found["layers"]}
    assert set(alone) == {"first", "second", "uneven_layer", "last"}
    assert costliest(found)[0][0] == "uneven_layer" and alone["uneven_layer"] < min(alone["first"], alone["second"]) - 10
    assert record.decision is not None
    total = record.decision.errors["min_max"]
    assert 0.5 * total < sum(record.decision.alone.values()) < 2 * total
    better = integer_graph(assign(graph, record, keep_float=["uneven_layer", "last"]))
    errors = []
    for made in (integer_graph(assign(graph, record)), better):
        want, got = (next(iter(run_graph(g, feeds[0]).values())) for g in (graph, made))
        errors.append(float(np.sum((want - got) ** 2)))
    assert errors[1] < 0.1 * errors[0]
