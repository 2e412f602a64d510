"""Kernels of many nodes run at once in an emulator: starting it takes longer than they do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from lowered import Lowering, Tensor, padded_strides, reference

from cortado.build import build
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.graph import Node
from cortado.compiler.lang import INDEX, Kernel, Type
from cortado.compiler.legalize import legalize
from cortado.compiler.options import CompileOptions
from cortado.compiler.program import ALIGNMENT, Argument, Buffer, Program, Step
from cortado.compiler.target import Target
from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.runtime.emulate import EmulatedRunner
from cortado.runtime.machines import PcMachine

CANARY = 0xA5


class Launches:
    """Launches of kernels on pieces of memory, in order. The pieces lie in one blob, which a library gets and gives back."""

    def __init__(self, target: Target, machine: PcMachine | None = None) -> None:
        self.target = target
        self.machine = machine
        self.pieces: list[np.ndarray] = []
        self.places: dict[int, int] = {}
        self.nbytes = 0
        self.steps: list[Step] = []

    def launch(self, kernel: Kernel, memories: Sequence[tuple[np.ndarray, int]], tasks: int) -> None:
        """memories: pieces (uint8) and the offset into each that the kernel's pointers have."""
        arguments = tuple(Argument(1, self._place(piece) + at) for piece, at in memories)
        self.steps.append(Step(kernel, arguments, tasks, f"step{len(self.steps)}", "made"))

    def program(self, program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Launch all steps of a program. Its outputs, which get their values from `run`."""
        outputs = {name: np.zeros(info.shape, NUMPY_DTYPE[info.dtype]) for name, info in program.outputs}
        results = [array.reshape(-1).view(np.uint8) for array in outputs.values()]
        inputs = [np.ascontiguousarray(feeds[name]).reshape(-1).view(np.uint8) for name, _ in program.inputs]
        arena, weights = np.full(program.arena_bytes, CANARY, np.uint8), np.frombuffer(program.weights, np.uint8)
        starts = []
        for buffer in program.buffers:
            if buffer.place in ("input", "output"):
                starts.append(self._place((inputs if buffer.place == "input" else results)[buffer.offset]))
            else:
                starts.append(self._place(arena if buffer.place == "arena" else weights) + buffer.offset)

        def moved(argument: Argument) -> Argument:
            return Argument(1, starts[argument.buffer] + argument.offset)

        for step in program.steps:
            guards = tuple(replace(guard, place=moved(guard.place)) for guard in step.guards)
            limit = step.limit and replace(step.limit, count=moved(step.limit.count))
            self.steps.append(replace(step, args=tuple(map(moved, step.args)), guards=guards, limit=limit))
        return outputs

    def run(self) -> None:
        """Run them all; the pieces then hold what they hold after the last launch."""
        blob = np.full(-(-self.nbytes // ALIGNMENT) * ALIGNMENT, CANARY, np.uint8)
        for piece in self.pieces:
            at = self.places[id(piece)]
            blob[at : at + piece.size] = piece
        info = TensorInfo((blob.size,), "uint8")
        buffers = (Buffer("before", "input", blob.size, 0), Buffer("after", "output", blob.size, 0))
        copied = Step(_copy(self.target, blob.size), (Argument(0), Argument(1)), 1, "copy", "made")
        program = Program("launches", (("before", info),), (("after", info),), buffers, (copied, *self.steps), 0, b"")
        bundle = build(program, self.target, CompileOptions(), {"name": "launches", "sha256": ""})
        (after,) = EmulatedRunner(bundle, self.machine).run([blob])
        for piece in self.pieces:
            at = self.places[id(piece)]
            if piece.flags.writeable:
                piece[:] = after[at : at + piece.size]
            else:
                assert piece.tobytes() == after[at : at + piece.size].tobytes(), "a constant was written"

    def _place(self, piece: np.ndarray) -> int:
        if id(piece) not in self.places:
            self.pieces.append(piece)  # which also keeps its id from being given away
            self.places[id(piece)] = self.nbytes
            self.nbytes += -(-(piece.size + ALIGNMENT) // ALIGNMENT) * ALIGNMENT
        return self.places[id(piece)]


def _copy(target: Target, nbytes: int) -> Kernel:
    k = KernelBuilder("copy", target)
    source, out = k.param("source"), k.param("out")
    k.param("begin", INDEX)
    k.param("end", INDEX)
    word = Type("i64")
    k.loop(0, nbytes // 8, 1, lambda i: k.store(out, k.load(source, word, i), i))
    return k.finish()


@dataclass(frozen=True, eq=False)
class Case:
    """A node, how it is lowered, its inputs, and how far from the reference it may be. pad: room around the rows of every operand."""

    lower: Lowering
    node: Node
    arrays: Sequence[np.ndarray]
    rtol: float = 0.0
    atol: float = 0.0
    pad: int = 0


def need_emulator(target: Target) -> None:
    """Skip the test unless the emulator of the target's machine is installed."""
    arm = "qemu-system-arm" if target.name.startswith("cortex-m") else "qemu-arm"
    emulator = {"x86": "bochs", "aarch64": "qemu-aarch64", "arm": arm}[target.family]
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed")


def need_bochs() -> None:
    """Skip the test unless the emulator is installed."""
    if shutil.which("bochs") is None:
        pytest.skip("bochs is not installed")


def check_emulated(cases: Sequence[Case], target: Target) -> None:
    """Compare all cases with the reference; the surroundings of every output must stay as they were. Skips without the emulator."""
    need_emulator(target)
    launches = Launches(target)
    outputs = [_launch(case, launches) for case in cases]
    launches.run()
    problems = [problem for case, out in zip(cases, outputs, strict=True) for problem in _differences(case, out)]
    assert not problems, f"{target.name}, {len(problems)} of {len(cases)}:\n" + "\n".join(problems)


def _differences(case: Case, out: Tensor) -> Iterator[str]:
    told = f"{case.node.op} {[array.shape for array in case.arrays]} {dict(case.node.attrs)}"
    got, want = out.view.copy(), reference(case.node, case.arrays)
    assert got.dtype == want.dtype, told
    same = np.isclose(got, want, rtol=case.rtol, atol=case.atol, equal_nan=True)
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        yield f"{told}: {(~same).sum()} of {same.size} are wrong; at {at} {got[at]!r}, not {want[at]!r}"
    if not out.canaries_intact():
        yield f"{told}: memory outside the output was written"


def _launch(case: Case, launches: Launches) -> Tensor:
    node, kind = case.node, case.node.types[0]
    ins = [
        Tensor(a, v.type.dtype, padded_strides(a.shape, case.pad), 3 * case.pad)
        for a, v in zip(case.arrays, node.inputs, strict=True)
    ]
    zeros = np.zeros(kind.shape, NUMPY_DTYPE[kind.dtype])
    out = Tensor(zeros, kind.dtype, padded_strides(kind.shape, case.pad), 5 * case.pad)
    scratch: dict[object, np.ndarray] = {}
    for call in case.lower(node, [t.operand for t in ins], [out.operand], launches.target):
        memories = []
        for ref in call.refs:
            if ref.kind == "weights":
                assert ref.array is not None
                memories.append((np.ascontiguousarray(ref.array).reshape(-1).view(np.uint8), 0))
            elif ref.kind == "scratch":
                memories.append((scratch.setdefault(ref, np.full(ref.nbytes, CANARY, np.uint8)), 0))
            else:
                tensor = (ins if ref.kind == "input" else [out])[ref.index]
                memories.append((tensor.memory, tensor.at + ref.offset * tensor.view.itemsize))
        launches.launch(legalize(call.kernel, launches.target), memories, call.tasks)
    return out
