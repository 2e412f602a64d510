"""The symbols of an object file, read from its bytes: ELF, Mach-O, COFF and wasm."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cortado.errors import FormatError


@dataclass(frozen=True)
class Symbols:
    """defined: visible to other objects. undefined: to be had from them."""

    defined: frozenset[str]
    undefined: frozenset[str]


def read_symbols(data: bytes) -> Symbols:
    """Raises FormatError where the bytes are not an object file of a known format."""
    if data[:4] == b"\x7fELF":
        return _elf(data)
    raise FormatError(f"not an object file of a known format: it begins with {data[:4]!r}")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _elf(data: bytes) -> Symbols:
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 40 if wide else 32)
    size, count = struct.unpack_from(order + "HH", data, 58 if wide else 46)
    form = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    sections = [struct.unpack_from(form, data, table + i * size) for i in range(count)]
    defined: set[str] = set()
    undefined: set[str] = set()
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        _, _, _, _, offset, nbytes, link, first_global, _, entry = section
        names = sections[link][4]
        for at in range(offset + first_global * entry, offset + nbytes, entry):
            if wide:
                name, _, _, place, _, _ = struct.unpack_from(order + "IBBHQQ", data, at)
            else:
                name, _, _, _, _, place = struct.unpack_from(order + "IIIBBH", data, at)
            (defined if place else undefined).add(_text(data, names + name))
    return Symbols(frozenset(defined), frozenset(undefined))
