"""Quantized convolutions of few channels as a product of matrices: a row of words for every output pixel, all that it reads.

Dot instructions want whole words of two or four channels. Of an image with three channels a word in place has room for four, and a
quarter of all products is with nothing; the 147 bytes of a 7x7 window, one after another, fill 37 words instead of 49.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import drivers, leading_axes, position, task_loop
from cortado.compiler.kernels.quantized_stage import Staged, padded_image
from cortado.compiler.kernels.quantized_sums import dot_core
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.kernels.tiling import PER_CYCLE, SingleCore
from cortado.compiler.lang import Kernel, Type
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

WORD = 4  # bytes
LONGEST = 64  # bytes of a kernel row, and of what a copy may write too much
MOVE = 3.0  # cycles to load and store a part of a kernel row
WORTH = 1.5  # times its cost that making patches must save


def serves_patches(node: Node, dot: Dot, target: Target) -> bool:
    """Whether the words saved are worth the copies: images without groups whose channels do not fill words."""
    x, w, attrs = node.inputs[0].type, node.inputs[1].type.shape, node.attrs
    inside = x.shape[-1]
    if len(w) != 4 or attrs["group"] != 1 or inside % dot.neighbours == 0 or attrs["dilations"][1] != 1:
        return False
    outputs, height, width, _ = w
    run = width * inside * WORD // dot.neighbours
    if min(*attrs["pads_begin"], *attrs["pads_end"]) < 0 or run > LONGEST or target.lanes("i8") < 16:
        return False
    core = dot_core(target, dot)
    saved = height * width * -(-inside // dot.neighbours) - -(-height * width * inside // dot.neighbours)
    cycles = saved * -(-outputs // core.lanes) / (1.0 if isinstance(core, SingleCore) else PER_CYCLE)
    return cycles >= WORTH * MOVE * height * -(-run // target.lanes("i8"))


def patches(node: Node, x: Operand, out: Operand, dot: Dot, target: Target) -> Staged:
    """The words of all patches [N, OH, OW, words], where `serves_patches`."""
    _, height, width, inside = node.inputs[1].type.shape
    attrs, zero = node.attrs, scale_of(node.inputs[0].type)[1]
    around = [(0, 0), *zip(attrs["pads_begin"], attrs["pads_end"], strict=True)]
    image = padded_image(x, zero, dot, around, LONGEST, target)
    words = -(-height * width * inside // dot.neighbours)
    shape = (*out.shape[:-1], words)
    scratch = Ref("scratch", nbytes=prod(shape) * WORD)
    unit = WORD // dot.neighbours
    line = (x.shape[2] + sum(around[2])) * inside * unit
    plan = _Patches(
        out.shape[:-1], (line * (x.shape[1] + sum(around[1])), line), (attrs["strides"][0], attrs["strides"][1] * inside * unit),
        height, attrs["dilations"][0], width * inside * unit, words * WORD,
    )  # fmt: skip
    kernel, tasks = plan.record(target)
    operand = Operand(TensorType(shape, "int32"), contiguous_strides(shape))
    calls = [*image.calls, KernelCall(kernel, (image.ref, scratch), tasks, tasks)]
    return Staged(calls, scratch, operand, words, image.dot, ((0, 0),) * 3)


@dataclass(frozen=True)
class _Patches:
    """A driver (image, patches, begin, end). outs: images, rows and pixels of the output.

    pitch: bytes from image to image and from row to row. steps: rows, and bytes of a row, from one patch to the next. height: rows of a
    patch, which are `dilation` rows apart. run: bytes of one of them. size: of a patch.
    """

    outs: tuple[int, ...]
    pitch: tuple[int, int]
    steps: tuple[int, int]
    height: int
    dilation: int
    run: int
    size: int

    def record(self, target: Target) -> tuple[Kernel, int]:
        """One task makes some rows of patches."""
        k = KernelBuilder("patches", target)
        image, made = k.param("image"), k.param("patches")
        begin, end = drivers(k)
        lead = leading_axes(self.outs[:2])

        def row(at: list[Val]) -> None:
            come = k.offset(image, position(k, at, (self.pitch[0], self.steps[0] * self.pitch[1])), "i8")
            go = k.offset(made, position(k, at, (self.outs[1] * self.outs[2] * self.size, self.outs[2] * self.size)), "i8")
            last = self.outs[2] - 1
            k.loop(0, last, 1, lambda i: self.patch(k, come, go, i, False))
            self.patch(k, come, go, k.index(last), True)

        def rows(head: list[Val]) -> None:
            if lead == 2:
                row(head)
            else:
                k.loop(0, self.outs[1], 1, lambda i: row([*head, i]))

        task_loop(k, begin, end, self.outs[:lead], rows)
        return k.finish(), prod(self.outs[:lead])

    def patch(self, k: KernelBuilder, come: Val, go: Val, number: Val, exact: bool) -> None:
        """Copies that are longer than a row of the patch are written over by the next ones, but at the end of a row of patches (exact)."""
        come, go = k.offset(come, number * self.steps[1], "i8"), k.offset(go, number * self.size, "i8")
        widest = min(k.target.lanes("i8"), LONGEST)
        for i in range(self.height):
            at = 0
            while at < self.run:
                left = self.run - at
                size = min(widest, max(16, 1 << (left - 1).bit_length()))
                while exact and i * self.run + at + size > self.size and size > left:
                    size //= 2
                value = k.load(come, Type("i8", size), i * self.dilation * self.pitch[1] + at)
                k.store(go, value, i * self.run + at)
                at += size
