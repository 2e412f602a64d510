"""What a convolution or matrix product does to its accumulators before it stores them: bias, residual, activation, in this order.

An epilogue is a tuple of entries, each kind at most once:
("bias",) adds an input b[O]; ("residual",) adds an input of the output's shape;
("activation", name, attrs) applies an elementwise operator of one input, its attributes as (key, value) pairs sorted by key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cortado.compiler.ops.checks import show
from cortado.compiler.ops.elementwise import UNARY
from cortado.compiler.ops.record import require
from cortado.compiler.types import TensorType

ORDER = ("bias", "residual", "activation")
Epilogue = tuple[tuple[Any, ...], ...]


def inputs_taken(epilogue: Epilogue) -> int:
    """How many of the node's inputs the epilogue reads."""
    return sum(entry[0] != "activation" for entry in epilogue)


def check_epilogue(epilogue: Epilogue, out: TensorType, extra: Sequence[TensorType]) -> None:
    """Refuse an epilogue that is not well formed for an output of type `out` and the inputs it takes."""
    kinds = [entry[0] for entry in epilogue]
    assert kinds == [kind for kind in ORDER if kind in kinds], f"epilogue entries {kinds} are not a selection of {ORDER} in order"
    if "activation" in kinds:
        _, name, pairs = epilogue[-1]
        assert name in UNARY, f"epilogue activation {name!r} is not an elementwise operator of one input"
        assert tuple(sorted(UNARY[name].attrs)) == tuple(key for key, _ in pairs), f"activation {name} has attributes {pairs}"
        got = UNARY[name].infer((out,), dict(pairs))[0]
        assert got == out, f"activation {name} turns {out} into {got}"
    taken = inputs_taken(epilogue)
    require(len(extra) == taken, f"takes {taken} input{'s' if taken != 1 else ''} after the weights, got {len(extra)}")
    for entry, kind in zip(epilogue, extra, strict=False):
        require(kind.dtype == out.dtype, f"the {entry[0]} is {kind.dtype}, the result {out.dtype}: they must be the same type")
        wanted = out.shape[-1:] if entry[0] == "bias" else out.shape
        require(kind.shape == wanted, f"the {entry[0]} has shape {show(kind.shape)}; it must be {show(wanted)}")


def apply_epilogue(acc: np.ndarray, epilogue: Epilogue, extra_inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The epilogue in numpy, on accumulators [..., O] already of the output's type."""
    left = iter(extra_inputs)
    for entry in epilogue:
        activation = entry[0] == "activation"
        acc = UNARY[entry[1]].reference((acc,), dict(entry[2]))[0] if activation else acc + next(left)
    return acc
