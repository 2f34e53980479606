"""The protocols on the page of a run: rows of one table, for what was measured of the evaluated checkpoint."""

import json
from pathlib import Path

import pytest

from tests.support.fake_run import CHANCE, make_run
from tests.support.html import Page
from tests.support.pedes_dataset import make_pedes
from training.evaluation.result import METRICS
from training.evaluation.run_folder import read_run
from training.report.run_page import build_page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", make_pedes(tmp_path / "data", {"train": 1, "val": 1, "test": 6}))


def page_of(run: Path) -> Page:
    return Page(build_page(read_run(run)))


def add_protocol(run: Path, name: str, **values) -> None:
    """Writes eval-NAME.json of the evaluated checkpoint; every metric is its number in the row."""
    metrics = {key: 10.0 * i for i, key in enumerate(METRICS, 1)}
    result = {
        "protocol": name,
        "parameters": {"beta": 0.5, "k": 64},
        "metrics": metrics,
        "chance": CHANCE,
        "ties": False,
    }
    result |= {
        "counts": {"queries": 1234, "gallery": 18, "ids": 6},
        "checkpoint": {"epoch": 9, "step": 360, "sha256": "cd" * 32},
    }
    (run / f"eval-{name}.json").write_text(json.dumps(result | values))


def test_protocols_are_rows_of_one_table(run):
    text = page_of(run).words()
    assert "dual caption, β = 0.5 37.50 65.25 79.00 31.50 12.25 2.50 4.20 36" in text
    assert "Not measured: rerank, identity, other-outfit. `python -m training.evaluate run --protocol all`" in text
    for name in ("rerank", "identity"):
        add_protocol(run, name)
    text, row = page_of(run).words(), "10.00 20.00 30.00 40.00 50.00 2.50 4.20 1,234"
    assert f"rerank caption, the best 64 again by the fusion {row}" in text
    assert f"identity identity text, identity embedding only {row}" in text and "Not measured: other-outfit." in text
    add_protocol(run, "other-outfit", left_out=7, metrics_beta0=dict.fromkeys(CHANCE, 1.5))
    text = page_of(run).words()
    assert f"other-outfit caption, the person in other clothes; 7 left out, β = 0.5 {row}" in text
    assert "other-outfit the same, β = 0 1.50 1.50 1.50 1.50 1.50 2.50 4.20 1,234" in text
    assert "--protocol all" not in text


def test_protocols_of_another_checkpoint_or_of_the_audit_are_refused(run):
    add_protocol(run, "identity", checkpoint={"epoch": 1, "step": 2, "sha256": "ee"})
    with pytest.raises(ValueError, match="eval-identity.json was computed from a different checkpoint than eval.json"):
        read_run(run)
    add_protocol(run, "identity", audit=True)
    with pytest.raises(ValueError, match="is of the protocol paired-audit"):
        read_run(run)
