"""The interpreter is the kernel language's definition: each node kind does what lang.py says."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from cortado.compiler import lang
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel, run_program
from cortado.compiler.lang import F32, I1, I8, I32, INDEX, Kernel, Type
from cortado.compiler.program import Argument, Buffer, Program, Step
from cortado.compiler.target import Target
from cortado.compiler.types import TensorInfo
from cortado.compiler.virtual import VIRTUALS

ANY = Target(name="any", triple="x86_64-unknown-linux-gnu", cpu="x86-64", family="x86")


def run(kernel: Kernel, *args: np.ndarray | int) -> None:
    compile_kernel(kernel)(*(Pointer(a.view(np.uint8).reshape(-1)) if isinstance(a, np.ndarray) else a for a in args))


def evaluated(record: Callable[..., Val], *inputs: np.ndarray, out: np.dtype) -> np.ndarray:
    """The vector that record(k, loaded inputs) gives."""
    k = KernelBuilder("expression", ANY)
    target = k.param("out")
    scalars = {"float32": "f32", "float64": "f64", "float16": "f16", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64"}
    values = [k.load(k.param(f"a{i}"), Type(scalars[a.dtype.name], a.size)) for i, a in enumerate(inputs)]
    result = record(k, *values)
    k.store(target, result)
    array = np.zeros(result.type.lanes, out)
    run(k.finish(), array, *inputs)
    return array


INTS = np.array([0, 1, -1, 7, -8, 127, -128, 2**31 - 1, -(2**31), 12345, -54321], np.int32)


@pytest.mark.parametrize("op", sorted(lang.BINARY - {"div", "min", "max", "shl", "lshr", "ashr"}))
def test_integer_arithmetic_wraps_around(op: str) -> None:
    a, b = (grid.reshape(-1) for grid in np.meshgrid(INTS, INTS[INTS != 0]))
    got = evaluated(lambda k, x, y: k.binary(op, x, y), a, b, out=np.dtype(np.int32))
    meanings = {
        "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "and": lambda x, y: x & y,
        "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y, "smin": min, "smax": max,
        "umin": lambda x, y: min(x % 2**32, y % 2**32), "umax": lambda x, y: max(x % 2**32, y % 2**32),
        "sdiv": lambda x, y: int(Fraction(x, y)), "srem": lambda x, y: x - int(Fraction(x, y)) * y,
        "udiv": lambda x, y: x % 2**32 // (y % 2**32), "urem": lambda x, y: x % 2**32 % (y % 2**32),
    }  # fmt: skip
    want = [(meanings[op](int(x), int(y)) + 2**31) % 2**32 - 2**31 for x, y in zip(a, b, strict=True)]
    assert got.tolist() == want


@pytest.mark.parametrize("variable", [False, True])
def test_shifts(variable: bool) -> None:
    a = np.array([-8, 8, -1, 1], np.int32)
    by = np.array([2, 2, 2, 2], np.int32)
    for op, want in (("shl", [-32, 32, -4, 4]), ("ashr", [-2, 2, -1, 0]), ("lshr", [0x3FFFFFFE, 2, 0x3FFFFFFF, 0])):
        got = evaluated(lambda k, x, y, op=op: k.binary(op, x, y if variable else 2), a, by, out=np.dtype(np.int32))
        assert got.tolist() == want


def test_shift_by_the_width_is_poison_not_a_number() -> None:
    got = evaluated(
        lambda k, x, y: k.binary("shl", x, y), np.array([1, 1], np.int32), np.array([31, 32], np.int32), out=np.dtype(np.int32)
    )
    assert got.tolist() == [-(2**31), -1]


def test_float_min_and_max_take_the_second_where_either_is_nan() -> None:
    a = np.array([1, np.nan, 3, 0.0, -0.0], np.float32)
    b = np.array([2, 5, np.nan, -0.0, 0.0], np.float32)
    low = evaluated(lambda k, x, y: k.min(x, y), a, b, out=np.dtype(np.float32))
    high = evaluated(lambda k, x, y: k.max(x, y), a, b, out=np.dtype(np.float32))
    np.testing.assert_array_equal(low, np.array([1, 5, np.nan, -0.0, 0.0], np.float32))
    assert np.signbit(low).tolist() == [False, False, bool(np.signbit(low[2])), True, False]
    np.testing.assert_array_equal(high, np.array([2, 5, np.nan, -0.0, 0.0], np.float32))


def test_float_comparisons_are_ordered_except_ne() -> None:
    a = np.array([1, np.nan, 2], np.float32)
    b = np.array([1, 1, 3], np.float32)
    for predicate, want in {"eq": [1, 0, 0], "ne": [0, 1, 1], "lt": [0, 0, 1], "ge": [1, 0, 0]}.items():
        got = evaluated(
            lambda k, x, y, p=predicate: k.convert(k.compare(p, x, y), I32.with_lanes(3), "zext"), a, b, out=np.dtype(np.int32)
        )
        assert got.tolist() == want


def test_float32_stays_float32_at_every_operation() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(64).astype(np.float32) for _ in range(3))
    got = evaluated(lambda k, x, y, z: (x * y + z) / x, a, b, c, out=np.dtype(np.float32))
    np.testing.assert_array_equal(got, (a * b + c) / a)
    scalar = evaluated(lambda k, x, y: k.lane(x, 0) * k.lane(y, 0) + 0.1, a, b, out=np.dtype(np.float32))
    assert scalar[0] == a[0] * b[0] + np.float32(0.1)


def test_conversions() -> None:
    def one(how: str, array: np.ndarray, to: Type, out: type) -> list[float]:
        return evaluated(lambda k, x: k.convert(x, to.with_lanes(array.size), how), array, out=np.dtype(out)).tolist()

    assert one("sext", np.array([-1, 127], np.int8), I32, np.int32) == [-1, 127]
    assert one("zext", np.array([-1, 127], np.int8), I32, np.int32) == [255, 127]
    assert one("trunc", np.array([300, -300], np.int32), I8, np.int8) == [44, -44]
    assert one("fptosi", np.array([2.7, -2.7], np.float32), I32, np.int32) == [2, -2]
    assert one("fptosi", np.array([3e9, np.nan], np.float32), I32, np.int32) == [-1, -1]
    assert one("sitofp", np.array([16777217], np.int32), F32, np.float32) == [16777216.0]
    assert one("uitofp", np.array([-1], np.int32), F32, np.float32) == [4294967296.0]
    assert one("fpext", np.array([0.1], np.float32), Type("f64"), np.float64) == [float(np.float32(0.1))]
    assert one("fptrunc", np.array([1 + 2**-11], np.float32), Type("f16"), np.float16) == [1.0]
    assert evaluated(
        lambda k, x: k.convert(x, I32, "bitcast"), np.array([1, 2, 3, 4], np.int8), out=np.dtype(np.int32)
    ).tolist() == [0x04030201]


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, np.nan, -np.inf], np.float32)
    back = evaluated(
        lambda k, x: k.convert(k.convert(x, Type("bf16", 5), "fptrunc"), Type("f32", 5), "fpext"),
        values,
        out=np.dtype(np.float32),
    )
    np.testing.assert_array_equal(back, np.array([1, 1 + 2**-6, 1 + 2**-7, np.nan, -np.inf], np.float32))


def test_shuffle_picks_from_both_and_leaves_poison() -> None:
    a, b = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    got = evaluated(lambda k, x, y: k.shuffle(x, y, (3, 0, -1)), a, b, out=np.dtype(np.float32))
    assert got[:2].tolist() == [4, 1] and np.isnan(got[2])
    assert evaluated(lambda k, x, y: k.shuffle(x, y, (2,)), a, b, out=np.dtype(np.float32)).tolist() == [3]


def test_loops_carry_values_together() -> None:
    k = KernelBuilder("fibonacci", ANY)
    out, count = k.param("out"), k.param("count", INDEX)
    one = k.const(1, I32)
    pair = k.loop(0, count, 1, lambda i, a, b: (b, a + b), (k.const(0, I32), one))
    k.store(out, pair[0])
    kernel = k.finish()
    array = np.zeros(1, np.int32)
    for n, want in ((0, 0), (1, 1), (10, 55)):
        run(kernel, array, n)
        assert array[0] == want


def test_loop_over_a_range_with_step_and_if() -> None:
    k = KernelBuilder("odd_ones", ANY)
    out, start, stop = k.param("out"), k.param("start", INDEX), k.param("stop", INDEX)

    def body(i: Val) -> None:
        (value,) = k.if_(i % 2 < 1, lambda: (k.const(1, I32),), lambda: (k.convert(i, I32, "trunc") * 10,))
        k.store(out, value, i)

    k.loop(start, stop, 3, body)
    array = np.zeros(10, np.int32)
    run(k.finish(), array, 1, 10)
    assert array.tolist() == [0, 10, 0, 0, 1, 0, 0, 70, 0, 0]


def test_while_counts_bits() -> None:
    k = KernelBuilder("bits", ANY)
    out, source = k.param("out"), k.param("in")
    zero = k.const(0, I32)
    _, bits = k.while_(lambda x, n: k.compare("ne", x, 0), lambda x, n: (x & (x - 1), n + 1), (k.load(source, I32), zero))
    k.store(out, bits)
    array = np.zeros(1, np.int32)
    run(k.finish(), array, np.array([0b1011001], np.int32))
    assert array[0] == 4


def test_calls_share_memory_and_locals_start_as_poison() -> None:
    inner = KernelBuilder("inner", ANY, shared=True)
    p, at = inner.param("p"), inner.param("at", INDEX)
    inner.store(p, inner.load(p, F32, at) * 2, at + 1)
    k = KernelBuilder("outer", ANY)
    out = k.param("out")
    scratch = k.local("f32", 4)
    k.store(scratch, k.const(3, F32), 1)
    k.call(inner.finish(), scratch, 1)
    k.store(out, k.load(scratch, Type("f32", 4)))
    array = np.zeros(4, np.float32)
    run(k.finish(), array)
    assert np.isnan(array[0]) and array[1:3].tolist() == [3, 6] and np.isnan(array[3])


def test_masked_access_touches_only_lanes_that_are_on() -> None:
    k = KernelBuilder("masked", ANY)
    out, source = k.param("out"), k.param("in")
    v4 = Type("f32", 4)
    mask = k.first_lanes(4, 2)
    k.masked_store(out, k.masked_load(source, v4, mask) + 1, mask)
    array = np.zeros(2, np.float32)
    run(k.finish(), array, np.array([5, 6], np.float32))
    assert array.tolist() == [6, 7]


def test_access_outside_or_misaligned_is_named() -> None:
    k = KernelBuilder("careless", ANY)
    p, at = k.param("p"), k.param("at", INDEX)
    k.store(p, k.load(p, Type("f32", 4), at))
    kernel = k.finish()
    run(kernel, np.zeros(5, np.float32), 1)
    for at_element in (2, -1):
        with pytest.raises(
            IndexError, match=rf"careless_\w+: load f32x4 at byte {4 * at_element}: outside its memory of 20 bytes"
        ):
            run(kernel, np.zeros(5, np.float32), at_element)
    with pytest.raises(IndexError, match="not a multiple of 4"):
        compile_kernel(kernel)(Pointer(np.zeros(40, np.uint8), 2), 0)


def test_index_arithmetic() -> None:
    k = KernelBuilder("indices", ANY)
    out, i = k.param("out"), k.param("i", INDEX)
    results = [
        i - 5, k.binary("sdiv", i, -2), k.binary("srem", i, -2), i // 3, i % 3, i << 2, i >> 1, k.max(i, 9),
        k.convert(k.compare("ult", i - 8, 4), Type("i64"), "zext"), k.convert(k.compare("lt", i - 8, 4), Type("i64"), "sext"),
    ]  # fmt: skip
    for at, value in enumerate(results):
        k.store(out, value if value.type.scalar == "i64" else k.convert(value, Type("i64"), "sext"), at)
    array = np.zeros(len(results), np.int64)
    run(k.finish(), array, 7)
    assert array.tolist() == [2, -3, 1, 2, 1, 28, 3, 9, 0, -1]


def test_fma_is_rounded_once() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal(2000).astype(np.float32) for _ in range(3))
    ulp = np.float32(2**-23)
    a[:3], b[:3], c[:3] = 1 + ulp, 1 + ulp, [1, 2.0**24, -(2.0**24)]
    # Ties that the float64 sum invents: 2^24 + 1 is a tie in float32, and the tiny addend only shows in the error term.
    a[3:5], b[3:5], c[3:5] = [2**12 + 2**-12, 2.0**-30], [2**12, 2.0**-30], [2.0**-40, 2**24 + 2]
    a[5:7], b[5:7], c[5:7] = np.float32(2.0**-30), [2.0**-30, -(2.0**-30)], [1 + ulp, 1 + ulp]
    got = VIRTUALS["fma"].meaning(a, b, c)
    for x, y, z, value in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        down, up = np.nextafter(value, np.float32(-np.inf)), np.nextafter(value, np.float32(np.inf))
        error = abs(Fraction(float(value)) - exact)
        for other in (down, up):
            assert error <= abs(Fraction(float(other)) - exact)
        if error == abs(Fraction(float(down)) - exact) or error == abs(Fraction(float(up)) - exact):
            assert value.view(np.int32) % 2 == 0
    assert got.dtype == np.float32


def test_run_program_places_every_buffer() -> None:
    k = KernelBuilder("add_arrays", ANY)
    a, b, out = k.param("a"), k.param("b"), k.param("out")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    k.loop(begin, end, 1, lambda i: k.store(out, k.load(a, F32, i) + k.load(b, F32, i), i))
    kernel = k.finish()
    info = TensorInfo((2, 2), "float32")
    buffers = (
        Buffer("x", "input", 16, 0),
        Buffer("w", "weights", 16, 64),
        Buffer("t", "arena", 16, 64),
        Buffer("y", "output", 16, 0),
    )
    steps = (
        Step(kernel, (Argument(0), Argument(1), Argument(2)), 4, "t", "add"),
        Step(kernel, (Argument(2), Argument(0), Argument(3)), 4, "y", "add"),
    )
    weights = bytes(64) + np.arange(4, dtype=np.float32).tobytes()
    program = Program("p", (("x", info),), (("y", info),), buffers, steps, 80, weights)
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_array_equal(run_program(program, {"x": x})["y"], 2 * x + [[0, 1], [2, 3]])


def test_run_program_keeps_inputs_as_they_are() -> None:
    k = KernelBuilder("careless", ANY)
    a = k.param("a")
    k.param("begin", INDEX), k.param("end", INDEX)
    k.store(a, k.const(0, F32))
    step = Step(k.finish(), (Argument(0),), 1, "y", "relu")
    program = Program("p", (("x", TensorInfo((1,), "float32")),), (), (Buffer("x", "input", 4, 0),), (step,), 0, b"")
    with pytest.raises(ValueError, match="read-only"):
        run_program(program, {"x": np.ones(1, np.float32)})


def test_a_mask_of_one_lane_selects_whole_vectors() -> None:
    a, b = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    got = evaluated(lambda k, x, y: k.select(k.lane(x, 0) < 5.0, x, y), a, b, out=np.dtype(np.float32))
    assert got.tolist() == [1, 2]
    assert evaluated(lambda k, x, y: k.select(k.const(0, I1), x, y), a, b, out=np.dtype(np.float32)).tolist() == [3, 4]
