"""Targets by name: `CPU-or-level[+feature...][@linux|android|ios|macos|windows|none]`, or `host`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from cortado.backends.targets import aarch64, arm32, host, x86
from cortado.backends.targets.systems import SYSTEMS
from cortado.compiler.target import Target
from cortado.errors import TargetError


def target_names() -> tuple[str, ...]:
    """Every cpu and level that a target's name may begin with."""
    return ("host", *x86.names(), *aarch64.names(), *arm32.names())


def find_target(name: str) -> Target:
    """The target of that name; TargetError with near matches where there is none.

    Without "@", microcontrollers have no system and all others Linux, on every machine; only `host` looks at this one.
    """
    cpu, added, system = _parts(name)
    if cpu == "host":
        if added or system:
            raise TargetError(f"target {name!r}: 'host' is this machine as it is; it takes neither features nor a system")
        return host.make()
    known = {"x86": x86.names(), "aarch64": aarch64.names(), "arm": arm32.names()}
    family = next((family for family, names in known.items() if cpu in names), None)
    if family is None:
        raise TargetError(f"unknown target {name!r}{_near(cpu, target_names())}; `cortado targets` lists all")
    allowed = {"x86": x86.additions(cpu), "aarch64": tuple(aarch64.ADDITIONS), "arm": arm32.additions(cpu)}[family]
    for feature in added:
        if feature not in allowed:
            what = f"{cpu} takes {', '.join(allowed)}" if allowed else f"{cpu} takes none"
            raise TargetError(f"target {name!r}: no feature {feature!r}{_near(feature, allowed)}; {what}")
    microcontroller = cpu in arm32.MICROCONTROLLERS
    system = system or ("none" if microcontroller else "linux")
    architecture = {"x86": "x86_64", "aarch64": "aarch64", "arm": "arm"}[family]
    systems = ("none",) if microcontroller else tuple(s for s, found in SYSTEMS.items() if architecture in found.triples)
    if system not in systems:
        raise TargetError(f"target {name!r}: no system {system!r} for {cpu}; it runs on {', '.join(systems)}")
    make = {"x86": x86.make, "aarch64": aarch64.make, "arm": arm32.make}[family]
    return make(name, cpu, added, system)


def _parts(name: str) -> tuple[str, list[str], str]:
    """ "cortex-m0+" keeps its plus sign."""
    found = re.fullmatch(r"(cortex-m0\+(?=$|\+|@)|[^+@]+)((?:\+[^+@]+)*)(?:@([^+@]+))?", name)
    if found is None:
        raise TargetError(f"target {name!r} is not of the form CPU[+feature...][@system]")
    return found[1], [feature for feature in found[2].split("+") if feature], found[3] or ""


def _near(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
