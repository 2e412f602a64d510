"""Runs graphs on this machine inside the compiler: what calibration is given as its executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cortado.backends.codegen import ObjectFile, Source, compile_modules
from cortado.backends.targets import find_target
from cortado.build import build
from cortado.compiler.graph import Graph
from cortado.compiler.lower import lower
from cortado.compiler.options import CompileOptions
from cortado.compiler.reference import run_graph
from cortado.compiler.target import Target
from cortado.compiler.types import Executor
from cortado.errors import TargetError, UnsupportedError
from cortado.model import Model


class ReferenceExecutor:
    """A graph by its operators' references: slow, and everywhere."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return run_graph(self._graph, feeds)


def host_executors() -> Callable[[Graph], Executor]:
    """A function that compiles graphs for this machine as they are.

    It keeps the objects: graphs that differ in their weights alone generate code once. Where no code can be made or run for this machine,
    or an operator has no kernel, the reference runs.
    """
    try:
        target: Target | None = find_target("host")
    except TargetError:
        target = None
    made: dict[Source, ObjectFile] = {}

    def objects(modules: Sequence[tuple[str, Source]], target: Target) -> list[ObjectFile]:
        known = [ObjectFile(name, made[text].data, made[text].frames) for name, text in modules if text in made]
        fresh = [module for module in modules if module[1] not in made]
        for (_, text), item in zip(fresh, compile_modules(fresh, target, beside=known), strict=True):
            made[text] = item
        return [ObjectFile(name, made[text].data, made[text].frames) for name, text in modules]

    def make(graph: Graph) -> Executor:
        if target is None:
            return ReferenceExecutor(graph)
        try:
            program = lower(graph, target)
        except UnsupportedError:
            return ReferenceExecutor(graph)
        source = {"name": graph.name, "sha256": ""}
        return Model(build(program, target, CompileOptions(), source, make_objects=objects))

    return make
