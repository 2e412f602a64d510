"""Sums whose order is fixed here, so that their bits are the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def tree_sum(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Sum over axes, halving: the upper half is added to the lower until one remains. Gives 0 over no elements."""
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = tuple(x.shape[a] for a in kept)
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64)) if axes else 1
    rows = x.transpose(*axes, *kept).reshape(count, *shape)
    if count == 0:
        return np.zeros(shape, x.dtype)
    while count > 1:
        half = count // 2
        summed = rows[:half] + rows[half : 2 * half]
        rows = np.concatenate([summed, rows[2 * half :]]) if count % 2 else summed
        count = half + count % 2
    return rows[0]
