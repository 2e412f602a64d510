"""Running a bundle for another machine under QEMU: the objects of its library, byte for byte, linked with a small program around them."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cortado.backends.codegen import compile_modules
from cortado.backends.targets import find_target
from cortado.compiler.target import Target
from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.errors import TargetError
from cortado.runtime.archive import read_archive
from cortado.runtime.bundle import Bundle
from cortado.runtime.elf import ElfObject, read_object
from cortado.runtime.harness import ENTRY, FAULT, INPUT_FILE, OUTPUT_FILE, TABLE, linux_harness, microcontroller_harness
from cortado.runtime.image import Segment, write_executable
from cortado.runtime.link import Region, link, place
from cortado.runtime.manifest import Manifest

SECONDS = 3600  # before an emulated run counts as stuck
_MB = 1 << 20
_PACKAGES = {"qemu-system-arm": "qemu-system-arm", "qemu-aarch64": "qemu-user", "qemu-arm": "qemu-user"}  # of Debian and Ubuntu
_VECTORS = 64  # bytes: the first sixteen exception vectors of a Cortex-M


@dataclass(frozen=True)
class Board:
    """An Arm MPS board in QEMU. start: where the vectors lie. code, data: (start, bytes) of the memories to fill, in this order."""

    machine: str
    start: int
    code: tuple[tuple[int, int], ...]
    data: tuple[tuple[int, int], ...]


# Arm application notes AN385, AN386, AN500, AN505, AN547: zero-wait SRAM for code and for data, then the large external memory, halved.
_SMALL = {"code": ((0, 4 * _MB), (0x21000000, 8 * _MB)), "data": ((0x20000000, 4 * _MB), (0x21800000, 8 * _MB))}
_SECURE = {"code": ((0x10000000, 4 * _MB), (0x80000000, 8 * _MB)), "data": ((0x38000000, 4 * _MB), (0x80800000, 8 * _MB))}
_DDR = {"code": ((0, _MB // 2), (0x60000000, 512 * _MB)), "data": ((0x01000000, 2 * _MB), (0x80000000, 512 * _MB))}
_BOARDS: Mapping[str, Board] = {
    **dict.fromkeys(("cortex-m0", "cortex-m0plus", "cortex-m3"), Board("mps2-an385", 0, **_SMALL)),
    "cortex-m4": Board("mps2-an386", 0, **_SMALL),
    "cortex-m7": Board("mps2-an500", 0, **_SMALL),
    "cortex-m33": Board("mps2-an505", 0x10000000, **_SECURE),
    "cortex-m55": Board("mps3-an547", 0, **_DDR),
}


class EmulatedRunner:
    """`run` starts an emulator; it is safe for use by several threads."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises TargetError where no emulator is known for the target or the one needed is not installed."""
        self._manifest = bundle.manifest
        self._weights = bundle.weights or b""
        target = _target_of(bundle.manifest)
        self._command, board = _emulator(target, bundle.manifest)
        self._image = _board_image(bundle, target, board) if board is not None else _linux_image(bundle, target)
        self._files = board is not None

    def run(self, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
        """New output arrays, in order, for input arrays of the right dtypes and shapes, in order. Runs on one thread."""
        given = self._weights + b"".join(array.tobytes() for array in inputs)
        with tempfile.TemporaryDirectory(prefix="cortado") as name:
            folder = Path(name)
            (folder / "program").write_bytes(self._image)
            (folder / "program").chmod(0o700)
            if self._files:
                (folder / INPUT_FILE).write_bytes(given)
            try:
                done = subprocess.run(
                    [*self._command, "program"],
                    cwd=folder,
                    input=b"" if self._files else given,
                    capture_output=True,
                    timeout=SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise TargetError(f"{self._command[0]} did not end within {SECONDS} seconds") from error
            if done.returncode != 0:
                reason = "a fault of the processor" if done.returncode == FAULT else f"status {done.returncode}"
                said = done.stderr.decode(errors="replace").strip()
                raise TargetError(f"{self._manifest.name} ended in {self._command[0]} with {reason}{': ' + said if said else ''}")
            data = (folder / OUTPUT_FILE).read_bytes() if self._files else done.stdout
        return _split(data, [info for _, info in self._manifest.outputs])


def _target_of(manifest: Manifest) -> Target:
    """As compiled; a bundle for the host of another machine counts as its architecture's base."""
    if manifest.target.name != "host":
        return find_target(manifest.target.name)
    return find_target("aarch64" if manifest.target.triple.startswith(("aarch64", "arm64")) else "x86-64")


def _split(data: bytes, infos: Sequence[TensorInfo]) -> list[np.ndarray]:
    arrays, at = [], 0
    for info in infos:
        nbytes = _nbytes(info)
        arrays.append(np.frombuffer(data[at : at + nbytes], NUMPY_DTYPE[info.dtype]).reshape(info.shape).copy())
        at += nbytes
    return arrays


def _nbytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * NUMPY_DTYPE[info.dtype].itemsize


def _emulator(target: Target, manifest: Manifest) -> tuple[list[str], Board | None]:
    """The command but for the program, and the board where it is not Linux that is emulated."""
    board = _BOARDS.get(target.cpu)
    linux = "linux" in target.triple
    if board is not None:
        program = "qemu-system-arm"
        options = ["-M", board.machine, "-display", "none", "-serial", "null", "-monitor", "none"]
        options += ["-semihosting-config", "enable=on,target=native", "-kernel"]
    elif linux and target.family in ("aarch64", "arm"):
        program, options = f"qemu-{target.family}", ["-cpu", "max"]
    else:
        raise TargetError(
            f"{manifest.name} is compiled for {manifest.target.name} ({manifest.target.triple}); Python runs what is compiled for the "
            "Linux machine it is on, and cortado knows no emulator for this"
        )
    found = shutil.which(program)
    if found is None:
        raise TargetError(
            f"{manifest.name} is compiled for {target.name}; to run it on this machine install {program} "
            f"(package {_PACKAGES[program]} of Debian and Ubuntu), or compile for target 'host'"
        )
    return [found, *options], board


def _sizes(bundle: Bundle) -> tuple[int, int, list[int], list[int]]:
    manifest = bundle.manifest
    weights = len(bundle.weights or b"")
    return manifest.sizes.arena, weights, [_nbytes(i) for _, i in manifest.inputs], [_nbytes(i) for _, i in manifest.outputs]


def _linux_image(bundle: Bundle, target: Target) -> bytes:
    harness = linux_harness(target.family, target.triple, f"i{target.pointer_bits}", *_sizes(bundle))
    regions = [Region(0x400000, 0x20000000, False), Region(0x40000000, 0x40000000, True)]
    objects, addresses, segments = _linked(bundle, target, harness, regions)
    return write_executable(segments, addresses[ENTRY], objects[0].machine, objects[0].flags, objects[0].wide)


def _board_image(bundle: Bundle, target: Target, board: Board) -> bytes:
    """The first data memory ends in the stack."""
    harness = microcontroller_harness(target.triple, target.fpu, *_sizes(bundle))
    stack = -(-(bundle.manifest.sizes.stack + 4096) // 4096) * 4096
    code = [Region(start, nbytes, False) for start, nbytes in board.code]
    code[0] = Region(board.start + _VECTORS, code[0].nbytes - _VECTORS, False)
    (start, nbytes), *others = board.data
    data = [Region(start, nbytes - stack, True), *(Region(at, size, True) for at, size in others)]
    objects, addresses, segments = _linked(bundle, target, harness, [*code, *data])
    vectors = struct.pack("<16I", start + nbytes, addresses[ENTRY] | 1, *[addresses["cortado_fault"] | 1] * 14)
    table = Segment(board.start, vectors, _VECTORS, False)
    return write_executable([table, *segments], addresses[ENTRY] | 1, objects[0].machine, objects[0].flags, objects[0].wide)


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
