"""The target of each architecture by which it is decided, for all targets of that architecture, where int8 is worth it.

An int8 network must compute the same on every level of an architecture, so the choice cannot depend on the level.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cortado.backends.targets import arm32, find_target
from cortado.compiler.target import Target

JUDGES: Mapping[str, str] = MappingProxyType({"x86": "x86-64-v3", "aarch64": "cortex-a76"})


def judge_of(target: Target) -> Target | None:
    """None for microcontrollers and cores without vectors or float unit, where int8 also is what fits: there everything becomes int8."""
    if not target.vector_bits or not target.fpu or target.cpu in arm32.MICROCONTROLLERS:
        return None
    return find_target(JUDGES[target.family]) if target.family in JUDGES else target
