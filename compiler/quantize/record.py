"""What calibration has seen: statistics per tensor, in a record that can be saved, loaded, merged and hashed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cortado.compiler.quantize.histogram import Histogram, frozen_counts
from cortado.errors import CalibrationError

SCHEMA = 1
NUMBERS = ("samples", "elements", "low", "high", "average_low", "average_high")
ARRAYS = ("channel_low", "channel_high", "channel_sum")
MOMENTUM = 0.9  # of the moving average: what a further sample leaves of the ranges before it


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor over all samples.

    shape: of the tensor. samples, elements: how many were seen. low, high: smallest and largest value; average_low, average_high: their
    moving averages over the samples. channel_low, channel_high: per index of the last axis, float32; channel_sum: float64.
    """

    shape: tuple[int, ...]
    samples: int
    elements: int
    low: float
    high: float
    average_low: float
    average_high: float
    channel_low: np.ndarray
    channel_high: np.ndarray
    channel_sum: np.ndarray
    histogram: Histogram

    @property
    def channel_mean(self) -> np.ndarray:
        """float64 per index of the last axis."""
        return self.channel_sum / max(1, self.elements // max(1, len(self.channel_sum)))

    @staticmethod
    def of(values: np.ndarray) -> TensorStatistics:
        """Of one sample: finite float32 values, at least one."""
        rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
        lows, highs = rows.min(axis=0), rows.max(axis=0)
        low, high = float(lows.min()), float(highs.max())
        histogram = Histogram.of(values, low, high)
        total = rows.sum(axis=0, dtype=np.float64)
        return TensorStatistics(values.shape, 1, values.size, low, high, low, high, lows, highs, total, histogram)

    def followed_by(self, other: TensorStatistics) -> TensorStatistics:
        """Of all samples of both, other's after these. All but the moving averages do not depend on the order."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        keep = MOMENTUM**other.samples
        return TensorStatistics(
            self.shape,
            self.samples + other.samples,
            self.elements + other.elements,
            low,
            high,
            keep * self.average_low + (1 - keep) * other.average_low,
            keep * self.average_high + (1 - keep) * other.average_high,
            np.minimum(self.channel_low, other.channel_low),
            np.maximum(self.channel_high, other.channel_high),
            self.channel_sum + other.channel_sum,
            self.histogram.merged(other.histogram, low, high),
        )


@dataclass(frozen=True)
class Decision:
    """What was chosen by the error at the network's outputs.

    method: how ranges are found. factors: by layer, what its channels are divided by (equalization). errors: relative squared error at
    the outputs (noise energy / signal energy) by candidate. layers: the same ratio by tensor, with what was chosen. alone: at the outputs,
    by layer, where that layer alone is int8. apart: inputs of concats whose ranges are far smaller keep their own scales (joins.py).
    """

    method: str
    correct_bias: bool
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, float] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)
    apart: bool = False


@dataclass(frozen=True)
class CalibrationRecord:
    """samples: how many were observed. tensors: statistics by name. decision: None where nothing was compared yet.

    equalized: statistics of the tensors that the decision's factors change, with the factors applied.
    """

    samples: int
    tensors: Mapping[str, TensorStatistics]
    decision: Decision | None = None
    equalized: Mapping[str, TensorStatistics] = field(default_factory=dict)

    @property
    def effective(self) -> Mapping[str, TensorStatistics]:
        """Statistics of the network as the decision makes it."""
        return {**self.tensors, **self.equalized}

    def merged(self, other: CalibrationRecord) -> CalibrationRecord:
        """Of the samples of both, other's after these; without a decision. CalibrationError where they are of different networks.

        Where one of them observed more tensors than the other, those that both did.
        """
        if not self.samples or not other.samples:
            return replace(other if not self.samples else self, decision=None, equalized={})
        mine, others = set(self.tensors), set(other.tensors)
        differ = [] if mine <= others or others <= mine else sorted(mine ^ others)
        differ += [n for n in self.tensors if n in other.tensors and self.tensors[n].shape != other.tensors[n].shape]
        if differ:
            raise CalibrationError(f"the two calibration records are of different networks: they differ in tensor {differ[0]!r}")
        tensors = {
            name: statistics.followed_by(other.tensors[name]) for name, statistics in self.tensors.items() if name in others
        }
        return CalibrationRecord(self.samples + other.samples, tensors)

    @property
    def sha256(self) -> str:
        """Of everything in it."""
        digest = hashlib.sha256()
        header, arrays = self._parts()
        digest.update(json.dumps(header, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """As an .npz file, which `load_record` reads; the bytes depend on the contents alone."""
        header, arrays = self._parts()
        arrays = {"cortado_calibration": np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8), **arrays}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, array in arrays.items():
                held = io.BytesIO()
                np.lib.format.write_array(held, np.ascontiguousarray(array), allow_pickle=False)
                file.writestr(zipfile.ZipInfo(f"{name}.npy"), held.getvalue(), zipfile.ZIP_DEFLATED)

    def _parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Plain data, and the arrays by keys that the plain data's order of tensors gives."""
        arrays: dict[str, np.ndarray] = {}
        rows = {}
        for prefix in ("tensors", "equalized"):
            rows[prefix] = [_row(n, s, f"{prefix}{i}", arrays) for i, (n, s) in enumerate(getattr(self, prefix).items())]
        decision = None if self.decision is None else asdict(self.decision)
        return {"schema": SCHEMA, "samples": self.samples, **rows, "decision": decision}, arrays


def _row(name: str, statistics: TensorStatistics, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The plain part of statistics; the arrays are put where they belong."""
    histogram = statistics.histogram
    for part in ARRAYS:
        arrays[f"{key}/{part}"] = getattr(statistics, part)
    arrays[f"{key}/counts"] = histogram.counts
    numbers = {part: getattr(statistics, part) for part in NUMBERS}
    return {"name": name, "shape": list(statistics.shape), **numbers, "exponent": histogram.exponent, "first": histogram.first}


def is_record(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a saved record (and not, say, an .npz of samples)."""
    try:
        with zipfile.ZipFile(path) as file:
            return "cortado_calibration.npy" in file.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def load_record(path: str | os.PathLike[str]) -> CalibrationRecord:
    """What `save` wrote. CalibrationError where it is missing, damaged or of another version."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["cortado_calibration"].tobytes())
            if header["schema"] != SCHEMA:
                raise CalibrationError(f"{path} has schema {header['schema']}; this version of cortado reads schema {SCHEMA}")
            found = {
                prefix: {row["name"]: _statistics(row, arrays, f"{prefix}{i}") for i, row in enumerate(header[prefix])}
                for prefix in ("tensors", "equalized")
            }
            decision = None if header["decision"] is None else _decision(header["decision"])
            return CalibrationRecord(int(header["samples"]), found["tensors"], decision, found["equalized"])
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such file") from None
    except CalibrationError:
        raise
    except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} is not a calibration record: {type(error).__name__}: {error}") from None


def _decision(plain: Mapping[str, Any]) -> Decision:
    return Decision(**{**plain, "factors": {name: tuple(factors) for name, factors in plain["factors"].items()}})


def _statistics(row: Mapping[str, Any], arrays: Any, key: str) -> TensorStatistics:
    given = {part: row[part] for part in NUMBERS} | {part: arrays[f"{key}/{part}"] for part in ARRAYS}
    histogram = Histogram(int(row["exponent"]), int(row["first"]), frozen_counts(arrays[f"{key}/counts"]))
    return TensorStatistics(shape=tuple(row["shape"]), histogram=histogram, **given)
