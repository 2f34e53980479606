"""Checks of generated texts, each with the reason of a failure; and near-duplicates among many texts.

A text that fails a check is not used for training, so a false alarm costs a request and a miss costs a wrong label. Detection
and false alarm rates are measured in docs/descriptions.md.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from training.describe.text.check_limits import Limits
from training.describe.text.patterns import PEOPLE, find_hedging, find_instruction, find_refusal
from training.describe.text.phrase_index import normalise_text, tokenize
from training.describe.text.schema import KINDS, Kind, Schema

# Smallest share of an English text's words that are function words or words of the schema. The lowest among the true texts of
# a rendered set, those in other styles and its captions is 0.53; the highest of sixteen other languages is 0.11
# (bench/pipeline/corrupted_texts.py).
MIN_KNOWN_SHARE = 0.35
# A text of this many words or more is a loop if its distinct trigrams are fewer than this share of its trigrams.
LOOP_WORDS, LOOP_SHARE = 20, 0.55
# Bands and rows of the MinHash signature: texts of similarity 0.7 share a band with probability 0.89, of 0.8 with
# 0.98, of 0.4 with 0.19.
BANDS, ROWS = 8, 4
# Texts kept per bucket of a band: further ones are near-duplicates of these already, or share a template.
BUCKET_SIZE = 8

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
# UTF-8 decoded as Latin-1 (mojibake): searched for in the original text, since compatibility form changes it.
_MOJIBAKE = re.compile(r"[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac]")
# Unicode categories: control, unassigned, private use, surrogates, symbols.
_NON_TEXT_CATEGORIES = ("Cc", "Cn", "Co", "Cs", "So", "Sk")
# A sentence that ends inside the text: then the last one must end too. An enumeration need not.
_INNER_END = re.compile(r"[a-z]{2}[.!?] [A-Z]")
# Endings that no complete English text has.
_OPEN_END = re.compile(r"(?:[,:;(\-\u2013\u2014/&]|\b(?:a|an|the|and|or|of|with|his|her|their|is|are|wearing))$", re.I)


def check_texts(identity: str, clothing: str, schema: Schema, limits: Limits) -> dict[str, str]:
    """Checks both texts of one image: maps "identity.syntax" and so on to "" where the check passed, else to the reason."""
    texts: dict[Kind, str] = {"identity": identity, "clothing": clothing}
    return {
        f"{kind}.{name}": reason
        for kind in KINDS
        for name, reason in check_text(kind, texts[kind], schema, limits).items()
    }


def check_text(kind: Kind, text: str, schema: Schema, limits: Limits) -> dict[str, str]:
    """Checks one text: maps the name of each check to "" where it passed, else to the reason.

    Checks: `syntax`, `length`, `language`, `refusal`, `instruction`, `repetition`, `coverage` and `leak`; `left_out` where the
    schema leaves attributes out, and `hedging` where the limits reject it.
    """
    words = tokenize(text)
    checks: dict[str, Callable[[], str]] = {
        "syntax": lambda: _syntax(text),
        "length": lambda: _length(words, limits),
        "language": lambda: _language(text, words, schema, kind),
        "refusal": lambda: _reason("refuses", find_refusal(text)),
        "instruction": lambda: _instruction(text, schema),
        "repetition": lambda: _repetition(text, words),
        "coverage": lambda: _coverage(words, schema, kind, limits),
        "leak": lambda: _leak(words, schema, kind),
    }
    if schema.left_out:
        checks["left_out"] = lambda: _left_out(words, schema, kind)
    if limits.hedging:
        checks["hedging"] = lambda: _reason("hedges", find_hedging(text))
    return {name: check() for name, check in checks.items()}


def _reason(problem: str, words: str) -> str:
    return f"{problem}: {words}" if words else ""


def _syntax(text: str) -> str:
    """Accepts plain prose: one complete paragraph of sentences or of an enumeration, with nothing around it."""
    clean = normalise_text(text).strip()
    if not clean:
        return "is empty"
    for name, pattern in (("markup", _MARKUP), ("remains of JSON", _JSON), ("a placeholder", _PLACEHOLDER)):
        match = pattern.search(clean)
        if match:
            return f"has {name}: {match[0].strip()!r}"
    if _MOJIBAKE.search(text):
        return "has wrongly decoded characters"
    if "\n" in clean or "\r" in clean:
        return "has more than one line"
    if _LABEL.search(clean):
        return f"begins with a label: {clean[:40]!r}"
    if clean.count('"') % 2 or any(clean.count(left) != clean.count(right) for left, right in ("()", "[]")):
        return "has unbalanced quotes or brackets"
    if clean[0] in "\"'" and clean[-1] in "\"'":
        return "is in quotation marks as a whole"
    return _characters(clean)


def _characters(clean: str) -> str:
    symbol = next((c for c in clean if unicodedata.category(c) in _NON_TEXT_CATEGORIES or c == "\ufffd"), "")
    if symbol:
        return f"has a non-text character: {symbol!r}"
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
    """Recognises English by its function words and the words of the schema: no list of other languages is needed."""
    letters = [c for c in text if c.isalpha()]
    foreign = [c for c in letters if not unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN", "MODIFIER"))]
    if foreign:
        script = unicodedata.name(foreign[0], "unknown").split()[0].capitalize()
        return f"has {len(foreign)} letters that are not Latin ({script})"
    if not words:
        return ""
    share = schema.indexes(kind).known.count(words) / len(words)
    if share >= MIN_KNOWN_SHARE:
        return ""
    return f"is not English: {share:.0%} of its words are known, expected {MIN_KNOWN_SHARE:.0%}"


def _instruction(text: str, schema: Schema) -> str:
    """Detects sentences for a model: their words, or that they describe nothing and speak of nobody."""
    if found := find_instruction(text):
        return f"instructs a model: {found}"
    for sentence in re.split(r"(?<=[.!?])\s+|\n", text):
        words = tokenize(sentence)
        describes = any(schema.indexes(kind).covered.find(words) for kind in KINDS)
        if len(words) > 2 and not describes and PEOPLE.isdisjoint(words):
            return f"has a sentence that describes nothing: {' '.join(words)[:60]}"
    return ""


def _repetition(text: str, words: Sequence[str]) -> str:
    """Detects loops of a language model: a phrase two or three times in a row, a sentence twice, few distinct trigrams."""
    for size in range(1, len(words) // 2 + 1):
        times = 3 if size < 3 else 2
        for start in range(len(words) - size * times + 1):
            phrase = words[start : start + size]
            if all(words[start + i * size : start + (i + 1) * size] == phrase for i in range(1, times)):
                return f"repeats {' '.join(phrase[:8])!r}"
    sentences = sorted(
        s for s in (" ".join(tokenize(part)) for part in re.split(r"[.!?;]\s", text)) if s.count(" ") >= 2
    )
    repeated = next((sentence for sentence, group in groupby(sentences) if len(list(group)) > 1), "")
    if repeated:
        return f"repeats the sentence {repeated!r}"
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(words) >= LOOP_WORDS and len(set(trigrams)) < LOOP_SHARE * len(trigrams):
        return f"has {len(set(trigrams))} distinct trigrams among {len(trigrams)}"
    return ""


def _coverage(words: Sequence[str], schema: Schema, kind: Kind, limits: Limits) -> str:
    covered = {name for name, _ in schema.indexes(kind).covered.find(words)}
    missing = [item.name for item in schema.attributes(kind) if item.required and item.name not in covered]
    if missing:
        return f"does not cover {', '.join(missing)}"
    least = min(limits.attributes, len(schema.attributes(kind)))
    return "" if len(covered) >= least else f"covers {len(covered)} attributes, expected at least {least}"


def _leak(words: Sequence[str], schema: Schema, kind: Kind) -> str:
    other = "clothing" if kind == "identity" else "identity"
    return _reason(f"has words of {other}", _listed(schema.indexes(kind).leaked.find(words)))


def _left_out(words: Sequence[str], schema: Schema, kind: Kind) -> str:
    return _reason("mentions attributes to be left out", _listed(schema.indexes(kind).left_out.find(words)))


def _listed(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{phrase} ({name})" for phrase, name in dict.fromkeys((phrase, name) for name, phrase in found))


class NearDuplicates:
    """Index of near-duplicate texts of different people, fed one text at a time, in any order of images.

    Similarity is the Jaccard index of the sets of trigrams (three words, ignoring case and punctuation); MinHash with
    locality-sensitive hashing proposes pairs, which are then compared exactly. Takes about 1 kB of memory a text.

    Texts should be both texts of an image, joined: identity texts alone rightly coincide between people.
    """

    def __init__(self, similarity: float = 0.7, min_words: int = 12) -> None:
        """min_words: shorter texts are never reported. Raises ValueError for a similarity outside (0, 1]."""
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, got {similarity}")
        self._similarity, self._min_words = similarity, min_words
        draws = np.random.default_rng(0).integers(0, 2**64, (2, BANDS * ROWS, 1), dtype=np.uint64)
        self._factors, self._offsets = draws[0] | np.uint64(1), draws[1]
        self._mix = np.random.default_rng(1).integers(0, 2**64, ROWS, dtype=np.uint64) | np.uint64(1)
        self._entries: list[tuple[str, str | int, np.ndarray]] = []
        self._buckets: list[dict[int, tuple[int, ...]]] = [{} for _ in range(BANDS)]

    def add(self, file_path: str, text: str, person: str | int | None = None) -> str | None:
        """Returns the path of an earlier image with a near-duplicate text; without one returns None and adds the text.

        person: images of one person may have the same text; by default, each image shows somebody else.
        """
        words = tokenize(text)
        if len(words) < max(self._min_words, 3):
            return None
        person = file_path if person is None else person
        trigrams = np.unique([zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2)]).astype(
            np.uint32
        )
        keys = self._keys(trigrams)
        known = False
        for index in sorted({i for bucket, key in zip(self._buckets, keys, strict=True) for i in bucket.get(key, ())}):
            path, other, theirs = self._entries[index]
            shared = len(np.intersect1d(trigrams, theirs, assume_unique=True))
            if shared >= self._similarity * (len(trigrams) + len(theirs) - shared):
                if other != person and path != file_path:
                    return path
                known = known or shared == len(trigrams) == len(theirs)
        if not known:
            self._insert((file_path, person, trigrams), keys)
        return None

    def _keys(self, trigrams: np.ndarray) -> list[int]:
        """One number per band, equal for equal minima of the band's hash functions (multiply-shift, modulo 2^64)."""
        minima = ((self._factors * trigrams.astype(np.uint64) + self._offsets) >> np.uint64(32)).min(1)
        return (minima.reshape(BANDS, ROWS) * self._mix).sum(1, dtype=np.uint64).tolist()

    def _insert(self, entry: tuple[str, str | int, np.ndarray], keys: Sequence[int]) -> None:
        free = [(b, key) for b, key in zip(self._buckets, keys, strict=True) if len(b.get(key, ())) < BUCKET_SIZE]
        for bucket, key in free:
            bucket[key] = (*bucket.get(key, ()), len(self._entries))
        if free:
            self._entries.append(entry)
