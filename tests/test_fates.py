"""`cortado inspect`: every operator of a file has a fate, everything in the way of compiling is in one list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lowered import made_target
from test_models_detection import loaded

import cortado
from cortado.cli import main as cli_main
from cortado.compiler.graph import Graph, graph_input
from cortado.compiler.importers.caffe2 import OPERATORS
from cortado.compiler.importers.caffe2_unsupported import REASONS, REWRITES
from cortado.compiler.lower import lower
from cortado.compiler.ops import make
from cortado.compiler.types import TensorType
from cortado.fates import Fate, Fates, fates_of
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net

KINDS = {"kept", "fused", "folded", "view", "removed", "obstacle"}


def fates(operators: Sequence[Operator], inputs: dict[str, Any], outputs: Sequence[str], **weights: np.ndarray) -> Fates:
    data = serialize_net(NetDef("net", tuple(operators), tuple(inputs), tuple(outputs)))
    return fates_of(data, None, lambda: cortado.load(data, init=weights, inputs=inputs), made_target(256))


def by_type(found: Fates) -> dict[str, Fate]:
    return {fate.type: fate for fate in found.operators}


def test_kept_fused_folded_and_removed() -> None:
    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((8, 8, 1, 1)).astype(np.float32), np.ones(8, np.float32)
    found = fates(
        [
            operator("Conv", ["x", "w"], ["c"], kernel=1),
            operator("SpatialBN", ["c", "s", "b", "m", "v"], ["n"], is_test=1),
            operator("Relu", ["n"], ["r"]),
            operator("Dropout", ["r"], ["d"], is_test=1),
            operator("Sigmoid", ["x"], ["unused"]),
            operator("MaxPool", ["d"], ["p"], kernel=2),
            operator("Softmax", ["p"], ["y"], axis=1),
            operator("ConstantFill", [], ["k"], shape=[2], value=2.0),
            operator("Mul", ["y", "k"], ["z"], broadcast=1),
        ],
        {"x": (1, 8, 3, 3)},
        ["z"],
        w=w, s=b, b=b, m=b, v=b,
    )  # fmt: skip
    assert {name: fate.kind for name, fate in by_type(found).items()} == {
        "MaxPool": "kept", "Conv": "kept", "SpatialBN": "folded", "Relu": "fused", "Dropout": "removed", "Sigmoid": "removed", "Softmax": "kept",
        "ConstantFill": "folded", "Mul": "kept",
    }  # fmt: skip
    told = by_type(found)
    assert "no output needs it" in told["Sigmoid"].text and "known when loading" in told["ConstantFill"].text
    assert told["Relu"].kernels == told["Conv"].kernels == ("conv_f32",) and "kernel conv_f32" in told["Relu"].text
    assert not found.obstacles


def test_equal_and_idle_operators_say_why_they_went() -> None:
    twice = [operator("Softmax", ["x"], [name]) for name in ("a", "b")]
    end = [operator("Add", ["a", "b"], ["c"]), operator("Mul", ["c", "one"], ["y"], broadcast=1)]
    found = fates([*twice, *end], {"x": (3, 4)}, ["y"], one=np.ones(1, np.float32))
    texts = [fate.text for fate in found.operators]
    assert any("another node computes the same" in text for text in texts), texts
    assert "it changes nothing" in texts[-1]


def test_all_obstacles_of_a_file_are_in_one_list() -> None:
    found = fates(
        [operator("Relu", ["x"], ["a"]), operator("HardSwish", ["a"], ["b"]), operator("Rotate3D", ["a"], ["c"]),
         operator("ReduceProd", ["a"], ["d"]), operator("Sum", ["b", "c", "d"], ["y"])],
        {"x": (3, 4)}, ["y"],
    )  # fmt: skip
    assert [fate.kind for fate in found.operators] == ["kept", "obstacle", "obstacle", "obstacle", "kept"]
    assert len(found.obstacles) == 3 and found.program is None
    assert "instead: HardSigmoid" in found.obstacles[0] and "instead" not in found.obstacles[1]


def test_all_nodes_without_kernels_are_in_one_list() -> None:
    x = graph_input("x", TensorType((3, 4), "float64"))
    values = [(op, make(op, [x.out()], {}, op).out()) for op in ("exp", "relu", "tanh")]
    with pytest.raises(cortado.UnsupportedError, match=r"exp.*tanh") as error:
        lower(Graph("g", (x,), tuple(values)), made_target(256))
    assert len(error.value.nodes) == 2


def test_rewrites_lead_to_what_is_supported() -> None:
    assert not set(REWRITES) & set(OPERATORS) and set(REASONS) <= set(REWRITES)
    named = {word.strip(",;()") for text in REWRITES.values() for word in text.split() if word[:1].isupper()}
    caffe2 = {word for word in named if not word.startswith(("Int8Conv",))} - {"Conv"}
    assert caffe2 - set(OPERATORS) <= {"GRU", "LSTM"}


def test_the_command_tells_obstacles_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pb"
    path.write_bytes(serialize_net(NetDef("net", (operator("HardSwish", ["x"], ["y"]),), ("x",), ("y",))))
    assert cli_main.invoke(["inspect", str(path), "--input", "x=3,4", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["obstacles"]) == 1 and document["nodes"][0]["kind"] == "obstacle"
    assert cli_main.invoke(["inspect", str(path), "--input", "x=3,4"]) == 1
    assert "1 obstacles:" in capsys.readouterr().out


def check_complete(found: Fates) -> None:
    assert found.operators and not found.obstacles and found.program is not None
    for fate in found.operators:
        assert fate.kind in KINDS - {"obstacle"} and fate.text, fate
        assert bool(fate.kernels) == (fate.kind in ("kept", "fused")) or fate.kind == "folded", fate
    told = {family for fate in found.operators for family in fate.kernels}
    made = {step.kernel.name.rpartition("_")[0] for step in found.program.steps}
    assert told <= made and made - told <= {"copy_i32", "transpose_i32"}, made - told


@pytest.mark.parametrize(("model", "shape"), [("squeezenet_v1_0", (1, 3, 227, 227)), ("rfb_320", (1, 3, 240, 320))])
def test_every_operator_of_a_real_file(shared: Path, model: str, shape: tuple[int, ...]) -> None:
    folder = shared / "models" / model
    inputs = {"data" if "squeeze" in model else "input": shape}
    check_complete(fates_of(folder, None, lambda: cortado.load(folder, inputs=inputs), made_target(256)))


ZOO = (
    "bvlc_alexnet", "bvlc_googlenet", "bvlc_reference_caffenet", "bvlc_reference_rcnn_ilsvrc13", "densenet121",
    "detectron_e2e_faster_rcnn_R-50-C4_1x", "inception_v1", "inception_v2", "mask_rcnn_2go_fp32", "mask_rcnn_2go_int8",
    "mobilenet_v1_caffe", "mobilenet_v2_caffe", "resnet50", "squeezenet_v1_1", "vgg19", "zfnet512",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", ZOO)
def test_every_operator_of_the_zoo(shared: Path, model: str) -> None:
    net = shared / "models" / "caffe2_zoo" / model / "predict_net.pbtxt"
    check_complete(fates_of(net, None, lambda: loaded(shared, model)[0], made_target(256)))
