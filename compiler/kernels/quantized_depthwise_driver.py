"""The driver around blocks of quantized depthwise convolutions of images: units of neighbouring output rows, and their input rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.requantize import Requantization, multiplier_rows
from cortado.compiler.lang import INDEX, Kernel
from cortado.compiler.ops.quantized import output_scales
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

MOST_TAPS = 7  # of a kernel's side
TASK = 60_000  # multiply-adds that are worth a task of their own


def serves_rows(node: Node, target: Target) -> bool:
    """Two spatial axes, one output per channel, taps beside each other, vectors of integers."""
    w, attrs = node.inputs[1].type.shape, node.attrs
    plain = len(w) == 4 and attrs["group"] == node.inputs[0].type.shape[-1] == w[0]
    small = plain and max(w[1:3]) <= MOST_TAPS and set(attrs["dilations"]) == {1} and len(set(attrs["strides"])) == 1
    return small and attrs["strides"][0] <= 2 and min(attrs["pads_begin"]) >= 0 and target.lanes("i32") > 1


class RowsDriver(ABC):
    """(x, weights, blank, [residual], out, begin, end); a unit is `rows` output rows of an image, a task some units.

    blank: a row of zero points, which stands for rows outside of the image. height: of the kernel.
    """

    def __init__(
        self, node: Node, x: Operand, out: Operand, residual: Operand | None, target: Target, rows: int, height: int
    ) -> None:
        self.x, self.out, self.residual, self.target, self.rows = x, out, residual, target, rows
        self.top, self.step = node.attrs["pads_begin"][0], node.attrs["strides"][0]
        self.zero, self.signed = scale_of(node.inputs[0].type)[1], node.inputs[0].type.dtype == "int8"
        self.groups = -(-out.shape[1] // rows)
        self.units = out.shape[0] * self.groups
        macs = out.type.size * height * node.inputs[1].type.shape[2]
        self.tasks = max(1, min(self.units, 48, macs // TASK))

    @abstractmethod
    def rows_of(self, image: Val, first: Val, rows: int) -> None:
        """Record what makes `rows` output rows from the `first` one on."""

    def record(self) -> Kernel:
        self.k = k = KernelBuilder("q_depthwise", self.target)
        self.source, self.w, self.blank = k.param("x"), k.param("w"), k.param("blank")
        self.beside = k.param("residual") if self.residual is not None else None
        self.to = k.param("out")
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        low, high = begin * self.units // self.tasks, end * self.units // self.tasks
        k.loop(low, high, 1, self.unit)
        return k.finish()

    def unit(self, number: Val) -> None:
        k = self.k
        image, group = number // self.groups, number % self.groups
        if self.x.shape[0] == 1:
            image, group = k.index(0), number
        first = group * self.rows
        left = self.out.shape[1] % self.rows
        if left == 0:
            self.rows_of(image, first, self.rows)
        else:
            whole = first + self.rows <= self.out.shape[1]
            k.if_(whole, lambda: self.rows_of(image, first, self.rows), lambda: self.rows_of(image, first, left))

    def inputs(self, image: Val, first: Val, count: int, column: int) -> list[Val]:
        """Pointers to the `count` input rows of output rows from `first` on, at a column, which may lie outside."""
        k, x = self.k, self.x
        base = k.offset(self.source, image * x.strides[0], "i8")
        found = []
        for i in range(count):
            y = first * self.step + (i - self.top)
            row = k.select(k.compare("ult", y, x.shape[1]), k.offset(base, y * x.strides[1], "i8"), self.blank)
            found.append(k.offset(row, column * x.strides[2], "i8"))
        return found

    def place(self, base: Val, operand: Operand, image: Val, row: Val, pixel: int) -> Val:
        """Pointer to a pixel of the output or the residual."""
        at = image * operand.strides[0] + row * operand.strides[1] + pixel * operand.strides[2]
        return self.k.offset(base, at, "i8")

    def blank_row(self) -> np.ndarray:
        """uint8: zero points, as many bytes as an input row spans."""
        return np.full((self.x.shape[2] - 1) * self.x.strides[2] + self.x.shape[3], self.zero & 0xFF, np.uint8)


def depthwise_call(
    node: Node, driver: RowsDriver, pack: Callable[[np.ndarray], np.ndarray], bias: np.ndarray, epilogue: Requantization
) -> list[KernelCall]:
    """The call of a driver's kernel. pack: from the rows of the epilogue's numbers to the array of the weights."""
    scales = output_scales([value.type for value in node.inputs], node.attrs)
    head = np.concatenate([bias[None], multiplier_rows(scales, epilogue.rounding)])
    residual = [Ref("input", 3)] if epilogue.residual else []
    weights, blank = Ref("weights", array=pack(head)), Ref("weights", array=driver.blank_row())
    refs = (Ref("input", 0), weights, blank, *residual, Ref("output", 0))
    return [KernelCall(driver.record(), refs, driver.tasks, driver.tasks if driver.tasks == driver.units else 0)]
