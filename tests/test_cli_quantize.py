"""compile --dtype int8, verify and report on the bundled network, and the samples they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cortado
from cortado.cli.main import invoke
from cortado.cli.options import METHODS
from cortado.compiler.quantize.ranges import METHODS as RANGE_METHODS
from cortado.compiler.quantize.record import load_record
from cortado.digits import as_picture, held_out, model_folder, network_input
from cortado.errors import InputError
from cortado.samples import read_classes, read_samples

MODEL = [str(model_folder()), "--input", "data=1,1,8,8", "--range", "1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    images, classes = held_out()
    lines = ["file,class"]
    for number in range(60):
        Image.fromarray(as_picture(images[number])).save(folder / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{classes[number]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def document(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert invoke([*arguments, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_compile_calibrate_save_reuse_and_report(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, first, second = tmp_path / "kept.npz", tmp_path / "first", tmp_path / "second"
    compile_ = ["compile", *MODEL, "--dtype", "int8", "--calibrate"]
    assert (
        invoke([*compile_, str(pictures), "--calibration-samples", "32", "--save-calibration", str(kept), "-o", str(first)]) == 0
    )
    assert invoke([*compile_, str(kept), "-o", str(second)]) == 0
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}
    found = document(capsys, "report", str(first))
    assert found["quantization"]["samples"] == 32 and len(found["quantization"]["tensors"]) > 5
    assert all(entry["snr_db"] > 20 for entry in found["quantization"]["tensors"] if entry["snr_db"] is not None)
    images, classes = held_out()
    model = cortado.open(first)
    assert all(model.run({"data": network_input(images[i])})["prob"].argmax() == classes[i] for i in range(40, 60))


def test_verify_says_what_int8_costs(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", *MODEL, "--dtype", "int8", "--samples", str(pictures), "--labels", str(pictures / "labels.csv")]
    found = document(capsys, *command)
    [output] = found["outputs"]
    assert found["samples"] == output["vectors"] == output["labelled"] == 28  # the first 32 calibrate
    assert output["agreement"] >= 0.9 and output["snr_db"] > 15 and output["right"] >= 26
    assert found["quantization"]["samples"] == 32
    assert invoke([*command, "--agreement", "0"]) == 0
    out, _ = capsys.readouterr()
    assert "same class for" in out and "dB signal to noise" in out and "float32:" in out
    assert invoke([*command, "--label-offset", "10"]) == 0
    assert "right: 0 of 28; float32: 0" in capsys.readouterr().out


def test_verify_fails_where_classes_change(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calibrated with pictures of nothing, the network's ranges are useless."""
    np.savez(tmp_path / "dull.npz", data=np.full((3, 1, 8, 8), 1e-4, np.float32))
    command = ["verify", *MODEL, "--dtype", "int8", "--samples", str(pictures), "--calibrate", str(tmp_path / "dull.npz")]
    assert invoke(command) == 1
    assert "same class for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compile", *MODEL, "--calibrate", "FOLDER"], "--calibrate is for --dtype int8"),
        (["compile", *MODEL, "--dtype", "int8"], "needs calibration samples"),
        (["compile", *MODEL, "--dtype", "int8", "--calibrate", "EMPTY"], "no pictures"),
        (["compile", *MODEL, "--dtype", "int8", "--calibrate", "NAN"], "NaN"),
        (["compile", *MODEL, "--dtype", "int8", "--calibrate", "SHAPE"], "samples of the input are [1, 1, 8, 8]"),
        (["verify", *MODEL, "--samples", "FOLDER"], "--dtype int8"),
    ],
)
def test_refusals(arguments: list[str], words: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "nan.npz", data=np.full((2, 1, 8, 8), np.nan, np.float32))
    np.savez(tmp_path / "shape.npz", data=np.zeros((2, 1, 8, 9), np.float32))
    names = {"FOLDER": pictures, "EMPTY": tmp_path / "empty", "NAN": tmp_path / "nan.npz", "SHAPE": tmp_path / "shape.npz"}
    assert invoke([str(names.get(word, word)) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and not out and "Traceback" not in err


def test_samples_of_every_kind(tmp_path: Path) -> None:
    graph = cortado.load(model_folder(), inputs={"data": (2, 1, 8, 8)})
    array = np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "all.npz", data=array)
    found = list(read_samples(tmp_path / "all.npz", graph, {}))
    assert [sample.names for sample in found] == [("0", "1"), ("2", "3")]
    np.testing.assert_array_equal(found[1].feeds["data"], array[2:4])
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "b.npy", array[:2])
    np.savez(folder / "a.npz", data=array[2:4])
    assert [sample.names for sample in read_samples(folder, graph, {})] == [("a.npz",), ("b.npy",)]
    assert [sample.names for sample in read_samples(folder, graph, {}, 1)] == [("b.npy",)]
    np.savez(tmp_path / "other.npz", tada=array)
    with pytest.raises(InputError, match="the network's inputs are data"):
        next(read_samples(tmp_path / "other.npz", graph, {}))
    with pytest.raises(InputError, match="no column 'class'"):
        (tmp_path / "labels.csv").write_text("file,kind\na,1\n")
        read_classes(tmp_path / "labels.csv")


def test_report_shows_every_layer_in_both_types(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["report", *MODEL, "--dtype", "int8", "--calibrate", str(pictures)]
    found = document(capsys, *command, "--keep-float", "fc", "--measure")["quantization"]
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["fc"]["dtype"] == "float32" and layers["conv2/relu"]["dtype"] == "int8" and "fc" in found["keep_float"]
    convolutions = [layer for layer in found["layers"] if layer["op"] == "conv"]
    assert convolutions and all(layer["float_us"] > 0 and layer["int8_us"] > 0 for layer in convolutions)
    assert all(20 < layer["alone_db"] < 80 for layer in convolutions)
    assert invoke(command) == 0
    out, _ = capsys.readouterr()
    assert "estimated for x86-64-v3" in out and "most of the error comes from" in out and "conv2/relu" in out
    assert invoke(["report", *MODEL, "--measure"]) == 2
    assert "--measure compares int8 with float32" in capsys.readouterr().err


def test_a_calibration_goes_on_where_it_was_kept(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, both = tmp_path / "first.npz", tmp_path / "both.npz"
    compile_ = ["compile", *MODEL, "--dtype", "int8", "--calibrate", str(pictures), "--calibration-samples", "20"]
    kept = ["--calibration-method", "min_max", "--save-calibration"]
    assert invoke([*compile_, *kept, str(first), "-o", str(tmp_path / "one")]) == 0
    assert invoke([*compile_, "--resume-calibration", str(first), *kept, str(both), "-o", str(tmp_path / "two")]) == 0
    one, two = load_record(first), load_record(both)
    assert one.samples == 20 and two.samples == 40 and two.decision is not None and two.decision.method == "min_max"
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["quantization"]["calibration"] == two.sha256 != one.sha256
    capsys.readouterr()
    refused = ["compile", *MODEL, "--dtype", "int8", "--calibrate", str(first), "--resume-calibration", str(first)]
    assert invoke([*refused, "-o", str(tmp_path / "three")]) == 2
    assert "is a finished calibration" in capsys.readouterr().err


def test_the_methods_of_the_command_line_are_all_there_are() -> None:
    assert tuple(RANGE_METHODS) == METHODS
