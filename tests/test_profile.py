"""Profiles: the steps are the library's own, they compute its answer, and their times add up."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from native import runnable_targets
from programs import FIRST, SECOND, small_answer, small_bundle, small_feeds

from cortado.backends.targets import find_target
from cortado.cli.main import invoke
from cortado.errors import InputError, OptionError, TargetError
from cortado.model import Model
from cortado.profile import family, profile_of
from cortado.runtime import loader
from cortado.runtime.bundle import write_bundle
from cortado.runtime.loader import HostRunner
from cortado.runtime.manifest import StepInfo
from cortado.runtime.profile import StepTimes

here = pytest.mark.skipif(not runnable_targets(), reason="code runs in process on Linux with x86-64 or AArch64 only")
BIG = {"rows": 70, "columns": 1000}


@pytest.fixture(scope="module")
def big() -> Model:
    return Model(small_bundle(find_target("host"), **BIG))


@here
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [{}, BIG], ids=["small", "big"])
def test_the_measured_steps_alone_compute_the_answer(
    shape: dict[str, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = HostRunner(small_bundle(find_target("host"), **shape))
    made: list[np.ndarray] = []
    new_output, address = loader._new_output, runner._address
    nothing = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    monkeypatch.setattr(loader, "_new_output", lambda info: made.append(new_output(info)) or made[-1])
    instead = ctypes.cast(nothing, ctypes.c_void_p).value
    monkeypatch.setattr(runner, "_address", lambda name: instead if name.startswith("run") else address(name))
    feeds = small_feeds(**shape)
    times = runner.profile([feeds[FIRST], feeds[SECOND]], 3, threads)
    assert times.steps.shape == (3, 3) and times.whole.shape == (3,)
    for array, want in zip(made, small_answer(feeds).values(), strict=True):
        np.testing.assert_array_equal(array, want, strict=True)


@here
def test_times_of_steps_add_up_to_a_run(big: Model) -> None:
    for _ in range(5):  # what else the machine does may hit one of the two
        profile = big.profile(small_feeds(**BIG), runs=300)
        if profile.sum_min_us == pytest.approx(profile.run_min_us, rel=0.15):
            break
    assert profile.sum_min_us == pytest.approx(profile.run_min_us, rel=0.15)
    assert [step.name for step in profile.steps] == [step.name for step in big.report().steps]
    assert all(0 < step.min_us <= step.median_us for step in profile.steps)
    assert sum(step.share for step in profile.steps) == pytest.approx(1)
    assert profile.runs == 300 and profile.threads == 1 and profile.run_min_us <= profile.run_median_us


@here
def test_what_cannot_be_measured_is_said(big: Model) -> None:
    feeds = small_feeds(**BIG)
    with pytest.raises(OptionError, match="runs=0"):
        big.profile(feeds, runs=0)
    with pytest.raises(OptionError, match="threads=0"):
        big.profile(feeds, threads=0)
    with pytest.raises(InputError, match="is missing"):
        big.profile({FIRST: feeds[FIRST]})


def test_another_machine_s_library_has_no_times() -> None:
    model = Model(small_bundle(find_target("cortex-m4")))

    class Emulated:
        def run(self, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
            return []

    model._runner = Emulated()
    with pytest.raises(TargetError, match="cortex-m4, which is not this machine"):
        model.profile(small_feeds())


def step(name: str, op: str, kernel: str, macs: int) -> StepInfo:
    return StepInfo(name, op, (), kernel, macs, 1, 1, (1, 2), ())


def test_numbers_of_a_profile() -> None:
    steps = [
        step("a", "conv", "winograd_input_85e838cfdc", 1_000_000),
        step("a", "conv", "winograd_f32_e6a4cff75f", 0),
        step("b", "relu", "relu_f32_0000000000", 0),
    ]
    times = StepTimes(
        np.array([[10_000, 40_000, 60_000], [12_000, 30_000, 80_000], [20_000, 50_000, 70_000]]), np.array([9, 7, 8])
    )
    profile = profile_of("net", "host", 2, steps, times)
    assert [entry.min_us for entry in profile.steps] == [10, 30, 60]
    assert [entry.median_us for entry in profile.steps] == [12, 40, 70]
    assert [entry.share for entry in profile.steps] == [0.1, 0.3, 0.6]
    assert [entry.gflops for entry in profile.steps] == [50, None, None]  # 2 million operations in 40 us
    assert (profile.sum_min_us, profile.sum_median_us) == (110, 122)
    assert (profile.run_min_us, profile.run_median_us) == (0.007, 0.008)
    assert [(o.op, o.steps, o.min_us, o.gflops) for o in profile.operators] == [("relu", 1, 60, None), ("conv", 2, 40, 50)]
    assert [entry.kernel for entry in profile.steps] == ["winograd_input", "winograd_f32", "relu_f32"]
    assert family("scale") == "scale"


def test_a_profile_as_table_and_document() -> None:
    profile = profile_of(
        "net", "host", 1, [step("a", "conv", "conv_f32_0b7bf6de0d", 500_000)], StepTimes(np.array([[25_000]]), np.array([26_000]))
    )
    lines = str(profile).splitlines()
    assert "net for host, 1 thread, 1 runs" in lines[0]
    assert lines[3].split() == ["a", "conv", "conv_f32", "1x2", "500,000", "25.00", "25.00", "100.0%", "40.0"]
    document = json.loads(json.dumps(profile.to_dict()))
    assert document["schema"] == 1
    assert document["steps"][0]["gflops"] == document["operators"][0]["gflops"] == 40


@here
def test_the_command(big: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_bundle(big._bundle, tmp_path)
    np.savez(tmp_path / "feeds.npz", **small_feeds(**BIG))
    for data in ([], [str(tmp_path / "feeds.npz")]):
        assert invoke(["profile", str(tmp_path), *data, "--runs", "2", "--threads", "2", "--json"]) == 0
        document = json.loads(capfd.readouterr().out)
        assert (document["runs"], document["threads"], len(document["steps"])) == (2, 2, 3)
    assert invoke(["profile", str(tmp_path), "--runs", "2"]) == 0
    assert "whole run" in capfd.readouterr().out
