"""A bundle: the files that go to the device's project. Written so that an interrupted save never looks like a finished one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from cortado.compiler.program import ALIGNMENT
from cortado.errors import FormatError, OptionError
from cortado.runtime import archive
from cortado.runtime.manifest import FILE_NAME, Manifest, read_manifest
from cortado.runtime.memory import fresh_memory

PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Bundle:
    """files: contents by file name, all but the manifest."""

    manifest: Manifest
    files: Mapping[str, bytes | memoryview]

    @property
    def library(self) -> bytes | memoryview:
        return self.files[library_name(self.manifest.name)]

    @property
    def weights(self) -> bytes | memoryview | None:
        """The weights file; None where the library holds the weights."""
        return self.files.get(weights_name(self.manifest.name))


def library_name(name: str) -> str:
    return f"lib{name}.a"


def header_name(name: str) -> str:
    return f"{name}.h"


def weights_name(name: str) -> str:
    return f"{name}.weights"


def write_bundle(bundle: Bundle, folder: str | os.PathLike[str]) -> None:
    """Write or replace. The folder is made where it is missing; files in it that are no bundle's stay.

    Everything is first written under temporary names; then the old manifest goes, the files take their names, and the manifest comes
    last: at every moment the folder holds the old bundle, the new one, or files without a manifest, which `read_bundle` refuses.
    Raises OptionError where the folder cannot be made.
    """
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = next((path for path in (root, *root.parents) if path.is_file()), None)
        why = f"{is_file} is a file" if is_file is not None else error.strerror
        raise OptionError(f"{root} cannot be made: {why}; give a folder that the model is saved into") from None
    old = _listed_files(root)
    contents = {**bundle.files, FILE_NAME: bundle.manifest.to_text().encode()}
    temporary = {name: root / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        for name, data in contents.items():
            _write(temporary[name], data)
        (root / FILE_NAME).unlink(missing_ok=True)
        for name in bundle.files:
            os.replace(temporary[name], root / name)
        os.replace(temporary[FILE_NAME], root / FILE_NAME)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    for name in old - set(contents):
        with contextlib.suppress(OSError):
            (root / name).unlink()


def read_bundle(folder: str | os.PathLike[str], meanwhile: Callable[[Bundle], None] | None = None) -> Bundle:
    """Raises FormatError where the folder holds no bundle, or one that is incomplete, damaged or of another schema.

    meanwhile: called with the bundle while hashes are still computed. It must do nothing that damaged contents could make dangerous; what
    it raises is raised only if they are not damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FormatError(f"{root}: no such folder; give the one that `save` or `cortado compile` wrote")
    path = root / FILE_NAME
    if not path.is_file():
        raise FormatError(f"{root} holds no bundle: {FILE_NAME} is missing")
    manifest = read_manifest(path.read_bytes(), str(path))
    files: dict[str, memoryview] = {}
    hashes: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(1) as other:
        for name, info in manifest.files.items():
            try:
                files[name], hashes[name] = _read(root / _plain(name), info.nbytes, other)
            except OSError as error:
                raise FormatError(f"{root}: file {name} of the bundle cannot be read: {error.strerror}") from error
        bundle = Bundle(manifest, files)
        failed: Exception | None = None
        if meanwhile is not None and library_name(manifest.name) in files:
            try:
                meanwhile(bundle)
            except Exception as error:
                failed = error
    for name, info in manifest.files.items():
        if len(files[name]) != info.nbytes or hashes[name].result() != info.sha256:
            raise FormatError(
                f"{root / name} is not the file that the manifest describes ({len(files[name])} bytes, {info.nbytes} expected)"
            )
    if library_name(manifest.name) not in files:
        raise FormatError(f"{path} lists no {library_name(manifest.name)}")
    if manifest.weights == "separate" and weights_name(manifest.name) not in files:
        raise FormatError(f"{path} lists no {weights_name(manifest.name)}")
    if failed is not None:
        raise failed
    return bundle


def _write(path: Path, data: bytes | memoryview) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, nbytes: int, other: ThreadPoolExecutor) -> tuple[memoryview, Future[str]]:
    """The contents, in memory that starts where makes weights begin at a cache line, and their SHA-256, which the other thread computes.
    nbytes: how many there should be.

    A library's weights are in its last member, whose parts begin at multiples of their alignment from its start.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != nbytes:
            return memoryview(file.read()), other.submit(str)
        first = _last_member(file, nbytes) if file.read(len(archive.MAGIC)) == archive.MAGIC else 0
        memory = fresh_memory(nbytes + ALIGNMENT)
        start = (-memory.ctypes.data - first) % ALIGNMENT
        view = memory.data[start : start + nbytes]
        file.seek(0)
        return _read_and_hash(file, view, other)


def _read_and_hash(file: BufferedReader, view: memoryview, other: ThreadPoolExecutor) -> tuple[memoryview, Future[str]]:
    """What of the file fits into the view, and its SHA-256. The other thread takes what there is whenever it is done with what there was.

    Between pieces it needs the interpreter, which a thread at work gives up every few milliseconds only. So it has begun with all the rest
    when this returns.
    """
    found, started = hashlib.sha256(), threading.Event()
    at = given = 0
    busy: Future[None] | None = None
    while at < len(view) and (count := file.readinto(view[at : at + PIECE])):
        at += count
        if at > PIECE and (busy is None or busy.done()):
            busy, given = other.submit(found.update, view[given:at]), at
    if at <= PIECE:
        found.update(view[:at])
        return view[:at], other.submit(found.hexdigest)
    if busy is not None:
        busy.result()

    def rest() -> str:
        started.set()
        found.update(view[given:at])
        return found.hexdigest()

    last = other.submit(rest)
    started.wait()
    return view[:at], last


def _last_member(file: BufferedReader, nbytes: int) -> int:
    """Where the contents of a library's last member begin; anything where it is damaged, which its hash will tell."""
    at = start = len(archive.MAGIC)
    while at < nbytes:
        file.seek(at)
        size = file.read(archive.HEADER)[48:58].strip()
        if not size.isdigit():
            break
        start = at + archive.HEADER
        at = start + int(size) + int(size) % 2
    return start


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name):
        raise FormatError(f"the manifest lists a file of the name {name!r}")
    return name


def _listed_files(root: Path) -> set[str]:
    """The files of the bundle that is there now, as far as its manifest can be read."""
    try:
        listed = json.loads((root / FILE_NAME).read_bytes())["files"]
        return {_plain(name) for name in listed}
    except (OSError, ValueError, KeyError, TypeError, FormatError):
        return set()
