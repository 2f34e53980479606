"""What the texts of a file have in common: counts by status, reason, check and style, lengths, agreement with captions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from training.data.datasets import Record
from training.describe.text.phrase_index import tokens
from training.describe.text.records import Text
from training.describe.text.schema import KINDS, Kind, Schema
from training.describe.text.text_checks import Limits, check_texts


def checks_of_text(text: Text, schema: Schema, limits: Limits) -> dict[str, str]:
    """The recorded checks; where there are none, those of today; {} where there is no text to check."""
    if text.checks is not None:
        return text.checks
    if not text.identity and not text.clothing:
        return {}
    return check_texts(text.identity, text.clothing, schema, limits)


@dataclass
class Counts:
    """Counts over many texts, one `add` each."""

    schema: Schema
    limits: Limits
    status: Counter[str] = field(default_factory=Counter)
    # Of records that are not "ok": what stands before the first ": " of the reason.
    reasons: Counter[str] = field(default_factory=Counter)
    # Name of the check -> texts that passed it, texts that failed it.
    checks: dict[str, list[int]] = field(default_factory=dict)
    styles: dict[int | None, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    models: Counter[str] = field(default_factory=Counter)
    # Numbers of words of the texts of "ok" records.
    lengths: dict[Kind, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    # Attribute -> images whose captions name it; those whose text names it too; those with a word for it in common.
    agreement: dict[str, list[int]] = field(default_factory=dict)
    # Records whose image is not in the data set.
    strange: int = 0

    def add(self, text: Text, record: Record | None) -> None:
        """Counts one text; `record` is its image, None when the data set has none of that name."""
        self.status[text.status] += 1
        self.styles[text.style][text.status] += 1
        self.models[text.model or "not recorded"] += 1
        for name, why in checks_of_text(text, self.schema, self.limits).items():
            self.checks.setdefault(name, [0, 0])[bool(why)] += 1
        if text.status != "ok":
            self.reasons[text.reason.partition(": ")[0] or "not recorded"] += 1
            self.strange += record is None
            return
        words: Mapping[Kind, list[str]] = {"identity": tokens(text.identity), "clothing": tokens(text.clothing)}
        for kind in KINDS:
            self.lengths[kind][len(words[kind])] += 1
        if record is None:
            self.strange += 1
            return
        self._compare(words, tokens(" . ".join(record.captions)))

    def _compare(self, words: Mapping[Kind, list[str]], caption: list[str]) -> None:
        for kind in KINDS:
            covered = self.schema.lookup(kind).covered
            ours, theirs = covered.by_name(words[kind]), covered.by_name(caption)
            for item in self.schema.attributes(kind):
                counts = self.agreement.setdefault(item.name, [0, 0, 0])
                if item.name in theirs:
                    counts[0] += 1
                    counts[1] += item.name in ours
                    counts[2] += bool(theirs[item.name] & ours.get(item.name, set()))
