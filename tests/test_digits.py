"""The bundled network: its files, its accuracy on the held-out digits, and the script that trained it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import cortado
from cortado import digits
from cortado.errors import TargetError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_the_record_fits_the_files() -> None:
    folder, record = digits.model_folder(), digits.record()
    images, classes = digits.held_out()
    assert (folder / "init_net.pb").stat().st_size + (folder / "predict_net.pb").stat().st_size < 200_000
    assert images.shape == (record["held_out_digits"], 8, 8) and images.dtype == np.uint8 and images.max() == 16
    assert classes.shape == (record["held_out_digits"],) and sorted(set(classes.tolist())) == list(range(10))
    assert record["held_out_accuracy"] == round(record["held_out_correct"] / record["held_out_digits"], 4) >= 0.98
    assert [int(classes[at]) for at in digits.one_of_each()] == list(range(10))


def test_the_reference_reproduces_the_recorded_accuracy() -> None:
    from cortado.compiler.reference import run_graph

    images, classes = digits.held_out()
    graph = cortado.load(digits.model_folder(), inputs={"data": (len(images), 1, 8, 8)})
    prob = run_graph(graph, {"data": images.astype(np.float32)[:, None] / 16})["prob"]
    assert prob.shape == (len(images), 10)
    assert int((prob.argmax(1) == classes).sum()) == digits.record()["held_out_correct"]


def test_the_compiled_model_reproduces_the_recorded_accuracy() -> None:
    from cortado.compiler.reference import run_graph

    images, classes = digits.held_out()
    graph = cortado.load(digits.model_folder(), inputs={"data": (1, 1, 8, 8)})
    model = cortado.compile(graph)
    try:
        model.run({"data": digits.network_input(images[0])})
    except TargetError as error:
        pytest.skip(str(error))
    prob = np.concatenate([model.run({"data": digits.network_input(image)})["prob"] for image in images])
    assert int((prob.argmax(1) == classes).sum()) == digits.record()["held_out_correct"]
    want = run_graph(graph, {"data": digits.network_input(images[0])})["prob"]
    np.testing.assert_allclose(prob[0], want[0], atol=1e-6)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def layers() -> ModuleType:
    return script("digits_layers")


def test_gradients_of_the_trainer(layers: ModuleType) -> None:
    """Every parameter and the input of every kind of layer, against central differences."""
    rng = np.random.default_rng(0)
    cases = [
        layers.Conv(rng, 3, 4, 3, bias=True),
        layers.Conv(rng, 4, 4, 3, group=4),
        layers.Conv(rng, 4, 5, 1),
        layers.BatchNorm(5),
        layers.Relu(),
        layers.Pool("max"),
        layers.Pool("average"),
        layers.FullyConnected(rng, 5, 3),
    ]
    x = rng.standard_normal((2, 3, 8, 8))
    for layer in cases:
        layer.parameters = {name: value.astype(np.float64) for name, value in layer.parameters.items()}
        y = layer.forward(x, True)
        weight = rng.standard_normal(y.shape)
        dx = layer.backward(weight)
        for got, array in [(dx, x), *((layer.gradients[name], value) for name, value in layer.parameters.items())]:
            for at in [tuple(rng.integers(0, size) for size in array.shape) for _ in range(4)]:
                assert got[at] == pytest.approx(slope(layer, x, array, at, weight), rel=1e-3, abs=1e-4), type(layer).__name__
        x = y if y.shape[2:] != (2, 2) else y[:, :, :1, :1]


def slope(layer: object, x: np.ndarray, array: np.ndarray, at: tuple[int, ...], weight: np.ndarray, step: float = 1e-5) -> float:
    values = []
    for sign in (1, -1):
        array[at] += sign * step
        values.append(float((layer.forward(x, True) * weight).sum()))  # type: ignore[attr-defined]
        array[at] -= sign * step
    return (values[0] - values[1]) / (2 * step)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("sklearn", reason="the extra `train` is not installed")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield script("train_digits")


def test_the_held_out_digits_are_those_of_the_script(trainer: ModuleType) -> None:
    images, classes = digits.held_out()
    train_images, _, held_images, held_classes = trainer.split(0)
    np.testing.assert_array_equal(held_images, images)
    np.testing.assert_array_equal(held_classes, classes)
    assert len(train_images) == digits.record()["training_digits"]


@pytest.mark.slow
def test_the_script_trains_a_network_that_loads(trainer: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "train_digits.py"), "--epochs", "4", "--output", str(tmp_path / "digits")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images, classes = digits.held_out()
    graph = cortado.load(tmp_path / "digits", inputs={"data": (len(images), 1, 8, 8)})
    from cortado.compiler.reference import run_graph

    prob = run_graph(graph, {"data": images.astype(np.float32)[:, None] / 16})["prob"]
    right = int((prob.argmax(1) == classes).sum())
    assert right > 0.8 * len(images)
    assert f"{right} of {len(images)} held-out digits right" in done.stdout
