"""Words that a tokenizer does not know: it has no token for them, or spells them out in characters or bytes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

WORD = re.compile(r"[^\W\d_]+")
# Words per call of the tokenizer; bounds the memory of its intermediate lists.
CHUNK = 4096


def unknown_words(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Those of `words` that the tokenizer does not know.

    A word is unknown if one of its tokens is the unknown token, or if it has as many tokens as characters: one character is
    known by its token, and so is each character of a script that is written without spaces.
    """
    unknown = []
    for start in range(0, len(words), CHUNK):
        part = list(words[start : start + CHUNK])
        # A space in front, without which some tokenizers take a word for the rest of another.
        ids = tokenizer([f" {word}" for word in part], add_special_tokens=False)["input_ids"]
        unknown += [word for word, tokens in zip(part, ids, strict=True) if _is_unknown(word, tokens, tokenizer)]
    return unknown


def count_unknown(tokenizer: Any, texts: Iterable[str]) -> tuple[int, int, list[str]]:
    """(unknown words, words, the unknown ones by frequency) of texts; a word counts each time it occurs."""
    counts = Counter(word for text in texts for word in WORD.findall(text))
    unknown = sorted(unknown_words(tokenizer, list(counts)), key=lambda word: (-counts[word], word))
    return sum(counts[word] for word in unknown), counts.total(), unknown


def _is_unknown(word: str, tokens: Sequence[int], tokenizer: Any) -> bool:
    if not tokens or tokenizer.unk_token_id in tokens:
        return True
    # One token each is how WordPiece knows ideographs; bytes are two or three.
    unspaced = any(unicodedata.category(character) == "Lo" for character in word)
    return len(tokens) > len(word) if unspaced or len(word) == 1 else len(tokens) >= len(word)
