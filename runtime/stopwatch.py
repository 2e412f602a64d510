"""Times of a layer's kernels in this process, with the caches as a network leaves them.

A layer's inputs were written just before it runs, its weights and code were used one run of the network ago. So before each timed run
as much memory as the second cache level holds is gone through, then the inputs are written, and weights are taken from one of several
copies in turn, which together are as large as the network's. Networks that fit the second level keep everything where it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target
from cortado.runtime.memory import LoadedCode

ROTATED = 64 << 20  # bytes of weights that are in turn, at most: beyond any last cache level's share of one core
ALIVE = 4  # candidates whose weights together make up that many bytes
_CLOCK_MONOTONIC = 1
_LINE = 64


class Bench:
    """The memory that all candidates of a layer work on. inputs, outputs: by operand. network: bytes of a run's weights and arena."""

    def __init__(self, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, network: int) -> None:
        self.inputs, self.outputs = [_View(operand) for operand in ins], [_View(operand) for operand in outs]
        second = target.cache("l2", 256 << 10)
        self.network = network
        self.evicted = np.zeros(2 * second // 4 if network > second else 0, np.float32)
        self.scratch = _aligned(0)
        self.kept: list[np.ndarray] = []

    def set(self, feeds: Mapping[str, np.ndarray]) -> None:
        """feeds: arrays by the position of the input, as a number in words."""
        for number, array in feeds.items():
            self.inputs[int(number)].view[...] = array
        self.kept = [view.memory.copy() for view in self.inputs]
        self.given = [int(number) for number in feeds]

    def prepare(self) -> None:
        """Caches as before the layer's turn in a network."""
        np.add(self.evicted, 1.0, out=self.evicted)
        for number in reversed(self.given):
            np.copyto(self.inputs[number].memory, self.kept[number])


class TimedLayer:
    """One candidate: an executor with a clock. Made by `timed_layers`."""

    def __init__(self, calls: Sequence[KernelCall], code: LoadedCode, bench: Bench) -> None:
        self._bench, self._code = bench, code
        self._timed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(code.address("layer_timed"))
        weights = [ref.array for call in calls for ref in call.refs if ref.kind == "weights" and ref.array is not None]
        size = max(1, sum(array.nbytes for array in weights))
        copies = -(-min(bench.network, ROTATED) // (ALIVE * size)) if bench.evicted.size else 1
        self._weights = [[_copy(array) for array in weights] for _ in range(max(1, copies))]
        self._scratch = _scratch_of(calls)
        self._calls, self._turn = calls, 0
        self._clocks = np.zeros((2, 2), np.int64)
        self._pointers: list[np.ndarray] = []

    @property
    def scratch_bytes(self) -> int:
        return sum(self._scratch.values())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """feeds: by the position of the layer's input, "0" and so on; outputs in the same way."""
        self._bench.set(feeds)
        self._once()
        return {str(number): view.view.copy() for number, view in enumerate(self._bench.outputs)}

    def time(self) -> float:
        """Seconds of one run on the last feeds."""
        self._bench.prepare()
        return self._once()

    def _once(self) -> float:
        if not self._pointers:
            self._pointers = [self._places(weights) for weights in self._weights]
        self._turn = (self._turn + 1) % len(self._pointers)
        self._timed(self._pointers[self._turn].ctypes.data, self._clocks.ctypes.data)
        (first, more), (last, rest) = self._clocks.tolist()
        return (last - first) + (rest - more) * 1e-9

    def _places(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """The address of the clock, then one per pointer of the calls."""
        bench, left = self._bench, list(weights)
        at, scratch = bench.scratch.ctypes.data, {}
        for ref, nbytes in self._scratch.items():
            scratch[ref], at = at, at + nbytes
        found = [ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0]
        for call in self._calls:
            for ref in call.refs:
                if ref.kind == "weights":
                    found.append(left.pop(0).ctypes.data)
                elif ref.kind == "scratch":
                    found.append(scratch[ref])
                else:
                    view = (bench.inputs if ref.kind == "input" else bench.outputs)[ref.index]
                    found.append(view.memory.ctypes.data + ref.offset * view.view.itemsize)
        return np.array(found, np.uint64)


def timed_layers(candidates: Sequence[Sequence[KernelCall]], target: Target, bench: Bench) -> list[TimedLayer]:
    """Code for each of these ways to do a layer, generated in parallel, ready to run on the bench."""
    modules = [(f"layer{number}.o", _module(calls, target)) for number, calls in enumerate(candidates)]
    objects = compile_modules(modules, target)
    layers = [TimedLayer(calls, LoadedCode([item.data]), bench) for calls, item in zip(candidates, objects, strict=True)]
    bench.scratch = _aligned(max((layer.scratch_bytes for layer in layers), default=0))
    return layers


def _module(calls: Sequence[KernelCall], target: Target) -> str:
    """The kernels, and layer_timed(places, clocks): reads the clock, makes the calls, reads the clock."""
    kernels = {kernel.name: kernel for call in calls for kernel in (*call.kernel.callees(), call.kernel)}
    body = ["  %clock = load ptr, ptr %places, align 8", _clock(0)]
    place = 0
    for call in calls:
        pointers = []
        for _ in call.refs:
            place += 1
            body.append(f"  %at{place} = getelementptr ptr, ptr %places, i64 {place}")
            body.append(f"  %p{place} = load ptr, ptr %at{place}, align 8")
            pointers.append(f"ptr %p{place}")
        body.append(f"  call void @{symbol('layer', call.kernel)}({', '.join([*pointers, 'i64 0', f'i64 {call.tasks}'])})")
    body += [_clock(1), "  ret void"]
    function = "\n".join(["define void @layer_timed(ptr %places, ptr %clocks) nounwind {", *body, "}", ""])
    return emit_module(list(kernels.values()), target, "layer") + "\n" + function


def _clock(number: int) -> str:
    return (
        f"  %clock{number} = getelementptr i64, ptr %clocks, i64 {2 * number}\n"
        f"  %read{number} = call i32 %clock(i32 {_CLOCK_MONOTONIC}, ptr %clock{number})"
    )


class _View:
    """A tensor with its strides, in memory of its own."""

    def __init__(self, operand: Operand) -> None:
        kind, size = operand.type, operand.type.itemsize
        reach = 1 + sum((d - 1) * s for d, s in zip(operand.shape, operand.strides, strict=True)) if kind.size else 0
        self.memory = _aligned(reach * size)
        strides = [s * size for s in operand.strides]
        self.view = np.lib.stride_tricks.as_strided(self.memory.view(kind.numpy), operand.shape, strides)


def _scratch_of(calls: Sequence[KernelCall]) -> dict[object, int]:
    """Bytes of every scratch memory, in whole cache lines."""
    return {ref: -(-ref.nbytes // _LINE) * _LINE for call in calls for ref in call.refs if ref.kind == "scratch"}


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.zeros(nbytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + nbytes]


def _copy(array: np.ndarray) -> np.ndarray:
    memory = _aligned(array.nbytes)
    memory[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memory
