"""The report's section about disentanglement (with Fig. 4) and the numbers of Fig. 5, from made-up numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_experiment import make_run as make_row
from tests.support.fake_run import make_run
from tests.support.pedes_dataset import make_pedes
from tests.training.report.test_run_page import page_of
from training.evaluation.experiment_result import RowResult, SpeedBySeed
from training.evaluation.result import METRICS
from training.evaluation.run_folder import read_run
from training.report import disentangle_section, radar
from training.utils.io import decode

PROBED = ("entangled", "f_id", "f_clo", "f_final")


def make_disentangled(folder: Path, images: int = 60) -> dict[str, Any]:
    """disentangle.json and .npz of made-up numbers in a folder of `make_run`."""
    rng = np.random.default_rng(0)

    def result(kind: str, classes: int) -> dict[str, Any]:
        features = {n: {"mean": 61.5, "std": 2.25, "folds": [61.5] * 5, "score": 0.23} for n in PROBED}
        counts = {"classes": [str(i) for i in range(classes)], "images": images, "dropped": 0}
        return {"kind": kind, **counts, "baseline": 50.0, "other_kind": 54.5, "features": features}

    def gallery(shift: float) -> dict[str, Any]:
        found = {
            name: {"R1": 10.0 + shift, "mAP": 8.0 + shift, "R5": 0.0, "R10": 0.0, "mINP": 0.0}
            | {"interval": {"R1": [7.5, 31.25], "mAP": [6.5, 30.75]}}
            for name in ("entangled", "f_id", "v_id", "f_clo", "v_clo")
        }
        return {
            "queries": images,
            "without_match": 0,
            "chance": dict.fromkeys(METRICS, 0.0) | {"R1": 1.25, "mAP": 2.5},
            "features": found,
        }

    row = {"value": 0.3125, "sample": 0.34, "null_mean": 0.0475, "null_95": 0.0625, "p": 0.003}
    values = {
        "probes": {
            "sex": result("identity", 2),
            "upper_colour": result("clothing", 5),
            "hat": {"kind": "clothing", "skipped": "only 1 of its values are shown by at least 5 people"},
        },
        "summary": {name: {"identity": 0.125, "clothing": 0.5} for name in (*PROBED, "other_kind")},
        "dependence": {n: row for n in ("hsic", "hsic_normalised", "cka", "cka_debiased")}
        | {"images": images, "people": 15, "permutations": 1000},
        "retrieval": {"other": gallery(0.0), "same": gallery(20.0)},
        "tsne": {"identity_factor": "sex", "clothing_factor": "upper_colour", "perplexity": 30.0, "seed": 0},
        "features": {name: f"what {name} is" for name in PROBED},
        "config": {"seed": 3},
        "fingerprint": "ab" * 32,
        "counts": {"images": images, "ids": 15},
        "seconds": 1.5,
        "checkpoint": {"epoch": 9, "step": 360, "sha256": "cd" * 32},
    }
    (folder / "disentangle.json").write_text(json.dumps(values))
    arrays: dict[str, Any] = {f"tsne_{name}": rng.standard_normal((images, 2)) for name in PROBED[:3]}
    arrays |= {
        "tsne_identity": rng.choice(["man", "woman"], images),
        "tsne_clothing": rng.choice(["red", "white"], images),
    }
    np.savez_compressed(folder / "disentangle.npz", **arrays)
    return values


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return make_run(folder / "run", make_pedes(folder / "data", {"train": 1, "val": 1, "test": 6}), steps=5, epochs=2)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_section_shows_the_numbers_and_how_to_read_them(run: Path) -> None:
    make_disentangled(run)
    page = page_of(run)
    text = page.words()
    assert page.open == []
    assert "60 images of 15 people of the test split" in text and "what f_clo is" in text
    assert "f_id 12.5 50.0" in text and "true factors of the other kind 12.5 50.0" in text
    assert "sex identity 2 50.0 54.5 61.5 ± 2.2 61.5 ± 2.2" in text
    assert "hat clothing skipped: only 1 of its values" in text
    assert "linear CKA, debiased 0.3125 0.3400 0.0475 0.0625 0.003" in text and "chance among 15 people" in text
    assert "measure all images one image a person the same permuted: mean 95 % p" in text
    assert "chance for that sample, not for all images" in text
    assert "v_id 10.007.50 – 31.25 8.006.50 – 30.75 30.00" in text and "chance 1.25 2.50 1.25 2.50" in text
    names = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert "scores of the linear probes" in names
    figures = [f"t-SNE of {feature}, by {by}" for feature in PROBED[:3] for by in ("sex", "upper colour")]
    assert [name for name in names if name.startswith("t-SNE")] == figures
    assert "Distances between groups mean nothing in such a plot" in text


def test_points_have_the_colours_of_the_clothes(run: Path) -> None:
    make_disentangled(run)
    read = read_run(run)
    assert read.disentanglement is not None
    arrays = read.feature_arrays
    plots = dict(disentangle_section.section(read.disentanglement, arrays)["plots"])
    red, white = (int((arrays["tsne_clothing"] == colour).sum()) for colour in ("red", "white"))
    svg = str(plots["f_id, by upper colour"])
    # One more of each in the legend.
    assert svg.count("#c42228") >= red + 1 and svg.count("#ecece8") >= white + 1
    assert "var(--c1)" in plots["f_id, by sex"] and "var(--c1)" not in svg


def test_dependence_alone_says_what_is_missing(run: Path) -> None:
    values = make_disentangled(run) | dict.fromkeys(("probes", "summary", "retrieval", "tsne"))
    (run / "disentangle.json").write_text(json.dumps(values))
    text = page_of(run).words()
    assert "Probes and retrieval in other clothes were not measured" in text and "linear CKA, debiased 0.3125" in text
    assert "t-SNE" not in text


def test_a_run_that_was_not_measured_says_how(made: Path) -> None:
    assert "Not measured: `python -m training.disentangle run` writes disentangle.json." in page_of(made).words()


def test_files_that_do_not_fit_are_named(run: Path) -> None:
    values = make_disentangled(run)
    (run / "disentangle.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"disentangle\.npz is missing: run `python -m training\.disentangle"):
        read_run(run)
    other = values | {"checkpoint": values["checkpoint"] | {"sha256": "ee" * 32}}
    (run / "disentangle.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"disentangle\.json was computed from a different checkpoint than eval\.json"):
        read_run(run)
    (run / "disentangle.json").write_text(json.dumps({"probes": None}))
    with pytest.raises(
        ValueError, match=r"disentangle\.json lacks the fields summary, retrieval, tsne, dependence, features, config"
    ):
        read_run(run)


def fusion_run(parameters: int, flops: int, memory: float, pairs: float, ap: float) -> RowResult:
    def speed(median: float) -> list[dict[str, float]]:
        about = {"batch": 32, "repetitions": 15}
        return [
            {"median": median - 1, "low": median - 9, "high": median} | about,
            {"median": median + 1, "low": 1.0, "high": 99.0} | about,
        ]

    values = make_row("full", 0.0, (0, 1)) | {
        "parameters": {"total": parameters, "trained": parameters, "fusion": parameters // 4},
        "flops": {"image": 0, "text": 0, "fusion": flops // 10, "total": flops},
        "memory_mb": {"training": [900.0, 901.0], "evaluation": [memory - 1, memory]},
        "speed": {"images": speed(200.0), "pairs": speed(pairs)},
    }
    values["mean"] |= {"mAP": ap}
    return decode(RowResult, values, "summary.json")


RUNS = {
    "Mamba": fusion_run(2_000_000, 4_000_000, 500.0, 50.0, 40.0),
    "Transformer": fusion_run(4_000_000, 16_000_000, 250.0, 25.0, 20.0),
}


def test_the_best_row_of_each_axis_is_one() -> None:
    names, series = radar.normalise(RUNS)
    assert names == ["parameters", "MFLOP a pair", "MB of memory", "images/s", "pairs/s", "mAP"]
    assert series["Mamba"] == [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    assert series["Transformer"] == [0.5, 0.25, 1.0, 1.0, 0.5, 0.5]


def test_measured_values_stand_beside_the_radius() -> None:
    shown = radar.radar(RUNS)
    assert shown["head"] == ["", "Mamba", "radius", "Transformer", "radius"]
    assert shown["rows"] == [
        ["parameters, less is better", "2,000,000", "1.000", "4,000,000", "0.500"],
        ["MFLOP a pair, less is better", "4.000", "1.000", "16.000", "0.250"],
        ["MB of memory, less is better", "500", "0.500", "250", "1.000"],
        ["images/s, more is better", "200", "1.000", "200", "1.000"],
        ["pairs/s, more is better", "50", "1.000", "25", "0.500"],
        ["mAP, more is better", "40.00", "1.000", "20.00", "0.500"],
    ]


def test_an_axis_that_a_row_lacks_is_left_out() -> None:
    unmeasured = replace(RUNS["Transformer"], flops=None, speed=SpeedBySeed(images=None, pairs=None))
    shown = radar.radar(RUNS | {"Transformer": unmeasured})
    assert shown["names"] == ["parameters", "MB of memory", "mAP"]
    assert shown["rows"][1] == ["MFLOP a pair, less is better", "4.000", "–", "–", "–"]
    lost = replace(unmeasured, mean=unmeasured.mean | {"mAP": 0.0})
    assert radar.normalise(RUNS | {"Transformer": lost})[0] == ["parameters", "MB of memory"]
