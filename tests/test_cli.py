"""The command line: options, data files, output forms, exit status, messages. Whole compilations are in test_cli_models.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from cortado.cli import main as cli_main
from cortado.cli import run as cli_run
from cortado.cli.console import size, table
from cortado.cli.options import InputShape
from cortado.compiler.types import TensorInfo
from cortado.errors import CortadoError, FitError, FormatError, InputError, StrictError, UnsupportedError
from cortado.labels import read_labels, top


def model(**inputs: tuple[tuple[int, ...], str, str]) -> Any:
    return SimpleNamespace(inputs={name: TensorInfo(shape, dtype, layout) for name, (shape, dtype, layout) in inputs.items()})


IMAGE = model(data=((1, 3, 6, 8), "float32", "NCHW"))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("data=1,3,227,227", ("data", (1, 3, 227, 227), None)),
        ("gpu_0/data=1,3", ("gpu_0/data", (1, 3), None)),
        ("a=b=2", ("a=b", (2,), None)),
        ("ids=4:int32", ("ids", (4,), "int32")),
        ("flag=", ("flag", (), None)),
    ],
)
def test_input_shapes(text: str, want: tuple[str, tuple[int, ...], str | None]) -> None:
    assert InputShape().convert(text, None, None) == want


@pytest.mark.parametrize("text", ["data", "=1,2", "data=1,x", "data=1,-2", "data=1,,2"])
def test_input_shapes_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter, match="data=1,3,227,227"):
        InputShape().convert(text, None, None)


def test_tables_align_numbers_right() -> None:
    text = table(("name", "bytes"), [("a", "1,234"), ("long name", "7")])
    assert text.splitlines() == ["name       bytes", "a          1,234", "long name      7"]


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 B"), (10239, "10,239 B"), (10240, "10.0 KB"), (20 << 20, "20.0 MB")])
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def save_picture(path: Path, height: int = 6, width: int = 8) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_picture_becomes_the_input(tmp_path: Path) -> None:
    path = str(tmp_path / "a=b.png")
    pixels = save_picture(tmp_path / "a=b.png")
    [(files, feed)] = cli_run.feeds(IMAGE, (path,), {"channels": "BGR", "mean": "1,2,3"})
    assert files == (path,)
    np.testing.assert_array_equal(feed["data"][0], (pixels[:, :, ::-1] - np.float32([1, 2, 3])).transpose(2, 0, 1))


def test_pictures_are_resized_to_the_input_unless_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "large.png", 30, 50)
    path = str(tmp_path / "large.png")
    [(_, feed)] = cli_run.feeds(IMAGE, (path,), {})
    assert feed["data"].shape == (1, 3, 6, 8)
    with pytest.raises(InputError, match=r"becomes \[3, 30, 50\], but input data needs \[3, 6, 8\]"):
        cli_run.feeds(IMAGE, (path,), {"crop": "30x50"})


def test_several_files_of_one_input_run_one_by_one_or_fill_a_batch(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((1, 3), number, np.float32))
        paths.append(str(tmp_path / f"{number}.npy"))
    one = cli_run.feeds(model(x=((1, 3), "float32", "")), tuple(paths), {})
    assert [feed["x"][0, 0] for _, feed in one] == [0, 1, 2, 3]
    two = cli_run.feeds(model(x=((2, 3), "float32", "")), tuple(paths), {})
    assert [(files, feed["x"][:, 0].tolist()) for files, feed in two] == [(tuple(paths[:2]), [0, 1]), (tuple(paths[2:]), [2, 3])]
    with pytest.raises(InputError, match="takes 3 samples at a time; 4 were given"):
        cli_run.feeds(model(x=((3, 3), "float32", "")), tuple(paths), {})


def test_named_files_and_npz(tmp_path: Path) -> None:
    two = model(a=((1, 2), "float32", ""), b=((1, 2), "int32", ""))
    np.save(tmp_path / "a.npy", np.float32([[1, 2]]))
    np.savez(tmp_path / "both.npz", a=np.float32([[3, 4]]), b=np.int32([[5, 6]]))
    np.savez(tmp_path / "b.npz", b=np.int32([[7, 8]]))
    a, both, b = (str(tmp_path / name) for name in ("a.npy", "both.npz", "b.npz"))
    [(_, feed)] = cli_run.feeds(two, (both,), {})
    assert feed["a"].tolist() == [[3, 4]] and feed["b"].tolist() == [[5, 6]]
    for data in ((f"a={a}", b), (a, b)):
        [(_, feed)] = cli_run.feeds(two, data, {})
        assert feed["a"].tolist() == [[1, 2]] and feed["b"].tolist() == [[7, 8]]
    with pytest.raises(InputError, match="which input"):
        cli_run.feeds(two, (a,), {})


def test_unreadable_arrays_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("bad.npy", "bad.npz", "objects.npy", "missing.npy", "missing.npz"):
        with pytest.raises(InputError, match=name):
            cli_run.feeds(model(x=((1,), "float32", "")), (str(tmp_path / name),), {})


def test_integer_inputs_take_pixels_but_no_fractions(tmp_path: Path) -> None:
    raw = model(data=((1, 6, 8, 3), "uint8", ""))
    pixels = save_picture(tmp_path / "p.png")
    [(_, feed)] = cli_run.feeds(raw, (str(tmp_path / "p.png"),), {})
    assert feed["data"].dtype == np.uint8
    np.testing.assert_array_equal(feed["data"][0], pixels)
    with pytest.raises(InputError, match="takes uint8"):
        cli_run.feeds(raw, (str(tmp_path / "p.png"),), {"scale": "1/255"})


def test_inputs_that_are_no_pictures(tmp_path: Path) -> None:
    save_picture(tmp_path / "p.png")
    with pytest.raises(InputError, match=r"shape \[1, 10\], not that of a picture"):
        cli_run.feeds(model(x=((1, 10), "float32", "")), (str(tmp_path / "p.png"),), {})


def test_top_is_stable_and_labelled(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n\nbird\n\n\n", encoding="utf-8")
    labels = read_labels(tmp_path / "labels.txt")
    assert labels == ("cat", "dog", "", "bird")
    scores = np.float32([0.25, 0.5, 0.25, 0.0]).reshape(4, 1, 1)
    assert [(s.index, s.value, s.label) for s in top(scores, 3, labels)] == [(1, 0.5, "dog"), (0, 0.25, "cat"), (2, 0.25, "")]


def test_labels_must_be_text_and_fit(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("none.txt", "binary.txt"):
        with pytest.raises(InputError, match=name):
            read_labels(tmp_path / name)
    with pytest.raises(InputError, match="name 2 classes, but prob has 3"):
        cli_run.check_labels(("a", "b"), {"prob": np.zeros((1, 3))})


def test_results_as_text_and_document() -> None:
    run = cli_run.Run(("cat.png",), {"prob": np.float32([[0.25, 0.75]]), "box": np.float32([[[1, 2], [3, 4]]])})
    text = cli_run.as_text(run, 1, ("no", "yes"))
    assert "cat.png  prob:\n" in text and "0.75      1  yes" in text and "box: float32[1,2,2] 1 2 3 4" in text
    document = cli_run.as_document(run, 1, ("no", "yes"))
    assert document["outputs"]["prob"]["top"] == [[{"index": 1, "value": 0.75, "label": "yes"}]]
    assert document["outputs"]["box"] == {"shape": [1, 2, 2], "dtype": "float32"}


FAILURES = [
    (FormatError("net.pb: cut off"), 2, "net.pb: cut off"),
    (FitError("needs 40 KB, the board has 32 KB"), 1, "needs 40 KB"),
    (StrictError("strict: 1 node is slow", ["y: moves single elements"]), 1, "moves single elements"),
    (UnsupportedError("2 nodes cannot be compiled", ["a: Foo", "b: Bar"]), 2, "b: Bar"),
    (PermissionError(13, "Permission denied", "build/x"), 2, "build/x: Permission denied"),
    (MemoryError(), 2, "out of memory"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (ZeroDivisionError("division by zero"), 70, "a bug in cortado"),
]


@pytest.mark.parametrize(("error", "status", "words"), FAILURES, ids=[type(error).__name__ for error, _, _ in FAILURES])
@pytest.mark.parametrize("as_json", [False, True])
def test_every_error_has_its_status_and_one_message(
    error: BaseException,
    status: int,
    words: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.delenv("CORTADO_DEBUG", raising=False)
    monkeypatch.setattr("cortado.cli.targets.listed", fail)
    assert cli_main.invoke(["targets", *(["--json"] if as_json else [])]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if as_json:
        document = json.loads(out)["error"]
        assert words in document["message"] + " ".join(document.get("nodes", []))
        assert (document["type"] == type(error).__name__) == isinstance(error, (CortadoError, MemoryError))
    else:
        assert out == "" and words in err


def test_debug_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("lost")

    monkeypatch.setenv("CORTADO_DEBUG", "1")
    monkeypatch.setattr("cortado.cli.targets.listed", fail)
    assert cli_main.invoke(["targets"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["compile"], ["run", "no-such-model"], ["inspect", "--frobnicate"], ["frobnicate"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.invoke(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Usage" in err
    assert cli_main.invoke([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    import cortado

    assert cli_main.invoke(["--version"]) == 0
    assert cortado.__version__ in capsys.readouterr().out
    for command in cli_main.cli.commands.values():
        assert cli_main.invoke([command.name or "", "--help"]) == 0
        assert "Example:" in capsys.readouterr().out, f"{command.name} has no example in its help"


def test_targets_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.invoke(["targets", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["targets"]}
    assert {"x86-64", "x86-64-v3", "x86-64-v4", "cortex-a76", "cortex-m4"} <= set(listed)
    assert listed["x86-64-v3"]["vector_bits"] == 256 and listed["cortex-m4"]["pointer_bits"] == 32
    assert cli_main.invoke(["targets", "cortex-a76@android"]) == 0
    assert "android" in capsys.readouterr().out
    assert cli_main.invoke(["targets", "cortex-m44"]) == 2
    assert "cortex-m4" in capsys.readouterr().err


def test_the_command_starts_without_the_heavy_parts(tmp_path: Path) -> None:
    """Loading the command line must not load the code generator, pictures or progress bars."""
    code = "import sys, cortado.cli.main; print([m for m in ('llvmlite', 'PIL', 'rich', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cortado.cli.main targets | head -n 1; exit ${{PIPESTATUS[0]}}"
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=unbuffered, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""


def test_an_interrupt_while_loading_leaves_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'numpy':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from cortado.cli import entry\n"
        "entry()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")
