"""Control flow of Caffe2: `If` with nets as branches.

A branch writes the blobs of the net around it. Before blobs are resolved, both branches are put in the place of the `If`, each writing blobs
of its own, and for every blob that a branch writes one operator chooses between the branches' values. Branches have no effect but their
blobs, so this means the same; what only the branch that is not taken needs is not computed (`compiler.branches`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import BOOL, Call, OpSpec
from cortado.errors import FormatError, ShapeError, UnsupportedError
from cortado.proto.caffe2 import NetDef, Operator, argument

Results = Sequence[Value | None]
Placed = tuple[Operator, str]
MAX_DEPTH = 16
BRANCHES = ("then", "else")


def without_branches(net: NetDef, where: str) -> tuple[NetDef, tuple[str, ...]]:
    """The net with every `If` replaced by its branches' operators and choices (see above), and the place of each operator in the file:

    "7", or "7 then 2" for operator 2 of the then_net of operator 7. FormatError where an `If` is malformed.
    """
    if not any(op.type == "If" for op in net.operators):
        return net, tuple(map(str, range(len(net.operators))))
    taken = {name for op in _all_operators(net.operators) for name in (*op.inputs, *op.outputs)} | set(net.external_inputs)
    names = _Names({}, set(net.external_inputs), inside=False)
    flat = _Flattening(where, taken).flatten(net.operators, names, "")
    return replace(net, operators=tuple(op for op, _ in flat)), tuple(place for _, place in flat)


def _all_operators(operators: Iterable[Operator]) -> Iterable[Operator]:
    stack = list(operators)
    while stack:
        op = stack.pop()
        yield op
        for value in op.args.values():
            stack += value.n.operators if value.n is not None else ()


@dataclass
class _Names:
    """What blobs are called in one net. around: names that the nets around give; written: those of this net's own writes."""

    around: Mapping[str, str]
    defined: set[str]  # blobs that hold a value
    inside: bool = True  # of a branch; the outermost net writes blobs under their own names
    written: dict[str, str] = field(default_factory=dict)

    def read(self, name: str) -> str:
        return self.written.get(name, self.around.get(name, name))

    def branch(self, more: Iterable[str]) -> _Names:
        return _Names({**self.around, **self.written}, self.defined | set(more))


@dataclass
class _Flattening:
    """taken: all blob names."""

    where: str
    taken: set[str]

    def flatten(self, operators: Sequence[Operator], names: _Names, inside: str, depth: int = 0) -> list[Placed]:
        """inside: the place of the branch, with a space behind it, or ""."""
        if depth > MAX_DEPTH:
            raise FormatError(f"{self.where}: If operators are nested more than {MAX_DEPTH} deep")
        done: list[Placed] = []
        for number, op in enumerate(operators):
            place = f"{inside}{number}"
            if op.type == "If":
                done += self._branches(op, names, place, depth)
            else:
                inputs = tuple(map(names.read, op.inputs))
                moved = replace(op, inputs=inputs, outputs=tuple(self._write(name, names) for name in op.outputs))
                done.append((moved, place))
        return done

    def _write(self, name: str, names: _Names) -> str:
        names.defined.add(name)
        if not names.inside:
            return name
        if name not in names.written:
            number, new = 2, f"{name}/branch"
            while new in self.taken:
                number, new = number + 1, f"{name}/branch_{number}"
            self.taken.add(new)
            names.written[name] = new
        return names.written[name]

    def _branches(self, op: Operator, names: _Names, place: str, depth: int) -> list[Placed]:
        if not op.inputs:
            raise FormatError(f"{self.where}: operator If '{op.label}' has no condition")
        done: list[Placed] = []
        sides: list[_Names] = []
        for branch in BRANCHES:
            held = op.args.get(f"{branch}_net")
            if held is None or held.n is None:
                if branch == "then":
                    raise FormatError(f"{self.where}: operator If '{op.label}' has no net in its argument then_net")
                sides.append(names.branch(()))
                continue
            sides.append(names.branch(held.n.external_inputs))
            done += self.flatten(held.n.operators, sides[-1], f"{place} {branch} ", depth + 1)
        condition = op.inputs[0]
        # The condition itself last: the other choices still read it.
        for name in sorted({**sides[0].written, **sides[1].written}, key=lambda name: name == condition):
            present = [b for b, side in zip(BRANCHES, sides, strict=True) if name in side.defined]
            inputs = [side.read(name) for side in sides if name in side.defined]
            args = {} if len(present) == 2 else {"only": argument(present[0])}
            choice = (names.read(condition), *inputs)
            done.append((Operator("If", choice, (self._write(name, names),), args, op.name), place))
        return done


# --- the choice between the values of two branches ---


def _choose(call: Call) -> Results:
    """The condition, then's value, else's value; or the only one there is.

    Where the condition asks whether a value has no rows and else's value has the rows of that very value, there is nothing to choose if it
    has none: else's value is empty then. What then puts in its place (often of another shape) is a placeholder.
    """
    call.dtype(BOOL, 0)
    condition = call.x
    if condition.type.size != 1:
        raise ShapeError(f"the condition '{call.operator.inputs[0]}' is {condition.type}; it must be one truth value")
    only = call.args.text("only", "")
    sides: dict[str, Value] = dict(zip((only,) if only else BRANCHES, call.inputs[1:], strict=True))
    if condition.constant is not None:
        chosen = sides.get("then" if bool(condition.constant.reshape(())) else "else")
        return (chosen,)
    counts = call.scope.counts
    empty = call.scope.emptiness.get(condition)
    if empty is not None and "else" in sides:
        rows = counts.of(sides["else"])
        if rows is not None and rows.axis == 0 and rows.count == empty:
            return (call.node("branch", (condition, sides["else"]), {"when": (False,)}),)
    if only:
        raise UnsupportedError(f"'{call.operator.outputs[0]}' is written in the branch {only}_net only and has no value before")
    then, other = sides["then"], sides["else"]
    if then == other:
        return (then,)
    if then.type != other.type:
        raise UnsupportedError(
            f"'{call.operator.outputs[0]}' is {then.type} from then_net and {other.type} from else_net; types must be fixed when compiling"
        )
    if counts.of(then) != counts.of(other):
        raise UnsupportedError(f"the number of rows of '{call.operator.outputs[0]}' depends on the branch")
    return (call.node("branch", (call.reshaped(condition, (), "condition"), then, other), {"when": (True, False)}),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {"If": OpSpec(_choose, inputs=(2, 3), in_place=frozenset({(0, 0), (1, 0), (2, 0)}))}
)
