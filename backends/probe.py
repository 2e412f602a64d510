"""Asking an x86 processor, and its operating system, for exactly the features that a target's code uses.

Bit positions: Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E; names are LLVM's. No library function is called: LLVM has no
portable way to execute `cpuid`, so two leaf functions are given as machine code in the `prologue` data of IR functions, which works for
every object format. They have the System V convention on every system, so that one encoding serves all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cortado.compiler.target import Target
from cortado.errors import TargetError

# (leaf, subleaf, register) -> bit -> features, separated by blanks
_BITS: Mapping[tuple[int, int, str], Mapping[int, str]] = {
    (1, 0, "ecx"): {
        0: "sse3", 1: "pclmul", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4.1", 20: "sse4.2 crc32", 22: "movbe", 23: "popcnt", 25: "aes",
        27: "xsave", 28: "avx", 29: "f16c", 30: "rdrnd",
    },
    (1, 0, "edx"): {0: "x87", 8: "cx8", 15: "cmov", 23: "mmx", 24: "fxsr", 25: "sse", 26: "sse2"},
    (7, 0, "ebx"): {
        0: "fsgsbase", 3: "bmi", 5: "avx2", 8: "bmi2", 10: "invpcid", 11: "rtm", 16: "avx512f", 17: "avx512dq", 18: "rdseed", 19: "adx",
        21: "avx512ifma", 23: "clflushopt", 24: "clwb", 28: "avx512cd", 29: "sha", 30: "avx512bw", 31: "avx512vl",
    },
    (7, 0, "ecx"): {
        1: "avx512vbmi", 4: "pku", 5: "waitpkg", 6: "avx512vbmi2", 7: "shstk", 8: "gfni", 9: "vaes", 10: "vpclmulqdq", 11: "avx512vnni",
        12: "avx512bitalg", 14: "avx512vpopcntdq", 22: "rdpid", 23: "kl", 25: "cldemote", 27: "movdiri", 28: "movdir64b", 29: "enqcmd",
    },
    (7, 0, "edx"): {
        5: "uintr", 8: "avx512vp2intersect", 14: "serialize", 16: "tsxldtrk", 18: "pconfig", 22: "amx-bf16", 23: "avx512fp16",
        24: "amx-tile", 25: "amx-int8",
    },
    (7, 1, "eax"): {
        0: "sha512", 1: "sm3", 2: "sm4", 3: "raoint", 4: "avxvnni", 5: "avx512bf16", 7: "cmpccxadd", 21: "amx-fp16", 22: "hreset",
        23: "avxifma", 31: "movrs",
    },
    (7, 1, "edx"): {4: "avxvnniint8", 5: "avxneconvert", 8: "amx-complex", 10: "avxvnniint16", 14: "prefetchi", 15: "usermsr"},
    (13, 1, "eax"): {0: "xsaveopt", 1: "xsavec", 3: "xsaves"},
    (20, 0, "ebx"): {4: "ptwrite"},
    (25, 0, "ebx"): {2: "widekl"},
    (0x80000001, 0, "ecx"): {
        0: "sahf", 5: "lzcnt", 6: "sse4a", 8: "prfchw", 11: "xop", 15: "lwp", 16: "fma4", 21: "tbm", 29: "mwaitx",
    },
    (0x80000001, 0, "edx"): {29: "64bit"},
    (0x80000008, 0, "ebx"): {0: "clzero", 4: "rdpru", 9: "wbnoinvd"},
}  # fmt: skip

_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_IMPLIED = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}  # the levels of the x86-64 psABI

_PLACE = {name: (place, bit) for place, bits in _BITS.items() for bit, names in bits.items() for name in names.split()}
PROBED = frozenset(_PLACE)  # every x86 feature that can be asked for

_REGISTER = {"eax": 0, "ebx": 1, "ecx": 2, "edx": 3}
_OSXSAVE = 1 << 27
# State that the operating system must save on task switches: bits of XCR0.
_STATE = (
    ("avx512", 0xE6),
    ("amx", 0x60006),
    ("avx", 0x6),
    ("fma", 0x6),
    ("f16c", 0x6),
    ("vaes", 0x6),
    ("vpclmulqdq", 0x6),
    ("xop", 0x6),
)

# void cpuid(uint32 leaf edi, uint32 subleaf esi, uint32 out[4] rdx)
_CPUID_CODE = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
# uint32 xgetbv(): the low half of XCR0
_XGETBV_CODE = bytes.fromhex("31c9 0f01d0 c3")


@dataclass(frozen=True)
class Probe:
    """words: (leaf, subleaf, register number, bits that must be set), sorted. state: bits that must be set in XCR0; 0 asks nothing."""

    words: tuple[tuple[int, int, int, int], ...]
    state: int


def features_needed(target: Target) -> frozenset[str]:
    """The features that the target's code may use, without signs, those of its psABI level included. Empty where nothing can be probed."""
    if not target.triple.startswith("x86_64"):
        return frozenset()
    named = {f[1:] for f in target.features if f.startswith("+")}
    return frozenset(named | set(_IMPLIED.get(target.cpu, ())))


def probe_of(target: Target) -> Probe | None:
    """What to ask an x86-64 processor; None for targets whose name alone is the promise. Raises TargetError for an unknown feature."""
    needed = features_needed(target)
    if not target.triple.startswith("x86_64"):
        return None
    unknown = sorted(needed - PROBED)
    if unknown:
        raise TargetError(f"target {target.name}: a processor cannot be asked for {', '.join(unknown)}; leave out these features")
    masks: dict[tuple[int, int, int], int] = {}
    state = 0
    for name in needed:
        (leaf, subleaf, register), bit = _PLACE[name]
        key = (leaf, subleaf, _REGISTER[register])
        masks[key] = masks.get(key, 0) | 1 << bit
        state |= next((bits for prefix, bits in _STATE if name.startswith(prefix)), 0)
    return Probe(tuple((*key, mask) for key, mask in sorted(masks.items())), state)


def probe_functions(prefix: str) -> str:
    """IR of the machine-code functions. They belong in a module of their own: their bodies say nothing true to an optimizer."""
    return "\n".join(
        (
            _machine_code("void", f"{prefix}_cpuid", "i32 %leaf, i32 %subleaf, ptr %out", _CPUID_CODE, "ret void"),
            _machine_code("i32", f"{prefix}_xgetbv", "", _XGETBV_CODE, "ret i32 0"),
        )
    )


def _machine_code(result: str, name: str, params: str, code: bytes, end: str) -> str:
    text = "".join(f"\\{byte:02x}" for byte in code)
    return (
        f"define hidden x86_64_sysvcc {result} @{name}({params}) noinline optnone nounwind "
        f'prologue [{len(code)} x i8] c"{text}" {{\n  {end}\n}}\n'
    )


def probe_declarations(prefix: str) -> str:
    return (
        f"declare hidden x86_64_sysvcc void @{prefix}_cpuid(i32, i32, ptr) nounwind\n"
        f"declare hidden x86_64_sysvcc i32 @{prefix}_xgetbv() nounwind\n"
    )


def probe_checks(probe: Probe, prefix: str, bad: str) -> str:
    """IR lines of an open block that leave for label `bad` unless the processor has everything; they end inside an open block."""
    lines = ["  %cpu = alloca [4 x i32], align 16"]
    passed: list[str] = []

    def ask(leaf: int, subleaf: int) -> None:
        lines.append(f"  call x86_64_sysvcc void @{prefix}_cpuid(i32 {_signed(leaf)}, i32 {subleaf}, ptr %cpu)")

    def check(register: int, mask: int, compare: str) -> None:
        n = len(passed)
        lines.append(f"  %at{n} = getelementptr i8, ptr %cpu, i32 {4 * register}")
        lines.append(f"  %word{n} = load i32, ptr %at{n}, align 4")
        if compare == "eq":
            lines.append(f"  %bits{n} = and i32 %word{n}, {_signed(mask)}")
        lines.append(f"  %is{n} = icmp {compare} i32 %{'bits' if compare == 'eq' else 'word'}{n}, {_signed(mask)}")
        passed.append(f"%is{n}")

    leaves = sorted({(leaf, subleaf) for leaf, subleaf, _, _ in probe.words})
    for base in (0, 0x80000000):
        highest = max((leaf for leaf, _ in leaves if leaf & 0x80000000 == base), default=0)
        if highest:
            ask(base, 0)
            check(0, highest, "uge")
    for leaf, subleaf in leaves:
        ask(leaf, subleaf)
        for _, _, register, mask in (w for w in probe.words if w[:2] == (leaf, subleaf)):
            osxsave = _OSXSAVE if probe.state and (leaf, register) == (1, 2) else 0
            check(register, mask | osxsave, "eq")
    lines += _all_or(passed, "cpuid", bad)
    if probe.state:
        lines.append(f"  %xcr0 = call x86_64_sysvcc i32 @{prefix}_xgetbv()")
        lines.append(f"  %saved = and i32 %xcr0, {probe.state}")
        lines.append(f"  %is_saved = icmp eq i32 %saved, {probe.state}")
        lines += _all_or(["%is_saved"], "state", bad)
    return "\n".join(lines) + "\n"


def _all_or(passed: Sequence[str], label: str, bad: str) -> list[str]:
    """A branch to `bad` unless every truth value holds; opens block `label`."""
    lines, whole = [], "true"
    for n, value in enumerate(passed):
        lines.append(f"  %all_{label}{n} = and i1 {whole}, {value}")
        whole = f"%all_{label}{n}"
    return [*lines, f"  br i1 {whole}, label %{label}, label %{bad}", f"{label}:"]


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
