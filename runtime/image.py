"""Executable ELF images: linked code and data with the addresses where an emulator puts them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_PAGE = 0x10000
_LOAD, _EXECUTABLE = 1, 2


@dataclass(frozen=True)
class Segment:
    """nbytes: in memory; beyond the data it is zero."""

    address: int
    data: bytes
    nbytes: int
    writable: bool


def write_executable(segments: Sequence[Segment], entry: int, machine: int, flags: int, wide: bool) -> bytes:
    """System V gABI, chapters 4 and 5. Addresses that are equal modulo a page stay so in the file."""
    header, row = (64, 56) if wide else (52, 32)
    at = header + row * len(segments)
    rows, bodies = [], []
    for segment in segments:
        gap = (segment.address - at) % _PAGE
        rights = 6 if segment.writable else 5
        size, place = len(segment.data), segment.address
        if wide:
            rows.append(struct.pack("<IIQQQQQQ", _LOAD, rights, at + gap, place, place, size, segment.nbytes, _PAGE))
        else:
            rows.append(struct.pack("<IIIIIIII", _LOAD, at + gap, place, place, size, segment.nbytes, rights, _PAGE))
        bodies.append(bytes(gap) + segment.data)
        at += gap + size
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    fixed = struct.pack(form, _EXECUTABLE, machine, 1, entry, header, 0, flags, header, row, len(segments), 0, 0, 0)
    return b"".join((ident, fixed, *rows, *bodies))
