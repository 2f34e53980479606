"""Tokenising, and lookup of phrases in the words of a text: whole words only, plurals included, the longest match first."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def normalise_text(text: str) -> str:
    """The text in compatibility form (NFKC), with straight quotes."""
    return unicodedata.normalize("NFKC", text).translate(_STRAIGHT)


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation; split at hyphens, without the 's of a genitive."""
    return [word.removesuffix("'s") for word in _WORD.findall(normalise_text(text).lower())]


def plural(word: str) -> str:
    """Regular English plural; irregular ones must be listed beside their singular."""
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


class PhraseIndex:
    """Index of named phrases: `PhraseIndex({"hat": ["cap", "bucket hat"]}).find(tokenize("Two Bucket-hats"))` returns
    [("hat", "bucket hats")]."""

    def __init__(self, by_name: Mapping[str, Iterable[str]], neutral: Iterable[str] = ()) -> None:
        """`neutral` phrases are matched like the others but not reported: they hide the shorter phrases inside them."""
        # Words of a phrase or of its plural -> (name, phrase as listed) for each name that lists it.
        self._known: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}
        for name, phrases in (*by_name.items(), ("", neutral)):
            for phrase in phrases:
                *first, last = tokenize(phrase)
                for form in ((*first, last), (*first, plural(last))):
                    known = self._known.get(form, ())
                    if name not in dict(known):
                        self._known[form] = (*known, (name, phrase))
        self._longest = max(map(len, self._known), default=0)
        self._first = {phrase[0] for phrase in self._known}

    def find(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Pairs (name, phrase as written) of the phrases in the words, in order and without overlap."""
        return [(name, " ".join(form)) for form in self._forms(words) for name, _ in self._known[form] if name]

    def by_name(self, words: Sequence[str]) -> dict[str, set[str]]:
        """Maps each name to its phrases in the words, as listed: "caps" counts as "cap"."""
        found: dict[str, set[str]] = {}
        for form in self._forms(words):
            for name, phrase in self._known[form]:
                found.setdefault(name, set()).add(phrase)
        return found

    def count(self, words: Sequence[str]) -> int:
        """Number of words that belong to a phrase."""
        return sum(map(len, self._forms(words)))

    def _forms(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """Longest matches from left to right, without those hidden by a neutral phrase."""
        forms, start = [], 0
        while start < len(words):
            form = self._longest_at(words, start)
            forms += [form] if form and not any(name == "" for name, _ in self._known[form]) else []
            start += len(form) or 1
        return forms

    def _longest_at(self, words: Sequence[str], start: int) -> tuple[str, ...]:
        """Longest phrase that begins at `start`, () for none."""
        if words[start] not in self._first:
            return ()
        for size in range(min(self._longest, len(words) - start), 0, -1):
            form = tuple(words[start : start + size])
            if form in self._known:
                return form
        return ()
