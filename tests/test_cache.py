"""The cache of generated code: found again, bounded, safe against damage, never a difference in the bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortado.backends import codegen
from cortado.backends.cache import Cache, Entry, default_cache
from cortado.backends.llvm import identity_of
from cortado.backends.targets import find_target
from cortado.backends.workers import Reply
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.lang import Kernel
from cortado.compiler.target import Target
from cortado.errors import CortadoError

KEY, OTHER = "0" * 64, "1" * 64
IR = 'target triple = "x86_64-unknown-linux-gnu"\n\ndefine i32 @f(i32 %a) nounwind {{\n  %b = add i32 %a, {}\n  ret i32 %b\n}}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTADO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    """Stands for the pool: says how many requests reach it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        pool = codegen.shared_pool()

        def run(requests: list[dict], jobs: int) -> list[Reply]:
            self.requests += len(requests)
            return type(pool).run(pool, requests, jobs)

        monkeypatch.setattr(pool, "run", run)


def modules(*numbers: int) -> list[tuple[str, str]]:
    return [(f"m{n}.o", IR.format(n).replace("@f", f"@f{n}")) for n in numbers]


def recorded(target: Target, number: int) -> Kernel:
    k = KernelBuilder("test", target)
    out = k.param("out")
    k.store(out, k.index(number))
    return k.finish()


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "made" / "when needed")
    for output in (b"", b"abc", b"abc" + bytes(1 << 20) + b"def", bytes(1 << 17), b"x" + bytes(65536)):
        cache.put(KEY, Entry(output, "stack frame: 16\n"))
        assert cache.get(KEY) == Entry(output, "stack frame: 16\n")
    assert cache.get(OTHER) is None
    cache.put(OTHER, Entry(b"a" + bytes(10_000_000) + b"b", ""))
    assert (tmp_path / "made" / "when needed" / OTHER).stat().st_size < 1000, "room for weights takes no room"


@pytest.mark.parametrize("change", ["cut", "flip", "empty", "longer", "lengths"])
def test_damage_is_noticed(tmp_path: Path, change: str) -> None:
    cache = Cache(tmp_path)
    cache.put(KEY, Entry(b"some object" * 100, "messages"))
    path = tmp_path / KEY
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[-1] ^= 1
    if change == "lengths":
        data[32] ^= 1
    path.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"!"}.get(change, data))
    assert cache.get(KEY) is None
    assert not path.exists()
    cache.put(KEY, Entry(b"again", ""))
    assert cache.get(KEY) == Entry(b"again", "")


def test_what_was_not_used_longest_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=5000)
    (tmp_path / "notes.txt").write_bytes(bytes(100_000))
    for n in range(6):
        cache.put(f"{n:064x}", Entry(os.urandom(1000), ""))
        os.utime(tmp_path / f"{n:064x}", (n + 1, n + 1))
    assert cache.get(f"{0:064x}") is not None  # used now
    cache.trim()
    left = {n for n in range(6) if (tmp_path / f"{n:064x}").exists()}
    assert left == {0, 4, 5}
    assert (tmp_path / "notes.txt").exists(), "what is no entry stays"


def test_variable_names_a_folder_or_switches_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for off in ("0", "off", "OFF"):
        monkeypatch.setenv("CORTADO_CACHE", off)
        assert default_cache() is None
    monkeypatch.setenv("CORTADO_CACHE", str(tmp_path / "here"))
    cache = default_cache()
    assert cache is not None
    cache.put(KEY, Entry(b"1", ""))
    assert [path.name for path in (tmp_path / "here").iterdir()] == [KEY]
    monkeypatch.delenv("CORTADO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "user"))
    if sys.platform != "darwin":
        cache = default_cache()
        assert cache is not None
        cache.put(KEY, Entry(b"1", ""))
        assert [path.name for path in (tmp_path / "user").rglob("0*")] == [KEY]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "below")
    cache.put(KEY, Entry(b"1", ""))
    assert cache.get(KEY) is None
    cache.trim()


def test_generated_code_is_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target("x86-64-v3")
    counted = Counted(monkeypatch)
    first = codegen.compile_modules(modules(1, 2), target)
    assert counted.requests == 2
    assert codegen.compile_modules(modules(1, 2), target) == first
    assert counted.requests == 2
    third = codegen.compile_modules(modules(1, 3, 2), target)
    assert counted.requests == 3
    assert [third[0].data, third[2].data] == [item.data for item in first]
    monkeypatch.setenv("CORTADO_CACHE", "off")
    assert codegen.compile_modules(modules(1, 3, 2), target) == third, "the same bytes without the cache"
    assert counted.requests == 6


def test_everything_that_decides_the_bytes_is_in_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    made = [codegen.compile_modules(modules(1), find_target(name))[0].data for name in ("x86-64", "x86-64-v3", "x86-64-v4")]
    assert counted.requests == 3
    for name in ("PASSES", "LEVEL"):
        monkeypatch.setattr(codegen, name, {"PASSES": (), "LEVEL": 1}[name])
        codegen.compile_modules(modules(1), find_target("x86-64-v3"))
    assert counted.requests == 5
    monkeypatch.setattr(codegen, "_generator", lambda: ("another version", ""))
    codegen.compile_modules(modules(1), find_target("x86-64-v3"))
    assert counted.requests == 6
    assert len(made) == 3


def test_a_deferred_text_is_made_only_where_the_cache_does_not_know_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, made = find_target("x86-64-v3"), []
    (_, text), (_, other) = modules(1, 2)

    def code(identity: str, text: str) -> bytes:
        def emit() -> str:
            made.append(identity)
            return text

        return codegen.compile_modules([("m.o", codegen.Deferred(identity, emit))], target)[0].data

    first = code("one", text)
    assert code("one", text) == first and made == ["one"]
    assert code("two", other) != first and made == ["one", "two"]
    monkeypatch.setattr(codegen, "_emitter", lambda: "another version of this package")
    assert code("one", text) == first and made == ["one", "two", "one"]
    monkeypatch.setenv("CORTADO_CACHE", "off")
    assert code("one", text) == first and made == ["one", "two", "one", "one"]


def test_kernels_with_one_identity_have_one_text() -> None:
    """Names hold the beginning of a kernel's digest alone; an identity holds all of it, the order, the target and the prefix."""
    v3, v4 = find_target("x86-64-v3"), find_target("x86-64-v4")
    kernels = [recorded(v3, number) for number in (1, 2)]
    identities = [
        identity_of(kernels, v3, "net"), identity_of(kernels[::-1], v3, "net"), identity_of(kernels[:1], v3, "net"),
        identity_of(kernels, v4, "net"), identity_of(kernels, v3, "other"),
    ]  # fmt: skip
    assert len(set(identities)) == 5 and all(kernel.digest in identities[0] for kernel in kernels)
    assert identity_of([recorded(v3, number) for number in (1, 2)], v3, "net") == identities[0]


def test_failures_are_not_kept(folder: Path) -> None:
    for _ in range(2):
        with pytest.raises(CortadoError):
            codegen.compile_modules([("bad.o", "this is no IR")], find_target("x86-64-v3"))
    assert not folder.exists() or not list(folder.iterdir())


def test_a_damaged_entry_is_generated_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target("x86-64-v3")
    counted = Counted(monkeypatch)
    good = codegen.compile_modules(modules(1), target)
    (entry,) = folder.iterdir()
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 0xFF
    entry.write_bytes(data)
    assert codegen.compile_modules(modules(1), target) == good
    assert codegen.compile_modules(modules(1), target) == good
    assert counted.requests == 2


def test_many_writers_leave_whole_entries(tmp_path: Path) -> None:
    """Two processes of several threads write and read the same keys; nothing damaged is ever seen, nothing is left over."""
    script = """
import sys, threading
from pathlib import Path
from cortado.backends.cache import Cache, Entry
cache, bad = Cache(Path(sys.argv[1])), []
def work():
    for n in range(60):
        key = f"{n % 5:064x}"
        entry = cache.get(key)
        if entry is not None and entry != Entry(bytes([n % 5]) * 50000, "m"):
            bad.append(key)
        cache.put(key, Entry(bytes([n % 5]) * 50000, "m"))
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
sys.exit(len(bad))
"""
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path.parent) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n:064x}" for n in range(5)]
    for n in range(5):
        assert Cache(tmp_path).get(f"{n:064x}") == Entry(bytes([n]) * 50000, "m")
