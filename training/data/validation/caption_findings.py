"""Captions that do not describe a person, or that describe several."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from training.config import DataConfig
from training.data.readers import Row
from training.data.validation.findings import SAMPLES, Finding, Sample, count_phrase, spread

# Largest plausible number of words in a caption; the official data sets stay below.
LONGEST = 120
# Shared texts on the page, each with images of different people.
SHOWN = SAMPLES // 2
_WIDE = re.compile(r"[^\x00-\u024f\u2000-\u206f\u2190-\u21ff]")


def _other_script(text: str) -> bool:
    """Letters beyond the Latin ones, or punctuation of East Asian width."""
    found = _WIDE.findall(text)
    return any(unicodedata.category(c)[0] == "L" or unicodedata.east_asian_width(c) in "WF" for c in found)


def _pattern(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: compiled.search(text) is not None


_TOKEN = re.compile(r"\w+|[^\w\s]")
# Kind of suspicious text -> predicate of a caption.
SUSPICIOUS: dict[str, Callable[[str], bool]] = {
    "control characters or line breaks": _pattern(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"),
    "invisible characters": _pattern(
        r"[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
    ),
    "wrongly decoded characters": _pattern("\ufffd|\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00ef\u00bf\u00bd"),
    "another script": _other_script,
    "HTML": _pattern(r"</?[a-z][^<>]*>|&(?:[a-z]{2,8}|#\d+);"),
    "a web address": _pattern(r"https?://|\bwww\.\w"),
    "a label in front": _pattern(r"^\W*(?:caption|description|answer|output|sentence|text|query)s?\s*\d*\s*[:=]"),
    "program code": _pattern(r"[{}\[\]\\]|==|\bself\.\w|\b(?:print|append|len|range|def \w+)\s*\(|^\s*import \w+\s*$"),
    "a single word": lambda text: len(text.split()) < 2,
    f"more than {LONGEST} words": lambda text: len(text.split()) > LONGEST,
}


def suspicious_captions(rows: Sequence[Row], images: Path) -> list[Finding]:
    """One finding per kind of suspicious text that occurs, or a single one that none does."""
    captions = [
        (row, i, caption.strip()) for row in rows for i, caption in enumerate(row["captions"]) if caption.strip()
    ]
    findings = []
    for kind, has in SUSPICIOUS.items():
        hits = [(row, f"captions[{i}]", text) for row, i, text in captions if has(text)]
        if hits:
            first = ", ".join(f"{row['file_path']} {field}" for row, field, _ in hits[:5])
            text = f"{count_phrase(len(hits), 'caption', 'captions')} with {kind}, e.g. of {first}"
            shown = tuple(
                Sample(images / row["file_path"], f"{row['file_path']} {field}", repr(t)[1:-1])
                for row, field, t in spread(hits)
            )
            findings.append(Finding("suspicious captions", "warning", text, shown))
    none = f"none in {len(captions):,} captions (checked for: {', '.join(SUSPICIOUS)})"
    return findings or [Finding("suspicious captions", "ok", none)]


def cut_captions(rows: Sequence[Row], images: Path) -> Finding:
    """Captions that do not fit in as many tokens as training reads: each word and each punctuation mark is at least one."""
    check, limit = "long captions", DataConfig().text_length
    long = [(row, text) for row in rows for text in row["captions"] if len(_TOKEN.findall(text)) + 2 > limit]
    if not long:
        return Finding(check, "ok", f"none is longer than {limit} tokens (data.text_length), at one a word")
    text = f"{count_phrase(len(long), 'caption is', 'captions are')} longer than {limit} tokens, and cut there (data.text_length)"
    shown = tuple(Sample(images / row["file_path"], row["file_path"], caption) for row, caption in spread(long))
    return Finding(check, "note", f"{text}; e.g. of {long[0][0]['file_path']}", shown)


def shared_captions(rows: Sequence[Row], images: Path) -> Finding:
    """Texts that describe several people; case, white space and final punctuation are ignored."""
    people: dict[str, dict[int, Row]] = {}
    in_test: dict[str, set[int]] = {}
    uses: list[tuple[str, str]] = []
    for row in rows:
        for caption in row["captions"]:
            key = " ".join(caption.lower().split()).rstrip(" .!;,")
            if key:
                people.setdefault(key, {}).setdefault(row["id"], row)
                uses.append((key, row["split"]))
                if row["split"] == "test":
                    in_test.setdefault(key, set()).add(row["id"])
    shared = {key: by_id for key, by_id in people.items() if len(by_id) > 1}
    check = "captions shared between people"
    if not shared:
        return Finding(check, "ok", f"none of {len(uses):,} captions describes two people in the same words")
    share = sum(key in shared for key, _ in uses)
    queries = sum(split == "test" and len(in_test[key]) > 1 for key, split in uses)
    worst = sorted(shared.items(), key=lambda item: -len(item[1]))
    top, by_id = worst[0]
    text = (
        f"{count_phrase(len(shared), 'text describes', 'texts describe')} several people, {share:,} of {len(uses):,} captions "
        f"({share / len(uses):.1%}); {count_phrase(queries, 'test query has', 'test queries have')} more than one correct "
        f"person; most often ({len(by_id)} people): {top[:120]!r}"
    )
    shown = [
        Sample(images / row["file_path"], f"{row['file_path']} (id {row['id']})", key)
        for key, people_of in worst[:SHOWN]
        for row in list(people_of.values())[: SAMPLES // SHOWN]
    ]
    return Finding(check, "warning", text, tuple(shown))
