"""`Model`, `compile` and `open` as a Python program uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import Net
from native import runnable_targets
from programs import FIRST, PARITY, SECOND, SUM, small_answer, small_bundle, small_feeds

import cortado
from cortado.backends.targets import find_target
from cortado.build import source_of
from cortado.compiler.graph import Graph, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.types import TensorInfo, TensorType
from cortado.errors import FormatError, InputError, OptionError, TargetError
from cortado.model import Model
from cortado.preprocess import Preprocess

here = pytest.mark.skipif(not runnable_targets(), reason="code runs in process on Linux with x86-64 or AArch64 only")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(small_bundle(find_target("host")))


def small_graph(scale: float = 2.0, name: str = "net/1") -> Graph:
    """y = relu(x * scale), z = x + y; float32 [2, 3, 5]."""
    x = graph_input("in:x", TensorType((2, 3, 5)))
    factor = constant(np.float32(scale), "factor")
    y = make("relu", [make("mul", [x.out(), factor], {}, "scaled", ("Mul:scaled",)).out()], {}, "y", ("Relu:y",))
    z = make("add", [x.out(), y.out()], {}, "z", ("Add:z",))
    return Graph(name, (x,), (("z", z.out()), ("y", y.out())), {"in:x": "NCW"})


def test_inputs_and_outputs_are_described_in_order(model: Model) -> None:
    assert list(model.inputs.items()) == [
        (FIRST, TensorInfo((6, 37), "float32", "NC")),
        (SECOND, TensorInfo((6, 37), "int32")),
    ]
    assert list(model.outputs) == [SUM, PARITY]
    assert model.name == "small"


@here
def test_run_gives_new_arrays_by_name(model: Model) -> None:
    feeds = small_feeds()
    before = {name: array.copy() for name, array in feeds.items()}
    first, second = model.run(feeds), model.run(dict(reversed(feeds.items())), threads=2)
    for got in (first, second):
        assert list(got) == [SUM, PARITY]
        for name, want in small_answer(feeds).items():
            np.testing.assert_array_equal(got[name], want, strict=True)
    assert first[SUM] is not second[SUM]
    first[SUM][:] = 0
    assert second[SUM].any()
    for name, array in before.items():
        np.testing.assert_array_equal(feeds[name], array)


def test_everything_wrong_with_the_feeds_is_in_one_message(model: Model) -> None:
    feeds = small_feeds()
    with pytest.raises(InputError) as caught:
        model.run({FIRST: feeds[FIRST].astype(np.float64), "dta": feeds[SECOND]})
    message = str(caught.value)
    for part in (
        "'gpu_0/data' takes float32[6, 37] (NC), got float64[6, 37]",
        "'gpu_0.data' is missing",
        "'dta'",
        "inputs are gpu_0/data",
    ):
        assert part in message
    with pytest.raises(InputError, match=r"takes int32\[6, 37\], got int32\[37, 6\]"):
        model.run({**feeds, SECOND: feeds[SECOND].T})
    with pytest.raises(InputError, match="got >f4"):
        model.run({**feeds, FIRST: feeds[FIRST].astype(">f4")})
    with pytest.raises(InputError, match="mapping"):
        model.run(feeds[FIRST])  # type: ignore[arg-type]
    for threads in (0, -1, 1025, 1.5):
        with pytest.raises(OptionError, match="threads"):
            model.run(feeds, threads=threads)  # type: ignore[arg-type]


@here
def test_save_and_open(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "new")
    opened = cortado.open(str(tmp_path / "new"))
    assert (opened.name, opened.inputs, opened.outputs) == (model.name, model.inputs, model.outputs)
    assert opened.report() == model.report()
    feeds = small_feeds()
    for name, array in opened.run(feeds).items():
        np.testing.assert_array_equal(array, model.run(feeds)[name])
    opened.save(tmp_path / "again")
    assert [p.read_bytes() for p in sorted((tmp_path / "new").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "again").iterdir())
    ]
    (tmp_path / "again" / "libsmall.a").write_bytes(b"!<arch>\n")
    with pytest.raises(FormatError, match=r"libsmall\.a"):
        cortado.open(tmp_path / "again")


@here
def test_what_cannot_be_linked_can_be_opened_and_reported_on(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a system does not let memory be executed."""
    model.save(tmp_path)

    def refuse(bundle: object) -> None:
        raise TargetError("not executable here")

    monkeypatch.setattr("cortado.runtime.loader.linked_code", refuse)
    opened = cortado.open(tmp_path)
    assert opened.report() == model.report()
    with pytest.raises(TargetError, match="not executable here"):
        opened.run(small_feeds())


def test_the_report_has_sizes_and_steps(model: Model) -> None:
    report = model.report()
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["schema"] == 1 and plain["macs"] == report.macs == 444
    assert set(plain["sizes"]) == {"code", "weights", "arena", "stack"} and min(plain["sizes"].values()) > 0
    assert [step["name"] for step in plain["steps"]] == ["scaled", "sum", "parity"]
    text = str(report)
    for part in (
        "small for host",
        f"{report.sizes.arena:,} bytes",
        "444 multiply-adds in 3 steps",
        "gpu_0/data: float32[6, 37] NC",
        "sum/origin",
    ):
        assert part in text
    assert len({len(line) for line in text.splitlines() if "50.0%" in line}) <= 2


def test_the_report_has_one_row_for_each_node() -> None:
    """A convolution by Winograd's filtering is three steps of one node."""
    g = Net()
    graph = g.graph(g.op("relu", g.conv(g.input(1, 28, 28, 64), 64, 3, pad=1, name="conv1"), name="relu1"))
    report = cortado.compile(graph, target="x86-64-v3").report()
    steps = [step for step in report.steps if "conv1" in step.origin[0]]
    assert len(steps) == 3
    rows = [line for line in str(report).splitlines() if "conv1" in line]
    macs = 28 * 28 * 64 * 64 * 9
    assert len(rows) == 1 and "conv, 3 steps" in rows[0] and f"{macs:,}" in rows[0] and "100.0%" in rows[0]
    assert f"{macs:,} multiply-adds in {len(report.steps)} steps" in str(report)


@here
def test_a_graph_is_compiled_and_run() -> None:
    model = cortado.compile(small_graph(), preprocess=Preprocess(mean=(1.0,)))
    assert model.name == "net_1" and model.inputs == {"in:x": TensorInfo((2, 3, 5), "float32", "NCW")}
    x = np.linspace(-1, 1, 30, dtype=np.float32).reshape(2, 3, 5)
    got = model.run({"in:x": x})
    assert list(got) == ["z", "y"]
    np.testing.assert_array_equal(got["y"], np.maximum(2 * x, 0))
    np.testing.assert_array_equal(got["z"], x + np.maximum(2 * x, 0))
    assert model.preprocess == Preprocess(mean=(1.0,))


def test_options_reach_the_bundle(tmp_path: Path) -> None:
    model = cortado.compile(
        small_graph(), target="cortex-m4", name="My Net", threads=3, optimize_for="size", separate_weights=True
    )
    model.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"libMy_Net.a", "My_Net.h", "My_Net.weights", "manifest.json"}
    plain = json.loads((tmp_path / "manifest.json").read_text())
    assert plain["options"]["threads"] == 3 and plain["options"]["optimize_for"] == "size"
    assert plain["target"]["name"] == "cortex-m4" and plain["source"]["name"] == "net/1" and len(plain["source"]["sha256"]) == 64


def test_the_source_s_hash_is_the_graph_s() -> None:
    assert source_of(small_graph()) == source_of(small_graph())
    assert len({source_of(g)["sha256"] for g in (small_graph(), small_graph(3.0), small_graph(name="other"))}) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"target": "pentium"}, TargetError, "unknown target 'pentium'"),
        ({"dtype": "float31"}, OptionError, "float31"),
        ({"optimize_for": "fun"}, OptionError, "fun"),
        ({"threads": 0}, OptionError, "threads=0"),
        ({"threads": "2"}, OptionError, "threads='2'"),
        ({"name": 5}, OptionError, "name=5"),
        ({"preprocess": {"mean": 1}}, OptionError, "Preprocess, not dict"),
        ({"board": "nano33"}, OptionError, "board"),
        ({"calibration": []}, OptionError, "calibration"),
    ],
)
def test_bad_options_are_named(arguments: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        cortado.compile(small_graph(), **arguments)


def test_compile_takes_a_graph() -> None:
    with pytest.raises(OptionError, match=r"cortado\.load"):
        cortado.compile("model.pb")  # type: ignore[arg-type]


def test_importing_and_opening_leave_the_compiler_alone(model: Model, tmp_path: Path) -> None:
    """Opening a bundle loads neither LLVM nor Pillow nor numba."""
    model.save(tmp_path)
    code = f"import sys, cortado; cortado.open({str(tmp_path)!r}).report(); print(sorted(set(sys.modules) & {{'llvmlite', 'PIL', 'numba'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
