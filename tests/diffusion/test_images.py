import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from macai.diffusion import images
from macai.diffusion.images import (
    read_control,
    read_mask,
    read_picture,
    read_settings,
    to_bytes,
    write_picture,
)
from macai.errors import FormatError, ModelError, OutputError, UsageError
from tests.diffusion.test_image_settings import SETTINGS


def noise(width, height, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def gradient(width, height):
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 0 * x], -1).round().astype(np.uint8)


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_a_picture_is_read_as_numbers_from_minus_one_to_one(tmp_path):
    pixels = noise(16, 8)
    picture = read_picture(saved(tmp_path / "a.png", pixels))
    assert (picture.dtype, picture.shape) == (np.float32, (1, 8, 16, 3))
    assert np.allclose(picture[0], pixels / 127.5 - 1, atol=1e-6)
    assert picture.min() >= -1
    assert picture.max() <= 1
    assert np.allclose(read_control(tmp_path / "a.png")[0], pixels / 255, atol=1e-6)


def test_reading_and_writing_changes_no_pixel(tmp_path):
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    write_picture(tmp_path / "a.png", every)
    assert np.array_equal(to_bytes(read_picture(tmp_path / "a.png"))[0], every)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), every)


def test_a_picture_without_a_size_loses_what_exceeds_a_multiple_of_8_on_both_sides(tmp_path):
    pixels = noise(22, 17)
    picture = read_picture(saved(tmp_path / "a.png", pixels))
    assert picture.shape == (1, 16, 16, 3)
    # 22x17 covers 16x16 at 17 of 22 columns: 2.5 go on either side.
    wide = read_picture(saved(tmp_path / "b.png", noise(22, 16)))
    assert np.allclose(wide[0], noise(22, 16)[:, 3:19] / 127.5 - 1, atol=1e-6)


def test_a_picture_is_scaled_until_it_covers_and_cut_in_the_middle(tmp_path):
    path = saved(tmp_path / "a.png", gradient(320, 160))
    picture = (read_picture(path, (40, 40)) + 1) * 127.5
    assert picture.shape == (1, 40, 40, 3)
    row, column = picture[0, 20, :, 0], picture[0, :, 20, 1]
    assert (row[0], row[-1]) == pytest.approx((65, 190), abs=3)  # the middle half of the width
    assert (column[0], column[-1]) == pytest.approx((3, 252), abs=3)  # and the whole height
    tall = (read_picture(path, (80, 8)) + 1) * 127.5
    assert (tall[0, 4, 0, 0], tall[0, 4, -1, 0]) == pytest.approx((1, 254), abs=3)
    assert tall[0, 0, 0, 1] == pytest.approx(102, abs=12)
    larger = read_picture(path, (640, 320))
    assert larger.shape == (1, 320, 640, 3)


def test_pictures_are_scaled_with_lanczos(tmp_path):
    pixels = noise(64, 64)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.LANCZOS)
    found = to_bytes(read_picture(saved(tmp_path / "a.png", pixels), (16, 16)))[0]
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(0, 8), (-8, 8), (8, 0)])
def test_a_size_that_cannot_be_is_refused(size, tmp_path):
    with pytest.raises(UsageError, match="no picture has such a size"):
        read_picture(saved(tmp_path / "a.png", noise(16, 16)), size)


def test_a_picture_of_too_few_pixels_is_refused(tmp_path):
    with pytest.raises(UsageError, match="100x7 pixels are too few"):
        read_picture(saved(tmp_path / "a.png", noise(100, 7)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_the_way_it_is_meant_to_be_seen(orientation, tmp_path):
    image = Image.fromarray(gradient(24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(to_bytes(read_picture(tmp_path / "a.png"))[0], expected)
    assert expected.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    turned = {1: (0, 0), 2: (0, 23), 3: (15, 23), 4: (15, 0)}.get(orientation)
    if turned:
        assert expected[turned].tolist() == [0, 0, 0]


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    pixels = noise(16, 16)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "a.png")
        expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(to_bytes(read_picture(tmp_path / "a.png"))[0], expected), mode
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").shape == (1, 16, 16, 3)
    for name, options in (("a.webp", {"lossless": True}), ("a.bmp", {}), ("a.tiff", {})):
        path = saved(tmp_path / name, pixels, **options)
        assert np.array_equal(to_bytes(read_picture(path))[0], pixels), name


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = to_bytes(read_picture(saved(tmp_path / "a.png", deep)))[0, :, :, 0]
    assert np.array_equal(found.reshape(-1), np.arange(256))
    for array in (deep.astype(np.float32), deep.astype(np.int32)):
        with pytest.raises(FormatError, match="32 bits wide"):
            read_picture(saved(tmp_path / "a.tiff", array))


def test_a_mask_is_one_where_it_is_at_least_half_white(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = read_mask(saved(tmp_path / "a.png", grey))
    assert (mask.dtype, mask.shape) == (np.float32, (1, 16, 16, 1))
    assert mask.reshape(-1).tolist() == [0.0] * 128 + [1.0] * 128
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4, :, 1] = 255  # green is 0.587 bright, blue 0.114
    colours[4:, :, 2] = 255
    found = read_mask(saved(tmp_path / "b.png", colours))
    assert found[0, :, 0, 0].tolist() == [1.0] * 4 + [0.0] * 4


def test_a_mask_is_scaled_before_it_is_cut_in_two(tmp_path):
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::4] = 255  # a quarter white everywhere: less than half at any size
    mask = read_mask(saved(tmp_path / "a.png", stripes), (8, 8))
    assert set(np.unique(mask)) == {0.0}
    assert set(np.unique(read_mask(tmp_path / "a.png"))) == {0.0, 1.0}


PNG = io.BytesIO()
Image.fromarray(noise(32, 32)).save(PNG, format="PNG")
JPEG = io.BytesIO()
Image.fromarray(noise(32, 32)).save(JPEG, format="JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width, height, *, data=b"", before=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


HOSTILE = {
    "empty": (b"", "not a picture"),
    "text": (b"a red apple", "not a picture"),
    "postscript": (EPS, "not a picture"),
    "a cut png": (PNG.getvalue()[:1500], "damaged"),
    "a cut jpeg": (JPEG.getvalue()[:700], "damaged"),
    "a png's first bytes": (PNG.getvalue()[:20], "damaged|not a picture"),
    "another checksum": (PNG.getvalue()[:60] + b"\0\0\0\0" + PNG.getvalue()[64:], "damaged"),
    "a bomb": (png_of(30_000, 30_000, data=zlib.compress(b"\0" * 1000)), "more than 100,000,000"),
    "just too large": (png_of(10_000, 10_001), "more than 100,000,000 pixels"),
    "no pixels": (png_of(64, 64), "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("read", [read_picture, read_mask, read_control])
def test_a_file_that_is_no_picture_is_refused(kind, read, tmp_path):
    content, message = HOSTILE[kind]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as raised:
        read(path)
    assert str(path) in raised.value.message


@given(st.integers(8, len(PNG.getvalue()) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(tmp_path_factory, at, byte, png):
    content = bytearray((PNG if png else JPEG).getvalue())
    content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(content)
    try:
        picture = read_picture(path)
    except (FormatError, UsageError):
        return
    assert np.isfinite(picture).all()


def test_a_picture_that_is_not_there_is_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UsageError, match=r"none\.png: No such file|not a file"):
            read_picture(path)
        with pytest.raises(UsageError):
            read_settings(path)
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(FormatError, match="larger than"):
        read_picture(saved(tmp_path / "a.png", noise(16, 16)))


def test_numbers_become_bytes_as_diffusers_rounds_them():
    values = np.float32([-2, -1, -0.999, 0, 0.001, 0.5, 1, 7])
    assert to_bytes(values).tolist() == [0, 0, 0, 128, 128, 191, 255, 255]
    assert to_bytes(np.float16([0.5])).tolist() == [191]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_that_is_not_all_numbers_is_refused(value):
    pictures = np.zeros((2, 8, 8, 3), np.float32)
    pictures[1, 3, 3, 0] = value
    with pytest.raises(ModelError, match="1 of 384 values are no numbers") as raised:
        to_bytes(pictures)
    assert "float32" in raised.value.hint


def test_settings_are_written_with_the_picture_and_read_back(tmp_path):
    path = tmp_path / "new" / "a.png"
    settings = replace(SETTINGS, prompt="日本 😀\n<a>\x00\u202e", negative="")
    write_picture(path, noise(16, 8), settings)
    assert read_settings(path) == settings
    assert np.array_equal(np.asarray(Image.open(path)), noise(16, 8))
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert Image.open(path).text["parameters"].startswith("日本 😀\n<a>")


def test_the_same_picture_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, noise(16, 8), SETTINGS)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_cannot_be_written_leaves_the_older_one(tmp_path):
    path = tmp_path / "a.png"
    write_picture(path, noise(16, 8))
    with pytest.raises((TypeError, ValueError)):
        write_picture(path, np.zeros((4, 4, 7), np.uint8))
    assert np.array_equal(np.asarray(Image.open(path)), noise(16, 8))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_picture(tmp_path / "file" / "a.png", noise(16, 8))
    with pytest.raises(UsageError, match="written as PNG") as raised:
        write_picture(tmp_path / "a.jpg", noise(16, 8))
    assert raised.value.hint == str(tmp_path / "a.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "file"]


def test_a_picture_without_settings_is_refused_with_what_to_do(tmp_path):
    write_picture(tmp_path / "a.png", noise(16, 8))
    with pytest.raises(UsageError, match=r"no settings of macai in it$") as raised:
        read_settings(tmp_path / "a.png")
    assert "messenger" in raised.value.hint
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a dog\nSteps: 20")
    saved(tmp_path / "b.png", noise(16, 8), pnginfo=text)
    with pytest.raises(UsageError, match="but some of stable-diffusion-webui") as raised:
        read_settings(tmp_path / "b.png")
    assert "command line" in raised.value.hint
    saved(tmp_path / "c.png", noise(16, 8), format="JPEG")
    with pytest.raises(FormatError, match="not a PNG"):
        read_settings(tmp_path / "c.png")


def test_settings_after_the_pixels_are_found(tmp_path):
    content = PNG.getvalue()
    late = chunk(b"tEXt", b"macai\0" + SETTINGS.to_json().encode())
    (tmp_path / "a.png").write_bytes(content[:-12] + late + content[-12:])
    assert read_settings(tmp_path / "a.png") == SETTINGS


def test_text_that_grows_without_end_is_refused(tmp_path):
    bomb = zlib.compress(b"x" * 50_000_000)
    for name, data in (
        (b"zTXt", b"macai\0\0" + bomb),
        (b"iTXt", b"macai\0\1\0\0\0" + bomb),
        (b"iTXt", b"macai\0\0\0\0\0" + b"x" * 2_000_000),
        (b"tEXt", b"macai\0" + b"x" * 2_000_000),
    ):
        pixels = zlib.compress(b"\0" * (8 * 25))
        (tmp_path / "a.png").write_bytes(png_of(8, 8, data=pixels, before=chunk(name, data)))
        with pytest.raises(FormatError, match=r"damaged|characters long"):
            read_settings(tmp_path / "a.png")
