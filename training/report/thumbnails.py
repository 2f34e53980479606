"""Small JPEG copies of images as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from training.data.images.reading import DAMAGED, read_rgb

# Twice the largest size on the page, so that they stay sharp on a phone; 110 of them stay far below 1 MB.
BOX = (128, 224)


def thumbnail(path: Path) -> str | None:
    """data URI of the image at `path`, shrunk to fit BOX (width, height); None when it is missing or unreadable."""
    try:
        small = read_rgb(path.read_bytes())
        small.thumbnail(BOX, Image.Resampling.LANCZOS)
    except DAMAGED:
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
