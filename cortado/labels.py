"""Names of classes, and the best of a classifier's scores."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np

from cortado.errors import InputError
from cortado.files import read_file

MOST_BYTES = 64 << 20  # of a file of labels: a million long names


@dataclass(frozen=True)
class Score:
    """One class of a result: its index, its value, and its name where labels are known."""

    index: int
    value: float
    label: str = ""


def read_labels(path: str | PathLike[str]) -> tuple[str, ...]:
    """One label a line, line i naming class i; empty lines at the end do not count. InputError where that cannot be read."""
    try:
        text = read_file(path, MOST_BYTES, "labels").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: labels must be UTF-8 text, one a line") from None
    labels = tuple(line.strip() for line in text.rstrip().splitlines())
    if not any(labels):
        raise InputError(f"{path}: no labels in it")
    return labels


def is_vector(output: np.ndarray) -> bool:
    """Whether each sample of output[N, ...] is one vector of scores: [N, K], [N, K, 1, 1] ..."""
    return output.ndim >= 2 and sum(size > 1 for size in output.shape[1:]) == 1


def top(scores: np.ndarray, count: int, labels: tuple[str, ...] = ()) -> list[Score]:
    """The `count` largest of the scores (any shape), largest first, the lower index first among equals."""
    flat = scores.ravel()
    order = np.argsort(-flat.astype(np.float64), kind="stable")[:count]
    return [Score(int(i), flat[i].item(), labels[i] if i < len(labels) else "") for i in order]
