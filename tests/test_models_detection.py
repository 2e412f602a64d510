"""Whole detection networks, with seeded weights, against what real Caffe2 computed: Mask R-CNN2Go and Faster R-CNN.

Random weights make scores that are nearly equal, so boxes are compared as a set.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from native import runnable_targets

import cortado
from cortado.compiler.reference import run_graph
from cortado.proto.caffe2 import NetDef, operator

Arrays = Mapping[str, np.ndarray]
MASK, FASTER = "mask_rcnn_2go_fp32", "detectron_e2e_faster_rcnn_R-50-C4_1x"
QUANTIZED = "mask_rcnn_2go_int8"
NEAR_SCORE, NEAR_BOX = 2e-4, 0.1  # differences that other convolution kernels make in Caffe2 itself, with room
MISSING = 3  # of 100 boxes: those at the edge of a threshold


@cache
def maker(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_init_net", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(shared: Path, model: str, outputs: list[str] | None = None) -> tuple[cortado.Graph, Arrays]:
    """The graph and the inputs."""
    folder = shared / "models" / "caffe2_zoo" / model
    rows = json.loads((folder / "weights.json").read_text())
    make = maker(folder.parent / "make_init_net.py").tensors
    weights, feeds = (dict(make(rows[kind], 1)) for kind in ("weights", "inputs"))
    shapes = {name: (feed.shape, feed.dtype.name) for name, feed in feeds.items()}
    init = quantized_fills(rows["weights"], weights) if any("scale" in row for row in rows["weights"]) else weights
    graph = cortado.load(folder / "predict_net.pbtxt", init=init, inputs=shapes, outputs=outputs)
    return graph, {node.name: feeds[node.name] for node in graph.inputs}


def quantized_fills(rows: list[dict[str, Any]], weights: Arrays) -> NetDef:
    """The init net of quantized weights: arrays alone would have no scales."""
    fills = []
    for row in rows:
        name, array = row["name"], weights[row["name"]]
        kind = {"uint8": "Int8GivenTensorFill", "int32": "Int8GivenIntTensorFill"}.get(array.dtype.name, "GivenTensorFill")
        values = array.tobytes() if array.dtype == np.uint8 else array.reshape(-1)
        quant = {"Y_scale": float(row["scale"]), "Y_zero_point": int(row["zero_point"])} if "scale" in row else {}
        fills.append(operator(kind, [], [name], shape=list(array.shape), values=values, **quant))
    return NetDef("init", tuple(fills), (), tuple(weights))


def golden(shared: Path, model: str) -> Arrays:
    with np.load(shared / "goldens" / f"zoo_{model}.npz") as file:
        return {name: file[name] for name in file.files}


def check_boxes(got: Arrays, want: Arrays) -> None:
    """Nearly every recorded detection has one of the same class, nearly the same score and nearly the same place."""
    assert abs(len(got["score_nms"]) - len(want["out.score_nms"])) <= MISSING
    left = list(range(len(got["score_nms"])))
    missing = 0
    for score, box, kind in zip(want["out.score_nms"], want["out.bbox_nms"], want["out.class_nms"], strict=True):
        near = [
            i
            for i in left
            if got["class_nms"][i] == kind
            and abs(got["score_nms"][i] - score) <= NEAR_SCORE
            and np.abs(got["bbox_nms"][i] - box).max() <= NEAR_BOX
        ]
        if near:
            left.remove(near[0])
        missing += not near
    assert missing <= MISSING


def check_statistics(got: Arrays, want: Arrays, tolerance: float = 1e-4) -> None:
    """Sum, mean, least, largest and sum of squares of whole blobs."""
    for name, array in got.items():
        wide = array.astype(np.float64)
        found = np.array([wide.sum(), wide.mean(), wide.min(), wide.max(), (wide * wide).sum()])
        scale = np.array([np.abs(wide).sum(), np.abs(wide).mean(), *[np.abs(wide).max()] * 2, (wide * wide).sum()])
        assert (np.abs(found - want[f"stat.{name}"]) <= tolerance * scale + 1e-9).all(), name


def compiled(graph: cortado.Graph) -> Callable[[Arrays], Arrays]:
    return cortado.compile(graph, target="host").run


EXECUTORS = {"reference": lambda graph: lambda feeds: run_graph(graph, feeds), "compiled": compiled}


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_mask_rcnn(shared: Path, executor: str) -> None:
    want = golden(shared, MASK)
    graph, feeds = loaded(shared, MASK)
    got = EXECUTORS[executor](graph)(feeds)
    check_boxes(got, want)
    assert got["mask_fcn_probs"].shape[0] == len(got["score_nms"])
    assert np.abs(got["mask_fcn_probs"][:8] - want["head.mask_fcn_probs"]).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_quantized_mask_rcnn(shared: Path, executor: str) -> None:
    """Integers are exact, and so is the order of boxes with equal scores, of which there are many."""
    want = golden(shared, QUANTIZED)
    blobs = [name.partition(".")[2] for name in want if name.startswith("stat.")]
    outputs = ["score_nms", "bbox_nms", "class_nms"]
    graph, feeds = loaded(shared, QUANTIZED, [*blobs, *outputs])
    got = EXECUTORS[executor](graph)(feeds)
    check_statistics({name: got[name] for name in blobs if got[name].dtype == np.uint8}, want, 1e-12)
    check_statistics({name: got[name] for name in blobs}, want, 1e-6)
    assert np.array_equal(got["class_nms"], want["out.class_nms"])
    assert np.abs(got["score_nms"] - want["out.score_nms"]).max() <= 1e-6
    assert np.abs(got["bbox_nms"] - want["out.bbox_nms"]).max() <= 1e-3
    assert np.abs(got["mask_fcn_probs"][:8] - want["head.mask_fcn_probs"]).max() <= 1e-6


@pytest.mark.slow
def test_quantized_mask_rcnn_has_the_same_bits_on_both_ends(shared: Path) -> None:
    """Of the levels that this machine runs. Proposals, suppression, regions of interest and a sigmoid are float32 in it."""
    graph, feeds = loaded(shared, QUANTIZED)
    levels = [level for level in runnable_targets() if level.startswith("x86-64")]
    least, most = ([cortado.compile(graph, target=level).run(feeds) for level in ends] for ends in (levels[:1], levels[-1:]))
    for a, b in zip(least, most, strict=True):
        assert all(array.tobytes() == b[name].tobytes() for name, array in a.items())


@pytest.mark.slow
@pytest.mark.parametrize("model", [MASK, FASTER])
def test_before_the_proposals(shared: Path, model: str) -> None:
    graph, feeds = loaded(shared, model, ["rpn_cls_probs", "rpn_bbox_pred"])
    check_statistics(compiled(graph)(feeds), golden(shared, model))


@pytest.mark.slow
def test_faster_rcnn(shared: Path) -> None:
    """Compiled only: the numpy reference takes half an hour for the thousand boxes that there is room for."""
    graph, feeds = loaded(shared, FASTER)
    check_boxes(compiled(graph)(feeds), golden(shared, FASTER))


@pytest.mark.slow
def test_nets_that_differ_in_their_names_only(shared: Path) -> None:
    one, other = (loaded(shared, model)[0] for model in (FASTER, FASTER.replace("_1x", "_2x")))
    assert one.name != other.name and [node.op for node in one.nodes()] == [node.op for node in other.nodes()]
