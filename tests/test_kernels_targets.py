"""Kernels of every family become code for processors that this machine does not run, without calls of functions nobody brings along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import node_of

from cortado.backends.codegen import compile_modules
from cortado.backends.llvm import emit_module
from cortado.backends.targets import find_target
from cortado.compiler.kernels.table import LOWERINGS
from cortado.compiler.legalize import legalize
from cortado.compiler.program import Operand, contiguous_strides

WINDOW: dict[str, Any] = {"kernel": (3, 3), "strides": (2, 2), "dilations": (1, 1), "pads_begin": (1, 1), "pads_end": (1, 1)}
LRN = {"size": 5, "alpha": 1e-4, "bias": 1.0}
CASES: list[tuple[str, list[tuple[tuple[int, ...], str]], dict[str, Any]]] = [
    ("max_pool", [((1, 9, 9, 20), "float32")], WINDOW),
    ("average_pool", [((1, 9, 9, 20), "float32")], {**WINDOW, "count_include_pad": False}),
    ("softmax", [((3, 10), "float32")], {"axis": 1}),
    ("softmax", [((33, 2), "float32")], {"axis": 1}),
    ("lrn", [((2, 20), "float32")], {**LRN, "beta": 0.75}),
    ("lrn", [((2, 20), "float32")], {**LRN, "beta": 0.6}),
    ("reduce_mean", [((3, 40), "float32")], {"axes": (1,), "keepdims": True}),
    ("reduce_sum", [((3, 40), "int64")], {"axes": (0,), "keepdims": True}),
    ("transpose", [((2, 20, 50), "float32")], {"perm": (0, 2, 1)}),
    ("transpose", [((2, 20, 50), "int8")], {"perm": (0, 2, 1)}),
    ("pad", [((2, 3, 50), "float32")], {"begin": (0, 1, 0), "end": (0, 1, 0), "mode": "reflect", "value": 0.0}),
    ("gather", [((4, 5), "float32"), ((3,), "int64")], {"axis": 0}),
    ("resize_bilinear", [((1, 4, 4, 5), "float32")], {"scale_h": 1.5, "scale_w": 2.0, "out_h": 6, "out_w": 8}),
    ("resize_bilinear", [((1, 4, 4, 21), "int8")], {"scale_h": 1.5, "scale_w": 2.0, "out_h": 6, "out_w": 8}),
    *((name, [((3, 50), "float32")], {}) for name in ("exp", "log", "tanh", "erf", "sin", "acos", "cbrt", "sqrt", "floor")),
    *((name, [((3, 50), "float32")] * 2, {}) for name in ("add", "pow", "lt")),
    *((name, [((3, 50), "int32")] * 2, {}) for name in ("mul", "div", "remainder")),
    ("cast", [((3, 50), "float32")], {"dtype": "uint8"}),
    ("cast", [((3, 50), "int32")], {"dtype": "float32"}),
]


@pytest.mark.parametrize("name", ["cortex-m0", "cortex-m4", "cortex-m55", "arm32-cortex-a7", "aarch64", "x86-64-v4"])
def test_every_family_compiles(name: str) -> None:
    target = find_target(name)
    modules = []
    for op, operands, attrs in CASES:
        node = node_of(op, [np.zeros(shape, dtype) for shape, dtype in operands], attrs)
        ins = [Operand(v.type, contiguous_strides(v.shape)) for v in node.inputs]
        outs = [Operand(kind, contiguous_strides(kind.shape)) for kind in node.types]
        for call in LOWERINGS[op](node, ins, outs, target):
            kernel = legalize(call.kernel, target)
            prefix = f"m{len(modules)}"
            modules.append((f"{op} {operands}", emit_module([*kernel.callees(), kernel], target, prefix)))
    objects = compile_modules(modules, target)
    assert len(objects) == len(modules) >= len(CASES)
