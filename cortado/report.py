"""What a compiled model costs: bytes of everything that ships or is needed, multiply-adds per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from cortado.compiler.types import TensorInfo
from cortado.int8_report import int8_lines
from cortado.runtime.manifest import LevelInfo, Sizes, StepInfo

SCHEMA = 1
_OF_LEVELS = ("name", "serves", "code", "weights", "arena")


@dataclass(frozen=True)
class Report:
    """sizes: bytes of code, weights, arena and (upper bound) stack. steps: in the order they run; macs: multiply-adds of all.

    levels: where the code is for several, what each has of it; the steps are the last one's.
    """

    name: str
    target: str
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    sizes: Sizes
    steps: tuple[StepInfo, ...]
    quantization: Mapping[str, Any] | None = None
    levels: tuple[LevelInfo, ...] = ()

    @property
    def macs(self) -> int:
        return sum(step.macs for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with its schema number: what `cortado report --json` prints."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "target": self.target,
            "inputs": [{"name": name, **asdict(info)} for name, info in self.inputs.items()],
            "outputs": [{"name": name, **asdict(info)} for name, info in self.outputs.items()],
            "sizes": asdict(self.sizes),
            "macs": self.macs,
            "steps": [asdict(step) for step in self.steps],
            "quantization": self.quantization,
            "levels": [{key: getattr(level, key) for key in _OF_LEVELS} for level in self.levels],
        }

    def __str__(self) -> str:
        lines = [f"{self.name} for {self.target}"]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            lines += [
                f"  {kind:7} {name}: {info.dtype}{list(info.shape)} {info.layout}".rstrip() for name, info in tensors.items()
            ]
        sizes = self.sizes
        lines += [
            f"  code    {sizes.code:13,} bytes",
            f"  weights {sizes.weights:13,} bytes",
            f"  arena   {sizes.arena:13,} bytes",
            f"  stack   {sizes.stack:13,} bytes at most",
            f"  work    {self.macs:13,} multiply-adds in {len(self.steps)} steps",
            "",
        ]
        if self.levels:
            lines += [
                f"  for {', '.join(level.serves)}: {level.code:,} bytes of code, reads {level.weights:,} bytes of the weights"
                for level in self.levels
            ]
            lines.append("")
        rows = [("node", "operator", "multiply-adds", "share", "from")]
        for (name, op), group in groupby(self.steps, key=lambda step: (step.name, step.op)):
            steps = tuple(group)
            macs = sum(step.macs for step in steps)
            share = f"{100 * macs / self.macs:.1f}%" if macs else ""
            what = f"{op}, {len(steps)} steps" if len(steps) > 1 else op
            rows.append((name, what, f"{macs:,}" if macs else "", share, ", ".join(steps[0].origin)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for name, op, work, share, origin in rows:
            lines.append(f"  {name:{widths[0]}}  {op:{widths[1]}}  {work:>{widths[2]}}  {share:>{widths[3]}}  {origin}".rstrip())
        if self.quantization is not None:
            lines += ["", *int8_lines(self.quantization)]
        return "\n".join(lines)
