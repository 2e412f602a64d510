"""Files that hold nets and tensors together: MetaNetDef, predictor databases, TensorProtos, value_info.json."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

import cortado
from cortado.cli.main import invoke
from cortado.compiler.reference import run_graph
from cortado.proto.caffe2 import DATA_TYPE_NUMBERS, NetDef, operator, serialize_net
from cortado.samples import read_samples
from cortado.source import CAFFE2, META_NET, MINIDB, TENSORS, recognise

W = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1, -1], np.float32)
X = np.array([[1, 2, 3]], np.float32)
PREDICT = NetDef("mlp", (operator("FC", ["x", "w", "b"], ["y"]),), ("x", "w", "b"), ("y",))
LOAD = NetDef("global-init", (operator("Load", ["!!PREDICTOR_DBREADER"], ["w", "b"]),), ("!!PREDICTOR_DBREADER",), ("w", "b"))
PREPARE = NetDef(
    "predict-init", (operator("ConstantFill", [], ["x"], shape=[1, 3]), operator("ConstantFill", [], ["y"], shape=[1, 2]))
)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Protobuf's encoding of (number, whole number or bytes)."""
    return b"".join(
        varint(n << 3) + varint(v) if isinstance(v, int) else varint(n << 3 | 2) + varint(len(v)) + v for n, v in fields
    )


def tensor(name: str, array: np.ndarray, raw: bool = False, part: tuple[int, int] | None = None) -> bytes:
    kind = {"float32": "FLOAT", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}[array.dtype.name]
    values = array.reshape(-1) if part is None else array.reshape(-1)[slice(*part)]
    small = b"".join(varint(int(v)) for v in values) if kind == "INT32" else b""
    data = {"FLOAT": (3, values.tobytes()), "INT32": (4, small), "UINT8": (5, values.tobytes())}
    held = (13, values.tobytes()) if raw else data[kind]
    segment = () if part is None else ((11, message((1, part[0]), (2, part[1]))),)
    dims = ((1, d) for d in array.shape)
    return message(*dims, (2, DATA_TYPE_NUMBERS[kind]), held, (7, name.encode()), *segment)


def meta_net(**nets: NetDef) -> bytes:
    blobs = {"INPUTS_BLOB_TYPE": ["x"], "OUTPUTS_BLOB_TYPE": ["y"], "PARAMETERS_BLOB_TYPE": ["w", "b"]}
    maps = [(1, message((1, k.encode()), *((2, v.encode()) for v in vs))) for k, vs in blobs.items()]
    return message(*maps, *((2, message((1, k.encode()), (2, serialize_net(net)))) for k, net in nets.items()))


def record(key: str, value: bytes) -> bytes:
    return struct.pack("<ii", len(key), len(value)) + key.encode() + value


def database(*tensors: tuple[str, bytes], meta: bytes | None = None) -> bytes:
    blobs = [record(key, message((1, key.partition("#")[0].encode()), (2, b"Tensor"), (3, value))) for key, value in tensors]
    first = () if meta is None else (record("!!META_NET_DEF", message((1, b"!!META_NET_DEF"), (2, b"std::string"), (4, meta))),)
    return b"".join([*first, *blobs])


META = meta_net(PREDICT_INIT_NET_TYPE=PREPARE, GLOBAL_INIT_NET_TYPE=LOAD, PREDICT_NET_TYPE=PREDICT)


def check(graph: cortado.Graph) -> None:
    np.testing.assert_allclose(run_graph(graph, {"x": X})["y"], X @ W.T + B)


def test_every_container_is_recognised() -> None:
    tensors = message((1, tensor("w", W)), (1, tensor("b", B, raw=True)))
    assert recognise(META) == META_NET
    assert recognise(database(("w", tensor("w", W)), meta=META)) == MINIDB
    assert recognise(tensors) == TENSORS
    assert recognise(serialize_net(PREDICT)) == CAFFE2


def test_a_predictor_database_holds_all_that_is_needed(tmp_path: Path) -> None:
    """Also the inputs' shapes; large tensors come in pieces."""
    parts = [(f"w#{i}", tensor("w", W, part=part)) for i, part in enumerate([(0, 4), (4, 6)])]
    path = tmp_path / "model.minidb"
    path.write_bytes(database(*parts, ("b", tensor("b", B)), meta=META))
    graph = cortado.load(path)
    assert graph.inputs[0].types[0].shape == (1, 3)
    check(graph)
    assert cortado.load(path, inputs={"x": (5, 3)}).outputs[0][1].shape == (5, 2)


def test_a_meta_net_takes_weights_from_init() -> None:
    check(cortado.load(META, init={"w": W, "b": B}))
    check(cortado.load(META, init=message((1, tensor("w", W)), (1, tensor("b", B, raw=True)))))
    check(cortado.load(META, init=database(("w", tensor("w", W)), ("b", tensor("b", B)))))
    fills = NetDef(
        "fills",
        tuple(operator("GivenTensorFill", [], [n], shape=list(a.shape), values=a.reshape(-1)) for n, a in (("w", W), ("b", B))),
    )
    check(cortado.load(meta_net(PREDICT_INIT_NET_TYPE=PREPARE, GLOBAL_INIT_NET_TYPE=fills, PREDICT_NET_TYPE=PREDICT)))


def test_tensors_of_several_types() -> None:
    """An init of whole numbers and bytes beside floats."""
    net = NetDef("take", (operator("Gather", ["x", "which"], ["y"]),), ("x", "which"), ("y",))
    which = np.array([0, 0], np.int32)
    graph = cortado.load(serialize_net(net), init=message((1, tensor("which", which))), inputs={"x": (1, 3)})
    assert np.array_equal(run_graph(graph, {"x": X})["y"], X[which])


def test_value_info_gives_the_inputs_of_a_folder(tmp_path: Path) -> None:
    fills = [operator("GivenTensorFill", [], [n], shape=list(a.shape), values=a.reshape(-1)) for n, a in (("w", W), ("b", B))]
    (tmp_path / "predict_net.pb").write_bytes(serialize_net(PREDICT))
    (tmp_path / "init_net.pb").write_bytes(serialize_net(NetDef("init", tuple(fills))))
    (tmp_path / "value_info.json").write_text(json.dumps({"x": [1, [1, 3]]}))
    check(cortado.load(tmp_path))
    (tmp_path / "value_info.json").write_text("[1, 2]")
    with pytest.raises(cortado.FormatError, match=r"value_info\.json"):
        cortado.load(tmp_path)


@pytest.mark.parametrize("cut", [3, 9, 40, -3])
def test_a_damaged_database_is_reported(cut: int) -> None:
    whole = database(("w", tensor("w", W)), ("b", tensor("b", B)), meta=META)
    with pytest.raises(cortado.CortadoError):
        cortado.load(whole[:cut])


def test_tensors_whose_data_do_not_fit_are_refused() -> None:
    short = (
        tensor("w", W)
        .replace(W.tobytes(), W.tobytes()[:-4])
        .replace(varint(3 << 3 | 2) + varint(24), varint(3 << 3 | 2) + varint(20))
    )
    with pytest.raises(cortado.FormatError, match="5 numbers where its shape"):
        cortado.load(META, init=message((1, short)))
    twice = message((1, tensor("w", W)), (1, tensor("w", W)))
    with pytest.raises(cortado.FormatError, match="the name 'w' of another"):
        cortado.load(META, init=twice)


def test_a_database_without_a_net_is_no_source() -> None:
    with pytest.raises(cortado.FormatError, match="without a net"):
        cortado.load(database(("w", tensor("w", W))))


def protos(**arrays: np.ndarray) -> bytes:
    return message(*((1, tensor(name, array)) for name, array in arrays.items()))


def test_tensors_are_inputs_of_the_run_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pb").write_bytes(serialize_net(PREDICT))
    np.savez(tmp_path / "init.npz", w=W, b=B)
    (tmp_path / "x.pb").write_bytes(protos(x=X))
    (tmp_path / "other.pb").write_bytes(protos(picture=X))
    (tmp_path / "two.pb").write_bytes(protos(p=X, q=X))
    model = ["run", str(tmp_path / "net.pb"), "--init", str(tmp_path / "init.npz"), "--input", "x=1,3"]
    for data in ("x.pb", "x=x.pb", "x=other.pb"):
        name, equals, file = data.rpartition("=")
        out = tmp_path / "out.npz"
        assert invoke([*model, f"{name}{equals}{tmp_path / file}", "-o", str(out), "--json"]) == 0
        with np.load(out) as got:
            assert np.array_equal(got["y"], X @ W.T + B)
    capsys.readouterr()
    assert invoke([*model, f"x={tmp_path / 'two.pb'}"]) == 2
    assert "none is called x" in capsys.readouterr().err


def test_tensors_are_samples(tmp_path: Path) -> None:
    graph = cortado.load(serialize_net(PREDICT), init={"w": W, "b": B}, inputs={"x": (1, 3)})
    (tmp_path / "all.pb").write_bytes(protos(x=np.concatenate([X, 2 * X])))
    assert [sample.feeds["x"].tolist() for sample in read_samples(tmp_path / "all.pb", graph, {})] == [
        X.tolist(),
        (2 * X).tolist(),
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.pb").write_bytes(protos(x=number * X))
    assert [sample.names for sample in read_samples(folder, graph, {})] == [("1.pb",), ("2.pb",)]
    (tmp_path / "bad.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(cortado.InputError, match=r"bad\.pb"):
        next(read_samples(tmp_path / "bad.pb", graph, {}))
