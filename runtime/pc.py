"""The emulated PC of Bochs: firmware that starts a linked program in 64-bit mode, and the disks that carry program and data.

There is no BIOS and no operating system. From the reset vector the firmware goes to 64-bit mode with the first 4 GiB mapped onto
themselves, switches on the state of all vector registers, copies the program from disk 0 into memory and calls its entry. The program
gets its data from disk 1 and leaves results there, by two services of the firmware. There are no interrupts and no handlers: an
exception ends the emulator.

Registers: Intel SDM volume 3, chapters 2, 4 and 10. Disks: AT Attachment (ATA-6), programmed input and output, addresses of 28 bits.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

SECTOR = 512  # bytes
_CYLINDER = 16 * 63 * SECTOR  # Bochs takes disks of whole cylinders
_ROM_BYTES = 0x10000
_BASE = 0xFFFF0000  # of the firmware
_OFF_AT, _LETTERS_AT, _START_AT, _GDTR_AT, _GDT_AT, _TABLE_AT, _PAGES_AT, _RESET_AT = (
    0x80,
    0x98,
    0x100,
    0x1C0,
    0x1C8,
    0x200,
    0x1000,
    0xFFF0,
)
TRANSFER = _BASE  # void transfer(void *memory, uint32 first sector, uint32 sectors, uint32 command), System V convention
POWER_OFF = _BASE + _OFF_AT  # void power_off(void)
READ, WRITE = 0x20, 0x30  # commands of `transfer`
DATA_DISK = 1 << 28  # added to a sector's number: the bit that selects the second disk
ALL_STATE = 0xE7  # XCR0: x87, SSE, AVX, and AVX-512's masks and registers

_TRANSFER_CODE = """
4189d0 4189c9           mov r8d, edx; mov r9d, ecx
4585c0 745b             next: test r8d, r8d; jz done
baf7010000              mov edx, 0x1f7      status
ec a880 75fb            busy: in al, dx; test al, 0x80; jnz busy
baf2010000 b001 ee      mov edx, 0x1f2; mov al, 1; out dx, al
89f0 ffc2 ee            mov eax, esi; inc edx; out dx, al
c1e808 ffc2 ee          shr eax, 8; inc edx; out dx, al
c1e808 ffc2 ee          shr eax, 8; inc edx; out dx, al
c1e808 0ce0 ffc2 ee     shr eax, 8; or al, 0xe0; inc edx; out dx, al
4489c8 ffc2 ee          mov eax, r9d; inc edx; out dx, al
ec a808 74fb            wait: in al, dx; test al, 8; jz wait
baf0010000 b900010000   mov edx, 0x1f0; mov ecx, 256
4183f920 7505           cmp r9d, 0x20; jne write
66f36d eb09             rep insw; jmp more
4887f7 66f36f 4887f7    write: xchg rdi, rsi; rep outsw; xchg rdi, rsi
ffc6 41ffc8 eba0        more: inc esi; dec r8d; jmp next
c3                      done: ret
"""


def _word(number: int, nbytes: int = 4) -> str:
    return number.to_bytes(nbytes, "little").hex()


_OFF_CODE = f"""
ba00890000              mov edx, 0x8900
be{_word(_BASE + _LETTERS_AT)}              mov esi, letters
b908000000 f36e f4      mov ecx, 8; rep outsb; hlt
"""


def _start_code(stack: int, state: int) -> str:
    return f"""
fa                              cli
2e660f0116{_word(_GDTR_AT, 2)}                  lgdt cs:[gdtr]
0f20c0 0c01 0f22c0              mov eax, cr0; or al, 1; mov cr0, eax
66ea{_word(_BASE + _START_AT + 0x18)}0800              jmp 8:flat
b810000000 8ed8 8ec0 8ed0       flat: mov eax, 16; mov ds, eax; mov es, eax; mov ss, eax
b8{_word(0x40620 if state else 0x620)} 0f22e0               mov eax, PAE | OSFXSR | OSXMMEXCPT | OSXSAVE; mov cr4, eax
b8{_word(_BASE + _PAGES_AT)} 0f22d8               mov eax, pages; mov cr3, eax
b9800000c0 0f32 80cc01 0f30     mov ecx, EFER; rdmsr; or ah, LME >> 8; wrmsr
b833000080 0f22c0               mov eax, PG | NE | ET | MP | PE; mov cr0, eax
ea{_word(_BASE + _START_AT + 0x4E)}1800                jmp 24:long
31c9 31d2                       long: xor ecx, ecx; xor edx, edx
b8{_word(state)} {"0f01d1" if state else "0f1f00"}               mov eax, state; xsetbv
bc{_word(stack)}                      mov esp, stack
bb{_word(_BASE + _TABLE_AT)}                      mov ebx, table
8b3b 8b7304 8b5308              again: mov edi, [rbx]; mov esi, [rbx + 4]; mov edx, [rbx + 8]
85d2 740f                       test edx, edx; jz go
b920000000 e886feffff           mov ecx, READ; call transfer
83c30c ebe5                     add ebx, 12; jmp again
ffd7 f4                         go: call rdi; hlt
"""


# EVEX vpinsrb (66.0F3A 20) and vpextrw (66.0F3A 15) with memory at a distance of one byte.
_MISREAD = re.compile(
    rb"\x62[\x03\x13\x23\x33\x43\x53\x63\x73\x83\x93\xa3\xb3\xc3\xd3\xe3\xf3].[\x00\x08][\x20\x15][\x40-\x7f]", re.DOTALL
)


@dataclass(frozen=True)
class Load:
    """So many sectors of disk 0, from the first one on, belong at the address."""

    address: int
    first: int
    sectors: int


def firmware(loads: Sequence[Load], entry: int, stack: int, state: int = ALL_STATE) -> bytes:
    """The ROM. entry: called with the stack pointer at `stack`, a multiple of 16. state: of XCR0, what the program may use; 0 for
    processors without it.
    """
    rom = bytearray(_ROM_BYTES)
    table = b"".join(struct.pack("<III", load.address, load.first, load.sectors) for load in loads)
    # flat segments of 32-bit code, data and 64-bit code behind the empty one
    segments = struct.pack("<4Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF)
    present, large = 0x23, 0xE3  # writable, with the marks of use set, since a ROM takes none; `large` ones are of 2 MiB
    tables = _BASE + _PAGES_AT
    pages = struct.pack("<Q", tables + 0x1000 | present).ljust(0x1000, b"\0")
    pages += struct.pack("<4Q", *(tables + 0x1000 * (2 + number) | present for number in range(4))).ljust(0x1000, b"\0")
    pages += struct.pack("<2048Q", *(number << 21 | large for number in range(2048)))
    for at, data in (
        (0, _assembled(_TRANSFER_CODE)),
        (_OFF_AT, _assembled(_OFF_CODE)),
        (_LETTERS_AT, b"Shutdown"),
        (_START_AT, _assembled(_start_code(stack, state))),
        (_GDTR_AT, struct.pack("<HI", len(segments) - 1, _BASE + _GDT_AT)),
        (_GDT_AT, segments),
        (_TABLE_AT, table + struct.pack("<III", entry, 0, 0)),
        (_PAGES_AT, pages),
        (_RESET_AT, b"\xe9" + struct.pack("<H", _START_AT - _RESET_AT - 3 & 0xFFFF)),
    ):
        assert not any(rom[at : at + len(data)]), "parts of the firmware overlap"
        rom[at : at + len(data)] = data
    return bytes(rom)


def _assembled(listing: str) -> bytes:
    """The bytes of a listing: hexadecimal digits, two blanks, what they say."""
    return b"".join(bytes.fromhex(line.partition("  ")[0]) for line in listing.strip().splitlines())


def disk_bytes(nbytes: int) -> int:
    """The size of a disk that so many bytes fit on."""
    return -(-max(nbytes, 1) // _CYLINDER) * _CYLINDER


def misread(code: bytes | memoryview) -> bool:
    """Whether Bochs 2.7 would execute the machine code wrongly.

    It counts the distance of a byte in words, and of a word in bytes, in two instructions where they use registers beyond the sixteenth.
    """
    return any(match.group()[2] & 7 == 5 for match in _MISREAD.finditer(code))
