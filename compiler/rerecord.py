"""Recording a kernel anew, instruction by instruction: the base of rewrites from kernel to kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.lang import Block, Inst, Kernel, Type
from cortado.compiler.target import Target
from cortado.errors import TargetError


class Rerecorder:
    """Gives an equal kernel; a rewrite overrides the methods of what it changes. One object records one kernel.

    A method `_<kind>` gets the old instruction and its new arguments and gives the new value.
    """

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.old, self.target = kernel, target
        self.k = KernelBuilder(kernel.family, target, kernel.shared)
        self.values: dict[Inst, Val] = {}
        self.results: dict[Inst, tuple[Val, ...]] = {}

    def kernel(self) -> Kernel:
        for p in self.old.params:
            self.values[p] = self.k.param(p.attr, self.type(p.type))
        self.block(self.old.body)
        return self.k.finish(None if self.old.result is None else self.value(self.old.result))

    def type(self, old: Type) -> Type:
        """The type that values of an old type have now."""
        return old

    def const(self, number: int | float, old: Type) -> Val:
        return self.k.const(number, old)

    def callee(self, kernel: Kernel) -> Kernel:
        return kernel

    def fail(self, what: str) -> TargetError:
        return TargetError(f"target {self.target.name}: {what} (kernel {self.old.name})")

    def value(self, old: Inst) -> Val:
        return self.const(old.attr, old.type) if old.kind == "const" else self.values[old]

    def block(self, block: Block) -> tuple[Val, ...]:
        for inst in block.body:
            write: Callable[[Inst, Sequence[Val]], Val | None] | None = getattr(self, f"_{inst.kind}", None)
            if write is None:
                raise self.fail(f"{inst.kind} is not to be had there")
            new = write(inst, () if inst.kind == "result" else tuple(map(self.value, inst.args)))
            if new is not None:
                self.values[inst] = new
        return tuple(map(self.value, block.results))

    def inside(self, block: Block, params: Sequence[Val]) -> tuple[Val, ...]:
        self.values |= dict(zip(block.params, params, strict=True))
        return self.block(block)

    def _binary(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.binary(inst.attr, *args)

    def _compare(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.compare(inst.attr, *args)

    def _select(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.select(*args)

    def _convert(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.convert(args[0], self.type(inst.type), inst.attr)

    def _broadcast(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.broadcast(args[0], inst.type.lanes)

    def _shuffle(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.shuffle(args[0], args[1], inst.attr)

    def _virtual(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.virtual(inst.attr, *args)

    def _offset(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.offset(args[0], args[1], self.type(Type(inst.attr)).scalar)

    def _local(self, inst: Inst, args: Sequence[Val]) -> Val:
        scalar, count = inst.attr
        return self.k.local(self.type(Type(scalar)).scalar, count)

    def _load(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.load(args[0], self.type(inst.type), args[1])

    def _store(self, inst: Inst, args: Sequence[Val]) -> None:
        self.k.store(args[0], args[2], args[1])

    def _masked_load(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.masked_load(args[0], self.type(inst.type), args[2], args[1])

    def _masked_store(self, inst: Inst, args: Sequence[Val]) -> None:
        self.k.masked_store(args[0], args[2], args[3], args[1])

    def _call(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.k.call(self.callee(inst.attr), *args)

    def _loop(self, inst: Inst, args: Sequence[Val]) -> None:
        start, stop, step, *carried = args
        (body,) = inst.blocks
        self.results[inst] = self.k.loop(start, stop, step.attr, lambda *new: self.inside(body, new), carried)

    def _if(self, inst: Inst, args: Sequence[Val]) -> None:
        then, otherwise = inst.blocks
        self.results[inst] = self.k.if_(args[0], lambda: self.block(then), lambda: self.block(otherwise))

    def _while(self, inst: Inst, args: Sequence[Val]) -> None:
        test, body = inst.blocks
        self.results[inst] = self.k.while_(lambda *new: self.inside(test, new)[0], lambda *new: self.inside(body, new), args)

    def _result(self, inst: Inst, args: Sequence[Val]) -> Val:
        return self.results[inst.args[0]][inst.attr]
