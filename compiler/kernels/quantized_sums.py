"""What the ways to make quantized sums share: which dot instruction, its weights, and what becomes of the sums."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.kernels.requantize import PACKED, Requantization
from cortado.compiler.kernels.tiling import TILE_OVERHEAD, Core, SingleCore, core_of
from cortado.compiler.lang import I32
from cortado.compiler.ops.quantized import output_scales, residual_scale, weight_quant
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.target import Target
from cortado.errors import UnsupportedError

MANY = 32  # vector registers; LLVM uses them to load ahead, and keeps all accumulators in memory where a block leaves it none
FLIPPED = 0.2  # cycles that an element costs whose signs are flipped by an instruction of its own
TAME = 0.5  # a scale up to which sums of 32 bits stay far within 32 bits


def centred_weights(node: Node) -> np.ndarray:
    """int16 weights without their zero points. UnsupportedError where weights or bias are known only at run time."""
    w, bias = node.inputs[1].constant, node.inputs[2].constant
    if w is None or bias is None:
        raise UnsupportedError(f"{node.op} {node.name}: quantized weights and bias must be constants", [node.name])
    zeros = weight_quant(node.inputs[1].type)[1]
    return w.astype(np.int16) - zeros.astype(np.int16).reshape(-1, *[1] * (w.ndim - 1))


def fits_byte(w: np.ndarray) -> bool:
    return bool(w.size == 0 or (w.min() >= -128 and w.max() <= 127))


def choose_dot(node: Node, w: np.ndarray, target: Target) -> Dot:
    """dot4 where the target has it and the weights fit a byte, else dot2."""
    return dot_of(fits_byte(w), node.inputs[0].type.dtype == "int8", target)


def dot_of(bytes_fit: bool, signed: bool, target: Target) -> Dot:
    """bytes_fit: whether second factors without their zero points fit a signed byte. signed: whether the first factors' bytes have a sign."""
    vector = I32.with_lanes(target.lanes("i32"))
    return Dot("dot4" if bytes_fit and target.has("dot4", vector, vector, vector) else "dot2", signed)


@dataclass(frozen=True)
class PairCore(Core):
    """A core on which products of pairs and additions are two instructions: 0.62 cycles both, and 0.28 a vector of weights (Zen 3)."""

    def tile_cycles(self, rows: int, vectors: float, depth: int, far: bool = False) -> float:
        work = rows * vectors
        return max(super().tile_cycles(rows, vectors, depth, far), depth * (0.62 * work + 0.28 * vectors) + TILE_OVERHEAD + work)


@dataclass(frozen=True)
class SingleDotCore(SingleCore):
    """As SingleCore, with the time to make bytes of the sums, and to store them: four vectors are one of bytes (Zen 4)."""

    def tile_cycles(self, rows: int, vectors: float, depth: int, far: bool = False) -> float:
        stores = math.ceil(vectors / PACKED) + (vectors % PACKED != 0)
        return depth * self.step(rows, vectors, depth) + rows * (5.5 * vectors + 2.0 * stores)


def dot_core(target: Target, dot: Dot, narrows: bool = True) -> Core:
    """The cost model's core for 32-bit words. narrows: whether sums become bytes in the tile.

    A product that is not added by the same instruction takes registers, as do the signs that
    bytes are flipped with.
    """
    core = core_of(target, "i32")
    fused = dot.name == "dot4" or any(feature in target.features for feature in ("+avx512vnni", "+avxvnni"))
    flips = dot.name == "dot4" and dot.flip
    taken = 0 if core.in_order else 2 * (not fused) + flips + (flips and core.registers == MANY)
    core = replace(core, registers=core.registers - taken, fused=core.lanes > 1, by_lane=False)
    word = I32.with_lanes(core.lanes)
    if isinstance(core, SingleCore):
        core = replace(core, spread=FLIPPED if flips else core.spread)
        return SingleDotCore(**{field.name: getattr(core, field.name) for field in fields(core)}) if narrows else core
    if fused or core.lanes == 1 or not target.has(dot.name, word, word, word):
        return core
    return PairCore(**{field.name: getattr(core, field.name) for field in fields(core)})


def requantization(node: Node) -> Requantization:
    types, attrs = [value.type for value in node.inputs], node.attrs
    beside, signed = (0, 0), True
    if len(types) == 4:
        scale, zero = residual_scale(types, attrs)
        beside, signed = (int(scale.view(np.uint32)), zero), types[3].dtype == "int8"
    zero = attrs["quant"].zero_points[0]
    most = float(np.max(output_scales(types, attrs), initial=0.0))
    tame = most <= TAME and (len(types) < 4 or float(scale) <= TAME * 2**20)
    return Requantization(True, len(types) == 4, None, attrs["rounding"], zero, attrs["lo"], attrs["hi"], beside, signed, tame)


def folded_bias(node: Node, w: np.ndarray, dot: Dot) -> np.ndarray:
    """int32[O]: the bias, with what the zero point contributes where dot4 multiplies it."""
    bias = node.inputs[2].constant
    assert bias is not None
    if dot.name != "dot4":
        return bias
    kind = node.inputs[0].type
    zero = scale_of(kind)[1] + (128 if kind.dtype == "int8" else 0)
    moved = zero * w.reshape(w.shape[0], -1).sum(axis=1, dtype=np.int64)
    return (bias - moved).astype(np.int32)


def packed_words(w: np.ndarray, dot: Dot) -> np.ndarray:
    """w[O,*K,C] int16 -> int32[O,*K,words]: neighbouring channels in a word, zero past the last one."""
    room = -w.shape[-1] % dot.neighbours
    padded = np.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, room)])
    padded = padded.astype("<i2" if dot.name == "dot2" else np.int8)
    return np.ascontiguousarray(padded).view("<i4").astype(np.int32)
