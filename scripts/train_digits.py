"""Train the bundled digits network and write cortado/models/digits: the NetDef pair, the held-out digits and the record.

usage: python scripts/train_digits.py [--seed N] [--epochs N] [--output FOLDER]      (needs the extra `train`)

The data are the 1797 digits that come with scikit-learn (8x8 pixels of 0..16; E. Alpaydin and C. Kaynak, UCI "Optical Recognition
of Handwritten Digits", CC BY 4.0; scikit-learn hands out its copy under the BSD licence). A quarter of them, drawn by the
seed, is held out: it is not trained on, and nothing here was chosen by looking at it. The network sees pixel / 16.
The same seed gives the same network on the same machine and numpy; products differ in the last bits between machines.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from digits_layers import Adam, BatchNorm, Conv, FullyConnected, Layer, Pool, Relu, softmax
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from cortado.proto import caffe2

HELD_OUT = 449
BATCH, RATE, DECAY = 64, 3e-3, 1e-2


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images uint8[N,8,8] and classes, then the held-out ones."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    images, classes = digits.images[order].astype(np.uint8), digits.target[order].astype(np.uint8)
    return images[HELD_OUT:], classes[HELD_OUT:], images[:HELD_OUT], classes[:HELD_OUT]


def network(seed: int) -> dict[str, Layer]:
    """Output blob name -> layer. Layers that share a blob run in place."""
    rng = np.random.default_rng(seed + 1)
    return {
        "conv1": Conv(rng, 1, 16, 3, bias=True),
        "conv1/relu": Relu(),
        "conv2": Conv(rng, 16, 32, 3),
        "conv2/bn": BatchNorm(32),
        "conv2/relu": Relu(),
        "pool2": Pool("max"),
        "conv3/dw": Conv(rng, 32, 32, 3, group=32),
        "conv3/dw/bn": BatchNorm(32),
        "conv3/dw/relu": Relu(),
        "conv3": Conv(rng, 32, 48, 1),
        "conv3/bn": BatchNorm(48),
        "conv3/relu": Relu(),
        "pool3": Pool("average"),
        "fc": FullyConnected(rng, 2 * 2 * 48, 10),
    }


def distort(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32[N,8,8] turned by up to 12 degrees, scaled and sheared by up to 12%, moved by up to 0.8 pixels (bilinear)."""
    count = len(images)
    angle, scale = rng.uniform(-0.21, 0.21, count), rng.uniform(0.88, 1.12, (2, count))
    shear, shift = rng.uniform(-0.12, 0.12, count), rng.uniform(-0.8, 0.8, (2, count))
    y, x = np.mgrid[0:8, 0:8] - 3.5
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    sx = (cos * x - sin * y) * scale[0][:, None, None] + shear[:, None, None] * y + shift[0][:, None, None] + 3.5
    sy = (sin * x + cos * y) * scale[1][:, None, None] + shift[1][:, None, None] + 3.5
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    sx, sy = np.clip(sx, -1.5, 8.5) + 2, np.clip(sy, -1.5, 8.5) + 2
    left, top = np.floor(sx).astype(int), np.floor(sy).astype(int)
    fx, fy, n = sx - left, sy - top, np.arange(count)[:, None, None]
    upper = padded[n, top, left] * (1 - fx) + padded[n, top, left + 1] * fx
    lower = padded[n, top + 1, left] * (1 - fx) + padded[n, top + 1, left + 1] * fx
    return (upper * (1 - fy) + lower * fy).astype(np.float32)


def forward(layers: list[Layer], x: np.ndarray, training: bool = False) -> np.ndarray:
    for layer in layers:
        x = layer.forward(x, training)
    return x


def train(layers: list[Layer], images: np.ndarray, classes: np.ndarray, seed: int, epochs: int) -> None:
    rng = np.random.default_rng(seed + 2)
    optimizer = Adam(layers, DECAY)
    x_all = images.astype(np.float32) / 16
    one_hot = np.eye(10, dtype=np.float32)[classes] * 0.95 + 0.005
    batches = len(images) // BATCH
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        loss = 0.0
        for batch in range(batches):
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            progress = (epoch + batch / batches) / epochs
            p = softmax(forward(layers, distort(x_all[chosen], rng)[:, None], training=True))
            loss -= float((one_hot[chosen] * np.log(p + 1e-12)).sum())
            gradient = (p - one_hot[chosen]) / BATCH
            for layer in reversed(layers):
                gradient = layer.backward(gradient)
            optimizer.step(RATE * 0.5 * (1 + np.cos(np.pi * progress)))
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"epoch {epoch + 1:3d}  training loss {loss / (batches * BATCH):.4f}", flush=True)


def accuracy(layers: list[Layer], images: np.ndarray, classes: np.ndarray) -> float:
    logits = forward(layers, images.astype(np.float32)[:, None] / 16)
    return float((logits.argmax(1) == classes).mean())


def operators(net: dict[str, Layer]) -> tuple[list[caffe2.Operator], dict[str, np.ndarray]]:
    """The predict net's operators and the weights they read, by blob name."""
    ops: list[caffe2.Operator] = []
    weights: dict[str, np.ndarray] = {}
    x = "data"

    def add(kind: str, suffixes: dict[str, np.ndarray], y: str, **args: int | float | str) -> None:
        names = [f"{y}_{suffix}" for suffix in suffixes]
        weights.update(zip(names, suffixes.values(), strict=True))
        ops.append(caffe2.operator(kind, [x, *names], [y], **args))

    for blob, layer in net.items():
        p = layer.parameters
        match layer:
            case Conv():
                group = {"group": layer.group} if layer.group > 1 else {}
                add("Conv", p, blob, kernel=layer.kernel, stride=1, pad=layer.kernel // 2, order="NCHW", **group)
            case BatchNorm():
                blobs = {"s": p["scale"], "b": p["bias"], "rm": layer.mean, "riv": layer.variance}
                add("SpatialBN", blobs, blob, is_test=1, epsilon=layer.epsilon, order="NCHW")
            case Relu():
                add("Relu", {}, blob)
            case Pool():
                add("MaxPool" if layer.kind == "max" else "AveragePool", {}, blob, kernel=2, stride=2, order="NCHW")
            case FullyConnected():
                add("FC", p, blob)
        x = blob
    add("Softmax", {}, "prob", axis=1)
    return ops, weights


def write_model(net: dict[str, Layer], folder: Path) -> None:
    ops, weights = operators(net)
    inputs = ("data", *weights)
    predict = caffe2.NetDef("digits", tuple(ops), external_inputs=inputs, external_outputs=("prob",))
    fills = tuple(
        caffe2.operator("GivenTensorFill", [], [name], shape=array.shape, values=array.astype(np.float32).ravel())
        for name, array in weights.items()
    )
    init = caffe2.NetDef("digits_init", fills, external_outputs=tuple(weights))
    (folder / "predict_net.pb").write_bytes(caffe2.serialize_net(predict))
    (folder / "init_net.pb").write_bytes(caffe2.serialize_net(init))


def write_record(folder: Path, seed: int, epochs: int, net: dict[str, Layer], correct: int) -> None:
    record = {
        "name": "digits",
        "task": "handwritten digits, 10 classes",
        "command": f"python scripts/train_digits.py --seed {seed} --epochs {epochs}",
        "input": {"name": "data", "shape": [1, 1, 8, 8], "dtype": "float32", "values": "pixel / 16, white on black"},
        "output": {"name": "prob", "shape": [1, 10], "dtype": "float32", "values": "probability of each digit"},
        "parameters": sum(p.size for layer in net.values() for p in layer.parameters.values()),
        "training_digits": 1797 - HELD_OUT,
        "held_out_digits": HELD_OUT,
        "held_out_correct": correct,
        "held_out_accuracy": round(correct / HELD_OUT, 4),
        "data": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (UCI), CC BY 4.0, as it comes with "
        "scikit-learn (BSD 3-clause). heldout.npz holds the digits that were held out: images uint8[N,8,8] of 0..16, classes uint8[N]",
    }
    (folder / "model.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled digits network.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "cortado" / "models" / "digits")
    arguments = parser.parse_args()
    images, classes, held_images, held_classes = split(arguments.seed)
    net = network(arguments.seed)
    layers = list(net.values())
    with threadpool_limits(1):  # several threads round numpy's products differently from run to run
        train(layers, images, classes, arguments.seed, arguments.epochs)
    correct = round(accuracy(layers, held_images, held_classes) * HELD_OUT)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_model(net, arguments.output)
    np.savez_compressed(arguments.output / "heldout.npz", images=held_images, classes=held_classes)
    (arguments.output / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    write_record(arguments.output, arguments.seed, arguments.epochs, net, correct)
    print(f"{correct} of {HELD_OUT} held-out digits right ({correct / HELD_OUT:.2%}); wrote {arguments.output}")


if __name__ == "__main__":
    main()
