"""What a core can do at most: multiply-adds on registers only, written with the kernel language and compiled as every kernel is."""

from __future__ import annotations

import ctypes
import time

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import F32, I32, INDEX, Kernel
from cortado.compiler.target import Target
from cortado.runtime.memory import LoadedCode

CHAINS = 12  # independent sums: two units of four or five cycles need ten; sixteen registers hold twelve and two factors
TRIPS = 20_000
OPERATIONS = 2  # of one multiply-add
DOTS = {"dot4": 4, "dot2": 2}  # multiply-adds of a lane, the best one first


def lanes_of(target: Target) -> int:
    return max(1, target.vector_bits // 32)


def fma_loop(target: Target) -> Kernel:
    """CHAINS sums of vectors, each s = s * a + b, `trips` times; a and b come from memory, the sums go back there."""
    k = KernelBuilder("peak", target)
    memory, trips = k.param("memory"), k.param("trips", INDEX)
    vector = F32.with_lanes(lanes_of(target))
    a, b = k.load(memory, vector, 0), k.load(memory, vector, vector.lanes)

    def step(_: Val, *sums: Val) -> list[Val]:
        return [k.virtual("fma", value, a, b) for value in sums]

    sums = k.loop(0, trips, 1, step, [k.load(memory, vector, (2 + n) * vector.lanes) for n in range(CHAINS)])
    for number, value in enumerate(sums):
        k.store(memory, value, (2 + number) * vector.lanes)
    return k.finish()


def dot_of(target: Target) -> str:
    """The instruction that integer sums are made of: four products at a time where the target has it."""
    words = (I32.with_lanes(lanes_of(target)),) * 3
    return next((name for name in DOTS if target.has(name, *words)), "dot2")


def dot_loop(target: Target) -> Kernel:
    """CHAINS sums of words of integers, each s = dot(s, s, b), `trips` times: a factor of their own, or equal products would be made once."""
    k = KernelBuilder("peak_int8", target)
    memory, trips = k.param("memory"), k.param("trips", INDEX)
    vector, name = I32.with_lanes(lanes_of(target)), dot_of(target)
    b = k.load(memory, vector, vector.lanes)

    def step(_: Val, *sums: Val) -> list[Val]:
        return [k.virtual(name, value, value, b) for value in sums]

    sums = k.loop(0, trips, 1, step, [k.load(memory, vector, (2 + n) * vector.lanes) for n in range(CHAINS)])
    for number, value in enumerate(sums):
        k.store(memory, value, (2 + number) * vector.lanes)
    return k.finish()


class Peak:
    """The loop, ready to measure. dtype: float32 or int8."""

    def __init__(self, dtype: str = "float32") -> None:
        target = find_target("host")
        kernel = fma_loop(target) if dtype == "float32" else dot_loop(target)
        per_lane = 1 if dtype == "float32" else DOTS[dot_of(target)]
        self._operations = OPERATIONS * CHAINS * lanes_of(target) * TRIPS * per_lane
        self._code = LoadedCode(
            [item.data for item in compile_modules([("peak", emit_module([kernel], target, "peak"))], target)]
        )
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t)
        self._run = prototype(self._code.address(symbol("peak", kernel)))
        self._memory = (ctypes.c_float * ((CHAINS + 2) * lanes_of(target) + 16))()

    def measure(self, seconds: float = 0.3) -> float:
        """10^9 operations a second of one core, a multiply-add being two: the fastest of many short loops."""
        start = -(-ctypes.addressof(self._memory) // 64) * 64
        best = float("inf")
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            begin = time.perf_counter()
            self._run(start, TRIPS)
            best = min(best, time.perf_counter() - begin)
        return self._operations / best / 1e9
