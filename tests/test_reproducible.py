"""What a quantized graph computes in float32 outside of contractions has the same bits on every target with vectors.

The interpreter, which runs the kernels of every target on any machine, is compared with itself, then with native and emulated code.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from compiled import Compiled
from emulated import Launches, need_bochs
from graphs import Net, feeds_of
from native import X86_LEVELS, runnable_targets
from quantized_nodes import quant
from test_detection import cases as of_detectors
from test_kernels_pointwise import ATTRS, inputs
from test_kernels_pool import GEOMETRIES, Geometry, attrs_of

import cortado
from cortado.backends.codegen import assembly
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.build import chunks, kernels_of
from cortado.compiler.graph import Graph, graph_input
from cortado.compiler.interpret import run_program
from cortado.compiler.kernels.table import CONTRACTIONS, LOWERINGS
from cortado.compiler.lang import text
from cortado.compiler.lower import lower
from cortado.compiler.ops import OPS, make
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.options import CompileOptions
from cortado.compiler.pipeline import compile_program
from cortado.compiler.program import Program, Step
from cortado.compiler.quantize.record import CalibrationRecord
from cortado.compiler.types import TensorType, cut_rows

LEVELS = (*X86_LEVELS, "aarch64")
WIDEST = "x86-64-v4"
# What has other bits where it is made as is fastest.
FASTER = frozenset(
    "softmax reduce_sum reduce_mean reduce_max reduce_min average_pool max_pool lrn resize_bilinear exp pow".split()
)
# A window of more columns than 16 registers hold.
WIDE: Geometry = ((5, 30), 8, (2, 20), (1, 1), (1, 1), (0, 0), (0, 0))
Case = tuple[str, list[np.ndarray], dict[str, Any]]


def normal(*shape: int) -> np.ndarray:
    """Numbers whose sums depend on the order."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def zeros(op: str, *shape: int) -> np.ndarray:
    """Extrema that are zeros of both signs, equal to each other."""
    random = np.random.default_rng(sum(shape)).random(shape)
    others = np.float32(1 if op == "reduce_min" else -1)
    return np.where(random < 0.9, others, np.copysign(np.float32(0), random.astype(np.float32) - np.float32(0.95)))


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for name in sorted(ELEMENTWISE):
        yield name, inputs(name, (4, 61), rng), ATTRS.get(name, {})
    yield "pointwise", [normal(4, 37), normal(37)], {"expr": (("mul", (0, 1), ()), ("exp", (2,), ()), ("add", (3, 0), ()))}
    for g in (*GEOMETRIES, WIDE):
        yield "average_pool", [normal(2, *g[0], g[1])], attrs_of(g, "average_pool")
        yield "max_pool", [zeros("max_pool", 2, *g[0], g[1])], attrs_of(g, "max_pool")
    for shape, axis in (((1, 1000), 1), ((3, 10), 1), ((50, 2), 1), ((5, 37), 0), ((2, 6, 19), 1), ((3, 130), 1)):
        yield "softmax", [normal(*shape) * 4], {"axis": axis}
    reductions = ((3, 5, 4, 11), (1, 3)), ((700, 3), (0,)), ((3, 900), (1,)), ((2, 140, 70), (1,)), ((9, 7, 5), (0, 1, 2))
    for shape, axes in reductions:
        attrs = {"axes": axes, "keepdims": False}
        for op in ("reduce_sum", "reduce_mean"):
            yield op, [normal(*shape)], attrs
        for op in ("reduce_max", "reduce_min"):
            yield op, [zeros(op, *shape)], attrs
    for beta in (0.75, 0.6):
        yield "lrn", [normal(3, 35)], {"size": 5, "alpha": 1e-2, "beta": beta, "bias": 1.5}
    yield "resize_bilinear", [normal(2, 3, 4, 19)], {"scale_h": 1.5, "scale_w": 2.5, "out_h": 4, "out_w": 10}
    for mode in ("sum", "mean", "max"):
        yield "segment_reduce", [normal(11, 37), np.array([4, 0, 7], np.int32)], {"mode": mode}
    yield from of_detectors()


@lru_cache(maxsize=1)
def graphs() -> list[tuple[str, Graph, dict[str, np.ndarray]]]:
    """The operator of each case, a graph of it that holds a quantized tensor beside it, and values of its inputs."""
    made = []
    for op, arrays, attrs in cases():
        nodes = [graph_input(f"x{i}", TensorType(a.shape, a.dtype.name)) for i, a in enumerate(arrays)]
        node = make(op, [n.out() for n in nodes], attrs, "node")
        beside = graph_input("beside", TensorType((3,)))
        integers = make("quantize", [beside.out()], {"quant": quant(0.5, 3), "dtype": "int8"}, "integers")
        outputs = (*((f"y{i}", node.out(i)) for i in range(len(node.types))), ("integers", integers.out()))
        counts = {f"y{rows}": f"y{count}" for rows, count in OPS[op].counts.items()}
        feeds = {f"x{i}": array for i, array in enumerate(arrays)} | {"beside": np.arange(3, dtype=np.float32)}
        made.append((op, Graph("net", (*nodes, beside), outputs, counts=counts), feeds))
    return made


@lru_cache(maxsize=8)
def programs(level: str) -> list[Program]:
    return [lower(graph, find_target(level)) for _, graph, _ in graphs()]


@lru_cache(maxsize=8)
def interpreted(level: str) -> list[dict[str, np.ndarray]]:
    with np.errstate(all="ignore"):
        return [run_program(program, feeds) for program, (_, _, feeds) in zip(programs(level), graphs(), strict=True)]


def check(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], what: str) -> None:
    """Equal to the bit; one NaN is as good as another."""
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=f"{what} {name}")
        signs = ~np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
        np.testing.assert_array_equal(np.signbit(got[name][signs]), np.signbit(array[signs]), err_msg=f"{what} {name}")


def test_every_operator_that_may_round_differently_has_a_case() -> None:
    wanted = {name for name in LOWERINGS if not OPS[name].exact} - CONTRACTIONS
    assert wanted <= {op for op, _, _ in graphs()}


@pytest.mark.parametrize("level", LEVELS[1:])
def test_operators_in_the_interpreter(level: str) -> None:
    for (op, graph, _), got, want in zip(graphs(), interpreted(level), interpreted(LEVELS[0]), strict=True):
        check(got, want, f"{op} {graph.nodes()[-2]} {level}")


def test_other_graphs_take_the_fastest_way() -> None:
    """And so would have other bits: the cases above see it."""
    differing = set()
    for op, graph, feeds in graphs():
        alone = Graph(graph.name, graph.inputs[:-1], graph.outputs[:-1], counts=graph.counts)
        if op in FASTER:
            with np.errstate(all="ignore"):
                runs = [run_program(lower(alone, find_target(level)), feeds) for level in (LEVELS[0], WIDEST)]
            differing |= {op for a, b in zip(*(run.values() for run in runs), strict=True) if a.tobytes() != b.tobytes()}
    assert differing == FASTER


@pytest.mark.parametrize("level", LEVELS)
def test_operators_natively(level: str) -> None:
    if level not in runnable_targets():
        pytest.skip(f"this machine does not run {level}")
    code = Compiled(programs(level), find_target(level))
    for (op, graph, feeds), program, want in zip(graphs(), programs(level), interpreted(LEVELS[0]), strict=True):
        check(code.run(program, feeds), want, f"{op} {graph.nodes()[-2]} {level}")


@pytest.mark.emulator
@pytest.mark.parametrize("level", [WIDEST, "aarch64"])
def test_operators_emulated(level: str) -> None:
    if level == WIDEST:
        need_bochs()
    elif shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    launches = Launches(find_target(level))
    runs = [launches.program(program, feeds) for program, (_, _, feeds) in zip(programs(level), graphs(), strict=True)]
    launches.run()
    for (op, graph, _), got, want in zip(graphs(), runs, interpreted(LEVELS[0]), strict=True):
        check(cut_rows(got, graph.counts), want, f"{op} {graph.nodes()[-2]} {level}")


# --- a network ---


def network() -> Graph:
    """Convolutions, behind which float32 begins: an average, a softmax along an axis, exponentials, an affine function."""
    net = Net()
    x = net.op("relu", net.conv(net.input(1, 12, 12, 3), 24, 3, pad=1))
    x = net.op("relu", net.conv(x, 24, 3, pad=1, group=24))
    x = net.conv(x, 40)
    halves = {"kernel": (12, 6), "strides": (1, 6), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
    average = net.op("average_pool", x, **halves, count_include_pad=False)
    sizes = net.op("mul", net.op("exp", net.op("mul", x, net.number(0.2))), net.weights(40))
    return net.graph(net.op("softmax", average, axis=3), net.op("sigmoid", net.op("add", sizes, x)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return network()


@pytest.fixture(scope="module")
def record(graph: Graph) -> CalibrationRecord:
    return cortado.calibrate(graph, [feeds_of(graph, seed) for seed in range(3)], method="min_max")


@pytest.fixture(scope="module")
def compiled(graph: Graph, record: CalibrationRecord) -> dict[str, Program]:
    options = CompileOptions(dtype="int8", keep_float="none")
    return {level: compile_program(graph, find_target(level), options, record)[0] for level in LEVELS}


def float_steps(program: Program) -> list[Step]:
    return [step for step in program.steps if step.kernel.family.endswith("_f32")]


def test_kernels_of_a_network(compiled: dict[str, Program]) -> None:
    """Nothing is fused; what adds numbers up is the same kernel for all, the rest keeps long vectors."""
    families = ["average_pool_f32", "dequantize_f32", "pointwise_f32", "softmax_f32"]
    for level, program in compiled.items():
        steps = float_steps(program)
        assert sorted({step.kernel.family for step in steps}) == families
        assert not any("virtual fma" in text(kernel) for step in steps for kernel in (step.kernel, *step.kernel.callees()))
        sums = [
            {step.kernel.name for step in float_steps(p) if step.op in ("average_pool", "softmax")}
            for p in (program, compiled[LEVELS[0]])
        ]
        assert sums[0] == sums[1] and len(sums[0]) == 2, level
    assert any("f32x16" in text(step.kernel) for step in float_steps(compiled[WIDEST]) if step.op == "pointwise")


@pytest.mark.parametrize("level", ["x86-64-v3", WIDEST, "aarch64"])
def test_code_fuses_nothing_either(level: str, compiled: dict[str, Program]) -> None:
    target = find_target(level)
    kernels = kernels_of(replace(compiled[level], steps=tuple(float_steps(compiled[level]))))
    code = "".join(assembly(emit_module(part, target, "m"), target) for part in chunks(kernels))
    assert re.search(r"\tv?mulps|fmul", code) and not re.search(r"\tv?fn?m(add|sub)|fml[as]|\tfn?m(add|sub)", code)


def test_a_network_in_the_interpreter(graph: Graph, compiled: dict[str, Program]) -> None:
    for seed in range(3):
        feeds = feeds_of(graph, seed)
        want = run_program(compiled[LEVELS[0]], feeds)
        for level in LEVELS[1:]:
            check(run_program(compiled[level], feeds), want, level)


@pytest.mark.parametrize("level", LEVELS)
def test_a_network_as_it_ships(level: str, graph: Graph, record: CalibrationRecord, compiled: dict[str, Program]) -> None:
    """In this process, or emulated where this machine lacks the instructions."""
    emulator = "qemu-aarch64" if level == "aarch64" else "bochs"
    if level not in runnable_targets() and shutil.which(emulator) is None:
        pytest.skip(f"this machine does not run {level}, and {emulator} is not installed")
    model = cortado.compile(graph, target=level, dtype="int8", keep_float="none", calibration=record)
    feeds = feeds_of(graph, 5)
    check(model.run(feeds), run_program(compiled[LEVELS[0]], feeds), level)
