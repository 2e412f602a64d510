"""64-bit Arm: NEON is part of the architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cortado.backends.targets.lookups import NEON_LOOKUPS
from cortado.backends.targets.rows import PREFETCH, float_rows, half_rows
from cortado.backends.targets.systems import SYSTEMS
from cortado.compiler.target import Memory, Target


@dataclass(frozen=True)
class Core:
    """features: what matters to the rows, beyond NEON. l1, l2: bytes of a usual chip with the core."""

    features: tuple[str, ...]
    l1: int
    l2: int
    clock_hz: int = 0


_K, _M, _GHZ = 1 << 10, 1 << 20, 1_000_000_000
_V82 = ("dotprod", "fullfp16", "lse", "rdm")
CORES: Mapping[str, Core] = {
    "aarch64": Core((), 32 * _K, 512 * _K),
    "cortex-a34": Core((), 32 * _K, 256 * _K),
    "cortex-a35": Core((), 32 * _K, 256 * _K, _GHZ),
    "cortex-a53": Core((), 32 * _K, 512 * _K, 1_400_000_000),
    "cortex-a55": Core(_V82, 32 * _K, 256 * _K, 1_800_000_000),
    "cortex-a57": Core((), 32 * _K, 2 * _M, 1_900_000_000),
    "cortex-a72": Core((), 32 * _K, _M, 1_500_000_000),
    "cortex-a73": Core((), 64 * _K, _M, 2_200_000_000),
    "cortex-a75": Core(_V82, 64 * _K, 512 * _K, 2_800_000_000),
    "cortex-a76": Core(_V82, 64 * _K, 512 * _K, 2_400_000_000),
    "cortex-a77": Core(_V82, 64 * _K, 512 * _K, 2_800_000_000),
    "cortex-a78": Core(_V82, 64 * _K, 512 * _K, 2_400_000_000),
    "cortex-a510": Core((*_V82, "bf16", "i8mm"), 32 * _K, 256 * _K, 2_000_000_000),
    "cortex-a710": Core((*_V82, "bf16", "i8mm"), 64 * _K, 512 * _K, 2_500_000_000),
    "cortex-x1": Core(_V82, 64 * _K, _M, 2_800_000_000),
    "neoverse-n1": Core(_V82, 64 * _K, _M, 2_500_000_000),
    "neoverse-v1": Core((*_V82, "bf16", "i8mm"), 64 * _K, _M, 2_600_000_000),
    "neoverse-n2": Core((*_V82, "bf16", "i8mm"), 64 * _K, _M, 2_800_000_000),
    "apple-m1": Core(_V82, 128 * _K, 12 * _M, 3_200_000_000),
    "apple-m2": Core((*_V82, "bf16", "i8mm"), 128 * _K, 16 * _M, 3_500_000_000),
}
_ROWS = ("fma", "abs", "sqrt", "round_even", "floor", "ceil")
ADDITIONS: Mapping[str, tuple[str, ...]] = dict.fromkeys(("dotprod", "fullfp16", "bf16", "i8mm"), ())


def names() -> tuple[str, ...]:
    return tuple(CORES)


def make(name: str, cpu: str, additions: Iterable[str], system: str) -> Target:
    core = CORES[cpu]
    features = sorted({"neon", *core.features, *additions})
    return Target(
        name=name,
        triple=SYSTEMS[system].triples["aarch64"],
        object_format=SYSTEMS[system].object_format,
        cpu="generic" if cpu == "aarch64" else cpu,
        family="aarch64",
        features=tuple(f"+{feature}" for feature in features),
        vector_bits=128,
        vector_registers=32,
        rows=(*float_rows(dict.fromkeys(_ROWS, "+neon"), 128, ("f32", "f64")), *half_rows("+neon", 128), *NEON_LOOKUPS, PREFETCH),
        memories=(Memory("l1", core.l1), Memory("l2", core.l2)),
        clock_hz=core.clock_hz,
    )
