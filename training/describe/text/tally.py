"""Counts over the texts of a file: by status, reason, check and style, by length, and agreement with the captions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from training.data.datasets import Record
from training.describe.text.phrase_index import tokenize
from training.describe.text.records import TextRecord
from training.describe.text.schema import KINDS, Kind, Schema
from training.describe.text.text_checks import Limits, check_texts


def get_checks(text: TextRecord, schema: Schema, limits: Limits) -> dict[str, str]:
    """Recorded checks of a text, by name -> "" or the reason of a failure; computed where none were recorded.

    {} where there is no text to check.
    """
    if text.checks is not None:
        return text.checks
    if not text.identity and not text.clothing:
        return {}
    return check_texts(text.identity, text.clothing, schema, limits)


@dataclass
class TextTally:
    """Counts over many records, one `add` each."""

    schema: Schema
    limits: Limits
    status: Counter[str] = field(default_factory=Counter)
    # Records that are not "ok", by the part of their reason before the first ": ".
    reasons: Counter[str] = field(default_factory=Counter)
    # Name of the check -> [texts that passed it, texts that failed it].
    checks: dict[str, list[int]] = field(default_factory=dict)
    styles: dict[int | None, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    models: Counter[str] = field(default_factory=Counter)
    # Number of words -> texts, over "ok" records.
    lengths: dict[Kind, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    # Attribute -> [images whose captions name it, those whose text names it too, those that share a word for it].
    agreement: dict[str, list[int]] = field(default_factory=dict)
    # Records whose image is not in the data set.
    unknown_images: int = 0

    def add(self, text: TextRecord, record: Record | None) -> None:
        """Counts one text; `record`: its image in the data set, None where it has no such image."""
        self.status[text.status] += 1
        self.styles[text.style][text.status] += 1
        self.models[text.model or "not recorded"] += 1
        for name, why in get_checks(text, self.schema, self.limits).items():
            self.checks.setdefault(name, [0, 0])[bool(why)] += 1
        if text.status != "ok":
            self.reasons[text.reason.partition(": ")[0] or "not recorded"] += 1
            self.unknown_images += record is None
            return
        words: Mapping[Kind, list[str]] = {"identity": tokenize(text.identity), "clothing": tokenize(text.clothing)}
        for kind in KINDS:
            self.lengths[kind][len(words[kind])] += 1
        if record is None:
            self.unknown_images += 1
            return
        self._compare(words, tokenize(" . ".join(record.captions)))

    def _compare(self, words: Mapping[Kind, list[str]], caption: list[str]) -> None:
        for kind in KINDS:
            covered = self.schema.indexes(kind).covered
            in_text, in_caption = covered.by_name(words[kind]), covered.by_name(caption)
            for item in self.schema.attributes(kind):
                counts = self.agreement.setdefault(item.name, [0, 0, 0])
                if item.name in in_caption:
                    counts[0] += 1
                    counts[1] += item.name in in_text
                    counts[2] += bool(in_caption[item.name] & in_text.get(item.name, set()))
