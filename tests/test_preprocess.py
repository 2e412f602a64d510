"""Pictures to arrays: the arithmetic, the geometry, the option forms and the messages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cortado.errors import InputError, OptionError
from cortado.preprocess import Preprocess


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_nothing_asked_for_keeps_the_pixels() -> None:
    pixels = picture(5, 7)
    got = Preprocess()(pixels)
    assert got.dtype == np.float32 and got.shape == (1, 3, 5, 7) and got.flags.c_contiguous
    np.testing.assert_array_equal(got[0], pixels.transpose(2, 0, 1))


def test_caffe_style_bgr_minus_mean() -> None:
    pixels = picture(6, 9)
    got = Preprocess(channels="BGR", mean=(104.0, 117.0, 123.0), crop=(4, 4))(pixels)
    want = pixels[1:5, 2:6, ::-1].astype(np.float32) - np.float32([104, 117, 123])
    np.testing.assert_array_equal(got, want.transpose(2, 0, 1)[None])


def test_pytorch_style_unit_range_mean_std_channels_last() -> None:
    pixels = picture(4, 4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = Preprocess(range=1.0, mean=mean, std=std, layout="NHWC")(pixels)
    assert got.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(got[0], (pixels / 255.0 - mean) / std, rtol=1e-5, atol=1e-6)


def test_gray_has_one_channel_and_the_usual_weights() -> None:
    pixels = picture(3, 3)
    got = Preprocess(channels="GRAY")(pixels)
    assert got.shape == (1, 1, 3, 3)
    np.testing.assert_allclose(got[0, 0], pixels @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize(
    ("height", "width", "want"),
    [(40, 60, (20, 30)), (60, 40, (30, 20)), (40, 41, (20, 20)), (10, 10, (20, 20)), (2, 300, (20, 3000))],
)
def test_resize_of_the_short_side_keeps_the_ratio(height: int, width: int, want: tuple[int, int]) -> None:
    assert Preprocess(resize=20)(picture(height, width)).shape[2:] == want


def test_resize_is_pillows() -> None:
    pixels = picture(20, 30)
    want = np.asarray(Image.fromarray(pixels).resize((8, 6), Image.Resampling.BICUBIC), np.float32)
    got = Preprocess(resize=(6, 8), filter="bicubic", layout="NHWC")(pixels)
    np.testing.assert_array_equal(got[0], want)


def test_an_input_fills_only_what_is_not_said() -> None:
    assert Preprocess.for_input("x", (1, 3, 6, 8), "NCHW", {}) == Preprocess(resize=(6, 8))
    assert Preprocess.for_input("x", (1, 6, 8, 1), "", {"mean": 3}) == Preprocess(
        (6, 8), None, "GRAY", mean=(3.0,), layout="NHWC"
    )
    assert Preprocess.for_input("x", (1, 3, 6, 8), "", {"crop": 3}).resize is None
    assert Preprocess.for_input("x", (1, 3, 6, 8), "", {"resize": 9, "channels": "BGR"}) == Preprocess(9, channels="BGR")
    for shape in ((1, 10), (1, 3, 4, 4, 4)):
        with pytest.raises(InputError, match="not that of a picture"):
            Preprocess.for_input("x", shape, "", {})


def test_files_gray_and_transparent_pictures_and_camera_orientation(tmp_path: Path) -> None:
    gray = picture(5, 6)[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(Preprocess()(tmp_path / "gray.png")[0], np.stack([gray] * 3))
    Image.fromarray(np.dstack([picture(5, 6), gray])).save(tmp_path / "alpha.png")
    assert Preprocess()(str(tmp_path / "alpha.png")).shape == (1, 3, 5, 6)
    turned = Image.fromarray(picture(5, 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert Preprocess()(tmp_path / "turned.png").shape == (1, 3, 6, 5)


@pytest.mark.parametrize(
    "record",
    [
        {"resize": 256, "crop": 227, "channels": "bgr", "mean": "104,117,123", "scale": "1/2"},
        {"resize": "256", "crop": "227x227", "channels": "BGR", "mean": [104, 117, 123], "std": 2},
        {"resize": 256, "crop": [227, 227], "channels": "BGR", "mean": (104, 117, 123), "std": "2", "layout": None},
    ],
)
def test_spellings_of_one_record(record: dict[str, Any]) -> None:
    want = Preprocess(256, (227, 227), "BGR", mean=(104.0, 117.0, 123.0), std=(2.0,))
    got = Preprocess.from_dict(record)
    assert got == want
    assert Preprocess.from_dict(got.to_dict()) == want


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"resize": "12x"}, "256x320"),
        ({"resize": "1x2x3"}, "resize"),
        ({"resize": 0}, "between 1 and"),
        ({"crop": 10**9}, "between 1 and"),
        ({"channels": "YUV"}, "RGB, BGR, GRAY"),
        ({"layout": "HWC"}, "NCHW, NHWC"),
        ({"filter": "lanczos9"}, "bicubic"),
        ({"mean": "1,2"}, "needs 1 or 3"),
        ({"mean": "a"}, "104,117,123"),
        ({"mean": "nan"}, "not finite"),
        ({"mean": "1/0"}, "expected a number"),
        ({"std": 0}, "must not be 0"),
        ({"scale": 0}, "must not be 0"),
        ({"scale": 2, "std": 2}, "not both"),
        ({"range": -1}, "positive"),
        ({"men": 1}, "unknown men"),
    ],
)
def test_impossible_records_say_why(record: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Preprocess.from_dict(record)


def test_unreadable_pictures_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.png: no such file"):
        Preprocess()(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match=r"text\.png: not a picture"):
        Preprocess()(tmp_path / "text.png")
    whole = io.BytesIO()
    Image.fromarray(picture(50, 50)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:200])
    with pytest.raises(InputError, match=r"cut\.png: not a picture"):
        Preprocess()(tmp_path / "cut.png")


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="cannot cut 9x9 out of a picture of 5x7"):
        Preprocess(crop=(9, 9))(picture(5, 7))


def test_arrays_that_are_not_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="uint8"):
        Preprocess()(np.zeros((4, 4), np.float32))


@pytest.mark.parametrize(
    ("golden", "record"),
    [
        ("squeezenet_v1_0_caffe2", {"resize": 256, "crop": 227, "channels": "BGR", "mean": "104,117,123"}),
        ("mobilenet_v2_1_0_224_caffe2", {"resize": 256, "crop": 224, "mean": 127, "scale": 0.007843137718737125}),
    ],
)
def test_recorded_inputs_of_real_networks(golden: str, record: dict[str, Any], shared: Path) -> None:
    with np.load(shared / "goldens" / f"{golden}.npz") as data:
        inputs, sources = data["data"], json.loads(str(data["sources"]))
    prepare = Preprocess.from_dict(record)
    for source, want in zip(sources, inputs, strict=True):
        np.testing.assert_allclose(prepare(shared / source)[0], want, rtol=2e-7)
