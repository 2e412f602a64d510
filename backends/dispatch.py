"""Entry points of a library that carries its code for several levels of a processor family.

NAME_init asks the processor once and keeps the number of the most demanding level that it has in the arena's header; NAME_run and
NAME_run_threads jump to the functions of that level, which are NAME_level_LEVEL_run and so on, seen inside of the library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cortado.backends.entry import LEVEL_AT, Entry, EntryModule, run_function, run_threads_functions, start_function
from cortado.backends.probe import probe_checks, probe_functions, probe_of
from cortado.compiler.program import Program
from cortado.compiler.target import Target


@dataclass(frozen=True)
class Variant:
    """The code of one level. prefix: of its symbols. serves: names of the levels that would have the same kernels, itself included."""

    program: Program
    target: Target
    prefix: str
    serves: tuple[str, ...]


def variants_of(programs: Sequence[Program], target: Target, prefix: str) -> tuple[Variant, ...]:
    """programs: for the target's levels, the least demanding first. A level whose kernels are those of the one before has no code."""
    found: list[Variant] = []
    for program, level in zip(programs, target.levels if programs else (), strict=True):
        if found and _kernels(found[-1].program) == _kernels(program):
            found[-1] = replace(found[-1], serves=(*found[-1].serves, level.name))
        else:
            name = level.name.removeprefix("x86-64").strip("-").replace("+", "_") or "base"
            found.append(Variant(program, level, f"{prefix}_level_{name}", (level.name,)))
    return tuple(found)


def _kernels(program: Program) -> tuple[object, ...]:
    """What is equal where programs do the same. A kernel's name is unique by its content."""
    return program.buffers, tuple((step.kernel.name, step.args, step.tasks, step.guards, step.limit) for step in program.steps)


def level_modules(variant: Variant, model_hash: int, threads: int) -> tuple[EntryModule, ...]:
    """The functions that the dispatching ones jump to."""
    entry = Entry(variant.program, variant.target, variant.prefix, model_hash, hidden=True)
    prefix = variant.prefix
    return (
        EntryModule(f"{prefix}.o", entry.module(run_function(entry)), (f"{prefix}_run",)),
        EntryModule(f"{prefix}_threads.o", entry.module(*run_threads_functions(entry, threads)), (f"{prefix}_run_threads",)),
    )


def dispatch_modules(
    variants: Sequence[Variant], target: Target, prefix: str, model_hash: int, linked: bool
) -> tuple[EntryModule, ...]:
    """The public functions. target: the least that the processor must be."""
    entry = Entry(variants[0].program, target, prefix, model_hash)
    keep = (
        f"  %level = call i32 @{prefix}_level()\n"
        f"  %level_at = getelementptr i8, ptr %base, i32 {LEVEL_AT}\n"
        f"  store i32 %level, ptr %level_at, align 4\n"
    )
    probes = [_has(entry, variant, number) for number, variant in enumerate(variants) if number]
    start = entry.module(start_function(entry, linked, keep), *probes, _level(entry, len(variants)), _jump(entry, variants, ""))
    head = f'target triple = "{target.triple}"\n\n'
    return (
        EntryModule(f"{prefix}.o", start, (f"{prefix}_init", f"{prefix}_run")),
        EntryModule(f"{prefix}_threads.o", entry.module(_jump(entry, variants, "_threads")), (f"{prefix}_run_threads",)),
        EntryModule(f"{prefix}_cpu.o", head + probe_functions(prefix), (f"{prefix}_cpuid", f"{prefix}_xgetbv")),
    )


def _has(entry: Entry, variant: Variant, number: int) -> str:
    """Whether the processor can run the level."""
    probe = probe_of(variant.target)
    assert probe is not None
    return (
        f"define internal i1 @{entry.prefix}_has{number}() {entry.attributes} {{\n"
        f"{probe_checks(probe, entry.prefix, 'no')}  ret i1 true\nno:\n  ret i1 false\n}}\n"
    )


def _level(entry: Entry, count: int) -> str:
    """The number of the most demanding level that the processor can run; 0 needs nothing."""
    lines = [f"define internal i32 @{entry.prefix}_level() {entry.attributes} {{\n"]
    for number in range(count - 1, 0, -1):
        lines.append(f"  %is{number} = call i1 @{entry.prefix}_has{number}()\n")
        lines.append(f"  br i1 %is{number}, label %found{number}, label %below{number}\n")
        lines.append(f"found{number}:\n  ret i32 {number}\nbelow{number}:\n")
    return "".join([*lines, "  ret i32 0\n}\n"])


def _jump(entry: Entry, variants: Sequence[Variant], ending: str) -> str:
    names = ("arena", "in", "out", *(("pf", "ctx") if ending else ()))
    params = ", ".join(f"ptr %{name}" for name in names)
    types = ", ".join("ptr" for _ in names)
    lines = [f"declare hidden i32 @{variant.prefix}_run{ending}({types}) nounwind\n" for variant in variants]
    lines.append(f"\ndefine i32 @{entry.prefix}_run{ending}({params}) {entry.attributes} {{\n{entry.opened()}")
    lines.append(f"  %level_at = getelementptr i8, ptr %base, i32 {LEVEL_AT}\n  %level = load i32, ptr %level_at, align 4\n")
    cases = " ".join(f"i32 {number}, label %level{number}" for number in range(1, len(variants)))
    lines.append(f"  switch i32 %level, label %level0 [{cases}]\n")
    for number, variant in enumerate(variants):
        lines.append(f"level{number}:\n  %status{number} = tail call i32 @{variant.prefix}_run{ending}({params})\n")
        lines.append(f"  ret i32 %status{number}\n")
    return "".join([*lines, "}\n"])
