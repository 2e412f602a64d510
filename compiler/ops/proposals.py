"""Region proposals: from anchors, scores and deltas to boxes, and boxes to the levels of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.boxes import ANGLES, F32, check_angles, check_count, check_rows, clipped, decoded, overlaps
from cortado.compiler.ops.checks import arity, one_of, show
from cortado.compiler.ops.order import best_first
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.rows import COUNT
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]


def candidates(anchors: int, attrs: Attrs) -> tuple[int, int]:
    """Of that many anchors of an image: how many are looked at, and how many can be kept."""
    seen = min(anchors, attrs["before"]) if attrs["before"] > 0 else anchors
    return seen, min(seen, attrs["after"]) if attrs["after"] > 0 else seen


def _infer_generate(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 4)
    scores, deltas, info, anchors = types
    one_of(scores.dtype, F32, "the scores")
    one_of(deltas.dtype, F32, "the deltas")
    require(len(scores.shape) == 4, f"the scores are {show(scores.shape)}; they must have 4 axes")
    images, height, width, kinds = scores.shape
    check_rows(anchors, (4,), "the anchors")
    check_rows(info, (3,), "the sizes of the images")
    require(anchors.shape[0] == kinds, f"the scores are for {kinds} anchors, but there are {anchors.shape[0]}")
    require(info.shape[0] == images, f"the sizes of {info.shape[0]} images, but scores of {images}")
    require(
        deltas.shape == (images, height, width, 4 * kinds),
        f"the deltas are {show(deltas.shape)}, channels last; for {kinds} anchors they must be {show((images, height, width, 4 * kinds))}",
    )
    check_angles(attrs)
    rows = images * candidates(height * width * kinds, attrs)[1]
    return TensorType((rows, 5)), TensorType((rows,)), COUNT


def _generate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Per image: the best `before` anchors, moved by their deltas, clipped, the small ones dropped, then greedy suppression."""
    scores, deltas, info, anchors = arrays
    images, height, width, kinds = scores.shape
    seen, most = candidates(height * width * kinds, attrs)
    rois, probabilities = np.zeros((images * most, 5), np.float32), np.zeros(images * most, np.float32)
    at = 0
    for image in range(images):
        flat = scores[image].transpose(2, 0, 1).reshape(-1)  # as in a file's scores, which have the channels first
        order = best_first(flat, seen)
        kept = _kept(_proposals(order, deltas[image], anchors, attrs), info[image], most, attrs)
        for place, box in kept:
            rois[at] = image, *box
            probabilities[at] = flat[order[place]]
            at += 1
    return rois, probabilities, np.array([at], np.int32)


def _proposals(order: np.ndarray, deltas: np.ndarray, anchors: np.ndarray, attrs: Attrs) -> np.ndarray:
    """Boxes are counted by anchor, row, column. deltas: float32[H, W, 4 * anchors]."""
    height, width, _ = deltas.shape
    kind, cell = np.divmod(order, height * width)
    y, x = np.divmod(cell, width)
    shifts = np.stack([x, y], axis=1).astype(np.float32) * np.float32(attrs["stride"])
    boxes = anchors[kind] + np.tile(shifts, 2)
    own = deltas.reshape(height, width, -1, 4)[y, x, kind]
    return decoded(boxes.astype(np.float32), own, (1.0, 1.0, 1.0, 1.0), attrs)


def _kept(boxes: np.ndarray, info: np.ndarray, most: int, attrs: Attrs) -> list[tuple[int, np.ndarray]]:
    """(position, box) of at most `most` boxes that are large enough and overlap no better one too much."""
    height, width, scale = info
    boxes = clipped(boxes, np.trunc(height), np.trunc(width), attrs)
    sides = boxes[:, 2:] - boxes[:, :2] + np.float32(bool(attrs["plus_one"]))
    centres = boxes[:, :2] + sides * np.float32(0.5)
    smallest = np.float32(attrs["min_size"]) * scale
    good = (sides >= smallest).all(axis=1) & (centres[:, 0] < width) & (centres[:, 1] < height)
    kept: list[tuple[int, np.ndarray]] = []
    left = np.flatnonzero(good)
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append((int(best), boxes[best]))
        left = left[overlaps(boxes[best], boxes[left], attrs["plus_one"]) <= np.float32(attrs["threshold"])]
    return kept


def _infer_distribute(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    rois, count = types
    check_rows(rois, (5,), "the boxes")
    check_count(count)
    low, high = attrs["levels"]
    require(low <= high, f"levels {low} to {high}: the largest must not be below the smallest")
    levels = high - low + 1
    return (*[rois] * levels, TensorType(rois.shape[:1], "int32"), *[COUNT] * levels)


def _distribute(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Level floor(canonical level + log2(sqrt(area) / canonical size)), within the levels: Lin et al., "Feature pyramid networks", (1)."""
    rois, count = arrays
    real = rois[: count[0]]
    sides = real[:, 3:5] - real[:, 1:3] + np.float32(bool(attrs["plus_one"]))
    size = np.sqrt(sides[:, 0] * sides[:, 1]) / np.float32(attrs["canonical_size"])
    level = np.floor(np.float32(attrs["canonical_level"]) + np.log(size + np.float32(1e-6)) / np.float32(np.log(2.0)))
    low, high = attrs["levels"]
    level = np.maximum(np.minimum(level, np.float32(high)), np.float32(low))
    parts, counts = [], []
    for wanted in range(low, high + 1):
        chosen = real[level == wanted]
        parts.append(np.zeros(rois.shape, np.float32))
        parts[-1][: len(chosen)] = chosen
        counts.append(np.array([len(chosen)], np.int32))
    restore = np.zeros(len(rois), np.int32)
    restore[np.argsort(level, kind="stable")] = np.arange(len(real), dtype=np.int32)
    return (*parts, restore, *counts)


OPS: tuple[Op, ...] = (
    Op(
        "generate_proposals",
        _infer_generate,
        _generate,
        {
            "stride": "pixels of the image between neighbouring cells of the scores",
            "before": "how many of the best are looked at; 0 or less: all",
            "after": "how many are kept; 0 or less: all",
            "threshold": "of the overlap with a better box, above which a box goes",
            "min_size": "pixels of the unscaled image; smaller boxes go",
            **ANGLES,
        },
        counts={0: 2, 1: 2},
    ),
    Op(
        "distribute_proposals",
        _infer_distribute,
        _distribute,
        {
            "levels": "smallest and largest",
            "canonical_size": "side of a box, in pixels, that belongs to the canonical level",
            "canonical_level": "a level's number",
            "plus_one": "a box from x1 to x2 is x2 - x1 + 1 wide",
        },
    ),
)
