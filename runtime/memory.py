"""Machine code in this process's memory: linked there once, then executable and no longer writable."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Sequence

import numpy as np

from cortado.errors import TargetError
from cortado.runtime.elf import AARCH64, ALLOC, EXEC, WRITE, X86_64, ElfObject, read_object
from cortado.runtime.link import Region, link, place

LARGE = 1 << 16  # bytes of constants that are worth not to be copied
HUGE = 1 << 21  # bytes of a large page
REACH = 1 << 30  # bytes: from anywhere in the code to constants that stay where they are; references have 32 bits and a sign
_MACHINES = {"x86_64": X86_64, "AMD64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}


def runs_here(machine: int) -> bool:
    """Whether code of an ELF machine can be executed by this process."""
    return sys.platform == "linux" and _MACHINES.get(platform.machine()) == machine


def fresh_memory(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], not initialised; of large pages where there is enough of it and the system has them.

    The first touch of each page costs about as much as computing with it; large pages have few of them, and few addresses to remember.
    """
    if nbytes < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(nbytes, np.uint8)
    mapping, start = _pages(nbytes)
    return np.frombuffer(mapping, np.uint8)[start : start + nbytes]


def _pages(nbytes: int) -> tuple[mmap.mmap, int]:
    """A mapping, and where in it `nbytes` start that are large pages, as far as there are such, else small ones."""
    large = nbytes >= HUGE and hasattr(mmap, "MADV_HUGEPAGE")
    mapping = mmap.mmap(-1, max(nbytes, 1) + HUGE * large, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if not large:
        return mapping, 0
    with contextlib.suppress(OSError):  # a system may be built without
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping, -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % HUGE


class LoadedCode:
    """The objects' code and constants, position-independent, in one mapping that lives as long as this does.

    Large constants that lie well aligned and near enough in the objects' own memory are used there.
    """

    def __init__(self, objects: Sequence[bytes | memoryview]) -> None:
        """Raises TargetError where the objects are not for this machine and system, or do not link."""
        items = [read_object(data) for data in objects]
        if not items or not all(runs_here(item.machine) for item in items):
            raise TargetError(
                f"machine code of another processor or system cannot run in this process ({platform.machine()}, {sys.platform})"
            )
        self._objects = objects
        for there in (_in_place(items), {}):
            nbytes = place(items, [Region(0, 1 << 62, False)], there).used[0]
            self._mapping, offset = _pages(nbytes)
            start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping)) + offset
            if all(abs(address - start) < REACH for address in there.values()):
                break
        region = Region(start, nbytes, False)
        with memoryview(self._mapping) as whole, whole[offset : offset + nbytes] as view:
            self._addresses = link(items, [region], place(items, [region], there), [view])
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(max(nbytes, 1)), mmap.PROT_READ | mmap.PROT_EXEC):
            reason = os.strerror(ctypes.get_errno())
            raise TargetError(f"this system does not let a process make memory executable: {reason}")

    def address(self, symbol: str) -> int:
        return self._addresses[symbol]


def _in_place(items: Sequence[ElfObject]) -> dict[tuple[int, int], int]:
    """Addresses of the sections that can stay where they are, by numbers of object and section: constants that refer to nothing."""
    found: dict[tuple[int, int], int] = {}
    for i, item in enumerate(items):
        moved = {relocation.section for relocation in item.relocations}
        for j, section in enumerate(item.sections):
            if section.flags & (ALLOC | WRITE | EXEC) == ALLOC and len(section.data) >= LARGE and j not in moved:
                address = int(np.frombuffer(section.data, np.uint8).ctypes.data)
                if address % section.alignment == 0:
                    found[i, j] = address
    return found
