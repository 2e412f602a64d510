"""The bundled network on three machines: what `cortado demo` shows, without the showing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import cortado
from cortado import digits
from cortado.errors import TargetError

if TYPE_CHECKING:
    from cortado import Model

EMULATED_DIGITS = 4  # an emulator starts once for each


@dataclass(frozen=True)
class Machine:
    label: str
    folder: str
    target: str


MACHINES = (
    Machine("this machine", "host", "host"),
    Machine("a phone", "phone", "cortex-a76@android"),
    Machine("a microcontroller", "board", "cortex-m4"),
)


@dataclass(frozen=True)
class Outcome:
    """What one machine's library costs and whether it was right.

    compile_seconds: wall time here. sizes: bytes of code, weights, arena and stack. digits, right: how many held-out digits were run, and
    how many of the answers were the digit written. how: "measured" (this machine's own processor), "emulated" or "not run". reason: why
    it was not run. seconds: median time of one digit, called from Python; None where it is not this machine's own.
    """

    machine: Machine
    compile_seconds: float
    sizes: dict[str, int]
    how: str
    digits: int = 0
    right: int = 0
    seconds: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def answer(model: Model, image: np.ndarray) -> np.ndarray:
    """The ten probabilities for one uint8[8,8] image of 0..16."""
    return model.run({"data": digits.network_input(image)})["prob"].ravel()


def outcomes(output: Path | None = None) -> Iterator[tuple[Outcome, Model]]:
    """Compile for each machine, in order, and run what can be run; with `output`, save each bundle in a folder there."""
    graph = cortado.load(digits.model_folder(), inputs={"data": (1, 1, 8, 8)})
    images, classes = digits.held_out()
    for machine in MACHINES:
        begin = time.perf_counter()
        model = cortado.compile(graph, target=machine.target, name="digits")
        seconds = time.perf_counter() - begin
        if output is not None:
            model.save(output / machine.folder)
        yield tried(machine, model, seconds, images, classes), model


def tried(machine: Machine, model: Model, compile_seconds: float, images: np.ndarray, classes: np.ndarray) -> Outcome:
    here = machine.target == "host"
    sizes = model.report().to_dict()["sizes"]
    count = len(images) if here else EMULATED_DIGITS
    times = []
    right = 0
    try:
        for image, digit in zip(images[:count], classes[:count], strict=True):
            begin = time.perf_counter()
            probabilities = answer(model, image)
            times.append(time.perf_counter() - begin)
            right += int(probabilities.argmax() == digit)
    except TargetError as error:
        return Outcome(machine, compile_seconds, sizes, "not run", reason=str(error))
    return Outcome(
        machine,
        compile_seconds,
        sizes,
        "measured" if here else "emulated",
        count,
        right,
        float(np.median(times)) if here else None,
    )


def save_model_and_digits(output: Path) -> None:
    """The network's own files, and a held-out digit of each class as a picture, for experiments."""
    model = output / "model"
    model.mkdir(parents=True, exist_ok=True)
    for name in ("init_net.pb", "predict_net.pb", "labels.txt"):
        (model / name).write_bytes((digits.model_folder() / name).read_bytes())
    images, classes = digits.held_out()
    for at in digits.one_of_each():
        header = b"P5 8 8 255\n"
        (output / f"digit{classes[at]}.pgm").write_bytes(header + digits.as_picture(images[at]).tobytes())
