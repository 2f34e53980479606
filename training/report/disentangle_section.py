"""The section about disentanglement: what RUN/disentangle.json and .npz say, as tables and Fig. 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.report import plots_paper
from training.synthetic.attributes import COLOURS

# Features that the plot of the probes shows; the table has all.
SHOWN = ("entangled", "f_id", "f_clo")
NAMES = {
    "entangled": "entangled",
    "f_id": "f_id",
    "f_clo": "f_clo",
    "v_id": "v_id",
    "v_clo": "v_clo",
    "f_final": "f_final",
    "f_final_other": "f_final, other caption",
    "other_kind": "true factors of the other kind",
}
DEPENDENCE = {
    "hsic": "HSIC, unbiased, RBF",
    "hsic_normalised": "HSIC, normalised",
    "cka": "linear CKA",
    "cka_debiased": "linear CKA, debiased",
}
FIELDS = ("probes", "summary", "dependence", "retrieval", "tsne", "features", "counts", "checkpoint")


def read_disentangled(folder: Path, evaluation: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values`, the contents of disentangle.json, with "arrays", those of disentangle.npz.

    Raises FileNotFoundError when the arrays are missing, ValueError for a missing field or another checkpoint than the
    one that was evaluated.
    """
    path, stored = folder / "disentangle.json", folder / "disentangle.npz"
    lacking = [name for name in FIELDS if name not in values]
    if lacking:
        raise ValueError(f"{path} lacks the fields {', '.join(lacking)}")
    evaluated = (evaluation.get("checkpoint") or {}).get("sha256")
    if values["checkpoint"]["sha256"] != evaluated:
        raise ValueError(f"{path} is of another checkpoint than eval.json; move the older of the two away")
    if not stored.is_file():
        raise FileNotFoundError(f"{stored} is missing: run `python -m training.disentangle {folder}` again")
    with np.load(stored) as arrays:
        return values | {"arrays": {name: arrays[name] for name in arrays}}


def section(values: dict[str, Any]) -> dict[str, Any]:
    """What the template shows; "probes", "retrieval" and "plots" are empty where only dependence was measured."""
    return {
        "counts": values["counts"],
        "features": {NAMES.get(name, name): text for name, text in values["features"].items()},
        "dependence": [(title, values["dependence"][name]) for name, title in DEPENDENCE.items()],
        "people": values["dependence"]["people"],
        "retrieval": _retrieval(values["retrieval"]) if values["retrieval"] else [],
        **(_probes(values) if values["probes"] else {"probes": [], "summary": [], "probe_plot": None, "probed": []}),
        "plots": _layout(values["arrays"], values["tsne"]) if values["tsne"] else [],
    }


def _probes(values: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table, the summary by feature, and the plot of the scores."""
    measured = {name: result for name, result in values["probes"].items() if "features" in result}
    probed = [name for name in values["summary"] if name != "other_kind"]
    rows = []
    for name, result in values["probes"].items():
        row = {"name": name.replace("_", " "), "kind": result["kind"], "skipped": result.get("skipped")}
        if name in measured:
            found = [result["features"].get(feature) for feature in probed]
            row["cells"] = [f"{f['mean']:.1f} ± {f['std']:.1f}" if f else "–" for f in found]
            row |= {"classes": len(result["classes"]), "baseline": result["baseline"], "other": result["other_kind"]}
        rows.append(row)
    series: dict[str, list[float | None]] = {
        NAMES[feature]: [100 * result["features"][feature]["score"] for result in measured.values()]
        for feature in SHOWN
        if feature in probed
    }
    series["true factors of the other kind"] = [
        100 * (r["other_kind"] - r["baseline"]) / (100 - r["baseline"]) for r in measured.values()
    ]
    kinds = [result["kind"] for result in measured.values()]
    plot = plots_paper.dots(
        [name.replace("_", " ") for name in measured],
        series,
        label="scores of the linear probes",
        x_label="score, % of the way from the majority baseline to 100",
        groups=[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]],
    )
    summary = [(NAMES[name], pair) for name, pair in values["summary"].items()]
    return {"probes": rows, "probed": [NAMES[n] for n in probed], "summary": summary, "probe_plot": plot}


def _retrieval(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a feature, then chance: R-1 and mAP in other and in the same clothes, with their intervals."""
    rows = []
    for name in values["other"]["features"]:
        cells = []
        for gallery in ("other", "same"):
            found = values[gallery]["features"].get(name)
            for key in ("R1", "mAP"):
                cells.append(
                    (f"{found[key]:.2f}", "{:.2f} – {:.2f}".format(*found["interval"][key])) if found else ("–", "")
                )
        rows.append({"name": NAMES[name], "cells": cells, "kind": ""})
    chances = [values[gallery]["chance"] for gallery in ("other", "same")]
    cells = [(f"{chance[key]:.2f}" if chance else "–", "") for chance in chances for key in ("R1", "mAP")]
    return [*rows, {"name": "chance", "cells": cells, "kind": "quiet"}]


def _layout(arrays: dict[str, np.ndarray], shown: dict[str, Any]) -> list[tuple[str, Any]]:
    """Fig. 4: each feature twice, coloured by a factor of the person and by the colour of the upper garment."""
    plots = []
    for name in SHOWN:
        for kind in ("identity", "clothing"):
            factor = shown[f"{kind}_factor"].replace("_", " ")
            title = f"{NAMES[name]}, by {factor}"
            colours = COLOURS if kind == "clothing" else None
            values = arrays[f"tsne_{kind}"].tolist()
            plots.append(
                (title, plots_paper.scatter(arrays[f"tsne_{name}"], values, label=f"t-SNE of {title}", colours=colours))
            )
    return plots
