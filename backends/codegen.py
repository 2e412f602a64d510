"""LLVM IR modules to object files, in worker processes; what LLVM complains about becomes an error, undefined symbols as well."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cortado.backends import worker
from cortado.backends.arm_attributes import independent_of_float_abi
from cortado.backends.cache import Cache, Entry, default_cache
from cortado.backends.symbols import read_symbols
from cortado.backends.workers import Reply, shared_pool
from cortado.compiler import lang, virtual
from cortado.compiler import target as targets
from cortado.compiler.target import Target
from cortado.errors import CortadoError, TargetError

# What an object may need from outside: nothing but, on Windows, what every program has (the mark of floating point, stack growth).
ALLOWED_UNDEFINED: Mapping[str, frozenset[str]] = {
    "elf": frozenset(),
    "macho": frozenset(),
    "coff": frozenset({"_fltused", "__chkstk"}),
    "wasm": frozenset({"__stack_pointer", "__linear_memory", "__indirect_function_table"}),
}
# Kernels come vectorised, unrolled and with common subexpressions removed. Simplifying instructions once makes code for small cores
# 5% smaller and their code generation a third faster; further passes gain nothing measurable, in time or in size.
PASSES = ("instruction_combine",)
LEVEL = 2
_FRAME = re.compile(r"stack frame size \((\d+)\) exceeds limit \(0\) in function '([^']+)'")
_UNRECOGNIZED = re.compile(r"^.*not a recognized.*$", re.MULTILINE)


@dataclass(frozen=True)
class ObjectFile:
    """frames: bytes of stack frame by symbol, without the return address that a call pushes; functions without a frame are absent."""

    name: str
    data: bytes
    frames: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Deferred:
    """LLVM IR text that is made when the cache does not know it. identity: decides the text, together with `_emitter`."""

    identity: str
    text: Callable[[], str] = field(compare=False)


Source = str | Deferred


def start_workers(plan: str) -> Callable[[], None]:
    """Start processes ahead of `compile_modules`, without waiting for them, unless this plan's code is likely to be in the cache.

    plan: says what is compiled. What is returned is to be called when its code is made: so the cache knows of it the next time.
    """
    cache = default_cache()
    key = hashlib.sha256(plan.encode()).hexdigest()
    if cache is None or cache.get(key) is None:
        shared_pool().start(_processors())
    return lambda: None if cache is None else cache.put(key, Entry(b"", ""))


def compile_modules(
    modules: Sequence[tuple[str, Source]], target: Target, jobs: int | None = None, beside: Sequence[ObjectFile] = ()
) -> list[ObjectFile]:
    """One object per (name, LLVM IR text), in order. jobs: processes at once, None for one per processor; never changes a byte.

    beside: objects made before that these may refer to.

    Raises TargetError where LLVM does not know the target's cpu or features, or where the objects together leave a symbol undefined;
    CortadoError where LLVM fails.
    """
    replies = _generate(modules, target, False, jobs)
    finish = independent_of_float_abi if target.family == "arm" else bytes
    objects = [
        ObjectFile(name, finish(reply.output), {symbol: int(size) for size, symbol in _FRAME.findall(reply.messages)})
        for (name, _), reply in zip(modules, replies, strict=True)
    ]
    check_symbols([*objects, *beside], target)
    return objects


def assembly(ir_text: str, target: Target) -> str:
    """The module as the target's assembly text."""
    text: str = _generate([("assembly", ir_text)], target, True, 1)[0].output
    return text


def llvmlite_version() -> str:
    """Of the package that brings LLVM."""
    import llvmlite

    return str(llvmlite.__version__)


def check_symbols(objects: Sequence[ObjectFile], target: Target) -> None:
    """Raise TargetError where something is neither defined by one of the objects nor to be had on every system of the format."""
    defined: set[str] = set(ALLOWED_UNDEFINED[target.object_format])
    wanted: dict[str, str] = {}
    for item in objects:
        symbols = read_symbols(item.data)
        defined |= symbols.defined
        wanted |= dict.fromkeys(symbols.undefined, item.name)
    missing = sorted(set(wanted) - defined)
    if missing:
        lines = ", ".join(f"{symbol} (module {wanted[symbol]})" for symbol in missing)
        raise TargetError(f"target {target.name}: the generated code calls functions that it does not bring along: {lines}")


def _generate(modules: Sequence[tuple[str, Source]], target: Target, as_assembly: bool, jobs: int | None) -> list[Reply]:
    request: dict[str, Any] = {
        "triple": target.triple, "cpu": target.cpu, "features": ",".join(target.features), "level": LEVEL, "abi": "",
        "passes": PASSES, "assembly": as_assembly,
    }  # fmt: skip
    requests = [{**request, "ir": ir_text} for _, ir_text in modules]
    replies = _replies(requests, None if as_assembly else default_cache(), jobs or _processors())
    for (name, _), reply in zip(modules, replies, strict=True):
        unknown = _UNRECOGNIZED.search(reply.messages)
        if unknown:
            raise TargetError(f"target {target.name}: LLVM says {unknown.group().strip()}")
        if reply.error:
            details = "\n".join([reply.error, *reply.messages.strip().splitlines()[:20]])
            raise CortadoError(f"target {target.name}, module {name}: code generation failed: {details}")
    return replies


def _replies(requests: Sequence[dict[str, Any]], cache: Cache | None, jobs: int) -> list[Reply]:
    """What the cache has, and the rest from the processes."""
    if cache is None:
        return shared_pool().run([_whole(request) for request in requests], jobs)
    keys = [_key(request) for request in requests]
    found = {key: Reply(entry.output, "", entry.messages) for key in set(keys) if (entry := cache.get(key)) is not None}
    wanted = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
    if wanted:
        for key, reply in zip(wanted, shared_pool().run([_whole(request) for request in wanted.values()], jobs), strict=True):
            found[key] = reply
            if not reply.error:
                cache.put(key, Entry(reply.output, reply.messages))
        cache.trim()
    return [found[key] for key in keys]


def _whole(request: dict[str, Any]) -> dict[str, Any]:
    """With its text."""
    source = request["ir"]
    return {**request, "ir": source.text()} if isinstance(source, Deferred) else request


def _key(request: Mapping[str, Any]) -> str:
    """A name for everything that decides the reply: the request, who generates the code, and how."""
    source = request["ir"]
    parts = [request, *_generator()]
    if isinstance(source, Deferred):
        parts = [{**request, "ir": source.identity}, *_generator(), _emitter()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _generator() -> tuple[str, str]:
    """The version of llvmlite, which brings its own LLVM, and the program that the processes run."""
    return llvmlite_version(), Path(worker.__file__).read_text(encoding="utf-8")


@functools.cache
def _emitter() -> str:
    """A hash of the sources that make texts from kernels: those of this package, and of the modules that it takes meanings from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for module in (lang, targets, virtual):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
