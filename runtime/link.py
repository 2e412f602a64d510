"""A static linker for the objects that backends emit: into this process's memory, or into an image for an emulator.

Everything lands in one stretch of memory per region, so that no branch is ever out of reach; a general in-process loader places each
object wherever the system likes, and fails where the address space is crowded. Relocation formulas: the psABIs of x86-64, AArch64 (AAELF64)
and Arm (AAELF32); only what position-independent code without a global offset table needs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cortado.errors import TargetError
from cortado.runtime.elf import AARCH64, ABSOLUTE, ALLOC, ARM, UNDEFINED, WRITE, X86_64, ElfObject, Relocation, Section

_UNWINDING = (".ARM.exidx", ".ARM.extab", ".eh_frame")  # nothing is ever thrown


@dataclass(frozen=True)
class Region:
    """Memory to fill from `start`, at most nbytes."""

    start: int
    nbytes: int
    writable: bool


@dataclass(frozen=True)
class Layout:
    """addresses: of (object, section) by their numbers. filled, used: bytes of each region with contents, and with zeros behind them."""

    addresses: Mapping[tuple[int, int], int]
    filled: tuple[int, ...]
    used: tuple[int, ...]


def place(
    objects: Sequence[ElfObject], regions: Sequence[Region], there: Mapping[tuple[int, int], int] = MappingProxyType({})
) -> Layout:
    """Sections one after the other into the first region that suits and has room. Raises TargetError where none has.

    there: addresses of sections that have their place already, outside of the regions.
    """
    filled = [0] * len(regions)
    used = [0] * len(regions)
    addresses: dict[tuple[int, int], int] = {}
    wanted = [((i, j), s) for i, o in enumerate(objects) for j, s in enumerate(o.sections) if s.flags & ALLOC and s.nbytes]
    wanted = [(key, s) for key, s in wanted if not s.name.startswith(_UNWINDING) and key not in there]
    for key, section in sorted(wanted, key=lambda item: item[1].zeros):
        number = _region_for(section, regions, used)
        start = _up(regions[number].start + used[number], section.alignment)
        addresses[key] = start
        used[number] = start + section.nbytes - regions[number].start
        if not section.zeros:
            filled[number] = used[number]
    return Layout({**addresses, **there}, tuple(filled), tuple(used))


def _region_for(section: Section, regions: Sequence[Region], used: Sequence[int]) -> int:
    for number, region in enumerate(regions):
        start = _up(region.start + used[number], section.alignment)
        if region.writable == bool(section.flags & WRITE) and start + section.nbytes <= region.start + region.nbytes:
            return number
    raise TargetError(f"section {section.name} of {section.nbytes} bytes does not fit into the memory that is left")


def _up(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


def link(objects: Sequence[ElfObject], regions: Sequence[Region], layout: Layout, memory: Sequence[memoryview]) -> dict[str, int]:
    """Fill `memory`, one writable view per region; addresses of the symbols that are visible between objects, by name.

    Raises TargetError for a symbol without definition or with two, and for a relocation that is unknown or out of reach.
    """
    at = {number: (region.start, view) for number, (region, view) in enumerate(zip(regions, memory, strict=True))}
    where = {key: number for key, placed in layout.addresses.items() if (number := _containing(placed, regions)) is not None}
    visible: dict[str, int] = {}
    for i, item in enumerate(objects):
        for j, section in enumerate(item.sections):
            if (i, j) in where and not section.zeros:
                start, view = at[where[i, j]]
                offset = layout.addresses[i, j] - start
                view[offset : offset + section.nbytes] = section.data
        for symbol in item.symbols:
            if not symbol.local and symbol.section not in (UNDEFINED, ABSOLUTE):
                if symbol.name in visible:
                    raise TargetError(f"two objects define {symbol.name}")
                visible[symbol.name] = layout.addresses.get((i, symbol.section), 0) + symbol.value
    for i, item in enumerate(objects):
        relocate = _RELOCATE.get(item.machine)
        if relocate is None:
            raise TargetError(f"objects of ELF machine {item.machine} cannot be linked here")
        for entry in item.relocations:
            if (i, entry.section) in where:
                start, view = at[where[i, entry.section]]
                place_ = layout.addresses[i, entry.section] + entry.offset
                relocate(view, place_ - start, entry, _target(i, item, entry, layout, visible), place_)
    return visible


def _containing(address: int, regions: Sequence[Region]) -> int | None:
    return next((n for n, region in enumerate(regions) if region.start <= address < region.start + region.nbytes), None)


def _target(number: int, item: ElfObject, entry: Relocation, layout: Layout, visible: Mapping[str, int]) -> int:
    symbol = item.symbols[entry.symbol]
    if symbol.section == UNDEFINED:
        if symbol.name not in visible:
            raise TargetError(f"no object defines {symbol.name}")
        return visible[symbol.name]
    base = 0 if symbol.section == ABSOLUTE else layout.addresses.get((number, symbol.section), 0)
    return base + symbol.value


def _unknown(entry: Relocation, machine: str) -> TargetError:
    return TargetError(f"{machine} relocation {entry.kind} cannot be linked here")


def _fits(value: int, bits: int) -> int:
    """The value as an unsigned field of so many bits."""
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise TargetError(f"a reference over {value} bytes does not fit into {bits} bits")
    return value & ((1 << bits) - 1)


def _x86_64(view: memoryview, at: int, entry: Relocation, target: int, here: int) -> None:
    value = target + (entry.addend or 0)
    if entry.kind in (2, 4):  # PC32, PLT32
        struct.pack_into("<I", view, at, _fits(value - here, 32))
    elif entry.kind == 1:  # 64
        struct.pack_into("<Q", view, at, value & (1 << 64) - 1)
    elif entry.kind == 24:  # PC64
        struct.pack_into("<q", view, at, value - here)
    else:
        raise _unknown(entry, "x86-64")


_AARCH64_SCALE = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # ADD_ABS_LO12_NC, LDST8..LDST128_ABS_LO12_NC


def _aarch64(view: memoryview, at: int, entry: Relocation, target: int, here: int) -> None:
    value = target + (entry.addend or 0)
    (word,) = struct.unpack_from("<I", view, at)
    if entry.kind in _AARCH64_SCALE:
        word = word & ~(0xFFF << 10) | (value & 0xFFF) >> _AARCH64_SCALE[entry.kind] << 10
    elif entry.kind == 275:  # ADR_PREL_PG_HI21
        pages = _fits((value >> 12) - (here >> 12), 21)
        word = word & 0x9F00001F | (pages & 3) << 29 | pages >> 2 << 5
    elif entry.kind == 274:  # ADR_PREL_LO21
        distance = _fits(value - here, 21)
        word = word & 0x9F00001F | (distance & 3) << 29 | distance >> 2 << 5
    elif entry.kind in (282, 283):  # JUMP26, CALL26
        word = word & 0xFC000000 | _fits(value - here, 28) >> 2
    elif entry.kind == 261:  # PREL32
        word = _fits(value - here, 32)
    elif entry.kind == 257:  # ABS64
        struct.pack_into("<Q", view, at, value & (1 << 64) - 1)
        return
    else:
        raise _unknown(entry, "AArch64")
    struct.pack_into("<I", view, at, word)


def _arm(view: memoryview, at: int, entry: Relocation, target: int, here: int) -> None:
    """Data, Thumb and Arm code; the addend is in the place. Bit 0 of a function's address says that it is Thumb code."""
    if entry.kind in (2, 38, 3):  # ABS32, TARGET1, REL32
        (addend,) = struct.unpack_from("<i", view, at)
        value = target + addend - (here if entry.kind == 3 else 0)
        struct.pack_into("<I", view, at, value & 0xFFFFFFFF)
        return
    if entry.kind in (28, 29, 43, 44, 45, 46):
        _arm_code(view, at, entry.kind, target, here)
        return
    first, second = struct.unpack_from("<HH", view, at)
    if entry.kind in (10, 30):  # THM_CALL, THM_JUMP24
        sign, high, low = first >> 10 & 1, first & 0x3FF, second & 0x7FF
        i1, i2 = (1 ^ sign ^ second >> 13 & 1), (1 ^ sign ^ second >> 11 & 1)
        addend = (i1 << 23 | i2 << 22 | high << 12 | low << 1) - (sign << 24)
        value = _fits((target & ~1) + addend - here, 25)
        sign, i1, i2 = value >> 24, value >> 23 & 1, value >> 22 & 1
        first = first & 0xF800 | sign << 10 | value >> 12 & 0x3FF
        second = second & 0xD000 | (1 ^ i1 ^ sign) << 13 | (1 ^ i2 ^ sign) << 11 | value >> 1 & 0x7FF
    elif entry.kind in (47, 48, 49, 50):  # THM_MOVW_ABS_NC, THM_MOVT_ABS, THM_MOVW_PREL_NC, THM_MOVT_PREL
        bits = (first & 0xF) << 12 | (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF
        value = target + (bits - (bits >> 15 << 16)) - (here if entry.kind > 48 else 0)
        half = value >> (16 if entry.kind in (48, 50) else 0) & 0xFFFF
        first = first & 0xFBF0 | half >> 12 | (half >> 11 & 1) << 10
        second = second & 0x8F00 | (half >> 8 & 7) << 12 | half & 0xFF
    else:
        raise _unknown(entry, "Arm")
    struct.pack_into("<HH", view, at, first, second)


def _arm_code(view: memoryview, at: int, kind: int, target: int, here: int) -> None:
    (word,) = struct.unpack_from("<I", view, at)
    if kind in (28, 29):  # CALL, JUMP24
        if target & 1:
            raise TargetError("a branch from Arm to Thumb code cannot be linked here")
        addend = (word & 0xFFFFFF) - ((word & 0x800000) << 1)
        word = word & 0xFF000000 | _fits(target + 4 * addend - here, 26) >> 2
    else:  # MOVW_ABS_NC, MOVT_ABS, MOVW_PREL_NC, MOVT_PREL
        bits = word >> 4 & 0xF000 | word & 0xFFF
        value = target + (bits - (bits >> 15 << 16)) - (here if kind > 44 else 0)
        half = value >> (16 if kind in (44, 46) else 0) & 0xFFFF
        word = word & 0xFFF0F000 | half >> 12 << 16 | half & 0xFFF
    struct.pack_into("<I", view, at, word)


_RELOCATE: Mapping[int, Callable[[memoryview, int, Relocation, int, int], None]] = {X86_64: _x86_64, AARCH64: _aarch64, ARM: _arm}
