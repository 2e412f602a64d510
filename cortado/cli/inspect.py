"""`cortado inspect`: what is in a model file, and what becomes of each of its nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from cortado.cli.console import print_json, progress, table
from cortado.cli.options import ModelSource, json_option, source_options

if TYPE_CHECKING:
    from cortado.compiler.graph import Graph, Node
    from cortado.fates import Fate, Fates


@dataclass(frozen=True)
class SourceNode:
    """An operator of the model file. ops: what it was imported as. kind, fate, kernels: as in `cortado.fates.Fate`."""

    name: str
    type: str
    ops: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    macs: int
    kind: str
    fate: str
    kernels: tuple[str, ...]


@click.command("inspect")
@source_options
@click.option("--target", default="host", show_default=True, metavar="TARGET", help="Whose kernels to name.")
@click.option(
    "--graph", "stage", type=click.Choice(["source", "optimized"]), help="Print the whole graph as text instead, at this stage."
)
@json_option
def inspect_command(source: ModelSource, target: str, stage: str | None, as_json: bool) -> int:
    """Show MODEL's nodes, what becomes of each, and everything that stands in the way of compiling it.

    One line a node: shape, parameters, multiply-adds, and whether it is kept, fused into another's kernel, folded into weights, or removed.
    Obstacles come in one list, with the nearest thing that is supported where there is one; the exit status is then 1.

    \b
    Example: which nodes are folded into which
      cortado inspect squeezenet/ --input data=1,3,227,227
    """
    from cortado.backends.targets import find_target
    from cortado.compiler.optimize import optimize
    from cortado.compiler.text import format_graph
    from cortado.fates import fates_of

    if stage is not None:
        with progress(f"reading {source.path}"):
            graph = source.load()
            text = format_graph(optimize(graph) if stage == "optimized" else graph)
        if as_json:
            print_json({"schema": 1, "stage": stage, "graph": text})
        else:
            click.echo(text, nl=False)
        return 0
    found = find_target(target)
    with progress(f"reading {source.path}"):
        source.require_model()
        fates = fates_of(source.path, source.outputs or None, source.load, found)
    nodes = source_nodes(fates)
    document = as_document(source, fates, nodes)
    if as_json:
        print_json(document)
    else:
        click.echo(as_text(document, nodes))
    return 1 if fates.obstacles else 0


def source_nodes(fates: Fates) -> list[SourceNode]:
    """The file's operators, in its order."""
    groups: dict[str, list[Node]] = {}
    for node in fates.graph.nodes() if fates.graph is not None else ():
        for label in node.origin if node.op not in ("input", "constant") else ():
            groups.setdefault(label, []).append(node)
    return [described(fate, groups.get(fate.name, [])) for fate in fates.operators]


def described(fate: Fate, nodes: list[Node]) -> SourceNode:
    if not nodes:
        return SourceNode(fate.name, fate.type, "", (), "", 0, 0, fate.kind, fate.text, fate.kernels)
    kind = nodes[-1].types[0]
    own = list(dict.fromkeys(node.op for node in nodes if node.op != "transpose")) or ["transpose"]
    read = {value for node in nodes for value in node.inputs if value.constant is not None}
    sizes = sum(value.type.size for value in read), macs_of(nodes)
    return SourceNode(fate.name, fate.type, "+".join(own), kind.shape, kind.dtype, *sizes, fate.kind, fate.text, fate.kernels)


def macs_of(nodes: Iterable[Node]) -> int:
    from cortado.compiler.ops import OPS
    from cortado.compiler.ops.record import input_types

    total = 0
    for node in nodes:
        count = OPS[node.op].macs
        total += count(input_types(node.inputs), node.attrs) if count else 0
    return total


def as_document(source: ModelSource, fates: Fates, nodes: list[SourceNode]) -> dict[str, Any]:
    def boundary(graph: Graph, name: str, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
        return {"name": name, "shape": list(shape), "dtype": dtype, "layout": graph.layouts.get(name, "")}

    graph = fates.graph
    inputs = [] if graph is None else [boundary(graph, n.name, n.types[0].shape, n.types[0].dtype) for n in graph.inputs]
    outputs = [] if graph is None else [boundary(graph, name, value.shape, value.type.dtype) for name, value in graph.outputs]
    constants = [] if graph is None else [node.types[0] for node in graph.nodes() if node.op == "constant"]
    return {
        "schema": 2,
        "name": source.path.name if graph is None else graph.name,
        "inputs": inputs,
        "outputs": outputs,
        "parameters": sum(math.prod(kind.shape) for kind in constants),
        "macs": sum(node.macs for node in nodes),
        "nodes": [asdict(node) for node in nodes],
        "obstacles": list(fates.obstacles),
    }


def as_text(document: dict[str, Any], nodes: list[SourceNode]) -> str:
    lines = [document["name"]]
    for kind in ("inputs", "outputs"):
        for entry in document[kind]:
            shape = ",".join(map(str, entry["shape"]))
            lines.append(f"  {kind[:-1]:6}  {entry['name']}  {entry['dtype']}[{shape}] {entry['layout']}".rstrip())
    lines.append(f"  {document['parameters']:,} parameters, {document['macs']:,} multiply-adds\n")
    rows = [(n.name, n.ops or n.type, "x".join(map(str, n.shape)), f"{n.parameters:,}", f"{n.macs:,}", n.fate) for n in nodes]
    lines.append(table(("node", "operator", "output", "parameters", "macs", "becomes"), rows))
    if document["obstacles"]:
        lines += ["", f"{len(document['obstacles'])} obstacles:", *(f"  {line}" for line in document["obstacles"])]
    return "\n".join(lines)
