"""Small gray pictures in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHADES = " ░▒▓█"
ASCII_SHADES = " .+%@"


def draw(images: Sequence[np.ndarray], captions: Sequence[str], white: int, shades: str) -> str:
    """Images [H,W] of 0..white side by side, each pixel two characters wide, every one over its caption."""
    lines = []
    for row in zip(*images, strict=True):
        lines.append("".join("".join(2 * shades[shade(int(pixel), white, len(shades))] for pixel in line) for line in row))
    width = 2 * len(images[0][0])
    lines.append("".join(caption.center(width) for caption in captions))
    return "\n".join(line.rstrip() for line in lines)


def shade(pixel: int, white: int, count: int) -> int:
    return min(count - 1, pixel * count // (white + 1))
