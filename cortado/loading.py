"""The way of a source to a graph: read, plan, evaluate the init net, import."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph
from cortado.compiler.importers.caffe2 import evaluate_net, import_net, plan_net
from cortado.compiler.types import NUMPY_DTYPE, Quant, TensorType
from cortado.errors import InputError, UnsupportedError
from cortado.proto.caffe2 import NetDef
from cortado.source import Nets, arrays_from_npz, checked_array, external_reads, read_init, read_nets


def load_graph(
    source: Any,
    init: Any,
    inputs: Mapping[str, Any] | None,
    outputs: Sequence[str] | None,
    weights: str | os.PathLike[str] | None,
) -> Graph:
    """`cortado.load`, which has the meaning of the arguments and the errors."""
    if weights is not None:
        raise UnsupportedError("weights= belongs to a Caffe prototxt, which cannot be read yet; a NetDef's weights are init=")
    if isinstance(outputs, str):
        raise InputError(f"outputs= is one string; give a list of names: outputs=['{outputs}']")
    nets = read_nets(source)
    types = _input_types(inputs or {})
    try:
        plan = plan_net(nets.predict, outputs, nets.where)
        given = {name: spec for name, spec in nets.inputs.items() if name in plan.reads}
        types = {**_input_types(given), **types}
        wanted = [name for name in plan.reads if name not in types]
        blobs, quants = _blobs(nets, init, wanted)
        return import_net(plan, blobs, types, quants)
    except MemoryError:
        raise InputError(f"{nets.where}: the weights do not fit this machine's memory") from None


def _blobs(nets: Nets, init: Any, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Quant]]:
    """The wanted blobs, those of them that `init`, or else the init net beside the source, gives, and how they are quantized."""
    if init is None and nets.arrays:
        held = {name: checked_array(name, nets.arrays[name], nets.where) for name in wanted if name in nets.arrays}
        if nets.init is None:
            return held, {}
        made, quants = evaluate_net(nets.init, [name for name in wanted if name not in held], nets.init_where)
        return {**made, **held}, quants
    given = nets.init if init is None else read_init(init)
    if given is None:
        return {}, {}
    where = nets.init_where if init is None else f"init net {init}" if isinstance(init, (str, os.PathLike)) else "init net"
    if isinstance(given, NetDef):
        writes = {name for op in nets.predict.operators for name in op.outputs}
        if not external_reads(given).isdisjoint(writes):
            raise InputError(f"{where} reads what the source net computes: source and init are exchanged")
        return evaluate_net(given, wanted, where)
    if not isinstance(given, dict):
        given = arrays_from_npz(given, wanted)
    return {name: checked_array(name, given[name], "init") for name in wanted if name in given}, {}


def _input_types(inputs: Mapping[str, Any]) -> dict[str, TensorType]:
    return {name: _input_type(name, spec) for name, spec in inputs.items()}


def _input_type(name: str, spec: Any) -> TensorType:
    """A shape, or (shape, dtype)."""
    shape, dtype = spec, "float32"
    if isinstance(spec, Sequence) and len(spec) == 2 and isinstance(spec[0], Sequence) and not isinstance(spec[0], str):
        shape, dtype = spec
    try:
        sizes = tuple(int(size) for size in shape if size == int(size))
        kind = dtype if isinstance(dtype, str) and dtype in NUMPY_DTYPE else np.dtype(dtype).name
        if len(sizes) != len(tuple(shape)) or min(sizes, default=1) < 0 or kind not in NUMPY_DTYPE:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"inputs= gives '{name}' as {spec!r}; it must be a shape or (shape, dtype), e.g. (1, 3, 224, 224)"
        ) from None
    return TensorType(sizes, kind)
