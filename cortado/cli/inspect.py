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


@dataclass(frozen=True)
class SourceNode:
    """A node of the model file. ops: what it was imported as. fate: what computes it after optimization."""

    name: str
    ops: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    macs: int
    fate: str


@click.command("inspect")
@source_options
@click.option(
    "--graph", "stage", type=click.Choice(["source", "optimized"]), help="Print the whole graph as text instead, at this stage."
)
@json_option
def inspect_command(source: ModelSource, stage: str | None, as_json: bool) -> None:
    """Show MODEL's nodes and what becomes of them.

    One line a node: shape, parameters, multiply-adds, and the node of the optimized graph that computes it.

    \b
    Example: which nodes are folded into which
      cortado inspect squeezenet/ --input data=1,3,227,227
    """
    from cortado.compiler.optimize import optimize
    from cortado.compiler.text import format_graph

    with progress(f"reading {source.path}"):
        graph = source.load()
        optimized = optimize(graph) if stage != "source" else graph
    if stage is not None:
        text = format_graph(optimized)
        if as_json:
            print_json({"schema": 1, "stage": stage, "graph": text})
        else:
            click.echo(text, nl=False)
        return
    nodes = source_nodes(graph, optimized)
    document = as_document(graph, nodes)
    if as_json:
        print_json(document)
    else:
        click.echo(as_text(document, nodes))


def source_nodes(graph: Graph, optimized: Graph) -> list[SourceNode]:
    """The file's nodes in the order of the imported graph."""
    groups: dict[str, list[Node]] = {}
    for node in graph.nodes():
        for label in node.origin if node.op not in ("input", "constant") else ():
            groups.setdefault(label, []).append(node)
    fates = fates_by_origin(optimized)
    return [described(label, nodes, fates.get(label, "gone: folded or not needed")) for label, nodes in groups.items()]


def fates_by_origin(optimized: Graph) -> dict[str, str]:
    """Source node -> the optimized nodes that compute it; data movement is told only where there is nothing else."""
    found: dict[str, list[Node]] = {}
    for node in optimized.nodes():
        for label in node.origin if node.op not in ("input", "constant") else ():
            found.setdefault(label, []).append(node)
    fates = {}
    for label, nodes in found.items():
        computing = [node for node in nodes if node.op not in ("reshape", "transpose")] or nodes
        fates[label] = ", ".join(f"{node.name} ({composition(node)})" for node in computing)
    return fates


def composition(node: Node) -> str:
    """The operator and what is fused into it: "conv+bias+relu"."""
    fused = [entry[1] if entry[0] == "activation" else entry[0] for entry in node.attrs.get("epilogue", ())]
    inner = [instruction[0] for instruction in node.attrs.get("expr", ())]
    return "+".join([node.op, *fused]) + (f": {' '.join(inner)}" if inner else "")


def described(label: str, nodes: list[Node], fate: str) -> SourceNode:
    last = nodes[-1]
    own = list(dict.fromkeys(node.op for node in nodes if node.op != "transpose")) or ["transpose"]
    read = {value for node in nodes for value in node.inputs if value.constant is not None}
    parameters = sum(value.type.size for value in read)
    return SourceNode(label, "+".join(own), last.types[0].shape, last.types[0].dtype, parameters, macs_of(nodes), fate)


def macs_of(nodes: Iterable[Node]) -> int:
    from cortado.compiler.ops import OPS
    from cortado.compiler.ops.record import input_types

    total = 0
    for node in nodes:
        count = OPS[node.op].macs
        total += count(input_types(node.inputs), node.attrs) if count else 0
    return total


def as_document(graph: Graph, nodes: list[SourceNode]) -> dict[str, Any]:
    def boundary(name: str, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
        return {"name": name, "shape": list(shape), "dtype": dtype, "layout": graph.layouts.get(name, "")}

    constants = [node.types[0] for node in graph.nodes() if node.op == "constant"]
    return {
        "schema": 1,
        "name": graph.name,
        "inputs": [boundary(node.name, node.types[0].shape, node.types[0].dtype) for node in graph.inputs],
        "outputs": [boundary(name, value.shape, value.type.dtype) for name, value in graph.outputs],
        "parameters": sum(math.prod(kind.shape) for kind in constants),
        "macs": sum(node.macs for node in nodes),
        "nodes": [asdict(node) for node in nodes],
    }


def as_text(document: dict[str, Any], nodes: list[SourceNode]) -> str:
    lines = [document["name"]]
    for kind in ("inputs", "outputs"):
        for entry in document[kind]:
            shape = ",".join(map(str, entry["shape"]))
            lines.append(f"  {kind[:-1]:6}  {entry['name']}  {entry['dtype']}[{shape}] {entry['layout']}".rstrip())
    lines.append(f"  {document['parameters']:,} parameters, {document['macs']:,} multiply-adds\n")
    rows = [(n.name, n.ops, "x".join(map(str, n.shape)), f"{n.parameters:,}", f"{n.macs:,}", n.fate) for n in nodes]
    return "\n".join([*lines, table(("node", "operator", "output", "parameters", "macs", "becomes"), rows)])
