"""Names of images: the one spelling of a path; camera and time, from a metadata CSV or guessed from the names of known data sets.

Times are seconds: since 1970 (UTC) for a full date; since 1 January for MSMT17, whose names tell month, day and part of the day;
since the start of a sequence for Market-1501 and DukeMTMC, whose names tell a frame.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

# Frames a second of Market-1501 and DukeMTMC.
MARKET_FPS, DUKE_FPS = 25, 60
# Hours that stand for the parts of the day of MSMT17.
HOURS = {"morning": 8, "noon": 12, "afternoon": 16}
DAY, YEAR = 86400, 366 * 86400


def full_path(path: Path | str) -> str:
    """The absolute path by which a file or folder is known, with or without it, however it was spelt: without `..` and `//`.

    Links stay, since their names may tell the camera, but for one that `..` leads out of: there its target counts.
    """
    full, parts = os.path.abspath(path), Path(path).parts
    if ".." in parts:
        end = len(parts) - parts[::-1].index("..")
        folder = os.path.realpath(Path(*parts[:end]))
        if folder != os.path.realpath(os.path.abspath(Path(*parts[:end]))):
            full = os.path.join(folder, *parts[end:])
    return "/" + full.lstrip("/")


@dataclass(frozen=True)
class ImageFacts:
    """Metadata of an image; "" and None where unknown."""

    camera: str = ""
    time: float | None = None
    # Further columns by name.
    more: dict[str, str] = field(default_factory=dict)


def _market(match: re.Match[str]) -> ImageFacts:
    return ImageFacts(f"c{match[1]}", int(match[3]) / MARKET_FPS, {"sequence": f"s{match[2]}"})


def _msmt(match: re.Match[str]) -> ImageFacts:
    # A leap year, so that 29 February is a day.
    day = datetime(1972, int(match[2]), int(match[3]), HOURS[match[4]])
    return ImageFacts(f"c{int(match[1])}", (day - datetime(1972, 1, 1)).total_seconds())


def _duke(match: re.Match[str]) -> ImageFacts:
    return ImageFacts(f"c{match[1]}", int(match[2]) / DUKE_FPS)


def _cuhk01(match: re.Match[str]) -> ImageFacts:
    # Images 1 and 2 of a person are of the first camera, 3 and 4 of the second.
    return ImageFacts("a" if int(match[1]) <= 2 else "b")


def _date(name: str) -> float | None:
    """Time of the date in a name; None where there is none, or one that does not exist."""
    match = DATE.search(name)
    try:
        year, month, day, hour, minute, second = map(int, match.groups() if match else ())
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


# Pattern of the whole name without suffix, or with its folder, and its meaning; the first that fits counts.
PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], ImageFacts]], ...] = (
    # Market-1501: person, camera and sequence, frame, box.
    (re.compile(r"(?:.*/)?-?\d+_c(\d)s(\d)_(\d+)_\d+"), _market),
    # MSMT17 and ICFG-PEDES: person, image, camera, day with its part, frame, box.
    (re.compile(r"(?:.*/)?\d+_\d+_(\d+)_(\d\d)(\d\d)(morning|noon|afternoon)(?:_\d+)*"), _msmt),
    # DukeMTMC-reID: person, camera, frame.
    (re.compile(r"(?:.*/)?\d+_c(\d)_f(\d+)"), _duke),
    # RSTPReid and VeRi-like names: person, camera, number.
    (re.compile(r"(?:.*/)?\d+_c(\d+)_\d+"), lambda match: ImageFacts(f"c{match[1]}")),
    # CUHK03: pair of cameras, person, camera of the pair, number.
    (re.compile(r"(?:.*/)?([1-5])_\d{3}_([12])_\d\d"), lambda match: ImageFacts(f"{match[1]}-{match[2]}")),
    # CUHK01: four digits of the person, three of the image.
    (re.compile(r"(?:.*/)?CUHK01/\d{4}(\d{3})"), _cuhk01),
    # CUHK-SYSU of CUHK-PEDES, and the synthetic set: one folder a camera. A word needs the underscore: cameras, campus.
    (
        re.compile(r"(?:.*/)?(?i:cam(?:era)?)(?:[_ -]?(\d[\w-]*)|_([\w-]+))/[^/]+"),
        lambda match: ImageFacts(match[1] or match[2]),
    ),
)
# A date and a time somewhere in the name.
DATE = re.compile(r"(?<!\d)(20\d\d)[-_]?(\d\d)[-_]?(\d\d)[-_T ]?(\d\d)[-_:.h]?(\d\d)[-_:.m]?(\d\d)(?!\d)")


def guess(path: str) -> ImageFacts:
    """Camera and time as far as the name of an image and its folders tell them."""
    stem, facts = path.rpartition(".")[0], ImageFacts()
    for pattern, meaning in PATTERNS:
        match = pattern.fullmatch(stem)
        if match:
            try:
                facts = meaning(match)
                break
            except ValueError:
                # A month or day that does not exist: another kind of name.
                continue
    return facts if facts.time is not None else replace(facts, time=_date(stem.rpartition("/")[2]))


def read_metadata(path: Path) -> dict[str, ImageFacts]:
    """Metadata of a CSV file by its column `path`; `camera`, `time` and all others are optional.

    Raises FileNotFoundError, or ValueError naming the line: no column `path`, a column or a path twice, more cells than
    columns, a time that is neither a number of seconds nor ISO 8601.
    """
    if not path.is_file():
        raise FileNotFoundError(f"metadata {path} does not exist")
    facts: dict[str, ImageFacts] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            if "path" not in names or len(set(names)) < len(names):
                raise ValueError(
                    f"metadata {path} needs a column 'path', and each column once; it has {', '.join(names) or 'none'}"
                )
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"metadata {path}, line {reader.line_num} has more than the {len(names)} cells of its header; a "
                        "value that holds a comma must be in quotes"
                    )
                name = Path(row.pop("path") or "").as_posix()
                if name in facts:
                    raise ValueError(f"metadata {path}, line {reader.line_num}: {name} occurs twice")
                facts[name] = _facts(row, f"metadata {path}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"metadata {path} is not a CSV file in UTF-8: {error}") from error
    return facts


def _facts(row: dict[str | None, str | None], source: str) -> ImageFacts:
    more = {name: value for name, value in row.items() if name and value and name not in ("camera", "time")}
    return ImageFacts((row.get("camera") or "").strip(), parse_time(row.get("time") or "", source), more)


def parse_time(text: str, source: str) -> float | None:
    """Seconds of a time in seconds or ISO 8601 (UTC where no zone is named); None for an empty text. Raises ValueError."""
    text = text.strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            raise ValueError(
                f"{source}: time must be seconds or ISO 8601 (2026-05-01T12:30:00), got {text!r:.60}"
            ) from None
        seconds = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{source}: time must be seconds or ISO 8601 (2026-05-01T12:30:00), got {text!r:.60}")
    return seconds


def format_time(seconds: float | None) -> str:
    """A time for the reader: a date; month, day and hour; or hours, minutes and seconds of a sequence. "" for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 2 * DAY:
        return str(timedelta(seconds=round(seconds)))
    if seconds < YEAR:
        return (datetime(1972, 1, 1) + timedelta(seconds=seconds)).strftime("%d %b %H:%M")
    try:
        return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
    except OverflowError:
        return f"{seconds:g} s"
