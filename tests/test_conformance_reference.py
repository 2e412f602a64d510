"""The operator reference, behind the Caffe2 importer, against everything recorded from real Caffe2 that the importer reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import EXCLUSIONS, check, exclusions, iter_cases

from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.reference import run_graph

NETS = [f"{number:03}" for number in range(105)]


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Path:
    return shared / "conformance" / "caffe2"


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_operator(recorded: Path, operator: str) -> None:
    if not (recorded / f"{operator}.npz").exists():
        pytest.skip(f"nothing was recorded for {operator}")
    for case in iter_cases(recorded, operator):
        check(case, run_graph)


@pytest.mark.parametrize("number", [n for n in NETS if ("nets", n) not in exclusions()])
def test_mini_net(recorded: Path, number: str) -> None:
    (case,) = [case for case in iter_cases(recorded, "nets") if case.number == number]
    check(case, run_graph)


def test_exclusions_are_needed(recorded: Path) -> None:
    """A case that came to pass must leave the list."""
    needless = []
    for operator in sorted({operator for operator, _ in exclusions()}):
        excluded = {number for name, number in exclusions() if name == operator}
        for case in iter_cases(recorded, operator, everything=True):
            if case.number in excluded or "*" in excluded:
                try:
                    check(case, run_graph)
                except Exception:
                    continue
                needless.append(str(case))
    assert not needless, f"take out of {EXCLUSIONS.name}: {needless}"
