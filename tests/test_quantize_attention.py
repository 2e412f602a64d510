"""int8 of what attention is made of: products of two computed matrices, and a softmax between them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net, node_named, ops
from native import X86_LEVELS, runs_here
from test_quantize import quantized, samples, snr

import cortado
from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph, Value
from cortado.compiler.interpret import run_program
from cortado.compiler.optimize import optimize
from cortado.compiler.options import CompileOptions
from cortado.compiler.pipeline import compile_program
from cortado.compiler.quantize.choose import quants_of
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.plan import SHARES, make_plan
from cortado.compiler.quantize.quantize import assign, calibrate, quantize_graph
from cortado.compiler.quantize.ranges import quant_of, symmetric_quant_of
from cortado.compiler.quantize.simulate import simulation
from cortado.compiler.reference import run_graph
from cortado.compiler.types import Quant
from cortado.execute import ReferenceExecutor

POOL = {"kernel": (2, 2), "strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
PLAIN = {"transpose_a": False, "transpose_b": False}
WHOLE = {"quantize": 1, "q_fc": 4, "reshape": 4, "transpose": 4, "q_matmul": 2, "q_softmax": 1, "dequantize": 1}


def layer(net: Net, x: Value, outputs: int, name: str | None = None) -> Value:
    """Weights that keep the size of what they multiply."""
    depth = x.shape[-1]
    weights = net.rng.standard_normal((outputs, depth)).astype(np.float32) / np.float32(depth**0.5)
    return net.op("fc", x, net.number(weights), net.weights(outputs), epilogue=(("bias",),), name=name)


def by_heads(net: Net, x: Value, heads: int) -> Value:
    batch, length, width = x.shape
    return net.op("transpose", net.op("reshape", x, shape=(batch, length, heads, width // heads)), perm=(0, 2, 1, 3))


def attention(net: Net, x: Value, heads: int, scale: str = "mul") -> Value:
    batch, length, width = x.shape
    q, k, v = (by_heads(net, layer(net, x, width), heads) for _ in range(3))
    scores = net.op("batch_matmul", q, k, transpose_a=False, transpose_b=True, name="scores")
    number = (width // heads) ** 0.5
    scaled = net.op(scale, scores, net.number(np.float32(1 / number if scale == "mul" else number)), name="scaled")
    mixed = net.op("batch_matmul", net.op("softmax", scaled, axis=3, name="shares"), v, **PLAIN, name="mixed")
    joined = net.op("reshape", net.op("transpose", mixed, perm=(0, 2, 1, 3)), shape=(batch, length, width))
    return net.op("add", layer(net, joined, width), x)


def block(length: int = 18, width: int = 24, heads: int = 3, scale: str = "mul") -> Graph:
    net = Net()
    return net.graph(attention(net, net.input(1, length, width), heads, scale))


@pytest.mark.parametrize("scale", ["mul", "div"])
@pytest.mark.parametrize(("length", "width", "heads"), [(18, 24, 3), (64, 64, 4)])
def test_a_block_is_int8_from_end_to_end(length: int, width: int, heads: int, scale: str) -> None:
    graph = block(length, width, heads, scale)
    made, _ = quantized(graph)
    assert ops(made) == WHOLE
    assert node_named(made, "shares").types[0].quant == SHARES
    assert snr(graph, made) > 30


def test_the_same_bits_on_every_level() -> None:
    graph = block()
    record = cortado.calibrate(graph, samples(graph), method="min_max")
    options = CompileOptions(dtype="int8", keep_float="none")
    (feeds,) = samples(graph, 1, seed=3)
    want = run_graph(quantize_graph(optimize(graph), record), feeds)["out0"]
    for level in (*X86_LEVELS, "znver4", "aarch64", "cortex-m4"):
        program, _ = compile_program(graph, find_target(level), options, record)
        assert run_program(program, feeds)["out0"].tobytes() == want.tobytes(), level
    for level in (*X86_LEVELS, "znver4", "host"):
        if level == "host" or runs_here(find_target(level)):
            model = cortado.compile(graph, target=level, dtype="int8", keep_float="none", calibration=record)
            assert model.run(feeds)["out0"].tobytes() == want.tobytes(), level


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4", "aarch64"])
def test_the_same_bits_on_other_machines(target: str) -> None:
    graph = block(8, 8, 2)
    record = cortado.calibrate(graph, samples(graph), method="min_max")
    here, there = (
        cortado.compile(graph, target=t, dtype="int8", keep_float="none", calibration=record) for t in ("x86-64", target)
    )
    (feeds,) = samples(graph, 1, seed=4)
    try:
        got = there.run(feeds)
    except cortado.TargetError as error:
        pytest.skip(str(error))
    assert got["out0"].tobytes() == here.run(feeds)["out0"].tobytes()


def test_the_simulation_computes_what_the_integers_do() -> None:
    graph = optimize(block())
    config = QuantizeConfig("min_max", False, False)
    made, record = quantized(graph, config)
    plan = make_plan(graph)
    built = simulation(plan)
    extra = built.feeds(quants_of(plan, record.tensors, "min_max"), {})
    [feeds] = samples(graph, 1, seed=5)
    want, got = run_graph(made, feeds)["out0"], run_graph(built.graph, {**feeds, **extra})["output0"]
    step = np.unique(np.diff(np.unique(want))).min()
    assert np.abs(want - got).max() < 1.01 * step
    assert np.mean(np.abs(want - got) > 0.01 * step) < 0.06  # ties apart, and what they lead to


def second_of(made: Graph, name: str) -> Quant | None:
    return node_named(made, name).inputs[1].type.quant


def test_second_matrices_are_symmetric_where_that_costs_little() -> None:
    made, _ = quantized(block())
    quants = [second_of(made, name) for name in ("scaled", "mixed")]
    assert all(quant is not None and quant.zero_points == (0,) for quant in quants)
    net = Net()
    x = net.input(1, 6, 8)
    a, b = layer(net, x, 8), net.op("relu", layer(net, x, 8))
    lopsided, _ = quantized(net.graph(net.op("batch_matmul", a, b, transpose_a=False, transpose_b=True, name="scores")))
    assert second_of(lopsided, "scores").zero_points == (-128,)


def test_symmetric_ranges() -> None:
    for low, high in ((-1.0, 1.0), (-1.0, 2.0), (-2.0, 1.0), (-3.0, 7.1)):
        quant, free = symmetric_quant_of(low, high), quant_of(low, high)
        assert quant.zero_points == (0,) and quant.scales[0] <= 2**0.5 * free.scales[0]
        assert 127 * quant.scales[0] == pytest.approx(max(-low, high))
    for low, high in ((-2.9, 7.1), (0.0, 3.0), (-1.0, 0.0), (0.0, 0.0)):
        assert symmetric_quant_of(low, high) == quant_of(low, high)


def test_products_are_a_reason_for_int8() -> None:
    """As layers are: what leads to one becomes int8, also where it is the last operator."""
    net = Net()
    x = net.input(1, 6, 8)
    a = net.op("sigmoid", layer(net, x, 8))
    graph = net.graph(net.op("batch_matmul", a, layer(net, x, 8), transpose_a=False, transpose_b=True))
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 1, "q_fc": 2, "q_table": 1, "q_matmul": 1, "dequantize": 1}
    assert snr(graph, made) > 30


def test_what_stays_float_of_products_and_softmax() -> None:
    """Products before any layer, those with a constant first matrix, and a softmax that only leads to outputs."""
    net = Net()
    x, y = net.input(1, 6, 8), net.input(1, 8, 6)
    first = net.op("batch_matmul", x, y, **PLAIN)
    inner = layer(net, first, 6)
    last = net.op("softmax", net.op("batch_matmul", net.weights(1, 6, 6), inner, **PLAIN), axis=2)
    made, _ = quantized(net.graph(last))
    assert ops(made) == {"batch_matmul": 2, "quantize": 1, "q_fc": 1, "dequantize": 1, "softmax": 1}


@pytest.mark.parametrize("joined", [True, False])
def test_a_softmax_shares_no_tensor_with_other_operators(joined: bool) -> None:
    """Its scale is fixed: joined with what has other ranges it stays float, joined with another softmax it does not."""
    net = Net()
    x = net.input(1, 6, 8)
    parts = [net.op("transpose", net.op("softmax", layer(net, x, 6), axis=2), perm=(0, 2, 1)) for _ in range(2)]
    both = net.op("concat", *parts, *([layer(net, x, 6)] if joined else []), axis=1)
    graph = net.graph(layer(net, both, 5))
    made, _ = quantized(graph)
    assert ops(made).get("q_softmax", 0) == (0 if joined else 2) and ops(made).get("softmax", 0) == (2 if joined else 0)
    assert snr(graph, made) > 25


@pytest.mark.parametrize("op", ["mul", "div", "add", "sub", "maximum"])
@pytest.mark.parametrize("first", [False, True])
def test_arithmetic_with_one_number_is_a_table(op: str, first: bool) -> None:
    net = Net()
    a = net.op("sigmoid", net.op("max_pool", net.conv(net.input(1, 6, 6, 3), 8), **POOL))
    operands = (net.number(np.float32(0.7)), a) if first else (a, net.number(np.float32(0.7)))
    graph = net.graph(net.conv(net.op("max_pool", net.op(op, *operands), **POOL), 4))
    made, _ = quantized(graph)
    assert ops(made)["quantize"] == ops(made)["dequantize"] == 1
    assert snr(graph, made) > 25


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "znver4"])
@pytest.mark.parametrize("length", [96, 197])
def test_estimates_take_a_softmax_between_products(name: str, length: int) -> None:
    """With the conversions around it the one of floats takes longer, as the products do."""
    graph = optimize(block(length, 128, 2))
    record = calibrate(graph, samples(graph), ReferenceExecutor, QuantizeConfig("min_max", False, False))
    found = assign(graph, record, keep_float="slower", judge=find_target(name))
    assert found.floats == ()
    assert found.costs is not None
    for node in graph.nodes():
        if node.op == "batch_matmul":
            assert found.costs.integers[node] < found.costs.floats[node]
        if node.op == "softmax":
            conversions = found.costs.back[node.inputs[0]] + found.costs.into[node.out()]
            assert found.costs.integers[node] < found.costs.floats[node] + conversions
