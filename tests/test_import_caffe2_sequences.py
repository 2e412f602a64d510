"""What the recorded cases do not reach: lengths that are constants, forms of arguments, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cortado
from cortado.compiler.reference import run_graph
from cortado.proto.caffe2 import Argument, NetDef, Operator, serialize_net

LENGTHS = np.array([2, 0, 3, 1], np.int32)


def run(
    kind: str, fed: dict[str, np.ndarray], fixed: dict[str, np.ndarray], outputs: int = 1, **arguments: Any
) -> list[np.ndarray]:
    """One operator on inputs in the order given."""
    names = tuple(f"y{i}" for i in range(outputs))
    operator = Operator(kind, inputs=(*fed, *fixed), outputs=names, args={n: argument(v) for n, v in arguments.items()})
    ordered = tuple(sorted(operator.inputs))
    operator = Operator(kind, inputs=ordered, outputs=names, args=operator.args)
    net = serialize_net(NetDef("net", (operator,), ordered, names))
    graph = cortado.load(net, init=fixed, inputs={n: (a.shape, a.dtype.name) for n, a in fed.items()})
    got = run_graph(graph, fed)
    return [got[name] for name in names]


def argument(value: Any) -> Argument:
    if isinstance(value, str):
        return Argument(s=value.encode())
    return Argument(f=value) if isinstance(value, float) else Argument(i=value)


def test_constant_lengths_fix_the_number_of_results() -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(run("LengthsTile", {"a": x}, {"b": LENGTHS})[0], np.repeat(x, LENGTHS, axis=0))
    np.testing.assert_array_equal(run("LengthsToSegmentIds", {}, {"a": LENGTHS})[0], [0, 0, 2, 2, 2, 3])
    np.testing.assert_array_equal(run("LengthsRangeFill", {}, {"a": LENGTHS})[0], [0, 1, 0, 1, 2, 0])


def test_lengths_that_are_fed_are_refused_with_the_reason() -> None:
    with pytest.raises(cortado.UnsupportedError, match="must be constant, since all shapes are fixed"):
        run("LengthsRangeFill", {"a": LENGTHS}, {})


def test_known_operators_that_are_not_imported_say_why() -> None:
    with pytest.raises(cortado.UnsupportedError, match="a compiled program has its inputs and outputs only"):
        run("DequeueBlobs", {"a": np.zeros(4, np.float32)}, {}, outputs=2)


@pytest.mark.parametrize(("mode", "kept"), [("upper", lambda r, c: c <= r), ("lowerdiag", lambda r, c: c > r)])
def test_masks_over_later_axes_repeat(mode: str, kept: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    (y,) = run("SequenceMask", {"a": x}, {}, mode=mode, axis=2, repeat_from_axis=3, fill_val=-7.0)
    rows, columns = np.mgrid[:6, :4]
    want = np.where(kept(rows, columns)[..., None], x.reshape(6, 4, 5), np.float32(-7)).reshape(x.shape)
    np.testing.assert_array_equal(y, want)


def test_a_window_is_kept_around_its_centre() -> None:
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    centres = np.array([0, 3, 5], np.int32)
    (y,) = run("SequenceMask", {"a": x, "b": centres}, {}, mode="window", radius=1, fill_val=0.0)
    np.testing.assert_array_equal(y, np.where(abs(np.arange(6) - centres[:, None]) <= 1, x, 0))


def test_the_last_of_equal_indices_wins() -> None:
    x, updates = np.zeros((3, 2), np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)
    (y,) = run("ScatterAssign", {"a": x, "b": np.array([2, 0, 2], np.int64), "c": updates}, {})
    np.testing.assert_array_equal(y, [[2, 3], [0, 0], [4, 5]])


def test_losses_are_weighted() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((4, 5)).astype(np.float32), np.array([1, 0, 2, 3], np.float32)
    labels = np.array([1, 2, 0, 4], np.int32)
    chances, loss = run("SoftmaxWithLoss", {"a": x, "b": labels, "c": weights}, {}, outputs=2, scale=2.0)
    want = -2 * (np.log(chances[np.arange(4), labels]) * weights).sum() / weights.sum()
    np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_three_dimensional_volumes_grow_in_time() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 2, 2)).astype(np.float32)
    (y,) = run("ResizeNearest3D", {"a": x}, {}, temporal_scale=2.0, height_scale=2.0, width_scale=2.0)
    np.testing.assert_array_equal(y, x.repeat(2, 2).repeat(2, 3).repeat(2, 4))
