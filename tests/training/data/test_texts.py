"""Texts and links as people have them: what cannot be read is an error before training, what is only odd is said."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.pedes_dataset import TRAIN, make_pedes
from tests.support.tiny_run import tiny_config
from training import prepare, search
from training.config import Config, DataConfig, EncoderConfig, EvalConfig, GradNormConfig
from training.data.datasets import read_dataset
from training.data.known_words import count_unknown
from training.data.loader import TrainLoader
from training.data.tokenizer import build_tokenizer
from training.engine.checkpoint import load, load_run, save
from training.evaluation.dual import embed_dual
from training.utils import cli


def edit(root: Path, split: str, change: Callable[[dict], None]) -> None:
    rows = json.loads((root / "reid_raw.json").read_text())
    change(next(row for row in rows if row["split"] == split))
    (root / "reid_raw.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(("text", "kind"), [("a \ud800 man", "lone surrogate"), ("a m\0an", "NUL character")])
def test_broken_characters_of_any_split_are_found_before_training(
    tmp_path: Path, split: str, text: str, kind: str
) -> None:
    root = make_pedes(tmp_path)
    edit(root, split, lambda row: row["captions"].append(text))
    with pytest.raises(
        ValueError, match=rf"malformed records: record \d+: 'captions'\[2\] has a {kind} at character \d"
    ):
        read_dataset(DataConfig(root=str(root)))


@pytest.mark.parametrize("key", ["identity", "clothing"])
def test_broken_characters_of_generated_texts(tmp_path: Path, key: str) -> None:
    root = make_pedes(tmp_path)
    path = root / "descriptions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1][key] += "\udfff"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(
        ValueError, match="line 2 has a NUL character or a lone surrogate in a text of train/0001_1.jpg"
    ):
        read_dataset(DataConfig(root=str(root)))


def file_link(root: Path) -> None:
    (root / "imgs" / TRAIN).rename(root.parent / "a.jpg")
    (root / "imgs" / TRAIN).symlink_to(root.parent / "a.jpg")


def folder_link(root: Path) -> None:
    (root / "imgs" / "train").rename(root.parent / "market")
    (root / "imgs" / "train").symlink_to(root.parent / "market")


def relative_link(root: Path) -> None:
    (root / "imgs" / TRAIN).rename(root / "secret.jpg")
    (root / "imgs" / TRAIN).symlink_to("../../secret.jpg")


@pytest.mark.parametrize("make", [file_link, folder_link, relative_link])
def test_links_out_of_the_images_are_refused_unless_allowed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = make_pedes(tmp_path / "data")
    make(root)
    config = DataConfig(root=str(root))
    with pytest.raises(
        ValueError, match=r"symbolic links lead out of .*imgs: train/0001_0.jpg.*`train --data.follow-links`"
    ):
        read_dataset(config)
    assert len(read_dataset(replace(config, follow_links=True)).splits["train"]) == 18
    pack = ["pack", "cuhk-pedes", str(root), str(tmp_path / "cache"), "--image-size", "32", "16"]
    with pytest.raises(ValueError, match="`prepare pack --follow-links`"):
        prepare.main(pack)
    prepare.main([*pack, "--follow-links"])


def test_links_within_the_images_and_imgs_itself_may_be_links(tmp_path: Path) -> None:
    root = make_pedes(tmp_path / "data")
    (root / "imgs" / TRAIN).unlink()
    (root / "imgs" / TRAIN).symlink_to(root / "imgs" / "train" / "0001_1.jpg")
    (root / "imgs").rename(tmp_path / "disk")
    (root / "imgs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / TRAIN).unlink()
    (tmp_path / "disk" / TRAIN).symlink_to("0001_1.jpg")
    assert len(read_dataset(DataConfig(root=str(root))).splits["train"]) == 18


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    root = make_pedes(tmp_path)
    exact, long = "red shirt blue red shirt blue", "red shirt blue red shirt blue red"
    edit(root, "train", lambda row: row["captions"].extend([exact, long, long + " blue"]))
    config = replace(tiny_config(root).data, text_length=8)
    dataset = read_dataset(config)
    texts = set(dataset.train_texts())
    tokenizer = build_tokenizer(EncoderConfig(), dataset.train_texts())
    expected = sum(len(tokenizer(text)["input_ids"]) > 8 for text in texts)
    assert len(tokenizer(exact)["input_ids"]) == 8
    assert TrainLoader(dataset, tokenizer, config, 0).table.cut == expected > 2


def test_words_that_a_tokenizer_does_not_know() -> None:
    tokenizer = build_tokenizer(EncoderConfig(), ["a man in a red jacket, man in red jacket"] * 2)
    assert count_unknown(tokenizer, ["A man, a MAN in turquoise and in turquoise"]) == (3, 9, ["turquoise", "and"])
    assert count_unknown(tokenizer, ["turquoise 红色上衣 123 !!"])[:2] == (2, 2)


def test_search_says_that_it_knows_no_word(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(search.main, [str(run_dir), "zzyzx qwertz"]) == 0
    assert "no word of this text was in the texts that the model learned from" in capsys.readouterr().err
    assert cli.run(search.main, [str(run_dir), "a \udcff man"]) == 2
    assert "TEXT has a NUL character or bytes that are not UTF-8" in capsys.readouterr().err
    assert cli.run(search.main, [str(run_dir), "a \udcff man"]) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["text_projection", "identity_projection", "visual"])
def test_weights_that_are_not_finite_are_refused(run_dir: Path, part: str, value: float) -> None:
    state = load(run_dir / "best.pt")
    key = next(key for key, item in state["model"].items() if key.startswith(part) and item.is_floating_point())
    state["model"][key].view(-1)[0] = value
    save(run_dir / "best.pt", state)
    with pytest.raises(ValueError, match=rf"holds weights that are not finite: {re.escape(key)} \(1 in all\)"):
        load_run(run_dir)


def test_embeddings_that_are_not_finite_are_refused(run_dir: Path, root: Path) -> None:
    run = load_run(run_dir)
    with torch.no_grad():
        next(run.model.visual.parameters()).fill_(torch.inf)
    with pytest.raises(ValueError, match="the model gives embeddings that are not finite"):
        embed_dual(run.model, read_dataset(run.config.data).splits["val"], run.tokenizer, run.config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_of_a_configuration_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="GradNormConfig.alpha must be a finite number"):
        GradNormConfig(alpha=value)
    with pytest.raises(ValueError, match="EncoderConfig.mean must be finite numbers, got"):
        EncoderConfig(mean=(0.5, value, 0.5))
    with pytest.raises(ValueError, match="EncoderConfig.std must be finite numbers, got"):
        EncoderConfig(std=(0.5, value, 0.5))
    with pytest.raises(ValueError, match="EvalConfig.betas must be finite numbers, got"):
        EvalConfig(betas=(0.0, value))
    with pytest.raises(ValueError, match="must be"):
        replace(Config().optim, lr=value)
