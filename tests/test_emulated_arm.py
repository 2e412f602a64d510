"""Arm objects link into programs of every float ABI and give the interpreter's bits under QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from arm_boards import BOARDS, execute, need, run_on_aarch64, run_on_mps2

from cortado.backends.arm_attributes import independent_of_float_abi
from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.backends.targets import find_target
from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.evaluate import Pointer
from cortado.compiler.interpret import compile_kernel
from cortado.compiler.lang import F32, INDEX, Kernel
from cortado.compiler.target import Target
from cortado.errors import FormatError

pytestmark = pytest.mark.emulator
COUNT = 32


def polynomial(target: Target) -> Kernel:
    """out[i] = relu of a polynomial of a[i]; vectors, a loop, a partial vector, a call."""
    lanes = target.lanes("f32")
    inner = KernelBuilder("horner", target, shared=True)
    out, a, begin, end = inner.param("out"), inner.param("a"), inner.param("begin", INDEX), inner.param("end", INDEX)

    def body(i: Val) -> None:
        x = inner.load(a, F32.with_lanes(lanes), i)
        y = inner.virtual("fma", inner.virtual("fma", x, x, x * 0.5), x, inner.const(-0.25, x.type))
        inner.store(out, inner.max(y, 0.0) + inner.virtual("sqrt", inner.virtual("abs", x)) / 3.0, i)

    inner.loop(begin, end, lanes, body)
    k = KernelBuilder("driver", target)
    out, a, begin, end = k.param("out"), k.param("a"), k.param("begin", INDEX), k.param("end", INDEX)
    k.call(inner.finish(), out, a, begin, end)
    k.store_lanes(out, k.load_lanes(a, F32.with_lanes(lanes), max(lanes - 1, 1)), max(lanes - 1, 1), COUNT)
    return k.finish()


def inputs() -> np.ndarray:
    return np.random.default_rng(2).standard_normal(COUNT).astype(np.float32)


def expected(kernel: Kernel) -> list[int]:
    out = np.zeros(COUNT + 4, np.float32)
    compile_kernel(kernel)(Pointer(out.view(np.uint8)), Pointer(inputs().view(np.uint8)), 0, COUNT)
    return out.view(np.uint32).tolist()


def objects(kernel: Kernel, target: Target) -> list[bytes]:
    """Driver and callee in objects of their own."""
    modules = [(item.name, emit_module([item], target, "net")) for item in (*kernel.callees(), kernel)]
    return [item.data for item in compile_modules(modules, target)]


def program(kernel: Kernel, show: str) -> str:
    numbers = ", ".join(f"0x{bits:08x}u" for bits in inputs().view(np.uint32))
    return f"""
    {show}
    #include <stdint.h>
    #include <stddef.h>
    void {symbol("net", kernel)}(void *, const void *, size_t, size_t);
    static const uint32_t a[] = {{{numbers}}};
    static uint32_t out[{COUNT + 4}];
    volatile float scale = 1.0f;
    int main(void) {{
      {symbol("net", kernel)}(out, a, 0, {COUNT});
      put_words(out, {COUNT + 4});
      return scale * 2.0f != 2.0f;
    }}"""


def words(text: str) -> list[int]:
    return [int(line, 16) for line in text.split()]


@pytest.mark.parametrize("float_abi", ["hard", "softfp", "soft"])
def test_one_object_links_with_every_float_abi(float_abi: str) -> None:
    target = find_target("cortex-m4")
    kernel = polynomial(target)
    source = program(kernel, '#include "board.h"')
    if float_abi == "soft":  # such a program leaves the float unit off, which the model needs
        source = source.replace("int main(void) {", "int main(void) { *(volatile uint32_t *)0xE000ED88 |= 0xF00000;")
    assert words(run_on_mps2(source, objects(kernel, target), float_abi)) == expected(kernel)


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"])
def test_every_core_with_a_float_unit(core: str) -> None:
    target = find_target(core)
    kernel = polynomial(target)
    assert words(run_on_mps2(program(kernel, '#include "board.h"'), objects(kernel, target), core=core)) == expected(kernel)


@pytest.mark.parametrize("linker", ["bfd", "lld"])
def test_aarch64(linker: str) -> None:
    target = find_target("aarch64")
    kernel = polynomial(target)
    show = '#include <stdio.h>\nstatic void put_words(const unsigned *w, int n) { while (n--) printf("%08x\\n", *w++); }'
    assert words(run_on_aarch64(program(kernel, show), objects(kernel, target), linker)) == expected(kernel)


def test_boards_are_there_for_every_microcontroller_that_is_tested() -> None:
    assert {"cortex-m0", "cortex-m3", "cortex-m4"} <= set(BOARDS)


def test_a_failing_program_is_seen() -> None:
    need("arm-none-eabi-gcc", "qemu-system-arm")
    with pytest.raises(AssertionError, match="exit code 3"):
        run_on_mps2("int main(void) { return 3; }", [])
    with pytest.raises(AssertionError, match="fault"):
        run_on_mps2("int main(void) { __builtin_trap(); }", [])


def test_attributes_say_compatible_and_keep_the_rest(tmp_path: Path) -> None:
    need("arm-none-eabi-readelf")
    for name, architecture in {"cortex-m4": "v7E-M", "arm32-cortex-a7": "v7", "cortex-m0": "v6S-M"}.items():
        target = find_target(name)
        k = KernelBuilder("nothing", target)
        k.param("p")
        (data,) = objects(k.finish(), target)
        (tmp_path / "object.o").write_bytes(data)
        shown = execute(["arm-none-eabi-readelf", "-A", "object.o"], tmp_path)
        assert shown.count("Tag_ABI_VFP_args") == 1 and "Tag_ABI_VFP_args: compatible" in shown
        assert f"Tag_CPU_arch: {architecture}\n" in shown
    with pytest.raises(FormatError):
        independent_of_float_abi(b"\x7fELF\x02\x01" + bytes(64))


def test_without_the_mark_hard_float_programs_refuse() -> None:
    """So that the mark can go the day linkers or LLVM do without."""
    target = find_target("cortex-m4")
    kernel = polynomial(target)
    unmarked = [data.replace(bytes([28, 3]), bytes([28, 0])) for data in objects(kernel, target)]
    with pytest.raises(AssertionError, match="uses VFP register arguments"):
        run_on_mps2(program(kernel, '#include "board.h"'), unmarked)
