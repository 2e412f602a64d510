"""Many small graphs compiled at once and run in this process, kernel by kernel: cheaper than a bundle for each."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.build import chunks
from cortado.compiler.lang import Kernel
from cortado.compiler.program import ALIGNMENT, Program
from cortado.compiler.target import Target
from cortado.compiler.types import NUMPY_DTYPE, cut_rows
from cortado.runtime.memory import LoadedCode

PREFIX = "batch"
POISON = 0xFF  # what the arena holds before a run: NaN, or -1


class Compiled:
    """The kernels of several programs, each kernel compiled once."""

    def __init__(self, programs: Sequence[Program], target: Target) -> None:
        kernels: dict[str, Kernel] = {}
        for program in programs:
            for step in program.steps:
                for kernel in (*step.kernel.callees(), step.kernel):
                    kernels.setdefault(kernel.name, kernel)
        modules = [(f"k{i}", emit_module(part, target, PREFIX)) for i, part in enumerate(chunks(tuple(kernels.values())))]
        self._code = LoadedCode([item.data for item in compile_modules(modules, target)]) if modules else None

    def run(self, program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one of the programs, cut to their real rows."""
        weights = _aligned(len(program.weights))
        weights[:] = np.frombuffer(program.weights, np.uint8)
        arena = _aligned(program.arena_bytes)
        arena[:] = POISON
        inputs = [np.require(feeds[name], requirements="CA") for name, _ in program.inputs]
        outputs = {name: np.zeros(info.shape, NUMPY_DTYPE[info.dtype]) for name, info in program.outputs}
        results = list(outputs.values())
        starts = []
        for buffer in program.buffers:
            if buffer.place in ("input", "output"):
                starts.append((inputs if buffer.place == "input" else results)[buffer.offset].ctypes.data)
            else:
                starts.append((arena if buffer.place == "arena" else weights).ctypes.data + buffer.offset)
        for step in program.steps:
            assert self._code is not None
            kinds = [ctypes.c_void_p] * len(step.args) + [ctypes.c_ssize_t] * 2
            function = ctypes.CFUNCTYPE(None, *kinds)(self._code.address(symbol(PREFIX, step.kernel)))
            function(*(starts[arg.buffer] + arg.offset for arg in step.args), 0, step.tasks)
        return cut_rows(outputs, {name: info.count for name, info in program.outputs if info.count})


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]
