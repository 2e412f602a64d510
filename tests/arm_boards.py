"""Small C programs on emulated Arm machines, with given objects linked in: Cortex-M boards (bare metal) and 64-bit Linux."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Board:
    """code, ram: (address, KiB). flags: the core, for gcc. More RAM of `large` KiB, if any, is section .large."""

    machine: str
    code: tuple[int, int]
    ram: tuple[int, int]
    flags: tuple[str, ...]
    large: tuple[int, int] = (0, 0)
    fpu: str = ""


_ZBT, _SSRAM, _PSRAM = (0, 4096), (0x20000000, 4096), (0x21000000, 16384)
BOARDS: Mapping[str, Board] = {
    "cortex-m0": Board("microbit", (0, 256), (0x20000000, 16), ("-mcpu=cortex-m0",)),
    "cortex-m3": Board("mps2-an385", _ZBT, _SSRAM, ("-mcpu=cortex-m3",), _PSRAM),
    "cortex-m4": Board("mps2-an386", _ZBT, _SSRAM, ("-mcpu=cortex-m4",), _PSRAM, "fpv4-sp-d16"),
    "cortex-m7": Board("mps2-an500", _ZBT, _SSRAM, ("-mcpu=cortex-m7",), _PSRAM, "fpv5-sp-d16"),
    "cortex-m33": Board("mps2-an505", (0x10000000, 4096), (0x38000000, 4096), ("-mcpu=cortex-m33",), (0, 0), "fpv5-sp-d16"),
    "cortex-m55": Board("mps3-an547", (0, 512), (0x20000000, 512), ("-march=armv8.1-m.main+mve.fp",), (0, 0), "auto"),
}

HEADER = """
#include <stddef.h>
#include <stdint.h>
void put(const char *text);
void put_hex(uint32_t number);                     /* eight digits and a newline */
void put_words(const void *words, size_t count);   /* put_hex of each */
"""

_START = r"""
#include "board.h"
extern uint32_t bss_start[], bss_end[], stack_top[];
int main(void);

static int host(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static void leave(uint32_t status) {
  uint32_t why[2] = {0x20026, status};
  host(0x20, why);
  for (;;) {}
}

void put(const char *text) { host(0x04, text); }

void put_hex(uint32_t number) {
  char text[10];
  for (int i = 0; i < 8; i++) text[i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15];
  text[8] = '\n';
  text[9] = 0;
  put(text);
}

void put_words(const void *words, size_t count) {
  for (size_t i = 0; i < count; i++) put_hex(((const uint32_t *)words)[i]);
}

void *memcpy(void *to, const void *from, size_t n) {
  volatile unsigned char *t = to;
  const unsigned char *f = from;
  while (n--) *t++ = *f++;
  return to;
}

void *memset(void *to, int value, size_t n) {
  volatile unsigned char *t = to;
  while (n--) *t++ = (unsigned char)value;
  return to;
}

static void fault(void) {
  put("fault\n");
  leave(99);
}

static void start(void) {
#ifdef __ARM_FP
  *(volatile uint32_t *)0xE000ED88 |= 0xF00000;
  __asm__ volatile("dsb\n\tisb");
#endif
  for (uint32_t *p = bss_start; p < bss_end; p++) *p = 0;
  leave((uint32_t)main());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top, start, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, fault};
"""

# QEMU loads every segment where it runs, so initialised data need no copy.
_SCRIPT = """
MEMORY {{ CODE (rx) : ORIGIN = {code}, LENGTH = {code_size}K
         RAM (rwx) : ORIGIN = {ram}, LENGTH = {ram_size}K
         LARGE (rwx) : ORIGIN = {large}, LENGTH = {large_size}K }}
ENTRY(start)
SECTIONS {{
  .text : {{ KEEP(*(.vectors)) *(.text .text.* .rodata .rodata.*) }} > CODE
  .exidx : {{ *(.ARM.exidx* .ARM.extab*) }} > CODE
  .data : {{ *(.data .data.*) }} > RAM
  .bss (NOLOAD) : {{ . = ALIGN(8); bss_start = .; *(.bss .bss.* COMMON) . = ALIGN(8); bss_end = .; }} > RAM
  stack_top = ORIGIN(RAM) + LENGTH(RAM);
  .large (NOLOAD) : {{ *(.large) }} > LARGE
}}
"""


def run_on_mps2(
    c_source: str,
    objects: Sequence[bytes],
    float_abi: str = "hard",
    core: str = "cortex-m4",
    files: Mapping[str, str] | None = None,
    linker: str = "bfd",
) -> str:
    """What the C program prints on the core's board. c_source may include board.h (HEADER) and the `files` (name -> text).

    objects: object files or archives. float_abi: of the program: "hard", "softfp" or "soft". A program that does not link, exits with
    another status than 0 or faults is an AssertionError with its output. Skips where gcc or QEMU is absent. linker: "bfd" or "lld".
    """
    need("arm-none-eabi-gcc", "qemu-system-arm", *(["ld.lld"] if linker == "lld" else []))
    board = BOARDS[core]
    flags = [*board.flags, "-mthumb", f"-mfloat-abi={float_abi if board.fpu else 'soft'}"]
    if board.fpu and float_abi != "soft":
        flags.append(f"-mfpu={board.fpu}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = _SCRIPT.format(
            code=board.code[0], code_size=board.code[1], ram=board.ram[0], ram_size=board.ram[1], large=board.large[0],
            large_size=board.large[1],
        )  # fmt: skip
        texts = {"board.h": HEADER, "start.c": _START, "main.c": c_source, "link.ld": script, **(files or {})}
        inputs = _write(folder, texts, objects)
        usual = ["-O2", "-std=gnu99", "-ffreestanding", "-nostdlib", "-fno-tree-loop-distribute-patterns", "-T", "link.ld"]
        flags += _linker_flags(linker, folder)
        execute(["arm-none-eabi-gcc", *flags, *usual, "start.c", "main.c", *inputs, "-lgcc", "-o", "program"], folder)
        console = ["-nographic", "-monitor", "none", "-serial", "none", "-chardev", "stdio,id=console"]
        semihosting = ["-semihosting-config", "enable=on,target=native,chardev=console"]
        return execute(["qemu-system-arm", "-M", board.machine, *console, *semihosting, "-kernel", "program"], folder)


def run_on_aarch64(
    c_source: str, objects: Sequence[bytes], linker: str = "bfd", cpu: str = "max", files: Mapping[str, str] | None = None
) -> str:
    """What the C program prints on 64-bit Arm Linux. linker: "bfd" or "lld". Otherwise as run_on_mps2, with a C library."""
    need("aarch64-linux-gnu-gcc", "qemu-aarch64", *(["ld.lld"] if linker == "lld" else []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = _write(folder, {"main.c": c_source, **(files or {})}, objects)
        flags = ["-O2", "-std=gnu99", "-static", *_linker_flags(linker, folder)]
        execute(["aarch64-linux-gnu-gcc", *flags, "main.c", *inputs, "-lm", "-o", "program"], folder)
        return execute(["qemu-aarch64", "-cpu", cpu, "./program"], folder)


def _linker_flags(linker: str, folder: Path) -> list[str]:
    if linker == "bfd":
        return []
    (folder / "tools").mkdir()  # gcc looks for another linker in its own folders only
    (folder / "tools" / "ld.lld").symlink_to(str(shutil.which("ld.lld")))
    return ["-fuse-ld=lld", "-Btools"]


def need(*tools: str) -> None:
    """Skip the test unless all the programs are installed."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def execute(command: Sequence[str], folder: Path) -> str:
    """stdout; an AssertionError with all output where the command fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _write(folder: Path, texts: Mapping[str, str], objects: Sequence[bytes]) -> list[str]:
    for name, text in texts.items():
        (folder / name).write_text(text)
    names = []
    for number, data in enumerate(objects):
        names.append(f"object{number}{'.a' if data.startswith(b'!<arch>') else '.o'}")
        (folder / names[-1]).write_bytes(data)
    return names
