"""Times of single steps, in this process, on the bytes that ship.

The manifest says which function each step calls with which pointers. A function made for one measurement calls them in the program's
order, as NAME_run does, and reads the clock in between: a step finds the caches as the steps before it leave them, and nothing but the
clock (some 25 ns) comes on top.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cortado.backends.codegen import compile_modules
from cortado.backends.conditions import guarded, limited, limited_part_lines, part_lines
from cortado.backends.targets import find_target
from cortado.compiler.program import Argument, Limit
from cortado.runtime.manifest import StepInfo
from cortado.runtime.memory import LoadedCode

if TYPE_CHECKING:
    from cortado.runtime.pool import ThreadPool

SECONDS = 2.0  # of measuring, where no number of runs is asked for
FEWEST, MOST = 10, 2000  # runs then
_CLOCK_MONOTONIC = 1  # Linux, every architecture
_TIMESPEC = 2  # 64-bit words: seconds and nanoseconds


@dataclass(frozen=True)
class StepTimes:
    """Nanoseconds. steps: int64 [runs, steps], each step within a run; whole: int64 [runs], NAME_run or NAME_run_threads in one call."""

    steps: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True)
class Library:
    """A loaded library, ready to run. prefix: of the symbols of the code that runs. address: of a symbol.

    places: addresses of base, weights, in0, out0 ...
    """

    prefix: str
    address: Callable[[str], int]
    places: Mapping[str, int]
    arena: int
    ins: int
    outs: int


def measure(
    library: Library, steps: Sequence[StepInfo], runs: int | None, threads: int, pool: Callable[[], ThreadPool]
) -> StepTimes:
    """Runs step by step and whole runs in turn, after one of each to warm up. runs: None for what about two seconds allow."""
    shared = pool() if threads > 1 else None
    with shared.helpers(threads - 1) if shared is not None else nullcontext(0) as job:
        parallel_for = shared.parallel_for if shared is not None else 0
        target = find_target("host")
        text = _module(library, steps, parallel_for, job, target.triple)
        code = LoadedCode([item.data for item in compile_modules([("profile", text)], target, jobs=1)])
        stepwise, whole = (ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address(name)) for name in ("stepwise", "whole"))
        first = np.zeros((2, _TIMESPEC), np.int64)
        clocks = np.zeros((len(steps) + 1, _TIMESPEC), np.int64)
        stepwise(clocks.ctypes.data)
        whole(first.ctypes.data)
        whole(first.ctypes.data)
        if runs is None:
            runs = int(np.clip(SECONDS * 1e9 / max(2 * _differences(first)[0], 1), FEWEST, MOST))
        times = StepTimes(np.empty((runs, len(steps)), np.int64), np.empty(runs, np.int64))
        for run in range(runs):
            stepwise(clocks.ctypes.data)
            whole(first.ctypes.data)
            times.steps[run] = _differences(clocks)
            times.whole[run] = _differences(first)[0]
    return times


def _differences(clocks: np.ndarray) -> np.ndarray:
    return np.diff(clocks[:, 0] * 1_000_000_000 + clocks[:, 1])


def _module(library: Library, steps: Sequence[StepInfo], parallel_for: int, job: int, triple: str) -> str:
    """LLVM IR of stepwise(clocks) and whole(clocks): addresses are constants, the clock is read before, between and after calls."""
    functions: list[str] = []
    body = [_clock(0)]
    for number, step in enumerate(steps):
        counted, tasks = _tasks(library, step, number)
        pointers = ", ".join(f"ptr {_pointer(_place(library, place))}" for place in step.args)
        address = library.address(f"{library.prefix}_{step.kernel}")
        driver = f"call void {_pointer(address)}({pointers}{', ' if pointers else ''}"
        if parallel_for and step.parts > 1:
            own = limited_part_lines(tasks, step.parts, "i64") if step.count else part_lines(step.tasks, step.parts, "i64")
            functions.append(
                f"define internal void @part{number}(ptr %shared, i32 %number) nounwind {{\n"
                f"{counted}{own}  {driver}i64 %begin, i64 %end)\n  ret void\n}}\n"
            )
            call = f"  call void {_pointer(parallel_for)}(ptr {_pointer(job)}, ptr @part{number}, ptr null, i32 {step.parts})\n"
        else:
            call = f"{counted}  {driver}i64 0, i64 {tasks})\n"
        guards = [(_pointer(_place(library, place.removeprefix("!"))), not place.startswith("!")) for place in step.guards]
        body.append(guarded(call, number, guards))
        body.append(_clock(number + 1))
    given = [library.arena, library.ins, library.outs] + ([parallel_for, job] if parallel_for else [])
    entry = library.address(f"{library.prefix}_run{'_threads' if parallel_for else ''}")
    call = f"  %status = call i32 {_pointer(entry)}({', '.join(f'ptr {_pointer(address)}' for address in given)})\n"
    functions.append(f"define void @stepwise(ptr %clocks) nounwind {{\n{''.join(body)}  ret void\n}}\n")
    functions.append(f"define void @whole(ptr %clocks) nounwind {{\n{_clock(0)}{call}{_clock(1)}  ret void\n}}\n")
    return f'target triple = "{triple}"\n\n' + "\n".join(functions)


def _tasks(library: Library, step: StepInfo, number: int) -> tuple[str, str]:
    """IR lines, and the value or number of the tasks to do."""
    if not step.count:
        return "", str(step.tasks)
    limit = Limit(Argument(0), step.rows, step.groups)
    return limited(limit, step.tasks, number, _pointer(_place(library, step.count)), "i64")


def _clock(number: int) -> str:
    read = ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0
    return (
        f"  %clock{number} = getelementptr i64, ptr %clocks, i64 {number * _TIMESPEC}\n"
        f"  %read{number} = call i32 {_pointer(read)}(i32 {_CLOCK_MONOTONIC}, ptr %clock{number})\n"
    )


def _place(library: Library, text: str) -> int:
    start, _, offset = text.partition("+")
    return library.places[start] + int(offset)


def _pointer(address: int) -> str:
    return f"inttoptr (i64 {address} to ptr)"
