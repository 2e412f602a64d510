"""What `load` makes of Caffe2 nets: names, versions, layouts, weights, inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cortado
from cortado.compiler.graph import Graph, Node
from cortado.compiler.reference import run_graph
from cortado.compiler.types import Quant
from cortado.proto.caffe2 import NetDef, Operator, format_net, operator, serialize_net

RNG = np.random.default_rng(5)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def net(*operators: Operator, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()) -> NetDef:
    return NetDef("net", operators, inputs, outputs or operators[-1].outputs[:1])


def fill(name: str, value: np.ndarray) -> Operator:
    return operator("GivenTensorFill", [], [name], shape=list(value.shape), values=value.reshape(-1))


def by_name(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.nodes()}


def run(graph: Graph, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return run_graph(graph, feeds)


CONV = net(
    operator("Conv", ["data", "w", "b"], ["y"], "conv one", kernel=3, stride=2, pads=[0, 1, 2, 3]),
    operator("Relu", ["y"], ["y"]),
    inputs=("w", "data", "b"),
)
WEIGHTS = {"w": array(4, 3, 3, 3), "b": array(4)}


def test_channels_first_operators_stand_between_transposes() -> None:
    graph = cortado.load(serialize_net(CONV), init=WEIGHTS, inputs={"data": (1, 3, 8, 9)})
    nodes = by_name(graph)
    conv = nodes["y"]
    assert conv.op == "conv"
    assert dict(conv.attrs) == {
        "strides": (2, 2), "dilations": (1, 1), "pads_begin": (0, 1), "pads_end": (2, 3), "group": 1, "epilogue": (("bias",),),
    }  # fmt: skip
    assert (nodes["y/nhwc"].attrs["perm"], nodes["y/nchw"].attrs["perm"]) == ((0, 2, 3, 1), (0, 3, 1, 2))
    assert np.array_equal(conv.inputs[1].constant, WEIGHTS["w"].transpose(0, 2, 3, 1))
    assert conv.origin == nodes["y/nchw"].origin == ("conv one",)
    assert nodes["y_2"].op == "relu"
    assert nodes["y_2"].origin == ("Relu:y",)
    assert graph.outputs == (("y", nodes["y_2"].out()),)
    assert dict(graph.layouts) == {"data": "NCHW", "y": "NCHW"}


def test_channels_last_operators_need_none() -> None:
    source = net(operator("MaxPool", ["x"], ["y"], order="NHWC", kernel=2, stride=2), inputs=("x",))
    graph = cortado.load(source, inputs={"x": (1, 4, 6, 3)})
    assert [node.op for node in graph.nodes()] == ["input", "max_pool"]
    assert graph.layouts["x"] == "NHWC"


def test_a_blob_that_several_operators_read_is_transposed_once() -> None:
    source = net(
        operator("Conv", ["x", "w"], ["a"], kernel=1),
        operator("Conv", ["x", "w"], ["b"], kernel=1),
        operator("Sum", ["a", "b"], ["y"]),
        inputs=("x", "w"),
    )
    graph = cortado.load(source, init={"w": array(2, 3, 1, 1)}, inputs={"x": (1, 3, 4, 4)})
    nodes = by_name(graph)
    assert nodes["a"].inputs == nodes["b"].inputs


def test_every_version_of_a_blob_has_its_own_name() -> None:
    source = net(
        operator("Relu", ["x"], ["y"]),
        operator("Tanh", ["y"], ["y"]),
        operator("Exp", ["y"], ["y_2"]),
        operator("Abs", ["y_2"], ["x"]),
        operator("Sigmoid", ["y"], ["y"]),
        inputs=("x",),
        outputs=("y", "x", "y_2"),
    )
    graph = cortado.load(source, inputs={"x": (5,)})
    nodes = by_name(graph)
    assert {name: node.op for name, node in nodes.items()} == {
        "x": "input", "y": "relu", "y_3": "tanh", "y_2": "exp", "x_2": "abs", "y_4": "sigmoid",
    }  # fmt: skip
    x = array(5)
    got = run(graph, x=x)
    tanh = np.tanh(np.maximum(x, 0))
    np.testing.assert_allclose(got["y"], 1 / (1 + np.exp(-tanh)), rtol=1e-5)
    np.testing.assert_allclose(got["y_2"], np.exp(tanh), rtol=1e-5)
    np.testing.assert_allclose(got["x"], np.exp(tanh), rtol=1e-5)


def test_names_swapped_back_and_forth() -> None:
    source = net(
        operator("Copy", ["a"], ["t"]),
        operator("Negative", ["b"], ["a"]),
        operator("Copy", ["t"], ["b"]),
        inputs=("a", "b"),
        outputs=("a", "b"),
    )
    a, b = array(3), array(3)
    got = run(cortado.load(source, inputs={"a": (3,), "b": (3,)}), a=a, b=b)
    assert np.array_equal(got["a"], -b) and np.array_equal(got["b"], a)


@pytest.mark.parametrize("alias", ["Alias", "AliasWithName"])
def test_an_alias_sees_later_writes_in_place(alias: str) -> None:
    source = net(
        operator(alias, ["x"], ["y"]),
        operator("Relu", ["x"], ["x"]),
        operator("Negative", ["y"], ["y"]),
        inputs=("x",),
        outputs=("x", "y"),
    )
    x = array(6)
    got = run(cortado.load(source, inputs={"x": (6,)}), x=x)
    assert np.array_equal(got["x"], -np.maximum(x, 0)) and np.array_equal(got["y"], got["x"])


def test_an_alias_whose_memory_is_overwritten_is_refused_only_if_read() -> None:
    operators = (
        operator("Alias", ["x"], ["y"]),
        operator("Exp", ["z"], ["x"]),
    )
    feeds = {"x": (6,), "z": (6,)}
    assert cortado.load(net(*operators, inputs=("x", "z"), outputs=("x",)), inputs=feeds)
    with pytest.raises(cortado.UnsupportedError, match=r"'y' shares memory with 'x' \(Alias\), which operator 1 Exp"):
        cortado.load(net(*operators, operator("Tanh", ["y"], ["o"]), inputs=("x", "z")), inputs=feeds)


def test_inputs_come_in_the_files_order_and_unread_ones_are_optional() -> None:
    source = net(
        operator("Sub", ["second", "first"], ["y"]),
        operator("NoSuchOperator", ["queue"], ["unused"]),
        inputs=("queue", "first", "w", "second"),
        outputs=("y",),
    )
    graph = cortado.load(source, inputs={"second": (2,), "first": (2,)})
    assert [node.name for node in graph.inputs] == ["first", "second"]
    graph = cortado.load(source, inputs={"second": (2,), "first": (2,), "w": ((3, 1), "int32")})
    assert [(node.name, str(node.types[0])) for node in graph.inputs] == [
        ("first", "float32[2]"),
        ("w", "int32[3,1]"),
        ("second", "float32[2]"),
    ]


def test_engine_device_and_unknown_arguments_change_nothing() -> None:
    plain = net(operator("Relu", ["x"], ["y"]), inputs=("x",))
    dressed = format_net(plain).replace(
        'type: "Relu"',
        'type: "Relu" engine: "NO_SUCH" device_option { device_type: 1 } arg { name: "ws" i: 3 } arg { name: "f" f: 1.5 }',
    )
    assert by_name(cortado.load(dressed.encode(), inputs={"x": (2,)}))["y"].op == "relu"


def test_outputs_may_name_any_blob() -> None:
    graph = cortado.load(CONV, init=WEIGHTS, inputs={"data": (1, 3, 8, 8)}, outputs=["data", "w", "y"])
    assert [name for name, _ in graph.outputs] == ["data", "w", "y"]
    data = array(1, 3, 8, 8)
    got = run(graph, data=data)
    assert np.array_equal(got["data"], data) and np.array_equal(got["w"], WEIGHTS["w"])


@pytest.mark.parametrize("spec", [(2, 3), [2, 3], ((2, 3), "float32"), [[2, 3], np.float32], np.array([2, 3])])
def test_spellings_of_an_inputs_type(spec: Any) -> None:
    graph = cortado.load(net(operator("Relu", ["x"], ["y"]), inputs=("x",)), inputs={"x": spec})
    assert str(graph.inputs[0].types[0]) == "float32[2,3]"


def test_inputs_win_over_what_init_gives() -> None:
    """Init nets often fill the data blob with a placeholder."""
    placeholder = operator("ConstantFill", [], ["data"], shape=[1])
    init = NetDef("init", (placeholder, fill("w", WEIGHTS["w"]), fill("b", WEIGHTS["b"])))
    assert cortado.load(CONV, init=init, inputs={"data": (1, 3, 8, 8)}).inputs[0].name == "data"
    with pytest.raises(
        cortado.ShapeError, match=r"'data' comes from init=; if it is an input of the net, give its shape with inputs="
    ):
        cortado.load(CONV, init=init)


class Message:
    """What any protobuf message object offers."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data


def test_sources_and_weights_of_every_kind_give_the_same(tmp_path: Path) -> None:
    init = NetDef("init", (fill("w", WEIGHTS["w"]), fill("b", WEIGHTS["b"])))
    (tmp_path / "p.bin").write_bytes(serialize_net(CONV))
    (tmp_path / "p.txt").write_text(format_net(CONV))
    (tmp_path / "i.bin").write_bytes(serialize_net(init))
    (tmp_path / "i.txt").write_text(format_net(init))
    np.savez(tmp_path / "i.npz", **WEIGHTS)
    np.savez_compressed(tmp_path / "small.npz", **WEIGHTS)
    sources = [CONV, serialize_net(CONV), Message(serialize_net(CONV)), tmp_path / "p.bin", str(tmp_path / "p.txt")]
    inits = [init, serialize_net(init), Message(serialize_net(init)), tmp_path / "i.bin", tmp_path / "i.txt", WEIGHTS]
    inits += [tmp_path / "i.npz", str(tmp_path / "small.npz")]
    data = array(1, 3, 8, 8)
    want = run(cortado.load(CONV, init=WEIGHTS, inputs={"data": data.shape}), data=data)["y"]
    for source, weights in [(source, inits[0]) for source in sources] + [(sources[0], weights) for weights in inits]:
        got = run(cortado.load(source, init=weights, inputs={"data": data.shape}), data=data)["y"]
        assert np.array_equal(got, want)


@pytest.mark.parametrize(("first", "second"), [("a.pb", "b.pb"), ("z", "a"), ("predict_net.pb", "init_net.pb")])
def test_a_folders_nets_are_told_apart_by_content(tmp_path: Path, first: str, second: str) -> None:
    init = NetDef("init", (fill("w", WEIGHTS["w"]), fill("b", WEIGHTS["b"])), (), ("w", "b"))
    (tmp_path / first).write_bytes(serialize_net(CONV))
    (tmp_path / second).write_bytes(serialize_net(init))
    (tmp_path / "again.pbtxt").write_text(format_net(CONV))
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    assert cortado.load(tmp_path, inputs={"data": (1, 3, 8, 8)}).name == "net"


def test_init_nets_may_compute() -> None:
    raw = array(4, 27)
    init = NetDef(
        "init",
        (
            fill("raw", raw),
            operator("Scale", ["raw"], ["raw"], scale=2.0),
            operator("Reshape", ["raw"], ["w", "_"], shape=[4, 3, 3, 3]),
            operator("ConstantFill", [], ["b"], shape=[4], value=0.5),
            operator("NoSuchFill", [], ["nobody reads this"]),
        ),
    )
    graph = cortado.load(CONV, init=init, inputs={"data": (1, 3, 8, 8)})
    conv = by_name(graph)["y"]
    assert np.array_equal(conv.inputs[1].constant, 2 * raw.reshape(4, 3, 3, 3).transpose(0, 2, 3, 1))
    assert np.array_equal(conv.inputs[2].constant, np.full(4, 0.5, np.float32))


def test_random_fills_follow_their_distribution_and_their_name() -> None:
    shape = [200, 50, 3, 3]
    kinds = ("XavierFill", "MSRAFill", "GaussianFill", "UniformFill", "GaussianFill")
    args: tuple[dict[str, float], ...] = ({}, {}, {"mean": 3.0, "std": 0.5}, {"min": -2.0, "max": 6.0}, {"mean": 3.0, "std": 0.5})
    init = NetDef("init", tuple(operator(kind, [], [f"w{i}"], shape=shape, **args[i]) for i, kind in enumerate(kinds)))
    source = net(*(operator("Negative", [f"w{i}"], [f"y{i}"]) for i in range(5)), outputs=tuple(f"w{i}" for i in range(5)))
    xavier, msra, gauss, uniform, other = (run(cortado.load(source, init=init))[f"w{i}"] for i in range(5))
    reach = np.sqrt(3 / (50 * 9))
    assert abs(xavier).max() <= reach and abs(xavier).max() > 0.999 * reach
    assert xavier.std() == pytest.approx(reach / np.sqrt(3), rel=0.01)
    assert msra.std() == pytest.approx(np.sqrt(2 / (200 * 9)), rel=0.01) and abs(msra.mean()) < 0.001
    assert (gauss.mean(), gauss.std()) == (pytest.approx(3, abs=0.01), pytest.approx(0.5, rel=0.01))
    assert uniform.min() >= -2 and uniform.max() <= 6 and uniform.mean() == pytest.approx(2, abs=0.05)
    assert not np.array_equal(gauss, other)
    assert np.array_equal(xavier, run(cortado.load(source, init=init))["w0"])


def test_random_fills_have_the_same_bits_everywhere() -> None:
    """Recorded once; they must not change between versions of this library or of numpy."""
    init = NetDef("init", (operator("GaussianFill", [], ["g"], shape=[3]), operator("UniformFill", [], ["u"], shape=[3])))
    source = net(operator("Add", ["g", "u"], ["y"]), outputs=("g", "u"))
    got = run(cortado.load(source, init=init))
    assert got["g"].tolist() == RECORDED["g"] and got["u"].tolist() == RECORDED["u"]


RECORDED = {
    "g": [0.5365086793899536, 0.22443504631519318, 0.8170788884162903],
    "u": [0.14266107976436615, 0.7182610034942627, 0.13461601734161377],
}


def test_shapes_computed_from_constants_and_shapes() -> None:
    source = net(
        operator("Shape", ["x"], ["s"]),
        operator("Slice", ["s"], ["rows"], starts=[0], ends=[1]),
        operator("GivenTensorInt64Fill", [], ["rest"], shape=[1], values=[-1]),
        operator("Concat", ["rows", "rest"], ["target", "_"], axis=0),
        operator("Reshape", ["x", "target"], ["y", "old"]),
        inputs=("x",),
        outputs=("y", "old"),
    )
    graph = cortado.load(source, inputs={"x": (2, 3, 4)})
    got = run(graph, x=array(2, 3, 4))
    assert got["y"].shape == (2, 12) and got["old"].tolist() == [2, 3, 4]


def test_float_arguments_stay_float32() -> None:
    graph = cortado.load(net(operator("LeakyRelu", ["x"], ["y"], alpha=0.1), inputs=("x",)), inputs={"x": (2,)})
    assert by_name(graph)["y"].attrs["alpha"] == float(np.float32(0.1))


def test_weights_are_copied_from_the_users_arrays() -> None:
    bias = WEIGHTS["b"].copy()
    graph = cortado.load(CONV, init={"w": WEIGHTS["w"], "b": bias}, inputs={"data": (1, 3, 8, 8)})
    bias[:] = 100
    assert np.array_equal(by_name(graph)["b"].attrs["value"], WEIGHTS["b"])


def test_a_transposed_convolution_of_integers_is_one_operator() -> None:
    """Its filter [C, KH, KW, M] is turned when it is read, and keeps its scale."""
    weights = np.arange(6 * 2 * 3 * 4, dtype=np.uint8).reshape(6, 2, 3, 4)
    source = net(
        operator("Int8Quantize", ["x"], ["q"], Y_scale=0.5, Y_zero_point=100),
        operator("Int8GivenTensorFill", [], ["w"], shape=[6, 2, 3, 4], values=weights.tobytes(), Y_scale=0.25, Y_zero_point=9),
        operator("Int8GivenIntTensorFill", [], ["b"], shape=[4], values=[1, 2, 3, 4], Y_scale=0.125, Y_zero_point=0),
        operator(
            "Int8ConvTranspose", ["q", "w", "b"], ["y"], order="NHWC", kernel_h=2, kernel_w=3, stride=2, pads=[0, 1, 1, 2], adj=1,
            Y_scale=8.0, Y_zero_point=7,
        ),
        inputs=("x",),
    )  # fmt: skip
    graph = cortado.load(source, inputs={"x": (1, 4, 5, 6)})
    assert [node.op for node in graph.nodes() if node.op not in ("input", "constant")] == ["quantize", "q_conv_transpose"]
    node = by_name(graph)["y"]
    assert np.array_equal(node.inputs[1].constant, weights.transpose(3, 1, 2, 0))
    assert node.inputs[1].type.quant == Quant((0.25,), (9,))
    window = {name: node.attrs[name] for name in ("strides", "pads_begin", "pads_end", "output_padding", "group")}
    assert window == {"strides": (2, 2), "pads_begin": (0, 1), "pads_end": (1, 2), "output_padding": (1, 1), "group": 1}
    assert node.types[0].shape == (1, 8, 9, 4) and node.attrs["rounding"] == "qnnpack"
