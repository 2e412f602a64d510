"""The rewrite of float graphs to int8, its choices, and the way through the API."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from graphs import Net, assert_same_meaning, feeds_of, node_named, ops
from native import X86_LEVELS, runs_here, skip_unless_run

import cortado
from cortado import digits
from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph, Value, constant
from cortado.compiler.interpret import run_program
from cortado.compiler.optimize import optimize
from cortado.compiler.options import CompileOptions
from cortado.compiler.pipeline import compile_program
from cortado.compiler.quantize.boundary import integer_boundary
from cortado.compiler.quantize.choose import moved_biases, quants_of
from cortado.compiler.quantize.config import QuantizeConfig
from cortado.compiler.quantize.equalize import equalized, find_factors
from cortado.compiler.quantize.plan import make_plan
from cortado.compiler.quantize.prepare import prepare
from cortado.compiler.quantize.quantize import assign, calibrate, quantize_graph, summary
from cortado.compiler.quantize.record import CalibrationRecord
from cortado.compiler.quantize.simulate import simulation
from cortado.compiler.quantize.weights import quantized_layer
from cortado.compiler.reference import run_graph
from cortado.compiler.verify import verify
from cortado.errors import CalibrationError, OptionError
from cortado.execute import ReferenceExecutor
from cortado.proto.caffe2 import NetDef, operator, serialize_net

Feeds = dict[str, np.ndarray]


def samples(graph: Graph, count: int = 4, seed: int = 0) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    return [{n.name: rng.standard_normal(n.types[0].shape).astype(np.float32) for n in graph.inputs} for _ in range(count)]


def quantized(graph: Graph, config: QuantizeConfig | None = None) -> tuple[Graph, CalibrationRecord]:
    config = config or QuantizeConfig("min_max", True, False)
    graph = optimize(graph)
    record = calibrate(graph, samples(graph), ReferenceExecutor, config)
    made = quantize_graph(graph, record, config)
    verify(made)
    assert made.inputs == graph.inputs
    assert [(name, value.type) for name, value in made.outputs] == [(name, value.type) for name, value in graph.outputs]
    return made, record


def snr(graph: Graph, made: Graph) -> float:
    """dB of the worst output, on one of the calibration samples."""
    [feeds] = samples(graph, 1)
    want, got = run_graph(graph, feeds), run_graph(made, feeds)
    return min(float(10 * np.log10(np.sum(want[n] ** 2) / max(np.sum((got[n] - want[n]) ** 2), 1e-20))) for n in want)


def assert_same_bits(graph: Graph) -> None:
    """In int8 on every level that this machine runs, with one thread and two."""
    feeds, record = feeds_of(graph), cortado.calibrate(graph, samples(graph))
    answers = []
    for name in (*X86_LEVELS, "host"):
        if runs_here(find_target(name)):
            model = cortado.compile(graph, target=name, dtype="int8", calibration=record, keep_float="none")
            answers += [model.run(feeds, threads=threads) for threads in (1, 2)]
    assert len(answers) > 2
    assert all(np.array_equal(first, other[name]) for name, first in answers[0].items() for other in answers)


def relu(net: Net, x: Value) -> Value:
    return net.op("relu", x)


def test_layers_clamp_and_have_integer_parameters() -> None:
    net = Net()
    a = net.op("relu", net.conv(net.input(1, 6, 6, 3), 8, 3, pad=1), name="a")
    b = net.op("clip", net.conv(a, 4), lo=0.0, hi=0.5, name="b")
    graph = net.graph(net.conv(b, 4, name="c"))
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 1, "q_conv": 3, "dequantize": 1}
    first, second = node_named(made, "a"), node_named(made, "b")
    assert first.types[0].quant is not None and first.types[0].quant.zero_points == (-128,)
    assert (first.attrs["lo"], first.attrs["hi"]) == (-128, 127)
    quant = second.types[0].quant
    assert quant is not None and second.attrs["hi"] == round(0.5 / quant.scales[0]) - 128
    weights, bias = first.inputs[1], first.inputs[2]
    assert weights.type.dtype == "int8" and bias.type.dtype == "int32"
    assert weights.type.quant is not None and weights.type.quant.axis == 0 and set(weights.type.quant.zero_points) == {0}
    values = weights.node.attrs["value"].reshape(8, -1)
    assert (np.abs(values).max(axis=1) == 127).all()
    assert snr(graph, made) > 30


def test_residuals_concats_pools_and_tables() -> None:
    net = Net()
    x = net.input(1, 8, 8, 4)
    a = relu(net, net.conv(x, 8, 3, pad=1))
    b = net.op("add", net.conv(a, 8, name="b"), a)
    pool = {"kernel": (2, 2), "strides": (2, 2), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
    parts = [net.op("max_pool", b, **pool), net.conv(b, 4, 2, strides=(2, 2), name="part")]
    joined = net.op("concat", *parts, axis=3, name="joined")
    bent = net.op("sigmoid", net.conv(joined, 8), name="bent")
    mean = net.op(
        "average_pool", net.op("mul", bent, net.conv(joined, 8), name="gated"), **pool, count_include_pad=False, name="mean"
    )
    graph = net.graph(net.conv(mean, 4))
    made, _ = quantized(graph)
    assert ops(made) == {
        "quantize": 1, "q_conv": 6, "max_pool": 1, "concat": 1, "q_table": 1, "q_mul": 1, "q_average_pool": 1, "dequantize": 1,
    }  # fmt: skip
    join = node_named(made, "joined")
    assert {value.type.quant for value in join.inputs} == {join.types[0].quant}
    assert any(len(node.inputs) == 4 for node in made.nodes() if node.op == "q_conv")
    assert snr(graph, made) > 23


def test_activations_in_epilogues_become_tables() -> None:
    net = Net()
    a = net.op("leaky_relu", net.conv(net.input(1, 4, 4, 3), 8), alpha=0.1)
    graph = net.graph(net.conv(a, 4))
    assert ops(optimize(graph)) == {"conv": 2}
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 1, "q_conv": 2, "q_table": 1, "dequantize": 1}
    assert snr(graph, made) > 30


def test_what_int8_cannot_do_stays_float_in_between() -> None:
    net = Net()
    a = net.conv(net.input(1, 4, 4, 3), 8)
    graph = net.graph(net.op("softmax", net.conv(net.op("lrn", a, size=3, alpha=1.0, beta=0.75, bias=1.0), 4), axis=3))
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 2, "q_conv": 2, "dequantize": 2, "lrn": 1, "softmax": 1}
    assert snr(graph, made) > 30


def test_before_the_first_and_after_the_last_layer_all_is_float() -> None:
    net = Net()
    x = net.op("sqrt", net.op("abs", net.input(1, 4, 4, 3)))
    y = net.fc(net.op("reshape", net.conv(net.op("transpose", x, perm=(0, 2, 1, 3)), 4), shape=(1, 64)), 10)
    graph = net.graph(net.op("tanh", net.op("reshape", y, shape=(10,))))
    made, _ = quantized(graph)
    found = ops(made)
    assert found["q_fc"] == 1 and found["quantize"] == found["dequantize"] == 1 and "q_table" not in found
    assert snr(graph, made) > 30


def upsampled(seed: int = 0) -> Graph:
    """Features of half the size joined with others, as segmentation and detection do, then classes of the whole picture."""
    net = Net(seed)
    x = net.input(1, 12, 12, 3)
    fine = relu(net, net.conv(x, 21, 3, pad=1))
    coarse = relu(net, net.conv(fine, 21, 2, strides=(2, 2)))
    wide = net.op("resize_bilinear", coarse, scale_h=2.0, scale_w=2.0, out_h=12, out_w=12, name="wide")
    both = relu(net, net.conv(net.op("concat", wide, fine, axis=3), 40, 3, pad=1))
    best = net.op("reduce_max", both, axes=(1, 2), keepdims=False, name="best")
    return net.graph(net.fc(best, 10))


def test_upsampling_and_extrema_keep_the_scale() -> None:
    graph = upsampled()
    made, _ = quantized(graph)
    assert ops(made) == {
        "quantize": 1, "q_conv": 3, "resize_bilinear": 1, "concat": 1, "reduce_max": 1, "q_fc": 1, "dequantize": 1,
    }  # fmt: skip
    for name in ("wide", "best"):
        node = node_named(made, name)
        assert node.types[0].quant == node.inputs[0].type.quant is not None
    assert snr(graph, made) > 30


@lru_cache(maxsize=1)
def of_upsampling() -> tuple[Graph, CalibrationRecord, Feeds, np.ndarray]:
    """The graph, its calibration, a sample, and what the baseline's kernels make of it."""
    graph = upsampled()
    record = cortado.calibrate(graph, samples(graph), method="min_max")
    [feeds] = samples(graph, 1, seed=3)
    options = CompileOptions(dtype="int8", keep_float="none")
    want = run_program(compile_program(graph, find_target("x86-64"), options, record)[0], feeds)["out0"]
    return graph, record, feeds, want


@pytest.mark.parametrize("level", [*X86_LEVELS, "cascadelake", "host", "aarch64", "cortex-m0", "cortex-m4", "cortex-m55"])
def test_upsampling_has_the_same_bits_everywhere(level: str) -> None:
    """In this process, or emulated where this machine lacks the instructions."""
    skip_unless_run(level)
    graph, record, feeds, want = of_upsampling()
    model = cortado.compile(graph, target=level, dtype="int8", keep_float="none", calibration=record)
    assert model.run(feeds)["out0"].tobytes() == want.tobytes() and len(np.unique(want)) > 5


def test_sums_over_axes() -> None:
    net = Net()
    x = relu(net, net.conv(net.input(2, 6, 6, 3), 16, 3, pad=1))
    total = net.op("reduce_sum", x, axes=(1, 2), keepdims=False, name="total")
    least = net.op("reduce_min", net.conv(x, 8), axes=(1, 2), keepdims=False)
    graph = net.graph(net.fc(total, 10), net.fc(least, 4))
    made, _ = quantized(graph)
    assert ops(made) == {"quantize": 1, "q_conv": 2, "q_sum": 1, "reduce_min": 1, "q_fc": 2, "dequantize": 2}
    found = node_named(made, "total").types[0].quant
    assert found is not None and found.zero_points == (-128,), "a sum of numbers above zero is above zero"
    assert snr(graph, made) > 30


@pytest.mark.parametrize(("side", "fits"), [(2900, True), (2903, False)])
@pytest.mark.parametrize("op", ["reduce_sum", "reduce_mean"])
def test_sums_that_need_more_than_32_bits_stay_float(op: str, side: int, fits: bool) -> None:
    net = Net()
    total = net.op(op, net.conv(net.input(1, side, side, 1), 1), axes=(1, 2), keepdims=False)
    plan = make_plan(net.graph(net.fc(total, 2)))
    assert (total.node in plan.quantized) == fits


def test_what_is_blended_counts_for_the_range() -> None:
    """Numbers far from the others disappear where sizes are reduced, and would be clipped before they are blended."""
    for op, shown in (("resize_bilinear", True), ("resize_nearest", False)):
        net = Net()
        x = net.conv(net.input(1, 8, 8, 3), 8)
        small = net.op(op, x, scale_h=0.4, scale_w=0.4, out_h=3, out_w=3)
        plan = make_plan(net.graph(net.conv(small, 4)))
        assert plan.of[x] == plan.of[small] and (x in plan.observed) == shown


def test_several_outputs_and_inputs() -> None:
    net = Net()
    a = relu(net, net.conv(net.input(2, 4, 4, 3), 8))
    b = net.conv(net.input(2, 4, 4, 5), 8)
    graph = net.graph(a, net.op("add", net.conv(a, 8), b))
    made, _ = quantized(graph)
    assert snr(graph, made) > 30


@pytest.mark.parametrize("config", [QuantizeConfig("min_max", False, False), QuantizeConfig("min_max", True, True)])
def test_the_simulation_computes_what_the_integers_do(config: QuantizeConfig) -> None:
    net = Net()
    a = relu(net, net.conv(net.input(1, 8, 8, 3), 8, 3, pad=1))
    b = relu(net, net.conv(a, 8, 3, pad=1, group=8))
    check_simulation(net.graph(net.conv(net.op("add", net.conv(b, 8), a), 4)), config)
    check_simulation(upsampled(), config)


def check_simulation(graph: Graph, config: QuantizeConfig) -> None:
    graph = optimize(graph)
    made, record = quantized(graph, config)
    assert record.decision is not None
    plan = make_plan(equalized(prepare(graph), record.decision.factors))
    statistics = record.effective
    built = simulation(plan)
    verify(built.graph)
    extra = built.feeds(quants_of(plan, statistics, "min_max"), moved_biases(plan, statistics) if config.correct_bias else {})
    [feeds] = samples(graph, 1, seed=5)
    want, got = run_graph(made, feeds)["out0"], run_graph(built.graph, {**feeds, **extra})["output0"]
    step = np.unique(np.diff(np.unique(want))).min()
    assert np.mean(np.abs(want - got) > 0.01 * step) < 0.02  # ties apart


def test_equalization_changes_nothing_but_rounding_and_helps_uneven_channels() -> None:
    net = Net()
    a = relu(net, net.conv(net.input(1, 8, 8, 3), 16, name="a"))
    b = net.conv(a, 8, name="b")
    for layer, column in ((a.node.inputs[0].node, False), (b.node, True)):
        sizes = np.geomspace(1, 300, 16).astype(np.float32)
        array = layer.inputs[1].node.attrs["value"].base
        array *= 1 / sizes if column else sizes.reshape(16, 1, 1, 1)
    graph = optimize(net.graph(b))
    record = calibrate(graph, samples(graph), ReferenceExecutor, QuantizeConfig("min_max"))
    factors = find_factors(graph, record)
    assert len(factors) == 1
    assert_same_meaning(graph, equalized(graph, factors))
    assert record.decision is not None and record.decision.factors
    errors = record.decision.errors
    assert errors["min_max+equalized"] < 0.2 * errors["min_max"]
    plain = quantize_graph(graph, record, QuantizeConfig("min_max", None, False))
    assert snr(graph, quantize_graph(graph, record)) > snr(graph, plain) + 5


def test_bias_correction_removes_the_mean_error() -> None:
    net = Net()
    x = net.op("abs", net.input(1, 16, 16, 64))
    check_bias_correction(optimize(net.graph(net.conv(x, 8, name="a"))))


def check_bias_correction(graph: Graph) -> None:
    """It at least halves the mean error of every channel, on average."""
    [feeds] = samples(graph, 1, seed=7)
    want = run_graph(graph, feeds)["out0"]
    means = []
    for correct in (False, True):
        made, _ = quantized(graph, QuantizeConfig("min_max", correct, False))
        means.append(np.abs((run_graph(made, feeds)["out0"] - want).mean(axis=(0, 1, 2))).mean())
    assert means[1] < 0.5 * means[0]


def test_channels_of_zeros_and_large_biases_are_sound() -> None:
    net = Net()
    x = net.input(1, 4, 4, 3)
    weights = np.random.default_rng(0).standard_normal((4, 1, 1, 3)).astype(np.float32)
    weights[1] = 0
    weights[2] *= 1e-9
    bias = np.array([0.1, 0.777, 5.0, 0], np.float32)
    attrs = {
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads_begin": (0, 0),
        "pads_end": (0, 0),
        "group": 1,
        "epilogue": (("bias",),),
    }
    a = net.op("conv", x, constant(weights, "w"), constant(bias, "b"), name="a", **attrs)
    layer = quantized_layer(a.node, 0.02, 0.05)
    np.testing.assert_allclose(layer.bias * layer.scales.astype(np.float64) * 0.02, bias, atol=1e-3)
    graph = net.graph(a)
    made, _ = quantized(graph)
    assert snr(graph, made) > 33


def test_a_network_of_zeros_gives_zeros() -> None:
    net = Net()
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0), "group": 1, "epilogue": ()}
    a = net.op("conv", net.input(1, 4, 4, 3), constant(np.zeros((4, 1, 1, 3), np.float32), "w"), name="a", **attrs)
    with pytest.warns(UserWarning, match="one value only"):
        made, _ = quantized(net.graph(a))
    assert not run_graph(made, samples(made, 1)[0])["out0"].any()


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_boundary_as_integers(dtype: str) -> None:
    net = Net()
    x = net.input(1, 3, 4, 4)
    a = net.conv(net.op("transpose", x, perm=(0, 2, 3, 1)), 8)
    graph = net.graph(a, net.op("softmax", net.conv(a, 4), axis=3))
    made, _ = quantized(graph)
    whole = integer_boundary(made, dtype)
    verify(whole)
    assert [n.types[0].dtype for n in whole.inputs] == [dtype] == [whole.outputs[0][1].type.dtype]
    quant = whole.inputs[0].types[0].quant
    assert quant is not None and whole.outputs[1][1].type.quant is not None
    [feeds] = samples(graph, 1)
    limits = np.iinfo(dtype)
    raw = np.clip(np.rint(feeds["x0"] / np.float32(quant.scales[0])) + quant.zero_points[0], limits.min, limits.max).astype(dtype)
    got, want = run_graph(whole, {"x0": raw}), run_graph(made, feeds)
    for name, value in whole.outputs:
        assert value.type.quant is not None and value.type.dtype == dtype
        scale, zero = value.type.quant.scales[0], value.type.quant.zero_points[0]
        np.testing.assert_allclose((got[name].astype(np.float32) - zero) * scale, want[name], atol=0.51 * scale)
    with pytest.raises(OptionError, match=f"io_dtype {dtype}: output 'out0' is computed in float32 by tanh"):
        integer_boundary(quantized(net.graph(net.op("tanh", a)))[0], dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_an_upsampled_output_as_integers(dtype: str) -> None:
    net = Net()
    x = net.conv(net.input(1, 6, 5, 3), 4)
    graph = net.graph(net.to_first(net.op("resize_bilinear", x, scale_h=3.0, scale_w=3.0, out_h=18, out_w=15)))
    made, _ = quantized(graph)
    whole = integer_boundary(made, dtype)
    assert ops(whole) == {"q_conv": 1, "resize_bilinear": 1, "transpose": 1, **({"q_table": 2} if dtype == "uint8" else {})}
    quant = whole.outputs[0][1].type.quant
    [feeds] = samples(graph, 1)
    into = whole.inputs[0].types[0].quant
    assert quant is not None and into is not None
    limits = np.iinfo(dtype)
    raw = np.clip(np.rint(feeds["x0"] / np.float32(into.scales[0])) + into.zero_points[0], limits.min, limits.max).astype(dtype)
    got = (run_graph(whole, {"x0": raw})["out0"].astype(np.float32) - quant.zero_points[0]) * quant.scales[0]
    np.testing.assert_allclose(got, run_graph(made, feeds)["out0"], atol=0.64 * quant.scales[0])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_boundary_of_an_imported_int8_net(dtype: str) -> None:
    """Its integers are uint8: at the boundary they can be either."""
    scale = {"Y_scale": 0.05, "Y_zero_point": 100}
    net = NetDef(
        "net",
        (
            operator("Int8Quantize", ["x"], ["q"], **scale),
            operator("Int8Relu", ["q"], ["r"], **scale),
            operator("Int8Dequantize", ["r"], ["y"]),
        ),
        ("x",),
        ("y",),
    )
    graph = cortado.load(serialize_net(net), inputs={"x": (2, 5)})
    real = np.linspace(-6, 9, 10, dtype=np.float32).reshape(2, 5)
    want = cortado.compile(graph).run({"x": real})["y"]
    model = cortado.compile(graph, io_dtype=dtype)
    into, out = model.inputs["x"], model.outputs["y"]
    assert into.dtype == out.dtype == dtype and into.scale == out.scale == np.float32(0.05)
    assert into.zero_point == out.zero_point == 100 - 128 * (dtype == "int8")
    limits = np.iinfo(dtype)
    raw = np.clip(np.rint(real / np.float32(0.05)) + into.zero_point, limits.min, limits.max).astype(dtype)
    got = model.run({"x": raw})["y"]
    np.testing.assert_allclose((got.astype(np.float32) - out.zero_point) * np.float32(out.scale), want, rtol=1e-6)


@pytest.fixture(scope="module")
def digit_feeds() -> list[Feeds]:
    return [{"data": digits.network_input(image)} for image in digits.held_out()[0][:40]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return cortado.load(digits.model_folder(), inputs={"data": (1, 1, 8, 8)})


@pytest.fixture(scope="module")
def record(graph: Graph, digit_feeds: list[Feeds]) -> CalibrationRecord:
    return cortado.calibrate(graph, digit_feeds)


def test_compiled_int8_has_the_bits_of_the_reference(
    graph: Graph, record: CalibrationRecord, digit_feeds: list[Feeds], tmp_path: Path
) -> None:
    model = cortado.compile(graph, dtype="int8", calibration=record)
    made = quantize_graph(optimize(graph), record)
    logits = next(node for node in made.nodes() if node.op == "dequantize")
    inner = replace(made, outputs=(("logits", logits.out()),))
    for feeds in digit_feeds[:5]:
        np.testing.assert_allclose(model.run(feeds)["prob"], run_graph(made, feeds)["prob"], atol=1e-6)
        assert run_graph(inner, feeds)["logits"].any()
    assert model.quantization is not None and model.quantization["calibration"] == record.sha256
    assert model.quantization == json.loads(
        json.dumps(summary(assign(optimize(graph), record, keep_float="slower", judge=find_target("x86-64-v3")), record))
    )
    model.save(tmp_path)
    record.save(tmp_path / "record.npz")
    again = cortado.open(tmp_path)
    assert again.quantization == model.quantization
    text = str(again.report())
    assert "int8 by 40 samples" in text and "conv1/nhwc" in text and " dB" in text
    saved = cortado.compile(graph, dtype="int8", calibration=tmp_path / "record.npz")
    assert saved._bundle.files == model._bundle.files


def test_what_compile_refuses(graph: Graph, record: CalibrationRecord) -> None:
    with pytest.raises(CalibrationError, match="needs calibration samples"):
        cortado.compile(graph, dtype="int8")
    with pytest.raises(OptionError, match="calibration is for dtype 'int8'"):
        cortado.compile(graph, calibration=[])
    with pytest.raises(CalibrationError, match="no calibration samples"):
        cortado.compile(graph, dtype="int8", calibration=[])
    with pytest.raises(CalibrationError, match="list of samples"):
        cortado.compile(graph, dtype="int8", calibration={"data": np.zeros((1, 1, 8, 8), np.float32)})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="io_dtype int8 needs"):
        cortado.compile(graph, io_dtype="int8")
    with pytest.raises(OptionError, match="method 'best' is not one of extended, min_max"):
        cortado.calibrate(graph, [], method="best")
    other = cortado.load(digits.model_folder(), inputs={"data": (2, 1, 8, 8)})
    with pytest.raises(CalibrationError, match="another network or input shape"):
        cortado.compile(other, dtype="int8", calibration=record)
