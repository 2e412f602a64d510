"""The geometry of convolutions and the choice of tiles: pure functions, compared with what they mean."""

from __future__ import annotations

import numpy as np
import pytest

from cortado.backends.targets import find_target
from cortado.compiler.kernels.geometry import Axis, balanced, conv_geometry, segments
from cortado.compiler.kernels.packing import pack_panels
from cortado.compiler.kernels.tiling import Panels, choose_panels, choose_unroll, core_of
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.types import TensorType


def axis_of(size: int, taps: int, step: int, dilation: int, begin: int, end: int) -> Axis | None:
    room = size + begin + end - dilation * (taps - 1) - 1
    return Axis(size, room // step + 1, taps, step, dilation, begin, 8, 8, 8, 1) if room >= 0 else None


def axes() -> list[Axis]:
    rng = np.random.default_rng(0)
    found = [axis_of(*(int(v) for v in (*rng.integers(1, (20, 6, 4, 4)), *rng.integers(-1, 6, 2)))) for _ in range(400)]
    return [axis for axis in found if axis is not None]


def seen(axis: Axis, x: int) -> list[int]:
    return [t for t in range(axis.taps) if 0 <= x * axis.step + t * axis.dilation - axis.pad < axis.size]


def test_taps_inside_the_input() -> None:
    for axis in axes():
        for x in range(axis.outputs):
            assert list(range(*axis.inside(x))) == seen(axis, x), (axis, x)
        assert axis.bordered == any(len(seen(axis, x)) < axis.taps for x in range(axis.outputs))


def test_balanced_parts_differ_by_at_most_one() -> None:
    for length in range(1, 60):
        for most in range(1, 9):
            parts = balanced(length, most)
            assert sum(parts) == length and len(parts) == -(-length // most)
            assert max(parts) - min(parts) <= 1 and parts == sorted(parts, reverse=True)


def test_segments_cover_every_pixel_and_tap_once() -> None:
    for axis in axes():
        for most in (1, 3, 8):
            done: dict[int, list[int]] = {}
            for segment in segments(axis, most):
                for tile in range(segment.count):
                    start = segment.start + tile * segment.pixels
                    for r in range(segment.pixels):
                        assert start + r not in done
                        taps, at = [], segment.first_tap
                        for first, stop, count in segment.groups:
                            taps += list(range(at, at + count)) if first <= r < stop else []
                            at += count
                        done[start + r] = taps
            assert done == {x: seen(axis, x) for x in range(axis.outputs)}, axis


def operand(*shape: int, strides: tuple[int, ...] | None = None) -> Operand:
    return Operand(TensorType(shape), strides or contiguous_strides(shape))


def pointwise(rank: int, group: int = 1) -> dict[str, object]:
    ones, zeros = (1,) * rank, (0,) * rank
    return {"strides": ones, "dilations": ones, "pads_begin": zeros, "pads_end": zeros, "group": group}


def test_pixels_of_pointwise_convolutions_are_one_row() -> None:
    whole = conv_geometry(operand(2, 5, 7, 8), operand(2, 5, 7, 4), None, (1, 1), 8, pointwise(2))
    assert (whole.width.outputs, whole.rows, whole.width.in_stride, whole.width.out_stride) == (70, 1, 8, 4)
    view = operand(2, 5, 7, 4, strides=(5 * 7 * 9, 7 * 9, 9, 1))
    assert conv_geometry(operand(2, 5, 7, 8), view, None, (1, 1), 8, pointwise(2)).width.outputs == 70
    apart = operand(2, 5, 7, 4, strides=(5 * 80, 80, 9, 1))
    assert conv_geometry(operand(2, 5, 7, 8), apart, None, (1, 1), 8, pointwise(2)).width.outputs == 7


def test_kernels_that_cover_the_input_are_dot_products() -> None:
    geometry = conv_geometry(operand(6, 5, 7, 8), operand(6, 1, 1, 4), None, (5, 7), 8, pointwise(2))
    assert (geometry.channels, geometry.width.outputs, geometry.loops) == (5 * 7 * 8, 6, 0)


def test_tiles_run_along_the_axis_that_has_pixels() -> None:
    geometry = conv_geometry(operand(1, 9, 3, 8), operand(1, 5, 1, 4), None, (5, 3), 8, pointwise(2, group=2))
    assert geometry.width.outputs == 5 and geometry.height.taps == 3


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3", "x86-64-v4", "cortex-a53", "cortex-m4", "cortex-m0", "cortex-m55"])
def test_register_blocks_fit_and_cover_the_channels(name: str) -> None:
    core = core_of(find_target(name), "f32")
    for outputs in (*range(1, 70), 1000, 1001):
        for pixels in (1, 2, 7, 13, 3025):
            panels = choose_panels(core, outputs, pixels, 64)
            assert panels.outputs == outputs and 1 <= panels.tail <= core.lanes
            for rows, vectors, count in (
                (panels.rows, panels.vectors, panels.bodies),
                (panels.last_rows, panels.last, panels.last),
            ):
                assert not count or (1 <= rows <= pixels and core.fits(rows, vectors, core.splits(rows, vectors)))


def test_wide_layers_use_large_tiles() -> None:
    """Enough independent sums to hide the latency of the multiply-add, fewer loads than multiply-adds."""
    for name in ("x86-64-v3", "x86-64-v4", "cortex-a72"):
        core = core_of(find_target(name), "f32")
        for pixels in (7, 13, 56, 3025):
            panels = choose_panels(core, 256, pixels, 256)
            assert panels.rows * panels.vectors >= 8 and panels.vectors > 1


def test_unrolled_steps_divide_the_runs() -> None:
    for name in ("x86-64-v3", "cortex-a53", "cortex-m4"):
        core = core_of(find_target(name), "f32")
        for runs in ([3], [9, 27], [64, 128], [7], [5, 10], [1], [37], [2]):
            steps, exact = choose_unroll(core, 12, 1, runs)
            assert steps >= 1 and exact == all(run % steps == 0 for run in runs)


def test_packed_panels() -> None:
    """[panel][bias, terms][lanes]: five outputs in panels of two vectors of two lanes, the last one half empty."""
    weights = np.arange(15, dtype=np.float32).reshape(1, 5, 3)
    bias = np.arange(100, 105, dtype=np.float32).reshape(1, 5)
    packed = pack_panels(weights, bias, Panels(lanes=2, vectors=2, bodies=1, last=1, tail=1, rows=1, last_rows=1))
    first = [[100, 101, 102, 103], [0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    last = [[104, 0], [12, 0], [13, 0], [14, 0]]
    assert packed.tolist() == [float(v) for row in first + last for v in row]
