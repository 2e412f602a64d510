"""Regions of interest: features of a box, resampled to a fixed size; keypoints of a box from heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.boxes import F32, check_rows, image_of
from cortado.compiler.ops.checks import arity, one_of, show
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
LARGEST_GRID = 1 << 12  # samples per cell and axis: no sensible box needs more
LARGEST_POOLED = 1 << 12
LARGEST_STEP = 1.5  # of a keypoint, in cells, away from the largest one
SINGULAR = 1e-4  # determinants below this count as zero


def _check_pooled(x: TensorType, attrs: Attrs) -> None:
    one_of(x.dtype, F32, "the features")
    require(len(x.shape) == 4 and min(x.shape[:3]) >= 1, f"the features are {show(x.shape)}, channels last; no axis may be empty")
    for axis in (attrs["pooled_h"], attrs["pooled_w"]):
        require(1 <= axis <= LARGEST_POOLED, f"a result of {attrs['pooled_h']} x {attrs['pooled_w']} is impossible")


def _infer_align(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, rois = types
    _check_pooled(x, attrs)
    wide = 5 if attrs["rotated"] else 4
    check_rows(rois, (wide, wide + 1), "the boxes")
    require(
        0 <= attrs["sampling"] <= LARGEST_GRID,
        f"a sampling ratio of {attrs['sampling']} is impossible; it must be 0 (as many as the box has pixels) to {LARGEST_GRID}",
    )
    return (TensorType((rois.shape[0], attrs["pooled_h"], attrs["pooled_w"], x.shape[3])),)


def _align(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Mean of bilinear samples on a regular grid in every cell: He et al., "Mask R-CNN". Samples beyond the edge count as zero."""
    x, rois = arrays
    wide = 5 if attrs["rotated"] else 4
    numbers = image_of(rois, x.shape[0]) if rois.shape[1] > wide else np.zeros(len(rois), np.int64)
    out = np.zeros((len(rois), attrs["pooled_h"], attrs["pooled_w"], x.shape[3]), np.float32)
    for number, box in enumerate(rois[:, rois.shape[1] - wide :]):
        out[number] = (_rotated if attrs["rotated"] else _upright)(x[numbers[number]], box, attrs)
    return (out,)


def grid(start: np.float32, size: np.float32, pooled: int, attrs: Attrs) -> np.ndarray:
    """Sample positions [pooled, samples] along one axis."""
    cell = np.float32(size / np.float32(pooled))
    wanted = attrs["sampling"] or int(np.clip(np.nan_to_num(np.ceil(cell)), 0, LARGEST_GRID))
    steps = np.arange(wanted, dtype=np.float32) + np.float32(0.5)
    return start + np.arange(pooled, dtype=np.float32)[:, None] * cell + steps * cell / np.float32(max(wanted, 1))


def _upright(x: np.ndarray, box: np.ndarray, attrs: Attrs) -> np.ndarray:
    corners = box * np.float32(attrs["scale"]) - np.float32(0.5 if attrs["aligned"] else 0)
    size = corners[2:] - corners[:2]
    if not attrs["aligned"]:
        size = np.maximum(size, np.float32(1))
    ys = grid(corners[1], size[1], attrs["pooled_h"], attrs)[:, None, :, None]
    xs = grid(corners[0], size[0], attrs["pooled_w"], attrs)[None, :, None, :]
    return _mean(_bilinear(x, *np.broadcast_arrays(ys, xs)))


def _rotated(x: np.ndarray, box: np.ndarray, attrs: Attrs) -> np.ndarray:
    """box: centre, width, height, angle; the grid is turned around the centre."""
    scaled = box * np.float32(attrs["scale"])
    centre = scaled[:2] - np.float32(0.5 if attrs["aligned"] else 0)
    size = scaled[2:4] if attrs["aligned"] else np.maximum(scaled[2:4], np.float32(1))
    half, theta = np.float32(0.5), np.float32(box[4] * np.float32(np.pi / 180))
    sine, cosine = np.sin(theta), np.cos(theta)
    ys = grid(-size[1] * half, size[1], attrs["pooled_h"], attrs)[:, None, :, None]
    xs = grid(-size[0] * half, size[0], attrs["pooled_w"], attrs)[None, :, None, :]
    return _mean(_bilinear(x, ys * cosine - xs * sine + centre[1], xs * cosine + ys * sine + centre[0]))


def _mean(samples: np.ndarray) -> np.ndarray:
    """samples[ph, pw, sy, sx, C]; 0 where there are none."""
    count = samples.shape[2] * samples.shape[3]
    return samples.sum(axis=(2, 3), dtype=np.float32) / np.float32(max(count, 1))


def _bilinear(x: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """x[H, W, C] at positions; zero further than one cell outside."""
    height, width, _ = x.shape
    good = (ys >= -1) & (ys <= height) & (xs >= -1) & (xs <= width)
    (y0, y1, fy), (x0, x1, fx) = (neighbours(np.where(good, v, 0), n) for v, n in ((ys, height), (xs, width)))
    gy, gx = np.float32(1) - fy, np.float32(1) - fx
    corners = ((y0, x0, gy * gx), (y0, x1, gy * fx), (y1, x0, fy * gx), (y1, x1, fy * fx))
    total = np.zeros((*ys.shape, x.shape[2]), np.float32)
    for y, column, weight in corners:
        total += weight[..., None] * x[y, column]
    return total * good[..., None].astype(np.float32)


def neighbours(at: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at = np.maximum(at, np.float32(0)).astype(np.float32)
    low = np.minimum(np.floor(at), np.float32(size - 1))
    fraction = np.where(low >= size - 1, np.float32(0), at - low).astype(np.float32)
    first = low.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), fraction


def _infer_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    x, rois = types
    _check_pooled(x, attrs)
    check_rows(rois, (5,), "the boxes")
    shape = (rois.shape[0], attrs["pooled_h"], attrs["pooled_w"], x.shape[3])
    return TensorType(shape), TensorType(shape, "int32")


def _pool(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Largest value of every cell of the box, rounded to whole pixels, and where it is (row times width plus column; -1 in empty cells)."""
    x, rois = arrays
    _, height, width, channels = x.shape
    cells = attrs["pooled_h"], attrs["pooled_w"]
    out, place = np.zeros((len(rois), *cells, channels), np.float32), np.full((len(rois), *cells, channels), -1, np.int32)
    numbers = image_of(rois, x.shape[0])
    for number, box in enumerate(rois[:, 1:]):
        scaled = box * np.float32(attrs["scale"])
        corners = np.clip(np.nan_to_num(np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)), -(2**20), 2**20)
        rows = _cells(int(corners[1]), int(corners[3]), cells[0], height)
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(_cells(int(corners[0]), int(corners[2]), cells[1], width)):
                window = x[numbers[number], top:bottom, left:right]
                if window.size:
                    flat = window.reshape(-1, channels)
                    best = flat.argmax(axis=0)
                    out[number, i, j] = flat.max(axis=0)
                    place[number, i, j] = (top + best // (right - left)) * width + left + best % (right - left)
    return out, place


def _cells(first: int, last: int, pooled: int, size: int) -> list[tuple[int, int]]:
    cell = np.float32(np.float32(max(last - first + 1, 1)) / np.float32(pooled))
    edges = [(int(np.floor(np.float32(i) * cell)), int(np.ceil(np.float32(i + 1) * cell))) for i in range(pooled)]
    return [(min(max(low + first, 0), size), min(max(high + first, 0), size)) for low, high in edges]


def _infer_keypoint(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    maps, boxes = types
    one_of(maps.dtype, F32, "the heat maps")
    one_of(boxes.dtype, F32, "the boxes")
    require(
        len(maps.shape) == 4 and maps.shape[2] == maps.shape[3] and maps.shape[2] >= 2,
        f"the heat maps are {show(maps.shape)}; they must be [boxes,keypoints,size,size] with a size of at least 2",
    )
    require(
        len(boxes.shape) == 2 and boxes.shape[0] == maps.shape[0] and boxes.shape[1] >= 4,
        f"the boxes are {show(boxes.shape)}; for {maps.shape[0]} heat maps they must be as many rows of at least 4 columns",
    )
    return (TensorType((maps.shape[0], 4, maps.shape[1])),)


def _keypoint(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """x, y, score and probability: the top of the paraboloid through the largest cell and its neighbours, mirrored at the edge."""
    maps, boxes = arrays
    count, points, size, _ = maps.shape
    out = np.zeros((count, 4, points), np.float32)
    for n in range(count):
        length = np.maximum(boxes[n, 2:4] - boxes[n, :2], np.float32(1))
        for k in range(points):
            heat = maps[n, k]
            row, column = divmod(int(heat.argmax()), size)
            near = heat[np.ix_(_mirrored(row, size), _mirrored(column, size))]
            dx, dy, score = _summit(near)
            out[n, 0, k] = boxes[n, 0] + (np.float32(0.5 + column) + dx) * length[0] / np.float32(size)
            out[n, 1, k] = boxes[n, 1] + (np.float32(0.5 + row) + dy) * length[1] / np.float32(size)
            out[n, 2, k] = score
            if attrs["probability"]:
                out[n, 3, k] = np.float32(1) / np.exp(heat - heat[row, column]).sum(dtype=np.float32)
    return (out,)


def _mirrored(at: int, size: int) -> list[int]:
    return [at - 1 if at > 0 else at + 1, at, at + 1 if at + 1 < size else at - 1]


def _summit(f: np.ndarray) -> tuple[np.float32, np.float32, np.float32]:
    """Offset and value of the extremum of the quadratic through f[3, 3]; the centre where it has none."""
    two, four, half = np.float32(2), np.float32(4), np.float32(0.5)
    gx, gy = (f[1, 2] - f[1, 0]) / two, (f[2, 1] - f[0, 1]) / two
    xx, yy = f[1, 0] - two * f[1, 1] + f[1, 2], f[0, 1] - two * f[1, 1] + f[2, 1]
    xy = (f[2, 2] - f[2, 0] - f[0, 2] + f[0, 0]) / four
    det = xx * yy - xy * xy
    if np.abs(det) < np.float32(SINGULAR):
        return np.float32(0), np.float32(0), f[1, 1]
    dx, dy = (xy * gy - yy * gx) / det, (xy * gx - xx * gy) / det
    far = max(np.abs(dx), np.abs(dy))
    if far > LARGEST_STEP:
        dx, dy = dx / far * np.float32(LARGEST_STEP), dy / far * np.float32(LARGEST_STEP)
    score = f[1, 1] + (gx * dx + gy * dy) + half * (xx * dx * dx + two * xy * dx * dy + yy * dy * dy)
    return dx, dy, score


_POOLED = {"scale": "pixels of the features per pixel of the boxes", "pooled_h": "rows of the result", "pooled_w": "columns"}

OPS: tuple[Op, ...] = (
    Op(
        "roi_align",
        _infer_align,
        _align,
        {
            **_POOLED,
            "sampling": "samples per cell and axis; 0: as many as the cell has pixels",
            "aligned": "pixel centres are at halves and boxes may be small; else boxes are at least one pixel wide",
            "rotated": "whether boxes have an angle",
        },
    ),
    Op("roi_pool", _infer_pool, _pool, _POOLED, exact=True, portable=True),
    Op("heatmap_keypoint", _infer_keypoint, _keypoint, {"probability": "whether the fourth number is the softmax, else 0"}),
)
