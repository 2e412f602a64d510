"""Running a bundle in this process: the objects of its library, byte for byte as they ship, linked into memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cortado.backends.entry import WEIGHTS_AT
from cortado.backends.status import ECPU
from cortado.compiler.program import ALIGNMENT
from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.errors import CortadoError, TargetError
from cortado.runtime.archive import read_archive
from cortado.runtime.bundle import Bundle
from cortado.runtime.elf import AARCH64, X86_64
from cortado.runtime.manifest import Manifest
from cortado.runtime.memory import LoadedCode, runs_here

if TYPE_CHECKING:
    from cortado.runtime.pool import ThreadPool
    from cortado.runtime.profile import StepTimes


class LacksInstructions(TargetError):
    """This machine's processor does not have all instructions that the library's target allows."""


def runs_in_process(manifest: Manifest) -> bool:
    """Whether a library is for this machine's architecture and system. Its instructions may still be too new: `HostRunner` tells."""
    architecture, _, system = manifest.target.triple.partition("-")
    return "linux" in system and runs_here({"x86_64": X86_64, "aarch64": AARCH64}.get(architecture, 0))


class HostRunner:
    """The loaded library. `run` is safe for use by several threads: every call has an arena of its own."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises LacksInstructions where this machine's processor does."""
        self._manifest = bundle.manifest
        self._code = LoadedCode([data for _, data in read_archive(bundle.library)])
        self._init = self._function("init", 2)
        self._run = self._function("run", 3)
        self._run_threads = self._function("run_threads", 5)
        self._weights = None if bundle.weights is None else _aligned(bundle.weights)
        self._lock = threading.Lock()
        self._arenas = [self._new_arena()]
        self._pool: ThreadPool | None = None

    def run(self, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
        """New output arrays, in order, for input arrays of the right dtypes and shapes, in order."""
        given = [array if array.flags.carray else np.require(array, requirements=["C", "A"]) for array in inputs]
        outputs = [_new_output(info) for _, info in self._manifest.outputs]
        ins, outs = _pointers(given), _pointers(outputs)
        with self._lock:
            arena = self._arenas.pop() if self._arenas else None
        arena = self._new_arena() if arena is None else arena
        if threads == 1:
            status = self._run(arena.ctypes.data, ins, outs)
        else:
            pool = self._thread_pool()
            with pool.helpers(threads - 1) as job:
                status = self._run_threads(arena.ctypes.data, ins, outs, pool.parallel_for, job)
        with self._lock:
            self._arenas.append(arena)
        if status != 0:
            raise CortadoError(f"{self._manifest.name}_run gave {status}")
        return outputs

    def profile(self, inputs: Sequence[np.ndarray], runs: int | None, threads: int = 1) -> StepTimes:
        """Times of every step and of whole runs on these inputs. runs: how many; None for what about two seconds allow."""
        from cortado.runtime.profile import Library, measure

        arrays = [*inputs, *(_new_output(info) for _, info in self._manifest.outputs)]
        arrays = [np.require(array, requirements=["C", "A"]) for array in arrays]
        given, outputs = arrays[: len(inputs)], arrays[len(inputs) :]
        ins, outs = _pointers(given), _pointers(outputs)
        arena = self._new_arena()
        base = -(-arena.ctypes.data // ALIGNMENT) * ALIGNMENT
        places = {"base": base, "weights": ctypes.c_uint64.from_address(base + WEIGHTS_AT).value}
        places.update({f"in{n}": array.ctypes.data for n, array in enumerate(given)})
        places.update({f"out{n}": array.ctypes.data for n, array in enumerate(outputs)})
        library = Library(self._address, places, arena.ctypes.data, ctypes.addressof(ins), ctypes.addressof(outs))
        return measure(library, self._manifest.steps, runs, threads, self._thread_pool)

    def _address(self, ending: str) -> int:
        return self._code.address(f"{self._manifest.name}_{ending}")

    def _function(self, ending: str, arguments: int) -> ctypes._CFunctionType:
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * arguments)
        return prototype(self._address(ending))

    def _new_arena(self) -> np.ndarray:
        arena = np.empty(self._manifest.sizes.arena, np.uint8)
        weights = None if self._weights is None else self._weights.ctypes.data
        status = self._init(arena.ctypes.data, weights)
        if status == ECPU:
            raise LacksInstructions(_missing_features(self._manifest))
        if status != 0:
            raise CortadoError(f"{self._manifest.name}_init gave {status}: the library refuses its own weights")
        return arena

    def _thread_pool(self) -> ThreadPool:
        from cortado.backends.targets import find_target
        from cortado.runtime.pool import ThreadPool

        with self._lock:
            if self._pool is None:
                self._pool = ThreadPool(find_target("host"))
            return self._pool


def _aligned(data: bytes) -> np.ndarray:
    """A copy that starts at a cache line."""
    memory = np.empty(len(data) + 63, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return memory[start : start + len(data)]


def _new_output(info: TensorInfo) -> np.ndarray:
    return np.empty(info.shape, NUMPY_DTYPE[info.dtype])


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    """The interface is read a good deal faster than `ctypes.data`."""
    return (ctypes.c_void_p * max(len(arrays), 1))(*[array.__array_interface__["data"][0] for array in arrays])


def _missing_features(manifest: Manifest) -> str:
    import llvmlite.binding as llvm

    there = {f"+{name}" for name, present in llvm.get_host_cpu_features().items() if present}
    missing = [name for name in manifest.target.features if name.startswith("+") and name not in there]
    lacking = f" ({' '.join(missing)})" if missing else ""
    return (
        f"{manifest.name} is compiled for {manifest.target.name}; this machine's processor lacks instructions of it{lacking}. "
        "Compile for target 'host' to run here"
    )
