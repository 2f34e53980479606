"""The measurement of loading, on a miniature data set."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.harness import measure, results
from bench.pipeline import loading
from bench.pipeline.loading import PILLOW, VARIANTS, Sample, Samples
from tests.support.pedes_dataset import make_pedes
from training.data.images import transforms


def samples() -> Samples:
    """Pillow 2 s and 3 s for 1000 images, each variant a fifth more than the one before."""
    of = {name: [Sample(2 * 1.2**i, 4 * 1.2**i), Sample(3 * 1.2**i, 5 * 1.2**i)] for i, name in enumerate(VARIANTS)}
    return Samples("shape", 1000, of)


def test_shares_compare_samples_of_the_same_round() -> None:
    found = samples()
    assert found.share(PILLOW, "clock") == 1.0
    assert found.shares("cache", "cpu") == pytest.approx([1 / 1.44] * 2)
    assert found.milliseconds("files").median == pytest.approx(3.0)
    found.by_variant["files"][1] = Sample(30.0, 2.5)
    assert found.shares("files", "clock") == pytest.approx([0.1, 1 / 1.2])
    assert found.shares("files", "cpu") == pytest.approx([1 / 1.2, 2.0])


def test_rows_have_the_columns_of_the_results(tmp_path: Path) -> None:
    made = loading.rows(samples())
    path = results.append(made, tmp_path)
    stored = results.read(path)
    assert [row["variant"] for row in stored] == list(VARIANTS)
    # Ours is the second row: Pillow takes 1 / 1.2 of its time.
    assert [row["times_ours"] for row in stored[:3]] == ["0.8333", "1", "1.2"]
    assert stored[1]["median_ms"] == "3" and stored[1]["note"].startswith(
        "per image; 0.83 of Pillow's rate by the clock"
    )
    assert all(results.ours(case) for case in results.newest(stored))


def test_cpu_time_counts_processes_that_were_started() -> None:
    def work() -> None:
        child = os.fork()
        if not child:
            end = time.process_time() + 0.1
            while time.process_time() < end:
                pass
            os._exit(0)
        os.waitpid(child, 0)

    taken = loading.sample(work)
    assert 0.08 < taken.cpu < 0.3 and taken.clock > 0.08


@pytest.mark.parametrize("workers", [0, 1])
def test_miniature_measurement(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_pedes(tmp_path / "pedes")
    batches: list[torch.Tensor] = []
    augment = transforms.augment
    monkeypatch.setattr(transforms, "augment", lambda x, *rest: batches.append(x.clone()) or augment(x, *rest))
    monkeypatch.setattr(measure, "require_tests", lambda op: print(f"tests of {op}"))
    command = f"loading --data {root} --image-sizes 32 16 --workers {workers} --images 130 --rounds 2 --dry"
    monkeypatch.setattr(sys, "argv", command.split())
    loading.main()
    shown = capsys.readouterr().out
    assert "tests of loading" in shown and f"48x24 jpg to 32x16, {workers} workers" in shown
    assert all(variant in shown for variant in VARIANTS)
    # Files and cache, three rounds of 130 images each; both give the same pixels.
    assert [len(batch) for batch in batches] == [64, 64, 2] * 6
    assert all(torch.equal(a, b) for a, b in zip(batches[:3], batches[3:6], strict=True))
    assert np.unique(batches[0].numpy()).size > 50
