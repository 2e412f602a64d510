"""The kernel language's definition, as an interpreter: a kernel becomes one Python function, its source generated once.

Values are Python ints (index), numpy scalars and arrays of one axis (everything else) and Pointers. Integers are held in signed
dtypes, bf16 as uint16 bit patterns, i1 as bool. What the language leaves unspecified (fresh local arrays, lanes of a shuffle
numbered -1, shifts by the width or more, conversions out of range) is filled with POISON bytes, which are NaNs as floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from cortado.compiler.evaluate import DTYPE, HELPERS, POISON, WIDE, Pointer, constant
from cortado.compiler.lang import BYTES, Block, Inst, Kernel, Type
from cortado.compiler.program import Argument, Program
from cortado.compiler.types import NUMPY_DTYPE, cut_rows
from cortado.compiler.virtual import VIRTUALS


def compile_kernel(kernel: Kernel) -> Callable[..., None]:
    """The kernel as a function of one Pointer per ptr parameter and one int per index parameter.

    Every access is checked: outside the memory, or not a multiple of the element's size, gives an IndexError that names
    kernel, instruction and offset.
    """
    function = _compiled(kernel)

    def run(*args: Pointer | int) -> None:
        if len(args) != len(kernel.params):
            raise TypeError(f"{kernel.name} takes {len(kernel.params)} arguments, got {len(args)}")
        with np.errstate(all="ignore"):
            function(*args)

    return run


def run_program(program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All steps of the program on the arrays in `feeds`, by input name; the outputs by name. Memory starts as POISON.

    A step that writes an input or a weight gives a ValueError.
    """
    arena = np.full(program.arena_bytes, POISON, np.uint8)
    weights = np.frombuffer(program.weights, np.uint8)
    inputs = [np.ascontiguousarray(feeds[name], NUMPY_DTYPE[info.dtype]) for name, info in program.inputs]
    outputs = [np.empty(info.shape, NUMPY_DTYPE[info.dtype]) for _, info in program.outputs]
    places = {"input": [_bytes(a) for a in inputs], "output": [_bytes(a) for a in outputs]}
    for memory in places["output"]:
        memory[:] = POISON
    for memory in places["input"]:
        memory.flags.writeable = False

    def pointer(argument: Argument) -> Pointer:
        buffer = program.buffers[argument.buffer]
        if buffer.place in places:
            return Pointer(places[buffer.place][buffer.offset], argument.offset)
        whole = {"arena": arena, "weights": weights}[buffer.place]
        return Pointer(whole[buffer.offset : buffer.offset + buffer.nbytes], argument.offset)

    for step in program.steps:
        if all(bool(_number(pointer(guard.place), np.uint8)) == guard.wanted for guard in step.guards):
            tasks = step.tasks
            if step.limit is not None:
                tasks = step.limit.tasks(_number(pointer(step.limit.count), np.int32), tasks)
            compile_kernel(step.kernel)(*map(pointer, step.args), 0, tasks)
    arrays = {name: array for (name, _), array in zip(program.outputs, outputs, strict=True)}
    return cut_rows(arrays, {name: info.count for name, info in program.outputs if info.count is not None})


def _number(pointer: Pointer, dtype: type[np.integer]) -> int:
    return int(pointer.memory[pointer.at :][: np.dtype(dtype).itemsize].view(dtype)[0])


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


@lru_cache(maxsize=4096)
def _compiled(kernel: Kernel) -> Callable[..., None]:
    writer = _Writer(kernel)
    source = writer.source()
    exec(compile(source, f"<kernel {kernel.name}>", "exec"), writer.names)
    function: Callable[..., None] = writer.names["kernel"]
    return function


class _Writer:
    """Writes the Python source of one kernel; `names` are the globals that it needs."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.names: dict[str, Any] = dict(HELPERS)
        self.values: dict[Inst, str] = {}
        self.lines: list[str] = []
        self.depth = 1

    def source(self) -> str:
        for p in self.kernel.params:
            self.fresh(p)
        self.block(self.kernel.body)
        head = f"def kernel({', '.join(self.values[p] for p in self.kernel.params)}):"
        result = "None" if self.kernel.result is None else self.use(self.kernel.result)
        return "\n".join([head, *self.lines, f"    return {result}"]) + "\n"

    def fresh(self, inst: Inst) -> str:
        return self.values.setdefault(inst, f"v{len(self.values)}")

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def use(self, inst: Inst) -> str:
        """The operand as text; constants become literals (index) or names of global values."""
        if inst.kind != "const":
            return self.values[inst]
        if inst.type.scalar == "index":
            return f"({inst.attr})"
        if inst not in self.values:
            self.values[inst] = f"c{len(self.values)}"
            self.names[self.values[inst]] = constant(inst.attr, inst.type)
        return self.values[inst]

    def where(self, inst: Inst) -> str:
        return repr(f"{self.kernel.name}: {inst.kind} {inst.type if inst.type.scalar != 'void' else inst.args[2].type}")

    def block(self, block: Block) -> None:
        for inst in block.body:
            write = getattr(self, f"_{inst.kind}", None)
            if write is None:
                raise ValueError(f"{self.kernel.name}: the interpreter does not run {inst.kind}")
            write(inst)

    def value(self, inst: Inst, text: str) -> None:
        self.line(f"{self.fresh(inst)} = {text}")

    def assign(self, targets: list[str], sources: list[str]) -> None:
        if targets:
            self.line(f"{', '.join(targets)}, = {', '.join(sources)},")

    # --- arithmetic ---

    def _binary(self, inst: Inst) -> None:
        a, b = map(self.use, inst.args)
        self.value(inst, _binary_text(inst, a, b))

    def _compare(self, inst: Inst) -> None:
        a, b = map(self.use, inst.args)
        kind, predicate = inst.args[0].type, inst.attr
        if predicate in ("ult", "ule", "ugt", "uge"):
            predicate = predicate[1:]
            if kind.scalar == "index":
                a, b = f"({a} % {WIDE})", f"({b} % {WIDE})"
            else:
                a, b = f"{a}.view(u_{kind.scalar})", f"{b}.view(u_{kind.scalar})"
        sign = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[predicate]
        if kind.scalar == "bf16":
            a, b = f"from_bf16({a})", f"from_bf16({b})"
        self.value(inst, f"{a} {sign} {b}")

    def _select(self, inst: Inst) -> None:
        mask, a, b = map(self.use, inst.args)
        self.value(inst, f"{a} if {mask} else {b}" if inst.args[0].type.lanes == 1 else f"np.where({mask}, {a}, {b})")

    def _convert(self, inst: Inst) -> None:
        self.value(inst, _convert_text(inst.attr, self.use(inst.args[0]), inst.args[0].type, inst.type))

    def _broadcast(self, inst: Inst) -> None:
        self.value(inst, f"np.full({inst.type.lanes}, {self.use(inst.args[0])}, t_{inst.type.scalar})")

    def _shuffle(self, inst: Inst) -> None:
        a, b = map(self.use, inst.args)
        n = inst.args[0].type.lanes
        if inst.type.lanes == 1:
            at = inst.attr[0]
            source = f"np.atleast_1d({a if at < n else b})[{at % n}]"
            self.value(inst, f"poison(t_{inst.type.scalar}, 1)[0]" if at < 0 else source)
            return
        name = f"lanes{len(self.names)}"
        self.names[name] = np.array([2 * n if lane < 0 else lane for lane in inst.attr])
        self.value(inst, f"np.hstack(({a}, {b}, poison(t_{inst.type.scalar}, 1)))[{name}]")

    def _virtual(self, inst: Inst) -> None:
        name = f"virtual_{inst.attr}"
        self.names[name] = VIRTUALS[inst.attr].meaning
        self.value(inst, f"{name}({', '.join(map(self.use, inst.args))})")

    # --- memory ---

    def _offset(self, inst: Inst) -> None:
        ptr, index = map(self.use, inst.args)
        self.value(inst, f"Pointer({ptr}.memory, {ptr}.at + {index} * {BYTES[inst.attr]})")

    def _local(self, inst: Inst) -> None:
        scalar, count = inst.attr
        self.value(inst, f"Pointer(np.full({BYTES[scalar] * count}, {POISON}, np.uint8), 0)")

    def _load(self, inst: Inst) -> None:
        kind, (ptr, index) = _in_memory(inst.type), map(self.use, inst.args)
        text = f"load({ptr}, {index} * {BYTES[kind.scalar]}, {kind.lanes}, t_{kind.scalar}, {self.where(inst)})"
        self.value(inst, text if kind.lanes > 1 else f"{text}[0]")

    def _store(self, inst: Inst) -> None:
        kind, (ptr, index, value) = _in_memory(inst.args[2].type), map(self.use, inst.args)
        self.line(f"store({ptr}, {index} * {BYTES[kind.scalar]}, {kind.lanes}, t_{kind.scalar}, {value}, {self.where(inst)})")

    def _masked_load(self, inst: Inst) -> None:
        kind, (ptr, index, mask) = _in_memory(inst.type), map(self.use, inst.args)
        at = f"{index} * {BYTES[kind.scalar]}"
        self.value(inst, f"masked_load({ptr}, {at}, {kind.lanes}, t_{kind.scalar}, {mask}, {self.where(inst)})")

    def _masked_store(self, inst: Inst) -> None:
        kind, (ptr, index, value, mask) = _in_memory(inst.args[2].type), map(self.use, inst.args)
        self.line(f"masked_store({ptr}, {index} * {BYTES[kind.scalar]}, t_{kind.scalar}, {value}, {mask}, {self.where(inst)})")

    def _call(self, inst: Inst) -> None:
        self.names[inst.attr.name] = _compiled(inst.attr)
        self.value(inst, f"{inst.attr.name}({', '.join(map(self.use, inst.args))})")

    # --- control ---

    def _loop(self, inst: Inst) -> None:
        start, stop, step, *carried = map(self.use, inst.args)
        (body,) = inst.blocks
        variable, *names = map(self.fresh, body.params)
        self.assign(names, carried)
        self.line(f"for {variable} in range({start}, {stop}, {step}):")
        self.depth += 1
        self.block(body)
        self.assign(names, list(map(self.use, body.results)))
        self.line("pass")
        self.depth -= 1

    def _if(self, inst: Inst) -> None:
        then, otherwise = inst.blocks
        names = [f"{self.fresh(inst)}_{i}" for i in range(len(then.results))]
        for head, block in ((f"if {self.use(inst.args[0])}:", then), ("else:", otherwise)):
            self.line(head)
            self.depth += 1
            self.block(block)
            self.assign(names, list(map(self.use, block.results)))
            self.line("pass")
            self.depth -= 1

    def _while(self, inst: Inst) -> None:
        test, body = inst.blocks
        names = [f"{self.fresh(inst)}_{i}" for i in range(len(inst.args))]
        self.assign(names, list(map(self.use, inst.args)))
        self.line("while True:")
        self.depth += 1
        self.assign(list(map(self.fresh, test.params)), names)
        self.block(test)
        self.line(f"if not {self.use(test.results[0])}: break")
        self.assign(list(map(self.fresh, body.params)), names)
        self.block(body)
        self.assign(names, list(map(self.use, body.results)))
        self.depth -= 1

    def _result(self, inst: Inst) -> None:
        node = inst.args[0]
        if node.kind == "loop":
            self.value(inst, self.values[node.blocks[0].params[1 + inst.attr]])
        else:
            self.value(inst, f"{self.values[node]}_{inst.attr}")


def _in_memory(kind: Type) -> Type:
    if kind.scalar not in DTYPE or kind.scalar == "i1":
        raise ValueError(f"{kind} has no form in memory")
    return kind


def _binary_text(inst: Inst, a: str, b: str) -> str:
    op, kind = inst.attr, inst.type
    symbol = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}.get(op)
    if kind.scalar == "bf16":
        sign = {"add": "+", "sub": "-", "mul": "*", "div": "/"}.get(op)
        a, b = f"from_bf16({a})", f"from_bf16({b})"
        return f"to_bf16({a} {sign} {b})" if sign else f"to_bf16(np.where({a} {'<' if op == 'min' else '>'} {b}, {a}, {b}))"
    if kind.scalar == "index":
        return f"{a} {symbol} {b}" if symbol else _INDEX_BINARY[op].format(a=a, b=b)
    if symbol:
        return f"{a} {symbol} {b}"
    if op in ("min", "max"):
        sign = "<" if op == "min" else ">"
        return f"{a} if {a} {sign} {b} else {b}" if kind.lanes == 1 else f"np.where({a} {sign} {b}, {a}, {b})"
    if op in ("smin", "smax"):
        return f"np.{op[1:]}imum({a}, {b})"
    unsigned = f"{a}.view(u_{kind.scalar})", f"{b}.view(u_{kind.scalar})", f".view(t_{kind.scalar})"
    if op in ("umin", "umax"):
        return f"np.{op[1:]}imum({unsigned[0]}, {unsigned[1]}){unsigned[2]}"
    if op in ("udiv", "urem"):
        sign = "//" if op == "udiv" else "%"
        return f"({unsigned[0]} {sign} divisor({unsigned[1]})){unsigned[2]}"
    if op in ("sdiv", "srem"):
        return f"{op}({a}, {b})"
    amount = inst.args[1]
    if amount.kind == "const" and 0 <= amount.attr < 8 * BYTES[kind.scalar]:
        return f"({unsigned[0]} >> {unsigned[1]}){unsigned[2]}" if op == "lshr" else f"{a} {'<<' if op == 'shl' else '>>'} {b}"
    return f"shift({op!r}, {a}, {b}, t_{kind.scalar}, u_{kind.scalar})"


_INDEX_BINARY = {
    "sdiv": "signed_quotient({a}, {b})", "srem": "({a} - signed_quotient({a}, {b}) * {b})",
    "udiv": "signed({a} % " + str(WIDE) + " // ({b} % " + str(WIDE) + "))",
    "urem": "signed({a} % " + str(WIDE) + " % ({b} % " + str(WIDE) + "))",
    "smin": "min({a}, {b})", "smax": "max({a}, {b})",
    "umin": "min({a}, {b}, key=unsigned)", "umax": "max({a}, {b}, key=unsigned)",
    "shl": "signed(({a} << {b}) % " + str(WIDE) + ")", "ashr": "({a} >> {b})",
    "lshr": "signed({a} % " + str(WIDE) + " >> {b})",
}  # fmt: skip


def _convert_text(how: str, a: str, source: Type, to: Type) -> str:
    if how == "bitcast":
        lanes = "[0]" if to.lanes == 1 else ""
        return f"np.atleast_1d({a}).view(t_{to.scalar}){lanes}"
    if source.scalar == "index":
        a, source = f"constant({a}, wide)", Type("i64")
    if source.scalar == "bf16":
        a, source = f"from_bf16({a})", Type("f32")
    if to.scalar == "bf16":
        return f"to_bf16({a if source.is_float else _convert_text(how, a, source, Type('f32'))})"
    if to.scalar == "index":
        return f"int({_convert_text(how, a, source, Type('i64'))})"
    cast = f".astype(t_{to.scalar})"
    if source.scalar == "i1":
        number = f"np.asarray({a}){cast}[()]"
        return f"-{number}" if how in ("sext", "sitofp") else number
    if how in ("zext", "uitofp"):
        return f"{a}.view(u_{source.scalar}){cast}"
    if how in ("fptosi", "fptoui"):
        return f"to_integer({a}, t_{to.scalar}, {'t_' if how == 'fptosi' else 'u_'}{to.scalar})"
    if to.scalar == "i1":
        return f"({a} & 1).astype(t_i1)"
    return f"{a}{cast}"
