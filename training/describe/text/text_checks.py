"""Checks on generated texts, each of which passes or says why not; and near-duplicates among many texts.

A text that fails a check is not used for training, so a false alarm costs a request and a miss costs a wrong label: what each
check finds, and how often it is wrong, is measured in docs/descriptions.md.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from training.describe.text.patterns import hedging, refusal
from training.describe.text.phrase_index import plain, tokens
from training.describe.text.schema import KINDS, Kind, Schema

# Least share of a text's words that are function words or words of the schema. The lowest of the true texts of a rendered set,
# of those in other styles and of its captions is 0.53; the highest of sixteen other languages is 0.11
# (bench/pipeline/corrupted_texts.py).
ENGLISH = 0.35
# A text of that many words or more with fewer different runs of three words than this share of all runs is a loop.
LOOP_WORDS, LOOP_SHARE = 20, 0.55
# Bands and rows of the MinHash signature: texts of similarity 0.7 share a band with probability 0.89, of 0.8 with
# 0.98, of 0.4 with 0.19.
BANDS, ROWS = 8, 4
# Texts kept in a bucket of a band: more are near-duplicates of these already, or share a template.
BUCKET = 8

_MARKUP = re.compile(
    r"\*\*|__|`|~~|^\s*#+\s|^\s*>\s|^\s*[-*\u2022\u2013]\s|^\s*\(?\d+[.)]\s|\[[^\]]*\]\(|\||</?[a-z][^>]*>|^---",
    re.I | re.M,
)
_JSON = re.compile(r'[{}]|\\["nt/]|"\s*:|",\s*"')
_PLACEHOLDER = re.compile(
    r"\[[^\]]*\]|<[^>]*>|_{2,}|\bn/a\b|\bx{3,}\b|\b(?:lorem ipsum|todo|tbd|placeholder|your text|not (?:specified|applicable|"
    r"provided|available)|unspecified|undefined|null|insert)\b|\.\.\.|\u2026",
    re.I,
)
_LABEL = re.compile(
    r"^(?:(?:identity|clothing|person|final|text|image|picture)\s+)?(?:identity|clothing|description|text|output|answer|caption)"
    r"\s*:|^(?:sure|certainly|of course|okay)\b[^.]{0,40}[:,!]|^here(?:'s| is| are)\b[^.,]*:",
    re.I,
)
# Bytes of UTF-8 that were read as Latin-1: looked for in the text as it came, since compatibility form changes them.
_MISREAD = re.compile(r"[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac]")
# Control characters, what is not assigned or private, and pictures.
_NO_TEXT = ("Cc", "Cn", "Co", "Cs", "So", "Sk")
# A sentence that ends inside the text: then the last one ends too. An enumeration need not.
_INNER_END = re.compile(r"[a-z]{2}[.!?] [A-Z]")
# What an English text does not end with.
_OPEN_END = re.compile(r"(?:[,:;(\-\u2013\u2014/&]|\b(?:a|an|the|and|or|of|with|his|her|their|is|are|wearing))$", re.I)


@dataclass(frozen=True)
class Limits:
    """What the checks ask of a text."""

    # Least and largest number of words.
    words: tuple[int, int] = (4, 80)
    # Least number of attributes that a text covers, beside the required ones.
    attributes: int = 2
    # Reject words such as "appears to be" and "possibly".
    hedging: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"limits.words must be a range, the lower number first, got {self.words}")
        if self.attributes < 1:
            raise ValueError(f"limits.attributes must be at least 1, got {self.attributes}")


def check_texts(identity: str, clothing: str, schema: Schema, limits: Limits) -> dict[str, str]:
    """Both texts of one image: "identity.syntax" and so on -> "" where the check passed, else why it failed."""
    texts: dict[Kind, str] = {"identity": identity, "clothing": clothing}
    return {
        f"{kind}.{name}": reason
        for kind in KINDS
        for name, reason in check_text(kind, texts[kind], schema, limits).items()
    }


def check_text(kind: Kind, text: str, schema: Schema, limits: Limits) -> dict[str, str]:
    """One text: name of the check -> "" where it passed, else why it failed.

    The checks are `syntax`, `length`, `language`, `refusal`, `repetition`, `coverage` and `leak`; `left_out` where the schema
    leaves attributes out, and `hedging` where the limits ask for it.
    """
    words = tokens(text)
    checks: dict[str, Callable[[], str]] = {
        "syntax": lambda: _syntax(text),
        "length": lambda: _length(words, limits),
        "language": lambda: _language(text, words, schema, kind),
        "refusal": lambda: _told("refuses", refusal(text)),
        "repetition": lambda: _repetition(text, words),
        "coverage": lambda: _coverage(words, schema, kind, limits),
        "leak": lambda: _leak(words, schema, kind),
    }
    if schema.left_out:
        checks["left_out"] = lambda: _left_out(words, schema, kind)
    if limits.hedging:
        checks["hedging"] = lambda: _told("hedges", hedging(text))
    return {name: check() for name, check in checks.items()}


def _told(what: str, words: str) -> str:
    return f"{what}: {words}" if words else ""


def _syntax(text: str) -> str:
    """Whether it is plain prose: one paragraph of sentences or of an enumeration, whole, and nothing around it."""
    clean = plain(text).strip()
    if not clean:
        return "is empty"
    for what, pattern in (("markup", _MARKUP), ("remains of JSON", _JSON), ("a placeholder", _PLACEHOLDER)):
        found = pattern.search(clean)
        if found:
            return f"has {what}: {found[0].strip()!r}"
    if _MISREAD.search(text):
        return "has wrongly decoded characters"
    if "\n" in clean or "\r" in clean:
        return "has more than one line"
    if _LABEL.search(clean):
        return f"begins with a label: {clean[:40]!r}"
    if clean.count('"') % 2 or any(clean.count(left) != clean.count(right) for left, right in ("()", "[]")):
        return "has quotes or brackets that are not balanced"
    if clean[0] in "\"'" and clean[-1] in "\"'":
        return "is a quotation as a whole"
    return _characters(clean)


def _characters(clean: str) -> str:
    odd = next((c for c in clean if unicodedata.category(c) in _NO_TEXT or c == "\ufffd"), "")
    if odd:
        return f"has a character that is no text: {odd!r}"
    if not clean[0].isalnum():
        return f"begins with {clean[0]!r}"
    if _OPEN_END.search(clean) or (clean[-1].isalnum() and _INNER_END.search(clean)):
        return f"breaks off: '... {clean[-30:]}'"
    letters = [c for c in clean if c.isalpha()]
    if sum(c.isalpha() or c.isspace() for c in clean) < 0.7 * len(clean):
        return "is not made of words"
    if len(letters) > 20 and sum(c.isupper() for c in letters) > 0.6 * len(letters):
        return "is in capital letters"
    long = next((word for word in clean.split() if len(word) > 30), "")
    return f"has a word of {len(long)} characters: {long[:30]!r}" if long else ""


def _length(words: Sequence[str], limits: Limits) -> str:
    least, most = limits.words
    if least <= len(words) <= most:
        return ""
    return f"has {len(words)} words, expected {least} to {most}"


def _language(text: str, words: Sequence[str], schema: Schema, kind: Kind) -> str:
    """English shows in its function words and in the words of the schema: no list of other languages is needed."""
    letters = [c for c in text if c.isalpha()]
    foreign = [c for c in letters if not unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN", "MODIFIER"))]
    if foreign:
        script = unicodedata.name(foreign[0], "unknown").split()[0].capitalize()
        return f"has {len(foreign)} letters that are not Latin ({script})"
    if not words:
        return ""
    share = schema.lookup(kind).known.count(words) / len(words)
    return "" if share >= ENGLISH else f"is not English: {share:.0%} of its words are known, expected {ENGLISH:.0%}"


def _repetition(text: str, words: Sequence[str]) -> str:
    """Loops of a language model: a phrase twice or thrice in a row, a sentence twice, or few different runs of words."""
    for size in range(1, len(words) // 2 + 1):
        times = 3 if size < 3 else 2
        for start in range(len(words) - size * times + 1):
            phrase = words[start : start + size]
            if all(words[start + i * size : start + (i + 1) * size] == phrase for i in range(1, times)):
                return f"repeats {' '.join(phrase[:8])!r}"
    sentences = sorted(s for s in (" ".join(tokens(part)) for part in re.split(r"[.!?;]\s", text)) if s.count(" ") >= 2)
    twice = next((sentence for sentence, group in groupby(sentences) if len(list(group)) > 1), "")
    if twice:
        return f"says twice: {twice!r}"
    runs = list(zip(words, words[1:], words[2:], strict=False))
    if len(words) >= LOOP_WORDS and len(set(runs)) < LOOP_SHARE * len(runs):
        return f"has {len(set(runs))} different runs of three words among {len(runs)}"
    return ""


def _coverage(words: Sequence[str], schema: Schema, kind: Kind, limits: Limits) -> str:
    covered = {name for name, _ in schema.lookup(kind).covered.find(words)}
    missing = [item.name for item in schema.attributes(kind) if item.required and item.name not in covered]
    if missing:
        return f"does not cover {', '.join(missing)}"
    least = min(limits.attributes, len(schema.attributes(kind)))
    return "" if len(covered) >= least else f"covers {len(covered)} attributes, expected at least {least}"


def _leak(words: Sequence[str], schema: Schema, kind: Kind) -> str:
    other = "clothing" if kind == "identity" else "identity"
    return _told(f"has words of {other}", _listed(schema.lookup(kind).leaked.find(words)))


def _left_out(words: Sequence[str], schema: Schema, kind: Kind) -> str:
    return _told("mentions what is to be left out", _listed(schema.lookup(kind).left_out.find(words)))


def _listed(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{phrase} ({name})" for phrase, name in dict.fromkeys((phrase, name) for name, phrase in found))


class NearDuplicates:
    """Finds texts that say almost the same of different people, one text at a time, in any order of images.

    Similarity is the Jaccard index of the sets of runs of three words, case and punctuation apart; MinHash with locality
    sensitive hashing proposes pairs, which are then compared exactly. About 1 kB of memory a text.

    Give it both texts of an image, joined: identity texts alone coincide between people, and rightly so.
    """

    def __init__(self, similarity: float = 0.7, min_words: int = 12) -> None:
        """Shorter texts are never reported. Raises ValueError for a similarity outside (0, 1]."""
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, got {similarity}")
        self._similarity, self._min_words = similarity, min_words
        draws = np.random.default_rng(0).integers(0, 2**64, (2, BANDS * ROWS, 1), dtype=np.uint64)
        self._factors, self._offsets = draws[0] | np.uint64(1), draws[1]
        self._mix = np.random.default_rng(1).integers(0, 2**64, ROWS, dtype=np.uint64) | np.uint64(1)
        self._entries: list[tuple[str, str | int, np.ndarray]] = []
        self._buckets: list[dict[int, tuple[int, ...]]] = [{} for _ in range(BANDS)]

    def add(self, file_path: str, text: str, person: str | int | None = None) -> str | None:
        """The path of an earlier image of which almost the same was said, None if there is none; then the text is kept.

        Images of one `person` (by default, each image is somebody else) may have the same text.
        """
        words = tokens(text)
        if len(words) < max(self._min_words, 3):
            return None
        owner = file_path if person is None else person
        runs = np.unique([zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2)]).astype(
            np.uint32
        )
        keys = self._keys(runs)
        known = False
        for index in sorted({i for bucket, key in zip(self._buckets, keys, strict=True) for i in bucket.get(key, ())}):
            path, other, theirs = self._entries[index]
            shared = len(np.intersect1d(runs, theirs, assume_unique=True))
            if shared >= self._similarity * (len(runs) + len(theirs) - shared):
                if other != owner and path != file_path:
                    return path
                known = known or shared == len(runs) == len(theirs)
        if not known:
            self._keep((file_path, owner, runs), keys)
        return None

    def _keys(self, runs: np.ndarray) -> list[int]:
        """One number per band; equal ones for equal minima of its hash functions (multiply-shift, modulo 2^64)."""
        least = ((self._factors * runs.astype(np.uint64) + self._offsets) >> np.uint64(32)).min(1)
        return (least.reshape(BANDS, ROWS) * self._mix).sum(1, dtype=np.uint64).tolist()

    def _keep(self, entry: tuple[str, str | int, np.ndarray], keys: Sequence[int]) -> None:
        open_ones = [(b, key) for b, key in zip(self._buckets, keys, strict=True) if len(b.get(key, ())) < BUCKET]
        for bucket, key in open_ones:
            bucket[key] = (*bucket.get(key, ()), len(self._entries))
        if open_ones:
            self._entries.append(entry)
