"""What an importing function gets and gives: one operator with its inputs as graph values, and the making of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cortado.compiler.counts import Counts
from cortado.compiler.graph import Graph, Node, Value, constant
from cortado.compiler.importers.caffe2_args import Args
from cortado.compiler.ops import infer_types
from cortado.compiler.ops.checks import show
from cortado.compiler.reference import run_graph
from cortado.errors import FormatError, ShapeError, UnsupportedError
from cortado.proto.caffe2 import Operator

FLOAT32 = frozenset({"float32"})
BOOL = frozenset({"bool"})
NUMBERS = frozenset({"float32", "float64", "int32", "int64"})
ANY = frozenset({"float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool"})
NEVER: frozenset[tuple[int, int]] = frozenset()
FIRST = frozenset({(0, 0)})
MANY = 1 << 30

MAX_FILL = 512 << 20  # bytes of one tensor that a file only declares, without holding its values
MAX_FILLS = 2 << 30  # bytes of all of them
MAX_KNOWN = 1 << 20  # bytes of any tensor that is evaluated because a shape depends on it

_LAYOUTS = {(True, 3): "NCW", (True, 4): "NCHW", (True, 5): "NCDHW", (False, 3): "NWC", (False, 4): "NHWC", (False, 5): "NDHWC"}


@dataclass(frozen=True)
class OpSpec:
    """How one operator type is imported.

    build: from the call to one value per output (None: Caffe2 leaves that output unset).
    inputs, outputs: least and greatest number. in_place: (input, output) pairs that may share a blob.
    """

    build: Callable[[Call], Sequence[Value | None]]
    inputs: tuple[int, int] = (1, 1)
    outputs: tuple[int, int] = (1, 1)
    in_place: frozenset[tuple[int, int]] = NEVER

    def check(self, operator: Operator) -> None:
        """FormatError where Caffe2's schema would refuse the operator."""
        for what, names, (least, most) in (("input", operator.inputs, self.inputs), ("output", operator.outputs, self.outputs)):
            if not least <= len(names) <= most:
                wanted = str(least) if least == most else f"at least {least}" if most >= MANY else f"{least} to {most}"
                raise FormatError(f"takes {wanted} {what}{'' if wanted == '1' else 's'}, the file gives {len(names)}")
        for i, name in enumerate(operator.inputs):
            for o, output in enumerate(operator.outputs):
                if name == output and (i, o) not in self.in_place:
                    raise FormatError(
                        f"writes output {o} '{output}' over its own input {i}, which Caffe2 forbids for this operator"
                    )


class Scope:
    """What the calls of one import share: names given out, layouts seen, constants already moved.

    reserved: names that belong to blobs, so that no generated name takes one.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self._reserved = frozenset(reserved)
        self._taken: set[str] = set()
        self.layouts: dict[Value, str] = {}
        self.counts = Counts()
        self.emptiness: dict[Value, Value] = {}  # truth values that say whether a count is 0
        self.moved: dict[tuple[Value, str, tuple[int, ...]], Value] = {}
        self.filled = 0

    def version(self, blob: str) -> str:
        """A node name for the blob's next version: the blob's name, then name_2, name_3 ..."""
        if blob not in self._taken:
            self._taken.add(blob)
            return blob
        return self._numbered(blob)

    def helper(self, name: str) -> str:
        """A node name for a node that writes no blob."""
        if name in self._taken or name in self._reserved:
            return self._numbered(name)
        self._taken.add(name)
        return name

    def _numbered(self, name: str) -> str:
        number = 2
        while f"{name}_{number}" in self._taken or f"{name}_{number}" in self._reserved:
            number += 1
        self._taken.add(f"{name}_{number}")
        return f"{name}_{number}"

    def reserve(self, nbytes: int, what: str) -> None:
        """Refuse tensors that a few bytes of file blow up to more than anyone means."""
        self.filled += nbytes
        if nbytes > MAX_FILL or self.filled > MAX_FILLS:
            limit = MAX_FILL if nbytes > MAX_FILL else MAX_FILLS
            raise ShapeError(
                f"{what} takes {max(nbytes, self.filled) / 2**30:.1f} GiB; tensors that the file only declares may take "
                f"{limit / 2**30:.1f} GiB. Check the shape"
            )


@dataclass(frozen=True)
class Call:
    """One operator about to be imported. names: the node name of each output."""

    operator: Operator
    inputs: tuple[Value, ...]
    names: tuple[str, ...]
    args: Args
    scope: Scope

    @property
    def x(self) -> Value:
        return self.inputs[0]

    def node(self, op: str, inputs: Sequence[Value], attrs: Mapping[str, Any] | None = None, output: int = 0) -> Value:
        """The node that writes an output: it bears the blob's name."""
        return self._make(op, inputs, attrs or {}, self.names[output])

    def helper(self, op: str, inputs: Sequence[Value], suffix: str, attrs: Mapping[str, Any] | None = None) -> Value:
        """A node on the way to an output, named `output/suffix`."""
        return self._make(op, inputs, attrs or {}, self.scope.helper(f"{self.names[0]}/{suffix}"))

    def _make(self, op: str, inputs: Sequence[Value], attrs: Mapping[str, Any], name: str) -> Value:
        # Not ops.make: its errors name the node, ours name the file's operator.
        return Node(op, tuple(inputs), attrs, infer_types(op, inputs, attrs), name, (self.operator.label,)).out()

    def constant(self, array: np.ndarray, output: int = 0) -> Value:
        """An output that is known already."""
        return constant(array, self.names[output], (self.operator.label,))

    def side(self, array: np.ndarray, suffix: str) -> Value:
        """A helper constant."""
        return constant(array, self.scope.helper(f"{self.names[0]}/{suffix}"), (self.operator.label,))

    def number(self, value: float, dtype: str, suffix: str) -> Value:
        """A helper constant without axes."""
        return self.side(np.array(value, dtype), suffix)

    def transposed(self, x: Value, perm: Sequence[int], suffix: str) -> Value:
        """x with its axes permuted; constants at once, everything else by a node, each only once."""
        perm = tuple(perm)
        if perm == tuple(range(len(perm))):
            return x
        key = (x, "transpose", perm)
        if key not in self.scope.moved:
            if x.constant is not None:
                name = self.scope.helper(f"{x.node.name}/{suffix}")
                (kind,) = infer_types("transpose", (x,), {"perm": perm})
                self.scope.moved[key] = constant(x.constant.transpose(perm), name, x.node.origin, kind.dtype, kind.quant)
            else:
                self.scope.moved[key] = self.helper("transpose", (x,), suffix, {"perm": perm})
        return self.scope.moved[key]

    def reshaped(self, x: Value, shape: Sequence[int], suffix: str) -> Value:
        """x in another shape, as a helper; x itself where it has the shape already."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if x.constant is not None and x.type.size == int(np.prod(shape, dtype=object)):
            name = self.scope.helper(f"{x.node.name}/{suffix}")
            return constant(x.constant.reshape(shape), name, x.node.origin, x.type.dtype)
        return self.helper("reshape", (x,), suffix, {"shape": shape})

    def as_output(self, x: Value, shape: Sequence[int], output: int = 0) -> Value:
        """x in another shape, as the output."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if x.constant is not None and x.type.size == int(np.prod(shape, dtype=object)):
            return self.constant(x.constant.reshape(shape), output)
        return self.node("reshape", (x,), {"shape": shape}, output)

    # --- layout ---

    def channels_first(self) -> bool:
        """Whether argument `order` says NCHW, as it does where it is absent."""
        order = self.args.text("order", "NCHW")
        if order not in ("NCHW", "nchw", "NHWC", "nhwc"):
            raise FormatError(f"argument 'order' is '{order}'; it must be NCHW or NHWC")
        return order.upper() == "NCHW"

    def channels_last(self, x: Value, first: bool) -> Value:
        """x[N,C,*S] (first) or x[N,*S,C] as [N,*S,C]."""
        rank = len(x.shape)
        if (first, rank) in _LAYOUTS:
            self.scope.layouts.setdefault(x, _LAYOUTS[first, rank])
        if not first or rank < 3:
            return x
        return self.transposed(x, (0, *range(2, rank), 1), "nhwc")

    def in_order(self, y: Value, first: bool) -> Value:
        """A channels-last result in the operator's own order."""
        rank = len(y.shape)
        result = y
        if first and rank >= 3:
            result = self.transposed(y, (0, rank - 1, *range(1, rank - 1)), "nchw")
        if (first, rank) in _LAYOUTS:
            self.scope.layouts.setdefault(result, _LAYOUTS[first, rank])
        return result

    # --- checks ---

    def dtype(self, allowed: frozenset[str], *positions: int) -> None:
        """ShapeError unless the inputs (all, or those at the positions) have one and the same of the allowed dtypes."""
        chosen = [self.inputs[i] for i in positions] if positions else list(self.inputs)
        for position, value in zip(positions or range(len(chosen)), chosen, strict=False):
            name = self.operator.inputs[position]
            if value.type.dtype not in allowed:
                raise ShapeError(
                    f"input '{name}' is {value.type}; Caffe2's {self.operator.type} takes {', '.join(sorted(allowed))}"
                )
            if value.type.dtype != chosen[0].type.dtype:
                raise ShapeError(
                    f"input '{name}' is {value.type}, but input '{self.operator.inputs[0]}' is {chosen[0].type}: "
                    "Caffe2 converts nothing, put a Cast in front"
                )

    def shape(self, position: int, wanted: tuple[int, ...], what: str) -> None:
        """ShapeError unless that input has exactly the wanted shape."""
        found = self.inputs[position].shape
        if found != wanted:
            raise ShapeError(f"the {what} '{self.operator.inputs[position]}' has shape {show(found)}; it must be {show(wanted)}")

    def axis(self, axis: int, rank: int, name: str = "axis") -> int:
        """A possibly negative axis as 0..rank-1."""
        if not -rank <= axis < rank:
            raise ShapeError(
                f"argument '{name}' is {axis}, but '{self.operator.inputs[0]}' has {rank} axes: {show(self.x.shape)}"
            )
        return axis % rank

    def known(self, position: int, what: str) -> np.ndarray:
        """The value of an input that must be known when compiling. UnsupportedError where it depends on the net's inputs."""
        value = self.inputs[position]
        if value.constant is not None:
            return value.constant
        graph = Graph("", (), (("", value),))
        if any(node.op == "input" for node in graph.nodes()):
            raise UnsupportedError(
                f"the {what} '{self.operator.inputs[position]}' is computed from the net's inputs; it must be constant, since all "
                "shapes are fixed when compiling"
            )
        return evaluated(graph, MAX_KNOWN)[""]


def evaluated(graph: Graph, limit: int) -> dict[str, np.ndarray]:
    """The outputs of a graph without inputs. ShapeError where a tensor on the way takes more than `limit` bytes."""
    kinds = [(node.name, kind) for node in graph.nodes() if node.op != "constant" for kind in node.types]
    for name, kind in kinds:
        if kind.nbytes > limit:
            raise ShapeError(
                f"'{name}' would be {kind}; what is computed when loading may take {limit >> 20} MiB. Check the shapes"
            )
    if sum(kind.nbytes for _, kind in kinds) > MAX_FILLS:
        raise ShapeError(f"what must be computed when loading takes more than {MAX_FILLS >> 30} GiB. Check the shapes")
    return run_graph(graph, {})


def integers(values: np.ndarray) -> tuple[int, ...]:
    """A constant's elements as Python ints."""
    return tuple(int(v) for v in values.reshape(-1))
