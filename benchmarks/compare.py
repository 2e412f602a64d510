"""Latency of cortado and onnxruntime on the same networks, turn by turn in one run, float32.

usage: python benchmarks/compare.py FOLDER [--nets a,b] [--threads 1] [--seconds 5] [--json FILE]      (needs the extra `bench`)

FOLDER holds one folder per network, each with the two forms of it and an input: predict_net.pb and init_net.pb, model.onnx, input.npy.
The engines take turns, so that drift of the machine falls on both alike: the ratio is what counts, not the milliseconds. Outputs are
compared first; a network on which they differ by more than 1e-4 of the largest value is not timed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import cortado

TOLERANCE = 1e-4
Engine = Callable[[np.ndarray], np.ndarray]


def cortado_engine(folder: Path, shape: tuple[int, ...], threads: int) -> Engine:
    net = cortado.load(folder / "predict_net.pb", init=folder / "init_net.pb", inputs={"data": shape})
    model = cortado.compile(net, threads=threads)
    name, output = next(iter(model.inputs)), next(iter(model.outputs))
    return lambda x: model.run({name: x}, threads=threads)[output]


def onnxruntime_engine(folder: Path, shape: tuple[int, ...], threads: int) -> Engine:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: np.asarray(session.run(None, {name: x})[0])


def measure(engines: dict[str, Engine], x: np.ndarray, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call, the engines in turn until `seconds` per engine have gone by."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    stop = time.perf_counter() + seconds * len(engines)
    while time.perf_counter() < stop:
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(x)
            times[name].append(time.perf_counter() - start)
    return times


def compare(folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    x = np.load(folder / "input.npy")
    begin = time.perf_counter()
    ours = cortado_engine(folder, x.shape, threads)
    compile_seconds = time.perf_counter() - begin
    engines = {"cortado": ours, "onnxruntime": onnxruntime_engine(folder, x.shape, threads)}
    outputs = {name: engine(x).ravel() for name, engine in engines.items()}
    error = float(np.abs(outputs["cortado"] - outputs["onnxruntime"]).max() / np.abs(outputs["onnxruntime"]).max())
    row: dict[str, Any] = {"net": folder.name, "compile_seconds": compile_seconds, "relative_error": error}
    if error <= TOLERANCE:
        for name, times in measure(engines, x, seconds).items():
            row[name] = {"min_ms": min(times) * 1e3, "median_ms": float(np.median(times)) * 1e3, "runs": len(times)}
        row["ratio_min"] = row["cortado"]["min_ms"] / row["onnxruntime"]["min_ms"]
        row["ratio_median"] = row["cortado"]["median_ms"] / row["onnxruntime"]["median_ms"]
    return row


def line(row: dict[str, Any]) -> str:
    if "cortado" not in row:
        return f"{row['net']:16}  WRONG: differs by {row['relative_error']:.1e} of the largest value; not timed"
    cells = [f"{row[name][key]:8.2f}" for name in ("cortado", "onnxruntime") for key in ("min_ms", "median_ms")]
    ratios = f"{row['ratio_min']:6.2f} {row['ratio_median']:7.2f}"
    return f"{row['net']:16}  {cells[0]} {cells[1]}   {cells[2]} {cells[3]}   {ratios}   {row['compile_seconds']:5.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description="Time cortado and onnxruntime on the same networks, turn by turn.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", help="names of folders in FOLDER, separated by commas; else all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="per engine and network")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    arguments = parser.parse_args()
    nets = (
        arguments.nets.split(",")
        if arguments.nets
        else sorted(path.parent.name for path in arguments.folder.glob("*/model.onnx"))
    )
    print(
        f"{arguments.threads} thread(s), float32, ms (min, median); ratio is cortado / onnxruntime (below 1: cortado is faster)"
    )
    print(f"{'net':16}  {'cortado':>17}   {'onnxruntime':>17}   {'ratio':>14}   compile")
    rows = []
    for net in nets:
        rows.append(compare(arguments.folder / net, arguments.threads, arguments.seconds))
        print(line(rows[-1]), flush=True)
    if arguments.json:
        versions = {"cortado": cortado.__version__, "onnxruntime": onnxruntime.__version__, "machine": platform.machine()}
        document = {"schema": 1, "threads": arguments.threads, "versions": versions, "nets": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all("cortado" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
