"""Code generation: objects of every format, the same bytes always, and failures of LLVM as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cortado.backends import worker, workers
from cortado.backends.codegen import ObjectFile, assembly, check_symbols, compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.backends.symbols import read_symbols
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.lang import F32, INDEX, Kernel
from cortado.compiler.target import Target
from cortado.errors import CortadoError, FormatError, TargetError

V3 = find_target("x86-64-v3")


def caller(target: Target) -> Kernel:
    inner = KernelBuilder("inner", target, shared=True)
    p, n = inner.param("p"), inner.param("n", INDEX)
    inner.loop(0, n, 1, lambda i: inner.store(p, inner.load(p, F32, i) + 1.0, i))
    k = KernelBuilder("outer", target)
    p, n = k.param("p"), k.param("n", INDEX)
    k.call(inner.finish(), p, n)
    k.call(inner.finish(), k.offset(p, n, "f32"), n)
    return k.finish()


def modules(kernel: Kernel, target: Target) -> list[tuple[str, str]]:
    return [(k.name, emit_module([k], target, "net")) for k in (*kernel.callees(), kernel)]


@pytest.mark.parametrize("system", ["linux", "android", "macos", "windows", "none"])
@pytest.mark.parametrize("cpu", ["x86-64-v3", "aarch64"])
def test_every_format(cpu: str, system: str) -> None:
    target = find_target(f"{cpu}@{system}")
    kernel = caller(target)
    inner, outer = compile_modules(modules(kernel, target), target)
    mark = "_" if system == "macos" else ""
    names = [mark + symbol("net", k) for k in (*kernel.callees(), kernel)]
    assert names[0] in read_symbols(inner.data).defined
    assert names[1] in read_symbols(outer.data).defined
    assert read_symbols(outer.data).undefined - {"_fltused"} == {names[0]}


def test_symbols_that_nobody_brings_are_named_with_target_and_module() -> None:
    kernel = caller(V3)
    (callee,) = kernel.callees()
    with pytest.raises(TargetError, match=rf"target x86-64-v3: .*net_{callee.name} \(module {kernel.name}\)"):
        compile_modules(modules(kernel, V3)[1:], V3)


def test_a_call_of_libm_is_an_error() -> None:
    text = 'target triple = "x86_64-unknown-linux-gnu"\ndeclare float @llvm.sin.f32(float)\n'
    text += "define void @f(ptr %p) {\n  %x = load float, ptr %p\n  %y = call float @llvm.sin.f32(float %x)\n"
    text += "  store float %y, ptr %p\n  ret void\n}\n"
    with pytest.raises(TargetError, match=r"sinf \(module m\)"):
        compile_modules([("m", text)], V3)


def test_symbols_of_damaged_and_foreign_files() -> None:
    (one,) = compile_modules([("m", emit_module([caller(V3).callees()[0]], V3, "net"))], V3)
    for data in (b"", b"hello, world, this is no object", one.data[:100], one.data[:-300]):
        with pytest.raises(FormatError):
            read_symbols(data)
    with pytest.raises(FormatError):
        check_symbols([ObjectFile("broken", b"\x7fELF")], V3)


def test_frames_are_reported() -> None:
    k = KernelBuilder("framed", V3)
    p, n = k.param("p"), k.param("n", INDEX)
    area = k.local("f32", 1000)
    k.loop(0, n, 1, lambda i: k.store(area, k.load(p, F32, i), n - i))
    k.store(p, k.load(area, F32, n))
    kernel, plain = k.finish(), caller(V3).callees()[0]
    (compiled,) = compile_modules([("m", emit_module([kernel, plain], V3, "net"))], V3)
    assert set(compiled.frames) == {symbol("net", kernel)}
    assert 4000 <= compiled.frames[symbol("net", kernel)] <= 4100


def test_the_same_bytes_whatever_the_jobs_and_the_order() -> None:
    both = modules(caller(V3), V3)
    first = {item.name: item.data for item in compile_modules(both, V3, jobs=1)}
    again = {item.name: item.data for item in compile_modules(both[::-1] * 2, V3, jobs=2)}
    assert first == again


def test_order_and_names_are_kept() -> None:
    both = modules(caller(V3), V3) * 3
    assert [item.name for item in compile_modules(both, V3)] == [name for name, _ in both]
    assert compile_modules([], V3) == []


def test_unknown_cpus_and_features_are_errors_not_warnings() -> None:
    module = [("m", emit_module([caller(V3).callees()[0]], V3, "net"))]
    with pytest.raises(TargetError, match="'pentium9' is not a recognized processor"):
        compile_modules(module, replace(V3, cpu="pentium9", rows=()))
    with pytest.raises(TargetError, match="'\\+warp' is not a recognized feature"):
        compile_modules(module, replace(V3, features=("+warp",), rows=()))


def test_an_abort_of_llvm_is_an_error_and_the_next_request_works() -> None:
    text = 'target triple = "x86_64-unknown-linux-gnu"\ndeclare <16 x float> @llvm.x86.avx512.sqrt.ps.512(<16 x float>, i32)\n'
    text += "define void @f(ptr %p) {\n  %x = load <16 x float>, ptr %p\n"
    text += "  %y = call <16 x float> @llvm.x86.avx512.sqrt.ps.512(<16 x float> %x, i32 4)\n  store <16 x float> %y, ptr %p\n  ret void\n}\n"
    with pytest.raises(CortadoError, match=r"(?s)module bad: code generation failed: .*exit code.*LLVM ERROR"):
        compile_modules([("bad", text)], V3)
    assert compile_modules(modules(caller(V3), V3), V3)


def test_invalid_ir_is_an_error_with_the_place() -> None:
    with pytest.raises(CortadoError, match=r"(?s)module bad: .*expected"):
        compile_modules([("bad", "define void @f( {")], V3)


def test_a_process_that_was_killed_while_idle_is_replaced() -> None:
    pool = workers.Pool()
    request = {
        "ir": "define void @f() {\n  ret void\n}\n", "triple": V3.triple, "cpu": V3.cpu, "features": "", "level": 2, "abi": "",
        "passes": (), "assembly": True,
    }  # fmt: skip
    assert "retq" in pool.run([request], 1)[0].output
    (process,) = pool._idle
    process._process.kill()
    process._process.wait()
    assert "retq" in pool.run([request], 1)[0].output
    pool.close()
    assert not pool._idle


def test_assembly_is_text() -> None:
    assert "vaddss" in assembly(emit_module([caller(V3).callees()[0]], V3, "net"), V3)


def test_the_worker_imports_neither_numpy_nor_cortado(tmp_path: Path) -> None:
    """So that it starts at once."""
    probe = "import sys, runpy; sys.argv = ['worker', sys.argv[1]]; runpy.run_path({!r}, run_name='__main__');"
    probe += "bad = [m for m in sys.modules if m.split('.')[0] in ('numpy', 'cortado', 'multiprocessing')]; sys.exit(bool(bad))"
    command = [sys.executable, "-I", "-S", "-c", probe.format(worker.__file__), workers._llvmlite_folder()]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, cwd=tmp_path, timeout=60).returncode == 0


def test_a_script_without_a_main_guard_compiles(tmp_path: Path) -> None:
    """As with multiprocessing's spawn it would not."""
    script = tmp_path / "script.py"
    script.write_text(
        "from cortado.backends.codegen import assembly\nfrom cortado.backends.targets import find_target\n"
        "print(assembly('define void @f() {\\n  ret void\\n}\\n', find_target('aarch64')))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=60, env=os.environ)
    assert done.returncode == 0 and "ret" in done.stdout and done.stderr == ""


def test_large_frames_are_probed_where_the_system_wants_it() -> None:
    """Windows grows a stack page by page: a frame of several pages touches them in order, through the system's own function."""
    target = find_target("x86-64-v3@windows")
    k = KernelBuilder("large", target)
    p, n = k.param("p"), k.param("n", INDEX)
    area = k.local("f32", 1 << 16)
    k.store(area, k.load(p, F32), n)
    k.store(p, k.load(area, F32, n + 1))
    (compiled,) = compile_modules([("m", emit_module([k.finish()], target, "net"))], target)
    assert "__chkstk" in read_symbols(compiled.data).undefined
