"""Chains of convolutions: what they are made of, how their rows are cut into blocks, and whether they pay.

What is saved is the way of the middle tensors through memory beyond the second cache level. What it costs: weights are read again for
each block, tiles see fewer pixels at a time, and each range of rows but the first makes some input rows again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from cortado.compiler.graph import Value
from cortado.compiler.kernels.tiling import Core, SingleCore, choose_panels, core_of, panel_cycles
from cortado.compiler.kernels.winograd import choose_winograd
from cortado.compiler.lang import SCALAR_OF
from cortado.compiler.ops import make
from cortado.compiler.ops.conv_chain import CONV, stages
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.target import Target

Shape = tuple[int, int, int, int]

AGAIN = 0.015  # cycles per byte of weights read again
CALL = 60.0  # cycles


@dataclass(frozen=True)
class Rates:
    """What middle tensors cost where they go through memory.

    wide, middle: cycles per byte of the depthwise convolution's input and output, as far as they are larger than `levels` times the second
    cache level. gain: of the cycles of all multiply-adds, at least.
    """

    wide: float
    middle: float
    levels: int
    gain: float


# Measured on Zen 3, and on Zen 4 with AVX2.
WIDER = Rates(0.07, 0.06, 2, 0.015)
# Zen 4. There the time is less in the layers themselves than in the memory that a whole run touches: what is not there leaves the last
# cache level to the rest. So chains pay in a network that by themselves are hardly faster than their layers.
SINGLE = Rates(0.02, 0.06, 1, 0.004)


@dataclass(frozen=True)
class Stage:
    """One convolution. inputs: filter and epilogue inputs. first: the position of the filter among the chain's inputs. out: its shape."""

    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    first: int
    out: Shape

    @property
    def filters(self) -> Value:
        return self.inputs[0]

    @property
    def bias(self) -> Any:
        has = any(entry[0] == "bias" for entry in self.attrs["epilogue"])
        return self.inputs[1].constant if has else None

    @property
    def point(self) -> bool:
        """Whether it reads nothing but the pixel that it makes."""
        return self.filters.shape[1:-1] == (1, 1) and {*self.attrs["strides"]} == {1}

    @property
    def depthwise(self) -> bool:
        return bool(self.attrs["group"] > 1)


@dataclass(frozen=True)
class Blocks:
    """How the rows of the depthwise output are cut. rows: of a block. ring: rows of its input that are kept. unit_block: blocks of a task.

    nbytes: of one range's buffers.
    """

    images: int
    height: int
    rows: int
    ring: int
    unit_block: int
    nbytes: int

    @property
    def per_image(self) -> int:
        return -(-self.height // self.rows)

    @property
    def count(self) -> int:
        return self.images * self.per_image

    @property
    def tasks(self) -> int:
        return -(-self.count // self.unit_block)

    @property
    def last(self) -> int:
        """Rows of an image's last block."""
        return self.height - (self.per_image - 1) * self.rows


def parse_chain(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Stage | None, Stage, Stage | None]:
    """The convolution before, the depthwise one, and the 1x1 one after it."""
    found: list[Stage] = []
    out, first = inputs[0].type, 1
    for own, its in stages(inputs, attrs):
        (out,) = CONV.infer((out, *(value.type for value in own)), its)
        images, height, width, channels = out.shape
        found.append(Stage(own, its, first, (images, height, width, channels)))
        first += len(own)
    (at,) = (i for i, stage in enumerate(found) if stage.depthwise)
    return (found[0] if at else None), found[at], (found[at + 1] if at + 1 < len(found) else None)


def input_shape(x: Value, before: Stage | None) -> Shape:
    """Of the depthwise convolution in a chain of x."""
    if before is not None:
        return before.out
    images, height, width, channels = x.shape
    return images, height, width, channels


def reach_of(spread: Stage) -> int:
    """Input rows from the first to the last one that an output row reads."""
    return int((spread.filters.shape[1] - 1) * spread.attrs["dilations"][0] + 1)


def choose_blocks(core: Core, wide: Shape, middle: Shape, spread: Stage, ringed: bool, ranges: int) -> Blocks:
    """Blocks of up to four rows whose buffers leave room in the second cache level.

    wide, middle: shapes of the depthwise convolution's input and output. ringed: its input is made block by block.
    """
    images, height, width, channels = middle
    step, reach = spread.attrs["strides"][0], reach_of(spread)

    def ring(rows: int) -> int:
        return min(wide[1], (rows - 1) * step + reach) if ringed else 0

    def nbytes(rows: int) -> int:
        return (ring(rows) * wide[2] * wide[3] + rows * width * channels) * core.element

    rows = max(rows for rows in (1, 2, 4) if rows == 1 or (rows <= height and nbytes(rows) <= core.second_level * 2 // 5))
    count = images * -(-height // rows)
    return Blocks(images, height, rows, ring(rows), -(-count // ranges), nbytes(rows))


def chain_pays(inputs: Sequence[Value], attrs: Mapping[str, Any], target: Target, threads: int) -> bool:
    """Whether one operator is clearly faster than several. inputs, attrs: of the operator."""
    core = core_of(target, SCALAR_OF[inputs[0].type.dtype])
    if core.in_order:
        return False
    before, spread, after = parse_chain(inputs, attrs)
    wide, middle = input_shape(inputs[0], before), spread.out
    blocks = choose_blocks(core, wide, middle, spread, before is not None, 1)
    points = [stage for stage in (before, after) if stage is not None]
    weights = sum(stage.filters.type.size for stage in points) * core.element
    if weights > core.second_level // 4 or blocks.nbytes > core.second_level // 2:
        return False
    if before is not None and _filtered(inputs[0], before, target):
        return False
    single = isinstance(core, SingleCore)
    rates = SINGLE if single else WIDER
    between = [
        (shape, rate) for shape, rate, stage in ((wide, rates.wide, before), (middle, rates.middle, after)) if stage is not None
    ]
    outside = sum(max(0, prod(shape) * core.element - rates.levels * core.second_level) * rate for shape, rate in between)
    work = prod(middle) * spread.filters.type.size / middle[3] / core.lanes / (1 if single else 2)
    cost = blocks.count * (weights * AGAIN + 3 * CALL)
    if before is not None:
        rows = wide[0] * wide[1]
        by_row = rows * _cycles(core, before, wide[2])
        whole = _cycles(core, before, rows * wide[2]) if before.point else by_row
        again = (threads - 1) * max(0, reach_of(spread) - spread.attrs["strides"][0]) / rows
        work, cost = work + whole, cost + (by_row + rows * CALL) * (1 + again) - whole
    if after is not None:
        whole = _cycles(core, after, prod(middle[:3]))
        work, cost = work + whole, cost + blocks.count * _cycles(core, after, blocks.rows * middle[2]) - whole
    return outside - cost > rates.gain * work


def _filtered(x: Value, stage: Stage, target: Target) -> bool:
    """Whether the convolution alone would be done by Winograd's filtering, of all rows at once."""
    node = make("conv", (x, *stage.inputs), stage.attrs, "")
    ins, outs = (
        [Operand(t, contiguous_strides(t.shape)) for t in types] for types in ([v.type for v in node.inputs], node.types)
    )
    return choose_winograd(node, ins, outs, target) is not None


def _cycles(core: Core, stage: Stage, pixels: int) -> float:
    """Directly: what Strassen's scheme saves alone does not outweigh the larger memory. Counting it makes mobilenet v2 2% slower."""
    outputs, depth = stage.filters.shape[0], prod(stage.filters.shape[1:])
    return panel_cycles(core, choose_panels(core, outputs, pixels, depth), pixels, depth)
