"""The bundled network for handwritten digits: where its files are, and the digits it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def model_folder() -> Path:
    """The folder with init_net.pb, predict_net.pb, labels.txt, model.json and heldout.npz."""
    return Path(__file__).resolve().parent / "models" / "digits"


def record() -> dict[str, Any]:
    """What model.json says: data, training command, accuracy."""
    found: dict[str, Any] = json.loads((model_folder() / "model.json").read_text(encoding="utf-8"))
    return found


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8[N,8,8] of 0..16 and their classes uint8[N]."""
    with np.load(model_folder() / "heldout.npz") as data:
        return data["images"], data["classes"]


def network_input(image: np.ndarray) -> np.ndarray:
    """uint8[8,8] of 0..16 -> the network's float32[1,1,8,8]."""
    return image.astype(np.float32)[None, None] / 16


def as_picture(image: np.ndarray) -> np.ndarray:
    """uint8[8,8] of 0..16 -> uint8[8,8] of 0..255, the gray levels of a picture file."""
    return np.round(image * (255 / 16)).astype(np.uint8)


def one_of_each() -> list[int]:
    """Positions among the held-out digits of the first 0, the first 1 ... the first 9."""
    _, classes = held_out()
    return [int((classes == digit).argmax()) for digit in range(10)]
