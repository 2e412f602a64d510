"""Kernels of box_nms: suppression per image and class, then the best of all classes of an image."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels import math
from cortado.compiler.kernels.boxes import load_row, overlap, store_row, to_float, to_index
from cortado.compiler.kernels.compact import one_task
from cortado.compiler.kernels.loops import drivers, task_loop
from cortado.compiler.kernels.order import Order, parts_bytes
from cortado.compiler.lang import F32, I1, I32, INDEX
from cortado.compiler.ops.nms import box_column, most_per_class, score_column
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_box_nms(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    sizes = _Sizes(node, ins)
    lists = max(sizes.lists, 1)
    rows, scores, lengths = (Ref("scratch", nbytes=4 * lists * n) for n in (max(sizes.most, 1), max(sizes.most, 1), 1))
    calls = []
    if sizes.lists and sizes.rows:
        k = KernelBuilder("box_nms_classes", target)
        suppression = _Suppression(k, sizes)
        begin, end = drivers(k)
        task_loop(k, begin, end, [sizes.images, sizes.classes - 1], lambda at: suppression.run(*at))
        room = [Ref("scratch", nbytes=lists * n) for n in (4 * sizes.rows, 4 * sizes.rows, parts_bytes(sizes.rows))]
        refs = (*(Ref("input", i) for i in range(3)), rows, scores, lengths, *room)
        calls.append(KernelCall(k.finish(), refs, sizes.lists))
    k = KernelBuilder("box_nms_best", target)
    best = _Best(k, sizes, outs, filled=bool(calls))
    begin, end = drivers(k)
    one_task(k, begin, end, best.run)
    entries = sizes.most * (sizes.classes - 1)
    room = [Ref("scratch", nbytes=n) for n in (4 * sizes.classes, 4 * max(entries, 1), parts_bytes(entries))]
    refs = (Ref("input", 1), Ref("input", 2), rows, scores, lengths, *room, *(Ref("output", i) for i in range(7)))
    return [*calls, KernelCall(k.finish(), refs)]


class _Sizes:
    """lists: how many there are, one for each image and class but the background, of at most `most` rows."""

    def __init__(self, node: Node, ins: Sequence[Operand]) -> None:
        self.attrs = node.attrs
        self.scores, self.boxes, splits = ins
        (self.rows, self.classes), self.images = self.scores.shape, splits.shape[0]
        self.lists, self.most = self.images * (self.classes - 1), most_per_class(self.rows, node.attrs)
        columns = [(score_column(c, node.attrs), box_column(c, node.attrs)) for c in (1, 2)]
        self.score_first, self.box_first = columns[0]
        self.box_step = columns[1][1] - columns[0][1]

    def score_at(self, row: Val, number: Val) -> Val:
        """number: of the class, from 0 for the first after the background."""
        return row * self.scores.strides[0] + number + self.score_first

    def box_at(self, row: Val, number: Val) -> Val:
        return row * self.boxes.strides[0] + number * self.box_step + self.box_first


def _rows_of(k: KernelBuilder, splits: Val, image: Val, rows: int) -> tuple[Val, Val]:
    """The first row of an image and how many it has."""

    def one(number: Val, at: Val) -> list[Val]:
        return [k.min(at + to_index(k, k.load(splits, F32, number), rows), rows)]

    (first,) = k.loop(0, image, 1, one, [k.index(0)])
    return first, k.min(to_index(k, k.load(splits, F32, image), rows), rows - first)


class _Suppression:
    def __init__(self, k: KernelBuilder, sizes: _Sizes) -> None:
        self.k, self.sizes, self.attrs = k, sizes, sizes.attrs
        names = ("scores", "boxes", "splits", "kept", "kept_scores", "lengths", "pending", "updated", "parts")
        self.scores, self.boxes, self.splits, *rest = map(k.param, names)
        self.kept, self.kept_scores, self.lengths, self.pending, self.updated, self.parts = rest

    def run(self, image: Val, number: Val) -> None:
        k, sizes = self.k, self.sizes
        list_ = image * (sizes.classes - 1) + number
        first, rows = _rows_of(k, self.splits, image, sizes.rows)
        own = _List(self, list_, first, number)
        passing = own.collect(rows)
        length = own.soft(passing) if self.attrs["soft"] else own.hard(passing)
        k.store(self.lengths, k.convert(length, I32, "trunc"), list_)


class _List:
    """One image and class. Row numbers count from the image's first row."""

    def __init__(self, parent: _Suppression, list_: Val, first: Val, number: Val) -> None:
        k = self.k = parent.k
        sizes = self.sizes = parent.sizes
        self.attrs = parent.attrs
        self.scores = k.offset(parent.scores, sizes.score_at(first, number), "f32")
        self.boxes = k.offset(parent.boxes, sizes.box_at(first, number), "f32")
        self.kept, self.kept_scores = (
            k.offset(p, list_ * sizes.most, s) for p, s in ((parent.kept, "i32"), (parent.kept_scores, "f32"))
        )
        self.pending, self.updated = (
            k.offset(p, list_ * sizes.rows, s) for p, s in ((parent.pending, "i32"), (parent.updated, "f32"))
        )
        parts = k.offset(parent.parts, list_ * (parts_bytes(sizes.rows) // 4), "i32")
        self.order = Order(k, self.pending, self.score, parts)

    def score(self, row: Val) -> Val:
        return self.k.load(self.scores, F32, row * self.sizes.scores.strides[0])

    def box(self, row: Val) -> list[Val]:
        return load_row(self.k, self.boxes, row * self.sizes.boxes.strides[0], 4)

    def collect(self, rows: Val) -> Val:
        """The rows above the threshold into `pending`; how many they are."""
        k = self.k

        def one(row: Val, count: Val) -> list[Val]:
            passes = self.score(row) > float(self.attrs["score_threshold"])

            def take() -> None:
                self.order.store(count, row)
                k.store(self.updated, self.score(row), count)

            k.if_(passes, take)
            return [k.select(passes, count + 1, count)]

        (count,) = k.loop(0, rows, 1, one, [k.index(0)])
        return count

    def keep(self, at: Val, row: Val, score: Val) -> None:
        self.k.store(self.kept, self.k.convert(row, I32, "trunc"), at)
        self.k.store(self.kept_scores, score, at)

    def hard(self, passing: Val) -> Val:
        k = self.k
        self.order.full(passing, self.sizes.rows)

        def candidate(taken: Val, length: Val) -> list[Val]:
            row = self.order.load(taken)
            box = self.box(row)

            def compare(at: Val, _: Val) -> list[Val]:
                better = self.box(k.convert(k.load(self.kept, I32, at), INDEX, "sext"))
                return [at + 1, overlap(k, better, box, self.attrs["plus_one"]) <= float(self.attrs["threshold"])]

            _, free = k.while_(lambda at, free: free & (at < length), compare, [k.index(0), k.const(1, I1)])
            k.if_(free, lambda: self.keep(length, row, self.score(row)))
            return [taken + 1, k.select(free, length + 1, length)]

        _, length = k.while_(
            lambda taken, length: (taken < passing) & (length < self.sizes.most), candidate, [k.index(0), k.index(0)]
        )
        return length

    def soft(self, passing: Val) -> Val:
        """`pending` and `updated` hold what is left, side by side."""
        k = self.k

        def candidate(left: Val, length: Val) -> list[Val]:
            def larger(at: Val, best: Val, place: Val) -> list[Val]:
                score = k.load(self.updated, F32, at)
                more = score > best
                return [k.select(more, score, best), k.select(more, at, place)]

            score, place = k.loop(1, left, 1, larger, [k.load(self.updated, F32), k.index(0)])
            row = self.order.load(place)
            self.keep(length, row, score)
            self.order.store(place, self.order.load(k.index(0)))
            k.store(self.updated, k.load(self.updated, F32), place)
            return [self._weaken(self.box(row), left), length + 1]

        _, length = k.while_(lambda left, length: (left > 0) & (length < self.sizes.most), candidate, [passing, k.index(0)])
        return length

    def _weaken(self, best: Sequence[Val], left: Val) -> Val:
        """Lower the scores of entries 1 .. left - 1 by their overlap and move those that stay to the front; how many they are."""
        k, attrs = self.k, self.attrs

        def one(at: Val, count: Val) -> list[Val]:
            row = self.order.load(at)
            common = overlap(k, best, self.box(row), attrs["plus_one"])
            if attrs["soft"] == "linear":
                weight = k.select(common > float(attrs["threshold"]), 1.0 - common, 1.0)
            else:
                weight = math.exp(k, (0.0 - common * common) / float(attrs["sigma"]))
            score = k.load(self.updated, F32, at) * weight
            stays = score >= float(attrs["soft_least"])

            def move() -> None:
                self.order.store(count, row)
                k.store(self.updated, score, count)

            k.if_(stays, move)
            return [k.select(stays, count + 1, count)]

        (count,) = k.loop(1, left, 1, one, [k.index(0)])
        return count


class _Best:
    """filled: whether there are any lists. An entry is counted by class and place in its list."""

    def __init__(self, k: KernelBuilder, sizes: _Sizes, outs: Sequence[Operand], filled: bool) -> None:
        self.k, self.sizes, self.attrs, self.outs, self.filled = k, sizes, sizes.attrs, outs, filled
        names = ("boxes", "splits", "kept", "kept_scores", "lengths", "places", "entries", "parts")
        self.boxes, self.splits, self.kept, self.kept_scores, self.lengths, *rest = map(k.param, names)
        self.places, self.entries, self.parts = rest
        self.sinks = [k.param(f"out{i}") for i in range(7)]

    def run(self) -> None:
        k, room = self.k, self.outs[0].shape[0]
        (total,) = k.loop(0, self.sizes.images, 1, self._image, [k.index(0)])
        steps = [out.strides[0] for out in self.outs[:5]]

        def clear(row: Val) -> None:
            for number in (0, 2):
                k.store(self.sinks[number], k.zero(F32), row * steps[number])
            store_row(k, self.sinks[1], row * steps[1], [k.zero(F32)] * 4)
            k.store(self.sinks[4], k.zero(I32), row * steps[4])

        k.loop(total, room, 1, clear)
        k.store(self.sinks[6], k.convert(total, I32, "trunc"))

    def _image(self, image: Val, start: Val) -> list[Val]:
        k, classes = self.k, self.sizes.classes - 1
        sizes_at = image * self.outs[5].strides[0]
        k.loop(0, classes + 1, 1, lambda c: k.store(self.sinks[5], k.zero(I32), sizes_at + c))
        if not self.filled:
            k.store(self.sinks[3], k.zero(F32), image)
            return [start]
        lists = image * classes
        order = self._order(lists)
        kept = self._chosen(order, lists)

        def count(i: Val) -> None:
            at = sizes_at + order.load(i) // self.sizes.most + 1
            k.store(self.sinks[5], k.load(self.sinks[5], I32, at) + 1, at)

        k.loop(0, kept, 1, count)

        def place(number: Val, at: Val) -> list[Val]:
            k.store(self.places, k.convert(at, I32, "trunc"), number)
            return [at + k.convert(k.load(self.sinks[5], I32, sizes_at + number + 1), INDEX, "sext")]

        (end,) = k.loop(0, classes, 1, place, [start])
        first, _ = _rows_of(k, self.splits, image, self.sizes.rows)

        def write(i: Val) -> None:
            entry = order.load(i)
            number, place = entry // self.sizes.most, entry % self.sizes.most
            at = k.load(self.places, I32, number)
            self._write(lists + number, place, number, first, k.convert(at, INDEX, "sext"))
            k.store(self.places, at + 1, number)

        k.loop(0, kept, 1, write)
        k.store(self.sinks[3], to_float(k, end - start), image)
        return [end]

    def _order(self, lists: Val) -> Order:
        first = lists * self.sizes.most
        return Order(self.k, self.entries, lambda entry: self.k.load(self.kept_scores, F32, first + entry), self.parts)

    def _chosen(self, order: Order, lists: Val) -> Val:
        """The entries of all lists, one after the other; where they are too many the best come first. How many stay."""
        k, classes, most, limit = self.k, self.sizes.classes - 1, self.sizes.most, self.attrs["limit"]

        def take(number: Val, at: Val) -> list[Val]:
            length = k.convert(k.load(self.lengths, I32, lists + number), INDEX, "sext")
            k.loop(0, length, 1, lambda i: order.store(at + i, number * most + i))
            return [at + length]

        (found,) = k.loop(0, classes, 1, take, [k.index(0)])
        if not 0 < limit < classes * most:
            return found
        k.if_(found > limit, lambda: order.full(found, classes * most))
        return k.min(found, limit)

    def _write(self, list_: Val, i: Val, number: Val, first: Val, at: Val) -> None:
        """Entry i of a list becomes row `at` of the result."""
        k, sinks, outs = self.k, self.sinks, self.outs
        place = list_ * self.sizes.most + i
        row = k.load(self.kept, I32, place)
        source = self.sizes.box_at(first + k.convert(row, INDEX, "sext"), number)
        k.store(sinks[0], k.load(self.kept_scores, F32, place), at * outs[0].strides[0])
        store_row(k, sinks[1], at * outs[1].strides[0], load_row(k, self.boxes, source, 4))
        k.store(sinks[2], to_float(k, number) + float(bool(self.attrs["classes_with_background"])), at * outs[2].strides[0])
        k.store(sinks[4], row, at * outs[4].strides[0])
