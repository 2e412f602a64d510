"""Running a bundle in this process: the objects of its library, byte for byte as they ship, linked into memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cortado.backends.entry import LEVEL_AT, WEIGHTS_AT
from cortado.backends.status import ECPU
from cortado.compiler.program import ALIGNMENT
from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.errors import CortadoError, TargetError
from cortado.runtime.archive import archive_members
from cortado.runtime.bundle import Bundle
from cortado.runtime.elf import AARCH64, X86_64
from cortado.runtime.manifest import LevelInfo, Manifest, StepInfo
from cortado.runtime.memory import LoadedCode, fresh_memory, runs_here

if TYPE_CHECKING:
    from cortado.runtime.pool import ThreadPool
    from cortado.runtime.profile import StepTimes


class LacksInstructions(TargetError):
    """This machine's processor does not have all instructions that the library's target allows."""


SMALL = 16 << 10  # bytes: larger tensors are worked on where they are


def runs_in_process(manifest: Manifest) -> bool:
    """Whether a library is for this machine's architecture and system. Its instructions may still be too new: `HostRunner` tells."""
    architecture, _, system = manifest.target.triple.partition("-")
    return "linux" in system and runs_here({"x86_64": X86_64, "aarch64": AARCH64}.get(architecture, 0))


def linked_code(bundle: Bundle) -> LoadedCode:
    """The library in memory, nothing of it run. Raises FormatError where it is damaged, TargetError where it cannot run here."""
    library = memoryview(bundle.library)
    return LoadedCode([library[start:stop] for _, start, stop in archive_members(library)])


class HostRunner:
    """The loaded library. `run` is safe for use by several threads: every call has an arena of its own."""

    def __init__(self, bundle: Bundle, level: int | None = None, code: LoadedCode | None = None) -> None:
        """level: number of the level to run, of a library that carries several; None for the one that it chooses. code: the bundle's,
        where it is linked already.

        Raises LacksInstructions where this machine's processor does.
        """
        self._manifest = bundle.manifest
        self._level = level
        self._code = linked_code(bundle) if code is None else code
        self._init = self._function("init", 2)
        self._run = self._function("run", 3)
        self._run_threads = self._function("run_threads", 5)
        self._weights = None if bundle.weights is None else _aligned(bundle.weights)
        self._lock = threading.Lock()
        self._slots = [self._new_slot()]
        self._pool: ThreadPool | None = None

    def run(self, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
        """New output arrays, in order, for input arrays of the right dtypes and shapes, in order."""
        try:  # taking from a list and giving back to it are one step for other threads; a lock would take longer than both
            slot = self._slots.pop()
        except IndexError:
            slot = self._new_slot()
        slot.give(inputs)
        if threads == 1:
            status = self._run(slot.arena_address, slot.ins_address, slot.outs_address)
        else:
            pool = self._thread_pool()
            with pool.helpers(threads - 1) as job:
                status = self._run_threads(slot.arena_address, slot.ins, slot.outs, pool.parallel_for, job)
        outputs = slot.take()
        self._slots.append(slot)
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
        base = _base(arena)
        places = {"base": base, "weights": ctypes.c_uint64.from_address(base + WEIGHTS_AT).value}
        places.update({f"in{n}": array.ctypes.data for n, array in enumerate(given)})
        places.update({f"out{n}": array.ctypes.data for n, array in enumerate(outputs)})
        level = self.level
        prefix = self._manifest.name if level is None else level.prefix
        library = Library(prefix, self._code.address, places, arena.ctypes.data, ctypes.addressof(ins), ctypes.addressof(outs))
        return measure(library, self.steps, runs, threads, self._thread_pool)

    @property
    def level(self) -> LevelInfo | None:
        """What is run of the levels that the library carries; None where there is no choice."""
        if not self._manifest.levels:
            return None
        arena = self._new_arena()
        return self._manifest.levels[ctypes.c_int32.from_address(_base(arena) + LEVEL_AT).value]

    @property
    def steps(self) -> tuple[StepInfo, ...]:
        """What a run does."""
        level = self.level
        return self._manifest.steps if level is None else level.steps

    def _address(self, ending: str) -> int:
        return self._code.address(f"{self._manifest.name}_{ending}")

    def _function(self, ending: str, arguments: int) -> ctypes._CFunctionType:
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * arguments)
        return prototype(self._address(ending))

    def _new_slot(self) -> _Slot:
        return _Slot(self._new_arena(), self._manifest)

    def _new_arena(self) -> np.ndarray:
        arena = fresh_memory(self._manifest.sizes.arena)
        weights = None if self._weights is None else self._weights.ctypes.data
        status = self._init(arena.ctypes.data, weights)
        if status == ECPU:
            raise LacksInstructions(_missing_features(self._manifest))
        if status != 0:
            raise CortadoError(f"{self._manifest.name}_init gave {status}: the library refuses its own weights")
        if self._level is not None:
            ctypes.c_int32.from_address(_base(arena) + LEVEL_AT).value = self._level
        return arena

    def _thread_pool(self) -> ThreadPool:
        from cortado.backends.targets import find_target
        from cortado.runtime.pool import ThreadPool

        with self._lock:
            if self._pool is None:
                self._pool = ThreadPool(find_target("host"))
            return self._pool


class _Slot:
    """What one call at a time works on: an arena and the pointers to inputs and outputs.

    Small tensors have a place here, and are copied to it and from it: that takes less time than asking numpy for an array's address.
    """

    def __init__(self, arena: np.ndarray, manifest: Manifest) -> None:
        self.arena, self.arena_address = arena, arena.ctypes.data
        infos = [info for _, info in manifest.outputs]
        inputs, outputs = [_place(info) for _, info in manifest.inputs], [_place(info) for info in infos]
        self.ins, self.outs = _pointers(inputs), _pointers(outputs)
        self.ins_address, self.outs_address = ctypes.addressof(self.ins), ctypes.addressof(self.outs)
        self._places = [(number, place) for number, place in enumerate(inputs) if place is not None]
        self._large_inputs = [number for number, place in enumerate(inputs) if place is None]
        self._results = [place for place in outputs if place is not None]
        self._large_outputs = [(number, info) for number, info in enumerate(infos) if outputs[number] is None]
        self._given: list[np.ndarray] = []
        self._made: list[tuple[int, np.ndarray]] = []

    def give(self, inputs: Sequence[np.ndarray]) -> None:
        """Point to these inputs and to new outputs."""
        for number, place in self._places:
            place[...] = inputs[number]
        for number in self._large_inputs:
            array = inputs[number]
            if not array.flags.carray:
                array = np.require(array, requirements=["C", "A"])
            self._given.append(array)
            self.ins[number] = _address(array)
        for number, info in self._large_outputs:
            array = _new_output(info)
            self._made.append((number, array))
            self.outs[number] = _address(array)

    def take(self) -> list[np.ndarray]:
        """The outputs, as arrays of their own; nothing of the call is kept."""
        results = []
        for place in self._results:
            results.append(place.copy())
        if self._made:
            for number, array in self._made:  # in order, so that each finds its position
                results.insert(number, array)
            self._made.clear()
        self._given.clear()
        return results


def _place(info: TensorInfo) -> np.ndarray | None:
    """Memory for a small tensor."""
    array = _new_output(info)
    return array if array.nbytes <= SMALL else None


def _base(arena: np.ndarray) -> int:
    """The address of the arena's header."""
    return -(-int(arena.ctypes.data) // ALIGNMENT) * ALIGNMENT


def _aligned(data: bytes | memoryview) -> np.ndarray:
    """The bytes where they are if they start at a cache line, else a copy that does."""
    there = np.frombuffer(data, np.uint8)
    if there.ctypes.data % ALIGNMENT == 0:
        return there
    memory = np.empty(len(data) + 63, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return memory[start : start + len(data)]


def _new_output(info: TensorInfo) -> np.ndarray:
    return np.empty(info.shape, NUMPY_DTYPE[info.dtype])


def _pointers(arrays: Sequence[np.ndarray | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(len(arrays), 1))(*[None if array is None else _address(array) for array in arrays])


def _address(array: np.ndarray) -> int:
    """Each way is a good deal faster than the next; `ctypes.data` would be the last."""
    buffer: Any = array  # which some versions of numpy's types do not say it is
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):  # not to be written, or empty
        address: int = array.__array_interface__["data"][0]
        return address


def _missing_features(manifest: Manifest) -> str:
    import llvmlite.binding as llvm

    there = {f"+{name}" for name, present in llvm.get_host_cpu_features().items() if present}
    missing = [name for name in manifest.target.features if name.startswith("+") and name not in there]
    lacking = f" ({' '.join(missing)})" if missing else ""
    return (
        f"{manifest.name} is compiled for {manifest.target.name}; this machine's processor lacks instructions of it{lacking}. "
        "Compile for target 'host' to run here"
    )
