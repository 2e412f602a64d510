"""What can be chosen about a layer's kernels besides what they compute: one record per family, and its form as plain data.

A cost model chooses where nobody else does. A record that somebody measured to be better may be handed to the lowering functions instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

MOST = 1 << 20  # of any number in a choice


@dataclass(frozen=True)
class Direct:
    """A contraction: the register block, and how its loops are cut. None: as the cost model has it.

    vectors: of output channels in a panel. rows, last_rows: most pixels of a tile, of full panels and of the last one.
    k_parts: parts of the channels, each summed before the next is begun. blocks: of pixels that pass all panels before the next.
    ahead: tiles fetch the weights of the next panel. fill: the last panel has a multiple of so many vectors, if need be without channels.
    """

    vectors: int
    rows: int
    last_rows: int
    k_parts: int | None = None
    blocks: int | None = None
    ahead: bool | None = None
    fill: int | None = None


@dataclass(frozen=True)
class Winograd:
    """A convolution by F(m, taps), taps being the kernel's: m outputs of a tile along each axis. products: how its matrix products are done."""

    m: int
    products: Direct | None = None


@dataclass(frozen=True)
class Strassen:
    """A product by Strassen's scheme, with pairs for pixels and half of the outputs. products: how the tiles of pairs are cut."""

    products: Direct | None = None


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution: vectors of channels and pixels of a block."""

    vectors: int
    pixels: int


@dataclass(frozen=True)
class Chain:
    """Convolutions one after another that may be one operator. fused: they are."""

    fused: bool


@dataclass(frozen=True)
class Grouped:
    """A convolution of groups with few channels, several in a vector: pixels of a block.

    packed: outputs whose weights are together, a multiple of what a block takes; None for as many.
    """

    pixels: int
    packed: int | None = None


Choice = Direct | Winograd | Strassen | Depthwise | Chain | Grouped
ALGORITHMS: Mapping[str, type[Direct] | type[Winograd] | type[Strassen] | type[Depthwise] | type[Chain] | type[Grouped]] = {
    "direct": Direct, "winograd": Winograd, "strassen": Strassen, "depthwise": Depthwise, "chain": Chain, "grouped": Grouped,
}  # fmt: skip


def to_plain(choice: Choice) -> dict[str, Any]:
    """Plain data: the algorithm's name and all that is not left to the cost model."""
    found: dict[str, Any] = {"algorithm": next(name for name, kind in ALGORITHMS.items() if type(choice) is kind)}
    for field in fields(choice):
        value = getattr(choice, field.name)
        if value is not None:
            found[field.name] = to_plain(value) if isinstance(value, Direct) else value
    return found


def from_plain(data: Any) -> Choice:
    """The choice that `to_plain` wrote. Raises ValueError, with what is wrong, for anything else."""
    if not isinstance(data, Mapping) or data.get("algorithm") not in ALGORITHMS:
        raise ValueError(f"{data!r} is not a choice with one of the algorithms {', '.join(ALGORITHMS)}")
    kind = ALGORITHMS[data["algorithm"]]
    known = {field.name: field for field in fields(kind)}
    values = {key: value for key, value in data.items() if key != "algorithm"}
    unknown = set(values) - set(known)
    missing = [name for name, f in known.items() if f.type in ("int", "bool") and name not in values]
    if unknown or missing:
        raise ValueError(
            f"{data!r}: {', '.join([*(f'no {name}' for name in missing), *(f'unknown {name}' for name in unknown)])}"
        )
    for name, value in values.items():
        if known[name].type == "Direct | None":
            values[name] = _direct(value)
        elif known[name].type in ("bool", "bool | None"):
            if not isinstance(value, bool):
                raise ValueError(f"{data!r}: {name} is neither true nor false")
        elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise ValueError(f"{data!r}: {name} is not a positive number")
    return kind(**values)


def _direct(data: Any) -> Direct:
    found = from_plain(data)
    if not isinstance(found, Direct):
        raise ValueError(f"{data!r} is not a choice of algorithm direct")
    return found


def describe(choice: Choice | None) -> str:
    """A few words for tables."""
    if choice is None:
        return "cost model"
    if isinstance(choice, Chain):
        return "fused" if choice.fused else "apart"
    if isinstance(choice, Depthwise):
        return f"{choice.pixels}x{choice.vectors}"
    if isinstance(choice, Grouped):
        return f"groups {choice.pixels}" + (f" packed {choice.packed}" if choice.packed else "")
    if isinstance(choice, Winograd):
        return f"F({choice.m})" + (f" {describe(choice.products)}" if choice.products else "")
    if isinstance(choice, Strassen):
        return "Strassen" + (f" {describe(choice.products)}" if choice.products else "")
    words = [f"{choice.rows}x{choice.vectors}" if choice.rows else f"{choice.last_rows}x{choice.vectors}"]
    words += [f"k/{choice.k_parts}"] * (choice.k_parts is not None) + [f"blocks {choice.blocks}"] * (choice.blocks is not None)
    words += [] if choice.ahead is None else ["ahead" if choice.ahead else "not ahead"]
    words += [] if choice.fill is None else [f"fill {choice.fill}"]
    return " ".join(words)
