"""How many bytes of an object end up in a program."""

from __future__ import annotations

from cortado.runtime.elf import ALLOC, read_object

_FOR_LINKERS = (
    ".drectve",
    ".debug",
    ".llvm",
    "/",
    "__compact_unwind",
    "__debug",
    "linking",
    "reloc",
    "name",
    "producers",
    "target_features",
)


def code_bytes(object_bytes: bytes) -> int:
    """Functions and their constants, without symbols, relocations and remarks for linkers."""
    if object_bytes[:4] == b"\x7fELF":
        return sum(section.nbytes for section in read_object(object_bytes).sections if section.flags & ALLOC)
    import llvmlite.binding as llvm

    sections = llvm.ObjectFileRef.from_data(object_bytes).sections()
    return sum(section.size() for section in sections if not section.name().decode().startswith(_FOR_LINKERS))
