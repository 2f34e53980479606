"""The recipe synthetic-baseline through every command, and what it learns in two minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import read_lines, same_state, tiny_config
from training import evaluate, search
from training.config import Config
from training.config.recipes import get_recipe
from training.data.datasets import read_dataset
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint
from training.evaluation import dual
from training.evaluation.metrics import chance_metrics
from training.evaluation.run_folder import read_run
from training.report.run_page import build_page
from training.synthetic.dataset import generate
from training.synthetic.text import vocabulary
from training.train import train
from training.utils import cli


def baseline(root: Path, epochs: int, **data: object) -> Config:
    config = get_recipe("synthetic-baseline")
    warmup = min(1, epochs - 1)
    optim = replace(config.optim, epochs=epochs, warmup_epochs=warmup)
    return replace(config, data=replace(config.data, root=str(root), **data), optim=optim)


def tiny_baseline(root: Path, epochs: int = 2) -> Config:
    return baseline(root, epochs, image_size=(32, 16), text_length=16, batch_size=6)


def test_every_command_goes_through(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    train(tiny_baseline(root), run_dir)
    validations = [line for line in read_lines(run_dir) if line["kind"] == "validation"]
    assert len(validations) == 2 and all(line["beta"] == 0 and line["beta0_R1"] == line["R1"] for line in validations)
    steps = [line for line in read_lines(run_dir) if line["kind"] == "step"]
    assert all(set(line["losses"]) == {"info_nce"} and line["weights"] == {"info_nce": 1.0} for line in steps)
    assert cli.run(evaluate.main, [str(run_dir)]) == 0
    run = read_run(run_dir)
    assert run.evaluation.beta == 0 and run.evaluation.metrics == run.evaluation.metrics_beta0
    assert run.evaluation.efficiency is not None and run.evaluation.efficiency.speed.pairs is None
    assert "synthetic-baseline" in build_page(run)
    assert cli.run(search.main, [str(run_dir), "a man in a red jacket", "--k", "3"]) == 0
    assert cli.run(search.main, [str(run_dir), "a man in a red jacket", "--k", "3"]) == 0, "from the stored index"
    assert capsys.readouterr().out.count(".jpg") == 6
    assert cli.run(evaluate.main, [str(run_dir), "--protocol", "rerank"]) == 2
    assert "protocol rerank fuses images with texts, but the model has no fusion" in capsys.readouterr().err


def test_a_resumed_run_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    train(tiny_baseline(root, 3), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        save = checkpoint.save

        def stop(path: Path, state: dict) -> None:
            save(path, state)
            if path.name == "last.pt" and state["epoch"] == 2:
                raise KeyboardInterrupt

        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_baseline(root, 3), tmp_path / "cut")
    train(tiny_baseline(root, 3), tmp_path / "cut", resume=True)
    whole, cut = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert same_state(whole["model"], cut["model"]) and same_state(whole["optimizer"], cut["optimizer"])


def test_micro_batches_and_half_precision_run(root: Path, tmp_path: Path) -> None:
    config = tiny_baseline(root, 1)
    train(replace(config, optim=replace(config.optim, accumulate=2, precision="bf16")), tmp_path / "run")
    assert all(torch.isfinite(p).all() for p in checkpoint.load_run(tmp_path / "run").model.parameters())


def test_words_of_the_captions_are_whole_tokens() -> None:
    tables = (vocabulary.COLOUR_WORDS, vocabulary.GARMENT_WORDS, vocabulary.PEOPLE, vocabulary.HAIR_WORDS)
    tables += (vocabulary.HAIR_COLOURS, vocabulary.PATTERN_WORDS, vocabulary.PATTERN_NOUNS, vocabulary.ACTIONS)
    phrases = [
        phrase.replace("{}", "").replace("{his}", "his")
        for table in tables
        for words in table.values()
        for phrase in words
    ]
    tokenizer = build_tokenizer(tiny_config(Path()).model.text, phrases * 2)
    # "t-shirt" is three tokens, as the pre-tokenizer of BERT splits at punctuation.
    for word in {word for phrase in phrases for word in phrase.lower().replace("-", " ").split()}:
        assert tokenizer.tokenize(word) == [word]


@pytest.mark.slow
def test_it_beats_chance_twenty_times_within_two_minutes(tmp_path: Path) -> None:
    generate(tmp_path / "data", ids=900, images_per_id=5, val_ids=100, test_ids=1, height=160, width=64, workers=2)
    config = baseline(tmp_path / "data", epochs=5)
    train(config, tmp_path / "run")
    run = read_run_log(tmp_path / "run")
    ids = [record.id for record in read_dataset(config.data).splits["val"]]
    queries = [id for id in ids for _ in range(2)]
    chance = chance_metrics(queries, ids)["R1"]
    assert max(line["R1"] for line in run) > 20 * chance
    trained = checkpoint.load_run(tmp_path / "run")
    found = dual.validate(trained.model, read_dataset(config.data).splits["val"], trained.tokenizer, trained.config)
    assert found["R1"] == max(line["R1"] for line in run)


def read_run_log(run_dir: Path) -> list[dict]:
    return [line for line in read_lines(run_dir) if line["kind"] == "validation"]
