"""Folders of small pretrained encoders with random weights, written by transformers itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training.config import EncoderConfig
from training.data.tokenizer import build_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DISTIL = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
VISION: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 8}
DINO: dict[str, Any] = {**VISION, "mlp_ratio": 2}
# Name of a folder -> (model, configuration).
VISUAL = {
    "vit": ("ViTForImageClassification", transformers.ViTConfig(**VISION)),
    "deit": ("DeiTForImageClassificationWithTeacher", transformers.DeiTConfig(**VISION)),
    "dinov2": ("Dinov2Model", transformers.Dinov2Config(**{k: v for k, v in DINO.items() if k != "intermediate_size"})),
    "clip": ("CLIPModel", transformers.CLIPConfig(vision_config=VISION, text_config={**SIZES, "vocab_size": 50})),
    "clip-vision": ("CLIPVisionModel", transformers.CLIPVisionConfig(**VISION)),
    "siglip": ("SiglipModel", transformers.SiglipConfig(vision_config=VISION, text_config={**SIZES, "vocab_size": 50})),
}


def save_visual(name: str, folder: Path, **preprocessor: Any) -> str:
    """A folder of VISUAL; preprocessor: contents of preprocessor_config.json, none without them."""
    torch.manual_seed(0)
    kind, config = VISUAL[name]
    randomised(getattr(transformers, kind)(config)).save_pretrained(folder)
    if preprocessor:
        transformers.ViTImageProcessor(**preprocessor).save_pretrained(folder)
    return str(folder)


def randomised(model: Any) -> Any:
    """The model with other values in every tensor, so that equal bits mean the same tensor."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def text_model(name: str, words: int, positions: int, pad: int = 0) -> Any:
    """A text model of `words` tokens and at least `positions` positions."""
    torch.manual_seed(0)
    sizes = {"vocab_size": words, "pad_token_id": pad}
    if name == "clip":
        text = {**SIZES, **sizes, "max_position_embeddings": positions, "bos_token_id": 2, "eos_token_id": 3}
        return randomised(transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION)))
    if name == "distilbert":
        config = transformers.DistilBertConfig(**DISTIL, **sizes, max_position_embeddings=positions)
        return randomised(transformers.DistilBertForMaskedLM(config))
    if name == "roberta":
        config = transformers.RobertaConfig(**SIZES, **sizes, max_position_embeddings=positions + pad + 1)
        return randomised(transformers.RobertaForMaskedLM(config))
    config = transformers.BertConfig(**SIZES, **sizes, max_position_embeddings=positions)
    return randomised(transformers.BertForPreTraining(config))


def save_text(name: str, folder: Path, texts: Sequence[str], positions: int = 64) -> str:
    """A folder of a text model ("bert", "roberta", "distilbert", "clip") with a tokenizer of the words of `texts`."""
    tokenizer = build_tokenizer(EncoderConfig(), [*texts, *texts])
    text_model(name, len(tokenizer), positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def byte_tokenizer(folder: Path) -> str:
    """A tokenizer that knows every byte and no word, as GPT-2's of a language that it never saw."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return str(folder)
