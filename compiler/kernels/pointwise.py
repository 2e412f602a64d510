"""Elementwise kernels: any expression over broadcast operands in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.loops import Piece, Space, broadcast_strides, collapse, drivers, position, rows, vector_row
from cortado.compiler.kernels.scalar import (
    COMPARISONS,
    FLOAT32_ONLY,
    HALVES,
    UNSIGNED,
    emit_cast,
    emit_op,
    from_memory,
    register_scalar,
    require_float32,
    to_memory,
)
from cortado.compiler.lang import BYTES, SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

Compute = Callable[[KernelBuilder, Sequence[Val]], Val]

PATTERN_VECTORS = 8  # registers that may hold the patterns of short periodic operands


def lower_elementwise(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A single elementwise operator: the expression of that one instruction. UnsupportedError for float64 transcendentals."""
    attrs = tuple(sorted(node.attrs.items()))
    return _lower(node, ((node.op, tuple(range(len(ins))), attrs),), ins, outs, target)


def lower_pointwise(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A fused expression (see `ops.pointwise`)."""
    return _lower(node, node.attrs["expr"], ins, outs, target)


def _lower(
    node: Node,
    expr: Sequence[tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...]]],
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    target: Target,
) -> list[KernelCall]:
    dtypes = [operand.type.dtype for operand in ins]
    for name, args, attrs in expr:
        if name in FLOAT32_ONLY and dtypes[args[0]] not in HALVES:
            require_float32(node, dtypes[args[0]])
        dtypes.append(_result_dtype(name, [dtypes[a] for a in args], dict(attrs)))

    def compute(k: KernelBuilder, values: Sequence[Val]) -> Val:
        known = list(values)
        for name, args, attrs in expr:
            operands = [known[a] for a in args]
            if name == "cast":
                known.append(emit_cast(k, operands[0], dtypes[args[0]], dict(attrs)["dtype"]))
            else:
                known.append(emit_op(k, name, operands, dict(attrs), dtypes[args[0]] in UNSIGNED))
        return known[-1]

    # long computations fill the registers with their constants
    unroll = target.vector_registers // 16 if any(name in FLOAT32_ONLY for name, _, _ in expr) else 4
    return map_elements(node.op, compute, ins, outs[0], target, max(1, unroll), dtypes)


def _result_dtype(name: str, args: Sequence[str], attrs: dict[str, Any]) -> str:
    if name == "cast":
        return str(attrs["dtype"])
    if name in COMPARISONS:
        return "bool"
    return args[1] if name == "where" else args[0]


def map_elements(
    family: str,
    compute: Compute,
    ins: Sequence[Operand],
    out: Operand,
    target: Target,
    unroll: int = 4,
    dtypes: Sequence[str] = (),
) -> list[KernelCall]:
    """out[i] = compute(ins[i] ...) with numpy's broadcasting; `compute` gets and gives values as `scalar.emit_op` does.

    dtypes: of values inside the computation, where they are wider than the operands'. Every element of an input is read before the same
    element of the output is written, so an input of the output's shape may be the output.
    """
    if out.type.size == 0:
        return []
    operands = [*ins, out]
    space = collapse(out.shape, [broadcast_strides(operand, out.shape) for operand in operands])
    widest = max((register_scalar(d) for d in (*dtypes, *(o.type.dtype for o in operands))), key=lambda s: BYTES[s])
    lanes = target.lanes(widest)
    space, period = _periodic(space, lanes)
    single = any(s[-1] not in (0, 1) for s in space.strides) and not period
    generic = generic_if("single_elements", single and lanes > 1, out.type.size)
    lanes = 1 if single else lanes
    k = KernelBuilder(f"{family}_{SCALAR_OF[out.type.dtype]}", target)
    emitter = _Emitter(k, compute, operands, space, lanes, period, unroll)
    emitter.pointers = [k.param(f"in{i}") for i in range(len(ins))] + [k.param("out")]
    begin, end = drivers(k)
    emitter.prepare()
    tasks = rows(k, begin, end, space.shape, lanes * emitter.unroll, emitter.row)
    refs = (*(Ref("input", i) for i in range(len(ins))), Ref("output", 0))
    return [KernelCall(k.finish(), refs, tasks, tasks, generic)]


def _periodic(space: Space, lanes: int) -> tuple[Space, int]:
    """Where the last axis is short, and each operand is either dense over the last two axes or repeats its last one: both axes as one.

    Gives the period (the short axis' size) or 0. Repeating operands keep stride -1 as their mark on the joined axis.
    """
    if len(space.shape) < 2 or lanes == 1 or space.shape[-1] % lanes == 0:
        return space, 0
    outer, inner = space.shape[-2:]
    vectors = inner // gcd(inner, lanes)
    joined: list[int] = []
    for strides in space.strides:
        if strides[-2:] == (inner, 1):
            joined.append(1)
        elif strides[-2:] == (0, 0):
            joined.append(0)
        elif strides[-2:] == (0, 1):
            joined.append(-1)
        else:
            return space, 0
    if vectors * joined.count(-1) > PATTERN_VECTORS or outer * inner < 2 * vectors * lanes:
        return space, 0
    together = tuple((*old[:-2], new) for old, new in zip(space.strides, joined, strict=True))
    return Space((*space.shape[:-2], outer * inner), together), inner


class _Emitter:
    """Records the rows of one elementwise kernel. Operands: inputs, then the output."""

    def __init__(
        self, k: KernelBuilder, compute: Compute, operands: Sequence[Operand], space: Space, lanes: int, period: int, unroll: int
    ) -> None:
        self.k, self.compute, self.space, self.lanes, self.period = k, compute, space, lanes, period
        self.dtypes = [operand.type.dtype for operand in operands]
        self.unroll = period // gcd(period, lanes) if period else unroll
        self.pointers: list[Val] = []
        self.everywhere: dict[int, Val] = {}

    def prepare(self) -> None:
        """Load what is one number for the whole tensor."""
        for number, strides in enumerate(self.space.strides[:-1]):
            if not any(strides):
                self.everywhere[number] = self._spread(number, self.pointers[number])

    def row(self, coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
        k = self.k
        at = []
        for pointer, strides, dtype in zip(self.pointers, self.space.strides, self.dtypes, strict=True):
            at.append(k.offset(pointer, position(k, coordinates, strides[:-1]), SCALAR_OF[dtype]))
        fixed: dict[int, Val] = dict(self.everywhere)
        patterns: dict[int, list[Val]] = {}
        for number, strides in enumerate(self.space.strides[:-1]):
            if strides[-1] == -1:
                patterns[number] = self._pattern(number, at[number])
            elif strides[-1] == 0 and number not in fixed:
                fixed[number] = self._spread(number, at[number])

        def body(pieces: list[Piece]) -> None:
            values = [
                [
                    fixed[n] if n in fixed else patterns[n][i] if n in patterns else self._load(n, at[n], index, count)
                    for n in range(len(at) - 1)
                ]
                for i, (index, count) in enumerate(pieces)
            ]
            results = [self.compute(k, v) for v in values]
            for result, (index, count) in zip(results, pieces, strict=True):
                stored = to_memory(k, k.broadcast(result, self.lanes), self.dtypes[-1])
                k.store_lanes(at[-1], stored, count, self._scaled(index, -1))

        vector_row(k, self.space.shape[-1], self.lanes, self.unroll, body, part)

    def _type(self, number: int, lanes: int) -> Type:
        return Type(SCALAR_OF[self.dtypes[number]], lanes)

    def _scaled(self, index: Val, number: int) -> Val:
        return index * abs(self.space.strides[number][-1])

    def _load(self, number: int, pointer: Val, index: Val, count: int) -> Val:
        value = self.k.load_lanes(pointer, self._type(number, self.lanes), count, self._scaled(index, number))
        return from_memory(self.k, value, self.dtypes[number])

    def _spread(self, number: int, pointer: Val) -> Val:
        value = self.k.broadcast(self.k.load(pointer, self._type(number, 1)), self.lanes)
        return from_memory(self.k, value, self.dtypes[number])

    def _pattern(self, number: int, pointer: Val) -> list[Val]:
        """The vectors of a short operand repeated over and over, from one period of it."""
        k, type_ = self.k, self._type(number, self.lanes)
        pieces = [k.load_lanes(pointer, type_, min(self.lanes, self.period - at), at) for at in range(0, self.period, self.lanes)]
        return [from_memory(k, self._gather(pieces, i * self.lanes), self.dtypes[number]) for i in range(self.unroll)]

    def _gather(self, pieces: Sequence[Val], start: int) -> Val:
        """One vector whose lane j is element (start + j) mod period of the pieces."""
        wanted = [(start + j) % self.period for j in range(self.lanes)]
        value = self.k.shuffle(pieces[0], pieces[0], [w if w < self.lanes else -1 for w in wanted])
        for number, piece in enumerate(pieces[1:], 1):
            lanes = [self.lanes + w % self.lanes if w // self.lanes == number else j for j, w in enumerate(wanted)]
            value = self.k.shuffle(value, piece, lanes)
        return value
