"""Machine code in this process's memory: linked there once, then executable and no longer writable."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Sequence

from cortado.errors import TargetError
from cortado.runtime.elf import AARCH64, X86_64, read_object
from cortado.runtime.link import Region, link, place

_MACHINES = {"x86_64": X86_64, "AMD64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}


def runs_here(machine: int) -> bool:
    """Whether code of an ELF machine can be executed by this process."""
    return sys.platform == "linux" and _MACHINES.get(platform.machine()) == machine


class LoadedCode:
    """The objects' code and constants, position-independent, in one mapping that lives as long as this does."""

    def __init__(self, objects: Sequence[bytes]) -> None:
        """Raises TargetError where the objects are not for this machine and system, or do not link."""
        items = [read_object(data) for data in objects]
        if not items or not all(runs_here(item.machine) for item in items):
            raise TargetError(
                f"machine code of another processor or system cannot run in this process ({platform.machine()}, {sys.platform})"
            )
        nbytes = place(items, [Region(0, 1 << 62, False)]).used[0]
        self._mapping = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        region = Region(start, nbytes, False)
        with memoryview(self._mapping) as view:
            self._addresses = link(items, [region], place(items, [region]), [view])
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(len(self._mapping)), mmap.PROT_READ | mmap.PROT_EXEC):
            reason = os.strerror(ctypes.get_errno())
            raise TargetError(f"this system does not let a process make memory executable: {reason}")

    def address(self, symbol: str) -> int:
        return self._addresses[symbol]
