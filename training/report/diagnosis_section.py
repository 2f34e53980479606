"""Section of a run's page with the diagnosis of the run."""

from __future__ import annotations

from typing import Any

from training.evaluation.diagnosis.diagnosis_result import Diagnosis, Sample


def section(diagnosis: Diagnosis) -> dict[str, Any]:
    """Contents of the section as text: bounded values, losses with their gradients, and the other measurements."""
    values, shares = diagnosis.values(), diagnosis.shares()
    checks = [
        {
            "name": bound.name,
            "value": f"{values[bound.key]:.3g}{bound.unit}",
            "limits": bound.limits(),
            "holds": bound.holds(values[bound.key]),
            "reason": bound.reason,
        }
        for bound in diagnosis.bounds()
        if bound.key in values
    ]
    tasks = []
    for name, task in diagnosis.tasks.items():
        weight = "fixed" if task.weight is None else f"{task.weight:.3f}"
        share = "at its bound" if task.at_its_bound else f"{shares[name]:.1f} %" if name in shares else "–"
        numbers = (f"{x:.3g}" for x in (task.loss_start, task.loss_end, task.norm_start, task.norm_end))
        tasks.append((name, [*numbers, weight, share]))
    return {
        "checks": checks,
        "wrong": sum(not check["holds"] for check in checks),
        "tasks": tasks,
        "others": _others(diagnosis),
        "sample": _words(diagnosis.sample),
        "described": _words(diagnosis.described),
        "unseen": diagnosis.described.split != "train",
    }


def _words(sample: Sample) -> str:
    return f"{sample.images:,} images of {sample.ids:,} people of {sample.split}"


def _others(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    info, own, head, search = diagnosis.info_nce, diagnosis.own_caption, diagnosis.matching, diagnosis.search
    rows = [("InfoNCE of captions", f"{info.loss:.3f}, at chance {info.chance:.3f}")]
    if own is not None:
        text = f"{own.right_image:.1f} %, with a wrong image {own.wrong_image:.1f} %, by chance {own.chance:.1f} %"
        rows.append(("f_final finds its own caption", text))
    if head is not None:
        rows.append(("AUC of the matching head", f"random {head.auc_random:.3f}, most similar {head.auc_hard:.3f}"))
    if search is not None:
        rows.append(("identity text → v_id, R-1", f"{search.identity_v_id:.1f} %, by chance {search.chance:.1f} %"))
        rows.append(("clothing text → v_id, R-1", f"{search.clothing_v_id:.1f} %"))
        if search.clothing_v_clo is not None:
            rows.append(("clothing text → v_clo, R-1", f"{search.clothing_v_clo:.1f} %"))
    return rows
