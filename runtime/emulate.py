"""Running a bundle for another machine in an emulator: the objects of its library, byte for byte, linked with a small program around them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cortado.backends.status import ECPU
from cortado.backends.targets import find_target
from cortado.compiler.target import Target
from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.errors import TargetError
from cortado.runtime.bundle import Bundle
from cortado.runtime.harness import FAULT, STATUS
from cortado.runtime.machines import SECONDS, BoardMachine, Ended, LinuxMachine, Machine, PcMachine
from cortado.runtime.manifest import Manifest

_MB = 1 << 20

# Code and data. Arm application notes AN385, AN386, AN500, AN505, AN547: zero-wait SRAM, then the large external memory, halved.
_SMALL = ((0, 4 * _MB), (0x21000000, 8 * _MB)), ((0x20000000, 4 * _MB), (0x21800000, 8 * _MB))
_SECURE = ((0x10000000, 4 * _MB), (0x80000000, 8 * _MB)), ((0x38000000, 4 * _MB), (0x80800000, 8 * _MB))
_DDR = ((0, _MB // 2), (0x60000000, 512 * _MB)), ((0x01000000, 2 * _MB), (0x80000000, 512 * _MB))
_BOARDS: Mapping[str, BoardMachine] = {
    **dict.fromkeys(("cortex-m0", "cortex-m0plus", "cortex-m3"), BoardMachine("mps2-an385", 0, *_SMALL)),
    "cortex-m4": BoardMachine("mps2-an386", 0, *_SMALL),
    "cortex-m7": BoardMachine("mps2-an500", 0, *_SMALL),
    "cortex-m33": BoardMachine("mps2-an505", 0x10000000, *_SECURE),
    "cortex-m55": BoardMachine("mps3-an547", 0, *_DDR),
}


class EmulatedRunner:
    """`run` starts an emulator; it is safe for use by several threads."""

    def __init__(self, bundle: Bundle, machine: Machine | None = None) -> None:
        """machine: None for the one that has the target's processor.

        Raises TargetError where no emulator is known for the target or the one needed is not installed.
        """
        self._manifest = bundle.manifest
        self._weights = bytes(bundle.weights or b"")
        target = _target_of(bundle.manifest)
        self._machine = machine or _machine_of(target, bundle.manifest)
        self._emulator = _installed(self._machine, bundle.manifest)
        self._files = self._machine.files(bundle, target)

    def run(self, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
        """New output arrays, in order, for input arrays of the right dtypes and shapes, in order. Runs on one thread."""
        block = self._machine.block
        given = b"".join(part + bytes(-len(part) % block) for part in (self._weights, *(array.tobytes() for array in inputs)))
        infos = [info for _, info in self._manifest.outputs]
        with tempfile.TemporaryDirectory(prefix="cortado") as name:
            folder = Path(name)
            for file, data in self._files.items():
                (folder / file).write_bytes(data)
            try:
                ended = self._machine.execute(self._emulator, folder, given, sum(_up(info.nbytes, block) for info in infos))
            except subprocess.TimeoutExpired as error:
                raise TargetError(f"{self._machine.program} did not end within {SECONDS} seconds") from error
        if ended.status != 0:
            raise TargetError(self._failure(ended))
        return _split(ended.outputs, infos, block)

    def _failure(self, ended: Ended) -> str:
        name, target, program = self._manifest.name, self._manifest.target.name, self._machine.program
        if ended.status == STATUS + ECPU:
            return f"{name} is compiled for {target}; the processor that {program} emulates lacks instructions of it"
        reason = "a fault of the processor" if ended.status == FAULT else f"status {ended.status}"
        said = ended.said.strip()
        return f"{name} ended in {program} with {reason}{': ' + said if said else ''}"


def _target_of(manifest: Manifest) -> Target:
    """As compiled; a bundle for the host of another machine counts as its architecture's base."""
    if manifest.target.name != "host":
        return find_target(manifest.target.name)
    return find_target("aarch64" if manifest.target.triple.startswith(("aarch64", "arm64")) else "x86-64")


def _up(nbytes: int, block: int) -> int:
    return -(-nbytes // block) * block


def _split(data: bytes, infos: Sequence[TensorInfo], block: int) -> list[np.ndarray]:
    arrays, at = [], 0
    for info in infos:
        arrays.append(np.frombuffer(data[at : at + info.nbytes], NUMPY_DTYPE[info.dtype]).reshape(info.shape).copy())
        at += _up(info.nbytes, block)
    return arrays


def _machine_of(target: Target, manifest: Manifest) -> Machine:
    board = _BOARDS.get(target.cpu)
    if board is not None:
        return board
    if target.family in ("aarch64", "arm") and "linux" in target.triple:
        return LinuxMachine(f"qemu-{target.family}")
    if target.family == "x86" and target.object_format == "elf":
        return PcMachine()
    raise TargetError(
        f"{manifest.name} is compiled for {manifest.target.name} ({manifest.target.triple}); Python runs what is compiled for the "
        "Linux machine it is on, and cortado knows no emulator for this"
    )


def _installed(machine: Machine, manifest: Manifest) -> str:
    """The path of the emulator's program."""
    found = shutil.which(machine.program)
    if found is None:
        raise TargetError(
            f"{manifest.name} is compiled for {manifest.target.name}; to run it on this machine install {machine.program} "
            f"(package {machine.packages} of Debian and Ubuntu), or compile for target 'host'"
        )
    return found
