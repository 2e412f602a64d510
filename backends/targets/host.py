"""The machine that cortado runs on, as the best target of the tables that it can run."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from cortado.backends.targets import aarch64, x86
from cortado.compiler.target import Memory, Target
from cortado.errors import TargetError


def make() -> Target:
    """Raises TargetError on a machine of another architecture than x86-64 or 64-bit Arm."""
    import llvmlite.binding as llvm

    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform)
    machine = platform.machine().lower()
    if system is None or machine not in ("x86_64", "amd64", "aarch64", "arm64"):
        raise TargetError(f"target 'host': no code generation for {machine} with {sys.platform}")
    present = {name for name, there in llvm.get_host_cpu_features().items() if there}
    if machine in ("aarch64", "arm64"):
        return aarch64.make("host", "aarch64", [name for name in aarch64.ADDITIONS if name in present], system)
    level = next(name for name in reversed(tuple(x86.LEVELS)) if present.issuperset(x86.LEVELS[name]))
    additions = [name for name, needs in x86.ADDITIONS.items() if name in present and present.issuperset(needs)]
    return x86.make("host", level, additions, system, _caches(), processor())


def _caches() -> tuple[Memory, ...]:
    """Data caches as Linux describes them; none where it does not."""
    found: dict[str, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K") and size[:-1].isdigit():
            found[f"l{level}"] = int(size[:-1]) << 10
    return tuple(Memory(kind, nbytes) for kind, nbytes in found.items())


def processor() -> str:
    """LLVM's name of this machine's processor: "znver3"."""
    import llvmlite.binding as llvm

    name: str = llvm.get_host_cpu_name()
    return name
