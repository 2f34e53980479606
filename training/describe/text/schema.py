"""Schema of the attributes that generated texts describe, read from a file that users may replace: attributes.json beside this.

{"identity": {"attributes": [...], "neutral": [...]}, "clothing": {the same}}. An attribute has `name`, `description` (part of
the prompt), `words` (any of them in a text shows that the attribute is covered), `leaks` (words that the *other* text must
not contain), `sensitive` (may be left out of all texts) and `required` (a text without it is rejected). `neutral` phrases of a
kind are no leak into its text: "hair band" in an identity text. Words match whole words in any case, and their plurals.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from training.describe.text.patterns import FUNCTION_WORDS
from training.describe.text.phrase_index import PhraseIndex, tokenize

Kind = Literal["identity", "clothing"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_SCHEMA = Path(__file__).parent / "attributes.json"
_TYPES = {"name": str, "description": str, "words": list, "leaks": list, "sensitive": bool, "required": bool}


@dataclass(frozen=True)
class Attribute:
    """Attribute of a person or of the clothes."""

    name: str
    # Goes into the prompt.
    description: str
    # Any of these in a text shows that the text covers the attribute.
    words: tuple[str, ...]
    # Forbidden in the other text, and in every text when the attribute is left out.
    leaks: tuple[str, ...]
    # May be left out of all texts.
    sensitive: bool
    # A text that does not cover it is rejected.
    required: bool


@dataclass(frozen=True)
class PhraseIndexes:
    """Phrases that the checks look up in a text of one kind."""

    covered: PhraseIndex
    leaked: PhraseIndex
    left_out: PhraseIndex
    # Words by which English is recognised: function words and those of the schema.
    known: PhraseIndex


@dataclass(frozen=True)
class Schema:
    """Attributes by kind; `left_out` are those that no text may mention."""

    identity: tuple[Attribute, ...]
    clothing: tuple[Attribute, ...]
    # Phrases that are no leak in a text of that kind.
    neutral: dict[Kind, tuple[str, ...]] = field(hash=False)
    left_out: tuple[Attribute, ...] = ()

    def attributes(self, kind: Kind) -> tuple[Attribute, ...]:
        """Attributes that a text of this kind describes."""
        return self.identity if kind == "identity" else self.clothing

    def without(self, names: Sequence[str]) -> Schema:
        """The schema with these sensitive attributes left out of prompts and forbidden in texts.

        Raises ValueError for a name that is not a sensitive attribute, and where no attribute of a kind would remain.
        """
        sensitive = [item.name for item in (*self.identity, *self.clothing) if item.sensitive]
        unknown = [name for name in names if name not in sensitive]
        if unknown:
            raise ValueError(
                f"leave_out must name sensitive attributes of the schema ({', '.join(sensitive) or 'it has none'}), "
                f"got {', '.join(unknown)}"
            )
        kept = {kind: tuple(item for item in self.attributes(kind) if item.name not in names) for kind in KINDS}
        empty = [kind for kind in KINDS if not kept[kind]]
        if empty:
            raise ValueError(f"leave_out={', '.join(names)} leaves no attribute of {' and '.join(empty)}")
        removed = tuple(item for item in (*self.identity, *self.clothing) if item.name in names)
        return Schema(kept["identity"], kept["clothing"], self.neutral, (*self.left_out, *removed))

    def indexes(self, kind: Kind) -> PhraseIndexes:
        """Phrases that the checks look up in a text of this kind; cached."""
        return _build_indexes(self, kind)


@lru_cache(maxsize=16)
def _build_indexes(schema: Schema, kind: Kind) -> PhraseIndexes:
    own, neutral = schema.attributes(kind), schema.neutral[kind]
    other: tuple[Attribute, ...] = schema.attributes("clothing" if kind == "identity" else "identity")
    everything = (*own, *other, *schema.left_out)
    return PhraseIndexes(
        covered=PhraseIndex({item.name: item.words for item in own}),
        leaked=PhraseIndex({item.name: item.leaks for item in other}, neutral),
        left_out=PhraseIndex({item.name: item.leaks for item in schema.left_out}, neutral),
        known=PhraseIndex({"known": FUNCTION_WORDS.union(*((*item.words, *item.leaks) for item in everything))}),
    )


def load_schema(path: Path | str | None = None) -> Schema:
    """Reads the schema in a file, by default attributes.json beside this.

    Raises FileNotFoundError, or ValueError naming the file, the field and the expected value.
    """
    file = DEFAULT_SCHEMA if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"the attribute schema {file} does not exist")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != set(KINDS):
        raise ValueError(f"{file} must be an object with the keys {' and '.join(KINDS)}, got {_excerpt(value)}")
    attributes, neutral = {}, {}
    for kind in KINDS:
        part, where = value[kind], f"{file}: {kind}"
        if not isinstance(part, dict) or set(part) != {"attributes", "neutral"}:
            raise ValueError(f"{where} must be an object with the keys attributes and neutral, got {_excerpt(part)}")
        neutral[kind] = _phrases(part["neutral"], f"{where}.neutral")
        if not isinstance(part["attributes"], list) or not part["attributes"]:
            raise ValueError(f"{where}.attributes must be a list of at least one attribute")
        attributes[kind] = tuple(
            _attribute(item, f"{where}.attributes[{i}]") for i, item in enumerate(part["attributes"])
        )
    names = [item.name for kind in KINDS for item in attributes[kind]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} names attributes more than once: {', '.join(repeated)}")
    return Schema(attributes["identity"], attributes["clothing"], neutral)


def _attribute(item: Any, where: str) -> Attribute:
    if not isinstance(item, dict) or set(item) != set(_TYPES):
        raise ValueError(f"{where} must be an object with the keys {', '.join(_TYPES)}, got {_excerpt(item)}")
    for key, kind in _TYPES.items():
        if not isinstance(item[key], kind):
            raise ValueError(f"{where}.{key} must be of type {kind.__name__}, got {item[key]!r}")
    for key in ("name", "description"):
        if not item[key].strip():
            raise ValueError(f"{where}.{key} must not be empty")
    words, leaks = _phrases(item["words"], f"{where}.words"), _phrases(item["leaks"], f"{where}.leaks")
    if not words:
        raise ValueError(f"{where}.words must have at least one word: no text could cover {item['name']}")
    if item["sensitive"] and not leaks:
        raise ValueError(
            f"{where}.leaks must have at least one word: {item['name']} is sensitive, and could not be left out"
        )
    return Attribute(
        item["name"].strip(), item["description"].strip(), words, leaks, item["sensitive"], item["required"]
    )


def _phrases(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and tokenize(item) for item in value):
        raise ValueError(f"{where} must be a list of words and phrases, got {_excerpt(value)}")
    return tuple(value)


def _excerpt(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
