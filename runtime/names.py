"""C identifiers for what a model's author named freely: the model and its blobs."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What the header defines per tensor: the macro itself is the position, the others add these endings.
ENDINGS = ("", "_TYPE", "_COUNT", "_BYTES", "_RANK", "_SHAPE", "_SCALE", "_ZERO_POINT")


def model_identifier(name: str) -> str:
    """The model's name in C: every other character becomes an underscore; never empty, never starting with a digit or underscore."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name).lstrip("_")
    return plain if plain[:1].isalpha() else f"net_{plain}" if plain else "net"


def blob_identifiers(names: Sequence[str]) -> list[str]:
    """One upper-case identifier per blob name; a collision, also of what is derived from it, appends _2, _3 ..."""
    taken: set[str] = set()
    found = []
    for name in names:
        plain = re.sub(r"[^A-Z0-9_]", "_", name.upper()) or "_"
        number, candidate = 1, plain
        while taken & {candidate + ending for ending in ENDINGS}:
            number += 1
            candidate = f"{plain}_{number}"
        taken |= {candidate + ending for ending in ENDINGS}
        found.append(candidate)
    return found
