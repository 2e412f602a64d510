"""Weights in the exact order of use: [panel][bias, then k][lanes of the panel], zero where a vector's lanes have no channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.tiling import Panels
from cortado.compiler.lang import INDEX, Kernel, Type
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
    recorder = _Packer(source, panels, scalar, target)
    return recorder.record(), recorder.groups * (panels.bodies + (panels.last > 0))


class _Packer:
    def __init__(self, source: WeightSource, panels: Panels, scalar: str, target: Target) -> None:
        self.source, self.panels = source, panels
        self.k = KernelBuilder("pack_panels", target)
        self.element, self.vector = Type(scalar), Type(scalar, panels.lanes)
        self.groups = int(np.prod([count for count, _ in source.groups], dtype=int))
        self.depth = int(np.prod([count for count, _ in source.terms], dtype=int))
        self.sizes = panel_sizes(panels, self.depth, source.bias, self.groups)
        self.weights = self.k.param("weights")
        self.bias = self.k.param("bias") if source.bias else None
        self.packed = self.k.param("packed")

    def record(self) -> Kernel:
        k, panels = self.k, self.panels
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
        return k.finish()

    def panel(self, group: Val, number: Val, at: Val, last: bool) -> None:
        k, panels, source = self.k, self.panels, self.source
        vectors = panels.last if last else panels.vectors
        step, scalar = vectors * panels.lanes, self.element.scalar
        channel = number * (panels.vectors * panels.lanes)
        to = k.offset(self.packed, at, scalar)
        if self.bias is not None:
            self.copy(k.offset(self.bias, group * panels.outputs + channel, scalar), 1, to, vectors, last)
            to = k.offset(to, step, scalar)
        base, rest = channel * source.output, group
        for count, distance in reversed(source.groups):
            base = base + (rest % count) * distance
            rest = rest // count
        self.terms(k.offset(self.weights, base, scalar), to, step, source.terms, vectors, last)

    def terms(self, weights: Val, to: Val, step: int, axes: Sequence[tuple[int, int]], vectors: int, last: bool) -> None:
        k, scalar = self.k, self.element.scalar
        if not axes:
            self.copy(weights, self.source.output, to, vectors, last)
            return
        (count, distance), inner = axes[0], axes[1:]
        size = step * int(np.prod([c for c, _ in inner], dtype=int))
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
        tail = panels.tail if last else panels.lanes
        if distance == 1:
            for v in range(vectors):
                there = min(panels.lanes, max(0, tail + (vectors - 1 - v) * panels.lanes))
                value = k.load_lanes(start, self.vector, there, v * panels.lanes)
                k.store(to, value, v * panels.lanes)
        else:
            count = (vectors - 1) * panels.lanes + tail
            k.loop(0, count, 1, lambda i: k.store(to, k.load(start, self.element, i * distance), i))
