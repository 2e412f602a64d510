"""Operators of Caffe2's detectors. How many boxes they give depends on the data: see `compiler.counts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cortado.compiler.graph import Node, Value
from cortado.compiler.importers import caffe2_join
from cortado.compiler.importers.caffe2_call import FLOAT32, MANY, Call, OpSpec
from cortado.compiler.ops import infer_types
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]


def _count(call: Call, position: int) -> Value:
    """int32[1]: how many rows of the input are real."""
    value = call.inputs[position]
    rows = call.scope.counts.of(value)
    if rows is None:
        return call.side(np.array([value.shape[0]], np.int32), "rows")
    if rows.axis != 0:
        raise UnsupportedError(
            f"of '{call.operator.inputs[position]}' axis {rows.axis} depends on the data; it must be the first"
        )
    return rows.count


def _outputs(call: Call, op: str, inputs: Sequence[Value], attrs: Mapping[str, Any], suffix: str = "") -> tuple[Value, ...]:
    """All results of a node; without a suffix it bears the name of the first output."""
    name = call.scope.helper(f"{call.names[0]}/{suffix}") if suffix else call.names[0]
    node = Node(op, tuple(inputs), attrs, infer_types(op, inputs, attrs), name, (call.operator.label,))
    return tuple(node.out(i) for i in range(len(node.types)))


def _plus_one(call: Call) -> bool:
    return call.args.flag("legacy_plus_one", True)


def _angles(call: Call) -> dict[str, Any]:
    return {
        "angle_bound": call.args.flag("angle_bound_on", True),
        "angle_low": call.args.integer("angle_bound_lo", -90),
        "angle_high": call.args.integer("angle_bound_hi", 90),
        "clip_angle": call.args.number("clip_angle_thresh", 1.0),
        "plus_one": _plus_one(call),
    }


def _generate_proposals(call: Call) -> Results:
    call.dtype(FLOAT32)
    scores, deltas, info, anchors = call.inputs
    for position in (0, 1):
        if len(call.inputs[position].shape) != 4:
            raise ShapeError(f"'{call.operator.inputs[position]}' is {show(call.inputs[position].shape)}; it must have 4 axes")
    if len(anchors.shape) == 2 and anchors.shape[1] == 5:
        raise UnsupportedError("anchors of 5 columns are rotated; proposals are made from upright ones only")
    scale = call.args.number("spatial_scale", 1 / 16)
    if not 2.0**-20 <= scale <= 2.0**20:
        raise ShapeError(f"argument 'spatial_scale' is {scale}; it must be above 0")
    attrs = {
        "stride": float(np.float32(1.0 / scale)),
        "before": call.args.integer("pre_nms_topN", 6000),
        "after": call.args.integer("post_nms_topN", 300),
        "threshold": call.args.number("nms_thresh", 0.7),
        "min_size": call.args.number("min_size", 16.0),
        **_angles(call),
    }
    inputs = (call.channels_last(scores, True), call.channels_last(deltas, True), info, anchors)
    return _outputs(call, "generate_proposals", inputs, attrs)[:2]


def _bbox_transform(call: Call) -> Results:
    call.dtype(FLOAT32)
    weights = call.args.raw("weights").floats
    rotated = call.args.flag("rotated")
    attrs = {
        "weights": tuple(float(w) for w in weights) if call.args.has("weights") else (1.0, 1.0, 1.0, 1.0),
        "rescale": call.args.flag("apply_scale", True),
        "rotated": rotated,
        **_angles(call),
    }
    boxes = call.node("bbox_transform", call.inputs, attrs)
    if len(call.operator.outputs) == 1:
        return (boxes,)
    images = call.inputs[2].shape[0]
    if call.x.shape[1] == (5 if rotated else 4):
        return (boxes, call.node("cast", (_count(call, 0),), {"dtype": "float32"}, 1))
    return (boxes, call.node("image_splits", (call.x, _count(call, 0)), {"images": images}, 1))


def _flat(call: Call, position: int) -> Value:
    """[N, C, 1, 1] is allowed in place of [N, C]."""
    value = call.inputs[position]
    if len(value.shape) == 4 and value.shape[2:] == (1, 1):
        return call.reshaped(value, value.shape[:2], "flat")
    return value


def _box_with_nms_limit(call: Call) -> Results:
    call.dtype(FLOAT32, 0, 1)
    if call.args.flag("rotated"):
        raise UnsupportedError("argument 'rotated' is 1: suppression works on upright boxes only")
    method = call.args.text("soft_nms_method", "linear")
    if method not in ("linear", "gaussian"):
        raise FormatError(f"argument 'soft_nms_method' is '{method}'; it must be linear or gaussian")
    attrs = {
        "score_threshold": call.args.number("score_thresh", 0.05),
        "threshold": call.args.number("nms", 0.3),
        "limit": call.args.integer("detections_per_im", 100),
        "soft": method if call.args.flag("soft_nms_enabled") else "",
        "sigma": call.args.number("soft_nms_sigma", 0.5),
        "soft_least": call.args.number("soft_nms_min_score_thres", 0.001),
        "plus_one": _plus_one(call),
        "agnostic": call.args.flag("cls_agnostic_bbox_reg"),
        "boxes_with_background": call.args.flag("input_boxes_include_bg_cls", True),
        "classes_with_background": call.args.flag("output_classes_include_bg_cls", True),
    }
    if len(call.inputs) == 3:
        splits = call.inputs[2]
        if splits.type.dtype not in ("float32", "int32") or len(splits.shape) != 1:
            raise ShapeError(f"the batch splits '{call.operator.inputs[2]}' are {splits.type}; they must be numbers on one axis")
    else:
        splits = _count(call, 0)
    if splits.constant is not None:
        splits = call.side(splits.constant.astype(np.float32), "splits")
    elif splits.type.dtype != "float32":
        splits = call.helper("cast", (splits,), "splits", {"dtype": "float32"})
    found = _outputs(call, "box_nms", (_flat(call, 0), _flat(call, 1), splits), attrs)
    return found[: len(call.operator.outputs)]


# --- levels of a feature pyramid ---


def _levels(call: Call, kind: str, least: int = 2, most: int = 5) -> tuple[int, int]:
    low, high = call.args.integer(f"{kind}_min_level", least), call.args.integer(f"{kind}_max_level", most)
    if not 0 <= high - low < 64:
        raise FormatError(
            f"levels {low} to {high} ({kind}_min_level, {kind}_max_level): the largest must not be below the smallest"
        )
    return low, high


def _counts(call: Call, positions: Sequence[int]) -> Value:
    """int32[n]: the real rows of n inputs."""
    counts = [_count(call, position) for position in positions]
    if all(count.constant is not None for count in counts):
        return call.side(np.concatenate([count.constant for count in counts if count.constant is not None]), "counts")
    return call.helper("concat", counts, "counts", {"axis": 0})


def _joined(call: Call, positions: Sequence[int], suffix: str) -> tuple[Value, Value]:
    """The inputs' real rows, one after the other, and their number."""
    if len(positions) == 1:
        return call.inputs[positions[0]], _count(call, positions[0])
    parts = [call.inputs[position] for position in positions]
    value, count = _outputs(call, "join_rows", (*parts, _counts(call, positions)), {}, suffix)
    return value, count


def _collected(call: Call, suffix: str = "") -> tuple[Value, Value]:
    """The best boxes of all levels."""
    low, high = _levels(call, "rpn", 2, 6)
    levels = high - low + 1
    if len(call.inputs) != 2 * levels:
        raise FormatError(f"takes boxes and scores of {levels} levels: {2 * levels} inputs, the file gives {len(call.inputs)}")
    call.dtype(FLOAT32)
    for level in range(levels):
        boxes, scores = call.inputs[level], call.inputs[levels + level]
        if len(boxes.shape) != 2 or boxes.shape[1] != 5 or scores.type.size != boxes.shape[0]:
            raise ShapeError(
                f"'{call.operator.inputs[level]}' is {show(boxes.shape)} and '{call.operator.inputs[levels + level]}' "
                f"{show(scores.shape)}; they must be rows of 5 columns and one score for each"
            )
    rois, count = _joined(call, range(levels), "joined")
    scores, _ = _joined(call, range(levels, 2 * levels), "scores")
    scores = call.reshaped(scores, rois.shape[:1], "scores")
    limit = call.args.integer("rpn_post_nms_topN", 2000)
    k = min(limit, rois.shape[0]) if limit > 0 else rois.shape[0]
    top, count = _outputs(call, "top_rows", (rois, scores, count), {"k": max(k, 1)}, suffix)
    return top, count


def _collect_rpn_proposals(call: Call) -> Results:
    return (_collected(call)[0],)


def _distributed(call: Call, rois: Value, count: Value, outputs: int) -> Results:
    low, high = _levels(call, "roi")
    if outputs != high - low + 2:
        raise FormatError(f"levels {low} to {high} give {high - low + 2} outputs of boxes and order, the file has {outputs}")
    attrs = {
        "levels": (low, high),
        "canonical_size": float(call.args.integer("roi_canonical_scale", 224)),
        "canonical_level": float(call.args.integer("roi_canonical_level", 4)),
        "plus_one": _plus_one(call),
    }
    return _outputs(call, "distribute_proposals", (rois, count), attrs, "levels")[:outputs]


def _distribute_fpn_proposals(call: Call) -> Results:
    call.dtype(FLOAT32)
    return _distributed(call, call.x, _count(call, 0), len(call.operator.outputs))


def _collect_and_distribute(call: Call) -> Results:
    rois, count = _collected(call)
    return (rois, *_distributed(call, rois, count, len(call.operator.outputs) - 1))


# --- regions ---


def _pooled(call: Call) -> dict[str, Any]:
    return {
        "scale": call.args.number("spatial_scale", 1.0),
        "pooled_h": call.args.integer("pooled_h", 1),
        "pooled_w": call.args.integer("pooled_w", 1),
    }


def _features(call: Call, first: bool) -> Value:
    call.dtype(FLOAT32)
    if len(call.x.shape) != 4:
        raise ShapeError(f"'{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} takes 4 axes")
    return call.channels_last(call.x, first)


def _roi_align(call: Call) -> Results:
    first = call.channels_first()
    x = _features(call, first)
    attrs = {
        **_pooled(call),
        "sampling": call.args.integer("sampling_ratio", -1),
        "aligned": call.args.flag("aligned"),
        "rotated": call.operator.type == "RoIAlignRotated",
    }
    return (call.in_order(call.node("roi_align", (x, call.inputs[1]), attrs), first),)


def _roi_pool(call: Call) -> Results:
    if not call.channels_first():
        raise FormatError("RoIPool exists for order NCHW only")
    if len(call.operator.outputs) != 2 - call.args.flag("is_test"):
        raise FormatError("RoIPool has one output with is_test=1 and two without")
    values = _outputs(call, "roi_pool", (_features(call, True), call.inputs[1]), _pooled(call))
    return [call.in_order(value, True) for value in values[: len(call.operator.outputs)]]


def _heatmap_max_keypoint(call: Call) -> Results:
    call.dtype(FLOAT32)
    return (call.node("heatmap_keypoint", call.inputs, {"probability": call.args.flag("should_output_softmax")}),)


def _rmac_regions(call: Call) -> Results:
    """Boxes that depend on the shape alone: Tolias et al., "Particular object retrieval with integral max-pooling of CNN activations"."""
    if len(call.x.shape) != 4:
        raise ShapeError(f"'{call.operator.inputs[0]}' is {show(call.x.shape)}; RMACRegions takes 4 axes")
    scales, overlap = call.args.integer("scales", 3), np.float32(call.args.number("overlap", 0.4))
    if not 0 <= scales <= 64:
        raise ShapeError(f"argument 'scales' is {scales}; it must be 0 to 64")
    images, _, height, width = call.x.shape
    boxes = np.array(_regions(height, width, scales, overlap) if call.x.type.size else [], np.float32).reshape(-1, 4)
    rows = [np.concatenate([np.full((len(boxes), 1), image, np.float32), boxes], axis=1) for image in range(images)]
    return (call.constant(np.concatenate(rows) if rows else np.zeros((0, 5), np.float32)),)


def _regions(height: int, width: int, scales: int, overlap: np.float32) -> list[tuple[int, int, int, int]]:
    short, step = min(height, width), 0
    if height != width:
        area = np.float32(short * short)
        gaps = [np.float32((max(height, width) - short) / number) for number in range(1, 7)]
        errors = [abs((area - np.float32(short) * gap) / area - overlap) for gap in gaps]
        step = 1 + int(np.argmin(errors))
    extra_w, extra_h = (step if width > height else 0), (step if height > width else 0)
    boxes = []
    for scale in range(1, scales + 1):
        side = 2 * short // (scale + 1)
        if side == 0:
            break
        xs, ys = _starts(width, side, scale + extra_w), _starts(height, side, scale + extra_h)
        boxes += [(x, y, x + side - 1, y + side - 1) for x in xs for y in ys]
    return boxes


def _starts(size: int, side: int, count: int) -> list[int]:
    gap = np.float32((size - side) / (count - 1) if count > 1 else 0)
    return [min(int(gap * np.float32(number)), size - side) for number in range(count)]


# --- operators that mean something else where the number of rows is data ---


def _is_empty(call: Call) -> Results:
    nothing = call.number(0, "int32", "nothing")
    empty = call.helper("eq", (_count(call, 0), nothing), "eq")
    result = call.as_output(empty, ())
    call.scope.emptiness[result] = _count(call, 0)
    return (result,)


def _concat_rows(call: Call) -> Results:
    """Along the counted axis real rows must follow each other."""
    axis = call.axis(call.args.integer("axis", 1), len(call.x.shape))
    if axis != 0 or call.args.flag("add_axis"):
        return caffe2_join.OPERATORS["Concat"].build(call)
    value, _ = _joined(call, range(len(call.inputs)), "joined")
    return (value, None)


def _permuted_rows(call: Call) -> Results:
    """There is room for more rows than the permutation names; those that it names are real."""
    call.dtype(frozenset({"int32"}), 1)
    if len(call.inputs[1].shape) != 1 or not call.x.shape:
        raise ShapeError(f"the permutation '{call.operator.inputs[1]}' is {show(call.inputs[1].shape)}; it must have one axis")
    return (call.node("gather", call.inputs, {"axis": 0}),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "GenerateProposals": OpSpec(_generate_proposals, inputs=(4, 4), outputs=(2, 2)),
        "GenerateProposalsCPP": OpSpec(_generate_proposals, inputs=(4, 4), outputs=(2, 2)),
        "BBoxTransform": OpSpec(_bbox_transform, inputs=(3, 3), outputs=(1, 2)),
        "BoxWithNMSLimit": OpSpec(_box_with_nms_limit, inputs=(2, 3), outputs=(3, 6)),
        "CollectRpnProposals": OpSpec(_collect_rpn_proposals, inputs=(2, MANY)),
        "DistributeFpnProposals": OpSpec(_distribute_fpn_proposals, outputs=(2, MANY)),
        "CollectAndDistributeFpnRpnProposals": OpSpec(_collect_and_distribute, inputs=(2, MANY), outputs=(3, MANY)),
        "RoIAlign": OpSpec(_roi_align, inputs=(2, 2)),
        "RoIAlignRotated": OpSpec(_roi_align, inputs=(2, 2)),
        "RoIPool": OpSpec(_roi_pool, inputs=(2, 2), outputs=(1, 2)),
        "HeatmapMaxKeypoint": OpSpec(_heatmap_max_keypoint, inputs=(2, 2)),
        "RMACRegions": OpSpec(_rmac_regions),
    }
)

# In place of the usual import, where the number of rows of an input depends on the data.
COUNTED: Mapping[str, OpSpec] = MappingProxyType(
    {
        "IsEmpty": OpSpec(_is_empty),
        "BatchPermutation": OpSpec(_permuted_rows, inputs=(2, 2)),
        "Concat": OpSpec(_concat_rows, inputs=(1, MANY), outputs=(2, 2)),
    }
)
