"""Pretrained towers of `transformers`, loaded whole: every weight of a tower comes from its folder, or loading is an error.

| encoder | architectures (`model_type`) |
|---|---|
| visual | ViT, DeiT, DINOv2, CLIP, SigLIP |
| text | BERT (MiniLM too), RoBERTa, DistilBERT, CLIP |
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from training.config import Config, EncoderConfig
from training.data.pretrained_files import load_pretrained, quiet

Kind = Literal["visual", "text"]
Numbers = tuple[float, ...]
ATTENTION = "sdpa"
# Means and standard deviations of pixels that the architectures were trained with, where a folder does not say.
HALF: tuple[Numbers, Numbers] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET: tuple[Numbers, Numbers] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: tuple[Numbers, Numbers] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Size of the images where neither the configuration nor a folder says one.
IMAGE_SIZE = (224, 224)


@dataclass(frozen=True)
class Tower:
    """One architecture of an encoder."""

    # Class of transformers.
    model: str
    # Beginnings of the names of weights that belong to heads and to the other tower, without the prefix of the model.
    others: tuple[str, ...]
    # Tokens before those of the patches.
    prefix_tokens: int = 0
    # Set in its configuration, so that no part is built that the tokens do not pass through.
    settings: tuple[tuple[str, Any], ...] = ()
    # Keyword arguments of its constructor, for the same reason.
    arguments: tuple[tuple[str, Any], ...] = ()
    pixels: tuple[Numbers, Numbers] = HALF
    # Layer that normalises the tokens, where the model applies it to the pooled one only.
    last_norm: str = ""


_NO_POOLER = (("add_pooling_layer", False),)
_PAIR = (
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "classifier.",
    "embeddings.position_ids",
)
_CLIP_VISION = Tower("CLIPVisionModel", ("text_model.", *_PAIR), 1, pixels=CLIP, last_norm="post_layernorm")
_SIGLIP = Tower("SiglipVisionModel", ("text_model.", "head.", *_PAIR), settings=(("vision_use_head", False),))
_CLIP_TEXT = Tower("CLIPTextModel", ("vision_model.", *_PAIR))
_VIT_HEADS = (
    "classifier.",
    "cls_classifier.",
    "distillation_classifier.",
    "pooler.",
    "decoder.",
    "embeddings.mask_token",
)
_BERT_HEADS = ("pooler.", "cls.", "classifier.", "qa_outputs.", "embeddings.position_ids")
TOWERS: dict[Kind, dict[str, Tower]] = {
    "visual": {
        "vit": Tower("ViTModel", _VIT_HEADS, 1, arguments=_NO_POOLER),
        "deit": Tower("DeiTModel", _VIT_HEADS, 2, arguments=_NO_POOLER, pixels=IMAGENET),
        "dinov2": Tower("Dinov2Model", _VIT_HEADS, 1, settings=(("use_mask_token", False),), pixels=IMAGENET),
        "clip": _CLIP_VISION,
        "clip_vision_model": _CLIP_VISION,
        "siglip": _SIGLIP,
        "siglip_vision_model": _SIGLIP,
    },
    "text": {
        "bert": Tower("BertModel", _BERT_HEADS, arguments=_NO_POOLER),
        "roberta": Tower("RobertaModel", ("lm_head.", *_BERT_HEADS), arguments=_NO_POOLER),
        "distilbert": Tower(
            "DistilBertModel",
            ("vocab_layer_norm.", "vocab_projector.", "vocab_transform.", "pre_classifier.", *_BERT_HEADS),
        ),
        "clip": _CLIP_TEXT,
        "clip_text_model": _CLIP_TEXT,
    },
}


@dataclass(frozen=True)
class Backbone:
    """A tower with its weights."""

    tower: Tower
    module: nn.Module
    # Mean and standard deviation of the pixels that a visual tower expects.
    mean: Numbers = ()
    std: Numbers = ()

    @property
    def last_norm(self) -> nn.Module | None:
        """The layer of `Tower.last_norm`."""
        names = {name.rpartition(".")[2]: module for name, module in self.module.named_modules()}
        return names.get(self.tower.last_norm) if self.tower.last_norm else None

    def describe(self) -> str:
        """The architecture as JSON, from which `rebuild` makes it without its folder."""
        module: Any = self.module
        return json.dumps({"config": module.config.to_dict(), "mean": self.mean, "std": self.std}, default=str)


def load_backbone(kind: Kind, config: EncoderConfig) -> Backbone:
    """The tower of `config.pretrained` in float32.

    Raises RuntimeError for a folder or name that cannot be read, and ValueError for another architecture and for weights of the
    tower that are missing, unexpected, of another shape or not finite.
    """
    name = config.pretrained
    try:
        own, tower = _find_tower(kind, name)
        options = {"config": own, "attn_implementation": ATTENTION, "dtype": torch.float32, **dict(tower.arguments)}
        load = getattr(transformers, tower.model).from_pretrained
        with quiet():
            # Other shapes are listed with the rest of what is wrong.
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            module, info = load_pretrained(load, name, **options)
    except OSError as error:
        raise RuntimeError(
            f"encoder: pretrained weights {name!r} cannot be loaded; give a local folder that holds them, connect to "
            f"the hub once, or leave encoder.pretrained empty for a small encoder ({str(error).splitlines()[0]})"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"model.{kind}.pretrained={name!r}: its weights are damaged ({error})") from error
    _require_whole(kind, name, tower, module, info)
    if kind == "text":
        return Backbone(tower, module)
    mean, std = _own_pixels(name, tower)
    return Backbone(tower, module, config.mean or mean, config.std or std)


def rebuild(kind: Kind, description: str) -> Backbone:
    """The tower that `Backbone.describe` describes, with random weights."""
    stored = json.loads(description)
    values = stored["config"]
    tower = TOWERS[kind][values["model_type"]]
    model = getattr(transformers, tower.model)
    own = model.config_class.from_dict(values)
    own._attn_implementation = ATTENTION
    return Backbone(tower, model(own, **dict(tower.arguments)), tuple(stored["mean"]), tuple(stored["std"]))


def with_image_size(config: Config) -> Config:
    """The configuration with the size of images that its visual encoder was trained with, unless it names one.

    Raises RuntimeError and ValueError as `load_backbone`.
    """
    if config.data.image_size != (0, 0):
        return config
    size, name = IMAGE_SIZE, config.model.visual.pretrained
    if name:
        try:
            own, _ = _find_tower("visual", name)
        except OSError as error:
            raise RuntimeError(
                f"encoder: the image size of {name!r} cannot be read; give a local folder, connect to the hub once, or set "
                f"--data.image-size ({str(error).splitlines()[0]})"
            ) from error
        size = _own_size(_preprocessor(name), own.image_size)
    return replace(config, data=replace(config.data, image_size=size))


def text_positions(config: PretrainedConfig) -> int:
    """Longest text in tokens; positions of RoBERTa count from the one behind its padding token."""
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return config.max_position_embeddings - offset


def _find_tower(kind: Kind, name: str) -> tuple[PretrainedConfig, Tower]:
    with quiet():
        try:
            found = load_pretrained(AutoConfig.from_pretrained, name)
        except (ValueError, KeyError) as error:
            raise ValueError(f"model.{kind}.pretrained={name!r}: its config.json is not of a known model") from error
    if found.model_type not in TOWERS[kind]:
        raise ValueError(
            f"model.{kind}.pretrained={name!r} is a model of the type {found.model_type!r}, expected one of "
            f"{', '.join(TOWERS[kind])}"
        )
    tower = TOWERS[kind][found.model_type]
    part = {"visual": "vision_config", "text": "text_config"}[kind]
    own = getattr(found, part) if found.model_type in ("clip", "siglip") else found
    for key, value in tower.settings:
        setattr(own, key, value)
    return own, tower


def _require_whole(kind: Kind, name: str, tower: Tower, module: nn.Module, info: dict[str, Any]) -> None:
    own = f"{getattr(module, 'base_model_prefix', '')}.", "vision_model." if kind == "visual" else "text_model."
    names = {key: [key, *(key.removeprefix(prefix) for prefix in own)] for key in info["unexpected_keys"]}
    problems = {
        "missing": info["missing_keys"],
        "unexpected": [key for key, forms in names.items() if not any(form.startswith(tower.others) for form in forms)],
        "of another shape": [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]],
        "not finite": [key for key, value in module.state_dict().items() if not bool(value.isfinite().all())],
    }
    found = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"model.{kind}.pretrained={name!r} does not hold the weights of its {tower.model}: {'; '.join(found)}"
        )


def _some(keys: Iterable[str]) -> str:
    listed = sorted(keys)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")


def _preprocessor(name: str) -> dict[str, Any]:
    """Contents of preprocessor_config.json; {} without one."""
    try:
        return load_pretrained(_read_preprocessor, name)
    except OSError:
        return {}


def _read_preprocessor(name: str, **options: Any) -> dict[str, Any]:
    values, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(name, **options)
    return values


def _own_pixels(name: str, tower: Tower) -> tuple[Numbers, Numbers]:
    values = _preprocessor(name)
    if not values.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (
        values.get(f"image_{key}", default) for key, default in zip(("mean", "std"), tower.pixels, strict=True)
    )
    return _three(mean), _three(std)


def _three(values: Any) -> Numbers:
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(float(value) for value in values)


def _own_size(values: dict[str, Any], built_for: Any) -> tuple[int, int]:
    """Height and width of the images after a folder's own preprocessing; without it those that the tower was built for."""
    size = values.get("crop_size") if values.get("do_center_crop") else None
    size = size or values.get("size") or built_for
    if isinstance(size, dict):
        size = [size[key] for key in ("height", "width")] if "height" in size else size.get("shortest_edge", built_for)
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
