"""Configuration of the model: its encoders, modules and embedding. "reading n" as in `stages`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from training.config.fields import Stage, Within

Backend = Literal["auto", "cuda", "triton", "cpu", "reference"]


@dataclass(frozen=True)
class EncoderConfig(Stage):
    """One encoder: pretrained by name or local folder, or a small one of the sizes below."""

    # Hugging Face name or local folder; empty: the sizes below with random weights.
    pretrained: str = ""
    # Width of the tokens of a small encoder.
    width: Annotated[int, Within(8)] = 128
    # Transformer layers of a small encoder.
    layers: Annotated[int, Within(1)] = 4
    # Attention heads of a small encoder; they divide the width.
    heads: Annotated[int, Within(1)] = 4
    # Width of the feed-forward parts, in widths.
    feed_forward: Annotated[int, Within(1)] = 4
    # Square patches of this many pixels (visual encoder only).
    patch_size: Annotated[int, Within(2)] = 16
    # How a small encoder makes tokens of its input: "plain", as ViT and BERT do (one linear map a patch, one vector a word),
    # "convolutional", which learns from nothing in minutes (3 x 3 convolutions down to the patch; windows of 3 words), or "deep",
    # which has one more convolution, and a vector for each pair of words: in the tokens, and with one for each word beside those
    # of the layers.
    stem: Literal["plain", "convolutional", "deep"] = "plain"
    # Mean of red, green and blue that pretrained weights expect (visual encoder only); empty: that of their folder.
    mean: tuple[float, ...] = ()
    # Standard deviation of red, green and blue that they expect; empty: that of their folder.
    std: tuple[float, ...] = ()
    # Train the encoder; frozen otherwise (reading 11).
    trainable: bool = True
    # Learning rate relative to the base rate (reading 11: 0.1 for a fine-tuned BERT).
    lr_scale: Annotated[float, Within(1e-6, 1e3)] = 1.0

    def check(self) -> None:
        self.require(self.width % self.heads == 0, "width", f"a multiple of heads ({self.heads})")
        self.require(len(self.mean) in (0, 3), "mean", "three numbers, or none")
        positive = all(value > 0 for value in self.std)
        self.require(len(self.std) in (0, 3) and positive, "std", "three numbers above 0, or none")
        power = self.patch_size >= 4 and self.patch_size & (self.patch_size - 1) == 0
        self.require(
            self.stem == "plain" or power, "patch_size", "a power of two, at least 4, for a convolutional stem"
        )


@dataclass(frozen=True)
class BdamConfig(Stage):
    """Bidirectional decoupling alignment module (paper 3.2, readings 4 and 10)."""

    # Off: both branches are the pooled ViT tokens through one linear layer each (Table 1, baseline).
    enabled: bool = True
    # Self-attention layers of each branch (Table 1, shallow: half of them).
    self_layers: Annotated[int, Within(1)] = 6
    # Cross-attention layers of each direction (Table 1, shallow: half of them).
    cross_layers: Annotated[int, Within(1)] = 3
    # Attention heads of these layers; they divide the width of the visual encoder.
    heads: Annotated[int, Within(1)] = 12
    # Pre-norm blocks with a feed-forward part; off: attention with residual only, as printed (reading 10).
    pre_norm: bool = True
    # Table 1, w/o cross-attention.
    cross_attention: bool = True
    # Table 1, w/o gate: both branches pass unweighted.
    gate: bool = True
    # Dropout of BDAM's layers.
    dropout: Annotated[float, Within(0, 0.9)] = 0.1


@dataclass(frozen=True)
class FusionConfig(Stage):
    """Fusion of the gated features with a text (paper 3.4, readings 13 to 15)."""

    # Off: no fused feature and none of its losses (Table 2, baseline).
    enabled: bool = True
    # "tokens": gated patch tokens and text tokens as one sequence; "pooled": one vector per pair (reading 13).
    form: Literal["tokens", "pooled"] = "tokens"
    # Branches of the image that are fused: "both", since a caption speaks of clothes too, or "identity" alone (reading 13).
    branches: Literal["both", "identity"] = "both"
    # "mamba"; "none": no layers (Table 2, w/o Mamba; Fig. 5, simple); "transformer" (Fig. 5).
    layers_kind: Literal["mamba", "transformer", "none"] = "mamba"
    # Layers of the fusion.
    layers: Annotated[int, Within(1)] = 2
    # Width of the fused tokens.
    width: Annotated[int, Within(1)] = 256
    # Attention heads of the transformer layers.
    heads: Annotated[int, Within(1)] = 4
    # States of a channel in the Mamba layers.
    state: Annotated[int, Within(1, 256)] = 16
    # Width of the causal convolution in the Mamba layers.
    conv: Annotated[int, Within(1, 8)] = 4
    # Pre-norm residual; off: Mamba(x) + x as printed (reading 14).
    pre_norm: bool = True
    # Weigh image and text by a gate; off: equal weights (Table 2, w/o gate).
    gate: bool = True
    # Align image and text by an MLP; off: by one linear map (Table 2, w/o alignment).
    alignment: bool = True
    # Dropout of the fusion's layers.
    dropout: Annotated[float, Within(0, 0.9)] = 0.1

    def check(self) -> None:
        divides = self.layers_kind != "transformer" or self.width % self.heads == 0
        self.require(divides, "width", f"a multiple of heads ({self.heads})")


@dataclass(frozen=True)
class ModelConfig(Stage):
    """Encoders, modules and joint embedding of the model."""

    # "decoupling": the method; "dual-encoder": its floor, a plain one (models/baseline.py), of which only `embedding` counts.
    architecture: Literal["decoupling", "dual-encoder"] = "decoupling"
    # Encoder of the images.
    visual: EncoderConfig = field(default_factory=lambda: EncoderConfig(pretrained="google/vit-base-patch16-224"))
    # Encoder of the texts.
    text: EncoderConfig = field(default_factory=lambda: EncoderConfig(pretrained="bert-base-uncased", lr_scale=0.1))
    # Bidirectional decoupling alignment module (paper 3.2, readings 4 and 10).
    bdam: BdamConfig = field(default_factory=BdamConfig)
    # Fusion of the gated features with a text (paper 3.4, readings 13 to 15).
    fusion: FusionConfig = field(default_factory=FusionConfig)
    # Width of the joint embedding space (reading 4).
    embedding: Annotated[int, Within(1)] = 256
    # Batch normalisation at the end of the projections to embeddings (readings 4 and 5): without it the batch-hard triplet
    # loss collapses the embeddings of new encoders to one point.
    batch_norm: bool = True
    # "cls" or masked "mean" (reading 12).
    text_pooling: Literal["cls", "mean"] = "mean"
    # Self-attention layers on top of a frozen text encoder (reading 11).
    text_adapter_layers: Annotated[int, Within(0)] = 0
    # Implementation of selective_scan, causal_conv1d and hsic.
    backend: Backend = "auto"
