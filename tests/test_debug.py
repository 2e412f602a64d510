"""CORTADO_DEBUG: what is written, and where to."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_optimize import small_network

from cortado.compiler.debug import DebugLog, count_operators, summary
from cortado.compiler.optimize import optimize
from cortado.compiler.text import format_graph


@pytest.mark.parametrize("value", ["", "0", None])
def test_off(value: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("CORTADO_DEBUG", raising=False)
    else:
        monkeypatch.setenv("CORTADO_DEBUG", value)
    optimize(small_network())
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["1", "stderr"])
def test_to_stderr(value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTADO_DEBUG", value)
    optimize(small_network())
    out, text = capsys.readouterr()
    assert (
        out == ""
        and "== 00-start: graph net\n" in text
        and "-fuse_epilogue: " in text
        and " ms, " in text
        and "(unchanged)" in text
    )


def test_to_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    monkeypatch.setenv("CORTADO_DEBUG", str(folder))
    graph = small_network()
    after = optimize(graph)
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "00-start.txt" and names[-1].endswith("-end.txt") and len(names) > 8
    assert (folder / names[0]).read_text() == format_graph(graph)
    assert (folder / names[-1]).read_text() == format_graph(after)
    fused = next(path for path in folder.iterdir() if "fuse_epilogue" in path.name).read_text()
    assert "rewrites, concat 1, conv 4" in fused and "\n- " in fused and "\n+ " in fused and "(activation,clip" in fused


def test_a_disabled_log_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    graph = small_network()
    log = DebugLog.from_environment({})
    log.start(graph)
    log.after("pass", graph, optimize(graph))
    log.end(graph)
    assert capsys.readouterr() == ("", "")


def test_operators_are_counted_by_name() -> None:
    counts = count_operators(small_network())
    assert list(counts) == sorted(counts) and counts["conv"] == 4 and "constant" not in counts and "input" not in counts
    assert "conv 4, fc 1, mul 2" in summary(small_network())
