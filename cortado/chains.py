"""Chains of convolutions as layers to be measured: as one operator, and one after another, on the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cortado.compiler.graph import Graph
from cortado.compiler.kernels.choice import Chain, Choice
from cortado.compiler.kernels.table import lowerings
from cortado.compiler.lower import layers
from cortado.compiler.ops import OPS
from cortado.compiler.passes.fuse_chains import chain_of, possible_chains
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning, chain_key
from cortado.search import Layer, Part


def chains_of(graph: Graph) -> list[Layer]:
    """The chains of an optimized graph, fused or not yet: the shortest first, since they may be parts of others, then by their work."""
    placed = {part.node: part for part in (Part(*layer) for layer in layers(graph))}
    count = OPS["conv_chain"].macs
    assert count is not None
    found: dict[str, Layer] = {}
    for nodes in possible_chains(graph):
        parts = tuple(placed[node] for node in nodes)
        whole = _whole(parts)
        key = chain_key(whole.node)
        names = (*(found[key].names if key in found else ()), whole.node.name)
        macs = count([value.type for value in whole.node.inputs], whole.node.attrs)
        found[key] = Layer(key, names, whole.node, whole.ins, whole.outs, macs, parts)
    return sorted(found.values(), key=lambda layer: (len(layer.parts), -layer.macs * len(layer.names)))


def chain_calls(chain: Layer, choice: Choice, target: Target, tuning: Tuning) -> list[KernelCall]:
    """Kernels of a chain, fused or apart. tuning: what is known of the layers that it is when apart, of which some may be a shorter chain.

    What is between the layers are inputs behind the chain's own, as in `memory`.
    """
    pieces = [Part(chain.node, chain.ins, chain.outs)] if choice == Chain(True) else _pieces(chain.parts, tuning)
    calls: list[KernelCall] = []
    x, taken = Ref("input", 0), 1
    for number, piece in enumerate(pieces):
        out = Ref("output", 0) if number == len(pieces) - 1 else Ref("input", len(chain.ins) + number)
        ins = [x, *(Ref("input", taken + i) for i in range(len(piece.ins) - 1))]
        calls += [_moved(call, ins, out) for call in _lowered(piece, target, tuning)]
        x, taken = out, taken + len(piece.ins) - 1
    return calls


def memory(layer: Layer) -> list[Operand]:
    """The inputs of a layer and, of a chain, behind them what is between its layers."""
    return [*layer.ins, *(part.outs[0] for part in layer.parts[:-1])]


def _whole(parts: Sequence[Part]) -> Part:
    """Layers one after another as one operator, planned for one thread."""
    ins = [*parts[0].ins, *(operand for part in parts[1:] for operand in part.ins[1:])]
    return Part(chain_of([part.node for part in parts], 1), ins, parts[-1].outs)


def _pieces(parts: Sequence[Part], tuning: Tuning) -> list[Part]:
    """What a compilation would make of the layers of a chain that is not fused."""
    if len(parts) > 2 and tuning.fused(_whole(parts[1:]).node):
        return [parts[0], _whole(parts[1:])]
    return list(parts)


def _lowered(part: Part, target: Target, tuning: Tuning) -> list[KernelCall]:
    return lowerings("speed", tuning)[part.node.op](part.node, part.ins, part.outs, target)


def _moved(call: KernelCall, ins: Sequence[Ref], out: Ref) -> KernelCall:
    """A call of a piece with pointers as the chain has them."""

    def moved(ref: Ref) -> Ref:
        whole = ins[ref.index] if ref.kind == "input" else out if ref.kind == "output" else None
        return ref if whole is None else replace(whole, offset=ref.offset)

    return replace(call, refs=tuple(map(moved, call.refs)))
