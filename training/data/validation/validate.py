"""Whether a data set is what it should be: every check, none of which stops the others.

`validate` answers whether the official protocol can be run: the splits of the authors, or any sound splits for own data
and for a set of another size that is accepted as such.
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
from training.data.validation.caption_findings import shared_captions, stray_texts
from training.data.validation.decode_cache import CACHE, Picture, PictureCache, look_into_all
from training.data.validation.duplicates import duplicate_images, duplicates_between
from training.data.validation.findings import SAMPLES, Finding, Level, Sample, spread

# Identities of the older split of RSTPReid that circulates.
OLD_RSTPREID = (3901, 100, 100)
# What everybody who uses a set should know.
ABOUT = {
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
class Options:
    """What to check, and how."""

    # Accept a set of another size than the official one.
    allow_counts: bool = False
    # Open the images: hashes, formats, damage.
    contents: bool = True
    # Data sets (name, root) with which to compare contents.
    against: tuple[tuple[str, Path], ...] = ()
    # File that keeps what was found in the images; None: ROOT/CACHE of each set, or nowhere if that cannot be written.
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
    # Of the file, by split; "val" where it has one.
    counts: dict[str, Counts]
    official: dict[str, Counts]
    findings: tuple[Finding, ...]
    # Some images of each split with a caption.
    samples: dict[str, tuple[Sample, ...]]
    # Whether the images were opened.
    contents: bool

    @property
    def verdict(self) -> Literal["yes", "no", "open"]:
        """Whether the protocol can be run; "open" where only the images could tell."""
        if any(finding.level == "error" for finding in self.findings):
            return "no"
        return "yes" if self.contents else "open"


def validate(
    name: str, root: Path, options: Options, progress: Progress = lambda title, done, total: None
) -> Validation:
    """Checks the data set `name` (a key of LAYOUTS) in the folder `root`.

    Raises FileNotFoundError for a missing folder or annotation file, ValueError for a file that is no list of records or
    options that exclude each other, OSError for a cache that was named and cannot be written.
    """
    if options.against and not options.contents:
        raise ValueError("--against compares the contents of images, it cannot be combined with --no-hash")
    layout, images = LAYOUTS[name], root / "imgs"
    source = read_source(name, root)
    others = [(other, path, read_source(other, path)) for other, path in options.against]
    rows = checks.well_formed(source.rows)
    findings = [*_source_findings(name, source), *_record_findings(name, source, rows)]
    counts = count(rows)
    findings += _count_findings(name, counts, options.allow_counts)
    findings += [shared_captions(rows, images), *stray_texts(rows, images)]
    missing, lost = image_files.missing_files(name, rows, images)
    findings += [missing, *image_files.bitmaps(name, rows), image_files.unnamed_files(rows, images)]
    if options.contents:
        present = [row for row in rows if row["file_path"] not in lost]
        found, kept = _pictures(layout.title, present, root, options, progress)
        findings += [*kept, image_files.unreadable_files(present, found, images), *image_files.odd_files(found, images)]
        findings += duplicate_images(present, found, images, own=name == "own")
        for other, path, other_source in others:
            theirs = checks.well_formed(other_source.rows)
            gone = set(checks.missing_images(theirs, path / "imgs"))
            theirs = [row for row in theirs if row["file_path"] not in gone]
            title = LAYOUTS[other].title
            looked, kept = _pictures(title, theirs, path, options, progress)
            findings += kept
            findings.append(
                duplicates_between(layout.title, present, found, images, (title, theirs, looked, path / "imgs"))
            )
    samples = {split: _samples([row for row in rows if row["split"] == split], images) for split in SPLITS}
    return Validation(
        name, layout.title, root, source.file, counts, layout.counts, tuple(findings), samples, options.contents
    )


def count(rows: Sequence[Row]) -> dict[str, Counts]:
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
        both = f"{' and '.join(names)} are both there and equal; {source.file.name} is read"
        findings.append(Finding("annotation file", "note", both))
    return findings + [Finding(check, "note", text) for check, text in ABOUT.get(name, ())]


def _record_findings(name: str, source: Source, rows: Sequence[Row]) -> list[Finding]:
    layout = LAYOUTS[name]
    table: tuple[tuple[str, list[str], str], ...] = (
        ("form of the records", checks.malformed_rows(source), "malformed records"),
        ("names of the splits", checks.unknown_splits(rows), "unknown splits, expected train, val or test"),
        ("empty splits", checks.absent_splits(rows, layout.splits), "no record in the splits"),
        ("empty captions", checks.empty_captions(rows), "images with an empty caption"),
        ("repeated images", checks.repeated_paths(rows), "images named more than once"),
        ("identities across splits", checks.shared_ids(rows), "identities in more than one split"),
    )
    findings = [
        Finding(check, "error", f"{what}: {checks.examples(found)}") if found else Finding(check, "ok", "none")
        for check, found, what in table
    ]
    if "val" not in layout.splits and not checks.absent_splits(rows, ["train"]) and checks.absent_splits(rows, ["val"]):
        findings.append(Finding("validation split", "note", hold_out(rows)[1]))
    first = min((row["id"] for row in rows), default=layout.first_id)
    if layout.first_id is not None and first != layout.first_id:
        text = f"the smallest person id is {first}, in the file of the authors it is {layout.first_id}"
        findings.append(Finding("person ids", "warning", text))
    return findings


def _count_findings(name: str, counts: Mapping[str, Counts], allowed: bool) -> list[Finding]:
    official = LAYOUTS[name].counts
    level: Level = "note" if allowed else "error"
    if not official:
        return []
    findings = []
    for split in SPLITS:
        got, expected = counts.get(split), official.get(split)
        if got != expected:
            text = f"{split}: {_words(got)}, the official split has {_words(expected)}"
            findings.append(Finding("official numbers", level, text))
    if name == "rstpreid" and tuple(counts.get(split, (0,))[0] for split in SPLITS) == OLD_RSTPREID:
        text = (
            "this is the older split of RSTPReid (3,901 / 100 / 100 identities); results are reported on the one of "
            "3,701 / 200 / 200: download the set again"
        )
        findings.append(Finding("old RSTPReid split", "warning" if allowed else "error", text))
    return findings or [Finding("official numbers", "ok", "identities, images and captions of every split")]


def _words(counts: Counts | None) -> str:
    return "nothing" if counts is None else "{:,} ids / {:,} images / {:,} captions".format(*counts)


def _pictures(
    title: str, rows: Sequence[Row], root: Path, options: Options, progress: Progress
) -> tuple[dict[str, Picture], list[Finding]]:
    """What is in the images of one set, and a finding where it cannot be kept."""
    file = options.cache or root / CACHE
    findings = []
    try:
        cache = PictureCache(file)
    except OSError as error:
        if options.cache is not None:
            raise
        cache = PictureCache(None)
        text = f"{file} cannot be written ({error.strerror}): nothing is kept, --cache FILE keeps it elsewhere"
        findings.append(Finding("cache of hashes", "note", text))
    with closing(cache):
        names = [row["file_path"] for row in rows]
        found = look_into_all(
            root / "imgs", names, cache, options.workers, lambda done, total: progress(title, done, total)
        )
    return found, findings


def _samples(rows: Sequence[Row], images: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(images / row["file_path"], f"{row['file_path']} (id {row['id']})", " | ".join(row["captions"]))
        for row in spread(rows, SAMPLES)
    )
