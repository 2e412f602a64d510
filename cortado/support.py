"""Which operators are supported: read from the tables that importing, the reference and lowering themselves use."""

from __future__ import annotations

from dataclasses import dataclass

from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.importers.caffe2_unsupported import REASONS
from cortado.compiler.importers.vocabulary import graph_operators
from cortado.compiler.kernels.table import LOWERINGS
from cortado.compiler.ops import OPS

VIEWS = frozenset({"reshape", "slice", "concat", "branch"})  # lowered as views or copies
REWRITTEN = frozenset({"batch_norm"})  # the optimizer leaves none


@dataclass(frozen=True)
class SourceOperator:
    """An operator of a file format. made_of: the graph operators that it may become; missing: those of them without a kernel.

    reason: why it is not imported, or "".
    """

    name: str
    made_of: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str = ""

    @property
    def imported(self) -> bool:
        return not self.reason

    @property
    def compiled(self) -> bool:
        return self.imported and not self.missing


def has_kernel(op: str) -> bool:
    return op in LOWERINGS or op in VIEWS or op in REWRITTEN


def caffe2_operators() -> list[SourceOperator]:
    """All that are imported, and those that are known not to be, by name."""
    found = [SourceOperator(name, reason=reason) for name, reason in REASONS.items() if name not in OPERATORS]
    for name, spec in OPERATORS.items():
        made_of = tuple(sorted(graph_operators(spec.build)))
        found.append(SourceOperator(name, made_of, tuple(op for op in made_of if not has_kernel(op))))
    return sorted(found, key=lambda operator: operator.name.lower())


def graph_operator_table() -> list[tuple[str, str, bool]]:
    """(name, attributes, whether there is a kernel) of the operators that graphs consist of. Every one has a reference."""
    return [(name, ", ".join(OPS[name].attrs), has_kernel(name)) for name in sorted(OPS)]


def markdown() -> str:
    """docs/operators.md."""
    operators = caffe2_operators()
    supported = [operator for operator in operators if operator.imported]
    lines = [
        "# Operators",
        "",
        "Written by `cortado ops --markdown`; a test compares it with the tables. Every operator that is imported runs on the numpy",
        "reference; *compiled* says that everything it can become has kernels, which are recorded for every target of `cortado targets`.",
        "",
        "## Caffe2",
        "",
        f"{len(supported)} operators are imported, {sum(operator.compiled for operator in supported)} of them compiled.",
        "",
        "| operator | imported | reference | compiled |",
        "| --- | --- | --- | --- |",
    ]
    for operator in operators:
        if operator.imported:
            compiled = "yes" if operator.compiled else f"no kernel for {', '.join(operator.missing)}"
            lines.append(f"| {operator.name} | yes | yes | {compiled} |")
        else:
            lines.append(f"| {operator.name} | no: {operator.reason} | no | no |")
    lines += [
        "",
        "## Graph operators",
        "",
        "What every format becomes.",
        "",
        "| operator | attributes | kernel |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {attrs} | {'yes' if kernel else 'no'} |" for name, attrs, kernel in graph_operator_table()]
    return "\n".join(lines) + "\n"
