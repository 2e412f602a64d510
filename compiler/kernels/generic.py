"""Ways of computing that are right for everything and fast for nothing: what a lowering falls back on, and what would avoid it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SMALL = 4096  # elements: what takes no time is no obstacle


@dataclass(frozen=True)
class GenericWay:
    """does: what the kernels do instead of the fast thing. avoid: what in the network would make them fast."""

    does: str
    avoid: str


# By the name that a KernelCall declares. Cores without vectors have no faster way, there nothing of it is declared.
GENERIC: Mapping[str, GenericWay] = MappingProxyType(
    {
        "single_moves": GenericWay(
            "moves single elements: what are neighbours in the result are none in the source",
            "keep the innermost axis in its place, or transpose in one step where one of both sides' innermost axes is kept",
        ),
        "single_elements": GenericWay(
            "computes single elements: an operand's innermost axis is neither dense nor repeated",
            "make the operand contiguous first, or broadcast along other axes than the innermost",
        ),
        "packed_each_run": GenericWay(
            "packs its weights in every run: they are computed, not constant",
            "give filter and bias as constants (init=, --init), or let operators that make them read constants alone",
        ),
        "narrow_groups": GenericWay(
            "computes group by group, each with fewer channels than a vector has lanes",
            "use constant weights and groups with 2, 4 or 8 outputs, which share vectors, or wider ones, or one channel per group (depthwise)",
        ),
        "across_rows": GenericWay(
            "reads single elements along an axis that is not dense, since the innermost axis has no length of its own",
            "reduce or normalize along the innermost axis, or keep an inner axis",
        ),
    }
)


def generic_if(name: str, condition: bool, elements: int) -> str:
    """The name where the condition holds and the work is worth a word, else ""."""
    assert name in GENERIC
    return name if condition and elements > SMALL else ""
