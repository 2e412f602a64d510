"""32-bit Arm: Cortex-M microcontrollers and the 32-bit application cores (arm32-...)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cortado.backends.targets.rows import INTEGER_ROWS, INTRINSICS, float_rows, half_rows
from cortado.backends.targets.systems import SYSTEMS
from cortado.compiler.target import Memory, Target


@dataclass(frozen=True)
class Core:
    """architecture: the triple's first word. fpu: LLVM's name of the float32 unit, "" without one.

    rounds: the unit has the instructions that round to an integral value (FPv5 and Armv8). vector_bits: NEON or Helium.
    divides: integer division in hardware. long: long multiplication and leading zeros (all but Armv6-M).
    """

    architecture: str
    fpu: str = ""
    rounds: bool = False
    vector_bits: int = 0
    vector_registers: int = 16
    features: tuple[str, ...] = ()
    clock_hz: int = 0
    divides: bool = True
    long: bool = True


_MHZ = 1_000_000
MICROCONTROLLERS: Mapping[str, Core] = {
    "cortex-m0": Core("thumbv6m", clock_hz=48 * _MHZ, divides=False, long=False),
    "cortex-m0+": Core("thumbv6m", clock_hz=133 * _MHZ, divides=False, long=False),
    "cortex-m3": Core("thumbv7m", clock_hz=72 * _MHZ),
    "cortex-m4": Core("thumbv7em", "vfp4d16sp", vector_registers=32, features=("dsp",), clock_hz=168 * _MHZ),
    "cortex-m7": Core("thumbv7em", "fp-armv8d16sp", True, vector_registers=32, features=("dsp",), clock_hz=480 * _MHZ),
    "cortex-m33": Core("thumbv8m.main", "fp-armv8d16sp", True, vector_registers=32, features=("dsp",), clock_hz=160 * _MHZ),
    "cortex-m55": Core("thumbv8.1m.main", "fp-armv8d16sp", True, 128, 8, ("dsp", "mve.fp"), 400 * _MHZ),
}
APPLICATION_CORES: Mapping[str, Core] = {
    "arm32-cortex-a5": Core("armv7a", "vfp4", False, 128, 16, ("neon",), 500 * _MHZ, divides=False),
    "arm32-cortex-a7": Core("armv7a", "vfp4", False, 128, 16, ("neon",), 900 * _MHZ),
    "arm32-cortex-a8": Core("armv7a", "vfp3", False, 128, 16, ("neon",), 1000 * _MHZ, divides=False),
    "arm32-cortex-a9": Core("armv7a", "vfp3", False, 128, 16, ("neon",), 1000 * _MHZ, divides=False),
    "arm32-cortex-a15": Core("armv7a", "vfp4", False, 128, 16, ("neon",), 1500 * _MHZ),
    "arm32-cortex-a53": Core("armv8a", "fp-armv8", True, 128, 16, ("neon",), 1200 * _MHZ),
    "arm32-cortex-a72": Core("armv8a", "fp-armv8", True, 128, 16, ("neon",), 1500 * _MHZ),
}
# LLVM 20 selects no instruction for roundeven here. rint uses the current rounding mode, which is to nearest even.
_INTRINSICS = {**INTRINSICS, "round_even": "llvm.rint"}
_FUSED = ("vfp4d16sp", "vfp4", "fp-armv8d16sp", "fp-armv8")


def names() -> tuple[str, ...]:
    return (*MICROCONTROLLERS, *APPLICATION_CORES)


def additions(cpu: str) -> tuple[str, ...]:
    """nofp: the variant of the chip without the float unit."""
    return ("nofp",) if MICROCONTROLLERS.get(cpu, Core("")).fpu and not MICROCONTROLLERS[cpu].vector_bits else ()


def make(name: str, cpu: str, added: Iterable[str], system: str) -> Target:
    core = {**MICROCONTROLLERS, **APPLICATION_CORES}[cpu]
    fpu = "" if "nofp" in added else core.fpu
    rows = {"abs": "", "sqrt": ""} if fpu else {}
    if fpu in _FUSED:
        rows["fma"] = f"+{fpu}"
    if fpu and core.rounds:
        rows |= dict.fromkeys(("round_even", "floor", "ceil"), f"+{fpu}")
    microcontroller = cpu in MICROCONTROLLERS
    triple = f"{core.architecture}-none-eabi" if microcontroller else SYSTEMS[system].triples["arm"]
    plus = tuple(f"+{feature}" for feature in (fpu, *core.features) if feature)
    return Target(
        name=name,
        triple=triple.replace("armv7a", core.architecture),
        object_format=SYSTEMS[system].object_format,
        cpu={"cortex-m0+": "cortex-m0plus"}.get(cpu, cpu.removeprefix("arm32-")),
        family="arm",
        features=plus if fpu or not core.fpu else (*plus, "-fpregs"),
        pointer_bits=32,
        vector_bits=core.vector_bits,
        vector_registers=core.vector_registers,
        fpu=bool(fpu),
        divides=core.divides,
        rows=(
            *float_rows(rows, core.vector_bits, intrinsics=_INTRINSICS),
            *(half_rows(f"+{fpu}", core.vector_bits) if fpu in _FUSED else ()),
            *(INTEGER_ROWS if core.long else ()),
        ),
        memories=() if microcontroller else (Memory("l1", 32 << 10), Memory("l2", 256 << 10)),
        clock_hz=core.clock_hz,
    )
