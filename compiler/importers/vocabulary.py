"""What an importing function can make: found by reading its code, so that the support table cannot drift from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MappingProxyType
from typing import Any

from cortado.compiler.ops import OPS

_IMPORTERS = __name__.rpartition(".")[0]


def graph_operators(build: Callable[..., Any]) -> frozenset[str]:
    """Names of the graph operators in a function, in the functions and classes of the importers that it uses, and in what it closes over.

    It may name one too many (an operator that only arguments of another caller of a shared helper lead to), never one too few.
    """
    found: set[str] = set()
    seen: set[int] = set()
    todo: list[Any] = [build]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, str):
            found.update({item} & set(OPS))
        else:
            todo.extend(_parts(item))
    return frozenset(found)


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or ()]
        names = {name for code in _codes(item.__code__) for name in code.co_names}
        used = [value for name, value in item.__globals__.items() if name in names and _is_ours(value)]
        constants = [value for code in _codes(item.__code__) for value in code.co_consts]
        return [*cells, *used, *constants, *(item.__defaults__ or ())]
    if isinstance(item, type):
        return list(vars(item).values())
    if isinstance(item, (dict, MappingProxyType)):
        return [*item, *_values(item)]
    return list(item) if isinstance(item, (tuple, list, frozenset)) else []


def _values(table: Mapping[Any, Any]) -> list[Any]:
    return list(table.values())


def _is_ours(value: Any) -> bool:
    """A function or class of an operator family (not of what all families share), or plain data."""
    if isinstance(value, (FunctionType, type)):
        shared = {f"{_IMPORTERS}.caffe2_{name}" for name in ("call", "args", "blobs", "window")}
        return value.__module__.startswith(f"{_IMPORTERS}.caffe2_") and value.__module__ not in shared
    return isinstance(value, (dict, MappingProxyType, str))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
