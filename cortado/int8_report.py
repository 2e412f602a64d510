"""What became of a network in int8, layer by layer, as text: type, range, scale, times and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADER = ("layer", "operator", "type", "from", "to", "scale", "zero", "float32", "int8", "signal to noise", "alone")
WORDS = 3  # columns of words, the others are numbers
MOVES = ("reshape", "transpose", "slice", "concat")


def int8_lines(found: Mapping[str, Any]) -> list[str]:
    """`model.quantization` as lines."""
    how = found["method"] + " ranges" + ", biases corrected" * found["bias_correction"]
    how += f", {found['equalized_layers']} layers equalized" if found["equalized_layers"] else ""
    lines = [f"int8 by {found['samples']} samples: {how}; calibration {found['calibration'][:16]}"]
    measured = any(layer.get("float_us") is not None for layer in found["layers"])
    if measured:
        lines.append("times: microseconds, measured on this machine with one thread")
    elif found["judged_for"]:
        lines.append(f"times: 1000 cycles, estimated for {found['judged_for']} with one thread")
    floats = found["keep_float"]
    if floats:
        lines.append(f"{len(floats)} of {len(found['layers'])} nodes stay float32: {', '.join(floats)}")
    if found.get("converted"):
        lines.append(f"joined after a conversion, as their range is much smaller: {', '.join(found['converted'])}")
    worst = ", ".join(f"{name} ({error:.1f} dB)" for name, error in costliest(found))
    if worst:
        lines.append(f"most of the error comes from {worst}")
    lines.append(
        "signal to noise: of the layer's result with all before it in int8; alone: of the outputs with this layer alone in int8"
    )
    rows = [HEADER, *_inputs(found), *(_row(found, layer, measured) for layer in found["layers"] if layer["op"] not in MOVES)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        cells = [f"{c:<{w}}" if i < WORDS else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def costliest(found: Mapping[str, Any], count: int = 3) -> list[tuple[str, float]]:
    """The layers with the largest error at the outputs when each alone is int8, and that error in dB; none where it was not measured."""
    known = [(layer["name"], layer["alone_db"]) for layer in found["layers"] if layer["alone_db"] is not None]
    return sorted(known, key=lambda entry: entry[1])[:count]


def _inputs(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Tensors that no int8 layer makes."""
    made = {layer["tensor"] for layer in found["layers"] if layer["op"] not in MOVES}
    rows: list[tuple[str, ...]] = []
    for number, tensor in enumerate(found["tensors"]):
        if number not in made:
            rows.append((tensor["name"], "", "", *_numbers(tensor), "", "", _db(tensor["snr_db"]), ""))
    return rows


def _row(found: Mapping[str, Any], layer: Mapping[str, Any], measured: bool) -> tuple[str, ...]:
    tensor = found["tensors"][layer["tensor"]]
    if measured:
        times = tuple("" if layer.get(key) is None else f"{layer[key]:.1f}" for key in ("float_us", "int8_us"))
    else:
        times = tuple("" if layer[key] is None else f"{layer[key] / 1000:.1f}" for key in ("float_cycles", "int8_cycles"))
    error = layer["snr_db"] if layer["snr_db"] is not None else tensor["snr_db"]
    return layer["name"], layer["op"], layer["dtype"], *_numbers(tensor), *times, _db(error), _db(layer["alone_db"])


def _numbers(tensor: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return f"{tensor['low']:.5g}", f"{tensor['high']:.5g}", f"{tensor['scale']:.5g}", str(tensor["zero_point"])


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
