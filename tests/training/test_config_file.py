"""--config FILE: the configuration of a run in place of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import read_lines, same_state, tiny_config, tiny_options
from training import train
from training.config import to_dict
from training.engine import checkpoint
from training.experiment import __main__ as experiment
from training.utils import cli


def test_the_configuration_of_a_run_gives_the_same_run_again(tmp_path: Path) -> None:
    root, first = make_pedes(tmp_path / "data"), tmp_path / "first"
    assert cli.run(train.main, ["synthetic", "--out", str(first), "--seed", "3", *tiny_options(root)]) == 0
    words = ["--config", str(first / "config.json"), "--out"]
    assert cli.run(train.main, [*words, str(tmp_path / "again")]) == 0
    assert cli.run(train.main, [*words, str(tmp_path / "other"), "--seed", "4"]) == 0
    again, other = (checkpoint.load(tmp_path / name / "best.pt") for name in ("again", "other"))
    assert same_state(again, checkpoint.load(first / "best.pt"))
    assert read_lines(tmp_path / "again") == read_lines(first) != read_lines(tmp_path / "other")
    assert other["config"] == again["config"] | {"seed": 4}
    assert cli.run(train.main, [*words, str(first), "--resume"]) == 0


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "config.json does not exist"),
        ("{", "config.json is not valid JSON ("),
        ("[]", "config.json: config must be an object with the fields of Config, got []"),
        ({"optim": {"epochs": "3"}}, "config.json: config.optim: OptimConfig.epochs must be of type int, got '3'"),
        ({"optim": {"momentum": 0.9}}, "config.json: config.optim: unknown fields: momentum"),
        ({"optim": {"lr": None}}, "config.json: config.optim: missing fields: lr"),
        ({"data": {"image_size": [64]}}, "config.json: config.data.image_size must be a list of 2 ints, got [64]"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_file_and_field(
    content: str | dict[str, dict] | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, values = tmp_path / "config.json", to_dict(tiny_config(tmp_path))
    if isinstance(content, dict):
        for stage, changes in content.items():
            values[stage] = {k: v for k, v in (values[stage] | changes).items() if v is not None}
        content = json.dumps(values)
    if content is not None:
        file.write_text(content)
    assert cli.run(train.main, ["--config", str(file), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/{text}") and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_recipe_or_a_configuration_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(train.main, ["--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: expected RECIPE or --config FILE\n"
    assert cli.run(train.main, ["synthetic", "--config", "config.json", "--out", str(tmp_path / "run")]) == 2
    assert "expected RECIPE or --config FILE, got both: synthetic and config.json" in capsys.readouterr().err
    words = ["--config", str(tmp_path / "none.json"), "--rows", "full", "--out", str(tmp_path / "out")]
    assert cli.run(experiment.main, ["table1", *words]) == 2
    assert "none.json does not exist" in capsys.readouterr().err and not (tmp_path / "out").exists()
