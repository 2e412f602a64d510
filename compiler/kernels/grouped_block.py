"""The block of convolutions whose groups have few channels: as that of depthwise ones, but a vector of outputs spans several groups.

A vector of the input has the channels of the same groups. For every channel of a group it is permuted such that each lane of the
outputs finds one of its own group there, and multiplied with a vector of weights. Which one that is may differ from lane to lane, as
long as each has its turn: where their number is a power of two, lane l takes channel l ^ i in turn i, so that the first turn needs no
permutation at all and most others stay within 128 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cortado.compiler.builder import Val
from cortado.compiler.kernels.depthwise_block import Block, BlockSpec
from cortado.compiler.lang import Kernel
from cortado.compiler.target import Target

NEAR = 4  # turns whose permutations stay within 128 bits; a vector that is permuted across them serves the next as many


@dataclass(frozen=True)
class Groups:
    """inputs, outputs: channels of one group, each. packed: outputs whose weights are together."""

    inputs: int
    outputs: int
    packed: int

    def channel(self, output: int, turn: int) -> int:
        """The channel of its group that an output takes in a turn."""
        if self.inputs & (self.inputs - 1):
            return turn
        return (output % self.outputs % self.inputs) ^ turn

    def in_turns(self, filters: np.ndarray) -> np.ndarray:
        """filters[O,*K,inputs] with every output's channels in the order of its turns."""
        order = np.array([[self.channel(o, turn) for turn in range(self.inputs)] for o in range(filters.shape[0])])
        return np.take_along_axis(filters, order.reshape(order.shape[0], *[1] * (filters.ndim - 2), self.inputs), axis=-1)

    def sources(self, first: int, count: int, turn: int) -> tuple[int, list[int]]:
        """What the outputs [first, first + count) take in a turn: the first channel of their first group, and distances to it."""
        start = first // self.outputs * self.inputs
        return start, [o // self.outputs * self.inputs + self.channel(o, turn) - start for o in range(first, first + count)]

    def block_kernel(self, spec: BlockSpec, target: Target) -> Kernel:
        """Record the block; steps are of whole groups."""
        return GroupedBlock(spec, target, self).record()


class GroupedBlock(Block):
    """Recording of one block. Weights are [tap][turn][channels that are packed together]."""

    family = "grouped"
    halves = False

    def __init__(self, spec: BlockSpec, target: Target, groups: Groups) -> None:
        super().__init__(spec, target)
        self.groups = groups

    def inputs(self, channels: int) -> int:
        return channels // self.groups.outputs * self.groups.inputs

    def packed(self, step: Val) -> Val:
        width = self.spec.vectors * self.spec.lanes
        together = self.groups.packed // width
        return super().packed(step) if together == 1 else super().packed(step // together) + step % together * width

    def columns(self, a: Val, w: Val, channels: int, sums: list[Val]) -> list[Val]:
        """One kernel row, turn by turn: registers hold the sums and the weights of one turn, not those of a whole row."""
        spec, inputs = self.spec, self.groups.inputs
        sums, users = list(sums), self.users()
        vectors, width = -(-channels // spec.lanes), self.groups.packed
        near = NEAR if inputs == self.groups.outputs <= spec.lanes else inputs
        for v in range(vectors):
            loaded: dict[int, list[Val]] = {}
            for turn in range(inputs):
                weights: dict[int, Val] = {}
                for position in sorted(users):
                    if turn == 0:
                        loaded[position] = self.loaded(self.moved(a, self.p["column"] * position), v, channels)
                    elif turn % near == 0:
                        loaded[position] = [self.spread(loaded[position], v, channels, turn ^ (turn - near))]
                    value = self.spread(loaded[position], v, channels, turn % near)
                    for tap, r in users[position]:
                        if tap not in weights:
                            weights[tap] = self.load_weight(w, (tap * inputs + turn) * width + v * spec.lanes, self.vector)
                        sums[r * vectors + v] = self.multiply_add(value, weights[tap], sums[r * vectors + v])
        return sums

    def loaded(self, column: Val, v: int, channels: int) -> list[Val]:
        """The input's channels of all groups that vector `v` of the outputs has a part of, as vectors."""
        lanes = self.spec.lanes
        count = self.lanes_of(v, channels)
        start, places = self.groups.sources(v * lanes, count, 0)
        end = (places[-1] // self.groups.inputs + 1) * self.groups.inputs
        return [self.load(column, self.vector, min(lanes, end - at), start + at) for at in range(0, end, lanes)]

    def spread(self, loaded: list[Val], v: int, channels: int, turn: int) -> Val:
        """A vector in which every output's lane has the channel of its turn."""
        lanes = self.spec.lanes
        _, places = self.groups.sources(v * lanes, self.lanes_of(v, channels), turn)
        places += [-1] * (lanes - len(places))
        spread: Val | None = None
        for number, value in enumerate(loaded):
            mine = [place // lanes == number if place >= 0 else False for place in places]
            if not any(mine):
                continue
            if spread is None:
                order = [place % lanes if own else -1 for place, own in zip(places, mine, strict=True)]
                spread = value if all(at in (-1, i) for i, at in enumerate(order)) else self.k.shuffle(value, value, order)
            else:
                keep = [lanes + place % lanes if own else i for i, (place, own) in enumerate(zip(places, mine, strict=True))]
                spread = self.k.shuffle(spread, value, keep)
        assert spread is not None
        return spread
