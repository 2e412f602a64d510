"""The benchmark's own parts: what it calls the peak is work that is done, wrong answers are not timed, engines take turns."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def module(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    patch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["x86-64-v3", "cortex-m4", "cortex-a76"])
def test_the_peak_loop_does_every_multiply_add_it_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cortado.backends.targets import find_target

    peak = module("peak", monkeypatch)
    target = find_target(name)
    lanes = peak.lanes_of(target)
    memory = np.random.default_rng(0).random(((peak.CHAINS + 2), lanes), np.float32)
    a, b, want = memory[0], memory[1], memory[2:].astype(np.float64)
    compile_kernel(peak.fma_loop(target))(Pointer(memory.reshape(-1).view(np.uint8), 0), 5)
    for _ in range(5):
        want = want * a + b
    np.testing.assert_allclose(memory[2:], want, rtol=1e-5)


@pytest.mark.parametrize("name", ["x86-64-v3", "cascadelake", "cortex-m4"])
def test_the_integer_peak_loop_does_every_multiply_add_it_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cortado.backends.targets import find_target

    peak = module("peak", monkeypatch)
    target = find_target(name)
    dot, lanes = peak.dot_of(target), peak.lanes_of(target)
    memory = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, (peak.CHAINS + 2, lanes), np.int32)
    want, b = memory[2:].copy(), memory[1]
    kinds = {"dot2": (np.int16, np.int16), "dot4": (np.uint8, np.int8)}[dot]
    compile_kernel(peak.dot_loop(target))(Pointer(memory.reshape(-1).view(np.uint8), 0), 3)
    for _ in range(3):
        factors = want.view(kinds[0]).reshape(*want.shape, -1).astype(np.int32)
        products = factors * b.view(kinds[1]).reshape(lanes, -1).astype(np.int32)
        assert products.shape[-1] == peak.DOTS[dot]
        want += products.sum(-1, dtype=np.int32)
    np.testing.assert_array_equal(memory[2:], want)


def test_int8_answers_are_judged_by_their_noise_and_peers_always_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = module("compare", monkeypatch)
    right = np.float32([[1, 2, 3]])
    row: dict[str, Any] = {"left_out": {}}
    answers = {"onnxruntime": right, "cortado": right * 0.99, "openvino_int8": right * 0}
    assert list(compare.checked({name: lambda value=value: value for name, value in answers.items()}, row, "int8")) == list(
        answers
    )
    assert row["snr_db"]["cortado"] == pytest.approx(40, abs=0.01) and row["snr_db"]["openvino_int8"] == 0
    answers["cortado"] = right[:, ::-1]
    assert "cortado" not in compare.checked({name: lambda value=value: value for name, value in answers.items()}, row, "int8")
    assert compare.is_peer("onnxruntime_int8", "int8") and not compare.is_peer("onnxruntime", "int8")


def test_wrong_answers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = module("compare", monkeypatch)
    right = np.float32([[1, 2, 3]])
    answers = {"onnxruntime": right, "cortado": right * (1 + 1e-6), "ncnn": right[0], "mnn": right + 0.1, "litert": right[:, :2]}
    answers["openvino"] = right * np.nan
    row: dict[str, Any] = {"left_out": {}}
    timed = compare.checked({name: lambda value=value: value for name, value in answers.items()}, row)
    assert sorted(timed) == ["cortado", "ncnn", "onnxruntime"]
    assert set(row["left_out"]) == {"mnn", "litert", "openvino"}


def test_engines_take_turns_until_each_had_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = module("compare", monkeypatch)
    order: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock[0])

    def call(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    times = compare.measure({"slow": call("slow", 0.5), "fast": call("fast", 0.25)}, 2.0, 0.0)
    turn = ["slow"] * compare.TURN + ["fast"] * compare.TURN
    assert order == turn * 2
    assert times["fast"] == {"min_ms": 250, "median_ms": 250, "runs": 2 * compare.TURN}


def test_means_are_geometric_and_per_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = module("compare", monkeypatch)
    nets = [
        {"timings": [{"threads": 1, "ratio_min": 0.5}, {"threads": 2, "ratio_min": 1.0}]},
        {"timings": [{"threads": 1, "ratio_min": 2.0}, {"threads": 2}]},
    ]
    assert compare.geometric_means(nets) == {"1": pytest.approx(1.0), "2": 1.0}
    assert math.isclose(compare.geometric_means(nets[:1])["1"], 0.5)


def test_what_an_engine_cannot_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = module("engines", monkeypatch)
    net = engines.Network(tmp_path, tmp_path / "made", np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(engines.LeftOutError, match=r"has no model\.onnx"):
        net.form("model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"net")
    made: list[bytes] = []

    def make(model: Path, _: Any) -> None:
        made.append(model.read_bytes())
        (model.parent / "form.bin").write_bytes(b"form")

    for _ in range(2):
        (file,) = engines._made(net, "kind", ("form.bin",), make)
    assert file.read_bytes() == b"form" and made == [b"net"]
    with pytest.raises(engines.LeftOutError, match=r"made no other\.bin"):
        engines._made(net, "kind", ("other.bin",), make)


def test_the_copy_moves_every_byte_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from cortado.backends.targets import find_target

    operators = module("operators", monkeypatch)
    target = find_target("x86-64-v3")
    vectors = 3 * operators.UNROLL
    source = np.random.default_rng(0).integers(0, 256, vectors * 32, np.uint8)
    sink = np.zeros_like(source)
    compile_kernel(operators.copy_kernel(target))(Pointer(source, 0), Pointer(sink, 0), vectors)
    np.testing.assert_array_equal(sink, source)


def test_operator_cases_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    operators = module("operators", monkeypatch)
    cases = operators.all_cases()
    assert len({(case.family, case.name) for case in cases}) == len(cases)
    for case in cases:
        graph = operators.graph_of(case)
        assert graph.outputs[0][1].shape == case.out, case.name


def test_the_bound_is_the_slower_of_memory_and_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    operators = module("operators", monkeypatch)
    bench = object.__new__(operators.Bench)
    bench.threads, bench.seconds, bench.empty = 1, 0.0, {"cortado": 1.0, "onnxruntime": 5.0, "copy": 1.0}
    monkeypatch.setattr(operators.Bench, "_calls", lambda self, case, job: ({}, 0.0))
    for copied, bound, ratio in ((11.0, "onnxruntime", 1.5), (41.0, "memory", 0.75)):
        monkeypatch.setattr(operators, "measure", lambda calls, s, c=copied: {"cortado": 31.0, "onnxruntime": 25.0, "copy": c})
        row = bench.row(operators.all_cases()[0])
        assert (row["bound"], row["ratio"]) == (bound, ratio)
