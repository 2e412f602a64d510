"""What was measured to be the best choice for a kernel: a table that a compilation may be given, and the keys of its entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Chain, Choice
from cortado.compiler.kernels.quantized_sums import centred_weights, fits_byte
from cortado.compiler.program import Operand, contiguous_strides
from cortado.errors import OptionError

QUANTIZED = ("q_conv", "q_fc")
SCALES = ("quant", "lo", "hi")  # attributes of quantized nodes that no time depends on: they come from calibration


@dataclass(frozen=True)
class Tuning:
    """choices: by `kernel_key`, for one core. name: of the file, for messages. sha256: of the file."""

    choices: Mapping[str, Choice]
    name: str
    sha256: str

    def choice(self, node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> Choice | None:
        return self.choices.get(kernel_key(node, ins, outs))

    def fused(self, chain: Node) -> bool | None:
        """Whether a conv_chain was measured to be faster than its convolutions one by one; None where it was not measured."""
        choice = self.choices.get(chain_key(chain))
        if choice is not None and not isinstance(choice, Chain):
            raise OptionError(f"{self.name} does not fit {chain.op} {chain.name}: it is fused or apart; measure it anew")
        return None if choice is None else choice.fused


def chain_key(chain: Node) -> str:
    """As `kernel_key` of a conv_chain: it is chosen before its tensors have places, so that none is a part of another."""
    ins, outs = (
        [Operand(kind, contiguous_strides(kind.shape)) for kind in kinds]
        for kinds in ([value.type for value in chain.inputs], chain.types)
    )
    return kernel_key(chain, ins, outs)


def kernel_key(node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> str:
    """Everything about a node that the time of its kernels depends on, but for the values of its constants.

    Nodes with one key have one code, quantized ones up to numbers in it. Of the weights of these it matters whether they fit a byte.
    """
    inputs = [_operand(operand) + "=" * (value.constant is not None) for operand, value in zip(ins, node.inputs, strict=True)]
    attrs = [f"{name}={_attribute(value)}" for name, value in sorted(node.attrs.items()) if name not in SCALES]
    wide = (
        ["wide"] if node.op in QUANTIZED and node.inputs[1].constant is not None and not fits_byte(centred_weights(node)) else []
    )
    return " ".join([node.op, *wide, *inputs, "->", *map(_operand, outs), *attrs])


def _operand(operand: Operand) -> str:
    strides = "" if operand.contiguous else ":" + ",".join(map(str, operand.strides))
    return f"{replace(operand.type, quant=None)}{strides}"


def _attribute(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ",".join(map(_attribute, value)) + ")"
    return str(value)
