"""Measuring chains of convolutions: which there are, both ways to compute them, and that a compilation does what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import Net, feeds_of, ops
from test_passes_chains import V3, block, stem
from test_tune import Scripted

import cortado
from cortado.backends.targets import find_target
from cortado.chains import chain_calls, chains_of, memory
from cortado.compiler.graph import Graph
from cortado.compiler.kernels.candidates import algorithms
from cortado.compiler.kernels.choice import Chain, Choice, Direct
from cortado.compiler.legalize import legalize
from cortado.compiler.passes.fuse_chains import fuse_chains, possible_chains
from cortado.compiler.reference import run_graph
from cortado.compiler.rewrite import Steps
from cortado.compiler.tuning import Tuning
from cortado.database import Database, Entry, best_of, core_name
from cortado.errors import OptionError
from cortado.runtime.stopwatch import Bench, timed_layers
from cortado.search import Layer, Tuner
from cortado.tune import result_of, tune_graph

FUSED, APART = Chain(True), Chain(False)


def residual(size: int = 14, wide: int = 32) -> Graph:
    """An inverted residual: its input is added to its output."""
    net = Net()
    x = net.input(1, size, size, 8)
    last = block(net, x, wide, 8)[-1]
    return net.graph(net.op("conv", *last.node.inputs, x, **{**last.node.attrs, "epilogue": (("bias",), ("residual",))}))


def chains(graph: Graph) -> dict[int, Layer]:
    return {len(layer.parts): layer for layer in chains_of(graph)}


def table(graph: Graph, choices: Mapping[int, Choice]) -> Tuning:
    """choices: by how many convolutions a chain has."""
    found = chains(graph)
    return Tuning({found[count].key: choice for count, choice in choices.items()}, "t.json", "")


def write(path: Path, target: str, graph: Graph, choices: Mapping[int, Choice]) -> None:
    """A file in which these are the fastest."""
    base = Direct(1, 1, 1)
    entries = {key: Entry(base, 1.0, {base: 1.0, choice: 0.5}, True) for key, choice in table(graph, choices).choices.items()}
    Database({core_name(find_target(target)): entries}).save(path)


def compiled(model: cortado.Model) -> list[str]:
    return [step.op for step in model._bundle.manifest.steps]


def test_chains_are_found_whether_they_pay_or_not() -> None:
    graph = residual()
    assert fuse_chains(graph, V3, 1, Steps()) is graph
    assert [len(nodes) for nodes in possible_chains(graph)] == [3, 2]
    assert [len(layer.parts) for layer in chains_of(graph)] == [2, 3], "those that may be a part of others come first"
    assert {layer.names for layer in chains_of(graph)} == {(graph.outputs[0][1].node.name,)}


def test_what_somebody_else_reads_is_no_chain() -> None:
    net = Net()
    first, second, third = block(net, net.input(1, 14, 14, 8), 64, 8)
    assert [len(nodes) for nodes in possible_chains(net.graph(third, first))] == [2]
    assert list(possible_chains(net.graph(third, first, second))) == []


def test_equal_chains_are_measured_once() -> None:
    net = Net()
    x = net.input(1, 14, 14, 8)
    for _ in range(2):
        x = block(net, x, 64, 8)[-1]
    found = chains_of(net.graph(x))
    assert [len(layer.names) for layer in found] == [2, 2] and len({layer.key for layer in found}) == 2


@pytest.mark.parametrize("size, wide, model", [(14, 32, False), (96, 96, True)])
def test_the_cost_models_choice_comes_first(size: int, wide: int, model: bool) -> None:
    layer = chains(residual(size, wide))[3]
    assert algorithms(layer.node, layer.ins, layer.outs, V3) == [Chain(model), Chain(not model)]


@pytest.mark.parametrize("size, wide", [(14, 32), (96, 96)])
@pytest.mark.parametrize(
    "choices, expected",
    [
        ({3: FUSED}, {"conv_chain": 1}),
        ({3: APART, 2: FUSED}, {"conv": 1, "conv_chain": 1}),
        ({3: APART, 2: APART}, {"conv": 3}),
        ({3: FUSED, 2: FUSED}, {"conv_chain": 1}),
    ],
)
def test_what_was_measured_is_done(size: int, wide: int, choices: Mapping[int, Choice], expected: dict[str, int]) -> None:
    graph = residual(size, wide)
    assert ops(fuse_chains(graph, V3, 1, Steps(), table(graph, choices))) == expected


def test_with_several_threads_the_cost_model_chooses() -> None:
    for graph in (residual(), residual(96, 96)):
        wrong = table(graph, {3: Chain("conv_chain" not in ops(fuse_chains(graph, V3, 1, Steps())))})
        for threads in (2, 4):
            assert ops(fuse_chains(graph, V3, threads, Steps(), wrong)) == ops(fuse_chains(graph, V3, threads, Steps()))


def test_what_is_no_choice_for_a_chain() -> None:
    graph = residual()
    with pytest.raises(OptionError, match=r"t\.json .* measure it anew"):
        fuse_chains(graph, V3, 1, Steps(), table(graph, {3: Direct(1, 1, 1)}))


def test_compilations_do_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = replace(residual(), layouts={})
    path = tmp_path / "t.json"
    write(path, "x86-64-v3", graph, {3: FUSED})
    assert compiled(cortado.compile(graph, target="x86-64-v3")) == ["conv"] * 3
    assert compiled(cortado.compile(graph, target="x86-64-v3", tuning=path)) == ["conv_chain"]
    assert compiled(cortado.compile(graph, target="x86-64-v3", tuning=path, optimize_for="size")) == ["conv"] * 3
    assert compiled(cortado.compile(graph, target="x86-64-v4", tuning=path)) == ["conv"] * 3, "measured on another core"
    monkeypatch.setenv("CORTADO_TUNING", str(path))
    write(path, "host", graph, {3: FUSED})
    host = cortado.compile(graph)
    assert compiled(host) == ["conv_chain"], "host uses the user's"
    feeds = feeds_of(graph)
    wanted = run_graph(graph, feeds)["out0"]
    assert np.abs(host.run(feeds)["out0"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert compiled(cortado.compile(graph, tuning=False)) == ["conv"] * 3


@pytest.mark.parametrize("inside", [APART, FUSED])
def test_both_ways_compute_the_same_on_one_bench(inside: Choice) -> None:
    """inside: what the depthwise convolution and the last one are where the three are no chain."""
    graph, target = residual(), find_target("host")
    layer, known = chains(graph)[3], table(graph, {2: inside})
    calls = [
        [replace(call, kernel=legalize(call.kernel, target)) for call in chain_calls(layer, choice, target, known)]
        for choice in (FUSED, APART)
    ]
    assert [len(each) for each in calls] == [1, 2 if inside == FUSED else 3]
    fused, apart = timed_layers(calls, target, Bench(memory(layer), layer.outs, target, 64 << 20))
    x = np.random.default_rng(0).standard_normal((1, 14, 14, 8)).astype(np.float32)
    feeds = {"0": x, str(len(layer.ins) - 1): x}
    wanted = run_graph(graph, {"x0": x})["out0"]
    for executor in (fused, apart):
        got = executor.run(feeds)["0"]
        assert executor.time() > 0
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_first_layers_are_measured_too() -> None:
    net, target = Net(), find_target("host")
    graph = net.graph(stem(net, net.input(1, 21, 18, 3), 20, 9))
    layer = chains(graph)[3]
    fused, apart = (
        [replace(call, kernel=legalize(call.kernel, target)) for call in chain_calls(layer, c, target, table(graph, {}))]
        for c in (FUSED, APART)
    )
    x = np.random.default_rng(0).standard_normal((1, 21, 18, 3)).astype(np.float32)
    wanted = run_graph(graph, {"x0": x})["out0"]
    for executor in timed_layers([fused, apart], target, Bench(memory(layer), layer.outs, target, 64 << 20)):
        assert np.abs(executor.run({"0": x})["0"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert len(fused) == 1 < len(apart) and "conv_chain" in ops(fuse_chains(graph, V3, 1, Steps(), table(graph, {3: FUSED})))


@pytest.mark.parametrize("fused, best", [(0.5, FUSED), (0.99, APART), (1.5, APART)])
def test_the_faster_way_is_kept(fused: float, best: Choice) -> None:
    layer, made = chains(residual())[3], []
    fed: list[Mapping[str, np.ndarray]] = []

    class Fed(Scripted):
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            fed.append(feeds)
            return super().run(feeds)

    def times(layer: Layer, choices: Sequence[Choice]) -> list[Scripted]:
        made.append(tuple(choices))
        return [Fed(fused if choice == FUSED else 1.0) for choice in choices]

    entries: dict[str, Entry] = {}
    entry = Tuner(V3, times, entries, lambda: None).tune(layer, lambda text: None)
    assert entry is not None and entry.finished and entry.best == best and entries == {layer.key: entry}
    assert made == [(APART, FUSED)]
    assert [list(feeds) for feeds in fed] == [["0"], ["0"]], "what is added to the output is the input, in one memory"
    assert best_of(entries, "t.json").fused(layer.node) == (best == FUSED)
    assert result_of(layer, entry).layers == 3


def test_a_network_is_tuned_layer_by_layer_then_its_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortado.search.LAYER_SECONDS", 0.001)
    monkeypatch.setattr("cortado.search.FINAL_TURNS", 4)
    monkeypatch.setattr("cortado.tune.WHOLE_SECONDS", 0.01)
    graph, told = replace(residual(), layouts={}), []
    report = tune_graph(graph, find_target("host"), tmp_path / "t.json", watch=told.append)
    assert [layer.layers for layer in report.layers] == [1, 1, 1, 2, 3] and report.unmeasured == 0
    assert [text for text in told if "fused" in text] == told[-3:-1]
    assert "3 layers to" in str(report)
    assert [layer["layers"] for layer in report.to_dict()["layers"]] == [1, 1, 1, 2, 3]
    again: list[str] = []
    tune_graph(graph, find_target("host"), tmp_path / "t.json", watch=again.append)
    assert again == ["whole runs"]
