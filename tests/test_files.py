"""Files that never end, and arguments of the wrong kind: an error in words, soon."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import Net
from programs import small_bundle

import cortado
from cortado.backends.targets import find_target
from cortado.cli.main import cli
from cortado.compiler.graph import Graph
from cortado.database import read_tuning
from cortado.errors import InputError, OptionError
from cortado.files import read_file
from cortado.labels import read_labels
from cortado.model import Model
from cortado.samples import read_classes
from cortado.source import read_nets


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A pipe with a writer that does not stop of itself."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        try:
            with path.open("wb", buffering=0) as file:
                while True:
                    file.write(b"a" * 65536)
        except BrokenPipeError:
            return

    threading.Thread(target=write, daemon=True).start()
    return path


READERS: list[Callable[[Path], Any]] = [
    read_labels,
    read_classes,
    lambda path: read_tuning(path, find_target("x86-64-v3")),
    read_nets,
]


@pytest.mark.parametrize("read", READERS, ids=["labels", "classes", "tuning", "model"])
def test_reading_stops(read: Callable[[Path], Any], endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        ("labels", "MOST_BYTES"),
        ("samples", "MOST_CLASSES_BYTES"),
        ("database", "MOST_BYTES"),
        ("source", "_MAX_FILE"),
    ):
        monkeypatch.setattr(f"cortado.{module}.{name}", 1 << 20)
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        read(endless)


def test_files_up_to_the_limit_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5, "numbers") == b"12345"
    with pytest.raises(InputError, match="more than 4 bytes, too much for numbers"):
        read_file(path, 4, "numbers")
    with pytest.raises(InputError, match="No such file"):
        read_file(tmp_path / "missing", 4, "numbers")


def net() -> Graph:
    g = Net()
    return g.graph(g.op("relu", g.input(1, 4)))


@pytest.mark.parametrize("given", [{"target": 5}, {"target": None}, {"tuning": 5}])
def test_options_of_another_kind(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(given))):
        cortado.compile(net(), **given)


def test_a_model_is_not_saved_over_a_file(tmp_path: Path) -> None:
    model = Model(small_bundle(find_target("x86-64")))
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "inside"):
        with pytest.raises(OptionError, match="is a file"):
            model.save(folder)
    assert file.read_text() == "mine"


def test_the_help_offers_what_works() -> None:
    text = " ".join(CliRunner().invoke(cli, ["compile", "--help"]).output.split())
    assert "--dtype DTYPE float32 or int8" in text
    assert "float16" not in text and "caffemodel" not in text
    for dtype in ("float16", "bfloat16"):
        with pytest.raises(OptionError, match="float32 and int8"):
            cortado.compile(net(), dtype=dtype)
    given = np.zeros((1, 4), np.float32)
    assert cortado.compile(net(), dtype="float32").run({"x0": given})["out0"].shape == (1, 4)
