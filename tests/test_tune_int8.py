"""Measuring integer layers: candidates, that all of them give the same bits, and that a compilation takes what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from quantized_nodes import make_q, quant
from test_kernels_quantized import Test, conv, fc
from test_kernels_quantized_winograd import extreme
from test_tune import Scripted

import cortado
from cortado.backends.targets import find_target
from cortado.cli.main import cli
from cortado.compiler.graph import Graph, Node
from cortado.compiler.kernels.candidates import algorithms, cuts, shapes
from cortado.compiler.kernels.choice import Chain, Choice, Depthwise, Direct, Winograd
from cortado.compiler.kernels.shared import SharedChoices
from cortado.compiler.kernels.table import lower_chosen, lowerings
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.reference import run_graph
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning, kernel_key
from cortado.compiler.types import Quant
from cortado.database import Database, Entry, core_name, read_database
from cortado.digits import held_out, model_folder, network_input
from cortado.errors import CortadoError, OptionError
from cortado.runtime.stopwatch import Bench, timed_layers
from cortado.search import Layer, Tuner, layers_of

V3 = find_target("x86-64-v3")
LAYERS: dict[str, Test] = {
    "3x3": conv((1, 12, 12, 32), (64, 3, 3, 32), pads=1),
    "3x3, residual, uint8": conv((1, 9, 8, 16), (32, 3, 3, 16), pads=1, beside=True, dtype="uint8"),
    "1x1": conv((1, 10, 12, 24), (40, 1, 1, 24)),
    "odd channels": conv((1, 9, 9, 3), (24, 3, 3, 3), pads=1, strides=2),
    "patches": conv((1, 21, 20, 3), (64, 7, 7, 3), pads=3, strides=2),
    "groups": conv((1, 7, 7, 64), (64, 3, 3, 32), pads=1, group=2),
    "fc": fc((3,), 200, 100),
}


def graph_of(node: Node) -> Graph:
    inputs = tuple(value.node for value in node.inputs if value.constant is None)
    return Graph("net", inputs, (("y", node.out()),))


def operands(node: Node) -> tuple[list[Operand], list[Operand]]:
    found = [Operand(v.type, contiguous_strides(v.type.shape)) for v in (*node.inputs, node.out())]
    return found[:-1], found[-1:]


def candidates(node: Node, target: Target) -> list[Choice]:
    """Some of each kind."""
    what = (node, *operands(node), target)
    found: list[Choice] = []
    for choice in algorithms(*what):
        best, *others = shapes(*what, choice)
        found += [choice, *others[::5], *cuts(*what, best)]
    return list(dict.fromkeys(found))


def same_calls(a: Sequence[KernelCall], b: Sequence[KernelCall]) -> bool:
    return [(call.kernel.name, call.tasks) for call in a] == [(call.kernel.name, call.tasks) for call in b]


def table(node: Node, choice: Choice) -> Tuning:
    return Tuning({kernel_key(node, *operands(node)): choice}, "t.json", "")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("target", ["host", "x86-64", "x86-64-v3", "cascadelake", "alderlake"])
def test_the_first_candidate_is_what_the_cost_model_compiles(name: str, target: str) -> None:
    _, node, _ = LAYERS[name]
    what = (node, *operands(node), find_target(target))
    plain = lowerings("speed")[node.op](*what)
    first = algorithms(*what)[0]
    assert same_calls(lower_chosen(*what, None), plain)
    assert same_calls(lower_chosen(*what, first), plain)
    assert same_calls(lower_chosen(*what, shapes(*what, first)[0]), plain)


def test_what_can_be_chosen() -> None:
    kinds = {name: {type(choice) for choice in candidates(node, V3)} for name, (_, node, _) in LAYERS.items()}
    assert {name for name, found in kinds.items() if found == {Direct, Winograd}} == {"3x3", "3x3, residual, uint8"}
    assert all(found == {Direct} for name, found in kinds.items() if not name.startswith("3x3"))
    _, depthwise, _ = conv((1, 6, 7, 9), (9, 3, 3, 1), group=9, pads=1)
    assert algorithms(depthwise, *operands(depthwise), V3) == []
    large = extreme(127, 512)[0]
    assert Winograd(4) not in algorithms(large, *operands(large), V3), "its sums are not exact"


@pytest.mark.parametrize("name", LAYERS)
def test_all_candidates_give_the_same_bits(name: str) -> None:
    _, node, arrays = LAYERS[name]
    target = find_target("host")
    (layer,) = layers_of(graph_of(node), target)
    choices = candidates(node, target)
    assert len(choices) > 4
    calls = [lower_chosen(layer.node, layer.ins, layer.outs, target, choice) for choice in choices]
    executors = timed_layers(calls, target, Bench(layer.ins, layer.outs, target, 64 << 20))
    feeds = {str(i): array for i, array in enumerate(arrays) if node.inputs[i].constant is None}
    results = [executor.run(feeds)["0"].tobytes() for executor in executors]
    assert set(results) == {run_graph(graph_of(node), named(node, arrays))["y"].tobytes()}
    assert all(executor.time() > 0 for executor in executors)


def named(node: Node, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {v.node.name: array for v, array in zip(node.inputs, arrays, strict=True) if v.constant is None}


def test_keys_do_not_depend_on_the_calibration() -> None:
    def key(channels: int = 16, **how: Any) -> str:
        _, node, _ = conv((1, 8, 8, channels), (16, 3, 3, channels), pads=1, **how)
        return kernel_key(node, *operands(node))

    _, node, arrays = conv((1, 8, 8, 16), (16, 3, 3, 16), pads=1)
    quants = [quant(0.07, 5), Quant((0.5,) * 16, (0,) * 16, 0), None]
    attrs = {**node.attrs, "quant": quant(0.3, -9), "lo": -9}
    other = make_q("q_conv", list(zip(arrays, quants, strict=True)), attrs, (1, 2))
    assert kernel_key(other, *operands(other)) == key()
    assert len({key(), key(dtype="uint8"), key(rounding="qnnpack"), key(channels=8), key(beside=True)}) == 5
    wide = [arrays[0], arrays[1], arrays[2]], [quants[0], Quant((0.5,) * 16, (100,) * 16, 0), None]
    moved = make_q("q_conv", list(zip(*wide, strict=True)), attrs, (1, 2))
    assert kernel_key(moved, *operands(moved)) != key(), "its weights take more than a byte"


def write(path: Path, target: str, node: Node, choice: Choice) -> None:
    base = Direct(1, 1, 1)
    entry = Entry(base, 1.0, {base: 1.0, choice: 0.5}, True)
    Database({core_name(find_target(target)): {kernel_key(node, *operands(node)): entry}}).save(path)


@pytest.mark.parametrize("choice", [Direct(1, 3, 3), Winograd(2), Winograd(4, Direct(2, 2, 2, k_parts=2))])
def test_measured_choices_are_compiled_to_the_same_bits(choice: Choice, tmp_path: Path) -> None:
    _, node, arrays = LAYERS["3x3"]
    write(tmp_path / "t.json", "host", node, choice)
    plain = cortado.compile(graph_of(node), tuning=False)
    tuned = cortado.compile(graph_of(node), tuning=tmp_path / "t.json")
    steps = [[step.kernel for step in model._bundle.manifest.steps] for model in (plain, tuned)]
    assert steps[0] != steps[1] and len(steps[1]) >= (3 if isinstance(choice, Winograd) else 1)
    feeds = named(node, arrays)
    assert plain.run(feeds)["y"].tobytes() == tuned.run(feeds)["y"].tobytes()


def test_weights_and_goals_that_winograd_is_not_for() -> None:
    """Layers of one key may have other weights than the one that was measured."""
    large = extreme(127, 512)[0]
    what = (large, *operands(large), V3)
    assert same_calls(lowerings("speed", table(large, Winograd(4)))["q_conv"](*what), lowerings("speed")["q_conv"](*what))
    for name, choice in (("3x3", Winograd(2)), ("3x3", Direct(1, 1, 1)), ("patches", Direct(1, 1, 1))):
        _, node, _ = LAYERS[name]
        what = (node, *operands(node), V3)
        assert same_calls(lowerings("size", table(node, choice))["q_conv"](*what), lowerings("size")["q_conv"](*what))


@pytest.mark.parametrize(
    "name, choice",
    [
        ("1x1", Winograd(2)), ("3x3", Winograd(3)), ("1x1", Chain(True)), ("1x1", Depthwise(1, 2)), ("fc", Winograd(4)),
        ("1x1", Direct(500, 6, 6)), ("fc", Direct(2, 600, 6)), ("1x1", Direct(1, 1, 1, fill=2)),
        ("3x3", Winograd(2, Direct(1, 1, 1, fill=2))), ("fc", Chain(False)),
    ],
)  # fmt: skip
def test_choices_that_do_not_fit_the_layer(name: str, choice: Choice) -> None:
    _, node, _ = LAYERS[name]
    with pytest.raises(OptionError, match=r"t\.json does not fit q_"):
        lowerings("speed", table(node, choice))[node.op](node, *operands(node), V3)


def test_depthwise_layers_have_no_choice() -> None:
    _, node, _ = conv((1, 6, 7, 9), (9, 3, 3, 1), group=9, pads=1)
    with pytest.raises(OptionError, match="depthwise"):
        lowerings("speed", table(node, Direct(1, 1, 1)))["q_conv"](node, *operands(node), V3)


def test_levels_share_the_weights_of_integers_as_before() -> None:
    _, node, _ = LAYERS["3x3"]
    assert SharedChoices({}, "x", "", V3, (V3,), V3, True).choice(node, *operands(node)) is None


@pytest.mark.parametrize("difference", [0, 1])
def test_a_single_bit_is_an_error(difference: int) -> None:
    class Integers(Scripted):
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert all(array.dtype == np.int8 and array.min() < 0 < array.max() for array in feeds.values())
            return {"0": np.array([100 + self.answer], np.int8)}

    def times(layer: Layer, choices: Sequence[Choice]) -> list[Scripted]:
        return [Integers(1.0 if choice != Winograd(2) else 0.5, difference * number) for number, choice in enumerate(choices)]

    (layer,) = layers_of(graph_of(LAYERS["3x3"][1]), V3)
    tuner = Tuner(V3, times, {}, lambda: None)
    if difference:
        with pytest.raises(CortadoError, match="computes something else"):
            tuner.tune(layer, lambda text: None)
    else:
        entry = tuner.tune(layer, lambda text: None)
        assert entry is not None and entry.best == Winograd(2)


@pytest.mark.slow
def test_tune_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortado.search.LAYER_SECONDS", 0.001)
    monkeypatch.setattr("cortado.search.FINAL_TURNS", 4)
    monkeypatch.setattr("cortado.tune.WHOLE_SECONDS", 0.01)
    samples, record, path = tmp_path / "samples.npz", tmp_path / "record.npz", tmp_path / "t.json"
    np.savez(samples, data=np.concatenate([network_input(image) for image in held_out()[0][:16]]))
    model = [str(model_folder()), "--input", "data=1,1,8,8", "--dtype", "int8", "--keep-float", "none"]
    more = ["--calibrate", str(samples), "--save-calibration", str(record), "--tuning", str(path), "--json"]
    result = CliRunner().invoke(cli, ["tune", *model, *more])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {layer["op"] for layer in found["layers"]} <= {"q_conv", "q_fc", "conv", "fc"} and found["unmeasured"] == 0
    keys = list(read_database(path).cores[core_name(find_target("host"))])
    assert any(key.startswith("q_") for key in keys)
    result = CliRunner().invoke(cli, ["tune", *model[:3], "--dtype", "int8", "--tuning", str(path)])
    assert result.exit_code != 0, "nothing to calibrate with"
