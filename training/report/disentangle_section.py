"""Section about disentanglement: RUN/disentangle.json and .npz as tables and Fig. 4."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.evaluation.disentangle_result import (
    GALLERIES,
    Disentanglement,
    Galleries,
    Layout,
    Probe,
    Probes,
    Retrieval,
)
from training.report import plots_paper
from training.synthetic.attributes import COLOURS

# Features in the plots; the tables have all.
SHOWN = ("entangled", "f_id", "f_clo")
NAMES = {
    "entangled": "entangled",
    "f_id": "f_id",
    "f_clo": "f_clo",
    "v_id": "v_id",
    "v_clo": "v_clo",
    "f_final": "f_final",
    "f_final_other": "f_final, other caption",
    "colours": "floor: 8 x 4 mean colours",
    "untrained": "floor: untrained encoder",
    "other_kind": "true factors of the other kind",
}
DEPENDENCE = {
    "hsic": "HSIC, unbiased, RBF",
    "hsic_normalised": "HSIC, normalised",
    "cka": "linear CKA",
    "cka_debiased": "linear CKA, debiased",
}


def section(result: Disentanglement, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Values of the template; "probes", "retrieval" and "plots" are empty where only dependence was measured."""
    probes = _probes(result.probes, result.summary) if result.probes and result.summary else {"probes": []}
    return {
        "counts": result.counts,
        "features": {NAMES.get(name, name): text for name, text in result.features.items()},
        "dependence": [(title, result.dependence.measure(name)) for name, title in DEPENDENCE.items()],
        "people": result.dependence.people,
        "retrieval": _retrieval(result.retrieval) if result.retrieval else [],
        **probes,
        "plots": _layout(arrays, result.tsne) if result.tsne else [],
    }


def _probes(probes: Probes, summary: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """Rows of the table, the summary by feature, and the plot of the scores."""
    measured = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
    probed = [name for name in summary if name != "other_kind"]
    series: dict[str, list[float | None]] = {
        NAMES[feature]: [100 * probe.features[feature].score for probe in measured.values()]
        for feature in SHOWN
        if feature in probed
    }
    series[NAMES["other_kind"]] = [
        100 * (probe.other_kind - probe.baseline) / (100 - probe.baseline) for probe in measured.values()
    ]
    kinds = [probe.kind for probe in measured.values()]
    plot = plots_paper.dots(
        [name.replace("_", " ") for name in measured],
        series,
        label="scores of the linear probes",
        x_label="score, % of the way from the majority baseline to 100",
        groups=[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]],
    )
    return {
        "probes": [_probe_row(name.replace("_", " "), probe, probed) for name, probe in probes.items()],
        "probed": [NAMES[name] for name in probed],
        "summary": [(NAMES[name], scores) for name, scores in summary.items()],
        "probe_plot": plot,
    }


def _probe_row(name: str, probe: Any, probed: list[str]) -> dict[str, Any]:
    if not isinstance(probe, Probe):
        return {"name": name, "kind": probe.kind, "skipped": probe.skipped}
    found = [probe.features.get(feature) for feature in probed]
    cells = [f"{accuracy.mean:.1f} ± {accuracy.std:.1f}" if accuracy else "–" for accuracy in found]
    row = {"name": name, "kind": probe.kind, "skipped": None, "cells": cells, "classes": len(probe.classes)}
    return row | {"baseline": probe.baseline, "other": probe.other_kind}


def _retrieval(galleries: Galleries) -> list[dict[str, Any]]:
    """One row a feature, then chance: R-1 and mAP in other and in the same clothes, with their intervals."""

    def cell(result: Retrieval | None, key: str) -> tuple[str, str]:
        return (f"{result.metric(key):.2f}", "{:.2f} – {:.2f}".format(*result.interval[key])) if result else ("–", "")

    columns = [(galleries[name], key) for name in GALLERIES for key in ("R1", "mAP")]
    rows = [
        {"name": NAMES[name], "cells": [cell(gallery.features.get(name), key) for gallery, key in columns], "kind": ""}
        for name in galleries["other"].features
    ]
    chances = [(f"{gallery.chance[key]:.2f}" if gallery.chance else "–", "") for gallery, key in columns]
    return [*rows, {"name": "chance", "cells": chances, "kind": "quiet"}]


def _layout(arrays: dict[str, np.ndarray], layout: Layout) -> list[tuple[str, Any]]:
    """Fig. 4: each feature twice, coloured by a factor of the person and by the colour of the upper garment."""
    plots = []
    for name in SHOWN:
        for kind, factor in (("identity", layout.identity_factor), ("clothing", layout.clothing_factor)):
            title = f"{NAMES[name]}, by {factor.replace('_', ' ')}"
            colours = COLOURS if kind == "clothing" else None
            values, label = arrays[f"tsne_{kind}"].tolist(), f"t-SNE of {title}"
            plots.append((title, plots_paper.scatter(arrays[f"tsne_{name}"], values, label=label, colours=colours)))
    return plots
