"""Malformed models, each with the error it must give. As a script: loads them all, prints processor time and peak memory."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import cortado
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net


@dataclass(frozen=True)
class Bad:
    """What is given to `load`, and the class and words of the error."""

    source: Any
    error: type[cortado.CortadoError]
    words: str
    init: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: list[str] | None = None


def net(*operators: Operator, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ()) -> bytes:
    return serialize_net(NetDef("net", operators, inputs, outputs or operators[-1].outputs[:1]))


def of_image(kind: str, **args: Any) -> bytes:
    return net(operator(kind, ["x"], ["y"], **args))


def conv(
    w: tuple[int, ...] = (4, 3, 3, 3), b: tuple[int, ...] = (4,), x: tuple[int, ...] = (1, 3, 8, 8), **args: Any
) -> dict[str, Any]:
    """Arguments of Bad for one convolution."""
    source = net(operator("Conv", ["x", "w", "b"], ["y"], **{"kernel": 3, **args}), inputs=("x", "w", "b"))
    weights = {"w": np.zeros(w, np.float32), "b": np.zeros(b, np.float32)}
    return {"source": source, "init": weights, "inputs": {"x": x}}


IMAGE = {"x": (1, 3, 8, 8)}
FormatError, ShapeError, InputError, UnsupportedError = (
    cortado.FormatError, cortado.ShapeError, cortado.InputError, cortado.UnsupportedError,
)  # fmt: skip


def structure() -> Iterator[tuple[str, Bad]]:
    """Blobs that are missing, out of order, unknown."""
    relu = operator("Relu", ["x"], ["y"])
    cycle = (operator("Add", ["x", "b"], ["a"]), operator("Relu", ["a"], ["b"]))
    yield "cycle", Bad(net(*cycle), FormatError, "reads blob 'b' before operator 1 Relu", inputs=IMAGE)
    undefined = net(operator("Add", ["x", "ghost"], ["y"]))
    yield "undefined blob", Bad(undefined, FormatError, "reads blob 'ghost', which no operator writes", inputs=IMAGE)
    three = net(operator("Sum", ["x", "u", "v"], ["y"]), inputs=("u", "x", "v"))
    yield "missing inputs, all at once", Bad(three, InputError, "3 external inputs have no value.*x.*u, v.*init=")
    yield (
        "missing weight",
        Bad(**{**conv(), "init": {"w": np.zeros((4, 3, 3, 3), np.float32)}}, error=InputError, words="b: give the weights"),
    )
    yield "no operators", Bad(b"\x0a\x01n\x42\x01y", FormatError, "no operators")
    yield "no outputs", Bad(serialize_net(NetDef("n", (relu,), ("x",))), InputError, r"outputs=\['y'\]")
    yield "output nobody writes", Bad(net(relu, outputs=("prob",)), FormatError, "external_output names blobs.*'prob'")
    yield "wanted output unknown", Bad(net(relu), InputError, "outputs= names blobs.*'z'", outputs=["z"], inputs=IMAGE)
    yield "input nobody reads", Bad(net(relu), InputError, "names 'image', which is not read", inputs={"image": (1,)})
    yield "input that is computed", Bad(net(relu), InputError, "names 'y', which is computed", inputs={"y": (1,), **IMAGE})
    unset = net(operator("Dropout", ["x"], ["y", "mask"], is_test=1), operator("Relu", ["mask"], ["z"]))
    yield "output left unset", Bad(unset, FormatError, "'mask' has no value", inputs=IMAGE)
    unset_output = net(operator("Dropout", ["x"], ["y", "mask"], is_test=1), outputs=("mask",))
    yield "output left unset, wanted", Bad(unset_output, FormatError, "the net's output: blob 'mask' has no value", inputs=IMAGE)
    odd = [
        operator("Foo", ["x"], ["a"]),
        operator("Dropout", ["x"], ["b"]),
        operator("Bar", ["x"], ["c"]),
        operator("Add", ["a", "b"], ["d"]),
    ]
    everything = net(*odd, outputs=("c", "d"))
    yield (
        "all that is unsupported",
        Bad(everything, UnsupportedError, r"(?s)Foo.*Dropout.*training.*Bar|Foo.*Bar.*training", inputs=IMAGE),
    )
    mixed = net(
        operator("Transpose", ["x"], ["a"], axes=[0]),
        operator("Foo", ["a"], ["b"]),
        operator("Dropout", ["x"], ["c"]),
        outputs=("b", "c"),
    )
    yield "unsupported goes before ill-fitting", Bad(mixed, UnsupportedError, r"(?s)Foo.*training", inputs=IMAGE)
    yield "unsupported goes before missing", Bad(mixed, UnsupportedError, "Foo")
    yield (
        "source and init exchanged",
        Bad(conv()["source"], InputError, "exchanged", init=net(operator("Relu", ["y"], ["z"]), inputs=("y",))),
    )


def shapes() -> Iterator[tuple[str, Bad]]:
    """Shapes and arguments that do not fit together."""
    yield "filter channels", Bad(**conv(w=(4, 2, 3, 3)), error=ShapeError, words=r"\[4,2,3,3\].*\[1,3,8,8\] has 3 channels")
    yield "bias length", Bad(**conv(b=(3,)), error=ShapeError, words=r"bias 'b' has shape \[3\]; it must be \[4\]")
    yield "kernel argument", Bad(**conv(kernel=5), error=ShapeError, words=r"\[5,5\].*\[4,3,3,3\]")
    yield "image below the kernel", Bad(**conv(x=(1, 3, 2, 8)), error=ShapeError, words="kernel of 3 does not fit")
    yield "pads that crop everything", Bad(**conv(pad=-4), error=ShapeError, words="does not fit")
    yield "stride zero", Bad(**conv(stride=0), error=FormatError, words="'stride' is .0,0.; every value must be at least 1")
    yield "dilation zero", Bad(**conv(dilation=0), error=FormatError, words="'dilation' is .0,0.")
    yield "group zero", Bad(**conv(group=0), error=ShapeError, words="group 0")
    yield "negative stride", Bad(**conv(strides=[1, -2]), error=FormatError, words="at least 1")
    yield "float for a whole number", Bad(**conv(stride=1.0), error=FormatError, words="'stride' must be a whole number")
    yield "whole number for a float", Bad(of_image("LeakyRelu", alpha=1), FormatError, "'alpha' must be a float", inputs=IMAGE)
    yield "pool of nothing", Bad(of_image("MaxPool"), FormatError, "no kernel size", inputs=IMAGE)
    yield "pad beyond the kernel", Bad(of_image("MaxPool", kernel=2, pad=2), FormatError, "below the kernel", inputs=IMAGE)
    for words, args in (
        (r"'adj' is \[1,1,1\]; it needs 2 values", {"adjs": [1, 1, 1]}),
        ("explicit kernels and pads", {"legacy_pad": 1}),
    ):
        deconv = conv(**args)
        deconv["source"] = net(operator("ConvTranspose", ["x", "w", "b"], ["y"], kernel=3, **args), inputs=("x", "w", "b"))
        yield f"transposed convolution, {words}", Bad(**deconv, error=FormatError, words=words)
    fc = net(operator("FC", ["x", "w", "b"], ["y"]), inputs=("x", "w", "b"))
    arrays = {"w": np.zeros((5, 7), np.float32), "b": np.zeros(5, np.float32)}
    yield "weights of another layer", Bad(fc, ShapeError, r"\[5,7\] take 7 inputs", init=arrays, inputs=IMAGE)
    yield "wrong type", Bad(of_image("Relu"), ShapeError, "int32.*takes float32", inputs={"x": ((2,), "int32")})
    yield "impossible input", Bad(of_image("Relu"), InputError, "must be a shape", inputs={"x": (1, -3)})
    yield "shape at run time", Bad(
        net(operator("Reshape", ["x", "s"], ["y", "_"]), inputs=("x", "s")), UnsupportedError, "'s' is computed from the net's inputs",
        inputs={**IMAGE, "s": ((2,), "int64")},
    )  # fmt: skip


def absurd() -> Iterator[tuple[str, Bad]]:
    """A few bytes that ask for gigabytes."""
    huge = {"x": (1, 3, 1 << 20, 1 << 20)}
    yield "input of 12 TB", Bad(of_image("Relu"), InputError, "at most 2147483647 bytes", inputs=huge)
    for name, shape in (
        ("2 GB", [1 << 29]),
        ("2 GB in many axes", [500, 1000, 1000]),
        ("exabytes", [1 << 40, 1 << 40]),
        ("negative", [-5]),
    ):
        for kind in ("ConstantFill", "XavierFill", "GivenTensorFill"):
            fills = net(operator(kind, [], ["y"], shape=shape), inputs=())
            yield f"{kind} of {name}", Bad(fills, ShapeError, "declare|impossible size|needs")
    many = net(
        *(operator("ConstantFill", [], [f"f{i}"], shape=[3 << 25]) for i in range(40)),
        inputs=(),
        outputs=tuple(f"f{i}" for i in range(40)),
    )
    yield "many fills", Bad(many, ShapeError, "fills declare 15.0 GiB")
    tiled = serialize_net(
        NetDef("i", (operator("ConstantFill", [], ["v"], shape=[1000]), operator("Tile", ["v"], ["w"], tiles=500_000, axis=0)))
    )
    yield (
        "computed in the init net",
        Bad(conv()["source"], ShapeError, "computed when loading", init=tiled, inputs={"x": (1, 3, 8, 8), "b": (4,)}),
    )
    yield "Tile", Bad(of_image("Tile", tiles=1 << 30, axis=0), ShapeError, "bytes", inputs=IMAGE)
    yield "PadImage", Bad(of_image("PadImage", pad=1 << 30), ShapeError, "bytes", inputs=IMAGE)
    yield "ResizeNearest", Bad(of_image("ResizeNearest", height_scale=6e4, width_scale=6e4), ShapeError, "bytes", inputs=IMAGE)
    yield "infinite scale", Bad(of_image("ResizeNearest", height_scale=float("inf")), ShapeError, "impossible", inputs=IMAGE)
    yield "convolution pads", Bad(**conv(pad=2**31 - 1), error=ShapeError, words="not between")
    yield "a number beyond 32 bits", Bad(**conv(pad=2**40), error=FormatError, words="does not fit 32 bits")
    yield "a reshape to exabytes", Bad(of_image("Reshape", shape=[1 << 62, -1]), FormatError, "takes 2 outputs", inputs=IMAGE)


def foreign() -> Iterator[tuple[str, Bad]]:
    """Other files, and things that are no files."""
    yield "empty", Bad(b"", FormatError, "empty")
    yield "a picture", Bad(b"\x89PNG\r\n\x1a\n" + bytes(100), FormatError, "not a Caffe2 NetDef")
    yield "noise", Bad(bytes(range(1, 256)) * 10, FormatError, "not a Caffe2 NetDef")
    yield "prose", Bad(b"Dear reader, this is no model.\n" * 50, FormatError, "not a Caffe2 NetDef in text form")
    yield "an ONNX model", Bad(b"\x08\x07\x12\x07pytorch", UnsupportedError, "ONNX")
    yield "a TFLite model", Bad(b"\x1c\x00\x00\x00TFL3" + bytes(40), UnsupportedError, "TFLite")
    yield "a Caffe prototxt", Bad(b'name: "x"\nlayer {\n  name: "conv"\n}\n', UnsupportedError, "Caffe prototxt")
    yield "an archive", Bad(b"PK\x03\x04" + bytes(60), UnsupportedError, "archive")
    yield "no such file", Bad("/nowhere/model.pb", InputError, "/nowhere/model.pb: cannot be read")
    yield "a number", Bad(3, InputError, "must be a path, bytes or a protobuf message")
    yield (
        "weights of no type",
        Bad(**{**conv(), "init": {"w": np.array(["a"]), "b": np.zeros(4)}}, error=InputError, words="'w' has dtype"),
    )
    yield (
        "a truncated init net",
        Bad(**{**conv(), "init": b"\x12\x50\x22\x0fGivenTensorFill"}, error=FormatError, words="init.*cut off"),
    )


def all_cases() -> dict[str, Bad]:
    groups: tuple[Callable[[], Iterator[tuple[str, Bad]]], ...] = (structure, shapes, absurd, foreign)
    return {name: bad for group in groups for name, bad in group()}


def load(bad: Bad) -> object:
    return cortado.load(bad.source, init=bad.init, inputs=bad.inputs, outputs=bad.outputs)


def peak_bytes() -> int:
    """The most memory this program has held. Linux's getrusage would count what the process that started it held."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    slowest = ("", 0.0)
    for name, bad in all_cases().items():
        start = time.process_time()
        try:
            load(bad)
        except cortado.CortadoError:
            slowest = max(slowest, (name, time.process_time() - start), key=lambda pair: pair[1])
    peak = peak_bytes()
    print(json.dumps({"slowest": slowest[0], "seconds": slowest[1], "peak_bytes": peak}))


if __name__ == "__main__":
    main()
