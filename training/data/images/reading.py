"""Any image file as RGB, as people see it: turned as its EXIF orientation says, wide grey values scaled to 8 bits, transparent
parts white, the first frame of several.

One function reads an image everywhere: in training, search, reports, and where a model describes it.
"""

from __future__ import annotations

import importlib
import io
import struct
from functools import cache

import numpy as np
from PIL import Image

from training.config import MAX_PIXELS

# Errors of Pillow's decoders on damaged bytes; UnidentifiedImageError is an OSError.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# Brands of the file type box of HEIC; AVIF is read by Pillow itself.
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
PLUGIN = "pillow_heif"
# Tag of EXIF, and how to turn an image of each of its values.
ORIENTATION = 0x0112
TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)


class TooManyPixelsError(ValueError):
    """Raised for an image of more pixels than allowed, before it is decoded."""


class NoPluginError(ValueError):
    """Raised for a HEIC image where no plugin reads it."""


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in the bytes of a file, not yet decoded. Raises TooManyPixelsError, NoPluginError, and one of DAMAGED."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS and not _register_plugin():
        raise NoPluginError("a HEIC image, which needs a plugin: pip install pillow-heif")
    image = Image.open(io.BytesIO(content))
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(
            f"{image.width} x {image.height} pixels are more than data.max_pixels ({max_pixels:,}); scale it down or raise that"
        )
    return image


def read_rgb(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded image in the bytes of a file, mode RGB. Raises what `open_image` does."""
    with open_image(content, max_pixels) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB. Raises one of DAMAGED, ValueError for values that are not finite."""
    image.load()
    turn = TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode == "RGB" and "transparency" not in image.info:
        # convert would copy it.
        return image
    if image.mode.startswith(("I", "F")):
        return _from_wide(np.asarray(image), image.mode, image.info.get("transparency"))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Orientation of EXIF; 1, upright, without it and for damaged EXIF, which is no fault of the pixels."""
    if "exif" not in image.info and image.format not in ("TIFF", "MPO"):
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1


def _from_wide(values_HW: np.ndarray, mode: str, transparent: int | None) -> Image.Image:
    """Grey values of 16 bits; or of 32 bits or floats, which are scaled by the smallest usual range that holds them (255 or
    65535, for floats 1 too), beyond that by the largest value. transparent: value that becomes white."""
    hidden_HW = values_HW == transparent
    values_HW = values_HW.astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise ValueError("its pixels are not finite numbers")
    largest = float(values_HW.max(initial=0.0))
    ranges = (65535.0,) if mode.startswith("I;16") else (1.0, 255.0, 65535.0)[mode != "F" :]
    scale = next((limit for limit in ranges if largest <= limit), largest)
    grey_HW = np.clip(np.rint(values_HW * (255.0 / scale)), 0, 255).astype(np.uint8)
    grey_HW[hidden_HW] = 255
    return Image.fromarray(grey_HW).convert("RGB")


@cache
def _register_plugin() -> bool:
    try:
        plugin = importlib.import_module(PLUGIN)
    except ImportError:
        return False
    plugin.register_heif_opener()
    return True
