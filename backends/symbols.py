"""The symbols of an object file, read from its bytes: ELF, Mach-O (64 bits) and COFF."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cortado.errors import FormatError

_ELF_SYMTAB = 2
_MACHO_MAGIC, _MACHO_SYMTAB = b"\xcf\xfa\xed\xfe", 2
_MACHO_EXTERNAL, _MACHO_DEBUG, _MACHO_KIND = 0x01, 0xE0, 0x0E
_COFF_MACHINES, _COFF_EXTERNAL = (0x8664, 0xAA64), 2


@dataclass(frozen=True)
class Symbols:
    """defined: visible to other objects. undefined: to be had from them. Names as in the file (Mach-O's begin with "_")."""

    defined: frozenset[str]
    undefined: frozenset[str]


def read_symbols(data: bytes) -> Symbols:
    """Raises FormatError where the bytes are not a whole object file of a known format."""
    try:
        if data[:4] == b"\x7fELF":
            found = _elf(data)
        elif data[:4] == _MACHO_MAGIC:
            found = _macho(data)
        elif len(data) >= 20 and struct.unpack_from("<H", data)[0] in _COFF_MACHINES:
            found = _coff(data)
        else:
            raise FormatError(f"not an object file of a known format: it begins with {data[:4]!r}")
        names: dict[bool, set[str]] = {True: set(), False: set()}
        for name, defined in found:
            names[defined].add(name)
    except (struct.error, IndexError, ValueError) as error:
        raise FormatError(f"damaged object file: {error}") from error
    return Symbols(frozenset(names[True]), frozenset(names[False]))


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _elf(data: bytes) -> Iterator[tuple[str, bool]]:
    """System V gABI, chapter 4. Local symbols come first; a section's `info` is the number of the first other one."""
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 40 if wide else 32)
    size, count = struct.unpack_from(order + "HH", data, 58 if wide else 46)
    form = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    sections = [struct.unpack_from(form, data, table + i * size) for i in range(count)]
    for _, kind, _, _, offset, nbytes, link, first, _, entry in sections:
        for at in range(offset + first * entry, offset + nbytes, entry) if kind == _ELF_SYMTAB else ():
            (name,) = struct.unpack_from(order + "I", data, at)
            (section,) = struct.unpack_from(order + "H", data, at + (6 if wide else 14))
            yield _text(data, sections[link][4] + name), section != 0


def _macho(data: bytes) -> Iterator[tuple[str, bool]]:
    """<mach-o/loader.h> and <mach-o/nlist.h>."""
    (commands,) = struct.unpack_from("<I", data, 16)
    at = 32
    for _ in range(commands):
        kind, nbytes = struct.unpack_from("<II", data, at)
        if kind == _MACHO_SYMTAB:
            table, count, names, _ = struct.unpack_from("<IIII", data, at + 8)
            for entry in range(table, table + 16 * count, 16):
                name, flags = struct.unpack_from("<IB", data, entry)
                if flags & _MACHO_EXTERNAL and not flags & _MACHO_DEBUG:
                    yield _text(data, names + name), flags & _MACHO_KIND != 0
        at += nbytes


def _coff(data: bytes) -> Iterator[tuple[str, bool]]:
    """Microsoft PE and COFF specification. Names longer than eight bytes are in the table of strings behind the symbols."""
    _, _, _, table, count = struct.unpack_from("<HHIII", data)
    strings, number = table + 18 * count, 0
    while number < count:
        at = table + 18 * number
        name, _, section, _, storage, more = struct.unpack_from("<8sIhHBB", data, at)
        if storage == _COFF_EXTERNAL:
            where = struct.unpack("<II", name)
            yield _text(data, strings + where[1]) if where[0] == 0 else name.rstrip(b"\0").decode(), section != 0
        number += 1 + more
