"""Helpers of the kernel tests: one node lowered and run, interpreted or native, on views that are surrounded by canaries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from native import native

from cortado.compiler.evaluate import Pointer
from cortado.compiler.graph import Node, constant, graph_input
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.lang import Kernel
from cortado.compiler.ops import make
from cortado.compiler.program import KernelCall, Operand, contiguous_strides
from cortado.compiler.reference import evaluate
from cortado.compiler.target import Row, Target
from cortado.compiler.types import NUMPY_DTYPE, TensorType

Lowering = Callable[[Node, Sequence[Operand], Sequence[Operand], Target], list[KernelCall]]
CANARY = 0xA5


def made_target(bits: int, masked: bool = False, fma: bool = True) -> Target:
    """A target that only the interpreter runs: vectors of so many bits, fma and abs for every length."""
    from cortado.backends.targets.rows import float_rows

    rows: tuple[Row, ...] = float_rows(dict.fromkeys(("abs", "sqrt", *(["fma"] * fma)), ""), bits, ("f32", "f64"))
    return Target(f"any{bits}", "x86_64-unknown-linux-gnu", "x86-64", "x86", vector_bits=bits, masked=masked, rows=rows)


TARGETS = (made_target(0), made_target(128), made_target(256, masked=True), made_target(512, masked=True))


class Tensor:
    """An array as a view of memory that holds nothing else but canaries; the memory ends with the view's last element."""

    def __init__(self, array: np.ndarray, dtype: str, strides: Sequence[int] | None = None, before: int = 0) -> None:
        self.operand = Operand(TensorType(array.shape, dtype), tuple(strides or contiguous_strides(array.shape)))
        reach = 1 + sum((d - 1) * s for d, s in zip(array.shape, self.operand.strides, strict=True)) if array.size else 0
        self.memory = np.full((before + reach) * array.itemsize, CANARY, np.uint8)
        self.at = before * array.itemsize
        flat = self.memory[self.at :].view(array.dtype)
        byte_strides = [s * array.itemsize for s in self.operand.strides]
        self.view = np.lib.stride_tricks.as_strided(flat, array.shape, byte_strides)
        self.view[...] = array

    def canaries_intact(self) -> bool:
        """Whether all bytes outside the view are as they were; the view's own are lost by asking."""
        raw = self.view.view(f"u{self.view.itemsize}")
        raw[...] = np.frombuffer(bytes([CANARY]) * self.view.itemsize, raw.dtype)[0]
        return bool((self.memory == CANARY).all())


def padded_strides(shape: Sequence[int], pad: int) -> tuple[int, ...]:
    """Strides of a view whose axes, but for the last, have `pad` elements more room than they need."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * (max(shape[axis + 1], 1) + (pad if axis == len(shape) - 2 else 0))
    return tuple(strides)


def node_of(op: str, arrays: Sequence[np.ndarray], attrs: dict[str, Any], fixed: Sequence[int] = ()) -> Node:
    """A node on inputs of the arrays' types; those in `fixed` are constants."""
    values = [
        constant(a, f"c{i}") if i in fixed else graph_input(f"x{i}", TensorType(a.shape, a.dtype.name)).out()
        for i, a in enumerate(arrays)
    ]
    return make(op, values, attrs, "node")


def add_epilogue(
    epilogue: Sequence[tuple[Any, ...]], out: Sequence[int], arrays: list[np.ndarray], rng: np.random.Generator
) -> list[int]:
    """The arrays that a layer's epilogue reads, behind those of its input and filter; which inputs are constants then. out: shape."""
    fixed = [1]
    for entry in epilogue:
        if entry[0] == "bias":
            fixed.append(len(arrays))
            arrays.append(rng.standard_normal(out[-1], np.float32))
        elif entry[0] == "residual":
            arrays.append(rng.standard_normal(tuple(out), np.float32))
    return fixed


def run_calls(
    calls: Sequence[KernelCall], ins: Sequence[Tensor], outs: Sequence[Tensor], target: Target, how: str, pieces: int
) -> None:
    """Launch the kernels, each one's tasks in `pieces` parts, last part first."""
    scratch: dict[Any, np.ndarray] = {}
    for call in calls:
        memories: list[tuple[np.ndarray, int]] = []
        for ref in call.refs:
            if ref.kind == "weights":
                assert ref.array is not None
                memories.append((np.ascontiguousarray(ref.array).reshape(-1).view(np.uint8), 0))
            elif ref.kind == "scratch":
                memories.append((scratch.setdefault(ref, np.full(ref.nbytes, CANARY, np.uint8)), 0))
            else:
                tensor = (ins if ref.kind == "input" else outs)[ref.index]
                memories.append((tensor.memory, tensor.at + ref.offset * tensor.view.itemsize))
        bounds = [call.tasks * i // pieces for i in range(pieces + 1)]
        ranges = list(itertools.pairwise(bounds))[::-1]
        if how == "interpret":
            function = compile_kernel(call.kernel)
            for begin, end in ranges:
                function(*(Pointer(m, at) for m, at in memories), begin, end)
        else:
            loaded = _loaded(call.kernel, target)
            for begin, end in ranges:
                loaded(*(m[at:] if m.size > at else m for m, at in memories), begin, end)


@lru_cache(maxsize=64)
def _loaded(kernel: Kernel, target: Target) -> Callable[..., None]:
    return native(kernel, target)


def run_lowered(
    lower: Lowering,
    node: Node,
    arrays: Sequence[np.ndarray],
    target: Target,
    how: str = "interpret",
    pad: int = 0,
    pieces: int = 1,
    in_place: int | None = None,
) -> np.ndarray:
    """The node's output 0. pad: room around the rows of every operand. in_place: the input whose memory the output takes."""
    ins = [Tensor(a, v.type.dtype, padded_strides(a.shape, pad), 3 * pad) for a, v in zip(arrays, node.inputs, strict=True)]
    kind = node.types[0]
    if in_place is None:
        out = Tensor(np.zeros(kind.shape, NUMPY_DTYPE[kind.dtype]), kind.dtype, padded_strides(kind.shape, pad), 5 * pad)
    else:
        out = ins[in_place]
    before = [t.view.copy() for t in ins]
    run_calls(lower(node, [t.operand for t in ins], [out.operand], target), ins, [out], target, how, pieces)
    got = out.view.copy()
    for number, (tensor, old) in enumerate(zip(ins, before, strict=True)):
        if number != in_place:
            assert tensor.view.tobytes() == old.tobytes(), f"input {number} was written"
    assert out.canaries_intact(), "memory outside the output was written"
    return got


def reference(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        return evaluate(node, list(arrays))[0]


def check(
    lower: Lowering, node: Node, arrays: Sequence[np.ndarray], target: Target, rtol: float = 0.0, atol: float = 0.0, **how: Any
) -> np.ndarray:
    """Run and compare with the reference; whole and cut into pieces of tasks the bits are the same."""
    want = reference(node, arrays)
    calls: list[KernelCall] = []

    def lower_once(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
        calls[:] = calls or lower(node, ins, outs, target)
        return calls

    got = run_lowered(lower_once, node, arrays, target, **how)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(
        got, want, rtol=rtol, atol=atol, equal_nan=True, err_msg=f"{node.op} {dict(node.attrs)} {target.name}"
    )
    cut = run_lowered(lower_once, node, arrays, target, **{**how, "pieces": 3})
    assert cut.tobytes() == got.tobytes(), "the partition of tasks changes the bits"
    return got
