"""The commands on a real model, the bundled one: compile, run, inspect, report, demo, and their refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cortado
from cortado import digits
from cortado.cli.compile import default_folder
from cortado.cli.main import invoke
from cortado.demo import MACHINES
from cortado.digits import as_picture, held_out, model_folder, network_input

SHAPE = "data=1,1,8,8"
MODEL = str(model_folder())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "digits"
    assert invoke(["compile", MODEL, "--input", SHAPE, "--range", "1", "-o", str(folder), "--json"]) == 0
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> str:
    images, _ = held_out()
    path = tmp_path / "digit.png"
    Image.fromarray(as_picture(images[0])).save(path)
    return str(path)


def document(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    """The one JSON document that the command prints."""
    capsys.readouterr()
    assert invoke([*arguments, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_compile_writes_a_bundle_and_says_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(["compile", MODEL, "--input", SHAPE, "--target", "x86-64-v3", "--name", "my-net", "--separate-weights"]) == 0
    out, err = capsys.readouterr()
    folder = Path("build/digits/x86-64-v3")
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["libmy_net.a", "manifest.json", "my_net.h", "my_net.weights"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == files and out.startswith(f"{folder}:")
    assert "compiling" in err and [path.name for path in tmp_path.iterdir()] == ["build"]
    found = document(capsys, "compile", MODEL, "--input", SHAPE, "-o", "other")
    assert found["folder"] == "other"
    assert {entry["name"]: entry["bytes"] for entry in found["files"]} == {
        p.name: p.stat().st_size for p in Path("other").iterdir()
    }


def test_folders_whose_names_differ_after_a_dot_are_kept_apart(tmp_path: Path) -> None:
    for name in ("net_1.0", "net_1.4", "net_1.0.pb"):
        (tmp_path / name).touch() if name.endswith(".pb") else (tmp_path / name).mkdir()
    assert [default_folder(tmp_path / name).name for name in ("net_1.0", "net_1.4", "net_1.0.pb")] == [
        "net_1.0", "net_1.4", "net_1.0",
    ]  # fmt: skip


def test_what_cannot_be_written_is_known_before_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long compilation must not end in an error that was certain from its start."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("cortado.cli.options.CompileArguments.compile", lambda *_: pytest.fail("compiled"))
    for command in (["compile", MODEL], ["run", MODEL, "x.npy"]):
        assert invoke([*command, "--input", SHAPE, "-o", str(tmp_path / "file" / "x.npz")]) == 2
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert invoke(["compile", MODEL, "--input", SHAPE, "-o", str(tmp_path / "new" / "lib")]) == 2


def test_run_on_a_picture_with_the_preparation_of_the_bundle(
    bundle: Path, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, classes = held_out()
    want = cortado.open(bundle).run({"data": network_input(images[0])})["prob"].ravel()
    labels = tmp_path / "names.txt"
    labels.write_text("".join(f"digit {number}\n" for number in range(10)))
    found = document(capsys, "run", str(bundle), picture, "--top", "2", "--labels", str(labels))
    [run] = found["runs"]
    [best] = run["outputs"]["prob"]["top"]
    assert [entry["index"] for entry in best] == np.argsort(-want, kind="stable")[:2].tolist()
    assert best[0]["label"] == f"digit {classes[0]}" and best[0]["value"] == pytest.approx(want.max(), abs=0.02)
    assert invoke(["run", str(bundle), picture, "--top", "1", "--labels", str(labels)]) == 0
    assert f"{classes[0]}  digit {classes[0]}" in capsys.readouterr().out


def test_run_compiles_a_model_file_and_keeps_exact_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = held_out()
    paths = []
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", network_input(images[number]))
        paths.append(str(tmp_path / f"{number}.npy"))
    out = tmp_path / "results" / "out.npz"
    assert invoke(["run", MODEL, *paths, "--input", SHAPE, "-o", str(out), "--threads", "2"]) == 0
    capsys.readouterr()
    model = cortado.compile(cortado.load(model_folder(), inputs={"data": (1, 1, 8, 8)}), threads=2)
    with np.load(out) as saved:
        assert saved["prob"].shape == (3, 10)
        for number in range(3):
            np.testing.assert_array_equal(saved["prob"][number], model.run({"data": network_input(images[number])})["prob"][0])


def test_inner_blobs_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", network_input(held_out()[0][0]))
    found = document(capsys, "run", MODEL, str(tmp_path / "x.npy"), "--input", SHAPE, "--blob", "pool2", "--blob", "prob")
    assert {name: entry["shape"] for name, entry in found["runs"][0]["outputs"].items()} == {
        "pool2": [1, 32, 4, 4],
        "prob": [1, 10],
    }


def test_report_of_a_bundle_and_of_a_model_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "report", str(bundle)) == json.loads(json.dumps(cortado.open(bundle).report().to_dict()))
    assert invoke(["report", str(bundle)]) == 0
    assert capsys.readouterr().out == f"{cortado.open(bundle).report()}\n"
    board = document(capsys, "report", MODEL, "--input", SHAPE, "--target", "cortex-m4")
    assert board["target"] == "cortex-m4" and board["sizes"]["code"] > 0


def test_inspect_lists_every_node_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "inspect", MODEL, "--input", SHAPE)
    nodes = {entry["name"].partition(":")[2]: entry for entry in found["nodes"]}
    assert list(nodes)[:3] == ["conv1", "conv1/relu", "conv2"] and len(nodes) == 15
    conv2 = nodes["conv2"]
    assert (conv2["ops"], conv2["shape"], conv2["parameters"]) == ("conv", [1, 32, 8, 8], 32 * 16 * 9)
    assert conv2["macs"] == 32 * 16 * 9 * 64 and conv2["kind"] == "kept"
    assert nodes["conv2/bn"]["fate"] == "folded into conv2/relu (conv+bias+relu)" and nodes["conv2/relu"]["kind"] == "fused"
    assert found["obstacles"] == []
    assert found["macs"] == sum(entry["macs"] for entry in nodes.values())
    assert found["inputs"] == [{"name": "data", "shape": [1, 1, 8, 8], "dtype": "float32", "layout": "NCHW"}]
    assert invoke(["inspect", MODEL, "--input", SHAPE]) == 0
    assert "conv2/relu (conv+bias+relu)" in capsys.readouterr().out
    assert "batch_norm" in document(capsys, "inspect", MODEL, "--input", SHAPE, "--graph", "source")["graph"]
    assert invoke(["inspect", MODEL, "--input", SHAPE, "--graph", "optimized"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("graph digits") and "batch_norm" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "BUNDLE", "PICTURE", "--target", "x86-64"], "compiled already"),
        (["run", "BUNDLE", "PICTURE", "--input", SHAPE], "compiled already"),
        (["inspect", "BUNDLE"], "compiled bundle"),
        (["compile", "BUNDLE"], "compiled bundle"),
        (["run", "BUNDLE", "PICTURE", "--channels", "RGB"], "needs [1, 8, 8]"),
        (["run", "BUNDLE", "PICTURE", "-o", "x.txt"], ".npz"),
        (["run", "BUNDLE", "missing.png"], "missing.png: no such file"),
        (["run", "BUNDLE"], "at least one picture"),
        (["compile", MODEL], "--input data=1,1,224,224"),
        (["compile", MODEL, "--input", "data=1,1,8,8", "--input", "tada=1"], "tada"),
        (["compile", MODEL, "--input", SHAPE, "--input", "data=2,1,8,8"], "data more than once"),
        (["compile", MODEL, "--input", SHAPE, "-o", "PICTURE/lib"], "digit.png is no folder"),
        (["compile", "/dev/zero"], "neither a file nor a pipe"),
        (["run", "BUNDLE", "PICTURE", "-o", "PICTURE/x.npz"], "digit.png is no folder"),
        (["run", "BUNDLE", "data=PICTURE", "PICTURE"], "a file too many"),
        (["compile", MODEL, "--input", SHAPE, "--target", "cortex-m44"], "cortex-m4"),
        (["compile", MODEL, "--input", SHAPE, "--dtype", "float31"], "float32"),
        (["compile", "PICTURE", "--input", SHAPE], "digit.png"),
    ],
)
def test_refusals_are_one_message_and_status_2(
    arguments: list[str],
    words: str,
    bundle: Path,
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = [word.replace("BUNDLE", str(bundle)).replace("PICTURE", picture) for word in arguments]
    assert invoke(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err and "bug" not in err
    assert words in document(capsys, *arguments, status=2)["error"]["message"]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_demo_draws_answers_and_tells_measured_from_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["demo", "-o", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    record = digits.record()
    for machine in MACHINES:
        assert machine.target in text
        assert (tmp_path / "demo" / machine.folder / "digits.h").is_file()
    assert f"{record['held_out_correct']} of {record['held_out_digits']}" in text and "us (measured)" in text
    assert text.count("%)") >= 10 and text.count("(measured)") == 1 and text.count("not measured") == 2
    assert max(map(len, text.split("machine", 1)[0].splitlines())) <= 130
    kept = tmp_path / "demo" / "model"
    assert cortado.load(kept, inputs={"data": (1, 1, 8, 8)}).name == "digits"
    assert sorted(p.name for p in (tmp_path / "demo").glob("*.pgm")) == [f"digit{number}.pgm" for number in range(10)]
    found = document(capsys, "demo")
    assert [entry["machine"]["target"] for entry in found["machines"]] == [machine.target for machine in MACHINES]
    assert found["machines"][0]["right"] == record["held_out_correct"]
    for entry in found["machines"][1:]:
        assert entry["seconds"] is None and entry["right"] == entry["digits"]


def test_the_demo_without_block_characters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cortado.cli import drawing

    image = np.zeros((2, 2), np.uint8)
    image[0, 1] = 16
    assert drawing.draw([image, image], ["a", "b"], 16, drawing.ASCII_SHADES) == "  @@  @@\n\n a   b"
    monkeypatch.setattr("cortado.cli.demo.can_show", lambda *_: False)
    assert invoke(["demo"]) == 0
    assert capsys.readouterr().out.isascii()
