"""Steps stop at the number of rows that was found: kernels whose tasks come in the order of rows, programs, compiled models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lowered import Tensor, made_target, node_of, padded_strides, run_calls
from quantized_nodes import make_q, quant, result, values, window

import cortado
from cortado.backends.targets import find_target
from cortado.compiler.graph import Node
from cortado.compiler.interpret import run_program
from cortado.compiler.kernels.move import lower_copy
from cortado.compiler.kernels.table import lowerings
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.program import Argument, Limit
from cortado.compiler.quantize.quantize import quantize_graph
from cortado.compiler.reference import evaluate, run_graph
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net

TARGETS = [made_target(128), made_target(256, masked=True)]
IDS = ["4", "8"]
RNG = np.random.default_rng(5)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7, 300, 1000])
@pytest.mark.parametrize("groups", [1, 2, 5, 48, 300, 999, 6000])
def test_a_limit_is_never_too_small_and_hardly_too_large(rows: int, groups: int) -> None:
    limit = Limit(Argument(0), rows, groups)
    m, shift = limit.scale
    assert rows * m + (1 << shift) - 1 < 1 << 31
    for count in range(rows + 1):
        needed = -(-count * groups // rows)
        assert needed <= limit.tasks(count, 3 * groups) // 3 <= needed + 1 + groups // 10_000
    assert limit.tasks(0, groups) == limit.tasks(-4, groups) == 0 and limit.tasks(rows, groups) == groups


CONV = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (1, 1), "pads_end": (1, 1), "group": 1, "epilogue": ()}
POOL = {"kernel": (3, 3), "strides": (2, 2), "dilations": (1, 1), "pads_begin": (1, 1), "pads_end": (1, 1)}
ROI = {"scale": 0.5, "pooled_h": 3, "pooled_w": 2}
BOXES = np.abs(numbers(40, 4)).cumsum(axis=1) * 4
ATTRS = {"angle_bound": True, "angle_low": -90, "angle_high": 90, "clip_angle": 1.0, "plus_one": True}

# operator, inputs, attributes, inputs that are constants
CASES: list[tuple[str, list[np.ndarray], dict[str, Any], tuple[int, ...]]] = [
    ("conv", [numbers(9, 5, 4, 8), numbers(12, 3, 3, 8)], CONV, (1,)),
    ("conv", [numbers(40, 1, 1, 8), numbers(5, 1, 1, 8)], {**CONV, "pads_begin": (0, 0), "pads_end": (0, 0)}, (1,)),
    ("conv", [numbers(3, 6, 6, 32), numbers(32, 3, 3, 32)], CONV, (1,)),  # Winograd where vectors are long
    ("conv", [numbers(5, 4, 4, 8), numbers(8, 3, 3, 1)], {**CONV, "group": 8}, (1,)),
    ("conv", [numbers(5, 4, 4, 8), numbers(8, 3, 3, 4)], {**CONV, "group": 2}, (1,)),
    ("conv", [numbers(5, 4, 4, 8), numbers(8, 3, 3, 8)], CONV, ()),
    ("conv_transpose", [numbers(11, 4, 3, 4), numbers(6, 2, 2, 4)],
     {"strides": (2, 2), "pads_begin": (0, 0), "pads_end": (0, 0), "output_padding": (0, 0), "group": 1, "epilogue": ()}, (1,)),
    ("fc", [numbers(40, 9), numbers(50, 9)], {"epilogue": ()}, (1,)),
    ("fc", [numbers(5, 8, 9), numbers(12, 9)], {"epilogue": ()}, ()),
    ("batch_matmul", [numbers(40, 9), numbers(9, 11)], {"transpose_a": False, "transpose_b": False}, (1,)),
    ("batch_matmul", [numbers(40, 9, 5), numbers(9, 11)], {"transpose_a": True, "transpose_b": False}, ()),
    ("max_pool", [numbers(9, 7, 6, 5)], POOL, ()),
    ("average_pool", [numbers(9, 7, 6, 5)], {**POOL, "count_include_pad": False}, ()),
    ("average_pool", [numbers(5, 7, 7, 70)],
     {**POOL, "kernel": (7, 7), "pads_begin": (0, 0), "pads_end": (0, 0), "count_include_pad": True}, ()),
    ("add", [numbers(40, 30), numbers(30)], {}, ()),
    ("exp", [numbers(70, 20)], {}, ()),
    ("relu", [numbers(3, 4500)], {}, ()),
    ("prelu", [numbers(40, 3, 5), numbers(5)], {}, ()),
    ("softmax", [numbers(40, 81)], {"axis": 1}, ()),
    ("softmax", [numbers(40, 3)], {"axis": 1}, ()),
    ("softmax", [numbers(20, 7, 9)], {"axis": 1}, ()),
    ("lrn", [numbers(12, 3, 20)], {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}, ()),
    ("reduce_mean", [numbers(12, 5, 5, 10)], {"axes": (1, 2), "keepdims": False}, ()),
    ("reduce_max", [numbers(40, 7, 10)], {"axes": (2,), "keepdims": True}, ()),
    ("arg_max", [numbers(40, 81)], {"axis": 1, "keepdims": False}, ()),
    ("top_k", [numbers(40, 81)], {"axis": 1, "k": 3}, ()),
    ("transpose", [numbers(40, 5, 6)], {"perm": (0, 2, 1)}, ()),
    ("transpose", [numbers(17, 40)], {"perm": (1, 0)}, ()),
    ("transpose", [numbers(3, 40)], {"perm": (1, 0)}, ()),
    ("transpose", [numbers(9, 40, 17)], {"perm": (1, 2, 0)}, ()),
    ("pad", [numbers(40, 3, 5)], {"begin": (0, 1, 1), "end": (0, 1, 0), "mode": "constant", "value": 1.0}, ()),
    ("tile", [numbers(40, 3)], {"repeats": (1, 4)}, ()),
    ("broadcast_to", [numbers(40, 1, 3)], {"shape": (40, 4, 3)}, ()),
    ("gather", [numbers(9, 30), RNG.integers(0, 9, 40).astype(np.int32)], {"axis": 0}, ()),
    ("resize_nearest", [numbers(8, 4, 3, 5)], {"scale_h": 2.0, "scale_w": 2.0, "out_h": 8, "out_w": 6}, ()),
    ("resize_bilinear", [numbers(8, 4, 3, 5)], {"scale_h": 2.0, "scale_w": 2.0, "out_h": 8, "out_w": 6}, ()),
    ("resize_bilinear", [RNG.integers(0, 256, (8, 4, 3, 5)).astype(np.uint8)],
     {"scale_h": 2.0, "scale_w": 2.0, "out_h": 8, "out_w": 6}, ()),
    ("bbox_transform", [BOXES, numbers(40, 8) / 9, np.array([[50, 60, 1]], np.float32)],
     {"weights": (10.0, 10.0, 5.0, 5.0), "rescale": True, "rotated": False, **ATTRS}, ()),
    ("roi_align", [numbers(1, 9, 11, 13), BOXES], {**ROI, "sampling": 2, "aligned": False, "rotated": False}, ()),
    ("roi_pool", [numbers(1, 9, 11, 13), np.pad(BOXES, ((0, 0), (1, 0)))], ROI, ()),
    ("heatmap_keypoint", [numbers(30, 4, 5, 5), BOXES[:30].copy()], {"probability": True}, ()),
]  # fmt: skip


def check_limit(node: Node, arrays: list[np.ndarray], target: Any, counts: Sequence[int] = ()) -> int:
    """Calls with as many tasks as some rows need make these rows; how many calls were shorter than the whole.

    counts: numbers of rows; none for 0 and half of them.
    """
    wanted = evaluate(node, arrays)
    rows = len(wanted[0])
    limited = 0
    for count in counts or (0, rows // 2):
        ins = [Tensor(a, a.dtype.name, padded_strides(a.shape, 4), 4) for a in arrays]
        outs = [Tensor(np.full_like(w, 77), w.dtype.name, padded_strides(w.shape, 4), 4) for w in wanted]
        operands = [tensor.operand for tensor in ins], [tensor.operand for tensor in outs]
        calls = []
        for call in lowerings("speed")[node.op](node, *operands, target):
            tasks = Limit(Argument(0), rows, call.groups).tasks(count, call.tasks) if call.groups else call.tasks
            limited += tasks < call.tasks
            calls.append(replace(call, tasks=tasks))
        run_calls(calls, ins, outs, target, "interpret", 2)
        for got, want in zip(outs, wanted, strict=True):
            np.testing.assert_allclose(got.view[:count], want[:count], rtol=1e-3, atol=1e-3, err_msg=f"{count} of {rows} rows")
    return limited


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize(("op", "arrays", "attrs", "fixed"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_tasks_up_to_the_limit_make_the_rows(
    op: str, arrays: list[np.ndarray], attrs: dict[str, Any], fixed: Sequence[int], target: Any
) -> None:
    limited = check_limit(node_of(op, arrays, attrs, fixed), arrays, target)
    without = ("transpose", "relu", *(["batch_matmul"] if attrs.get("transpose_a") else []))
    assert limited or op in without, "no call has an order"


def test_pieces_of_several_tiles_make_any_number_of_rows() -> None:
    """Two pieces of seven tiles: half of the rows and some more are not made by the first one, unless it has four of the tiles."""
    arrays = [numbers(53, 64), numbers(60, 64)]
    assert check_limit(node_of("fc", arrays, {"epilogue": ()}, (1,)), arrays, TARGETS[1], (24, 25, 26, 27))


Q = quant(0.05, 3)


def quantized_cases() -> list[Any]:
    def filters(*shape: int) -> list[tuple[np.ndarray, Any]]:
        weights = values(RNG, shape, "int8"), quant(0.02, 0)
        return [weights, (RNG.integers(-500, 500, shape[0]).astype(np.int32), None)]

    image, rows = (values(RNG, (9, 5, 4, 8), "uint8"), Q), (values(RNG, (40, 12), "uint8"), Q)
    out = result(0.4, 100, "uint8")
    table = RNG.integers(0, 256, 256).astype(np.uint8)
    pool = {"kernel": (5, 4), **window(2), "count_include_pad": True}
    steps = {"strides": (2, 2), "pads_begin": (1, 1), "pads_end": (1, 1), "output_padding": (0, 0)}
    return [
        ("q_conv", [image, *filters(12, 3, 3, 8)], {**window(2, pads=1), "group": 1, **out}, (1, 2)),
        ("q_conv", [image, *filters(8, 3, 3, 4)], {**window(2, pads=1), "group": 2, **out}, (1, 2)),
        ("q_conv", [image, *filters(8, 3, 3, 1)], {**window(2, pads=1), "group": 8, **out}, (1, 2)),
        ("q_conv_transpose", [image, *filters(6, 4, 4, 8)], {**steps, "group": 1, **out}, (1, 2)),
        ("q_conv_transpose", [image, *filters(8, 2, 2, 1)], {**steps, "group": 8, **out}, (1, 2)),
        ("q_fc", [rows, *filters(20, 12)], out, (1, 2)),
        ("q_matmul", [rows, (values(RNG, (12, 20), "int8"), quant(0.02, 0))], {"transpose_a": False, "transpose_b": False, **out}, ()),
        ("q_table", [rows], {"table": table, "quant": Q, "dtype": "uint8"}, ()),
        ("q_mean", [image], {"axes": (1, 2), "keepdims": False, **out}, ()),
        ("dequantized_mean", [image], {"axes": (1, 2), "keepdims": True}, ()),
        ("q_sum", [image], {"axes": (1, 2), "keepdims": True, **out}, ()),
        ("q_average_pool", [image], {**pool, **out}, ()),
        ("q_add", [rows, (values(RNG, (40, 12), "uint8"), Q)], out, ()),
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [0, 128, 256])
@pytest.mark.parametrize("number", range(13))
def test_quantized_kernels_stop_as_well(number: int, bits: int) -> None:
    op, inputs, attrs, constants = quantized_cases()[number]
    node = make_q(op, inputs, attrs, constants)
    check_limit(node, [array for array, _ in inputs], made_target(bits))


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
def test_copies_stop_as_well(target: Any) -> None:
    array = numbers(40, 3, 5)
    node = node_of("negative", [array], {})
    for strides in ((30, 5, 1), (15, 5, 1)):
        source, out = Tensor(array, "float32"), Tensor(np.zeros_like(array), "float32", strides)
        (call,) = lower_copy(node, [source.operand], [out.operand], target)
        tasks = Limit(Argument(0), 40, call.groups).tasks(13, call.tasks)
        run_calls([replace(call, tasks=tasks)], [source], [out], target, "interpret", 2)
        assert np.array_equal(out.view[:13], array[:13])
        assert call.tasks == 1 or not out.view[26:].any()


# --- programs ---

FIND = operator("BoxWithNMSLimit", ["s", "b"], ["score", "box", "class"], score_thresh=0.5, nms=0.5, detections_per_im=64)
ROWS = 64


def net(*operators: Operator, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    return serialize_net(NetDef("net", operators, tuple(inputs), tuple(outputs)))


def feeds(high: int) -> dict[str, np.ndarray]:
    """Scores and far-apart boxes of which `high` pass the threshold."""
    scores = np.full((ROWS, 2), 0.25, np.float32)
    scores[:high, 1] = 0.75
    corners = np.arange(ROWS, dtype=np.float32)[:, None] * 20
    return {"s": scores, "b": np.tile(np.concatenate([corners, corners, corners + 9, corners + 9], axis=1), (1, 2))}


def head(width: int = 32) -> cortado.Graph:
    """Boxes are found, regions looked at, a layer and its activations follow."""
    weights = np.random.default_rng(8).standard_normal((16, 12, 3, 3)).astype(np.float32)
    data = net(
        FIND,
        operator("RoIAlign", ["x", "box"], ["r"], pooled_h=6, pooled_w=6, sampling_ratio=1),
        operator("Conv", ["r", "w"], ["c"], kernel=3, pad=1),
        operator("Softmax", ["c"], ["p"], axis=3),
        operator("Sigmoid", ["box"], ["sure"]),
        operator("Concat", ["box", "sure"], ["both", "both_dims"], axis=1),
        inputs=["s", "b", "x"],
        outputs=["p", "both", "score"],
    )
    return cortado.load(data, init={"w": weights}, inputs={"s": (ROWS, 2), "b": (ROWS, 8), "x": (1, 12, width, width)})


@pytest.mark.parametrize("high", [0, 1, 13, 64])
def test_programs_and_compiled_models_make_the_rows_that_were_found(high: int) -> None:
    graph = head()
    given = {**feeds(high), "x": np.random.default_rng(4).standard_normal((1, 12, 32, 32)).astype(np.float32)}
    want = run_graph(graph, given)
    program = lower(optimize(graph), made_target(128))
    model = cortado.compile(graph, threads=2)
    limited = {step.op for step in program.steps if step.limit is not None}
    assert limited >= {"roi_align", "conv", "softmax", "sigmoid"}
    results = [run_program(program, given) if high == 13 else want, model.run(given), model.run(given, threads=2)]
    for got in results:
        assert list(got) == list(want)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_residuals_of_rows_that_are_counted(dtype: str) -> None:
    """Two transposed convolutions of the regions that were found, added up."""
    rng = np.random.default_rng(9)
    data = net(
        FIND,
        operator("RoIAlign", ["x", "box"], ["r"], pooled_h=3, pooled_w=3, sampling_ratio=1),
        *(operator("ConvTranspose", ["r", f"w{i}"], [f"c{i}"], kernel=2, stride=2) for i in (0, 1)),
        operator("Add", ["c0", "c1"], ["y"]),
        inputs=["s", "b", "x"],
        outputs=["y", "score"],
    )
    weights = {f"w{i}": rng.standard_normal((12, 8, 2, 2)).astype(np.float32) for i in (0, 1)}
    graph = optimize(cortado.load(data, init=weights, inputs={"s": (ROWS, 2), "b": (ROWS, 8), "x": (1, 12, 16, 16)}))
    given = {**feeds(13), "x": rng.standard_normal((1, 12, 16, 16)).astype(np.float32)}
    if dtype == "int8":
        graph = quantize_graph(graph, cortado.calibrate(graph, [{**given, **feeds(ROWS)}] * 2, method="min_max"))
    program, want = lower(graph, made_target(128)), run_graph(graph, given)
    op = "q_conv_transpose" if dtype == "int8" else "conv_transpose"
    assert {step.limit is not None for step in program.steps if step.op == op} == {True}
    assert any(len(node.inputs) == (4 if dtype == "int8" else 3) for node in graph.nodes() if node.op == op), "no residual"
    np.testing.assert_allclose(run_program(program, given)["y"], want["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("found", [True, False])
def test_rows_that_were_not_found_are_not_added_to_others(found: bool) -> None:
    """Strassen's scheme adds neighbouring rows, which lie along the second axis here. Those behind the last one found hold anything."""
    operators = [
        operator("ExpandDims", ["box"], ["e"], dims=[0]),
        operator("FC", ["e", "w0", "b0"], ["z"], axis=2),
        operator("Relu", ["z"], ["r"]),
        operator("FC", ["r", "w1", "b1"], ["q"], axis=2),
        operator("Squeeze", ["q"], ["y"], dims=[0]),
    ]
    sizes = {"w0": (128, 4), "b0": (128,), "w1": (128, 128), "b1": (128,)}
    init = {name: np.random.default_rng(3).standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    given: dict[str, tuple[int, ...]] = {"s": (ROWS, 2), "b": (ROWS, 8)} if found else {"box": (ROWS, 4)}
    data = net(*[FIND] * found, *operators, inputs=[*given], outputs=["y", *["score"] * found])
    program = lower(optimize(cortado.load(data, init=init, inputs=given)), find_target("znver4"))
    families = [step.kernel.name.rpartition("_")[0] for step in program.steps if step.op == "fc"]
    assert families == ["fc_f32", "fc_f32" if found else "strassen_products"]


def test_steps_without_rows_take_no_time() -> None:
    """Also step by step, on one thread and on several."""
    model = cortado.compile(head(), threads=2)
    x = np.random.default_rng(4).standard_normal((1, 12, 32, 32)).astype(np.float32)
    assert any(step.count and step.parts > 1 for step in model.report().steps)
    for threads in (1, 2):
        none, all_of_them = (
            sum(
                step.min_us
                for step in model.profile({**feeds(high), "x": x}, runs=10, threads=threads).steps
                if step.op == "conv"
            )
            for high in (0, 64)
        )
        assert 4 * none < all_of_them


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-a53"])
def test_limits_on_other_machines(target: str) -> None:
    graph = head(8)
    model = cortado.compile(graph, target=target)
    for high in (0, 13):
        given = {**feeds(high), "x": np.random.default_rng(4).standard_normal((1, 12, 8, 8)).astype(np.float32)}
        try:
            got = model.run(given)
        except cortado.TargetError as error:
            pytest.skip(str(error))
        for name, array in run_graph(graph, given).items():
            np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4, err_msg=name)
