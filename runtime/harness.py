"""The program around a library that an emulator runs: reads the inputs, runs the model, writes the outputs. LLVM IR, no C compiler.

It ends with exit status 0, or STATUS plus what NAME_init or NAME_run gave, or SHORT where the inputs ended early. The library's functions are
called through a table that is filled after linking. The way to the system is machine code in the `prologue` data of a function; it is a module
of its own, since the function's body says nothing true to an optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortado.runtime.pc import DATA_DISK, POWER_OFF, READ, SECTOR, TRANSFER, WRITE

STATUS, SHORT, FAULT = 100, 99, 98
MARK = 0x0C0FFEE0  # of a PC's status
TABLE = "cortado_functions"  # pointers: NAME_init, NAME_run
ENTRY = "cortado_start"
INPUT_FILE, OUTPUT_FILE = "input", "output"
_CPACR, _FULL_ACCESS = 0xE000ED88, 0x00F00000  # Armv7-M ARM, B3.2.20: coprocessors 10 and 11, the float unit

# word cortado_system(word number, word a, word b, word c): by architecture, with the numbers of read, write and exit.
_LINUX = {
    "aarch64": ("e80300aae00301aae10302aae20303aa010000d4c0035fd6", 63, 64, 93),
    "arm": ("80402de90070a0e10100a0e10210a0e10320a0e1000000ef8080bde8", 3, 4, 1),
}
_SEMIHOSTING = "abbe7047"  # word cortado_system(word operation, pointer block): bkpt 0xab, bx lr
_OPEN, _WRITE, _READ, _EXIT = 1, 5, 6, 0x20  # Semihosting for AArch32 and AArch64, Arm; the exit is SYS_EXIT_EXTENDED
_READ_BINARY, _WRITE_BINARY, _APPLICATION_EXIT = 1, 5, 0x20026
_START = f"\ndefine hidden void @{ENTRY}() nounwind {{\n  call void @main()\n  ret void\n}}\n"

_LINUX_TEXT = """
declare hidden {index} @cortado_system({index}, {index}, {index}, {index}) nounwind

define internal void @transfer({index} %number, {index} %file, ptr %data, {index} %count) nounwind {{
entry:
  br label %loop
loop:
  %at = phi {index} [ 0, %entry ], [ %next, %more ]
  %left = sub {index} %count, %at
  %some = icmp ne {index} %left, 0
  br i1 %some, label %part, label %done
part:
  %place = getelementptr i8, ptr %data, {index} %at
  %address = ptrtoint ptr %place to {index}
  %moved = call {index} @cortado_system({index} %number, {index} %file, {index} %address, {index} %left)
  %good = icmp sgt {index} %moved, 0
  br i1 %good, label %more, label %short
more:
  %next = add {index} %at, %moved
  br label %loop
short:
  call void @leave(i32 {short})
  br label %done
done:
  ret void
}}

define internal void @take(ptr %data, {index} %count) nounwind {{
  call void @transfer({index} {read}, {index} 0, ptr %data, {index} %count)
  ret void
}}

define internal void @give(ptr %data, {index} %count) nounwind {{
  call void @transfer({index} {write}, {index} 1, ptr %data, {index} %count)
  ret void
}}

define internal void @leave(i32 %status) nounwind {{
  %wide = {exit_word}
  %never = call {index} @cortado_system({index} {exit}, {index} %wide, {index} 0, {index} 0)
  ret void
}}
"""

_BOARD_TEXT = """
declare hidden i32 @cortado_system(i32, ptr) nounwind

@files = internal global [2 x i32] zeroinitializer
@input_name = internal constant {input}
@output_name = internal constant {output}

define internal i32 @call3(i32 %operation, i32 %a, i32 %b, i32 %c) nounwind {{
  %block = alloca [3 x i32], align 4
  store volatile i32 %a, ptr %block
  %second = getelementptr i8, ptr %block, i32 4
  store volatile i32 %b, ptr %second
  %third = getelementptr i8, ptr %block, i32 8
  store volatile i32 %c, ptr %third
  %result = call i32 @cortado_system(i32 %operation, ptr %block)
  ret i32 %result
}}

define internal void @transfer(i32 %operation, i32 %file, ptr %data, i32 %count) nounwind {{
  %address = ptrtoint ptr %data to i32
  %left = call i32 @call3(i32 %operation, i32 %file, i32 %address, i32 %count)
  %good = icmp eq i32 %left, 0
  br i1 %good, label %done, label %short
short:
  call void @leave(i32 {short})
  br label %done
done:
  ret void
}}

define internal void @take(ptr %data, i32 %count) nounwind {{
  %file = load i32, ptr @files
  call void @transfer(i32 {read}, i32 %file, ptr %data, i32 %count)
  ret void
}}

define internal void @give(ptr %data, i32 %count) nounwind {{
  %place = getelementptr i8, ptr @files, i32 4
  %file = load i32, ptr %place
  call void @transfer(i32 {write}, i32 %file, ptr %data, i32 %count)
  ret void
}}

define internal void @leave(i32 %status) nounwind {{
  %never = call i32 @call3(i32 {exit}, i32 {reason}, i32 %status, i32 0)
  ret void
}}

define hidden void @cortado_fault() nounwind {{
  call void @leave(i32 {fault})
  ret void
}}
"""

# The firmware's services are called by address. Sector 0 of the data disk is the status, behind MARK; data are whole sectors.
_PC_TEXT = """
@sector = internal global i64 {first}
@report = internal global [{block} x i8] zeroinitializer, align 64

define internal void @transfer(ptr %data, i64 %count, i64 %command) nounwind {{
  %rest = add i64 %count, {rest}
  %sectors = udiv i64 %rest, {block}
  %first = load i64, ptr @sector
  call void inttoptr (i64 {transfer} to ptr)(ptr %data, i64 %first, i64 %sectors, i64 %command)
  %next = add i64 %first, %sectors
  store i64 %next, ptr @sector
  ret void
}}

define internal void @take(ptr %data, i64 %count) nounwind {{
  call void @transfer(ptr %data, i64 %count, i64 {read})
  ret void
}}

define internal void @give(ptr %data, i64 %count) nounwind {{
  call void @transfer(ptr %data, i64 %count, i64 {write})
  ret void
}}

define internal void @leave(i32 %status) nounwind {{
  store i32 {mark}, ptr @report
  %place = getelementptr i8, ptr @report, i64 4
  store i32 %status, ptr %place
  store i64 {status_sector}, ptr @sector
  call void @give(ptr @report, i64 {block})
  call void inttoptr (i64 {off} to ptr)()
  ret void
}}
"""


def linux_harness(
    architecture: str, triple: str, index: str, arena: int, weights: int, inputs: Sequence[int], outputs: Sequence[int]
) -> list[tuple[str, str]]:
    """Modules, (name, LLVM IR). architecture: "aarch64" or "arm". index: the IR type of a pointer's width. arena, inputs, outputs: bytes.

    weights: bytes of a separate file, 0 where they are linked. Standard input brings weights and inputs, standard output takes the outputs.
    """
    code, read, write, exit_ = _LINUX[architecture]
    exit_word = "zext i32 %status to i64" if index == "i64" else "add i32 %status, 0"
    system = _LINUX_TEXT.format(index=index, read=read, write=write, exit=exit_, exit_word=exit_word, short=SHORT)
    main = _main(index, arena, weights, inputs, outputs)
    params = ", ".join([index] * 4)
    return [("harness", f'target triple = "{triple}"\n{system}{main}{_START}'), _machine_code(triple, index, params, code)]


def microcontroller_harness(
    triple: str, fpu: bool, arena: int, weights: int, inputs: Sequence[int], outputs: Sequence[int]
) -> list[tuple[str, str]]:
    """Modules, (name, LLVM IR), for Cortex-M with Arm semihosting, sizes as in `linux_harness`.

    The data are files INPUT_FILE and OUTPUT_FILE in the emulator's folder.
    """
    system = _BOARD_TEXT.format(
        read=_READ, write=_WRITE, exit=_EXIT, reason=_APPLICATION_EXIT, short=SHORT, fault=FAULT,
        input=_c_string(INPUT_FILE), output=_c_string(OUTPUT_FILE),
    )  # fmt: skip
    access = f"  store volatile i32 {_FULL_ACCESS}, ptr inttoptr (i32 {_signed(_CPACR)} to ptr)\n" if fpu else ""
    start = f"""
define hidden void @{ENTRY}() nounwind {{
{access}  %input = call i32 @call3(i32 {_OPEN}, i32 ptrtoint (ptr @input_name to i32), i32 {_READ_BINARY}, i32 {len(INPUT_FILE)})
  store i32 %input, ptr @files
  %output = call i32 @call3(i32 {_OPEN}, i32 ptrtoint (ptr @output_name to i32), i32 {_WRITE_BINARY}, i32 {len(OUTPUT_FILE)})
  %place = getelementptr i8, ptr @files, i32 4
  store i32 %output, ptr %place
  call void @main()
  ret void
}}
"""
    main = _main("i32", arena, weights, inputs, outputs)
    return [
        ("harness", f'target triple = "{triple}"\n{system}{main}{start}'),
        _machine_code(triple, "i32", "i32, ptr", _SEMIHOSTING),
    ]


def pc_harness(triple: str, arena: int, weights: int, inputs: Sequence[int], outputs: Sequence[int]) -> list[tuple[str, str]]:
    """Modules, (name, LLVM IR), for the firmware of `pc`, sizes as in `linux_harness`.

    The data disk has the status in sector 0, then weights, inputs and outputs, each from a sector of its own on.
    """
    system = _PC_TEXT.format(
        first=DATA_DISK + 1, status_sector=DATA_DISK, block=SECTOR, rest=SECTOR - 1, transfer=TRANSFER, off=POWER_OFF, read=READ,
        write=WRITE, mark=MARK,
    )  # fmt: skip
    main = _main("i64", arena, weights, inputs, outputs, SECTOR)
    return [("harness", f'target triple = "{triple}"\n{system}{main}{_START}')]


def _main(index: str, arena: int, weights: int, inputs: Sequence[int], outputs: Sequence[int], block: int = 1) -> str:
    """Reads everything, calls init and run, writes everything, leaves. block: what all data have room for multiples of, in bytes."""
    pointer = 8 if index == "i64" else 4
    tensors = [(f"in{i}", nbytes) for i, nbytes in enumerate(inputs)] + [(f"out{i}", nbytes) for i, nbytes in enumerate(outputs)]
    # not 0, so that the table lies in a section with contents
    lines = [
        f"@{TABLE} = hidden global [2 x ptr] [ptr inttoptr ({index} 1 to ptr), ptr inttoptr ({index} 1 to ptr)], align {pointer}"
    ]
    for name, nbytes in [("arena", arena), *([("blob", weights)] if weights else []), *tensors]:
        lines.append(f"@{name} = internal global [{-(-max(nbytes, 1) // block) * block} x i8] zeroinitializer, align 64")
    lines += ["", "define internal void @main() nounwind noinline {", "entry:"]
    for side, sizes in (("in", inputs), ("out", outputs)):
        lines.append(f"  %{side} = alloca [{max(len(sizes), 1)} x ptr], align {pointer}")
        for i in range(len(sizes)):
            lines.append(f"  %{side}{i} = getelementptr i8, ptr %{side}, i32 {i * pointer}")
            lines.append(f"  store ptr @{side}{i}, ptr %{side}{i}, align {pointer}")
    if weights:
        lines.append(f"  call void @take(ptr @blob, {index} {weights})")
    lines += [f"  call void @take(ptr @in{i}, {index} {nbytes})" for i, nbytes in enumerate(inputs) if nbytes]
    lines += [
        f"  %init = load volatile ptr, ptr @{TABLE}, align {pointer}",
        f"  %run_at = getelementptr i8, ptr @{TABLE}, i32 {pointer}",
        f"  %run = load volatile ptr, ptr %run_at, align {pointer}",
        f"  %prepared = call i32 %init(ptr @arena, ptr {'@blob' if weights else 'null'})",
        "  %ready = icmp eq i32 %prepared, 0",
        "  br i1 %ready, label %go, label %bad",
        "go:",
        "  %status = call i32 %run(ptr @arena, ptr %in, ptr %out)",
        "  %fine = icmp eq i32 %status, 0",
        "  br i1 %fine, label %end, label %bad",
        "bad:",
        "  %code = phi i32 [ %prepared, %entry ], [ %status, %go ]",
        f"  %failed = add i32 %code, {STATUS}",
        "  call void @leave(i32 %failed)",
        "  ret void",
        "end:",
    ]
    lines += [f"  call void @give(ptr @out{i}, {index} {nbytes})" for i, nbytes in enumerate(outputs) if nbytes]
    return "\n".join([*lines, "  call void @leave(i32 0)", "  ret void", "}", ""])


def _c_string(text: str) -> str:
    return f'[{len(text) + 1} x i8] c"{text}\\00"'


def _machine_code(triple: str, word: str, params: str, code: str) -> tuple[str, str]:
    data = bytes.fromhex(code)
    prologue = f'prologue [{len(data)} x i8] c"{"".join(f"{chr(92)}{byte:02x}" for byte in data)}"'
    define = f"define hidden {word} @cortado_system({params}) noinline optnone nounwind {prologue} {{\n  ret {word} 0\n}}\n"
    return "system", f'target triple = "{triple}"\n\n{define}'


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
