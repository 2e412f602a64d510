"""How far a converted network's outputs are from the float32 ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cortado.compiler.quantize.quantize import decibels
from cortado.compiler.types import Executor
from cortado.errors import InputError
from cortado.labels import is_vector
from cortado.samples import Sample

SCHEMA = 1


@dataclass
class OutputVerification:
    """One output over all samples. snr_db: 10 log10 (signal energy / noise energy), None without noise. same_class, vectors: of how many

    vectors of scores the best class is the same. right, float_right: how many are as labelled, where labels are known.
    """

    name: str
    signal: float = 0.0
    noise: float = 0.0
    largest_difference: float = 0.0
    vectors: int = 0
    same_class: int = 0
    labelled: int = 0
    right: int = 0
    float_right: int = 0

    @property
    def snr_db(self) -> float | None:
        return decibels(self.noise / self.signal) if self.signal else None

    @property
    def agreement(self) -> float | None:
        return self.same_class / self.vectors if self.vectors else None

    def add(self, exact: np.ndarray, got: np.ndarray, classes: list[int | None]) -> None:
        wide, near = exact.astype(np.float64), got.astype(np.float64)
        self.signal += float(np.sum(wide * wide))
        self.noise += float(np.sum((near - wide) ** 2))
        self.largest_difference = max(self.largest_difference, float(np.abs(near - wide).max(initial=0)))
        if not is_vector(exact):
            return
        for row, (a, b) in enumerate(zip(exact.reshape(len(exact), -1), got.reshape(len(got), -1), strict=True)):
            self.vectors += 1
            self.same_class += int(a.argmax() == b.argmax())
            label = classes[row] if row < len(classes) else None
            if label is not None:
                self.labelled += 1
                self.float_right += int(a.argmax() == label)
                self.right += int(b.argmax() == label)


@dataclass(frozen=True)
class Verification:
    samples: int
    outputs: tuple[OutputVerification, ...]
    quantization: Mapping[str, Any] | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        rows = [{**asdict(o), "snr_db": o.snr_db, "agreement": o.agreement} for o in self.outputs]
        return {"schema": SCHEMA, "samples": self.samples, "outputs": rows, "quantization": self.quantization}

    def __str__(self) -> str:
        lines = [f"{self.samples} samples against float32"]
        for output in self.outputs:
            snr = (
                "exact"
                if output.noise == 0
                else f"{output.snr_db} dB signal to noise"
                if output.signal
                else "float32 gives zeros"
            )
            lines.append(f"  {output.name}: {snr}, largest difference {output.largest_difference:.6g}")
            if output.agreement is not None:
                lines.append(f"    same class for {output.same_class} of {output.vectors} ({100 * output.agreement:.1f}%)")
            if output.labelled:
                lines.append(f"    right: {output.right} of {output.labelled}; float32: {output.float_right}")
        return "\n".join(lines)


def compare(
    exact: Executor, converted: Executor, samples: Iterable[Sample], classes: Mapping[str, int], offset: int = 0
) -> Verification:
    """Run both on every sample. classes: by file name, added to offset. InputError where there is no sample."""
    found: dict[str, OutputVerification] = {}
    count = 0
    for sample in samples:
        count += 1
        got = converted.run(sample.feeds)
        known = [classes[name] + offset if name in classes else None for name in sample.names]
        for name, array in exact.run(sample.feeds).items():
            found.setdefault(name, OutputVerification(name)).add(array, got[name], known)
    if not count:
        raise InputError("there are no samples to compare on")
    return Verification(count, tuple(found.values()))
