"""Kernels run natively: objects of the code generator, loaded by LLVM's own loader. For x86-64 and AArch64 machines with ELF objects."""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module, symbol
from cortado.backends.targets import find_target
from cortado.compiler.lang import Kernel
from cortado.compiler.target import Target

X86_LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def runnable_targets() -> tuple[str, ...]:
    """Names of the explicit targets whose code this machine can execute."""
    return tuple(name for name in (*X86_LEVELS, "aarch64") if runs_here(find_target(name)))


def runs_here(target: Target) -> bool:
    """Whether this machine's processor has a target's instructions, and its system runs bare code."""
    machine = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64"}.get(platform.machine().lower())
    if sys.platform != "linux" or not target.triple.startswith(f"{machine}-"):
        return False
    present = {f"+{name}" for name, there in llvm.get_host_cpu_features().items() if there}
    return machine == "aarch64" or present.issuperset(target.features)


def skip_unless_run(level: str) -> None:
    """Skip a test of a compiled model where neither this machine nor an emulator on it runs the level."""
    emulator = {"aarch64": "qemu-aarch64", "cortex": "qemu-system-arm"}.get(level.partition("-")[0], "bochs")
    if level != "host" and not runs_here(find_target(level)) and shutil.which(emulator) is None:
        pytest.skip(f"this machine does not run {level}, and {emulator} is not installed")


def native(kernel: Kernel, target: Target) -> Callable[..., None]:
    """The kernel as a function of arrays (ptr) and ints (index)."""
    if not runs_here(target):
        pytest.skip(f"this machine does not run {target.name}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = emit_module([*kernel.callees(), kernel], target, "test")
    (compiled,) = compile_modules([("test", module)], target)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(compiled.data))
    engine.finalize_object()
    kinds = [ctypes.c_void_p if p.type.scalar == "ptr" else ctypes.c_ssize_t for p in kernel.params]
    function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(symbol("test", kernel)))

    def run(*args: np.ndarray | int) -> None:
        function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in args))
        assert engine is not None  # the code lives as long as the engine

    return run
