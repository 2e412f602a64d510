"""Measured choices: their file, the search, and that a compilation takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cortado
from cortado.backends.targets import find_target
from cortado.cli.main import cli, invoke
from cortado.compiler.graph import Graph, Value, constant, graph_input
from cortado.compiler.kernels.candidates import algorithms, cuts, shapes
from cortado.compiler.kernels.choice import Chain, Choice, Depthwise, Direct, Grouped, Winograd, from_plain, to_plain
from cortado.compiler.kernels.table import lower_chosen
from cortado.compiler.lower import layers
from cortado.compiler.ops import make
from cortado.compiler.tuning import kernel_key
from cortado.compiler.types import TensorType
from cortado.database import Database, Entry, core_name, parse_database, read_database, read_tuning
from cortado.errors import CortadoError, FormatError, OptionError
from cortado.runtime.stopwatch import Bench, timed_layers
from cortado.search import Layer, Tuner, layers_of

SHAPE = ("--input", "data=1,1,8,8")
CHOICES: tuple[Choice, ...] = (
    Direct(2, 6, 4), Direct(3, 4, 4, k_parts=2, blocks=8, ahead=False), Winograd(4), Winograd(2, Direct(2, 6, 6)), Depthwise(1, 4),
    Chain(True), Grouped(8), Grouped(4, packed=16),
)  # fmt: skip


def network() -> Graph:
    """A 3x3 convolution that Winograd's filtering can do, a depthwise one, one of small groups, a 1x1 one and a fully connected layer."""
    rng = np.random.default_rng(3)
    x = graph_input("x", TensorType((1, 12, 12, 16))).out()
    attrs = {"strides": (1, 1), "dilations": (1, 1), "epilogue": (("activation", "relu", ()),)}

    def weights(*shape: int) -> Value:
        return constant(rng.standard_normal(shape).astype(np.float32), "w" + "_".join(map(str, shape)))

    padded = {**attrs, "pads_begin": (1, 1), "pads_end": (1, 1)}
    y = make("conv", [x, weights(32, 3, 3, 16)], {**padded, "group": 1}, "square").out()
    y = make("conv", [y, weights(32, 3, 3, 1)], {**padded, "group": 32}, "depthwise").out()
    y = make("conv", [y, weights(32, 3, 3, 4)], {**padded, "group": 8}, "few").out()
    y = make("conv", [y, weights(24, 1, 1, 32)], {**attrs, "pads_begin": (0, 0), "pads_end": (0, 0), "group": 1}, "one").out()
    y = make("reshape", [y], {"shape": (1, 12 * 12 * 24)}, "flat").out()
    y = make("fc", [y, weights(10, 12 * 12 * 24)], {"epilogue": ()}, "fc").out()
    return Graph("net", (x.node,), (("y", y),))


def layer_named(name: str) -> Layer:
    return next(layer for layer in layers_of(network(), find_target("x86-64-v3")) if name in layer.names)


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_are_plain_data_and_back(choice: Choice) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(choice)))) == choice


@pytest.mark.parametrize(
    "plain, word",
    [
        ({"algorithm": "fft"}, "algorithms"),
        ({"algorithm": "direct", "vectors": 2, "rows": 6}, "last_rows"),
        ({"algorithm": "depthwise", "vectors": 0, "pixels": 2}, "positive"),
        ({"algorithm": "grouped", "pixels": 2, "packed": 0}, "positive"),
        ({"algorithm": "depthwise", "vectors": 1, "pixels": 2, "rows": 2}, "unknown rows"),
        ({"algorithm": "winograd", "m": 4, "products": {"algorithm": "winograd", "m": 2}}, "direct"),
        ({"algorithm": "direct", "vectors": 1, "rows": 1, "last_rows": 1, "ahead": 1}, "ahead"),
        ({"algorithm": "chain"}, "no fused"),
        ({"algorithm": "chain", "fused": 1}, "fused"),
        ([], "choice"),
    ],
)
def test_what_is_no_choice(plain: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        from_plain(plain)


def test_keys_tell_kernels_apart_and_nothing_else() -> None:
    def keys(graph: Graph) -> dict[str, str]:
        return {node.name: kernel_key(node, ins, outs) for node, ins, outs in layers(graph)}

    first = keys(network())
    assert len(set(first.values())) == len(first)
    assert first == keys(network())
    assert "3,3" in first["square"] and "relu" in first["square"]


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "tuning.json"
    entry = Entry(CHOICES[0], 12.5, dict(zip(CHOICES, (1.0, 0.9, 0.8, 1.2, 1.1, 0.9, 1.3, 1.4), strict=True)), True)
    Database({"core": {"conv": entry}}).save(path)
    assert [p.name for p in path.parent.iterdir()] == ["tuning.json"], "nothing temporary stays"
    again = read_database(path)
    assert again.cores == {"core": {"conv": entry}}
    assert again.cores["core"]["conv"].best == Winograd(4) and again.cores["core"]["conv"].gain == 0.8


def test_differences_of_the_clock_are_no_choice() -> None:
    assert Entry(Winograd(4), 1.0, {Winograd(4): 1.0, Winograd(2): 0.995}).best == Winograd(4)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "cores": {"a": {"k": {}}}}', '{"schema": 1, "cores": []}', "\x00"]
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cortado tune"):
        parse_database(text.encode(), "some.json")


def test_a_later_schema_is_refused() -> None:
    with pytest.raises(FormatError, match="schema 2"):
        parse_database(b'{"schema": 2, "cores": {}}', "some.json")


def write(path: Path, target: str, choices: Mapping[str, Choice]) -> None:
    """A file in which these choices of the network's layers are the fastest."""
    found = find_target(target)
    base = Direct(1, 1, 1)
    entries = {layer_named(name).key: Entry(base, 1.0, {base: 1.0, choice: 0.5}, True) for name, choice in choices.items()}
    Database({core_name(found): entries}).save(path)


def kernels(model: cortado.Model, name: str) -> list[str]:
    return [step.kernel.rpartition("_")[0] for step in model._bundle.manifest.steps if step.name == name]


def test_five_taps_may_be_measured_every_way() -> None:
    rng = np.random.default_rng(2)
    x = graph_input("x", TensorType((1, 14, 14, 24))).out()
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (2, 2), "pads_end": (2, 2), "group": 1, "epilogue": ()}
    y = make("conv", [x, constant(rng.standard_normal((40, 5, 5, 24)).astype(np.float32), "w")], attrs, "five").out()
    target = find_target("x86-64-v3")
    layer = layers_of(Graph("net", (x.node,), (("y", y),)), target)[0]
    what = (layer.node, layer.ins, layer.outs, target)
    found = algorithms(*what)
    assert found[0] == Winograd(4) and {Winograd(2), Winograd(4)} < set(found) and Direct in map(type, found)
    for choice in found:
        assert {*shapes(*what, choice), *cuts(*what, choice)} and lower_chosen(*what, choice)


def test_measured_choices_are_compiled(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    plain = cortado.compile(network(), target="x86-64-v3")
    write(
        path,
        "x86-64-v3",
        {"square": Direct(2, 6, 6), "one": Direct(1, 3, 3), "depthwise": Depthwise(1, 2), "few": Direct(1, 4, 4)},
    )
    tuned = cortado.compile(network(), target="x86-64-v3", tuning=path)
    assert kernels(plain, "square") == ["winograd_input", "winograd_f32", "winograd_output"]
    assert kernels(tuned, "square") == ["conv_f32"]
    assert kernels(plain, "few") == ["grouped_f32"] and kernels(tuned, "few") == ["conv_f32"]
    for name, same in {"depthwise": False, "one": False, "few": False, "fc": True}.items():
        names = [[step.kernel for step in model._bundle.manifest.steps if step.name == name] for model in (plain, tuned)]
        assert (names[0] == names[1]) == same, name
    assert tuned._bundle.manifest.options["tuning"] == read_tuning(path, find_target("x86-64-v3")).sha256
    write(path, "x86-64-v4", {"square": Direct(2, 6, 6)})
    other = cortado.compile(network(), target="x86-64-v3", tuning=path)
    assert kernels(other, "square") == kernels(plain, "square"), "measured on another core"


def test_explicit_targets_use_no_file_they_were_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cortado.compile(network(), target="x86-64-v3")
    host = cortado.compile(network())
    own = tmp_path / "own.json"
    monkeypatch.setenv("CORTADO_TUNING", str(own))
    write(own, "x86-64-v3", {"square": Direct(2, 6, 6)})
    after = cortado.compile(network(), target="x86-64-v3")
    assert after._bundle.files == before._bundle.files
    assert after._bundle.manifest.to_text() == before._bundle.manifest.to_text()
    write(own, "host", {"square": Direct(2, 6, 6)})
    assert kernels(cortado.compile(network()), "square") == ["conv_f32"], "host uses the user's"
    untuned = cortado.compile(network(), tuning=False)
    assert untuned._bundle.files == host._bundle.files


@pytest.mark.parametrize(
    "name, choice",
    [
        ("one", Winograd(4)), ("one", Depthwise(1, 2)), ("one", Grouped(2)), ("depthwise", Direct(1, 1, 1)), ("fc", Winograd(2)),
        ("fc", Grouped(2)), ("depthwise", Grouped(2)), ("few", Depthwise(1, 2)), ("few", Grouped(60)), ("few", Grouped(2, 12)),
        ("one", Chain(True)),
    ],
)  # fmt: skip
def test_choices_that_do_not_fit_the_layer(name: str, choice: Choice, tmp_path: Path) -> None:
    write(tmp_path / "t.json", "x86-64-v3", {name: choice})
    with pytest.raises(OptionError, match=name):
        cortado.compile(network(), target="x86-64-v3", tuning=tmp_path / "t.json")


def test_tiles_too_large_for_the_core(tmp_path: Path) -> None:
    for choice in (Direct(500, 6, 6), Direct(2, 600, 6)):
        write(tmp_path / "t.json", "x86-64-v3", {"one": choice})
        with pytest.raises(OptionError, match="too large"):
            cortado.compile(network(), target="x86-64-v3", tuning=tmp_path / "t.json")


class Scripted:
    """An executor whose times are given."""

    def __init__(self, seconds: float, answer: float = 1.0) -> None:
        self.seconds, self.answer, self.timed = seconds, answer, 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"0": np.array([self.answer], np.float32)}

    def time(self) -> float:
        self.timed += 1
        return self.seconds


def scripted(made: list[Choice]) -> Callable[[Layer, Sequence[Choice]], list[Scripted]]:
    def times(layer: Layer, choices: Sequence[Choice]) -> list[Scripted]:
        made.extend(choices)
        return [Scripted(0.5 if choice == Winograd(2) else 1.0) for choice in choices]

    return times


def test_the_search_finds_the_fastest_and_goes_on_where_it_was() -> None:
    target, layer = find_target("x86-64-v3"), layer_named("square")
    made: list[Choice] = []
    entries: dict[str, Entry] = {}
    saved: list[int] = []
    tuner = Tuner(target, scripted(made), entries, lambda: saved.append(len(entries)))
    entry = tuner.tune(layer, lambda text: None)
    assert entry is not None and entry.best == Winograd(2) and entry.finished and entry.gain == 0.5
    assert len(saved) >= 3 and {type(choice) for choice in made} == {Direct, Winograd}
    first = len(made)
    tuner.tune(layer, lambda text: None)
    assert len(made) == first, "finished kernels are not measured again"
    some = {choice: entry.ratios[choice] for choice in list(entry.ratios)[: len(entry.ratios) // 2]}
    entries[layer.key] = Entry(entry.baseline, 1.0, some)
    tuner.tune(layer, lambda text: None)
    assert len(made) - first < first, "what was measured is kept"
    assert set(entries[layer.key].ratios) == set(entry.ratios)


def test_nothing_is_begun_when_time_is_up() -> None:
    made: list[Choice] = []
    tuner = Tuner(find_target("x86-64-v3"), scripted(made), {}, lambda: None, deadline=0.0)
    assert tuner.tune(layer_named("square"), lambda text: None) is None and not made


def test_a_choice_that_computes_something_else_is_an_error() -> None:
    def times(layer: Layer, choices: Sequence[Choice]) -> list[Scripted]:
        return [Scripted(1.0, answer=1.0 + 0.01 * number) for number in range(len(choices))]

    with pytest.raises(CortadoError, match="computes something else"):
        Tuner(find_target("x86-64-v3"), times, {}, lambda: None).tune(layer_named("square"), lambda text: None)


def test_executors_run_and_time_kernels() -> None:
    target, layer = find_target("host"), layer_named("square")
    bench = Bench(layer.ins, layer.outs, target, 64 << 20)
    calls = [lower_chosen(layer.node, layer.ins, layer.outs, target, choice) for choice in (None, Winograd(4))]
    x = np.random.default_rng(0).standard_normal((1, 12, 12, 16)).astype(np.float32)
    first, second = timed_layers(calls, target, bench)
    plain = first.run({"0": x})["0"]
    assert first.time() > 0 and second.time() > 0
    np.testing.assert_allclose(second.run({"0": x})["0"], plain, atol=1e-4 * np.abs(plain).max())
    assert np.abs(plain).max() > 1


@pytest.mark.slow
def test_tune_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortado.search.LAYER_SECONDS", 0.01)
    monkeypatch.setattr("cortado.tune.WHOLE_SECONDS", 0.01)
    path = tmp_path / "t.json"
    model = str(Path(cortado.__file__).parent / "models" / "digits")
    result = CliRunner().invoke(cli, ["tune", model, *SHAPE, "--tuning", str(path), "--seconds", "0", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["unmeasured"] > 0 and not path.exists()
    result = CliRunner().invoke(cli, ["tune", model, *SHAPE, "--tuning", str(path), "--json"])
    document = json.loads(result.stdout)
    assert document["unmeasured"] == 0 and document["tuned_us"] > 0 and document["layers"]
    assert read_database(path).cores[core_name(find_target("host"))]


def test_wrong_files_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(Path(cortado.__file__).parent / "models" / "digits")
    path = tmp_path / "t.json"
    path.write_text("no json")
    assert invoke(["compile", model, *SHAPE, "--tuning", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "t.json" in capsys.readouterr().err
    assert invoke(["tune", model, *SHAPE, "--tuning", str(path)]) == 2
    assert invoke(["tune", model, "--target", "x86-64-v3"]) == 2
    assert "--tuning" in capsys.readouterr().err
    assert invoke(["compile", model, *SHAPE, "--tuning", str(tmp_path / "missing"), "-o", str(tmp_path / "out")]) == 2
