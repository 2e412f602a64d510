"""Reductions over any axes. The order of additions is a function of the shapes and the target, not of the tasks' partition.

Sums are made in parts (per axis, and per run of a long axis) that are added afterwards, so errors grow slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.loops import across_lanes, collapse, drivers, leading_axes, nest, position, task_loop
from cortado.compiler.kernels.scalar import UNSIGNED
from cortado.compiler.lang import SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

RUN = 64  # trips whose terms are added up before their sum joins the others
ACCUMULATORS = 8


def lower_reduce(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """reduce_sum, reduce_mean, reduce_max, reduce_min; integers wrap around in sums; extrema are those of the numbers that are no NaN."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    dtype, scalar = x.type.dtype, SCALAR_OF[x.type.dtype]
    kept = [axis for axis in range(len(x.shape)) if axis not in node.attrs["axes"]]
    gone = [axis for axis in range(len(x.shape)) if axis in node.attrs["axes"]]
    places = kept if node.attrs["keepdims"] else range(len(kept))
    outer = collapse([x.shape[a] for a in kept], [[x.strides[a] for a in kept], [y.strides[p] for p in places]])
    inner = collapse([x.shape[a] for a in gone], [[x.strides[a] for a in gone]])
    k = KernelBuilder(f"{node.op}_{scalar}", target)
    count = prod(inner.shape)
    reduction = _Reduction.of(node.op, dtype, count)
    source, sink = k.param("in0"), k.param("out")
    begin, end = drivers(k)
    body = _Body(
        k, scalar, reduction, outer.shape, outer.strides[0], outer.strides[1], inner.shape, inner.strides[0], source, sink
    )
    tasks = body.across(begin, end) if body.kept_vectors else body.along(begin, end)
    single = not body.kept_vectors and body.steps[-1] != 1 and target.lanes(scalar) > 1
    generic = generic_if("across_rows", single, x.type.size)
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks, generic)]


@dataclass(frozen=True)
class _Reduction:
    """op: of the language; start: its neutral number; divisor: of the result, or 0; parts: whether long runs are split."""

    op: str
    start: float
    divisor: int
    parts: bool

    @staticmethod
    def of(name: str, dtype: str, count: int) -> _Reduction:
        is_float = dtype.startswith("float")
        if name in ("reduce_sum", "reduce_mean"):
            return _Reduction("add", 0, count if name == "reduce_mean" else 0, is_float)
        op = name.removeprefix("reduce_")
        if is_float:
            return _Reduction(op, float("-inf" if op == "max" else "inf"), 0, False)
        limits = np.iinfo(dtype)
        start = int(limits.min if op == "max" else limits.max)
        return _Reduction(("u" if dtype in UNSIGNED else "s") + op, start, 0, False)

    def combine(self, k: KernelBuilder, total: Val, value: Val) -> Val:
        """The total stands second, since that is what min and max give where one is NaN."""
        return k.binary(self.op, value, total)

    def finish(self, k: KernelBuilder, total: Val) -> Val:
        return total / float(self.divisor) if self.divisor > 1 else total


@dataclass(frozen=True)
class _Body:
    """kept: shape of the result, with strides in the input (come) and output (go); gone: the reduced axes, with strides."""

    k: KernelBuilder
    scalar: str
    reduction: _Reduction
    kept: tuple[int, ...]
    come: tuple[int, ...]
    go: tuple[int, ...]
    gone: tuple[int, ...]
    steps: tuple[int, ...]
    source: Val
    sink: Val

    @property
    def kept_vectors(self) -> bool:
        """Whether vectors run across results: neighbours lie side by side in the input and in the output."""
        return self.come[-1] == 1 and self.go[-1] == 1 and self.kept[-1] > 1

    def start(self, lanes: int) -> Val:
        return self.k.const(self.reduction.start, Type(self.scalar, lanes))

    def over(
        self, dims: Sequence[int], steps: Sequence[int], total: list[Val], line: Callable[[Val, list[Val]], list[Val]]
    ) -> list[Val]:
        """Combine `line` (offset, accumulators -> accumulators) over all positions of the dims; sums in parts."""
        k = self.k

        def level(number: int, offset: Val, carried: list[Val]) -> list[Val]:
            if number == len(dims):
                return line(offset, carried)
            size, step = dims[number], steps[number]

            def run(first: Val, past: Val | int, inside: list[Val]) -> list[Val]:
                return list(k.loop(first, past, 1, lambda i, *values: level(number + 1, offset + i * step, list(values)), inside))

            if not self.reduction.parts or (number == 0 and size <= RUN):
                return run(k.index(0), size, carried)
            if size <= RUN:
                return self._joined(carried, run(k.index(0), size, self._fresh(carried)))
            whole = size - size % RUN

            def part(first: Val, *values: Val) -> list[Val]:
                return self._joined(values, run(first, first + RUN, self._fresh(values)))

            done = k.loop(0, whole, RUN, part, carried)
            return self._joined(done, run(k.index(whole), size, self._fresh(done)))

        return level(0, k.index(0), total)

    def _fresh(self, like: Sequence[Val]) -> list[Val]:
        return [self.k.const(self.reduction.start, value.type) for value in like]

    def _joined(self, total: Sequence[Val], part: Sequence[Val]) -> list[Val]:
        return [self.reduction.combine(self.k, t, p) for t, p in zip(total, part, strict=True)]

    # --- vectors across results ---

    def across(self, begin: Val, end: Val) -> int:
        k = self.k
        lanes = min(k.target.sum_lanes(self.scalar), 1 << (self.kept[-1] - 1).bit_length())
        held = min(-(-self.kept[-1] // lanes), ACCUMULATORS)
        chunk = held * lanes
        cuts, rest = -(-self.kept[-1] // chunk), self.kept[-1] % chunk
        dims = [*self.kept[:-1], cuts]
        lead = leading_axes(dims)

        def results(coordinates: list[Val]) -> None:
            come = position(k, coordinates, [*self.come[:-1], chunk])
            go = position(k, coordinates, [*self.go[:-1], chunk])
            if rest and cuts > 1:
                k.if_(k.compare("lt", coordinates[-1], cuts - 1), lambda: some(come, go, chunk), lambda: some(come, go, rest))
            else:
                some(come, go, rest or chunk)

        def some(come: Val, go: Val, count: int) -> None:
            pieces = [(at, min(lanes, count - at)) for at in range(0, count, lanes)]

            def line(offset: Val, carried: list[Val]) -> list[Val]:
                loaded = [k.load_lanes(self.source, Type(self.scalar, lanes), n, come + offset + at) for at, n in pieces]
                return [self.reduction.combine(k, a, v) for a, v in zip(carried, loaded, strict=True)]

            totals = self._several_ways(len(pieces), lanes, line)
            for total, (at, n) in zip(totals, pieces, strict=True):
                k.store_lanes(self.sink, self.reduction.finish(k, total), n, go + at)

        task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: results([*head, *tail])))
        return prod(dims[:lead])

    def _several_ways(self, held: int, lanes: int, line: Callable[[Val, list[Val]], list[Val]]) -> list[Val]:
        """`line` over all reduced axes, with enough accumulators to hide the latency of an operation."""
        k, ways = self.k, max(1, ACCUMULATORS // held)
        size, step = self.gone[-1], self.steps[-1]
        if size < 2 * ways:
            return self.over(self.gone, self.steps, [self.start(lanes)] * held, line)

        def trip(offset: Val, carried: list[Val]) -> list[Val]:
            return [v for w in range(ways) for v in line(offset + w * step, carried[w * held : (w + 1) * held])]

        dims, steps = (*self.gone[:-1], size // ways), (*self.steps[:-1], step * ways)
        several = self.over(dims, steps, [self.start(lanes)] * (held * ways), trip)
        totals = several[:held]
        for w in range(1, ways):
            totals = [self.reduction.combine(k, t, s) for t, s in zip(totals, several[w * held : (w + 1) * held], strict=True)]
        left = size % ways
        if not left:
            return totals
        base = (size - left) * step
        return self.over((*self.gone[:-1], left), self.steps, totals, lambda offset, carried: line(offset + base, carried))

    # --- vectors along the reduced axis ---

    def along(self, begin: Val, end: Val) -> int:
        k = self.k
        lead = leading_axes(self.kept)
        lanes = k.target.sum_lanes(self.scalar) if self.steps[-1] == 1 else 1
        lanes = min(lanes, 1 << (self.gone[-1] - 1).bit_length()) if self.gone[-1] else 1

        def result(coordinates: list[Val]) -> None:
            come, go = position(k, coordinates, self.come), position(k, coordinates, self.go)
            total = self._run_of(come, lanes)
            k.store(self.sink, self.reduction.finish(k, across_lanes(k, total, lambda a, b: self.reduction.combine(k, a, b))), go)

        def row(head: list[Val]) -> None:
            nest(k, self.kept[lead:], lambda tail: result([*head, *tail]))

        task_loop(k, begin, end, self.kept[:lead], row)
        return prod(self.kept[:lead])

    def _run_of(self, come: Val, lanes: int) -> Val:
        """The reduced axes of one result in the lanes of one vector."""
        k, type_ = self.k, Type(self.scalar, lanes)
        size, step = self.gone[-1], self.steps[-1]
        vectors, left = size // lanes, size % lanes
        ways = min(ACCUMULATORS, max(vectors, 1))

        def line(offset: Val, carried: list[Val]) -> list[Val]:
            loaded = [k.load(self.source, type_, come + offset + w * lanes * step) for w in range(len(carried))]
            return [self.reduction.combine(k, a, v) for a, v in zip(carried, loaded, strict=True)]

        def short(offset: Val, carried: list[Val]) -> list[Val]:
            value = k.load_lanes(self.source, type_, left, come + offset + (size - left) * step)
            if self.reduction.start:
                value = k.select(k.first_lanes(lanes, left), value, self.start(lanes))
            return [self.reduction.combine(k, carried[0], value)]

        block = ways * lanes * step
        totals = self.over((*self.gone[:-1], vectors // ways), (*self.steps[:-1], block), [self.start(lanes)] * ways, line)
        total = totals[0]
        for other in totals[1:]:
            total = self.reduction.combine(k, total, other)
        rest, base = vectors % ways, vectors // ways * block
        if rest:
            dims, steps = (*self.gone[:-1], rest), (*self.steps[:-1], lanes * step)
            (total,) = self.over(dims, steps, [total], lambda offset, carried: line(offset + base, carried))
        if left:
            (total,) = self.over(self.gone[:-1], self.steps[:-1], [total], short)
        return total
