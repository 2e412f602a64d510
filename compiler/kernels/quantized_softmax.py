"""Softmax of bytes, integers all through: terms from a table, their sum, and quotients to the whole number below.

Whatever computes a quotient, it is exact, so that every target has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import (
    Piece,
    across_lanes,
    collapse,
    drivers,
    leading_axes,
    nest,
    position,
    rows,
    task_loop,
    vector_row,
)
from cortado.compiler.kernels.quantized_table import UNROLL, look_up_bytes, look_up_vectors, looks_up
from cortado.compiler.kernels.requantize import PACKED, joined
from cortado.compiler.lang import F32, I8, I32, INDEX, Type
from cortado.compiler.ops.quantized_elementwise import softmax_table
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.virtual import TABLE

# Most elements that are divided themselves; for more, the quotients of all bytes are made and looked up. Half as many where the bytes of terms
# are looked up too.
FEW = 128
DIGITS = 3  # bytes of a term
BELOW = 0.49  # the half that is added before dividing, less what float32 may be off: a guess is never too large


def lower_q_softmax(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Over any one axis."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    axis, size = node.attrs["axis"], x.shape[node.attrs["axis"]]
    terms = softmax_table(scale_of(node.inputs[0].type)[0], size)
    others = [i for i in range(len(x.shape)) if i != axis]
    space = collapse([x.shape[i] for i in others], [[o.strides[i] for i in others] for o in (x, y)])
    k = KernelBuilder("q_softmax", target)
    steps, lanes = (x.strides[axis], y.strides[axis]), target.lanes("i32") if target.fpu else 1
    first = (256 - _nonzero(terms)) // (PACKED * lanes) * (PACKED * lanes)
    along = lanes > 1 and steps == (1, 1)
    cheap = _looks_up_digits(target)
    many = along and size > min(FEW // 2 if cheap else FEW, 256 - first)
    across = lanes > 1 and not along and space.strides[0][-1] == space.strides[1][-1] == 1 and space.shape[-1] > 1
    by_digits = cheap and (many or across)
    source, numbers = k.param("in0"), k.param("terms")
    digits = [k.param("digits")] if by_digits else []
    sink = k.param("out")
    begin, end = drivers(k)
    tables = [k.load(param, TABLE, 256 * i) for param in digits for i in range(DIGITS)]
    low, signed = node.attrs["quant"].zero_points[0], x.type.dtype == "int8"
    made = _Softmax(k, numbers, tables, size, steps, signed, low, first)

    def places(at: Sequence[Val]) -> tuple[Val, Val]:
        come, go = (k.offset(p, position(k, at, s[: len(at)]), "i8") for p, s in zip((source, sink), space.strides, strict=True))
        return come, go

    if across:
        width = target.lanes("i8") if by_digits else lanes

        def row(at: list[Val], part: tuple[Val, Val] | None) -> None:
            vector_row(k, space.shape[-1], width, 1, lambda pieces: made.across(places(at), pieces[0], width), part)

        tasks = rows(k, begin, end, space.shape, width, row)
    else:
        one = made.many if many else made.few if along else made.one_by_one
        lead = leading_axes(space.shape)
        task_loop(
            k, begin, end, space.shape[:lead], lambda head: nest(k, space.shape[lead:], lambda tail: one(places([*head, *tail])))
        )
        tasks = prod(space.shape[:lead])
    arrays = [terms.astype(np.uint32).view(np.int32), *([_digits(terms)] if by_digits else [])]
    refs = (Ref("input", 0), *(Ref("weights", array=array) for array in arrays), Ref("output", 0))
    return [KernelCall(k.finish(), refs, tasks, tasks if prod(x.shape[:axis]) > 1 else 0)]


def _looks_up_digits(target: Target) -> bool:
    """Whether looking up the bytes of a term by vectors takes less than an instruction an element."""
    lanes = target.lanes("i8")
    return looks_up(target) and DIGITS * target.instructions("lookup", TABLE, I8.with_lanes(lanes)) <= lanes


def _digits(terms: np.ndarray) -> np.ndarray:
    """uint8[DIGITS, 256]: the terms' bytes, the lowest first."""
    return np.stack([(terms >> 8 * i & 255).astype(np.uint8) for i in range(DIGITS)])


def _nonzero(terms: np.ndarray) -> int:
    """How many of the last terms may have a quotient above zero: the sum is never less than the last one."""
    return int((512 * terms >= terms[-1]).sum())


def _sum(a: Val, b: Val) -> Val:
    return a + b


@dataclass(frozen=True)
class _Divisor:
    """A sum, half of it, and 256 / sum as float32; scalars, or vectors where every lane has its own."""

    total: Val
    half: Val
    reciprocal: Val

    def spread(self, k: KernelBuilder, lanes: int) -> _Divisor:
        return _Divisor(*(k.broadcast(value, lanes) for value in (self.total, self.half, self.reciprocal)))


@dataclass(frozen=True)
class _Softmax:
    """What kernels of one node share. numbers: int32[256], the terms. tables: of their bytes, the lowest first, where these are looked up
    by vectors. steps: of the axis, in the input and in the result.

    signed: whether the input's bytes are. low: the result's zero point, its type's least number. first: where the terms begin whose
    quotients may be above 0, a multiple of PACKED vectors.
    """

    k: KernelBuilder
    numbers: Val
    tables: Sequence[Val]
    size: int
    steps: tuple[int, int]
    signed: bool
    low: int
    first: int

    @property
    def _extend(self) -> str:
        return "sext" if self.signed else "zext"

    def one_by_one(self, places: tuple[Val, Val]) -> None:
        k, (come, go) = self.k, places

        def byte(i: Val) -> Val:
            return k.convert(k.load(come, I8, i * self.steps[0]), I32, self._extend)

        (greatest,) = k.loop(0, self.size, 1, lambda i, most: [k.max(most, byte(i))], [k.const(-128, I32)])

        def term(i: Val) -> Val:
            return k.load(self.numbers, I32, k.convert(byte(i) - greatest + 255, INDEX, "zext"))

        (total,) = k.loop(0, self.size, 1, lambda i, part: [part + term(i)], [k.zero(I32)])
        divisor = _Divisor(total, k.binary("lshr", total, 1), total)

        def result(i: Val) -> None:
            share = k.binary("umin", self._quotient(term(i), divisor), 255)
            k.store(go, k.convert(share + self.low, I8, "trunc"), i * self.steps[1])

        k.loop(0, self.size, 1, result)

    def few(self, places: tuple[Val, Val]) -> None:
        """Neighbouring elements, all of them at once."""
        k, (come, go) = self.k, places
        block = PACKED * k.target.lanes("i32")
        greatest = self._top(come)
        pieces = [(k.index(at), min(block, self.size - at)) for at in range(0, self.size, block)]
        terms = [self._terms_of(come, greatest, piece) for piece in pieces]
        total, *others = [value for values in terms for value in values]
        for value in others:
            total = total + value
        divisor = self._divisor(across_lanes(k, total, _sum)).spread(k, total.type.lanes)
        for (at, count), values in zip(pieces, terms, strict=True):
            k.store_lanes(go, self._bytes([self._quotient(value, divisor) for value in values]), count, at)

    def many(self, places: tuple[Val, Val]) -> None:
        """Neighbouring elements: the quotients of all bytes, then those of the elements."""
        k, (come, go) = self.k, places
        greatest = self._top(come)
        total = self._sum_of_digits(come, greatest) if self.tables else self._sum_of_terms(come, greatest)
        lanes = k.target.lanes("i32")
        divisor, block = self._divisor(total).spread(k, lanes), PACKED * lanes

        def quotients(i: Val) -> Val:
            terms = [k.load(self.numbers, I32.with_lanes(lanes), i + u * lanes) for u in range(PACKED)]
            return self._bytes([self._quotient(value, divisor) for value in terms])

        if looks_up(k.target):
            none = k.const(self.low, I8.with_lanes(block))
            table = joined(k, [none if i < self.first else quotients(k.index(i)) for i in range(0, 256, block)])
            look_up_vectors(k, table, come, go, self.size, index=lambda v: v - self._least(greatest, v.type.lanes))
        else:
            entries = k.local("i8", 256)
            k.loop(0, self.first, block, lambda i: k.store(entries, k.const(self.low, I8.with_lanes(block)), i))
            k.loop(self.first, 256, block, lambda i: k.store(entries, quotients(i), i))
            table = k.offset(entries, self._first(greatest), "i8")
            look_up_bytes(k, table, places, self.steps, k.index(0), k.index(self.size), self._extend)

    def across(self, places: tuple[Val, Val], piece: Piece, width: int) -> None:
        """Neighbouring softmaxes, one in each lane of `width` bytes."""
        k, (come, go), (at, count) = self.k, places, piece
        kind, lanes = I8.with_lanes(width), k.target.lanes("i32")

        def bytes_at(i: Val) -> Val:
            return k.load_lanes(come, kind, count, i * self.steps[0] + at)

        (top,) = k.loop(0, self.size, 1, lambda i, most: [self._larger(most, bytes_at(i))], [self._lowest(kind)])

        def terms(i: Val) -> list[Val]:
            indices = bytes_at(i) - top - 1
            if self.tables:
                return self._words_of(indices, count)
            each = [k.convert(k.lane(indices, lane), INDEX, "zext") for lane in range(count)]
            return [self._vector([k.load(self.numbers, I32, index) for index in each])]

        used = [min(lanes, count - start) for start in range(0, count, lanes)]
        starts = [k.select(k.first_lanes(lanes, n), k.zero(I32.with_lanes(lanes)), 1) for n in used]  # nothing is divided by zero
        totals = k.loop(0, self.size, 1, lambda i, *parts: list(map(_sum, parts, terms(i))), starts)
        divisors = [self._divisor(total) for total in totals]

        def result(i: Val) -> None:
            k.store_lanes(go, self._bytes(list(map(self._quotient, terms(i), divisors))), count, i * self.steps[1] + at)

        k.loop(0, self.size, 1, result)

    # --- the largest byte, and what is found from it ---

    def _larger(self, a: Val, b: Val) -> Val:
        return self.k.binary("smax" if self.signed else "umax", a, b)

    def _lowest(self, kind: Type) -> Val:
        return self.k.const(-128 if self.signed else 0, kind)

    def _top(self, come: Val) -> Val:
        """The largest of neighbouring bytes."""
        k = self.k
        kind = I8.with_lanes(min(k.target.lanes("i8"), 1 << (self.size - 1).bit_length()))
        lanes, lowest = kind.lanes, self._lowest(kind)
        step = lanes * UNROLL
        whole = self.size - self.size % step

        def larger(i: Val, *most: Val) -> list[Val]:
            return [self._larger(value, k.load(come, kind, i + u * lanes)) for u, value in enumerate(most)]

        found = list(k.loop(0, whole, step, larger, [lowest] * UNROLL))
        for u, at in enumerate(range(whole, self.size, lanes)):
            count = min(lanes, self.size - at)
            value = k.load_lanes(come, kind, count, at)
            if count < lanes:
                value = k.select(k.first_lanes(lanes, count), value, lowest)
            found[u] = self._larger(found[u], value)
        while len(found) > 1:
            found = [self._larger(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
        return across_lanes(k, found[0], self._larger)

    def _least(self, greatest: Val, lanes: int) -> Val:
        """What is taken from bytes, wrapping around, to have indices: of the largest it leaves 255."""
        return self.k.broadcast(greatest + 1, lanes)

    def _first(self, greatest: Val) -> Val:
        """Where in a table of 256 entries the byte 0 would have its own; bytes are added to it."""
        return 255 - self.k.convert(greatest, INDEX, self._extend)

    def _table_of(self, greatest: Val) -> Val:
        """The terms, for bytes as indices."""
        return self.k.offset(self.numbers, self._first(greatest), "i32")

    # --- terms ---

    def _terms_of(self, come: Val, greatest: Val, piece: Piece) -> list[Val]:
        """Of neighbouring elements, as vectors; 0 in what lanes are left."""
        k, (at, count), lanes = self.k, piece, self.k.target.lanes("i32")
        table = self._table_of(greatest)
        each = [k.load(table, I32, k.convert(k.load(come, I8, at + i), INDEX, self._extend)) for i in range(count)]
        return [self._vector(each[start : start + lanes]) for start in range(0, count, lanes)]

    def _digits_of(self, indices: Val, count: int) -> list[Val]:
        """The bytes of the first `count` terms; 0 in what lanes are left."""
        k, lanes = self.k, indices.type.lanes
        found = [k.virtual("lookup", table, indices) for table in self.tables]
        return found if count == lanes else [k.select(k.first_lanes(lanes, count), value, 0) for value in found]

    def _words_of(self, indices: Val, count: int) -> list[Val]:
        k, digits = self.k, self._digits_of(indices, count)
        lanes = k.target.lanes("i32")

        def word(start: int) -> Val:
            parts = [k.convert(k.shuffle(d, d, range(start, start + lanes)), I32.with_lanes(lanes), "zext") for d in digits]
            total = parts[0]
            for number, part in enumerate(parts[1:], 1):
                total = total | (part << 8 * number)
            return total

        return [word(start) for start in range(0, count, lanes)]

    def _vector(self, values: Sequence[Val]) -> Val:
        """Scalars as a vector, 0 in what lanes are left."""
        k = self.k
        return joined(k, [*values, *[k.zero(I32)] * (k.target.lanes("i32") - len(values))])

    # --- sums ---

    def _sum_of_terms(self, come: Val, greatest: Val) -> Val:
        k, table = self.k, self._table_of(greatest)

        def term(i: Val) -> Val:
            return k.load(table, I32, k.convert(k.load(come, I8, i), INDEX, self._extend))

        whole = self.size - self.size % UNROLL
        parts = k.loop(
            0, whole, UNROLL, lambda i, *sums: [part + term(i + u) for u, part in enumerate(sums)], [k.zero(I32)] * UNROLL
        )
        total = (parts[0] + parts[1]) + (parts[2] + parts[3])
        for i in range(whole, self.size):
            total = total + term(k.index(i))
        return total

    def _sum_of_digits(self, come: Val, greatest: Val) -> Val:
        k = self.k
        kind, word = I8.with_lanes(k.target.lanes("i8")), I32.with_lanes(k.target.lanes("i32"))
        least = self._least(greatest, kind.lanes)

        def added(pieces: list[Piece], sums: Sequence[Val]) -> list[Val]:
            ((at, count),) = pieces
            found = self._digits_of(k.load_lanes(come, kind, count, at) - least, count)
            return [self._with_bytes(total, k.convert(value, word, "bitcast")) for total, value in zip(sums, found, strict=True)]

        whole = self.size - self.size % kind.lanes
        sums = list(k.loop(0, whole, kind.lanes, lambda i, *sums: added([(i, kind.lanes)], sums), [k.zero(word)] * DIGITS))
        if self.size > whole:
            sums = added([(k.index(whole), self.size - whole)], sums)
        total = sums[0]
        for number, value in enumerate(sums[1:], 1):
            total = total + (value << 8 * number)
        return across_lanes(k, total, _sum)

    def _with_bytes(self, total: Val, value: Val) -> Val:
        """total, and the four bytes in each lane of value."""
        k = self.k
        if k.target.has("dot4", *[total.type] * 3):
            return k.virtual("dot4", total, value, k.const(0x01010101, total.type))
        for shift in (0, 8):
            pair = k.binary("lshr", value, shift) & 0x00FF00FF
            total = k.virtual("dot2", total, pair, k.const(0x00010001, total.type))
        return total

    # --- quotients ---

    def _divisor(self, total: Val) -> _Divisor:
        k = self.k
        single = k.convert(total, F32.with_lanes(total.type.lanes), "uitofp")
        return _Divisor(total, k.binary("lshr", total, 1), 256.0 / single)

    def _quotient(self, term: Val, divisor: _Divisor) -> Val:
        """whole((256 * term + half) / total), without sign; at most 256.

        By vectors: the guess from float32 is the quotient or one less. Terms have 23 bits and the sum is 65535 at least, so that
        256 * term / total + BELOW is off by less than 1e-4, and half / total more than 0.4999.
        """
        k, scaled = self.k, (term << 8) + divisor.half
        if term.type.lanes == 1:
            return k.binary("udiv", scaled, divisor.total)
        single = k.convert(term, F32.with_lanes(term.type.lanes), "sitofp") * divisor.reciprocal
        guess = k.convert(single + BELOW, term.type, "fptosi")
        left = scaled - guess * divisor.total
        return k.select(k.compare("uge", left, divisor.total), guess + 1, guess)

    def _bytes(self, quotients: Sequence[Val]) -> Val:
        """As the result has them, in one vector."""
        k, words = self.k, joined(self.k, quotients)
        return k.virtual("narrow_i8" if self.low < 0 else "narrow_u8", words, k.const(self.low, words.type))
