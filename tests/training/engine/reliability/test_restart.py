"""Start and end of a run: refusals that change nothing, one process a folder, SIGTERM, more epochs, lines for a log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import ROOT, contents
from tests.support.tiny_run import Interrupting, read_events, read_lines, same_state, tiny_config, tiny_options
from training import evaluate
from training.config import Config
from training.data.loader import TrainLoader
from training.engine import checkpoint
from training.train import main, train
from training.utils import cli
from training.utils.io import read_json
from training.utils.locks import folder_lock
from training.utils.preemption import Preempted


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """A copy of the data set for a test that changes it."""
    return Path(shutil.copytree(root, tmp_path / "data"))


def change_caption(data: Path) -> None:
    records = json.loads((data / "reid_raw.json").read_text())
    records[0]["captions"][0] += " zebra quokka" * 300
    (data / "reid_raw.json").write_text(json.dumps(records))


def change_texts(data: Path) -> None:
    path = data / "descriptions.jsonl"
    path.write_text(path.read_text().replace("man", "zebra", 1).replace("woman", "quokka", 1) + "\n")


def change_image(data: Path) -> None:
    image = next((data / "imgs" / "train").glob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"\0")


CHANGES = {"caption": change_caption, "texts": change_texts, "image": change_image}


@pytest.mark.parametrize("name", CHANGES)
def test_a_refused_resume_changes_nothing(name: str, own_root: Path, tmp_path: Path) -> None:
    config = tiny_config(own_root, optim=replace(tiny_config(own_root).optim, epochs=2))
    train(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    CHANGES[name](own_root)
    expected = "images of .* have changed since .*1 of them" if name == "image" else "its fingerprint differs"
    with pytest.raises(ValueError, match=expected):
        train(config, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_a_damaged_last_checkpoint_or_log_changes_nothing(root: Path, run_dir: Path) -> None:
    for name, expected in (("last.pt", "last.pt is not a checkpoint"), ("metrics.jsonl", "line 2 is damaged")):
        path = run_dir / name
        whole = path.read_bytes()
        place = len(whole) // 2 if name == "last.pt" else whole.index(b'"loss"', whole.index(b"\n")) + 9
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        before = contents(run_dir)
        with pytest.raises(ValueError, match=expected):
            train(tiny_config(root), run_dir, resume=True)
        assert contents(run_dir) == before
        path.write_bytes(whole)


def test_a_damaged_tokenizer_is_written_again_by_resume(root: Path, run_dir: Path) -> None:
    before = contents(run_dir / "tokenizer")
    (run_dir / "tokenizer" / "tokenizer.json").write_text("{}")
    train(tiny_config(root), run_dir, resume=True)
    assert contents(run_dir / "tokenizer") == before


def test_two_commands_in_one_run_folder(root: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(run_dir)
    train_words = ["synthetic", *tiny_options(root), "--out", str(run_dir), "--resume"]
    for command, words in ((main, train_words), (evaluate.main, [str(run_dir)])):
        with folder_lock(run_dir):
            assert cli.run(command, words) == 2
        assert f"error: {run_dir} is in use by " in capfd.readouterr().err
    assert contents(run_dir) == before
    assert cli.run(evaluate.main, [str(run_dir)]) == 0
    from training.report import __main__ as page

    with folder_lock(run_dir):
        assert cli.run(page.main, [str(run_dir)]) == 2


def test_two_trainings_at_once(root: Path, tmp_path: Path) -> None:
    words = ["-m", "training.train", "synthetic", *tiny_options(root), "--out", str(tmp_path / "run")]
    options: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, *words, "--seed", str(seed)], **options) for seed in (1, 2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert sum(" is in use by process " in error or "is already used" in error for error in errors) == 1
    first = both[0].returncode == 0
    assert read_json(tmp_path / "run" / "config.json")["seed"] == (1 if first else 2)
    assert [line["step"] for line in read_lines(tmp_path / "run") if line["kind"] == "step"] == list(range(1, 13))


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def check_same_run(ours: Path, theirs: Path) -> None:
    assert read_lines(ours) == read_lines(theirs) and read_events(ours) == read_events(theirs)
    for name in ("last.pt", "best.pt"):
        assert same_state(checkpoint.load(ours / name), checkpoint.load(theirs / name)), name


@pytest.mark.parametrize("batches", [2, 8])
def test_sigterm_saves_and_ends_with_a_status_of_its_own(
    batches: int, root: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def begin(words: Sequence[str]) -> None:
        train(tiny_config(root), tmp_path / "run", resume="--resume" in words)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(
            "training.engine.train_run.TrainLoader", lambda *a: Interrupting(TrainLoader(*a), batches - 1, terminate)
        )
        assert cli.run(begin, []) == 75
    assert f"stopped by SIGTERM after step {batches}: " in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler
    saved = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]
    assert (saved["step"], saved["epoch"], saved["batch"]) == {2: (2, 0, 2), 8: (8, 1, 4)}[batches]
    assert cli.run(begin, ["--resume"]) == 0
    check_same_run(tmp_path / "run", trained)


def test_sigterm_during_validation_does_not_wait_for_it(
    root: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> dict[str, float]:
        torch.rand(3)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the validation went on")

    with monkeypatch.context() as patch:
        patch.setattr("training.evaluation.dual.validate", stop)
        with pytest.raises(
            Preempted, match="stopped by SIGTERM after step 4: .*last.pt is written, and the same command"
        ):
            train(tiny_config(root), tmp_path / "run")
    train(tiny_config(root), tmp_path / "run", resume=True)
    check_same_run(tmp_path / "run", trained)


def test_sigterm_before_the_first_step_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.engine.train_run.read_dataset", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        train(tiny_config(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_starts_where_nothing_was_written(
    root: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(root), tmp_path / "new", resume=True)
    assert f"{tmp_path}/new holds nothing to continue: the run starts" in capfd.readouterr().out
    check_same_run(tmp_path / "new", trained)


def with_epochs(config: Config, epochs: int) -> Config:
    return replace(config, optim=replace(config.optim, epochs=epochs))


def test_more_epochs_when_asked(root: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, before = tiny_config(root), contents(run_dir)
    with pytest.raises(ValueError, match=r"optim\.epochs \(3, now 5\); more epochs need --extend"):
        train(with_epochs(config, 5), run_dir, resume=True)
    with pytest.raises(ValueError, match=r"differs from the command in optim\.epochs \(3, now 2\)$"):
        train(with_epochs(config, 2), run_dir, resume=True, extend=True)
    with pytest.raises(ValueError, match="seed"):
        train(replace(with_epochs(config, 5), seed=3), run_dir, resume=True, extend=True)
    with pytest.raises(ValueError, match="--extend continues a run: give it with --resume"):
        train(with_epochs(config, 5), run_dir, extend=True)
    assert contents(run_dir) == before
    old = read_lines(run_dir)
    train(with_epochs(config, 5), run_dir, resume=True, extend=True)
    # 12 of 20 steps are done, 4 of them warm-up: the cosine goes on at cos(pi / 2).
    text = (
        "extended from 3 to 5 epochs: the learning rate, 0.00e+00 by the schedule so far, goes on at 5.00e-04 and falls"
    )
    assert text in capfd.readouterr().out
    lines = read_lines(run_dir)
    assert lines[: len(old)] == old and lines[len(old)]["lr"] == pytest.approx(5e-4)
    assert checkpoint.load(run_dir / "last.pt")["epoch"] == 5
    assert read_json(run_dir / "config.json")["optim"]["epochs"] == 5
    train(with_epochs(config, 5), run_dir, resume=True)


def test_an_extension_that_was_killed_is_repeated(root: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_epochs(tiny_config(root), 5)
    with monkeypatch.context() as patch:
        patch.setattr("training.engine.trainer.Trainer.fit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, run_dir, resume=True, extend=True)
    with pytest.raises(ValueError, match="cannot resume from .*its config differs"):
        train(config, run_dir, resume=True)
    train(config, run_dir, resume=True, extend=True)
    assert checkpoint.load(run_dir / "last.pt")["epoch"] == 5


def test_lines_for_a_log_file(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(root), tmp_path / "run", log_seconds=1e-6)
    lines = [line for line in capfd.readouterr().out.splitlines() if "images/s" in line]
    assert len(lines) == 12
    assert lines[0].startswith("epoch 1/3  loss ") and "  step 1/12  " in lines[0]
    assert lines[-1].endswith(" MB  about 0 s left")
    train(tiny_config(root), tmp_path / "quiet", log_seconds=0)
    assert "images/s" not in capfd.readouterr().out
