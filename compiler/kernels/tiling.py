"""Which register block a layer gets, by a small cost model of the core: the one place where that is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cortado.compiler.kernels.choice import Direct
from cortado.compiler.kernels.geometry import Geometry, Segment, balanced
from cortado.compiler.lang import BYTES, PTR, Type
from cortado.compiler.target import Target

# Wide out-of-order cores, in cycles or per cycle: measured on Zen 3, and near enough on others to order tiles.
LATENCY = 4.0  # of a multiply-add whose result the next one needs
PER_CYCLE = 2.0  # multiply-adds, and also loads, that start
ISSUE = 5.0  # instructions
ELEMENT = 0.035  # cycles that each element of A costs even behind multiply-adds; where A is loaded by vectors, half of what a load costs
SECOND_LEVEL = 20.0  # bytes that stream from the second cache level
PARTS = 1.02  # times, where k is taken in parts
BROADCAST = 0.71  # cycles from one load of an element into all lanes to the next
HIDDEN = 320.0  # bytes of a stream that cost a cycle even behind multiply-adds
TILE_OVERHEAD = 24.0  # cycles: addresses, loop ends (one of them mispredicted), first loads
OVERLAP = (
    16.0  # of them pass behind the next tile where accumulators only just hide the latency and stores must be waited for anyway
)
WAITING = 0.08  # cycles of a step more where they only just hide it
# Bytes a cycle that weights arrive with from beyond the second cache level, and from main memory, as Winograd's operands and results do.
STREAM, FAR_STREAM = 10.0, 5.0
SHORT = 1_000.0  # cycles of a product that is over before the next one's weights, asked for when it begins, have arrived from far
MOST_SWEEPS = 64  # tiles of a panel beyond which the wait for its weights does not count
UNROLLED = 64  # multiply-adds in one trip of the inner loop, at most


def halves(lanes: int, vectors: int, tail: int) -> bool:
    """Whether sums are made in half a vector, for a tile of a single one with `tail` channels: it may take half the time of a long one."""
    return lanes >= 16 and vectors == 1 and 0 < tail <= lanes // 2


@dataclass(frozen=True)
class Core:
    """What the cost model knows of a target for one scalar type.

    lanes: of a vector. registers: that tiles may fill. rows: most pixels of a tile (each takes a general register).
    by_lane: A is loaded as vectors of k, whose lanes the multiply-add takes. fused: multiply-add is one instruction.
    in_order: costs add up instead of overlapping. prefetch: there is such an instruction. element: bytes of the scalar.
    first_level, second_level, third_level: bytes of the caches. kept: blocks of results that tiles keep beside the one they add to.
    """

    lanes: int
    registers: int
    rows: int
    by_lane: bool
    fused: bool
    in_order: bool
    element: int
    prefetch: bool
    first_level: int
    second_level: int
    third_level: int
    kept: int = 0

    @property
    def panel_room(self) -> int:
        """Bytes of a panel of weights that stay in the second cache level while pixels pass."""
        return self.second_level * 5 // 8

    def fits(self, rows: int, vectors: float, splits: int = 1) -> bool:
        """Whether the accumulators and what an inner step holds beside them fit the registers."""
        held = rows + vectors + 2 * self.by_lane if self.by_lane or self.in_order else min(rows, vectors) + 1
        return (splits + self.kept) * rows * vectors + held + (0 if self.fused else 2) <= self.registers

    def splits(self, rows: int, vectors: float) -> int:
        """Partial sums per accumulator that hide the latency of the multiply-add."""
        wanted = 1
        while not self.in_order and wanted * rows * vectors < LATENCY * PER_CYCLE and self.fits(rows, vectors, 2 * wanted):
            wanted *= 2
        return min(wanted, 4)

    @property
    def ahead_room(self) -> int:
        """Bytes of a panel that the tiles of the one before may fetch to the second cache level."""
        return self.second_level // 8

    def width(self, vectors: int, tail: int) -> float:
        """Vectors that a tile counts for whose last one holds `tail` channels."""
        return vectors

    def tile_cycles(self, rows: int, vectors: float, depth: int, far: bool = False) -> float:
        """Cycles of one tile over `depth` terms. far: as `stores_far`."""
        work = rows * vectors
        if self.in_order:
            return depth * (3.0 * work + 1.5 * (rows + vectors) + 2.0) + TILE_OVERHEAD
        elements = rows / self.lanes if self.by_lane else rows
        step = max(work, elements + vectors, LATENCY * PER_CYCLE / self.splits(rows, vectors)) / PER_CYCLE
        step += ELEMENT * (2 * (elements + vectors) if self.by_lane else elements)
        if not self.by_lane:
            step = max(step, BROADCAST * rows)
        if not self.fused:  # copies, multiplications and additions, and two instructions for a broadcast
            step = max(step, (2.5 * work + 2 * rows + vectors) / ISSUE)
        weights = vectors * self.lanes * self.element
        if depth * weights > self.first_level // 2:
            step = max(step, weights / SECOND_LEVEL) + weights / HIDDEN
        if depth * weights > self.panel_room:
            step *= PARTS
        just = work == LATENCY * PER_CYCLE
        return depth * (step + WAITING * just) + TILE_OVERHEAD + work - OVERLAP * (just and far)


@dataclass(frozen=True)
class SingleCore(Core):
    """A core that starts one multiply-add of whole vectors in a cycle: four accumulators are enough, and small tiles, whose beginning and
    end pass beside the next one's, beat large ones. Fitted to what 450 tiles of 48 layers take on Zen 4 with AVX-512.

    spread: cycles that each element of A costs behind multiply-adds.
    """

    spread: float = 0.023

    @property
    def ahead_room(self) -> int:
        return self.second_level // 3

    def width(self, vectors: int, tail: int) -> float:
        return 0.5 if halves(self.lanes, vectors, tail) else vectors

    def tile_cycles(self, rows: int, vectors: float, depth: int, far: bool = False) -> float:
        work = rows * vectors
        return depth * self.step(rows, vectors, depth) + 3.0 * work + 4.0 * max(0, work - 6)

    def step(self, rows: int, vectors: float, depth: int) -> float:
        """Cycles of one of `depth` steps of a tile."""
        step = max(rows * vectors, vectors + 0.85 * rows, LATENCY) + self.spread * rows + 0.19 * vectors
        weights = vectors * self.lanes * self.element
        if depth * weights > self.first_level // 2:
            step = max(step, weights / 17.0) + weights / 1450.0
        return step


def core_of(target: Target, scalar: str) -> Core:
    lanes = target.lanes(scalar)
    vector = Type(scalar, lanes)
    fused = target.has("fma", vector, vector, vector)
    kind = SingleCore if target.products == 1 and lanes > 1 else Core
    return kind(
        lanes=lanes,
        registers=target.vector_registers if target.fpu else 6,
        rows=8 if target.pointer_bits == 64 else 4,
        by_lane=fused and target.vector_bits == 128 and target.vector_registers >= 16,
        fused=fused,
        in_order=lanes == 1,
        element=BYTES[scalar],
        prefetch=target.has("prefetch", PTR),
        first_level=target.cache("l1", 32 << 10),
        second_level=target.cache("l2", 256 << 10),
        third_level=target.cache("l3", 8 << 20),
    )


def stores_far(core: Core, geometry: Geometry, outputs: int, groups: int) -> bool:
    """Whether a layer's stores are what its tiles wait for, and not its weights.

    So it is where the output goes beyond the second cache level, in which the input has to stay as well, and a power of two between pixels
    makes them meet in few sets of the first level.
    """
    pitch, size = geometry.width.out_stride, outputs * groups * core.element
    room = core.second_level // 2
    return (
        geometry.rows * geometry.width.outputs * size > room and pitch & (pitch - 1) == 0 and geometry.depth_of_sum * size <= room
    )


@dataclass(frozen=True)
class Panels:
    """The output channels of one group, cut into panels of vectors: `bodies` of `vectors`, then perhaps one of `last` vectors.

    The very last vector holds `tail` channels; a panel that has it is always the `last`. Where the vectors were filled up to a round number
    and the very last ones hold none, tail is 0 or less: the channels before them that are missing. rows, last_rows: most pixels of their tiles.
    """

    lanes: int
    vectors: int
    bodies: int
    last: int
    tail: int
    rows: int
    last_rows: int

    @property
    def outputs(self) -> int:
        return (self.bodies * self.vectors + self.last - 1) * self.lanes + self.tail


@lru_cache(maxsize=1024)  # layers repeat, and comparing algorithms asks for what lowering asks for again
def choose_panels(core: Core, outputs: int, pixels: int, depth: int, direct: Direct | None = None, far: bool = False) -> Panels:
    """The register block with the fewest cycles for rows of `pixels` pixels, `outputs` channels and sums of `depth` terms.

    direct: it is chosen already. far: as `stores_far`.
    Raises ValueError where the choice has more rows or vectors than the core.
    """
    if direct is not None:
        if not core.fits(1, direct.vectors) or max(direct.rows, direct.last_rows) > core.rows:
            raise ValueError(f"tiles of {direct.rows} or {direct.last_rows} rows by {direct.vectors} vectors are too large")
        return _panels(core, outputs, direct.vectors, direct.rows, direct.last_rows, direct.fill or 1)
    best: tuple[float, Panels] | None = None
    for vectors in range(-(-outputs // core.lanes), 0, -1):
        if not core.fits(1, vectors):
            continue
        rows = _best_height(core, vectors, pixels, depth, far)[1]
        last = _panels(core, outputs, vectors, rows, 0).last
        panels = _panels(core, outputs, vectors, rows, _best_height(core, last, pixels, depth, far)[1] if last else 0)
        cycles = panel_cycles(core, panels, pixels, depth, far)
        if best is None or cycles < 0.995 * best[0]:
            best = (cycles, panels)
    assert best is not None, "a target without registers"
    return best[1]


def panel_choices(core: Core, outputs: int, pixels: int, depth: int, far: bool = False) -> list[tuple[float, Direct]]:
    """Every register block that fits, with its cycles by the cost model, fewest first."""
    found: dict[Direct, float] = {}
    for vectors in range(-(-outputs // core.lanes), 0, -1):
        for rows in _heights(core, vectors, pixels):
            last = _panels(core, outputs, vectors, rows, 0).last
            last_rows = _best_height(core, last, pixels, depth, far)[1] if last not in (0, vectors) else rows
            panels = _panels(core, outputs, vectors, rows, last_rows)
            found[Direct(vectors, rows, last_rows)] = panel_cycles(core, panels, pixels, depth, far)
    return sorted(((cycles, direct) for direct, cycles in found.items()), key=lambda entry: entry[0])


def _panels(core: Core, outputs: int, vectors: int, rows: int, last_rows: int, fill: int = 1) -> Panels:
    """fill: the number of vectors is a multiple of it."""
    total = -(-outputs // (core.lanes * fill)) * fill
    tail = outputs - (total - 1) * core.lanes
    bodies, last = divmod(total, min(vectors, total))
    if not last and tail < core.lanes:
        bodies, last = bodies - 1, min(vectors, total)
    return Panels(core.lanes, min(vectors, total), bodies, last, tail, rows if bodies else 0, last_rows if last else 0)


def panel_cycles(core: Core, panels: Panels, pixels: int, depth: int, far: bool = False) -> float:
    """Cycles of all panels of a row of pixels."""
    cycles = panels.bodies * _height_cycles(core, panels.vectors, pixels, depth, panels.rows, far) if panels.bodies else 0.0
    if panels.last:
        cycles += _height_cycles(core, core.width(panels.last, panels.tail), pixels, depth, panels.last_rows, far)
    return cycles * (1.03 if panels.bodies and panels.last else 1.0)  # twice the code, and a chunk that is not like the others


def product_cycles(core: Core, pixels: int, depth: int, outputs: int, times: int, matrices: int) -> float:
    """Multiply-adds of `times` products by one of `matrices` of weights, or the arrival of these where that takes longer."""
    weights = matrices * depth * outputs * core.element
    compute = times * panel_cycles(core, choose_panels(core, outputs, pixels, depth), pixels, depth)
    if weights <= core.second_level // 2:
        return compute
    # Of a network's weights the last cache level keeps little from one run to the next where a single layer's take much of it.
    arrival = weights / (FAR_STREAM if weights > core.third_level // 4 else STREAM)
    return max(compute, arrival) if compute >= SHORT * matrices else compute + arrival


def _heights(core: Core, vectors: int, pixels: int) -> list[int]:
    """The largest number of pixels in a tile, for every different way to cut a row into tiles that fit."""
    possible = [most for most in range(min(core.rows, pixels), 0, -1) if core.fits(most, vectors)]
    return [most for most in possible if balanced(pixels, most)[0] == most]


def _best_height(core: Core, vectors: int, pixels: int, depth: int, far: bool) -> tuple[float, int]:
    """Cycles of a row of tiles of the best height, and that height."""
    best: tuple[float, int] | None = None
    for most in _heights(core, vectors, pixels):
        cycles = _height_cycles(core, vectors, pixels, depth, most, far)
        if best is None or cycles < 0.995 * best[0]:
            best = (cycles, most)
    assert best is not None, "one row always fits"
    return best


def _height_cycles(core: Core, vectors: float, pixels: int, depth: int, most: int, far: bool) -> float:
    parts = -(-pixels // most)
    size, larger = divmod(pixels, parts)
    cycles = (parts - larger) * core.tile_cycles(size, vectors, depth, far)
    return cycles + larger * core.tile_cycles(size + 1, vectors, depth, far) if larger else cycles


def choose_unroll(core: Core, work: int, splits: int, runs: Sequence[int]) -> tuple[int, bool]:
    """Steps of k in one trip for tiles of `work` accumulators, and whether they divide every run."""
    common = math.gcd(*runs) if runs else 1
    if core.by_lane or splits > 1:
        steps = max(splits, core.lanes if core.by_lane else 4)
        return steps, common % steps == 0
    for steps in (2,) if core.in_order else (4, 3, 2, 5, 7):
        if common % steps == 0 and (steps * work <= UNROLLED or steps == 2):
            return steps, True
    return (1, True) if max(runs, default=1) < 8 or core.in_order else (2, False)


# --- partition into tasks and cache blocks ---


@dataclass(frozen=True)
class Partition:
    """tasks = blocks * chunks. blocks: of units (`unit_block` each); a unit is a row, or one of `row_parts` equal numbers of its tiles.

    chunks: of panels. body_chunk, last_chunk: panels of each kind in a chunk, over all groups.
    k_part: channels of a tap that are summed before the next ones are begun. ahead: 0, or how many tiles there are at least to fetch the
    weights of the panel after theirs.
    """

    row_parts: int
    units: int
    unit_block: int
    chunks: int
    body_chunk: int
    last_chunk: int
    k_part: int
    ahead: int

    @property
    def blocks(self) -> int:
        return -(-self.units // self.unit_block)

    @property
    def tasks(self) -> int:
        return self.blocks * self.chunks


def choose_partition(
    core: Core, geometry: Geometry, panels: Panels, groups: int, packable: bool, direct: Direct | None = None
) -> Partition:
    """Blocks of pixels whose input stays in the second cache level while all panels pass over it, in enough tasks for eight threads.

    packable: the weights are packed while compiling, so that they may be in parts of k. direct: what of it is chosen already.
    """
    k_parts, chosen_blocks, chosen_ahead = (direct.k_parts, direct.blocks, direct.ahead) if direct is not None else (None,) * 3
    width = geometry.width
    depth = geometry.depth_of_sum
    macs = geometry.rows * width.outputs * panels.outputs * groups * depth
    wanted = max(1, min(48, macs // 100_000))
    row_bytes = width.outputs * width.step * max(width.in_stride, geometry.channels) * geometry.height.step * core.element
    weight_bytes = panels.outputs * groups * depth * core.element
    heavy = weight_bytes > core.second_level // 2
    room = core.second_level // (2 if heavy else 4)
    several = panels.bodies + (panels.last > 0) > 1
    resident = max(1, -(-geometry.rows * row_bytes // room)) if several else 1
    body_panels, last_panels = groups * panels.bodies, groups * (panels.last > 0)
    blocks = chosen_blocks or (resident if heavy or body_panels >= wanted else max(resident, wanted))
    most_tiles = len(balanced(width.outputs, max(panels.rows, panels.last_rows)))
    chunks = max(1, min(body_panels or last_panels, -(-wanted // min(blocks, geometry.rows * most_tiles))))
    body_chunk, last_chunk = -(-body_panels // chunks), -(-last_panels // chunks)
    chunks = -(-body_panels // body_chunk) if body_panels else -(-last_panels // last_chunk)  # none of them empty
    blocks = max(blocks, wanted // chunks)
    row_parts = max(1, min(most_tiles // 2, -(-blocks // geometry.rows)))
    units = geometry.rows * row_parts
    unit_block = max(1, units // blocks)
    panel_bytes = depth * panels.vectors * panels.lanes * core.element
    swept = packable and units * most_tiles >= 4 and panel_bytes > core.panel_room
    parts = -(-panel_bytes // (core.second_level // 2)) if swept else 1
    parts = min(k_parts, geometry.channels) if k_parts is not None and packable else parts
    k_part = min(geometry.channels, -(-geometry.channels // parts // 4) * 4)
    # Weights that come from far are waited for by the first tiles of each panel, unless the tiles of the panel before ask for them.
    sweeps = min(unit_block, units) * most_tiles // row_parts
    ahead = core.prefetch and heavy and 2 <= sweeps <= MOST_SWEEPS and panel_bytes // parts <= core.ahead_room
    ahead = ahead if chosen_ahead is None else chosen_ahead and core.prefetch
    tiles = max(1, sweeps) if ahead else 0
    return Partition(row_parts, units, unit_block, chunks, body_chunk, -(-last_panels // chunks), k_part, tiles)


def runs_of(segment: Segment, channels: int, merged: bool) -> list[int]:
    """Lengths of the runs of k in a tile of the segment."""
    return [taps * channels if merged else channels for first, stop, taps in segment.groups if first < stop]
