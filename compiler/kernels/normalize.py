"""Local response normalization over channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import collapse, drivers, leading_axes, nest, position, task_loop
from cortado.compiler.kernels.math import fma
from cortado.compiler.kernels.scalar import emit_op, require_float32
from cortado.compiler.lang import Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_lrn(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """x * (bias + alpha / size * sum of x^2 over `size` channels around)^-beta. float32; UnsupportedError for other types."""
    (x,), (y,) = ins, outs
    require_float32(node, x.type.dtype)
    if y.type.size == 0:
        return []
    channels = x.shape[-1]
    space = collapse(x.shape[:-1], [x.strides[:-1], y.strides[:-1]])
    lead = leading_axes(space.shape)
    k = KernelBuilder("lrn_f32", target)
    source, sink = k.param("in0"), k.param("out")
    begin, end = drivers(k)
    half = min(node.attrs["size"] // 2, channels - 1)
    lanes = min(target.lanes("f32"), 1 << (channels - 1).bit_length())
    # vectors whose whole window lies inside the channels: from `first` up to `past`
    first = -(-half // lanes) * lanes
    past = first + max(0, channels - half - first) // lanes * lanes

    def pixel(coordinates: list[Val]) -> None:
        come = k.offset(source, position(k, coordinates, space.strides[0]), "f32")
        go = k.offset(sink, position(k, coordinates, space.strides[1]), "f32")

        def inside(at: Val) -> None:
            window = [k.load(come, Type("f32", lanes), at + shift) for shift in range(-half, half + 1)]
            k.store(go, _response(k, node, window, half), at)

        for at in range(0, min(first, channels), lanes):
            _border(k, node, (come, go), at, half, channels, lanes)
        k.loop(first, past, lanes, inside)
        for at in range(past, channels, lanes):
            _border(k, node, (come, go), at, half, channels, lanes)

    task_loop(k, begin, end, space.shape[:lead], lambda head: nest(k, space.shape[lead:], lambda tail: pixel([*head, *tail])))
    tasks = prod(space.shape[:lead])
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks)]


def _border(k: KernelBuilder, node: Node, places: tuple[Val, Val], at: int, half: int, channels: int, lanes: int) -> None:
    """A vector at the first or last channels: what lies outside counts as zero and is not read."""
    type_ = Type("f32", lanes)
    window: list[Val] = []
    for shift in range(-half, half + 1):
        low = at + shift
        missing = max(0, -low)
        count = min(lanes - missing, channels - low - missing)
        if count <= 0:
            window.append(k.zero(type_))
            continue
        value = k.load_lanes(places[0], type_, count, low + missing)
        if missing:
            value = k.shuffle(k.zero(type_), value, [j if j < missing else lanes + j - missing for j in range(lanes)])
        window.append(value)
    k.store_lanes(places[1], _response(k, node, window, half), min(lanes, channels - at), at)


def _response(k: KernelBuilder, node: Node, window: Sequence[Val], half: int) -> Val:
    total = window[0] * window[0]
    for value in window[1:]:
        total = fma(k, value, value, total)
    scale = total * (node.attrs["alpha"] / node.attrs["size"]) + node.attrs["bias"]
    return window[half] * _inverse_power(k, scale, node.attrs["beta"])


def _inverse_power(k: KernelBuilder, x: Val, beta: float) -> Val:
    """x^-beta; by square roots where beta is 1, 1/2 or 3/4."""
    if beta == 1.0:
        return 1.0 / x
    if beta in (0.5, 0.75):
        root = k.virtual("sqrt", x)
        return 1.0 / (root if beta == 0.5 else root * k.virtual("sqrt", root))
    return emit_op(k, "pow", [x, k.const(-beta, x.type)])
