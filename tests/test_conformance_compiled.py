"""Everything recorded from real Caffe2 that can be compiled, as machine code run in this process.

What must fail is the importer's business, and the reference's where it lies in the data: compiled code makes no checks of data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from compiled import Compiled
from conformance import Case, difference, exclusions, iter_cases, load_case
from native import runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph
from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize

TARGETS = [name for name in ("x86-64", "x86-64-v3", "aarch64") if name in runnable_targets()]
NETS_AT_ONCE = 15
EXECUTOR = "compiled"  # the executor's name in the exclusions


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Path:
    return shared / "conformance" / "caffe2"


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_operator(recorded: Path, operator: str) -> None:
    if not (recorded / f"{operator}.npz").exists():
        pytest.skip(f"nothing was recorded for {operator}")
    check_all(list(runnable(recorded, operator)))


@pytest.mark.parametrize("first", range(0, 105, NETS_AT_ONCE))
def test_mini_nets(recorded: Path, first: int) -> None:
    numbers = {f"{number:03}" for number in range(first, first + NETS_AT_ONCE)}
    check_all([case for case in runnable(recorded, "nets") if case.number in numbers])


def runnable(folder: Path, operator: str) -> Iterator[Case]:
    skipped = exclusions(executor=EXECUTOR)
    for case in iter_cases(folder, operator):
        if not case.must_fail and not {(operator, "*"), (operator, case.number)} & set(skipped):
            yield case


def check_all(cases: Sequence[Case]) -> None:
    graphs = [(case, optimize(load_case(case))) for case in cases]
    problems = [problem for name in TARGETS for problem in differences(graphs, name)]
    assert not problems, "\n".join(problems)


def differences(graphs: Sequence[tuple[Case, Graph]], target_name: str) -> Iterator[str]:
    target = find_target(target_name)
    programs = [lower(graph, target) for _, graph in graphs]
    compiled = Compiled(programs, target)
    for (case, _), program in zip(graphs, programs, strict=True):
        got = compiled.run(program, case.feeds)
        for name, want in case.outputs.items():
            problem = difference(np.asarray(got[name]), want, case.tolerance)
            if problem:
                yield f"{target_name}: {case}: output '{name}': {problem}"
