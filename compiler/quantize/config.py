"""How a graph is to be quantized: what a user may fix, and what is left to the error at the outputs."""

from __future__ import annotations

from dataclasses import dataclass

from cortado.compiler.quantize.ranges import METHODS
from cortado.errors import OptionError

FEWEST_SAMPLES, MOST_SAMPLES = 4, 32
MOST_ELEMENTS = 48_000_000  # of all samples that are compared on: about half a second per candidate


@dataclass(frozen=True)
class QuantizeConfig:
    """None leaves a choice to the error at the network's outputs over the first `evaluate` calibration samples.

    method: how activations' ranges are found, a name in ranges.METHODS. correct_bias: move biases by the mean error that rounding the
    weights makes. equalize: scale channels so that neighbouring layers share what is hard to represent. evaluate: None takes up to
    MOST_SAMPLES, fewer where a sample's tensors are large.
    """

    method: str | None = None
    correct_bias: bool | None = None
    equalize: bool | None = None
    evaluate: int | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise OptionError(f"calibration method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.evaluate is not None and self.evaluate < 1:
            raise OptionError(f"evaluate={self.evaluate}: at least one sample is needed")

    def samples_for(self, elements: int) -> int:
        """How many samples to compare on, where a sample has so many observed elements."""
        if self.evaluate is not None:
            return self.evaluate
        return max(FEWEST_SAMPLES, min(MOST_SAMPLES, MOST_ELEMENTS // max(1, elements)))
