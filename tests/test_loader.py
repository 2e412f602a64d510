"""Libraries in this process and under emulators: the linker, the arena, the probe of the processor, threads."""

from __future__ import annotations

import ctypes
import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from native import runnable_targets
from programs import FIRST, SECOND, small_answer, small_bundle, small_feeds, small_program

from cortado.backends.codegen import assembly, compile_modules
from cortado.backends.entry import ARENA_HEADER, entry_modules, parts_of
from cortado.backends.probe import PROBED, probe_checks, probe_declarations, probe_functions, probe_of
from cortado.backends.status import EINIT, EWEIGHTS
from cortado.backends.targets import find_target
from cortado.compiler.interpret import run_program
from cortado.compiler.options import CompileOptions
from cortado.compiler.target import Target
from cortado.errors import TargetError
from cortado.runtime.archive import read_archive
from cortado.runtime.bundle import Bundle
from cortado.runtime.elf import read_object
from cortado.runtime.emulate import EmulatedRunner
from cortado.runtime.link import Region, link, place
from cortado.runtime.loader import HostRunner, runs_in_process
from cortado.runtime.memory import LoadedCode

here = pytest.mark.skipif(not runnable_targets(), reason="code runs in process on Linux with x86-64 or AArch64 only")
BIG = {"rows": 70, "columns": 1000}


@pytest.fixture(scope="module")
def host() -> Target:
    return find_target("host")


@pytest.fixture(scope="module")
def bundle(host: Target) -> Bundle:
    return small_bundle(host)


@pytest.fixture(scope="module")
def big(host: Target) -> Bundle:
    return small_bundle(host, **BIG)


def function(code: LoadedCode, name: str, arguments: int) -> ctypes._CFunctionType:
    return ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * arguments)(code.address(name))


def loaded(bundle: Bundle) -> LoadedCode:
    return LoadedCode([data for _, data in read_archive(bundle.library)])


def check(got: list[np.ndarray], feeds: dict[str, np.ndarray]) -> None:
    for array, want in zip(got, small_answer(feeds).values(), strict=True):
        np.testing.assert_array_equal(array, want, strict=True)


@here
@pytest.mark.parametrize("name", runnable_targets())
def test_a_library_gives_the_program_s_answer(name: str) -> None:
    target = find_target(name)
    feeds = small_feeds()
    runner = HostRunner(small_bundle(target))
    outputs = runner.run([feeds[FIRST], feeds[SECOND]])
    check(outputs, feeds)
    for array, want in zip(outputs, run_program(small_program(target), feeds).values(), strict=True):
        np.testing.assert_array_equal(array, want, strict=True)


@here
def test_inputs_of_any_strides_are_read_and_left_alone(bundle: Bundle) -> None:
    feeds = small_feeds()
    strided = np.asfortranarray(feeds[FIRST])
    strided.flags.writeable = False
    unaligned = np.frombuffer(b"x" + feeds[SECOND].tobytes(), np.uint8)[1:].view(np.int32).reshape(feeds[SECOND].shape)
    check(HostRunner(bundle).run([strided, unaligned]), feeds)


@here
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(big: Bundle, host: Target, threads: int) -> None:
    program = small_program(host, **BIG)
    assert [parts_of(step, program, 1) for step in program.steps] == [s.parts for s in big.manifest.steps]
    assert max(s.parts for s in big.manifest.steps) > threads, "no step is split: this would test nothing"
    feeds = small_feeds(**BIG)
    runner = HostRunner(big)
    for _ in range(20):
        check(runner.run([feeds[FIRST], feeds[SECOND]], threads), feeds)


@here
def test_calls_from_many_threads_at_once(big: Bundle) -> None:
    runner = HostRunner(big)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        feeds = small_feeds(**BIG, seed=seed)
        try:
            for turn in range(10):
                check(runner.run([feeds[FIRST], feeds[SECOND]], 1 + turn % 2), feeds)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong, wrong


@here
@pytest.mark.parametrize("offset", [0, 1, 8, 63, 64])
def test_any_arena_address_will_do_and_nothing_outside_is_touched(bundle: Bundle, offset: int) -> None:
    code, feeds = loaded(bundle), small_feeds()
    size = bundle.manifest.sizes.arena
    memory = np.full(size + 256, 0xA5, np.uint8)
    start = 64 + offset + -memory.ctypes.data % 64
    outputs = [np.empty(6, np.float32), np.empty((6, 37), np.int32)]
    ins = (ctypes.c_void_p * 2)(*(a.ctypes.data for a in feeds.values()))
    outs = (ctypes.c_void_p * 2)(*(a.ctypes.data for a in outputs))
    arena = memory.ctypes.data + start
    assert function(code, "small_run", 3)(arena, ins, outs) == EINIT
    assert function(code, "small_run_threads", 5)(arena, ins, outs, None, None) == EINIT
    assert function(code, "small_init", 2)(arena, None) == 0
    assert function(code, "small_run", 3)(arena, ins, outs) == 0
    check(outputs, feeds)
    assert (memory[:start] == 0xA5).all() and (memory[start + size :] == 0xA5).all()
    assert size == ARENA_HEADER + small_program(find_target("host")).arena_bytes + 63


@here
def test_an_arena_of_another_model_is_refused(bundle: Bundle, host: Target) -> None:
    other = small_bundle(host, name="other", seed=5)
    assert other.manifest.model_hash != bundle.manifest.model_hash
    arena = np.zeros(max(b.manifest.sizes.arena for b in (bundle, other)), np.uint8)
    mine, theirs = loaded(bundle), loaded(other)
    assert function(theirs, "other_init", 2)(arena.ctypes.data, None) == 0
    assert function(mine, "small_run", 3)(arena.ctypes.data, None, None) == EINIT


@here
def test_weights_are_checked(bundle: Bundle, host: Target) -> None:
    separate = small_bundle(host, CompileOptions(separate_weights=True))
    assert separate.weights is not None and bundle.weights is None
    assert separate.manifest.model_hash == bundle.manifest.model_hash, "the same model: either library takes these weights"
    other = small_bundle(host, CompileOptions(separate_weights=True), seed=5)
    arena = np.zeros(separate.manifest.sizes.arena, np.uint8)
    given = {}
    for name, data in (("own", separate.weights), ("other", other.weights), ("text", b"x" * 4096)):
        memory = np.empty(len(data) + 128, np.uint8)
        at = -memory.ctypes.data % 64
        memory[at : at + len(data)] = np.frombuffer(data, np.uint8)
        given[name] = (memory, memory.ctypes.data + at)
    for code in (loaded(separate), loaded(bundle)):
        init = function(code, "small_init", 2)
        assert init(arena.ctypes.data, given["own"][1]) == 0
        for wrong in (given["other"][1], given["text"][1], given["own"][1] + 4):
            assert init(arena.ctypes.data, wrong) == EWEIGHTS
    assert function(loaded(separate), "small_init", 2)(arena.ctypes.data, None) == EWEIGHTS
    feeds = small_feeds()
    check(HostRunner(separate).run(list(feeds.values())), feeds)


@pytest.mark.skipif("x86-64" not in runnable_targets(), reason="asks an x86-64 processor")
def test_the_probe_agrees_with_llvm_on_every_feature() -> None:
    import llvmlite.binding as llvm

    there = llvm.get_host_cpu_features()
    base = find_target("x86-64")
    names = sorted(PROBED & set(there))
    checks = [probe_declarations("p")]
    for name in names:
        probe = probe_of(replace(base, features=(f"+{name}",)))
        assert probe is not None
        symbol = name.replace(".", "_").replace("-", "_")
        body = probe_checks(probe, "p", "bad")
        checks.append(f"define i32 @has_{symbol}() nounwind {{\n{body}  ret i32 1\nbad:\n  ret i32 0\n}}\n")
    head = f'target triple = "{base.triple}"\n'
    modules = [("cpu", head + probe_functions("p")), ("checks", head + "\n".join(checks))]
    code = LoadedCode([item.data for item in compile_modules(modules, base)])
    found = {name: bool(function(code, f"has_{name.replace('.', '_').replace('-', '_')}", 0)()) for name in names}
    assert len(found) > 60
    assert found == {name: there[name] for name in names}


@pytest.mark.skipif("x86-64" not in runnable_targets(), reason="asks an x86-64 processor")
def test_a_processor_without_the_instructions_is_refused(host: Target) -> None:
    import llvmlite.binding as llvm

    missing = next(name for name in ("xop", "lwp", "avx512vp2intersect") if not llvm.get_host_cpu_features()[name])
    target = replace(host, name="wanting", features=(*host.features, f"+{missing}"))
    with pytest.raises(TargetError, match=rf"compiled for wanting.*\+{missing}.*target 'host'"):
        HostRunner(small_bundle(target))


def test_a_feature_that_cannot_be_asked_for_is_an_error() -> None:
    with pytest.raises(TargetError, match="nonsense"):
        probe_of(replace(find_target("x86-64"), features=("+nonsense",)))


def test_entry_points_use_base_instructions_alone() -> None:
    target = find_target("x86-64-v4")
    for module in entry_modules(small_program(target), target, "small", 1, True, 1)[:2]:
        text = assembly(module.text, target)
        assert "small_" in text and not re.search(r"^\s+v[a-z]|[yz]mm\d|%k\d", text, re.MULTILINE)


def test_code_of_another_machine_is_not_loaded() -> None:
    bundle = small_bundle(find_target("cortex-m4"))
    assert not runs_in_process(bundle.manifest)
    with pytest.raises(TargetError, match="another processor"):
        loaded(bundle)


def test_the_linker_names_what_is_wrong(bundle: Bundle) -> None:
    objects = [read_object(data) for _, data in read_archive(bundle.library)]

    def linked(items: list) -> dict[str, int]:
        region = Region(0x1000, 1 << 20, False)
        layout = place(items, [region])
        return link(items, [region], layout, [memoryview(bytearray(layout.used[0]))])

    assert {"small_init", "small_run", "small_run_threads"} <= set(linked(objects))
    with pytest.raises(TargetError, match="no object defines small_"):
        linked(objects[:1])
    with pytest.raises(TargetError, match="two objects define small_"):
        linked([*objects, objects[0]])
    with pytest.raises(TargetError, match="does not fit"):
        place(objects, [Region(0, 100, False)])


EMULATED = {"aarch64": "qemu-aarch64", "cortex-a76@android": "qemu-aarch64", "arm32-cortex-a7": "qemu-arm"}
EMULATED |= dict.fromkeys(("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"), "qemu-system-arm")
EMULATED |= dict.fromkeys(("x86-64@none", "x86-64-v4", "x86-64-v4+avx512vnni"), "bochs")


@pytest.mark.emulator
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", EMULATED)
def test_foreign_libraries_run_in_emulators(name: str, separate: bool) -> None:
    if shutil.which(EMULATED[name]) is None:
        pytest.skip(f"{EMULATED[name]} is not installed")
    bundle = small_bundle(find_target(name), CompileOptions(separate_weights=separate))
    feeds = small_feeds()
    check(EmulatedRunner(bundle).run(list(feeds.values())), feeds)


@pytest.mark.emulator
def test_a_large_arena_goes_to_the_board_s_large_memory() -> None:
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed")
    sizes = {"rows": 450, "columns": 1000}
    bundle = small_bundle(find_target("cortex-m4"), **sizes)
    feeds = small_feeds(**sizes)
    check(EmulatedRunner(bundle).run(list(feeds.values())), feeds)
    with pytest.raises(TargetError, match="does not fit"):
        EmulatedRunner(small_bundle(find_target("cortex-m4"), rows=4000, columns=1000))


def test_a_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small_bundle(find_target("cortex-m4"))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(TargetError, match="install qemu-system-arm"):
        EmulatedRunner(bundle)
    with pytest.raises(TargetError, match=r"aarch64@ios \(arm64-apple-ios.*knows no emulator for this"):
        EmulatedRunner(small_bundle(find_target("aarch64@ios")))


@pytest.mark.emulator
def test_the_host_of_another_machine_is_emulated() -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    bundle = small_bundle(replace(find_target("aarch64"), name="host"))
    feeds = small_feeds()
    check(EmulatedRunner(bundle).run(list(feeds.values())), feeds)
