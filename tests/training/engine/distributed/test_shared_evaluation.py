"""Evaluation and disentanglement by several ranks: the files of one process, each batch encoded once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from tests.support.distributed.ranks import Job, Outcome, Ranks
from tests.support.tiny_run import tiny_config
from training import evaluate
from training.config import EvalConfig
from training.data.datasets import read_dataset
from training.disentangle import __main__ as disentangle
from training.engine.distributed import failures
from training.engine.distributed.failures import Register
from training.evaluation import cached_result, dual
from training.train import train
from training.utils import cli
from training.utils.preemption import REQUEUE_STATUS, Preempted, preemption

# Fields of results that are measured times or facts of a process.
MEASURED = ("seconds", "memory_mb", "training_memory_mb", "speed", "content_sha256", "path")
COMMANDS = {"evaluate": evaluate.main, "disentangle": disentangle.main}


@pytest.fixture(scope="module")
def small_batches(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that is evaluated in batches of five."""
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    train(tiny_config(root, eval=EvalConfig(batch_size=5)), run_dir)
    return run_dir


@pytest.fixture
def texts(root: Path, tmp_path: Path) -> Path:
    """Identity texts of the test images."""
    common = {"style": 0, "model": "template", "prompt_hash": "0" * 16, "params": {}, "status": "ok"}
    rows = [
        {"file_path": record.file_path, "identity": f"a tall person {i}", "clothing": "red shirt"} | common
        for i, record in enumerate(read_dataset(tiny_config(root).data).splits["test"])
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_rank(name: str, words: list[str]) -> int:
    """A command in a rank; the number of images that it has encoded for `embed_dual`."""
    seen, embed = [0], dual.iterate_images

    def counting(*arguments: Any) -> Any:
        for images, part in embed(*arguments):
            seen[0] += len(images)
            yield images, part

    dual.iterate_images = counting
    status = cli.run(COMMANDS[name], words)
    if status:
        sys.exit(status)
    return seen[0]


def on_ranks(ranks: Ranks, size: int, run_dir: Path, name: str, *words: str) -> Outcome:
    out = run_dir.parent / f"{run_dir.name}-out-{len([*run_dir.parent.iterdir()])}"
    return ranks.run(Job(run_rank, (name, [str(run_dir), *words]), size, out))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in MEASURED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def check_same_files(ours: Path, theirs: Path) -> None:
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for path in theirs.glob("*.json"):
        mine = json.loads((ours / path.name).read_text())
        assert without_times(mine) == without_times(json.loads(path.read_text())), path.name
    for path in theirs.glob("*.npz"):
        with np.load(path) as left, np.load(ours / path.name) as right:
            assert left.files == right.files
            for name in left.files:
                np.testing.assert_array_equal(left[name], right[name], err_msg=f"{path.name} {name}")


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_leave_the_results_of_one_process(
    size: int, small_batches: Path, texts: Path, ranks: Ranks, tmp_path: Path
) -> None:
    one, several = (Path(shutil.copytree(small_batches, tmp_path / name)) for name in ("one", "several"))
    words = ["--protocol", "all", "--texts", str(texts)]
    alone = on_ranks(ranks, 1, one, "evaluate", *words)
    outcome = on_ranks(ranks, size, several, "evaluate", *words)
    assert alone.statuses == [0] and outcome.statuses == [0] * size, "\n".join([*alone.outputs, *outcome.outputs])
    assert len([*one.glob("eval*.json")]) == 4
    check_same_files(several, one)
    # No image is encoded by two ranks, and each has a part; of five batches the last of three ranks has one.
    assert sum(outcome.results) == alone.results[0] and min(outcome.results) > alone.results[0] / (3 * size)
    assert "R-1" in outcome.outputs[0] and outcome.outputs[1:] == [""] * (size - 1)
    again = on_ranks(ranks, size, several, "evaluate")
    assert again.statuses == [0] * size and sum(again.results) == 0 and "evaluated before" in again.outputs[0]


def test_features_are_those_of_one_process(small_batches: Path, ranks: Ranks, tmp_path: Path) -> None:
    one, two = (Path(shutil.copytree(small_batches, tmp_path / name)) for name in ("one", "two"))
    for size, run_dir in ((1, one), (2, two)):
        outcome = on_ranks(ranks, size, run_dir, "disentangle", "--dependence-only")
        assert outcome.statuses == [0] * size, "\n".join(outcome.outputs)
    check_same_files(two, one)
    assert "disentangle.json" in outcome.outputs[0] and outcome.outputs[1] == ""


def test_more_ranks_than_batches(trained: Path, ranks: Ranks, tmp_path: Path) -> None:
    """The second rank has nothing to encode."""
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    outcome = on_ranks(ranks, 2, run_dir, "evaluate")
    assert outcome.statuses == [0, 0] and outcome.results[1] == 0, "\n".join(outcome.outputs)
    assert (run_dir / "eval.json").exists()


def _dying(how: str, words: list[str]) -> None:
    """The second rank ends while it encodes."""
    embed = dual.iterate_images

    def stopping(*arguments: Any) -> Any:
        for number, batch in enumerate(embed(*arguments)):
            if number == 1 and os.environ["RANK"] == "1":
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError("this disk is gone")
            yield batch

    dual.iterate_images = stopping
    sys.exit(cli.run(evaluate.main, words))


@pytest.mark.parametrize(("how", "words"), [("killed", "ended without a word"), ("error", "failed: this disk is gone")])
def test_a_rank_that_dies_ends_the_evaluation(
    how: str, words: str, small_batches: Path, ranks: Ranks, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(small_batches, tmp_path / "run"))
    before = sorted(p.name for p in run_dir.iterdir())
    outcome = ranks.run(Job(_dying, (how, [str(run_dir)]), 2, tmp_path / "out"))
    assert outcome.statuses == [2, -signal.SIGKILL if how == "killed" else 2], outcome.outputs
    assert outcome.outputs[0].count("error:") == 1 and "rank 1 (" in outcome.outputs[0]
    assert words in outcome.outputs[0] and sorted(p.name for p in run_dir.iterdir()) == before


def _of_another_checkpoint(words: list[str]) -> None:
    if os.environ["RANK"] == "1":
        cached_result.file_digest = lambda path: "0" * 64
    sys.exit(cli.run(evaluate.main, words))


def test_another_checkpoint_is_refused(small_batches: Path, ranks: Ranks, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(small_batches, tmp_path / "run"))
    outcome = ranks.run(Job(_of_another_checkpoint, ([str(run_dir)],), 2, tmp_path / "out"))
    assert outcome.statuses == [2, 2] and outcome.outputs[1] == ""
    assert "differs from rank 0 (" in outcome.outputs[0] and "best.pt ('000000000000'" in outcome.outputs[0]
    assert not (run_dir / "eval.json").exists()


def test_an_error_of_all_is_printed_once(ranks: Ranks, tmp_path: Path) -> None:
    outcome = on_ranks(ranks, 2, tmp_path / "nowhere", "evaluate")
    assert outcome.statuses == [2, 2] and outcome.outputs[1] == ""
    assert "holds no trained model" in outcome.outputs[0] and not (tmp_path / "nowhere").exists()


def test_after_a_sigterm_silent_ranks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sends it to the others when one has died."""
    monkeypatch.setattr(failures, "ROLL_CALL", 0.2)
    store = dist.HashStore()
    store.set("name/1", "rank 1 (there, process 7)")
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM; no answer from rank 1 \(there, process 7\): killed"):
        stop(store, 0)
    store.set("alive/1", "")
    with pytest.raises(Preempted, match="^stopped by SIGTERM$"):
        stop(store, 0)
    with pytest.raises(SystemExit) as ended:
        stop(store, 1)
    assert ended.value.code == REQUEUE_STATUS


def stop(store: Any, rank: int) -> None:
    with preemption() as signals, Register(store, rank, 2, signals).reporting():
        os.kill(os.getpid(), signal.SIGTERM)
        signals.deferring()


OTHERS = {
    "training.search": ["training.search", "runs/a", "a red coat"],
    "training.prepare": ["training.prepare", "synthetic", "out"],
    "training.export": ["training.export.__main__", "runs/a", "out"],
    "training.serve": ["training.serve", "--gallery", "g", "--run", "runs/a"],
    "training.report": ["training.report.__main__", "runs/a"],
    "training.experiment": ["training.experiment.__main__", "synthetic", "--out", "out"],
    "training.describe generate": ["training.describe.generate", "own", "data", "--out", "out", "--model", "m"],
    "training.gallery remove": ["training.gallery", "remove", "g", "--missing"],
    "training.gallery info": ["training.gallery", "info", "g"],
}


@pytest.mark.parametrize(("program", "words"), OTHERS.items(), ids=OTHERS)
def test_commands_of_one_process_refuse_several(
    program: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import importlib

    monkeypatch.chdir(tmp_path)
    found = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    expected = rf"^python -m {program} is the work of one process, not of 2: start it without torchrun$"
    with pytest.raises(ValueError, match=expected):
        importlib.import_module(words[0]).main(words[1:])
    assert [*tmp_path.iterdir()] == []
