"""The comparison of ranks with one process: its differences by hand, its cases and its rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bench.pipeline.scale import same_numbers
from training.config.recipes import get_recipe


def result(loss: float, weight: list[float], mean: float = 0.0) -> dict[str, object]:
    step = {"losses": {"a": loss}, "norms": {"a": 1.0}, "weights": {"a": 1.0}}
    state = {
        "bdam.weight": torch.tensor(weight),
        "average.visual.stem.running_var": torch.tensor([mean]),
        "text_projection.0.bias": torch.tensor([weight[0]]),
        "text_projection.1.running_mean": torch.tensor([mean]),
    }
    return {"steps": [step, step], "state": state}


def test_differences_are_relative_above_one_and_absolute_below() -> None:
    found = same_numbers.differences(result(4.04, [0.1, 10.1], 0.5), result(4.0, [0.2, 10.0]))
    assert found == {
        "losses": pytest.approx(0.01),
        "norms": 0.0,
        "weights": 0.0,
        "model": pytest.approx(0.1),
        "statistics": 0.5,
        "removed": 0.5,
    }


def test_a_number_that_only_one_has_is_infinitely_far() -> None:
    assert same_numbers.differences(result(math.nan, [0.0]), result(1.0, [0.0]))["losses"] == math.inf
    assert same_numbers.differences(result(math.inf, [0.0]), result(math.inf, [0.0]))["losses"] == 0.0


def test_every_case_is_a_configuration() -> None:
    for case in same_numbers.CASES:
        config = same_numbers.configuration(case, 16, "data")
        assert config.data.ids_per_batch * config.data.images_per_id == 16
        assert config.optim.precision == same_numbers.CASES[case].get("optim.precision", "fp64")
        assert config.model.visual == get_recipe("synthetic").model.visual


def test_rows_compare_with_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = list[tuple[int, int]]()

    def run(arguments: object, folder: Path, case: str, ranks: int, threads: int) -> dict[str, object]:
        asked.append((ranks, threads))
        return result(1.0 + ranks, [0.0])

    monkeypatch.setattr(same_numbers, "_run", run)
    rows = list(same_numbers.table(same_numbers.Arguments(cases=("plain", "float32")), tmp_path))
    assert asked == [(1, 1), (2, 1), (4, 1), (1, 1), (1, 2), (2, 1), (4, 1)]
    assert [row[:3] for row in rows[:2]] == [["plain", "2 ranks", "5.0e-01"], ["plain", "4 ranks", "1.5e+00"]]
    assert [row[1] for row in rows[2:]] == ["1, two threads", "2 ranks", "4 ranks"]
