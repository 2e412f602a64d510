"""Weights in the exact order of use: [panel][bias, then k][lanes of the panel], zero where a vector's lanes have no channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.strided import transposed
from cortado.compiler.kernels.tiling import Panels
from cortado.compiler.lang import BYTES, INDEX, Kernel, Type
from cortado.compiler.target import Target


@dataclass(frozen=True)
class PanelSizes:
    """Elements of one panel of each kind, and of all panels of all groups: first every group's bodies, then every group's last."""

    header: int
    last_header: int
    body: int
    last: int
    total: int


def panel_sizes(panels: Panels, depth: int, rows: int, groups: int) -> PanelSizes:
    """depth: terms of a sum. rows: of per-channel numbers (a bias) that each panel starts with."""
    header, last_header = panels.vectors * panels.lanes, panels.last * panels.lanes
    body, last = header * (depth + rows), last_header * (depth + rows)
    return PanelSizes(header * rows, last_header * rows, body, last, groups * (panels.bodies * body + last))


def pack_panels(weights: np.ndarray, bias: np.ndarray | None, panels: Panels) -> np.ndarray:
    """weights [groups, outputs, depth], bias [groups, outputs] or None -> the packed panels, one axis."""
    groups, outputs, _ = weights.shape
    terms = weights.transpose(0, 2, 1)
    if bias is not None:
        terms = np.concatenate([bias[:, None, :], terms], axis=1)
    size = panels.vectors * panels.lanes
    split = panels.bodies * size
    bodies = terms[:, :, :split].reshape(groups, terms.shape[1], panels.bodies, size).transpose(0, 2, 1, 3)
    parts = [bodies.reshape(-1)]
    if panels.last:
        padded = np.zeros((groups, terms.shape[1], panels.last * panels.lanes), weights.dtype)
        padded[:, :, : outputs - split] = terms[:, :, split:]
        parts.append(padded.reshape(-1))
    return np.ascontiguousarray(np.concatenate(parts))


@dataclass(frozen=True)
class WeightSource:
    """Where weights lie that are known only at run time; distances in elements.

    groups: (count, distance) per axis of groups, outermost first. output: distance of output channels.
    terms: (count, distance) per axis of a sum's terms, in the order of the loops. bias: whether there is a bias[groups * outputs].
    """

    groups: tuple[tuple[int, int], ...]
    output: int
    terms: tuple[tuple[int, int], ...]
    bias: bool


def pack_kernel(source: WeightSource, panels: Panels, scalar: str, target: Target) -> tuple[Kernel, int]:
    """A driver (weights, [bias], packed, begin, end) that makes the panels, and its number of tasks, one per panel."""
    return _Packer(source, panels, scalar, target).record()


class PanelPacker:
    """Recording of a driver that makes the panels of weights, one per task; what a panel holds is said by `fill`.

    rows: of per-channel numbers that each panel starts with. depth: rows of a panel after them.
    """

    def __init__(
        self, family: str, source: WeightSource, panels: Panels, scalar: str, rows: int, depth: int, target: Target
    ) -> None:
        self.source, self.panels = source, panels
        self.k = KernelBuilder(family, target)
        self.element, self.vector = Type(scalar), Type(scalar, panels.lanes)
        self.groups = prod(count for count, _ in source.groups)
        self.sizes = panel_sizes(panels, depth, rows, self.groups)
        self.weights = self.k.param("weights")

    def fill(self, start: Val, group: Val, channel: Val, to: Val, vectors: int, last: bool) -> None:
        """Write the panel of `vectors` vectors of channels from `channel` on, which begins at `to`; start: distance of its weights."""
        raise NotImplementedError

    def record(self) -> tuple[Kernel, int]:
        """The kernel and its number of tasks."""
        k, panels = self.k, self.panels
        self.packed = k.param("packed")
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        bodies = self.groups * panels.bodies
        if panels.bodies:
            k.loop(
                begin,
                k.min(end, bodies),
                1,
                lambda i: self.panel(i // panels.bodies, i % panels.bodies, i * self.sizes.body, False),
            )
        if panels.last:
            start = bodies * self.sizes.body
            k.loop(
                k.max(begin, bodies) - bodies,
                end - bodies,
                1,
                lambda i: self.panel(i, k.index(panels.bodies), i * self.sizes.last + start, True),
            )
        return k.finish(), self.groups * (panels.bodies + (panels.last > 0))

    def panel(self, group: Val, number: Val, at: Val, last: bool) -> None:
        k, panels, source = self.k, self.panels, self.source
        channel = number * (panels.vectors * panels.lanes)
        base, rest = channel * source.output, group
        for count, distance in reversed(source.groups):
            base = base + (rest % count) * distance
            rest = rest // count
        to = k.offset(self.packed, at, self.element.scalar)
        self.fill(base, group, channel, to, panels.last if last else panels.vectors, last)

    def transpose(
        self,
        source: Val,
        scalar: str,
        terms: int,
        unit: int,
        to: Val,
        vectors: int,
        last: bool,
        load: Callable[[Val, int, int], Val],
    ) -> None:
        """Rows of the panel, of `unit` terms each, where the terms of a channel lie side by side: blocks of a vector of channels
        by as many rows are transposed. load: (place, how many terms, distance) -> a vector of a channel's rows.
        """
        k, lanes, output = self.k, self.panels.lanes, self.source.output
        tail = self.lanes_of(vectors - 1, vectors, last)
        full = vectors if tail == lanes else vectors - 1

        def block(v: Val | int, channels: int, at: Val, terms: int) -> None:
            place = k.offset(source, v * (lanes * output) + at, scalar)
            loaded = [load(place, terms, output * channel) for channel in range(channels)]
            loaded += [k.zero(self.vector)] * (lanes - channels)
            for row, value in enumerate(transposed(k, loaded, BYTES[self.element.scalar])[: -(-terms // unit)]):
                k.store(to, value, ((at // unit + row) * vectors + v) * lanes)

        def blocks(at: Val, terms: int) -> None:
            k.loop(0, full, 1, lambda v: block(v, lanes, at, terms))
            if full < vectors:
                block(full, tail, at, terms)

        side = lanes * unit
        whole = terms - terms % side
        k.loop(0, whole, side, lambda at: blocks(at, side))
        if whole < terms:
            blocks(k.index(whole), terms - whole)

    def lanes_of(self, v: int, vectors: int, last: bool) -> int:
        """Channels in a vector of a panel."""
        lanes = self.panels.lanes
        return min(lanes, max(0, (self.panels.tail if last else lanes) + (vectors - 1 - v) * lanes))


class _Packer(PanelPacker):
    """Of weights that are copied as they are, after a bias."""

    def __init__(self, source: WeightSource, panels: Panels, scalar: str, target: Target) -> None:
        super().__init__("pack_panels", source, panels, scalar, source.bias, prod(count for count, _ in source.terms), target)
        self.bias = self.k.param("bias") if source.bias else None

    def fill(self, start: Val, group: Val, channel: Val, to: Val, vectors: int, last: bool) -> None:
        k, scalar = self.k, self.element.scalar
        step = vectors * self.panels.lanes
        if self.bias is not None:
            self.copy(k.offset(self.bias, group * self.panels.outputs + channel, scalar), 1, to, vectors, last)
            to = k.offset(to, step, scalar)
        self.terms(k.offset(self.weights, start, scalar), to, step, self.source.terms, vectors, last)

    def terms(self, weights: Val, to: Val, step: int, axes: Sequence[tuple[int, int]], vectors: int, last: bool) -> None:
        k, scalar = self.k, self.element.scalar
        if not axes:
            self.copy(weights, self.source.output, to, vectors, last)
            return
        if axes[0][1] == 1 and self.source.output != 1 and self.panels.lanes > 1 and len(axes) == 1:
            self.transpose(
                weights, scalar, axes[0][0], 1, to, vectors, last, lambda *what: k.load_lanes(what[0], self.vector, *what[1:])
            )
            return
        (count, distance), inner = axes[0], axes[1:]
        size = step * prod(c for c, _ in inner)
        k.loop(
            0,
            count,
            1,
            lambda i: self.terms(
                k.offset(weights, i * distance, scalar), k.offset(to, i * size, scalar), step, inner, vectors, last
            ),
        )

    def copy(self, start: Val, distance: int, to: Val, vectors: int, last: bool) -> None:
        """One term of every channel of a panel. Lanes without a channel stay as they are: what they give is never stored."""
        k, panels = self.k, self.panels
        if distance == 1:
            for v in range(vectors):
                value = k.load_lanes(start, self.vector, self.lanes_of(v, vectors, last), v * panels.lanes)
                k.store(to, value, v * panels.lanes)
        else:
            count = (vectors - 1) * panels.lanes + (panels.tail if last else panels.lanes)
            k.loop(0, count, 1, lambda i: k.store(to, k.load(start, self.element, i * distance), i))
