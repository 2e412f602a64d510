"""Who may import whom, no cycles, and files and functions of readable size. Reads the sources; imports nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "cortado.compiler": "compiler",
    "cortado.backends": "backends",
    "cortado.runtime": "runtime",
    "cortado.proto": "proto",
    "cortado": "cortado",
}
FILE_LINES, FUNCTION_LINES = 500, 70

# The longest prefix of a module's name decides. Every layer may import the standard library, cortado.errors and itself.
COMPILER_OF_BACKENDS = ("lang", "builder", "virtual", "target", "types", "program", "kernels")
COMPILER_OF_RUNTIME = ("types", "program", "target")
LAYERS: dict[str, tuple[str, ...]] = {
    "cortado.proto": ("google.protobuf", "flatbuffers", "numpy"),
    "cortado.compiler": ("numpy", "numba", "cortado.compiler"),
    "cortado.compiler.importers": ("numpy", "cortado.compiler", "cortado.proto"),
    "cortado.backends": (
        "numpy",
        "llvmlite",
        "platformdirs",
        "cortado.backends",
        *(f"cortado.compiler.{name}" for name in COMPILER_OF_BACKENDS),
    ),
    "cortado.runtime": ("numpy", "llvmlite", "cortado.backends", *(f"cortado.compiler.{name}" for name in COMPILER_OF_RUNTIME)),
    "cortado.errors": (),
    "cortado": ("numpy", "PIL", "click", "rich", "platformdirs", "cortado"),
}
# Imported only inside the functions that need them, so that `import cortado` and the command line start at once.
HEAVY = ("llvmlite", "numba", "PIL", "rich", "onnxruntime", "sklearn")
HEAVY_AT_HOME = {"cortado.backends": ("llvmlite",), "cortado.runtime": ("llvmlite",)}


@dataclass(frozen=True)
class Import:
    """One imported module. at_load: it happens when the importing module is loaded; for_types: only a type checker sees it."""

    name: str
    line: int
    at_load: bool
    for_types: bool


@dataclass(frozen=True)
class Source:
    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]


def module_names() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def imports_of(tree: ast.Module, known: dict[str, Path]) -> Iterator[Import]:
    def walk(node: ast.AST, at_load: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load, for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: import by full name, not relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner if inner in known else node.module, node.lineno, at_load, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from walk(child, at_load, True)
            for child in node.orelse:
                yield from walk(child, at_load, for_types)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_load and not inside, for_types)

    yield from walk(tree, True, False)


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    known = module_names()
    found = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found[name] = Source(name, path, tree, tuple(imports_of(tree, known)))
    return found


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def layer_of(name: str) -> str:
    return max((layer for layer in LAYERS if within(name, layer)), key=len)


def test_every_layer_has_modules(sources: dict[str, Source]) -> None:
    assert {layer_of(name) for name in sources} == set(LAYERS)


def test_imports_follow_the_layers(sources: dict[str, Source]) -> None:
    wrong = []
    for source in sources.values():
        layer = layer_of(source.name)
        package = next(p for p in FOLDERS if within(source.name, p))
        allowed = (*LAYERS[layer], "cortado.errors", *([package] if layer != "cortado.errors" else []))
        for item in source.imports:
            top = item.name.partition(".")[0]
            if top in sys.stdlib_module_names or any(within(item.name, prefix) for prefix in allowed):
                continue
            wrong.append(f"{source.path.relative_to(ROOT)}:{item.line}: {layer} may not import {item.name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_late(sources: dict[str, Source]) -> None:
    wrong = []
    for source in sources.values():
        at_home = HEAVY_AT_HOME.get(layer_of(source.name), ())
        for item in source.imports:
            top = item.name.partition(".")[0]
            if item.at_load and not item.for_types and top in HEAVY and top not in at_home:
                wrong.append(f"{source.path.relative_to(ROOT)}:{item.line}: import {top} inside the function that needs it")
    assert not wrong, "\n".join(wrong)


def test_no_cycles(sources: dict[str, Source]) -> None:
    edges = {
        source.name: sorted({i.name for i in source.imports if not i.for_types and i.name in sources and i.name != source.name})
        for source in sources.values()
    }
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in state:
            state[name] = 1
            for other in edges[name]:
                visit(other, (*path, name))
            state[name] = 2

    for name in edges:
        visit(name, ())


def test_files_and_functions_stay_readable(sources: dict[str, Source]) -> None:
    wrong = []
    tests = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted((ROOT / "tests").rglob("*.py"))]
    for path, tree in [*((s.path, s.tree) for s in sources.values()), *tests]:
        where = path.relative_to(ROOT)
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_LINES:
            wrong.append(f"{where}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                size = node.end_lineno - node.lineno + 1
                if size > FUNCTION_LINES:
                    wrong.append(f"{where}:{node.lineno}: {node.name} has {size} lines, at most {FUNCTION_LINES}")
    assert not wrong, "\n".join(wrong)


def test_no_module_level_mutable_state(sources: dict[str, Source]) -> None:
    """No `global` statement, and no module-level name in capitals or not that starts as an empty container."""
    wrong = []
    for source in sources.values():
        where = source.path.relative_to(ROOT)
        wrong += [f"{where}:{n.lineno}: global {', '.join(n.names)}" for n in ast.walk(source.tree) if isinstance(n, ast.Global)]
        for node in source.tree.body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            if value is not None and ast.unparse(value) in ("{}", "[]", "dict()", "list()", "set()"):
                wrong.append(f"{where}:{node.lineno}: an empty container at module level is state")
    assert not wrong, "\n".join(wrong)
