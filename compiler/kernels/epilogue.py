"""What happens to accumulators between the last multiply-add and the store: residual and activation; the bias is where they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.scalar import emit_op


@dataclass(frozen=True)
class Epilogue:
    """A node's `epilogue` attribute as kernels need it.

    bias, residual: the node's input position of each, or None. activation: (operator name, its attributes as sorted pairs), or None.
    """

    bias: int | None = None
    residual: int | None = None
    activation: tuple[str, tuple[tuple[str, Any], ...]] | None = None

    @property
    def kind(self) -> EpilogueKind:
        return EpilogueKind(self.bias is not None, self.residual is not None, self.activation)


@dataclass(frozen=True)
class EpilogueKind:
    """What of an epilogue shapes code: which entries there are, not which inputs they read.

    A bias is not added in a pass of its own: accumulators start from it. That is one rounding less and costs no instruction,
    and float32 rules allow it (re-association inside a reduction).
    """

    bias: bool = False
    residual: bool = False
    activation: tuple[str, tuple[tuple[str, Any], ...]] | None = None

    @property
    def header(self) -> int:
        """Rows of per-channel numbers before a panel's weights."""
        return int(self.bias)

    def stored(self, scalar: str) -> str:
        """The scalar type of what is stored, where accumulators are of type `scalar`."""
        return scalar

    def added(self, scalar: str) -> str:
        """As `stored`, of residuals."""
        return scalar

    def opened(self, k: KernelBuilder, out: Val, vectors: int, lanes: int) -> Val:
        """Where the tiles of a panel store their first pixel. out: the output there."""
        return out

    def closed(self, k: KernelBuilder, place: Val, out: Val, lanes: int, channels: int) -> None:
        """What is left to do when all tiles of a panel of `channels` have stored to the `place` that was opened for them."""

    def finish(self, k: KernelBuilder, accumulators: Sequence[Val], residuals: Sequence[Val]) -> list[Val]:
        """The values to store. residuals: one per accumulator where the epilogue has a residual, else empty."""
        values = [a + r for a, r in zip(accumulators, residuals, strict=True)] if self.residual else list(accumulators)
        if self.activation is None:
            return values
        name, pairs = self.activation
        attrs: Mapping[str, Any] = dict(pairs)
        return [emit_op(k, name, [v], attrs) for v in values]


def parse_epilogue(entries: Sequence[tuple[Any, ...]], first: int) -> Epilogue:
    """entries: the node's `epilogue` attribute; first: the input position of the first entry that takes an input."""
    found: dict[str, Any] = {}
    for entry in entries:
        if entry[0] == "activation":
            found["activation"] = (entry[1], tuple(entry[2]))
        else:
            found[entry[0]] = first
            first += 1
    return Epilogue(**found)
