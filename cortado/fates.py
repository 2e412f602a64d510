"""What becomes of each operator of a model file, and everything that stands in the way of compiling it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cortado.compiler.graph import Graph, Node
from cortado.compiler.importers.caffe2 import plan_net
from cortado.compiler.importers.caffe2_blobs import Step
from cortado.compiler.lower import lower
from cortado.compiler.ops.conv_chain import stage_attrs
from cortado.compiler.optimize import optimize
from cortado.compiler.passes.fuse_chains import fuse_chains
from cortado.compiler.program import Program
from cortado.compiler.rewrite import Rewrite, Steps
from cortado.compiler.target import Target
from cortado.errors import UnsupportedError
from cortado.proto.caffe2 import Operator
from cortado.source import read_nets

MOVING = ("reshape", "transpose", "slice", "concat")

# Rule -> why a node that it replaced is not there any more; other rules are told by their names.
WHY: Mapping[str, str] = {
    "fold_constants": "its result is known when compiling",
    "reuse": "another node computes the same",
    "drop_neutral_operand": "it changes nothing",
    "drop_no_change": "it changes nothing",
    "drop_single_cell_pool": "its windows have one cell",
    "drop_decided_branches": "its condition is known",
    "drop_broadcasts": "the operator that reads it broadcasts by itself",
    "merge_clamps": "another clamp does its work",
}


@dataclass(frozen=True)
class Fate:
    """Of one operator of the file.

    kind: "kept", "fused" (a part of another's kernel), "folded" (into the weights or arguments of another), "view" (where its result lies
    costs nothing), "removed", or "obstacle". text: all of it in words. kernels: the families of the kernels that compute it.
    """

    name: str
    type: str
    kind: str
    text: str
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fates:
    """graph, optimized, program: as far as the way went. obstacles: one line each, all of them."""

    operators: tuple[Fate, ...]
    obstacles: tuple[str, ...]
    graph: Graph | None
    optimized: Graph | None
    program: Program | None


def fates_of(source: Any, outputs: Sequence[str] | None, load: Any, target: Target) -> Fates:
    """source: as `cortado.load` takes it; load: gives its graph. Errors other than UnsupportedError are raised."""
    nets = read_nets(source)
    plan = plan_net(nets.predict, outputs, nets.where)
    needed = {step.index for step in plan.steps}
    steps = plan.renamed.steps
    try:
        graph: Graph = load()
    except UnsupportedError as error:
        lines = error.nodes or (str(error),)
        return Fates(tuple(_unread(step, needed, lines) for step in steps), tuple(lines), None, None, None)
    trace: list[Rewrite] = []
    optimized = fuse_chains(optimize(graph, trace=trace), target, 1, Steps(trace=trace, count=len(trace)))
    obstacles: tuple[str, ...] = ()
    program: Program | None = None
    try:
        program = lower(optimized, target)
    except UnsupportedError as error:
        obstacles = error.nodes or (str(error),)
    teller = _Teller(graph, optimized, program, trace, obstacles)
    found = [teller.fate(s.operator) if s.index in needed else _removed(s.operator, "no output needs it") for s in steps]
    return Fates(tuple(found), obstacles, graph, optimized, program)


def composition(node: Node) -> str:
    """The operator and what is fused into it: "conv+bias+relu"."""
    if node.op == "conv_chain":
        return f"{node.op}: {' '.join('+'.join(['conv', *_entries(own)]) for own in stage_attrs(node.attrs))}"
    fused = _entries(node.attrs)
    inner = [instruction[0] for instruction in node.attrs.get("expr", ())]
    return "+".join([node.op, *fused]) + (f": {' '.join(inner)}" if inner else "")


def _entries(attrs: Mapping[str, Any]) -> list[str]:
    return [entry[1] if entry[0] == "activation" else entry[0] for entry in attrs.get("epilogue", ())]


def _removed(op: Operator, why: str) -> Fate:
    return Fate(op.label, op.type, "removed", f"removed: {why}")


def _unread(step: Step, needed: set[int], lines: Sequence[str]) -> Fate:
    """Of a file that cannot be imported: what each operator has to do with it."""
    op = step.operator
    if step.index not in needed:
        return _removed(op, "no output needs it")
    own = [line for line in lines if line.startswith(f"operator {step.place} {op.type}")]
    if own:
        return Fate(op.label, op.type, "obstacle", own[0].partition(": ")[2])
    return Fate(op.label, op.type, "kept", "can be imported, or waits for one that cannot")


class _Teller:
    def __init__(
        self, graph: Graph, optimized: Graph, program: Program | None, trace: Sequence[Rewrite], obstacles: Sequence[str]
    ) -> None:
        self.before = _by_label(graph)
        self.after = _by_label(optimized)
        self.constants = {label for node in graph.nodes() if node.op == "constant" for label in node.origin}
        self.last_rule = {entry.node: entry.rule for entry in trace}
        self.steps: dict[str, list[str]] = {}
        for step in program.steps if program is not None else ():
            family = step.kernel.name.rpartition("_")[0] or step.kernel.name
            self.steps.setdefault(step.name.partition("/output")[0], []).append(family)
        self.known = program is not None
        self.obstacles = obstacles

    def fate(self, op: Operator) -> Fate:
        label = op.label
        nodes = self.after.get(label, [])
        if not nodes:
            return self._gone(op)
        computing = [node for node in nodes if node.op not in MOVING] or nodes
        blocked = [line for node in computing for line in self.obstacles if node.name in line.replace(":", " ").split()]
        if blocked:
            return Fate(label, op.type, "obstacle", blocked[0])
        kernels = tuple(dict.fromkeys(family for node in computing for family in self._kernels(node)))
        if self.known and not kernels:
            names = ", ".join(f"{node.name} ({node.op})" for node in computing)
            return Fate(label, op.type, "view", f"a view: {names} lies where its input does, and takes no step")
        own = {node.op for node in self.before.get(label, [])}
        parts = [self._part(node, label, own, kernels) for node in computing]
        kind = next(kind for kind in ("kept", "fused", "folded") if any(part[0] == kind for part in parts))
        return Fate(label, op.type, kind, "; ".join(dict.fromkeys(part[1] for part in parts)), kernels)

    def _kernels(self, node: Node) -> list[str]:
        pieces = [name for name in self.steps if name == node.name or re.fullmatch(re.escape(node.name) + r"/\d+", name)]
        return [family for name in pieces for family in self.steps[name]]

    def _part(self, node: Node, label: str, own: set[str], kernels: Sequence[str]) -> tuple[str, str]:
        """What one node of the optimized graph has of the operator."""
        what = f"{node.name} ({composition(node)})"
        fused = set(re.split(r"[+: ]+", composition(node))) - {node.op}
        if node.op in own or (len(node.origin) == 1 and label in node.origin):
            return "kept", f"kept as {what}"
        if own & fused or ("add" in own and "residual" in fused):
            return "fused", f"fused into {'kernel ' + '+'.join(kernels) + ' of ' if kernels else ''}{what}"
        return "folded", f"folded into {what}"

    def _gone(self, op: Operator) -> Fate:
        before = self.before.get(op.label)
        if not before:
            if op.label in self.constants:
                return Fate(op.label, op.type, "folded", "folded: its result is known when loading")
            if op.type == "If":
                return _removed(op, "which branch gives it is known when loading")
            return _removed(op, "its result is its input's, or known when loading")
        rules = [self.last_rule[node.name] for node in reversed(before) if node.name in self.last_rule]
        if not rules:
            return _removed(op, "nothing needs it any more")
        rule = next((rule for rule in rules if rule in WHY), rules[0])
        kind = "folded" if rule == "fold_constants" else "removed"
        return Fate(op.label, op.type, kind, f"{kind}: {WHY.get(rule, rule.replace('_', ' '))}")


def _by_label(graph: Graph) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in graph.nodes():
        for label in node.origin if node.op not in ("input", "constant") else ():
            found.setdefault(label, []).append(node)
    return found
