"""Program -> Bundle: the last part of the way, read top to bottom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cortado import __version__
from cortado.backends.codegen import Deferred, ObjectFile, Source, compile_modules, llvmlite_version
from cortado.backends.dispatch import Variant, dispatch_modules, level_modules, variants_of
from cortado.backends.entry import arena_bytes, entry_modules, location_of, parts_of
from cortado.backends.llvm import emit_module, identity_of
from cortado.backends.symbols import read_symbols
from cortado.backends.weights import HEADER_BYTES, place_weights, weights_header, weights_module
from cortado.compiler.graph import Graph
from cortado.compiler.lang import Block, Kernel
from cortado.compiler.levels import weight_bytes
from cortado.compiler.options import CompileOptions
from cortado.compiler.program import Argument, Program, Step
from cortado.compiler.target import Target
from cortado.compiler.text import format_graph
from cortado.runtime.archive import Member, write_archive
from cortado.runtime.bundle import Bundle, header_name, library_name, weights_name
from cortado.runtime.header import Facts, write_header
from cortado.runtime.manifest import LevelInfo, Manifest, Sizes, StepInfo, TargetInfo, file_info
from cortado.runtime.names import model_identifier
from cortado.runtime.sizes import code_bytes
from cortado.runtime.stack import dispatched_stack_bytes, stack_bytes

MODULE_INSTRUCTIONS = 1000  # kernels share an object up to this size: small enough to spread over processes, yet few
LARGEST_LINKED = 1 << 30  # bytes of weights: beyond, 32-bit distances inside a linked program run out


def build(
    program: Program,
    target: Target,
    options: CompileOptions,
    source: Mapping[str, str],
    preprocess: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    make_objects: Callable[..., list[ObjectFile]] = compile_modules,
    levels: Sequence[Program] = (),
) -> Bundle:
    """Machine code, entry points, weights, library, header and manifest of a program.

    source, preprocess, quantization: what the manifest says of the origin, of how pictures become the input and of int8. make_objects:
    LLVM IR to objects, as compile_modules. levels: of a target that has some, the programs, which share their weights; `program` is the
    last of them. The bytes depend on the arguments and the versions of cortado and LLVM alone.
    """
    name = model_identifier(options.name or program.name)
    model_hash = hash_of(*(levels or [program]))
    linked = not options.separate_weights and len(program.weights) <= LARGEST_LINKED

    variants = variants_of(levels, target, name)
    parts = [(variant.target, _level_modules(variant, model_hash, options.threads)) for variant in variants]
    if variants:
        parts.append((target, [(m.name, m.text) for m in dispatch_modules(variants, target, name, model_hash, linked)]))
    else:
        entries = entry_modules(program, target, name, model_hash, linked, options.threads)
        parts.append((target, [*((entry.name, entry.text) for entry in entries), *_kernel_modules(program, target, name)]))
    if linked:
        parts[-1][1].append((f"{name}_weights.o", weights_module(name, target.triple, model_hash, len(program.weights))))
    objects: list[ObjectFile] = []
    code: list[int] = []
    for part_target, modules in parts:
        made = make_objects(modules, part_target, **({"beside": objects} if objects else {}))
        code.append(sum(code_bytes(item.data) for item in made if item.name != f"{name}_weights.o"))
        objects += made

    members = [Member(item.name, item.data, tuple(sorted(read_symbols(item.data).defined))) for item in objects]
    if linked:
        last = members[-1]
        members[-1] = Member(last.name, place_weights(last.data, model_hash, program.weights), last.symbols)

    frames = {symbol: size for item in objects for symbol, size in item.frames.items()}
    sizes = Sizes(
        sum(code),
        HEADER_BYTES + len(program.weights),
        max(arena_bytes(one) for one in levels or [program]),
        dispatched_stack_bytes(variants, frames, target, name) if variants else stack_bytes(program, frames, target, name),
    )
    infos = tuple(_level_info(variant, size, options.threads) for variant, size in zip(variants, code, strict=False))
    facts = Facts(name, program.inputs, program.outputs, model_hash, target.name, linked, sizes)
    files = {
        library_name(name): write_archive(members, target.object_format),
        header_name(name): write_header(facts).encode("ascii"),
    }
    if not linked:
        files[weights_name(name)] = weights_header(model_hash, len(program.weights)) + program.weights
    return Bundle(manifest_of(program, target, options, source, preprocess, quantization, facts, files, infos), files)


def _kernel_modules(program: Program, target: Target, prefix: str) -> list[tuple[str, Source]]:
    def module(kernels: list[Kernel]) -> Source:
        return Deferred(identity_of(kernels, target, prefix), lambda: emit_module(kernels, target, prefix))

    return [(f"{prefix}_k{number}.o", module(kernels)) for number, kernels in enumerate(chunks(kernels_of(program)))]


def _level_modules(variant: Variant, model_hash: int, threads: int) -> list[tuple[str, Source]]:
    entries: list[tuple[str, Source]] = [(entry.name, entry.text) for entry in level_modules(variant, model_hash, threads)]
    return [*entries, *_kernel_modules(variant.program, variant.target, variant.prefix)]


def _level_info(variant: Variant, code: int, threads: int) -> LevelInfo:
    program, target = variant.program, variant.target
    steps = tuple(step_info(step, program, threads) for step in program.steps)
    return LevelInfo(
        target.name, target.features, variant.serves, variant.prefix, code, weight_bytes(program), arena_bytes(program), steps
    )


def source_of(graph: Graph) -> dict[str, str]:
    """The origin for the manifest: a graph's name, and a hash of its text and constants as loaded, however the file spells them."""
    digest = hashlib.sha256(format_graph(graph).encode())
    for node in graph.nodes():
        if node.op == "constant":
            digest.update(np.ascontiguousarray(node.attrs["value"]).reshape(-1).view(np.uint8).data)
    return {"name": graph.name, "sha256": digest.hexdigest()}


def hash_of(*programs: Program) -> int:
    """64 bits that change whenever kernels, plan, interface or weights do. A kernel's name is unique by its content.

    Several programs have the same weights.
    """
    digest = hashlib.sha256(programs[0].weights)
    for program in programs:
        for part in (program.inputs, program.outputs, program.buffers, program.arena_bytes):
            digest.update(f"{part!r}\n".encode())
        for step in program.steps:
            digest.update(f"{step.kernel.name} {step.args!r} {step.tasks} {step.guards!r} {step.limit!r}\n".encode())
    return int.from_bytes(digest.digest()[:8], "little")


def kernels_of(program: Program) -> tuple[Kernel, ...]:
    """Every distinct kernel, callees before callers, in order of first use."""
    found: dict[str, Kernel] = {}
    for step in program.steps:
        for kernel in (*step.kernel.callees(), step.kernel):
            found.setdefault(kernel.name, kernel)
    return tuple(found.values())


def chunks(kernels: Sequence[Kernel]) -> Iterable[list[Kernel]]:
    """Runs of kernels, cut by their sizes alone: the cut never depends on the machine."""
    chunk: list[Kernel] = []
    size = 0
    for kernel in kernels:
        count = _instructions(kernel.body)
        if chunk and size + count > MODULE_INSTRUCTIONS:
            yield chunk
            chunk, size = [], 0
        chunk.append(kernel)
        size += count
    if chunk:
        yield chunk


def _instructions(block: Block) -> int:
    return sum(1 + sum(map(_instructions, inst.blocks)) for inst in block.body)


def step_info(step: Step, program: Program, threads: int) -> StepInfo:
    def place(argument: Argument) -> str:
        start, offset = location_of(argument, program)
        return f"{start}+{offset}"

    limit = step.limit
    return StepInfo(
        name=step.name,
        op=step.op,
        origin=step.origin,
        kernel=step.kernel.name,
        macs=step.macs,
        tasks=step.tasks,
        parts=parts_of(step, program, threads),
        shape=step.shape,
        args=tuple(map(place, step.args)),
        guards=tuple(("" if guard.wanted else "!") + place(guard.place) for guard in step.guards),
        count="" if limit is None else place(limit.count),
        rows=0 if limit is None else limit.rows,
        groups=0 if limit is None else limit.groups,
    )


def manifest_of(
    program: Program,
    target: Target,
    options: CompileOptions,
    source: Mapping[str, str],
    preprocess: Mapping[str, Any] | None,
    quantization: Mapping[str, Any] | None,
    facts: Facts,
    files: Mapping[str, bytes],
    levels: tuple[LevelInfo, ...] = (),
) -> Manifest:
    steps = tuple(step_info(step, program, options.threads) for step in program.steps)
    return Manifest(
        name=facts.name,
        model_hash=f"{facts.model_hash:016x}",
        versions={"cortado": __version__, "llvmlite": llvmlite_version()},
        source=source,
        options=asdict(options),
        preprocess=preprocess,
        quantization=quantization,
        target=TargetInfo(target.name, target.triple, target.cpu, target.features),
        weights="linked" if facts.linked else "separate",
        inputs=program.inputs,
        outputs=program.outputs,
        sizes=facts.sizes,
        steps=steps,
        files={name: file_info(data) for name, data in files.items()},
        levels=levels,
    )
