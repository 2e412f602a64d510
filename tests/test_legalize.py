"""Kernels for cores without float unit or divider: the same results from integer code, without calls of compiler libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from arm_boards import run_on_mps2
from native import native, runnable_targets

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.lang import F32, I8, I32, I64, INDEX, Block, Kernel, Type
from cortado.compiler.legalize import legalize
from cortado.compiler.target import Target
from cortado.errors import TargetError

SOFT = ("cortex-m0", "cortex-m3", "cortex-m4+nofp", "cortex-m7+nofp", "cortex-m33+nofp")
COUNT = 24


def run(kernel: Kernel, *args: np.ndarray | int) -> None:
    compile_kernel(kernel)(*(Pointer(a.view(np.uint8).reshape(-1)) if isinstance(a, np.ndarray) else a for a in args))


def types_in(block: Block) -> set[str]:
    found = {p.type.scalar for p in block.params}
    for inst in block.body:
        found |= {inst.type.scalar, *(a.type.scalar for a in inst.args)}
        for inner in inst.blocks:
            found |= types_in(inner)
    return found


def everything(target: Target, lanes: int = 1) -> tuple[Kernel, int]:
    """A kernel with every float operation, in a loop over COUNT numbers; and how many rows of COUNT it stores."""
    helper = KernelBuilder("scale", target, shared=True)
    p, at = helper.param("p"), helper.param("at", INDEX)
    helper.store(p, helper.load(p, F32, at) * 0.3, at)
    scale = helper.finish()
    k = KernelBuilder("everything", target)
    out, a, b, n = k.param("out"), k.param("a"), k.param("b"), k.param("n", INDEX)
    kind = F32.with_lanes(lanes)
    area = k.local("f32", 4)
    rows = 0

    def body(i: Val) -> None:
        nonlocal rows
        x, y = k.load(a, kind, i), k.load(b, kind, i)
        k.store(area, k.lane(x, 0), 3)
        k.call(scale, area, 3)
        scaled = k.broadcast(k.load(k.offset(area, 3, "f32"), F32), lanes)
        (branch,) = k.if_(k.lane(x, 0) > 0.0, lambda: (x - y,), lambda: (y - x,))
        (power,) = k.while_(lambda v: k.lane(v, 0) < 64.0, lambda v: (v * 2.0,), (k.virtual("abs", x) + 1.0,))
        small = k.select(k.virtual("abs", x) < 100.0, x, k.const(1.5, kind))
        values = [x + y, x - y, x * y, x / y, k.min(x, y), k.max(x, 0.0), k.virtual("fma", x, y, y), scaled, branch, power]
        values += [k.virtual(name, x) for name in ("abs", "sqrt", "floor", "round_even")]
        values += [k.select(k.compare(p, x, y), x, k.const(float("-inf"), kind)) for p in ("eq", "ne", "lt", "ge")]
        values.append(k.convert(k.convert(small, I8.with_lanes(lanes), "fptosi"), kind, "sitofp"))
        values.append(k.convert(k.convert(y, I32.with_lanes(lanes), "bitcast") ^ 1, kind, "bitcast"))
        values.append(k.broadcast(k.convert(i, F32, "sitofp"), lanes) + k.shuffle(x, y, [lanes + j for j in range(lanes)]))
        rows = len(values)
        for row, value in enumerate(values):
            k.store(out, value, i + COUNT * row)

    k.loop(0, n, lanes, body)
    (total,) = k.loop(0, n, 1, lambda i, s: (s + k.load(a, F32, i),), (k.zero(F32),))
    k.store(out, total, COUNT * rows)
    return k.finish(), COUNT * rows + 1


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    special = np.array([0, -0.0, 1e-41, 3e38, 1, -2.5], np.float32)
    a, b = (rng.standard_normal(COUNT).astype(np.float32) for _ in range(2))
    a[: special.size], b[-special.size :] = special, special
    return a, b


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("name", SOFT)
def test_integer_code_means_the_same(name: str, lanes: int) -> None:
    target = find_target(name)
    kernel, size = everything(target, lanes)
    soft = legalize(kernel, target)
    for item in (soft, *soft.callees()):
        assert not types_in(item.body) & {"f32", "f64", "f16", "bf16"}
    got, want = np.zeros(size, np.float32), np.zeros(size, np.float32)
    run(kernel, want, *inputs(), COUNT)
    run(soft, got, *inputs(), COUNT)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.where(np.isnan(want), 0, got).tobytes() == np.where(np.isnan(want), 0, want).tobytes()


@pytest.mark.parametrize("name", SOFT)
def test_integer_code_calls_nothing_from_outside(name: str) -> None:
    target = find_target(name)
    soft = legalize(everything(target)[0], target)
    compile_modules([("m", emit_module([*soft.callees(), soft], target, "net"))], target)


def test_a_float_unit_leaves_kernels_alone() -> None:
    target = find_target("cortex-m4")
    kernel, _ = everything(target)
    assert legalize(kernel, target) is kernel


def test_soft_functions_are_shared_by_all_kernels() -> None:
    target = find_target("cortex-m3")
    first, second = (legalize(everything(target, lanes)[0], target) for lanes in (1, 4))
    names = [{k.name for k in kernel.callees() if k.family.startswith("soft_")} for kernel in (first, second)]
    assert names[0] == names[1] and len(names[0]) == 6


def divisions(target: Target) -> Kernel:
    k = KernelBuilder("divisions", target)
    out, a, b, n = k.param("out"), k.param("a"), k.param("b"), k.param("n", INDEX)

    def body(i: Val) -> None:
        x, y = k.load(a, I32, i), k.load(b, I32, i)
        values = [k.binary(op, v, w) for op in ("udiv", "urem", "sdiv", "srem") for v, w in ((x, y), (x, k.const(7, I32)))]
        values += [k.convert(k.convert(x, I8, "trunc") // 3, I32, "zext"), x // 8, k.binary("sdiv", x, -3)]
        values += [k.convert(v, I32, "trunc") for v in ((i + 100) // 9, (i + 100) % 9, (i + 100) // n)]
        for row, value in enumerate(values):
            k.store(out, value, i * 16 + row)

    k.loop(0, n, 1, body)
    return k.finish()


def division_inputs() -> tuple[np.ndarray, np.ndarray]:
    a = np.array([0, 1, -1, 2**31 - 1, -(2**31), 100, -100, 12345678], np.int32)
    return a, np.array([5, -(2**31), 1, 2, 3, -7, 7, 2**31 - 1], np.int32)


@pytest.mark.parametrize("name", ["cortex-m0", "arm32-cortex-a8"])
def test_division_without_a_divider(name: str) -> None:
    target = find_target(name)
    kernel = divisions(target)
    legal = legalize(kernel, target)
    got, want = np.zeros((8, 16), np.int32), np.zeros((8, 16), np.int32)
    run(kernel, want, *division_inputs(), 8)
    run(legal, got, *division_inputs(), 8)
    np.testing.assert_array_equal(got, want)
    compile_modules([("m", emit_module([*legal.callees(), legal], target, "net"))], target)


def long_divisions(target: Target, lanes: int) -> Kernel:
    k = KernelBuilder("long_divisions", target)
    out, a, b, n = k.param("out"), k.param("a"), k.param("b"), k.param("n", INDEX)
    kind = I64.with_lanes(lanes)

    def body(i: Val) -> None:
        x, y = k.load(a, kind, i), k.load(b, kind, i)
        divisors = (y, k.const(7, kind), k.const(64, kind), k.const(-3, kind))
        for row, (op, w) in enumerate(itertools.product(("udiv", "urem", "sdiv", "srem"), divisors)):
            k.store(out, k.binary(op, x, w), i + 16 * row)

    k.loop(0, n, lanes, body)
    return k.finish()


def long_inputs() -> tuple[np.ndarray, np.ndarray]:
    top = 2**63
    a = [0, 1, -1, top - 1, -top, 100, -100, 12345678901234, -98765432109876, 2**32, 2**32 - 1, -(2**32), 7, -7, 2**40 + 3, 5]
    b = [5, -top, 1, 2, 3, -7, 7, 1234567, 1000003, 2**16, 2**32, 3, top - 1, -8, 2**20 - 1, 2**33]
    return np.array(a, np.int64), np.array(b, np.int64)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("name", ["cortex-m0", "cortex-m3", "cortex-m4", "arm32-cortex-a7", "arm32-cortex-a8"])
def test_division_of_64_bits_where_pointers_have_32(name: str, lanes: int) -> None:
    target = find_target(name)
    kernel = long_divisions(target, lanes)
    legal = legalize(kernel, target)
    got, want = np.zeros((16, 16), np.int64), np.zeros((16, 16), np.int64)
    run(kernel, want, *long_inputs(), 16)
    run(legal, got, *long_inputs(), 16)
    np.testing.assert_array_equal(got, want)
    assert {k.family for k in legal.callees()} == {"soft_udiv_i64", "soft_urem_i64"}
    compile_modules([("m", emit_module([*legal.callees(), legal], target, "net"))], target)


def test_division_of_64_bits_stays_where_pointers_have_as_many() -> None:
    target = find_target("x86-64-v3")
    kernel = long_divisions(target, 1)
    assert legalize(kernel, target) is kernel


@pytest.mark.emulator
@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m3"])
def test_emulated(core: str) -> None:
    """Floats and divisions on a board, against the interpreter."""
    target = find_target(core)
    kernel, size = everything(target)
    want, quotients = np.zeros(size, np.float32), np.zeros((8, 16), np.int32)
    run(kernel, want, *inputs(), COUNT)
    run(divisions(target), quotients, *division_inputs(), 8)
    legal = [legalize(kernel, target), legalize(divisions(target), target)]
    every = {k.name: k for item in legal for k in (*item.callees(), item)}
    objects = [item.data for item in compile_modules([("m", emit_module(list(every.values()), target, "net"))], target)]

    def c_array(name: str, array: np.ndarray) -> str:
        return f"static const uint32_t {name}[] = {{{', '.join(f'{v}u' for v in array.view(np.uint32))}}};\n"

    text = '#include "board.h"\n'
    for name, array in zip("abcd", (*inputs(), *division_inputs()), strict=True):
        text += c_array(name, array)
    for item in legal:
        text += f"void {symbol('net', item)}(void *, const void *, const void *, size_t);\n"
    text += f"static uint32_t out[{size}], quotients[128];\nint main(void) {{\n"
    text += f"  {symbol('net', legal[0])}(out, a, b, {COUNT});\n  {symbol('net', legal[1])}(quotients, c, d, 8);\n"
    text += f"  put_words(out, {size});\n  put_words(quotients, 128);\n  return 0;\n}}\n"
    words = np.array([int(line, 16) for line in run_on_mps2(text, objects, core=core).split()], np.uint32)
    got = words[:size].view(np.float32)
    np.testing.assert_array_equal(np.where(np.isnan(got), 0, got), np.where(np.isnan(want), 0, want))
    np.testing.assert_array_equal(words[size:].view(np.int32), quotients.reshape(-1))


def test_what_has_no_integer_code_is_an_error() -> None:
    target = find_target("cortex-m3")
    k = KernelBuilder("double", target)
    p = k.param("p")
    k.store(p, k.load(p, Type("f64")) * 2.0)
    with pytest.raises(TargetError, match=r"cortex-m3: there is no float unit, and f64 .* \(kernel double_\w+\)"):
        legalize(k.finish(), target)


def half_kernel(target: Target, scalar: str, lanes: int, count: int) -> Kernel:
    """Every pattern of a 16-bit float widened; float32 numbers narrowed; arithmetic and comparisons on halves."""
    k = KernelBuilder("halves", target)
    wide, narrow, numbers, patterns = k.param("wide"), k.param("narrow"), k.param("numbers"), k.param("patterns")
    half, single = Type(scalar, lanes), F32.with_lanes(lanes)

    def body(i: Val) -> None:
        h, x = k.load(patterns, half, i), k.load(numbers, single, i)
        k.store(wide, k.convert(h, single, "fpext"), i)
        rounded = k.convert(x, half, "fptrunc")
        whole = k.convert(k.select(k.compare("lt", k.virtual("abs", x), 1e6), x, 0.0), I32.with_lanes(lanes), "fptosi")
        values = [
            rounded,
            h + rounded,
            h * rounded,
            h / 3.0,
            k.min(h, rounded),
            k.select(h < 1.0, h, rounded),
            k.convert(whole, half, "sitofp"),
        ]
        if target.lanes("f64") > 1:
            values.append(k.convert(k.convert(x, Type("f64", lanes), "fpext") * (1 + 2.0**-40), half, "fptrunc"))
        for row, value in enumerate(values):
            k.store(narrow, value, i + row * count)

    k.loop(0, count, lanes, body)
    return k.finish()


@pytest.mark.parametrize("scalar", ["f16", "bf16"])
@pytest.mark.parametrize("name", [*runnable_targets(), "cortex-m0", "cortex-m4"])
def test_16_bit_floats(name: str, scalar: str) -> None:
    target = find_target(name)
    count, lanes = (1 << 16, 8) if name in runnable_targets() else (1 << 16, 1 << 13) if target.fpu else (1 << 8, 1)
    patterns = np.arange(0, 1 << 16, (1 << 16) // count, dtype=np.uint16)
    rng = np.random.default_rng(8)
    numbers = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    if scalar == "f16":
        with np.errstate(all="ignore"):
            near = patterns.view(np.float16).astype(np.float32) * (
                1 + rng.integers(-1, 2, count).astype(np.float32) * np.float32(2**-12)
            )
        numbers = np.where(rng.random(count) < 0.5, near, numbers)
    kernel = half_kernel(target, scalar, min(count, 1 << 13), count)
    legal = legalize(half_kernel(target, scalar, lanes, count), target)
    assert not types_in(legal.body) & {"f16", "bf16"}
    wide, narrow = [np.zeros(count, np.uint32) for _ in range(2)], [np.zeros(8 * count, np.uint16) for _ in range(2)]
    with np.errstate(all="ignore"):
        compile_kernel(kernel)(*(Pointer(a.view(np.uint8)) for a in (wide[0], narrow[0], numbers, patterns)))
        if name in runnable_targets():
            native(legal, target)(wide[1], narrow[1], numbers, patterns)
        else:
            compile_kernel(legal)(*(Pointer(a.view(np.uint8)) for a in (wide[1], narrow[1], numbers, patterns)))
    limit = 0x7C00 if scalar == "f16" else 0x7F80
    for (want, got), top, sign in ((wide, 0x7F800000, 0x80000000), (narrow, limit, 0x8000)):
        nans = (want % sign > top) & (got % sign > top)
        np.testing.assert_array_equal(np.where(nans, 0, got), np.where(nans, 0, want))
    if scalar == "f16":
        np.testing.assert_array_equal(wide[0].view(np.float32), patterns.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v2", "cortex-m0", "cortex-m3", "cortex-m4", "arm32-cortex-a8", "aarch64"])
def test_16_bit_floats_call_nothing_from_outside(name: str) -> None:
    target = find_target(name)
    kernels = [legalize(half_kernel(target, scalar, target.lanes("f32"), 64), target) for scalar in ("f16", "bf16")]
    every = {k.name: k for item in kernels for k in (*item.callees(), item)}
    compile_modules([("m", emit_module(list(every.values()), target, "net"))], target)
