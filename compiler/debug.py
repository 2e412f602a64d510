"""What each stage of a compilation changed and how long it took, for people: CORTADO_DEBUG in the environment says where to."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from cortado.compiler.graph import Graph
from cortado.compiler.text import diff_graphs, format_graph

VARIABLE = "CORTADO_DEBUG"
OFF = ("", "0")
STDERR = ("1", "stderr")


@dataclass
class DebugLog:
    """One compilation's log. folder: where the files 00-name.txt, 01-name.txt ... go; None writes to stderr. enabled False writes nothing."""

    enabled: bool = False
    folder: Path | None = None
    stage: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> DebugLog:
        """CORTADO_DEBUG empty or 0: nothing; 1 or stderr: to stderr; anything else names a folder, which is made."""
        named = (os.environ if environment is None else environment).get(VARIABLE, "")
        if named in OFF:
            return DebugLog()
        folder = None if named in STDERR else Path(named)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return DebugLog(True, folder)

    def start(self, graph: Graph) -> None:
        """Write the whole graph, as it is before the first stage."""
        if self.enabled:
            self._write("start", format_graph(graph))
        self._started = time.perf_counter()

    def after(self, name: str, before: Graph, after: Graph, steps: int = 0) -> None:
        """A stage has made `after` of `before` by this many rewrites: write what changed and the time since the last stage ended."""
        if self.enabled:
            seconds = time.perf_counter() - self._started
            change = diff_graphs(before, after)
            head = f"{seconds * 1000:.1f} ms, {steps} rewrites, {summary(after)}"
            self._write(name, f"{head}\n{change or '(unchanged)'}" + ("" if change else "\n"))
        self._started = time.perf_counter()

    def end(self, graph: Graph) -> None:
        """Write the whole graph, as the last stage left it."""
        if self.enabled:
            self._write("end", format_graph(graph))

    def _write(self, name: str, text: str) -> None:
        title = f"{self.stage:02d}-{name}"
        self.stage += 1
        if self.folder is None:
            print(f"== {title}: {text}", end="", file=sys.stderr)
        else:
            (self.folder / f"{title}.txt").write_text(text, encoding="utf-8")


def count_operators(graph: Graph) -> Mapping[str, int]:
    """How many nodes of each operator there are, without inputs and constants; by name."""
    counts = Counter(node.op for node in graph.nodes() if node.op not in ("input", "constant"))
    return MappingProxyType({op: counts[op] for op in sorted(counts)})


def summary(graph: Graph) -> str:
    """The operator counts in one line."""
    return ", ".join(f"{op} {count}" for op, count in count_operators(graph).items())
