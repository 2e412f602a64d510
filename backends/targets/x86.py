"""x86-64: the four levels of the psABI, and named cpus as a level with additions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cortado.backends.targets.conversions import narrow_rows, round_rows
from cortado.backends.targets.dots import x86_dots
from cortado.backends.targets.lookups import x86_lookups
from cortado.backends.targets.rows import PREFETCH, float_rows, half_rows
from cortado.backends.targets.systems import SYSTEMS
from cortado.compiler.target import Memory, Target

_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
MULTI = "x86-64-multi"
LEVELS: Mapping[str, tuple[str, ...]] = {"x86-64": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}

_VNNI = (*_V4, "avx512vnni")
_BF16 = (*_VNNI, "avx512bf16")
_VBMI = (*_BF16, "avx512vbmi")
CPUS: Mapping[str, tuple[str, ...]] = {
    "haswell": _V3, "skylake": _V3, "znver1": _V3, "znver2": _V3, "znver3": _V3, "alderlake": (*_V3, "avxvnni"),
    "skylake-avx512": _V4, "cascadelake": _VNNI, "icelake-client": (*_VNNI, "avx512vbmi"),
    "icelake-server": (*_VNNI, "avx512vbmi"), "cooperlake": _BF16,
    "sapphirerapids": (*_VBMI, "avx512fp16", "avxvnni"), "znver4": _VBMI, "znver5": (*_VBMI, "avxvnni"),
}  # fmt: skip
HALVES = ("znver4",)  # cpus that do the two halves of a long vector one after another
# What a user may add with "+": each with what it builds on.
ADDITIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_V2, ()),
    "avx": _V2, "avx2": (*_V2, "avx"), "fma": (*_V2, "avx"), "f16c": (*_V2, "avx"), "avxvnni": (*_V2, "avx", "avx2"),
    "avx512vnni": _V4, "avx512bf16": _V4, "avx512fp16": _V4, "avx512vbmi": _V4,
}  # fmt: skip


# What a bundle for MULTI carries code for, the least demanding first: levels with what is added to them.
CARRIED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("x86-64", ()), ("x86-64-v3", ()), ("x86-64-v3", ("avxvnni",)), ("x86-64-v4", ()), ("x86-64-v4", ("avx512vnni", "avx512bf16")),
)  # fmt: skip


def names() -> tuple[str, ...]:
    return (*LEVELS, MULTI, *CPUS)


def additions(cpu: str) -> tuple[str, ...]:
    """What may follow a cpu or level, each with a "+"."""
    return () if cpu == MULTI else tuple(ADDITIONS)


def make(
    name: str, cpu: str, additions: Iterable[str], system: str, memories: tuple[Memory, ...] = (), processor: str = ""
) -> Target:
    """cpu: a key of LEVELS or CPUS, or MULTI. additions: keys of ADDITIONS. processor: LLVM's name of what it is, where it is not cpu.

    LLVM is told the level and the features only: a cpu's name would let it use instructions that NAME_init does not probe.
    """
    if cpu == MULTI:
        levels = ("+".join((level, *added)) for level, added in CARRIED)
        made = (make(name, *carried, system) for name, carried in zip(levels, CARRIED, strict=True))
        return replace(make(name, "x86-64", (), system), levels=tuple(made))
    features = set({**LEVELS, **CPUS}[cpu])
    for addition in additions:
        features |= {addition, *ADDITIONS[addition]}
    wide = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= features
    bits = 512 if wide else 256 if "avx" in features else 128
    rows = {"sqrt": ""}
    if "fma" in features:
        rows["fma"] = "+fma"
    if "sse4.1" in features:
        rows |= dict.fromkeys(("round_even", "floor", "ceil"), "+sse4.1")
    return Target(
        name=name,
        triple=SYSTEMS[system].triples["x86_64"],
        object_format=SYSTEMS[system].object_format,
        cpu=next(level for level in reversed(tuple(LEVELS)) if features.issuperset(LEVELS[level])),
        family="x86",
        features=tuple(sorted(f"+{feature}" for feature in features)),
        vector_bits=bits,
        vector_registers=32 if wide else 16,
        masked="avx2" in features,
        products=1 if wide and (processor or cpu) in HALVES else 2,
        rows=(
            *float_rows(rows, bits, ("f32", "f64")),
            *(half_rows("+f16c", bits) if "f16c" in features else ()),
            *x86_dots(features, bits),
            *round_rows(bits),
            *narrow_rows(features, bits),
            *x86_lookups(features),
            PREFETCH,
        ),
        memories=memories or (Memory("l1", 32 << 10), Memory("l2", 512 << 10), Memory("l3", 8 << 20)),
    )
