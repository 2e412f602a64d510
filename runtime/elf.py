"""Relocatable ELF objects, read into records (System V gABI, chapters 4 and 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cortado.errors import FormatError

X86_64, AARCH64, ARM = 62, 183, 40
_SYMTAB, _RELA, _NOBITS, _REL = 2, 4, 8, 9
WRITE, ALLOC, EXEC = 1, 2, 4
_USUAL = 64  # bytes: longer than most names
UNDEFINED, ABSOLUTE, COMMON = 0, 0xFFF1, 0xFFF2


@dataclass(frozen=True)
class Section:
    """data: empty for zero-filled sections (`zeros`), which have nbytes in memory only."""

    name: str
    flags: int
    alignment: int
    nbytes: int
    data: memoryview
    zeros: bool


@dataclass(frozen=True)
class Symbol:
    """section: index into sections, or UNDEFINED or ABSOLUTE. Local symbols are seen by their own object only."""

    name: str
    section: int
    value: int
    local: bool


@dataclass(frozen=True)
class Relocation:
    """At `offset` of section `section`: refer to symbol `symbol`. addend: None where it is held in the place itself."""

    section: int
    offset: int
    kind: int
    symbol: int
    addend: int | None


@dataclass(frozen=True)
class ElfObject:
    machine: int
    flags: int
    wide: bool
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: tuple[Relocation, ...]


def read_object(data: bytes | memoryview) -> ElfObject:
    """Raises FormatError unless the bytes are a little-endian relocatable ELF object."""
    if data[:4] != b"\x7fELF" or data[5] != 1 or struct.unpack_from("<H", data, 16)[0] != 1:
        raise FormatError("not a little-endian ELF object file")
    try:
        return _read(memoryview(data))
    except (struct.error, IndexError, ValueError) as error:
        raise FormatError(f"damaged ELF object file: {error}") from error


def _read(data: memoryview) -> ElfObject:
    wide = data[4] == 2
    (machine,) = struct.unpack_from("<H", data, 18)
    (flags,) = struct.unpack_from("<I", data, 48 if wide else 36)
    (table,) = struct.unpack_from("<Q" if wide else "<I", data, 40 if wide else 32)
    size, count, names = struct.unpack_from("<HHH", data, 58 if wide else 46)
    headers = [struct.unpack_from("<IIQQQQIIQQ" if wide else "<10I", data, table + i * size) for i in range(count)]
    sections, symbols, relocations = [], [], []
    for name, kind, attributes, _, offset, nbytes, _, _, alignment, _ in headers:
        zeros = kind == _NOBITS
        content = data[offset : offset if zeros else offset + nbytes]
        sections.append(Section(_text(data, headers[names][4] + name), attributes, max(alignment, 1), nbytes, content, zeros))
    for _, kind, _, _, offset, nbytes, link, target, _, entry in headers:
        if kind == _SYMTAB:
            strings = headers[link][4]
            symbols = [_symbol(data, at, strings, wide) for at in range(offset, offset + nbytes, entry)]
        elif kind in (_RELA, _REL):
            relocations += [_relocation(data, at, target, wide, kind == _RELA) for at in range(offset, offset + nbytes, entry)]
    return ElfObject(machine, flags, wide, tuple(sections), tuple(symbols), tuple(relocations))


def _symbol(data: memoryview, at: int, strings: int, wide: bool) -> Symbol:
    if wide:
        name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
    else:
        name, value, _, info, _, section = struct.unpack_from("<IIIBBH", data, at)
    return Symbol(_text(data, strings + name), section, value, info >> 4 == 0)


def _relocation(data: memoryview, at: int, section: int, wide: bool, explicit: bool) -> Relocation:
    form = ("<QQ" if wide else "<II") + (("q" if wide else "i") if explicit else "")
    offset, info, *addend = struct.unpack_from(form, data, at)
    symbol, kind = (info >> 32, info & 0xFFFFFFFF) if wide else (info >> 8, info & 0xFF)
    return Relocation(section, offset, kind, symbol, addend[0] if explicit else None)


def _text(data: memoryview, at: int) -> str:
    size = _USUAL
    while b"\0" not in (piece := bytes(data[at : at + size])):
        if at + size >= len(data):
            raise ValueError("a name without an end")
        size *= 2
    return piece[: piece.index(b"\0")].decode()
