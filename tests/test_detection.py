"""Operators of detectors: references on cases worked out by hand, kernels against references, numbers of rows that depend on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from lowered import Tensor, made_target, node_of, padded_strides, run_calls

import cortado
from cortado.compiler.graph import Graph
from cortado.compiler.interpret import run_program
from cortado.compiler.kernels.table import LOWERINGS
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.reference import evaluate, run_graph
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net

TARGETS = [made_target(0), made_target(128)]
IDS = ["scalar", "4"]
ANGLES = {"angle_bound": True, "angle_low": -90, "angle_high": 90, "clip_angle": 1.0, "plus_one": True}
ALIGN = {"scale": 0.5, "pooled_h": 2, "pooled_w": 3, "sampling": 0, "aligned": False, "rotated": False}
NMS = {
    "score_threshold": 0.1, "threshold": 0.4, "limit": 6, "soft": "", "sigma": 0.5, "soft_least": 0.01, "plus_one": True,
    "agnostic": False, "boxes_with_background": True, "classes_with_background": True,
}  # fmt: skip
PROPOSALS = {"stride": 8.0, "before": 30, "after": 9, "threshold": 0.5, "min_size": 3.0, **ANGLES}


def random_boxes(rng: np.random.Generator, count: int, size: float = 60.0) -> np.ndarray:
    corners = rng.uniform(0, size, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(2, size / 2, (count, 2))], axis=1).astype(np.float32)


def with_image(rng: np.random.Generator, boxes: np.ndarray, images: int) -> np.ndarray:
    numbers = np.sort(rng.integers(0, images, len(boxes))).astype(np.float32)
    return np.concatenate([numbers[:, None], boxes], axis=1)


def cases() -> list[Any]:
    rng = np.random.default_rng(3)
    counted = np.array([5], np.int32)
    info = np.array([[48, 64, 1.25], [40, 60, 0.5]], np.float32)
    boxes = random_boxes(rng, 7)
    rotated = np.concatenate([boxes, rng.uniform(-100, 100, (7, 1)).astype(np.float32)], axis=1)
    deltas = rng.standard_normal((7, 20)).astype(np.float32)
    features = rng.standard_normal((2, 9, 11, 13)).astype(np.float32)
    scores = rng.random((14, 4), np.float32)
    many = np.tile(random_boxes(rng, 14), (1, 4)) + rng.uniform(0, 4, (14, 16)).astype(np.float32)
    split = np.array([6, 7], np.float32)
    maps = rng.standard_normal((3, 4, 5, 5)).astype(np.float32)
    transform = {"weights": (10.0, 10.0, 5.0, 5.0), "rescale": True, "rotated": False, **ANGLES}
    grid = [
        rng.random((2, 4, 5, 3), np.float32),
        0.3 * rng.standard_normal((2, 4, 5, 12)).astype(np.float32),
        info,
        random_boxes(rng, 3, 20) - 10,
    ]
    levels = {"levels": (2, 4), "canonical_size": 30.0, "canonical_level": 3.0, "plus_one": True}
    rows = [rng.standard_normal((n, 5)).astype(np.float32) for n in (4, 3, 6)]
    return [
        ("bbox_transform", [with_image(rng, boxes, 2), deltas, info], transform),
        ("bbox_transform", [boxes, deltas, info[:1]], {**transform, "rescale": False, "plus_one": False}),
        ("bbox_transform", [rotated, deltas, info[:1]], {**transform, "rotated": True, "clip_angle": 40.0}),
        ("image_splits", [with_image(rng, boxes, 3), counted], {"images": 3}),
        ("join_rows", [*rows, np.array([2, 0, 5], np.int32)], {}),
        ("top_rows", [rows[2], np.array([1, 3, 3, 2, 9, 8], np.float32), counted], {"k": 4}),
        ("top_rows", [rows[2], np.arange(6, dtype=np.float32), np.array([0], np.int32)], {"k": 4}),
        ("distribute_proposals", [with_image(rng, boxes, 2), counted], levels),
        ("generate_proposals", grid, PROPOSALS),
        ("generate_proposals", grid, {**PROPOSALS, "before": 0, "after": -1, "threshold": 1.0, "min_size": 0.0, "plus_one": False}),
        ("generate_proposals", grid, {**PROPOSALS, "min_size": 1000.0}),
        ("box_nms", [scores, many, split], NMS),
        ("box_nms", [scores, many, split], {**NMS, "limit": 0, "classes_with_background": False}),
        ("box_nms", [scores, many[:, 4:], split], {**NMS, "boxes_with_background": False, "limit": 3}),
        ("box_nms", [scores, many[:, :4], split], {**NMS, "agnostic": True, "threshold": 0.9}),
        ("box_nms", [scores, many, split], {**NMS, "soft": "linear"}),
        ("box_nms", [scores, many, split], {**NMS, "soft": "gaussian", "limit": -1}),
        ("box_nms", [scores, many, split], {**NMS, "score_threshold": 2.0}),
        ("roi_align", [features, with_image(rng, boxes, 2) / np.float32(1.5)], ALIGN),
        ("roi_align", [features[:1], boxes], {**ALIGN, "sampling": 2, "aligned": True}),
        ("roi_align", [features[:1], rotated], {**ALIGN, "rotated": True}),
        ("roi_align", [features[..., :1].copy(), np.array([[0, -90, -90, -50, -50], [9, 5, 5, 1, 1]], np.float32)], ALIGN),
        ("roi_align", [features[:1], np.array([[np.nan] * 4, [np.inf, 0, 3e38, -np.inf]], np.float32)], {**ALIGN, "sampling": 1}),
        ("roi_pool", [features, with_image(rng, boxes, 2)], {"scale": 0.2, "pooled_h": 3, "pooled_w": 2}),
        ("roi_pool", [features, np.array([[0, 50, 50, 60, 60], [1, 3, 3, 0, 0]], np.float32)], {"scale": 1.0, "pooled_h": 2, "pooled_w": 2}),
        ("heatmap_keypoint", [maps, boxes[:3]], {"probability": True}),
        ("heatmap_keypoint", [np.zeros((1, 2, 2, 2), np.float32), boxes[:1]], {"probability": False}),
    ]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize(("op", "arrays", "attrs"), cases())
def test_kernels_give_what_references_give(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], target: Any) -> None:
    node = node_of(op, arrays, attrs)
    wanted = evaluate(node, arrays)
    ins = [Tensor(a, a.dtype.name, padded_strides(a.shape, 3), 3) for a in arrays]
    outs = [Tensor(np.zeros_like(w), w.dtype.name, padded_strides(w.shape, 3), 3) for w in wanted]
    calls = LOWERINGS[op](node, [t.operand for t in ins], [t.operand for t in outs], target)
    run_calls(calls, ins, outs, target, "interpret", 3)
    for got, want in zip(outs, wanted, strict=True):
        np.testing.assert_allclose(got.view, want, rtol=1e-5, atol=1e-4, err_msg=f"{op} {attrs}")
        assert got.canaries_intact(), "memory outside the output was written"


# --- by hand ---


def test_suppression_keeps_the_better_of_two_that_overlap() -> None:
    boxes = np.array([[0, 0, 9, 9], [1, 1, 10, 10], [50, 50, 59, 59]], np.float32)
    scores = np.array([[0, 0.5], [0, 0.9], [0, 0.2]], np.float32)
    node = node_of("box_nms", [scores, np.tile(boxes, 2), np.array([3], np.float32)], {**NMS, "threshold": 0.3})
    kept, best, classes, _, rows, sizes, count = evaluate(node, [scores, np.tile(boxes, 2), np.array([3], np.float32)])
    assert count.tolist() == [2] and rows[:2].tolist() == [1, 2] and sizes.tolist() == [[0, 2]]
    assert kept[:2].tolist() == pytest.approx([0.9, 0.2]) and classes[:2].tolist() == [1, 1] and np.array_equal(best[0], boxes[1])


def test_a_box_without_deltas_stays() -> None:
    box = np.array([[3, 4, 20, 30]], np.float32)
    arrays = [box, np.zeros((1, 4), np.float32), np.array([[100, 100, 1]], np.float32)]
    attrs = {"weights": (1.0,) * 4, "rescale": True, "rotated": False, **ANGLES}
    assert np.allclose(evaluate(node_of("bbox_transform", arrays, attrs), arrays)[0], box)


# --- numbers of rows that depend on the data ---


def net(*operators: Operator, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    return serialize_net(NetDef("net", operators, tuple(inputs), tuple(outputs)))


FIND = operator("BoxWithNMSLimit", ["s", "b"], ["score", "box", "class"], score_thresh=0.5, nms=0.5, detections_per_im=4)
SHAPES = {"s": (6, 3), "b": (6, 12)}


def feeds(high: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Scores and far-apart boxes of which `high` pass the threshold."""
    scores = np.full((6, 3), 0.25, np.float32)
    scores[:high, 1] = 0.75
    corners = np.arange(6, dtype=np.float32)[:, None] * 20
    return {"s": scores, "b": np.tile(np.concatenate([corners, corners, corners + 9, corners + 9], axis=1), (1, 3))}


def everywhere(graph: Graph, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs; reference and interpreted program agree."""
    want = run_graph(graph, given)
    got = run_program(lower(optimize(graph), made_target(128)), given)
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=1e-6)
    return want


@pytest.mark.parametrize("high", [0, 1, 3, 6])
def test_outputs_have_as_many_rows_as_were_found(high: int) -> None:
    graph = cortado.load(net(FIND, operator("Sigmoid", ["box"], ["y"]), inputs=SHAPES, outputs=["score", "y"]), inputs=SHAPES)
    assert [name for name, _ in graph.outputs] == ["score", "y", "score/rows"]
    assert graph.counts == {"score": "score/rows", "y": "score/rows"}
    got = everywhere(graph, feeds(high))
    rows = min(high, 4)
    assert {name: array.shape for name, array in got.items()} == {"score": (rows,), "y": (rows, 4)}


def test_a_compiled_model_cuts_its_outputs() -> None:
    graph = cortado.load(net(FIND, inputs=SHAPES, outputs=["box", "score"]), inputs=SHAPES)
    model = cortado.compile(graph)
    assert list(model.outputs) == ["box", "score"] and model.outputs["box"].count == "box/rows"
    for high in (0, 2, 6):
        want, got = run_graph(graph, feeds(high)), model.run(feeds(high))
        assert got["box"].shape == (min(high, 4), 4) and np.array_equal(got["box"], want["box"])


def test_what_would_mix_real_rows_with_others_is_refused() -> None:
    mixing = operator("ReduceFrontSum", ["box"], ["y"], num_reduce_dim=1)
    with pytest.raises(cortado.UnsupportedError, match=r"rows of '.*' depends on the data.*reduce_sum"):
        cortado.load(net(FIND, mixing, inputs=SHAPES, outputs=["y"]), inputs=SHAPES)
    with pytest.raises(cortado.CortadoError, match="depends on the data"):
        cortado.load(net(FIND, operator("Shape", ["box"], ["y"]), inputs=SHAPES, outputs=["y"]), inputs=SHAPES)


def test_rows_of_levels_come_back_in_their_order() -> None:
    """Boxes are spread over levels, looked at level by level, joined, and put back."""
    names = [f"level{i}" for i in range(3)]
    graph = cortado.load(
        net(
            operator("DistributeFpnProposals", ["rois"], [*names, "restore"], roi_min_level=2, roi_max_level=4),
            *(operator("RoIAlign", ["x", name], [f"f_{name}"], pooled_h=2, pooled_w=2, sampling_ratio=2) for name in names),
            operator("Concat", [f"f_{name}" for name in names], ["joined", "sizes"], axis=0),
            operator("BatchPermutation", ["joined", "restore"], ["y"]),
            inputs=["rois", "x"],
            outputs=["y"],
        ),
        inputs={"rois": (7, 5), "x": (1, 3, 16, 16)},
    )
    rng = np.random.default_rng(2)
    rois = np.concatenate(
        [np.zeros((7, 1), np.float32), random_boxes(rng, 7, 14) * rng.choice([1, 9, 30], (7, 1))], axis=1
    ).astype(np.float32)
    given = {"rois": rois, "x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    direct = cortado.load(
        net(
            operator("RoIAlign", ["x", "rois"], ["y"], pooled_h=2, pooled_w=2, sampling_ratio=2),
            inputs=["rois", "x"],
            outputs=["y"],
        ),
        inputs={"rois": (7, 5), "x": (1, 3, 16, 16)},
    )
    np.testing.assert_allclose(everywhere(graph, given)["y"], run_graph(direct, given)["y"], rtol=1e-6)


# --- If ---


def branching(condition: Operator, then: NetDef, other: NetDef, outputs: Sequence[str], *before: Operator) -> bytes:
    choice = operator("If", [condition.outputs[0]], [], then_net=then, else_net=other)
    return net(*before, condition, choice, inputs=["s", "b"], outputs=outputs)


def test_an_if_on_found_boxes_gives_the_rows_there_are() -> None:
    other = NetDef("other", (operator("Sigmoid", ["box"], ["mask"]), operator("Negative", ["box"], ["box"])), (), ("mask",))
    fill = operator("ConstantFill", [], ["mask"], shape=[1])
    data = branching(operator("IsEmpty", ["box"], ["empty"]), NetDef("nothing"), other, ["mask", "box"], FIND, fill)
    graph = cortado.load(data, inputs=SHAPES)
    plain = cortado.load(net(FIND, inputs=SHAPES, outputs=["box"]), inputs=SHAPES)
    for high in (0, 2):
        got, box = everywhere(graph, feeds(high)), run_graph(plain, feeds(high))["box"]
        assert np.array_equal(got["box"], -box) and got["mask"].shape == box.shape


def test_both_branches_may_write_and_read_what_is_around() -> None:
    then = NetDef("then", (operator("Relu", ["s"], ["s"]), operator("Add", ["s", "s"], ["y"])))
    other = NetDef("else", (operator("Negative", ["s"], ["y"]),))
    condition = operator("GT", ["low", "high"], ["is"])
    sums = [operator("SumElements", [name], [out]) for name, out in (("s", "low"), ("b", "high"))]
    graph = cortado.load(branching(condition, then, other, ["y", "s"], *sums), inputs={"s": (2, 3), "b": (2, 3)})
    s = np.array([[1, -2, 3], [4, 5, -6]], np.float32)
    high = everywhere(graph, {"s": s, "b": s - 1})
    assert np.array_equal(high["y"], 2 * np.maximum(s, 0)) and np.array_equal(high["s"], np.maximum(s, 0))
    low = everywhere(graph, {"s": s, "b": s + 1})
    assert np.array_equal(low["y"], -s) and np.array_equal(low["s"], s)


def test_a_known_condition_chooses_while_loading() -> None:
    then, other = (NetDef(kind, (operator(kind, ["s"], ["y"]),)) for kind in ("Relu", "Sigmoid"))
    data = branching(operator("IsEmpty", ["s"], ["empty"]), then, other, ["y"])
    graph = cortado.load(data, inputs={"s": (2, 3)})
    assert [node.op for node in graph.nodes()] == ["input", "sigmoid"]


def test_branches_of_different_types_are_refused() -> None:
    then, other = NetDef("a", (operator("Relu", ["s"], ["y"]),)), NetDef("b", (operator("Relu", ["b"], ["y"]),))
    sums = [operator("SumElements", [name], [out]) for name, out in (("s", "low"), ("b", "high"))]
    data = branching(operator("GT", ["low", "high"], ["is"]), then, other, ["y"], *sums)
    with pytest.raises(cortado.UnsupportedError, match=r"'y' is float32.* from then_net"):
        cortado.load(data, inputs={"s": (2, 3), "b": (3, 3)})
