"""The layers of the digits network, forward and backward, in numpy: what `train_digits.py` trains. All arrays float32, NCHW."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Layer:
    """A step of the network. `forward` keeps what `backward` needs, which fills `gradients` and returns the input's gradient."""

    def __init__(self) -> None:
        self.parameters: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        raise NotImplementedError

    def backward(self, dy: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Conv(Layer):
    """Stride 1, `kernel // 2` zeros around; depthwise where `group` equals the channels, else dense."""

    def __init__(self, rng: np.random.Generator, cin: int, cout: int, kernel: int, group: int = 1, bias: bool = False) -> None:
        super().__init__()
        if group not in (1, cin) or (group > 1 and cout != cin):
            raise ValueError("either dense or depthwise")
        self.kernel, self.group = kernel, group
        fan_in = cin // group * kernel * kernel
        w = rng.standard_normal((cout, cin // group, kernel, kernel)) * np.sqrt(2.0 / fan_in)
        self.parameters["w"] = w.astype(np.float32)
        if bias:
            self.parameters["b"] = np.zeros(cout, np.float32)

    def windows(self, x: np.ndarray) -> np.ndarray:
        """[N,C,H,W] -> [N,C,H,W,K,K]."""
        pad = self.kernel // 2
        return sliding_window_view(np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), (self.kernel, self.kernel), (2, 3))

    def apply(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        windows = self.windows(x)
        if self.group > 1:
            return np.einsum("nchwij,cij->nchw", windows, w[:, 0], optimize=True)
        n, _, h, wide = x.shape
        self.columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * wide, -1)
        return (self.columns @ w.reshape(w.shape[0], -1).T).reshape(n, h, wide, -1).transpose(0, 3, 1, 2)

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.x = x
        y = self.apply(x, self.parameters["w"])
        return y + self.parameters["b"][:, None, None] if "b" in self.parameters else y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        w = self.parameters["w"]
        if "b" in self.parameters:
            self.gradients["b"] = dy.sum((0, 2, 3))
        if self.group > 1:
            self.gradients["w"] = np.einsum("nchwij,nchw->cij", self.windows(self.x), dy, optimize=True)[:, None]
            return self.apply(dy, w[:, :, ::-1, ::-1])
        rows = dy.transpose(0, 2, 3, 1).reshape(-1, w.shape[0])
        self.gradients["w"] = (rows.T @ self.columns).reshape(w.shape)
        return self.apply(dy, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))


class BatchNorm(Layer):
    epsilon, momentum = 1e-5, 0.9

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parameters = {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
        self.mean, self.variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.mean = self.momentum * self.mean + (1 - self.momentum) * mean
            self.variance = self.momentum * self.variance + (1 - self.momentum) * variance
        self.inverse = 1 / np.sqrt(variance + self.epsilon)
        self.normal = (x - mean[:, None, None]) * self.inverse[:, None, None]
        return self.parameters["scale"][:, None, None] * self.normal + self.parameters["bias"][:, None, None]

    def backward(self, dy: np.ndarray) -> np.ndarray:
        axes = (0, 2, 3)
        self.gradients = {"scale": (dy * self.normal).sum(axes), "bias": dy.sum(axes)}
        count = dy.size // dy.shape[1]
        mean_dy, mean_dyx = self.gradients["bias"] / count, self.gradients["scale"] / count
        centred = dy - mean_dy[:, None, None] - self.normal * mean_dyx[:, None, None]
        return (self.parameters["scale"] * self.inverse)[:, None, None] * centred


class Relu(Layer):
    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * self.mask


class Pool(Layer):
    """2x2 windows, stride 2: "max" or "average"."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        n, c, h, w = x.shape
        self.cells = x.reshape(n, c, h // 2, 2, w // 2, 2)
        self.top = self.cells.max((3, 5)) if self.kind == "max" else self.cells.mean((3, 5))
        return self.top

    def backward(self, dy: np.ndarray) -> np.ndarray:
        spread = np.broadcast_to(dy[:, :, :, None, :, None], self.cells.shape)
        dx = spread * (self.cells == self.top[:, :, :, None, :, None]) if self.kind == "max" else spread / 4
        n, c, h, _, w, _ = self.cells.shape
        return dx.reshape(n, c, 2 * h, 2 * w)


class FullyConnected(Layer):
    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        super().__init__()
        w = rng.standard_normal((outputs, inputs)) * np.sqrt(1.0 / inputs)
        self.parameters = {"w": w.astype(np.float32), "b": np.zeros(outputs, np.float32)}

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        return self.x @ self.parameters["w"].T + self.parameters["b"]

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.gradients = {"w": dy.T @ self.x, "b": dy.sum(0)}
        return (dy @ self.parameters["w"]).reshape(self.shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Adam:
    """Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1; weight decay, decoupled, on matrices."""

    def __init__(self, layers: list[Layer], decay: float) -> None:
        self.layers, self.decay, self.steps = layers, decay, 0
        self.first = [{k: np.zeros_like(p) for k, p in layer.parameters.items()} for layer in layers]
        self.second = [{k: np.zeros_like(p) for k, p in layer.parameters.items()} for layer in layers]

    def step(self, rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.steps += 1
        for layer, first, second in zip(self.layers, self.first, self.second, strict=True):
            for key, gradient in layer.gradients.items():
                first[key] = beta1 * first[key] + (1 - beta1) * gradient
                second[key] = beta2 * second[key] + (1 - beta2) * gradient**2
                corrected = second[key] / (1 - beta2**self.steps)
                update = first[key] / (1 - beta1**self.steps) / (np.sqrt(corrected) + epsilon)
                shrink = self.decay * layer.parameters[key] if layer.parameters[key].ndim > 1 else 0
                layer.parameters[key] = (layer.parameters[key] - rate * (update + shrink)).astype(np.float32)
