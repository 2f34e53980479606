"""Image files of a data set: which are missing, which cannot be read, and which are not what their name says."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from training.data.checks import missing_images
from training.data.readers import Row
from training.data.validation.decode_cache import Picture
from training.data.validation.findings import Finding, Sample, spread, verb

# Sub-folders of CUHK-PEDES; the archive that is mailed may lack some of them.
CUHK_FOLDERS = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))


def missing_files(name: str, rows: Sequence[Row], images: Path) -> tuple[Finding, set[str]]:
    """(finding about the images that are not there, by sub-folder; their paths)."""
    check = "missing images"
    if not images.is_dir():
        everything = {row["file_path"] for row in rows}
        return Finding(check, "error", f"there is no folder {images}: {verb(len(rows), 'image', 'images')}"), everything
    missing = missing_images(rows, images)
    if not missing:
        return Finding(check, "ok", f"all {len(rows):,} are there"), set()
    total = Counter(folder_of(row["file_path"]) for row in rows)
    lost = Counter(map(folder_of, missing))
    parts = ", ".join(f"{folder} {count:,} of {total[folder]:,}" for folder, count in sorted(lost.items()))
    text = (
        f"{verb(len(missing), 'image is', 'images are')} missing, by sub-folder: {parts}; e.g. {', '.join(missing[:5])}"
    )
    whole = [folder for folder in lost if not (images / folder).is_dir()]
    if whole and name == "cuhk-pedes" and set(whole) <= set(CUHK_FOLDERS):
        text += (
            f"; {', '.join(sorted(whole))} missing as a whole: the archive of CUHK-PEDES that is mailed may lack "
            f"sub-folders, it needs {', '.join(CUHK_FOLDERS)}"
        )
    renamed = _renamed(missing, images)
    if renamed:
        text += f"; {verb(renamed, 'of them is', 'of them are')} there with another suffix (converted?)"
    return Finding(check, "error", text), set(missing)


def unnamed_files(rows: Sequence[Row], images: Path) -> Finding:
    """Image files below `images` that no record names."""
    named = {row["file_path"] for row in rows}
    extra = []
    for folder, _, files in os.walk(images):
        below = Path(folder).relative_to(images)
        extra += [
            path
            for file in files
            if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES and (path := (below / file).as_posix()) not in named
        ]
    check = "files without a record"
    if not extra:
        return Finding(check, "ok", "none")
    folders = ", ".join(f"{folder} {count:,}" for folder, count in sorted(Counter(map(folder_of, extra)).items())[:10])
    return Finding(
        check, "note", f"{verb(len(extra), 'image', 'images')} that no record names, by sub-folder: {folders}"
    )


def bitmaps(name: str, rows: Sequence[Row]) -> list[Finding]:
    """That CUHK-PEDES has BMP files, where it does."""
    count = sum(row["file_path"].lower().endswith(".bmp") for row in rows)
    if name != "cuhk-pedes" or not count:
        return []
    folders = ", ".join(sorted({folder_of(r["file_path"]) for r in rows if r["file_path"].lower().endswith(".bmp")}))
    text = f"{verb(count, 'image is a BMP file', 'images are BMP files')} (in {folders}); they are read as they are"
    return [Finding("BMP files", "note", text)]


def unreadable_files(rows: Sequence[Row], pictures: dict[str, Picture], images: Path) -> Finding:
    """Files that cannot be decoded to the end, by kind of damage and sub-folder."""
    check = "unreadable images"
    damaged = [(path, picture) for path, picture in pictures.items() if picture.damage]
    if not damaged:
        return Finding(check, "ok", f"all {len(pictures):,} can be decoded")
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for path, picture in damaged:
        kinds[picture.damage][folder_of(path)] += 1
    parts = "; ".join(
        f"{kind}: {', '.join(f'{folder} {count:,}' for folder, count in sorted(by_folder.items()))}"
        for kind, by_folder in sorted(kinds.items())
    )
    text = f"{verb(len(damaged), 'image', 'images')} cannot be read ({parts}); e.g. {', '.join(path for path, _ in damaged[:5])}"
    shown = tuple(
        Sample(images / path, path, f"{picture.damage}: {picture.detail}".rstrip(": "))
        for path, picture in spread(damaged)
    )
    return Finding(check, "error", text, shown)


def odd_files(pictures: dict[str, Picture], images: Path) -> list[Finding]:
    """Files of another format than their suffix says, and pictures that are not RGB."""
    Image.init()
    whole = {path: picture for path, picture in pictures.items() if not picture.damage}
    wrong = [
        (path, f"{picture.format} in a {PurePosixPath(path).suffix} file")
        for path, picture in whole.items()
        if Image.EXTENSION.get(PurePosixPath(path).suffix.lower()) not in (picture.format, None)
    ]
    other = [(path, picture.mode) for path, picture in whole.items() if picture.mode != "RGB"]
    findings = []
    for check, found, what, fine in (
        ("formats", wrong, "of another format than the name says, read all the same", "as the names say"),
        ("colour modes", other, "not RGB, converted when read", "all RGB"),
    ):
        if not found:
            findings.append(Finding(check, "ok", fine))
            continue
        parts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(Counter(kind for _, kind in found).items()))
        text = (
            f"{verb(len(found), 'image is', 'images are')} {what}: {parts}; e.g. {', '.join(p for p, _ in found[:5])}"
        )
        findings.append(Finding(check, "note", text, tuple(Sample(images / p, p, kind) for p, kind in spread(found))))
    return findings


def folder_of(path: str) -> str:
    """First part of a path below imgs/, "imgs/" itself for a file in no sub-folder."""
    first, slash, _ = path.partition("/")
    return first if slash else "imgs/"


def _renamed(missing: Sequence[str], images: Path) -> int:
    """How many of the missing files have a neighbour of the same name but for the suffix."""
    stems: dict[Path, set[str]] = {}
    count = 0
    for path in missing:
        folder = (images / path).parent
        if folder not in stems:
            stems[folder] = {file.stem for file in folder.iterdir()} if folder.is_dir() else set()
        count += PurePosixPath(path).stem in stems[folder]
    return count
