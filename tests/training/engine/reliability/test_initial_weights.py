"""Weights of another run as a start: what fits is taken, words keep their rows, the rest is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch

from tests.support.tiny_run import same_state, tiny_config
from training.config.recipes import get_recipe
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint
from training.engine.initial_weights import NUMBERS, load_initial_weights
from training.models.retrieval_model import RetrievalModel
from training.train import train


class Source(NamedTuple):
    """The parts of a run that --init reads."""

    model: RetrievalModel
    tokenizer: Any
    epoch: int = 1


def test_the_weights_of_another_run_are_a_start(
    root: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(root, optim=replace(tiny_config(root).optim, epochs=1, warmup_epochs=0, lr=1e-12))
    config = replace(config, loss=replace(config.loss, final_matching=False))
    train(config, tmp_path / "run", init=trained)
    out = capfd.readouterr().out
    assert f"tensors from {trained} (epoch " in out and "not used of the run: matching_head." in out
    theirs, ours = (checkpoint.load(run / "best.pt")["model"] for run in (trained, tmp_path / "run"))
    name = "visual.backbone.encoder.layer.0.attention.attention.query.weight"
    name = name if name in ours else next(n for n in ours if n.startswith("visual.") and ours[n].ndim == 2)
    torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=0)
    # A run that has begun keeps its own weights.
    before = checkpoint.load(tmp_path / "run" / "last.pt")["model"]
    train(config, tmp_path / "run", init=trained, resume=True)
    assert same_state(checkpoint.load(tmp_path / "run" / "last.pt")["model"], before)


@pytest.mark.parametrize("architecture", ["decoupling", "dual-encoder"])
def test_rows_by_number_are_not_taken_for_those_of_other_words(architecture: str, tmp_path: Path) -> None:
    def model(words: Sequence[str]) -> tuple[RetrievalModel, Any]:
        config = get_recipe("synthetic-baseline" if architecture == "dual-encoder" else "synthetic")
        tokenizer = build_tokenizer(config.model.text, words)
        return checkpoint.build_model(config, tokenizer), tokenizer

    (theirs, old), (ours, new) = model(["red shirt red shirt"]), model(["blue skirt blue skirt"])
    assert len(old) == len(new) and old.get_vocab() != new.get_vocab()
    name = next(name for name in ours.state_dict() if name.endswith(NUMBERS))
    before = ours.state_dict()[name].clone()
    for tokenizer, taken in ((new, False), (old, True)):
        with patch("training.engine.initial_weights.load_run", lambda *_, **__: Source(theirs, old)):
            text = load_initial_weights(ours, tokenizer, tmp_path)
        assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name] if taken else before)
        assert (name in text) != taken


def test_words_of_another_vocabulary_keep_their_embeddings(root: Path, trained: Path, tmp_path: Path) -> None:
    own_root = Path(shutil.copytree(root, tmp_path / "data"))
    records = json.loads((own_root / "reid_raw.json").read_text())
    for record in records:
        record["captions"] = [caption + " aardvark" for caption in record["captions"]]
    (own_root / "reid_raw.json").write_text(json.dumps(records))
    config = tiny_config(own_root, optim=replace(tiny_config(own_root).optim, epochs=1, warmup_epochs=0, lr=1e-12))
    train(config, tmp_path / "run", init=trained)
    old, new = checkpoint.load_run(trained), checkpoint.load_run(tmp_path / "run")
    words = [run.tokenizer.get_vocab() for run in (old, new)]
    assert "aardvark" in words[1].keys() - words[0].keys()
    name = next(n for n in new.model.state_dict() if n.endswith("word_embeddings.weight"))
    tables = [run.model.state_dict()[name] for run in (old, new)]
    moved = [word for word in words[0] if words[0][word] != words[1].get(word, words[0][word])]
    assert moved
    for word in moved:
        torch.testing.assert_close(tables[0][words[0][word]], tables[1][words[1][word]], atol=1e-9, rtol=0)


def test_a_run_of_which_nothing_fits_is_no_start(root: Path, trained: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    wide = replace(
        config.model, visual=replace(config.model.visual, width=24), text=replace(config.model.text, width=24)
    )
    config = replace(config, model=replace(wide, embedding=12, fusion=replace(config.model.fusion, enabled=False)))
    with pytest.raises(
        ValueError, match=r"--init .*: none of its weight matrices fits this model; expected a run of the"
    ):
        train(config, tmp_path / "run", init=trained)
    assert not (tmp_path / "run").exists()
