"""Protocols, floor and ceiling on the pages of an experiment, from a summary of made-up numbers."""

from pathlib import Path
from typing import Any

from tests.support.fake_experiment import make_summary
from tests.support.html import Page
from training.evaluation.experiment_result import Summary
from training.evaluation.result import METRICS
from training.report.experiment_page import build_experiment, write_markdown
from training.utils.io import decode


def build(summary: dict[str, Any], name: str) -> str:
    return build_experiment(decode(Summary, summary, "summary.json"), name)


def test_protocols_are_columns(tmp_path: Path) -> None:
    summary = make_summary()
    measured = {"full": (30.0, 31.0, 32.0), "no-gate": (20.0, 20.0, 20.0)}
    for name, values in measured.items():
        metrics = {metric: [*values] for metric in METRICS}
        summary["runs"][name]["protocols"] = {"identity": {"metrics": metrics, "chance": dict.fromkeys(METRICS, 0.25)}}
    text, gate = Page(build(summary, "tables")).words(), "11.50 ± 0.10 41.50 ± 0.10 20.00 ± 0.00 20.00 ± 0.00"
    assert "dual R-1 dual mAP identity R-1 identity mAP" in text and "rerank R-1" not in text
    assert "+ BDAM 10.00 ± 0.10 40.00 ± 0.10 31.00 ± 1.00 31.00 ± 1.00" in text and f"w/o gate {gate}" in text
    assert "w/o cross-attention 8.00 ± 0.10 38.00 ± 0.10 – –" in text
    assert "chance 0.75 0.75 0.25 0.25" in text
    assert "By protocol" not in Page(build(make_summary(), "tables")).words(), "dual alone has its own table"
    page = write_markdown(decode(Summary, summary, ""), tmp_path / "page.md")[0].read_text()
    assert "| w/o gate | 11.50 ± 0.10 | 41.50 ± 0.10 | 20.00 ± 0.00 | 20.00 ± 0.00 |" in page


def test_floor_ceiling_and_the_gain_of_rerank_stand_beside_the_rows() -> None:
    summary = make_summary()

    def gain(delta: float, p: float) -> dict[str, Any]:
        return {"delta": delta, "per_seed": [delta], "same_sign": 1, "low": delta - 1, "high": delta + 1, "p": p}

    for name, p in (("full", 0.01), ("no-mamba", 0.5)):
        values = {"metrics": {metric: [30.0] for metric in METRICS}, "chance": dict.fromkeys(METRICS, 0.25)}
        summary["runs"][name]["protocols"] = {
            "rerank": values | {"against_dual": {"R1": gain(2.0, p), "mAP": gain(-1.0, p)}}
        }
    summary["oracle"] = {"oracle, all words": dict.fromkeys(METRICS, 98.5)}
    text = Page(build(summary, "tables")).words()
    assert text.count("oracle, all words 98.50 98.50 98.50 98.50 98.50") == 5, "beside the rows of five tables"
    assert "oracle 98.50 98.50 98.50 98.50" in text, "of dual and of rerank"
    # Two rows: Holm's correction doubles the smaller p.
    gains = "+2.00 +1.00 … +3.00 {0} -1.00 -2.00 … +0.00 {0}"
    assert "rerank minus dual, percentage points" in text
    assert f"Full fusion {gains.format('0.0200')} w/o Mamba {gains.format('0.5000')}" in text
    assert "oracle" not in Page(build(make_summary(), "tables")).words()
