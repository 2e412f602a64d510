"""Operating systems: what a target's name says after the "@", as the triple's end and the object format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """triples: by architecture as LLVM names it; the oldest version that is supported is part of it."""

    object_format: str
    triples: Mapping[str, str]


SYSTEMS: Mapping[str, System] = {
    "linux": System(
        "elf",
        {
            "x86_64": "x86_64-unknown-linux-gnu",
            "aarch64": "aarch64-unknown-linux-gnu",
            "arm": "armv7a-unknown-linux-gnueabihf",
        },
    ),
    "android": System(
        "elf",
        {
            "x86_64": "x86_64-unknown-linux-android21",
            "aarch64": "aarch64-unknown-linux-android21",
            "arm": "armv7a-unknown-linux-androideabi21",
        },
    ),
    "ios": System("macho", {"aarch64": "arm64-apple-ios12.0.0"}),
    "macos": System("macho", {"x86_64": "x86_64-apple-macosx10.13.0", "aarch64": "arm64-apple-macosx11.0.0"}),
    "windows": System("coff", {"x86_64": "x86_64-pc-windows-msvc", "aarch64": "aarch64-pc-windows-msvc"}),
    "none": System(
        "elf", {"x86_64": "x86_64-unknown-none-elf", "aarch64": "aarch64-unknown-none-elf", "arm": "armv7a-none-eabi"}
    ),
}
