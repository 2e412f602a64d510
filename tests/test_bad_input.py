"""Malformed models give one clear error, at once, in little memory, and never anything but a CortadoError."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
from mutation import damaged_bytes, damaged_net

import cortado
from cortado.proto.caffe2 import NetDef, operator, parse_net, serialize_net

CASES = bad_inputs.all_cases()


@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_is_wrong(name: str) -> None:
    bad = CASES[name]
    with pytest.raises(cortado.CortadoError, match=bad.words) as caught:
        bad_inputs.load(bad)
    assert type(caught.value) is bad.error


def test_all_unsupported_operators_are_listed_at_once() -> None:
    with pytest.raises(cortado.UnsupportedError) as caught:
        bad_inputs.load(CASES["all that is unsupported"])
    assert len(caught.value.nodes) == 3
    assert all(line in str(caught.value) for line in caught.value.nodes)


def test_errors_come_within_a_second_and_200_megabytes() -> None:
    """In a process of its own, whose peak covers the interpreter, numpy and protobuf as well."""
    script = Path(bad_inputs.__file__)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    measured = json.loads(done.stdout)
    assert measured["seconds"] < 1, measured
    assert measured["peak_bytes"] < 200e6, measured


def test_every_prefix_of_a_file(tmp_path: Path) -> None:
    source = bad_inputs.conv()["source"]
    weights = NetDef("i", tuple(operator("GivenTensorFill", [], [n], shape=[2], values=[0.5, 1.5]) for n in ("w", "b")))
    init = serialize_net(weights)
    for length in range(len(source)):
        (tmp_path / "predict.pb").write_bytes(source[:length])
        with pytest.raises(cortado.CortadoError, match=r"predict\.pb: "):
            cortado.load(tmp_path / "predict.pb", init=init, inputs={"x": (1, 3, 8, 8)})
    for length in range(len(init)):
        with pytest.raises(cortado.CortadoError):
            cortado.load(source, init=init[:length], inputs={"x": (1, 3, 8, 8)})


@pytest.mark.parametrize("part", ["predict_net.pb", "init_net.pb", "predict_net.pbtxt"])
def test_a_real_file_cut_off(shared: Path, tmp_path: Path, part: str) -> None:
    folder = shared / "models" / "slim_320"
    data = (folder / part).read_bytes()
    other = folder / ("predict_net.pb" if part == "init_net.pb" else "init_net.pb")
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / part).write_bytes(data[: int(len(data) * share)])
        pair = (other, tmp_path / part) if part == "init_net.pb" else (tmp_path / part, other)
        with pytest.raises(cortado.CortadoError):
            cortado.load(pair[0], init=pair[1], inputs={"input": (1, 3, 240, 320)})


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "predict_net.pb").write_bytes(bad_inputs.conv()["source"][:-1])
    (tmp_path / "init_net.pb").write_bytes(serialize_net(NetDef("i", (operator("ConstantFill", [], ["w"]),))))
    with pytest.raises(cortado.FormatError, match=r"predict_net\.pb: .*cut off"):
        cortado.load(tmp_path)


def test_a_folder_without_a_pair(tmp_path: Path) -> None:
    with pytest.raises(cortado.FormatError, match="no Caffe2 NetDef in this folder; it holds nothing"):
        cortado.load(tmp_path)
    for name in ("a", "b", "c"):
        relu = operator("Relu", ["x"], [name])
        (tmp_path / f"{name}.pb").write_bytes(serialize_net(NetDef(name, (relu,), ("x",), (name,))))
    with pytest.raises(cortado.FormatError, match=r"which of a\.pb, b\.pb, c\.pb"):
        cortado.load(tmp_path)


def test_damaged_npz(tmp_path: Path) -> None:
    given = bad_inputs.conv()
    path = tmp_path / "w.npz"
    np.savez(path, **given["init"])
    data = path.read_bytes()
    rng = random.Random(1)
    for _ in range(200):
        path.write_bytes(damaged_bytes(data, rng))
        try:
            cortado.load(given["source"], init=path, inputs=given["inputs"])
        except cortado.CortadoError:
            continue


def test_npz_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    given = bad_inputs.conv()
    path = tmp_path / "w.npz"
    np.savez(path, **given["init"])
    data = path.read_bytes()
    assert data.count(b"(4, 3, 3, 3)") == 1
    path.write_bytes(data.replace(b"(4, 3, 3, 3), }", b"(1<<29, 3, 3), }".ljust(15)[:15]))
    with pytest.raises(cortado.FormatError):
        cortado.load(given["source"], init=path, inputs=given["inputs"])


def synthetic_net() -> NetDef:
    return NetDef(
        "net",
        (
            operator("Conv", ["x", "w", "b"], ["c"], kernel=3, pads=[1, 1, 1, 1], stride=1, group=1, order="NCHW"),
            operator("Relu", ["c"], ["c"]),
            operator("MaxPool", ["c"], ["p"], kernel=2, stride=2, legacy_pad=3),
            operator("Split", ["p"], ["s", "t"], axis=1),
            operator("Concat", ["s", "t", "s"], ["j", "_"], order="NCHW"),
            operator("Transpose", ["j"], ["q"], axes=[0, 2, 3, 1]),
            operator("Reshape", ["q"], ["r", "_"], shape=[1, -1]),
            operator("Tanh", ["r"], ["r"]),
            operator("Softmax", ["r"], ["y"], axis=1),
        ),
        ("x", "w", "b"),
        ("y",),
    )


def synthetic_init() -> NetDef:
    return NetDef(
        "init",
        (
            operator("XavierFill", [], ["w"], shape=[4, 3, 3, 3]),
            operator("GivenTensorFill", [], ["b"], shape=[4], values=[0.5, 1.5, 2.5, 3.5]),
        ),
    )


def attempt(source: bytes, init: bytes, inputs: dict[str, tuple[int, ...]]) -> bool:
    """Whether it loads. Anything but a CortadoError passes through and fails the test."""
    try:
        cortado.load(source, init=init, inputs=inputs)
    except cortado.CortadoError as error:
        assert str(error).strip()
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_a_synthetic_model(seed: int) -> None:
    rng = random.Random(seed)
    predict, init = synthetic_net(), synthetic_init()
    assert attempt(serialize_net(predict), serialize_net(init), {"x": (1, 3, 8, 8)})
    loaded = 0
    for _ in range(250):
        source, weights = serialize_net(predict), serialize_net(init)
        which = rng.randrange(4)
        if which == 0:
            source = damaged_bytes(source, rng)
        elif which == 1:
            weights = damaged_bytes(weights, rng)
        elif which == 2:
            source = damaged_net(predict, rng)
        else:
            weights = damaged_net(init, rng)
        loaded += attempt(source, weights, {"x": (1, 3, 8, 8)})
    assert 0 < loaded < 250


def test_mutations_of_a_real_model(shared: Path) -> None:
    rng = random.Random(7)
    folder = shared / "models" / "slim_320"
    source, weights = (folder / "predict_net.pb").read_bytes(), (folder / "init_net.pb").read_bytes()
    predict = parse_net(source, "slim_320")
    loaded = 0
    for turn in range(60):
        damaged = damaged_bytes(source, rng) if turn % 2 else damaged_net(predict, rng)
        loaded += attempt(damaged, damaged_bytes(weights, rng) if turn % 5 == 0 else weights, {"input": (1, 3, 240, 320)})
    assert 0 < loaded < 60
