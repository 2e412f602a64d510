"""Where a compiled model's time goes: measured times of its steps, and what they amount to by operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from cortado.runtime.manifest import StepInfo
from cortado.runtime.profile import StepTimes

SCHEMA = 1


@dataclass(frozen=True)
class StepProfile:
    """One step. kernel: the family of its function. min_us, median_us: microseconds of all its tasks within a run.

    share: of the sum of the steps' minimum times. gflops: 1e9 operations a second, two per multiply-add, of all the node's steps
    together in their minimum times; None for all but the node's first step and where there is nothing to multiply.
    """

    name: str
    op: str
    kernel: str
    shape: tuple[int, ...]
    macs: int
    min_us: float
    median_us: float
    share: float
    gflops: float | None


@dataclass(frozen=True)
class OperatorProfile:
    """All steps of an operator: how many, their multiply-adds, times, share and rate, as in StepProfile."""

    op: str
    steps: int
    macs: int
    min_us: float
    median_us: float
    share: float
    gflops: float | None


@dataclass(frozen=True)
class Profile:
    """steps: in the order they run. Microseconds of whole runs: run_* in one call, sum_* step by step, the steps of each run summed."""

    name: str
    target: str
    threads: int
    runs: int
    steps: tuple[StepProfile, ...]
    run_min_us: float
    run_median_us: float
    sum_min_us: float
    sum_median_us: float

    @property
    def operators(self) -> tuple[OperatorProfile, ...]:
        """The largest share first."""
        names = sorted({step.op for step in self.steps})
        found = [_operator(name, [step for step in self.steps if step.op == name]) for name in names]
        return tuple(sorted(found, key=lambda entry: -entry.min_us))

    def to_dict(self) -> dict[str, Any]:
        """Plain data with its schema number: what `cortado profile --json` prints."""
        return {"schema": SCHEMA, **asdict(self), "operators": [asdict(entry) for entry in self.operators]}

    def __str__(self) -> str:
        header = ("step", "operator", "kernel", "output", "multiply-adds", "us", "median", "share", "GFLOP/s")
        rows = [(step.name, step.op, step.kernel, "x".join(map(str, step.shape)), *_numbers(step)) for step in self.steps]
        summary = [(entry.op, str(entry.steps), *_numbers(entry)) for entry in self.operators]
        return "\n".join(
            [
                f"{self.name} for {self.target}, {self.threads} thread{'s' * (self.threads > 1)}, {self.runs} runs;"
                " us: fastest of them; GFLOP/s of all steps of a node",
                "",
                *aligned(header, rows, 4),
                "",
                *aligned(("operator", "steps", *header[4:]), summary, 1),
                "",
                f"whole run   {self.run_min_us:12,.2f} us, median {self.run_median_us:,.2f}",
                f"all steps   {self.sum_min_us:12,.2f} us, median {self.sum_median_us:,.2f}",
            ]
        )


def profile_of(name: str, target: str, threads: int, steps: Sequence[StepInfo], times: StepTimes) -> Profile:
    """The report of a measurement of these steps."""
    least = times.steps.min(axis=0) / 1e3
    middle = np.median(times.steps, axis=0) / 1e3
    sums = times.steps.sum(axis=1) / 1e3
    total = float(least.sum())
    rates: list[float | None] = []
    for group in _nodes(steps):
        macs = sum(steps[at].macs for at in group)
        rates += [_rate(macs, float(least[group].sum())), *[None] * (len(group) - 1)]
    rows = []
    for step, low, median, rate in zip(steps, least.tolist(), middle.tolist(), rates, strict=True):
        share = low / total if total else 0.0
        rows.append(StepProfile(step.name, step.op, family(step.kernel), step.shape, step.macs, low, median, share, rate))
    whole = times.whole / 1e3
    ends = [float(value) for value in (whole.min(), np.median(whole), sums.min(), np.median(sums))]
    return Profile(name, target, threads, len(times.whole), tuple(rows), *ends)


def family(kernel: str) -> str:
    """A driver's name without the mark of its shape: "conv_f32" of "conv_f32_0b7bf6de0d"."""
    return kernel.rpartition("_")[0] or kernel


def _nodes(steps: Sequence[StepInfo]) -> Iterator[list[int]]:
    """Positions of the steps of each node: those in a row with its name."""
    for _, group in groupby(range(len(steps)), key=lambda at: (steps[at].name, steps[at].op)):
        yield list(group)


def _operator(op: str, steps: Sequence[StepProfile]) -> OperatorProfile:
    macs, low = sum(step.macs for step in steps), sum(step.min_us for step in steps)
    middle, share = sum(step.median_us for step in steps), sum(step.share for step in steps)
    return OperatorProfile(op, len(steps), macs, low, middle, share, _rate(macs, low))


def _rate(macs: int, microseconds: float) -> float | None:
    return 2e-3 * macs / microseconds if macs and microseconds else None


def _numbers(entry: StepProfile | OperatorProfile) -> tuple[str, ...]:
    rate = "" if entry.gflops is None else f"{entry.gflops:.1f}"
    macs = f"{entry.macs:,}" if entry.macs else ""
    return macs, f"{entry.min_us:,.2f}", f"{entry.median_us:,.2f}", f"{100 * entry.share:.1f}%", rate


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lines; the first `words` columns flush left, the others right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            f"{cell:<{width}}" if at < words else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
