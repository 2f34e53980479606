"""Searching with the calibration of an evaluated run, and with its bound on pixels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import search
from training.data.datasets import read_dataset
from training.engine import checkpoint
from training.evaluation.calibration import CALIBRATION, Calibration, calibrate
from training.evaluation.dual import embed_dual
from training.evaluation.run_evaluation import evaluate
from training.utils import cli
from training.utils.io import file_digest, read_record, write_record


def run_search(capsys: Any, run_dir: Path, *words: Any) -> dict[str, Any]:
    assert cli.run(search.main, [str(run_dir), *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_evaluation_calibrates_on_the_validation_split(run_dir):
    evaluate(run_dir, device="cpu")
    run = checkpoint.load_run(run_dir, device="cpu")
    validation = embed_dual(run.model, read_dataset(run.config.data).splits["val"], run.tokenizer, run.config)
    expected = calibrate(validation, run.beta, file_digest(run_dir / "best.pt"))
    assert read_record(run_dir / CALIBRATION, Calibration) == expected and run.beta in [c.beta for c in expected.curves]


def test_shares_of_an_evaluated_run_and_nothing_good(run_dir, root, capsys):
    assert run_search(capsys, run_dir, "red")["results"][0]["share"] is None
    evaluate(run_dir, device="cpu")
    made = read_record(run_dir / CALIBRATION, Calibration)
    found = run_search(capsys, run_dir, "red", "--beta", "1", "--weak")["results"]
    assert [r["share"] for r in found] == [made.share(r["score"], 1.0, 24) for r in found]
    assert (
        run_search(capsys, run_dir, "red", "--weak", "--image", root / "imgs/test/0009_1.jpg")["results"][0]["share"]
        is None
    )
    # No image scores so much.
    curves = [replace(curve, least=1.0) for curve in made.curves]
    write_record(run_dir / CALIBRATION, replace(made, curves=curves))
    answer = run_search(capsys, run_dir, "red", "--beta", "1")
    assert answer["results"] == [] and "nothing good found: the best image scores" in answer["notes"][-1]
    assert run_search(capsys, run_dir, "red", "--beta", "1", "--weak")["results"] == found
    assert len(run_search(capsys, run_dir, "red", "--beta", "1", "--least", "-9")["results"]) == 10
    assert cli.run(search.main, [str(run_dir), "red", "--weak"]) == 0
    assert "right" in capsys.readouterr().out
    # Of another checkpoint: as if there were none.
    write_record(run_dir / CALIBRATION, replace(made, checkpoint="b" * 64))
    assert run_search(capsys, run_dir, "red")["results"][0]["share"] is None
    (run_dir / CALIBRATION).write_text((run_dir / CALIBRATION).read_text().replace("b", "c", 1))
    assert cli.run(search.main, [str(run_dir), "red"]) == 2
    assert "calibration.json is not what was written" in capsys.readouterr().err


def test_large_images_are_read_as_in_training(run_dir, root, tmp_path, capsys):
    folder = Path(shutil.copytree(root / "imgs/val", tmp_path / "photos"))
    state = checkpoint.load(run_dir / "best.pt")
    state["config"]["data"]["max_pixels"] = 100
    checkpoint.save(run_dir / "best.pt", state)
    assert cli.run(search.main, [str(run_dir), "red", "--gallery", str(folder)]) == 2
    assert "pixels are more than data.max_pixels (100)" in capsys.readouterr().err
