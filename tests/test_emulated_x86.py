"""Kernels of every family for AVX-512, with and without VNNI, run by Bochs, which has both: compared with the reference."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_conformance_compiled as recorded
import test_kernels_conv as conv
import test_kernels_conv_transpose as transposed
import test_kernels_dense as dense
import test_kernels_depthwise as depthwise
import test_kernels_grouped as grouped
import test_kernels_move as move
import test_kernels_pointwise as pointwise
import test_kernels_pool as pool
import test_kernels_quantized as quantized
import test_kernels_quantized_matmul as quantized_matmul
import test_kernels_quantized_transposed as quantized_transposed
import test_kernels_quantized_winograd as quantized_winograd
import test_kernels_rows as rows
import test_kernels_winograd as winograd
from conformance import difference, load_case
from emulated import Case, Launches, check_emulated, need_bochs
from lowered import node_of
from programs import small_bundle, small_feeds

import cortado
from cortado import digits
from cortado.backends.targets import find_target
from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.kernels.choice import Grouped
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.kernels.table import LOWERINGS
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import run_graph
from cortado.compiler.types import cut_rows
from cortado.errors import TargetError
from cortado.runtime.emulate import EmulatedRunner
from cortado.runtime.machines import PcMachine
from cortado.runtime.pc import misread

pytestmark = pytest.mark.emulator
V4, VNNI = "x86-64-v4", "x86-64-v4+avx512vnni"


def convolutions() -> Iterator[Case]:
    for g in conv.GEOMETRIES:
        arrays = conv.arrays_of(g, 1 + len(g[0]) % 2, conv.EVERYTHING)
        yield Case(lower_conv, node_of("conv", arrays, conv.attrs_of(g, conv.EVERYTHING), (1, 2)), arrays, pad=3)
    for g in conv.GEOMETRIES[:4]:
        arrays = conv.arrays_of(g, dtype="float64")
        yield Case(lower_conv, node_of("conv", arrays, conv.attrs_of(g)), arrays, pad=1)


def depthwise_convolutions() -> Iterator[Case]:
    for g in (*depthwise.GEOMETRIES, *depthwise.LARGER[:4]):
        arrays = depthwise.arrays_of(g, depthwise.EVERYTHING)
        yield Case(lower_conv, node_of("conv", arrays, depthwise.attrs_of(g, depthwise.EVERYTHING), (1, 2)), arrays, pad=3)


def grouped_convolutions() -> Iterator[Case]:
    for g in filter(partial(grouped.serves, target=find_target(V4)), (*grouped.GEOMETRIES, *grouped.LARGER[:5])):
        arrays = grouped.arrays_of(g, grouped.EVERYTHING)
        node = node_of("conv", arrays, grouped.attrs_of(g, grouped.EVERYTHING), (1, 2))
        yield Case(partial(lower_conv, choice=Grouped(3)), node, arrays, pad=3)


def winograd_convolutions() -> Iterator[Case]:
    for m, shape, outputs in ((4, (1, 11, 9, 32), 48), (2, (2, 7, 7, 16), 32), (4, (1, 6, 7, 16), 16)):
        node, arrays = winograd.conv_case(shape, outputs, (1, 1), (1, 1), winograd.EVERYTHING)
        yield Case(winograd.forced(m), node, arrays, 1e-4, 2e-4)
    for m, taps in winograd.FILTERINGS:
        half = (taps // 2,) * 2
        node, arrays = winograd.conv_case((1, 9, 10, 19), 24, half, half, winograd.EVERYTHING, taps=taps)
        yield Case(winograd.forced(m), node, arrays, 1e-4, 1e-3)
    for channels, outputs, group in winograd.PARTIAL:
        node, arrays = winograd.conv_case((1, 6, 7, channels), outputs, (1, 1), (1, 1), winograd.EVERYTHING, group=group)
        yield Case(winograd.forced(4), node, arrays, 2e-4, 4e-4, pad=3)


def matrix_products() -> Iterator[Case]:
    for lead, depth, outputs in (*dense.LAYERS, ((1,), 300, 130), ((7,), 64, 200)):
        arrays = dense.fc_arrays(lead, depth, outputs, dense.EVERYTHING)
        yield Case(LOWERINGS["fc"], node_of("fc", arrays, {"epilogue": dense.EVERYTHING}, (1, 2)), arrays, pad=3)
    for a, b in dense.PRODUCTS:
        arrays = [dense.numbers(np.random.default_rng(4), *shape) for shape in (a, b)]
        node = node_of("batch_matmul", arrays, {"transpose_a": False, "transpose_b": False})
        yield Case(LOWERINGS["batch_matmul"], node, arrays, pad=2)
    for x, w, attrs in transposed.CASES:
        arrays = [np.random.default_rng(3).standard_normal(shape).astype(np.float32) for shape in (x, w)]
        node = node_of("conv_transpose", arrays, attrs, fixed=[1])
        yield Case(LOWERINGS["conv_transpose"], node, arrays, 1e-5, 1e-5, pad=3)


def pools() -> Iterator[Case]:
    for g, op in itertools.product(pool.GEOMETRIES, pool.LOWERINGS):
        x = pool.image(g, np.random.default_rng(1))
        yield Case(pool.LOWERINGS[op], node_of(op, [x], pool.attrs_of(g, op)), [x], pad=3)


def elementwise() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for name in sorted(pointwise.ELEMENTWISE):
        arrays = pointwise.inputs(name, (3, 5, 7), rng)
        attrs, exact = pointwise.ATTRS.get(name, {}), name in pointwise.EXACT
        yield Case(LOWERINGS[name], node_of(name, arrays, attrs), arrays, 0 if exact else 1e-6, 0 if exact else 3e-7)
        if name not in pointwise.WITHOUT_FLOATS:
            arrays = [pointwise.SPECIAL] * (2 if name in pointwise.BINARY else 1)
            yield Case(LOWERINGS[name], node_of(name, arrays, attrs), arrays, 3e-7, 1e-7)
    # Bochs 2.7 reads short distances of vpinsrb and vpextrw, where these use the registers of AVX-512, as twice and half as far: no bytes.
    for dtype in ("int8", "uint8", "int16", "int32", "int64", "float64"):
        pair = [rng.integers(0, 100, (3, 70)).astype(dtype) for _ in range(2)]
        for name in ("add", "mul", "maximum", "lt") if dtype.endswith("int8") else ("add", "mul", "div", "maximum", "lt"):
            yield Case(LOWERINGS[name], node_of(name, pair, {}), pair)
    for shapes in pointwise.SHAPES[:14]:
        arrays = [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]
        yield Case(LOWERINGS["sub"], node_of("sub", arrays, {}), arrays, pad=5)
    for source, to in itertools.product(pointwise.CASTS, pointwise.CASTS):
        array = (rng.standard_normal((3, 37)) * 200).astype(source)
        yield Case(LOWERINGS["cast"], node_of("cast", [array], {"dtype": to}), [array])


def across_elements() -> Iterator[Case]:
    for shape, axis in (((1, 1000), 1), ((3, 10), 1), ((50, 2), 1), ((7, 5), 1), ((5, 37), 0), ((2, 6, 19), 1), ((3, 130), 1)):
        x = rows.normal(shape) * 4
        yield Case(LOWERINGS["softmax"], node_of("softmax", [x], {"axis": axis}), [x], 2e-6, 1e-37, pad=3)
    for op, (shape, axes) in itertools.product(
        rows.REDUCTIONS, (((3, 5, 4, 11), (1, 3)), ((700, 3), (0,)), ((3, 900), (1,)), ((2, 140, 70), (1,)), ((17, 9), (0, 1)))
    ):
        x = rows.eighths(shape)
        yield Case(LOWERINGS[op], node_of(op, [x], {"axes": axes, "keepdims": False}), [x], 1e-7, pad=2)
    for channels, size in ((3, 1), (17, 5), (96, 5), (35, 41)):
        x = rows.normal((2, 1, 2, channels))
        attrs = {"size": size, "alpha": 1e-2, "beta": 0.75, "bias": 1.5}
        yield Case(LOWERINGS["lrn"], node_of("lrn", [x], attrs), [x], 2e-6, pad=1)
    for channels, op in itertools.product((1, 3, 19), ("resize_nearest", "resize_bilinear")):
        x = rows.eighths((2, 3, 4, channels))
        yield Case(LOWERINGS[op], node_of(op, [x], rows.scaled(x, 1.5, 2.7)), [x], 1e-6, 1e-5, pad=1)
    for channels, dtype in itertools.product((3, 21, 70), ("int8", "uint8")):
        x = rows.extreme_bytes((2, 3, 4, channels), dtype)
        yield Case(LOWERINGS["resize_bilinear"], node_of("resize_bilinear", [x], rows.scaled(x, 1.5, 2.7)), [x], pad=1)


def movement() -> Iterator[Case]:
    for perm, dtype in itertools.product(itertools.permutations(range(3)), move.DTYPES):
        x = move.numbered((2, 20, 33), dtype)
        yield Case(LOWERINGS["transpose"], node_of("transpose", [x], {"perm": perm}), [x], pad=1)
    for (shape, begin, end), dtype in itertools.product(move.PADS, ("int8", "float32")):
        x = move.numbered(shape, dtype)
        attrs = {"begin": begin, "end": end, "mode": "constant", "value": 7}
        yield Case(LOWERINGS["pad"], node_of("pad", [x], attrs), [x], pad=2)
    for dtype in move.DTYPES:
        x, indices = move.numbered((9, 37), dtype), np.array([[3, -1], [8, 0]], np.int64)
        yield Case(LOWERINGS["gather"], node_of("gather", [x, indices], {"axis": 0}), [x, indices], pad=1)
        yield Case(LOWERINGS["tile"], node_of("tile", [x], {"repeats": (2, 3)}), [x], pad=1)


def integers() -> Iterator[Case]:
    for test in (
        *quantized.PRODUCTS,
        *quantized.POOLED,
        *(quantized.conv(**form) for form in quantized.QUADS.values()),
        *quantized.others(),
    ):
        yield Case(*test, pad=1)
    for channels in range(1, 36, 2):
        yield Case(*quantized.conv((1, 4, 5, channels), (channels, 3, 3, 1), pads=1, group=channels), pad=2)
        yield Case(*quantized.conv((1, 3, 4, 8), (channels, 1, 1, 8)), pad=1)
    for form in quantized_transposed.CASES.values():
        yield Case(LOWERINGS["q_conv_transpose"], *quantized_transposed.transposed(**form), pad=1)
    for form in quantized_winograd.CASES.values():
        yield Case(quantized_winograd.forced(4), *quantized.conv(**form)[1:], pad=1)
    for node, arrays in quantized_matmul.cases():
        yield Case(quantized_matmul.lower_q_matmul, node, arrays, pad=1)


FAMILIES: tuple[Callable[[], Iterator[Case]], ...] = (
    convolutions, depthwise_convolutions, grouped_convolutions, winograd_convolutions, matrix_products, pools, elementwise,
    across_elements, movement,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_float_kernels(family: Callable[[], Iterator[Case]]) -> None:
    check_emulated(list(family()), find_target(V4))


@pytest.mark.parametrize("name", [V4, VNNI])
def test_quantized_kernels(name: str) -> None:
    check_emulated(list(integers()), find_target(name))


@pytest.mark.parametrize(("name", "dtype"), [(V4, None), (VNNI, "int8"), (V4, "int8")])
def test_a_whole_network(name: str, dtype: str | None) -> None:
    """The bundled one, through `Model.run`. Quantized, every machine gives the same bits; float32, about the same numbers."""
    need_bochs()
    images = [digits.network_input(image) for image in digits.held_out()[0][:40]]
    graph = cortado.load(digits.model_folder(), inputs={"data": images[0].shape})
    calibration = [{"data": image} for image in images] if dtype else None
    here, there = (cortado.compile(graph, target=target, dtype=dtype, calibration=calibration) for target in ("x86-64", name))
    for image in images[:2]:
        (want,), (got,) = here.run({"data": image}).values(), there.run({"data": image}).values()
        np.testing.assert_allclose(got, want, rtol=0 if dtype else 1e-5, atol=0 if dtype else 1e-6)


@pytest.mark.parametrize(
    "machine",
    [PcMachine(model="corei7_haswell_4770", state=0x7), PcMachine(state=0x7), PcMachine(state=0x3)],
    ids=["no AVX-512", "its registers off", "those of AVX off"],
)
def test_init_asks_processor_and_system(machine: PcMachine) -> None:
    """Without AVX-512; with it, but where nobody saves its registers, or not even those of AVX."""
    need_bochs()
    runner = EmulatedRunner(small_bundle(find_target(V4)), machine)
    with pytest.raises(TargetError, match="the processor that bochs emulates lacks instructions of it"):
        runner.run(list(small_feeds().values()))


# Level -> processors of Bochs that have it, with what is switched on of their registers.
PROCESSORS = {
    "x86-64": (
        ("athlon64_clawhammer", 0), ("core2_penryn_t9600", 0), ("corei5_lynnfield_750", 0), ("corei7_sandy_bridge_2600k", 0x7),
        ("corei7_haswell_4770", 0x3), ("tigerlake", 0x3),
    ),
    "x86-64-v3": (("corei7_haswell_4770", 0x7), ("ryzen", 0x7), ("corei7_skylake_x", 0x7)),
    "x86-64-v4": (("corei7_skylake_x", 0xE7), ("tigerlake", 0xE7)),
}  # fmt: skip


def test_one_library_on_every_processor() -> None:
    """x86-64-multi: no instruction that a processor lacks, which would be a fault, and the same code where the level is the same."""
    need_bochs()
    image = digits.network_input(digits.held_out()[0][0])
    graph = cortado.load(digits.model_folder(), inputs={"data": image.shape})
    bundle = cortado.compile(graph, target="x86-64-multi")._bundle
    want = run_graph(graph, {"data": image})["prob"]
    bits = {}
    for level, processors in PROCESSORS.items():
        answers = [EmulatedRunner(bundle, PcMachine(model=model, state=state)).run([image])[0] for model, state in processors]
        np.testing.assert_allclose(answers[0], want, rtol=1e-5, atol=1e-6)
        (bits[level],) = {answer.tobytes() for answer in answers}
    assert bits["x86-64"] != bits["x86-64-v3"], "with one rounding less"


def test_instructions_that_bochs_misreads_are_seen() -> None:
    """vpinsrb and vpextrw with memory: refused where registers of AVX-512 and a distance of one byte come together."""
    for code in ("62e37d0020480803", "62036500205c510803", "62637d0815780403", "62637d08157c370403"):
        assert misread(bytes(7) + bytes.fromhex(code))
    for code in ("c4e37120780803", "62e37d0020880004000003", "62637d08153803", "62637d0814780803", "62917d08c5c703"):
        assert not misread(bytes(7) + bytes.fromhex(code))
    image = np.zeros((3, 70), np.int8)
    with pytest.raises(TargetError, match="Bochs would execute some of its instructions wrongly"):
        check_emulated([Case(LOWERINGS["div"], node_of("div", [image, image], {}), [image, image])], find_target(V4))


@pytest.mark.slow
def test_everything_recorded_from_caffe2(shared: Path) -> None:
    """All operators and small nets, optimized and lowered: every eighth case, with CORTADO_THOROUGH=1 every one (two minutes).

    Bochs 2.7 does not round to even where it makes float16.
    """
    need_bochs()
    folder, target = shared / "conformance" / "caffe2", find_target(V4)
    launches, runs = Launches(target, PcMachine(strict=False)), []
    for operator in (*sorted(set(OPERATORS) - {"FloatToHalf"}), "nets"):
        cases = recorded.runnable(folder, operator) if (folder / f"{operator}.npz").exists() else ()
        for case in itertools.islice(cases, 0, None, 1 if os.environ.get("CORTADO_THOROUGH") else 8):
            program = lower(optimize(load_case(case)), target)
            runs.append((case, program, launches.program(program, case.feeds)))
    launches.run()
    problems = []
    for case, program, outputs in runs:
        got = cut_rows(outputs, {name: info.count for name, info in program.outputs if info.count})
        for name, want in case.outputs.items():
            problem = difference(np.asarray(got[name]), want, case.tolerance)
            problems += [f"{case}: output '{name}': {problem}"] * bool(problem)
    assert len(runs) > 400 and not problems, f"{len(problems)} of {len(runs)}:\n" + "\n".join(problems)
