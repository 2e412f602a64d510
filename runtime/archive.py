"""Static libraries: a deterministic writer (no times, no owners) of the three dialects of `ar`, and their reader.

Layouts: ar(5) with the System V / GNU symbol table and name table (ELF, wasm), BSD names and ranlib table (Mach-O), and the two
linker members of the PE/COFF specification (COFF).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cortado.errors import FormatError

MAGIC = b"!<arch>\n"
HEADER = 60


@dataclass(frozen=True)
class Member:
    """An object file of a library. symbols: the names it defines for other objects, as the linker spells them."""

    name: str
    data: bytes
    symbols: tuple[str, ...] = ()


def write_archive(members: Sequence[Member], object_format: str) -> bytes:
    """The bytes of a static library for the object format of a Target."""
    writer = {"macho": _write_bsd, "coff": _write_coff}.get(object_format, _write_gnu)
    library = writer(members)
    if len(library) >= 1 << 32:
        raise FormatError(f"a static library of {len(library)} bytes: its symbol table reaches 4 GB; ship the weights separately")
    return library


def read_archive(library: bytes | memoryview) -> list[tuple[str, bytes]]:
    """(name, bytes) of every member but the tables. Raises FormatError where the bytes are not an archive."""
    return [(name, bytes(library[start:stop])) for name, start, stop in archive_members(library)]


def archive_members(library: bytes | memoryview) -> list[tuple[str, int, int]]:
    """(name, start, stop) as read_archive: where the members lie."""
    if library[: len(MAGIC)] != MAGIC:
        raise FormatError("not a static library: it does not start with !<arch>")
    found: list[tuple[str, int, int]] = []
    names, at = b"", len(MAGIC)
    while at < len(library):
        header = bytes(library[at : at + HEADER])
        size = header[48:58].strip()
        if len(header) < HEADER or header[58:] != b"`\n" or not size.isdigit() or at + HEADER + int(size) > len(library):
            raise FormatError(f"static library damaged at byte {at}")
        start, stop = at + HEADER, at + HEADER + int(size)
        at = stop + int(size) % 2
        name = header[:16].rstrip()
        if name == b"//":
            names = bytes(library[start:stop])
        elif name.startswith(b"#1/"):
            length = int(name[3:])
            name, start = bytes(library[start : start + length]).rstrip(b"\0"), start + length
        elif name.startswith(b"/") and name[1:].isdigit():
            name = names[int(name[1:]) :].split(b"\n")[0].split(b"\0")[0].rstrip(b"/")
        if name not in (b"/", b"//") and not name.startswith(b"__.SYMDEF"):
            found.append((name.rstrip(b"/").decode("ascii", "replace"), start, stop))
    return found


def _header(name: str, size: int) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{size:<10}`\n".encode("ascii")


def _even(data: bytes) -> bytes:
    return data + b"\n" * (len(data) % 2)


def _long_names(members: Sequence[Member], end: str) -> tuple[bytes, list[str]]:
    """The name table and each member's name as its header spells it."""
    table, short = "", []
    for member in members:
        if len(member.name) < 16:
            short.append(f"{member.name}/")
        else:
            short.append(f"/{len(table)}")
            table += member.name + end
    return table.encode("ascii"), short


def _offsets(members: Sequence[Member], start: int) -> list[int]:
    offsets = []
    for member in members:
        offsets.append(start)
        start += HEADER + len(_even(member.data))
    return offsets


def _entries(members: Sequence[Member], offsets: Sequence[int]) -> Iterator[tuple[str, int]]:
    for member, offset in zip(members, offsets, strict=True):
        for symbol in member.symbols:
            yield symbol, offset


def _write_gnu(members: Sequence[Member]) -> bytes:
    table, names = _long_names(members, "/\n")
    count = sum(len(m.symbols) for m in members)
    strings = b"".join(s.encode("ascii") + b"\0" for m in members for s in m.symbols)
    size = 4 + 4 * count + len(strings)
    after = [_header("//", len(table)), _even(table)] if table else []
    start = len(MAGIC) + HEADER + size + size % 2 + sum(map(len, after))
    offsets = [offset for _, offset in _entries(members, _offsets(members, start))]
    index = struct.pack(f">I{count}I", count, *offsets) + strings
    parts = [MAGIC, _header("/", size), _even(index), *after]
    return b"".join(parts) + _bodies(members, names)


def _write_coff(members: Sequence[Member]) -> bytes:
    table, names = _long_names(members, "\0")
    symbols = sorted((s, i) for i, m in enumerate(members) for s in m.symbols)
    strings = b"".join(s.encode("ascii") + b"\0" for m in members for s in m.symbols)
    ordered = b"".join(s.encode("ascii") + b"\0" for s, _ in symbols)
    first = 4 + 4 * len(symbols) + len(strings)
    second = 8 + 4 * len(members) + 2 * len(symbols) + len(ordered)
    after = [_header("//", len(table)), _even(table)] if table else []
    start = len(MAGIC) + 2 * HEADER + first + first % 2 + second + second % 2 + sum(map(len, after))
    offsets = _offsets(members, start)
    by_symbol = [offset for _, offset in _entries(members, offsets)]
    index = struct.pack(f">I{len(symbols)}I", len(symbols), *by_symbol) + strings
    sorted_index = struct.pack(f"<I{len(members)}I", len(members), *offsets)
    sorted_index += struct.pack(f"<I{len(symbols)}H", len(symbols), *(i + 1 for _, i in symbols)) + ordered
    parts = [MAGIC, _header("/", first), _even(index), _header("/", second), _even(sorted_index), *after]
    return b"".join(parts) + _bodies(members, names)


def _bodies(members: Sequence[Member], names: Sequence[str]) -> bytes:
    return b"".join(_header(name, len(m.data)) + _even(m.data) for m, name in zip(members, names, strict=True))


def _write_bsd(members: Sequence[Member]) -> bytes:
    """Names follow the headers, padded so that every object starts at a multiple of 8."""

    def member(name: bytes, data: bytes, at: int) -> bytes:
        name += b"\0" * (-(at + HEADER + len(name)) % 8)
        data += b"\0" * (-len(data) % 8)
        return _header(f"#1/{len(name)}", len(name) + len(data)) + name + data

    strings, places = b"", []
    for owner, m in enumerate(members):
        for symbol in m.symbols:
            places.append((len(strings), owner))
            strings += symbol.encode("ascii") + b"\0"
    strings += b"\0" * (-len(strings) % 8)

    def table(offsets: Sequence[int]) -> bytes:
        pairs = b"".join(struct.pack("<II", at, offsets[owner]) for at, owner in places)
        data = struct.pack("<I", len(pairs)) + pairs + struct.pack("<I", len(strings)) + strings
        return member(b"__.SYMDEF", data, len(MAGIC))

    at = len(MAGIC) + len(table([0] * len(members)))
    offsets, bodies = [], []
    for m in members:
        offsets.append(at)
        bodies.append(member(m.name.encode("ascii"), m.data, at))
        at += len(bodies[-1])
    return MAGIC + table(offsets) + b"".join(bodies)
