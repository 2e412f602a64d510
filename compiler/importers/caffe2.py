"""Caffe2 NetDef to graph. The net's blobs keep their names; channels-first operators get transposes around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

import numpy as np

from cortado.compiler.counts import counted_outputs
from cortado.compiler.graph import Graph, Node, Value, constant, graph_input
from cortado.compiler.importers import (
    caffe2_control,
    caffe2_conv,
    caffe2_detection,
    caffe2_distance,
    caffe2_elementwise,
    caffe2_fill,
    caffe2_image,
    caffe2_int8,
    caffe2_int8_move,
    caffe2_join,
    caffe2_masked,
    caffe2_normalize,
    caffe2_patches,
    caffe2_pool,
    caffe2_recurrent,
    caffe2_reduce,
    caffe2_rows_of_bytes,
    caffe2_score,
    caffe2_select,
    caffe2_sequence,
    caffe2_shape,
    caffe2_sparse,
)
from cortado.compiler.importers.caffe2_args import Args
from cortado.compiler.importers.caffe2_blobs import Blob, Renamed, Step, rename
from cortado.compiler.importers.caffe2_call import MAX_FILL, MAX_FILLS, Call, OpSpec, Scope, evaluated
from cortado.compiler.importers.caffe2_unsupported import hint
from cortado.compiler.importers.layouts import boundary_layouts
from cortado.compiler.ops.checks import bounded
from cortado.compiler.types import Quant, TensorType
from cortado.errors import CortadoError, FormatError, InputError, ShapeError, UnsupportedError
from cortado.proto.caffe2 import NetDef

OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        **caffe2_control.OPERATORS,
        **caffe2_conv.OPERATORS,
        **caffe2_detection.OPERATORS,
        **caffe2_pool.OPERATORS,
        **caffe2_elementwise.OPERATORS,
        **caffe2_shape.OPERATORS,
        **caffe2_join.OPERATORS,
        **caffe2_reduce.OPERATORS,
        **caffe2_fill.OPERATORS,
        **caffe2_image.OPERATORS,
        **caffe2_int8.OPERATORS,
        **caffe2_int8_move.OPERATORS,
        **caffe2_distance.OPERATORS,
        **caffe2_normalize.OPERATORS,
        **caffe2_patches.OPERATORS,
        **caffe2_recurrent.OPERATORS,
        **caffe2_score.OPERATORS,
        **caffe2_select.OPERATORS,
        **caffe2_sequence.OPERATORS,
        **caffe2_sparse.OPERATORS,
        **caffe2_masked.OPERATORS,
        **caffe2_rows_of_bytes.OPERATORS,
    }
)


NO_QUANTS: Mapping[str, Quant] = MappingProxyType({})


@dataclass(frozen=True)
class Plan:
    """What of a net is needed for the wanted outputs.

    outputs: (name, blob) in order. reads: blobs that must hold a value before the net runs, with their first reader (None: an output).
    """

    net: NetDef
    where: str
    renamed: Renamed
    outputs: tuple[tuple[str, Blob], ...]
    steps: tuple[Step, ...]
    reads: Mapping[str, Step | None]


@dataclass
class _Import:
    """The state of one walk over a net."""

    plan: Plan
    scope: Scope
    values: dict[Blob, Value] = field(default_factory=dict)
    unset: dict[Blob, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    first_error: CortadoError | None = None


def plan_net(net: NetDef, outputs: Sequence[str] | None, where: str) -> Plan:
    """Resolve blob names and find what the outputs (None: the file's own) need. where: the file's name, for messages."""
    if not net.operators:
        raise FormatError(f"{where}: the net holds no operators")
    net, places = caffe2_control.without_branches(net, where)
    renamed = rename(net.operators, places)
    names = tuple(dict.fromkeys(net.external_outputs if outputs is None else outputs))
    if not names:
        last = list(net.operators[-1].outputs[:1])
        raise InputError(
            f"{where}: the net declares no external_output; name what to compute, e.g. outputs={last} (or the file is cut off)"
        )
    known = {name for op in net.operators for name in (*op.inputs, *op.outputs)} | set(net.external_inputs)
    absent = [name for name in names if name not in known]
    if absent:
        raise _absent_outputs(absent, known, where, declared=outputs is None)
    wanted = tuple((name, renamed.final(name)) for name in names)
    steps = renamed.needed(blob for _, blob in wanted)
    reads: dict[str, Step | None] = {}
    for step in steps:
        for blob in step.inputs:
            if blob.version == 0:
                reads.setdefault(blob.name, step)
    reads.update((name, None) for name, blob in wanted if blob.version == 0 and name not in reads)
    return Plan(net, where, renamed, wanted, steps, reads)


def _absent_outputs(absent: Sequence[str], known: Iterable[str], where: str, declared: bool) -> Exception:
    close = {name: get_close_matches(name, sorted(known)[:5000], 3) if len(absent) <= 3 else [] for name in absent}
    hints = "; ".join(f"'{name}'" + (f" (close: {', '.join(close[name])})" if close[name] else "") for name in absent)
    if declared:
        return FormatError(f"{where}: external_output names blobs that no operator writes: {hints}. The file may be cut off")
    return InputError(f"{where}: outputs= names blobs that the net does not have: {hints}")


def import_net(
    plan: Plan, blobs: Mapping[str, np.ndarray], inputs: Mapping[str, TensorType], quants: Mapping[str, Quant] = NO_QUANTS
) -> Graph:
    """The graph of a planned net.

    blobs: arrays that become constants; quants: the quantization of those that have one.
    inputs: types of the blobs that the user feeds; they win over `blobs`.
    UnsupportedError names everything that cannot be compiled, InputError everything that is missing.
    """
    unknown = _unknown_operators(plan)
    try:
        _check_given(plan, blobs, inputs)
    except InputError:
        if unknown:  # no shape or weight that the user could give would help
            raise _unsupported(plan, unknown) from None
        raise
    declared = sum(caffe2_fill.declared_bytes(step.operator) for step in plan.steps)
    if declared > MAX_FILLS:
        raise ShapeError(
            f"{plan.where}: the net's fills declare {declared / 2**30:.1f} GiB of tensors; at most {MAX_FILLS >> 30} GiB are made. "
            "Check their shapes"
        )
    scope = Scope({name for op in plan.net.operators for name in (*op.inputs, *op.outputs)} | set(plan.net.external_inputs))
    work = _Import(plan, scope, problems=unknown)
    feeds = _feeds(plan, inputs, scope)
    for name in plan.reads:
        if name in feeds:
            work.values[Blob(name, 0)] = feeds[name].out()
        else:
            work.values[Blob(name, 0)] = constant(blobs[name], scope.version(name), (name,), quant=quants.get(name))
    for step in plan.steps:
        _run(work, step)
    if work.problems:
        raise _unsupported(plan, work.problems)
    if work.first_error is not None:
        raise work.first_error
    try:
        outputs = tuple((name, _read(work, blob)) for name, blob in plan.outputs)
        outputs, counts = counted_outputs(outputs, scope.counts)
    except CortadoError as error:
        raise type(error)(f"{plan.where}: the net's output: {error}") from None
    graph = Graph(plan.net.name, tuple(feeds.values()), outputs)
    return Graph(graph.name, graph.inputs, graph.outputs, boundary_layouts(graph, scope.layouts), counts)


def evaluate_net(net: NetDef, wanted: Iterable[str], where: str) -> tuple[dict[str, np.ndarray], dict[str, Quant]]:
    """What a net that reads nothing (an init net) leaves in the wanted blobs, those of them that it writes, and how it is quantized."""
    written = {name for op in net.operators for name in op.outputs}
    names = [name for name in wanted if name in written]
    if not names:
        return {}, {}
    graph = import_net(plan_net(net, names, where), {}, {})
    quants = {name: value.type.quant for name, value in graph.outputs if value.type.quant is not None}
    ready = {name: value.constant for name, value in graph.outputs if value.constant is not None}
    rest = Graph(graph.name, (), tuple((name, value) for name, value in graph.outputs if name not in ready))
    try:
        return {**ready, **evaluated(rest, MAX_FILL)}, quants
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None


def _unsupported(plan: Plan, problems: Sequence[str]) -> UnsupportedError:
    lines = "\n".join(f"  {line}" for line in problems)
    return UnsupportedError(f"{plan.where}: cannot be compiled, because of\n{lines}", problems)


# --- before the walk ---


def _unknown_operators(plan: Plan) -> list[str]:
    unknown = [step for step in plan.steps if step.operator.type not in OPERATORS]
    hints: dict[str, str] = {}
    for kind in sorted({step.operator.type for step in unknown}):
        close = get_close_matches(kind, OPERATORS, 1, 0.85) if len(hints) < 20 else []
        hints[kind] = hint(kind) or (f"; did the file mean {close[0]}?" if close else "")
    return [
        f"{_label(step)}: there is no importer for operators of type '{step.operator.type}'{hints[step.operator.type]}"
        for step in unknown
    ]


def _check_given(plan: Plan, blobs: Mapping[str, np.ndarray], inputs: Mapping[str, TensorType]) -> None:
    net, where = plan.net, plan.where
    first_writer = {name: step for step in reversed(plan.renamed.steps) for name in step.operator.outputs}
    external = set(net.external_inputs)
    for name in inputs:
        if name not in plan.reads and name not in external:
            offered = ", ".join(f"'{n}'" for n in plan.reads if n not in blobs) or "none"
            reason = "is computed by the net itself" if name in first_writer else "is not read by the net"
            raise InputError(f"{where}: inputs= names '{name}', which {reason}; inputs that need a shape: {offered}")
    missing = [name for name in plan.reads if name not in inputs and name not in blobs]
    for name in missing:
        reader = plan.reads[name]
        if name in external or reader is None:
            continue
        if name in first_writer:
            raise FormatError(
                f"{where}: {_label(reader)} reads blob '{name}' before {_label(first_writer[name])} writes it, and it is no "
                "external_input: the operators are out of order or form a cycle"
            )
        if external:
            raise FormatError(
                f"{where}: {_label(reader)} reads blob '{name}', which no operator writes and external_input does not declare"
            )
    if missing:
        raise InputError(_missing_text(plan, missing, blobs))


def _missing_text(plan: Plan, missing: Sequence[str], blobs: Mapping[str, np.ndarray]) -> str:
    """All missing blobs in one message, and how to give them: what is read first is taken for data, the rest for weights."""
    data = [name for name in missing if (step := plan.reads[name]) is None or step.operator.inputs[0] == name]
    weights = [name for name in missing if name not in data]
    parts = [f"{plan.where}: {len(missing)} external input{'s have' if len(missing) > 1 else ' has'} no value"]
    if data:
        shapes = {name: _example_shape(plan, name, blobs) for name in data}
        mapping = ", ".join(f"'{name}': {shape}" for name, shape in shapes.items())
        options = " ".join(f"--input {name}={shape.strip('()').replace(' ', '')}" for name, shape in shapes.items())
        parts.append(
            f"{', '.join(data)}: give the shape, for another type than float32 with it: {options} or inputs={{{mapping}}}"
        )
    if weights:
        parts.append(
            f"{', '.join(weights)}: give the weights with --init or init= (an init_net.pb, a .npz file or {{name: array}}) that hold "
            f"{'them' if len(weights) > 1 else 'it'}"
        )
    return "; ".join(parts)


def _example_shape(plan: Plan, name: str, blobs: Mapping[str, np.ndarray]) -> str:
    """A shape to suggest, with the channels that the reader's filter takes where that is known."""
    step = plan.reads[name]
    if step is None or not step.operator.type.startswith("Conv") or len(step.operator.inputs) < 2:
        return "(1, ...)"
    filter_ = blobs.get(step.operator.inputs[1])
    order = step.operator.args.get("order")
    if filter_ is None or filter_.ndim != 4:
        return "(1, 3, 224, 224)"
    if order is not None and order.s == b"NHWC":
        return f"(1, 224, 224, {filter_.shape[3]})"
    group = step.operator.args.get("group")
    return f"(1, {filter_.shape[1] * ((group.i if group is not None else None) or 1)}, 224, 224)"


def _feeds(plan: Plan, inputs: Mapping[str, TensorType], scope: Scope) -> dict[str, Node]:
    """Input nodes in the file's order, then those that the file does not declare."""
    order = [name for name in dict.fromkeys((*plan.net.external_inputs, *inputs)) if name in inputs]
    for name in order:
        try:
            bounded(inputs[name], f"input '{name}'")
        except ShapeError as error:
            raise InputError(f"{plan.where}: {error}") from None
    return {name: graph_input(scope.version(name), inputs[name]) for name in order}


# --- the walk ---


def _label(step: Step) -> str:
    name = f" '{step.operator.name}'" if step.operator.name else ""
    outputs = f" (writes '{step.operator.outputs[0]}')" if step.operator.outputs else ""
    return f"operator {step.place} {step.operator.type}{name}{outputs}"


def _run(work: _Import, step: Step) -> None:
    """Import one operator. After an obstacle the walk goes on without what depends on it, so that all are found."""
    operator = step.operator
    if operator.type not in OPERATORS or any(blob in work.unset and not work.unset[blob] for blob in step.inputs):
        work.unset.update((blob, "") for blob in step.outputs)
        return
    spec = OPERATORS[operator.type]
    try:
        spec.check(operator)
        inputs = tuple(_read(work, blob) for blob in step.inputs)
        counted = any(work.scope.counts.of(value) for value in inputs)
        spec = caffe2_detection.COUNTED.get(operator.type, spec) if counted else spec
        call = Call(operator, inputs, tuple(map(work.scope.version, operator.outputs)), Args(operator), work.scope)
        results = spec.build(call)
        for value in results if counted else ():
            if value is not None:
                work.scope.counts.of(value)
    except UnsupportedError as error:
        work.problems.append(f"{_label(step)}: {error}")
        work.unset.update((blob, "") for blob in step.outputs)
        return
    except CortadoError as error:
        text = f"{work.plan.where}: {_label(step)}: {error}{_placeholder_hint(work, step, error)}"
        work.first_error = work.first_error or type(error)(text)
        work.unset.update((blob, "") for blob in step.outputs)
        return
    for blob, value in zip(step.outputs, results, strict=True):
        if counted and value is not None and value.constant is not None:
            work.unset[blob] = f"{_label(step)} computes it from a number of rows that depends on the data"
        elif value is None:
            work.unset[blob] = f"{_label(step)} leaves '{blob.name}' unset"
        else:
            work.values[blob] = value


def _placeholder_hint(work: _Import, step: Step, error: Exception) -> str:
    """Init nets often fill the net's own inputs with a placeholder, which then has a wrong shape."""
    first = step.inputs[0] if step.inputs else None
    value = work.values.get(first) if first is not None and first.version == 0 else None
    if first is None or value is None or value.constant is None or not isinstance(error, ShapeError):
        return ""
    return f". ('{first.name}' comes from init=; if it is an input of the net, give its shape with inputs=)"


def _read(work: _Import, blob: Blob) -> Value:
    if blob in work.plan.renamed.spoiled:
        raise UnsupportedError(f"blob '{blob.name}' {work.plan.renamed.spoiled[blob]}")
    if blob in work.unset:
        raise FormatError(f"blob '{blob.name}' has no value: {work.unset[blob]}")
    return work.values[blob]
