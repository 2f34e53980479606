"""Cases: images that somebody has confirmed or rejected, in a named file of the gallery that is opened again later."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from training.retrieval.finder import Finder, Result
from training.retrieval.image_names import format_time
from training.retrieval.outputs import contact_sheet, to_csv
from training.retrieval.store import ImageRow
from training.utils.io import read_record, write_record

MARKS = ("confirmed", "rejected")
# Letters, digits, spaces, dots and dashes; no separator of paths, no hidden file.
NAME = re.compile(r"\w[\w .-]{0,59}")
# Names of files have 255 bytes, of which the ending and those of `atomic` beside it take 19.
MOST_NAME_BYTES = 236


@dataclass(frozen=True)
class Mark:
    """Judgement of one image."""

    # "confirmed" or "rejected".
    mark: str
    path: str
    sha256: str
    # ISO 8601, UTC.
    when: str


@dataclass(frozen=True)
class Case:
    """A case: marks by the number of the image, as text because JSON has no other keys."""

    name: str
    created: str
    marks: dict[str, Mark] = field(default_factory=dict)

    def ids(self, mark: str) -> list[int]:
        """Numbers of the images with a mark."""
        return [int(i) for i, found in self.marks.items() if found.mark == mark]


class Cases:
    """The cases of a gallery folder."""

    def __init__(self, gallery_folder: Path) -> None:
        self.folder = gallery_folder / "cases"
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of all cases."""
        return sorted(path.stem for path in self.folder.glob("*.json") if NAME.fullmatch(path.stem))

    def load(self, name: str) -> Case:
        """The case of a name, empty when there is none yet. Raises ValueError for a name that no file can have, or a damaged
        file."""
        path = self._path(name)
        return read_record(path, Case) if path.is_file() else Case(name, _now())

    def set_mark(self, name: str, image: ImageRow, mark: str) -> Case:
        """Marks an image, or takes its mark away with "". Raises ValueError for another mark or a bad name."""
        if mark not in ("", *MARKS):
            raise ValueError(f"mark must be {', '.join(MARKS)} or empty, got {mark!r:.40}")
        with self._lock:
            case = self.load(name)
            marks = {key: value for key, value in case.marks.items() if key != str(image.id)}
            if mark:
                marks[str(image.id)] = Mark(mark, image.path, image.sha256, _now())
            case = Case(case.name, case.created, marks)
            self.folder.mkdir(exist_ok=True)
            write_record(self._path(name), case)
        return case

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"a case has a name of letters, digits, spaces, dots and dashes, at most 60, got {name!r:.80}"
            )
        if (size := len(name.encode())) > MOST_NAME_BYTES:
            raise ValueError(f"a case has a name of at most {MOST_NAME_BYTES} bytes of UTF-8, got {size}")
        return self.folder / f"{name}.json"


def sightings(case: Case, finder: Finder) -> dict[str, list[ImageRow]]:
    """Confirmed images by camera, each in the order of time, unknown times last."""
    rows = sorted(
        finder.gallery.rows(case.ids("confirmed")), key=lambda row: (row.time is None, row.time or 0.0, row.path)
    )
    found: dict[str, list[ImageRow]] = {}
    for row in rows:
        found.setdefault(row.camera, []).append(row)
    return dict(sorted(found.items()))


def case_csv(case: Case, finder: Finder) -> str:
    """CSV of all marks with camera and time, as far as the gallery still holds the images."""
    rows = {row.id: row for row in finder.gallery.rows([int(i) for i in case.marks])}
    table: list[list[object]] = [["mark", "path", "camera", "time", "sha256", "marked"]]
    for key, mark in case.marks.items():
        row = rows.get(int(key))
        facts = [row.camera, format_time(row.time)] if row else ["", ""]
        table.append([mark.mark, mark.path, *facts, mark.sha256, mark.when])
    return to_csv(table)


def case_sheet(case: Case, finder: Finder) -> str:
    """Self-contained page: the confirmed images camera by camera, then the rejected ones."""
    groups = [
        (f"Camera {camera or 'unknown'}", [Result(row, 0.0, 0.0, 0.0) for row in rows])
        for camera, rows in sightings(case, finder).items()
    ]
    rejected = [Result(row, 0.0, 0.0, 0.0) for row in finder.gallery.rows(case.ids("rejected"))]
    count = len(case.ids("confirmed"))
    subtitle = f"{count} confirmed, {len(rejected)} rejected. A likeness in images is no proof of identity."
    return contact_sheet(case.name, subtitle, [*groups, ("Rejected", rejected)], finder.embedder.max_pixels)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
