"""Random small graphs of both layouts, for the test that no pass changes what a graph computes."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from graphs import STEPS, Net

from cortado.compiler.graph import Graph, Value, constant
from cortado.errors import ShapeError

MOST = 20_000  # elements of a value


class RandomNet(Net):
    """`values` so far; each method makes one more of x, or raises ShapeError where x does not suit."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.random = random.Random(seed)
        self.values: list[Value] = []

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def like(self, x: Value) -> Value:
        return self.random.choice([v for v in self.values if v.type == x.type])

    def image(self, x: Value, body: Callable[[Value], Value]) -> Value:
        """body on x as channels last; mostly the file is channels first."""
        if len(x.shape) != 4:
            raise ShapeError("no image")
        return self.to_first(body(self.to_last(x))) if self.chance(0.7) else body(x)

    def convolution(self, x: Value) -> Value:
        kernel, pad = self.random.choice([1, 1, 2, 3]), self.random.choice([0, 0, 1])
        strides, bias = self.random.choice([(1, 1), (2, 1)]), self.chance(0.6)
        return self.image(
            x, lambda y: self.conv(y, self.random.choice([1, 4, y.shape[-1]]), kernel, pad, bias=bias, strides=strides)
        )

    def depthwise(self, x: Value) -> Value:
        pad = self.random.choice([0, 1])
        return self.image(
            x, lambda y: self.conv(y, y.shape[-1] * self.random.choice([1, 2]), 1 + 2 * pad, pad, group=y.shape[-1])
        )

    def normalized(self, x: Value) -> Value:
        def body(y: Value) -> Value:
            c = y.shape[-1]
            variance = constant(self.rng.uniform(0.5, 2, c).astype(np.float32), self.name())
            return self.op("batch_norm", y, self.weights(c), self.weights(c), self.weights(c), variance, epsilon=1e-3)

        return self.image(x, body)

    def pooled(self, x: Value) -> Value:
        kernel = self.random.choice([1, 2])
        attrs = {**STEPS, "kernel": (kernel, kernel), "pads_end": (self.random.choice([0, kernel - 1]), 0)}
        if self.chance(0.5):
            return self.image(x, lambda y: self.op("max_pool", y, **attrs))
        return self.image(x, lambda y: self.op("average_pool", y, **attrs, count_include_pad=self.chance(0.5)))

    def slopes(self, x: Value) -> Value:
        return self.image(x, lambda y: self.op("prelu", y, self.weights(y.shape[-1])))

    def unary(self, x: Value) -> Value:
        name = self.random.choice(["relu", "relu", "clip", "sigmoid", "abs", "negative", "tanh", "leaky_relu", "square"])
        bounds = {"lo": self.random.choice([-1.0, 0.0, float("-inf")]), "hi": self.random.choice([0.5, float("inf")])}
        return self.op(name, x, **{"clip": bounds, "leaky_relu": {"alpha": 0.1}}.get(name, {}))

    def binary(self, x: Value) -> Value:
        pair = [x, self.like(x) if self.chance(0.8) else self.random.choice(self.values)]
        self.random.shuffle(pair)
        return self.op(self.random.choice(["add", "add", "mul", "sub", "maximum"]), *pair)

    def per_axis(self, x: Value) -> Value:
        rank = len(x.shape)
        axis = self.random.randrange(rank)
        shape = [x.shape[i] if i == axis else 1 for i in range(rank)]
        numbers = constant(self.rng.uniform(0.5, 1.5, shape[self.random.choice([0, axis]) :]).astype(np.float32), self.name())
        pair = [x, numbers if self.chance(0.7) else self.number(self.random.choice([0, 1, -2, 0.5]))]
        name = self.random.choice(["add", "mul", "sub", "div"])
        if name == "div":
            return self.op("div", x, numbers)
        return self.op(name, *(pair if self.chance(0.8) else pair[::-1]))

    def transposed(self, x: Value) -> Value:
        return self.op("transpose", x, perm=tuple(self.random.sample(range(len(x.shape)), len(x.shape))))

    def reshaped(self, x: Value) -> Value:
        shape = list(x.shape)
        way = self.random.choice(["flat", "squeeze", "one more", "split", "join"])
        at = self.random.randrange(len(shape) - 1) if len(shape) > 1 else 0
        if way == "flat":
            shape = [shape[0], x.type.size // shape[0]]
        elif way == "squeeze":
            shape = [d for d in shape if d != 1] or [1]
        elif way == "one more" and len(shape) < 6:
            shape.insert(at, 1)
        elif way == "split" and shape[at] % 2 == 0:
            shape[at : at + 1] = [2, shape[at] // 2]
        elif len(shape) > 1:
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        return self.op("reshape", x, shape=tuple(shape))

    def shuffled(self, x: Value) -> Value:
        n, c, h, w = (*x.shape, 1, 1, 1, 1)[:4]
        y = self.op("reshape", x, shape=(n, 2, c // 2, h, w))
        return self.op("reshape", self.op("transpose", y, perm=(0, 2, 1, 3, 4)), shape=(n, c, h, w))

    def concat(self, x: Value) -> Value:
        axis = self.random.randrange(len(x.shape))
        fits = [
            v
            for v in self.values
            if [d for i, d in enumerate(v.shape) if i != axis] == [d for i, d in enumerate(x.shape) if i != axis]
        ]
        fits = [v for v in fits if len(v.shape) == len(x.shape)]
        return self.op("concat", x, *(self.random.choice(fits) for _ in range(self.random.randint(0, 2))), axis=axis)

    def sliced(self, x: Value) -> Value:
        starts = [self.random.randrange(d) if self.chance(0.4) else 0 for d in x.shape]
        stops = [self.random.randint(a + 1, d) if self.chance(0.4) else d for a, d in zip(starts, x.shape, strict=True)]
        return self.op("slice", x, starts=tuple(starts), stops=tuple(stops))

    def padded(self, x: Value) -> Value:
        begin, end = (tuple(self.random.choice([0, 0, 1]) for _ in x.shape) for _ in range(2))
        mode = self.random.choice(["constant", "constant", "edge"])
        return self.op("pad", x, begin=begin, end=end, mode=mode, value=self.random.choice([0.0, 0.0, 1.5]))

    def reduced(self, x: Value) -> Value:
        axes = tuple(sorted(self.random.sample(range(len(x.shape)), self.random.randint(0, min(2, len(x.shape))))))
        op = self.random.choice(["reduce_mean", "reduce_max", "reduce_sum"])
        return self.op(op, x, axes=axes, keepdims=self.chance(0.5))

    def softmax(self, x: Value) -> Value:
        return self.op("softmax", x, axis=self.random.randrange(len(x.shape)))

    def dense(self, x: Value) -> Value:
        if self.chance(0.6):
            x = self.op("reshape", x, shape=(x.shape[0], x.type.size // x.shape[0]))
        return self.fc(x, self.random.choice([3, x.shape[-1]]), bias=self.chance(0.6))

    def broadcast(self, x: Value) -> Value:
        small = self.op("reduce_max", x, axes=(len(x.shape) - 1,), keepdims=True)
        return self.op("add", x, self.op("broadcast_to", small, shape=x.shape if self.chance(0.7) else (2, *x.shape)))

    def tiled(self, x: Value) -> Value:
        return self.op("tile", x, repeats=tuple(self.random.choice([1, 1, 2]) for _ in x.shape))

    def chosen(self, x: Value) -> Value:
        return self.op("where", self.op("gt", x, self.number(0)), x, self.like(x))

    def product(self, x: Value) -> Value:
        swap = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
        return self.op("batch_matmul", x, self.op("transpose", x, perm=swap), transpose_a=False, transpose_b=False)

    def kinds(self) -> list[Callable[[Value], Value]]:
        return [
            self.convolution, self.convolution, self.convolution, self.depthwise, self.normalized, self.pooled, self.slopes,
            self.unary, self.unary, self.unary, self.binary, self.binary, self.per_axis, self.per_axis, self.per_axis, self.transposed,
            self.reshaped, self.shuffled, self.concat, self.sliced, self.padded, self.reduced, self.softmax, self.dense, self.broadcast,
            self.tiled, self.chosen, self.product,
        ]  # fmt: skip


def random_graph(seed: int) -> Graph:
    net = RandomNet(seed)
    shape = [net.random.choice(sizes) for sizes in ([1, 1, 2], [1, 2, 4], [1, 3, 4, 6], [1, 4, 5])]
    net.values += [net.input(*shape) for _ in range(net.random.choice([1, 1, 2]))]
    outputs: list[Value] = []
    for _ in range(net.random.randint(3, 22)):
        x = net.random.choice(net.values[-4:] if net.chance(0.8) else net.values)
        if not x.shape:
            continue
        try:
            y = net.random.choice(net.kinds())(x)
        except ShapeError:
            continue
        if 0 < y.type.size < MOST:
            net.values.append(y)
            outputs += [y] * net.chance(0.08)
    return net.graph(*dict.fromkeys([*outputs, net.values[-1]]))
