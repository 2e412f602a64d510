"""Detections: per class the boxes that pass a threshold and non-maximum suppression, over all classes the best of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.boxes import F32, overlaps
from cortado.compiler.ops.checks import arity, one_of, show
from cortado.compiler.ops.order import best_first
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.rows import COUNT
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
SOFT = ("", "linear", "gaussian")


def box_column(number: int, attrs: Attrs) -> int:
    """Where the boxes of a class (0 is the background) begin."""
    return 4 * (0 if attrs["agnostic"] else number if attrs["boxes_with_background"] else number - 1)


def score_column(number: int, attrs: Attrs) -> int:
    """Where the scores of a class are: boxes without background go with scores that have the background's last."""
    return number if attrs["boxes_with_background"] else number - 1


def most_per_class(rows: int, attrs: Attrs) -> int:
    """How many boxes of one class of one image can be in the result."""
    return min(rows, attrs["limit"]) if attrs["limit"] > 0 else rows


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 3)
    scores, boxes, splits = types
    for kind, what in ((scores, "the scores"), (boxes, "the boxes")):
        one_of(kind.dtype, F32, what)
        require(len(kind.shape) == 2, f"{what} are {show(kind.shape)}; they must have 2 axes: rows and classes")
    assert splits.dtype == "float32" and len(splits.shape) == 1, f"{splits} does not count rows per image"
    require(splits.shape[0] >= 1, "there are no images")
    rows, classes = scores.shape
    require(classes >= 1, "there are no classes")
    require(boxes.shape[0] == rows, f"{rows} rows of scores, but {boxes.shape[0]} rows of boxes")
    wanted = box_column(classes - 1, attrs) + 4
    require(boxes.shape[1] == wanted, f"the boxes have {boxes.shape[1]} columns; for {classes} classes there must be {wanted}")
    require(attrs["soft"] in SOFT, f"soft suppression {attrs['soft']!r} is not linear or gaussian")
    images = splits.shape[0]
    most = rows * (classes - 1)
    if attrs["limit"] > 0:
        most = min(most, images * attrs["limit"])
    vector, whole = TensorType((most,)), TensorType((most,), "int32")
    return vector, TensorType((most, 4)), vector, splits, whole, TensorType((images, classes), "int32"), COUNT


def _reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    scores, boxes, splits = arrays
    classes = scores.shape[1]
    most = _infer([TensorType(a.shape) for a in arrays], attrs)[0].shape[0]
    out_scores, out_boxes, out_classes = (np.zeros(s, np.float32) for s in ((most,), (most, 4), (most,)))
    keeps, sizes = np.zeros(most, np.int32), np.zeros((len(splits), classes), np.int32)
    totals = np.zeros(len(splits), np.float32)
    start = at = 0
    for image, rows in enumerate(splits.astype(np.int64).tolist()):
        own_scores, own_boxes = scores[start : start + rows], boxes[start : start + rows]
        start += rows
        found = _limited([_of_class(own_scores, own_boxes, number, attrs) for number in range(1, classes)], attrs["limit"])
        for number, kept in enumerate(found, 1):
            column = box_column(number, attrs)
            sizes[image, number] = len(kept)
            for row, score in kept:
                out_scores[at], out_boxes[at] = score, own_boxes[row, column : column + 4]
                out_classes[at], keeps[at] = number - (not attrs["classes_with_background"]), row
                at += 1
        totals[image] = sum(map(len, found))
    return out_scores, out_boxes, out_classes, totals, keeps, sizes, np.array([at], np.int32)


Kept = list[tuple[int, np.float32]]  # row and score, best first


def _of_class(scores: np.ndarray, boxes: np.ndarray, number: int, attrs: Attrs) -> Kept:
    column = box_column(number, attrs)
    own, score = boxes[:, column : column + 4], scores[:, score_column(number, attrs)]
    left = np.flatnonzero(score > np.float32(attrs["score_threshold"]))
    if attrs["soft"]:
        return _soft(own, score.copy(), left, attrs)
    left = left[best_first(score[left], len(left))]
    kept: Kept = []
    while len(left) and not 0 < attrs["limit"] <= len(kept):
        best, left = left[0], left[1:]
        kept.append((int(best), score[best]))
        left = left[overlaps(own[best], own[left], attrs["plus_one"]) <= np.float32(attrs["threshold"])]
    return kept


def _soft(boxes: np.ndarray, score: np.ndarray, left: np.ndarray, attrs: Attrs) -> Kept:
    """Overlapping boxes lose score instead of going: Bodla et al., "Soft-NMS". Of equal scores the first of those left is taken; the one
    at the front then takes its place."""
    kept: Kept = []
    while len(left):
        at = int(np.argmax(score[left]))
        best = left[at]
        left[at] = left[0]
        left = left[1:]
        kept.append((int(best), score[best]))
        overlap = overlaps(boxes[best], boxes[left], attrs["plus_one"])
        if attrs["soft"] == "linear":
            weight = np.where(overlap > np.float32(attrs["threshold"]), np.float32(1) - overlap, np.float32(1))
        else:
            weight = np.exp(-(overlap * overlap) / np.float32(attrs["sigma"]))
        score[left] *= weight
        left = left[score[left] >= np.float32(attrs["soft_least"])]
    return kept


def _limited(found: Sequence[Kept], limit: int) -> list[Kept]:
    """The best of all classes; each class has them in their order among all."""
    if limit <= 0 or sum(map(len, found)) <= limit:
        return list(found)
    merged = [(number, entry) for number, kept in enumerate(found) for entry in kept]
    best = best_first(np.array([score for _, (_, score) in merged], np.float32), len(merged))[:limit]
    chosen: list[Kept] = [[] for _ in found]
    for at in best:
        number, entry = merged[at]
        chosen[number].append(entry)
    return chosen


OPS: tuple[Op, ...] = (
    Op(
        "box_nms",
        _infer,
        _reference,
        {
            "score_threshold": "boxes up to this score go",
            "threshold": "of the overlap with a better box, above which a box goes or loses score",
            "limit": "how many boxes an image keeps; 0 or less: all",
            "soft": "how overlapping boxes lose score: linear, gaussian, or empty where they go",
            "sigma": "of the gaussian",
            "soft_least": "boxes whose score falls below this go",
            "plus_one": "a box from x1 to x2 is x2 - x1 + 1 wide",
            "agnostic": "all classes share one box",
            "boxes_with_background": "the first boxes and scores are the background's; else there are no such boxes, and its scores come last",
            "classes_with_background": "classes are counted from the background's 0; else the first class is 0",
        },
        counts={0: 6, 1: 6, 2: 6, 4: 6},
    ),
)
