"""Several runs beside each other: runs that differ in nothing but their seed are one row, mean ± standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.disentangle.dependence import MEASURES
from training.evaluation.audit_guard import refuse_audit

Results = Mapping[Path, dict[str, Any]]
Evaluations = Mapping[Path, dict[str, Any] | None]


class Column(NamedTuple):
    """A number of each run: its name, decimals, and where it stands in disentangle.json and eval.json, if it does."""

    name: str
    digits: int
    read: Callable[[dict[str, Any], dict[str, Any] | None], float | None]


class Part(NamedTuple):
    """One table: the sentence that says how to read it, headings, rows of text."""

    sentence: str
    headings: list[str]
    rows: list[list[str]]


def groups(results: Results) -> dict[str, list[Path]]:
    """Runs by the fields of the configuration in which they differ, seed left out."""
    flat = {run: _flatten(result["config"]) for run, result in results.items()}
    fields = sorted({key for one in flat.values() for key in one} - {"seed", "recipe"})
    differing = [key for key in fields if len({json.dumps(one.get(key)) for one in flat.values()}) > 1]
    found: dict[str, list[Path]] = {}
    for run, one in flat.items():
        found.setdefault(", ".join(f"{key} {one.get(key)}" for key in differing) or "all runs", []).append(run)
    return found


def compare(
    results: Results, evaluations: Evaluations, labels: Mapping[str, Sequence[Path]] | None = None
) -> tuple[str, list[Part]]:
    """Title, and the tables with one column a group: the runs of a label, or those that differ in nothing but their seed.
    Raises ValueError for runs of different data and for a paired-audit."""
    prints = {result["fingerprint"] for result in results.values()}
    if len(prints) > 1:
        raise ValueError(f"the runs are of different data and cannot be compared, fingerprints {sorted(prints)}")
    for run, evaluation in evaluations.items():
        refuse_audit(evaluation, str(run / "eval.json"))
    first, found = next(iter(results.values())), labels or groups(results)
    parts = []
    for sentence, columns in sections(first):
        rows = []
        for column in columns:
            cells = [cell([(results[run], evaluations[run]) for run in runs], column) for runs in found.values()]
            rows.append([column.name, *cells, _chance(first, evaluations, column)])
        parts.append(Part(sentence, ["", *found, "chance"], rows))
    counts = first["counts"]
    seeds = "; ".join(
        f"{label}: seeds {', '.join(str(results[run]['config']['seed']) for run in runs)}"
        for label, runs in found.items()
    )
    return f"test split of {counts['images']} images, {counts['ids']} identities; {seeds}", parts


def sections(result: dict[str, Any]) -> list[tuple[str, list[Column]]]:
    """Columns under the sentence that says how to read them, for what `result` holds."""
    found: list[tuple[str, list[Column]]] = []
    if result["summary"]:
        found.append((READ_PROBES, [_score(f, k) for f in result["summary"] for k in ("identity", "clothing")]))
    found.append((READ_DEPENDENCE, [_dependence(name) for name in MEASURES]))
    if result["retrieval"]:
        names = list(result["retrieval"]["other"]["features"])
        found.append((READ_RETRIEVAL, [_retrieval("other", name, key) for name in names for key in ("R1", "mAP")]))
        found.append((READ_SAME, [_retrieval("same", name, "R1") for name in names]))
    found.append((READ_DUAL, [_dual("metrics", "R1"), _dual("metrics", "mAP"), _dual("metrics_beta0", "mAP")]))
    return found


BEGIN, END = "<!-- disentangle:begin -->", "<!-- disentangle:end -->"
READ_CELLS = "Each cell is the mean ± the standard deviation over the seeds."
READ_PROBES = (
    "Linear probes: mean over the factors of (balanced accuracy − majority) / (100 − majority), in percent; 100 reads "
    "every factor, 0 none. Decoupled: `f_id` high on identity and low on clothing, `f_clo` the other way round. `f_final` "
    "reads the caption too; `f_final_other` one of somebody else. `other_kind`: the true clothes tell that much of the "
    "identity, the true identity that much of the clothes, since a dress goes with a woman."
)
READ_DEPENDENCE = (
    "Dependence of `f_id` and `f_clo` over all test images: the lower, the less one tells about the other."
)
READ_RETRIEVAL = "The same person in other clothes, image to image, percent: higher is better, and clothes cannot help."
READ_SAME = (
    "The same person in the same clothes, R-1 in percent: how much higher than in other clothes is what the feature "
    "owes to clothes (and to what else one day's pictures share)."
)
READ_DUAL = "Text-to-image retrieval, protocol `dual`, at the β chosen on validation, and at β = 0."


def _score(feature: str, kind: str) -> Column:
    def read(result: dict[str, Any], _: dict[str, Any] | None) -> float | None:
        value = result["summary"].get(feature, {}).get(kind) if result["summary"] else None
        return None if value is None else 100.0 * value

    return Column(f"{feature}: {kind}", 2, read)


def _dependence(name: str) -> Column:
    return Column(name, 5 if name == "hsic" else 3, lambda result, _: result["dependence"][name]["value"])


def _retrieval(gallery: str, feature: str, key: str) -> Column:
    def read(result: dict[str, Any], _: dict[str, Any] | None) -> float | None:
        found = (result["retrieval"] or {}).get(gallery, {}).get("features", {}).get(feature)
        return found[key] if found else None

    return Column(f"{feature} {gallery} {'R-1' if key == 'R1' else key}", 2, read)


def _dual(field: str, key: str) -> Column:
    name = f"dual {'R-1' if key == 'R1' else key}" + " β 0" * (field == "metrics_beta0")
    return Column(name, 2, lambda _, evaluation: evaluation[field][key] if evaluation else None)


def cell(pairs: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], column: Column) -> str:
    """mean ± standard deviation (n − 1) of a column over the runs of a group; – where there is nothing."""
    values = [value for pair in pairs if (value := column.read(*pair)) is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{column.digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{column.digits}f}{spread}"


def markdown(title: str, parts: Sequence[Part], page: str | None) -> str:
    """The comparison in Markdown between the lines BEGIN and END, in place of what stood there in `page`; what is around
    them stays. None makes a new page. Raises ValueError for a page without these two lines."""
    several = any("±" in text for part in parts for row in part.rows for text in row)
    cells = READ_CELLS if several else "Each column is one run: how far seeds differ is not known."
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


def _chance(first: dict[str, Any], evaluations: Evaluations, column: Column) -> str:
    """Chance of a retrieval row, 0 of a score, the mean under permutations of the people for a measure of dependence."""
    name, key = column.name, column.name.replace(" β 0", "").rpartition(" ")[2].replace("R-1", "R1")
    if name in MEASURES:
        return f"{first['dependence'][name]['null_mean']:.{column.digits}f}"
    for gallery in ("other", "same"):
        if f" {gallery} " in name:
            return f"{first['retrieval'][gallery]['chance'][key]:.2f}"
    known = [evaluation for evaluation in evaluations.values() if evaluation]
    if name.startswith("dual"):
        return f"{known[0]['chance'][key]:.2f}" if known else "–"
    return "0"


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
