"""Targets by name, and the instructions their rows stand for, seen in the assembly whatever machine this is."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cortado.backends.codegen import assembly, compile_modules
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target, target_names
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import F32, I8, I32, INDEX, PTR, Kernel, Type
from cortado.compiler.target import Target, reproducible
from cortado.compiler.virtual import TABLE, VIRTUALS
from cortado.errors import TargetError

EXPLICIT = tuple(name for name in target_names() if name != "host")

# Virtual instruction -> what one of its rows becomes, by family; scalars and vectors alike.
MNEMONICS = {
    "x86": {
        "fma": r"vfn?madd\d+[ps]s", "sqrt": r"v?sqrt[ps][sd]",
        "round_even": r"v?(round|rndscale)[ps][sd]\s+\$(8|12|4|0)", "floor": r"v?(round|rndscale)[ps][sd]\s+\$(9|1),",
        "ceil": r"v?(round|rndscale)[ps][sd]\s+\$(10|2),", "f16_to_f32": "vcvt(ph2ps|sh2ss)", "f32_to_f16": "vcvt(ps2ph|ss2sh)",
        "dot2": r"v?p(maddwd|dpwssd)", "dot4": "vpdpbusd", "flip_signs": "vp?xor(d|ps)?",
        "prefetch": "prefetch", "round_i32": "v?cvtps2dq", "narrow_i8": "v?packsswb", "narrow_u8": "v?packuswb",
        "lookup": r"vp(shufb|erm[it]2[bw])",
    },
    "aarch64": {
        "fma": r"fml?add?|fmla", "abs": "fabs", "sqrt": "fsqrt", "round_even": "frintn", "floor": "frintm", "ceil": "frintp",
        "f16_to_f32": "fcvtl?", "f32_to_f16": "fcvtn?", "prefetch": "prfm",
        "lookup": "tbx",
    },
    "arm": {
        "fma": r"vfma\.f32", "abs": r"vabs\.f32", "sqrt": r"vsqrt\.f32", "round_even": r"vrintx\.f32", "floor": r"vrintm\.f32",
        "ceil": r"vrintp\.f32", "leading_zeros": "clz", "mul_high": "umull",
        "f16_to_f32": r"vcvt[bt]?\.f32\.f16", "f32_to_f16": r"vcvt[bt]?\.f16\.f32",
    },
}  # fmt: skip


def applied(target: Target, name: str, types: tuple[Type, ...]) -> Kernel:
    """out[0] = virtual(a[0], a[1], ...), or virtual(a) where it takes a pointer."""
    k = KernelBuilder(f"{name}_row", target)
    out, a = k.param("out"), k.param("a")
    if types == (PTR,):
        k.virtual(name, a)
        return k.finish()
    k.store(out, k.virtual(name, *(k.load(a, type_, i * type_.lanes) for i, type_ in enumerate(types))))
    return k.finish()


@pytest.mark.parametrize("name", EXPLICIT)
def test_every_row_becomes_its_instruction_and_no_call(name: str) -> None:
    target = find_target(name)
    for row in target.rows:
        text = assembly(emit_module([applied(target, row.name, row.types)], target, "t"), target)
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("."))
        assert re.search(rf"^\s+({{vex}}\s+)?({MNEMONICS[target.family][row.name]})", code, re.MULTILINE), (
            f"{name}: {row.name}{row.types}\n{text}"
        )
        assert not re.search(r"^\s+(callq?|bl|blx)\s", code, re.MULTILINE), f"{name}: {row.name}{row.types}\n{text}"


@pytest.mark.parametrize("name", EXPLICIT)
def test_every_virtual_instruction_has_a_form_without_calls(name: str) -> None:
    target = find_target(name)
    if not target.fpu:
        pytest.skip("float operations of cores without a float unit are another test's")
    kind = F32.with_lanes(target.lanes("f32"))
    types = {"prefetch": (PTR,), "fma": (kind,) * 3, "leading_zeros": (I32,), "mul_high": (I32, I32)}
    types |= dict.fromkeys(("f16_to_f32", "bf16_to_f32"), (Type("i16", kind.lanes),))
    types |= dict.fromkeys(("dot2", "dot4"), (I32.with_lanes(kind.lanes),) * 3) | {"flip_signs": (I32.with_lanes(kind.lanes),)}
    types |= dict.fromkeys(("narrow_i8", "narrow_u8"), (I32.with_lanes(4 * kind.lanes),) * 2)
    types["lookup"] = (TABLE, I8.with_lanes(target.lanes("i8")))
    kernels = [applied(target, virtual, types.get(virtual, (kind,))) for virtual in VIRTUALS]
    compile_modules([("m", emit_module(kernels, target, "t"))], target)


def text_of(name: str, record: object) -> str:
    """Assembly of out[i] = record(k, vector a[i], vector b[i]) in a loop."""
    target = find_target(name)
    k = KernelBuilder("sample", target)
    out, a, b, n = k.param("out"), k.param("a"), k.param("b"), k.param("n", INDEX)
    kind = F32.with_lanes(target.lanes("f32"))
    k.loop(0, n, kind.lanes, lambda i: k.store(out, record(k, k.load(a, kind, i), k.load(b, kind, i)), i))  # type: ignore[operator]
    return assembly(emit_module([k.finish()], target, "t"), target)


def fused(k: KernelBuilder, x: Val, y: Val) -> Val:
    return k.virtual("fma", x, y, y)


def smaller(k: KernelBuilder, x: Val, y: Val) -> Val:
    return k.min(x, y)


@pytest.mark.parametrize(
    ("name", "record", "instruction"),
    [
        ("x86-64", smaller, r"minps.*%xmm"),
        ("x86-64-v3", smaller, r"vminps.*%ymm"),
        ("x86-64-v4", smaller, r"vminps.*%zmm"),
        ("x86-64-v3", fused, r"vfmadd\d+ps.*%ymm"),
        ("x86-64-v4", fused, r"vfmadd\d+ps.*%zmm"),
        ("x86-64-v3+avxvnni", fused, r"vfmadd\d+ps.*%ymm"),
        ("x86-64+fma", fused, r"vfmadd\d+ps.*%ymm"),
        ("znver4", fused, r"vfmadd\d+ps.*%zmm"),
        ("aarch64", fused, r"fmla\s+v\d+\.4s"),
        ("cortex-m4", fused, r"vfma\.f32\s+s\d"),
        ("cortex-m55", fused, r"vfma\.f32\s+(q|s)\d"),
        ("arm32-cortex-a7", fused, r"vfma\.f32\s+q\d"),
    ],
)
def test_vectors_are_as_wide_as_the_target_says(name: str, record: object, instruction: str) -> None:
    text = text_of(name, record)
    assert re.search(instruction, text), text


def test_partial_vectors_use_masks() -> None:
    for name, instruction, count in (("x86-64-v3", r"vmaskmovps", 1), ("x86-64-v4", r"vmovups.*\{%k\d\}", 2)):
        target = find_target(name)
        k = KernelBuilder("partial", target)
        p, kind = k.param("p"), F32.with_lanes(target.lanes("f32"))
        k.store_lanes(p, k.load_lanes(p, kind, kind.lanes - 1), kind.lanes - 1)
        text = assembly(emit_module([k.finish()], target, "t"), target)
        assert len(re.findall(instruction, text)) == count, text  # AVX2's masked stores are slow: only its load is masked


def test_copies_and_fills_stay_loops() -> None:
    """LLVM would like to call memcpy and memset."""
    for name in EXPLICIT:
        target = find_target(name)
        k = KernelBuilder("copy", target)
        to, source, n = k.param("to"), k.param("from"), k.param("n", INDEX)
        k.loop(0, n, 1, lambda i, k=k, to=to, source=source: k.store(to, k.load(source, Type("i8"), i), i))
        k.loop(0, n, 1, lambda i, k=k, to=to: k.store(to, k.const(0, Type("i32")), i))
        k.loop(0, 4096, 1, lambda i, k=k, to=to, source=source: k.store(to, k.load(source, Type("i32"), i), i))
        compile_modules([("m", emit_module([k.finish()], target, "t"))], target)


@pytest.mark.parametrize("name", EXPLICIT)
def test_targets_describe_themselves(name: str) -> None:
    target = find_target(name)
    assert target.name == name and target.pointer_bits == (32 if target.family == "arm" else 64)
    assert target.vector_bits in (0, 128, 256, 512) and target.vector_registers in (8, 16, 32)
    assert target.fpu or not any(type_.is_float for row in target.rows for type_ in row.types)


def test_levels_of_x86() -> None:
    levels = [find_target(name) for name in ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")]
    assert [level.vector_bits for level in levels] == [128, 128, 256, 512]
    assert [level.masked for level in levels] == [False, False, True, True]
    assert [level.has("fma", F32, F32, F32) for level in levels] == [False, False, True, True]


def test_reproducible_targets_keep_vectors_and_fuse_nothing() -> None:
    wide, none = find_target("x86-64-v4"), find_target("cortex-m4")
    for target, lanes, sum_lanes in ((wide, 16, 4), (find_target("x86-64"), 4, 4), (none, 1, 1)):
        made = reproducible(target)
        assert (target.sum_lanes("f32"), made.lanes("f32"), made.sum_lanes("f32")) == (lanes, lanes, sum_lanes)
        assert made.sum_lanes("i32") == made.lanes("i32")
        assert {row.name for row in target.rows} - {row.name for row in made.rows} == (
            {"fma"} if target.has("fma", *[F32] * 3) else set()
        )
    with pytest.raises(ValueError, match="sums in 100 bits"):
        replace(wide, sum_bits=100)


def test_systems_choose_triple_and_format() -> None:
    assert find_target("cortex-a53@android").triple.endswith("linux-android21")
    assert find_target("apple-m1@ios").object_format == "macho"
    assert find_target("x86-64-v3@windows").object_format == "coff"
    assert find_target("x86-64-v3").triple == find_target("x86-64-v3@linux").triple


def test_microcontrollers() -> None:
    assert find_target("cortex-m4").fpu and not find_target("cortex-m4+nofp").fpu
    assert not find_target("cortex-m3").fpu and find_target("cortex-m4").pointer_bits == 32
    assert find_target("cortex-m0+").cpu == "cortex-m0plus"


def test_host_is_a_target_of_the_tables() -> None:
    try:
        host = find_target("host")
    except TargetError as error:
        pytest.skip(str(error))
    assert host.name == "host" and host.vector_bits >= 128
    compile_modules([("m", emit_module([applied(host, "fma", (F32,) * 3)], host, "t"))], host)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cortex-m44", ["unknown target 'cortex-m44'", "did you mean cortex-m4"]),
        ("x86-64-v5", ["unknown target", "x86-64-v"]),
        ("x86-64-v3+avx512vnnni", ["no feature 'avx512vnnni'", "did you mean avx512vnni"]),
        ("cortex-m3+nofp", ["no feature 'nofp'", "cortex-m3 takes none"]),
        ("cortex-m4@linux", ["no system 'linux' for cortex-m4", "none"]),
        ("x86-64@beos", ["no system 'beos'", "linux, android, macos, windows, none"]),
        ("host+avx2", ["neither features nor a system"]),
        ("", ["not of the form"]),
        ("a@b@c", ["not of the form"]),
        ("x86-64++fma", ["not of the form"]),
    ],
)
def test_errors_say_what_was_found_and_what_to_do(name: str, words: list[str]) -> None:
    with pytest.raises(TargetError) as caught:
        find_target(name)
    for word in words:
        assert word in str(caught.value)
