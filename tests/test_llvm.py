"""The LLVM emitter gives what the interpreter gives, bit for bit, on every level that this machine runs."""

from __future__ import annotations

import numpy as np
import pytest
from native import native, runnable_targets

from cortado.backends.codegen import assembly, compile_modules
from cortado.backends.llvm import emit_module, ir_constant
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.lang import F32, I8, I32, I64, INDEX, Kernel, Type
from cortado.compiler.target import Target
from cortado.errors import TargetError

pytestmark = pytest.mark.skipif(not runnable_targets(), reason="no level of this machine's architecture is in the tables")
EVERY_LEVEL = pytest.mark.parametrize("target", [find_target(name) for name in runnable_targets()], ids=lambda t: t.name)


def both(kernel: Kernel, target: Target, out: np.ndarray, *args: np.ndarray | int) -> np.ndarray:
    """What the interpreter leaves in `out`, after the native code has been seen to leave the same bits there."""
    interpreted, executed = out.copy(), out.copy()
    memories = (Pointer(a.view(np.uint8).reshape(-1)) if isinstance(a, np.ndarray) else a for a in args)
    compile_kernel(kernel)(Pointer(interpreted.view(np.uint8).reshape(-1)), *memories)
    native(kernel, target)(executed, *args)
    if out.dtype.kind == "f":
        nans = np.isnan(interpreted)
        np.testing.assert_array_equal(nans, np.isnan(executed))
        interpreted, executed = np.where(nans, 0, interpreted), np.where(nans, 0, executed)
    assert interpreted.tobytes() == executed.tobytes()
    return interpreted


SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 1e-40, -1e-45, 3e38, np.inf, -np.inf, np.nan, 8388607.5, -4194304.5], np.float32
)


def special_pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    random = rng.integers(-(2**31), 2**31, 64, np.int32).view(np.float32)
    values = np.concatenate([SPECIAL, random, rng.standard_normal(48).astype(np.float32)])
    return values, rng.permutation(values)


@EVERY_LEVEL
@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_float_operations(target: Target, lanes: int) -> None:
    """At target's full width, below it and above it."""
    k = KernelBuilder("floats", target)
    out, a, b = k.param("out"), k.param("a"), k.param("b")
    kind = F32.with_lanes(lanes)
    x_values, y_values = special_pairs(lanes)
    results = 0

    def body(i: Val) -> None:
        nonlocal results
        x, y = k.load(a, kind, i), k.load(b, kind, i)
        small = k.select(k.compare("lt", k.virtual("abs", x), 2.0**30), x, k.zero(kind))
        values = [x + y, x - y, x * y, x / y, k.min(x, y), k.max(x, y), k.virtual("fma", x, y, x), k.virtual("abs", x)]
        values += [k.select(k.compare(p, x, y), x, y) for p in ("eq", "ne", "lt", "le", "gt", "ge")]
        values += [k.virtual(name, x) for name in ("sqrt", "floor", "ceil", "round_even")]
        values.append(k.convert(k.convert(small, I32.with_lanes(lanes), "fptosi"), kind, "sitofp"))
        results = len(values)
        for at, value in enumerate(values):
            k.store(out, value, i + at * x_values.size)

    k.loop(0, x_values.size, lanes, body)
    both(k.finish(), target, np.zeros((results, x_values.size), np.float32), x_values, y_values)


@EVERY_LEVEL
@pytest.mark.parametrize("scalar", ["i8", "i16", "i32", "i64"])
def test_integer_operations(target: Target, scalar: str) -> None:
    dtype = np.dtype({"i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64"}[scalar])
    rng = np.random.default_rng(3)
    limits = np.iinfo(dtype)
    edges = np.array([limits.min + 1, limits.max, 0, 1, -1, 2], dtype)
    x_values = np.concatenate([edges, rng.integers(limits.min + 1, limits.max, 26, dtype)])
    y_values = np.where(x_values[::-1] == 0, 3, x_values[::-1]).astype(dtype)
    k = KernelBuilder("integers", target)
    out, a, b = k.param("out"), k.param("a"), k.param("b")
    for lanes in (1, 8):
        kind = Type(scalar, lanes)
        for at in range(0, 32, lanes):
            x, y = k.load(a, kind, at), k.load(b, kind, at)
            values = [k.binary(op, x, y) for op in "add sub mul sdiv udiv srem urem smin smax umin umax and or xor".split()]
            values += [k.binary(op, x, y & 7) for op in ("shl", "lshr", "ashr")]
            values += [k.select(k.compare(p, x, y), x, y) for p in ("eq", "ne", "lt", "ge", "ult", "ule", "ugt", "uge")]
            for i, value in enumerate(values):
                k.store(out, value, (0 if lanes == 1 else 32 * 25) + 32 * i + at)
    both(k.finish(), target, np.zeros(2 * 32 * 25, dtype), x_values, y_values)


@EVERY_LEVEL
def test_conversions_and_bits(target: Target) -> None:
    k = KernelBuilder("conversions", target)
    out, a = k.param("out"), k.param("a")
    bytes_, ints = k.load(a, I8.with_lanes(8)), k.load(k.offset(a, 8, "i8"), I32.with_lanes(8))
    scalar = k.load(a, I8)
    values = [
        k.convert(bytes_, I32.with_lanes(8), "sext"), k.convert(bytes_, I32.with_lanes(8), "zext"),
        k.convert(k.convert(ints, I8.with_lanes(8), "trunc"), I32.with_lanes(8), "sext"),
        k.convert(k.convert(ints, F32.with_lanes(8), "sitofp"), I32.with_lanes(8), "bitcast"),
        k.convert(k.convert(ints, F32.with_lanes(8), "uitofp"), I32.with_lanes(8), "bitcast"),
        k.convert(k.compare("lt", ints, 0), I32.with_lanes(8), "sext"), k.convert(k.compare("lt", ints, 0), I32.with_lanes(8), "zext"),
        k.broadcast(k.convert(k.load(a, I8.with_lanes(4)), I32, "bitcast"), 8),
        k.broadcast(k.convert(k.convert(scalar, INDEX, "sext") * -3, I32, "trunc"), 8),
        k.broadcast(k.convert(k.convert(k.convert(scalar, INDEX, "zext"), I64, "sext") >> 1, I32, "trunc"), 8),
    ]  # fmt: skip
    for at, value in enumerate(values):
        k.store(out, value, 8 * at)
    rng = np.random.default_rng(5)
    both(k.finish(), target, np.zeros(8 * len(values), np.int32), rng.integers(-128, 128, 40, np.int8))


@EVERY_LEVEL
def test_shuffles_broadcasts_and_partial_vectors(target: Target) -> None:
    lanes = target.lanes("f32")
    kind = F32.with_lanes(lanes)
    k = KernelBuilder("lanes", target)
    out, a = k.param("out"), k.param("a")
    x, y = k.load(a, kind), k.load(a, kind, lanes)
    k.store(out, k.shuffle(x, y, [2 * lanes - 1 - i for i in range(lanes)]))
    k.store(out, k.broadcast(k.lane(y, lanes - 1), lanes), lanes)
    k.store(out, k.shuffle(k.lane(x, 1), k.lane(y, 2), (1, 0)), 2 * lanes)
    k.store(out, k.lane(k.shuffle(x, y, (lanes + 1,)), 0), 3 * lanes)
    for count in range(lanes + 1):
        k.store_lanes(out, k.load_lanes(a, kind, count, 1) + 0.5, max(count, 1), (4 + count) * lanes)
        k.store_lanes(out, x, count, (5 + lanes + count) * lanes)
    data = np.arange(1, 2 * lanes + 1, dtype=np.float32)
    got = both(k.finish(), target, np.full((2 * lanes + 6, lanes), -1, np.float32), data)
    np.testing.assert_array_equal(got[0], data[::-1][:lanes])
    for count in range(lanes + 1):
        np.testing.assert_array_equal(got[5 + lanes + count], [*data[:count], *[-1] * (lanes - count)])


@EVERY_LEVEL
def test_partial_vectors_touch_nothing_past_their_end(target: Target) -> None:
    """The page behind the array is not there."""
    mmap = pytest.importorskip("mmap")
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 2 * page)
    memory = np.frombuffer(area, np.uint8)
    ctypes = pytest.importorskip("ctypes")
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(memory.ctypes.data + page, page, 0) == 0
    lanes = target.lanes("f32")
    for count in range(1, lanes):
        k = KernelBuilder("edge", target)
        p = k.param("p")
        k.store_lanes(p, k.load_lanes(p, F32.with_lanes(lanes), count) * 2, count)
        edge = memory[page - 4 * count : page].view(np.float32)
        edge[:] = np.arange(count)
        native(k.finish(), target)(edge)
        np.testing.assert_array_equal(edge, 2 * np.arange(count))
    protect(memory.ctypes.data + page, page, 3)


@EVERY_LEVEL
def test_control_flow_calls_and_locals(target: Target) -> None:
    inner = KernelBuilder("squares", target, shared=True)
    p, n = inner.param("p"), inner.param("n", INDEX)
    inner.loop(0, n, 1, lambda i: inner.store(p, inner.convert(i * i, I32, "trunc"), i))
    squares = inner.finish()
    k = KernelBuilder("control", target)
    out, n = k.param("out"), k.param("n", INDEX)
    scratch = k.local("i32", 16)
    k.call(squares, scratch, n)
    zero = k.const(0, I32)

    def outer(i: Val, total: Val, last: Val) -> tuple[Val, Val]:
        def row(j: Val, inner_total: Val) -> tuple[Val]:
            (term,) = k.if_((i + j) % 2 < 1, lambda: (k.load(scratch, I32, j),), lambda: (k.const(1, I32),))
            return (inner_total + term,)

        (both_rows,) = k.loop(i, n, 2, row, (total,))
        return both_rows, total

    total, last = k.loop(0, n, 1, outer, (zero, zero))
    _, steps = k.while_(lambda x, s: k.compare("ugt", x, 1), lambda x, s: (k.binary("lshr", x, 1), s + 1), (total, zero))
    swapped = k.loop(0, n, 1, lambda i, a, b: (b, a), (total, last))
    for at, value in enumerate((total, last, steps, *swapped)):
        k.store(out, value, at)
    kernel = k.finish()
    for n_value in (0, 1, 2, 7, 16):
        both(kernel, target, np.zeros(5, np.int32), n_value)


@EVERY_LEVEL
def test_pointers_move_and_are_carried(target: Target) -> None:
    k = KernelBuilder("pointers", target)
    out, a, n = k.param("out"), k.param("a"), k.param("n", INDEX)

    def body(i: Val, p: Val, q: Val) -> tuple[Val, Val]:
        k.store(p, k.load(q, I32) + 1)
        return k.offset(p, 1, "i32"), k.offset(q, -1, "i32")

    k.loop(0, n, 1, body, (out, k.offset(a, n - 1, "i32")))
    got = both(k.finish(), target, np.zeros(5, np.int32), np.arange(5, dtype=np.int32), 5)
    assert got.tolist() == [5, 4, 3, 2, 1]


@EVERY_LEVEL
def test_float64(target: Target) -> None:
    k = KernelBuilder("doubles", target)
    out, a = k.param("out"), k.param("a")
    kind = Type("f64", 2)
    x = k.load(a, kind)
    values = [
        x * x + 0.1,
        k.virtual("sqrt", x),
        k.virtual("floor", x),
        k.virtual("ceil", x),
        k.virtual("round_even", x),
        k.max(x, 0.25),
    ]
    for at, value in enumerate(values):
        k.store(out, value, 2 * at)
    narrow = k.convert(k.convert(x, F32.with_lanes(2), "fptrunc"), kind, "fpext")
    k.store(out, narrow, 2 * len(values))
    for pair in ([0.1, 2.5], [1e300, -0.0], [4503599627370495.5, 0.5]):
        both(k.finish(), target, np.zeros(2 * len(values) + 2), np.array(pair))


def test_constants_wrap_and_keep_their_bits() -> None:
    target = find_target("x86-64")
    assert ir_constant(0xFFFFFFFF, I32, target) == "-1"
    assert ir_constant(0.1, F32, target) == "0x3FB99999A0000000"
    assert ir_constant(1e300, F32, target) == "0x7FF0000000000000"
    assert ir_constant(-1, INDEX, find_target("cortex-m4")) == "-1"
    assert ir_constant(1.0, Type("f16"), target) == "0xH3C00"
    assert ir_constant(1.0, Type("bf16"), target) == "0xR3F80"


def test_what_cannot_be_emitted_names_target_and_kernel() -> None:
    rich, poor = find_target("x86-64-v3"), find_target("x86-64")
    k = KernelBuilder("fused", rich)
    p = k.param("p")
    x = k.load(p, F32)
    k.store(p, k.virtual("fma", x, x, x))
    with pytest.raises(TargetError, match=r"target x86-64, kernel fused_\w+: no row for fma\(f32, f32, f32\)"):
        emit_module([k.finish()], poor, "m")


@pytest.mark.parametrize("how", ["sitofp", "uitofp"])
@pytest.mark.parametrize("scalar", ["i8", "i16", "i32"])
def test_fixed_point_on_mve_is_no_end_of_the_code_generator(scalar: str, how: str) -> None:
    """LLVM aborts on several vectors of whole numbers times a power of two, unless the two are kept apart."""
    target = find_target("cortex-m55")
    k = KernelBuilder("fixed", target)
    p, out = k.param("p"), k.param("out")
    for row, lanes in enumerate((4, 8, 16)):
        whole = k.load(p, Type(scalar, lanes), 16 * row)
        value = k.convert(whole, F32.with_lanes(lanes), how) * 2.0**-7
        k.store(out, value / 64.0, 32 * row)
        k.store(out, k.convert(value * 2.0**9, I32.with_lanes(lanes), "fptosi"), 32 * row + 16)
    module = emit_module([k.finish()], target, "test")
    compile_modules([("test", module)], target)
    text = assembly(module, target)
    assert "vcvt.f32" in text and "vmul.f32" in text


def test_callees_outside_the_module_are_declared() -> None:
    target = find_target("x86-64-v3")
    inner = KernelBuilder("inner", target, shared=True)
    inner.store(inner.param("p"), inner.const(1, I32))
    shared = inner.finish()
    k = KernelBuilder("driver", target)
    k.call(shared, k.param("p"))
    text = emit_module([k.finish()], target, "net")
    assert f"declare hidden void @net_{shared.name}(ptr)" in text
    assert f"define hidden void @net_{shared.name}(ptr %v1)" in emit_module([shared], target, "net")
