"""Build attributes of 32-bit Arm objects: what linkers compare before they link ("Addenda to, and Errata in, the ABI", section 3)."""

from __future__ import annotations

import struct

from cortado.errors import FormatError

_SECTION_TYPE = 0x70000003  # SHT_ARM_ATTRIBUTES
_FILE_SCOPE = 1
_CPU_RAW_NAME, _CPU_NAME, _VFP_ARGS, _COMPATIBILITY, _CONFORMANCE = 4, 5, 28, 32, 67
_INDEPENDENT = 3


def independent_of_float_abi(data: bytes) -> bytes:
    """The object, marked as linking with every float ABI.

    LLVM marks objects with one ABI of passing floats, and programs of another then refuse to link them. Functions that neither
    take nor give floats fit all: Tag_ABI_VFP_args 3 says so. The section is written anew at the object's end.
    """
    if data[:5] != b"\x7fELF\x01" or data[5] != 1:
        raise FormatError("not a little-endian ELF object of 32 bits")
    (table,) = struct.unpack_from("<I", data, 32)
    size, count = struct.unpack_from("<HH", data, 46)
    for header in range(table, table + count * size, size):
        if struct.unpack_from("<I", data, header + 4)[0] == _SECTION_TYPE:
            offset, nbytes = struct.unpack_from("<II", data, header + 16)
            section = _rewritten(data[offset : offset + nbytes])
            result = bytearray(data)
            struct.pack_into("<II", result, header + 16, len(data), len(section))
            return bytes(result) + section
    return data


def _rewritten(section: bytes) -> bytes:
    """'A', length, "aeabi", then the file scope: its number, its length, pairs of numbers and values."""
    (length,) = struct.unpack_from("<I", section, 1)
    vendor_end = section.index(b"\0", 5) + 1
    scope, scope_length = section[vendor_end], struct.unpack_from("<I", section, vendor_end + 1)[0]
    if section[:1] != b"A" or section[5:vendor_end] != b"aeabi\0" or scope != _FILE_SCOPE or 1 + length != len(section):
        raise FormatError("build attributes of an unexpected form")
    if vendor_end + scope_length != len(section):
        raise FormatError("build attributes of an unexpected form")
    pairs = _without(section[vendor_end + 5 :], _VFP_ARGS) + bytes([_VFP_ARGS, _INDEPENDENT])
    file_scope = bytes([_FILE_SCOPE]) + struct.pack("<I", 5 + len(pairs)) + pairs
    body = b"aeabi\0" + file_scope
    return b"A" + struct.pack("<I", 4 + len(body)) + body


def _without(pairs: bytes, removed: int) -> bytes:
    kept, at = b"", 0
    while at < len(pairs):
        start = at
        tag, at = _uleb(pairs, at)
        if tag == _COMPATIBILITY:
            _, at = _uleb(pairs, at)
        if tag in (_CPU_RAW_NAME, _CPU_NAME, _COMPATIBILITY, _CONFORMANCE) or (tag > _COMPATIBILITY and tag % 2):
            at = pairs.index(b"\0", at) + 1
        else:
            _, at = _uleb(pairs, at)
        if tag != removed:
            kept += pairs[start:at]
    return kept


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
