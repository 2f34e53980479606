"""The entry points as a user meets them: help, overrides, exit codes, and one line for every bad input."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import ROOT, contents
from tests.support.commands import run_here
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import read_lines, tiny_config, tiny_options
from training import evaluate, train
from training.config import Config, command_line
from training.data.validation.decode_cache import CACHE
from training.experiment import __main__ as experiment
from training.experiment import child_process
from training.utils import cli

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Replaces the first occurrence of `old`, which must be there."""

    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


def truncate(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        whole = (root / file).read_bytes()
        (root / file).write_bytes(whole[: len(whole) // 2])

    return change


# What is done to a good data set, and what the one line on stderr must say.
BAD_DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing data folder": (shutil.rmtree, "there is no folder"),
    "truncated JPEG": (truncate("imgs/train/0001_0.jpg"), "0001_0.jpg: truncated"),
    "truncated JPEG for validation": (truncate("imgs/val/0007_0.jpg"), "0007_0.jpg: truncated"),
    "image that is not there": (lambda root: (root / "imgs/train/0002_1.jpg").unlink(), "0002_1.jpg (1 in all)"),
    "empty caption": (edit("reid_raw.json", "A stout person", '", "'), "empty caption"),
    "one id in two splits": (
        edit("reid_raw.json", '"id": 9', '"id": 1'),
        "in more than one split: 1 in test and train",
    ),
}
BAD_WORDS = {
    "unknown recipe": (["training.train", "sintetic", "--out", "RUN"], "unknown recipe 'sintetic'"),
    "used run folder": (
        ["training.train", "synthetic", "--out", "USED"],
        "is already used (best.pt, config.json, last.pt, ",
    ),
    "run that is not there": (["training.evaluate", "RUN"], "holds no trained model"),
}


MODULES = {"training.train": train, "training.evaluate": evaluate}


def prepare(name: str, base: Path) -> tuple[list[str], Path]:
    """The command line of a bad input, and the folder in which nothing may change."""
    if name in BAD_DATA:
        BAD_DATA[name][0](make_pedes(base / "data"))
        return ["training.train", "synthetic", "--out", str(base / "run"), *tiny_options(base / "data")], base / "data"
    used = base / "used"
    used.mkdir(parents=True)
    for file in ("config.json", "last.pt", "best.pt", "metrics.jsonl"):
        (used / file).write_text(f"precious {file}")
    return [{"RUN": str(base / "new"), "USED": str(used)}.get(word, word) for word in BAD_WORDS[name][0]], used


def unchanged(folder: Path) -> dict[str, bytes]:
    """`contents` without what was found out about the images, which training keeps beside them as `validate` does."""
    return {name: content for name, content in contents(folder).items() if name != CACHE}


def check_one_line(name: str, status: int, stderr: str) -> None:
    assert status == 2, stderr
    assert len(stderr.splitlines()) == 1 and stderr.startswith("error: "), stderr
    assert (BAD_DATA | BAD_WORDS)[name][1] in stderr


@pytest.mark.parametrize("name", [*BAD_DATA, *BAD_WORDS])
def test_bad_input_is_one_line_and_changes_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, watched = prepare(name, tmp_path)
    before = unchanged(watched)
    status = cli.run(MODULES[words[0]].main, words[1:])
    check_one_line(name, status, capfd.readouterr().err)
    assert unchanged(watched) == before
    assert not (tmp_path / "run" / "last.pt").exists() and not (tmp_path / "new").exists()


def check_processes(names: list[str], base: Path) -> None:
    """The same with real processes, three side by side, since each loads torch first."""
    jobs = [prepare(name, base / str(i)) for i, name in enumerate(names)]
    before = [unchanged(watched) for _, watched in jobs]

    def outcome(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(outcome, [words for words, _ in jobs]))
    for name, done in zip(names, results, strict=True):
        check_one_line(name, done.returncode, done.stderr)
    assert [unchanged(watched) for _, watched in jobs] == before


def test_bad_input_ends_a_process_with_status_2(tmp_path: Path) -> None:
    check_processes(["empty caption", "run that is not there"], tmp_path)


@pytest.mark.slow
def test_every_bad_input_ends_a_process_with_status_2(tmp_path: Path) -> None:
    check_processes([*BAD_DATA, *BAD_WORDS], tmp_path)


def test_a_command_that_works_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run_dir = make_pedes(tmp_path / "data"), tmp_path / "run"
    assert cli.run(train.main, ["synthetic", "--out", str(run_dir), "--seed", "3", *tiny_options(root)]) == 0
    assert f"next: python -m training.evaluate {run_dir}" in capsys.readouterr().out
    assert cli.run(evaluate.main, [str(run_dir)]) == 0
    first = capsys.readouterr().out
    assert "times chance" in first and first.endswith("eval.json\n")
    assert cli.run(evaluate.main, [str(run_dir)]) == 0
    assert capsys.readouterr().out == first.replace(
        "eval.json\n", "eval.json (evaluated before; the test split is evaluated once)\n"
    )


def run_experiment_command(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    words = ["synthetic", "--seeds", "5", "--data", str(make_pedes(tmp_path / "data")), "--out", str(out)]
    words += tiny_options(Path("elsewhere"))
    assert cli.run(experiment.main, [*words, "--estimate"]) == 0
    assert not list(out.glob("*/*"))
    assert cli.run(experiment.main, words) == 0
    assert (out / "summary.json").is_file() and len(list(out.glob("*/seed5/eval.json"))) == 1


def test_experiment_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "run_command", run_here)
    run_experiment_command(tmp_path)
    text = capsys.readouterr().out
    assert "1 rows are 1 configurations x 1 seeds = 1 runs: 0 finished, 1 to run" in text
    assert "[1/1] synthetic, seed 5: R-1" in text and text.endswith("summary.json\n")


@pytest.mark.slow
def test_experiment_command_with_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_experiment_command(tmp_path)
    text = capsys.readouterr().out
    assert "[1/1] synthetic, seed 5: R-1" in text and "epoch" not in text
    log = next(tmp_path.glob("runs/*/seed5.log")).read_text()
    assert "epoch   3/3" in log
    # The first line is the command; repeated by hand it trains the same.
    variable, *words = shlex.split(log.splitlines()[0])
    assert variable.startswith("OMP_NUM_THREADS=") and words[:3] == ["python", "-m", "training.train"]
    again = tmp_path / "again"
    words = [sys.executable, *words[1:]]
    words[words.index("--out") + 1] = str(again)
    subprocess.run(words, env=ENVIRONMENT | dict([variable.split("=")]), check=True, capture_output=True)
    (run_dir,) = tmp_path.glob("runs/*/seed5")
    assert read_lines(again) == read_lines(run_dir)


def parse_train(words: list[str]) -> tuple[train.Arguments, Config]:
    return command_line.parse(train.Arguments, words, "training.train", "", train.base_config)


def test_overrides_reach_every_stage(tmp_path: Path) -> None:
    words = ["synthetic", "--out", "x", "--seed", "3", "--model.backend", "reference", "--loss.no-triplet"]
    known, config = parse_train([*words, *tiny_options(tmp_path)])
    assert (known.recipe, known.out, config.seed) == ("synthetic", Path("x"), 3)
    assert config.model.backend == "reference" and not config.loss.triplet
    expected = tiny_config(tmp_path)
    assert config.data == expected.data and config.optim == expected.optim


@pytest.mark.parametrize("option", ["resume", "check-memory", "fit"])
def test_an_option_of_the_command_is_turned_off_wherever_it_stands(option: str) -> None:
    for words in (["--out", "x", f"--no-{option}", "--seed", "3"], ["--seed", "3", f"--no-{option}", "--out", "x"]):
        known, config = parse_train(["synthetic", *words])
        assert not getattr(known, option.replace("-", "_")) and config.seed == 3


def test_help_lists_the_fields_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["synthetic", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.run(train.main, words)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert "RECIPE" in out and ("--optim.epochs INT" in out) == ("synthetic" in words)


@pytest.mark.parametrize("words", [["--nope", "3"], ["--data.flip", "2"], ["--model.backend", "quantum"]])
def test_wrong_options_end_with_status_2(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, ["synthetic", "--out", str(tmp_path / "run"), *words])
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert words[0].strip("-").split(".")[-1] in capsys.readouterr().err


def raising(error: BaseException) -> Callable[[object], None]:
    def main(argv: object) -> None:
        raise error

    return main


def test_exit_status_of_each_ending(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.run(lambda argv: None, []) == 0
    assert cli.run(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    for error in (ValueError("a\n  b"), FileNotFoundError("a b"), RuntimeError("a b")):
        assert cli.run(raising(error), []) == 2
        assert capsys.readouterr().err == "error: a b\n"
    assert cli.run(raising(RuntimeError()), []) == 2
    assert capsys.readouterr().err == "error: RuntimeError\n"
    with pytest.raises(TypeError, match="defect"):
        cli.run(raising(TypeError("defect")), [])
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError, match="bad"):
        cli.run(raising(ValueError("bad")), [])


def test_arguments_default_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["program", "a", "b"])
    assert cli.run(lambda argv: seen.append([*argv])) == 0 and seen == [["a", "b"]]


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    root = make_pedes(tmp_path / "data")
    options = [*tiny_options(root), "--optim.epochs", "40"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command("training.train", "synthetic", "--out", str(killed), *options), env=ENVIRONMENT)
    end = time.monotonic() + 120
    while not (killed / "last.pt").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed before it was done"
    for words in (["--out", str(killed), "--resume"], ["--out", str(whole)]):
        subprocess.run(command("training.train", "synthetic", *words, *options), env=ENVIRONMENT, check=True)
    assert read_lines(killed) == read_lines(whole)
