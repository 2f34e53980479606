"""Pretrained encoders: every tensor of the tower comes from its folder, or there is an error that names what is wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.support.models import TINY, texts
from tests.support.pretrained.folders import VISUAL, save_visual, text_model
from training.config import Config, DataConfig, EncoderConfig, ModelConfig
from training.models.encoders import TextEncoder, VisualEncoder
from training.models.model import Model
from training.models.pretrained import with_image_size

WORDS, POSITIONS = 40, 16
TEXT = ("bert", "roberta", "distilbert", "clip")
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("pretrained")
    made = {name: save_visual(name, base / name) for name in VISUAL}
    for name in TEXT:
        text_model(name, WORDS, POSITIONS).save_pretrained(base / f"text-{name}")
        made[f"text-{name}"] = str(base / f"text-{name}")
    return made


# Weights of the folders that the encoders leave out.
LEFT_OUT = ("classifier", "pooler", "mask_token", "head.", "lm_head", "cls.", "vocab_", "projection.weight", "logit_")


def bits(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), tensor.numpy().tobytes()


def require_whole(module: torch.nn.Module, folder: str, other: str = "-") -> None:
    """Asserts that the tensors of a module are those of the file, whatever their names, except for heads and `other`."""
    stored = load_file(Path(folder) / "model.safetensors")
    own = {key: bits(value) for key, value in stored.items() if not key.startswith(other)}
    patch = {
        key for key in own if key.endswith(("patch_embeddings.projection.weight", "patch_embeddings.projection.bias"))
    }
    expected = {value for key, value in own.items() if key in patch or not any(name in key for name in LEFT_OUT)}
    parameters = dict(module.named_parameters())
    assert {bits(value.detach()) for value in parameters.values()} == expected and len(parameters) == len(expected) > 15


@pytest.mark.parametrize("name", list(VISUAL))
def test_every_tensor_of_a_visual_tower_comes_from_its_folder(folders: dict[str, str], name: str) -> None:
    encoder = VisualEncoder(replace(TINY, pretrained=folders[name]), (32, 32)).eval()
    require_whole(encoder.backbone, folders[name], "text_model.")


@pytest.mark.parametrize("name", list(VISUAL))
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_tokens_are_the_normalised_patches_of_the_library(
    folders: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    encoder = VisualEncoder(replace(TINY, pretrained=folders[name]), size).eval()
    images = torch.rand(2, 3, *size)
    tokens = encoder((images - 0.5) / 0.5)
    library: Any = transformers.AutoModel.from_pretrained(folders[name]).eval()
    pixels = {"deit": (IMAGENET_MEAN, IMAGENET_STD), "dinov2": (IMAGENET_MEAN, IMAGENET_STD)}
    clip = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    mean, std = clip if "clip" in name and name != "siglip" else pixels.get(name, ([0.5] * 3, [0.5] * 3))
    values = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    if name in ("clip", "siglip"):
        library = library.vision_model
    arguments = {} if name == "dinov2" else {"interpolate_pos_encoding": True}
    expected = library(values, **arguments).last_hidden_state
    if name in ("clip", "clip-vision"):
        expected = library.post_layernorm(expected)
    first = {"deit": 2, "siglip": 0}.get(name, 1)
    assert tokens.shape == (2, size[0] * size[1] // 64, 16)
    assert_close(tokens, expected[:, first:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TEXT)
def test_every_tensor_of_a_text_tower_comes_from_its_folder(folders: dict[str, str], name: str) -> None:
    folder = folders[f"text-{name}"]
    encoder = TextEncoder(replace(TINY, pretrained=folder), WORDS, 0, POSITIONS).eval()
    require_whole(encoder.backbone, folder, "vision_model.")
    batch = texts(3, torch.Generator().manual_seed(0))
    library: Any = transformers.AutoModel.from_pretrained(folder).eval()
    library = library.text_model if name == "clip" else library
    expected = library(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).last_hidden_state
    mask = batch.attention_mask_BT.bool()
    assert_close(encoder(batch.input_ids_BT, batch.attention_mask_BT)[mask], expected[mask])


@pytest.mark.parametrize(
    ("kind", "folder", "expected"),
    [
        ("visual", "text-bert", "is a model of the type 'bert', expected one of vit, deit, dinov2, clip"),
        ("text", "vit", "is a model of the type 'vit', expected one of bert, roberta, distilbert, clip"),
        ("text", "siglip", "is a model of the type 'siglip', expected one of bert"),
    ],
)
def test_another_architecture_is_refused(folders: dict[str, str], kind: str, folder: str, expected: str) -> None:
    config = replace(TINY, pretrained=folders[folder])
    with pytest.raises(ValueError, match=rf"model\.{kind}\.pretrained=.*{expected}"):
        _ = VisualEncoder(config, (32, 32)) if kind == "visual" else TextEncoder(config, WORDS, 0, POSITIONS)


def copy_with(folder: str, target: Path, change: Any) -> EncoderConfig:
    """A copy of a folder whose weights `change` has changed."""
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return replace(TINY, pretrained=str(target))


def drop(weights: dict[str, Tensor]) -> None:
    del weights["vision_model.post_layernorm.bias"]


def add(weights: dict[str, Tensor]) -> None:
    weights["vision_model.encoder.layers.1.layer_norm1.bias"] = torch.zeros(16)


def spoil(weights: dict[str, Tensor]) -> None:
    weights["vision_model.post_layernorm.bias"][3] = torch.nan


def swap(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if key.startswith("vision_model.")]:
        weights[key.replace("vision_model.", "vit.")] = weights.pop(key)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop, "CLIPVisionModel: 1 missing: post_layernorm.bias"),
        (add, "1 unexpected: .*encoder.layers.1.layer_norm1.bias"),
        (spoil, "1 not finite: post_layernorm.bias"),
        (swap, r"23 missing: embeddings.class_embedding, .* 23 unexpected: vit.embeddings.class_embedding"),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    folders: dict[str, str], tmp_path: Path, change: Any, expected: str
) -> None:
    config = copy_with(folders["clip"], tmp_path / "clip", change)
    with pytest.raises(ValueError, match=f"does not hold the weights of its {expected}|{expected}"):
        VisualEncoder(config, (32, 32))


def test_weights_of_another_shape_and_damaged_ones_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    config = copy_with(folders["clip-vision"], tmp_path / "clip", lambda weights: None)
    path = tmp_path / "clip" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 16}))
    with pytest.raises(ValueError, match=r"2 of another shape: embeddings.patch_embedding.weight, embeddings.position"):
        VisualEncoder(config, (32, 32))
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="its weights are damaged"):
        VisualEncoder(config, (32, 32))
    path.write_text('{"model_type": "no such model"}')
    with pytest.raises(ValueError, match="its config.json is not of a known model"):
        VisualEncoder(config, (32, 32))


def test_weights_in_sixteen_bits_are_trained_in_thirty_two(tmp_path: Path) -> None:
    transformers.ViTModel(VISUAL["vit"][1]).half().save_pretrained(tmp_path)
    encoder = VisualEncoder(replace(TINY, pretrained=str(tmp_path)), (32, 32))
    assert {value.dtype for value in encoder.backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip"])
def test_a_folder_decides_about_pixels_unless_the_configuration_does(tmp_path: Path, name: str) -> None:
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    config = replace(TINY, pretrained=save_visual(name, tmp_path, **own, size={"height": 48, "width": 24}))
    images = torch.rand(2, 3, 32, 32)
    encoder = VisualEncoder(config, (32, 32)).eval()
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder((images - 0.5) / 0.5)
    mean, std = torch.tensor(own["image_mean"])[:, None, None], torch.tensor(own["image_std"])[:, None, None]
    assert_close(seen[0], (images - mean) / std)
    half = VisualEncoder(replace(config, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), (32, 32)).eval()
    half.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    half((images - 0.5) / 0.5)
    assert_close(seen[1], (images - 0.5) / 0.5)
    model = ModelConfig(visual=config)
    assert with_image_size(Config(model=model)).data.image_size == (48, 24)
    assert with_image_size(Config(model=model, data=DataConfig(image_size=(64, 32)))).data.image_size == (64, 32)


def test_image_size_without_a_preprocessor_and_without_a_folder(folders: dict[str, str], tmp_path: Path) -> None:
    assert with_image_size(Config(model=ModelConfig(visual=TINY))).data.image_size == (224, 224)
    model = ModelConfig(visual=replace(TINY, pretrained=folders["clip"]))
    assert with_image_size(Config(model=model)).data.image_size == (32, 32)
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    values = {"do_center_crop": True, "crop_size": {"height": 40, "width": 40}, "size": {"shortest_edge": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values | {"do_normalize": False}))
    model = ModelConfig(visual=replace(TINY, pretrained=str(folder)))
    assert with_image_size(Config(model=model)).data.image_size == (40, 40)
    encoder = VisualEncoder(model.visual, (32, 32))
    assert_close(encoder._scale.flatten() * 0.7 + encoder._shift.flatten(), torch.full((3,), 0.85))
    with pytest.raises(RuntimeError, match="encoder: the image size of .* cannot be read; give a local folder"):
        with_image_size(Config(model=ModelConfig(visual=replace(TINY, pretrained=str(tmp_path / "none")))))


def test_positions_and_padding_of_text_towers(folders: dict[str, str]) -> None:
    config = replace(TINY, pretrained=folders["text-roberta"])
    # 17 position embeddings, the first of which is that of padding.
    with pytest.raises(ValueError, match="text length need max_position_embeddings >= 17, .* have 16"):
        TextEncoder(config, WORDS, 0, POSITIONS + 1)
    with pytest.raises(ValueError, match="the tokenizer pads with 1, the weights of .* with 0"):
        TextEncoder(config, WORDS, 1, POSITIONS)
    model = ModelConfig(visual=TINY, text=replace(TINY, pretrained=folders["text-clip"]), text_pooling="cls")
    with pytest.raises(ValueError, match="the first token of a CLIP text encoder has read nothing"):
        Model(model, Config().loss, (32, 32), WORDS, 0, POSITIONS)
