"""The library as C and C++ programs use it, compared bit for bit with this process's run."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from native import runnable_targets
from programs import FIRST, PARITY, SECOND, SUM, small_answer, small_bundle, small_feeds

from cortado.backends.targets import find_target
from cortado.compiler.options import CompileOptions
from cortado.runtime import bundle as bundle_module
from cortado.runtime.bundle import write_bundle
from cortado.runtime.loader import HostRunner

C, CPP = shutil.which("gcc") or shutil.which("clang"), shutil.which("g++") or shutil.which("clang++")
pytestmark = [
    pytest.mark.skipif(C is None, reason="no C compiler (gcc or clang) is installed"),
    pytest.mark.skipif(not runnable_targets(), reason="the libraries are made for Linux on x86-64 or AArch64"),
]
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wl,--fatal-warnings"]
C99, CPP11 = ["-std=c99", *STRICT], ["-std=c++11", *STRICT]
POOL = Path(bundle_module.__file__).parent / "c"
ROWS, COLUMNS = 40, 1000

# Reads the inputs of both models, runs them (argv[1]: threads, 0 for NAME_run), writes the outputs.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "cortado_threads.h"
#include "first.h"
#include "second.h"

#define MODEL(NAME) \
    static unsigned char NAME##_arena[NAME##_ARENA_BYTES + 1]; \
    static NAME##_IN_GPU_0_DATA_TYPE NAME##_data[NAME##_IN_GPU_0_DATA_COUNT]; \
    static NAME##_IN_GPU_0_DATA_2_TYPE NAME##_more[NAME##_IN_GPU_0_DATA_2_COUNT]; \
    static NAME##_OUT_SUM_TYPE NAME##_sum[NAME##_OUT_SUM_COUNT]; \
    static NAME##_OUT_GPU_0_DATA_BYTES_TYPE NAME##_parity[NAME##_OUT_GPU_0_DATA_BYTES_COUNT]; \
    static int NAME##_main(int threads, cortado_pool *pool) \
    { \
        const int shape[NAME##_IN_GPU_0_DATA_RANK] = NAME##_IN_GPU_0_DATA_SHAPE; \
        const void *in[NAME##_INPUTS]; \
        void *out[NAME##_OUTPUTS]; \
        in[NAME##_IN_GPU_0_DATA] = NAME##_data; \
        in[NAME##_IN_GPU_0_DATA_2] = NAME##_more; \
        out[NAME##_OUT_SUM] = NAME##_sum; \
        out[NAME##_OUT_GPU_0_DATA_BYTES] = NAME##_parity; \
        if (shape[0] * shape[1] != NAME##_IN_GPU_0_DATA_COUNT) return 10; \
        if (NAME##_run(NAME##_arena + 1, in, out) != NAME##_EINIT) return 11; \
        if (fread(NAME##_data, 1, NAME##_IN_GPU_0_DATA_BYTES, stdin) != NAME##_IN_GPU_0_DATA_BYTES) return 12; \
        if (fread(NAME##_more, 1, NAME##_IN_GPU_0_DATA_2_BYTES, stdin) != NAME##_IN_GPU_0_DATA_2_BYTES) return 13; \
        if (NAME##_init(NAME##_arena + 1, NULL) != 0) return 14; \
        if (threads == 0 && NAME##_run(NAME##_arena + 1, in, out) != 0) return 15; \
        if (threads > 0 && NAME##_run_threads(NAME##_arena + 1, in, out, cortado_parallel_for, pool) != 0) return 16; \
        fwrite(NAME##_sum, 1, NAME##_OUT_SUM_BYTES, stdout); \
        fwrite(NAME##_parity, 1, NAME##_OUT_GPU_0_DATA_BYTES_BYTES, stdout); \
        return 0; \
    }

MODEL(first)
MODEL(second)

int main(int argc, char **argv)
{
    static cortado_pool pool;
    int threads = argc > 1 ? atoi(argv[1]) : 0, turn, status = 0;
    if (first_MODEL_HASH == second_MODEL_HASH) return 9;
    if (threads > 0 && cortado_pool_start(&pool, threads) != threads) return 8;
    for (turn = argc > 2 ? atoi(argv[2]) : 1; turn > 0 && status == 0; turn--) {
        status = first_main(threads, &pool);
        if (status == 0) status = second_main(threads, &pool);
        {
            size_t i;
            for (i = 0; i < sizeof first_arena; i++) first_arena[i] = 0;
            for (i = 0; i < sizeof second_arena; i++) second_arena[i] = 0;
        }
    }
    if (threads > 0) cortado_pool_stop(&pool);
    return status;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of different weights, their headers, the program, and the pool's sources."""
    made = tmp_path_factory.mktemp("c")
    target = find_target(runnable_targets()[-1])
    for name, seed in (("first", 0), ("second", 1)):
        write_bundle(small_bundle(target, name=name, seed=seed, rows=ROWS, columns=COLUMNS), made / name)
        for file in (f"lib{name}.a", f"{name}.h"):
            shutil.copy(made / name / file, made / file)
    for file in POOL.iterdir():
        shutil.copy(file, made / file.name)
    (made / "program.c").write_text(PROGRAM)
    return made


def command(*words: str | None) -> list[str]:
    return [word for word in words if word is not None]


def built(folder: Path, compiler: str | None, options: Sequence[str], name: str) -> str:
    language = ["-x", "c++"] if compiler == CPP else []
    sources = [*language, "program.c", "cortado_threads.c", "-x", "none"]
    done = subprocess.run(
        command(compiler, *options, "-O1", *sources, "-L.", "-lfirst", "-lsecond", "-pthread", "-o", name),
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(folder / name)


def fed() -> tuple[bytes, bytes]:
    """Standard input and the output that must follow."""
    given, expected = b"", b""
    for seed in (0, 1):
        feeds = small_feeds(ROWS, COLUMNS, seed=seed + 10)
        answer = small_answer(feeds, seed)
        given += feeds[FIRST].tobytes() + feeds[SECOND].tobytes()
        expected += answer[SUM].tobytes() + answer[PARITY].tobytes()
    return given, expected


@pytest.mark.parametrize(
    ("compiler", "options"),
    [
        pytest.param(C, [*C99, "-fPIE", "-pie"], id="c99-pie"),
        pytest.param(C, [*C99, "-fno-pie", "-no-pie"], id="c99-no-pie"),
        pytest.param(C, [*C99, "-ffunction-sections", "-Wl,--gc-sections"], id="c99-gc-sections"),
        pytest.param(CPP, [*CPP11, "-fPIE", "-pie"], id="c++11-pie"),
        pytest.param(CPP, [*CPP11, "-fno-pie", "-no-pie"], id="c++11-no-pie"),
    ],
)
def test_two_models_in_one_program(folder: Path, compiler: str | None, options: list[str]) -> None:
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) is installed")
    program = built(folder, compiler, options, "program")
    given, expected = fed()
    done = subprocess.run([program], input=given, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout == expected


@pytest.mark.skipif(shutil.which("ld.lld") is None, reason="ld.lld is not installed")
def test_lld_links_it_too(folder: Path) -> None:
    program = built(folder, C, [*C99, "-fuse-ld=lld"], "program_lld")
    given, expected = fed()
    assert subprocess.run([program], input=given, capture_output=True, check=False).stdout == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_pool_gives_the_same_bits(folder: Path, threads: int) -> None:
    program = built(folder, C, C99, f"program_{threads}")
    given, expected = fed()
    turns = 20
    done = subprocess.run([program, str(threads), str(turns)], input=given * turns, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout == expected * turns


def test_python_and_c_agree_to_the_bit(folder: Path) -> None:
    target = find_target(runnable_targets()[-1])
    _, expected = fed()
    got = b""
    for name, seed in (("first", 0), ("second", 1)):
        runner = HostRunner(small_bundle(target, name=name, seed=seed, rows=ROWS, columns=COLUMNS))
        got += b"".join(a.tobytes() for a in runner.run(list(small_feeds(ROWS, COLUMNS, seed=seed + 10).values())))
    assert got == expected


def test_a_shared_library_shows_nothing_but_the_entry_points(folder: Path) -> None:
    whole = ["-Wl,--whole-archive", "-lfirst", "-lsecond", "-Wl,--no-whole-archive"]
    subprocess.run(command(C, "-shared", *STRICT, "-Wl,-z,text", "-o", "both.so", "-L.", *whole), cwd=folder, check=True)
    if shutil.which("nm"):
        listed = subprocess.run(["nm", "-D", "--defined-only", "both.so"], cwd=folder, capture_output=True, text=True, check=True)
        names = {line.split()[-1] for line in listed.stdout.splitlines()}
        assert names == {f"{name}_{entry}" for name in ("first", "second") for entry in ("init", "run", "run_threads")}
        undefined = subprocess.run(["nm", "-u", "libfirst.a"], cwd=folder, capture_output=True, text=True, check=True).stdout
        assert all(name.startswith("first_") for name in re.findall(r"U (\S+)", undefined))
    library = ctypes.CDLL(str(folder / "both.so"))
    feeds = small_feeds(ROWS, COLUMNS, seed=3)
    outputs = [np.empty(ROWS, np.float32), np.empty((ROWS, COLUMNS), np.int32)]
    arena = np.empty(ROWS * COLUMNS * 4 + 4096, np.uint8)
    ins = (ctypes.c_void_p * 2)(*(a.ctypes.data for a in feeds.values()))
    outs = (ctypes.c_void_p * 2)(*(a.ctypes.data for a in outputs))
    assert library.second_init(ctypes.c_void_p(arena.ctypes.data), None) == 0
    assert library.second_run(ctypes.c_void_p(arena.ctypes.data), ins, outs) == 0
    for array, want in zip(outputs, small_answer(feeds, 1).values(), strict=True):
        np.testing.assert_array_equal(array, want)


def test_run_threads_is_linked_only_where_it_is_used(folder: Path) -> None:
    (folder / "plain.c").write_text('#include "first.h"\nint main(void) { return first_run(0, 0, 0) == first_EINIT; }\n')
    subprocess.run(command(C, *C99, "plain.c", "-L.", "-lfirst", "-Wl,-Map=plain.map", "-o", "plain"), cwd=folder, check=True)
    text = (folder / "plain.map").read_text()
    assert "(first.o)" in text and "(first_threads.o)" not in text


SEPARATE = r"""
#include <stdio.h>
#include "small.h"

static union { unsigned char bytes[small_WEIGHTS_BYTES]; double align; } weights;
static unsigned char arena[small_ARENA_BYTES];

int main(void)
{
    FILE *file = fopen("small.weights", "rb");
    if (!file || fread(weights.bytes, 1, sizeof weights.bytes, file) < small_WEIGHTS_BYTES || fgetc(file) != EOF) return 1;
    fclose(file);
    if (small_init(arena, 0) != small_EWEIGHTS) return 2;
    if (small_init(arena, weights.bytes) != 0) return 3;
    weights.bytes[16] ^= 1;
    return small_init(arena, weights.bytes) == small_EWEIGHTS ? 0 : 4;
}
"""


def test_separate_weights_are_read_by_the_program(tmp_path: Path) -> None:
    write_bundle(small_bundle(find_target(runnable_targets()[0]), CompileOptions(separate_weights=True)), tmp_path)
    (tmp_path / "main.c").write_text(SEPARATE)
    subprocess.run(command(C, *C99, "main.c", "-L.", "-lsmall", "-o", "main"), cwd=tmp_path, check=True)
    assert subprocess.run(["./main"], cwd=tmp_path, check=False).returncode == 0


# How far below `here` the stack is touched by a call of each function, in the same place of the same thread.
STACK = r"""
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "first.h"

enum { SIZE = 1 << 18 };
static unsigned char stack[SIZE] __attribute__((aligned(4096)));
static unsigned char arena[first_ARENA_BYTES];
static float data[first_IN_GPU_0_DATA_COUNT], sum[first_OUT_SUM_COUNT];
static int more[first_IN_GPU_0_DATA_2_COUNT], parity[first_OUT_GPU_0_DATA_BYTES_COUNT];
static const void *in[] = {data, more};
static void *out[] = {sum, parity};
static long depth[4];

static void serial(void *ctx, void (*task)(void *arg, int part), void *arg, int parts)
{
    int part;
    (void)ctx;
    for (part = 0; part < parts; part++) task(arg, part);
}

static __attribute__((noinline)) int call(int which)
{
    switch (which) {
    case 1: return first_init(arena, 0);
    case 2: return first_run(arena, in, out);
    case 3: return first_run_threads(arena, in, out, serial, 0);
    default: return 0;
    }
}

static void *measure(void *unused)
{
    volatile unsigned char here = 0;
    int which;
    for (which = 0; which < 4; which++) {
        long used = (long)((unsigned char *)&here - stack), i;
        for (i = 0; i < used - 256; i++) ((volatile unsigned char *)stack)[i] = 0xA5;
        if (call(which) != 0) return unused;
        for (i = 0; i < used && ((volatile unsigned char *)stack)[i] == 0xA5; i++) {}
        depth[which] = used - i;
    }
    return 0;
}

int main(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    if (pthread_attr_setstack(&attributes, stack, SIZE) != 0) return 1;
    if (pthread_create(&thread, &attributes, measure, 0) != 0) return 2;
    pthread_join(thread, 0);
    printf("%ld %ld %ld %ld %d\n", depth[0], depth[1], depth[2], depth[3], first_STACK_BYTES);
    return 0;
}
"""


def test_the_stack_bound_holds_and_is_no_fantasy(folder: Path) -> None:
    (folder / "stack.c").write_text(STACK)
    subprocess.run(command(C, "-O1", "stack.c", "-L.", "-lfirst", "-pthread", "-o", "stack"), cwd=folder, check=True)
    words = subprocess.run(["./stack"], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    nothing, init, run, run_threads, bound = map(int, words)
    assert nothing == 256, "only what is left unpainted"
    assert run >= 4 * COLUMNS, "the kernel's own array is on the stack"
    caller, parallel_for = 64, 128  # of this test, between the measured place and the library's frames
    assert max(init, run, run_threads - parallel_for) - caller <= bound <= 1.5 * run
