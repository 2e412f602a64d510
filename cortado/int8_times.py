"""Measured times of a network's layers in float32 and in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cortado.model import Model

RUNS = 20


def with_measured_times(found: Mapping[str, Any], exact: Model, converted: Model) -> dict[str, Any]:
    """`found` with `float_us` and `int8_us` by layer: fastest of some runs of both networks on this machine, turn by turn.

    exact: the network in float32; converted: all of it in int8. None for layers that are no step of their own. TargetError where they are
    not for this machine.
    """
    times = [_times(model, turn) for model, turn in ((exact, 0), (converted, 0), (exact, 1), (converted, 1))]
    floats, integers = ({n: min(a[n], b[n]) for n in a} for a, b in (times[::2], times[1::2]))
    layers = [
        {**layer, "float_us": floats.get(layer["name"]), "int8_us": integers.get(layer["name"])} for layer in found["layers"]
    ]
    return {**found, "layers": layers}


def _times(model: Model, turn: int) -> dict[str, float]:
    """Microseconds by name of the node."""
    rng = np.random.default_rng(turn)
    feeds = {name: _random(rng, info.shape, info.dtype) for name, info in model.inputs.items()}
    found: dict[str, float] = {}
    for step in model.profile(feeds, runs=RUNS).steps:
        found[step.name] = found.get(step.name, 0.0) + step.min_us
    return found


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    return rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
