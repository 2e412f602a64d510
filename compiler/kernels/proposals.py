"""The kernel of generate_proposals: anchors in the order of their scores, each moved, clipped, filtered and compared with those kept."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.boxes import clipped, decoded, load_row, overlap, store_row, to_float
from cortado.compiler.kernels.compact import one_task
from cortado.compiler.kernels.loops import drivers
from cortado.compiler.kernels.order import Order, parts_bytes
from cortado.compiler.lang import F32, I1, I32
from cortado.compiler.ops.proposals import candidates
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_generate_proposals(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """One task: suppression looks at one box after the other."""
    k = KernelBuilder("generate_proposals", target)
    work = _Proposals(k, node, ins, outs)
    begin, end = drivers(k)
    one_task(k, begin, end, work.images)
    refs = (
        *(Ref("input", i) for i in range(4)),
        *(Ref("output", i) for i in range(3)),
        Ref("scratch", nbytes=4 * max(work.anchors, 1)),
        Ref("scratch", nbytes=parts_bytes(work.anchors)),
    )
    return [KernelCall(k.finish(), refs)]


class _Proposals:
    def __init__(self, k: KernelBuilder, node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> None:
        self.k, self.attrs, self.ins, self.outs = k, node.attrs, ins, outs
        self.count, self.height, self.width, self.kinds = ins[0].shape
        self.anchors = self.height * self.width * self.kinds
        self.seen, self.most = candidates(self.anchors, node.attrs)
        names = ("scores", "deltas", "info", "anchors", "rois", "probabilities", "total", "numbers", "parts")
        self.scores, self.deltas, self.info, self.boxes, self.rois, self.probabilities, *rest = map(k.param, names)
        self.total, self.numbers, self.parts = rest

    def images(self) -> None:
        k, rows = self.k, self.outs[0].shape[0]
        total = k.index(0)
        if rows:
            (total,) = k.loop(0, self.count, 1, self._image, [total])

        def clear(row: Val) -> None:
            store_row(k, self.rois, row * self.outs[0].strides[0], [k.zero(F32)] * 5)
            k.store(self.probabilities, k.zero(F32), row * self.outs[1].strides[0])

        k.loop(total, rows, 1, clear)
        k.store(self.total, k.convert(total, I32, "trunc"))

    def _image(self, image: Val, first: Val) -> list[Val]:
        """first: where its rows begin; gives where they end."""
        k = self.k
        scores = k.offset(self.scores, image * self.ins[0].strides[0], "f32")
        deltas = k.offset(self.deltas, image * self.ins[1].strides[0], "f32")
        height, width, scale = load_row(k, self.info, image * self.ins[2].strides[0], 3)
        smallest = scale * float(self.attrs["min_size"])
        order = Order(k, self.numbers, lambda number: k.load(scores, F32, self._place(number, 0)), self.parts)
        order.count_up(k.index(self.anchors))
        if self.seen < self.anchors:
            order.partial(k.index(0), k.index(self.seen), k.index(self.anchors))
        else:
            order.full(k.index(self.anchors), self.anchors)

        def going(taken: Val, end: Val) -> Val:
            return (taken < self.seen) & (end < first + self.most)

        def candidate(taken: Val, end: Val) -> list[Val]:
            number = order.load(taken)
            box = clipped(k, self._moved(deltas, number), k.virtual("floor", height), k.virtual("floor", width), self.attrs)
            (end,) = k.if_(
                self._large(box, smallest, width, height),
                lambda: self._suppressed(image, box, k.load(scores, F32, self._place(number, 0)), first, end),
                lambda: [end],
            )
            return [taken + 1, end]

        _, end = k.while_(going, candidate, [k.index(0), first])
        return [end]

    def _cell(self, number: Val) -> tuple[Val, Val, Val]:
        """Anchor, row and column, by which the boxes are counted."""
        kind, cell = number // (self.height * self.width), number % (self.height * self.width)
        return kind, cell // self.width, cell % self.width

    def _place(self, number: Val, operand: int, factor: int = 1) -> Val:
        """Where the numbers of box `number` are in an operand [N,H,W,kinds * factor]."""
        kind, y, x = self._cell(number)
        strides = self.ins[operand].strides
        return y * strides[1] + x * strides[2] + kind * factor

    def _moved(self, deltas: Val, number: Val) -> list[Val]:
        k, stride = self.k, float(self.attrs["stride"])
        kind, y, x = self._cell(number)
        shift = [to_float(k, x) * stride, to_float(k, y) * stride]
        anchor = load_row(k, self.boxes, kind * self.ins[3].strides[0], 4)
        box = [side + shift[i % 2] for i, side in enumerate(anchor)]
        return decoded(k, box, load_row(k, deltas, self._place(number, 1, 4), 4), (1.0,) * 4, self.attrs)

    def _large(self, box: Sequence[Val], smallest: Val, width: Val, height: Val) -> Val:
        sides = [box[i + 2] - box[i] + float(bool(self.attrs["plus_one"])) for i in range(2)]
        centres = [box[i] + sides[i] * 0.5 for i in range(2)]
        return (sides[0] >= smallest) & (sides[1] >= smallest) & (centres[0] < width) & (centres[1] < height)

    def _suppressed(self, image: Val, box: Sequence[Val], score: Val, first: Val, end: Val) -> list[Val]:
        """Keep the box unless it overlaps one of the rows first .. end - 1 too much; gives the new end."""
        k, step = self.k, self.outs[0].strides[0]

        def compare(at: Val, _: Val) -> list[Val]:
            kept = load_row(k, self.rois, at * step + 1, 4)
            return [at + 1, overlap(k, kept, box, self.attrs["plus_one"]) <= float(self.attrs["threshold"])]

        _, free = k.while_(lambda at, free: free & (at < end), compare, [first, k.const(1, I1)])

        def keep() -> None:
            store_row(k, self.rois, end * step, [to_float(k, image), *box])
            k.store(self.probabilities, score, end * self.outs[1].strides[0])

        k.if_(free, keep)
        return [k.select(free, end + 1, end)]
