"""Operators on runs of rows: what is refused for lengths that are data is made where they, or the longest of them, are known."""

from __future__ import annotations

import numpy as np
import pytest
from lowered import made_target

import cortado
from cortado.compiler.graph import Graph
from cortado.compiler.interpret import run_program
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import run_graph
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net

X = np.arange(12, dtype=np.float32).reshape(6, 2) + 1


def loaded(op: Operator, **inputs: np.ndarray) -> Graph:
    net = NetDef("net", (op,), tuple(op.inputs), tuple(op.outputs))
    weights = {name: inputs[name] for name in inputs if name.startswith("w")}
    shapes = {name: (array.shape, array.dtype.name) for name, array in inputs.items() if name not in weights}
    return cortado.load(serialize_net(net), init=weights, inputs=shapes)


def everywhere(op: Operator, **inputs: np.ndarray) -> list[np.ndarray]:
    graph = loaded(op, **inputs)
    feeds = {node.name: inputs[node.name] for node in graph.inputs}
    want, got = run_graph(graph, feeds), run_program(lower(optimize(graph), made_target(128)), feeds)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    return list(want.values())


def packed(lengths: list[int], longest: int, fill: float = 0.0) -> np.ndarray:
    out = np.full((len(lengths), longest, 2), fill, np.float32)
    at = 0
    for run, length in enumerate(lengths):
        out[run, : min(length, longest)] = X[at : at + length][:longest]
        at += length
    return out


@pytest.mark.parametrize("lengths", [[1, 3, 2], [0, 6, 0], [2, 2, 2]])
def test_segments_are_packed_where_the_longest_is_known(lengths: list[int]) -> None:
    known, data = np.array(lengths, np.int32), operator("PackSegments", ["n", "x"], ["y"], max_length=4)
    (got,) = everywhere(data, n=known, x=X)
    assert np.array_equal(got, packed(lengths, 4))
    (got,) = everywhere(operator("PackSegments", ["w", "x"], ["y"], pad_minf=1), w=known, x=X)
    assert np.array_equal(got, packed(lengths, max(lengths), -np.inf))
    mask = operator("PackSegments", ["n", "x"], ["y", "m"], max_length=4, return_presence_mask=1)
    _, present = everywhere(mask, n=known, x=X)
    assert np.array_equal(present, np.arange(4) < np.minimum(known, 4)[:, None])


def test_the_longest_segment_must_be_known() -> None:
    with pytest.raises(cortado.UnsupportedError, match="max_length"):
        loaded(operator("PackSegments", ["n", "x"], ["y"]), n=np.array([1, 3, 2], np.int32), x=X)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("name", ["r", "w"])
def test_ranges_may_overlap_and_be_empty(dtype: str, name: str) -> None:
    ranges = np.array([[[0, 3], [2, 2]], [[5, 0], [1, 5]], [[0, 0], [0, 0]]], dtype)
    data = np.arange(6, dtype=np.int64) * 10
    got, sizes = everywhere(operator("GatherRanges", ["x", name], ["y", "n"]), x=data, **{name: ranges})
    want = [data[first : first + length] for first, length in ranges.reshape(-1, 2)]
    assert np.array_equal(got, np.concatenate(want)) and sizes.tolist() == [5, 5, 0]


def test_a_known_range_beyond_the_data_is_refused() -> None:
    ranges = np.array([[[4, 3]]], np.int32)
    with pytest.raises(cortado.ShapeError, match="a range ends at 7, but there are 6"):
        loaded(operator("GatherRanges", ["x", "w"], ["y", "n"]), x=np.arange(6, dtype=np.float32), w=ranges)


def test_rows_of_bytes_lead_back_to_their_numbers() -> None:
    x = np.random.default_rng(3).standard_normal((5, 7)).astype(np.float32)
    x[2] = 1.5
    (fused,) = everywhere(operator("FloatToFused8BitRowwiseQuantized", ["x"], ["y"]), x=x)
    assert fused.shape == (5, 15) and fused.dtype == np.uint8
    (back,) = everywhere(operator("Fused8BitRowwiseQuantizedToFloat", ["x"], ["y"]), x=fused)
    step = (x.max(axis=1) - x.min(axis=1)) / 255
    assert (np.abs(back - x) <= 0.51 * step[:, None] + 1e-6).all() and np.array_equal(back[2], x[2])
    rows, parameters = everywhere(operator("FloatToRowwiseQuantized8Bits", ["x"], ["y", "p"]), x=x)
    assert np.array_equal(rows, fused[:, :7]) and parameters[2].tolist() == [1.0, 1.5]


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
def test_bytes_of_any_alignment_are_read(target: str) -> None:
    fused = np.random.default_rng(4).integers(0, 128, (9, 8 + 5), dtype=np.uint8)
    graph = loaded(operator("Fused8BitRowwiseQuantizedToFloat", ["x"], ["y"]), x=fused)
    got = cortado.compile(graph, target=target).run({"x": fused})["y"]
    np.testing.assert_allclose(got, run_graph(graph, {"x": fused})["y"], rtol=1e-6)
