"""The packed weights as a file or as an object: a header that names the model, then the blob. Never an LLVM constant list.

For the object LLVM is given a constant of zeros behind the header and the blob is laid over the zeros in the finished object: one way for
every object format and architecture (with the flags and attributes that LLVM gives the other objects), and quick for any size.

Header, little-endian, 64 bytes: "cortado\\0", version (u32), header bytes (u32), model hash (u64), bytes that follow (u64), zeros.
"""

from __future__ import annotations

import struct

from cortado.compiler.program import ALIGNMENT

MAGIC = b"cortado\0"
VERSION = 1
HEADER_BYTES = 64
HASH_AT, SIZE_AT = 16, 24


def weights_header(model_hash: int, nbytes: int) -> bytes:
    return struct.pack("<8sIIQQ", MAGIC, VERSION, HEADER_BYTES, model_hash, nbytes).ljust(HEADER_BYTES, b"\0")


def weights_symbol(prefix: str) -> str:
    return f"{prefix}_weights"


def weights_module(prefix: str, triple: str, model_hash: int, nbytes: int) -> str:
    """IR of a hidden constant: the header, then `nbytes` zeros for `place_weights` to replace."""
    header = "".join(f"\\{byte:02x}" for byte in weights_header(model_hash, nbytes))
    kind = f"<{{ [{HEADER_BYTES} x i8], [{nbytes} x i8] }}>"
    value = f'<{{ [{HEADER_BYTES} x i8] c"{header}", [{nbytes} x i8] zeroinitializer }}>'
    return f'target triple = "{triple}"\n\n@{weights_symbol(prefix)} = hidden constant {kind} {value}, align {ALIGNMENT}\n'


def place_weights(object_bytes: bytes, model_hash: int, blob: bytes) -> bytes:
    """The object of `weights_module` with the blob in its place."""
    header = weights_header(model_hash, len(blob))
    at = object_bytes.find(header)
    start, stop = at + HEADER_BYTES, at + HEADER_BYTES + len(blob)
    if at < 0 or stop > len(object_bytes) or object_bytes.count(0, start, stop) != len(blob):
        raise AssertionError("the weights object does not hold the header and zeros it was made from")
    return b"".join((object_bytes[:start], blob, object_bytes[stop:]))
