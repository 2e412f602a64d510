"""The entry points of a library as LLVM IR text: NAME_init, NAME_run and NAME_run_threads.

The arena, aligned up inside, starts with a header that NAME_init writes: the model's hash, then the address of the weights. NAME_run is
straight code: one call of a driver per step. NAME_run_threads calls the drivers of steps with enough work through the caller's
parallel_for, in parts fixed here. It is a module, so an object, of its own: a program that never names it does not link it.

Kernels may use instructions that the processor lacks; these functions must say so, not crash, and are compiled for the base instruction set.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cortado.backends.conditions import guarded, limited, limited_part_lines, part_lines
from cortado.backends.probe import probe_checks, probe_declarations, probe_functions, probe_of
from cortado.backends.status import ECPU, EINIT, EWEIGHTS
from cortado.backends.weights import HASH_AT, HEADER_BYTES, MAGIC, SIZE_AT, weights_symbol
from cortado.compiler.program import ALIGNMENT, Argument, Program, Step
from cortado.compiler.target import Target

ARENA_HEADER = ALIGNMENT  # bytes: model hash (u64), weights pointer, level
WEIGHTS_AT = 8
LEVEL_AT = 16  # of libraries for several levels: the number of the one that NAME_init chose (i32)
WEIGHTS_ALIGNMENT = 8  # bytes: the widest element that a kernel loads

# A hand-over to other threads costs a few microseconds: a part must be worth it. Work is counted in multiply-adds, a byte read or
# written as four of them.
PART_WORK = 100_000
BYTE_WORK = 4
PARTS_PER_THREAD = 4  # so that threads that started late or run slower get less
FEWEST_PARTS = 12  # splits evenly among 2, 3, 4 or 6 threads, whatever number the plan was tuned for


@dataclass(frozen=True)
class EntryModule:
    """name: of the object in the library. symbols: what it defines for other objects, as in C."""

    name: str
    text: str
    symbols: tuple[str, ...]


def arena_bytes(program: Program) -> int:
    """Bytes a caller must give: header, buffers and slack for any alignment."""
    return ARENA_HEADER + program.arena_bytes + ALIGNMENT - 1


def entry_modules(
    program: Program, target: Target, prefix: str, model_hash: int, linked: bool, threads: int
) -> tuple[EntryModule, ...]:
    """linked: the weights are an object of the library. threads: the number that parts are tuned for; any number runs."""
    entry = Entry(program, target, prefix, model_hash)
    modules = [
        EntryModule(
            f"{prefix}.o", entry.module(start_function(entry, linked), run_function(entry)), (f"{prefix}_init", f"{prefix}_run")
        ),
        EntryModule(f"{prefix}_threads.o", entry.module(*run_threads_functions(entry, threads)), (f"{prefix}_run_threads",)),
    ]
    if probe_of(target) is not None:
        head = f'target triple = "{target.triple}"\n\n'
        modules.append(EntryModule(f"{prefix}_cpu.o", head + probe_functions(prefix), (f"{prefix}_cpuid", f"{prefix}_xgetbv")))
    return tuple(modules)


def parts_of(step: Step, program: Program, threads: int) -> int:
    """Into how many parts NAME_run_threads splits a step; 1 means that the calling thread does it alone."""
    touched = sum(program.buffers[a.buffer].nbytes for a in step.args)
    work = step.macs + BYTE_WORK * touched
    parts = max(1, min(step.tasks, work // PART_WORK, max(FEWEST_PARTS, PARTS_PER_THREAD * threads)))
    return parts if step.limit is None else 1 << (parts.bit_length() - 1)  # cut at run time, without a division


def location_of(argument: Argument, program: Program) -> tuple[str, int]:
    """Where a step's pointer points to: bytes from "base", the aligned start of the arena, "weights", behind their header, "in0" or "out0"."""
    buffer = program.buffers[argument.buffer]
    return {
        "input": (f"in{buffer.offset}", argument.offset),
        "output": (f"out{buffer.offset}", argument.offset),
        "arena": ("base", ARENA_HEADER + buffer.offset + argument.offset),
        "weights": ("weights", buffer.offset + argument.offset),
    }[buffer.place]


@dataclass(frozen=True)
class Entry:
    """What the functions of one library share. hidden: NAME_run and NAME_run_threads are seen inside of the library only."""

    program: Program
    target: Target
    prefix: str
    model_hash: int
    hidden: bool = False

    @property
    def linkage(self) -> str:
        return "hidden " if self.hidden else ""

    @property
    def index(self) -> str:
        return f"i{self.target.pointer_bits}"

    @property
    def attributes(self) -> str:
        """Frames are reported as those of kernels are."""
        base = ' "target-cpu"="x86-64" "target-features"="+sse2"' if self.target.triple.startswith("x86_64") else ""
        return f'nounwind "no-builtins" "no-stack-arg-probe" "frame-pointer"="none" "warn-stack-size"="0"{base}'

    def module(self, *functions: str) -> str:
        body = "\n".join(functions)
        drivers = {f"{self.prefix}_{s.kernel.name}": s for s in self.program.steps}
        declared = "".join(
            f"declare hidden void @{name}({', '.join(['ptr'] * len(step.args) + [self.index] * 2)}) nounwind\n"
            for name, step in sorted(drivers.items())
            if f"@{name}(" in body
        )
        return f'target triple = "{self.target.triple}"\n\n{declared}\n{body}'

    def aligned(self) -> str:
        """IR lines: %base, the arena's first aligned address."""
        n, index = ALIGNMENT, self.index
        return (
            f"  %address = ptrtoint ptr %arena to {index}\n"
            f"  %negative = sub {index} 0, %address\n"
            f"  %slack = and {index} %negative, {n - 1}\n"
            f"  %base = getelementptr i8, ptr %arena, {index} %slack\n"
        )

    def opened(self) -> str:
        """IR lines: leave with EINIT unless NAME_init prepared %arena; then %weights. They end in an open block."""
        return (
            f"{self.aligned()}"
            f"  %mark = load i64, ptr %base, align 8\n"
            f"  %initialised = icmp eq i64 %mark, {_signed(self.model_hash)}\n"
            f"  br i1 %initialised, label %run, label %refuse\n"
            f"refuse:\n"
            f"  ret i32 {EINIT}\n"
            f"run:\n"
            f"  %place = getelementptr i8, ptr %base, i32 {WEIGHTS_AT}\n"
            f"  %weights = load ptr, ptr %place, align 8\n"
        )

    def interface(self, steps: Sequence[Step]) -> str:
        """IR lines that load the addresses of the inputs and outputs that the steps use."""
        buffers = [self.program.buffers[a.buffer] for s in steps for a in s.touched]
        pointer = self.target.pointer_bits // 8
        lines = []
        for place, array in (("input", "in"), ("output", "out")):
            for position in sorted({b.offset for b in buffers if b.place == place}):
                lines.append(f"  %{array}{position}_at = getelementptr i8, ptr %{array}, i32 {position * pointer}\n")
                lines.append(f"  %{array}{position} = load ptr, ptr %{array}{position}_at, align {pointer}\n")
        return "".join(lines)

    def address(self, name: str, argument: Argument) -> str:
        """The IR line that makes `name` the argument's address, given %base, %weights and the interface's addresses."""
        start, offset = location_of(argument, self.program)
        return f"  {name} = getelementptr i8, ptr %{start}, {self.index} {offset}\n"

    def whole(self, step: Step, number: int) -> str:
        """IR lines that do all of a step that is to be done now, on this thread."""
        lines, tasks = self.tasks(step, number)
        return self.guarded(step, number, lines + self.call(step, number, "0", tasks))

    def guarded(self, step: Step, number: int, lines: str) -> str:
        """The lines, run only where the step's guards hold."""
        names = [f"%s{number}_guard{at}" for at in range(len(step.guards))]
        places = "".join(self.address(name, guard.place) for name, guard in zip(names, step.guards, strict=True))
        return places + guarded(lines, number, [(n, g.wanted) for n, g in zip(names, step.guards, strict=True)])

    def tasks(self, step: Step, number: int) -> tuple[str, str]:
        """IR lines, and the value or number of the tasks to do."""
        if step.limit is None:
            return "", str(step.tasks)
        name = f"%s{number}_count"
        lines, value = limited(step.limit, step.tasks, number, name, self.index)
        return self.address(name, step.limit.count) + lines, value

    def call(self, step: Step, number: int, begin: str, end: str) -> str:
        """IR lines that call the step's driver for the tasks begin..end-1, given what `address` needs."""
        lines, args = [], []
        for position, argument in enumerate(step.args):
            name = f"%s{number}_{position}"
            lines.append(self.address(name, argument))
            args.append(f"ptr {name}")
        args += [f"{self.index} {begin}", f"{self.index} {end}"]
        lines.append(f"  call void @{self.prefix}_{step.kernel.name}({', '.join(args)})\n")
        return "".join(lines)


def start_function(entry: Entry, linked: bool, more: str = "") -> str:
    """NAME_init. linked: the weights are an object of the library. more: IR lines that prepare more of the arena, at %base."""
    prefix, index = entry.prefix, entry.index
    probe = probe_of(entry.target)
    parts = []
    if linked:
        parts.append(f"@{weights_symbol(prefix)} = external hidden constant i8, align {ALIGNMENT}\n\n")
    if probe is not None:
        parts.append(probe_declarations(prefix))
    parts.append(f"define i32 @{prefix}_init(ptr %arena, ptr %weights) {entry.attributes} {{\n")
    if probe is not None:
        parts.append(probe_checks(probe, prefix, "no_cpu"))
    given = "%weights"
    if linked:
        given = "%blob"
        parts.append("  %none = icmp eq ptr %weights, null\n")
        parts.append(f"  %blob = select i1 %none, ptr @{weights_symbol(prefix)}, ptr %weights\n")
    parts.append(
        f"  %weights_address = ptrtoint ptr {given} to {index}\n"
        f"  %unaligned = and {index} %weights_address, {WEIGHTS_ALIGNMENT - 1}\n"
        f"  %is_aligned = icmp eq {index} %unaligned, 0\n"
        f"  %is_given = icmp ne ptr {given}, null\n"
        f"  %readable = and i1 %is_given, %is_aligned\n"
        f"  br i1 %readable, label %look, label %no_weights\n"
        f"look:\n"
    )
    expected = ((0, int.from_bytes(MAGIC, "little")), (HASH_AT, entry.model_hash), (SIZE_AT, len(entry.program.weights)))
    for n, (at, value) in enumerate(expected):
        parts.append(
            f"  %field{n} = getelementptr i8, ptr {given}, i32 {at}\n"
            f"  %found{n} = load i64, ptr %field{n}, align 8\n"
            f"  %same{n} = icmp eq i64 %found{n}, {_signed(value)}\n"
        )
    parts.append(
        f"  %same01 = and i1 %same0, %same1\n"
        f"  %same = and i1 %same01, %same2\n"
        f"  br i1 %same, label %prepare, label %no_weights\n"
        f"prepare:\n"
        f"{entry.aligned()}"
        f"  %place = getelementptr i8, ptr %base, i32 {WEIGHTS_AT}\n"
        f"  %payload = getelementptr i8, ptr {given}, i32 {HEADER_BYTES}\n"
        f"  store ptr %payload, ptr %place, align 8\n"
        f"{more}"
        f"  store i64 {_signed(entry.model_hash)}, ptr %base, align 8\n"
        f"  ret i32 0\n"
        f"no_weights:\n"
        f"  ret i32 {EWEIGHTS}\n"
    )
    if probe is not None:
        parts.append(f"no_cpu:\n  ret i32 {ECPU}\n")
    return "".join(parts) + "}\n"


def run_function(entry: Entry) -> str:
    steps = entry.program.steps
    calls = "".join(entry.whole(step, number) for number, step in enumerate(steps))
    return (
        f"define {entry.linkage}i32 @{entry.prefix}_run(ptr %arena, ptr %in, ptr %out) {entry.attributes} {{\n"
        f"{entry.opened()}{entry.interface(steps)}{calls}  ret i32 0\n}}\n"
    )


_SHARED = ("base", "weights", "in", "out")  # what a task gets through its argument, in this order


def run_threads_functions(entry: Entry, threads: int) -> list[str]:
    """The function, and one task function for each step that is split."""
    pointer = entry.target.pointer_bits // 8
    steps = entry.program.steps
    parts = [parts_of(step, entry.program, threads) for step in steps]
    functions, body = [], []
    if max(parts, default=1) > 1:
        body.append(f"  %shared = alloca [{len(_SHARED)} x ptr], align {pointer}\n")
    body.append(entry.opened())
    if max(parts, default=1) > 1:
        for n, name in enumerate(_SHARED):
            body.append(f"  %shared_{name} = getelementptr i8, ptr %shared, i32 {n * pointer}\n")
            body.append(f"  store ptr %{name}, ptr %shared_{name}, align {pointer}\n")
    body.append(entry.interface([step for step, count in zip(steps, parts, strict=True) if count == 1 or step.guards]))
    for number, (step, count) in enumerate(zip(steps, parts, strict=True)):
        if count == 1:
            body.append(entry.whole(step, number))
        else:
            functions.append(_task(entry, step, number, count))
            call = f"  call void %pf(ptr %ctx, ptr @{_task_name(entry, number)}, ptr %shared, i32 {count})\n"
            body.append(entry.guarded(step, number, call))
    name, params = f"{entry.prefix}_run_threads", "ptr %arena, ptr %in, ptr %out, ptr %pf, ptr %ctx"
    head = f"define {entry.linkage}i32 @{name}({params}) {entry.attributes} {{\n"
    return [*functions, head + "".join(body) + "  ret i32 0\n}\n"]


def _task_name(entry: Entry, number: int) -> str:
    return f"{entry.prefix}_task{number}"


def _task(entry: Entry, step: Step, number: int, parts: int) -> str:
    """void task(void *shared, int part)."""
    pointer = entry.target.pointer_bits // 8
    lines = [f"define internal void @{_task_name(entry, number)}(ptr %shared, i32 %number) {entry.attributes} {{\n"]
    for n, name in enumerate(_SHARED):
        lines.append(f"  %shared_{name} = getelementptr i8, ptr %shared, i32 {n * pointer}\n")
        lines.append(f"  %{name} = load ptr, ptr %shared_{name}, align {pointer}\n")
    lines.append(entry.interface([step]))
    counted, tasks = entry.tasks(step, number)
    own = part_lines(step.tasks, parts, entry.index) if step.limit is None else limited_part_lines(tasks, parts, entry.index)
    return "".join(lines) + counted + own + entry.call(step, number, "%begin", "%end") + "  ret void\n}\n"


def _signed(word: int) -> int:
    return struct.unpack("<q", struct.pack("<Q", word))[0]
