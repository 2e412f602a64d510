"""Random kernels: the interpreter's bits natively, through all of LLVM's simplifications. A failure names its seed."""

from __future__ import annotations

import numpy as np
import pytest
from native import native, runnable_targets

from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.lang import F32, I8, I32, INDEX, Kernel, Type
from cortado.compiler.target import Target

pytestmark = pytest.mark.skipif(not runnable_targets(), reason="no level of this machine's architecture is in the tables")
ROWS, LANES = 6, 8
FLOAT = ("add", "sub", "mul", "div", "min", "max")
INTEGER = ("add", "sub", "mul", "and", "or", "xor", "smin", "smax", "umin", "umax")
CONSTANTS = (0.0, 1.0, -1.0, 0.5, 2.0, -0.0, 3.0, 1e-38, float("inf"))
NUMBERS = (0, 1, -1, 2, 7, 255, -(2**31), 2**31 - 1)


class Maker:
    """Records random instructions on what there is; values of every type are at hand from the start."""

    def __init__(self, seed: int, target: Target) -> None:
        self.rng = np.random.default_rng(seed)
        self.k = KernelBuilder(f"random{seed}", target)

    def pick(self, items: list[Val]) -> Val:
        return items[int(self.rng.integers(len(items)))]

    def some(self, names: tuple[str, ...]) -> str:
        return names[int(self.rng.integers(len(names)))]

    def value(self, kind: Type, values: list[Val]) -> Val:
        """One of the values of the type, or a constant."""
        there = [v for v in values if v.type == kind]
        if there and self.rng.random() < 0.85:
            return self.pick(there)
        numbers = CONSTANTS if kind.is_float else NUMBERS
        return self.k.const(numbers[int(self.rng.integers(len(numbers)))], kind)

    def step(self, values: list[Val]) -> Val:
        k, lanes = self.k, (1, LANES)[int(self.rng.integers(2))]
        f, i = F32.with_lanes(lanes), I32.with_lanes(lanes)

        def pair(kind: Type) -> tuple[Val, Val]:
            return self.value(kind, values), self.value(kind, values)

        def known(kind: Type) -> Val:
            """Operations that fold need a recorded value, not only constants."""
            return self.pick([v for v in values if v.type == kind])

        choice = int(self.rng.integers(14))
        if choice <= 3:
            return k.binary(self.some(FLOAT), known(f), self.value(f, values))
        if choice <= 5:
            return k.binary(self.some(INTEGER), known(i), self.value(i, values))
        if choice == 6:
            return k.binary(self.some(("shl", "lshr", "ashr")), known(i), known(i) & 31)
        if choice == 7:
            return k.virtual("fma", known(f), *pair(f))
        if choice == 8:
            mask = k.compare(self.some(("eq", "ne", "lt", "le", "gt", "ge")), known(f), self.value(f, values))
            return k.select(mask, *pair(self.pick([known(f), known(i)]).type))
        if choice == 9:
            mask = k.compare(self.some(("eq", "ult", "uge", "lt", "ge")), known(i), self.value(i, values))
            return k.select(mask & (k.compare("lt", known(f), known(f)) ^ 1), *pair(f))
        if choice == 10:
            return self.converted(known(f), known(i))
        if choice == 11:
            return k.virtual(self.some(("abs", "sqrt", "floor", "ceil", "round_even")), known(f))
        if choice == 12:
            wanted = [int(x) for x in self.rng.integers(0, 2 * LANES, LANES)]
            return k.shuffle(known(F32.with_lanes(LANES)), known(F32.with_lanes(LANES)), wanted)
        return self.crossed(known(F32), known(F32.with_lanes(LANES)))

    def converted(self, x: Val, n: Val) -> Val:
        k, lanes = self.k, x.type.lanes
        choice = int(self.rng.integers(5))
        if choice == 0:
            return k.convert(n, x.type, self.some(("sitofp", "uitofp")))
        if choice == 1:
            inside = k.select(k.virtual("abs", x) < 2.0**20, x, k.zero(x.type))
            return k.convert(inside, n.type, "fptosi")
        if choice == 2:
            return k.convert(k.convert(n, I8.with_lanes(lanes), "trunc"), n.type, self.some(("sext", "zext")))
        if choice == 3:
            return k.convert(k.compare("lt", x, 1.0), n.type, self.some(("sext", "zext")))
        return k.convert(k.convert(n, x.type, "bitcast"), n.type, "bitcast")

    def crossed(self, scalar: Val, vector: Val) -> Val:
        if self.rng.random() < 0.5:
            return self.k.broadcast(scalar, LANES)
        return self.k.lane(vector, int(self.rng.integers(LANES)))

    def kernel(self) -> Kernel:
        k = self.k
        out, a, n = k.param("out"), k.param("a"), k.param("n", INDEX)
        kinds = (F32, I32, F32.with_lanes(LANES), I32.with_lanes(LANES))

        def body(i: Val, *carried: Val) -> tuple[Val, ...]:
            values = [k.load(a, kind, i * LANES + j) for j, kind in enumerate(kinds)] + list(carried)
            for _ in range(int(self.rng.integers(5, 25))):
                values.append(self.step(values))
            if self.rng.random() < 0.5:
                condition = k.compare("lt", self.pick([v for v in values if v.type == I32]), 100)
                kind = self.pick(values).type
                there = [v for v in values if v.type == kind]
                values += k.if_(condition, lambda: (self.pick(there) + 1,), lambda: (self.pick(there),))
            for j, kind in enumerate(kinds):
                k.store(out, self.pick([v for v in values if v.type == kind]), (i * len(kinds) + j) * LANES)
            return tuple(self.pick([v for v in values if v.type == kind]) for kind in kinds)

        k.loop(0, n, 1, body, [k.const(1, kind) for kind in kinds])
        return k.finish()


def check(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(-(2**31), 2**31, (ROWS + 1) * LANES, np.int64).astype(np.int32)
    ordinary = rng.random(data.size) < 0.7
    data[ordinary] = rng.standard_normal(data.size).astype(np.float32).view(np.int32)[ordinary]
    for target in map(find_target, runnable_targets()):
        kernel = Maker(seed, target).kernel()
        want, got = np.zeros(ROWS * 4 * LANES, np.int32), np.zeros(ROWS * 4 * LANES, np.int32)
        compile_kernel(kernel)(Pointer(want.view(np.uint8)), Pointer(data.view(np.uint8)), ROWS)
        native(kernel, target)(got, data, ROWS)
        # A NaN's sign and payload are not specified, so whatever looks like one is not compared.
        nans = np.isnan(want.view(np.float32)) & np.isnan(got.view(np.float32))
        assert np.where(nans, 0, got).tobytes() == np.where(nans, 0, want).tobytes(), f"seed {seed}, target {target.name}"


@pytest.mark.parametrize("block", range(3))
def test_random_kernels(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        check(seed)


@pytest.mark.slow
def test_many_random_kernels() -> None:
    for seed in range(1000, 1250):
        check(seed)
