"""Boxes of detectors: regression deltas applied, clipping to the image, overlap.

Upright boxes are [x1, y1, x2, y2], rotated ones [centre x, centre y, width, height, angle in degrees]. Older detectors count pixels, so that a
box from x1 to x2 is x2 - x1 + 1 wide: `plus_one`. Formulas: Girshick et al., "Rich feature hierarchies for accurate object detection",
appendix C; for rotated boxes Ma et al., "Arbitrary-oriented scene text detection via rotation proposals".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import arity, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]

F32 = frozenset({"float32"})
LARGEST_LOG = float(np.float32(math.log(1000.0 / 16.0)))  # widths and heights grow at most by this factor
HALF_TURN = 180.0 / math.pi
ANGLES = {
    "angle_bound": "whether angles are brought between the two bounds",
    "angle_low": "degrees",
    "angle_high": "degrees",
    "clip_angle": "rotated boxes with an angle up to this many degrees are clipped to the image; negative: none",
    "plus_one": "a box from x1 to x2 is x2 - x1 + 1 wide",
}


def check_angles(attrs: Attrs) -> None:
    period = attrs["angle_high"] - attrs["angle_low"]
    require(
        not attrs["angle_bound"] or (period > 0 and period % 180 == 0),
        f"angles from {attrs['angle_low']} to {attrs['angle_high']}: the range must be a positive multiple of 180 degrees",
    )


def decoded(boxes: np.ndarray, deltas: np.ndarray, weights: Sequence[float], attrs: Attrs) -> np.ndarray:
    """boxes[n, 4 or 5] moved and scaled by deltas[n, 4 or 5], each delta divided by its weight; all float32."""
    one, half = np.float32(bool(attrs["plus_one"])), np.float32(0.5)
    scale = np.array(weights, np.float32)
    moves = deltas[:, :2] / scale[:2]
    growth = np.exp(np.minimum(deltas[:, 2:4] / scale[2:], np.float32(LARGEST_LOG)))
    if boxes.shape[1] == 4:
        sizes = boxes[:, 2:] - boxes[:, :2] + one
        centres = moves * sizes + (boxes[:, :2] + half * sizes)
        sizes = growth * sizes
        return np.concatenate([centres - half * sizes, centres + half * sizes - one], axis=1)
    angles = deltas[:, 4:] * np.float32(HALF_TURN) + boxes[:, 4:]
    if attrs["angle_bound"]:
        period = np.float32(attrs["angle_high"] - attrs["angle_low"])
        angles = np.where(
            angles < attrs["angle_low"], angles + period, np.where(angles > attrs["angle_high"], angles - period, angles)
        )
    return np.concatenate([moves * boxes[:, 2:4] + boxes[:, :2], growth * boxes[:, 2:4], angles.astype(np.float32)], axis=1)


def clipped(boxes: np.ndarray, height: np.float32, width: np.float32, attrs: Attrs) -> np.ndarray:
    """Boxes inside an image of height x width (whole numbers). Of rotated ones only those that are upright within `clip_angle`."""
    one, half = np.float32(bool(attrs["plus_one"])), np.float32(0.5)
    limit = np.array([width - one, height - one], np.float32)
    if boxes.shape[1] == 4:
        return np.maximum(np.minimum(boxes, np.tile(limit, 2)), np.float32(0))
    reach = (boxes[:, 2:4] - one) * half
    low = np.maximum(np.minimum(boxes[:, :2] - reach, limit), np.float32(0))
    high = np.maximum(np.minimum(boxes[:, :2] + reach, limit), np.float32(0))
    inside = np.concatenate([(low + high) * half, high - low + one, boxes[:, 4:]], axis=1)
    return np.where(np.abs(boxes[:, 4:]) <= np.float32(attrs["clip_angle"]), inside, boxes)


def overlaps(box: np.ndarray, others: np.ndarray, plus_one: bool) -> np.ndarray:
    """Intersection over union of an upright box with others[n, 4]; NaN where both are empty."""
    one, zero = np.float32(plus_one), np.float32(0)
    low, high = np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])
    sides = np.maximum(high - low + one, zero)
    common = sides[:, 0] * sides[:, 1]
    areas = (others[:, 2] - others[:, 0] + one) * (others[:, 3] - others[:, 1] + one)
    area = (box[2] - box[0] + one) * (box[3] - box[1] + one)
    return common / (area + areas - common)


def image_of(rows: np.ndarray, images: int) -> np.ndarray:
    """The image numbers in column 0 as indices; numbers of images that do not exist count as the nearest one that does."""
    return np.clip(np.nan_to_num(rows[:, 0]), 0, images - 1).astype(np.int64)


def check_rows(kind: TensorType, columns: Sequence[int], what: str) -> None:
    one_of(kind.dtype, F32, what)
    require(
        len(kind.shape) == 2 and kind.shape[1] in columns,
        f"{what} are {show(kind.shape)}; they must be rows of {' or '.join(map(str, columns))} columns",
    )


def _infer_transform(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 3)
    rois, deltas, info = types
    wide = 5 if attrs["rotated"] else 4
    check_rows(rois, (wide, wide + 1), "the boxes")
    one_of(deltas.dtype, F32, "the deltas")
    require(
        len(deltas.shape) == 2 and deltas.shape[0] == rois.shape[0] and deltas.shape[1] % wide == 0,
        f"the deltas are {show(deltas.shape)}; for {rois.shape[0]} boxes they must have as many rows, of a multiple of {wide} columns",
    )
    check_rows(info, (3,), "the sizes of the images")
    require(info.shape[0] >= 1, "there are no images")
    require(rois.shape[1] > wide or info.shape[0] == 1, f"boxes without an image number, but {info.shape[0]} images")
    require(len(attrs["weights"]) == 4, f"there are {len(attrs['weights'])} weights; there must be 4")
    check_angles(attrs)
    return (TensorType(deltas.shape),)


def _transform(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Boxes go back to the image's own pixels, get their deltas, are clipped, and where `rescale` go to the scaled image again."""
    rois, deltas, info = arrays
    wide = 5 if attrs["rotated"] else 4
    numbers = image_of(rois, len(info)) if rois.shape[1] > wide else np.zeros(len(rois), np.int64)
    out = np.zeros(deltas.shape, np.float32)
    for image in range(len(info)):
        chosen = np.flatnonzero(numbers == image)
        scale = info[image, 2]
        sizes = np.trunc(info[image, :2] / scale + np.float32(0.5))
        boxes = rois[chosen, rois.shape[1] - wide :].copy()
        boxes[:, :4] /= scale
        for at in range(0, deltas.shape[1], wide):
            moved = clipped(decoded(boxes, deltas[chosen, at : at + wide], attrs["weights"], attrs), sizes[0], sizes[1], attrs)
            if attrs["rescale"]:
                moved[:, :4] *= scale
            out[chosen, at : at + wide] = moved
    return (out,)


def _infer_splits(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    check_rows(types[0], (5, 6), "the boxes")
    check_count(types[1])
    require(attrs["images"] >= 1, "there are no images")
    return (TensorType((attrs["images"],)),)


def check_count(kind: TensorType, size: int = 1) -> None:
    assert kind.dtype == "int32" and kind.shape == (size,), f"{kind} is not a count of rows"


def _splits(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    rois, count = arrays
    numbers = image_of(rois[: count[0]], attrs["images"])
    return (np.bincount(numbers, minlength=attrs["images"]).astype(np.float32),)


OPS: tuple[Op, ...] = (
    Op(
        "bbox_transform",
        _infer_transform,
        _transform,
        {
            "weights": "divisors of the deltas x, y, width, height",
            "rescale": "whether the result is in pixels of the scaled image",
            "rotated": "whether boxes have an angle",
            **ANGLES,
        },
    ),
    Op("image_splits", _infer_splits, _splits, {"images": "how many images there are"}, exact=True, portable=True),
)
