"""Blob names to single-assignment versions. NetDefs write blobs again and again, in place and under reused names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cortado.proto.caffe2 import Operator

ALIASES = frozenset({"Alias", "AliasWithName"})
# In place these change the shape of one name only; the elements that an alias shares stay as they are.
_SHAPE_ONLY = frozenset({"Reshape", "Squeeze", "ExpandDims", "MergeDim", "PrependDim"})


class Blob(NamedTuple):
    """The value of a blob between two writes. version 0: what it holds before the net runs."""

    name: str
    version: int


@dataclass(frozen=True)
class Step:
    """One operator with its blobs resolved. index: its place in the net; place: in the file, where branches are nets in the net."""

    index: int
    place: str
    operator: Operator
    inputs: tuple[Blob, ...]
    outputs: tuple[Blob, ...]


@dataclass(frozen=True)
class Renamed:
    """last: what each written name holds after the net. spoiled: blobs whose memory another name overwrote, with the reason."""

    steps: tuple[Step, ...]
    last: Mapping[str, Blob]
    spoiled: Mapping[Blob, str]

    def final(self, name: str) -> Blob:
        return self.last.get(name, Blob(name, 0))

    def needed(self, wanted: Iterable[Blob]) -> tuple[Step, ...]:
        """The steps that the wanted blobs depend on, in order."""
        live = set(wanted)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if not live.isdisjoint(step.outputs):
                kept.append(step)
                live.update(step.inputs)
        return tuple(reversed(kept))


def rename(operators: Sequence[Operator], places: Sequence[str]) -> Renamed:
    """Resolve every blob name to the version that stands there. places: of the operators in the file.

    Alias makes two names share memory: a later in-place write to one is seen through the other.
    """
    sharing = _Sharing()
    current: dict[str, Blob] = {}
    writes: dict[str, int] = {}
    spoiled: dict[Blob, str] = {}

    def fresh(name: str) -> Blob:
        writes[name] = writes.get(name, 0) + 1
        current[name] = Blob(name, writes[name])
        return current[name]

    steps = []
    for index, operator in enumerate(operators):
        inputs = tuple(current.get(name, Blob(name, 0)) for name in operator.inputs)
        outputs = []
        for name in operator.outputs:
            written = fresh(name)
            outputs.append(written)
            others = sharing.others(name)
            if not others or operator.type in ALIASES:
                continue
            if operator.type in _SHAPE_ONLY and name in operator.inputs:
                sharing.reshape(name)
            elif name in operator.inputs and not sharing.reshaped(name):
                current.update((other, written) for other in others)
            else:
                sharing.leave(name)
                reason = f"shares memory with '{name}' (Alias), which operator {places[index]} {operator.type} then overwrites"
                spoiled.update((fresh(other), reason) for other in others)
        if operator.type in ALIASES and operator.inputs and operator.outputs:
            sharing.join(operator.inputs[0], operator.outputs[0])
        steps.append(Step(index, places[index], operator, inputs, tuple(outputs)))
    return Renamed(tuple(steps), current, spoiled)


class _Sharing:
    """Which names stand for the same memory."""

    def __init__(self) -> None:
        self._groups: dict[str, set[str]] = {}
        self._reshaped: set[str] = set()

    def others(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(self._groups.get(name, set()) - {name}))

    def join(self, source: str, name: str) -> None:
        self.leave(name)
        group = self._groups.setdefault(source, {source})
        group.add(name)
        self._groups[name] = group

    def leave(self, name: str) -> None:
        group = self._groups.pop(name, None)
        if group is not None:
            group.discard(name)

    def reshape(self, name: str) -> None:
        """The name sees the shared memory in another shape from now on."""
        self._reshaped.update(self._groups[name])

    def reshaped(self, name: str) -> bool:
        """Whether names of this memory may differ in shape."""
        return name in self._reshaped
