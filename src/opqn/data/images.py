"""Reading one image, whatever its mode and wherever it comes from. A file is taken for hostile."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from opqn.errors import ConfigError, DataError

FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "WEBP")
MAX_PIXELS: Final = 64_000_000
_TO_8_BIT: Final = np.rint(np.arange(1 << 16) / 257).astype(np.uint8)  # 65535 / 255 = 257


class SkippedImage(NamedTuple):
    """An image that was left out, and why."""

    path: str
    reason: str


class UnreadableImageError(DataError):
    """An image that cannot be used. ``reason`` says why, without the image's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read the image {name}: {reason}")
        self.reason = reason


def load_image(source: str | Path | bytes | Image.Image, *, min_side: int | None = None) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    JPEG, PNG, PPM/PGM/PBM, BMP and WEBP are read; of an animation, the first frame. The EXIF orientation is applied.
    Transparent parts come out on white, 16-bit grey is scaled to 8 bit, colour profiles are ignored.

    Args:
        source: a path, the bytes of an image file, or a PIL image (which stays unchanged).
        min_side: length in pixels that the shorter side is wanted at. A larger JPEG may be decoded at a half, a quarter
            or an eighth of its size, never below ``min_side``. Without it the image keeps its size.

    Returns:
        An RGB image of at least 1 x 1 pixels.

    Raises:
        UnreadableImageError: (a DataError) no such file, not an image of these formats, truncated or damaged, or more
            than 64 megapixels, which the header tells before anything is decoded.
        ConfigError: ``min_side`` is below 1.
    """
    if min_side is not None and min_side < 1:
        raise ConfigError(f"min_side is {min_side}; it is a length in pixels, at least 1")
    try:
        return _load(source, min_side)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a hostile file
        raise UnreadableImageError(_name(source), _reason(error)) from error


def to_array(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize to a square (bilinear, antialiased) and return the (size, size, 3) uint8 pixels.

    The aspect ratio is not kept: face crops are square or nearly so.

    Raises:
        ConfigError: ``size`` is below 1.
        UnreadableImageError: an image that is not RGB and that :func:`load_image` cannot turn into RGB.
    """
    if size < 1:
        raise ConfigError(f"size is {size}; it is a length in pixels, at least 1")
    if image.mode != "RGB":
        image = load_image(image)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def _load(source: str | Path | bytes | Image.Image, min_side: int | None) -> Image.Image:
    if isinstance(source, Image.Image):
        _check_size(source)
        source.load()
        return _to_rgb(_upright(source))
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError("it is not a regular file" if Path(source).exists() else "no such file")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        _check_size(image)
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        image.load()
        return _to_rgb(_upright(image))


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels ({width} x {height})")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 (a good picture may carry broken EXIF data of any kind)
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its values are floats of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # "I" is how Pillow reads 16-bit PGM files
        return Image.fromarray(_TO_8_BIT[np.asarray(image).clip(0, 65535)]).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _name(source: str | Path | bytes | Image.Image) -> str:
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"of mode {source.mode} and size {source.width} x {source.height}"
    return str(source)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not a JPEG, PNG, PPM, PGM, BMP or WEBP file"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has too many pixels; at most {MAX_PIXELS // 1_000_000} megapixels are read, so scale it down"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
