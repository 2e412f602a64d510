"""Reading and writing Caffe2 files."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pool

from cortado.errors import FormatError
from cortado.proto.caffe2 import (
    Argument,
    DeviceOption,
    NetDef,
    argument,
    format_net,
    operator,
    parse_net,
    parse_net_text,
    serialize_net,
)


def sample_net() -> NetDef:
    inner = NetDef("inner", (operator("Relu", ["x"], ["x"]),))
    return NetDef(
        name="sample",
        operators=(
            operator("Conv", ["gpu_0/data", "w"], ["y"], "first", "NNPACK", kernel=3, order="NHWC", pads=[1, 2, 3, 4]),
            operator("Fill", [], ["w"], values=np.array([1.5, -2.25, 3e-7], np.float32), scale=0.1),
            operator("If", ["c"], ["y"], then_net=inner, names=["a", "b"]),
        ),
        external_inputs=("gpu_0/data", "w", "c"),
        external_outputs=("y",),
        type="simple",
        num_workers=4,
        device_option=DeviceOption(1, 2, 3, "node"),
        args={"trace": argument(1)},
    )


def same(a: object, b: object) -> bool:
    """Equal records, arrays compared by their bits."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "items"):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    return a == b


def test_binary_round_trip() -> None:
    net = sample_net()
    assert same(parse_net(serialize_net(net), "net"), net)


def test_text_round_trip() -> None:
    net = sample_net()
    assert same(parse_net_text(format_net(net), "net"), net)


def test_numbers_of_the_fields_are_the_formats() -> None:
    """Bytes written out by hand: op (2) with input (1), output (2), type (4), arg (5) with name (1) and i (3)."""
    arg = b"\x0a\x06stride" + b"\x18\x02"
    op = b"\x0a\x01x" + b"\x12\x01y" + b"\x22\x04Conv" + b"\x2a" + bytes([len(arg)]) + arg
    net = parse_net(b"\x0a\x01n" + b"\x12" + bytes([len(op)]) + op + b"\x3a\x01x" + b"\x42\x01y", "net")
    assert (net.name, net.external_inputs, net.external_outputs) == ("n", ("x",), ("y",))
    (conv,) = net.operators
    assert (conv.type, conv.inputs, conv.outputs, conv.args["stride"].i) == ("Conv", ("x",), ("y",), 2)


def test_packed_and_single_floats_read_alike() -> None:
    values = np.array([1, 2.5, -3], np.float32)
    packed = b"\x0a\x06values" + b"\x2a\x0c" + values.tobytes()
    single = b"\x0a\x06values" + b"".join(b"\x2d" + value.tobytes() for value in values)
    for body in (packed, single):
        op = b"\x22\x04Fill" + b"\x2a" + bytes([len(body)]) + body
        net = parse_net(b"\x12" + bytes([len(op)]) + op, "net")
        assert net.operators[0].args["values"].floats.tolist() == values.tolist()


def test_the_last_of_equally_named_arguments_counts() -> None:
    text = 'op { type: "Relu" arg { name: "a" i: 1 } arg { name: "a" i: 2 } }'
    assert parse_net_text(text, "net").operators[0].args["a"].i == 2


def test_zero_is_not_absent() -> None:
    text = 'op { type: "Relu" arg { name: "a" i: 0 } arg { name: "b" f: 0 } arg { name: "c" s: "" } arg { name: "d" } }'
    args = parse_net_text(text, "net").operators[0].args
    assert (args["a"].i, args["a"].f) == (0, None)
    assert (args["b"].f, args["b"].i) == (0.0, None)
    assert (args["c"].s, args["d"].s) == (b"", None)


def test_unknown_fields_are_skipped_in_both_forms() -> None:
    text = 'name: "n" partition_info { name: "p" } op { type: "Relu" op_version: 3 shiny: [1, 2] }'
    assert parse_net_text(text, "net").operators[0].type == "Relu"
    data = serialize_net(sample_net()) + b"\x4a\x03\x0a\x01p" + b"\xf8\x07\x05"
    assert same(parse_net(data, "net"), sample_net())


def test_messages_live_in_a_private_pool() -> None:
    """A framework in the same process may register the same names in the default pool."""
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("caffe2.NetDef")


def test_arguments_from_python_values() -> None:
    assert argument(True).i == 1
    assert argument(2.0).f == 2.0
    assert argument("x").s == b"x"
    assert argument([1, 2]).ints.tolist() == [1, 2]
    assert argument([0.5]).floats.tolist() == [0.5]
    assert argument(["a", b"b"]).strings == (b"a", b"b")
    assert isinstance(argument(sample_net()), Argument)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x12\x05\x22\x04Re", "cut off or damaged"),
        (b"\xff\xff\xff", "not a Caffe2 NetDef"),
        (b"\x0a\x02\xff\xfe", "not UTF-8"),
        (b"\x12\x04\x22\x02\xc3\x28", "not UTF-8"),
    ],
)
def test_damaged_bytes_are_a_format_error(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        parse_net(data, "model.pb")
    assert str(caught.value).startswith("model.pb: ")


@pytest.mark.parametrize(
    "text", ["op {", "op { type: 3 }", "{}", 'op { arg { name: "a" i: 99999999999999999999999 } }', "name: 'x"]
)
def test_damaged_text_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match=r"^model.pbtxt: not a Caffe2 NetDef in text form"):
        parse_net_text(text, "model.pbtxt")


def test_deep_nesting_is_a_format_error() -> None:
    data = b""
    for _ in range(3000):
        body = b"\x42" + _length(data) + data
        op = b"\x2a" + _length(body) + body
        data = b"\x12" + _length(op) + op
    with pytest.raises(FormatError):
        parse_net(data, "deep.pb")
    with pytest.raises(FormatError):
        parse_net_text("op { arg { n { " * 3000 + "} } }" * 3000, "deep.pbtxt")


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def test_big_weights_are_read_quickly() -> None:
    """25 MB of floats. The bound is wide: it is missed only by reading them one by one in Python code."""
    values = np.arange(6_500_000, dtype=np.float32)
    body = b"\x0a\x06values" + b"\x2a" + _length(values.tobytes()) + values.tobytes()
    op = b"\x22\x0fGivenTensorFill" + b"\x2a" + _length(body) + body
    data = b"\x12" + _length(op) + op
    start = time.process_time()
    net = parse_net(data, "init.pb")
    assert time.process_time() - start < 2.5
    assert np.array_equal(net.operators[0].args["values"].floats, values)


@pytest.mark.parametrize("model", ["squeezenet_v1_0", "mobilenet_v2_1_0_224", "rfb_320", "slim_320"])
def test_real_models_text_equals_binary(shared: Path, model: str) -> None:
    folder = shared / "models" / model
    binary = parse_net((folder / "predict_net.pb").read_bytes(), model)
    assert binary.operators
    assert same(binary, parse_net_text((folder / "predict_net.pbtxt").read_text(), model))
    assert same(binary, parse_net(serialize_net(binary), model))
