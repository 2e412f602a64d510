"""Time of single operators: cortado, onnxruntime and a copy of as many bytes, turn by turn in one run, float32.

usage: python benchmarks/operators.py [--families softmax,lrn] [--only TEXT] [--threads 1] [--seconds 0.3] [--check] [--json FILE]

The bound of a case is the slower of onnxruntime's time and of the time that moving the operator's bytes takes, and the ratio is cortado's
time by it: operators of much arithmetic are measured by onnxruntime, the others by the memory. The copy reads half of the bytes and
writes half, in a loop of whole vectors, so it has the operator's working set in the same cache level. With --check the exit status is 1
where a ratio exceeds 1.2; a wrong answer always makes it 1.

Tensors are allocated before. The time of the same call on a tensor of one element is taken off, as it is no part of the operator.
Minimum of all calls; the engines take turns, so that drift of the machine falls on all alike.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from operator_cases import Case, all_cases, same

import cortado
from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Graph, graph_input
from cortado.compiler.lang import F32, INDEX, Kernel
from cortado.compiler.ops import make
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType
from cortado.runtime.archive import read_archive
from cortado.runtime.bundle import read_bundle
from cortado.runtime.memory import LoadedCode
from cortado.runtime.pool import ThreadPool

MOST = 1.2  # what --check allows
TOLERANCE = 1e-4  # of the largest value
TURN_SECONDS = 0.002  # of one engine before the next has its turn
UNROLL = 8

Call = Callable[[], Any]


@dataclass(frozen=True)
class Bound:
    """A call, and the memory that it is given by address alone."""

    call: Call
    keep: tuple[Any, ...]

    def __call__(self) -> None:
        self.call()


def copy_kernel(target: Target) -> Kernel:
    """copy(from, to, vectors): whole vectors, UNROLL of them a trip; `vectors` is a multiple of UNROLL."""
    k = KernelBuilder("copy", target)
    source, sink, vectors = k.param("from"), k.param("to"), k.param("vectors", INDEX)
    vector = F32.with_lanes(target.lanes("f32"))

    def trip(at: Val) -> None:
        values = [k.load(source, vector, (at + n) * vector.lanes) for n in range(UNROLL)]
        for n, value in enumerate(values):
            k.store(sink, value, (at + n) * vector.lanes)

    k.loop(0, vectors, UNROLL, trip)
    return k.finish()


class Copier:
    """Calls that copy: what the memory allows at most."""

    def __init__(self) -> None:
        target = find_target("host")
        kernel = copy_kernel(target)
        self._code = LoadedCode([o.data for o in compile_modules([("copy", emit_module([kernel], target, "bound"))], target)])
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)
        self._run = prototype(self._code.address(symbol("bound", kernel)))
        self._trip = UNROLL * 4 * target.lanes("f32")

    def call(self, nbytes: int) -> Call:
        """Moves `nbytes`: half of them read, half written."""
        trips = max(1, round(nbytes / 2 / self._trip))
        source, sink = aligned((trips * self._trip // 4,)), aligned((trips * self._trip // 4,))
        source[...] = 1
        sink[...] = 1
        arguments = (source.ctypes.data, sink.ctypes.data, trips * UNROLL)
        return Bound(lambda: self._run(*arguments), (source, sink))


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros that start at a cache line."""
    count = math.prod(shape)
    memory = np.zeros(count + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + count].reshape(shape)


def graph_of(case: Case) -> Graph:
    inputs = [graph_input(f"x{i}", TensorType(shape, "float32")) for i, shape in enumerate(case.shapes)]
    values = [node.out() for node in inputs]
    for number, (op, args, attrs) in enumerate(case.ours):
        values.append(make(op, [values[a] for a in args], dict(attrs), f"n{number}").out())
    return Graph("bench", tuple(inputs), (("y", values[-1]),))


def cortado_call(case: Case, arrays: list[np.ndarray], threads: int, job: tuple[int, int] | None) -> tuple[Call, np.ndarray]:
    """The C interface of the bundle, called as a program would; and the output. job: parallel_for and its context."""
    model = cortado.compile(graph_of(case), threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        bundle = read_bundle(folder)
    code = LoadedCode([data for _, data in read_archive(bundle.library)])
    given = [np.array(a) for a in arrays]
    output, arena = aligned(case.out), np.zeros(bundle.manifest.sizes.arena, np.uint8)
    ins = (ctypes.c_void_p * len(given))(*[a.ctypes.data for a in given])
    outs = (ctypes.c_void_p * 1)(output.ctypes.data)
    init = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2)(code.address("bench_init"))
    assert init(arena.ctypes.data, None) == 0
    ending, more = ("run", ()) if job is None else ("run_threads", job)
    run = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * (3 + len(more)))(code.address(f"bench_{ending}"))
    arguments = (arena.ctypes.data, ctypes.addressof(ins), ctypes.addressof(outs), *more)
    return Bound(lambda: run(*arguments), (code, given, output, arena, ins, outs)), output


def onnx_model(case: Case, shapes: list[tuple[int, ...]]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    names = [f"x{i}" for i in range(len(shapes))]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in case.constants.items()]
    nodes = []
    for number, (op, args, attrs) in enumerate(case.theirs):
        given, own = [names[a] for a in args], dict(attrs)
        if op == "Resize":
            given += ["", "", "sizes"]
        if op.startswith("Reduce"):
            constants.append(numpy_helper.from_array(np.array(own.pop("axes"), np.int64), f"axes{number}"))
            given.append(f"axes{number}")
        names.append(f"n{number}")
        nodes.append(helper.make_node(op, given, [names[-1]], **own))
    output = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "bench", inputs, [output], constants)
    opset = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


def onnxruntime_call(case: Case, arrays: list[np.ndarray], threads: int) -> tuple[Call, np.ndarray]:
    """A session with bound tensors, and the output in cortado's layout."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    given = [np.ascontiguousarray(np.moveaxis(a, -1, 1)) if case.image else a for a in arrays]
    model = onnx_model(case, [a.shape for a in given])
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for number, array in enumerate(given):
        binding.bind_cpu_input(f"x{number}", array)
    shape = (case.out[0], case.out[-1], *case.out[1:-1]) if case.image else case.out
    output = aligned(shape)
    name = session.get_outputs()[0].name
    binding.bind_output(name, "cpu", 0, np.float32, list(shape), output.ctypes.data)
    call = Bound(lambda: session.run_with_iobinding(binding), (given, output))
    return call, np.moveaxis(output, 1, -1) if case.image else output


def inputs_of(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = []
    for shape in case.shapes:
        array = aligned(shape)
        array[...] = rng.standard_normal(shape, np.float32)
        arrays.append(np.abs(array) + np.float32(0.01) if case.positive else array)
    return arrays


def measure(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Microseconds, the smallest found, in turns until `seconds` of each have gone by."""
    best = dict.fromkeys(calls, math.inf)
    spent = dict.fromkeys(calls, 0.0)
    while min(spent.values()) < seconds:
        for name, call in calls.items():
            stop = time.perf_counter() + TURN_SECONDS
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                best[name] = min(best[name], now - start)
                spent[name] += now - start
                if now > stop:
                    break
    return {name: value * 1e6 for name, value in best.items()}


@contextmanager
def helpers(threads: int) -> Iterator[tuple[int, int] | None]:
    """What NAME_run_threads takes, while its threads work; None for one thread."""
    pool = ThreadPool(find_target("host")) if threads > 1 else None
    with nullcontext(0) if pool is None else pool.helpers(threads - 1) as job:
        yield None if pool is None else (pool.parallel_for, job)


class Bench:
    """Everything that is the same for all cases of one run."""

    def __init__(self, threads: int, seconds: float) -> None:
        self.threads, self.seconds = threads, seconds
        self.copier = Copier()
        with helpers(threads) as job:
            self.empty = measure(self._calls(same("", "relu", "Relu", (1, 1)), job)[0], seconds)

    def _calls(self, case: Case, job: tuple[int, int] | None) -> tuple[dict[str, Call], float]:
        arrays = inputs_of(case)
        (ours, output), (theirs, wanted) = (
            cortado_call(case, arrays, self.threads, job),
            onnxruntime_call(case, arrays, self.threads),
        )
        ours()
        theirs()
        error = float(np.abs(output - wanted).max() / max(np.abs(wanted).max(), 1e-30))
        return {"cortado": ours, "onnxruntime": theirs, "copy": self.copier.call(case.nbytes)}, error

    def row(self, case: Case) -> dict[str, Any]:
        """Microseconds of the three, and the ratio."""
        with helpers(self.threads) as job:
            calls, error = self._calls(case, job)
            times = measure(calls, self.seconds)
        own = {name: max(value - self.empty[name], 0.01) for name, value in times.items()}
        bound = max(own["onnxruntime"], own["copy"])
        by = "onnxruntime" if own["onnxruntime"] >= own["copy"] else "memory"
        return {
            "family": case.family, "case": case.name, "bytes": case.nbytes, "relative_error": error, "right": error <= TOLERANCE,
            "us": own, "bound": by, "ratio": own["cortado"] / bound,
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    us = row["us"]
    times = "  ".join(f"{us[name]:11.2f}" for name in ("cortado", "onnxruntime", "copy"))
    wrong = "" if row["right"] else f"  WRONG by {row['relative_error']:.1e}"
    return f"{row['family']:12} {row['case']:34} {times}  {row['ratio']:6.2f}  {row['bound']}{wrong}"


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time single operators against onnxruntime and the memory, turn by turn.")
    parser.add_argument("--families", help="names separated by commas; else all")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each engine and case")
    parser.add_argument("--check", action="store_true", help=f"exit status 1 where a ratio exceeds {MOST}")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    return parser.parse_args()


def main() -> int:
    arguments = arguments_of()
    families = set(arguments.families.split(",")) if arguments.families else None
    cases = [c for c in all_cases() if (families is None or c.family in families) and arguments.only in c.name]
    bench = Bench(arguments.threads, arguments.seconds)
    print("microseconds (minimum); ratio: cortado's by the slower of the other two", flush=True)
    print(f"{'family':12} {'case':34} {'cortado':>11}  {'onnxruntime':>11}  {'copy':>11}   ratio  bound")
    rows = []
    for case in cases:
        rows.append(bench.row(case))
        print(line(rows[-1]), flush=True)
    slow = [row for row in rows if row["ratio"] > MOST]
    print(f"{len(rows)} cases, {len(slow)} above {MOST}" + "".join(f"\n  {line(row)}" for row in slow))
    if arguments.json:
        machine = {"machine": platform.machine(), "cortado": cortado.__version__, "onnxruntime": version("onnxruntime")}
        document = {"schema": 1, "machine": machine, "threads": arguments.threads, "most": MOST, "cases": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(not row["right"] for row in rows) or (arguments.check and slow) else 0


if __name__ == "__main__":
    sys.exit(main())
