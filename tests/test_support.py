"""The support table: true to the tables, the page in docs, and the recorded cases."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import exclusions

from cortado import support
from cortado.cli.main import invoke
from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.importers.caffe2_unsupported import REASONS
from cortado.compiler.importers.vocabulary import graph_operators

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operators.md"


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["ops", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8"), "run: cortado ops --markdown > docs/operators.md"


def test_every_recorded_operator_is_imported_or_has_a_reason(shared: Path) -> None:
    recorded = {path.stem for path in (shared / "conformance" / "caffe2").glob("*.npz")} - {"nets"}
    unknown = sorted(name for name in recorded - set(OPERATORS) - set(REASONS) if not name.startswith("Int8"))
    assert not unknown
    assert not set(OPERATORS) & set(REASONS), "imported by now"


def test_operators_without_kernels_are_those_excluded_from_compiled_cases() -> None:
    excluded = {operator for operator, number in exclusions(executor="compiled") if number == "*"}
    missing = {operator.name for operator in support.caffe2_operators() if operator.imported and not operator.compiled}
    assert missing == excluded


def test_graph_operators_are_found_behind_closures_and_helpers() -> None:
    assert graph_operators(OPERATORS["Relu"].build) == {"relu"}
    assert graph_operators(OPERATORS["ConvRelu"].build) == {"conv", "relu"}
    assert {"reduce_mean", "rsqrt", "sub"} <= graph_operators(OPERATORS["InstanceNorm"].build)
    assert {"fc", "sigmoid", "slice"} <= graph_operators(OPERATORS["InferenceLSTM"].build)


def test_an_operator_can_be_looked_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["ops", "ConvTranspose"]) == 0
    assert "conv_transpose" in capsys.readouterr().out
    assert invoke(["ops", "NoSuchOperator"]) == 2


def test_reasons_reach_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["ops", "--json"]) == 0
    assert '"reason": "it belongs to training"' in capsys.readouterr().out
