"""Chains of convolutions: what they are made of, how their rows are cut into blocks, and whether they pay.

What is saved is the way of the middle tensors through memory beyond the second cache level. What it costs: weights are read again for
each block, tiles see fewer pixels at a time, and each range of rows but the first makes some input rows again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cortado.compiler.graph import Value
from cortado.compiler.kernels.tiling import Core, choose_panels, panel_cycles
from cortado.compiler.ops.conv_chain import stages

Shape = tuple[int, int, int, int]

# Cycles per byte, measured on Zen 3: of the depthwise convolution's input and output, as far as they are larger than LEVELS times the
# second cache level (the input is read once for each kernel row); of weights read again.
WIDE, MIDDLE, AGAIN = 0.07, 0.008, 0.015
LEVELS = 3
CALL = 60.0  # cycles
# Of the cycles of all multiply-adds, at least: chains that promised less were measured anywhere from 4% faster to 6% slower.
GAIN = 0.05


@dataclass(frozen=True)
class Stage:
    """One convolution. inputs: filter and epilogue inputs. first: the position of the filter among the chain's inputs."""

    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    first: int

    @property
    def filters(self) -> Value:
        return self.inputs[0]

    @property
    def bias(self) -> Any:
        has = any(entry[0] == "bias" for entry in self.attrs["epilogue"])
        return self.inputs[1].constant if has else None

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
    """The 1x1 convolution before, the depthwise one, and the 1x1 one after it."""
    found: list[Stage] = []
    first = 1
    for own, its in stages(inputs, attrs):
        found.append(Stage(own, its, first))
        first += len(own)
    (at,) = (i for i, stage in enumerate(found) if stage.depthwise)
    return (found[0] if at else None), found[at], (found[at + 1] if at + 1 < len(found) else None)


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


def chain_pays(core: Core, inputs: Sequence[Value], attrs: Mapping[str, Any], out: Sequence[int], threads: int) -> bool:
    """Whether one operator is clearly faster than several. inputs, attrs: of the operator. out: shape of its output."""
    if core.in_order:
        return False
    before, spread, after = parse_chain(inputs, attrs)
    wide = _with_channels(inputs[0].shape, inputs[0].shape[-1] if before is None else before.filters.shape[0])
    middle = _with_channels(out, spread.filters.shape[0])
    blocks = choose_blocks(core, wide, middle, spread, before is not None, 1)
    points = [stage for stage in (before, after) if stage is not None]
    weights = sum(stage.filters.type.size for stage in points) * core.element
    if weights > core.second_level // 4 or blocks.nbytes > core.second_level // 2:
        return False
    between = [(shape, rate) for shape, rate, stage in ((wide, WIDE, before), (middle, MIDDLE, after)) if stage is not None]
    outside = sum(max(0, _size(shape) * core.element - LEVELS * core.second_level) * rate for shape, rate in between)
    work = _size(middle) * spread.filters.type.size / middle[3] / core.lanes / 2
    cost = blocks.count * (weights * AGAIN + 3 * CALL)
    if before is not None:
        rows = wide[0] * wide[1]
        whole, by_row = _cycles(core, before, rows * wide[2]), rows * (_cycles(core, before, wide[2]) + CALL)
        again = (threads - 1) * max(0, reach_of(spread) - spread.attrs["strides"][0]) / rows
        work, cost = work + whole, cost + by_row * (1 + again) - whole
    if after is not None:
        whole = _cycles(core, after, _size(middle) // middle[3])
        work, cost = work + whole, cost + blocks.count * _cycles(core, after, blocks.rows * middle[2]) - whole
    return outside - cost > GAIN * work


def _with_channels(shape: Sequence[int], channels: int) -> Shape:
    images, height, width, _ = shape
    return images, height, width, channels


def _cycles(core: Core, stage: Stage, pixels: int) -> float:
    outputs, depth = stage.filters.shape[0], stage.filters.shape[-1]
    return panel_cycles(core, choose_panels(core, outputs, pixels, depth), pixels, depth)


def _size(shape: Shape) -> int:
    images, height, width, channels = shape
    return images * height * width * channels
