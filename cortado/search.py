"""The search for the best choices of single kernels: what is measured, in which turns, and when it is given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Graph, Node
from cortado.compiler.kernels.candidates import algorithms, cuts, shapes
from cortado.compiler.kernels.choice import Choice, describe
from cortado.compiler.lower import layers
from cortado.compiler.program import Operand
from cortado.compiler.target import Target
from cortado.compiler.tuning import kernel_key
from cortado.compiler.types import TensorType, TimedExecutor
from cortado.database import Entry
from cortado.errors import CortadoError

TURNS, FEWEST = 40, 4  # of all that may still win; before anything is given up
HOPELESS = 1.15  # times the fastest: given up
LAYER_SECONDS = 1.0  # of a series of turns
FINALISTS, FINAL_TURNS = 4, 200  # the fastest of a series are measured again
TOLERANCE = 1e-4  # of the largest value: what two ways to compute a layer in float32 may differ by

Times = Callable[["Layer", Sequence[Choice]], Sequence[TimedExecutor]]
Watch = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Part:
    """A node with its operands."""

    node: Node
    ins: Sequence[Operand]
    outs: Sequence[Operand]


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel of a network. names: of the nodes that have it; node, ins, outs: of one of them. parts: of a chain, its layers."""

    key: str
    names: tuple[str, ...]
    node: Node
    ins: Sequence[Operand]
    outs: Sequence[Operand]
    macs: int
    parts: tuple[Part, ...] = ()


def layers_of(graph: Graph, target: Target) -> list[Layer]:
    """The kernels of an optimized graph between which there is a choice, those with the most work first."""
    from cortado.compiler.ops import OPS

    found: dict[str, Layer] = {}
    for node, ins, outs in layers(graph):
        key = kernel_key(node, ins, outs)
        if key in found:
            old = found[key]
            found[key] = Layer(key, (*old.names, node.name), old.node, old.ins, old.outs, old.macs)
        elif algorithms(node, ins, outs, target):
            count = OPS[node.op].macs
            macs = count([value.type for value in node.inputs], node.attrs) if count is not None else 0
            found[key] = Layer(key, (node.name,), node, ins, outs, macs)
    return sorted(found.values(), key=lambda layer: -layer.macs * len(layer.names))


class Tuner:
    """Measures layers one after another and keeps every number in `entries` at once.

    times: executors for choices of a layer. entries: by `kernel_key`. save: called whenever there is something to keep.
    deadline: of `time.monotonic`; what is begun then is not finished.
    """

    def __init__(
        self, target: Target, times: Times, entries: dict[str, Entry], save: Callable[[], None], deadline: float | None = None
    ) -> None:
        self.target, self.times, self.entries, self.save, self.deadline = target, times, entries, save, deadline

    def tune(self, layer: Layer, watch: Watch) -> Entry | None:
        """The layer's entry; None where there was no time to begin it. watch: is told what is being measured."""
        what = (layer.node, layer.ins, layer.outs, self.target)
        entry = self.entries.get(layer.key)
        if entry is None:
            if self.late():
                return None
            entry = Entry(algorithms(*what)[0], 0.0)
        if not entry.finished:
            self.measure(layer, entry, algorithms(*what), watch)
            self.measure(layer, entry, shapes(*what, entry.best), watch)
            self.measure(layer, entry, cuts(*what, entry.best), watch)
            entry.finished = not self.late()
            self.save()
        return entry

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def measure(self, layer: Layer, entry: Entry, choices: Sequence[Choice], watch: Watch) -> None:
        """Measure those choices that are not known yet, in turns with the baseline and the best so far."""
        fresh = [choice for choice in choices if choice not in entry.ratios]
        if not fresh or self.late():
            return
        watch(f"{layer.names[0]}: {', '.join(map(describe, fresh[:3]))}{' ...' if len(fresh) > 3 else ''}")
        chosen = list(dict.fromkeys([entry.baseline, entry.best, *fresh]))
        executors = self.times(layer, chosen)
        _check(layer, chosen, executors)
        self.keep(entry, chosen, in_turns(executors, LAYER_SECONDS))
        final = sorted(range(1, len(chosen)), key=lambda i: entry.ratios[chosen[i]])[:FINALISTS]
        final = [0, *(i for i in final if entry.ratios[chosen[i]] < HOPELESS)]
        self.keep(entry, [chosen[i] for i in final], in_turns([executors[i] for i in final], LAYER_SECONDS, FINAL_TURNS))
        self.entries[layer.key] = entry
        self.save()

    def keep(self, entry: Entry, choices: Sequence[Choice], seconds: Sequence[float]) -> None:
        """The numbers of one series of turns, the baseline's first."""
        entry.microseconds = min(seconds[0] * 1e6, entry.microseconds or seconds[0] * 1e6)
        entry.ratios |= {choice: each / seconds[0] for choice, each in zip(choices, seconds, strict=True)}


def in_turns(executors: Sequence[TimedExecutor], seconds: float, turns: int = TURNS, hopeless: float = HOPELESS) -> list[float]:
    """Typical undisturbed seconds of each: the mean of the fastest quarter of its turns. The first takes part in all turns; others are
    given up once they are hopeless, so that what is left gets more turns.
    """
    taken: list[list[float]] = [[] for _ in executors]
    alive = list(range(len(executors)))
    end = time.monotonic() + seconds
    for turn in range(turns):
        for i in alive:
            taken[i].append(executors[i].time())
        if turn + 1 >= FEWEST:
            best = min(map(min, taken))
            alive = [i for i in alive if i == 0 or min(taken[i]) <= hopeless * best]
            if time.monotonic() > end:
                break
    return [sum(sorted(times)[: -(-len(times) // 4)]) / -(-len(times) // 4) for times in taken]


def _check(layer: Layer, choices: Sequence[Choice], executors: Sequence[TimedExecutor]) -> None:
    """CortadoError where a choice computes something else than the first one: of integers, where a single bit differs."""
    rng = np.random.default_rng(0)
    feeds = {
        str(i): _random(rng, value.type)
        for i, value in enumerate(layer.node.inputs)
        if value.constant is None and value not in layer.node.inputs[:i]
    }
    expected: Mapping[str, np.ndarray] = {}
    for choice, executor in zip(choices, executors, strict=True):
        found = executor.run(feeds)
        expected = expected or found
        for name, array in expected.items():
            error, largest = np.abs(found[name].astype(float) - array).max(), np.abs(array.astype(float)).max()
            if not error <= (0 if array.dtype.kind in "iu" else TOLERANCE * largest):
                raise CortadoError(
                    f"{layer.node.op} {layer.names[0]}: {describe(choice)} computes something else than {describe(choices[0])} "
                    f"(by {error:.3g}, with values up to {largest:.3g}): a bug in cortado, please report it"
                )


def _random(rng: np.random.Generator, kind: TensorType) -> np.ndarray:
    """Of integers any."""
    if kind.numpy.kind not in "iu":
        return rng.standard_normal(kind.shape).astype(kind.numpy)
    limits = np.iinfo(kind.numpy)
    return rng.integers(limits.min, limits.max, kind.shape, kind.numpy, endpoint=True)
