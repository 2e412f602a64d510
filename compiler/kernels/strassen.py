"""1x1 convolutions, and layers of many rows, by Strassen's scheme: an eighth fewer multiply-adds, paid with larger weights.

Sums of the inputs of pairs of pixels, then seven products instead of eight (`strassen_tile`); sums of weights are made while compiling.
Neighbouring pixels of an image are paired, so that what is computed of one image does not depend on the others.

Errors are bounded as those of a product are, by the largest values instead of each one's own: with n channels, |error| is at most
`error_bound(n) * max|a| * max|w|`, and about twice that of direct sums in practice. That is no bound for what is small beside its partner in
a sum, so weights of very different sizes are multiplied directly (`alike`). Outputs whose weights are nothing, as of channels that training
gave up, have such an error too: they are not exactly their bias. NaN and infinities of a pixel reach the one it is paired with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Direct, Strassen
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.geometry import Geometry, rows_geometry
from cortado.compiler.kernels.packing import pack_panels
from cortado.compiler.kernels.strassen_driver import Cut, products_driver
from cortado.compiler.kernels.strassen_sums import SCALAR, Pairing, Tensor, sums_driver
from cortado.compiler.kernels.strassen_tile import PRODUCTS, SUMS
from cortado.compiler.kernels.tiling import (
    FAR_STREAM,
    LATENCY,
    PER_CYCLE,
    Core,
    Panels,
    Partition,
    SingleCore,
    choose_panels,
    choose_partition,
    core_of,
    product_cycles,
)
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

SUMMING, SUMMING_APART = 10.0, 18.0  # cycles of a vector of each of the four sums, piece by piece and all at once
TILE = 60.0  # cycles of a tile more than one with a single loop and a single store
GAIN = 0.055  # of the direct way's cycles, at least
WORTH = 16.0  # bytes that weights may be larger by for each cycle that is saved
PIECE = 16 << 10  # bytes of the sums of a piece
SHARES, LEAST = 8, 100_000  # equal parts of a layer whose sums are made piece by piece, and multiply-adds of each at least
FEWEST = 8  # pairs of pixels
APART = 2.0**-8  # of two largest weights that are added: what is smaller than that beside the other loses too many digits
NOTHING = 2.0**-32  # but so small beside the other that it is nothing


def serves_strassen(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> bool:
    """Whether the layer is a product of known weights with many pixels of every image, on vectors, in float32, and weights are `alike`."""
    w = node.inputs[1].constant
    if w is None or outs[0].type.size == 0 or outs[0].type.dtype != "float32" or target.lanes(SCALAR) == 1:
        return False
    if any(entry[0] == "bias" and node.inputs[2].constant is None for entry in node.attrs["epilogue"]):
        return False
    if w.size != w.shape[0] * w.shape[-1] or not may_pair(node):
        return False
    if node.op == "conv":
        attrs = node.attrs
        if attrs["group"] != 1 or {*attrs["strides"]} != {1} or any(attrs["pads_begin"]) or any(attrs["pads_end"]):
            return False
    if node.op not in ("conv", "fc") or len(ins[0].shape) < 3:
        return False
    pairing = _pairing(node, ins, outs, target)
    return pairing is not None and pairing.pairs >= FEWEST


def may_pair(node: Node) -> bool:
    """Whether known weights of a layer have halves, and are `alike`."""
    w = node.inputs[1].constant
    return w is not None and w.shape[0] % 2 == w.shape[-1] % 2 == 0 and alike(w.reshape(w.shape[0], -1))


def alike(w: np.ndarray) -> bool:
    """Whether weights [outputs, channels] that are added have the same size, more or less: the largest ones of channels, and of outputs."""
    sizes = np.abs(w)
    for largest in (sizes.max(0), sizes.max(1)):
        pairs = largest.reshape(2, -1)
        small, large = pairs.min(0), pairs.max(0)
        if ((small < APART * large) & (small > NOTHING * large)).any():
            return False
    return True


def error_bound(channels: int) -> float:
    """Of a sum of so many terms, as a multiple of max|a| * max|w|, in float32 (as Higham's for one level of the scheme, section 23.2.2).

    C12 is the largest: the sizes of its products' terms are 1 + 3 * 3 + 2 * 2 + 4 times those of a plain product of half as many terms. A
    term passes through the additions of up to three products and eight others.
    """
    return 18 * (channels / 2) * (3 * channels / 2 + 8) * 2.0**-24


def _pairing(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> Pairing | None:
    """None where an image's pixels do not lie at equal distances."""
    residual = parse_epilogue(node.attrs["epilogue"], 2).residual
    x, out, beside = ins[0], outs[0], None if residual is None else ins[residual]
    channels, outputs = x.shape[-1], out.shape[-1]
    geometry, apart = rows_geometry(_image(x), _image(out), None if beside is None else _image(beside), channels)
    if apart or geometry.rows != 1:
        return None
    width = geometry.width
    a, to = Tensor(x.strides[0], width.in_stride), Tensor(out.strides[0], width.out_stride)
    residuals = None if beside is None else Tensor(beside.strides[0], width.residual_stride)
    return Pairing(x.shape[0], width.outputs, channels, outputs, a, residuals, to, target.lanes(SCALAR))


def _image(operand: Operand) -> Operand:
    return Operand(TensorType(operand.shape[1:], operand.type.dtype), operand.strides[1:])


def pair_problem(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> tuple[Geometry, tuple[()], int]:
    """An image's products as one contraction of pairs: geometry, groups, and outputs of a half; where `serves_strassen`."""
    pairing = _pairing(node, ins, outs, target)
    assert pairing is not None
    return pairing.geometry, (), pairing.half


def choose_strassen(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> Strassen | None:
    """Strassen's scheme where it is clearly faster than multiplying directly, or None: also where it cannot be done.

    Measured, and chosen, for cores with one multiply-add of long vectors in a cycle. With 16 registers (AVX2) it gains 0 to 5% of a layer and
    nothing of a run; of other cores nothing is known. `cortado tune` measures it on all.
    """
    core = core_of(target, SCALAR)
    if not isinstance(core, SingleCore) or not serves_strassen(node, ins, outs, target):
        return None
    (outputs, channels), images = (outs[0].shape[-1], ins[0].shape[-1]), ins[0].shape[0]
    pixels = outs[0].type.size // outputs
    direct = product_cycles(core, pixels, channels, outputs, 1, 1)
    saved = direct - strassen_cycles(core, pixels // images, channels, outputs, images)
    return Strassen() if saved > max(GAIN * direct, larger(channels, outputs, core) / WORTH) else None


def larger(channels: int, outputs: int, core: Core) -> float:
    """Bytes of weights more than directly."""
    return (PRODUCTS / 4 - 1) * channels * outputs * core.element


def strassen_cycles(core: Core, pixels: int, channels: int, outputs: int, images: int) -> float:
    """Of a layer with so many pixels in each image. All weights pass for every image."""
    pairs, run, tiled = (pixels + 1) // 2, channels // 2, tile_core(core)
    depth = PRODUCTS * run
    panels = choose_panels(tiled, outputs // 2, pairs, depth)
    rows, count = panels.rows or panels.last_rows, panels.bodies + (panels.last > 0)
    cycles = product_cycles(tiled, pairs, depth, outputs // 2, 1, 1) + TILE * count * -(-pairs // rows)
    vectors = pairs * -(-run // core.lanes)
    if light(core, outputs // 2, depth):
        return images * (cycles + SUMMING * vectors)
    sums = images * vectors * SUMS * core.lanes * core.element
    far = sums / FAR_STREAM if sums > core.third_level // 4 else 0.0
    weights = depth * panels.vectors * core.lanes * core.element
    if weights > core.ahead_room:
        cycles += count * max(0.0, weights / FAR_STREAM - tiled.tile_cycles(rows, panels.vectors, depth))
    return images * (cycles + SUMMING_APART * vectors) + far


def tile_core(core: Core) -> Core:
    """The core for tiles that keep two more blocks of results: in registers, if it has enough for blocks that hide the latency."""
    keeping = replace(core, kept=2)
    return keeping if keeping.fits(int(LATENCY * PER_CYCLE), 1) else core


def light(core: Core, outputs: int, depth: int) -> bool:
    """Whether the weights of all products may pass for every piece of the pairs. outputs: of a half; depth: terms of all products."""
    return outputs * depth * core.element <= core.second_level // 2


def lower_strassen(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], choice: Strassen, target: Target
) -> list[KernelCall]:
    """conv x[N,*S,C], constant w[O,1,..,C], or fc x[N,*S,C], w[O,C]; then the epilogue's inputs -> out[N,*S,O]; where `serves_strassen`."""
    pairing = _pairing(node, ins, outs, target)
    w = node.inputs[1].constant
    assert pairing is not None and w is not None
    core, epilogue = tile_core(core_of(target, SCALAR)), parse_epilogue(node.attrs["epilogue"], 2)
    cut = choose_cut(core, pairing, choice.products)
    sums = Ref("scratch", nbytes=cut.nbytes(pairing))
    weights = Ref("weights", array=pack_panels(_products(w.reshape(pairing.outputs, -1)), None, cut.panels))
    bias = [] if epilogue.bias is None else [Ref("weights", array=node.inputs[epilogue.bias].constant)]
    residual = [] if epilogue.residual is None else [Ref("input", epilogue.residual)]
    in_order = pairing.images if pairing.images > 1 else 0
    products = KernelCall(
        products_driver(pairing, cut, epilogue.kind, core, target),
        (Ref("input", 0), sums, weights, *bias, *residual, Ref("output", 0)),
        pairing.images * cut.partition.tasks,
        in_order,
    )
    if cut.together:
        return [products]
    summing = KernelCall(sums_driver(pairing, target), (Ref("input", 0), sums), pairing.images * pairing.sum_tasks, in_order)
    return [summing, products]


def choose_cut(core: Core, pairing: Pairing, products: Direct | None) -> Cut:
    """products: if it is chosen already, vectors and rows of tiles, which all panels have the same; other cuts where weights are heavy."""
    geometry = pairing.geometry
    depth = geometry.depth_of_sum
    panels = choose_panels(core, pairing.half, pairing.pairs, depth, products)
    rows = panels.rows or panels.last_rows
    if not light(core, pairing.half, depth):
        panels = _of_height(panels, rows)
        chosen = products or Direct(panels.vectors, rows, rows)
        partition = choose_partition(core, geometry, panels, 1, False, chosen)
        if chosen.blocks is None and partition.blocks > 1:  # an even number, for two threads
            blocks = partition.blocks + partition.blocks % 2
            partition = choose_partition(core, geometry, panels, 1, False, replace(chosen, blocks=blocks))
        return Cut(panels, partition, False)
    tiles, macs = -(-pairing.pairs // rows), pairing.pairs * pairing.half * depth
    if products is None and tiles > 8 and tiles % 2:  # an even number, for two threads; of few, small ones cost more
        tiles += 1
        rows = -(-pairing.pairs // tiles)
    shares = max(1, min(-(-SHARES // pairing.images), macs // LEAST))
    pieces = -(-pairing.pairs * pairing.pitch * core.element // (PIECE * shares)) * shares
    if pieces > tiles:
        pieces = tiles if tiles < 2 * shares else tiles // shares * shares
    block = pieces // shares if pieces >= 2 * shares else 1
    return Cut(_of_height(panels, rows), Partition(pieces, pieces, block, 1, panels.bodies, 1, depth, 0), True)


def _of_height(panels: Panels, rows: int) -> Panels:
    """With tiles of so many rows in all of them."""
    return replace(panels, rows=rows if panels.bodies else 0, last_rows=rows if panels.last else 0)


def _products(w: np.ndarray) -> np.ndarray:
    """w [outputs, channels] -> [1, outputs / 2, the terms of the seven products], in the order in which tiles use them."""
    (b11, b21), (b12, b22) = ([np.ascontiguousarray(part) for part in np.hsplit(half, 2)] for half in np.vsplit(w, 2))
    t1 = b12 - b11
    t2 = b22 - t1
    return np.concatenate([b11, b21, t2, t1, b22, b22 - b12, b21 - t2], axis=1)[None]
