"""Configuration of a whole run: frozen dataclasses, one per stage, validated when built, stored with every result.

"reading n" in a comment names the row of the table of readings in docs/method.md; the default of every field is the
`recommended` reading, `training.config.recipes.paper_readings` sets the `paper` one.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Literal

from training.config.captions_only import CAPTIONS_ONLY
from training.config.dual_encoder import DUAL_ENCODER
from training.config.fields import Stage, Within
from training.config.model_stages import ModelConfig

# Methods of assigning captions to styles: the rows of Table 4.
StyleMethod = Literal["none", "random", "kmeans", "gmm", "agglomerative", "hdbscan", "dbscan"]
STYLE_METHODS: tuple[StyleMethod, ...] = typing.get_args(StyleMethod)
# 150 MB as RGB, and more than a camera of 48 megapixels takes.
MAX_PIXELS = 50_000_000
AdversarialMode = Literal["paper", "intent", "odds", "critic", "minimax", "ridge"]


@dataclass(frozen=True)
class DataConfig(Stage):
    """Data set, and conversion of its images and texts to tensors."""

    # Reader: "cuhk-pedes" (the synthetic set is written in that format), ...; "own": docs/data.md.
    dataset: Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "own"] = "cuhk-pedes"
    # Folder that holds the annotation file (reid_raw.json, ...) and imgs/.
    root: str = "data/CUHK-PEDES"
    # JSONL of generated identity and clothing texts; empty: <root>/descriptions.jsonl.
    descriptions: str = ""
    # Train on the captions alone, without generated texts; the losses that read these must be off (recipes NAME-captions).
    captions_only: bool = False
    # Height and width of the images that the model sees, pixels (reading 21); 0 0: those that the pretrained visual encoder was
    # trained with.
    image_size: tuple[int, int] = (0, 0)
    # Longest text in tokens, [CLS] and [SEP] included.
    text_length: Annotated[int, Within(8, 512)] = 64
    # Identities in a batch: the PK sampler draws this many people and `images_per_id` images of each (reading 22).
    ids_per_batch: Annotated[int, Within(2)] = 16
    # Images of each identity in a batch; 0: plain shuffled batches.
    images_per_id: Annotated[int, Within(0)] = 4
    # Plain batch size, used when images_per_id is 0.
    batch_size: Annotated[int, Within(2)] = 64
    # Pixels of the largest image that is decoded; a larger one is an error, before it fills the memory.
    max_pixels: Annotated[int, Within(1)] = MAX_PIXELS
    # Read images through symbolic links that lead out of imgs/.
    follow_links: bool = False
    # Pad by this many pixels, then crop back (reading 22).
    pad: Annotated[int, Within(0, 512)] = 10
    # Probability of a horizontal flip.
    flip: Annotated[float, Within(0, 1)] = 0.5
    # Probability of erasing one rectangle.
    erase: Annotated[float, Within(0, 1)] = 0.5
    # Folder of the packed cache of resized images, shared by runs and data sets, updated on demand; empty: none.
    cache: str = ""
    # Processes that decode images; 0 decodes in the training process.
    workers: Annotated[int, Within(0, 1024)] = 0

    def check(self) -> None:
        sizes = self.image_size == (0, 0) or all(16 <= size <= 4096 for size in self.image_size)
        self.require(sizes, "image_size", "within [16, 4096], or 0 0")


@dataclass(frozen=True)
class LossConfig(Stage):
    """Losses: False removes a loss (Table 3); GradNorm balances the others."""

    # InfoNCE of images and texts (Table 3, w/o InfoNCE).
    info_nce: bool = True
    # Triplet loss on the identity embeddings (Table 3, w/o triplet).
    triplet: bool = True
    # Matching of the clothing branch with the clothing text, which makes it clothing (reading 6); eq. (1) has none.
    clothing_matching: bool = True
    # Adversarial loss against clothes in the identity branch (Table 3, w/o adversarial; `adversarial_mode`).
    adversarial: bool = True
    # Dependence between identity and clothing features (Table 3, w/o decoupling; `decoupling_measure`).
    decoupling: bool = True
    # Regularisation of the gate (Table 3, w/o gate regularisation; `gate_weight`).
    gate_regularisation: bool = True
    # Positive texts of an image in InfoNCE (reading 1): "identity", "caption" or "both" for its identity embedding;
    # "scored": the identity text for the identity embedding, and the caption for the sum of both embeddings, as retrieval
    # scores it at beta 1 (reading 24), so that the identity embedding need not encode clothing words.
    info_nce_texts: Literal["identity", "caption", "both", "scored"] = "scored"
    # Image to text and text to image; off: image to text, diagonal only (reading 2).
    info_nce_symmetric: bool = True
    # Share of the gradient of "scored" captions that reaches the identity embedding, which has no reason to know clothes; the
    # clothing embedding gets all of it (reading 1).
    captions_to_identity: Annotated[float, Within(0, 1)] = 0.25
    # Read the other caption, which is encoded because it is fused, in InfoNCE too (reading 1).
    both_captions: bool = True
    # Which captions are positives of an image (reading 2): its own, those of other images of the person being left out since
    # most of them are of other clothes, or all of the person. Identity texts are always those of the person.
    caption_positives: Literal["own", "identity"] = "own"
    # Temperature of InfoNCE: the start where it is learned, else its value (reading 3).
    temperature: Annotated[float, Within(0.01, 0.5)] = 0.07
    # Learn the temperature within [0.01, 0.5]; off: it is fixed.
    learn_temperature: bool = True
    # Margin of the triplet loss, on squared L2 distances (reading 5).
    margin: Annotated[float, Within(0)] = 0.3
    # 0: the farthest sample of the person and the nearest of another only (batch-hard, as printed); above: a smooth maximum over
    # all, which is less led by the few that cannot be told apart.
    triplet_smoothing: Annotated[float, Within(0)] = 0.2
    # Loss of the adversary (reading 6), with P the probability of the own clothing text. "paper": eq. (1) as printed,
    # -log(1 - P) of the clothing branch. On the identity branch: "intent", -log(1 - P), whose gradient is tiny where P is small;
    # "odds", log P - log(1 - P) down to its value at chance; "critic", the same by a separate probe that learns to find the text
    # in the identity branch; "minimax", a probe and gradient reversal, which does not stop at chance; "ridge", the
    # share of the clothing texts' variance that a linear reader, solved anew in every batch, finds in the identity branch.
    adversarial_mode: AdversarialMode = "ridge"
    # Learning rate of the critic, relative to the base rate: it must follow the feature that flees from it.
    critic_lr_scale: Annotated[float, Within(1e-6, 1e3)] = 5.0
    # Decoupling measure (eq. 2 and reading 8): "hsic" of the gated features, or "cka", the unbiased HSIC over the geometric
    # mean of the HSIC of each feature with itself, which features of less variance do not lower.
    decoupling_measure: Literal["hsic", "cka"] = "cka"
    # L2 normalisation of the features that the decoupling measure compares.
    hsic_normalise: bool = True
    # Kernel of the decoupling measure.
    hsic_kernel: Literal["linear", "rbf"] = "linear"
    # Fixed weight of mean (g - 0.5)^2, outside GradNorm (reading 9).
    gate_weight: Annotated[float, Within(0)] = 0.01
    # Triplet loss on f_final, the fused feature (reading 15).
    final_triplet: bool = False
    # InfoNCE of f_final with a text.
    final_info_nce: bool = True
    # Matching head on f_final: does this text belong to this image?
    final_matching: bool = True
    # Text that is fused where InfoNCE reads captions: "other", another caption of the image than the one that InfoNCE asks
    # for (its identity text where it has one caption only), so that copying is no answer; or the same "caption".
    final_text: Literal["other", "caption"] = "other"
    # Wrong pairs of the matching head: the most similar wrong text of each second image and the most similar wrong image of
    # each other text, or the "next" identity of the batch.
    final_negatives: Literal["hard", "next"] = "hard"
    # Matching head: "dot", the product of f_final and the text, or "linear", a map of f_final alone, which stays at log 2.
    matching_form: Literal["dot", "linear"] = "dot"
    # InfoNCE of f_final reads the wrong pairs too, each with the caption of its image: f_final must not follow the text.
    final_wrong_pairs: bool = True
    # Share of the gradient of the fusion's losses that passes on into BDAM and the text encoder.
    final_gradient: Annotated[float, Within(0, 1)] = 0.25


@dataclass(frozen=True)
class GradNormConfig(Stage):
    """Balance of the tasks (eq. 5 and 6, readings 16 to 18)."""

    # Off: all weights stay 1.
    enabled: bool = True
    # "recommended": target mean norm times ratio^alpha; "paper": ratio times the first task's norm, alpha the strength
    # (reading 16).
    form: Literal["recommended", "paper"] = "recommended"
    # Exponent of a task's relative training rate, or, in the form "paper", the strength in eq. (6).
    alpha: float = 0.5
    # Target norm of the first task, InfoNCE, relative to that of each other one ("recommended" only).
    lead: Annotated[float, Within(1e-3, 1e3)] = 4.0
    # How s is stepped (reading 18): "adam", whatever the size of the norms, or "plain", lr times the gradient of eq. (5).
    optimizer: Literal["adam", "plain"] = "adam"
    # Learning rate of the log weights s.
    lr: Annotated[float, Within(0)] = 0.025
    # Coefficient of sum (log w)^2.
    log_penalty: Annotated[float, Within(0)] = 1e-3
    # Smallest and largest weight of a task.
    clip: Annotated[tuple[float, float], Within(1e-12)] = (1e-4, 10.0)
    # The first losses, to which later ones are compared, are averages over this many steps.
    warm_steps: Annotated[int, Within(1)] = 20
    # Smallest first loss, so that a task that starts near zero does not dominate.
    floor: Annotated[float, Within(1e-12)] = 1e-3
    # Norms are measured, and weights updated, in every n-th step: a measurement is one pass through the heads per task.
    every: Annotated[int, Within(1)] = 1

    def check(self) -> None:
        self.require(self.clip[0] < self.clip[1], "clip", "two numbers, the lower one first")


@dataclass(frozen=True)
class OptimConfig(Stage):
    """Optimisation, precision and memory (readings 22 and 25)."""

    # Optimiser of the model's parameters (reading 25).
    optimizer: Literal["adamw", "adam"] = "adamw"
    # Base learning rate, after warm-up; it falls along a cosine.
    lr: Annotated[float, Within(1e-12)] = 1e-4
    # Weight decay; biases, norms and the temperature have none.
    weight_decay: Annotated[float, Within(0)] = 1e-3
    # Passes over the training images.
    epochs: Annotated[int, Within(1)] = 60
    # Epochs over which the learning rate rises to the base rate; part of `epochs`.
    warmup_epochs: Annotated[int, Within(0)] = 5
    # Largest global gradient norm; 0: no clipping.
    clip_norm: Annotated[float, Within(0)] = 1.0
    # Validate every this many epochs, and always after the last.
    validate_every: Annotated[int, Within(1)] = 1
    # Precision of encoders and heads (autocast); auto: bf16 on a card that multiplies in it, else fp32. Parameters, losses and
    # optimiser stay in float32; fp16 scales the losses and skips steps whose gradients overflow. fp64: all of the training in
    # float64, to compare runs.
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    # Number of micro-batches for the encoders; heads and losses always process the whole batch. Less memory, the same
    # gradient, one more forward pass through the encoders.
    accumulate: Annotated[int, Within(1)] = 1
    # Recompute activations of the layers of encoders and BDAM in the backward pass instead of keeping them.
    checkpointing: bool = False
    # torch.compile of the encoders and of the modules of the heads.
    compile: bool = False
    # Decay of an exponential moving average of the weights (0.999, say), which is validated beside the weights; best.pt gets the
    # better of the two. 0: none.
    ema: Annotated[float, Within(0, 0.999999)] = 0.0
    # Also write last.pt every this many steps (at the end of an epoch: after validation); 0: after every epoch only.
    save_every_steps: Annotated[int, Within(0)] = 0

    def check(self) -> None:
        self.require(self.warmup_epochs < self.epochs, "warmup_epochs", f"less than epochs ({self.epochs})")


@dataclass(frozen=True)
class EvalConfig(Stage):
    """Protocol `dual` and its clothing weight (reading 24)."""

    # Candidates for beta in cos(t, v_id) + beta cos(t, v_clo) (reading 24); chosen on validation, and refined around the best.
    # 0 is always reported too; the last one is the clothing embedding alone, in a number that JSON can hold.
    betas: Annotated[tuple[float, ...], Within(0)] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 1e6)
    # Images or texts that are encoded at a time.
    batch_size: Annotated[int, Within(1)] = 128
    # Validation metric that selects the checkpoint.
    select_by: Literal["R1", "mAP"] = "R1"

    def check(self) -> None:
        self.require(0.0 in self.betas, "betas", "numbers that include 0.0, which is always reported")


@dataclass(frozen=True)
class Config(Stage):
    """Complete configuration of a run, stored as config.json with every checkpoint and result."""

    # Name of its recipe, for the reader of a result.
    recipe: str = "custom"
    # Seed of the first weights, the batches, the augmentation and dropout.
    seed: int = 0
    # Data set, and conversion of its images and texts to tensors.
    data: DataConfig = field(default_factory=DataConfig)
    # Encoders, modules and joint embedding of the model.
    model: ModelConfig = field(default_factory=ModelConfig)
    # Losses: False removes a loss (Table 3); GradNorm balances the others.
    loss: LossConfig = field(default_factory=LossConfig)
    # Balance of the tasks by the norms of their gradients (eq. 5 and 6, readings 16 to 18).
    gradnorm: GradNormConfig = field(default_factory=GradNormConfig)
    # Optimisation, precision and memory (readings 22 and 25).
    optim: OptimConfig = field(default_factory=OptimConfig)
    # Protocol `dual` and its clothing weight (reading 24).
    eval: EvalConfig = field(default_factory=EvalConfig)

    def check(self) -> None:
        loss = self.loss
        # Asking for one of them alone is right: a row of Table 3 removes its loss from f_final too.
        asked = self.model.fusion.enabled and loss.final_info_nce and loss.final_triplet
        expected = (
            "False, like loss.final_info_nce, where loss.triplet and loss.info_nce, of which they are parts, are off"
        )
        self.require(not asked or loss.info_nce or loss.triplet, "loss.final_triplet", expected)
        if self.model.architecture == "dual-encoder":
            for name, value in DUAL_ENCODER.items():
                self.require(attrgetter(name)(self) == value, name, f"{value!r} with model.architecture 'dual-encoder'")
        if self.data.captions_only:
            for name, value in CAPTIONS_ONLY.items():
                self.require(attrgetter(name)(self) == value, name, f"{value!r} with data.captions_only")
