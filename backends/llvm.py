"""Kernels as LLVM IR text, written straight from the record. Instruction selection is LLVM's; what it may use is the target's.

Floats: every operation is IEEE and on its own (no fast-math flags, no contraction); fusing is what the `fma` row says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.lang import BYTES, Block, Inst, Kernel, Type
from cortado.compiler.target import Target
from cortado.errors import TargetError

_SCALAR = {"f64": "double", "f32": "float", "f16": "half", "bf16": "bfloat", "ptr": "ptr", "void": "void"}
_BINARY = {
    "udiv": "udiv", "sdiv": "sdiv", "urem": "urem", "srem": "srem", "and": "and", "or": "or", "xor": "xor",
    "shl": "shl", "lshr": "lshr", "ashr": "ashr",
}  # fmt: skip
_FIXED = frozenset({"fptosi", "fptoui", "sitofp", "uitofp"})
_FLOAT_PREDICATE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_INT_PREDICATE = {"lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"}


def emit_module(kernels: Sequence[Kernel], target: Target, prefix: str) -> str:
    """One module that defines exactly these kernels as `<prefix>_<kernel.name>`, hidden; kernels they call besides are declared.

    Raises TargetError where a kernel needs what the target has no row for.
    """
    inside = {kernel.name for kernel in kernels}
    called = {callee.name: callee for kernel in kernels for callee in kernel.callees() if callee.name not in inside}
    declared: dict[str, str] = {}
    bodies = [Function(kernel, target, prefix, declared).text() for kernel in kernels]
    for callee in called.values():
        types = ", ".join(ir_type(p.type, target) for p in callee.params)
        declared[callee.name] = f"declare hidden {_result_type(callee, target)} @{symbol(prefix, callee)}({types}) #0"
    head = f'target triple = "{target.triple}"\n'
    declarations = "\n".join(declared[name] for name in sorted(declared))
    return "\n".join([head, *bodies, declarations, "", _attributes(target), ""])


def identity_of(kernels: Sequence[Kernel], target: Target, prefix: str) -> str:
    """What the text of `emit_module` depends on beside this package and what a request to LLVM says of the target."""
    facts = [target.name, str(target.pointer_bits), str(target.vector_bits), prefix]
    return " ".join([*facts, *(kernel.digest for kernel in kernels)])


def symbol(prefix: str, kernel: Kernel) -> str:
    return f"{prefix}_{kernel.name}"


def ir_type(type_: Type, target: Target) -> str:
    if type_.scalar == "index":
        return f"i{target.pointer_bits}"
    scalar = _SCALAR.get(type_.scalar, type_.scalar)
    return scalar if type_.lanes == 1 else f"<{type_.lanes} x {scalar}>"


def ir_constant(number: int | float, type_: Type, target: Target) -> str:
    if type_.lanes > 1:
        one = type_.with_lanes(1)
        item = f"{ir_type(one, target)} {ir_constant(number, one, target)}"
        return f"<{', '.join([item] * type_.lanes)}>"
    if type_.scalar == "i1":
        return "true" if number else "false"
    if not type_.is_float:
        bits = target.pointer_bits if type_.scalar == "index" else 8 * BYTES[type_.scalar]
        wrapped = int(number) % (1 << bits)
        return str(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)
    with np.errstate(over="ignore"):
        if type_.scalar == "f16":
            return f"0xH{np.float16(number).view(np.uint16):04X}"
        if type_.scalar == "bf16":
            bits = int(np.float32(number).view(np.uint32))
            return f"0xR{(bits + 0x7FFF + (bits >> 16 & 1)) >> 16:04X}"
        value = np.float64(np.float32(number)) if type_.scalar == "f32" else np.float64(number)
    return f"0x{value.view(np.uint64):016X}"


def _attributes(target: Target) -> str:
    """Frame sizes are reported for every function through warn-stack-size, and without a red zone they are all of the stack that is used;
    no-builtins keeps calls of libc from being made.
    """
    words: dict[str, str] = {
        "target-cpu": target.cpu, "target-features": ",".join(target.features), "frame-pointer": "none", "warn-stack-size": "0",
    }  # fmt: skip
    if target.family == "x86" and target.vector_bits == 512:
        words |= {"prefer-vector-width": "512", "min-legal-vector-width": "512"}
    pairs = " ".join(f'"{key}"="{value}"' for key, value in words.items() if value)
    return f'attributes #0 = {{ nounwind noinline noredzone "no-builtins" {pairs} }}\nattributes #1 = {{ nounwind }}'


class Function:
    """The text of one function. `label` is the basic block that is being written."""

    def __init__(self, kernel: Kernel, target: Target, prefix: str, declared: dict[str, str]) -> None:
        self.kernel, self.target, self.prefix, self.declared = kernel, target, prefix, declared
        self.lines: list[str] = []
        self.locals: list[str] = []
        self.names: dict[Inst, str] = {}
        self.results: dict[tuple[Inst, int], str] = {}
        self.count = 0
        self.label = "entry"

    def text(self) -> str:
        params = ", ".join(f"{self.type(p.type)} {self.named(p)}" for p in self.kernel.params)
        self.block(self.kernel.body)
        body = "\n".join([*self.locals, *self.lines])
        result = "void" if self.kernel.result is None else self.typed(self.kernel.result)
        head = f"define hidden {_result_type(self.kernel, self.target)} @{symbol(self.prefix, self.kernel)}({params}) #0"
        return f"{head} {{\nentry:\n{body}\n  ret {result}\n}}\n"

    # --- names and lines ---

    def type(self, type_: Type) -> str:
        return ir_type(type_, self.target)

    def fresh(self, letter: str = "v") -> str:
        self.count += 1
        return f"%{letter}{self.count}"

    def named(self, inst: Inst) -> str:
        self.names[inst] = self.fresh()
        return self.names[inst]

    def value(self, inst: Inst) -> str:
        return ir_constant(inst.attr, inst.type, self.target) if inst.kind == "const" else self.names[inst]

    def typed(self, inst: Inst) -> str:
        return f"{self.type(inst.type)} {self.value(inst)}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def define(self, inst: Inst, text: str) -> None:
        self.line(f"{self.named(inst)} = {text}")

    def assign(self, text: str) -> str:
        name = self.fresh("t")
        self.line(f"{name} = {text}")
        return name

    def start_block(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.label = label

    def fail(self, what: str) -> TargetError:
        return TargetError(f"target {self.target.name}, kernel {self.kernel.name}: {what}")

    def intrinsic(self, name: str, result: str, args: Sequence[tuple[str, str]]) -> str:
        """A call of an LLVM intrinsic on (type, value) arguments; gives the result's name ("" where it has none)."""
        self.declared[name] = f"declare {result} @{name}({', '.join(t for t, _ in args)}) #1"
        call = f"call {result} @{name}({', '.join(f'{t} {v}' for t, v in args)})"
        if result == "void":
            self.line(call)
            return ""
        return self.assign(call)

    def block(self, block: Block) -> None:
        for inst in block.body:
            write: Callable[[Inst], None] | None = getattr(self, f"_{inst.kind}", None)
            if write is None:
                raise self.fail(f"{inst.kind} is not to be had here")
            write(inst)

    # --- arithmetic ---

    def _binary(self, inst: Inst) -> None:
        op, (a, b) = inst.attr, inst.args
        kind, x, y = self.type(inst.type), self.value(a), self.value(b)
        if op in ("min", "max", "smin", "smax", "umin", "umax"):
            compare = {"min": "fcmp olt", "max": "fcmp ogt"}.get(op, f"icmp {op[0]}{'lt' if op.endswith('min') else 'gt'}")
            mask = self.assign(f"{compare} {kind} {x}, {y}")
            bits = self.type(Type("i1", inst.type.lanes))
            self.define(inst, f"select {bits} {mask}, {kind} {x}, {kind} {y}")
        elif inst.type.is_float:
            self.define(inst, f"f{op} {kind} {x}, {y}")
        elif op in _BINARY:
            flag = " nsw" if op == "shl" and inst.type.scalar == "index" else ""
            self.define(inst, f"{_BINARY[op]}{flag} {kind} {x}, {y}")
        else:
            flag = " nsw" if inst.type.scalar == "index" else ""
            self.define(inst, f"{op}{flag} {kind} {x}, {y}")

    def _compare(self, inst: Inst) -> None:
        a, b = inst.args
        table, word = (_FLOAT_PREDICATE, "fcmp") if a.type.is_float else (_INT_PREDICATE, "icmp")
        self.define(inst, f"{word} {table.get(inst.attr, inst.attr)} {self.typed(a)}, {self.value(b)}")

    def _select(self, inst: Inst) -> None:
        self.define(inst, f"select {', '.join(map(self.typed, inst.args))}")

    def _convert(self, inst: Inst) -> None:
        (a,) = inst.args
        how, source, to = inst.attr, self.type(a.type), self.type(inst.type)
        if source == to:
            self.names[inst] = self.value(a)
        elif inst.type.lanes > 1 and "+mve.fp" in self.target.features and how in _FIXED:
            # LLVM aborts where it makes one fixed-point conversion of this and a multiplication by a power of two; a fence keeps them apart
            value = self._fenced(a.type, self.value(a))
            self.names[inst] = self._fenced(inst.type, self.assign(f"{how} {source} {value} to {to}"))
        else:
            self.define(inst, f"{how} {source} {self.value(a)} to {to}")

    def _fenced(self, type_: Type, value: str) -> str:
        """The value where it is float32; LLVM sees nothing of how it came about."""
        kind = self.type(type_)
        return (
            value if type_.scalar != "f32" else self.intrinsic(f"llvm.arithmetic.fence.{_suffix(type_)}", kind, [(kind, value)])
        )

    def _broadcast(self, inst: Inst) -> None:
        kind, lanes = self.type(inst.type), inst.type.lanes
        first = self.assign(f"insertelement {kind} poison, {self.typed(inst.args[0])}, i32 0")
        self.define(inst, f"shufflevector {kind} {first}, {kind} poison, <{lanes} x i32> zeroinitializer")

    def _shuffle(self, inst: Inst) -> None:
        a, b = inst.args
        lanes = inst.attr
        if len(lanes) == 1:
            source, at = (a, lanes[0]) if lanes[0] < a.type.lanes else (b, lanes[0] - a.type.lanes)
            if a.type.lanes == 1:
                self.names[inst] = self.value(source)
            else:
                self.define(inst, f"extractelement {self.typed(source)}, i32 {max(at, 0)}")
            return
        x, y = (self.typed(v) if v.type.lanes > 1 else self._as_vector(v) for v in (a, b))
        mask = ", ".join("i32 poison" if lane < 0 else f"i32 {lane}" for lane in lanes)
        self.define(inst, f"shufflevector {x}, {y}, <{len(lanes)} x i32> <{mask}>")

    def _as_vector(self, scalar: Inst) -> str:
        kind = f"<1 x {self.type(scalar.type)}>"
        return f"{kind} {self.assign(f'insertelement {kind} poison, {self.typed(scalar)}, i32 0')}"

    def _virtual(self, inst: Inst) -> None:
        types = tuple(a.type for a in inst.args)
        row = next((r for r in self.target.rows if r.name == inst.attr and r.types == types), None)
        if row is None:
            raise self.fail(f"no row for {inst.attr}({', '.join(map(str, types))})")
        self.names[inst] = row.emit(self, inst.type, [(self.type(a.type), self.value(a)) for a in inst.args])

    # --- memory: aligned to the element, never to the vector ---

    def _offset(self, inst: Inst) -> None:
        ptr, index = inst.args
        self.define(inst, f"getelementptr {self.type(Type(inst.attr))}, {self.typed(ptr)}, {self.typed(index)}")

    def address(self, ptr: Inst, index: Inst, type_: Type) -> str:
        if index.kind == "const" and index.attr == 0:
            return self.value(ptr)
        return self.assign(f"getelementptr {self.type(type_.with_lanes(1))}, {self.typed(ptr)}, {self.typed(index)}")

    def _local(self, inst: Inst) -> None:
        scalar, count = inst.attr
        align = max(BYTES[scalar], min(self.target.vector_bits // 8, 16), 4)
        self.locals.append(f"  {self.named(inst)} = alloca [{count} x {self.type(Type(scalar))}], align {align}")

    def _load(self, inst: Inst) -> None:
        ptr, index = inst.args
        at, size = self.address(ptr, index, inst.type), element_bytes(inst.type)
        self.define(inst, f"load {self.type(inst.type)}, ptr {at}, align {size}")

    def _store(self, inst: Inst) -> None:
        ptr, index, value = inst.args
        at, size = self.address(ptr, index, value.type), element_bytes(value.type)
        self.line(f"store {self.typed(value)}, ptr {at}, align {size}")

    def _masked_load(self, inst: Inst) -> None:
        ptr, index, mask = inst.args
        at, kind = self.address(ptr, index, inst.type), self.type(inst.type)
        args = [
            ("ptr", at),
            ("i32", str(element_bytes(inst.type))),
            (self.type(mask.type), self.value(mask)),
            (kind, "zeroinitializer"),
        ]
        self.names[inst] = self.intrinsic(f"llvm.masked.load.{_suffix(inst.type)}.p0", kind, args)

    def _masked_store(self, inst: Inst) -> None:
        ptr, index, value, mask = inst.args
        at, kind = self.address(ptr, index, value.type), self.type(value.type)
        size = str(element_bytes(value.type))
        args = [(kind, self.value(value)), ("ptr", at), ("i32", size), (self.type(mask.type), self.value(mask))]
        self.intrinsic(f"llvm.masked.store.{_suffix(value.type)}.p0", "void", args)

    def _call(self, inst: Inst) -> None:
        call = f"call {self.type(inst.type)} @{symbol(self.prefix, inst.attr)}({', '.join(map(self.typed, inst.args))}) #0"
        if inst.attr.result is None:
            self.line(call)
        else:
            self.define(inst, call)

    # --- control ---

    def _loop(self, inst: Inst) -> None:
        """Tested at the end, behind a test at the start unless the range is known not to be empty."""
        start, stop, step, *carried = inst.args
        (body,) = inst.blocks
        index = self.type(start.type)
        never_empty = start.kind == stop.kind == "const" and start.attr < stop.attr
        head, after, before = self.fresh("loop")[1:], self.fresh("done")[1:], self.label
        if never_empty:
            self.line(f"br label %{head}")
        else:
            some = self.assign(f"icmp slt {index} {self.value(start)}, {self.value(stop)}")
            self.line(f"br i1 {some}, label %{head}, label %{after}")
        self.start_block(head)
        hole = len(self.lines)
        params = [self.named(p) for p in body.params]
        self.block(body)
        following = self.assign(f"add nsw {index} {params[0]}, {self.value(step)}")
        again = self.assign(f"icmp slt {index} {following}, {self.value(stop)}")
        latch, ends = self.label, [following, *map(self.value, body.results)]
        self.line(f"br i1 {again}, label %{head}, label %{after}")
        self.start_block(after)
        starts = list(map(self.value, (start, *carried)))
        types = [self.type(p.type) for p in body.params]
        phis = [_phi(*row, before, latch) for row in zip(params, types, starts, ends, strict=True)]
        self.lines[hole:hole] = phis
        for i, (kind, first, last) in enumerate(zip(types[1:], starts[1:], ends[1:], strict=True)):
            if never_empty:
                self.results[inst, i] = last
            else:
                self.results[inst, i] = self.fresh()
                self.lines.append(_phi(self.results[inst, i], kind, first, last, before, latch))

    def _if(self, inst: Inst) -> None:
        then, otherwise = inst.blocks
        labels = [self.fresh("if")[1:] for _ in range(3)]
        self.line(f"br {self.typed(inst.args[0])}, label %{labels[0]}, label %{labels[1]}")
        ends: list[tuple[str, list[str]]] = []
        for label, block in ((labels[0], then), (labels[1], otherwise)):
            self.start_block(label)
            self.block(block)
            ends.append((self.label, list(map(self.value, block.results))))
            self.line(f"br label %{labels[2]}")
        self.start_block(labels[2])
        (a, from_then), (b, from_otherwise) = ends
        for i, (result, x, y) in enumerate(zip(then.results, from_then, from_otherwise, strict=True)):
            self.results[inst, i] = self.fresh()
            self.lines.append(_phi(self.results[inst, i], self.type(result.type), x, y, a, b))

    def _while(self, inst: Inst) -> None:
        test, body = inst.blocks
        head, inner, after = (self.fresh("while")[1:] for _ in range(3))
        before = self.label
        self.line(f"br label %{head}")
        self.start_block(head)
        hole = len(self.lines)
        params = [self.named(p) for p in test.params]
        self.names |= dict(zip(body.params, params, strict=True))
        self.results |= {(inst, i): name for i, name in enumerate(params)}
        self.block(test)
        self.line(f"br {self.typed(test.results[0])}, label %{inner}, label %{after}")
        self.start_block(inner)
        self.block(body)
        latch = self.label
        self.line(f"br label %{head}")
        types = [self.type(p.type) for p in test.params]
        values = zip(params, types, map(self.value, inst.args), map(self.value, body.results), strict=True)
        self.lines[hole:hole] = [_phi(*row, before, latch) for row in values]
        self.start_block(after)

    def _result(self, inst: Inst) -> None:
        self.names[inst] = self.results[inst.args[0], inst.attr]


def element_bytes(type_: Type) -> int:
    if type_.scalar not in BYTES or type_.scalar == "i1":
        raise ValueError(f"{type_} has no form in memory")
    return BYTES[type_.scalar]


def _result_type(kernel: Kernel, target: Target) -> str:
    return "void" if kernel.result is None else ir_type(kernel.result.type, target)


def _suffix(type_: Type) -> str:
    return f"v{type_.lanes}{type_.scalar}" if type_.lanes > 1 else type_.scalar


def _phi(name: str, kind: str, x: str, y: str, from_x: str, from_y: str) -> str:
    return f"  {name} = phi {kind} [ {x}, %{from_x} ], [ {y}, %{from_y} ]"


def intrinsic_row(intrinsic: str) -> Callable[..., str]:
    """A row's emitter: `intrinsic` with the result type's suffix, on the arguments as they are."""

    def emit(function: Function, result: Type, args: Sequence[tuple[str, str]]) -> str:
        return function.intrinsic(f"{intrinsic}.{_suffix(result)}", ir_type(result, function.target), args)

    return emit
