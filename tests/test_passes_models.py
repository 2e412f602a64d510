"""What is left of real networks after optimization, and that they still compute the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from graphs import ops

import cortado
from cortado.compiler.bisect import relative_error
from cortado.compiler.graph import Graph
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import run_graph

SQUEEZENET = {"conv": 26, "max_pool": 3, "concat": 8, "average_pool": 1, "reshape": 1, "softmax": 1, "transpose": 1}
GOOGLENET = {
    "conv": 57, "max_pool": 13, "lrn": 2, "concat": 9, "average_pool": 1, "reshape": 1, "fc": 1, "softmax": 1, "transpose": 1,
}  # fmt: skip
ALEXNET = {"conv": 5, "lrn": 2, "max_pool": 3, "reshape": 1, "fc": 3, "softmax": 1, "transpose": 1}
TRAINED = {
    "squeezenet_v1_0": SQUEEZENET,
    "mobilenet_v2_1_0_224": {"conv": 52, "average_pool": 1, "reshape": 1, "fc": 1, "softmax": 1, "transpose": 1},
    "rfb_320": {"conv": 52, "concat": 3, "reshape": 8, "softmax": 1, "transpose": 1},
    "slim_320": {"conv": 42, "concat": 2, "reshape": 8, "softmax": 1, "transpose": 1},
}
SEEDED = {
    "squeezenet_v1_1": SQUEEZENET,
    "resnet50": {"conv": 53, "max_pool": 1, "average_pool": 1, "reshape": 1, "fc": 1, "softmax": 1, "transpose": 1},
    # One normalization before each convolution of a block cannot go into weights: a relu stands between, the concat before.
    "densenet121": {"conv": 121, "pointwise": 62, "concat": 58, "max_pool": 1, "average_pool": 4, "reshape": 1, "transpose": 1},
    "inception_v2": {
        "conv": 69, "max_pool": 5, "average_pool": 8, "concat": 10, "reshape": 1, "fc": 1, "softmax": 1, "transpose": 1,
    },
    "mobilenet_v1_caffe": {"conv": 28, "average_pool": 1, "reshape": 1, "softmax": 1, "transpose": 1},
    "mobilenet_v2_caffe": {"conv": 54, "average_pool": 1, "reshape": 1, "softmax": 1, "transpose": 1},
    "bvlc_googlenet": GOOGLENET,
    "inception_v1": GOOGLENET,
    "bvlc_alexnet": ALEXNET,
    "zfnet512": ALEXNET,
    "vgg19": {"conv": 16, "max_pool": 5, "reshape": 1, "fc": 3, "softmax": 1, "transpose": 1},
}  # fmt: skip


def check(graph: Graph, expected: dict[str, int]) -> None:
    after = optimize(graph)
    assert ops(after) == expected
    first = next(node for node in after.nodes() if node.op == "transpose")
    assert first.inputs[0].node.op == "input"
    rng = np.random.default_rng(0)
    feeds = {node.name: rng.uniform(-1, 1, node.types[0].shape).astype(np.float32) for node in graph.inputs}
    wanted, got = run_graph(graph, feeds), run_graph(after, feeds)
    assert {
        name: relative_error(array, got[name]) for name, array in wanted.items() if relative_error(array, got[name]) > 1e-5
    } == {}


@pytest.mark.parametrize("model", TRAINED)
def test_trained_model(shared: Path, model: str) -> None:
    folder = shared / "models" / model
    entry = json.loads((folder / "model.json").read_text())["inputs"][0]
    check(cortado.load(folder, inputs={entry["name"]: tuple(entry["shape"])}), TRAINED[model])


@pytest.mark.slow
@pytest.mark.parametrize("model", SEEDED)
def test_architecture(shared: Path, model: str) -> None:
    folder = shared / "models" / "caffe2_zoo" / model
    spec = importlib.util.spec_from_file_location("make_init_net", folder.parent / "make_init_net.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    rows = json.loads((folder / "weights.json").read_text())
    shapes = {row["name"]: tuple(row["shape"]) for row in rows["inputs"]}
    graph = cortado.load(folder / "predict_net.pbtxt", init=dict(maker.tensors(rows["weights"], 1)), inputs=shapes)
    check(graph, SEEDED[model])


@pytest.mark.parametrize("model", ["squeezenet_v1_0"])
def test_named_blobs_are_not_fused_away(shared: Path, model: str) -> None:
    """fire2/squeeze1x1 is overwritten by its Relu in place: the last value is meant."""
    folder = shared / "models" / model
    names = ["fire2/squeeze1x1", "fire2/concat", "pool10", "prob"]
    graph = cortado.load(folder, inputs={"data": (1, 3, 224, 224)}, outputs=names)
    after = optimize(graph)
    assert [name for name, _ in after.outputs] == names
    data = {"data": np.random.default_rng(0).uniform(-100, 100, (1, 3, 224, 224)).astype(np.float32)}
    wanted, got = run_graph(graph, data), run_graph(after, data)
    assert all(relative_error(wanted[name], got[name]) <= 1e-5 for name in names)
    assert wanted["fire2/squeeze1x1"].min() == 0
