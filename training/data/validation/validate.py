"""Validation of a data set: runs every check, whatever the others find.

`validate_dataset` determines if the official protocol can be run: with the splits of the authors, or with any valid splits
for own data and for a set whose different size is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data import checks
from training.data.readers import LAYOUTS, SPLITS, Counts, Row, Source, read_source
from training.data.splits import hold_out
from training.data.validation import image_files
from training.data.validation.caption_findings import cut_captions, shared_captions, suspicious_captions
from training.data.validation.decode_cache import CACHE, DecodeCache, DecodeResult, decode_files
from training.data.validation.duplicates import duplicate_images, duplicates_between
from training.data.validation.findings import SAMPLES, Finding, Level, Sample, spread
from training.data.validation.trainable import recipe_finding

# Identities per split in an older version of RSTPReid that is still in circulation.
OLD_RSTPREID = (3901, 100, 100)
# Facts that every user of a data set should know.
KNOWN_ISSUES = {
    "icfg-pedes": (
        ("official numbers", "the paper prints 54,552 images for ICFG-PEDES; its splits sum to 54,522"),
        ("source", "ICFG-PEDES and RSTPReid are both drawn from MSMT17: people can be in both, under other ids"),
    ),
    "rstpreid": (
        ("official numbers", "the paper prints 4,104 identities for RSTPReid; its splits sum to 4,101"),
        ("source", "RSTPReid and ICFG-PEDES are both drawn from MSMT17: people can be in both, under other ids"),
    ),
}
# (data set, files done, files).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ValidationOptions:
    """Options of `validate_dataset`."""

    # Accept a set whose size differs from the official one.
    allow_counts: bool = False
    # Open the images: hashes, formats, damage.
    contents: bool = True
    # Data sets (name, root) to compare contents with.
    against: tuple[tuple[str, Path], ...] = ()
    # File of the decode cache; None: ROOT/CACHE of each set, or no file if that cannot be written.
    cache: Path | None = None
    # Threads that read images.
    workers: int = 1


@dataclass(frozen=True)
class Validation:
    """All findings about one data set."""

    name: str
    title: str
    root: Path
    file: Path
    # Numbers in the file by split; "val" only if it has one.
    counts: dict[str, Counts]
    official: dict[str, Counts]
    findings: tuple[Finding, ...]
    # Some images of each split with a caption.
    samples: dict[str, tuple[Sample, ...]]
    # True if the images were opened.
    contents: bool

    @property
    def verdict(self) -> Literal["yes", "no", "open"]:
        """Answer to "can the protocol be run?"; "open" if only the images could tell and were not opened."""
        if any(finding.level == "error" for finding in self.findings):
            return "no"
        return "yes" if self.contents else "open"


def validate_dataset(
    name: str, root: Path, options: ValidationOptions, progress: Progress = lambda title, done, total: None
) -> Validation:
    """Checks the data set `name` (a key of LAYOUTS) in the folder `root`.

    Raises FileNotFoundError for a missing folder or annotation file, ValueError for a file that is not a list of records or
    for conflicting options, OSError for a cache of `options` that cannot be written.
    """
    if options.against and not options.contents:
        raise ValueError("--against compares the contents of images; it cannot be combined with --no-hash")
    layout, images = LAYOUTS[name], root / "imgs"
    source = read_source(name, root)
    others = [(other, path, read_source(other, path)) for other, path in options.against]
    rows = checks.well_formed(source.rows)
    findings = [*_source_findings(name, source), *_record_findings(name, source, rows)]
    counts = count_splits(rows)
    findings += _count_findings(name, counts, options.allow_counts)
    findings += [shared_captions(rows, images), *suspicious_captions(rows, images)]
    findings.append(cut_captions(rows, images))
    missing, lost = image_files.missing_files(name, rows, images)
    findings += [missing, *image_files.bmp_files(name, rows), image_files.unlisted_files(rows, images)]
    findings.append(image_files.link_finding(rows, images))
    if options.contents:
        present = [row for row in rows if row["file_path"] not in lost]
        results, unwritten = _decode_images(layout.title, present, root, options, progress)
        findings += [
            *unwritten,
            image_files.unreadable_files(present, results, images),
            *image_files.unusual_files(results, images),
        ]
        findings += duplicate_images(present, results, images, own=name == "own")
        for other, path, other_source in others:
            theirs = checks.well_formed(other_source.rows)
            gone = set(checks.missing_images(theirs, path / "imgs"))
            theirs = [row for row in theirs if row["file_path"] not in gone]
            title = LAYOUTS[other].title
            their_results, unwritten = _decode_images(title, theirs, path, options, progress)
            findings += unwritten
            findings.append(
                duplicates_between(
                    layout.title, present, results, images, (title, theirs, their_results, path / "imgs")
                )
            )
    findings.append(recipe_finding(name, root, rows))
    samples = {split: _samples([row for row in rows if row["split"] == split], images) for split in SPLITS}
    return Validation(
        name, layout.title, root, source.file, counts, layout.counts, tuple(findings), samples, options.contents
    )


def count_splits(rows: Sequence[Row]) -> dict[str, Counts]:
    """(identities, images, captions) of each split that occurs."""
    result = {}
    for split in SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        if of_split:
            captions = sum(len(row["captions"]) for row in of_split)
            result[split] = len({row["id"] for row in of_split}), len(of_split), captions
    return result


def _source_findings(name: str, source: Source) -> list[Finding]:
    findings = [Finding("annotation file", "ok", f"{source.file.name}: {len(source.rows):,} records")]
    names = [file for file in LAYOUTS[name].files if (source.file.parent / file).is_file()]
    if len(names) > 1:
        both = f"{' and '.join(names)} both exist and are equal; {source.file.name} is read"
        findings.append(Finding("annotation file", "note", both))
    return findings + [Finding(check, "note", text) for check, text in KNOWN_ISSUES.get(name, ())]


def _record_findings(name: str, source: Source, rows: Sequence[Row]) -> list[Finding]:
    layout = LAYOUTS[name]
    table: tuple[tuple[str, list[str], str], ...] = (
        ("record format", checks.malformed_rows(source), "malformed records"),
        ("split names", checks.unknown_splits(rows), "unknown splits, expected train, val or test"),
        ("empty splits", checks.absent_splits(rows, layout.splits), "no records in the splits"),
        ("empty captions", checks.empty_captions(rows), "images with an empty caption"),
        ("repeated images", checks.repeated_paths(rows), "images listed more than once"),
        ("identities across splits", checks.shared_ids(rows), "identities in more than one split"),
    )
    findings = [
        Finding(check, "error", f"{what}: {checks.examples(found)}") if found else Finding(check, "ok", "none")
        for check, found, what in table
    ]
    if "val" not in layout.splits and not checks.absent_splits(rows, ["train"]) and checks.absent_splits(rows, ["val"]):
        findings.append(_held_out(rows))
    first = min((row["id"] for row in rows), default=layout.first_id)
    if layout.first_id is not None and first != layout.first_id:
        text = f"the smallest person id is {first}; in the file of the authors it is {layout.first_id}"
        findings.append(Finding("person ids", "warning", text))
    return findings


def _held_out(rows: Sequence[Row]) -> Finding:
    check = "validation split"
    try:
        return Finding(check, "note", hold_out(rows)[1])
    except ValueError as error:
        return Finding(check, "error", str(error))


def _count_findings(name: str, counts: Mapping[str, Counts], allowed: bool) -> list[Finding]:
    official = LAYOUTS[name].counts
    level: Level = "note" if allowed else "error"
    if not official:
        return []
    findings = []
    for split in SPLITS:
        got, expected = counts.get(split), official.get(split)
        if got != expected:
            text = f"{split}: {_format_counts(got)}, the official split has {_format_counts(expected)}"
            findings.append(Finding("official numbers", level, text))
    if name == "rstpreid" and tuple(counts.get(split, (0,))[0] for split in SPLITS) == OLD_RSTPREID:
        text = (
            "this is the older split of RSTPReid (3,901 / 100 / 100 identities); published results use the split of "
            "3,701 / 200 / 200: download the set again"
        )
        findings.append(Finding("old RSTPReid split", "warning" if allowed else "error", text))
    return findings or [Finding("official numbers", "ok", "identities, images and captions of every split")]


def _format_counts(counts: Counts | None) -> str:
    return "no records" if counts is None else "{:,} ids / {:,} images / {:,} captions".format(*counts)


def _decode_images(
    title: str, rows: Sequence[Row], root: Path, options: ValidationOptions, progress: Progress
) -> tuple[dict[str, DecodeResult], list[Finding]]:
    """(results for the images of one set, a finding if the cache cannot be written)."""
    file = options.cache or root / CACHE
    findings = []
    try:
        cache = DecodeCache(file)
    except OSError as error:
        if options.cache is not None:
            raise
        cache = DecodeCache(None)
        text = f"{file} cannot be written ({error.strerror}): results are not kept; --cache FILE keeps them elsewhere"
        findings.append(Finding("cache of hashes", "note", text))
    with closing(cache):
        names = [row["file_path"] for row in rows]
        found = decode_files(
            root / "imgs", names, cache, options.workers, lambda done, total: progress(title, done, total)
        )
    return found, findings


def _samples(rows: Sequence[Row], images: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(images / row["file_path"], f"{row['file_path']} (id {row['id']})", " | ".join(row["captions"]))
        for row in spread(rows, SAMPLES)
    )
