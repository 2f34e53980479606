"""Images with the same content, within a data set and between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.data.readers import Row
from training.data.validation.decode_cache import DecodeResult
from training.data.validation.findings import SAMPLES, Finding, Level, Sample, count_phrase, spread


def duplicate_images(rows: Sequence[Row], results: dict[str, DecodeResult], images: Path, own: bool) -> list[Finding]:
    """Findings about files of the same content: across splits, of several people, of one person.

    Duplicates across splits are an error in `own` data, which can be corrected, and a warning in a published set, where they
    are part of the protocol.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        result = results.get(row["file_path"])
        if result is not None and result.sha256 and result.damage != "zero bytes":
            groups.setdefault(result.sha256, []).append(row)
    same = [group for group in groups.values() if len(group) > 1]
    of_kind: dict[str, list[list[Row]]] = {"across": [], "people": [], "person": []}
    for group in same:
        several = len({row["split"] for row in group}) > 1
        kind = "across" if several else "people" if len({row["id"] for row in group}) > 1 else "person"
        of_kind[kind].append(group)
    total = sum(map(len, groups.values()))
    kinds: tuple[tuple[str, str, list[list[Row]], Level], ...] = (
        ("duplicates across splits", "in more than one split", of_kind["across"], "error" if own else "warning"),
        ("duplicates across people", "of several people in one split", of_kind["people"], "warning"),
        ("duplicates within a person", "of one person", of_kind["person"], "note"),
    )
    findings = []
    for check, what, found, level in kinds:
        if not found:
            findings.append(Finding(check, "ok", f"none among {total:,} images"))
            continue
        text = (
            f"{count_phrase(len(found), 'content is', 'contents are')} {what} (byte by byte): {_format_groups(found)}"
        )
        findings.append(Finding(check, level, text, _samples(found, images)))
    return findings


def duplicates_between(
    title: str,
    rows: Sequence[Row],
    results: dict[str, DecodeResult],
    images: Path,
    other: tuple[str, Sequence[Row], dict[str, DecodeResult], Path],
) -> Finding:
    """Files of the same content in the data set `title` and in `other`: its title, rows, results and image folder."""
    other_title, other_rows, other_pictures, other_images = other
    by_hash: dict[str, Row] = {}
    for row in _readable(other_rows, other_pictures):
        by_hash.setdefault(other_pictures[row["file_path"]].sha256, row)
    hits = [
        (row, by_hash[results[row["file_path"]].sha256])
        for row in _readable(rows, results)
        if results[row["file_path"]].sha256 in by_hash
    ]
    check = f"duplicates in {other_title}"
    if not hits:
        return Finding(
            check, "ok", f"no image of {title} is in {other_title}, byte by byte (re-encoded copies are not found)"
        )
    kinds = Counter((ours["split"], theirs["split"]) for ours, theirs in hits)
    split = ", ".join(f"{count:,} {ours}/{theirs}" for (ours, theirs), count in sorted(kinds.items()))
    text = f"{count_phrase(len(hits), 'image is', 'images are')} in both sets; split here/there: {split}"
    shown = [
        sample
        for ours, theirs in spread(hits, SAMPLES // 2)
        for sample in (
            Sample(images / ours["file_path"], f"{title}: {ours['file_path']}", f"{ours['split']}, id {ours['id']}"),
            Sample(
                other_images / theirs["file_path"],
                f"{other_title}: {theirs['file_path']}",
                f"{theirs['split']}, id {theirs['id']}",
            ),
        )
    ]
    return Finding(check, "warning", text, tuple(shown))


def _readable(rows: Iterable[Row], results: dict[str, DecodeResult]) -> list[Row]:
    return [row for row in rows if row["file_path"] in results and not results[row["file_path"]].damage]


def _format_groups(groups: Sequence[list[Row]]) -> str:
    first = [" = ".join(f"{row['file_path']} ({row['split']}, id {row['id']})" for row in g[:3]) for g in groups[:3]]
    return "; ".join(first) + ("; ..." if len(groups) > 3 else "")


def _samples(groups: Sequence[list[Row]], images: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(images / row["file_path"], row["file_path"], f"{row['split']}, id {row['id']}: {row['captions'][0]}")
        for group in spread(groups, SAMPLES // 2)
        for row in group[:2]
    )
