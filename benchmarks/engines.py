"""The libraries that cortado is compared with, each with the same face: a network and a number of threads in, a function of no arguments out.

The function does what a program does for every input: it hands the array over, computes, and takes the result as an array of its own.

Each reads what it can of a network's folder: model.onnx, model.tflite, and what is made of the first for ncnn and MNN and in int8. The
float32 ones run with float32 arithmetic. A library that is not installed, or has nothing to read, is left out and said so.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import quantized

Call = Callable[[], np.ndarray]


class LeftOutError(Exception):
    """Why an engine cannot take part."""


@dataclass(frozen=True)
class Network:
    """folder: with the network's forms. converted: where forms made of model.onnx are kept. x: the input [N,C,H,W]."""

    folder: Path
    converted: Path
    x: np.ndarray

    def form(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise LeftOutError(f"{self.folder.name} has no {name}")
        return path


def onnxruntime(net: Network, threads: int) -> Call:
    return _onnxruntime(net.form("model.onnx"), net.x, threads)


def onnxruntime_int8(net: Network, threads: int) -> Call:
    return _onnxruntime(_int8(net), net.x, threads)


def _onnxruntime(model: Path, x: np.ndarray, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feeds)[0]


def openvino(net: Network, threads: int) -> Call:
    return _openvino(net.form("model.onnx"), net, threads)


def openvino_int8(net: Network, threads: int) -> Call:
    return _openvino(_int8(net), net, threads)


def _openvino(model: Path, net: Network, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    how = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", how).create_infer_request()

    def run() -> np.ndarray:
        request.set_input_tensor(openvino.Tensor(net.x))
        request.infer()
        return request.get_output_tensor().data.copy()

    return run


def ncnn(net: Network, threads: int) -> Call:
    import ncnn

    files = _made(net, "ncnn", ("model.ncnn.param", "model.ncnn.bin"), _pnnx)
    network = ncnn.Net()
    network.opt.num_threads = threads
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    if network.load_param(str(files[0])) or network.load_model(str(files[1])):
        raise LeftOutError("it refuses pnnx's files")
    name, wanted = network.input_names()[0], network.output_names()[0]

    def run() -> np.ndarray:
        extractor = network.create_extractor()
        extractor.input(name, ncnn.Mat(net.x[0]))
        return np.array(extractor.extract(wanted)[1])

    return run


def mnn(net: Network, threads: int) -> Call:
    import MNN

    (file,) = _made(net, "mnn", ("model.mnn",), _mnnconvert)
    how = {"backend": "CPU", "numThread": threads, "precision": "high"}
    manager = MNN.nn.create_runtime_manager((how,))
    network = MNN.nn.load_module_from_file(str(file), [], [], runtime_manager=manager)
    x = MNN.expr.placeholder(list(net.x.shape), MNN.expr.NCHW)

    def run() -> np.ndarray:
        x.write(net.x)
        return np.array(network.forward([x])[0].read())

    return run


def litert(net: Network, threads: int) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(net.form("model.tflite")), num_threads=threads)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    x = net.x if tuple(given["shape"]) == net.x.shape else np.ascontiguousarray(np.moveaxis(net.x, 1, -1))

    def run() -> np.ndarray:
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return run


ENGINES: dict[str, Callable[[Network, int], Call]] = {
    f.__name__: f for f in (onnxruntime, openvino, ncnn, mnn, litert, onnxruntime_int8, openvino_int8)
}
OF_DTYPE = {
    "float32": ("onnxruntime", "openvino", "ncnn", "mnn", "litert"),
    "int8": ("onnxruntime", "onnxruntime_int8", "openvino_int8"),  # the first one in float32, which the others are compared with
}
MODULES = {
    "onnxruntime": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn", "mnn": "MNN", "litert": "ai_edge_litert",
    "onnxruntime_int8": "onnxruntime", "openvino_int8": "openvino",
}  # fmt: skip
PACKAGES = {**MODULES, "litert": "ai-edge-litert"}


def installed(dtype: str) -> list[str]:
    return [name for name in OF_DTYPE[dtype] if importlib.util.find_spec(MODULES[name])]


def _made(net: Network, kind: str, names: tuple[str, ...], make: Callable[[Path, Network], None]) -> list[Path]:
    """The converted forms, made where they are missing or older than the network."""
    source, folder = net.form("model.onnx"), net.converted / net.folder.name / kind
    files = [folder / name for name in names]
    if not all(file.is_file() and file.stat().st_mtime >= source.stat().st_mtime for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        local = folder / "model.onnx"
        shutil.copyfile(source, local)
        make(local, net)
        local.unlink()
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise LeftOutError(f"the conversion made no {missing[0]}")
    return files


def calibration(net: Network, name: str) -> Path:
    """An .npz file of samples of the input, which is called `name` in it."""
    file = net.converted / net.folder.name / "samples.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{name: quantized.samples(net.x)})
    return file


def input_name(net: Network) -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(net.form("model.onnx"), providers=["CPUExecutionProvider"])
    return str(session.get_inputs()[0].name)


def _int8(net: Network) -> Path:
    def make(model: Path, net: Network) -> None:
        """In a process of its own: it takes as much memory as many networks."""
        program, samples = str(Path(quantized.__file__).resolve()), str(calibration(net, input_name(net)).resolve())
        _convert([sys.executable, program, model.name, samples, "model.int8.onnx"], model.parent)

    return _made(net, "int8", ("model.int8.onnx",), make)[0]


def _pnnx(model: Path, net: Network) -> None:
    shape = ",".join(map(str, net.x.shape))
    _convert([_tool("pnnx"), model.name, f"inputshape=[{shape}]", "fp16=0"], model.parent)


def _mnnconvert(model: Path, net: Network) -> None:
    made = ["--MNNModel", "model.mnn", "--bizCode", "benchmark"]
    _convert([_tool("mnnconvert"), "-f", "ONNX", "--modelFile", model.name, *made], model.parent)


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise LeftOutError(f"{name}, which converts for it, is not installed")
    return found


def _convert(command: list[str], folder: Path) -> None:
    done: subprocess.CompletedProcess[Any] = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise LeftOutError(f"{Path(command[0]).name} failed: {' '.join(last)}")
