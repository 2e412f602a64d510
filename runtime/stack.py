"""An upper bound of the stack that a library's functions need: frames summed along the worst path of calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cortado.backends.dispatch import Variant
from cortado.compiler.program import Program
from cortado.compiler.target import Target

_UNREPORTED = 16  # bytes: what a machine-code function without a reported frame pushes


def stack_bytes(program: Program, frames: Mapping[str, int], target: Target, prefix: str) -> int:
    """frames: bytes by symbol, without return addresses. Holds for each entry point, and for a thread that runs a part of a step.

    What the caller's parallel_for itself needs is not known here and not counted.
    """
    pointer = target.pointer_bits // 8
    vector = target.vector_bits // 8
    slack = (vector if vector > 16 else 0) + 16  # aligning a frame for its vectors, and for the call

    def frame(symbol: str, arguments: int) -> int:
        return frames.get(symbol, 0) + pointer * (1 + arguments) + slack

    known: dict[str, int] = {}

    def below(kernel: Any) -> int:
        if kernel.name not in known:
            deepest = max((below(callee) for callee in _called(kernel.body.body)), default=0)
            known[kernel.name] = frame(f"{prefix}_{kernel.name}", len(kernel.params)) + deepest
        return known[kernel.name]

    drivers = max((below(step.kernel) for step in program.steps), default=0)
    tasks = max((frame(f"{prefix}_task{number}", 2) for number in range(len(program.steps))), default=0)
    run = frame(f"{prefix}_run", 3) + drivers
    run_threads = frame(f"{prefix}_run_threads", 5) + tasks + drivers
    return max(frame(f"{prefix}_init", 2) + _UNREPORTED + pointer, run, run_threads)


def dispatched_stack_bytes(variants: Sequence[Variant], frames: Mapping[str, int], target: Target, prefix: str) -> int:
    """As stack_bytes, for functions that jump to one of several levels' after NAME_init has asked the processor."""
    pointer = target.pointer_bits // 8

    def frame(*endings: str) -> int:
        return max(frames.get(f"{prefix}_{ending}", 0) for ending in endings) + 6 * pointer + 16

    asked = frame(*(f"has{number}" for number in range(1, len(variants)))) + _UNREPORTED + pointer
    below = max(stack_bytes(variant.program, frames, variant.target, variant.prefix) for variant in variants)
    return max(frame("init") + frame("level") + asked, frame("run", "run_threads") + below)


def _called(body: Iterable[Any]) -> Iterable[Any]:
    for inst in body:
        if inst.kind == "call":
            yield inst.attr
        for block in inst.blocks:
            yield from _called(block.body)
