"""Re-ranking by the fusion: the order of the protocol `rerank`, and what cannot be re-ranked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import search
from training.data.datasets import read_dataset
from training.engine import checkpoint
from training.evaluation.protocols.fusion_protocols import matching_logits
from training.retrieval.embedders import TorchEmbedder
from training.utils import cli

TEXT = "a tall person in a red shirt"


def results(capsys: Any, run_dir: Path, *words: Any) -> list[dict[str, Any]]:
    assert cli.run(search.main, [str(run_dir), TEXT, "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)["results"]


@pytest.mark.parametrize(("beta", "scale"), [(1.0, 1.0), (1e6, 1e6)])
def test_the_order_is_that_of_the_protocol(run_dir, capsys, beta, scale):
    """At 1e6, clothing alone, the score counts as the cosine that it is a million times."""
    plain = results(capsys, run_dir, "--k", 24, "--beta", beta)
    assert len(plain) == 24 and all(result["match"] is None for result in plain)
    found = results(capsys, run_dir, "--k", 24, "--rerank", 24, "--beta", beta)
    run = checkpoint.load_run(run_dir, device="cpu")
    records = read_dataset(run.config.data).splits["test"]
    number = torch.arange(24)
    logits = matching_logits(run, records, [TEXT], torch.zeros(24, dtype=torch.int64), number)
    paths = [str(record.path) for record in records]
    score = {result["path"]: result["score"] for result in plain}
    temperature = float(run.model.temperature().detach())
    expected = {path: score[path] / scale / temperature + float(logits[i]) for i, path in enumerate(paths)}
    assert [r["path"] for r in found] == sorted(expected, key=lambda path: -expected[path])
    for result in found:
        assert (result["score"] / scale + result["match"]) / temperature == pytest.approx(
            expected[result["path"]], abs=1e-3
        )


def test_only_the_first_are_ordered_again_and_lost_files_come_after_them(run_dir, capsys, monkeypatch):
    plain = [result["path"] for result in results(capsys, run_dir, "--k", 24)]
    found = results(capsys, run_dir, "--k", 3, "--rerank", 5)
    assert (
        len(found) == 3 and {r["path"] for r in found} <= set(plain[:5]) and all(r["match"] is not None for r in found)
    )
    found = results(capsys, run_dir, "--k", 24, "--rerank", 5)
    assert [r["path"] for r in found[5:]] == plain[5:] and [r["match"] for r in found[5:]] == [None] * 19
    original = TorchEmbedder.read_image

    def read(self: TorchEmbedder, content: bytes, name: str) -> np.ndarray:
        if name == plain[0]:
            raise ValueError("cannot be read")
        return original(self, content, name)

    monkeypatch.setattr(TorchEmbedder, "read_image", read)
    assert results(capsys, run_dir, "--k", 24, "--rerank", 5)[4]["path"] == plain[0]


def test_what_cannot_be_ranked_again_is_named(run_dir, capsys, monkeypatch):
    wrong = {
        ("a", "b", "--rerank", "5"): "--rerank needs one TEXT, got 2",
        ("red", "--rerank", "201"): "rerank must be a whole number from 0 to 200, got 201",
        ("red", "--rerank", "-1"): "rerank must be a whole number from 0 to 200, got -1",
    }
    for words, message in wrong.items():
        assert cli.run(search.main, [str(run_dir), *words]) == 2
        assert message in capsys.readouterr().err
    loaded = checkpoint.load_run

    def without_head(*arguments: Any, **options: Any) -> Any:
        run = loaded(*arguments, **options)
        run.model.matching_head = None
        return replace(run)

    monkeypatch.setattr(checkpoint, "load_run", without_head)
    assert cli.run(search.main, [str(run_dir), "red", "--rerank", "3"]) == 2
    assert (
        "needs a model with a fusion and a matching head, which this run was trained without" in capsys.readouterr().err
    )
