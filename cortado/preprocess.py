"""How a picture becomes a network's input: one record for `run`, calibration, verify and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from cortado.errors import InputError, OptionError

if TYPE_CHECKING:
    from PIL import Image

CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}
LAYOUTS = ("NCHW", "NHWC")
FILTERS = ("nearest", "bilinear", "bicubic")
LARGEST_SIDE = 16384  # pixels; more is a mistake or an attack


@dataclass(frozen=True)
class Preprocess:
    """Resize, cut out the centre, order the channels, then `(pixel * range / 255 - mean) / std` per channel.

    resize: None, the length of the short side (the other follows), or the exact (height, width).
    crop: None, or (height, width) of the centre piece; it starts at ((h - height) // 2, (w - width) // 2).
    channels: "RGB", "BGR" or "GRAY" (0.299 R + 0.587 G + 0.114 B, rounded to a whole number).
    range: what a full (255) pixel is before mean and std: 255 keeps the pixels' own numbers, 1 is PyTorch's habit.
    mean, std: one number for all channels, or one per channel in the order of `channels`.
    layout: "NCHW" or "NHWC". filter: of the resize: "nearest", "bilinear" or "bicubic" (Pillow's).
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    channels: str = "RGB"
    range: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        one_of("channels", self.channels, tuple(CHANNELS))
        one_of("layout", self.layout, LAYOUTS)
        one_of("filter", self.filter, FILTERS)
        sides = (*((self.resize,) if isinstance(self.resize, int) else self.resize or ()), *(self.crop or ()))
        if any(side < 1 or side > LARGEST_SIDE for side in sides):
            raise OptionError(f"a picture of {' x '.join(map(str, sides))} pixels: sides must be between 1 and {LARGEST_SIDE}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channel_count):
                raise OptionError(f"{name} has {len(values)} numbers; {self.channels} needs 1 or {self.channel_count}")
            if not np.isfinite(values).all():
                raise OptionError(f"{name} {values} is not finite")
        if 0.0 in self.std:
            raise OptionError("std must not be 0: it divides")
        if not 0 < self.range < np.inf:
            raise OptionError(f"range {self.range} must be positive and finite")

    @property
    def channel_count(self) -> int:
        return CHANNELS[self.channels]

    def __call__(self, picture: str | PathLike[str] | Image.Image | np.ndarray) -> np.ndarray:
        """A file, a Pillow image or a uint8 array [H,W] or [H,W,3] (RGB) -> float32 [1,C,H,W] or [1,H,W,C].

        Raises InputError where it is no picture, or smaller than the crop.
        """
        pixels = np.asarray(self.prepared(open_picture(picture)), np.float32)
        pixels = pixels.reshape(*pixels.shape[:2], self.channel_count)
        if self.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        if self.range != 255.0:
            pixels = pixels * np.float32(self.range / 255.0)
        values = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        values = values.transpose(2, 0, 1) if self.layout == "NCHW" else values
        return np.ascontiguousarray(values[None], np.float32)

    def prepared(self, image: Image.Image) -> Image.Image:
        """The image resized and cropped, in mode L or RGB."""
        from PIL import Image

        image = image.convert("L" if self.channels == "GRAY" else "RGB")
        if self.resize is not None:
            height, width = self.resize if isinstance(self.resize, tuple) else short_side(image.height, image.width, self.resize)
            if (image.height, image.width) != (height, width):
                image = image.resize((width, height), Image.Resampling[self.filter.upper()])
        if self.crop is not None:
            height, width = self.crop
            if height > image.height or width > image.width:
                size = f"{image.height}x{image.width}"
                raise InputError(f"cannot cut {height}x{width} out of a picture of {size}: resize it larger first")
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))
        return image

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Preprocess:
        """From plain data: any of the fields, and `scale` (a factor) in place of `std`; numbers, lists or text for tuples.

        None means not given. Raises OptionError.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(record) - known - {"scale"})
        if unknown:
            raise OptionError(f"preprocess: unknown {', '.join(unknown)}; it has {', '.join(sorted(known | {'scale'}))}")
        given = {key: value for key, value in record.items() if value is not None}
        if "scale" in given:
            if "std" in given:
                raise OptionError("preprocess: give scale (a factor) or std (a divisor), not both")
            given["std"] = inverse(numbers("scale", given.pop("scale")))
        for name in ("mean", "std"):
            if name in given:
                given[name] = numbers(name, given[name])
        if "resize" in given:
            sides = sizes("resize", given["resize"])
            given["resize"] = sides[0] if len(sides) == 1 else sides
        if "crop" in given:
            sides = sizes("crop", given["crop"])
            given["crop"] = sides if len(sides) == 2 else (sides[0], sides[0])
        if "range" in given:
            given["range"] = numbers("range", given["range"])[0]
        for name in ("channels", "layout", "filter"):
            if name in given:
                text = str(given[name])
                given[name] = text.lower() if name == "filter" else text.upper()
        return cls(**given)

    @classmethod
    def for_input(cls, name: str, shape: tuple[int, ...], layout: str, record: Mapping[str, Any]) -> Preprocess:
        """As `from_dict`, with what the record leaves open taken from the input it is for: layout, number of channels, size.

        layout: the input's, or "" where its file does not say. Raises InputError where no picture has the input's shape.
        """
        layout = str(record.get("layout") or layout or guessed_layout(shape)).upper()
        if layout not in LAYOUTS or len(shape) != 4:
            raise InputError(f"input {name} has shape {list(shape)}, not that of a picture: give an .npy file")
        height, width, channels = (shape[layout.index(axis)] for axis in "HWC")
        given = {"channels": "GRAY" if channels == 1 else "RGB", **record, "layout": layout}
        if given.get("resize") is None and given.get("crop") is None:
            given["resize"] = (height, width)
        return cls.from_dict(given)


def guessed_layout(shape: tuple[int, ...]) -> str:
    """Of a picture's shape, where its file does not say."""
    return "NHWC" if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} {value!r} is not one of {', '.join(choices)}")


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the short side as given and the ratio kept, rounded to nearest."""
    if height <= width:
        return side, max(side, round(width * side / height))
    return max(side, round(height * side / width)), side


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """A number, a sequence of numbers, or text such as "104,117,123" or "1/255"."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    try:
        return tuple(fraction(part) if isinstance(part, str) else float(part) for part in parts)
    except (TypeError, ValueError, ZeroDivisionError):
        raise OptionError(f"{name} {value!r}: expected a number or numbers such as 104,117,123") from None


def fraction(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(above)


def inverse(values: tuple[float, ...]) -> tuple[float, ...]:
    if 0.0 in values:
        raise OptionError("scale must not be 0")
    return tuple(1.0 / value for value in values)


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """256, [256, 320], "256" or "256x320" (height x width) -> one or two ints."""
    parts = value.lower().split("x") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        found = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        found = ()
    if len(found) not in (1, 2):
        raise OptionError(f"{name} {value!r}: expected a length such as 256, or height x width such as 256x320")
    return found


def open_picture(picture: str | PathLike[str] | Image.Image | np.ndarray) -> Image.Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
            raise InputError(f"a picture array must be uint8 [H,W] or [H,W,3]; this is {picture.dtype} {list(picture.shape)}")
        return Image.fromarray(picture)
    try:
        image = Image.open(picture)
        image.load()
    except FileNotFoundError:
        raise InputError(f"{picture}: no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{picture}: not a picture that can be read: {error}") from None
    # Cameras store the sensor's orientation and a tag; networks expect what a viewer shows.
    return ImageOps.exif_transpose(image)
