"""Comparison of several runs as tables: runs that differ only in their seed are one column, mean ± standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from training.evaluation.disentangle_result import MEASURES, Disentanglement
from training.evaluation.result import HEADINGS, Evaluation, flatten

Results = Mapping[Path, Disentanglement]
Evaluations = Mapping[Path, Evaluation | None]


class Quantity(NamedTuple):
    """A number of each run, a row of a table: name, decimals, its value in the results of a run, and its value by chance where
    that is the same for all runs."""

    name: str
    digits: int
    read: Callable[[Disentanglement, Evaluation | None], float | None]
    chance: Callable[[Disentanglement, Evaluation | None], float | None] = lambda result, evaluation: None


class Part(NamedTuple):
    """A table: the sentence that explains it, headings, rows of text."""

    sentence: str
    headings: list[str]
    rows: list[list[str]]


def groups(results: Results) -> dict[str, list[Path]]:
    """Runs by the fields of the configuration in which they differ, seed left out."""
    flat = {run: flatten(result.config) for run, result in results.items()}
    fields = sorted({key for one in flat.values() for key in one} - {"seed", "recipe"})
    differing = [key for key in fields if len({json.dumps(one.get(key)) for one in flat.values()}) > 1]
    grouped: dict[str, list[Path]] = {}
    for run, one in flat.items():
        grouped.setdefault(", ".join(f"{key} {one.get(key)}" for key in differing) or "all runs", []).append(run)
    return grouped


def compare(
    results: Results, evaluations: Evaluations, labels: Mapping[str, Sequence[Path]] | None = None
) -> tuple[str, list[Part]]:
    """Title, and the tables with one column a group: the runs of a label, or those that differ only in their seed. Raises
    ValueError for runs of different data."""
    fingerprints = {result.fingerprint for result in results.values()}
    if len(fingerprints) > 1:
        raise ValueError(f"the runs are of different data and cannot be compared, fingerprints {sorted(fingerprints)}")
    first, grouped = next(iter(results.values())), labels or groups(results)
    evaluated = next((evaluation for evaluation in evaluations.values() if evaluation), None)
    parts = []
    for sentence, quantities in sections(first):
        rows = []
        for quantity in quantities:
            cells = [cell([(results[run], evaluations[run]) for run in runs], quantity) for runs in grouped.values()]
            chance = quantity.chance(first, evaluated)
            rows.append([quantity.name, *cells, "–" if chance is None else f"{chance:.{quantity.digits}f}"])
        parts.append(Part(sentence, ["", *grouped, "chance"], rows))
    seeds = "; ".join(
        f"{label}: seeds {', '.join(str(results[run].config['seed']) for run in runs)}"
        for label, runs in grouped.items()
    )
    return f"test split of {first.counts.images} images, {first.counts.ids} identities; {seeds}", parts


def sections(result: Disentanglement) -> list[tuple[str, list[Quantity]]]:
    """Quantities that `result` holds, by table, with the sentence that explains each table."""
    tables: list[tuple[str, list[Quantity]]] = []
    if result.summary:
        scores = [_score(feature, kind) for feature in result.summary for kind in ("identity", "clothing")]
        tables.append((READ_PROBES, scores))
    tables.append((READ_DEPENDENCE, [row for name in MEASURES for row in _dependence(name)]))
    if result.retrieval:
        names = list(result.retrieval["other"].features)
        tables.append((READ_RETRIEVAL, [_retrieval("other", name, key) for name in names for key in ("R1", "mAP")]))
        tables.append((READ_SAME, [_retrieval("same", name, "R1") for name in names]))
    tables.append((READ_DUAL, [_dual("R1"), _dual("mAP"), _dual("mAP", beta0=True)]))
    return tables


BEGIN, END = "<!-- disentangle:begin -->", "<!-- disentangle:end -->"
READ_CELLS = "Each cell: mean ± standard deviation over the seeds."
READ_PROBES = (
    "Linear probes: mean over the factors of (balanced accuracy − majority) / (100 − majority), in percent; 100 reads "
    "every factor, 0 none. Decoupled: `f_id` high on identity and low on clothing, `f_clo` the reverse. `f_final` reads "
    "the caption too; `f_final_other` the caption of another person. Floors: `colours`, the mean colours on a grid of 8 x 4 "
    "cells, and `untrained`, the encoder before training. `other_kind`: prediction of the identity factors from "
    "the true clothing factors and vice versa, since a dress goes with a woman."
)
READ_DEPENDENCE = (
    "Dependence of `f_id` and `f_clo`; 0 would be independence. The value of permuted people is chance for one image of each "
    "person, not for all images: the biased CKA of unrelated features falls with the number of images."
)
READ_RETRIEVAL = (
    "The same person in other clothes, image to image, percent: higher is better, and matching clothes cannot help."
)
READ_SAME = (
    "The same person in the same clothes, R-1 in percent: the difference from other clothes is the share of clothes in the "
    "feature (and of all else that the images of one day have in common)."
)
READ_DUAL = "Text-to-image retrieval, protocol `dual`, at the β chosen on validation, and at β = 0."


def _score(feature: str, kind: str) -> Quantity:
    def read(result: Disentanglement, _: Evaluation | None) -> float | None:
        value = result.summary.get(feature, {}).get(kind) if result.summary else None
        return None if value is None else 100.0 * value

    return Quantity(f"{feature}: {kind}", 2, read, lambda result, _: 0.0)


def _dependence(name: str) -> list[Quantity]:
    """A measure over all images; over one image of each person; and over these with the people permuted, which is chance for that
    sample and these features, and so differs between runs."""
    digits = 5 if name == "hsic" else 3
    return [
        Quantity(f"{name}, all images", digits, lambda result, _: result.dependence.measure(name).value),
        Quantity(f"{name}, one image a person", digits, lambda result, _: result.dependence.measure(name).sample),
        Quantity(f"{name}, the same permuted", digits, lambda result, _: result.dependence.measure(name).null_mean),
    ]


def _retrieval(gallery: str, feature: str, key: str) -> Quantity:
    def read(result: Disentanglement, _: Evaluation | None) -> float | None:
        features = result.retrieval[gallery].features if result.retrieval else {}
        return features[feature].metric(key) if feature in features else None

    def chance(result: Disentanglement, _: Evaluation | None) -> float | None:
        values = result.retrieval[gallery].chance if result.retrieval else None
        return values[key] if values else None

    return Quantity(f"{feature} {gallery} {HEADINGS[key]}", 2, read, chance)


def _dual(key: str, beta0: bool = False) -> Quantity:
    def read(_: Disentanglement, evaluation: Evaluation | None) -> float | None:
        if evaluation is None:
            return None
        return (evaluation.metrics_beta0 if beta0 else evaluation.metrics)[key]

    name = f"dual {HEADINGS[key]}" + " β 0" * beta0
    return Quantity(name, 2, read, lambda _, evaluation: evaluation.chance[key] if evaluation else None)


def cell(pairs: Sequence[tuple[Disentanglement, Evaluation | None]], quantity: Quantity) -> str:
    """Mean ± standard deviation (n − 1) of a quantity over the runs of a group; – without a value."""
    values = [value for pair in pairs if (value := quantity.read(*pair)) is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{quantity.digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{quantity.digits}f}{spread}"


def markdown(title: str, parts: Sequence[Part], page: str | None) -> str:
    """`page` with the comparison in Markdown between its lines BEGIN and END; the rest is kept. None makes a new page.
    Raises ValueError for a page without these two lines."""
    several = any("±" in text for part in parts for row in part.rows for text in row)
    cells = READ_CELLS if several else "Each column is one run: the spread over seeds is not known."
    lines = [BEGIN, f"Generated by `python -m training.disentangle`: {title}. {cells}", ""]
    for part in parts:
        rows = [part.headings, ["---"] * len(part.headings), *part.rows]
        lines += [part.sentence, "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    section = "\n".join(lines) + END
    if page is None:
        return f"# Disentanglement\n\n{section}\n"
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"--markdown names a page that lacks the lines {BEGIN} and {END}, between which it is written")
    return page[: page.index(BEGIN)] + section + page[page.index(END) + len(END) :]
