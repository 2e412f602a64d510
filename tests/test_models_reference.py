"""Real models through the importer and the operator reference, against what real Caffe2 computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import cortado
from cortado.compiler.reference import run_graph

LIMIT = 1e-4  # of the largest magnitude
CLASSIFIERS = [
    "bvlc_alexnet", "bvlc_googlenet", "bvlc_reference_caffenet", "bvlc_reference_rcnn_ilsvrc13", "densenet121", "inception_v1",
    "inception_v2", "mobilenet_v1_caffe", "mobilenet_v2_caffe", "resnet50", "squeezenet_v1_1", "vgg19", "zfnet512",
]  # fmt: skip


def error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape and got.dtype == want.dtype
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("model", ["squeezenet_v1_0", "mobilenet_v2_1_0_224"])
def test_classifier_with_its_intermediate_blobs(shared: Path, model: str) -> None:
    with np.load(shared / "goldens" / f"{model}_caffe2.npz") as golden:
        data = golden["data"][:1]
        wanted = {name.partition(".")[2]: golden[name][:1] for name in golden.files if name.startswith(("out.", "blob."))}
    graph = cortado.load(shared / "models" / model, inputs={"data": data.shape}, outputs=list(wanted))
    got = run_graph(graph, {"data": data})
    assert {name: error(got[name], want) for name, want in wanted.items() if error(got[name], want) > LIMIT} == {}


@pytest.mark.parametrize("model", ["rfb_320", "slim_320"])
def test_face_detector(shared: Path, model: str) -> None:
    with np.load(shared / "goldens" / f"{model}.npz") as golden:
        data = golden["input"][:1]
        wanted = {name: golden[f"caffe2.{name}"][:1] for name in ("scores", "boxes")}
    graph = cortado.load(shared / "models" / model, inputs={"input": data.shape})
    assert [name for name, _ in graph.outputs] == ["scores", "boxes"]
    got = run_graph(graph, {"input": data})
    assert all(error(got[name], want) <= LIMIT for name, want in wanted.items())


@pytest.fixture(scope="session")
def weights_maker(shared: Path) -> ModuleType:
    path = shared / "models" / "caffe2_zoo" / "make_init_net.py"
    spec = importlib.util.spec_from_file_location("make_init_net", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("model", CLASSIFIERS)
def test_zoo_classifier(shared: Path, weights_maker: ModuleType, model: str) -> None:
    folder = shared / "models" / "caffe2_zoo" / model
    rows = json.loads((folder / "weights.json").read_text())
    weights, feeds = (dict(weights_maker.tensors(rows[kind], 1)) for kind in ("weights", "inputs"))
    with np.load(shared / "goldens" / f"zoo_{model}.npz") as golden:
        wanted = {name.partition(".")[2]: golden[name] for name in golden.files if name.startswith(("out.", "blob."))}
    shapes = {name: (feed.shape, feed.dtype.name) for name, feed in feeds.items()}
    graph = cortado.load(folder / "predict_net.pbtxt", init=weights, inputs=shapes, outputs=list(wanted))
    got = run_graph(graph, {node.name: feeds[node.name] for node in graph.inputs})
    assert {name: error(got[name], want) for name, want in wanted.items() if error(got[name], want) > LIMIT} == {}
