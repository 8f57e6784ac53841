"""Preprocessing: its text round-trips, and its tensors are what Pillow and numpy give by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from effc.core.errors import ConfigError
from effc.core.preprocess import PRESETS, Preprocess

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def png(pixels: np.ndarray, mode: str | None = None) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "PNG")
    stream.seek(0)
    return stream


numbers = st.floats(0.01, 300, allow_nan=False)
descriptions = st.builds(
    Preprocess,
    mean=st.one_of(st.tuples(numbers), st.tuples(numbers, numbers, numbers)),
    std=st.one_of(st.tuples(numbers), st.tuples(numbers, numbers, numbers)),
    scale=st.sampled_from([1.0, 255.0, 127.5]),
    resize=st.sampled_from(["squash", "crop"]),
    fraction=st.sampled_from([0.875, 1.0, 0.9]),
    layout=st.sampled_from(["", "NCHW", "NHWC"]),
    color=st.sampled_from(["RGB", "BGR", "GRAY"]),
)


@given(st.one_of(descriptions, st.sampled_from(list(PRESETS.values()))))
def test_text_and_description_round_trip(p: Preprocess) -> None:
    assert Preprocess.parse(str(p)) == p
    assert Preprocess.from_description(p.describe()) == p


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_names_round_trip_in_both_orders(name: str, color: str) -> None:
    p = Preprocess.parse(f"{name},color={color},resize=crop")
    assert Preprocess.parse(str(p)) == p
    assert str(p).startswith(name)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("inception", lambda x: x / 127.5 - 1),
        ("unit", lambda x: x / 255),
        ("raw", lambda x: x),
        ("imagenet", lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("mean=0.485,0.456,0.406,std=0.229,0.224,0.225",
         lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("mean=[103.5,116.3,123.7],std=[57.4,57.1,58.4]",
         lambda x: (x - [103.5, 116.3, 123.7]) / [57.4, 57.1, 58.4]),
        ("mean=127,std=128", lambda x: (x - 127) / 128),
        ("mean=0.5,std=0.5", lambda x: (x / 255 - 0.5) / 0.5),
    ],
)  # fmt: skip
def test_values(text: str, function: object) -> None:
    got = Preprocess.parse(text).picture(png(PIXELS), (1, 3, 40, 60), "float32", "p")
    wanted = function(PIXELS.astype(np.float64)).transpose(2, 0, 1)[None]  # type: ignore[operator]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)


def test_bgr_puts_a_names_numbers_in_order() -> None:
    rgb = Preprocess.parse("imagenet").picture(png(PIXELS), (1, 3, 40, 60), "float32", "p")
    bgr = Preprocess.parse("imagenet,color=BGR").picture(
        png(PIXELS), (1, 3, 40, 60), "float32", "p"
    )
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])


def test_squash_is_pillows_bilinear_and_nhwc() -> None:
    got = Preprocess.parse("raw").picture(png(PIXELS), (1, 20, 24, 3), "float32", "p")
    resized = Image.fromarray(PIXELS).resize((24, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got[0], np.asarray(resized).astype(np.float32))


def test_crop_keeps_the_aspect_and_takes_the_centre() -> None:
    p = Preprocess.parse("raw,resize=crop,fraction=1")
    got = p.picture(png(PIXELS), (1, 3, 20, 20), "float32", "p")
    resized = np.asarray(Image.fromarray(PIXELS).resize((30, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got[0], resized[:, 5:25].transpose(2, 0, 1))


def test_crop_by_the_imagenet_convention() -> None:
    p = Preprocess.parse("raw,resize=crop")
    got = p.picture(png(PIXELS), (1, 3, 28, 28), "float32", "p")
    resized = np.asarray(Image.fromarray(PIXELS).resize((48, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got[0], resized[2:30, 10:38].transpose(2, 0, 1))


def test_integer_inputs_are_rounded_and_clipped() -> None:
    got = Preprocess.parse("mean=127.6,std=0.5").picture(png(PIXELS), (1, 3, 40, 60), "int8", "p")
    wanted = ((PIXELS.astype(np.float32) - np.float32(127.6)) / 0.5).round().clip(-128, 127)
    np.testing.assert_array_equal(got[0], wanted.transpose(2, 0, 1).astype(np.int8))


def test_gray_alpha_and_16_bit_pictures() -> None:
    gray = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    raw = Preprocess.parse("raw")
    np.testing.assert_array_equal(raw.picture(png(gray), (1, 1, 8, 8), "float32", "p")[0, 0], gray)
    np.testing.assert_array_equal(raw.picture(png(gray), (1, 3, 8, 8), "float32", "p")[0, 2], gray)
    rgba = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    got = raw.picture(png(rgba), (1, 8, 8, 3), "float32", "p")
    np.testing.assert_array_equal(got[0], rgba[:, :, :3])
    deep = gray.astype(np.uint16) * 257
    np.testing.assert_array_equal(raw.picture(png(deep), (1, 1, 8, 8), "float32", "p")[0, 0], gray)


def test_exif_turns_the_picture_upright() -> None:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    Image.fromarray(PIXELS).save(stream, "PNG", exif=exif)
    stream.seek(0)
    got = Preprocess.parse("raw").picture(stream, (1, 60, 40, 3), "float32", "p")
    np.testing.assert_array_equal(got[0], np.rot90(PIXELS, -1))


def test_pixels_equal_the_picture() -> None:
    p = Preprocess.parse("imagenet,resize=crop")
    for shape in ((1, 3, 40, 60), (1, 3, 16, 16)):
        wanted = p.picture(png(PIXELS), shape, "float32", "p")
        np.testing.assert_array_equal(p.pixels(PIXELS, shape, "float32"), wanted)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("imagnet", "unknown preprocessing"),
        ("resize=crop", "nothing about the values"),
        ("mean=0,std=1", "0..1 or 0..255"),
        ("unit,resize=stretch", "resize='stretch'"),
        ("unit,colour=RGB", "no option 'colour'"),
        ("mean=a,std=1", "no number"),
        ("mean=1,2,std=0", "can't be 0"),
        ("mean=nan,std=1", "finite"),
        ("unit,fraction=0", "fraction"),
        ("unit,scale=1,2", "one value"),
        ("unit,mean=1,mean=2", "twice"),
    ],
)
def test_refusals(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Preprocess.parse(text)


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ((1, 10), "takes no picture"),
        ((2, 3, 8, 8), "2 pictures"),
        ((1, 5, 8, 8), "takes no picture"),
    ],
)
def test_inputs_that_take_no_picture(shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Preprocess.parse("unit").geometry(shape)


def test_broken_pictures_are_named() -> None:
    whole = png(PIXELS).getvalue()
    for data in (b"", b"GIF89a", whole[:100], whole[: len(whole) // 2]):
        with pytest.raises(ConfigError, match=r"cat\.png"):
            Preprocess.parse("raw").picture(io.BytesIO(data), (1, 3, 8, 8), "float32", "cat.png")


def test_a_stored_description_is_checked() -> None:
    for bad in ({"mean": "x"}, {"mean": [1.0], "std": [0.0]}, {"extra": 1}):
        with pytest.raises(ConfigError):
            Preprocess.from_description(bad)
