"""What a bundle holds, byte for byte, and that a damaged or half-written one is never taken for a whole one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import FIRST, PARITY, SECOND, SUM, small_bundle, small_program, small_weights

from cortado.backends.symbols import read_symbols
from cortado.backends.targets import find_target
from cortado.build import MODULE_INSTRUCTIONS, chunks, hash_of, kernels_of
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.lang import F32, Kernel
from cortado.compiler.options import CompileOptions
from cortado.compiler.types import TensorInfo
from cortado.errors import FormatError, TargetError
from cortado.runtime.archive import Member, read_archive, write_archive
from cortado.runtime.bundle import PIECE, Bundle, _read, library_name, read_bundle, write_bundle
from cortado.runtime.elf import WRITE, read_object
from cortado.runtime.manifest import SCHEMA, FileInfo, LevelInfo, Manifest, Sizes, StepInfo, TargetInfo, read_manifest
from cortado.runtime.names import blob_identifiers, model_identifier

TARGETS = ("x86-64-v3", "cortex-m4", "aarch64", "aarch64@macos", "x86-64@windows")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle(find_target("x86-64"))


# --- names ---


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("mobilenet_v2", "mobilenet_v2"),
        ("3d-net", "net_3d_net"),
        ("", "net"),
        ("_x", "x"),
        ("naïve.net", "na_ve_net"),
        ("__", "net"),
    ],
)
def test_the_model_s_name_becomes_a_c_identifier(name: str, want: str) -> None:
    assert model_identifier(name) == want


def test_blob_names_become_distinct_identifiers() -> None:
    assert blob_identifiers(["gpu_0/data", "gpu_0.data", "gpu_0_data"]) == ["GPU_0_DATA", "GPU_0_DATA_2", "GPU_0_DATA_3"]
    assert blob_identifiers(["x", "x_bytes", "X"]) == ["X", "X_BYTES_2", "X_2"]
    assert blob_identifiers(["x_2", "x", "x"]) == ["X_2", "X", "X_3"]
    assert blob_identifiers(["größe", "", "1"]) == ["GR_SSE", "_", "1"]


# --- archives ---


@pytest.mark.parametrize("object_format", ["elf", "macho", "coff", "wasm"])
def test_archives_read_back(object_format: str) -> None:
    members = [
        Member("a.o", b"\x7fELF1", ("f", "g")),
        Member("a_name_of_more_than_16.o", b"xy" * 8, ("h",)),
        Member("b.o", b"\0" * 24),
    ]
    library = write_archive(members, object_format)
    assert library == write_archive(members, object_format)
    for (name, data), member in zip(read_archive(library), members, strict=True):
        assert name == member.name
        assert data[: len(member.data)] == member.data and not data[len(member.data) :].strip(b"\0")


@pytest.mark.parametrize("damage", [slice(0, 4), slice(56, 58), slice(66, 68)])
def test_damaged_archives_are_refused(bundle: Bundle, damage: slice) -> None:
    library = bytearray(bundle.library)
    library[damage] = b"?" * len(library[damage])
    with pytest.raises(FormatError):
        read_archive(bytes(library))
    with pytest.raises(FormatError):
        read_archive(bundle.library[:-10])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.skipif(shutil.which("llvm-nm") is None, reason="llvm-nm is not installed")
def test_other_tools_find_every_symbol_in_the_index(name: str, tmp_path: Path) -> None:
    made = small_bundle(find_target(name))
    (tmp_path / "lib.a").write_bytes(made.library)
    command = ["llvm-nm", "--print-armap", str(tmp_path / "lib.a")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    index = set(re.findall(r"^(\S+) in (\S+)$", listed, re.MULTILINE))
    assert index == {(s, member) for member, data in read_archive(made.library) for s in read_symbols(data).defined}
    assert {"small_init", "small_run", "small_run_threads"} <= {symbol.removeprefix("_") for symbol, _ in index}


# --- contents ---


@pytest.mark.parametrize("name", ["x86-64-v4", "cortex-m4", "aarch64"])
def test_no_object_has_memory_that_can_be_written(name: str) -> None:
    for member, data in read_archive(small_bundle(find_target(name)).library):
        writable = [s.name for s in read_object(data).sections if s.flags & WRITE and s.nbytes]
        assert not writable, member


@pytest.mark.parametrize("name", TARGETS)
def test_the_weights_in_the_library_are_those_of_the_program(name: str) -> None:
    made = small_bundle(find_target(name))
    (data,) = [data for member, data in read_archive(made.library) if member == "small_weights.o"]
    program = small_program(find_target(name))
    at = data.index(b"cortado\0")
    assert data[at + 16 : at + 24] == bytes.fromhex(made.manifest.model_hash)[::-1]
    assert data[at + 64 : at + 64 + len(program.weights)] == program.weights
    assert small_weights(37).tobytes() in data
    assert made.manifest.sizes.weights == 64 + len(program.weights)


def test_separate_weights_are_a_file(tmp_path: Path) -> None:
    target = find_target("cortex-m4")
    made = small_bundle(target, CompileOptions(separate_weights=True))
    write_bundle(made, tmp_path)
    data = (tmp_path / "small.weights").read_bytes()
    assert data[64:] == small_program(target).weights and len(data) == made.manifest.sizes.weights
    assert "small_weights.o" not in [name for name, _ in read_archive(made.library)]
    assert re.search(rf"small_MODEL_HASH UINT64_C\(0x{made.manifest.model_hash}\)", (tmp_path / "small.h").read_text())


def test_the_hash_changes_with_everything_that_matters() -> None:
    target = find_target("x86-64")
    program = small_program(target)
    others = [
        replace(program, weights=program.weights[:-1] + b"\x01"),
        replace(program, arena_bytes=program.arena_bytes + 64),
        replace(program, steps=program.steps[:-1]),
        replace(program, inputs=(program.inputs[0], (SECOND, TensorInfo((6, 37), "float32")))),
        small_program(find_target("x86-64"), columns=38),
    ]
    assert len({hash_of(p) for p in (program, *others)}) == 1 + len(others)
    assert hash_of(program) == hash_of(small_program(target, name="other")), "the name is no part of the model"


def test_kernels_are_spread_by_size_alone() -> None:
    target = find_target("x86-64")

    def kernel(number: int, loads: int) -> Kernel:
        k = KernelBuilder("big", target)
        x = k.param("x")
        for i in range(loads):
            k.store(x, k.load(x, F32, i + number), i)
        return k.finish()

    kernels = [kernel(n, loads) for n, loads in enumerate((10, MODULE_INSTRUCTIONS, 10, 10, MODULE_INSTRUCTIONS // 2 - 15, 10))]
    assert [[kernels.index(k) for k in chunk] for chunk in chunks(kernels)] == [[0], [1], [2, 3], [4, 5]]
    assert list(chunks([])) == []
    program = small_program(target)
    assert [k.family for k in kernels_of(program)] == ["scale_row", "scale", "reduce", "parity"]


BUILD = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from programs import small_bundle
from cortado.backends.targets import find_target
bundle = small_bundle(find_target(sys.argv[2]))
files = {**bundle.files, "manifest.json": bundle.manifest.to_text().encode()}
print(*(f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(files.items())), sep="\\n")
"""


@pytest.mark.parametrize("name", ["x86-64-v3", "cortex-m4"])
def test_two_processes_make_the_same_bytes(name: str, tmp_path: Path) -> None:
    outputs = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", BUILD, str(Path(__file__).parent), name]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=folder, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and outputs[0].count("\n") == 3


def test_the_manifest_says_what_is_there(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path)
    plain = json.loads((tmp_path / "manifest.json").read_text())
    assert plain["schema"] == SCHEMA and plain["name"] == "small" and plain["weights"] == "linked"
    assert [(t["name"], t["identifier"]) for t in plain["inputs"]] == [(FIRST, "GPU_0_DATA"), (SECOND, "GPU_0_DATA_2")]
    assert [(t["name"], t["identifier"]) for t in plain["outputs"]] == [(SUM, "SUM"), (PARITY, "GPU_0_DATA_BYTES")]
    assert [(s["name"], s["origin"], s["macs"]) for s in plain["steps"]] == [
        ("scaled", ["scaled/origin"], 222), ("sum", ["sum/origin"], 222), ("parity", ["parity/origin"], 0),
    ]  # fmt: skip
    for name, info in plain["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == info["sha256"]
    assert set(plain["files"]) | {"manifest.json"} == set(os.listdir(tmp_path)) == {"libsmall.a", "small.h", "manifest.json"}
    assert read_manifest((tmp_path / "manifest.json").read_bytes(), "m") == bundle.manifest
    assert str(tmp_path) not in (tmp_path / "manifest.json").read_text()


# --- folders ---


def test_saving_replaces_a_bundle_and_keeps_other_files(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_bundle(small_bundle(find_target("x86-64"), CompileOptions(name="older", separate_weights=True)), folder)
    (folder / "main.c").write_text("int main(void) { return 0; }")
    assert (folder / "older.weights").is_file()
    write_bundle(bundle, folder)
    assert set(os.listdir(folder)) == {"main.c", "libsmall.a", "small.h", "manifest.json"}
    assert read_bundle(folder).files == bundle.files


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", range(6))
def test_an_interrupted_save_leaves_the_old_bundle_or_none(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The save is cut at its first write, second write ... first rename ... ."""
    old = small_bundle(find_target("x86-64"), seed=5)
    write_bundle(old, tmp_path)
    calls = 0

    def counted(function):  # type: ignore[no-untyped-def]
        def wrapper(*args):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > at:
                raise Interrupted
            return function(*args)

        return wrapper

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    with pytest.raises(Interrupted):
        write_bundle(bundle, tmp_path)
    assert set(os.listdir(tmp_path)) <= {"libsmall.a", "small.h", "manifest.json"}
    if at <= 2:  # nothing but temporary files was written
        assert read_bundle(tmp_path).files == old.files
    else:
        with pytest.raises(FormatError, match=r"manifest\.json is missing"):
            read_bundle(tmp_path)
    monkeypatch.undo()
    write_bundle(bundle, tmp_path)
    assert read_bundle(tmp_path).files == bundle.files


@pytest.mark.parametrize("name", ["libsmall.a", "small.h", "manifest.json"])
@pytest.mark.parametrize("how", ["changed", "shortened", "missing", "empty"])
def test_damaged_bundles_are_refused(bundle: Bundle, tmp_path: Path, name: str, how: str) -> None:
    write_bundle(bundle, tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "missing":
        path.unlink()
    else:
        changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"changed": changed, "shortened": data[:middle], "empty": b""}[how])
    with pytest.raises(FormatError, match=re.escape(name)):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "null", '{"schema": 99}', f'{{"schema": {SCHEMA}}}', f'{{"schema": {SCHEMA}, "checksum": 3, "files": 0}}'],
)
def test_manifests_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FormatError, match=r"manifest\.json"):
        read_bundle(tmp_path)


def test_bundles_of_another_version_say_what_to_do() -> None:
    """As they came: with fields missing, and with a checksum that fits."""
    for schema, words in ((1, "Compile the model again"), (SCHEMA + 1, "Install a newer cortado")):
        plain: dict[str, Any] = {"schema": schema, "versions": {"cortado": "0.0.7"}, "steps": [{"name": "conv1"}]}
        plain["checksum"] = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        text = json.dumps(plain).encode()
        with pytest.raises(FormatError) as caught:
            read_manifest(text, "some/manifest.json")
        message = str(caught.value)
        for part in ("some/manifest.json", "cortado 0.0.7", f"has schema {schema}", f"reads schema {SCHEMA}", words):
            assert part in message
        assert "KeyError" not in message


def test_the_schema_goes_up_with_every_field() -> None:
    """Fields of all records of the manifest; where they change, SCHEMA must, and the new ones belong here."""
    records = (Manifest, LevelInfo, StepInfo, Sizes, TargetInfo, FileInfo, TensorInfo)
    found = {record.__name__: " ".join(field.name for field in fields(record)) for record in records}
    assert (SCHEMA, found) == (
        3,
        {
            "Manifest": "name model_hash versions source options preprocess quantization target weights inputs outputs sizes steps files levels",
            "LevelInfo": "name features serves prefix code weights arena steps",
            "StepInfo": "name op origin kernel macs tasks parts shape args guards count rows groups",
            "Sizes": "code weights arena stack",
            "TargetInfo": "name triple cpu features",
            "FileInfo": "nbytes sha256",
            "TensorInfo": "shape dtype layout scale zero_point count",
        },
    )


def test_a_manifest_cannot_name_files_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    files = {f"../{name}": info for name, info in bundle.manifest.files.items()}
    (tmp_path / "manifest.json").write_text(replace(bundle.manifest, files=files).to_text())
    with pytest.raises(FormatError, match=r"\.\./"):
        read_bundle(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(FormatError, match="no such folder"):
            read_bundle(folder)


def test_code_bytes_are_those_of_the_linked_sections(bundle: Bundle) -> None:
    expected = 0
    for name, data in read_archive(bundle.library):
        sections = read_object(data).sections
        expected += sum(s.nbytes for s in sections if s.flags & 2) if name != "small_weights.o" else 0
    assert bundle.manifest.sizes.code == expected > 300


def test_large_files_are_read_whole_and_hashed(tmp_path: Path) -> None:
    for nbytes in (0, 5, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7):
        data = np.random.default_rng(nbytes).bytes(nbytes)
        (tmp_path / "file").write_bytes(data)
        with ThreadPoolExecutor(1) as other:
            view, sha256 = _read(tmp_path / "file", nbytes, other)
        assert bytes(view) == data and sha256.result() == hashlib.sha256(data).hexdigest()


def test_what_is_done_meanwhile_never_hides_damage(bundle: Bundle, tmp_path: Path) -> None:
    seen: list[Bundle] = []

    def fail(bundle: Bundle) -> None:
        seen.append(bundle)
        raise TargetError("not here")

    write_bundle(bundle, tmp_path)
    read_bundle(tmp_path, seen.append)
    assert {name: bytes(data) for name, data in seen.pop().files.items()} == dict(bundle.files)
    with pytest.raises(TargetError, match="not here"):
        read_bundle(tmp_path, fail)
    library = tmp_path / library_name(bundle.manifest.name)
    library.write_bytes(library.read_bytes()[:-1] + b"?")
    with pytest.raises(FormatError, match="not the file"):
        read_bundle(tmp_path, fail)
    assert len(seen) == 2
