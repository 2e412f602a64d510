"""Real networks against what real Caffe2 recorded, intermediates too, compiled for every level of x86-64; memory of the programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import cortado
from cortado.backends.targets import find_target
from cortado.compiler.options import GOALS, CompileOptions
from cortado.compiler.pipeline import compile_program
from cortado.compiler.plan import Interval, largest_live_sum
from cortado.compiler.target import Target

LIMIT = 1e-4  # largest error over the largest magnitude of the recorded blob


@dataclass(frozen=True)
class Case:
    """outputs: blob name -> key in the recorded file. some: recorded for the first two inputs only."""

    folder: str
    recorded: str
    blob: str
    key: str
    outputs: Mapping[str, str]


CASES = (
    Case(
        "squeezenet_v1_0", "squeezenet_v1_0_caffe2.npz", "data", "data",
        {"prob": "out.prob", "pool10": "blob.pool10", "fire5/concat": "blob.fire5/concat", "pool8": "blob.pool8"},
    ),
    Case(
        "mobilenet_v2_1_0_224", "mobilenet_v2_1_0_224_caffe2.npz", "data", "data",
        {"prob": "out.prob", **{name: f"blob.{name}" for name in ("block5_add", "block14_add", "pool", "logits")}},
    ),
    Case("rfb_320", "rfb_320.npz", "input", "input", {"scores": "caffe2.scores", "boxes": "caffe2.boxes"}),
    Case("slim_320", "slim_320.npz", "input", "input", {"scores": "caffe2.scores", "boxes": "caffe2.boxes"}),
)  # fmt: skip


def target_for(level: str) -> Target:
    """The level; where this machine lacks AVX-512, its kernels with the instructions of v3: LLVM halves every vector."""
    target = find_target(level)
    here = find_target("host")
    if set(target.features) <= set(here.features):
        return target
    v3 = find_target("x86-64-v3")
    if level != "x86-64-v4" or not set(v3.features) <= set(here.features):
        pytest.skip(f"this machine cannot run {level}")
    rows = tuple(row for row in target.rows if row.feature in ("", *v3.features))
    return replace(v3, vector_bits=target.vector_bits, vector_registers=target.vector_registers, rows=rows)


def compare(case: Case, model: cortado.Model, recorded: Mapping[str, np.ndarray], count: int) -> None:
    for i in range(count):
        got = model.run({case.blob: recorded[case.key][i : i + 1]})
        for name, value in got.items():
            want = recorded[case.outputs[name]]
            if i < len(want):
                error = np.abs(value.reshape(want[i].shape) - want[i]).max() / np.abs(want[i]).max()
                assert error <= LIMIT, f"{name} of input {i}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.folder)
def test_recorded_outputs(shared: Path, case: Case, level: str) -> None:
    with np.load(shared / "goldens" / case.recorded) as file:
        recorded = {key: file[key] for key in (case.key, *case.outputs.values())}
    shape = (1, *recorded[case.key].shape[1:])
    last = {name: key for name, key in case.outputs.items() if not key.startswith("blob.")}
    graph = cortado.load(shared / "models" / case.folder, inputs={case.blob: shape})
    compare(replace(case, outputs=last), cortado.compile(graph, target=target_for(level)), recorded, 2)
    if len(last) < len(case.outputs):
        graph = cortado.load(shared / "models" / case.folder, inputs={case.blob: shape}, outputs=list(case.outputs))
        compare(case, cortado.compile(graph, target=target_for(level)), recorded, 2)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("case", CASES[::2], ids=lambda c: c.folder)
def test_the_arena_is_close_to_what_is_live_at_once(shared: Path, case: Case, goal: str) -> None:
    with np.load(shared / "goldens" / case.recorded) as file:
        shape = (1, *file[case.key].shape[1:])
    graph = cortado.load(shared / "models" / case.folder, inputs={case.blob: shape})
    program, _ = compile_program(graph, find_target("x86-64-v3"), CompileOptions(optimize_for=goal))
    live = [Interval(b.nbytes, b.first, b.last) for b in program.buffers if b.place == "arena"]
    assert program.arena_bytes <= 1.10 * largest_live_sum(live)
