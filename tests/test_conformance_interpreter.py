"""Small recorded cases on the kernel interpreter, which checks every access, for targets that this machine may be unable to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conformance import Case, difference, exclusions, iter_cases, load_case

from cortado.backends.targets import find_target
from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.interpret import run_program
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize

TARGETS = ("x86-64-v4", "cortex-m4")  # 16 lanes and masks; no vectors
MOST_ELEMENTS = 400  # of all inputs and outputs of a case together
MOST_CASES = 8


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Path:
    return shared / "conformance" / "caffe2"


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_operator(recorded: Path, operator: str) -> None:
    if not (recorded / f"{operator}.npz").exists():
        pytest.skip(f"nothing was recorded for {operator}")
    skipped = {number for name, number in exclusions(executor="compiled") if name == operator}
    if "*" in skipped:
        pytest.skip("no kernel")
    cases = chosen([case for case in iter_cases(recorded, operator) if not case.must_fail and case.number not in skipped])
    for case in cases:
        graph = optimize(load_case(case))
        for name in TARGETS:
            program = lower(graph, find_target(name))
            with np.errstate(all="ignore"):
                got = run_program(program, case.feeds)
            for output, want in case.outputs.items():
                problem = difference(np.asarray(got[output]), want, case.tolerance)
                assert not problem, f"{name}: {case}: output '{output}': {problem}"


def chosen(cases: Sequence[Case]) -> list[Case]:
    """A few small cases, each of another form, larger ones first: they have both whole vectors and tails."""
    found: dict[str, Case] = {}
    for case in sorted(cases, key=elements, reverse=True):
        if elements(case) <= MOST_ELEMENTS:
            found.setdefault(case.form, case)
    return list(found.values())[:MOST_CASES] or sorted(cases, key=elements)[:1]


def elements(case: Case) -> int:
    return sum(array.size for array in (*case.feeds.values(), *case.constants.values(), *case.outputs.values()))
