"""Pictures, masks and control images from files to arrays, and pictures to PNG with settings."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from macai.diffusion.image_settings import ImageSettings
from macai.errors import FormatError, ModelError, UsageError
from macai.files import atomic_file

MULTIPLE = 8
"""Sides of a picture of its own size are multiples of it: what most models want."""

MAX_PIXELS = 100_000_000
MAX_BYTES = 2**28

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # EPS would run Ghostscript
_KEY = "macai"
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError),
    *(struct.error, zlib.error, MemoryError, Image.DecompressionBombError),
)
"""What Pillow's readers raise for damaged files."""

Picture = npt.NDArray[np.float32]


def read_picture(
    path: Path, size: tuple[int, int] | None = None, *, background: str | None = None
) -> Picture:
    """Return float32 [1, H, W, 3] in [-1, 1], as it is meant to be seen (EXIF orientation).

    Args:
        path: A PNG, JPEG, WebP, GIF, BMP or TIFF.
        size: Width and height. The picture is scaled (Lanczos) until it covers them, and what
            stands out on two sides is cut off. None is its own, less what exceeds a multiple of 8.
        background: The colour that shows through where the picture is transparent; None leaves
            transparency out, as diffusers does.

    Raises:
        UsageError: no such file, or a size that is not positive.
        FormatError: not a picture, a damaged one, or one of more than 100 million pixels.
    """
    return _pixels(_open(path, "RGB", background), path, size) * 2 - 1


def upright_size(path: Path) -> tuple[int, int]:
    """Return a picture's width and height as it is meant to be seen; it is read to its end.

    Raises:
        UsageError, FormatError: as `read_picture`.
    """
    return _open(path, "RGB").size


def read_control(path: Path, size: tuple[int, int] | None = None) -> Picture:
    """Return a ControlNet's picture, float32 [1, H, W, 3] in [0, 1]; else as `read_picture`."""
    return _pixels(_open(path, "RGB"), path, size)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Picture:
    """Return float32 [1, H, W, 1]: 1 where the picture is at least half white, 0 elsewhere.

    White is made anew. Else as `read_picture`; it is scaled before it is cut in two.
    """
    return (_pixels(_open(path, "L"), path, size) >= 0.5).astype(np.float32)


def to_bytes(pictures: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Return uint8 [..., 3] of pictures about [-1, 1], rounded to even as diffusers does.

    Raises:
        ModelError: values that are no numbers; they would become black.
    """
    wrong = ~np.isfinite(pictures)
    if wrong.any():
        raise ModelError(
            f"the model gave no picture: {wrong.sum():,} of {wrong.size:,} values are no numbers",
            hint="compute in float32: some autoencoders, SDXL's own for one, overflow in float16",
        )
    unit = np.clip(pictures.astype(np.float32) * 0.5 + 0.5, 0, 1)
    return np.round(unit * 255).astype(np.uint8)


def write_picture(
    path: Path, picture: npt.NDArray[np.uint8], settings: ImageSettings | None = None
) -> None:
    """Write uint8 [H, W, 3] as PNG, atomically, with the settings that made it.

    They are kept twice: `macai` is JSON for `read_settings`, `parameters` is for other tools.

    Raises:
        UsageError: the name is not that of a PNG.
        OutputError: it cannot be written.
    """
    require_png(path)
    text = PngImagePlugin.PngInfo()
    if settings is not None:
        text.add_text("parameters", settings.parameters())
        text.add_text(_KEY, settings.to_json())
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=text)


def require_png(path: Path) -> None:
    """Raise UsageError if `path` has not the name of a PNG."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG", hint=f"{path.with_suffix('.png')}")


def read_settings(path: Path) -> ImageSettings:
    """Return the settings in a PNG that macai wrote.

    Raises:
        UsageError: no such file, or there are none in it.
        FormatError: not a PNG, or damaged or impossible settings.
    """
    with _reading(path, ("PNG",)) as image:
        found = dict(getattr(image, "text", {}))  # reads on to what comes after the pixels
    text = found.get(_KEY)
    if text is None:
        other = "parameters" in found
        raise UsageError(
            f"{path}: there are no settings of macai in it"
            + (", but some of stable-diffusion-webui" if other else ""),
            hint="give its prompt and options on the command line"
            if other
            else "a picture loses them when it is edited, converted or sent by a messenger",
        )
    return ImageSettings.from_json(str(text), source=str(path))


@contextmanager
def _reading(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow says of it becomes an error of ours."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UsageError(f"{path}: not a file")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    if size > MAX_BYTES:
        raise FormatError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage it mends, and of sizes checked below
            with Image.open(path, formats=formats) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except PermissionError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except UnidentifiedImageError as e:
        raise FormatError(
            f"{path}: not {'a PNG' if len(formats) == 1 else 'a picture that can be read'}",
            hint=f"{', '.join(formats)} can be",
        ) from e
    except Image.DecompressionBombError as e:
        raise FormatError(f"{path}: more than {MAX_PIXELS:,} pixels") from e
    except _BROKEN as e:
        raise FormatError(f"{path}: a damaged picture: {str(e)[:100] or type(e).__name__}") from e


def _open(path: Path, mode: str, background: str | None = None) -> Image.Image:
    with _reading(path, _FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would clip, not scale
            eight = np.round(np.asarray(upright, np.uint16) / 257).astype(np.uint8)
            upright = Image.fromarray(eight)
        if upright.mode in ("I", "F"):
            raise ValueError("its pixels are 32 bits wide; save it with 8")
        if background is not None and upright.has_transparency_data:
            behind = Image.new("RGBA", upright.size, background)
            upright = Image.alpha_composite(behind, upright.convert("RGBA"))
        return upright.convert(mode)


def _pixels(image: Image.Image, path: Path, size: tuple[int, int] | None) -> Picture:
    """Return float32 [1, H, W, C] in [0, 1] at `size`."""
    if size is None:
        size = (image.width // MULTIPLE * MULTIPLE, image.height // MULTIPLE * MULTIPLE)
        if not all(size):
            raise UsageError(f"{path}: {image.width}x{image.height} pixels are too few")
    width, height = size
    if width < 1 or height < 1:
        raise UsageError(f"{width}x{height} pixels: no picture has such a size")
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    array = np.asarray(fitted, np.float32) / np.float32(255)
    return array.reshape(1, height, width, -1).astype(np.float32)
