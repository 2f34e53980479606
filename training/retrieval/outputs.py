"""Results in files: JSON, CSV that no spreadsheet executes, a self-contained page, copies of the images."""

from __future__ import annotations

import base64
import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from training.config import MAX_PIXELS
from training.data.images.reading import DAMAGED, open_image, to_rgb
from training.retrieval.finder import Result
from training.retrieval.image_names import format_time

# Twice the size on the page.
BOX = (192, 384)
# A cell that begins with one of these is a formula for a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_dict(result: Result) -> dict[str, Any]:
    """A result for JSON."""
    image = result.image
    return {
        "id": image.id,
        "path": image.path,
        "score": result.score,
        "identity": result.identity,
        "clothing": result.clothing,
        "marks": result.marks,
        "share": result.share,
        "match": result.match,
        "camera": image.camera,
        "time": image.time,
        "sha256": image.sha256,
        **({"metadata": image.more} if image.more else {}),
    }


def csv_cell(value: Any) -> Any:
    """A cell that stays text: an apostrophe before what would be a formula; numbers as they are."""
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows, the first of them names, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def results_csv(results: Sequence[Result]) -> str:
    """CSV of results: rank, score, share and parts of the score, path, camera, time and the columns of the metadata."""
    more = sorted({name for result in results for name in result.image.more})
    rows: list[list[Any]] = [
        ["rank", "score", "share", "identity", "clothing", "path", "camera", "time", "sha256", *more]
    ]
    for rank, result in enumerate(results, 1):
        image = result.image
        values = result.score, result.share, result.identity, result.clothing
        numbers = ["" if value is None else round(value, 6) for value in values]
        facts = [image.path, image.camera, format_time(image.time), image.sha256]
        rows.append([rank, *numbers, *facts, *(image.more.get(name, "") for name in more)])
    return to_csv(rows)


def thumbnail_bytes(path: Path, box: tuple[int, int] = BOX, max_pixels: int = MAX_PIXELS) -> bytes | None:
    """JPEG of an image, shrunk to fit `box` (width, height); None when it is missing or cannot be read, or has more pixels."""
    try:
        with open_image(path.read_bytes(), max_pixels) as image:
            # Lets the JPEG decoder skip what the thumbnail does not show.
            image.draft("RGB", (box[0] * 2, box[1] * 2))
            small = to_rgb(image)
            small.thumbnail(box, Image.Resampling.BILINEAR)
    except DAMAGED:
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def contact_sheet(
    title: str, subtitle: str, groups: Sequence[tuple[str, Sequence[Result]]], max_pixels: int = MAX_PIXELS
) -> str:
    """A page of images in groups, without any reference to the outside; images of more pixels are not shown."""
    cells = []
    for heading, results in groups:
        images = [_data_uri(Path(result.image.path), max_pixels) for result in results]
        times = [format_time(result.image.time) for result in results]
        cells.append((heading, list(zip(results, images, times, strict=True))))
    folder = Path(__file__).parent / "web" / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("contact_sheet.html.j2").render(title=title, subtitle=subtitle, groups=cells)


def _data_uri(path: Path, max_pixels: int) -> str | None:
    content = thumbnail_bytes(path, BOX, max_pixels)
    return None if content is None else "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")


def copy_images(results: Sequence[Result], folder: Path) -> int:
    """Copies the images of results into a folder under names that sort by rank; returns how many there were.

    Raises FileExistsError for a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"--copy-to {folder} is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    copied = 0
    for rank, result in enumerate(results, 1):
        source = Path(result.image.path)
        if source.is_file():
            shutil.copy2(source, folder / f"{rank:05}_{source.name}")
            copied += 1
    return copied
