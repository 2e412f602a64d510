"""What Caffe2's exporters write beside a pair of nets: predictor databases, MetaNetDefs, and value_info.json with the inputs' shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cortado.errors import FormatError
from cortado.proto.caffe2 import DATA_TYPES, NetDef
from cortado.proto.caffe2_containers import MetaNet

Inputs = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape, dtype
PREDICT, INIT, PREPARE = "PREDICT_NET_TYPE", "GLOBAL_INIT_NET_TYPE", "PREDICT_INIT_NET_TYPE"
INPUTS, OUTPUTS = "INPUTS_BLOB_TYPE", "OUTPUTS_BLOB_TYPE"
VALUE_INFO = "value_info.json"


@dataclass(frozen=True)
class Predictor:
    """A predict net with what it needs. init: a net that makes weights; arrays: weights; inputs: shapes that the file gives the inputs."""

    predict: NetDef
    init: NetDef | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=dict)


def predictor_of(meta: MetaNet, arrays: Mapping[str, np.ndarray], where: str) -> Predictor:
    """The predictor that a MetaNetDef describes. arrays: the tensors of the database around it.

    FormatError where it holds no predict net or several.
    """
    names = [key for key in meta.nets if key == PREDICT or key.startswith(f"{PREDICT}_")]
    if len(names) != 1:
        found = ", ".join(meta.nets) or "no nets"
        raise FormatError(f"{where}: a predictor holds exactly one net {PREDICT}; this file holds {found}")
    model = names[0][len(PREDICT) :]  # the exporter appends the model's name to every key
    predict = meta.nets[names[0]]
    outputs = meta.blobs.get(OUTPUTS + model, ())
    if outputs and not predict.external_outputs:
        predict = replace(predict, external_outputs=outputs)
    # The exporter's init net loads the database's own tensors; they are in `arrays` already.
    init = meta.nets.get(INIT + model)
    if init is not None:
        init = replace(init, operators=tuple(op for op in init.operators if op.type != "Load"))
    prepare = meta.nets.get(PREPARE + model)
    inputs = {} if prepare is None else _placeholders(prepare, meta.blobs.get(INPUTS + model, predict.external_inputs))
    return Predictor(predict, init if init is not None and init.operators else None, arrays, inputs)


def _placeholders(net: NetDef, names: tuple[str, ...]) -> Inputs:
    """The shapes of the inputs, from the fills that make them before the first run."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for op in net.operators:
        if op.type != "ConstantFill" or len(op.outputs) != 1 or op.outputs[0] not in names or "shape" not in op.args:
            continue
        kind = op.args["dtype"].i if "dtype" in op.args else 1
        shape = tuple(int(size) for size in op.args["shape"].ints)
        if shape and min(shape) > 0 and kind is not None and kind in DATA_TYPES:
            found[op.outputs[0]] = shape, DATA_TYPES[kind]
    return found


def value_info(folder: Path) -> Inputs:
    """value_info.json of a folder: {name: [data type, shape]}; empty where there is none. FormatError where it is damaged."""
    path = folder / VALUE_INFO
    if not path.is_file():
        return {}
    try:
        plain = json.loads(path.read_bytes())
        return {str(name): (tuple(int(size) for size in shape), DATA_TYPES[kind]) for name, (kind, shape) in plain.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise FormatError(f'{path}: not of the form {{"input": [data type number, shape]}}') from None
