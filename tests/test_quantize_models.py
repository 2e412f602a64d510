"""Post-training quantization of real networks, measured on pictures that calibration did not see."""

from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from native import runnable_targets

import cortado
from cortado import digits
from cortado.preprocess import Preprocess
from cortado.samples import Sample
from cortado.verification import Verification, compare

CALIBRATION = 32


@dataclass(frozen=True)
class Case:
    folder: str
    shape: tuple[int, ...]
    preprocess: Preprocess
    background: int = 0  # 1 where class 0 is "background"


SQUEEZENET = Case("squeezenet_v1_0", (1, 3, 227, 227), Preprocess(256, (227, 227), "BGR", mean=(104.0, 117.0, 123.0)))
# (byte - 127) * 0.007843137718737125
MOBILENET = Case(
    "mobilenet_v2_1_0_224", (1, 3, 224, 224), Preprocess(256, (224, 224), mean=(127.0,), std=(1 / 0.007843137718737125,)), 1
)
FACE_DETECTOR = Case("rfb_320", (1, 3, 240, 320), Preprocess((240, 320), mean=(127.0,), std=(128.0,)))


def labelled(shared: Path) -> list[tuple[Path, int]]:
    folder = shared / "images" / "ilsvrc_dev"
    with (folder / "labels.csv").open(newline="") as file:
        return sorted((folder / row["file"], int(row["class"])) for row in csv.DictReader(file))


def verified(shared: Path, case: Case) -> tuple[Verification, list[np.ndarray], list[np.ndarray]]:
    """The comparison on all but the first 32 pictures, with default settings; and both networks' scores."""
    rows = labelled(shared)
    graph = cortado.load(shared / "models" / case.folder, inputs={"data": case.shape})
    record = cortado.calibrate(graph, ({"data": case.preprocess(path)} for path, _ in rows[:CALIBRATION]))
    small, exact = cortado.compile(graph, dtype="int8", calibration=record), cortado.compile(graph)
    kept: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    class Keeping:
        def __init__(self, model: cortado.Model, into: list[np.ndarray]) -> None:
            self.model, self.into = model, into

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            out = self.model.run(feeds)
            self.into.append(out["prob"].ravel())
            return out

    samples = (Sample((path.name,), {"data": case.preprocess(path)}) for path, _ in rows[CALIBRATION:])
    classes = {path.name: number for path, number in rows}
    return compare(Keeping(exact, kept[0]), Keeping(small, kept[1]), samples, classes, case.background), *kept  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("case", [SQUEEZENET, MOBILENET], ids=lambda case: case.folder)
def test_classifiers_keep_their_accuracy(shared: Path, case: Case) -> None:
    found, exact, small = verified(shared, case)
    [output] = found.outputs
    print(found)
    assert output.labelled == found.samples == 168
    assert output.right >= output.float_right - 2
    assert output.agreement is not None and output.agreement >= 0.9
    # The larger 80% of the margins between best and second logit (a softmax's logarithm differs from the logits by a constant).
    logits = np.log(np.maximum(np.array(exact), 1e-30))
    margins = np.diff(np.sort(logits, axis=1)[:, -2:]).ravel()
    sure = np.argsort(-margins)[: int(0.8 * len(margins))]
    same = np.array(exact).argmax(axis=1) == np.array(small).argmax(axis=1)
    assert same[sure].mean() >= 0.97


MEASURE = """
import resource, sys, time
from pathlib import Path
import cortado
from test_quantize_models import CALIBRATION, MOBILENET, labelled
shared = Path(sys.argv[1])
graph = cortado.load(shared / "models" / MOBILENET.folder, inputs={"data": MOBILENET.shape})
cortado.compile(graph, dtype="int8", calibration=[{"data": MOBILENET.preprocess(p)} for p, _ in labelled(shared)[:CALIBRATION]])
def peak(process):  # ru_maxrss would count what the parent held when it started the process
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
workers = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
used = resource.getrusage(resource.RUSAGE_SELF)
print(sum(map(peak, ["self", *workers])), used.ru_utime + used.ru_stime)
"""


@pytest.mark.slow
def test_quantizing_mobilenet_takes_little_time_and_memory(shared: Path) -> None:
    """The limit is 30 s on a machine with nothing else to do; processor time of this process does not depend on the others."""
    command = [sys.executable, "-c", MEASURE, str(shared)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0, done.stderr
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 1.5e6
    assert seconds < 30


FACES = ("faces_2", "faces_3", "faces_13", "faces_19")
STRIDES, SIZES = (8, 16, 32, 64), ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))


def anchors(width: int = 320, height: int = 240) -> np.ndarray:
    """float64[4420, 4]: centre x, y, width, height, as parts of the picture."""
    rows = []
    for stride, sizes in zip(STRIDES, SIZES, strict=True):
        columns, lines = -(-width // stride), -(-height // stride)
        for y in range(lines):
            for x in range(columns):
                rows += [((x + 0.5) * stride / width, (y + 0.5) * stride / height, s / width, s / height) for s in sizes]
    return np.clip(np.array(rows), 0, 1)


def faces(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Corners of the faces with a score over 0.7, after suppression at an overlap of 0.3, best first."""
    scores, raw = outputs["scores"][0, :, 1].astype(np.float64), outputs["boxes"][0].astype(np.float64)
    prior = anchors()
    centre, size = raw[:, :2] * 0.1 * prior[:, 2:] + prior[:, :2], np.exp(raw[:, 2:] * 0.2) * prior[:, 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    found: list[np.ndarray] = []
    for at in np.argsort(-scores):
        if scores[at] <= 0.7:
            break
        if all(overlap(corners[at], other) <= 0.3 for other in found):
            found.append(corners[at])
    return np.array(found).reshape(-1, 4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    both = sides.prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rfb_320", "slim_320"])
def test_face_detectors_find_the_same_faces(shared: Path, name: str) -> None:
    prepare = Preprocess((240, 320), mean=(127.0,), std=(128.0,))
    graph = cortado.load(shared / "models" / name, inputs={"input": (1, 3, 240, 320)})
    pictures = [path for path, _ in labelled(shared)[:CALIBRATION]]
    small = cortado.compile(graph, dtype="int8", calibration=({"input": prepare(path)} for path in pictures))
    exact = cortado.compile(graph)
    count = 0
    for photo in FACES:
        feeds = {"input": prepare(shared / "images" / "photos" / f"{photo}.jpg")}
        want, got = faces(exact.run(feeds)), faces(small.run(feeds))
        print(photo, len(want), len(got), [round(max((overlap(w, g) for g in got), default=0), 3) for w in want])
        assert len(got) == len(want)
        count += len(want)
        for face in want:
            assert max(overlap(face, other) for other in got) >= 0.9
    assert count >= 16


@pytest.mark.slow
@pytest.mark.parametrize("case", [SQUEEZENET, MOBILENET, FACE_DETECTOR], ids=lambda case: case.folder)
def test_every_level_gives_the_same_bits(shared: Path, case: Case) -> None:
    """On the levels that this machine runs; what is float32 in an int8 network included."""
    key = "input" if case is FACE_DETECTOR else "data"
    graph = cortado.load(shared / "models" / case.folder, inputs={key: case.shape})
    feeds = [{key: case.preprocess(path)} for path, _ in labelled(shared)[:4]]
    record = cortado.calibrate(graph, feeds[:3], method="min_max")
    levels = [level for level in runnable_targets() if level.startswith("x86-64")]
    runs = [cortado.compile(graph, target=level, dtype="int8", calibration=record).run(feeds[3]) for level in levels]
    for level, run in zip(levels, runs, strict=True):
        assert all(array.tobytes() == runs[0][out].tobytes() for out, array in run.items()), level


@pytest.fixture(scope="module")
def small_digits() -> cortado.Model:
    images, _ = digits.held_out()
    graph = cortado.load(digits.model_folder(), inputs={"data": (1, 1, 8, 8)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cortado.compile(graph, dtype="int8", calibration=[{"data": digits.network_input(image)} for image in images[:100]])


def test_digits_lose_nothing(small_digits: cortado.Model) -> None:
    images, classes = digits.held_out()
    right = sum(
        int(small_digits.run({"data": digits.network_input(i)})["prob"].argmax() == c)
        for i, c in zip(images, classes, strict=True)
    )
    assert right >= digits.record()["held_out_correct"]
