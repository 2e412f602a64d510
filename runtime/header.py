"""NAME.h: everything a C99 or C++ program needs to call the library. Macros are constant expressions, usable for static arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cortado.backends.entry import WEIGHTS_ALIGNMENT
from cortado.backends.status import ECPU, EINIT, EWEIGHTS
from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.runtime.manifest import Sizes
from cortado.runtime.names import blob_identifiers

_C_TYPE = {
    "float32": "float", "float64": "double", "float16": "uint16_t", "bfloat16": "uint16_t", "int8": "int8_t", "uint8": "uint8_t",
    "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t", "int64": "int64_t", "bool": "uint8_t",
}  # fmt: skip
_BITS_ONLY = {"float16": "IEEE half bits", "bfloat16": "bfloat16 bits", "bool": "0 or 1"}


@dataclass(frozen=True)
class Facts:
    """What the header states. target: its name. linked: the library holds the weights."""

    name: str
    inputs: tuple[tuple[str, TensorInfo], ...]
    outputs: tuple[tuple[str, TensorInfo], ...]
    model_hash: int
    target: str
    linked: bool
    sizes: Sizes


def write_header(facts: Facts) -> str:
    name, guard = facts.name, f"CORTADO_{facts.name}_H"
    sizes = (
        ("ARENA_BYTES", facts.sizes.arena, "working memory; any alignment will do"),
        ("WEIGHTS_BYTES", facts.sizes.weights, "in the library" if facts.linked else f"the file {name}.weights"),
        ("CODE_BYTES", facts.sizes.code, "functions and their constants"),
        ("STACK_BYTES", facts.sizes.stack, "upper bound, for every function here and every thread"),
    )
    errors = (
        ("EINIT", EINIT, f"the arena was not prepared by {name}_init"),
        ("EWEIGHTS", EWEIGHTS, "no weights, or those of another model, or not aligned"),
        ("ECPU", ECPU, f"the processor lacks instructions of {_comment(facts.target)}"),
    )
    lines = [
        *_usage(facts),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        *_defines(name, [(key, str(value), text) for key, value, text in sizes]),
        *_defines(name, [("MODEL_HASH", f"UINT64_C(0x{facts.model_hash:016x})", "also in the weights")]),
        "",
        *_defines(name, [(key, str(value), text) for key, value, text in errors]),
        "",
        *_tensors(name, "IN", "INPUTS", facts.inputs),
        *_tensors(name, "OUT", "OUTPUTS", facts.outputs),
        *_prototypes(facts),
        f"#endif /* {guard} */",
    ]
    return "\n".join(lines) + "\n"


def _usage(facts: Facts) -> list[str]:
    name = facts.name
    weights = "NULL" if facts.linked else "weights"
    lines = [
        f"/* {name}, compiled by cortado for {_comment(facts.target)}.",
        " *",
        f" *     static unsigned char arena[{name}_ARENA_BYTES];",
        " *     const void *in[] = {input};",
        " *     void *out[] = {output};",
        f" *     if ({name}_init(arena, {weights}) != 0) ...    once",
        f" *     if ({name}_run(arena, in, out) != 0) ...       as often as wanted",
        " *",
        " * Arrays are dense, their last axis contiguous, aligned to their elements. Inputs are not written; inputs, outputs and the arena",
        " * do not overlap. One arena serves one call at a time; give each thread of the program that runs the model its own.",
    ]
    if not facts.linked:
        lines.append(
            f" * weights: the bytes of {name}.weights, aligned to {WEIGHTS_ALIGNMENT}, better to 64. They are not copied:"
        )
        lines.append(" * keep them where they are while the arena is used.")
    return [*lines, " */"]


def _comment(text: str) -> str:
    """Text that cannot end, nest or continue a comment, nor hold what a compiler of another encoding would refuse."""
    plain = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def _c_float(value: float) -> str:
    digits = f"{value:.9g}"
    return f"{digits}f" if set(digits) & {".", "e"} else f"{digits}.0f"


def _defines(name: str, rows: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"#define {name}_{key} {value}" + (f" /* {text} */" if text else "") for key, value, text in rows]


def _tensors(name: str, side: str, count: str, tensors: Sequence[tuple[str, TensorInfo]]) -> list[str]:
    lines = [f"#define {name}_{count} {len(tensors)}", ""]
    identifiers = blob_identifiers([blob for blob, _ in tensors])
    for position, ((blob, info), identifier) in enumerate(zip(tensors, identifiers, strict=True)):
        elements = math.prod(info.shape)
        layout = f" {info.layout}" if info.layout else ""
        note = f", {_BITS_ONLY[info.dtype]}" if info.dtype in _BITS_ONLY else ""
        note += f"; as many rows as {_comment(info.count)} says are real, the rest mean nothing" if info.count is not None else ""
        key = f"{side}_{identifier}"
        rows = [
            (key, str(position), f"{_comment(blob)}: {info.dtype}{list(info.shape)}{layout}{note}"),
            (f"{key}_TYPE", _C_TYPE[info.dtype], ""),
            (f"{key}_COUNT", str(elements), "elements"),
            (f"{key}_BYTES", str(elements * NUMPY_DTYPE[info.dtype].itemsize), ""),
            (f"{key}_RANK", str(len(info.shape)), ""),
        ]
        if info.shape:
            rows.append((f"{key}_SHAPE", "{" + ", ".join(map(str, info.shape)) + "}", ""))
        if info.scale is not None:
            rows.append((f"{key}_SCALE", _c_float(info.scale), "real = (q - zero point) * scale"))
            rows.append((f"{key}_ZERO_POINT", str(info.zero_point or 0), ""))
        lines += [*_defines(name, rows), ""]
    return lines


def _prototypes(facts: Facts) -> list[str]:
    name = facts.name
    weights = "NULL: the library holds them" if facts.linked else f"the bytes of {name}.weights"
    return [
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"/* Prepares an arena. weights: {weights}. 0, {name}_EWEIGHTS or {name}_ECPU. */",
        f"int {name}_init(void *arena, const void *weights);",
        "",
        f"/* Computes out from in. 0 or {name}_EINIT. */",
        f"int {name}_run(void *arena, const void *const in[], void *const out[]);",
        "",
        "/* Calls task(arg, part) for every part in 0 .. parts - 1, each once, in any order and on any threads; returns when all are done. */",
        f"typedef void {name}_parallel_for(void *ctx, void (*task)(void *arg, int part), void *arg, int parts);",
        "",
        f"/* As {name}_run, with the larger steps split by pf(ctx, ...). The same bits for any pf. */",
        f"int {name}_run_threads(void *arena, const void *const in[], void *const out[], {name}_parallel_for *pf, void *ctx);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
    ]
