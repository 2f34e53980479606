"""Findings about the image files of a data set: missing, unlisted, unreadable, and of an unexpected format."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from training.data.checks import examples, links_outside, missing_images
from training.data.readers import Row
from training.data.validation.decode_cache import DecodeResult
from training.data.validation.findings import Finding, Sample, count_phrase, spread

# Sub-folders of CUHK-PEDES; the archive sent by the authors may lack some of them.
CUHK_FOLDERS = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))


def missing_files(name: str, rows: Sequence[Row], images: Path) -> tuple[Finding, set[str]]:
    """(finding about the missing images, by sub-folder; their paths)."""
    check = "missing images"
    if not images.is_dir():
        everything = {row["file_path"] for row in rows}
        return Finding(
            check, "error", f"there is no folder {images}: {count_phrase(len(rows), 'image', 'images')}"
        ), everything
    missing = missing_images(rows, images)
    if not missing:
        return Finding(check, "ok", f"all {len(rows):,} exist"), set()
    total = Counter(folder_of(row["file_path"]) for row in rows)
    lost = Counter(map(folder_of, missing))
    parts = ", ".join(f"{folder} {count:,} of {total[folder]:,}" for folder, count in sorted(lost.items()))
    first = ", ".join(missing[:5])
    text = f"{count_phrase(len(missing), 'image is', 'images are')} missing, by sub-folder: {parts}; e.g. {first}"
    whole = [folder for folder in lost if not (images / folder).is_dir()]
    if whole and name == "cuhk-pedes" and set(whole) <= set(CUHK_FOLDERS):
        text += (
            f"; {', '.join(sorted(whole))} missing entirely: the archive of CUHK-PEDES sent by the authors may lack "
            f"sub-folders; it needs {', '.join(CUHK_FOLDERS)}"
        )
    renamed = _count_renamed(missing, images)
    if renamed:
        text += f"; {count_phrase(renamed, 'of them exists', 'of them exist')} with another suffix (converted?)"
    return Finding(check, "error", text), set(missing)


def link_finding(rows: Sequence[Row], images: Path) -> Finding:
    """Finding about images that a symbolic link leads out of imgs/, which training refuses unless told to follow."""
    check, outside = "symbolic links", links_outside(rows, images)
    if not outside:
        return Finding(check, "ok", "none leads out of imgs/")
    lead = count_phrase(len(outside), "image is", "images are")
    text = f"{lead} outside of imgs/ by a symbolic link, which training refuses without --data.follow-links: {examples(outside)}"
    return Finding(check, "warning", text)


def unlisted_files(rows: Sequence[Row], images: Path) -> Finding:
    """Finding about the image files below `images` that no record lists."""
    named = {row["file_path"] for row in rows}
    extra = []
    for folder, _, files in os.walk(images):
        below = Path(folder).relative_to(images)
        extra += [
            path
            for file in files
            if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES and (path := (below / file).as_posix()) not in named
        ]
    check = "unlisted files"
    if not extra:
        return Finding(check, "ok", "none")
    folders = ", ".join(f"{folder} {count:,}" for folder, count in sorted(Counter(map(folder_of, extra)).items())[:10])
    return Finding(
        check, "note", f"{count_phrase(len(extra), 'image', 'images')} without a record, by sub-folder: {folders}"
    )


def bmp_files(name: str, rows: Sequence[Row]) -> list[Finding]:
    """Finding about the BMP files of CUHK-PEDES, if there are any."""
    count = sum(row["file_path"].lower().endswith(".bmp") for row in rows)
    if name != "cuhk-pedes" or not count:
        return []
    folders = ", ".join(sorted({folder_of(r["file_path"]) for r in rows if r["file_path"].lower().endswith(".bmp")}))
    text = f"{count_phrase(count, 'image is a BMP file', 'images are BMP files')} (in {folders}); they are read like the others"
    return [Finding("BMP files", "note", text)]


def unreadable_files(rows: Sequence[Row], results: dict[str, DecodeResult], images: Path) -> Finding:
    """Finding about the files that cannot be decoded completely, by kind of damage and sub-folder."""
    check = "unreadable images"
    damaged = [(path, result) for path, result in results.items() if result.damage]
    if not damaged:
        return Finding(check, "ok", f"all {len(results):,} can be decoded")
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for path, result in damaged:
        kinds[result.damage][folder_of(path)] += 1
    parts = "; ".join(
        f"{kind}: {', '.join(f'{folder} {count:,}' for folder, count in sorted(by_folder.items()))}"
        for kind, by_folder in sorted(kinds.items())
    )
    first = ", ".join(path for path, _ in damaged[:5])
    text = f"{count_phrase(len(damaged), 'image', 'images')} cannot be read ({parts}); e.g. {first}"
    shown = tuple(
        Sample(images / path, path, f"{result.damage}: {result.detail}".rstrip(": "))
        for path, result in spread(damaged)
    )
    return Finding(check, "error", text, shown)


def unusual_files(results: dict[str, DecodeResult], images: Path) -> list[Finding]:
    """Findings about files whose format does not match their suffix, and images that are not RGB."""
    Image.init()
    whole = {path: result for path, result in results.items() if not result.damage}
    wrong = [
        (path, f"{result.format} in a {PurePosixPath(path).suffix} file")
        for path, result in whole.items()
        if Image.EXTENSION.get(PurePosixPath(path).suffix.lower()) not in (result.format, None)
    ]
    other = [(path, result.mode) for path, result in whole.items() if result.mode != "RGB"]
    findings = []
    for check, found, what, fine in (
        ("formats", wrong, "of a different format than the suffix says (read anyway)", "all match their suffix"),
        ("colour modes", other, "not RGB (converted on reading)", "all RGB"),
    ):
        if not found:
            findings.append(Finding(check, "ok", fine))
            continue
        parts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(Counter(kind for _, kind in found).items()))
        text = f"{count_phrase(len(found), 'image is', 'images are')} {what}: {parts}; e.g. {', '.join(p for p, _ in found[:5])}"
        findings.append(Finding(check, "note", text, tuple(Sample(images / p, p, kind) for p, kind in spread(found))))
    return findings


def folder_of(path: str) -> str:
    """First part of a path below imgs/, "imgs/" itself for a file in no sub-folder."""
    first, slash, _ = path.partition("/")
    return first if slash else "imgs/"


def _count_renamed(missing: Sequence[str], images: Path) -> int:
    """Number of the missing files beside which one of the same name with another suffix exists."""
    stems: dict[Path, set[str]] = {}
    count = 0
    for path in missing:
        folder = (images / path).parent
        if folder not in stems:
            stems[folder] = {file.stem for file in folder.iterdir()} if folder.is_dir() else set()
        count += PurePosixPath(path).stem in stems[folder]
    return count
