"""What each int8 node costs at the network's outputs: the error when it alone is int8, all others staying float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.ops import OPS
from cortado.compiler.quantize.calibrate import Feeds, MakeExecutor, Observer, Progress
from cortado.compiler.quantize.plan import Plan, activations
from cortado.compiler.quantize.simulate import RANGES, ROW, SWITCHES, simulation
from cortado.compiler.types import Quant

FINE = 2.0**-21  # steps of a tensor that counts as exact, as parts of its range
WIDE = 3e38
WORK = 100e9  # multiply-adds that a network with little error may take: some seconds
MOST_WORK = 1500e9  # and one whose error asks for an explanation
ENOUGH = 10**-3.0  # relative squared error at the outputs (30 dB) beyond which it does
MOST_SAMPLES = 4


def alone(
    plan: Plan,
    quants: Sequence[Quant],
    moved: Mapping[Node, np.ndarray],
    error: float,
    observer: Observer,
    samples: Sequence[Feeds],
    make_executor: MakeExecutor,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Noise energy / signal energy at the outputs (the mean over them), by name of node; nothing where that would take too long.

    A node is its rounded weights and the rounding of its result; tensors that come from float count with the nodes that read them. error:
    of the whole network in int8.
    """
    nodes = [node for node in plan.graph.nodes() if node in plan.quantized and _rounds(plan, node)]
    macs = sum(_macs(node) for node in nodes)
    work = 2.0 * macs * len(nodes)
    if not nodes or work > (MOST_WORK if error > ENOUGH else WORK):
        return {}
    taken = samples[: max(1, min(MOST_SAMPLES, int(WORK / max(work, 1.0))))]
    made = simulation(plan, switched=True)
    executor = make_executor(made.graph)
    layers = list(made.biases)
    found = dict.fromkeys((node.name for node in nodes), 0.0)
    for number, feeds in enumerate(taken):
        wanted = observer.run(feeds)
        for at, node in enumerate(nodes):
            extra = made.feeds(quants, {node: moved[node]} if node in moved else {})
            extra[RANGES] = _rows(extra[RANGES], plan, node)
            switches = np.array([0.0 if layer is node else 1.0 for layer in layers] or [1.0], np.float32)
            got = executor.run({**feeds, **extra, SWITCHES: switches})
            found[node.name] += _error(wanted, got) / len(taken)
            if progress is not None:
                progress("measuring layers", number * len(nodes) + at + 1)
    return found


def _rounds(plan: Plan, node: Node) -> bool:
    """Does it make numbers that int8 cannot hold, rather than passing on some of a tensor's?"""
    return any(plan.of[value] != plan.of[node.out()] for value in activations(node))


def _macs(node: Node) -> int:
    count = OPS[node.op].macs
    return 0 if count is None else count([value.type for value in node.inputs], node.attrs)


def _rows(rows: np.ndarray, plan: Plan, node: Node) -> np.ndarray:
    """RANGES that leave all tensors but the node's as they are."""
    own = {plan.of[node.out()]}
    own |= {plan.of[v] for v in activations(node) if not any(m.node in plan.quantized for m in plan.tensors[plan.of[v]].members)}
    fine = np.empty_like(rows)
    for row, given in zip(fine, rows, strict=True):
        scale = max(float(given[1] - given[0]), 1e-30) * FINE
        row[:ROW] = -WIDE, WIDE, 1 / scale, scale
    for tensor in own:
        fine[tensor] = rows[tensor]
    return fine


def _error(wanted: Feeds, got: Feeds) -> float:
    """The mean over the outputs."""
    errors = []
    for name, array in got.items():
        exact = wanted[name].reshape(-1).astype(np.float64)
        noise, signal = float(np.sum((array.reshape(-1) - exact) ** 2)), float(np.dot(exact, exact))
        errors.append(noise / signal if signal else float(noise > 0))
    return sum(errors) / max(1, len(errors))
