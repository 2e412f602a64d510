"""IR lines around the call of a step: whether it runs, and how many of its tasks.

Neither divides: some cores have no instruction for it, and a library calls nothing of the compiler's run time.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.program import Limit

Tested = tuple[str, bool]  # IR of the address of a truth value, and what it must be


def guarded(lines: str, number: int, guards: Sequence[Tested]) -> str:
    """The lines, skipped unless all guards hold. number: of the step, for the names. They end in an open block."""
    if not guards:
        return lines
    tests, together = [], ""
    for at, (address, wanted) in enumerate(guards):
        name = f"%g{number}_{at}"
        tests.append(f"  {name}_byte = load i8, ptr {address}, align 1\n")
        tests.append(f"  {name} = icmp {'ne' if wanted else 'eq'} i8 {name}_byte, 0\n")
        if together:
            tests.append(f"  {name}_all = and i1 {together}, {name}\n")
        together = f"{name}_all" if together else name
    jump = f"  br i1 {together}, label %do{number}, label %past{number}\ndo{number}:\n"
    return f"{''.join(tests)}{jump}{lines}  br label %past{number}\npast{number}:\n"


def limited(limit: Limit, tasks: int, number: int, address: str, index: str) -> tuple[str, str]:
    """(lines, value): as many of the tasks as the rows at `address` need. index: i32 or i64."""
    m, shift = limit.scale
    each = tasks // limit.groups
    name = f"%n{number}"
    lines = [
        f"  {name}_rows = load i32, ptr {address}, align 4\n",
        f"  {name}_runs = mul i32 {name}_rows, {m}\n",
        f"  {name}_up = add i32 {name}_runs, {(1 << shift) - 1}\n",
        f"  {name}_needed = lshr i32 {name}_up, {shift}\n",
        f"  {name}_fewer = icmp ult i32 {name}_needed, {limit.groups}\n",
        f"  {name}_some = select i1 {name}_fewer, i32 {name}_needed, i32 {limit.groups}\n",
        f"  {name}_tasks = mul i32 {name}_some, {each}\n",
        f"  {name} = {f'zext i32 {name}_tasks to i64' if index == 'i64' else f'add i32 {name}_tasks, 0'}\n",
    ]
    return "".join(lines), name


def part_lines(tasks: int, parts: int, index: str) -> str:
    """IR lines: %begin and %end of part i32 %number of `parts` runs of tasks, floor(number * tasks / parts). index: i32 or i64.

    Neighbouring parts together have their share of the tasks, to one task: threads may take equal runs of parts.
    """
    each, rest = divmod(tasks, parts)
    lines = [f"  %part = {'zext i32 %number to i64' if index == 'i64' else 'add i32 %number, 0'}\n"]
    lines.append(f"  %next = add {index} %part, 1\n")
    for name, number in (("begin", "%part"), ("end", "%next")):
        lines.append(f"  %{name}_each = mul {index} {number}, {each}\n")
        lines.append(f"  %{name}_scaled = mul {index} {number}, {rest}\n")
        lines.append(f"  %{name}_rest = udiv {index} %{name}_scaled, {parts}\n")
        lines.append(f"  %{name} = add {index} %{name}_each, %{name}_rest\n")
    return "".join(lines)


def limited_part_lines(limited_tasks: str, parts: int, index: str) -> str:
    """As `part_lines` for a number of tasks that is a value; parts: a power of two."""
    shift = parts.bit_length() - 1
    return (
        f"  %part = {'zext i32 %number to i64' if index == 'i64' else 'add i32 %number, 0'}\n"
        f"  %next = add {index} %part, 1\n"
        f"  %before = mul {index} %part, {limited_tasks}\n"
        f"  %through = mul {index} %next, {limited_tasks}\n"
        f"  %begin = lshr {index} %before, {shift}\n"
        f"  %end = lshr {index} %through, {shift}\n"
    )
