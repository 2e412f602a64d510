"""Latency of cortado and every installed peer on the same networks, turn by turn in one run, float32 or int8.

usage: python benchmarks/compare.py FOLDER [--dtype int8] [--nets a,b] [--engines ncnn,mnn] [--threads 1,2] [--seconds 5] [--layers]
       [--json FILE]

FOLDER holds one folder per network with its forms and an input: predict_net.pb and init_net.pb for cortado, model.onnx for onnxruntime,
OpenVINO, and, converted, ncnn and MNN; model.tflite, if there is one, for LiteRT; input.npy, float32 [N,C,H,W]. Cortado's input has the
ONNX model's name. The extra `bench` installs the peers.

The engines take turns, so that drift of the machine falls on all alike: the ratio is what counts, not the milliseconds. Outputs are
compared first, with onnxruntime's; an engine that differs by more than 1e-4 of the largest value is not timed, and where that is
cortado the exit status is 1. The ratio is cortado's time by that of the fastest peer for the network, of minimum and of median.

With int8 all engines calibrate with the same samples; the peers are those that run int8, and there is a second ratio, to ONNX Runtime's
float32. Answers are rounded differently everywhere: they are given as a signal-to-noise ratio against ONNX Runtime's float32. A peer is
timed whatever it answers (some saturate inside sums on cpus without VNNI, and say so); cortado must reach LEAST_SNR.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, OF_DTYPE, PACKAGES, Call, LeftOutError, Network, calibration, input_name, installed
from peak import Peak

import cortado

TOLERANCE = 1e-4
LEAST_SNR = 10.0  # dB: seeded weights without training lose more to quantization than trained ones
TURN = 4  # calls of one engine before the next has its turn: the first finds the other's data in the caches
PAUSE = 0.03  # seconds between turns with more than one thread: libraries' threads spin for a while after their work


def compiled(net: Network, name: str, threads: int, dtype: str, folder: Path) -> tuple[cortado.Model, float]:
    """The bundle that the command line makes, without any cache, and the seconds that a user waits for it."""
    shape = ",".join(map(str, net.x.shape))
    arguments = [str(net.form("predict_net.pb").resolve()), "--init", str(net.form("init_net.pb").resolve())]
    arguments += ["--input", f"{name}={shape}"]
    if dtype == "int8":
        arguments += ["--dtype", "int8", "--calibrate", str(calibration(net, name).resolve())]
    command = [
        sys.executable,
        "-m",
        "cortado.cli.main",
        "compile",
        *arguments,
        "--threads",
        str(threads),
        "-o",
        str(folder.resolve()),
    ]
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        # Python looks for packages where it is started first, and the repository's own folder cortado is only a part of the package.
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cache, env=environment)
        seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{net.folder.name}: {done.stderr.strip()}")
    return cortado.open(folder), seconds


def measure(calls: dict[str, Call], seconds: float, pause: float) -> dict[str, dict[str, float]]:
    """Milliseconds, the engines in turn until `seconds` of each have gone by."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    while min(map(sum, times.values())) < seconds:
        for name, call in calls.items():
            time.sleep(pause)
            for _ in range(TURN):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {
        name: {"min_ms": min(found) * 1e3, "median_ms": float(np.median(found)) * 1e3, "runs": len(found)}
        for name, found in times.items()
    }


def checked(calls: dict[str, Call], row: dict[str, Any], dtype: str = "float32") -> dict[str, Call]:
    """The engines that give onnxruntime's answer; the others are in row["left_out"]."""
    outputs = {name: np.array(call(), dtype=np.float64).ravel() for name, call in calls.items()}
    right = outputs["onnxruntime"]
    row["relative_error"] = {}
    for name, output in outputs.items():
        error = float(np.abs(output - right).max() / np.abs(right).max()) if output.shape == right.shape else math.inf
        row["relative_error"][name] = error
        if dtype == "int8":
            noise = float(((output - right) ** 2).sum()) if output.shape == right.shape else math.inf
            snr = 10 * math.log10(float((right**2).sum()) / noise) if noise else math.inf
            row.setdefault("snr_db", {})[name] = snr
            if name == "cortado" and not snr >= LEAST_SNR:
                row["left_out"][name] = f"wrong: signal to noise {snr:.1f} dB"
        elif not error <= TOLERANCE:
            row["left_out"][name] = f"wrong: differs by {error:.1e} of the largest value"
    return {name: call for name, call in calls.items() if name not in row["left_out"]}


def compare(
    net: Network, engines: list[str], threads: int, dtype: str, seconds: float, folder: Path
) -> tuple[dict[str, Any], cortado.Model]:
    """One network with so many threads: the numbers, and the model that was measured."""
    name = input_name(net)
    model, compile_seconds = compiled(net, name, threads, dtype, folder)
    output = next(iter(model.outputs))
    row: dict[str, Any] = {"threads": threads, "compile_seconds": compile_seconds, "left_out": {}}
    calls: dict[str, Call] = {"cortado": lambda: model.run({name: net.x}, threads=threads)[output]}
    for engine in engines:
        try:
            calls[engine] = ENGINES[engine](net, threads)
        except LeftOutError as error:
            row["left_out"][engine] = str(error)
    calls = checked(calls, row, dtype)
    row["engines"] = measure(calls, seconds, PAUSE if threads > 1 else 0.0)
    peers = {name: times for name, times in row["engines"].items() if name != "cortado" and is_peer(name, dtype)}
    if "cortado" in row["engines"] and peers:
        for kind in ("min", "median"):
            best = min(peers, key=lambda name: peers[name][f"{kind}_ms"])
            ratio = row["engines"]["cortado"][f"{kind}_ms"] / peers[best][f"{kind}_ms"]
            row[f"best_{kind}"], row[f"ratio_{kind}"] = best, ratio
            if dtype == "int8":
                row[f"of_float32_{kind}"] = row["engines"]["cortado"][f"{kind}_ms"] / row["engines"]["onnxruntime"][f"{kind}_ms"]
    return row, model


def is_peer(engine: str, dtype: str) -> bool:
    """Whether ratios count it: with int8, ONNX Runtime's float32 is a reference only."""
    return dtype == "float32" or engine.endswith("_int8")


def layers(net: Network, model: cortado.Model, peak: Peak) -> dict[str, Any]:
    """Fastest time and share of the core's peak of every node, one thread; peak is read before and after."""
    before = peak.measure()
    profile = model.profile({next(iter(model.inputs)): net.x})
    gflops = max(before, peak.measure())
    rows: list[dict[str, Any]] = []
    for step in profile.steps:
        if rows and (rows[-1]["name"], rows[-1]["op"]) == (step.name, step.op):
            rows[-1]["us"] += step.min_us
            rows[-1]["kernels"].append(step.kernel)
            continue
        rate = {"gflops": step.gflops, "share_of_peak": None if step.gflops is None else step.gflops / gflops}
        rows.append({"name": step.name, "op": step.op, "kernels": [step.kernel], "macs": step.macs, "us": step.min_us, **rate})
    whole = 2e-3 * sum(step.macs for step in profile.steps) / profile.run_min_us
    return {"peak_gflops": gflops, "whole_share_of_peak": whole / gflops, "layers": rows}


def bytes_of(model: cortado.Model, folder: Path) -> dict[str, int]:
    sizes = model.report().to_dict()["sizes"]
    return {"library": (folder / f"lib{model.name}.a").stat().st_size, **sizes}


def line(net: str, row: dict[str, Any], engines: list[str]) -> str:
    cells = []
    for name in ("cortado", *engines):
        times = row["engines"].get(name)
        cells.append(f"{'-':>17}" if times is None else f"{times['min_ms']:8.2f} {times['median_ms']:8.2f}")
    ratios = f"{row['ratio_min']:6.2f} {row['ratio_median']:6.2f}  {row['best_min']}" if "ratio_min" in row else "-"
    if "of_float32_min" in row:
        ratios += f"  {row['of_float32_min']:.2f} of float32"
    return f"{net:16} {row['threads']:2}  {'  '.join(cells)}  {ratios}"


def size_lines(nets: list[dict[str, Any]]) -> list[str]:
    header = (
        f"{'network':16}  {'compile s':>9}  {'code':>11}  {'weights':>11}  {'arena':>11}  {'stack':>7}  {'library':>11}  of peak"
    )
    lines = ["", header]
    for net in nets:
        numbers = "  ".join(f"{net['sizes'][key]:>{width},}" for key, width in (("code", 11), ("weights", 11), ("arena", 11)))
        rest = f"{net['sizes']['stack']:>7,}  {net['sizes']['library']:>11,}  {100 * net['whole_share_of_peak']:6.1f}%"
        lines.append(f"{net['net']:16}  {net['timings'][0]['compile_seconds']:9.1f}  {numbers}  {rest}")
    return lines


def layer_lines(net: dict[str, Any]) -> list[str]:
    lines = ["", f"{net['net']}: one thread, peak {net['peak_gflops']:.1f} G operations/s"]
    width = max(len(row["name"]) for row in net["layers"])
    for row in net["layers"]:
        rate = "" if row["gflops"] is None else f"{row['gflops']:8.1f} {100 * row['share_of_peak']:6.1f}%"
        lines.append(f"  {row['name']:{width}}  {row['op']:14} {row['macs']:>13,} {row['us']:10.1f} us {rate}".rstrip())
    return lines


def geometric_means(nets: list[dict[str, Any]], ratio: str = "ratio_min") -> dict[str, float]:
    """By number of threads, of the ratios of minimum times."""
    ratios: dict[str, list[float]] = {}
    for net in nets:
        for row in net["timings"]:
            if ratio in row:
                ratios.setdefault(str(row["threads"]), []).append(row[ratio])
    return {threads: math.exp(sum(map(math.log, found)) / len(found)) for threads, found in ratios.items()}


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time cortado and its peers on the same networks, turn by turn.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", help="names of folders in FOLDER, separated by commas; else all")
    parser.add_argument(
        "--engines", help=f"of {', '.join(ENGINES)}; else all that are installed. onnxruntime always runs: it checks"
    )
    parser.add_argument("--dtype", choices=tuple(OF_DTYPE), default="float32", help="float32 or int8; else float32")
    parser.add_argument("--threads", default="1,2", help="numbers of threads; else 1,2")
    parser.add_argument("--seconds", type=float, default=5, help="of each engine, network and number of threads")
    parser.add_argument("--converted", type=Path, default=Path("build/peers"), help="where ncnn's and MNN's forms are kept")
    parser.add_argument("--layers", action="store_true", help="print every layer's share of the peak as well")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    return parser.parse_args()


def main() -> int:
    arguments = arguments_of()
    there = sorted(path.parent.name for path in arguments.folder.glob("*/model.onnx"))
    nets = arguments.nets.split(",") if arguments.nets else there
    dtype = arguments.dtype
    wanted = {"onnxruntime", *(arguments.engines.split(",") if arguments.engines else installed(dtype))}
    engines = [name for name in ENGINES if name in wanted]
    numbers = [int(text) for text in arguments.threads.split(",")]
    print("ms (min, median); ratio: cortado's by the best peer's (min, median), below 1 cortado is faster", flush=True)
    print(f"{'network':13} threads  " + "  ".join(f"{name:>17}" for name in ("cortado", *engines)) + "   ratio         best")
    peak = Peak(dtype)
    found = []
    for name in nets:
        net = Network(arguments.folder / name, arguments.converted.resolve(), np.load(arguments.folder / name / "input.npy"))
        entry: dict[str, Any] = {"net": name, "timings": []}
        with tempfile.TemporaryDirectory() as folder:
            for threads in numbers:
                row, model = compare(net, engines, threads, dtype, arguments.seconds, Path(folder) / str(threads))
                entry["timings"].append(row)
                print(line(name, row, engines), flush=True)
                if "snr_db" in row:
                    print("  dB: " + ", ".join(f"{k} {v:.1f}" for k, v in row["snr_db"].items() if math.isfinite(v)), flush=True)
                for engine, why in row["left_out"].items():
                    print(f"  {engine} left out: {why}", flush=True)
                if threads == numbers[0]:
                    entry["sizes"] = bytes_of(model, Path(folder) / str(threads))
                    entry.update(layers(net, model, peak))
        found.append(entry)
    means = geometric_means(found)
    for threads, mean in means.items():
        print(f"geometric mean of the ratios of minimum times, {threads} thread(s): {mean:.3f}")
    for threads, mean in geometric_means(found, "of_float32_min").items():
        print(f"geometric mean of the ratios to ONNX Runtime's float32, {threads} thread(s): {mean:.3f}")
    print("\n".join(size_lines(found)))
    if arguments.layers:
        print("\n".join(text for entry in found for text in layer_lines(entry)))
    if arguments.json:
        versions = {name: version(PACKAGES[name]) for name in engines}
        machine = {"machine": platform.machine(), "processors": os.cpu_count(), "cortado": cortado.__version__, **versions}
        document = {"schema": 2, "dtype": dtype, "machine": machine, "geometric_mean": means, "nets": found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all("cortado" in row["engines"] for entry in found for row in entry["timings"]) else 1


if __name__ == "__main__":
    sys.exit(main())
