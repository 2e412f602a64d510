"""What `operators.py` times: one operator at realistic shapes, as cortado's graph has it and as ONNX has it.

Images are channels last for cortado and channels first for onnxruntime, as each has them inside a network; other operators get the same
array. Every case is one record; its numbers come from networks that are in use, and from sizes below and beyond the second cache level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

Instruction = tuple[str, tuple[int, ...], Mapping[str, Any]]  # operator, values read (inputs first, then results), attributes
Instructions = tuple[Instruction, ...]


@dataclass(frozen=True)
class Case:
    """shapes: of the inputs, float32, as cortado has them. ours, theirs: straight-line code whose last result is the output.

    image: onnxruntime's tensors have the last axis second. positive: whether the inputs must be. out: shape of cortado's output.
    """

    family: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    ours: Instructions
    theirs: Instructions
    image: bool = False
    positive: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """What must be read and written at least."""
        return 4 * (sum(map(prod, self.shapes)) + prod(self.out))


def same(family: str, op: str, theirs: str, shape: tuple[int, ...], positive: bool = False, **attrs: Any) -> Case:
    """An elementwise operator of one input."""
    name = f"{op} {'x'.join(map(str, shape))}"
    return Case(family, name, (shape,), shape, ((op, (0,), attrs),), ((theirs, (0,), attrs),), positive=positive)


MAPS = ((14, 14, 96), (28, 28, 128), (56, 56, 256), (224, 224, 128))  # 75 KB, 0.4 MB, 3.2 MB, 26 MB


def elementwise() -> list[Case]:
    names = {"sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "erf": "Erf", "gelu": "Gelu", "relu": "Relu"}
    cases = [same("elementwise", op, theirs, (1, *shape)) for op, theirs in names.items() for shape in MAPS[:3]]
    cases += [same("elementwise", op, theirs, (1, *MAPS[1]), True) for op, theirs in (("log", "Log"), ("sqrt", "Sqrt"))]
    cases += [same("elementwise", op, theirs, (1, *MAPS[1])) for op, theirs in (("softplus", "Softplus"), ("sin", "Sin"))]
    cases.append(same("elementwise", "relu", "Relu", (1, *MAPS[3])))
    for shape in MAPS:
        full = (1, *shape)
        name = "x".join(map(str, full))
        add: Instructions = (("add", (0, 1), {}),)
        cases.append(Case("elementwise", f"add {name}", (full, full), full, add, (("Add", (0, 1), {}),)))
        affine: Instructions = (("mul", (0, 1), {}), ("add", (3, 2), {}), ("relu", (4,), {}))
        theirs: Instructions = (("Mul", (0, 1), {}), ("Add", (3, 2), {}), ("Relu", (4,), {}))
        channel = (shape[-1],)
        cases.append(Case("chain", f"relu(x*a+b) {name}", (full, channel, channel), full, affine, theirs))
        gate: Instructions = (("sigmoid", (0,), {}), ("mul", (0, 2), {}), ("add", (3, 1), {}))
        gated: Instructions = (("Sigmoid", (0,), {}), ("Mul", (0, 2), {}), ("Add", (3, 1), {}))
        cases.append(Case("chain", f"x*sigmoid(x)+y {name}", (full, full), full, gate, gated))
    return cases


def softmax() -> list[Case]:
    shapes = ((1, 1000), (64, 1000), (1536, 128), (12, 512, 512), (16384, 21), (8400, 80), (1917, 91), (8732, 2), (4, 32000))
    cases = []
    for shape in shapes:
        axis = len(shape) - 1
        ours, theirs = (("softmax", (0,), {"axis": axis}),), (("Softmax", (0,), {"axis": axis}),)
        cases.append(Case("softmax", "x".join(map(str, shape)), (shape,), shape, ours, theirs))
    return cases


def lrn() -> list[Case]:
    attrs = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    cases = []
    for shape in ((1, 13, 13, 256), (1, 27, 27, 256), (1, 55, 55, 96), (1, 56, 56, 64), (1, 56, 56, 192)):
        name = "x".join(map(str, shape))
        cases.append(Case("lrn", name, (shape,), shape, (("lrn", (0,), attrs),), (("LRN", (0,), attrs),), image=True))
    return cases


def resize() -> list[Case]:
    cases = []
    for height, channels in ((7, 256), (14, 256), (28, 256), (56, 64), (112, 32)):
        shape, out = (1, height, height, channels), (1, 2 * height, 2 * height, channels)
        ours = {"scale_h": 2.0, "scale_w": 2.0, "out_h": out[1], "out_w": out[2]}
        nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        bilinear = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
        for kind, theirs in (("nearest", nearest), ("bilinear", bilinear)):
            name = f"{kind} {height} to {2 * height}, {channels}"
            cases.append(
                Case(
                    "resize", name, (shape,), out, ((f"resize_{kind}", (0,), ours),), (("Resize", (0,), theirs),), image=True,
                    constants={"sizes": (1, channels, out[1], out[2])},
                )
            )  # fmt: skip
    return cases


def pool() -> list[Case]:
    cases = []
    windows = (
        ("max", 112, 64, 3, 2, 1), ("max", 224, 64, 2, 2, 0), ("max", 28, 256, 3, 1, 1), ("max", 13, 256, 3, 2, 0), ("max", 20, 256, 5, 1, 2),
        ("average", 35, 192, 3, 1, 1), ("average", 56, 128, 2, 2, 0), ("average", 7, 1280, 7, 1, 0), ("average", 7, 2048, 7, 1, 0),
        ("average", 56, 64, 56, 1, 0),
    )  # fmt: skip
    for kind, size, channels, kernel, stride, pad in windows:
        out = (size + 2 * pad - kernel) // stride + 1
        two = {"kernel": kernel, "strides": stride, "dilations": 1, "pads_begin": pad, "pads_end": pad}
        attrs: dict[str, Any] = {key: (value, value) for key, value in two.items()}
        theirs: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        if kind == "average":
            attrs["count_include_pad"] = False
        name = f"{kind} {kernel}x{kernel}/{stride} {size}x{size}x{channels}"
        shape, small = (1, size, size, channels), (1, out, out, channels)
        ours, onnx = ((f"{kind}_pool", (0,), attrs),), ((f"{kind.title()}Pool", (0,), theirs),)
        cases.append(Case("pool", name, (shape,), small, ours, onnx, image=True))
    return cases


def transpose() -> list[Case]:
    shapes = (
        ((1, 3, 224, 224), (0, 2, 3, 1)), ((1, 224, 224, 3), (0, 3, 1, 2)), ((1, 24, 28, 28), (0, 2, 3, 1)), ((1, 28, 28, 24), (0, 3, 1, 2)),
        ((1, 64, 56, 56), (0, 2, 3, 1)), ((1, 56, 56, 64), (0, 3, 1, 2)), ((1, 512, 7, 7), (0, 2, 3, 1)), ((1, 256, 112, 112), (0, 2, 3, 1)),
        ((1, 128, 12, 64), (0, 2, 1, 3)), ((1, 12, 128, 64), (0, 1, 3, 2)), ((28, 28, 2, 58), (0, 1, 3, 2)), ((1000, 1000), (1, 0)),
        ((2048, 2048), (1, 0)), ((91, 1917), (1, 0)),
    )  # fmt: skip
    cases = []
    for shape, perm in shapes:
        out = tuple(shape[p] for p in perm)
        name = f"{'x'.join(map(str, shape))} by {','.join(map(str, perm))}"
        cases.append(
            Case("transpose", name, (shape,), out, (("transpose", (0,), {"perm": perm}),), (("Transpose", (0,), {"perm": perm}),))
        )
    return cases


def reduce() -> list[Case]:
    shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = (
        ((64, 3136), (1,)), ((3136, 64), (0,)), ((1, 49, 1280), (1,)), ((128, 768), (1,)), ((100000,), (0,)), ((4000000,), (0,)),
        ((56, 56, 64), (2,)), ((32, 64, 14, 14), (0, 2, 3)),
    )  # fmt: skip
    cases = []
    for shape, axes in shapes:
        out = tuple(size for axis, size in enumerate(shape) if axis not in axes)
        for kind in ("sum", "mean", "max"):
            name = f"{kind} {'x'.join(map(str, shape))} over {','.join(map(str, axes))}"
            ours = ((f"reduce_{kind}", (0,), {"axes": axes, "keepdims": False}),)
            theirs = ((f"Reduce{kind.title()}", (0,), {"axes": axes, "keepdims": 0}),)
            cases.append(Case("reduce", name, (shape,), out, ours, theirs))
    return cases


def all_cases() -> list[Case]:
    return [*elementwise(), *softmax(), *lrn(), *resize(), *pool(), *transpose(), *reduce()]
