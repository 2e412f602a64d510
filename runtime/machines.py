"""Machines that emulators give: how a linked bundle becomes a program for one, and what the emulator's end says."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cortado.backends.codegen import compile_modules
from cortado.compiler.target import Target
from cortado.errors import TargetError
from cortado.runtime import pc
from cortado.runtime.archive import read_archive
from cortado.runtime.bundle import Bundle
from cortado.runtime.elf import EXEC, ElfObject, read_object
from cortado.runtime.harness import (
    ENTRY,
    FAULT,
    INPUT_FILE,
    MARK,
    OUTPUT_FILE,
    TABLE,
    linux_harness,
    microcontroller_harness,
    pc_harness,
)  # fmt: skip
from cortado.runtime.image import Segment, write_executable
from cortado.runtime.link import Region, link, place

SECONDS = 3600  # before an emulated run counts as stuck
_MB = 1 << 20
_VECTORS = 64  # bytes: the first sixteen exception vectors of a Cortex-M
_PROGRAM = "program"


@dataclass(frozen=True)
class Ended:
    """status: as in `harness`. said: what the emulator wrote about it. outputs: their bytes, one after another, where status is 0."""

    status: int
    said: str
    outputs: bytes


class Machine(Protocol):
    """program: the emulator's. packages: of Debian and Ubuntu, that bring it. block: weights, inputs and outputs are each filled up to
    a multiple of so many bytes.
    """

    @property
    def program(self) -> str: ...

    @property
    def packages(self) -> str: ...

    @property
    def block(self) -> int: ...

    def files(self, bundle: Bundle, target: Target) -> dict[str, bytes]:
        """What the emulator needs, by name: the bundle linked with what feeds it. Raises TargetError where memory is too small."""

    def execute(self, emulator: str, folder: Path, given: bytes, nbytes: int) -> Ended:
        """Run in a folder with the files. emulator: path of its program. given: separate weights and inputs. nbytes: of the outputs.

        Raises subprocess.TimeoutExpired after SECONDS.
        """


@dataclass(frozen=True)
class LinuxMachine:
    """User-mode emulation. program: QEMU's for the architecture."""

    program: str
    packages: str = "qemu-user"
    block: int = 1

    def files(self, bundle: Bundle, target: Target) -> dict[str, bytes]:
        harness = linux_harness(target.family, target.triple, f"i{target.pointer_bits}", *_sizes(bundle))
        regions = [Region(0x400000, 0x20000000, False), Region(0x40000000, 0x40000000, True)]
        objects, addresses, segments = _linked(bundle, target, harness, regions)
        return {_PROGRAM: _executable(objects[0], segments, addresses[ENTRY])}

    def execute(self, emulator: str, folder: Path, given: bytes, nbytes: int) -> Ended:
        (folder / _PROGRAM).chmod(0o700)
        done = _call([emulator, "-cpu", "max", _PROGRAM], folder, given)
        return Ended(done.returncode, done.stderr.decode(errors="replace"), done.stdout)


@dataclass(frozen=True)
class BoardMachine:
    """An Arm MPS board. start: where the vectors lie. code, data: (start, bytes) of the memories to fill, in this order."""

    board: str
    start: int
    code: tuple[tuple[int, int], ...]
    data: tuple[tuple[int, int], ...]
    program: str = "qemu-system-arm"
    packages: str = "qemu-system-arm"
    block: int = 1

    def files(self, bundle: Bundle, target: Target) -> dict[str, bytes]:
        """The first data memory ends in the stack."""
        harness = microcontroller_harness(target.triple, target.fpu, *_sizes(bundle))
        code = [Region(start, nbytes, False) for start, nbytes in self.code]
        code[0] = Region(self.start + _VECTORS, code[0].nbytes - _VECTORS, False)
        (start, nbytes), *others = self.data
        data = [Region(start, nbytes - _stack(bundle), True), *(Region(at, size, True) for at, size in others)]
        objects, addresses, segments = _linked(bundle, target, harness, [*code, *data])
        vectors = struct.pack("<16I", start + nbytes, addresses[ENTRY] | 1, *[addresses["cortado_fault"] | 1] * 14)
        table = Segment(self.start, vectors, _VECTORS, False)
        return {_PROGRAM: _executable(objects[0], [table, *segments], addresses[ENTRY] | 1)}

    def execute(self, emulator: str, folder: Path, given: bytes, nbytes: int) -> Ended:
        (folder / INPUT_FILE).write_bytes(given)
        quiet = ["-display", "none", "-serial", "null", "-monitor", "none"]
        semihosting = ["-semihosting-config", "enable=on,target=native"]
        done = _call([emulator, "-M", self.board, *quiet, *semihosting, "-kernel", _PROGRAM], folder, b"")
        output = folder / OUTPUT_FILE
        return Ended(done.returncode, done.stderr.decode(errors="replace"), output.read_bytes() if output.exists() else b"")


# Sound and pictures are left out. The fewer instructions a second of emulated time has, the fewer pass while a disk is slow.
_BOCHS = """\
plugin_ctrl: speaker=0
sound: driver=dummy
config_interface: textconfig
display_library: term
cpu: model={model}, ips=1000000, reset_on_triple_fault=0
memory: guest={megabytes}, host={megabytes}
romimage: file=rom
ata0-master: type=disk, mode=flat, path=program
ata0-slave: type=disk, mode=flat, path=data
log: log
panic: action=fatal
error: action=ignore
info: action=ignore
"""


@dataclass(frozen=True)
class PcMachine:
    """A 64-bit PC without a system. model: a processor that Bochs knows. state: of XCR0, the registers that are switched on; or 0.

    strict: refuse what Bochs misreads, for answers that nobody checks.
    """

    model: str = "tigerlake"  # the only one, besides Ice Lake, with VNNI
    state: int = pc.ALL_STATE
    strict: bool = True
    program: str = "bochs"
    packages: str = "bochs and bochs-term"
    block: int = pc.SECTOR

    def files(self, bundle: Bundle, target: Target) -> dict[str, bytes]:
        """Code is below 512 MiB, data above, and the stack behind them."""
        sections = [section for _, data in read_archive(bundle.library) for section in read_object(data).sections]
        if self.strict and any(pc.misread(section.data) for section in sections if section.flags & EXEC):
            raise TargetError(
                f"{bundle.manifest.name} is compiled for {target.name}; Bochs would execute some of its instructions wrongly "
                "(vpinsrb, vpextrw)"
            )
        harness = pc_harness(target.triple, *_sizes(bundle))
        regions = [Region(_MB, 511 * _MB, False), Region(512 * _MB, 2048 * _MB, True)]
        _, addresses, segments = _linked(bundle, target, harness, regions)
        loads, program = [], b""
        for segment in segments:
            part = segment.data + bytes(-len(segment.data) % pc.SECTOR)
            loads.append(pc.Load(segment.address, len(program) // pc.SECTOR, len(part) // pc.SECTOR))
            program += part
        top = max(segment.address + segment.nbytes for segment in segments) + _stack(bundle)
        megabytes = -(-top // _MB)
        rom = pc.firmware([load for load in loads if load.sectors], addresses[ENTRY], megabytes * _MB, self.state)
        settings = _BOCHS.format(model=self.model, megabytes=megabytes)
        return {_PROGRAM: program.ljust(pc.disk_bytes(len(program)), b"\0"), "rom": rom, "bochsrc": settings.encode()}

    def execute(self, emulator: str, folder: Path, given: bytes, nbytes: int) -> Ended:
        """The status is on the data disk, since Bochs has none. It waits for the word to go on where it was built as a debugger."""
        disk = folder / "data"
        with disk.open("wb") as file:
            file.write(bytes(pc.SECTOR) + given)
            file.truncate(pc.disk_bytes(pc.SECTOR + len(given) + nbytes))
        done = _call([emulator, "-q", "-f", "bochsrc"], folder, b"c\n", {"TERM": "linux"})
        with disk.open("rb") as file:
            mark, status = struct.unpack("<II", file.read(8))
            file.seek(pc.SECTOR + len(given))
            outputs = file.read(nbytes)
        _, _, reason = done.stderr.decode(errors="replace").partition("following message:\n")
        return Ended(status if mark == MARK else FAULT, reason.partition("\n")[0], outputs)


def _call(
    command: Sequence[str], folder: Path, given: bytes, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=SECONDS, check=False, env=variables)


def _stack(bundle: Bundle) -> int:
    """Bytes for the bundle's stack and the harness's, in whole pages."""
    return -(-(bundle.manifest.sizes.stack + 4096) // 4096) * 4096


def _sizes(bundle: Bundle) -> tuple[int, int, list[int], list[int]]:
    manifest = bundle.manifest
    weights = len(bundle.weights or b"")
    return (
        manifest.sizes.arena,
        weights,
        [info.nbytes for _, info in manifest.inputs],
        [info.nbytes for _, info in manifest.outputs],
    )


def _executable(one: ElfObject, segments: Sequence[Segment], entry: int) -> bytes:
    return write_executable(segments, entry, one.machine, one.flags, one.wide)


def _linked(
    bundle: Bundle, target: Target, harness: list[tuple[str, str]], regions: Sequence[Region]
) -> tuple[list[ElfObject], dict[str, int], list[Segment]]:
    """The harness and the library's objects in the regions; raises TargetError where they do not fit."""
    made = compile_modules(harness, target)
    objects = [*(read_object(item.data) for item in made), *(read_object(data) for _, data in read_archive(bundle.library))]
    layout = place(objects, regions)
    memory = [bytearray(nbytes) for nbytes in layout.filled]
    addresses = link(objects, regions, layout, [memoryview(part) for part in memory])
    name = bundle.manifest.name
    pointers = struct.pack("<2Q" if objects[0].wide else "<2I", addresses[f"{name}_init"], addresses[f"{name}_run"])
    for region, part in zip(regions, memory, strict=True):
        at = addresses[TABLE] - region.start
        if 0 <= at < len(part):
            part[at : at + len(pointers)] = pointers
    used = zip(regions, memory, layout.used, strict=True)
    return objects, addresses, [Segment(r.start, bytes(part), nbytes, r.writable) for r, part, nbytes in used if nbytes]
