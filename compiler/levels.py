"""Programs that do the same for several levels of one processor family, in one bundle: their weights are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from cortado.compiler.plan import align
from cortado.compiler.program import Buffer, Program


def share_weights(programs: Sequence[Program]) -> tuple[Program, ...]:
    """The programs with one blob for all of them, in which arrays that are equal, byte by byte, are stored once."""
    places: dict[bytes, int] = {}
    parts: list[bytes | memoryview] = []
    end = 0
    shared = []
    for program in programs:
        blob = memoryview(program.weights)
        buffers: list[Buffer] = []
        for buffer in program.buffers:
            if buffer.place == "weights":
                data = blob[buffer.offset : buffer.offset + buffer.nbytes]
                key = hashlib.sha256(data).digest()
                if key not in places:
                    places[key] = end
                    parts += [data, bytes(align(buffer.nbytes) - buffer.nbytes)]
                    end += align(buffer.nbytes)
                buffer = replace(buffer, offset=places[key])
            buffers.append(buffer)
        shared.append(replace(program, buffers=tuple(buffers)))
    whole = b"".join(parts)
    return tuple(replace(program, weights=whole) for program in shared)


def weight_bytes(program: Program) -> int:
    """Bytes of the blob that a program reads, holes between arrays included."""
    return sum(size for _, size in {(b.offset, align(b.nbytes)) for b in program.buffers if b.place == "weights"})
