"""A small program made by hand, for tests of everything behind lowering: two inputs, two outputs, a shared kernel, arena and weights."""

from __future__ import annotations

import numpy as np

from cortado.build import build
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import F32, I32, INDEX, Kernel
from cortado.compiler.options import CompileOptions
from cortado.compiler.program import ALIGNMENT, Argument, Buffer, Program, Step
from cortado.compiler.target import Target
from cortado.compiler.types import TensorInfo
from cortado.runtime.bundle import Bundle

# Names that become the same C identifier, and one that is like a derived macro of the first.
FIRST, SECOND, SUM, PARITY = "gpu_0/data", "gpu_0.data", "sum", "gpu_0/data_BYTES"
SOURCE = {"name": "small", "sha256": "0" * 64}


def small_program(target: Target, rows: int = 6, columns: int = 37, name: str = "small", seed: int = 0) -> Program:
    """sum[r] = the sum over c, in order, of max(first[r, c] * w[c], 0) + second[r, c]; parity[r, c] = second[r, c] & 1.

    first, second: float32 and int32 [rows, columns]. The tasks are the rows.
    """
    cells = rows * columns
    padded = -(-4 * cells // ALIGNMENT) * ALIGNMENT
    weights = small_weights(columns, seed)
    buffers = (
        Buffer(FIRST, "input", 4 * cells, 0),
        Buffer(SECOND, "input", 4 * cells, 1),
        Buffer(SUM, "output", 4 * rows, 0),
        Buffer(PARITY, "output", 4 * cells, 1),
        Buffer("weights", "weights", 4 * columns, ALIGNMENT),
        Buffer("hole", "arena", 64, 0, 0, 0),
        Buffer("scaled", "arena", 4 * cells, ALIGNMENT, 0, 1),
    )
    steps = (
        _step(_scale(target, columns), (0, 4, 6), rows, "scaled", cells),
        _step(_reduce(target, columns), (6, 1, 2), rows, "sum", cells),
        _step(_parity(target, columns), (1, 3), rows, "parity", 0),
    )
    blob = bytes(ALIGNMENT) + weights.tobytes()
    return Program(
        name,
        ((FIRST, TensorInfo((rows, columns), "float32", "NC")), (SECOND, TensorInfo((rows, columns), "int32"))),
        ((SUM, TensorInfo((rows,), "float32")), (PARITY, TensorInfo((rows, columns), "int32"))),
        buffers,
        steps,
        ALIGNMENT + padded,
        blob + bytes(-len(blob) % ALIGNMENT),
    )


def small_weights(columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(columns).astype(np.float32)


def small_feeds(rows: int = 6, columns: int = 37, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((rows, columns)).astype(np.float32)
    return {FIRST: first, SECOND: rng.integers(-9, 9, (rows, columns)).astype(np.int32)}


def small_answer(feeds: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """To the bit: float32 sums in the kernel's order."""
    first, second = feeds[FIRST], feeds[SECOND]
    total = np.zeros(len(first), np.float32)
    weights = small_weights(first.shape[1], seed)
    for column in range(first.shape[1]):
        positive = np.maximum(first[:, column] * weights[column], np.float32(0))
        total = total + (positive + second[:, column].astype(np.float32))
    return {SUM: total, PARITY: second & 1}


def small_bundle(target: Target, options: CompileOptions | None = None, **arguments: int | str) -> Bundle:
    program = small_program(target, **arguments)  # type: ignore[arg-type]
    return build(program, target, options or CompileOptions(), SOURCE)


def _step(kernel: Kernel, buffers: tuple[int, ...], tasks: int, name: str, macs: int) -> Step:
    return Step(kernel, tuple(Argument(buffer) for buffer in buffers), tasks, name, "made", (f"{name}/origin",), macs)


def _range(k: KernelBuilder) -> tuple[Val, Val]:
    return k.param("begin", INDEX), k.param("end", INDEX)


def _scale(target: Target, columns: int) -> Kernel:
    """Calls one shared kernel per row, which keeps the row on its stack."""
    inner = KernelBuilder("scale_row", target, shared=True)
    x, w, y = inner.param("x"), inner.param("w"), inner.param("y")
    kept = inner.local("f32", columns)
    inner.loop(0, columns, 1, lambda i: inner.store(kept, inner.load(x, F32, i), i))
    inner.loop(0, columns, 1, lambda i: inner.store(y, inner.load(kept, F32, i) * inner.load(w, F32, i), i))
    row = inner.finish()

    k = KernelBuilder("scale", target)
    x, w, y = k.param("x"), k.param("w"), k.param("y")
    begin, end = _range(k)

    def one_row(r: Val) -> None:
        k.call(row, k.offset(x, r * columns, "f32"), w, k.offset(y, r * columns, "f32"))

    k.loop(begin, end, 1, one_row)
    return k.finish()


def _reduce(target: Target, columns: int) -> Kernel:
    k = KernelBuilder("reduce", target)
    x, extra, y = k.param("x"), k.param("extra"), k.param("y")
    begin, end = _range(k)

    def add(i: Val, total: Val, row: Val) -> tuple[Val]:
        at = row * columns + i
        return (total + (k.max(k.load(x, F32, at), 0.0) + k.convert(k.load(extra, I32, at), F32, "sitofp")),)

    def one_row(r: Val) -> None:
        (total,) = k.loop(0, columns, 1, lambda i, total: add(i, total, r), (k.zero(F32),))
        k.store(y, total, r)

    k.loop(begin, end, 1, one_row)
    return k.finish()


def _parity(target: Target, columns: int) -> Kernel:
    k = KernelBuilder("parity", target)
    x, y = k.param("x"), k.param("y")
    begin, end = _range(k)
    k.loop(begin * columns, end * columns, 1, lambda i: k.store(y, k.load(x, I32, i) & 1, i))
    return k.finish()
