"""Caffe2's arguments of sliding windows: kernel, stride, dilation, pad in all their spellings, and legacy_pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cortado.compiler.importers.caffe2_args import Args
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError

EXPLICIT, VALID, SAME, CAFFE_POOLING = range(4)


@dataclass(frozen=True)
class Window:
    """kernel, strides, dilations: one per spatial axis; kernel is () with global_pooling. pads: heads, then tails."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    legacy: int
    whole: bool

    def fit(self, spatial: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The graph operator's attributes kernel, strides, dilations, pads_begin, pads_end for an image of these sizes."""
        rank = len(spatial)
        if self.whole:
            ones, zeros = (1,) * rank, (0,) * rank
            return {"kernel": tuple(spatial), "strides": ones, "dilations": ones, "pads_begin": zeros, "pads_end": zeros}
        if len(self.kernel) != rank:
            raise ShapeError(
                f"the kernel {show(self.kernel)} has {len(self.kernel)} sizes, but the input has {rank} spatial axes {show(spatial)}"
            )
        begin, end = [], []
        for axis, size in enumerate(spatial):
            head, tail = self._pad(axis, size)
            begin.append(head)
            end.append(tail)
        return {
            "kernel": self.kernel, "strides": self.strides, "dilations": self.dilations,
            "pads_begin": tuple(begin), "pads_end": tuple(end),
        }  # fmt: skip

    def _pad(self, axis: int, size: int) -> tuple[int, int]:
        """Pad before and after one axis (caffe2/operators/conv_pool_op_base.h, ComputeSizeAndPad)."""
        kernel, stride, dilation = self.kernel[axis], self.strides[axis], self.dilations[axis]
        head, tail = self.pads[axis], self.pads[len(self.kernel) + axis]
        if self.legacy == EXPLICIT:
            return head, tail
        if self.legacy == VALID:
            return 0, 0
        if self.legacy == SAME:
            if dilation != 1:
                raise FormatError("legacy_pad SAME allows no dilation")
            needed = (-(-size // stride) - 1) * stride + kernel - size
            head = int(needed / 2)  # towards zero, also where stride > kernel makes it negative
            return head, needed - head
        if head < 0:
            raise FormatError(f"legacy_pad CAFFE_LEGACY_POOLING allows no negative pad, found {head}")
        room = size + 2 * head - kernel
        windows = -(-room // stride) + 1
        if head > 0 and (windows - 1) * stride >= size + head:
            windows -= 1
        return head, head + stride * (windows - (room // stride + 1))


def read_window(args: Args) -> Window:
    """FormatError where the arguments contradict each other or are impossible."""
    legacy = args.integer("legacy_pad", EXPLICIT)
    if legacy not in (EXPLICIT, VALID, SAME, CAFFE_POOLING):
        raise FormatError(f"argument 'legacy_pad' is {legacy}; it must be 0, 1 (VALID), 2 (SAME) or 3 (CAFFE_LEGACY_POOLING)")
    if legacy in (VALID, SAME) and (args.has("pads") or args.has("pad") or args.has("pad_t", "pad_l", "pad_b", "pad_r")):
        raise FormatError("legacy_pad VALID and SAME compute the pads themselves; pad arguments must be absent")
    kernel = _spelled(args, "kernels", "kernel", ("kernel_h", "kernel_w")) or (0, 0)
    rank = len(kernel)
    strides = _spelled(args, "strides", "stride", ("stride_h", "stride_w")) or (1,) * rank
    dilations = _spelled(args, "dilations", "dilation", ("dilation_h", "dilation_w")) or (1,) * rank
    pads = _spelled(args, "pads", "pad", ("pad_t", "pad_l", "pad_b", "pad_r")) or (0,) * 2 * rank
    whole = args.integer("global_pooling", 0) != 0
    for name, values, count in (("stride", strides, rank), ("dilation", dilations, rank), ("pad", pads, 2 * rank)):
        if len(values) != count:
            raise FormatError(f"the kernel {show(kernel)} needs {count} values of '{name}', found {show(values)}")
    if whole:
        if any(pads) or any(v != 1 for v in (*strides, *dilations)):
            raise FormatError("global_pooling covers the whole image; pad, stride and dilation must be absent")
    elif min(kernel) < 1:
        raise FormatError(
            "no kernel size: give 'kernels', 'kernel', or both 'kernel_h' and 'kernel_w'"
            if not any(kernel)
            else f"the kernel {show(kernel)} has a size below 1"
        )
    for name, values in (("stride", strides), ("dilation", dilations)):
        if min(values) < 1:
            raise FormatError(f"'{name}' is {show(values)}; every value must be at least 1")
    return Window(() if whole else kernel, strides, dilations, pads, legacy, whole)


def read_pads(args: Args) -> tuple[int, ...]:
    """The pads alone: top, left, bottom, right; zeros where none are given."""
    return _spelled(args, "pads", "pad", ("pad_t", "pad_l", "pad_b", "pad_r")) or (0, 0, 0, 0)


def _spelled(args: Args, many: str, one: str, each: tuple[str, ...]) -> tuple[int, ...]:
    """The list, else the single number for two dimensions, else one argument per side if all of them are there."""
    values = args.integers(many)
    if args.has(one):
        single = args.integer(one, 0)
        return (*values, *(single,) * len(each))[: len(each)]
    if args.has(*each):
        return (*values, *(args.integer(name, 0) for name in each))
    return values


def read_transposed(args: Args) -> tuple[Window, dict[str, Any]]:
    """Of a transposed convolution: its window, and the graph operator's attributes strides, pads_begin, pads_end, output_padding."""
    window = read_window(args)
    if window.legacy or window.whole:
        raise FormatError("a transposed convolution takes explicit kernels and pads, neither legacy_pad nor global_pooling")
    rank = len(window.kernel)
    pads = {"pads_begin": window.pads[:rank], "pads_end": window.pads[rank:]}
    return window, {"strides": window.strides, **pads, "output_padding": _adjustment(args, rank)}


def _adjustment(args: Args, rank: int) -> tuple[int, ...]:
    values = args.integers("adjs")
    if args.has("adj"):
        values = (*values, *(args.integer("adj", 0),) * rank)[:rank]
    elif args.has("adj_h", "adj_w"):
        values = (*values, args.integer("adj_h", 0), args.integer("adj_w", 0))
    values = values or (0,) * rank
    if len(values) != rank:
        raise FormatError(f"'adj' is {show(values)}; it needs {rank} values, one for each axis of the kernel")
    return values
