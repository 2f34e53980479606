"""The page for the inspection of generated texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training import report
from training.data.datasets import Record
from training.describe.options import show_progress
from training.describe.text.records import STATUSES, TextRecord, read_text_records
from training.describe.text.schema import KINDS, Kind, Schema
from training.describe.text.tally import TextTally, get_checks
from training.describe.text.text_checks import Limits
from training.report import plots
from training.report.thumbnails import thumbnail

# Number of reasons listed, the most frequent first.
MAX_REASONS = 20


def build_page(
    descriptions: Path,
    records: Mapping[str, Record],
    schema: Schema,
    limits: Limits,
    sample: int,
    seed: int,
    status: str | None,
) -> str:
    """Renders the page as one HTML document without external references; equal files and arguments give equal documents.

    sample: number of images shown, drawn with `seed`; status: show images of this status only. Raises what `read_text_records`
    raises, and ValueError where no record has that status.
    """
    counts, candidates = TextTally(schema, limits), list[str]()
    for text in show_progress(read_text_records(descriptions), "texts"):
        counts.add(text, records.get(text.file_path))
        if status in (None, text.status):
            candidates.append(text.file_path)
    if not candidates:
        raise ValueError(f"{descriptions} has no record{f' of status {status}' if status else ''}")
    chosen = set(random.Random(seed).sample(candidates, min(sample, len(candidates))))
    cards = [
        _card(text, records, schema, limits) for text in read_text_records(descriptions) if text.file_path in chosen
    ]
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sheets = (Path(report.__file__).with_name("page.css"), folder / "page.css")
    return environment.get_template("page.html.j2").render(
        css=Markup("".join(sheet.read_text(encoding="utf-8") for sheet in sheets)),
        name=descriptions.name,
        counts=counts,
        statuses=STATUSES,
        reasons=counts.reasons.most_common(MAX_REASONS),
        styles=sorted(counts.styles.items(), key=lambda item: (item[0] is None, item[0])),
        lengths={kind: _lengths(kind, counts.lengths[kind]) for kind in KINDS},
        agreement={name: values for name, values in counts.agreement.items() if values[0]},
        cards=cards,
        shown_of=len(candidates),
        status=status,
    )


def _lengths(kind: Kind, counted: Counter[int]) -> dict[str, Any] | None:
    """Histogram of the number of words, with its mean, extremes and plot (at most 60 bars); None without a text."""
    if not counted:
        return None
    least, most = min(counted), max(counted)
    width = -(-(most - least + 1) // 60)
    edges = np.arange(least, most + width + 1, width) - 0.5
    heights, _ = np.histogram(list(counted), edges, weights=list(counted.values()))
    mean = sum(length * count for length, count in counted.items()) / counted.total()
    plot = plots.histogram(
        edges.tolist(),
        heights.tolist(),
        mean,
        label=f"words of the {kind} text",
        x_label="words",
        colour=KINDS.index(kind),
    )
    return {"mean": mean, "least": least, "most": most, "plot": plot}


def _card(text: TextRecord, records: Mapping[str, Record], schema: Schema, limits: Limits) -> dict[str, Any]:
    record, checks = records.get(text.file_path), get_checks(text, schema, limits)
    return {
        "text": text,
        "record": record,
        "image": None if record is None else thumbnail(record.path),
        "passed": [name for name, reason in checks.items() if not reason],
        "failed": {name: reason for name, reason in checks.items() if reason},
        "recorded": text.checks is not None,
    }
