"""x86-64-multi: one library with code for several levels, and weights that are stored once."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from graphs import Net, feeds_of

import cortado
from cortado.backends.codegen import assembly
from cortado.backends.dispatch import dispatch_modules, variants_of
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.backends.targets.classes import judge_of
from cortado.build import chunks, kernels_of
from cortado.compiler.graph import Graph
from cortado.compiler.interpret import run_program
from cortado.compiler.levels import share_weights, weight_bytes
from cortado.compiler.options import CompileOptions
from cortado.compiler.pipeline import compile_levels
from cortado.compiler.program import Program
from cortado.compiler.reference import run_graph
from cortado.errors import TargetError
from cortado.model import Model
from cortado.runtime.loader import HostRunner, runs_in_process

TARGET = find_target("x86-64-multi")
NAMES = ("x86-64", "x86-64-v3", "x86-64-v3+avxvnni", "x86-64-v4", "x86-64-v4+avx512vnni+avx512bf16")


def network() -> Graph:
    """Convolutions with borders, with and without Winograd's filtering, and a softmax, which is float32 in int8 as well."""
    net = Net()
    x = net.op("relu", net.conv(net.input(1, 9, 11, 3), 24, 3, pad=1))
    y = net.op("relu", net.conv(x, 40, 1))
    z = net.conv(y, 16, 3, pad=1)
    return net.graph(z, net.op("softmax", z, axis=3))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return network()


@pytest.fixture(scope="module")
def model(graph: Graph) -> Model:
    return cortado.compile(graph, target="x86-64-multi")


@pytest.fixture(scope="module")
def quantized(graph: Graph) -> Model:
    return cortado.compile(
        graph, target="x86-64-multi", dtype="int8", keep_float="none", calibration=[feeds_of(graph, seed) for seed in range(3)]
    )


def levels_of(graph: Graph) -> tuple[Program, ...]:
    return compile_levels(graph, TARGET, CompileOptions())[0]


def here(model: Model) -> list[int]:
    """Numbers of the levels that this machine has."""
    if not runs_in_process(model._bundle.manifest):
        pytest.skip("the machine is no x86-64 Linux")
    import llvmlite.binding as llvm

    present = {f"+{name}" for name, there in llvm.get_host_cpu_features().items() if there}
    return [n for n, level in enumerate(model._bundle.manifest.levels) if present.issuperset(level.features)]


def test_levels_of_the_target() -> None:
    assert tuple(level.name for level in TARGET.levels) == NAMES
    assert not TARGET.features, "the functions in front must run on the least of them"
    for smaller, larger in ((0, 1), (1, 2), (1, 3), (3, 4)):
        assert set(TARGET.levels[smaller].features) < set(TARGET.levels[larger].features)
    assert {level.object_format for level in find_target("x86-64-multi@windows").levels} == {"coff"}
    with pytest.raises(TargetError, match="takes none"):
        find_target("x86-64-multi+avx2")


def test_every_level_of_this_machine_computes_the_same(graph: Graph, model: Model) -> None:
    feeds = feeds_of(graph)
    want = run_graph(graph, feeds)
    arrays = [feeds[name] for name in model.inputs]
    levels = here(model)
    assert 0 in levels
    for number in levels:
        runner = HostRunner(model._bundle, number)
        assert runner.level is model._bundle.manifest.levels[number]
        for threads in (1, 2):
            for got, (name, expected) in zip(runner.run(arrays, threads), want.items(), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=f"{number} {name}")


def test_int8_has_the_same_bits_on_every_level(graph: Graph, quantized: Model) -> None:
    arrays = list(feeds_of(graph).values())
    runs = [HostRunner(quantized._bundle, number).run(arrays) for number in here(quantized)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_init_chooses_the_best_level_of_this_machine(model: Model, quantized: Model) -> None:
    for one in (model, quantized):
        chosen = HostRunner(one._bundle).level
        assert chosen is one._bundle.manifest.levels[here(one)[-1]]


def test_run_equals_the_forced_level(graph: Graph, model: Model) -> None:
    feeds = feeds_of(graph)
    forced = HostRunner(model._bundle, here(model)[-1]).run(list(feeds.values()))
    for got, expected in zip(model.run(feeds).values(), forced, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_other_levels_in_the_interpreter(graph: Graph) -> None:
    """All of them, whatever this machine is: each with the blob that they share."""
    feeds = feeds_of(graph)
    want = run_graph(graph, feeds)
    programs = levels_of(graph)
    assert len({program.weights for program in programs}) == 1
    for program in programs:
        for name, got in run_program(program, feeds).items():
            np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=1e-4)


def test_instructions_of_levels(graph: Graph) -> None:
    """Each level uses what it has and nothing more."""
    registers = {"x86-64": "xmm", "x86-64-v3": "ymm", "x86-64-v4": "zmm"}
    programs = levels_of(graph)
    found = {}
    for variant in variants_of(programs, TARGET, "m"):
        parts = chunks(kernels_of(variant.program))
        found[variant.target.name] = "".join(
            assembly(emit_module(part, variant.target, variant.prefix), variant.target) for part in parts
        )
    assert list(found) == list(registers), "kernels of float32 are the same with VNNI"
    for name, text in found.items():
        assert ("vfmadd" in text) == (name != "x86-64")
        for other, register in registers.items():
            if list(registers).index(other) > list(registers).index(name):
                assert register not in text
        assert registers[name] in text


def test_vnni_is_used_where_it_is(graph: Graph, quantized: Model) -> None:
    levels = quantized._bundle.manifest.levels
    assert [level.name for level in levels] == list(NAMES)
    record = cortado.calibrate(graph, [feeds_of(graph)], method="min_max")
    programs = compile_levels(graph, TARGET, CompileOptions(dtype="int8"), record)[0]
    for program, target in zip(programs, TARGET.levels, strict=True):
        parts = [emit_module(part, target, "m") for part in chunks(kernels_of(program))]
        text = "".join(assembly(part, target) for part in parts)
        assert ("vpdpbusd" in text) == ("vnni" in target.name), target.name


def test_functions_in_front_use_the_base_alone(graph: Graph) -> None:
    """They run before the processor is asked."""
    variants = variants_of(levels_of(graph), TARGET, "m")
    for module in dispatch_modules(variants, TARGET, "m", 1, False):
        text = assembly(module.text, TARGET)
        assert not re.search(r"[yz]mm|\tv[a-z]+ps", text)
    start = assembly(dispatch_modules(variants, TARGET, "m", 1, False)[0].text, TARGET)
    assert start.count("m_cpuid") >= 2, "every level but the least is asked for"
    assert "m_level_v4_run" in start and "m_level_base_run" in start


def test_sizes_are_exact(model: Model) -> None:
    report, manifest = model.report(), model._bundle.manifest
    assert sum(level.code for level in manifest.levels) < report.sizes.code < sum(level.code for level in manifest.levels) + 4000
    assert report.sizes.arena == max(level.arena for level in manifest.levels)
    assert max(level.weights for level in manifest.levels) <= report.sizes.weights
    assert [name for level in manifest.levels for name in level.serves] == list(NAMES)
    text, document = str(report), report.to_dict()
    for level, told in zip(manifest.levels, document["levels"], strict=True):
        assert f"{level.code:,} bytes of code" in text
        assert (told["name"], told["code"], told["weights"]) == (level.name, level.code, level.weights)


def test_bundle_opens_again(model: Model, graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    model.save(folder)
    again = cortado.open(folder)
    assert again._bundle.manifest == model._bundle.manifest
    here(model)
    feeds = feeds_of(graph)
    for a, b in zip(again.run(feeds).values(), model.run(feeds).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_profile_is_of_the_level_that_runs(graph: Graph, model: Model) -> None:
    best = model._bundle.manifest.levels[here(model)[-1]]
    profile = model.profile(feeds_of(graph), runs=10)
    assert [row.name for row in profile.steps] == [step.name for step in best.steps]


@pytest.mark.parametrize("optimize_for", ["speed", "size"])
def test_levels_pack_float_weights_alike(optimize_for: str) -> None:
    """Pointwise layers, 3x3 and 5x5 convolutions by Winograd's filtering where it may be, some of large and small groups, one of stride 2;
    numbers of outputs that fill no vector.
    """
    net = Net()
    x = net.op("relu", net.conv(net.input(1, 28, 28, 16), 64, 1))
    x = net.op("relu", net.conv(net.conv(x, 66, 3, pad=1), 52, 3, pad=1, group=2))
    y = net.op("relu", net.conv(x, 64, 3, pad=1))
    y = net.conv(net.conv(y, 36, 3, pad=1, group=2), 72, 3, pad=1, group=9)
    y = net.conv(net.conv(y, 36, 3, pad=1, group=9), 36, 3, pad=1, group=18)
    y = net.conv(y, 30, 5, pad=2)
    z = net.conv(net.conv(y, 88, 3, pad=1, strides=(2, 2)), 37, 1)
    programs = compile_levels(net.graph(z), TARGET, CompileOptions(optimize_for=optimize_for), judge=judge_of(TARGET))[0]
    assert {weight_bytes(program) for program in programs} == {len(programs[0].weights)}
    kernels = [step.kernel.name for step in programs[0].steps]
    filtered = sum(name.startswith("winograd_input") for name in kernels)
    assert filtered >= 4 if optimize_for == "speed" else filtered == 0, kernels
    for program in programs:
        assert [step.kernel.name.partition("_")[0] for step in program.steps].count("grouped") == 3


def test_equal_arrays_are_stored_once(graph: Graph) -> None:
    one = compile_levels(graph, replace(TARGET, levels=TARGET.levels[:1]), CompileOptions())[0][0]
    twice = share_weights([one, one])
    assert twice[0].weights == twice[1].weights == one.weights
    assert weight_bytes(one) == len(one.weights)
    changed = replace(one, weights=bytes(64) + one.weights[64:])
    assert len(share_weights([one, changed])[0].weights) > len(one.weights)
    for program in share_weights([one, changed]):
        source = one if program.buffers == share_weights([one, changed])[0].buffers else changed
        for mine, its in zip(program.buffers, source.buffers, strict=True):
            if mine.place == "weights":
                assert program.weights[mine.offset :][: mine.nbytes] == source.weights[its.offset :][: its.nbytes]
