"""Words of a text, and phrases looked up in them: whole words only, plurals included, the longest phrase first."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def plain(text: str) -> str:
    """The text in compatibility form (NFKC), its typographic quotes straight."""
    return unicodedata.normalize("NFKC", text).translate(_STRAIGHT)


def tokens(text: str) -> list[str]:
    """Words in lower case, without punctuation; a hyphen parts words, and the 's of a genitive falls away."""
    return [word.removesuffix("'s") for word in _WORD.findall(plain(text).lower())]


def plural(word: str) -> str:
    """The regular English plural; irregular ones must be listed beside their singular."""
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


class Phrases:
    """Phrases by name. `Phrases({"hat": ["cap", "bucket hat"]}).find(tokens("Two Bucket-hats"))` is
    [("hat", "bucket hats")]."""

    def __init__(self, by_name: Mapping[str, Iterable[str]], neutral: Iterable[str] = ()) -> None:
        """`neutral` phrases are found like the others, but not reported: they hide the shorter phrases inside them."""
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        for name, phrases in (*by_name.items(), ("", neutral)):
            for phrase in phrases:
                *first, last = tokens(phrase)
                for form in ((*first, last), (*first, plural(last))):
                    known = self._names.get(form, ())
                    self._names[form] = known if name in known else (*known, name)
        self._longest = max(map(len, self._names), default=0)
        self._first = {phrase[0] for phrase in self._names}

    def find(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """(name, phrase as written) of each phrase in the words, in order and without overlap."""
        found: list[tuple[str, str]] = []
        start = 0
        while start < len(words):
            size = self._match(words, start)
            names = self._names[tuple(words[start : start + size])] if size else ()
            if "" not in names:
                found += [(name, " ".join(words[start : start + size])) for name in names]
            start += size or 1
        return found

    def count(self, words: Sequence[str]) -> int:
        """How many of the words belong to a phrase."""
        return sum(len(phrase.split()) for _, phrase in self.find(words))

    def _match(self, words: Sequence[str], start: int) -> int:
        """Words in the longest phrase that begins here, 0 if none does."""
        if words[start] not in self._first:
            return 0
        for size in range(min(self._longest, len(words) - start), 0, -1):
            if tuple(words[start : start + size]) in self._names:
                return size
        return 0
